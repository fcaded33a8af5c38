//! What holds in a plain directory: every case is run on one, on kernel overlayfs and on ours.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::Command;

use crate::support::sys::{self, Errno};
use crate::support::{Fixture, Scratch, System, isolated, require, require_all, text};

/// What kernel overlayfs is known not to do, and why.
const OVERLAYFS_FAILS: &[(&str, &str)] = &[(
    "link_counts_of_directories",
    "merged directories always have a link count of 1",
)];

macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod plain { $(#[test] fn $name() { super::on_plain(super::$name); })* }
        mod overlayfs { $(#[test] fn $name() { super::on_overlayfs(stringify!($name), super::$name); })* }
        mod ours { $(#[test] fn $name() { super::on_ours(super::$name); })* }
    };
}

cases!(
    creation_modes,
    exclusive_and_truncating_open,
    append,
    rename_matrix,
    rename_noreplace,
    rename_exchange,
    rename_directories,
    unlinked_open_file,
    removed_open_directory,
    hardlinks,
    link_counts_of_directories,
    readdir_numbers,
    seekdir,
    readdir_while_removing,
    times,
    sizes_and_holes,
    fallocate_modes,
    xattrs,
    mapping_shared,
    mapping_private,
    long_names,
    deep_paths,
    setuid_cleared_by_write,
    setuid_cleared_by_chown,
    setgid_directory,
    sticky_directory,
    permissions,
    default_acl,
    symlinks,
    special_files,
    locks,
    temporary_file,
    copy_range,
    execute,
    many_entries,
);

fn on_plain(case: fn(&Path)) {
    if !require("root") {
        return;
    }
    let scratch = Scratch::new("plain");
    let dir = scratch.dir("case");
    isolated(|| case(&dir));
}

fn mounted(system: System, case: fn(&Path)) {
    let mut fixture = Fixture::on(system, "conformance");
    // The case's directory comes from a lower, so that its first change copies it up.
    let lower = fixture.lower();
    sys::mkdir(lower.join("case"), 0o755).unwrap();
    fixture.mount();
    let dir = fixture.at("case");
    isolated(|| case(&dir));
    fixture.umount();
}

fn on_overlayfs(name: &str, case: fn(&Path)) {
    if !require_all(&["root", "overlayfs"]) {
        return;
    }
    let known = OVERLAYFS_FAILS.iter().find(|(case, _)| *case == name);
    match (
        std::panic::catch_unwind(|| mounted(System::Overlayfs, case)),
        known,
    ) {
        (Ok(()), None) => {}
        (Ok(()), Some((_, reason))) => eprintln!("passes, though it was known to fail: {reason}"),
        (Err(_), Some((_, reason))) => eprintln!("known to fail: {reason}"),
        (Err(cause), None) => std::panic::resume_unwind(cause),
    }
}

fn on_ours(case: fn(&Path)) {
    if require_all(&["root", "fuse"]) {
        mounted(System::Ours, case);
    }
}

fn mode(path: impl AsRef<Path>) -> u32 {
    sys::lstat(path).unwrap().st_mode & 0o7777
}

fn create(path: impl AsRef<Path>, mode: u32) {
    sys::open(path, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, mode).unwrap();
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    std::fs::read(path).unwrap()
}

fn umask(mask: u32) {
    unsafe { libc::umask(mask) };
}

fn creation_modes(dir: &Path) {
    for (mask, expected) in [(0o022, 0o755), (0o077, 0o700), (0, 0o777), (0o777, 0)] {
        umask(mask);
        let at = |name: &str| dir.join(format!("{name}{mask:o}"));
        create(at("f"), 0o777);
        sys::mkdir(at("d"), 0o777).unwrap();
        sys::mknod(at("p"), libc::S_IFIFO | 0o777, 0).unwrap();
        sys::symlink("x", at("l")).unwrap();
        assert_eq!(
            [mode(at("f")), mode(at("d")), mode(at("p"))],
            [expected; 3],
            "{mask:o}"
        );
        assert_eq!(mode(at("l")), 0o777);
    }
    umask(0o022);
    create(dir.join("special"), 0o7777);
    assert_eq!(mode(dir.join("special")), 0o7755);
    // The mode does not bind the descriptor that creates the file.
    let fd = sys::open(dir.join("none"), libc::O_CREAT | libc::O_RDWR, 0).unwrap();
    assert_eq!(sys::write(&fd, b"x"), Ok(1));
}

fn exclusive_and_truncating_open(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"content").unwrap();
    let exclusive = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
    assert_eq!(
        sys::open(&file, exclusive, 0o644).err(),
        Some(Errno::EEXIST)
    );
    sys::symlink("nowhere", dir.join("l")).unwrap();
    assert_eq!(
        sys::open(dir.join("l"), exclusive, 0o644).err(),
        Some(Errno::EEXIST)
    );
    let fd = sys::open(&file, libc::O_RDWR | libc::O_TRUNC, 0).unwrap();
    assert_eq!(sys::fstat(&fd).unwrap().st_size, 0);
    assert_eq!(read(&file), b"");
    assert_eq!(sys::open(dir, libc::O_RDWR, 0).err(), Some(Errno::EISDIR));
    assert_eq!(
        sys::open(dir.join("f/x"), libc::O_RDONLY, 0).err(),
        Some(Errno::ENOTDIR)
    );
    assert_eq!(
        sys::open(dir.join("no"), libc::O_RDONLY, 0).err(),
        Some(Errno::ENOENT)
    );
    let nofollow = libc::O_RDONLY | libc::O_NOFOLLOW;
    assert_eq!(
        sys::open(dir.join("l"), nofollow, 0).err(),
        Some(Errno::ELOOP)
    );
    let directory = libc::O_RDONLY | libc::O_DIRECTORY;
    assert_eq!(sys::open(&file, directory, 0).err(), Some(Errno::ENOTDIR));
}

fn append(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"one").unwrap();
    let a = sys::open(&file, libc::O_WRONLY | libc::O_APPEND, 0).unwrap();
    let b = sys::open(&file, libc::O_WRONLY | libc::O_APPEND, 0).unwrap();
    for fd in [&a, &b, &a] {
        assert_eq!(sys::write(fd, b"+"), Ok(1));
    }
    assert_eq!(read(&file), b"one+++");
    sys::truncate(&file, 1).unwrap();
    sys::write(&b, b"!").unwrap();
    assert_eq!(read(&file), b"o!");
}

const KINDS: [&str; 4] = ["file", "dir", "full", "link"];

fn make_kind(path: &Path, kind: &str) {
    match kind {
        "file" => sys::make(path, b"f").unwrap(),
        "link" => sys::symlink("target", path).unwrap(),
        _ => sys::mkdir(path, 0o755).unwrap(),
    }
    if kind == "full" {
        sys::make(path.join("inside"), b"i").unwrap();
    }
}

fn rename_matrix(dir: &Path) {
    for from in KINDS {
        for to in KINDS {
            let (a, b) = (
                dir.join(format!("{from}-{to}")),
                dir.join(format!("to-{from}-{to}")),
            );
            make_kind(&a, from);
            make_kind(&b, to);
            let ino = sys::lstat(&a).unwrap().st_ino;
            let is_dir = |kind: &str| kind == "dir" || kind == "full";
            let expected = match (is_dir(from), is_dir(to)) {
                (true, false) => Err(Errno::ENOTDIR),
                (false, true) => Err(Errno::EISDIR),
                (true, true) if to == "full" => Err(Errno::ENOTEMPTY),
                _ => Ok(()),
            };
            assert_eq!(sys::rename(&a, &b, 0), expected, "{from} over {to}");
            if expected.is_ok() {
                assert_eq!(sys::lstat(&b).unwrap().st_ino, ino);
                assert_eq!(sys::lstat(&a).err(), Some(Errno::ENOENT));
                if from == "full" {
                    assert_eq!(sys::names(&b).unwrap(), ["inside"]);
                }
            }
        }
    }
    // Two names of one file: nothing happens.
    sys::make(dir.join("one"), b"").unwrap();
    sys::link(dir.join("one"), dir.join("two")).unwrap();
    sys::rename(dir.join("one"), dir.join("two"), 0).unwrap();
    assert!(dir.join("one").exists() && dir.join("two").exists());
    sys::mkdir(dir.join("outer"), 0o755).unwrap();
    let inner = dir.join("outer/inner");
    assert_eq!(
        sys::rename(dir.join("outer"), &inner, 0),
        Err(Errno::EINVAL)
    );
    assert_eq!(
        sys::rename(dir.join("missing"), &inner, 0),
        Err(Errno::ENOENT)
    );
}

fn rename_noreplace(dir: &Path) {
    for kind in KINDS {
        let (a, b, c) = (
            dir.join(format!("a{kind}")),
            dir.join("b"),
            dir.join(format!("c{kind}")),
        );
        make_kind(&a, kind);
        if !b.exists() {
            make_kind(&b, "file");
        }
        assert_eq!(
            sys::rename(&a, &b, libc::RENAME_NOREPLACE),
            Err(Errno::EEXIST)
        );
        assert_eq!(sys::rename(&a, &c, libc::RENAME_NOREPLACE), Ok(()));
        assert_eq!(sys::lstat(&a).err(), Some(Errno::ENOENT));
    }
}

fn rename_exchange(dir: &Path) {
    for from in KINDS {
        for to in KINDS {
            let (a, b) = (
                dir.join(format!("{from}-{to}")),
                dir.join(format!("to-{from}-{to}")),
            );
            make_kind(&a, from);
            make_kind(&b, to);
            let ino = |path: &Path| sys::lstat(path).unwrap().st_ino;
            let before = (ino(&a), ino(&b));
            assert_eq!(sys::rename(&a, &b, libc::RENAME_EXCHANGE), Ok(()));
            assert_eq!((ino(&b), ino(&a)), before, "{from} with {to}");
        }
    }
    let result = sys::rename(
        dir.join("file-file"),
        dir.join("none"),
        libc::RENAME_EXCHANGE,
    );
    assert_eq!(result, Err(Errno::ENOENT));
    let both = libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE;
    assert_eq!(
        sys::rename(dir.join("file-file"), dir.join("n"), both),
        Err(Errno::EINVAL)
    );
}

fn rename_directories(dir: &Path) {
    sys::mkdir(dir.join("a"), 0o755).unwrap();
    sys::mkdir(dir.join("b"), 0o755).unwrap();
    sys::mkdir(dir.join("a/sub"), 0o755).unwrap();
    sys::make(dir.join("a/sub/file"), b"content").unwrap();
    let fd = sys::open(dir.join("a/sub/file"), libc::O_RDWR, 0).unwrap();
    sys::rename(dir.join("a/sub"), dir.join("b/moved"), 0).unwrap();
    sys::write(&fd, b"C").unwrap();
    assert_eq!(read(dir.join("b/moved/file")), b"Content");
    let parent = sys::stat(dir.join("b/moved/..")).unwrap().st_ino;
    assert_eq!(parent, sys::stat(dir.join("b")).unwrap().st_ino);
    assert_eq!(sys::stat(dir.join("a")).unwrap().st_nlink, 2);
    assert_eq!(sys::names(dir.join("a")).unwrap(), [""; 0]);
}

fn unlinked_open_file(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"content").unwrap();
    let fd = sys::open(&file, libc::O_RDWR, 0).unwrap();
    let ino = sys::fstat(&fd).unwrap().st_ino;
    sys::unlink(&file).unwrap();
    sys::make(&file, b"another").unwrap();
    sys::fchmod(&fd, 0o600).unwrap();
    sys::fchown(&fd, 12, 34).unwrap();
    sys::futimens(&fd, (1, 2), (3, 4)).unwrap();
    sys::fsetxattr(&fd, "user.x", b"y").unwrap();
    let stat = sys::fstat(&fd).unwrap();
    assert_eq!(
        (stat.st_ino, stat.st_nlink, stat.st_mode & 0o777),
        (ino, 0, 0o600)
    );
    assert_eq!(
        (stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec),
        (12, 34, 3, 4)
    );
    sys::pwrite(&fd, b"C", 0).unwrap();
    sys::ftruncate(&fd, 4).unwrap();
    assert_eq!(sys::pread(&fd, 100, 0).unwrap(), b"Cont");
    assert_eq!(read(&file), b"another");
    assert_eq!(sys::stat(&file).unwrap().st_uid, 0);
    // A file replaced by rename is as gone as an unlinked one.
    sys::make(dir.join("g"), b"new").unwrap();
    let old = sys::open(&file, libc::O_RDWR, 0).unwrap();
    sys::rename(dir.join("g"), &file, 0).unwrap();
    assert_eq!(sys::fstat(&old).unwrap().st_nlink, 0);
    assert_eq!(sys::pread(&old, 100, 0).unwrap(), b"another");
}

fn removed_open_directory(dir: &Path) {
    let sub = dir.join("sub");
    sys::mkdir(&sub, 0o755).unwrap();
    let fd = sys::open(&sub, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    sys::rmdir(&sub).unwrap();
    assert_eq!(sys::fstat(&fd).unwrap().st_nlink, 0);
    sys::fchmod(&fd, 0o700).unwrap();
    assert_eq!(sys::fstat(&fd).unwrap().st_mode & 0o777, 0o700);
    let made = sys::openat(fd.as_raw_fd(), "x", libc::O_CREAT | libc::O_RDWR, 0o644);
    assert_eq!(made.err(), Some(Errno::ENOENT));
    assert_eq!(sys::mkdirat(fd.as_raw_fd(), "d", 0o755), Err(Errno::ENOENT));
    sys::mkdir(&sub, 0o755).unwrap();
    assert_eq!(sys::stat(&sub).unwrap().st_nlink, 2);
}

fn hardlinks(dir: &Path) {
    let (a, b) = (dir.join("a"), dir.join("b"));
    sys::make(&a, b"content").unwrap();
    sys::link(&a, &b).unwrap();
    let (sa, sb) = (sys::stat(&a).unwrap(), sys::stat(&b).unwrap());
    assert_eq!(
        (sa.st_ino, sa.st_dev, sa.st_nlink),
        (sb.st_ino, sb.st_dev, 2)
    );
    assert_eq!(sb.st_nlink, 2);
    std::fs::write(&b, b"through b").unwrap();
    assert_eq!(read(&a), b"through b");
    sys::chmod(&a, 0o600).unwrap();
    assert_eq!(mode(&b), 0o600);
    sys::unlink(&a).unwrap();
    assert_eq!(sys::stat(&b).unwrap().st_nlink, 1);
    assert_eq!(sys::link(dir, dir.join("d")), Err(Errno::EPERM));
    assert_eq!(sys::link(&b, &b), Err(Errno::EEXIST));
    // Of a symlink itself.
    sys::symlink("b", dir.join("l")).unwrap();
    sys::link(dir.join("l"), dir.join("m")).unwrap();
    assert_eq!(sys::lstat(dir.join("m")).unwrap().st_nlink, 2);
}

fn link_counts_of_directories(dir: &Path) {
    let nlink = || sys::stat(dir).unwrap().st_nlink;
    let first = nlink();
    sys::mkdir(dir.join("a"), 0o755).unwrap();
    sys::mkdir(dir.join("b"), 0o755).unwrap();
    sys::make(dir.join("f"), b"").unwrap();
    assert_eq!(nlink(), first + 2);
    sys::rename(dir.join("a"), dir.join("b/a"), 0).unwrap();
    assert_eq!(
        (nlink(), sys::stat(dir.join("b")).unwrap().st_nlink),
        (first + 1, 3)
    );
    sys::rmdir(dir.join("b/a")).unwrap();
    sys::rmdir(dir.join("b")).unwrap();
    assert_eq!(nlink(), first);
}

fn readdir_numbers(dir: &Path) {
    sys::mkdir(dir.join("d"), 0o755).unwrap();
    sys::make(dir.join("f"), b"").unwrap();
    sys::symlink("x", dir.join("l")).unwrap();
    sys::mknod(dir.join("p"), libc::S_IFIFO | 0o644, 0).unwrap();
    let entries = sys::readdir(dir).unwrap();
    assert_eq!(entries.len(), 6);
    for entry in entries {
        let name = text(&entry.name);
        let stat = sys::lstat(dir.join(&name)).unwrap();
        assert_eq!(
            u32::from(entry.kind) << 12,
            stat.st_mode & libc::S_IFMT,
            "{name}"
        );
        // `..` of a mount's root may be another file system's; here it is not.
        assert_eq!(entry.ino, stat.st_ino, "{name}");
        assert_eq!(stat.st_dev, sys::stat(dir).unwrap().st_dev, "{name}");
    }
}

fn seekdir(dir: &Path) {
    for i in 0..300 {
        sys::make(
            dir.join(format!("file with a longer name, number {i}")),
            b"",
        )
        .unwrap();
    }
    let mut stream = sys::Dir::open(dir).unwrap();
    let all = stream.rest().unwrap();
    assert_eq!(all.len(), 302);
    for (i, entry) in all.iter().enumerate().step_by(37) {
        stream.seek(entry.next);
        let rest: Vec<_> = stream.rest().unwrap().into_iter().map(|e| e.name).collect();
        let expected: Vec<_> = all[i + 1..].iter().map(|e| e.name.clone()).collect();
        assert_eq!(rest, expected, "after entry {i}");
    }
    sys::make(dir.join("later"), b"").unwrap();
    stream.rewind();
    assert_eq!(stream.rest().unwrap().len(), 303);
}

fn readdir_while_removing(dir: &Path) {
    for i in 0..500 {
        sys::make(dir.join(format!("{i}")), b"").unwrap();
    }
    let mut stream = sys::Dir::open(dir).unwrap();
    let mut seen = 0;
    while let Some(entry) = stream.next().unwrap() {
        let name = text(&entry.name);
        if name != "." && name != ".." {
            sys::unlink(dir.join(name)).unwrap();
            seen += 1;
        }
    }
    assert_eq!(seen, 500);
    assert_eq!(sys::names(dir).unwrap(), [""; 0]);
}

fn times(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"").unwrap();
    let got = || {
        let stat = sys::stat(&file).unwrap();
        (
            (stat.st_atime, stat.st_atime_nsec),
            (stat.st_mtime, stat.st_mtime_nsec),
        )
    };
    for time in [
        (0, 0),
        (1, 999_999_999),
        (-1, 500_000_000),
        (-86_400, 1),
        (4_000_000_000, 7),
    ] {
        sys::utimens(&file, time, (time.0, 123_456_789)).unwrap();
        assert_eq!(got(), (time, (time.0, 123_456_789)));
    }
    sys::utimens(&file, (10, 11), (0, libc::UTIME_OMIT)).unwrap();
    assert_eq!(got(), ((10, 11), (4_000_000_000, 123_456_789)));
    let before = crate::support::now() - 1;
    sys::utimens(&file, (0, libc::UTIME_OMIT), (0, libc::UTIME_NOW)).unwrap();
    assert_eq!(got().0, (10, 11));
    assert!((before..before + 60).contains(&got().1.0));
    sys::symlink("f", dir.join("l")).unwrap();
    sys::utimens(dir.join("l"), (5, 6), (7, 8)).unwrap();
    let link = sys::lstat(dir.join("l")).unwrap();
    assert_eq!((link.st_mtime, link.st_mtime_nsec), (7, 8));
    assert_ne!(got().1.0, 7);
    sys::utimens(dir, (1, 0), (2, 0)).unwrap();
    assert_eq!(sys::stat(dir).unwrap().st_mtime, 2);
    sys::make(dir.join("g"), b"").unwrap();
    assert!(sys::stat(dir).unwrap().st_mtime >= before);
    let owner_only = sys::as_user(1000, 1000, || sys::utimens(&file, (1, 1), (1, 1)));
    assert_eq!(owner_only, Err(Errno::EPERM));
}

fn sizes_and_holes(dir: &Path) {
    let file = dir.join("f");
    let fd = sys::open(&file, libc::O_CREAT | libc::O_RDWR, 0o644).unwrap();
    let mega = 1 << 20;
    sys::pwrite(&fd, &[1; 4096], 8 * mega).unwrap();
    sys::fsync(&fd).unwrap();
    let stat = sys::fstat(&fd).unwrap();
    assert_eq!(stat.st_size, 8 * mega + 4096);
    assert!(stat.st_blocks * 512 < mega, "{} blocks", stat.st_blocks);
    assert_eq!(sys::lseek(&fd, 0, libc::SEEK_DATA), Ok(8 * mega));
    assert_eq!(sys::lseek(&fd, 0, libc::SEEK_HOLE), Ok(0));
    assert_eq!(
        sys::lseek(&fd, 8 * mega, libc::SEEK_HOLE),
        Ok(8 * mega + 4096)
    );
    assert_eq!(
        sys::lseek(&fd, 9 * mega, libc::SEEK_DATA),
        Err(Errno::ENXIO)
    );
    sys::ftruncate(&fd, 100).unwrap();
    sys::truncate(&file, 200).unwrap();
    assert_eq!(sys::pread(&fd, 1000, 0).unwrap(), [0; 200]);
    assert_eq!(sys::truncate(&file, -1), Err(Errno::EINVAL));
    assert_eq!(sys::truncate(dir, 0), Err(Errno::EISDIR));
}

fn fallocate_modes(dir: &Path) {
    let fd = sys::open(dir.join("f"), libc::O_CREAT | libc::O_RDWR, 0o644).unwrap();
    sys::pwrite(&fd, &[7; 65536], 0).unwrap();
    let unsupported = |result: sys::Result<()>| match result {
        Err(Errno::EOPNOTSUPP) => true,
        other => {
            other.unwrap();
            false
        }
    };
    let keep = libc::FALLOC_FL_KEEP_SIZE;
    let block = |at: i64| sys::pread(&fd, 1, at).unwrap();
    if !unsupported(sys::fallocate(&fd, 0, 0, 131_072)) {
        assert_eq!(sys::fstat(&fd).unwrap().st_size, 131_072);
        sys::fallocate(&fd, keep, 0, 1 << 20).unwrap();
        assert_eq!(sys::fstat(&fd).unwrap().st_size, 131_072);
    }
    if !unsupported(sys::fallocate(
        &fd,
        libc::FALLOC_FL_PUNCH_HOLE | keep,
        4096,
        8192,
    )) {
        assert_eq!(
            [block(4095), block(4096), block(12287), block(12288)],
            [[7], [0], [0], [7]]
        );
    }
    if !unsupported(sys::fallocate(&fd, libc::FALLOC_FL_ZERO_RANGE, 16384, 4096)) {
        assert_eq!([block(16383), block(16384), block(20480)], [[7], [0], [7]]);
    }
    let size = sys::fstat(&fd).unwrap().st_size;
    if !unsupported(sys::fallocate(&fd, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096)) {
        assert_eq!(sys::fstat(&fd).unwrap().st_size, size - 4096);
        assert_eq!([block(0), block(8191), block(8192)], [[0], [0], [7]]);
    }
    let size = sys::fstat(&fd).unwrap().st_size;
    if !unsupported(sys::fallocate(
        &fd,
        libc::FALLOC_FL_INSERT_RANGE,
        8192,
        4096,
    )) {
        assert_eq!(sys::fstat(&fd).unwrap().st_size, size + 4096);
        assert_eq!([block(8192), block(12288)], [[0], [7]]);
    }
}

fn xattrs(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"").unwrap();
    for path in [file.as_path(), dir] {
        assert_eq!(sys::getxattr(path, "user.a"), Err(Errno::ENODATA));
        sys::setxattr(path, "user.a", b"1", 0).unwrap();
        sys::setxattr(path, "user.empty", b"", 0).unwrap();
        sys::setxattr(path, "trusted.b", &[0, 255], 0).unwrap();
        assert_eq!(
            sys::setxattr(path, "user.a", b"2", libc::XATTR_CREATE),
            Err(Errno::EEXIST)
        );
        assert_eq!(
            sys::setxattr(path, "user.c", b"2", libc::XATTR_REPLACE),
            Err(Errno::ENODATA)
        );
        sys::setxattr(path, "user.a", b"22", libc::XATTR_REPLACE).unwrap();
        assert_eq!(sys::getxattr(path, "user.a").unwrap(), b"22");
        assert_eq!(sys::getxattr(path, "user.empty").unwrap(), b"");
        assert_eq!(sys::getxattr(path, "trusted.b").unwrap(), [0, 255]);
        let names: Vec<_> = sys::listxattr(path)
            .unwrap()
            .iter()
            .map(|name| text(name))
            .collect();
        assert_eq!(names, ["trusted.b", "user.a", "user.empty"]);
        sys::removexattr(path, "user.a").unwrap();
        assert_eq!(sys::removexattr(path, "user.a"), Err(Errno::ENODATA));
    }
    let user = sys::as_user(1000, 1000, || sys::setxattr(&file, "user.x", b"", 0));
    assert_eq!(user, Err(Errno::EACCES));
    sys::symlink("f", dir.join("l")).unwrap();
    assert_eq!(
        sys::setxattr(dir.join("l"), "user.x", b"", 0),
        Err(Errno::EPERM)
    );
    sys::setxattr(dir.join("l"), "trusted.x", b"v", 0).unwrap();
    assert_eq!(sys::getxattr(dir.join("l"), "trusted.x").unwrap(), b"v");
}

