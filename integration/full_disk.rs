//! Full disks and quotas: an upper that cannot take a change says so, shows what it showed before, holds
//! nothing half made, and works again when there is room.

mod disk;

use std::fs;
use std::path::Path;

use disk::{Disk, Short};

use crate::support::sys::{self, Errno, Result};
use crate::support::{Compare, Fixture, Tree, mode, now, require_all, text};

const LARGE: usize = 200_000;
/// How many blocks or inodes are left, until it works.
const LEFT: [usize; 16] = [0, 1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 48, 96, 192, 384, 768];

fn content() -> Vec<u8> {
    (0..LARGE).map(|i| (i ^ (i >> 9)) as u8).collect()
}

fn fill_lowers(top: &Path, base: &Path) {
    for dir in ["d", "d/sub", "e", "e/sub", "empty"] {
        sys::mkdir(base.join(dir), 0o755).unwrap();
    }
    sys::mkdir(top.join("d"), 0o755).unwrap();
    for path in ["small", "other", "d/a", "d/sub/x", "e/b", "e/sub/y", "h1"] {
        sys::make(base.join(path), b"lower").unwrap();
    }
    sys::make(top.join("d/top"), b"top").unwrap();
    sys::make(base.join("d/large"), &content()).unwrap();
    sys::symlink("small", base.join("link")).unwrap();
    sys::link(base.join("h1"), base.join("d/h2")).unwrap();
    sys::link(base.join("h1"), base.join("h3")).unwrap();
}

/// A change, and what comes before it.
struct Case {
    name: &'static str,
    prepare: fn(&Fixture),
    act: fn(&Fixture) -> Result<()>,
}

fn put(path: impl AsRef<Path>, offset: i64) -> Result<()> {
    let fd = sys::open(path, libc::O_RDWR, 0)?;
    sys::pwrite(&fd, b"changed", offset)?;
    mode::settle(&fd)
}

fn chmod(f: &Fixture, path: &str) {
    sys::chmod(f.at(path), 0o600).unwrap();
}

fn make(f: &Fixture, path: &str) {
    sys::make(f.at(path), b"new").unwrap();
}

fn clear(f: &Fixture, path: &str) {
    for name in sys::names(f.at(path)).unwrap() {
        let path = f.at(path).join(name);
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(path).unwrap();
        } else {
            sys::unlink(path).unwrap();
        }
    }
}

macro_rules! cases {
    ($($name:literal: $prepare:expr, $act:expr;)*) => {
        &[$(Case { name: $name, prepare: $prepare, act: $act }),*]
    };
}

const DATA: &[Case] = cases! {
    "write to a small file": |_| {}, |f| put(f.at("small"), 5);
    "write to a large file": |_| {}, |f| put(f.at("d/large"), 5);
    "write to a metadata copy": |f| chmod(f, "d/large"), |f| put(f.at("d/large"), 5);
    "truncate a metadata copy": |f| chmod(f, "d/large"), |f| sys::truncate(f.at("d/large"), 100_000);
    "truncate a large file": |_| {}, |f| sys::truncate(f.at("d/large"), 100_000);
    "empty a large file": |_| {}, |f| sys::open(f.at("d/large"), libc::O_WRONLY | libc::O_TRUNC, 0).map(drop);
    "write to a file of several names": |_| {}, |f| put(f.at("d/h2"), 0);
};

const ATTRIBUTES: &[Case] = cases! {
    "chmod of a file": |_| {}, |f| sys::chmod(f.at("d/large"), 0o600);
    "chmod of a file of several names": |_| {}, |f| sys::chmod(f.at("d/h2"), 0o600);
    "chmod of a directory": |_| {}, |f| sys::chmod(f.at("d/sub"), 0o700);
    "chown of a symbolic link": |_| {}, |f| sys::lchown(f.at("link"), 7, 7);
    "set an attribute of a layer's file": |_| {}, |f| sys::setxattr(f.at("small"), "user.x", &[7; 500], 0);
    "set an attribute of a new file": |f| make(f, "new"), |f| sys::setxattr(f.at("new"), "user.x", &[7; 500], 0);
};

