//! Extended attributes of a name in a directory, or of a descriptor (empty name), `O_PATH` or not.
//!
//! There is no `*at` call before Linux 6.13, so the directory is named through `/proc/self/fd`.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::{check, check_len, cstr, fault, is_path_only};

/// The object that a call is about.
enum Object {
    Open(RawFd),
    /// By a magic link, to be followed.
    Link(CString),
    Name(CString),
}

/// Does the call; a descriptor that was opened with `O_PATH` takes it by its name in `/proc` only.
fn on<T>(
    dir: BorrowedFd<'_>,
    name: &[u8],
    mut call: impl FnMut(&Object) -> io::Result<T>,
) -> io::Result<T> {
    let mut path = format!("/proc/self/fd/{}", dir.as_raw_fd()).into_bytes();
    if name.is_empty() {
        let done = call(&Object::Open(dir.as_raw_fd()));
        return if is_path_only(&done) {
            call(&Object::Link(cstr(&path)?))
        } else {
            done
        };
    }
    path.push(b'/');
    path.extend_from_slice(name);
    call(&Object::Name(cstr(&path)?))
}

/// All the names, each ended by a NUL.
pub fn list(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    fault::point("listxattr")?;
    on(dir, name, |object| {
        grow(|buf, len| {
            // SAFETY: the buffer is writable for `len` bytes; a path is NUL-terminated.
            unsafe {
                match object {
                    Object::Open(fd) => libc::flistxattr(*fd, buf.cast(), len),
                    Object::Link(path) => libc::listxattr(path.as_ptr(), buf.cast(), len),
                    Object::Name(path) => libc::llistxattr(path.as_ptr(), buf.cast(), len),
                }
            }
        })
    })
}

/// ENODATA without that attribute, EOPNOTSUPP on a file system without any.
pub fn get(dir: BorrowedFd<'_>, name: &[u8], key: &CStr) -> io::Result<Vec<u8>> {
    fault::point("getxattr")?;
    let key = key.as_ptr();
    on(dir, name, |object| {
        grow(|buf, len| {
            // SAFETY: the buffer is writable for `len` bytes; the strings are NUL-terminated.
            unsafe {
                match object {
                    Object::Open(fd) => libc::fgetxattr(*fd, key, buf, len),
                    Object::Link(path) => libc::getxattr(path.as_ptr(), key, buf, len),
                    Object::Name(path) => libc::lgetxattr(path.as_ptr(), key, buf, len),
                }
            }
        })
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
    let key = key.as_ptr();
    let (value, len) = (value.as_ptr().cast(), value.len());
    on(dir, name, |object| {
        // SAFETY: the value is readable for `len` bytes; the strings are NUL-terminated.
        check(unsafe {
            match object {
                Object::Open(fd) => libc::fsetxattr(*fd, key, value, len, flags),
                Object::Link(path) => libc::setxattr(path.as_ptr(), key, value, len, flags),
                Object::Name(path) => libc::lsetxattr(path.as_ptr(), key, value, len, flags),
            }
        })
        .map(drop)
    })
}

/// ENODATA without that attribute.
pub fn remove(dir: BorrowedFd<'_>, name: &[u8], key: &CStr) -> io::Result<()> {
    fault::point("removexattr")?;
    let key = key.as_ptr();
    on(dir, name, |object| {
        // SAFETY: the strings are NUL-terminated.
        check(unsafe {
            match object {
                Object::Open(fd) => libc::fremovexattr(*fd, key),
                Object::Link(path) => libc::removexattr(path.as_ptr(), key),
                Object::Name(path) => libc::lremovexattr(path.as_ptr(), key),
            }
        })
        .map(drop)
    })
}

/// Calls again with a larger buffer while the kernel says ERANGE.
fn grow(mut call: impl FnMut(*mut libc::c_void, usize) -> isize) -> io::Result<Vec<u8>> {
    let mut buf = vec![0u8; 256];
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
