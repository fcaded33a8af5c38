//! Layers whose file system dies, and comes back: the same one is used again, another one is not.

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use fuser::Errno as Wire;

use super::*;
use crate::support::isolated;

/// More than the second after which a layer is tried again.
const RECOVERY: Duration = Duration::from_secs(10);

/// Waits until the call succeeds; until then it may fail with EIO only.
#[track_caller]
fn recovers<T>(what: &str, mut call: impl FnMut() -> sys::Result<T>) -> T {
    let deadline = Instant::now() + RECOVERY;
    loop {
        match call() {
            Ok(value) => return value,
            Err(errno) => assert_eq!(errno, Errno::EIO, "{what}"),
        }
        assert!(Instant::now() < deadline, "{what} does not recover");
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn read(path: impl AsRef<Path>) -> sys::Result<Vec<u8>> {
    let fd = sys::open(path, libc::O_RDONLY, 0)?;
    let size = sys::fstat(&fd)?.st_size as usize;
    sys::pread(&fd, size, 0)
}

/// How often the log has a line with both words.
fn lines(log: &Path, level: &str, word: &str) -> usize {
    let text = fs::read_to_string(log).unwrap();
    let found = |line: &&str| line.contains(level) && line.contains(word);
    text.lines().filter(found).count()
}

fn extra(top: &Path, _: &Path) {
    for i in 0..40 {
        fs::write(top.join(format!("e/f{i}")), "top").unwrap();
    }
    sys::symlink("target", top.join("e/link")).unwrap();
}

#[test]
fn a_layer_that_comes_back_is_used_again() {
    let Some((mut f, log)) = Failing::logged("back", extra) else {
        return;
    };
    let begun = sys::open(f.at("d/big"), libc::O_RDONLY, 0).unwrap();
    assert!(sys::pread(&begun, 4096, 0).unwrap() == content()[..4096]);
    let unread = sys::open(f.at("d/a"), libc::O_RDONLY, 0).unwrap();
    let dir = sys::open(f.at("d/sub"), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
    let listed = names(&f.at("d")).unwrap();
    names(&f.at("e")).unwrap();
    fs::write(f.at("born"), "upper").unwrap();

    f.slow.kill();
    for round in 0..2 {
        let late = sys::pread(&begun, 4096, 2 << 20).err();
        assert_eq!(late, Some(Errno::EIO), "an open file, round {round}");
        let first = sys::pread(&unread, 3, 0).err();
        assert_eq!(first, Some(Errno::EIO), "a file to be opened");
        let inside = sys::openat(dir.as_raw_fd(), "x", libc::O_RDONLY, 0);
        let inside = inside.and_then(|fd| sys::pread(&fd, 3, 0));
        assert_eq!(inside.err(), Some(Errno::EIO), "below a held directory");
        assert_eq!(read(f.at("e/f1")).err(), Some(Errno::EIO), "a file");
        assert_eq!(
            sys::readlink(f.at("e/link")).err(),
            Some(Errno::EIO),
            "a link"
        );
        let written = sys::open(f.at("d/c"), libc::O_WRONLY, 0);
        let written = written.and_then(|fd| sys::pwrite(&fd, b"x", 0));
        assert_eq!(written.err(), Some(Errno::EIO), "a copy-up");
        // What needs nothing of the layer goes on.
        assert_eq!(fs::read_to_string(f.at("born")).unwrap(), "upper");
        fs::write(f.at("born"), "upper").unwrap();
        assert_eq!(sys::lstat(f.at("absent")).err(), Some(Errno::ENOENT));
        nix::sys::statvfs::statvfs(&f.fixture.mnt).unwrap();
        assert_eq!(names(&f.at("d")).unwrap(), listed);
    }
    // The place is empty for a while: another directory, not the layer.
    f.slow.detach();
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(read(f.at("e/f2")).err(), Some(Errno::EIO));

    f.slow.attach();
    recovers("a file", || read(f.at("e/f1")));
    assert!(sys::pread(&begun, 4096, 2 << 20).unwrap() == content()[2 << 20..][..4096]);
    assert_eq!(sys::pread(&unread, 3, 0).unwrap(), b"top");
    let inside = sys::openat(dir.as_raw_fd(), "x", libc::O_RDONLY, 0).unwrap();
    assert_eq!(sys::pread(&inside, 3, 0).unwrap(), b"top");
    assert_eq!(sys::readlink(f.at("e/link")).unwrap(), b"target");
    assert_eq!(read(f.at("d/below")).unwrap(), b"base");
    assert_eq!(names(&f.at("d")).unwrap(), listed);
    fs::write(f.at("d/c"), "changed").unwrap();
    // One line for each cause, not for each request.
    assert_eq!(lines(&log, "WARN", "cannot be opened again"), 2);
    assert_eq!(
        lines(&log, "WARN", ""),
        2,
        "{}",
        fs::read_to_string(&log).unwrap()
    );
    let layer = f.slow.root().display().to_string();
    assert_eq!(lines(&log, "WARN", &layer), 2);
    assert_eq!(lines(&log, "INFO", "is back"), 1);
    drop((begun, unread, dir, inside));
    f.remount();
    assert_eq!(read(f.at("d/c")).unwrap(), b"changed");
}

#[test]
fn a_working_directory_inside_survives_its_layer() {
    let Some(f) = Failing::new("cwd") else {
        return;
    };
    isolated(|| {
        std::env::set_current_dir(f.at("d/sub")).unwrap();
        f.slow.kill();
        f.slow.detach();
        f.slow.attach();
        assert_eq!(recovers("the working directory", || read("x")), b"top");
        assert_eq!(sys::names(".").unwrap(), ["x"]);
        std::env::set_current_dir("/").unwrap();
    });
}

/// The second and third outages are recovered from as well as the first.
#[test]
fn a_layer_may_die_more_than_once() {
    let Some((f, log)) = Failing::logged("again", extra) else {
        return;
    };
    let fd = sys::open(f.at("d/big"), libc::O_RDONLY, 0).unwrap();
    for round in 0..3usize {
        // Each outage is met by an attempt of its own.
        std::thread::sleep(Duration::from_millis(1100));
        f.slow.kill();
        let at = (round as i64 + 1) << 18;
        assert_eq!(sys::pread(&fd, 9, at).err(), Some(Errno::EIO));
        f.slow.detach();
        f.slow.attach();
        let read = recovers("an open file", || sys::pread(&fd, 9, at));
        assert!(read == content()[at as usize..][..9]);
        assert_eq!(lines(&log, "WARN", "cannot be opened again"), round + 1);
        assert_eq!(lines(&log, "INFO", "is back"), round + 1);
    }
}

#[test]
fn a_layer_that_comes_back_different_is_refused() {
    let Some((f, log)) = Failing::logged("different", extra) else {
        return;
    };
    let times = sys::stat(&f.slow.source).unwrap();
    let mtime = (times.st_mtime, times.st_mtime_nsec);
    f.slow.kill();
    f.slow.detach();
    sys::utimens(&f.slow.source, mtime, (mtime.0 + 1, mtime.1)).unwrap();
    f.slow.attach();
    let until = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < until {
        assert_eq!(read(f.at("e/f1")).err(), Some(Errno::EIO));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(lines(&log, "WARN", "another directory is there now"), 1);
    f.slow.detach();
    sys::utimens(&f.slow.source, mtime, mtime).unwrap();
    f.slow.attach();
    assert_eq!(recovers("the layer", || read(f.at("e/f1"))), b"top");
}

/// A mount over the layer itself hides it: its path leads to the union then.
#[test]
fn a_layer_under_its_own_mount_is_not_opened_by_its_path() {
    let Some((slow, mut fixture)) = Failing::prepare("covered", &[], extra) else {
        return;
    };
    fixture.mnt = slow.root().to_owned();
    let log = fixture.mount_logged();
    assert_eq!(read(fixture.at("e/f1")).unwrap(), b"top");
    slow.faults.fail_after(0, true, Wire::ENOTCONN);
    for path in ["e/f2", "e/f3"] {
        assert_eq!(read(fixture.at(path)).err(), Some(Errno::EIO));
    }
    assert_eq!(lines(&log, "WARN", "under this mount"), 1);
    slow.faults.lift();
    assert_eq!(read(fixture.at("e/f2")).unwrap(), b"top");
    drop(fixture);
}

/// On CVMFS the repository counts, and not its revision: a layer is not changed by a publication.
#[test]
fn a_repository_is_known_by_its_name() {
    let Some(f) = Failing::filled("repository", &[], |top, base| {
        extra(top, base);
        for (key, value) in [("user.fqrn", "one.example"), ("user.root_hash", "11aa")] {
            sys::setxattr(top, key, value.as_bytes(), 0).unwrap();
        }
    }) else {
        return;
    };
    let restart = |key: &str, value: &str| {
        f.slow.kill();
        f.slow.detach();
        sys::setxattr(&f.slow.source, key, value.as_bytes(), 0).unwrap();
        f.slow.attach();
    };
    restart("user.root_hash", "22bb");
    assert_eq!(recovers("a new revision", || read(f.at("e/f1"))), b"top");
    restart("user.fqrn", "two.example");
    let until = Instant::now() + Duration::from_millis(1500);
    while Instant::now() < until {
        assert_eq!(read(f.at("e/f2")).err(), Some(Errno::EIO));
        std::thread::sleep(Duration::from_millis(50));
    }
    restart("user.fqrn", "one.example");
    assert_eq!(recovers("the repository", || read(f.at("e/f2"))), b"top");
    sys::setxattr(&f.slow.source, "user.root_hash", b"11aa", 0).unwrap();
}

#[test]
fn open_files_that_come_back_different_are_refused() {
    let Some(f) = Failing::new("other-file") else {
        return;
    };
    let changed: Vec<_> = ["d/a", "d/b"]
        .iter()
        .map(|path| sys::open(f.at(path), libc::O_RDWR, 0).unwrap())
        .collect();
    let same = sys::open(f.at("d/c"), libc::O_RDONLY, 0).unwrap();
    let before: Vec<_> = ["d/a", "d/b"]
        .iter()
        .map(|path| sys::stat(f.slow.source.join(path)).unwrap())
        .collect();
    f.slow.kill();
    f.slow.detach();
    let (a, b) = (f.slow.source.join("d/a"), f.slow.source.join("d/b"));
    let restore = |path: &Path, content: &str, stat: &libc::stat| {
        fs::write(path, content).unwrap();
        let mtime = (stat.st_mtime, stat.st_mtime_nsec);
        sys::utimens(path, mtime, mtime).unwrap();
    };
    // Of another size, and of the same size but from another time.
    restore(&a, "longer than before", &before[0]);
    fs::write(&b, "pot").unwrap();
    f.slow.attach();
    recovers("a file", || sys::pread(&same, 3, 0));
    for fd in &changed {
        assert_eq!(sys::pread(fd, 3, 0).err(), Some(Errno::EIO));
        assert_eq!(sys::pwrite(fd, b"x", 1).err(), Some(Errno::EIO));
    }
    restore(&a, "top", &before[0]);
    restore(&b, "top", &before[1]);
    for fd in &changed {
        assert_eq!(recovers("the same file", || sys::pread(fd, 3, 0)), b"top");
        sys::pwrite(fd, b"x", 1).unwrap();
        assert_eq!(sys::pread(fd, 3, 0).unwrap(), b"txp");
    }
}

/// What the application sees of each errno of a layer, and that nobody remembers it.
#[test]
fn errors_of_layers_are_told_and_forgotten() {
    for (given, seen) in [
        (Wire::EIO, Errno::EIO),
        (Wire::ENOTCONN, Errno::EIO),
        (Wire::ESTALE, Errno::EIO),
        (Wire::ECONNABORTED, Errno::EIO),
        // A listed name that is not there is a failure of its layer.
        (Wire::ENOENT, Errno::EIO),
        (Wire::EACCES, Errno::EACCES),
        (Wire::ENOMEM, Errno::ENOMEM),
    ] {
        let Some(f) = Failing::new("errno") else {
            return;
        };
        let set = |fault, path: &str| f.slow.faults.set_errno(fault, path, given);
        set(Fault::Lookup, "d/a");
        set(Fault::Getattr, "d/b");
        set(Fault::List, "e");
        set(Fault::Open, "d/c");
        set(Fault::Read, "d/big");
        for _ in 0..2 {
            let told = |what: &str, errno: Option<Errno>| {
                assert_eq!(errno, Some(seen), "{what} with {given:?}");
            };
            told("lookup", sys::lstat(f.at("d/a")).err());
            // The lookup of a lower brings attributes along, unless they are asked for alone.
            if given != Wire::ENOENT {
                told("getattr", sys::lstat(f.at("d/b")).err());
            }
            told("list", names(&f.at("e")).err());
            told("lookup in a list", sys::lstat(f.at("e/y")).err());
            told("make", sys::make(f.at("e/y"), b"new").err());
            told("open", read(f.at("d/c")).err());
            told("read", read(f.at("d/big")).err());
            let fd = sys::open(f.at("d/big"), libc::O_RDWR, 0).unwrap();
            told("copy-up", sys::pwrite(&fd, b"x", 0).err());
        }
        f.lift();
        for path in ["d/a", "d/b", "d/c", "e/y"] {
            assert_eq!(read(f.at(path)).unwrap(), b"top", "{path} after {given:?}");
        }
        assert!(read(f.at("d/big")).unwrap() == content());
        assert_eq!(names(&f.at("e")).unwrap(), ["y"]);
        f.check_work();
    }
}

/// A failure in the middle of one request must not look like the end of the file.
#[test]
fn a_read_that_fails_midway_is_no_end_of_file() {
    for fault in [Fault::ReadRest, Fault::Short] {
        let Some(f) = Failing::filled("midway", &[], |top, _| {
            // Its middle does not lie between two requests.
            let file = fs::File::create(top.join("d/odd")).unwrap();
            file.write_all_at(&content()[..300_001], 0).unwrap();
        }) else {
            return;
        };
        f.fail(fault, "d/odd");
        for _ in 0..2 {
            let error = fs::read(f.at("d/odd")).err();
            let errno = error.and_then(|e| e.raw_os_error());
            assert_eq!(errno, Some(libc::EIO), "{fault:?}");
            assert_eq!(sys::stat(f.at("d/odd")).unwrap().st_size, 300_001);
        }
        f.lift();
        assert!(fs::read(f.at("d/odd")).unwrap() == content()[..300_001]);
    }
}

#[test]
fn a_layer_dies_under_twenty_readers() {
    let Some(f) = Failing::filled("readers", &[], extra) else {
        return;
    };
    let (stop, wrong) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
    );
    let (right, failed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
    let readers: Vec<_> = (0..20usize)
        .map(|i| {
            let (stop, wrong) = (stop.clone(), wrong.clone());
            let (right, failed) = (right.clone(), failed.clone());
            let small = f.at(format!("e/f{i}"));
            let fd = sys::open(f.at("d/big"), libc::O_RDONLY | libc::O_DIRECT, 0).unwrap();
            std::thread::spawn(move || {
                let expected = content();
                for n in i.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let at = (n * 7919) % 700 * 4096;
                    let result = if n % 3 == 0 {
                        read(&small).map(|data| data == b"top")
                    } else {
                        let data = sys::pread(&fd, 4096, at as i64);
                        data.map(|data| data == expected[at..][..4096])
                    };
                    match result {
                        // What the kernel has kept is right at all times.
                        Ok(true) if n % 3 == 0 => 0,
                        Ok(true) => right.fetch_add(1, Ordering::Relaxed),
                        Err(Errno::EIO) => failed.fetch_add(1, Ordering::Relaxed),
                        other => {
                            eprintln!("reader {i}: {other:?}");
                            wrong.fetch_add(1, Ordering::Relaxed)
                        }
                    };
                    std::thread::sleep(Duration::from_millis(1));
                }
            })
        })
        .collect();
    for _ in 0..3 {
        std::thread::sleep(Duration::from_millis(150));
        f.slow.kill();
        std::thread::sleep(Duration::from_millis(150));
        f.slow.detach();
        f.slow.attach();
        let before = right.load(Ordering::Relaxed);
        let deadline = Instant::now() + RECOVERY;
        while right.load(Ordering::Relaxed) < before + 200 {
            assert!(Instant::now() < deadline, "the readers do not recover");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        reader.join().unwrap();
    }
    let (right, failed) = (
        right.load(Ordering::Relaxed),
        failed.load(Ordering::Relaxed),
    );
    eprintln!("3 deaths under 20 readers: {right} reads right, {failed} failed");
    assert_eq!(wrong.load(Ordering::Relaxed), 0);
    assert!(failed > 0, "no reader noticed");
}

#[test]
fn a_layer_dies_in_a_copy_up() {
    for metadata_first in [false, true] {
        let Some(mut f) = Failing::new("dies-in-copy") else {
            return;
        };
        if metadata_first {
            sys::chmod(f.at("d/big"), 0o600).unwrap();
        }
        let before = f.upper();
        f.fail(Fault::Stall, "d/big");
        let path = f.at("d/big");
        let writer = start(move || {
            let fd = sys::open(path, libc::O_RDWR, 0).unwrap();
            sys::pwrite(&fd, b"changed", 5)
        });
        f.slow.faults.wait_for_stall();
        f.slow.kill();
        let written = writer.recv_timeout(PATIENCE).unwrap();
        assert_eq!(written.err(), Some(Errno::EIO));
        let mut left = f.upper();
        left.retain(|path| !before.contains(path) && path != b"d");
        assert_eq!(left, Vec::<Vec<u8>>::new());
        f.check_work();
        f.lift();
        f.slow.detach();
        f.slow.attach();
        assert!(recovers("the file", || read(f.at("d/big"))) == content());
        change_for_good(&mut f);
    }
}

#[test]
fn statfs_of_a_dead_layer() {
    let Some((slow, mut fixture)) = Failing::prepare("statfs", &[], |_, _| ()) else {
        return;
    };
    // Without an upper the topmost layer is asked.
    fixture.watch_lowers();
    let mut command = crate::support::mount_command();
    command.arg("--read-only");
    for lower in &fixture.lowers {
        command.arg("--lower").arg(lower);
    }
    let output = crate::support::run(command.arg(&fixture.mnt));
    assert!(output.status.success());
    let mounted = crate::support::Mounted(fixture.mnt.clone());
    let statfs = || nix::sys::statvfs::statvfs(&fixture.mnt).map(|s| s.blocks());
    assert_eq!(statfs(), Ok(1000));
    slow.kill();
    // The answer is kept for a second.
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(statfs(), Err(Errno::EIO));
    slow.detach();
    slow.attach();
    assert_eq!(recovers("statfs", statfs), 1000);
    drop(mounted);
}
