//! Calls about the attributes of objects. An empty name means the descriptor itself.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::NixPath;

use super::{EMPTY, check, cstr, fault, is_path_only};

/// A `struct stat`.
pub type Stat = libc::stat;

/// One with 0 in each field.
pub fn blank() -> Stat {
    // SAFETY: the struct holds integers only, for which zeros are values.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

/// `lstat` of the name; triggers no automount.
pub fn fstatat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Stat> {
    fault::point("fstatat")?;
    let mut st = MaybeUninit::<libc::stat>::uninit();
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH | libc::AT_NO_AUTOMOUNT;
    // The commonest call by far: the name goes over the stack.
    name.with_nix_path(|name| {
        // SAFETY: `st` is writable and of the right size; the name is NUL-terminated.
        check(unsafe { libc::fstatat(dir.as_raw_fd(), name.as_ptr(), st.as_mut_ptr(), flags) })
    })??;
    // SAFETY: the call succeeded, so the kernel filled all of it.
    Ok(unsafe { st.assume_init() })
}

/// What the kernel itself knows of the object at a path; the empty one means the descriptor. The file system is not
/// asked, but by Linux before 4.20 if it is FUSE. `mask`: further fields.
pub fn statx_unasked(dir: BorrowedFd<'_>, path: &CStr, mask: u32) -> io::Result<libc::statx> {
    let mut found = MaybeUninit::<libc::statx>::uninit();
    let flags = libc::AT_EMPTY_PATH
        | libc::AT_STATX_DONT_SYNC
        | libc::AT_SYMLINK_NOFOLLOW
        | libc::AT_NO_AUTOMOUNT;
    // SAFETY: the path is NUL-terminated, and the structure writable and of the right size.
    check(unsafe {
        libc::statx(
            dir.as_raw_fd(),
            path.as_ptr(),
            flags,
            mask,
            found.as_mut_ptr(),
        )
    })?;
    // SAFETY: the call succeeded, so the kernel filled all of it.
    Ok(unsafe { found.assume_init() })
}

/// `fstatvfs(3)`: blocks are counted in units of `f_frsize`.
pub fn fstatvfs(fd: BorrowedFd<'_>) -> io::Result<libc::statvfs> {
    fault::point("fstatvfs")?;
    let mut st = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `st` is writable and of the right size.
    check(unsafe { libc::fstatvfs(fd.as_raw_fd(), st.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so all of it is filled.
    Ok(unsafe { st.assume_init() })
}

/// None leaves the id as it is. Linux clears set-id bits of files.
pub fn fchownat(
    dir: BorrowedFd<'_>,
    name: &[u8],
    uid: Option<u32>,
    gid: Option<u32>,
) -> io::Result<()> {
    fault::point("fchownat")?;
    let name = if name.is_empty() {
        EMPTY.to_owned()
    } else {
        cstr(name)?
    };
    let (uid, gid) = (uid.unwrap_or(u32::MAX), gid.unwrap_or(u32::MAX));
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::fchownat(dir.as_raw_fd(), name.as_ptr(), uid, gid, flags) }).map(drop)
}

/// chmod of a name that is not a symlink, or, with an empty name, of the object behind a descriptor
/// that may be an `O_PATH` one.
pub fn fchmodat(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    fault::point("fchmodat")?;
    if name.is_empty() {
        // SAFETY: only the descriptor is used.
        let ret = check(unsafe { libc::fchmod(dir.as_raw_fd(), mode) });
        if !is_path_only(&ret) {
            return ret.map(drop);
        }
    }
    let (at, path) = if name.is_empty() {
        (
            libc::AT_FDCWD,
            cstr(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_bytes())?,
        )
    } else {
        (dir.as_raw_fd(), cstr(name)?)
    };
    // SAFETY: the name is NUL-terminated.
    check(unsafe { libc::fchmodat(at, path.as_ptr(), mode, 0) }).map(drop)
}

/// Sets access and modification time; `tv_nsec` may be `UTIME_NOW` or `UTIME_OMIT`.
pub fn utimensat(dir: BorrowedFd<'_>, name: &[u8], times: &[libc::timespec; 2]) -> io::Result<()> {
    fault::point("utimensat")?;
    let name = if name.is_empty() {
        EMPTY.to_owned()
    } else {
        cstr(name)?
    };
    let flags = libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH;
    // SAFETY: `times` has two elements; the name is NUL-terminated.
    let ret = unsafe { libc::utimensat(dir.as_raw_fd(), name.as_ptr(), times.as_ptr(), flags) };
    if ret < 0 && name.as_bytes().is_empty() {
        // Kernels before 5.8 know no AT_EMPTY_PATH here.
        let path = cstr(format!("/proc/self/fd/{}", dir.as_raw_fd()).as_bytes())?;
        // SAFETY: as above.
        return check(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) })
            .map(drop);
    }
    check(ret).map(drop)
}