const NAMES: &[Case] = cases! {
    "create": |_| {}, |f| sys::open(f.at("d/sub/new"), libc::O_CREAT | libc::O_WRONLY, 0o644).map(drop);
    "create over a whiteout": |f| sys::unlink(f.at("small")).unwrap(), |f| {
        sys::open(f.at("small"), libc::O_CREAT | libc::O_WRONLY, 0o644).map(drop)
    };
    "mkdir": |_| {}, |f| sys::mkdir(f.at("d/sub/new"), 0o755);
    "mkdir over a whiteout": |f| fs::remove_dir_all(f.at("d")).unwrap(), |f| sys::mkdir(f.at("d"), 0o755);
    "symlink": |_| {}, |f| sys::symlink("t".repeat(300), f.at("e/new"));
    "mknod of a device 0:0": |_| {}, |f| sys::mknod(f.at("e/new"), libc::S_IFCHR | 0o600, 0);
    "link": |_| {}, |f| sys::link(f.at("small"), f.at("d/new"));
    "link of a file of several names": |_| {}, |f| sys::link(f.at("h1"), f.at("e/new"));
};

const REMOVALS: &[Case] = cases! {
    "unlink of a layer's file": |_| {}, |f| sys::unlink(f.at("d/a"));
    "unlink of a copy": |f| chmod(f, "d/a"), |f| sys::unlink(f.at("d/a"));
    "unlink of a file of several names": |_| {}, |f| sys::unlink(f.at("h1"));
    "rmdir of a layer's directory": |_| {}, |f| sys::rmdir(f.at("empty"));
    "rmdir of a merged directory": |f| clear(f, "d"), |f| sys::rmdir(f.at("d"));
};

const RENAMES: &[Case] = cases! {
    "rename of a layer's file": |_| {}, |f| sys::rename(f.at("d/a"), f.at("e/a"), 0);
    "rename over a layer's file": |_| {}, |f| sys::rename(f.at("d/a"), f.at("e/b"), 0);
    "rename over a copy": |f| chmod(f, "e/b"), |f| sys::rename(f.at("d/a"), f.at("e/b"), 0);
    "rename of a new file over a layer's": |f| make(f, "e/new"), |f| sys::rename(f.at("e/new"), f.at("d/a"), 0);
    "rename of a merged directory": |_| {}, |f| sys::rename(f.at("d"), f.at("e/d"), 0);
    "rename over an emptied directory": |f| clear(f, "e"), |f| sys::rename(f.at("d"), f.at("e"), 0);
    "exchange": |_| {}, |f| sys::rename(f.at("d"), f.at("e/b"), libc::RENAME_EXCHANGE);
    "rename that leaves a device": |_| {}, |f| sys::rename(f.at("d/a"), f.at("e/a"), libc::RENAME_WHITEOUT);
};

/// One that fails changes times, as on the disk itself.
const ALLOCATION: &[Case] = cases! {
    "allocate": |f| make(f, "new"), |f| {
        let fd = sys::open(f.at("new"), libc::O_WRONLY, 0)?;
        sys::fallocate(&fd, libc::FALLOC_FL_KEEP_SIZE, 0, 100_000)
    };
};

/// What makes room needs none.
const ALWAYS: &[Case] = cases! {
    "unlink of a new file": |f| make(f, "d/new"), |f| sys::unlink(f.at("d/new"));
    "rmdir of a new directory": |f| sys::mkdir(f.at("e/new"), 0o755).unwrap(), |f| sys::rmdir(f.at("e/new"));
    "rename of a new file": |f| make(f, "d/new"), |f| sys::rename(f.at("d/new"), f.at("d/renamed"), 0);
    "truncate a new file": |f| sys::make(f.at("new"), &content()).unwrap(), |f| sys::truncate(f.at("new"), 0);
};

/// The same tree as it was before.
const SAME: Compare = Compare {
    dir_size: false,
    ..Compare::BYTES
};

/// The same but for times: where the kernel collects writes, it has set that of one which then fails.
const UNTIMED: Compare = Compare {
    now: i64::MIN,
    ..SAME
};

/// What a write that has failed leaves.
fn unwritten() -> Compare {
    if mode::collects_writes() {
        UNTIMED
    } else {
        SAME
    }
}

fn check_work(f: &Fixture, when: &str) {
    let left = sys::names(f.work.join("work")).unwrap();
    assert_eq!(left, [""; 0], "{when}: left in the work directory");
}

/// The tree is that one, and the work directory empty.
fn check(f: &Fixture, expected: &Tree, how: Compare, when: &str) {
    if let Some(difference) = expected.difference(&Tree::read(&f.mnt), how) {
        panic!("{when}:\n  {difference}");
    }
    check_work(f, when);
}

