//! Where objects stand in the upper: a directory's descriptor and one name.
//!
//! Whoever uses a place holds the tree lock, so that no rename moves it meanwhile.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use parking_lot::{RwLockReadGuard, RwLockWriteGuard};

use super::Union;
use super::api::ROOT;
use super::node::Node;
use super::upper::Upper;
use crate::error::{Context, Error, Result};
use crate::sys::file;
use crate::sys::meta::{self, Stat};

/// The tree lock, held: names stay where they are.
#[derive(Debug)]
pub enum Tree<'a> {
    Read(#[expect(dead_code, reason = "held for its drop")] RwLockReadGuard<'a, ()>),
    Write(#[expect(dead_code, reason = "held for its drop")] RwLockWriteGuard<'a, ()>),
}

/// A name in a directory of the upper, or with an empty name the descriptor itself.
#[derive(Clone, Debug)]
pub struct At {
    pub dir: Arc<OwnedFd>,
    pub name: Vec<u8>,
}

impl At {
    /// The object behind a descriptor.
    pub fn of(fd: Arc<OwnedFd>) -> At {
        At {
            dir: fd,
            name: Vec::new(),
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub fn stat(&self) -> Result<Stat> {
        meta::fstatat(self.fd(), &self.name).op("stat upper")
    }

    /// The same of what may be absent; only that is None.
    pub fn stat_if_there(&self) -> Result<Option<Stat>> {
        match meta::fstatat(self.fd(), &self.name) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            other => other.op("stat upper").map(Some),
        }
    }

    /// Opens the object; an `O_PATH` descriptor without a name is opened anew.
    pub fn open(&self, flags: i32) -> Result<OwnedFd> {
        if self.name.is_empty() {
            file::reopen(self.fd(), flags).op("open upper")
        } else {
            file::openat(self.fd(), &self.name, flags, 0).op("open upper")
        }
    }
}

impl Union {
    /// Names stay where they are until the lock is dropped. Never taken twice by one thread.
    pub(super) fn read_tree(&self) -> Tree<'_> {
        Tree::Read(self.tree.read())
    }

    /// Nobody else looks at names until the lock is dropped.
    pub(super) fn write_tree(&self) -> Tree<'_> {
        Tree::Write(self.tree.write())
    }

    /// The upper; EROFS where there is none.
    pub(super) fn upper(&self) -> Result<&Upper> {
        self.upper
            .as_ref()
            .ok_or_else(|| Error::new(libc::EROFS, "change"))
    }

    /// Where the object of a node stands in the upper.
    pub(super) fn place(&self, tree: &Tree<'_>, node: &Node) -> Result<At> {
        let upper = self.upper()?;
        if node.ino == ROOT {
            return Ok(At {
                dir: upper.root.clone(),
                name: Vec::new(),
            });
        }
        let (parent, name) = {
            let state = node.state.read();
            if let Some(fd) = state.orphan() {
                return Ok(At {
                    dir: fd.clone(),
                    name: Vec::new(),
                });
            }
            if state.indexed {
                return Ok(upper.index_place(node.ino));
            }
            let link = node.links(&state).find(|l| l.in_upper);
            if let (None, Some(fd)) = (link, state.spare()) {
                return Ok(At {
                    dir: fd.clone(),
                    name: Vec::new(),
                });
            }
            let link = link.ok_or_else(|| Error::new(libc::ESTALE, "no place in the upper"))?;
            (link.parent.clone(), link.name.to_vec())
        };
        self.child_place(tree, &parent, &name)
    }

    /// Where a child stands or would stand in the upper directory of its parent.
    pub(super) fn child_place(&self, tree: &Tree<'_>, parent: &Node, name: &[u8]) -> Result<At> {
        let stored = self.upper()?.stored(name)?;
        Ok(At {
            dir: self.dir_fd(tree, parent)?,
            name: stored,
        })
    }

    /// An `O_PATH` descriptor of a directory of the upper.
    pub(super) fn dir_fd(&self, _tree: &Tree<'_>, node: &Node) -> Result<Arc<OwnedFd>> {
        let upper = self.upper()?;
        let mut missing: Vec<(u64, Box<[u8]>)> = Vec::new();
        let mut known = upper.kept_dir(node);
        let mut next = node.parent();
        if known.is_none() {
            missing.push((node.ino, name_of(node)?));
        }
        let mut fd = loop {
            if let Some(fd) = known {
                break fd;
            }
            let Some(parent) = next else {
                return Err(Error::new(libc::ESTALE, "no place in the upper"));
            };
            known = upper.kept_dir(&parent);
            if known.is_none() {
                missing.push((parent.ino, name_of(&parent)?));
            }
            next = parent.parent();
        };
        for (ino, name) in missing.into_iter().rev() {
            let stored = upper.stored(&name)?;
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            let opened = file::openat(fd.as_fd(), &stored, flags, 0).op("open upper directory")?;
            fd = Arc::new(opened);
            upper.keep_dir(ino, &fd);
        }
        Ok(fd)
    }
}

fn name_of(node: &Node) -> Result<Box<[u8]>> {
    let state = node.state.read();
    let link = node
        .links(&state)
        .next()
        .ok_or_else(|| Error::new(libc::ENOENT, "removed directory"))?;
    Ok(link.name.into())
}
