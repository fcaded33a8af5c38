//! Extended attributes. Those of the unions are not the users': they are hidden, and a user's own of
//! such a name is stored under another.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use super::Union;
use super::api::{Caller, Ino};
use super::copy_up::Want;
use super::marks;
use super::node::Node;
use crate::error::{Context, Error, Result};
use crate::layer::dialect;
use crate::layer::overrides::Overrides;
use crate::sys::{meta, xattr};

const ACCESS_ACL: &[u8] = b"system.posix_acl_access";
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

fn is_acl(key: &[u8]) -> bool {
    key == ACCESS_ACL || key == DEFAULT_ACL
}

impl Union {
    /// The name under which an attribute of users is stored; EOPNOTSUPP for ACLs where there are none.
    fn stored(&self, key: &OsStr) -> Result<CString> {
        if self.shown.no_acls && is_acl(key.as_bytes()) {
            return Err(Error::new(libc::EOPNOTSUPP, "ACL"));
        }
        if self.is_kept(key.as_bytes()) {
            return Err(Error::new(libc::EPERM, "xattr that keeps owner and mode"));
        }
        CString::new(marks::escape(key.as_bytes()))
            .map_err(|_| Error::new(libc::EINVAL, "xattr name"))
    }

    /// ENODATA for an absent one, for one that CVMFS makes up (S35), and for ACLs where there are none: a
    /// kernel that checks them takes EOPNOTSUPP for its answer to the access.
    pub fn getxattr(&self, ino: Ino, key: &OsStr) -> Result<Vec<u8>> {
        let absent = || Error::new(libc::ENODATA, "get xattr");
        if self.shown.no_acls && is_acl(key.as_bytes()) || self.is_kept(key.as_bytes()) {
            return Err(absent());
        }
        let (node, name) = (self.table.get(ino)?, self.stored(key)?);
        if node.bare.load(Ordering::Acquire) {
            return Err(absent());
        }
        if self.keys(&node)?.is_empty() {
            return Err(absent());
        }
        let upper = node.state.read().upper;
        match &node.lower {
            Some(lower) if !upper => {
                let magic = dialect::is_cvmfs_magic(key.as_bytes());
                if magic && self.lowers.layer(&lower.dir).is_some_and(|l| l.cvmfs) {
                    return Err(absent());
                }
                self.lowers.get_xattr(&lower.dir, &node.name, &name)
            }
            _ => {
                let tree = self.read_tree();
                let at = self.place(&tree, &node)?;
                xattr::get(at.fd(), &at.name, &name).op("get xattr")
            }
        }
    }

    /// The names, each ended by a NUL.
    pub fn listxattr(&self, ino: Ino) -> Result<Vec<u8>> {
        let node = self.table.get(ino)?;
        let mut names = Vec::new();
        for key in self.keys(&node)? {
            if self.shown.no_acls && is_acl(&key) {
                continue;
            }
            names.extend_from_slice(&key);
            names.push(0);
        }
        Ok(names)
    }

    /// The names that users see; that there are none is remembered.
    fn keys(&self, node: &Node) -> Result<Vec<Vec<u8>>> {
        if node.bare.load(Ordering::Acquire) {
            return Ok(Vec::new());
        }
        let upper = node.state.read().upper;
        let raw = match &node.lower {
            Some(lower) if !upper => self.lowers.list_xattrs(&lower.dir, &node.name)?,
            _ => {
                let tree = self.read_tree();
                let at = self.place(&tree, node)?;
                let list = match xattr::list(at.fd(), &at.name) {
                    Err(e) if marks::unsupported(&e) => Vec::new(),
                    other => other.op("list xattrs")?,
                };
                let keys: Vec<Vec<u8>> = list
                    .split(|b| *b == 0)
                    .filter(|k| !k.is_empty())
                    .filter(|k| !self.is_kept(k))
                    .filter_map(marks::unescape)
                    .collect();
                // Under the tree lock, so no attribute is set meanwhile.
                node.bare.store(keys.is_empty(), Ordering::Release);
                return Ok(keys);
            }
        };
        let keys: Vec<Vec<u8>> = raw.iter().filter_map(|k| marks::unescape(k)).collect();
        let _tree = self.read_tree();
        if !node.state.read().upper {
            node.bare.store(keys.is_empty(), Ordering::Release);
        }
        Ok(keys)
    }

    /// Whether the upper keeps owners and modes in an attribute of this name, which is no user's. That of
    /// fuse-overlayfs for users is a union's name as it is, and so stored under another.
    fn is_kept(&self, key: &[u8]) -> bool {
        let beside = self.upper.as_ref().and_then(|upper| upper.beside);
        beside.is_some_and(|kept| kept != Overrides::of_user() && kept.key().to_bytes() == key)
    }

    /// `flags`: `XATTR_CREATE`, `XATTR_REPLACE`.
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: Ino,
        key: &OsStr,
        value: &[u8],
        flags: i32,
    ) -> Result<()> {
        let (node, name) = (self.table.get(ino)?, self.stored(key)?);
        self.copy_up(&node, Want::Meta)?;
        let _flight = self.hold_metadata(&node);
        let tree = self.write_tree();
        let at = self.place(&tree, &node)?;
        node.bare.store(false, Ordering::Release);
        xattr::set(at.fd(), &at.name, &name, value, flags).op("set xattr")?;
        if key.as_bytes() == ACCESS_ACL && caller.uid != 0 {
            let stat = at.stat()?;
            if stat.st_mode & libc::S_ISGID != 0
                && self.shown.gids.shown(stat.st_gid) != caller.gid
                && !node.is_dir()
            {
                let mode = stat.st_mode & 0o7777 & !libc::S_ISGID;
                meta::fchmodat(at.fd(), &at.name, mode).op("drop set-gid bit")?;
            }
        }
        node.attributes_changed();
        Ok(())
    }

    /// ENODATA for an absent one, without a copy-up; for ACLs the upper's file system decides.
    pub fn removexattr(&self, ino: Ino, key: &OsStr) -> Result<()> {
        let (node, name) = (self.table.get(ino)?, self.stored(key)?);
        // A file of a lower is not copied up for an attribute it does not have.
        if !is_acl(key.as_bytes()) && !self.keys(&node)?.iter().any(|k| k == key.as_bytes()) {
            return Err(Error::new(libc::ENODATA, "remove xattr"));
        }
        self.copy_up(&node, Want::Meta)?;
        let _flight = self.hold_metadata(&node);
        let tree = self.write_tree();
        let at = self.place(&tree, &node)?;
        let removed = xattr::remove(at.fd(), &at.name, &name).op("remove xattr");
        node.attributes_changed();
        removed
    }
}
