//! Lowers that fail or stall: one caller waits, the mount does not, and no failure is taken for a fact.

mod blocked;
mod dying;
mod each_request;
mod mounting;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::support::slow_fs::{Fault, Faults, SlowFs};
use crate::support::sys::{self, Errno};
use crate::support::{Compare, Fixture, Tree, mode, require_all, start, within};

const SIZE: usize = 3 << 20;
/// What does not touch the stalled file has to end by then. The stall has no end, a busy disk has one.
const PROMPT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(10);

/// A union of a lower that can fail, on top of one that cannot.
struct Failing {
    // Dropped in this order: no fault is left when the lowers are compared and unmounted.
    lift: Lift,
    fixture: Fixture,
    slow: SlowFs,
    work: Vec<Vec<u8>>,
}

struct Lift(std::sync::Arc<Faults>);

impl Drop for Lift {
    fn drop(&mut self) {
        self.0.lift();
    }
}

impl Failing {
    fn new(name: &str) -> Option<Failing> {
        Failing::filled(name, &[], |_, _| ())
    }

    /// With more in the top and the base, and with more options.
    fn filled(name: &str, options: &[&str], fill: impl FnOnce(&Path, &Path)) -> Option<Failing> {
        let (slow, mut fixture) = Failing::prepare(name, options, fill)?;
        fixture.mount();
        Some(Failing::mounted(fixture, slow))
    }

    /// With the daemon's log in a file.
    fn logged(name: &str, fill: impl FnOnce(&Path, &Path)) -> Option<(Failing, PathBuf)> {
        let (slow, mut fixture) = Failing::prepare(name, &[], fill)?;
        let log = fixture.mount_logged();
        Some((Failing::mounted(fixture, slow), log))
    }

    fn prepare(
        name: &str,
        options: &[&str],
        fill: impl FnOnce(&Path, &Path),
    ) -> Option<(SlowFs, Fixture)> {
        if !require_all(&["root", "fuse"]) {
            return None;
        }
        let mut fixture = Fixture::new(name);
        // A file system that was mounted anew has other numbers.
        fixture.compare = Compare {
            ino: false,
            ..Compare::BYTES
        };
        fixture.options = options.iter().map(|o| o.to_string()).collect();
        let mut base = PathBuf::new();
        let slow = SlowFs::new(|top| {
            fill_top(top);
            fixture.lowers.push(top.to_owned());
            base = fixture.lower();
            fill_base(&base);
            fill(top, &base);
        });
        fixture.lowers[0] = slow.root().to_owned();
        // In this order, as the last is dropped first.
        Some((slow, fixture))
    }

    fn mounted(fixture: Fixture, slow: SlowFs) -> Failing {
        let work = names_below(&fixture.work);
        Failing {
            lift: Lift(slow.faults.clone()),
            fixture,
            slow,
            work,
        }
    }

    fn fail(&self, fault: Fault, path: &str) {
        self.slow.faults.set(fault, path);
    }

    fn lift(&self) {
        self.lift.0.lift();
    }

    fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        self.fixture.at(path)
    }

    fn remount(&mut self) {
        self.fixture.remount();
    }

    /// The work directory holds what a mount alone leaves there.
    fn check_work(&self) {
        assert_eq!(
            names_below(&self.fixture.work),
            self.work,
            "the work directory"
        );
    }

    /// All paths in the upper.
    fn upper(&self) -> Vec<Vec<u8>> {
        names_below(&self.fixture.upper)
    }
}

fn content() -> Vec<u8> {
    (0..SIZE).map(|i| (i ^ (i >> 9)) as u8).collect()
}

fn names_below(dir: &Path) -> Vec<Vec<u8>> {
    Tree::read(dir).0.into_keys().collect()
}

