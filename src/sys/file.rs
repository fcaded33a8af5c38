//! Opening files, and reading and writing their data.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::Path;

use super::{check, check_len, cstr, fault};

/// The name of an open for the record: whether it can change something.
fn opening(flags: i32) -> &'static str {
    if flags & (libc::O_CREAT | libc::O_TRUNC) == 0 {
        "openat"
    } else {
        "openat to make"
    }
}

/// `openat` with `O_CLOEXEC | O_NOFOLLOW` added.
pub fn openat(dir: BorrowedFd<'_>, name: &[u8], flags: i32, mode: u32) -> io::Result<OwnedFd> {
    fault::point(opening(flags))?;
    let name = cstr(name)?;
    let flags = flags | libc::O_CLOEXEC | libc::O_NOFOLLOW;
    // SAFETY: the descriptor is open and the name NUL-terminated for the call.
    let fd = check(unsafe { libc::openat(dir.as_raw_fd(), name.as_ptr(), flags, mode) })?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens a path given by the user; a symlink in it is followed.
pub fn open_path(path: &Path, flags: i32) -> io::Result<OwnedFd> {
    use std::os::unix::ffi::OsStrExt;
    fault::point("open")?;
    let path = cstr(path.as_os_str().as_bytes())?;
    // SAFETY: the path is NUL-terminated.
    let fd = check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens the object behind an `O_PATH` descriptor anew.
pub fn reopen(fd: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
    fault::point(opening(flags))?;
    let path = cstr(format!("/proc/self/fd/{}", fd.as_raw_fd()).as_bytes())?;
    // SAFETY: the path is NUL-terminated.
    let fd = check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })?;
    // SAFETY: the call returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The content of a regular file at a path given by the user. Opening anything else could wait for ever, or
/// do something: FIFOs and devices are not opened for reading. An error, and no more read than tells it, if
/// there are more than `most` bytes.
pub fn read_regular(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    whole(open_path(path, libc::O_PATH)?, most)
}

/// The same of a name in a directory; a symlink there is no regular file.
pub fn read_regular_in(dir: BorrowedFd<'_>, name: &[u8], most: usize) -> io::Result<Vec<u8>> {
    whole(openat(dir, name, libc::O_PATH, 0)?, most)
}

fn whole(found: OwnedFd, most: usize) -> io::Result<Vec<u8>> {
    let found = File::from(found);
    if !found.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let found = File::from(reopen(found.as_fd(), libc::O_RDONLY)?);
    let mut bytes = Vec::new();
    let limit = u64::try_from(most).unwrap_or(u64::MAX).saturating_add(1);
    if found.take(limit).read_to_end(&mut bytes)? > most {
        let why = format!("more than the limit of {most} bytes");
        return Err(io::Error::other(why));
    }
    Ok(bytes)
}

/// `pread(2)`: may read less than the buffer holds; 0 at the end of the file.
pub fn pread(fd: BorrowedFd<'_>, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    fault::point("pread")?;
    // SAFETY: the buffer is writable for its length.
    check_len(unsafe {
        libc::pread(
            fd.as_raw_fd(),
            buf.as_mut_ptr().cast(),
            buf.len(),
            offset as libc::off_t,
        )
    })
}

/// `pread(2)` to the end of `data`, without clearing its room first: appends at most `most` bytes, maybe
/// less, and returns how many; 0 at the end of the file.
pub fn pread_more(
    fd: BorrowedFd<'_>,
    data: &mut Vec<u8>,
    most: usize,
    offset: u64,
) -> io::Result<usize> {
    fault::point("pread")?;
    data.reserve(most);
    let room = data.spare_capacity_mut();
    // SAFETY: the room is writable for its length, and at least `most` bytes were reserved.
    let read = check_len(unsafe {
        libc::pread(
            fd.as_raw_fd(),
            room.as_mut_ptr().cast(),
            most.min(room.len()),
            offset as libc::off_t,
        )
    })?;
    // SAFETY: the kernel has written so many bytes of the room.
    unsafe { data.set_len(data.len() + read) };
    Ok(read)
}

/// `pwrite(2)`: may write less than all of it.
pub fn pwrite(fd: BorrowedFd<'_>, buf: &[u8], offset: u64) -> io::Result<usize> {
    fault::point("pwrite")?;
    // SAFETY: the buffer is readable for its length.
    check_len(unsafe {
        libc::pwrite(
            fd.as_raw_fd(),
            buf.as_ptr().cast(),
            buf.len(),
            offset as libc::off_t,
        )
    })
}

/// Sets the length in bytes; growth is a hole. EFBIG above `i64::MAX`.
pub fn ftruncate(fd: BorrowedFd<'_>, size: u64) -> io::Result<()> {
    fault::point("ftruncate")?;
    let size =
        libc::off_t::try_from(size).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
    // SAFETY: only the descriptor is used.
    check(unsafe { libc::ftruncate(fd.as_raw_fd(), size) }).map(drop)
}

/// Lets the kernel read more of the file ahead: twice what it would (`POSIX_FADV_SEQUENTIAL`). Reads no
/// data.
pub fn expect_sequential(fd: BorrowedFd<'_>) -> io::Result<()> {
    fault::point("fadvise")?;
    // SAFETY: only the descriptor is used.
    match unsafe { libc::posix_fadvise(fd.as_raw_fd(), 0, 0, libc::POSIX_FADV_SEQUENTIAL) } {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}

/// `fallocate(2)`; `mode` is `FALLOC_FL_*`. EOPNOTSUPP if the file system lacks that mode.
pub fn fallocate(fd: BorrowedFd<'_>, mode: i32, offset: u64, len: u64) -> io::Result<()> {
    fault::point("fallocate")?;
    // SAFETY: only the descriptor is used.
    let ret = unsafe {
        libc::fallocate(
            fd.as_raw_fd(),
            mode,
            offset as libc::off_t,
            len as libc::off_t,
        )
    };
    check(ret).map(drop)
}

/// The new offset. ENXIO: `SEEK_DATA` finds none, or it or `SEEK_HOLE` starts past the end.
pub fn lseek(fd: BorrowedFd<'_>, offset: i64, whence: i32) -> io::Result<i64> {
    fault::point("lseek")?;
    // SAFETY: only the descriptor is used.
    let at = unsafe { libc::lseek(fd.as_raw_fd(), offset, whence) };
    if at < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(at)
    }
}

/// Waits until data and attributes are on the disk.
pub fn fsync(fd: BorrowedFd<'_>) -> io::Result<()> {
    fault::point("fsync")?;
    // SAFETY: only the descriptor is used.
    check(unsafe { libc::fsync(fd.as_raw_fd()) }).map(drop)
}

/// Waits until the data, and what is needed to read them back, are on the disk.
pub fn fdatasync(fd: BorrowedFd<'_>) -> io::Result<()> {
    fault::point("fdatasync")?;
    // SAFETY: only the descriptor is used.
    check(unsafe { libc::fdatasync(fd.as_raw_fd()) }).map(drop)
}

/// Writes out what the page cache has of the file, and waits for the end of that
/// (`sync_file_range`). Neither attributes nor the disk's cache are written.
pub fn write_out(fd: BorrowedFd<'_>) -> io::Result<()> {
    fault::point("sync_file_range")?;
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: only the descriptor is used.
    check(unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, flags) }).map(drop)
}

