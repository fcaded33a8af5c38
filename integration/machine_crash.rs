//! A crash of the machine: the journal has some of the last changes, the page cache is lost. Where the
//! data of a file were being copied up, they are then the old ones or the new ones, and never torn.

use std::fs;

use crate::support::sys;
use crate::support::volume::Volume;
use crate::support::{Fixture, daemon, require, require_all};

const FILES: usize = 90;

fn name(i: usize) -> String {
    format!("file{i}")
}

fn content(i: usize) -> Vec<u8> {
    // Some in one piece, some by ranges.
    let times = if i.is_multiple_of(10) { 60_000 } else { 1000 };
    format!("{i}-").repeat(times).into_bytes()
}

/// What a crash leaves of the copies that are being made while the journal is committed: how many are in
/// the upper, and how many of all show something that is neither old nor new.
fn crash(kind: &str, options: &str, durability: &str) -> (usize, usize) {
    let mut volume = Volume::mounted_with(kind, options);
    let mut f = Fixture::new(&format!("crash-{kind}-{durability}"));
    (f.upper, f.work) = (volume.dir("upper"), volume.dir("work"));
    f.options = vec!["--durability".into(), durability.into()];
    let lower = f.lower();
    for i in 0..FILES {
        sys::make(lower.join(name(i)), &content(i)).unwrap();
    }
    f.mount();
    for i in (0..FILES).filter(|i| i.is_multiple_of(3)) {
        // Of these the data come later than the rest.
        sys::chmod(f.at(name(i)), 0o600).unwrap();
    }
    nix::unistd::syncfs(sys::open(volume.path(), libc::O_RDONLY, 0).unwrap()).unwrap();
    for i in 0..FILES {
        let fd = sys::open(f.at(name(i)), libc::O_WRONLY | libc::O_APPEND, 0).unwrap();
        sys::write(&fd, b"!").unwrap();
        drop(fd);
        if i.is_multiple_of(10) {
            // Commits the journal, with all the names there are.
            let other = sys::open(
                volume.path().join("other"),
                libc::O_CREAT | libc::O_WRONLY,
                0o600,
            );
            let other = other.unwrap();
            sys::write(&other, b"x").unwrap();
            nix::unistd::fsync(other).unwrap();
        }
    }
    volume.crash();
    let pid = daemon::of(&f.mnt);
    daemon::signal(pid, libc::SIGKILL);
    daemon::wait_for_end(pid);
    nix::mount::umount2(&f.mnt, nix::mount::MntFlags::MNT_DETACH).unwrap();
    f.forget_mount();
    volume.mount_again();
    let copied = sys::names(&f.upper).unwrap().len();
    // An upper that was volatile is refused now; what it would show is there.
    let shown = if durability == "volatile" {
        f.upper.clone()
    } else {
        f.mount();
        f.mnt.clone()
    };
    let torn = (0..FILES).filter(|i| {
        let old = content(*i);
        let now = match fs::read(shown.join(name(*i))) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => old.clone(),
            other => other.unwrap(),
        };
        // What was written afterwards nobody has synced.
        now.len() > old.len() + 1 || now.get(..old.len()) != Some(&old[..])
    });
    (copied, torn.count())
}

fn old_or_new(kind: &str, options: &str) {
    if !require_all(&["root", "fuse", "loop"]) || kind == "xfs" && !require("xfs") {
        return;
    }
    for durability in ["auto", "full"] {
        let (copied, torn) = crash(kind, options, durability);
        assert!(
            copied > FILES / 2,
            "{kind} {durability}: only {copied} came up"
        );
        assert_eq!(torn, 0, "{kind} {durability}: of {copied}");
    }
    // That the crash is one: without any order there is damage.
    let (copied, torn) = crash(kind, options, "volatile");
    assert!(torn > 0, "{kind}: nothing torn of {copied}");
}

#[test]
fn ext4() {
    old_or_new("ext4", "loop");
}

#[test]
fn ext4_with_data_in_no_order() {
    old_or_new("ext4", "loop,data=writeback");
}

#[test]
fn xfs() {
    old_or_new("xfs", "loop");
}
