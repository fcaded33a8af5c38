//! Trees that are too deep for a path, and directories that are too large for a page: the daemon copes, in
//! memory that what it shows accounts for.
//!
//! `CVMFS_UNION_HOSTILE=long` makes the directories ten times as large.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::support::foreground::Daemon;
use crate::support::sys::{self, Errno};
use crate::support::{Fixture, require_all, within};

const DEEP: usize = 10_000;
const PATIENCE: Duration = Duration::from_secs(300);
/// What the daemon may take for one object that the kernel knows, and for its name in a listing.
const PER_OBJECT: u64 = 1200;
/// What it takes whatever it serves.
const BASE: u64 = 64 << 20;

/// Goes down a chain of directories called `d`, made on the way if `make`.
fn descend(root: &Path, make: bool) -> OwnedFd {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let mut dir = sys::open(root, flags, 0).unwrap();
    for depth in 0..DEEP {
        if make {
            sys::mkdirat(dir.as_raw_fd(), "d", 0o755).unwrap();
        }
        dir = sys::openat(dir.as_raw_fd(), "d", flags, 0)
            .unwrap_or_else(|e| panic!("at depth {depth}: {e}"));
    }
    dir
}

/// How many objects `find` lists, the deepest first.
fn count(mnt: &Path, tests: &[&str]) -> usize {
    let mut find = Command::new("find");
    find.arg(mnt)
        .arg("-depth")
        .args(tests)
        .args(["-printf", "."]);
    within(PATIENCE, "find", move || {
        let output = find.stdin(Stdio::null()).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            crate::support::text(&output.stderr)
        );
        output.stdout.len()
    })
}

#[test]
fn a_tree_of_ten_thousand_levels() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut f = Fixture::new("deep");
    let bottom = descend(&f.lower(), true);
    let flags = libc::O_CREAT | libc::O_WRONLY;
    drop(sys::openat(bottom.as_raw_fd(), "file", flags, 0o644).unwrap());
    f.trust_lowers();
    let daemon = Daemon::mount(&f);
    assert_eq!(count(&f.mnt, &[]), DEEP + 2);
    // Everything on the way is copied up.
    let bottom = descend(&f.mnt, false);
    sys::unlinkat(bottom.as_raw_fd(), "file", 0).unwrap();
    sys::mkdirat(bottom.as_raw_fd(), "made", 0o755).unwrap();
    drop(bottom);
    let ended = daemon.end();
    assert!(
        ended.memory < BASE + DEEP as u64 * 4 * PER_OBJECT,
        "{} bytes",
        ended.memory
    );
    let daemon = Daemon::mount(&f);
    assert_eq!(count(&f.mnt, &[]), DEEP + 2);
    assert_eq!(count(&f.mnt, &["-name", "file"]), 0);
    // Taken away from the bottom, as rm does it.
    let mut rm = Command::new("rm");
    rm.arg("-rf").arg(f.at("d"));
    let removed = within(PATIENCE, "rm", move || rm.status().unwrap());
    assert!(removed.success());
    assert_eq!(sys::names(&f.mnt).unwrap(), [""; 0]);
    daemon.end();
    let daemon = Daemon::mount(&f);
    assert_eq!(sys::lstat(f.at("d")).err(), Some(Errno::ENOENT));
    daemon.end();
}

fn entries() -> usize {
    match std::env::var("CVMFS_UNION_HOSTILE").as_deref() {
        Ok("long") => 1_000_000,
        _ => 100_000,
    }
}

/// Walking it again takes no more memory than walking it once, and each entry takes a bounded part.
#[test]
fn a_directory_of_a_hundred_thousand() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut f = Fixture::new("large");
    let entries = entries();
    // Two layers, which hold half of the names each, and a tenth both.
    for range in [0..entries * 55 / 100, entries * 45 / 100..entries] {
        let lower = f.lower();
        sys::mkdir(lower.join("dir"), 0o755).unwrap();
        let dir = sys::open(lower.join("dir"), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
        for i in range {
            let name = format!("a name of some length {i:08}");
            let flags = libc::O_CREAT | libc::O_WRONLY;
            drop(sys::openat(dir.as_raw_fd(), name, flags, 0o644).unwrap());
        }
    }
    f.trust_lowers();
    let daemon = Daemon::mount(&f);
    let before = daemon.memory();
    assert_eq!(count(&f.mnt, &["-size", "0"]), entries);
    let once = daemon.memory();
    for _ in 0..2 {
        assert_eq!(count(&f.mnt, &["-size", "0"]), entries);
    }
    let thrice = daemon.memory();
    let per_object = (once - before) / entries as u64;
    eprintln!(
        "{entries} entries: {} KiB before, {} KiB after a walk, {} KiB after three, {per_object} bytes for each",
        before >> 10,
        once >> 10,
        thrice >> 10,
    );
    assert!(before < BASE, "{before} bytes before anything is asked");
    assert!(
        per_object < PER_OBJECT,
        "{per_object} bytes for each object"
    );
    assert!(
        thrice < once + once / 4,
        "{once} bytes after a walk, {thrice} after three"
    );
    daemon.end();
}

/// Listings of directories that were left behind are forgotten: many take no more than some.
#[test]
fn many_large_directories() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let mut f = Fixture::new("many-large");
    let (dirs, each) = (entries() / 10_000, 10_000);
    let lower = f.lower();
    for d in 0..dirs {
        let dir = lower.join(format!("{d}"));
        sys::mkdir(&dir, 0o755).unwrap();
        let dir = sys::open(&dir, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
        for i in 0..each {
            let name = format!("{i:0200}");
            drop(
                sys::openat(
                    dir.as_raw_fd(),
                    &name,
                    libc::O_CREAT | libc::O_WRONLY,
                    0o644,
                )
                .unwrap(),
            );
        }
    }
    f.trust_lowers();
    let daemon = Daemon::mount(&f);
    for d in 0..dirs {
        assert!(sys::lstat(f.at(format!("{d}/absent"))).is_err());
    }
    let memory = daemon.memory();
    eprintln!("{dirs} directories of {each}: {} MiB", memory >> 20);
    assert!(memory < BASE + (400 << 20), "{memory} bytes");
    daemon.end();
}
