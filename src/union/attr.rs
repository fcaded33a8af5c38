//! Attributes: reading and changing them.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::Union;
use super::api::{Attr, Caller, Ino, Kind, SetAttr, SetTime, Time};
use super::copy_up::Want;
use super::node::Node;
use super::place::{At, Tree};
use crate::error::{Context, Error, Result};
use crate::layer::{Listed, Listing};
use crate::sys::meta::{self, Stat};
use crate::sys::{file, xattr};

fn time(sec: i64, nsec: i64) -> Time {
    Time {
        sec,
        nsec: u32::try_from(nsec).unwrap_or(0),
    }
}

/// What the kernel takes away from a file that somebody changes: set-uid, and set-gid where it is
/// not a mark for mandatory locks.
pub fn stripped(mode: u32) -> u32 {
    let group = if mode & libc::S_IXGRP != 0 {
        libc::S_ISGID
    } else {
        0
    };
    mode & !(libc::S_ISUID | group)
}

/// To list a directory in so many layers costs more than the request that asks for its attributes when they are wanted.
const MANY_PARTS: usize = 8;

impl Union {
    /// The attributes of a node, or of what a handle has open.
    pub fn getattr(&self, ino: Ino, _fh: Option<u64>) -> Result<Attr> {
        let node = self.table.get(ino)?;
        self.attr(&node)
    }

    pub(super) fn attr(&self, node: &Node) -> Result<Attr> {
        self.attr_counting(node, !self.shown.static_nlink)
    }

    /// The attributes, but for the link count of a directory for which many layers would have to be asked. False: that
    /// is missing.
    pub(super) fn attr_at_hand(&self, node: &Node) -> Result<(Attr, bool)> {
        let counted = !self.shown.static_nlink;
        let costly = counted
            && node.dir.as_ref().is_some_and(|dir| {
                dir.lowers.len() >= MANY_PARTS && self.kept_listing(&dir.lowers).is_none()
            });
        let attr = self.attr_counting(node, counted && !costly)?;
        Ok((attr, !costly))
    }

    /// `counted`: the link counts of directories are.
    fn attr_counting(&self, node: &Node, counted: bool) -> Result<Attr> {
        let listing = match &node.dir {
            Some(dir) if counted && (dir.lowers.len() > 1 || node.state.read().upper) => {
                Some(self.listing(node)?)
            }
            _ => None,
        };
        let tree = self.read_tree();
        let (upper, removed, metacopy, delta) = {
            let state = node.state.read();
            (
                state.upper,
                state.removed,
                state.metacopy,
                state.nlink_delta(),
            )
        };
        let mut stat = self.stored_stat(&tree, node, upper)?;
        let mut nlink = i64::try_from(stat.st_nlink).unwrap_or(i64::MAX);
        if let (true, Some(lower)) = (metacopy, &node.lower) {
            stat.st_blocks = lower.stat().st_blocks;
        }
        if removed {
            nlink = 0;
        } else if node.is_dir() && !counted {
            nlink = 1;
        } else if let Some(listing) = &listing {
            if upper && listing.is_empty() && nlink >= 2 {
                // The upper's own count is right.
            } else {
                nlink = 2 + self.count_subdirs(&tree, node, listing)?;
            }
        } else if !node.is_dir() {
            nlink += delta;
        }
        Ok(self.attr_of(node, &stat, u32::try_from(nlink.max(0)).unwrap_or(u32::MAX)))
    }

    fn stored_stat(&self, tree: &Tree<'_>, node: &Node, upper: bool) -> Result<Stat> {
        if upper {
            return self.upper()?.stat(&self.place(tree, node)?);
        }
        let lower = node.lower.as_ref();
        let lower = lower.ok_or_else(|| Error::new(libc::EIO, "node without an object"))?;
        Ok(lower.stat())
    }

    /// The part of a change that its caller may make, where others are shown as owners than are stored.
    fn permitted(&self, caller: &Caller, node: &Node, set: &SetAttr) -> Result<SetAttr> {
        let is_about_rights = set.mode.is_some() || set.uid.is_some() || set.gid.is_some();
        if !is_about_rights || self.shown.owners_are_stored() {
            return Ok(*set);
        }
        let tree = self.read_tree();
        let upper = node.state.read().upper;
        let stat = self.stored_stat(&tree, node, upper)?;
        let owner = (stat.st_uid, stat.st_gid);
        self.shown.permitted(caller, node.kind, set, owner)
    }