fn mapping_shared(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, &[b'a'; 8192]).unwrap();
    let fd = sys::open(&file, libc::O_RDWR, 0).unwrap();
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let mut map = sys::Map::new(&fd, 8192, both, libc::MAP_SHARED).unwrap();
    map.set(5000, b'm');
    assert_eq!(sys::pread(&fd, 1, 5000).unwrap(), b"m");
    sys::pwrite(&fd, b"w", 1).unwrap();
    assert_eq!(map.get(1), b'w');
    map.sync().unwrap();
    drop(fd);
    map.set(6000, b'n');
    drop(map);
    let content = read(&file);
    assert_eq!([content[1], content[5000], content[6000]], *b"wmn");
}

fn mapping_private(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, &[b'a'; 8192]).unwrap();
    let fd = sys::open(&file, libc::O_RDONLY, 0).unwrap();
    let both = libc::PROT_READ | libc::PROT_WRITE;
    let mut map = sys::Map::new(&fd, 8192, both, libc::MAP_PRIVATE).unwrap();
    map.set(0, b'p');
    assert_eq!((map.get(0), read(&file)[0]), (b'p', b'a'));
    let shared = sys::Map::new(&fd, 8192, both, libc::MAP_SHARED);
    assert_eq!(shared.err(), Some(Errno::EACCES));
}

