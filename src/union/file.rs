//! Data of open files: reading, writing, allocation, copying, flags.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{Mutex, MutexGuard};

use super::Union;
use super::api::{Durability, Ino};
use super::copy_up::Want;
use super::node::Node;
use super::open::Data;
use crate::error::{Context, Result, best_effort};
use crate::layer::LowerFile;
use crate::layer::reopen::too_short;
use crate::sys::{copy, file, meta};

/// Keeps changes of one file apart of which each puts the time back that it has found.
#[derive(Debug, Default)]
pub struct Collected([Mutex<()>; 16]);

impl Collected {
    #[expect(clippy::indexing_slicing, reason = "the modulus is below the length")]
    fn lock(&self, ino: Ino) -> MutexGuard<'_, ()> {
        self.0[(ino % 16) as usize].lock()
    }
}

impl Union {
    /// Reads up to `size` bytes; fewer only at the end of the file.
    pub fn read(&self, fh: u64, offset: u64, size: usize) -> Result<Vec<u8>> {
        let handle = self.handle(fh)?;
        let data = self.data_of(&handle)?;
        let size = match self.cut_off(&handle.node)? {
            Some(end) => usize::try_from(end.saturating_sub(offset)).map_or(size, |n| n.min(size)),
            None => size,
        };
        match data {
            Data::Upper(fd) => read_all(fd.as_fd(), offset, size).op("read"),
            Data::Lower(file) => {
                handle.node.was_read.store(true, Ordering::Relaxed);
                // Its end is known: no need to ask the layer for it.
                let rest = file.size().saturating_sub(offset);
                let size = usize::try_from(rest).map_or(size, |rest| rest.min(size));
                self.read_lower(&file, offset, size)
            }
        }
    }

    /// Reads that much of a file of a lower, which has it.
    pub(super) fn read_lower(&self, file: &LowerFile, offset: u64, size: usize) -> Result<Vec<u8>> {
        let data = self.lowers.with_file(file, "read lower", |fd| {
            let data = read_all(fd, offset, size)?;
            if data.len() < size {
                // The kernel would take it for the end of the file.
                return Err(too_short());
            }
            Ok(data)
        })?;
        file.note_read(offset, data.len() as u64);
        Ok(data)
    }

    /// Where a metadata copy ends: a truncation that failed half-way, before the lower's data were let
    /// go, has made it shorter than those.
    fn cut_off(&self, node: &Node) -> Result<Option<u64>> {
        if !node.state.read().metacopy {
            return Ok(None);
        }
        let tree = self.read_tree();
        let stat = self.place(&tree, node)?.stat()?;
        Ok(u64::try_from(stat.st_size).ok())
    }