    fn attr_of(&self, node: &Node, stat: &Stat, nlink: u32) -> Attr {
        Attr {
            ino: node.ino,
            kind: node.kind,
            mode: stat.st_mode & 0o7777,
            nlink,
            uid: self.shown.uids.shown(stat.st_uid),
            gid: self.shown.gids.shown(stat.st_gid),
            rdev: if matches!(node.kind, Kind::Char | Kind::Block) {
                node.rdev()
            } else {
                0
            },
            size: u64::try_from(stat.st_size).unwrap_or(0),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
            blksize: u32::try_from(stat.st_blksize).unwrap_or(4096),
            atime: time(stat.st_atime, stat.st_atime_nsec),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// The attributes of what was just made in the upper, and stands there alone.
    pub(super) fn attr_of_new(&self, node: &Node, stat: &Stat) -> Attr {
        // Not every file system counts what is in a directory.
        let least = if node.is_dir() { 2 } else { 1 };
        let nlink = u32::try_from(stat.st_nlink).unwrap_or(u32::MAX);
        let nlink = if node.is_dir() && self.shown.static_nlink {
            1
        } else {
            nlink.max(least)
        };
        self.attr_of(node, stat, nlink)
    }

    fn count_subdirs(&self, tree: &Tree<'_>, node: &Node, listing: &Listing) -> Result<i64> {
        let index = self.index(tree, node)?;
        let is_dir = |kind: u8| kind == libc::DT_DIR;
        let above = index
            .after(0)
            .filter(|(_, _, h)| h.object.is_some_and(is_dir))
            .count();
        let shown = |e: &Listed<'_>| index.get(e.name).is_none();
        let below = listing.dirs().filter(shown).count();
        Ok(i64::try_from(above + below).unwrap_or(i64::MAX))
    }

    /// Changes attributes. With nothing to change, privileges are dropped (`FUSE_HANDLE_KILLPRIV_V2`).
    pub fn setattr(
        &self,
        caller: &Caller,
        ino: Ino,
        fh: Option<u64>,
        set: &SetAttr,
    ) -> Result<Attr> {
        let node = self.table.get(ino)?;
        let set = &self.permitted(caller, &node, &self.shown.stored(set)?)?;
        if node.kind == Kind::Symlink && set.mode.is_some() {
            return Err(Error::new(libc::EOPNOTSUPP, "chmod a symlink"));
        }
        let mut done = false;
        if let Some(size) = set.size {
            self.truncate(caller, &node, fh, size, set.mtime)?;
        } else {
            done = self.copy_up_changed(&node, set)?;
        }
        if !done {
            let _flight = self.hold_metadata(&node);
            let tree = self.read_tree();
            let at = self.place(&tree, &node)?;
            let changed = self.change(caller, &node, &at, set);
            node.attributes_changed();
            changed?;
        }
        self.attr(&node)
    }

    fn truncate(
        &self,
        caller: &Caller,
        node: &Arc<Node>,
        fh: Option<u64>,
        size: u64,
        mtime: Option<SetTime>,
    ) -> Result<()> {
        if node.is_dir() {
            return Err(Error::new(libc::EISDIR, "truncate"));
        }
        // A kernel that collects writes names a time if it sees the size change.
        let unchanged = mtime.is_none() && self.expects_writeback();
        let empty = size == 0 && !unchanged;
        self.copy_up(node, if empty { Want::Empty } else { Want::Data })?;
        let fd = match fh {
            Some(fh) => self.upper_fd(&*self.handle(fh)?)?,
            None => {
                let tree = self.read_tree();
                let at = self.place(&tree, node)?;
                Arc::new(
                    self.upper()?
                        .open_at(&at, libc::O_WRONLY | libc::O_NONBLOCK)?,
                )
            }
        };
        let cut = || file::ftruncate(fd.as_fd(), size).op("truncate");
        if unchanged {
            self.keeping_time(node.ino, fd.as_fd(), cut)?;
        } else {
            cut()?;
        }
        if caller.uid != 0 {
            self.upper()?.drop_set_ids(fd.as_fd())?;
        }
        Ok(())
    }

    /// Changes the attributes of an object of the upper.
    fn change(&self, caller: &Caller, node: &Node, at: &At, set: &SetAttr) -> Result<()> {
        if set.uid.is_some() || set.gid.is_some() {
            self.upper()?.set_owner(at, set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            self.upper()?.set_mode(at, mode)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            let times = [timespec(set.atime), timespec(set.mtime)];
            meta::utimensat(at.fd(), &at.name, &times).op("set times")?;
        }
        if is_empty(set) && !node.is_dir() {
            self.drop_privileges(caller, node, at)?;
        }
        Ok(())
    }

    /// Clears set-id bits and capabilities. The request comes from a change of data by whoever has the
    /// file open for writing, and from a chown that changes nothing, which is for the owner only.
    fn drop_privileges(&self, caller: &Caller, node: &Node, at: &At) -> Result<()> {
        let upper = self.upper()?;
        let stat = upper.stat(at)?;
        let mode = stat.st_mode & 0o7777;
        if stripped(mode) != mode {
            let owns = caller.uid == 0 || caller.uid == self.shown.uids.shown(stat.st_uid);
            if !owns && !node.is_written() {
                return Err(Error::new(libc::EPERM, "drop set-id bits"));
            }
            upper.set_mode(at, stripped(mode))?;
        }
        drop_capabilities(at)
    }
}

/// Removes the capabilities of a file, if it has any.
pub fn drop_capabilities(at: &At) -> Result<()> {
    match xattr::remove(at.fd(), &at.name, c"security.capability") {
        // Who may not remove them could not set any either.
        Err(e)
            if matches!(
                e.raw_os_error(),
                Some(libc::ENODATA | libc::EOPNOTSUPP | libc::EPERM)
            ) =>
        {
            Ok(())
        }
        other => other.op("drop capabilities"),
    }
}

fn is_empty(set: &SetAttr) -> bool {
    set.mode.is_none()
        && set.uid.is_none()
        && set.gid.is_none()
        && set.size.is_none()
        && set.atime.is_none()
        && set.mtime.is_none()
}

pub fn timespec(time: Option<SetTime>) -> libc::timespec {
    let (tv_sec, tv_nsec) = match time {
        None => (0, libc::UTIME_OMIT),
        Some(SetTime::Now) => (0, libc::UTIME_NOW),
        Some(SetTime::At(t)) => (t.sec, i64::from(t.nsec)),
    };
    libc::timespec { tv_sec, tv_nsec }
}

impl Kind {
    /// The `d_type` of this kind.
    pub(super) fn dtype(self) -> u8 {
        match self {
            Kind::File => libc::DT_REG,
            Kind::Dir => libc::DT_DIR,
            Kind::Symlink => libc::DT_LNK,
            Kind::Fifo => libc::DT_FIFO,
            Kind::Socket => libc::DT_SOCK,
            Kind::Char => libc::DT_CHR,
            Kind::Block => libc::DT_BLK,
        }
    }
}