fn long_names(dir: &Path) {
    let name = "n".repeat(255);
    sys::make(dir.join(&name), b"x").unwrap();
    assert_eq!(sys::names(dir).unwrap(), [name.as_str()]);
    let other = "o".repeat(255);
    sys::rename(dir.join(&name), dir.join(&other), 0).unwrap();
    sys::link(dir.join(&other), dir.join(&name)).unwrap();
    sys::unlink(dir.join(&name)).unwrap();
    sys::unlink(dir.join(&other)).unwrap();
    sys::mkdir(dir.join(&name), 0o755).unwrap();
    sys::rmdir(dir.join(&name)).unwrap();
    sys::symlink("t", dir.join(&name)).unwrap();
    let long = "n".repeat(256);
    assert_eq!(sys::make(dir.join(&long), b""), Err(Errno::ENAMETOOLONG));
    assert_eq!(sys::lstat(dir.join(&long)).err(), Some(Errno::ENAMETOOLONG));
    let odd = "new\nline \u{e4}\u{1F980} \\ \"";
    sys::make(dir.join(odd), b"").unwrap();
    assert!(sys::names(dir).unwrap().contains(&odd.to_string()));
}

fn deep_paths(dir: &Path) {
    let directory = libc::O_RDONLY | libc::O_DIRECTORY;
    let name = "d".repeat(200);
    let depth = 30;
    let mut fds = vec![sys::open(dir, directory, 0).unwrap()];
    for _ in 0..depth {
        let parent = fds.last().unwrap().as_raw_fd();
        sys::mkdirat(parent, &name, 0o755).unwrap();
        fds.push(sys::openat(parent, &name, directory, 0).unwrap());
    }
    let bottom = fds.last().unwrap().as_raw_fd();
    let file = sys::openat(bottom, "f", libc::O_CREAT | libc::O_RDWR, 0o644).unwrap();
    sys::write(&file, b"deep").unwrap();
    sys::fchmod(&file, 0o600).unwrap();
    let again = sys::openat(bottom, "f", libc::O_RDONLY, 0).unwrap();
    assert_eq!(sys::pread(&again, 10, 0).unwrap(), b"deep");
    sys::unlinkat(bottom, "f", 0).unwrap();
    fds.pop();
    while let Some(parent) = fds.pop() {
        sys::unlinkat(parent.as_raw_fd(), &name, libc::AT_REMOVEDIR).unwrap();
    }
}

