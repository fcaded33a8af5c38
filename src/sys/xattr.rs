//! Extended attributes of a name in a directory, or of a descriptor (empty name), `O_PATH` or not.
//!
//! There is no `*at` call before Linux 6.13, so the directory is named through `/proc/self/fd`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{check, check_len, cstr, fault};

/// The path of the object, and whether the last component is the magic link, to be followed.
fn path(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<(CString, bool)> {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    if !name.is_empty() {
        path.push(b'/');
        path.extend_from_slice(name);
    }
    Ok((cstr(&path)?, name.is_empty()))
}

/// All the names, each ended by a NUL.
pub fn list(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    fault::point("listxattr")?;
    let (path, follow) = path(dir, name)?;
    grow(256, |buf, len| {
        // SAFETY: the buffer is writable for `len` bytes; the path is NUL-terminated.
        unsafe {
            if follow {
                libc::listxattr(path.as_ptr(), buf.cast(), len)
            } else {
                libc::llistxattr(path.as_ptr(), buf.cast(), len)
            }
        }
    })
}

/// ENODATA without that attribute, EOPNOTSUPP on a file system without any.
pub fn get(dir: BorrowedFd<'_>, name: &[u8], key: &CStr) -> io::Result<Vec<u8>> {
    fault::point("getxattr")?;
    let (path, follow) = path(dir, name)?;
    grow(256, |buf, len| {
        // SAFETY: the buffer is writable for `len` bytes; the strings are NUL-terminated.
        unsafe {
            if follow {
                libc::getxattr(path.as_ptr(), key.as_ptr(), buf, len)
            } else {
                libc::lgetxattr(path.as_ptr(), key.as_ptr(), buf, len)
            }
        }
    })
}

/// `flags`: 0, `XATTR_CREATE` (EEXIST if it is there) or `XATTR_REPLACE` (ENODATA if it is not).
pub fn set(
    dir: BorrowedFd<'_>,
    name: &[u8],
    key: &CStr,
    value: &[u8],
    flags: i32,
) -> io::Result<()> {
    fault::point("setxattr")?;
    let (path, follow) = path(dir, name)?;
    let (value, len) = (value.as_ptr().cast(), value.len());
    // SAFETY: the value is readable for `len` bytes; the strings are NUL-terminated.
    check(unsafe {
        if follow {
            libc::setxattr(path.as_ptr(), key.as_ptr(), value, len, flags)
        } else {
            libc::lsetxattr(path.as_ptr(), key.as_ptr(), value, len, flags)
        }
    })
    .map(drop)
}

/// ENODATA without that attribute.
pub fn remove(dir: BorrowedFd<'_>, name: &[u8], key: &CStr) -> io::Result<()> {
    fault::point("removexattr")?;
    let (path, follow) = path(dir, name)?;
    // SAFETY: the strings are NUL-terminated.
    check(unsafe {
        if follow {
            libc::removexattr(path.as_ptr(), key.as_ptr())
        } else {
            libc::lremovexattr(path.as_ptr(), key.as_ptr())
        }
    })
    .map(drop)
}

/// Calls again with a larger buffer while the kernel says ERANGE.
fn grow(
    first: usize,
    mut call: impl FnMut(*mut libc::c_void, usize) -> isize,
) -> io::Result<Vec<u8>> {
    let mut buf = vec![0u8; first];
    loop {
        match check_len(call(buf.as_mut_ptr().cast(), buf.len())) {
            Ok(n) => {
                buf.truncate(n);
                return Ok(buf);
            }
            Err(e) if e.raw_os_error() == Some(libc::ERANGE) && buf.len() < 1 << 16 => {
                buf.resize(1 << 16, 0);
            }
            Err(e) => return Err(e),
        }
    }
}
