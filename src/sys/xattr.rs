//! Extended attributes of a name in a directory, or of a descriptor (empty name), `O_PATH` or not.
//!
//! There is no `*at` call before Linux 6.13: the directory is named through `/proc/self/fd` there, which costs the kernel
//! three steps more on the way.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::OnceLock;

use super::{check, check_len, cstr, fault, is_path_only};

/// The object that a call is about.
enum Object {
    Open(RawFd),
    /// By a magic link, to be followed.
    Link(CString),
    Name(CString),
    /// By one of the calls of [`at`].
    In(RawFd, CString),
}

/// The calls since Linux 6.13 (include/uapi/linux/xattr.h), which have the same numbers everywhere.
mod at {
    use super::*;

    const SETXATTRAT: libc::c_long = 463;
    const GETXATTRAT: libc::c_long = 464;
    const LISTXATTRAT: libc::c_long = 465;
    const REMOVEXATTRAT: libc::c_long = 466;

    /// `struct xattr_args`.
    #[repr(C, align(8))]
    struct Value {
        value: u64,
        size: u32,
        flags: u32,
    }

    impl Value {
        fn new(value: *const libc::c_void, size: usize, flags: i32) -> Self {
            Value {
                value: value as u64,
                size: u32::try_from(size).unwrap_or(u32::MAX),
                flags: flags.cast_unsigned(),
            }
        }
    }

    /// Whether the kernel has them, and lets this process use them.
    pub fn usable() -> bool {
        #[cfg(test)]
        if tests::OLD_KERNEL.get() {
            return false;
        }
        static USABLE: OnceLock<bool> = OnceLock::new();
        *USABLE.get_or_init(|| {
            // SAFETY: the path is NUL-terminated; a list of no bytes is asked for, so nothing is written.
            let found = unsafe { list(libc::AT_FDCWD, c"/".as_ptr(), std::ptr::null_mut(), 0) };
            found >= 0
        })
    }

    /// As `llistxattr`.
    ///
    /// # Safety
    /// The path is NUL-terminated; `len` bytes at `buf` are writable.
    pub unsafe fn list(
        dir: RawFd,
        path: *const libc::c_char,
        buf: *mut libc::c_void,
        len: usize,
    ) -> isize {
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: as the caller says.
        unsafe { libc::syscall(LISTXATTRAT, dir, path, flags, buf, len) as isize }
    }

    /// As `lgetxattr`.
    ///
    /// # Safety
    /// The strings are NUL-terminated; `len` bytes at `buf` are writable.
    pub unsafe fn get(
        dir: RawFd,
        path: *const libc::c_char,
        key: *const libc::c_char,
        buf: *mut libc::c_void,
        len: usize,
    ) -> isize {
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        let value = Value::new(buf, len, 0);
        let args = &raw const value;
        // SAFETY: as the caller says; the kernel reads the struct, of the stated size.
        unsafe {
            libc::syscall(GETXATTRAT, dir, path, flags, key, args, size_of::<Value>()) as isize
        }
    }

    /// As `lsetxattr`.
    ///
    /// # Safety
    /// The strings are NUL-terminated; `len` bytes at `buf` are readable.
    pub unsafe fn set(
        dir: RawFd,
        path: *const libc::c_char,
        key: *const libc::c_char,
        buf: *const libc::c_void,
        len: usize,
        flags: i32,
    ) -> libc::c_int {
        let value = Value::new(buf, len, flags);
        let (flags, args) = (libc::AT_SYMLINK_NOFOLLOW, &raw const value);
        // SAFETY: as the caller says; the kernel reads the struct, of the stated size.
        unsafe {
            libc::syscall(SETXATTRAT, dir, path, flags, key, args, size_of::<Value>())
                as libc::c_int
        }
    }

    /// As `lremovexattr`.
    ///
    /// # Safety
    /// The strings are NUL-terminated.
    pub unsafe fn remove(
        dir: RawFd,
        path: *const libc::c_char,
        key: *const libc::c_char,
    ) -> libc::c_int {
        let flags = libc::AT_SYMLINK_NOFOLLOW;
        // SAFETY: as the caller says.
        unsafe { libc::syscall(REMOVEXATTRAT, dir, path, flags, key) as libc::c_int }
    }
}