fn setuid_cleared_by_write(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"content").unwrap();
    let set = || sys::chmod(&file, 0o6777).unwrap();
    let as_other = |body: &dyn Fn()| sys::as_user(1000, 1000, body);
    set();
    let fd = sys::open(&file, libc::O_RDWR, 0).unwrap();
    sys::pwrite(&fd, b"r", 0).unwrap();
    assert_eq!(mode(&file), 0o6777, "root's write keeps them");
    as_other(&|| {
        let fd = sys::open(&file, libc::O_WRONLY, 0).unwrap();
        assert_eq!(mode(&file), 0o6777, "opening keeps them");
        sys::pwrite(&fd, b"w", 0).unwrap();
    });
    assert_eq!(mode(&file), 0o777, "write");
    set();
    as_other(&|| sys::truncate(&file, 3).unwrap());
    assert_eq!(mode(&file), 0o777, "truncate");
    set();
    as_other(&|| drop(sys::open(&file, libc::O_WRONLY | libc::O_TRUNC, 0).unwrap()));
    assert_eq!(mode(&file), 0o777, "O_TRUNC");
    // A file capability goes with the write of anyone.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    sys::setxattr(&file, "security.capability", &capability, 0).unwrap();
    as_other(&|| {
        let fd = sys::open(&file, libc::O_WRONLY, 0).unwrap();
        sys::pwrite(&fd, b"x", 0).unwrap();
    });
    assert_eq!(
        sys::getxattr(&file, "security.capability"),
        Err(Errno::ENODATA)
    );
}