/// Takes an exclusive `flock` without waiting: EWOULDBLOCK where somebody else has it.
pub fn lock_exclusive(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: only the descriptor is used.
    check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }).map(drop)
}

/// Gives a `flock` back.
pub fn unlock(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: only the descriptor is used.
    check(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_UN) }).map(drop)
}

/// An `ioctl` whose argument is a buffer that is read and then written; its number says how long.
pub fn ask(fd: BorrowedFd<'_>, cmd: u32, buf: &mut [u8]) -> io::Result<()> {
    if (cmd >> 16) as usize & 0x3fff != buf.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let cmd = libc::c_ulong::from(cmd);
    // SAFETY: the kernel reads and writes as many bytes as the number says, which the buffer has.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), cmd, buf.as_mut_ptr()) }).map(drop)
}

/// `FS_IOC_GETFLAGS`.
pub fn get_flags(fd: BorrowedFd<'_>) -> io::Result<u32> {
    fault::point("getflags")?;
    let mut flags: libc::c_int = 0;
    // SAFETY: the kernel writes an int behind the pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) })?;
    Ok(flags.cast_unsigned())
}

/// `FS_IOC_SETFLAGS`.
pub fn set_flags(fd: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    fault::point("setflags")?;
    let flags: libc::c_int = flags.cast_signed();
    // SAFETY: the kernel reads an int behind the pointer.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_SETFLAGS, &flags) }).map(drop)
}
