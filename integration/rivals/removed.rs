//! Objects without a name, as long as they are open: of the lower and of the upper.

use std::os::fd::OwnedFd;

use crate::support::Fixture;
use crate::support::sys;

/// A descriptor of a file that is unlinked, of each origin.
fn unlinked(f: &Fixture) -> [OwnedFd; 2] {
    sys::make(f.at("dir/made"), b"content").unwrap();
    ["file", "dir/made"].map(|path| {
        let fd = sys::open(f.at(path), libc::O_RDWR, 0).unwrap();
        sys::unlink(f.at(path)).unwrap();
        fd
    })
}

/// A descriptor of a directory that is removed, of each origin.
fn removed(f: &Fixture) -> [OwnedFd; 2] {
    sys::mkdir(f.at("dir/made"), 0o755).unwrap();
    ["empty", "dir/made"].map(|path| {
        let fd = sys::open(f.at(path), libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap();
        sys::rmdir(f.at(path)).unwrap();
        fd
    })
}

fn fstat(fds: [OwnedFd; 2], mode: u32) {
    for fd in &fds {
        let stat = sys::fstat(fd).unwrap();
        assert_eq!((stat.st_nlink, stat.st_mode), (0, mode));
    }
}

fn fchmod(fds: [OwnedFd; 2]) {
    for fd in &fds {
        sys::fchmod(fd, 0o700).unwrap();
        assert_eq!(sys::fstat(fd).unwrap().st_mode & 0o7777, 0o700);
    }
}

fn fchown(fds: [OwnedFd; 2]) {
    for fd in &fds {
        sys::fchown(fd, 12, 34).unwrap();
        let stat = sys::fstat(fd).unwrap();
        assert_eq!((stat.st_uid, stat.st_gid), (12, 34));
    }
}

fn fsetxattr(fds: [OwnedFd; 2]) {
    for fd in &fds {
        sys::fsetxattr(fd, "user.x", b"y").unwrap();
        assert_eq!(sys::fgetxattr(fd, "user.x").unwrap(), b"y");
    }
}

pub fn fstat_unlinked(f: &mut Fixture) {
    fstat(unlinked(f), libc::S_IFREG | 0o644);
}

pub fn fchmod_unlinked(f: &mut Fixture) {
    fchmod(unlinked(f));
}

pub fn fchown_unlinked(f: &mut Fixture) {
    fchown(unlinked(f));
}

pub fn fsetxattr_unlinked(f: &mut Fixture) {
    fsetxattr(unlinked(f));
}

pub fn fstat_removed(f: &mut Fixture) {
    fstat(removed(f), libc::S_IFDIR | 0o755);
}

pub fn fchmod_removed(f: &mut Fixture) {
    fchmod(removed(f));
}

pub fn fchown_removed(f: &mut Fixture) {
    fchown(removed(f));
}

pub fn fsetxattr_removed(f: &mut Fixture) {
    fsetxattr(removed(f));
}
