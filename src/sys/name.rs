//! Calls that make, move and remove names.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{EMPTY, check, check_len, cstr, fault};

pub fn mkdirat(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    fault::point()?;
    let name = cstr(name)?;
    // SAFETY: the descriptor is open and the name NUL-terminated for the call.
    check(unsafe { libc::mkdirat(dir.as_raw_fd(), name.as_ptr(), mode) }).map(drop)
}

pub fn mknodat(dir: BorrowedFd<'_>, name: &[u8], mode: u32, rdev: u64) -> io::Result<()> {
    fault::point()?;
    let name = cstr(name)?;
    // SAFETY: the descriptor is open and the name NUL-terminated for the call.
    check(unsafe { libc::mknodat(dir.as_raw_fd(), name.as_ptr(), mode, rdev) }).map(drop)
}

pub fn symlinkat(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    fault::point()?;
    let (target, name) = (cstr(target)?, cstr(name)?);
    // SAFETY: the descriptor is open and both strings are NUL-terminated for the call.
    check(unsafe { libc::symlinkat(target.as_ptr(), dir.as_raw_fd(), name.as_ptr()) }).map(drop)
}

pub fn linkat(from: BorrowedFd<'_>, name: &[u8], to: BorrowedFd<'_>, new: &[u8]) -> io::Result<()> {
    fault::point()?;
    let (name, new) = (cstr(name)?, cstr(new)?);
    // SAFETY: both descriptors are open and both strings NUL-terminated for the call.
    let ret =
        unsafe { libc::linkat(from.as_raw_fd(), name.as_ptr(), to.as_raw_fd(), new.as_ptr(), 0) };
    check(ret).map(drop)
}

pub fn unlinkat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    fault::point()?;
    let name = cstr(name)?;
    // SAFETY: the descriptor is open and the name NUL-terminated for the call.
    check(unsafe { libc::unlinkat(dir.as_raw_fd(), name.as_ptr(), 0) }).map(drop)
}

pub fn rmdirat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    fault::point()?;
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
    fault::point()?;
    let (name, new) = (cstr(name)?, cstr(new)?);
    // SAFETY: both descriptors are open and both strings NUL-terminated for the call.
    let ret = unsafe {
        libc::renameat2(from.as_raw_fd(), name.as_ptr(), to.as_raw_fd(), new.as_ptr(), flags)
    };
    check(ret).map(drop)
}

pub fn readlinkat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    fault::point()?;
    let name = if name.is_empty() { EMPTY.to_owned() } else { cstr(name)? };
    let mut buf = vec![0u8; libc::PATH_MAX as usize];
    // SAFETY: the buffer is writable for its stated length; the name is NUL-terminated.
    let n = unsafe {
        libc::readlinkat(dir.as_raw_fd(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
    };
    buf.truncate(check_len(n)?);
    Ok(buf)
}
