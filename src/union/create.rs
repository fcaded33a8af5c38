//! Making objects: `create`, `mkdir`, `mknod`, `symlink`.
//!
//! Where the daemon's own ids are the right ones and nothing stands in the way, that is one system
//! call in the upper. Else the object is finished in the work directory and moved to its place.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Union;
use super::api::{Attr, Caller, Ino, Kind};
use super::copy_up::Want;
use super::lookup::check_name;
use super::lowers::kind_of;
use super::node::{Inherited, Node};
use super::place::At;
use super::table::Used;
use super::upper::Upper;
use super::work::{self, DEFAULT_ACL, Temp};
use crate::error::{Context, Error, Result, best_effort};
use crate::sys::{file, meta, name, xattr};

/// What to make.
#[derive(Clone, Copy, Debug)]
enum What<'a> {
    /// With the flags to open it with.
    File(i32),
    Dir,
    Symlink(&'a [u8]),
    /// A fifo, socket, device or file: `S_IFMT` bits and device number.
    Node(u32, u64),
}

/// An object to be made: what, and with which attributes.
#[derive(Clone, Copy, Debug)]
struct Plan<'a> {
    what: What<'a>,
    mode: u32,
    uid: u32,
    gid: u32,
    /// Stored as a file that stands for it.
    special: Option<(Kind, u64)>,
}

impl Union {
    /// Makes and opens a file: attributes and handle. One that is there is opened, with `O_EXCL` it is
    /// EEXIST. Counts a lookup.
    pub fn create(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        flags: i32,
    ) -> Result<(Attr, u64)> {
        let parent = self.table.get(parent)?;
        loop {
            let what = What::File(self.upper_flags(flags));
            let (node, fh, attr) = match self.make(caller, &parent, name.as_bytes(), mode, what) {
                Ok(New { node, fd, attr }) => {
                    let fh = match fd {
                        Some(fd) => self.opened(node.clone(), flags, fd),
                        None => self.open_node(caller, node.clone(), flags)?,
                    };
                    (node, fh, attr)
                }
                // Somebody else was faster.
                Err(e) if e.errno() == libc::EEXIST && flags & libc::O_EXCL == 0 => {
                    let Some(node) = self.resolve(&parent, name.as_bytes())? else {
                        continue;
                    };
                    let fh = self.open_node(caller, node.clone(), flags)?;
                    (node, fh, None)
                }
                Err(e) => return Err(e),
            };
            let attr = match attr {
                Some(attr) => attr,
                None => self.attr(&node).inspect_err(|_| self.release(fh))?,
            };
            self.table.count(&node);
            return Ok((attr, fh));
        }
    }

    /// S14 tells the mode that it gets. Counts a lookup.
    pub fn mkdir(&self, caller: &Caller, parent: Ino, name: &OsStr, mode: u32) -> Result<Attr> {
        self.make_entry(caller, parent, name, mode, What::Dir)
    }

    /// `mode` holds the kind.
    pub fn mknod(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        rdev: u32,
    ) -> Result<Attr> {
        let kind = if mode & libc::S_IFMT == 0 {
            libc::S_IFREG
        } else {
            mode & libc::S_IFMT
        };
        let what = What::Node(kind, u64::from(rdev));
        self.make_entry(caller, parent, name, mode & 0o7777, what)
    }

    /// The target is stored as it is; the mode is always 0777. Counts a lookup.
    pub fn symlink(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        target: &[u8],
    ) -> Result<Attr> {
        self.make_entry(caller, parent, name, 0o777, What::Symlink(target))
    }

    fn make_entry(
        &self,
        caller: &Caller,
        parent: Ino,
        name: &OsStr,
        mode: u32,
        what: What<'_>,
    ) -> Result<Attr> {
        let parent = self.table.get(parent)?;
        let New { node, attr, .. } = self.make(caller, &parent, name.as_bytes(), mode, what)?;
        let attr = attr.map_or_else(|| self.attr(&node), Ok)?;
        self.table.count(&node);
        Ok(attr)
    }

