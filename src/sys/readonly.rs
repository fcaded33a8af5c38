//! A read-only view of a directory: a clone of its mount, which nobody else knows.
//!
//! The kernel opens a file that it is given for passthrough anew, with the flags of each caller, and
//! what the descriptor allows does not matter to it. What it cannot pass is the mount that the file was
//! opened on. So a file of a layer is given out as a [`ReadOnlyFile`] only, and there is no other way to
//! make one than to open it on such a clone.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use super::{EMPTY, check, meta};

/// The clone; it ends with its last descriptor.
#[derive(Debug)]
pub struct ReadOnlyView {
    root: Arc<OwnedFd>,
    id: u64,
}

/// A file on a [`ReadOnlyView`].
#[derive(Debug)]
pub struct ReadOnlyFile(Arc<OwnedFd>);

impl ReadOnlyView {
    /// Clones the mount that the directory is on; mounts below it do not show. It takes
    /// `CAP_SYS_ADMIN` and Linux 6.8.
    pub fn of(dir: BorrowedFd<'_>) -> io::Result<ReadOnlyView> {
        let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | libc::AT_EMPTY_PATH as u32;
        // SAFETY: the descriptor is open and the path NUL-terminated.
        let fd = check(unsafe {
            libc::syscall(libc::SYS_open_tree, dir.as_raw_fd(), EMPTY.as_ptr(), flags) as i32
        })?;
        // SAFETY: the call returned a new descriptor that nobody else owns.
        let root = unsafe { OwnedFd::from_raw_fd(fd) };
        let attr = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOATIME,
            attr_clr: libc::MOUNT_ATTR__ATIME,
            propagation: libc::MS_PRIVATE,
            userns_fd: 0,
        };
        // SAFETY: the descriptor is open, the path NUL-terminated, and the structure lives as long as
        // the call and has the size that is said.
        check(unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                root.as_raw_fd(),
                EMPTY.as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attr,
                size_of::<libc::mount_attr>(),
            ) as i32
        })?;
        Ok(ReadOnlyView {
            id: mount_id(root.as_fd())?,
            root: Arc::new(root),
        })
    }

    /// The directory, as `O_PATH` opens it.
    pub fn root(&self) -> &Arc<OwnedFd> {
        &self.root
    }

    /// The file, if it was opened on this clone.
    pub fn holds(&self, file: Arc<OwnedFd>) -> io::Result<Option<ReadOnlyFile>> {
        let here = mount_id(file.as_fd())? == self.id;
        Ok(here.then_some(ReadOnlyFile(file)))
    }
}

impl AsFd for ReadOnlyFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The number of the mount, which no other one ever gets. Asks no file system.
fn mount_id(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let found = meta::statx_unasked(fd, c"", libc::STATX_MNT_ID_UNIQUE)?;
    if found.stx_mask & libc::STATX_MNT_ID_UNIQUE == 0 {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    Ok(found.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file;

    #[test]
    fn what_a_view_holds_cannot_be_opened_for_writing() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        std::fs::write(dir.path().join("file"), b"content")?;
        let plain = file::open_path(dir.path(), libc::O_PATH | libc::O_DIRECTORY)?;
        let view = match ReadOnlyView::of(plain.as_fd()) {
            // For root only.
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => return Ok(()),
            other => other?,
        };
        let inside = Arc::new(file::openat(view.root().as_fd(), b"file", libc::O_PATH, 0)?);
        let outside = Arc::new(file::openat(plain.as_fd(), b"file", libc::O_RDONLY, 0)?);
        assert!(view.holds(outside)?.is_none());
        let held = view.holds(inside)?;
        let held = held.ok_or_else(|| io::Error::other("not held"))?;
        for flags in [libc::O_WRONLY, libc::O_RDWR, libc::O_RDWR | libc::O_TRUNC] {
            let refused = file::reopen(held.as_fd(), flags).err();
            assert_eq!(refused.and_then(|e| e.raw_os_error()), Some(libc::EROFS));
        }
        assert!(file::reopen(held.as_fd(), libc::O_RDONLY).is_ok());
        // Another view of the same directory has files of its own.
        let other = ReadOnlyView::of(plain.as_fd())?;
        let inside = file::openat(view.root().as_fd(), b"file", libc::O_PATH, 0)?;
        assert!(other.holds(Arc::new(inside))?.is_none());
        Ok(())
    }
}
