//! The requests, one method each.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle as Fh, Filesystem, FopenFlags,
    INodeNo as Node, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags,
    PollNotifier, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::convert;
use super::{
    GENERATION, Spot, UnionFs, caller, changing, handle, kept, looking_up, more, negotiate,
    opening, passing, reading, reply_attr, reply_empty, reply_entry, reply_xattr, slow, stats,
    turned_away,
};
use crate::union::Union;
use crate::union::api::{DirEntry, SetAttr};

/// A listing is kept, and stays valid over opens.
const DIR_FLAGS: FopenFlags = FopenFlags::FOPEN_CACHE_DIR.union(FopenFlags::FOPEN_KEEP_CACHE);

/// The most one copy request moves, so that it ends in reasonable time.
const MAX_COPY: u64 = 1 << 30;

impl Filesystem for UnionFs {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config, self.options.acls);
        self.choose(config);
        Ok(())
    }

    fn destroy(&mut self) {
        if !self.pool.drain(super::LAST_WAIT) {
            tracing::warn!("unmounted while requests still wait for a layer");
        }
    }

    fn lookup(&self, _: &Request, parent: Node, name: &OsStr, reply: ReplyEntry) {
        let lane = looking_up(parent.0, name);
        let name = name.to_owned();
        let (modes, timeout) = (Arc::clone(&self.modes), self.options.timeout);
        let pages = Arc::clone(&self.pages);
        self.run("lookup", lane, move |union| {
            match union.lookup(parent.0, &name) {
                Ok(Some(mut attr)) => {
                    attr.ino = modes.looked_up(attr.ino);
                    // The number of a twin is not what is shown: that is asked for by GETATTR.
                    let of_attr = passing(&modes, attr.ino, timeout);
                    let attr = convert::file_attr(&attr);
                    reply.entry_with_ttls(&of_attr, &timeout, &attr, GENERATION);
                    pages.drop_listings(union);
                }
                Ok(None) => reply.entry(&timeout, &convert::absent(), GENERATION),
                Err(e) => reply.error(convert::errno("lookup", parent.0, &e)),
            }
        });
    }

    fn forget(&self, _: &Request, ino: Node, nlookup: u64) {
        self.here("forget", || {
            let ino = self.modes.forget(ino.0, nlookup);
            self.union.forget(ino, nlookup);
        });
        self.tidy();
    }

    fn getattr(&self, _: &Request, ino: Node, fh: Option<Fh>, reply: ReplyAttr) {
        let timeout = self.timeout_of(ino.0);
        let ino = self.object(ino);
        self.run("getattr", reading(ino), move |union| {
            let result = union.getattr(ino, fh.map(|fh| fh.0));
            reply_attr("getattr", ino, result, timeout, reply);
        });
    }

    fn setattr(
        &self,
        req: &Request,
        ino: Node,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _: Option<SystemTime>,
        fh: Option<Fh>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let caller = caller(req, 0);
        let change = SetAttr {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
        };
        let opening = opening(req, ino.0, libc::O_WRONLY);
        let (modes, pages) = (Arc::clone(&self.modes), Arc::clone(&self.pages));
        let ino = self.object(ino);
        let timeout = self.options.timeout;
        self.run("setattr", changing([(ino, None)]), move |union| {
            if change.size.is_some()
                && fh.is_none()
                && !union.is_read_only()
                && let Err(away) = modes.may_truncate(opening)
            {
                pages.drop_attributes(opening.node);
                return reply.error(turned_away(away));
            }
            let result = union.setattr(&caller, ino, fh.map(|fh| fh.0), &change);
            let timeout = passing(&modes, opening.node, timeout);
            reply_attr("setattr", ino, result, timeout, reply);
        });
    }

    fn readlink(&self, _: &Request, ino: Node, reply: ReplyData) {
        self.run("readlink", reading(ino.0), move |union| {
            match union.readlink(ino.0) {
                Ok(target) => reply.data(&target),
                Err(e) => reply.error(convert::errno("readlink", ino.0, &e)),
            }
        });
    }

    fn mknod(
        &self,
        req: &Request,
        parent: Node,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let lane = changing([(parent.0, Some(name))]);
        let (caller, name, rdev) = (caller(req, umask), name.to_owned(), convert::device(rdev));
        let timeout = self.options.timeout;
        self.run("mknod", lane, move |union| {
            let result = union.mknod(&caller, parent.0, &name, mode, rdev);
            reply_entry("mknod", parent.0, result, timeout, reply);
        });
    }

    fn mkdir(
        &self,
        req: &Request,
        parent: Node,
        name: &OsStr,
        mode: u32,
        umask: u32,
        reply: ReplyEntry,
    ) {
        let lane = changing([(parent.0, Some(name))]);
        let (caller, name) = (caller(req, umask), name.to_owned());
        let timeout = self.options.timeout;
        self.run("mkdir", lane, move |union| {
            let result = union.mkdir(&caller, parent.0, &name, mode & 0o7777);
            reply_entry("mkdir", parent.0, result, timeout, reply);
        });
    }

    fn symlink(
        &self,
        req: &Request,
        parent: Node,
        link_name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let lane = changing([(parent.0, Some(link_name))]);
        let (caller, name, target) = (caller(req, 0), link_name.to_owned(), target.to_owned());
        let timeout = self.options.timeout;
        self.run("symlink", lane, move |union| {
            let target = target.as_os_str().as_bytes();
            let result = union.symlink(&caller, parent.0, &name, target);
            reply_entry("symlink", parent.0, result, timeout, reply);
        });
    }

    fn link(&self, _: &Request, ino: Node, to: Node, to_name: &OsStr, reply: ReplyEntry) {
        let ino = self.object(ino);
        let lane = changing([(ino, None), (to.0, Some(to_name))]);
        let name = to_name.to_owned();
        let timeout = self.timeout_of(ino);
        self.run("link", lane, move |union| {
            let result = union.link(ino, to.0, &name);
            reply_entry("link", ino, result, timeout, reply);
        });
    }

    fn unlink(&self, _: &Request, parent: Node, name: &OsStr, reply: ReplyEmpty) {
        let lane = changing([(parent.0, Some(name))]);
        let name = name.to_owned();
        self.run("unlink", lane, move |union| {
            reply_empty("unlink", parent.0, union.unlink(parent.0, &name), reply);
        });
    }

    fn rmdir(&self, _: &Request, parent: Node, name: &OsStr, reply: ReplyEmpty) {
        let lane = changing([(parent.0, Some(name))]);
        let name = name.to_owned();
        self.run("rmdir", lane, move |union| {
            reply_empty("rmdir", parent.0, union.rmdir(parent.0, &name), reply);
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: Node,
        name: &OsStr,
        to: Node,
        to_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(kind) = convert::rename_kind(flags) else {
            return self.here("rename", || reply.error(Errno::EINVAL));
        };
        let lane = changing([(parent.0, Some(name)), (to.0, Some(to_name))]);
        let (name, to_name) = (name.to_owned(), to_name.to_owned());
        self.run("rename", lane, move |union| {
            let result = union.rename(parent.0, &name, to.0, &to_name, kind);
            reply_empty("rename", parent.0, result, reply);
        });
    }

    fn create(
        &self,
        req: &Request,
        parent: Node,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.create_file(req, parent.0, name, (mode & 0o7777, umask), flags, reply);
    }

    fn open(&self, req: &Request, ino: Node, flags: OpenFlags, reply: ReplyOpen) {
        self.open_file(req, ino, flags.0, reply);
    }

    fn read(
        &self,
        _: &Request,
        ino: Node,
        fh: Fh,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let ino = self.object(ino);
        self.run("read", reading(ino), move |union| {
            match union.read(handle(ino, fh), offset, size as usize) {
                Ok(data) => reply.data(&data),
                Err(e) => reply.error(convert::errno("read", ino, &e)),
            }
        });
    }

    fn write(
        &self,
        _: &Request,
        ino: Node,
        fh: Fh,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let ino = self.object(ino);
        let kill_priv = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let pages = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let fh = handle(ino, fh);
        let write = move |union: &Union, data: &[u8]| {
            let written = if pages {
                union.write_pages(fh, offset, data, kill_priv)
            } else {
                union.write(fh, offset, data, kill_priv)
            };
            match written {
                Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
                Err(e) => reply.error(convert::errno("write", ino, &e)),
            }
        };
        // The data lies in the receiver's buffer, which the next request overwrites.
        match self.spot(changing([(ino, None)])) {
            Spot::Here(_busy) => self.here("write", || write(&self.union, data)),
            Spot::Pool(lane) => {
                let data = data.to_vec();
                self.submit("write", lane, move |union| write(union, &data));
            }
        }
    }

    /// Nothing is to be done on close; the kernel asks once and never again.
    fn flush(&self, _: &Request, _: Node, _: Fh, _: LockOwner, reply: ReplyEmpty) {
        self.here("flush", || reply.error(Errno::ENOSYS));
    }

    fn release(
        &self,
        _: &Request,
        ino: Node,
        fh: Fh,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let modes = Arc::clone(&self.modes);
        let (node, ino) = (ino.0, self.object(ino));
        self.run("release", reading(ino), move |union| {
            modes.release(node);
            union.release(fh.0);
            reply.ok();
        });
    }

    fn fsync(&self, _: &Request, ino: Node, fh: Fh, datasync: bool, reply: ReplyEmpty) {
        let ino = self.object(ino);
        // Waits for the disk, so never here.
        self.run("fsync", slow(ino), move |union| {
            reply_empty("fsync", ino, union.fsync(handle(ino, fh), datasync), reply);
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: Node,
        fh: Fh,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let ino = self.object(ino);
        self.run("fallocate", slow(ino), move |union| {
            reply_empty(
                "fallocate",
                ino,
                union.fallocate(handle(ino, fh), offset, length, mode),
                reply,
            );
        });
    }

    fn lseek(&self, _: &Request, ino: Node, fh: Fh, offset: i64, whence: i32, reply: ReplyLseek) {
        let ino = self.object(ino);
        if self.writeback {
            // Only the kernel knows what it has collected, and where the file ends.
            return self.here("lseek", || reply.error(Errno::ENOSYS));
        }
        self.run("lseek", reading(ino), move |union| {
            match union.lseek(handle(ino, fh), offset, whence) {
                Ok(offset) => reply.offset(offset),
                Err(e) => reply.error(convert::errno("lseek", ino, &e)),
            }
        });
    }

    fn copy_file_range(
        &self,
        _: &Request,
        ino_in: Node,
        fh_in: Fh,
        offset_in: u64,
        ino_out: Node,
        fh_out: Fh,
        offset_out: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if !flags.is_empty() {
            return self.here("copy_file_range", || reply.error(Errno::EINVAL));
        }
        let (ino_in, ino_out) = (self.object(ino_in), self.object(ino_out));
        let len = len.min(MAX_COPY) as usize;
        let both = [(ino_in, None), (ino_out, None)];
        let lane = move |union: &Union| changing(both)(union).or_else(|| slow(ino_in)(union));
        let (fh_in, fh_out) = (handle(ino_in, fh_in), handle(ino_out, fh_out));
        self.run("copy_file_range", lane, move |union| {
            match union.copy_file_range(fh_in, offset_in, fh_out, offset_out, len) {
                Ok(count) => reply.written(u32::try_from(count).unwrap_or(u32::MAX)),
                Err(e) => reply.error(convert::errno("copy_file_range", ino_in, &e)),
            }
        });
    }

    fn ioctl(
        &self,
        req: &Request,
        ino: Node,
        _: Fh,
        _: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        out_size: u32,
        reply: ReplyIoctl,
    ) {
        let ino = self.object(ino);
        if cmd == stats::ASK {
            return self.here("ioctl", || {
                self.requests
                    .tell(req, ino, &self.union, in_data, out_size, reply);
            });
        }
        self.inode_flags(ino, cmd, in_data, out_size, reply);
    }

    /// Listings need no handle. A kernel that can do without asks once and never again, and takes
    /// listings as kept and valid over opens.
    fn opendir(&self, _: &Request, _: Node, _: OpenFlags, reply: ReplyOpen) {
        self.here("opendir", || match self.opens.dirs {
            true => reply.opened(Fh(0), kept(DIR_FLAGS, self.options.timeout)),
            false => reply.error(Errno::ENOSYS),
        });
    }

    fn readdir(&self, _: &Request, ino: Node, _: Fh, offset: u64, reply: ReplyDirectory) {
        self.run("readdir", reading(ino.0), move |union| {
            more::readdir(union, ino.0, offset, reply);
        });
    }

    fn readdirplus(&self, _: &Request, ino: Node, _: Fh, offset: u64, reply: ReplyDirectoryPlus) {
        let names_first = self.names_first;
        let (modes, timeout) = (Arc::clone(&self.modes), self.options.timeout);
        self.run("readdirplus", reading(ino.0), move |union| {
            let timeout = |entry: &DirEntry<'_>| match entry.partial {
                true => Duration::ZERO,
                false => passing(&modes, entry.ino, timeout),
            };
            more::readdirplus(union, ino.0, offset, names_first, timeout, reply);
        });
    }

    fn releasedir(&self, _: &Request, _: Node, _: Fh, _: OpenFlags, reply: ReplyEmpty) {
        self.here("releasedir", || reply.ok());
    }

    fn fsyncdir(&self, _: &Request, ino: Node, _: Fh, datasync: bool, reply: ReplyEmpty) {
        self.run("fsyncdir", slow(ino.0), move |union| {
            reply_empty("fsyncdir", ino.0, union.fsyncdir(ino.0, datasync), reply);
        });
    }

    fn statfs(&self, _: &Request, ino: Node, reply: ReplyStatfs) {
        let ino = self.object(ino);
        self.run("statfs", reading(ino), move |union| match union.statfs() {
            Ok(s) => reply.statfs(
                s.blocks, s.bfree, s.bavail, s.files, s.ffree, s.bsize, s.namelen, s.frsize,
            ),
            Err(e) => reply.error(convert::errno("statfs", ino, &e)),
        });
    }

    fn getxattr(&self, _: &Request, ino: Node, name: &OsStr, size: u32, reply: ReplyXattr) {
        let ino = self.object(ino);
        let name = name.to_owned();
        self.run("getxattr", reading(ino), move |union| {
            reply_xattr("getxattr", ino, union.getxattr(ino, &name), size, reply);
        });
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: Node,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let ino = self.object(ino);
        let (caller, name, value) = (caller(req, 0), name.to_owned(), value.to_vec());
        self.run("setxattr", changing([(ino, None)]), move |union| {
            let result = union.setxattr(&caller, ino, &name, &value, flags);
            reply_empty("setxattr", ino, result, reply);
        });
    }

    fn listxattr(&self, _: &Request, ino: Node, size: u32, reply: ReplyXattr) {
        let ino = self.object(ino);
        self.run("listxattr", reading(ino), move |union| {
            reply_xattr("listxattr", ino, union.listxattr(ino), size, reply);
        });
    }

    fn removexattr(&self, _: &Request, ino: Node, name: &OsStr, reply: ReplyEmpty) {
        let ino = self.object(ino);
        let name = name.to_owned();
        self.run("removexattr", changing([(ino, None)]), move |union| {
            reply_empty("removexattr", ino, union.removexattr(ino, &name), reply);
        });
    }

    /// The kernel checks permissions itself, and never asks again.
    fn access(&self, _: &Request, _: Node, _: AccessFlags, reply: ReplyEmpty) {
        self.here("other", || reply.error(Errno::ENOSYS));
    }

    /// Files are always ready, and the kernel knows after the first answer.
    fn poll(
        &self,
        _: &Request,
        _: Node,
        _: Fh,
        _: PollNotifier,
        _: PollEvents,
        _: PollFlags,
        reply: ReplyPoll,
    ) {
        self.here("other", || reply.error(Errno::ENOSYS));
    }
}