/// Makes the change with ever more room, until it works. How often it failed.
fn exhaust(disk: &Disk, short: Short, options: &[&str], case: &Case, unchanged: Compare) -> usize {
    let Case { name, prepare, act } = case;
    // That of another upper.
    let alike = Compare {
        now: now() - 1,
        ino: false,
        ..SAME
    };
    let done = {
        let f = disk.stack("room", options);
        prepare(&f);
        act(&f).unwrap_or_else(|e| panic!("{name}: {e}, and there is room"));
        Tree::read(&f.mnt)
    };
    for (failures, left) in LEFT.into_iter().enumerate() {
        let mut f = disk.stack("full", options);
        prepare(&f);
        let before = Tree::read(&f.mnt);
        let filler = disk.fill(short, left);
        let when = format!("{name}, {left} {short:?} left");
        let result = act(&f);
        match result {
            Ok(()) => check(&f, &done, alike, &when),
            Err(e) => {
                assert_eq!(e, disk.full, "{when}");
                if mode::collects_writes() {
                    check_work(&f, &when);
                    // The kernel goes on showing what it could not store.
                    f.remount();
                }
                check(&f, &before, unchanged, &when);
            }
        }
        let shown = Tree::read(&f.mnt);
        // The next mount begins on the full disk.
        f.remount();
        check(&f, &shown, SAME, &format!("{when}, mounted again"));
        drop(filler);
        if result.is_ok() {
            return failures;
        }
        act(&f).unwrap_or_else(|e| panic!("{when}, then there is room: {e}"));
        check(&f, &done, alike, &format!("{when}, once more with room"));
        f.remount();
        check(&f, &done, alike, &format!("{when}, done and mounted again"));
    }
    panic!("{name} fails with all the room there is");
}

fn exhaust_all(disk: &Disk, short: Short, options: &[&str], cases: &[&[Case]]) {
    let mut failures = 0;
    let mut runs = 0;
    for case in cases.iter().copied().flatten() {
        let writes = DATA.iter().any(|of_data| of_data.name == case.name);
        let unchanged = if writes { unwritten() } else { SAME };
        let failed = exhaust(disk, short, options, case, unchanged);
        eprintln!("{short:?} {options:?} {}: failed {failed} times", case.name);
        failures += failed;
        runs += 1;
    }
    assert!(failures > 0, "the disk was never full");
    eprintln!("{short:?} {options:?}: {runs} changes failed {failures} times");
    let touched = Compare {
        now: now() - 1,
        ..SAME
    };
    for case in ALLOCATION {
        exhaust(disk, short, options, case, touched);
    }
}

fn never_fails(disk: &Disk, short: Short, options: &[&str]) {
    for case in ALWAYS {
        let failed = exhaust(disk, short, options, case, SAME);
        assert_eq!(failed, 0, "{}", case.name);
    }
}

const ALL: &[&[Case]] = &[DATA, ATTRIBUTES, NAMES, REMOVALS, RENAMES];

fn all(kind: &str, short: Short, options: &[&str], cases: &[&[Case]]) {
    if !require_all(&["root", "fuse", "loop"]) {
        return;
    }
    let disk = Disk::small(kind);
    exhaust_all(&disk, short, options, cases);
    never_fails(&disk, short, options);
}

#[test]
fn blocks_of_tmpfs() {
    all("tmpfs", Short::Blocks, &[], ALL);
}

#[test]
fn inodes_of_tmpfs() {
    all("tmpfs", Short::Inodes, &[], ALL);
}

#[test]
fn blocks_of_ext4() {
    all("ext4", Short::Blocks, &[], ALL);
}

#[test]
fn inodes_of_ext4() {
    all("ext4", Short::Inodes, &[], ALL);
}

#[test]
fn inodes_with_wh_style() {
    let options = ["--whiteouts", "wh"];
    all(
        "tmpfs",
        Short::Inodes,
        &options,
        &[NAMES, REMOVALS, RENAMES],
    );
}

#[test]
fn quota_of_btrfs() {
    if require_all(&["root", "fuse", "loop", "btrfs"]) {
        exhaust_all(&Disk::limited(), Short::Blocks, &[], &[DATA]);
    }
}