    fn make(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &[u8],
        mode: u32,
        what: What<'_>,
    ) -> Result<New<'_>> {
        check_name(name)?;
        let listing = self.listing(parent)?;
        self.copy_up(parent, Want::Meta)?;
        let upper = self.upper()?;
        let tree = self.read_tree();
        let dir = At {
            dir: self.dir_fd(&tree, parent)?,
            name: Vec::new(),
        };
        let to = self.child_place(&tree, parent, name)?;
        if parent.state.read().removed {
            return Err(Error::new(libc::ENOENT, "create in a removed directory"));
        }
        let mut index = self.index(&tree, parent)?;
        let held = index.get(name);
        let below = listing.get(name).is_some();
        if held.map_or(below, |h| h.object.is_some()) {
            return Err(Error::new(libc::EEXIST, "create"));
        }
        let hidden = held.is_some();
        let lends = match index.inherited() {
            Some(lends) => lends,
            None => inherited(upper, parent, &dir)?,
        };
        index.set_inherited(lends);
        let maker = self.shown.maker(caller)?;
        let plan = plan(upper, caller, maker, lends, mode, what);
        let plain = !hidden
            && plan.special.is_none()
            && upper.beside.is_none()
            && (!upper.privileged()
                || plan.uid == upper.uid && (plan.gid == upper.gid || lends.gid.is_some()));
        let (stat, fd) = if plain {
            let fd = make_at(&to, &plan)?;
            let undo = |_: &Error| best_effort("undo", work::remove(to.fd(), &to.name));
            (to.stat().inspect_err(undo)?, fd)
        } else {
            let inherit = if lends.acl { Some(&dir) } else { None };
            let opaque = matches!(what, What::Dir) && below;
            let made = self.make_in_work(upper, &plan, inherit, opaque)?;
            (made.at.stat()?, made.publish(&to, &plan)?)
        };
        let node = self.born(upper.number(&stat), name, &stat, plan.special, lends.bare);
        index.set(name, Some(node.kind.dtype()), false);
        index.set_ino(name, node.ino);
        drop(index);
        node.add_link(parent, name, true);
        if hidden && upper.wh_is_mark() {
            upper.clear_wh(to.fd(), name)?;
        }
        let attr = plain.then(|| self.attr_of_new(&node, &stat));
        Ok(New { node, fd, attr })
    }

    fn make_in_work<'a>(
        &self,
        upper: &'a Upper,
        plan: &Plan<'_>,
        inherit: Option<&At>,
        opaque: bool,
    ) -> Result<Made<'a>> {
        let temp = Temp::new(upper);
        let at = match inherit {
            None => temp.place(),
            Some(parent) => {
                // A directory with the parent's default ACL lends it to what is made in it.
                name::mkdirat(temp.fd(), &temp.name, 0o700).op("make temporary")?;
                let acl = xattr::get(parent.fd(), &parent.name, DEFAULT_ACL).op("read ACL")?;
                xattr::set(temp.fd(), &temp.name, DEFAULT_ACL, &acl, 0).op("set ACL")?;
                let nest = temp.place().open(libc::O_PATH | libc::O_DIRECTORY)?;
                At {
                    dir: Arc::new(nest),
                    name: b"made".to_vec(),
                }
            }
        };
        let fd = match plan.special {
            Some((kind, rdev)) => {
                upper.write_special(&at, kind, rdev)?;
                None
            }
            None => make_at(&at, plan)?,
        };
        if upper.beside.is_some() {
            upper.keep_beside(&at, (plan.uid, plan.gid), plan.mode)?;
        } else if upper.privileged() {
            meta::fchownat(at.fd(), &at.name, Some(plan.uid), Some(plan.gid)).op("chown")?;
        }
        if upper.beside.is_none() && !matches!(plan.what, What::Symlink(_)) {
            // chown takes set-id bits away, and mkdir never sets them.
            let mode = at.stat()?.st_mode & 0o7777;
            let wanted = match plan.special {
                Some(_) => plan.mode,
                None => mode | plan.mode & (libc::S_ISUID | libc::S_ISGID | libc::S_ISVTX),
            };
            if mode != wanted {
                meta::fchmodat(at.fd(), &at.name, wanted).op("chmod")?;
            }
        }
        if opaque {
            upper.make_opaque(&at)?;
        }
        Ok(Made {
            temp,
            at,
            nested: inherit.is_some(),
            fd,
        })
    }
}