fn setuid_cleared_by_chown(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"").unwrap();
    sys::chmod(&file, 0o6755).unwrap();
    sys::lchown(&file, 1000, 1000).unwrap();
    assert_eq!(mode(&file), 0o755);
    sys::chmod(&file, 0o2745).unwrap();
    sys::lchown(&file, 1000, 1001).unwrap();
    assert_eq!(
        mode(&file),
        0o2745,
        "set-gid without group execute is a lock mode"
    );
    sys::chmod(dir, 0o6755).unwrap();
    sys::lchown(dir, 1000, 1000).unwrap();
    assert_eq!(mode(dir), 0o6755, "directories keep theirs");
    // chmod by an owner outside the file's group loses set-gid.
    sys::as_user(1000, 1000, || sys::chmod(&file, 0o2755).unwrap());
    assert_eq!(mode(&file), 0o755);
    let taken = sys::as_user(1000, 1000, || sys::lchown(&file, 1001, u32::MAX));
    assert_eq!(taken, Err(Errno::EPERM));
}

fn setgid_directory(dir: &Path) {
    let sub = dir.join("sub");
    sys::mkdir(&sub, 0o755).unwrap();
    sys::lchown(&sub, 0, 500).unwrap();
    sys::chmod(&sub, 0o2777).unwrap();
    sys::as_user(1000, 1000, || {
        create(sub.join("f"), 0o2775);
        sys::mkdir(sub.join("d"), 0o755).unwrap();
        sys::symlink("x", sub.join("l")).unwrap();
        sys::mknod(sub.join("p"), libc::S_IFIFO | 0o644, 0).unwrap();
    });
    for name in ["f", "d", "l", "p"] {
        let stat = sys::lstat(sub.join(name)).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid), (1000, 500), "{name}");
    }
    assert_eq!(mode(sub.join("d")), 0o2755);
    assert_eq!(
        mode(sub.join("f")),
        0o755,
        "no set-gid for one outside the group"
    );
}