/// It is filled in place: what a failure leaves is no change, and no use of the disk.
#[test]
fn failed_filling_of_a_metadata_copy_leaves_nothing() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let disk = Disk::small("tmpfs");
    // A kernel that collects writes drops privileges and sets times before it has written.
    let f = disk.stack("filling", &["--writeback=off"]);
    sys::chmod(f.at("d/large"), 0o4755).unwrap();
    let before = sys::stat(f.at("d/large")).unwrap();
    let _filler = disk.fill(Short::Blocks, 20);
    assert_eq!(put(f.at("d/large"), 5), Err(Errno::ENOSPC));
    let after = sys::stat(f.at("d/large")).unwrap();
    let times = |s: &libc::stat| (s.st_mtime, s.st_mtime_nsec, s.st_mode);
    assert_eq!(times(&after), times(&before));
    let stored = sys::stat(f.upper.join("d/large")).unwrap();
    assert_eq!(stored.st_blocks, 0);
    // What it would hold on to is there for others.
    sys::make(f.at("new"), &[1; 20 * 1024]).unwrap();
}

/// Of the markers that it takes the second finds no room: what the first step moved away comes back.
#[test]
fn failed_marker_of_a_rename_keeps_the_target() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let disk = Disk::small("tmpfs");
    let mut f = disk.stack("marker", &["--whiteouts", "wh"]);
    clear(&f, "e");
    chmod(&f, "d");
    let before = Tree::read(&f.mnt);
    let _filler = disk.fill(Short::Inodes, 1);
    let renamed = sys::rename(f.at("d"), f.at("e"), 0);
    assert_eq!(renamed, Err(Errno::ENOSPC));
    check(&f, &before, SAME, "after a rename that failed");
    f.remount();
    check(&f, &before, SAME, "and mounted again");
}

/// Where the last inode is free the probe takes it, and has to give it back.
#[test]
fn mounting_on_a_full_disk_leaves_no_probe() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let disk = Disk::small("tmpfs");
    let mut f = disk.stack("probe", &[]);
    make(&f, "d/new");
    let _filler = disk.fill(Short::Inodes, 1);
    f.remount();
    assert_eq!(sys::names(f.work.join("work")).unwrap(), [""; 0]);
    make(&f, "d/last");
}

/// A shared mapping has no call that could fail but msync; what does not arrive is not kept.
#[test]
fn mapped_writes() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let disk = Disk::small("tmpfs");
    let mut f = disk.stack("mapped", &[]);
    let before = Tree::read(&f.mnt);
    let filler = disk.fill(Short::Blocks, 3);
    let change = |f: &Fixture| {
        let fd = sys::open(f.at("d/large"), libc::O_RDWR, 0).unwrap();
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let mut map = sys::Map::new(&fd, LARGE, access, libc::MAP_SHARED).unwrap();
        map.set(5, b'X');
        map.sync()
    };
    assert_eq!(change(&f), Err(Errno::ENOSPC));
    f.remount();
    check(&f, &before, unwritten(), "after a mapped write");
    drop(filler);
    change(&f).unwrap();
    f.remount();
    let mut expected = content();
    expected[5] = b'X';
    assert!(fs::read(f.at("d/large")).unwrap() == expected);
}

/// Bug: a WRITE of pages that was cut short was answered by how much of it there is, which the kernel takes
/// for success.
#[test]
fn mapped_pages_that_do_not_fit() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    for when in ["off", "on"] {
        let disk = Disk::small("tmpfs");
        let writeback = format!("--writeback={when}");
        let f = disk.stack("pages", &["--passthrough=off", &writeback]);
        let fd = sys::open(f.at("new"), libc::O_RDWR | libc::O_CREAT, 0o644).unwrap();
        let size = 1 << 20;
        sys::ftruncate(&fd, size as i64).unwrap();
        let filler = disk.fill(Short::Blocks, 100);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let mut map = sys::Map::new(&fd, size, access, libc::MAP_SHARED).unwrap();
        let mut change = |byte| {
            (0..size).step_by(4096).for_each(|at| map.set(at, byte));
            map.sync()
        };
        assert_eq!(change(1), Err(Errno::ENOSPC), "{writeback}");
        drop(filler);
        assert_eq!(change(2), Ok(()), "{writeback}");
        let stored = fs::read(f.upper.join("new")).unwrap();
        assert!(stored.iter().step_by(4096).all(|byte| *byte == 2));
    }
}

