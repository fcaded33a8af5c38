//! Hard links, and reading symbolic ones.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

use super::Union;
use super::api::{Attr, Ino, Kind};
use super::copy_up::Want;
use super::lookup::check_name;
use super::work::Temp;
use crate::error::{Context, Error, Result};
use crate::sys::name;

impl Union {
    /// Gives an object another name.
    pub fn link(&self, ino: Ino, new_parent: Ino, new_name: &OsStr) -> Result<Attr> {
        let (node, parent) = (self.table.get(ino)?, self.table.get(new_parent)?);
        let new_name = new_name.as_bytes();
        check_name(new_name)?;
        if node.is_dir() {
            return Err(Error::new(libc::EPERM, "link a directory"));
        }
        let listing = self.listing(&parent)?;
        self.copy_up(&node, Want::Meta)?;
        self.copy_up(&parent, Want::Meta)?;
        let upper = self.upper()?;
        {
            let tree = self.write_tree();
            if node.state.read().removed {
                return Err(Error::new(libc::ENOENT, "link a removed file"));
            }
            let held = self.held(&tree, &parent, new_name)?;
            if held.map_or(listing.get(new_name).is_some(), |h| h.object.is_some()) {
                return Err(Error::new(libc::EEXIST, "link"));
            }
            node.state.write().single = false;
            let from = self.place(&tree, &node)?;
            let to = self.child_place(&tree, &parent, new_name)?;
            self.name_data(&node, &from)?;
            if held.is_some() && to.stat_if_there()?.is_some() {
                let mut temp = Temp::new(upper);
                name::linkat(from.fd(), &from.name, temp.fd(), &temp.name).op("link")?;
                temp.publish(&to, 0)?;
            } else {
                name::linkat(from.fd(), &from.name, to.fd(), &to.name).op("link")?;
            }
            let mut index = self.index(&tree, &parent)?;
            index.set(new_name, Some(node.kind.dtype()), false);
            index.set_ino(new_name, node.ino);
            drop(index);
            node.add_link(&parent, new_name, true);
            if !node.is_local() {
                parent.as_dir()?.homegrown.store(false, Ordering::Relaxed);
            }
            if upper.wh_is_mark() {
                upper.clear_wh(to.fd(), new_name)?;
            }
        }
        let attr = self.attr(&node)?;
        self.table.count(&node);
        Ok(attr)
    }

    /// The target of a symbolic link.
    pub fn readlink(&self, ino: Ino) -> Result<Vec<u8>> {
        let node = self.table.get(ino)?;
        if node.kind != Kind::Symlink {
            return Err(Error::new(libc::EINVAL, "read link"));
        }
        let upper = node.state.read().upper;
        match node.lower_at() {
            Some(lower) if !upper => self.read_lower_link(&lower),
            _ => {
                let tree = self.read_tree();
                let at = self.place(&tree, &node)?;
                name::readlinkat(at.fd(), &at.name).op("read link")
            }
        }
    }
}
