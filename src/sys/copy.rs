//! Moving data between files inside the kernel.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{check, check_len, fault};

/// Shares all the blocks of `from` with `to` (`FICLONE`).
pub fn clone(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    fault::point("ficlone")?;
    // SAFETY: both descriptors are open.
    check(unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) }).map(drop)
}

/// Copies up to `len` bytes; 0 at the end of `from`.
pub fn copy_file_range(
    from: BorrowedFd<'_>,
    from_offset: u64,
    to: BorrowedFd<'_>,
    to_offset: u64,
    len: usize,
) -> io::Result<usize> {
    fault::point("copy_file_range")?;
    let (mut i, mut o) = (from_offset as i64, to_offset as i64);
    // SAFETY: both descriptors are open and both offsets point to live integers.
    check_len(unsafe {
        libc::copy_file_range(from.as_raw_fd(), &mut i, to.as_raw_fd(), &mut o, len, 0)
    })
}