fn sticky_directory(dir: &Path) {
    sys::chmod(dir, 0o1777).unwrap();
    sys::make(dir.join("roots"), b"").unwrap();
    sys::mkdir(dir.join("rootsdir"), 0o777).unwrap();
    sys::as_user(1000, 1000, || {
        create(dir.join("own"), 0o644);
        assert_eq!(sys::unlink(dir.join("roots")), Err(Errno::EPERM));
        assert_eq!(sys::rmdir(dir.join("rootsdir")), Err(Errno::EPERM));
        assert_eq!(
            sys::rename(dir.join("roots"), dir.join("x"), 0),
            Err(Errno::EPERM)
        );
        assert_eq!(
            sys::rename(dir.join("own"), dir.join("roots"), 0),
            Err(Errno::EPERM)
        );
    });
    let other = sys::as_user(1001, 1001, || sys::unlink(dir.join("own")));
    assert_eq!(other, Err(Errno::EPERM));
    sys::as_user(1000, 1000, || sys::unlink(dir.join("own")).unwrap());
}

fn permissions(dir: &Path) {
    sys::make(dir.join("secret"), b"s").unwrap();
    sys::chmod(dir.join("secret"), 0o600).unwrap();
    sys::mkdir(dir.join("closed"), 0o700).unwrap();
    sys::make(dir.join("closed/f"), b"").unwrap();
    sys::as_user(1000, 1000, || {
        let denied = Some(Errno::EACCES);
        assert_eq!(
            sys::open(dir.join("secret"), libc::O_RDONLY, 0).err(),
            denied
        );
        assert_eq!(sys::stat(dir.join("closed/f")).err(), denied);
        assert_eq!(sys::readdir(dir.join("closed")).err(), denied);
        assert_eq!(sys::make(dir.join("new"), b"").err(), denied);
        assert_eq!(sys::mkdir(dir.join("new"), 0o755).err(), denied);
        assert_eq!(sys::unlink(dir.join("secret")).err(), denied);
        assert_eq!(
            sys::rename(dir.join("secret"), dir.join("x"), 0).err(),
            denied
        );
        assert_eq!(sys::chmod(dir.join("secret"), 0o666), Err(Errno::EPERM));
    });
    sys::as_user(1000, 0, || {
        sys::open(dir.join("secret"), libc::O_RDONLY, 0).unwrap_err();
    });
}