/// An object that was just made.
struct New<'a> {
    node: Used<'a>,
    fd: Option<OwnedFd>,
    /// None: to be asked for.
    attr: Option<Attr>,
}

/// An object that is finished, and not yet in its place.
struct Made<'a> {
    temp: Temp<'a>,
    at: At,
    /// The temporary is a directory around it.
    nested: bool,
    fd: Option<OwnedFd>,
}

impl Made<'_> {
    fn publish(self, to: &At, plan: &Plan<'_>) -> Result<Option<OwnedFd>> {
        let stands = to.stat_if_there()?.is_some();
        let exchange = stands && matches!(plan.what, What::Dir);
        let flags = if exchange { libc::RENAME_EXCHANGE } else { 0 };
        name::renameat(self.at.fd(), &self.at.name, to.fd(), &to.name, flags).op("publish")?;
        if !self.nested && !exchange {
            self.temp.gone();
        }
        Ok(self.fd)
    }
}

fn plan<'a>(
    upper: &Upper,
    caller: &Caller,
    (uid, mut gid): (u32, u32),
    lends: Inherited,
    mode: u32,
    what: What<'a>,
) -> Plan<'a> {
    let mut mode = if lends.acl {
        mode
    } else {
        mode & !caller.umask
    };
    if let Some(lent) = lends.gid {
        let own = std::mem::replace(&mut gid, lent);
        // As the kernel does itself since 6.0.
        let runs_as_group = mode & (libc::S_ISGID | libc::S_IXGRP) == libc::S_ISGID | libc::S_IXGRP;
        if matches!(what, What::File(_)) && runs_as_group && caller.uid != 0 && own != gid {
            mode &= !libc::S_ISGID;
        }
        if matches!(what, What::Dir) {
            mode |= libc::S_ISGID;
        }
    }
    let special = match what {
        What::Node(kind @ (libc::S_IFCHR | libc::S_IFBLK), rdev) => {
            let whiteout = kind == libc::S_IFCHR && rdev == 0;
            (whiteout || !upper.devices).then(|| (kind_of(kind), rdev))
        }
        _ => None,
    };
    Plan {
        what,
        mode,
        uid,
        gid,
        special,
    }
}

fn make_at(at: &At, plan: &Plan<'_>) -> Result<Option<OwnedFd>> {
    match plan.what {
        What::File(flags) => {
            let flags = flags | libc::O_CREAT | libc::O_EXCL;
            file::openat(at.fd(), &at.name, flags, plan.mode)
                .op("create")
                .map(Some)
        }
        What::Dir => name::mkdirat(at.fd(), &at.name, plan.mode)
            .op("mkdir")
            .map(|()| None),
        What::Symlink(to) => name::symlinkat(to, at.fd(), &at.name)
            .op("symlink")
            .map(|()| None),
        What::Node(kind, rdev) => name::mknodat(at.fd(), &at.name, kind | plan.mode, rdev)
            .op("mknod")
            .map(|()| None),
    }
}

/// What is made in a directory without attributes has none either: a file system or a security module
/// that gives some to what is new has given them to the directory too.
fn inherited(upper: &Upper, node: &Node, dir: &At) -> Result<Inherited> {
    let stat = upper.stat(dir)?;
    let bare = node.bare.load(Ordering::Acquire);
    Ok(Inherited {
        // There are no ACLs where owners are kept beside the files.
        acl: !bare && upper.beside.is_none() && has_default_acl(dir)?,
        bare,
        gid: (stat.st_mode & libc::S_ISGID != 0).then_some(stat.st_gid),
    })
}

fn has_default_acl(dir: &At) -> Result<bool> {
    match xattr::get(dir.fd(), &dir.name, DEFAULT_ACL) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(false),
        Err(e) => Err(e).op("read ACL"),
    }
}