fn make_dirs(root: &Path) {
    for dir in ["d", "d/sub", "e"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
}

fn fill_top(root: &Path) {
    make_dirs(root);
    fs::write(root.join("d/big"), content()).unwrap();
    for name in ["d/a", "d/b", "d/c", "d/sub/x", "e/y"] {
        fs::write(root.join(name), "top").unwrap();
    }
}

/// The top hides all but one file: what fails above must not show what lies below.
fn fill_base(root: &Path) {
    make_dirs(root);
    for name in ["d/big", "d/a", "d/below", "d/sub/x"] {
        fs::write(root.join(name), "base").unwrap();
    }
}

fn prompt<T: Send + 'static>(what: &str, body: impl FnOnce() -> T + Send + 'static) -> T {
    within(PROMPT, what, body)
}

fn names(path: &Path) -> sys::Result<Vec<String>> {
    sys::names(path)
}

#[test]
fn stalled_read_stalls_nothing_else() {
    let Some(f) = Failing::new("stalled") else {
        return;
    };
    f.fail(Fault::Stall, "d/big");
    let path = f.at("d/big");
    let first = start(move || fs::read(path).unwrap());
    f.slow.faults.wait_for_stall();
    let path = f.at("d/big");
    let second = start(move || fs::read(path).unwrap());

    let (big, a, b, new, dir) = (
        f.at("d/big"),
        f.at("d/a"),
        f.at("d/b"),
        f.at("d/new"),
        f.at("d"),
    );
    let stat = prompt("stat of the stalled file", move || sys::stat(big).unwrap());
    assert_eq!(stat.st_size as usize, SIZE);
    assert_eq!(prompt("stat", move || sys::stat(a).unwrap().st_size), 3);
    let a = f.at("d/a");
    assert_eq!(
        prompt("read", move || fs::read_to_string(a).unwrap()),
        "top"
    );
    prompt("create", move || fs::write(new, "new").unwrap());
    prompt("copy-up", move || fs::write(b, "changed").unwrap());
    let (c, moved, sub) = (f.at("d/c"), f.at("d/moved"), f.at("d/sub"));
    prompt("rename", move || sys::rename(c, moved, 0).unwrap());
    prompt("chmod", move || sys::chmod(sub, 0o700).unwrap());
    let listed = prompt("list", move || names(&dir).unwrap());
    assert_eq!(listed, ["a", "b", "below", "big", "moved", "new", "sub"]);
    assert!(
        first.try_recv().is_err() && second.try_recv().is_err(),
        "a stalled read ended"
    );

    f.lift();
    for reader in [first, second] {
        assert!(
            reader.recv_timeout(PATIENCE).unwrap() == content(),
            "other data were read"
        );
    }
}

#[test]
fn stalled_copy_up_stalls_nothing_else() {
    let Some(f) = Failing::new("stalled-copy") else {
        return;
    };
    f.fail(Fault::Stall, "d/big");
    let path = f.at("d/big");
    let writer = start(move || {
        let fd = sys::open(path, libc::O_RDWR, 0).unwrap();
        sys::pwrite(&fd, b"changed", 0).unwrap();
    });
    f.slow.faults.wait_for_stall();
    let (a, new, moved, dir) = (f.at("d/a"), f.at("d/new"), f.at("e/moved"), f.at("d"));
    prompt("copy-up", move || fs::write(a, "changed").unwrap());
    prompt("create", {
        let new = new.clone();
        move || fs::write(new, "new").unwrap()
    });
    prompt("rename", move || sys::rename(new, moved, 0).unwrap());
    let listed = prompt("list", move || names(&dir).unwrap());
    assert_eq!(listed, ["a", "b", "below", "big", "c", "sub"]);
    assert!(writer.try_recv().is_err(), "the copy-up ended");
    f.lift();
    writer.recv_timeout(PATIENCE).unwrap();
    let mut expected = content();
    expected[..7].copy_from_slice(b"changed");
    assert!(fs::read(f.at("d/big")).unwrap() == expected);
}