fn default_acl(dir: &Path) {
    if !require("setfacl") {
        return;
    }
    let facl = |args: &[&str]| {
        let output = Command::new("setfacl")
            .args(args)
            .arg(dir)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    facl(&["-m", "d:u:1000:rwx,d:g::r-x,d:o::---"]);
    umask(0o077);
    create(dir.join("f"), 0o666);
    sys::mkdir(dir.join("d"), 0o777).unwrap();
    assert_eq!(
        mode(dir.join("f")),
        0o660,
        "the umask does not apply, the mask does"
    );
    assert_eq!(mode(dir.join("d")), 0o770);
    sys::getxattr(dir.join("d"), "system.posix_acl_default").unwrap();
    sys::getxattr(dir.join("f"), "system.posix_acl_access").unwrap();
    sys::as_user(1000, 1000, || {
        sys::open(dir.join("f"), libc::O_RDWR, 0).unwrap();
    });
    sys::as_user(1001, 1001, || {
        let result = sys::open(dir.join("f"), libc::O_RDONLY, 0);
        assert_eq!(result.err(), Some(Errno::EACCES));
    });
    sys::chmod(dir.join("f"), 0o600).unwrap();
    sys::as_user(1000, 1000, || {
        let result = sys::open(dir.join("f"), libc::O_RDONLY, 0);
        assert_eq!(
            result.err(),
            Some(Errno::EACCES),
            "chmod sets the ACL's mask"
        );
    });
}

fn symlinks(dir: &Path) {
    let long = "t".repeat(4095);
    sys::symlink(&long, dir.join("long")).unwrap();
    assert_eq!(sys::readlink(dir.join("long")).unwrap(), long.as_bytes());
    assert_eq!(sys::lstat(dir.join("long")).unwrap().st_size, 4095);
    sys::mkdir(dir.join("d"), 0o755).unwrap();
    sys::make(dir.join("d/f"), b"through").unwrap();
    sys::symlink("d", dir.join("s")).unwrap();
    assert_eq!(read(dir.join("s/f")), b"through");
    sys::symlink("loop", dir.join("loop")).unwrap();
    assert_eq!(sys::stat(dir.join("loop")).err(), Some(Errno::ELOOP));
    sys::symlink("made", dir.join("dangling")).unwrap();
    drop(sys::open(dir.join("dangling"), libc::O_CREAT | libc::O_WRONLY, 0o644).unwrap());
    assert!(dir.join("made").exists());
    assert_eq!(sys::readlink(dir.join("made")), Err(Errno::EINVAL));
    sys::lchown(dir.join("s"), 5, 6).unwrap();
    assert_eq!(sys::lstat(dir.join("s")).unwrap().st_uid, 5);
    assert_eq!(sys::stat(dir.join("s")).unwrap().st_uid, 0);
    assert_eq!(sys::rmdir(dir.join("s")), Err(Errno::ENOTDIR));
    sys::unlink(dir.join("s")).unwrap();
    assert!(dir.join("d/f").exists());
}

fn special_files(dir: &Path) {
    let null = libc::makedev(1, 3);
    sys::mknod(dir.join("null"), libc::S_IFCHR | 0o666, null).unwrap();
    sys::mknod(
        dir.join("block"),
        libc::S_IFBLK | 0o600,
        libc::makedev(7, 300),
    )
    .unwrap();
    sys::mknod(dir.join("sock"), libc::S_IFSOCK | 0o600, 0).unwrap();
    sys::mknod(dir.join("file"), libc::S_IFREG | 0o640, 0).unwrap();
    let stat = sys::lstat(dir.join("null")).unwrap();
    assert_eq!(
        (stat.st_mode & libc::S_IFMT, stat.st_rdev),
        (libc::S_IFCHR, null)
    );
    assert_eq!(
        sys::lstat(dir.join("block")).unwrap().st_rdev,
        libc::makedev(7, 300)
    );
    assert_eq!(mode(dir.join("file")), 0o640);
    let result = sys::as_user(1000, 1000, || {
        sys::mknod(dir.join("n"), libc::S_IFCHR | 0o666, null)
    });
    assert!(matches!(result, Err(Errno::EPERM | Errno::EACCES)));
    // A pipe works between two ends opened here.
    sys::mknod(dir.join("pipe"), libc::S_IFIFO | 0o600, 0).unwrap();
    let reader = sys::open(dir.join("pipe"), libc::O_RDONLY | libc::O_NONBLOCK, 0).unwrap();
    let writer = sys::open(dir.join("pipe"), libc::O_WRONLY, 0).unwrap();
    sys::write(&writer, b"through").unwrap();
    let mut buffer = [0u8; 16];
    let got = unsafe { libc::read(reader.as_raw_fd(), buffer.as_mut_ptr().cast(), 16) };
    assert_eq!(&buffer[..usize::try_from(got).unwrap()], b"through");
    // So does a socket, where its path fits.
    let bound = std::os::unix::net::UnixListener::bind(dir.join("s"));
    let listener = bound.unwrap();
    std::os::unix::net::UnixStream::connect(dir.join("s")).unwrap();
    drop(listener);
}

fn locks(dir: &Path) {
    let file = dir.join("f");
    sys::make(&file, b"content").unwrap();
    let fd = sys::open(&file, libc::O_RDWR, 0).unwrap();
    let other = sys::open(&file, libc::O_RDWR, 0).unwrap();
    let lock = |kind: i32, start: i64, size: i64| {
        let mut lock: libc::flock = unsafe { std::mem::zeroed() };
        lock.l_type = kind as i16;
        lock.l_start = start;
        lock.l_len = size;
        lock
    };
    let fcntl = |fd: i32, command: i32, mut lock: libc::flock| {
        let result = unsafe { libc::fcntl(fd, command, &mut lock) };
        if result < 0 {
            Err(Errno::last())
        } else {
            Ok(lock)
        }
    };
    // Open-file-description locks are between descriptors.
    fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, lock(libc::F_WRLCK, 0, 4)).unwrap();
    let conflict = fcntl(
        other.as_raw_fd(),
        libc::F_OFD_SETLK,
        lock(libc::F_RDLCK, 3, 1),
    );
    assert_eq!(conflict.err(), Some(Errno::EAGAIN));
    fcntl(
        other.as_raw_fd(),
        libc::F_OFD_SETLK,
        lock(libc::F_WRLCK, 4, 1),
    )
    .unwrap();
    fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, lock(libc::F_UNLCK, 0, 0)).unwrap();
    fcntl(
        other.as_raw_fd(),
        libc::F_OFD_SETLK,
        lock(libc::F_UNLCK, 0, 0),
    )
    .unwrap();
    // Record locks are between processes.
    fcntl(fd.as_raw_fd(), libc::F_SETLK, lock(libc::F_WRLCK, 0, 4)).unwrap();
    let query = lock(libc::F_RDLCK, 0, 0);
    let child = unsafe { libc::fork() };
    if child == 0 {
        let mut query = query;
        let result = unsafe { libc::fcntl(other.as_raw_fd(), libc::F_GETLK, &mut query) };
        let seen = result == 0 && query.l_type == libc::F_WRLCK as i16 && query.l_len == 4;
        unsafe { libc::_exit(i32::from(!seen)) };
    }
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "another process sees the record lock");
    // And flock.
    let flock = |fd: i32, how: i32| unsafe { libc::flock(fd, how | libc::LOCK_NB) };
    assert_eq!(flock(fd.as_raw_fd(), libc::LOCK_EX), 0);
    assert_eq!(flock(other.as_raw_fd(), libc::LOCK_SH), -1);
    assert_eq!(flock(fd.as_raw_fd(), libc::LOCK_UN), 0);
    assert_eq!(flock(other.as_raw_fd(), libc::LOCK_SH), 0);
}

