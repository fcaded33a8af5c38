//! Owners and modes of what stands in the upper: those of its files, or what an attribute beside each of them
//! says, as fuse-overlayfs has it with `xattr_permissions`.
//!
//! In the second case all files are the daemon's, who then needs no privileges to give them away as users see
//! it. Their own modes are those that are shown, with all rights for the daemon and no set-id bits.

use std::io;
use std::os::fd::BorrowedFd;

use super::attr::{drop_capabilities, stripped};
use super::place::At;
use super::upper::Upper;
use crate::error::{Context, Result, best_effort};
use crate::layer::overrides::{self, Overrides};
use crate::sys::meta::{self, Stat};
use crate::sys::xattr;

/// Puts what stands beside an object in the place of its own owner and mode. One without the attribute, as a
/// symlink, has its own.
pub fn apply(
    beside: Option<Overrides>,
    fd: BorrowedFd<'_>,
    name: &[u8],
    stat: &mut Stat,
) -> io::Result<()> {
    let Some(beside) = beside else { return Ok(()) };
    match xattr::get(fd, name, beside.key()) {
        Ok(value) => {
            let mut told = *stat;
            overrides::apply(&value, &mut told)?;
            (stat.st_uid, stat.st_gid) = (told.st_uid, told.st_gid);
            stat.st_mode = stat.st_mode & libc::S_IFMT | told.st_mode & 0o7777;
            Ok(())
        }
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(()),
        Err(e) => Err(e),
    }
}

impl Upper {
    /// The attributes of an object, owner and mode as users see them.
    pub fn stat(&self, at: &At) -> Result<Stat> {
        self.stat_at(at.fd(), &at.name)
    }

    fn stat_at(&self, fd: BorrowedFd<'_>, name: &[u8]) -> Result<Stat> {
        let mut stat = meta::fstatat(fd, name).op("stat upper")?;
        apply(self.beside, fd, name, &mut stat).op("read owner and mode")?;
        Ok(stat)
    }

    /// Changes owner and group; as Linux does it, files lose their set-id bits and capabilities with that.
    pub fn set_owner(&self, at: &At, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        if self.beside.is_none() {
            return meta::fchownat(at.fd(), &at.name, uid, gid).op("chown");
        }
        let stat = self.stat(at)?;
        let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let mode = match is_dir {
            true => stat.st_mode,
            false => stripped(stat.st_mode),
        };
        let owner = (uid.unwrap_or(stat.st_uid), gid.unwrap_or(stat.st_gid));
        self.keep_beside(at, owner, mode)?;
        drop_capabilities(at)
    }

    /// Changes the mode.
    pub fn set_mode(&self, at: &At, mode: u32) -> Result<()> {
        if self.beside.is_none() {
            return meta::fchmodat(at.fd(), &at.name, mode).op("chmod");
        }
        let stat = self.stat(at)?;
        self.keep_beside(at, (stat.st_uid, stat.st_gid), mode)
    }

    /// Clears the set-id bits of an open file, as Linux does when its data change.
    pub fn drop_set_ids(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let stat = self.stat_at(fd, b"")?;
        let mode = stat.st_mode & 0o7777;
        if stripped(mode) == mode {
            return Ok(());
        }
        match self.beside {
            None => meta::fchmodat(fd, b"", stripped(mode)).op("drop set-id bits"),
            Some(beside) => {
                let owner = (stat.st_uid, stat.st_gid);
                tell(beside, fd, b"", owner, stripped(mode)).op("drop set-id bits")
            }
        }
    }

    /// Writes owner and mode beside an object, where that is done.
    pub fn keep_beside(&self, at: &At, owner: (u32, u32), mode: u32) -> Result<()> {
        let Some(beside) = self.beside else {
            return Ok(());
        };
        let kind = meta::fstatat(at.fd(), &at.name).op("stat upper")?.st_mode & libc::S_IFMT;
        let own = match tell(beside, at.fd(), &at.name, owner, mode) {
            // Linux has `user.` attributes on files and directories only. Others have what they have themselves.
            Err(e)
                if e.raw_os_error() == Some(libc::EPERM)
                    && !matches!(kind, libc::S_IFREG | libc::S_IFDIR) =>
            {
                let given = meta::fchownat(at.fd(), &at.name, Some(owner.0), Some(owner.1));
                best_effort("give away what has no attributes", given);
                mode & 0o7777
            }
            other => other.op("keep owner and mode").map(|()| own_mode(mode))?,
        };
        match kind {
            libc::S_IFLNK => Ok(()),
            _ => meta::fchmodat(at.fd(), &at.name, own).op("chmod"),
        }
    }
}

/// The mode that a file has itself where another is kept beside it.
pub fn own_mode(mode: u32) -> u32 {
    mode & 0o777 | 0o700
}

fn tell(
    beside: Overrides,
    fd: BorrowedFd<'_>,
    name: &[u8],
    (uid, gid): (u32, u32),
    mode: u32,
) -> io::Result<()> {
    let value = overrides::value(uid, gid, mode);
    xattr::set(fd, name, beside.key(), value.as_bytes(), 0)
}