/// What a write said to have written is there, and removing it makes room for others.
#[test]
fn writes_that_do_not_fit() {
    if !require_all(&["root", "fuse", "loop"]) {
        return;
    }
    for kind in ["tmpfs", "ext4"] {
        let disk = Disk::small(kind);
        let mut f = disk.stack("writes", &["--writeback=off"]);
        make(&f, "other-new");
        let _filler = disk.fill(Short::Blocks, 100);
        let fd = sys::open(f.at("e/new"), libc::O_CREAT | libc::O_WRONLY, 0o644).unwrap();
        let data = content();
        let mut written = 0;
        let end = loop {
            match sys::write(&fd, &data[written % LARGE..][..1000]) {
                Ok(count) => written += count,
                Err(e) => break e,
            }
        };
        drop(fd);
        assert_eq!(end, Errno::ENOSPC, "{kind}");
        assert!(written > 0, "{kind}: nothing fits");
        let check = |f: &Fixture| {
            let found = fs::read(f.at("e/new")).unwrap();
            let expected: Vec<_> = data.iter().cycle().take(written).copied().collect();
            assert!(
                found == expected,
                "{kind}: {} of {written} bytes",
                found.len()
            );
        };
        check(&f);
        f.remount();
        check(&f);
        assert_eq!(put(f.at("d/large"), 5), Err(Errno::ENOSPC), "{kind}");
        sys::unlink(f.at("e/new")).unwrap();
        f.remount();
        fs::write(f.at("other-new"), [1; 5000]).unwrap();
        sys::unlink(f.at("d/a")).unwrap();
    }
}

/// Where the kernel collects writes, fsync says what did not fit, and so does the close without one.
#[test]
fn collected_writes_that_do_not_fit() {
    if !require_all(&["root", "fuse", "loop"]) {
        return;
    }
    for (kind, synced) in [
        ("tmpfs", true),
        ("tmpfs", false),
        ("ext4", true),
        ("ext4", false),
    ] {
        let disk = Disk::small(kind);
        let mut f = disk.stack("collected", &["--passthrough=off", "--writeback=on"]);
        make(&f, "other-new");
        let _filler = disk.fill(Short::Blocks, 100);
        let fd = sys::open(f.at("e/new"), libc::O_CREAT | libc::O_WRONLY, 0o644).unwrap();
        let data = content().repeat(5);
        for piece in data.chunks(1000) {
            assert_eq!(sys::write(&fd, piece), Ok(piece.len()), "{kind}");
        }
        let said = if synced {
            sys::fsync(&fd)
        } else {
            sys::flush(&fd)
        };
        assert_eq!(said, Err(Errno::ENOSPC), "{kind}, synced: {synced}");
        drop(fd);
        check_work(&f, kind);
        f.remount();
        // What has arrived is what was written there.
        let found = fs::read(f.at("e/new")).unwrap();
        assert!(found.len() <= data.len());
        let pages = found.chunks(4096).zip(data.chunks(4096));
        let arrived = pages.filter(|(found, data)| data.starts_with(found) && !found.is_empty());
        let arrived = arrived.count();
        assert!(arrived < data.len() / 4096, "{kind}: {arrived}");
        let empty = |page: &[u8]| page.iter().all(|byte| *byte == 0);
        let missing = found.chunks(4096).filter(|page| empty(page)).count();
        assert_eq!(arrived + missing, found.len().div_ceil(4096), "{kind}");
        sys::unlink(f.at("e/new")).unwrap();
        f.remount();
        fs::write(f.at("other-new"), [1; 5000]).unwrap();
        sys::unlink(f.at("d/a")).unwrap();
    }
}

/// An upper that was never mounted cannot be set up then; the message says why, and nothing stays.
#[test]
fn new_uppers_on_a_full_disk() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let disk = Disk::small("tmpfs");
    let mut f = disk.stack("new", &[]);
    f.umount();
    for dir in [&f.upper, &f.work] {
        fs::remove_dir_all(dir).unwrap();
        fs::create_dir(dir).unwrap();
    }
    let mut refused = 0;
    for left in 0..10 {
        let filler = disk.fill(Short::Inodes, left);
        let output = f.try_mount();
        let said = text(&output.stderr);
        if output.status.success() {
            break;
        }
        refused += 1;
        assert_eq!(output.status.code(), Some(5), "{said}");
        assert!(said.contains("No space left"), "{said}");
        drop(filler);
    }
    assert!(refused > 0);
    f.remount();
    make(&f, "d/new");
    f.remount();
    assert_eq!(
        sys::names(f.at("d")).unwrap(),
        ["a", "h2", "large", "new", "sub", "top"]
    );
}