/// Does the call, by the calls of [`at`] where they can be used. A descriptor that was opened with `O_PATH` takes it by
/// its name in `/proc`, or as a directory by `.`.
fn on<T>(
    dir: BorrowedFd<'_>,
    name: &[u8],
    mut call: impl FnMut(&Object) -> io::Result<T>,
) -> io::Result<T> {
    let fd = dir.as_raw_fd();
    if name.is_empty() {
        let done = call(&Object::Open(fd));
        if !is_path_only(&done) {
            return done;
        }
        if at::usable() {
            match call(&Object::In(fd, c".".to_owned())) {
                // No directory, or one that cannot be searched.
                Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTDIR | libc::EACCES)) => {}
                done => return done,
            }
        }
        return call(&Object::Link(in_proc(fd, b"")?));
    }
    if at::usable() {
        return call(&Object::In(fd, cstr(name)?));
    }
    call(&Object::Name(in_proc(fd, &[b"/", name].concat())?))
}

/// The name of a descriptor in `/proc`, and what follows it.
fn in_proc(fd: RawFd, rest: &[u8]) -> io::Result<CString> {
    cstr(&[format!("/proc/self/fd/{fd}").as_bytes(), rest].concat())
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
                    Object::In(dir, name) => at::list(*dir, name.as_ptr(), buf, len),
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
                    Object::In(dir, name) => at::get(*dir, name.as_ptr(), key, buf, len),
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
                Object::In(dir, name) => at::set(*dir, name.as_ptr(), key, value, len, flags),
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
                Object::In(dir, name) => at::remove(*dir, name.as_ptr(), key),
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::sys::file::open_path;

    thread_local! {
        pub static OLD_KERNEL: Cell<bool> = const { Cell::new(false) };
    }

    /// All that can be done to an object, which has no attributes yet: each answer.
    fn life(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<std::result::Result<Vec<u8>, Option<i32>>> {
        let key = c"user.test";
        let done = |result: io::Result<Vec<u8>>| result.map_err(|e| e.raw_os_error());
        let nothing = |result: io::Result<()>| done(result.map(|()| Vec::new()));
        let large = vec![b'x'; 1000];
        vec![
            done(get(dir, name, key)),
            nothing(set(dir, name, key, b"one", libc::XATTR_REPLACE)),
            nothing(set(dir, name, key, b"one", libc::XATTR_CREATE)),
            nothing(set(dir, name, key, b"two", libc::XATTR_CREATE)),
            done(get(dir, name, key)),
            nothing(set(dir, name, key, &large, 0)),
            done(get(dir, name, key)),
            done(list(dir, name)),
            done(get(dir, name, c"nonsense")),
            nothing(remove(dir, name, key)),
            nothing(remove(dir, name, key)),
            done(list(dir, name)),
        ]
    }

    #[test]
    fn old_kernels_and_new_ones_answer_alike() -> io::Result<()> {
        let tmp = tempfile::tempdir()?;
        fs::write(tmp.path().join("file"), b"")?;
        fs::create_dir(tmp.path().join("dir"))?;
        symlink("file", tmp.path().join("link"))?;
        let dir = open_path(tmp.path(), libc::O_PATH)?;
        let (file, sub) = (tmp.path().join("file"), tmp.path().join("dir"));
        let opened = [
            open_path(&file, libc::O_PATH)?,
            File::open(&file)?.into(),
            open_path(&sub, libc::O_PATH)?,
            File::open(&sub)?.into(),
        ];
        let names: [&[u8]; 4] = [b"file", b"dir", b"link", b"absent"];
        let by_name = names.map(|name| (dir.as_fd(), name));
        let by_descriptor = opened.iter().map(|fd| (fd.as_fd(), &b""[..]));
        for (dir, name) in by_name.into_iter().chain(by_descriptor) {
            let new = life(dir, name);
            OLD_KERNEL.set(true);
            let old = life(dir, name);
            OLD_KERNEL.set(false);
            assert_eq!(new, old, "{}", String::from_utf8_lossy(name));
        }
        Ok(())
    }
}