#[test]
fn failed_lookups_are_not_absence() {
    for fault in [Fault::Lookup, Fault::Getattr] {
        let Some(f) = Failing::new("lookup") else {
            return;
        };
        for path in ["d/a", "d/b", "d/sub", "e"] {
            f.fail(fault, path);
        }
        for path in ["d/a", "d/b", "d/sub", "d/sub/x", "e", "e/y"] {
            for _ in 0..2 {
                let found = sys::lstat(f.at(path)).map(|s| s.st_size);
                assert_eq!(found, Err(Errno::EIO), "{fault:?} of {path}");
            }
        }
        // What is there may not be made anew, and not be taken for absent by a rename.
        let made = sys::make(f.at("d/b"), b"new");
        assert_eq!(made, Err(Errno::EIO), "{fault:?}");
        assert_eq!(
            sys::rename(f.at("d/c"), f.at("d/b"), 0),
            Err(Errno::EIO),
            "{fault:?}"
        );
        assert_eq!(sys::lstat(f.at("d/absent")).err(), Some(Errno::ENOENT));
        f.lift();
        for path in ["d/a", "d/b", "d/c", "d/sub/x", "e/y"] {
            assert_eq!(
                fs::read_to_string(f.at(path)).unwrap(),
                "top",
                "{fault:?} of {path}"
            );
        }
    }
}

/// How a listing ends, and what it shows before that.
fn list(path: &Path) -> (sys::Result<()>, Vec<Vec<u8>>) {
    let mut seen = Vec::new();
    let mut dir = match sys::Dir::open(path) {
        Ok(dir) => dir,
        Err(errno) => return (Err(errno), seen),
    };
    loop {
        match dir.next() {
            Ok(Some(entry)) if entry.name == b"." || entry.name == b".." => {}
            Ok(Some(entry)) => seen.push(entry.name),
            Ok(None) => return (Ok(()), seen),
            Err(errno) => return (Err(errno), seen),
        }
    }
}

#[test]
fn failed_listings_are_not_shortened() {
    for fault in [Fault::List, Fault::ListRest] {
        let Some(f) = Failing::new("listing") else {
            return;
        };
        f.fail(fault, "d");
        for _ in 0..2 {
            assert_eq!(list(&f.at("d")), (Err(Errno::EIO), Vec::new()), "{fault:?}");
            assert_eq!(
                sys::lstat(f.at("d/below")).err(),
                Some(Errno::EIO),
                "{fault:?}"
            );
            assert_eq!(sys::make(f.at("d/a"), b"new"), Err(Errno::EIO), "{fault:?}");
            assert_eq!(sys::rmdir(f.at("d")), Err(Errno::EIO), "{fault:?}");
        }
        f.lift();
        assert_eq!(
            names(&f.at("d")).unwrap(),
            ["a", "b", "below", "big", "c", "sub"]
        );
        assert_eq!(fs::read_to_string(f.at("d/a")).unwrap(), "top");
    }
}

#[test]
fn listings_do_not_lose_a_failing_entry() {
    for fault in [Fault::Lookup, Fault::Getattr] {
        let Some(f) = Failing::new("entry") else {
            return;
        };
        let all = ["a", "b", "below", "big", "c", "sub"];
        for path in ["d/b", "d/sub"] {
            f.fail(fault, path);
        }
        for _ in 0..2 {
            let (end, mut seen) = list(&f.at("d"));
            seen.sort();
            let whole = seen
                .iter()
                .map(Vec::as_slice)
                .eq(all.iter().map(|name| name.as_bytes()));
            assert!(
                end == Err(Errno::EIO) || whole,
                "{fault:?}: {end:?} after {seen:?}"
            );
        }
        f.lift();
        assert_eq!(names(&f.at("d")).unwrap(), all, "{fault:?}");
    }
}

