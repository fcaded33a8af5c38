//! Reading a directory in one sweep.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{check_len, fault};

/// How much is asked for at once, in words.
const WORDS: usize = 8192;

thread_local! {
    /// The buffer of the thread's last reading. To make and clear one for each costs more than many a
    /// directory.
    static BUFFER: Cell<Vec<u64>> = const { Cell::new(Vec::new()) };
}

/// One raw entry: name and `d_type`. `.` and `..` are left out.
pub fn read_dir(dir: BorrowedFd<'_>, each: impl FnMut(&[u8], u8, u64)) -> io::Result<()> {
    let mut buf = BUFFER.take();
    buf.resize(WORDS, 0);
    let done = read_into(dir, &mut buf, each);
    BUFFER.set(buf);
    done
}

fn read_into(
    dir: BorrowedFd<'_>,
    buf: &mut [u64],
    mut each: impl FnMut(&[u8], u8, u64),
) -> io::Result<()> {
    loop {
        fault::point("getdents")?;
        let bytes = size_of_val(buf);
        // SAFETY: the buffer is writable for its stated length, and aligned for the records.
        let n = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                dir.as_raw_fd(),
                buf.as_mut_ptr(),
                bytes,
            )
        };
        let n = check_len(n as isize)?;
        if n == 0 {
            return Ok(());
        }
        // SAFETY: u64 has no padding, and `n` bytes of the buffer were filled.
        let raw = unsafe { std::slice::from_raw_parts(buf.as_ptr().cast::<u8>(), n) };
        let mut rest = raw;
        // A record: d_ino (8), d_off (8), d_reclen (2), d_type (1), the name and its NUL.
        while let (Some([low, high]), Some(kind), Some(tail)) =
            (rest.get(16..18), rest.get(18), rest.get(19..))
        {
            let reclen = usize::from(u16::from_ne_bytes([*low, *high]));
            let ino = rest
                .get(..8)
                .and_then(|b| b.try_into().ok())
                .map_or(0, u64::from_ne_bytes);
            let name = tail.split(|b| *b == 0).next().unwrap_or_default();
            if name != b"." && name != b".." {
                each(name, *kind, ino);
            }
            rest = rest.get(reclen.max(1)..).unwrap_or_default();
        }
    }
}
