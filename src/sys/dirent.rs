//! Reading a directory in one sweep.
//!
//! A FUSE file system is sent a request for each call, so the call that only tells the end costs one
//! more. It can be left out where the server fills its answers: one with room for another name is the
//! last. That holds for the CVMFS client. Its `cvmfs_opendir` makes the whole listing, and its
//! `cvmfs_readdir` answers with a slice of it, as long as was asked for unless the listing ends (cvmfs.cc:
//! `AddToDirListing`, `ReplyBufferSlice`). Each cookie is where its entry ends in the listing, by which
//! such a server is known here: one that sends something else, as with attributes, has other cookies.
#![allow(unsafe_code)]

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::{check_len, fault, kernel};

/// How much is asked for at once, in words.
const WORDS: usize = 8192;

thread_local! {
    /// The buffer of the thread's last reading, always of length 0: what is filled of it is known while reading.
    /// To make one for each costs more than many a directory, and so does to clear it.
    static BUFFER: Cell<Vec<u64>> = const { Cell::new(Vec::new()) };
}

/// What tells the end of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// An answer without names.
    Empty,
    /// Also one with room for more, if it comes from a listing that is sent in slices.
    Room,
}

impl End {
    /// For directories of a server that fills its answers. The kernel must pass all of an answer on, as
    /// it is known to do from this release on: in older ones a signal, or a stop of the process, cuts it
    /// short after any name (fs/readdir.c: `filldir64`, without `FILLDIR_FLAG_NOINTR`).
    pub fn of_filled_answers() -> End {
        if kernel::is_at_least((6, 18)) {
            End::Room
        } else {
            End::Empty
        }
    }
}

/// No answer of FUSE is asked to be shorter, whatever the kernel and the buffer: it is a page there.
const LEAST_ANSWER: u64 = 4096;
/// So much of an answer is a name's entry (`struct fuse_dirent`).
const ENTRY: u64 = 24;
/// An entry that did not fit is not longer. No name has more than 255 bytes; FUSE passes 1024 on.
const LONGEST_ENTRY: u64 = ENTRY + 1024;

/// How far a listing has come that is sent in slices.
struct Slices {
    /// All entries of before have ended there; None if this is no such listing.
    at: Option<u64>,
    /// Where the answer that is looked at began.
    from: u64,
}

impl Slices {
    fn begin_answer(&mut self) {
        self.from = self.at.unwrap_or(0);
    }

    fn entry(&mut self, name: &[u8], cookie: u64) {
        let len = (ENTRY + name.len() as u64).next_multiple_of(8);
        self.at = self.at.map(|at| at + len).filter(|at| *at == cookie);
    }

    /// Whether another entry would have had room in the answer, so that there is none.
    fn have_ended(&self) -> bool {
        self.at
            .is_some_and(|at| at - self.from + LONGEST_ENTRY <= LEAST_ANSWER)
    }
}

/// One raw entry: name and `d_type`. `.` and `..` are left out.
pub fn read_dir(dir: BorrowedFd<'_>, each: impl FnMut(&[u8], u8, u64)) -> io::Result<()> {
    read_dir_to(End::Empty, dir, each)
}

/// The same, with more that may tell the end.
pub fn read_dir_to(
    end: End,
    dir: BorrowedFd<'_>,
    each: impl FnMut(&[u8], u8, u64),
) -> io::Result<()> {
    let mut buf = BUFFER.take();
    buf.reserve(WORDS);
    let done = read_into(end, dir, buf.spare_capacity_mut(), each);
    BUFFER.set(buf);
    done
}

fn read_into(
    end: End,
    dir: BorrowedFd<'_>,
    buf: &mut [MaybeUninit<u64>],
    mut each: impl FnMut(&[u8], u8, u64),
) -> io::Result<()> {
    let mut slices = Slices {
        at: (end == End::Room).then_some(0),
        from: 0,
    };
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
        // SAFETY: the kernel has filled `n` bytes of the buffer.
        let raw = unsafe { std::slice::from_raw_parts(buf.as_ptr().cast::<u8>(), n) };
        let mut rest = raw;
        slices.begin_answer();
        // A record: d_ino (8), d_off (8), d_reclen (2), d_type (1), the name and its NUL.
        while let (Some([low, high]), Some(kind), Some(tail)) =
            (rest.get(16..18), rest.get(18), rest.get(19..))
        {
            let reclen = usize::from(u16::from_ne_bytes([*low, *high]));
            let number = |at: usize| {
                let bytes = rest.get(at..at + 8).and_then(|b| b.try_into().ok());
                bytes.map_or(0, u64::from_ne_bytes)
            };
            let (ino, cookie) = (number(0), number(8));
            let name = tail.split(|b| *b == 0).next().unwrap_or_default();
            slices.entry(name, cookie);
            if name != b"." && name != b".." {
                each(name, *kind, ino);
            }
            rest = rest.get(reclen.max(1)..).unwrap_or_default();
        }
        if slices.have_ended() {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Listings of so many bytes, answer by answer; `cookies`: what is sent beyond the true ones.
    fn ended(answers: &[u64], cookies: u64) -> bool {
        let mut slices = Slices {
            at: Some(0),
            from: 0,
        };
        let mut at = 0;
        for bytes in answers {
            slices.begin_answer();
            // Entries of 32 bytes each.
            for _ in 0..bytes / 32 {
                at += 32;
                slices.entry(b"12345678", at + cookies);
            }
        }
        slices.have_ended()
    }

    #[test]
    fn an_answer_with_room_for_the_longest_entry_is_the_last() {
        let most = (LEAST_ANSWER - LONGEST_ENTRY) / 32 * 32;
        assert!(ended(&[64], 0) && ended(&[most], 0));
        assert!(!ended(&[most + 32], 0));
        assert!(ended(&[LEAST_ANSWER, 32], 0) && !ended(&[32, LEAST_ANSWER], 0));
        assert!(!ended(&[64], 8), "other cookies");
        let mut unknown = Slices { at: None, from: 0 };
        unknown.entry(b".", 32);
        assert!(!unknown.have_ended());
    }

    #[test]
    fn entries_are_as_long_as_fuse_makes_them() {
        for (name, len) in [(1, 32), (8, 32), (9, 40), (255, 280), (1024, LONGEST_ENTRY)] {
            let mut slices = Slices {
                at: Some(0),
                from: 0,
            };
            slices.entry(&vec![b'x'; name], len);
            assert_eq!(slices.at, Some(len), "{name}");
        }
    }
}