    /// Writes the data: less only if the file system failed after some of it. `kill_priv`: set-id bits go with it.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8], kill_priv: bool) -> Result<usize> {
        let (done, failure) = self.write_some(fh, offset, data, kill_priv)?;
        match failure {
            Some(e) if done == 0 => Err(e).op("write"),
            _ => Ok(done),
        }
    }

    /// Like `write`, of pages of the kernel's cache: less than all is an error, because the kernel asks no
    /// more than whether it was one.
    pub fn write_pages(&self, fh: u64, offset: u64, data: &[u8], kill_priv: bool) -> Result<usize> {
        match self.write_some(fh, offset, data, kill_priv)? {
            (done, None) => Ok(done),
            (_, Some(e)) => Err(e).op("write"),
        }
    }

    /// How much was written, and what it ended with if that is not all.
    fn write_some(
        &self,
        fh: u64,
        offset: u64,
        data: &[u8],
        kill_priv: bool,
    ) -> Result<(usize, Option<io::Error>)> {
        let fd = self.fd_to_change(fh)?;
        let (mut done, mut failure) = (0, None);
        self.change_data(fh, fd.as_fd(), || {
            while let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) {
                match file::pwrite(fd.as_fd(), rest, offset + done as u64) {
                    Ok(n) => done += n,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => {
                        failure = Some(e);
                        break;
                    }
                }
            }
            Ok(())
        })?;
        if kill_priv && (done > 0 || failure.is_none()) {
            self.upper()?.drop_set_ids(fd.as_fd())?;
        }
        Ok((done, failure))
    }

    /// Changes the data of an open file. A kernel that collects writes has given it the time of the change
    /// already, or will.
    fn change_data<T>(
        &self,
        fh: u64,
        fd: BorrowedFd<'_>,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        if self.expects_writeback() {
            self.keeping_time(self.handle(fh)?.node.ino, fd, change)
        } else {
            change()
        }
    }

    /// Puts the time of the last change of data back after `change`, because the kernel has that time.
    pub(super) fn keeping_time<T>(
        &self,
        ino: Ino,
        fd: BorrowedFd<'_>,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let _alone = self.collected.lock(ino);
        let before = meta::fstatat(fd, b"").op("stat upper")?;
        let changed = change();
        let times = [
            libc::timespec {
                tv_sec: 0,
                tv_nsec: libc::UTIME_OMIT,
            },
            libc::timespec {
                tv_sec: before.st_mtime,
                tv_nsec: before.st_mtime_nsec,
            },
        ];
        let kept = meta::utimensat(fd, b"", &times);
        best_effort("keep the time of a file", kept);
        changed
    }

    /// Brings the data to the disk.
    pub fn fsync(&self, fh: u64, datasync: bool) -> Result<()> {
        let handle = self.handle(fh)?;
        if !handle.node.state.read().upper || self.upper()?.durability == Durability::Volatile {
            return Ok(());
        }
        let fd = match self.data_of(&handle)? {
            Data::Upper(fd) => fd,
            Data::Lower(_) => {
                // Of a metadata copy the attributes are in the upper.
                let tree = self.read_tree();
                let at = self.place(&tree, &handle.node)?;
                Arc::new(self.upper()?.open_at(&at, libc::O_RDONLY)?)
            }
        };
        sync(fd.as_fd(), datasync)
    }

    /// Brings the names of a directory to the disk.
    pub(super) fn sync_dir(&self, node: &Node, datasync: bool) -> Result<()> {
        if !node.state.read().upper || self.upper()?.durability == Durability::Volatile {
            return Ok(());
        }
        let fd = {
            let tree = self.read_tree();
            self.place(&tree, node)?
                .open(libc::O_RDONLY | libc::O_DIRECTORY)?
        };
        sync(fd.as_fd(), datasync)
    }

    /// `mode` is `FALLOC_FL_*`, the range in bytes. EOPNOTSUPP if the upper's file system lacks it.
    pub fn fallocate(&self, fh: u64, offset: u64, len: u64, mode: i32) -> Result<()> {
        let fd = self.fd_to_change(fh)?;
        let fd = fd.as_fd();
        self.change_data(fh, fd, || {
            file::fallocate(fd, mode, offset, len).op("fallocate")
        })
    }

    /// `SEEK_DATA` and `SEEK_HOLE`.
    pub fn lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        let handle = self.handle(fh)?;
        self.on_data(&handle, "seek", |fd| file::lseek(fd, offset, whence))
    }

    /// Copies between open files, as far as the kernel goes in one call. EXDEV: do it by reading.
    pub fn copy_file_range(
        &self,
        fh_in: u64,
        offset_in: u64,
        fh_out: u64,
        offset_out: u64,
        len: usize,
    ) -> Result<usize> {
        let to = self.fd_to_change(fh_out)?;
        let from = self.handle(fh_in)?;
        self.on_data(&from, "copy file range", |from| {
            copy::copy_file_range(from, offset_in, to.as_fd(), offset_out, len)
        })
    }

    /// The inode flags of `FS_IOC_GETFLAGS`. A lower object has none.
    pub fn get_flags(&self, ino: Ino) -> Result<u32> {
        let node = self.table.get(ino)?;
        if !node.state.read().upper {
            return Ok(0);
        }
        let fd = {
            let tree = self.read_tree();
            self.place(&tree, &node)?
                .open(libc::O_RDONLY | libc::O_NONBLOCK)?
        };
        file::get_flags(fd.as_fd()).op("get flags")
    }

    /// Sets the inode flags.
    pub fn set_flags(&self, ino: Ino, flags: u32) -> Result<()> {
        let node = self.table.get(ino)?;
        self.copy_up(&node, Want::Data)?;
        let fd = {
            let tree = self.read_tree();
            self.place(&tree, &node)?
                .open(libc::O_RDONLY | libc::O_NONBLOCK)?
        };
        file::set_flags(fd.as_fd(), flags).op("set flags")
    }
}

/// Brings a file to the disk; with `datasync` only what is needed to read it again.
fn sync(fd: BorrowedFd<'_>, datasync: bool) -> Result<()> {
    if datasync {
        file::fdatasync(fd)
    } else {
        file::fsync(fd)
    }
    .op("sync")
}

/// Up to `size` bytes; fewer only at the end of the file, as that is what the kernel takes it for.
fn read_all(fd: BorrowedFd<'_>, offset: u64, size: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::with_capacity(size);
    while data.len() < size {
        let (rest, at) = (size - data.len(), offset + data.len() as u64);
        match file::pread_more(fd, &mut data, rest, at) {
            Ok(0) => break,
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(data)
}
