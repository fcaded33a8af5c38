//! The order of data and names on the disk: a crash of the machine must not leave a copy's name without
//! its data, where the layer's file was before.
//!
//! The data need not be durable for that, only durable before the name is. A journal that brings changes
//! to the disk in their order gives that for data which have been written out, and entered in it, before
//! the rename: ext4 and XFS do so when writeback of a page has ended, and flush the disk's cache before a
//! commit. So there waiting for writeback is enough, which neither commits the journal nor flushes the
//! cache. Elsewhere (btrfs enters written data later, ext4 may be without a journal) the data are synced.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::OnceLock;

use nix::sys::statfs::{self, fstatfs};

use super::api::Durability;
use crate::error::{Context, Result};
use crate::sys::{file, kernel, meta, mounts};

/// What has to be done between the data of a copy and its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Barrier {
    /// Nothing.
    None,
    /// Waiting until the data are written.
    Written,
    /// Waiting until the data are durable.
    Synced,
}

impl Barrier {
    /// For an upper on that file system.
    fn choose(durability: Durability, upper: &OwnedFd) -> Barrier {
        match durability {
            Durability::Volatile => Barrier::None,
            Durability::Full => Barrier::Synced,
            Durability::Auto if keeps_order(upper) => Barrier::Written,
            Durability::Auto => Barrier::Synced,
        }
    }
}

/// The barrier of an upper, looked for when the first copy is to be published.
#[derive(Debug)]
pub struct Barriers {
    durability: Durability,
    chosen: OnceLock<Barrier>,
}

impl Barriers {
    pub fn new(durability: Durability) -> Self {
        Barriers {
            durability,
            chosen: OnceLock::new(),
        }
    }

    /// See [`Upper::before_publishing`](super::upper::Upper::before_publishing).
    pub fn before_publishing(&self, upper: &OwnedFd, copy: BorrowedFd<'_>) -> Result<()> {
        match self
            .chosen
            .get_or_init(|| Barrier::choose(self.durability, upper))
        {
            Barrier::None => Ok(()),
            Barrier::Written => file::write_out(copy).op("write copy out"),
            Barrier::Synced => file::fdatasync(copy).op("sync copy"),
        }
    }
}

/// Whether what is written out before a rename is on the disk before it. Whatever cannot be found out
/// counts as no.
fn keeps_order(upper: &OwnedFd) -> bool {
    let (Ok(fs), Ok(stat)) = (fstatfs(upper), meta::fstatat(upper.as_fd(), b"")) else {
        return false;
    };
    let device = (libc::major(stat.st_dev), libc::minor(stat.st_dev));
    let journals = match fs.filesystem_type() {
        // ext2 and ext3 have the same number.
        statfs::EXT4_SUPER_MAGIC => ext4_journals(device),
        statfs::XFS_SUPER_MAGIC => true,
        _ => false,
    };
    let Ok(Some(mounted)) = mounts::mounted_on(stat.st_dev) else {
        return false;
    };
    // Before Linux 5.2 `sync_file_range` may leave pages out that are busy.
    journals && kernel::is_at_least((5, 2)) && orderly(&mounted.options)
}

/// A journal's thread is shown where there is one.
fn ext4_journals((major, minor): (u32, u32)) -> bool {
    let device = std::fs::read_link(format!("/sys/dev/block/{major}:{minor}"));
    let name = device
        .ok()
        .and_then(|d| d.file_name().map(ToOwned::to_owned));
    name.is_some_and(|name| {
        let shown = Path::new("/sys/fs/ext4").join(name).join("journal_task");
        shown.exists()
    })
}

/// Whether commits wait for what was written before them: not those of ext4 that are asynchronous, and
/// not with parts of the file system on other disks, whose caches a commit does not flush.
fn orderly(options: &[u8]) -> bool {
    let mut each = options.split(|b| *b == b',');
    !each.any(|option| {
        let name = option.split(|b| *b == b'=').next().unwrap_or_default();
        [
            &b"journal_async_commit"[..],
            b"journal_dev",
            b"journal_path",
            b"logdev",
            b"rtdev",
        ]
        .contains(&name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_disks_and_asynchronous_commits_have_no_order() {
        assert!(orderly(b"rw,data=ordered"));
        assert!(!orderly(b"rw,logdev=/dev/sdb1,noquota"));
    }
}
