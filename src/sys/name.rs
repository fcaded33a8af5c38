//! Calls that make, move and remove names.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{EMPTY, check, check_len, cstr, fault, file};
use crate::error::best_effort;

/// The umask or a default ACL limits `mode`; its set-id bits are ignored.
pub fn mkdirat(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    fault::point("mkdirat")?;
    let name = cstr(name)?;
    // SAFETY: the descriptor is open and the name NUL-terminated for the call.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

/// `mode` holds kind and permissions. A character device 0:0 needs no privileges since Linux 5.8.
pub fn mknodat(dir: BorrowedFd<'_>, name: &[u8], mode: u32, rdev: u64) -> io::Result<()> {
    fault::point("mknodat")?;
    let name = cstr(name)?;
    // SAFETY: the descriptor is open and the name NUL-terminated for the call.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, rdev) }).map(drop)
}

/// The target is stored as it is; an empty one is ENOENT.
pub fn symlinkat(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    fault::point("symlinkat")?;
    let (target, name) = (cstr(target)?, cstr(name)?);
    // SAFETY: the descriptor is open and both strings are NUL-terminated for the call.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

/// Another name, `new`, for the same object; a symlink is linked itself, not its target.
pub fn linkat(from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> io::Result<()> {
    fault::point("linkat")?;
    let new = cstr(new)?;
    // Linking a descriptor itself takes a privilege; its name in /proc does not.
    let (at, name, flags) = if name.is_empty() {
        let path = format!("/proc/self/fd/{}", from.as_raw_fd());
        (
            libc::AT_FDCWD,
            cstr(path.as_bytes())?,
            libc::AT_SYMLINK_FOLLOW,
        )
    } else {
        (from.as_raw_fd(), cstr(name)?, 0)
    };
    // SAFETY: both descriptors are open and both strings NUL-terminated for the call.
    let ret = unsafe { libc::linkat(at, name.as_ptr(), to.as_raw_fd(), new.as_ptr(), flags) };
    check(ret).map(drop)
}

/// EISDIR for a directory.
pub fn unlinkat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    fault::point("unlinkat")?;
    let name = cstr(name)?;
    // SAFETY: the descriptor is open and the name NUL-terminated for the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

/// ENOTEMPTY, on some file systems EEXIST, for a directory that is not empty.
pub fn rmdirat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    fault::point("rmdirat")?;
    let name = cstr(name)?;
    // SAFETY: the descriptor is open and the name NUL-terminated for the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), libc::AT_REMOVEDIR) }).map(drop)
}

/// `renameat2`; `flags` are `RENAME_*`.
pub fn renameat(
    from: BorrowedFd<'_>,
    name: &[u8],
    to: BorrowedFd<'_>,
    new: &[u8],
    flags: u32,
) -> io::Result<()> {
    fault::point(if flags & libc::RENAME_WHITEOUT == 0 {
        "renameat"
    } else {
        "renameat with whiteout"
    })?;
    let (name, new) = (cstr(name)?, cstr(new)?);
    // SAFETY: both descriptors are open and both strings NUL-terminated for the call.
    let ret = unsafe {
        libc::renameat2(
            from.as_raw_fd(),
            name.as_ptr(),
            to.as_raw_fd(),
            new.as_ptr(),
            flags,
        )
    };
    check(ret).map(drop)
}

/// The target of a symlink; an empty name means the `O_PATH` descriptor itself. What is no symlink is
/// EINVAL, with an empty name ENOENT.
pub fn readlinkat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    fault::point("readlinkat")?;
    let name = if name.is_empty() {
        EMPTY.to_owned()
    } else {
        cstr(name)?
    };
    let mut buf = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer is writable for its stated length; the name is NUL-terminated.
    let n = unsafe {
        libc::readlinkat(
            dir.as_raw_fd(),
            name.as_ptr(),
            buf.as_mut_ptr().cast(),
            buf.len(),
        )
    };
    buf.truncate(check_len(n)?);
    Ok(buf)
}

/// Makes something beside its place, under the name `new`, and moves it there: it is there whole, or what
/// was there stays. What an earlier attempt left under that name goes first.
pub fn replace(
    dir: BorrowedFd<'_>,
    name: &[u8],
    new: &[u8],
    make: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    match unlinkat(dir, new) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let made = make().and_then(|()| renameat(dir, new, dir, name, 0));
    if made.is_err() {
        best_effort("remove what is half made", unlinkat(dir, new));
    }
    made
}

/// The same with a file of these bytes.
pub fn replace_file(dir: BorrowedFd<'_>, name: &[u8], new: &[u8], bytes: &[u8]) -> io::Result<()> {
    replace(dir, name, new, || {
        let flags = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
        File::from(file::openat(dir, new, flags, 0o644)?).write_all(bytes)
    })
}