fn temporary_file(dir: &Path) {
    let fd = match sys::open(dir, libc::O_TMPFILE | libc::O_RDWR, 0o600) {
        Err(Errno::EOPNOTSUPP) => return,
        other => other.unwrap(),
    };
    sys::write(&fd, b"content").unwrap();
    assert_eq!(sys::fstat(&fd).unwrap().st_nlink, 0);
    assert_eq!(sys::names(dir).unwrap(), [""; 0]);
    let (from, to) = (
        sys::c(format!("/proc/self/fd/{}", fd.as_raw_fd())),
        sys::c(dir.join("f")),
    );
    let (cwd, follow) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
    let linked = unsafe { libc::linkat(cwd, from.as_ptr(), cwd, to.as_ptr(), follow) };
    assert_eq!(linked, 0, "{}", Errno::last());
    assert_eq!(read(dir.join("f")), b"content");
}

fn copy_range(dir: &Path) {
    let content: Vec<u8> = (0..300_000u32).map(|i| (i % 251) as u8).collect();
    sys::make(dir.join("a"), &content).unwrap();
    let from = sys::open(dir.join("a"), libc::O_RDONLY, 0).unwrap();
    let to = sys::open(dir.join("b"), libc::O_CREAT | libc::O_RDWR, 0o644).unwrap();
    let none = std::ptr::null_mut();
    let mut copied = 0;
    while copied < content.len() {
        let got = unsafe {
            let (from, to) = (from.as_raw_fd(), to.as_raw_fd());
            libc::copy_file_range(from, none, to, none, content.len(), 0)
        };
        assert!(got > 0, "{}", Errno::last());
        copied += usize::try_from(got).unwrap();
    }
    assert_eq!(read(dir.join("b")), content);
}

fn execute(dir: &Path) {
    let file = dir.join("true");
    std::fs::copy("/bin/true", &file).unwrap();
    sys::chmod(&file, 0o755).unwrap();
    // A child forked by another test may hold the copy's writing descriptor for a moment.
    for _ in 0..50 {
        match Command::new(&file).status() {
            Err(e) if e.raw_os_error() == Some(libc::ETXTBSY) => {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            status => {
                assert!(status.unwrap().success());
                break;
            }
        }
    }
    sys::chmod(&file, 0o644).unwrap();
    assert!(Command::new(&file).status().is_err());
}

fn many_entries(dir: &Path) {
    for i in 0..5000 {
        sys::make(dir.join(format!("entry-{i:05}")), b"").unwrap();
    }
    let names = sys::names(dir).unwrap();
    assert_eq!(names.len(), 5000);
    assert_eq!(
        (names[0].as_str(), names[4999].as_str()),
        ("entry-00000", "entry-04999")
    );
}