#[test]
fn failed_reads_are_passed_on() {
    for fault in [Fault::Read, Fault::ReadRest] {
        let Some(f) = Failing::new("read") else {
            return;
        };
        f.fail(fault, "d/big");
        let read = fs::read(f.at("d/big"));
        assert_eq!(
            read.err().and_then(|e| e.raw_os_error()),
            Some(libc::EIO),
            "{fault:?}"
        );
        f.lift();
        assert!(
            fs::read(f.at("d/big")).unwrap() == content(),
            "{fault:?}: the failure is kept"
        );
    }
}

const BROKEN: [Fault; 3] = [Fault::Read, Fault::ReadRest, Fault::Short];

/// Each way to change data that needs the old ones.
fn try_to_change(f: &Failing) {
    let path = f.at("d/big");
    for flags in [
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_WRONLY | libc::O_APPEND,
    ] {
        // The first write asks for the data, as a truncation might have come before it. Where the kernel
        // has collected it, the close does.
        let written = sys::open(&path, flags, 0).and_then(|fd| {
            sys::pwrite(&fd, b"x", 5)?;
            sys::flush(&fd)
        });
        assert_eq!(written, Err(Errno::EIO));
    }
    assert_eq!(sys::truncate(&path, 5), Err(Errno::EIO));
}

/// Drops from the mount what the kernel has collected and could not store, as it goes on showing that.
fn drop_collected(f: &mut Failing) {
    if mode::collects_writes() {
        f.remount();
    }
}

#[test]
fn failed_copy_ups_leave_nothing() {
    for fault in BROKEN {
        let Some(mut f) = Failing::new("copy-up") else {
            return;
        };
        let before = f.upper();
        f.fail(fault, "d/big");
        try_to_change(&f);
        // The directory may be there by now; of the file there must be nothing.
        let copy = f.fixture.upper.join("d/big");
        let mut left = f.upper();
        left.retain(|path| !before.contains(path) && path != b"d");
        if mode::collects_writes() && left == [b"d/big"] {
            // The kernel sets the time of a write before it is one, which takes no data.
            sys::getxattr(copy, "trusted.overlay.metacopy").unwrap();
        } else {
            assert_eq!(left, Vec::<Vec<u8>>::new(), "{fault:?}");
            assert_eq!(sys::lstat(copy).err(), Some(Errno::ENOENT));
        }
        f.check_work();
        f.lift();
        drop_collected(&mut f);
        assert!(fs::read(f.at("d/big")).unwrap() == content(), "{fault:?}");
        change_for_good(&mut f);
    }
}

#[test]
fn failed_copy_ups_of_metadata_copies() {
    for fault in BROKEN {
        let Some(mut f) = Failing::new("fill") else {
            return;
        };
        sys::chmod(f.at("d/big"), 0o600).unwrap();
        let before = f.upper();
        f.fail(fault, "d/big");
        try_to_change(&f);
        assert_eq!(f.upper(), before, "{fault:?}");
        f.check_work();
        f.lift();
        drop_collected(&mut f);
        assert!(fs::read(f.at("d/big")).unwrap() == content(), "{fault:?}");
        f.remount();
        assert!(
            fs::read(f.at("d/big")).unwrap() == content(),
            "{fault:?}, after a remount"
        );
        assert_eq!(sys::stat(f.at("d/big")).unwrap().st_mode & 0o777, 0o600);
        change_for_good(&mut f);
    }
}

/// The copy-up works once the lower does, and brings everything.
fn change_for_good(f: &mut Failing) {
    let mut expected = content();
    expected[5..12].copy_from_slice(b"changed");
    let fd = sys::open(f.at("d/big"), libc::O_RDWR, 0).unwrap();
    sys::pwrite(&fd, b"changed", 5).unwrap();
    drop(fd);
    assert!(fs::read(f.at("d/big")).unwrap() == expected);
    f.check_work();
    f.remount();
    assert!(fs::read(f.at("d/big")).unwrap() == expected);
}
