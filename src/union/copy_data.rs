//! The data of a copy-up: whole, with their holes, by what works between the two file systems.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use parking_lot::Mutex;

use super::Union;
use super::node::LowerAt;
use crate::error::{Context, Result};
use crate::layer::LowerFile;
use crate::layer::reopen::too_short;
use crate::sys::{copy, file};

/// The most that one call copies.
const CHUNK: u64 = 1 << 20;

/// A file of at most so many bytes, without holes, is read and written in one piece.
const SMALL: u64 = 1 << 17;

/// What a copy within the kernel is tried by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Way {
    Clone,
    Range,
}

/// The ways that lead nowhere, by the layer: found out once.
#[derive(Debug, Default)]
pub struct Ways {
    closed: Mutex<HashSet<(u32, Way)>>,
}

impl Ways {
    fn is_open(&self, layer: u32, way: Way) -> bool {
        !self.closed.lock().contains(&(layer, way))
    }

    /// Remembers an error that is about the file systems and no single file.
    fn failed(&self, layer: u32, way: Way, e: &io::Error) {
        let never = matches!(
            e.raw_os_error(),
            Some(libc::EXDEV | libc::EOPNOTSUPP | libc::ENOTTY | libc::ENOSYS)
        );
        if never {
            self.closed.lock().insert((layer, way));
        }
    }
}

impl Union {
    /// Copies the first `size` bytes of a lower file to one that has `has` bytes; holes stay holes.
    pub(super) fn copy_data(
        &self,
        lower: &LowerAt,
        to: BorrowedFd<'_>,
        size: u64,
        has: u64,
    ) -> Result<()> {
        if size == 0 {
            return Ok(());
        }
        let ways = &self.upper()?.ways;
        let (from, layer) = (lower.file(), lower.dir.layer);
        if ways.is_open(layer, Way::Clone) {
            let cloned = self.lowers.with_file(&from, "open lower", |from| {
                let cloned = copy::clone(from, to);
                Ok(cloned
                    .inspect_err(|e| ways.failed(layer, Way::Clone, e))
                    .is_ok())
            })?;
            if cloned {
                from.note_read(0, size);
                self.copied.data(size);
                return file::ftruncate(to, size).op("copy up file");
            }
        }
        let stored = u64::try_from(lower.stat.st_blocks).unwrap_or(0) * 512;
        let small = size <= SMALL && stored >= size;
        if small {
            self.copy_piece(&from, to, 0, size)?;
        } else {
            let mut at = 0;
            while at < size {
                let (begin, end) = self
                    .lowers
                    .with_file(&from, "open lower", |from| Ok(next_data(from, at, size)))?;
                self.copy_range(&from, layer, to, begin, end)?;
                at = end;
            }
        }
        from.note_read(0, size);
        self.copied.data(size);
        if small && has <= size {
            return Ok(());
        }
        file::ftruncate(to, size).op("copy up file")
    }

    /// Copies a range; EIO if the source ends before it should.
    fn copy_range(
        &self,
        from: &LowerFile,
        layer: u32,
        to: BorrowedFd<'_>,
        begin: u64,
        end: u64,
    ) -> Result<()> {
        let ways = &self.upper()?.ways;
        let mut at = begin;
        while at < end && ways.is_open(layer, Way::Range) {
            let len = usize::try_from((end - at).min(CHUNK * 64)).unwrap_or(usize::MAX);
            let copied = self.lowers.with_file(from, "open lower", |from| {
                let copied = copy::copy_file_range(from, at, to, at, len);
                Ok(copied
                    .inspect_err(|e| ways.failed(layer, Way::Range, e))
                    .unwrap_or(0))
            })?;
            if copied == 0 {
                break;
            }
            at += copied as u64;
        }
        while at < end {
            let piece = (end - at).min(CHUNK);
            self.copy_piece(from, to, at, piece)?;
            at += piece;
        }
        Ok(())
    }

    /// Reads so many bytes and writes them; EIO if the source ends before it should.
    fn copy_piece(&self, from: &LowerFile, to: BorrowedFd<'_>, at: u64, len: u64) -> Result<()> {
        let mut buf = vec![0; usize::try_from(len).unwrap_or(0)];
        let mut filled = 0;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            filled += self.lowers.with_file(from, "read lower", |from| {
                match file::pread(from, rest, at + filled as u64) {
                    Ok(0) => Err(too_short()),
                    other => other,
                }
            })?;
        }
        let mut written = 0;
        while let Some(rest) = buf.get(written..).filter(|rest| !rest.is_empty()) {
            written += file::pwrite(to, rest, at + written as u64).op("write copy")?;
        }
        Ok(())
    }
}

/// Gives the blocks of the first `size` bytes back.
pub fn punch(fd: &OwnedFd, size: u64) -> Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    file::fallocate(fd.as_fd(), mode, 0, size).op("punch hole")
}

/// The next piece of data from an offset on; what lies before it is a hole.
fn next_data(fd: BorrowedFd<'_>, at: u64, size: u64) -> (u64, u64) {
    let offset = i64::try_from(at).unwrap_or(i64::MAX);
    let begin = match file::lseek(fd, offset, libc::SEEK_DATA) {
        Ok(begin) => begin,
        Err(e) if e.raw_os_error() == Some(libc::ENXIO) => return (size, size),
        Err(_) => return (at, size),
    };
    let end = file::lseek(fd, begin, libc::SEEK_HOLE)
        .ok()
        .and_then(|e| u64::try_from(e).ok());
    (
        u64::try_from(begin).unwrap_or(at),
        end.unwrap_or(size).min(size),
    )
}
