//! After an operation has failed, the union shows what is on the disk: the next mount sees the same.
//! Else a name that users do not see is in the way of what they try next.

use cvmfs_union::sys::fault;
use cvmfs_union::union::api::RenameKind;
use nix::errno::Errno;

use super::{nothing, sample};
use crate::support::faults::{Case, Live};
use crate::support::fs::Res;
use crate::support::{Fs, Merged, Stack};

fn live(act: &dyn Fn(&Merged) -> Res<()>) {
    live_after(&nothing, act);
}

fn live_after(prepare: &dyn Fn(&Merged), act: &dyn Fn(&Merged) -> Res<()>) {
    Case {
        lowers: 2,
        build: &sample,
        prepare,
        act,
        live: Live::SameAsNext,
    }
    .check();
}

#[test]
fn a_failed_create() {
    live(&|m| m.create("dir/sub/new", 0o640).map(|fh| m.close(fh)));
    live_after(&|m| m.unlink("plain").unwrap(), &|m| {
        m.create("plain", 0o640).map(|fh| m.close(fh))
    });
}

#[test]
fn a_failed_mkdir() {
    live(&|m| m.mkdir("dir/sub/new", 0o750));
    live_after(&|m| m.rmdir("empty").unwrap(), &|m| m.mkdir("empty", 0o750));
}

#[test]
fn a_failed_symlink() {
    live(&|m| m.symlink("target", "dir/new"));
}

#[test]
fn a_failed_link() {
    live(&|m| m.link("plain", "dir/sub/new"));
    live_after(&|m| m.unlink("fifo").unwrap(), &|m| m.link("plain", "fifo"));
}

#[test]
fn a_failed_unlink() {
    live(&|m| m.unlink("plain"));
    live_after(&|m| m.write("plain", b"above").unwrap(), &|m| {
        m.unlink("plain")
    });
}

#[test]
fn a_failed_rmdir() {
    live(&|m| m.rmdir("shallow"));
    live_after(&|m| m.chmod("shallow", 0o700).unwrap(), &|m| {
        m.rmdir("shallow")
    });
}

#[test]
fn a_failed_rename() {
    live(&|m| m.rename("plain", "dir/file", RenameKind::Replace));
    live(&|m| m.rename("dir/sub", "shallow", RenameKind::Replace));
    live_after(&|m| m.rmdir("empty").unwrap(), &|m| {
        m.rename("dir/sub", "empty", RenameKind::Replace)
    });
}

#[test]
fn a_failed_exchange() {
    live(&|m| m.rename("plain", "dir", RenameKind::Exchange));
}

#[test]
fn a_failed_change_of_attributes() {
    live(&|m| m.chmod("dir/file", 0o600));
    live(&|m| m.setxattr("dir/sub", "user.b", b"x", 0));
    live(&|m| m.truncate("dir/file", 3));
}

/// The kernel takes fewer bytes than it asked for as the end of the file.
#[test]
fn a_read_that_fails_later_is_no_short_read() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let fh = merged.open("plain", libc::O_RDONLY).unwrap();
    let whole = merged.pread(fh, 0, 100).unwrap();
    assert!(!whole.is_empty() && whole.len() < 100);
    // The first call gives all there is, the second looks for more.
    fault::fail_nth(2, libc::EIO);
    assert_eq!(merged.pread(fh, 0, 100), Err(Errno::EIO));
    assert!(!fault::disarm());
    assert_eq!(merged.pread(fh, 0, 100), Ok(whole));
    merged.close(fh);
}
