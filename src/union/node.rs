//! Nodes: the objects of the merged tree, and what is known of each.
//!
//! A node is an object, not a path: rename keeps it, hard links share it, copy-up keeps it and only
//! changes where it stands. Its lower part never changes.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use super::api::{Ino, Kind, ROOT};
use crate::error::{Error, Result};
use crate::layer::LowerDir;
use crate::sys::meta::Stat;

/// Where an object stands in a lower.
#[derive(Debug)]
pub struct LowerAt {
    pub dir: Arc<LowerDir>,
    /// Empty for the root of a layer.
    pub name: Box<[u8]>,
    pub stat: Stat,
}

/// A name of an object.
#[derive(Debug, Clone)]
pub struct Link {
    pub parent: Arc<Node>,
    pub name: Box<[u8]>,
    /// False for a name that only a lower holds, be the object copied up or not.
    pub in_upper: bool,
}

/// What changes about a node, all of it under the tree lock.
#[derive(Debug, Default)]
pub struct State {
    /// The known names; a directory has one, the root none.
    pub links: Vec<Link>,
    /// The object stands in the upper.
    pub upper: bool,
    /// The object has no name any more.
    pub removed: bool,
    /// `O_PATH` descriptor of an upper object without a name.
    pub orphan: Option<Arc<OwnedFd>>,
    /// `O_PATH` descriptor of an upper object none of whose names is known at the moment.
    pub spare: Option<Arc<OwnedFd>>,
    /// Only the metadata were copied up; the data are still the lower's.
    pub metacopy: bool,
    /// The upper object is also held by the index of hard links.
    pub indexed: bool,
    /// What to add to the upper's `st_nlink`, for the index and for names that only lowers hold.
    pub nlink_delta: i64,
}

/// An object of the merged tree.
#[derive(Debug)]
pub struct Node {
    pub ino: Ino,
    pub kind: Kind,
    /// Of a device.
    pub rdev: u64,
    pub lower: Option<LowerAt>,
    pub dir: Option<Dir>,
    pub state: RwLock<State>,
    /// Counts the moves of the data; a handle with another number opens anew.
    pub generation: AtomicU64,
    /// How many handles may write.
    pub writers: AtomicU32,
    /// Known to have no extended attributes that users may see.
    pub bare: AtomicBool,
}

/// What only directories have.
#[derive(Debug, Default)]
pub struct Dir {
    /// The lower directories that contribute, topmost first.
    pub lowers: Vec<Arc<LowerDir>>,
    /// The names in the upper; None until they are wanted.
    pub index: Mutex<Option<Index>>,
    /// Everything in here was born in the upper, so nothing in here asks a lower.
    pub homegrown: AtomicBool,
}

impl Node {
    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    /// The directory part, or ENOTDIR.
    pub fn as_dir(&self) -> Result<&Dir> {
        self.dir
            .as_ref()
            .ok_or_else(|| Error::new(libc::ENOTDIR, "directory"))
    }

    /// Remembers a name.
    pub fn add_link(&self, parent: &Arc<Node>, name: &[u8], in_upper: bool) {
        let mut state = self.state.write();
        if in_upper {
            state.spare = None;
        }
        match state.links.iter_mut().find(|l| l.is(parent, name)) {
            Some(link) => link.in_upper |= in_upper,
            None => state.links.push(Link {
                parent: parent.clone(),
                name: name.into(),
                in_upper,
            }),
        }
    }

    /// Whether this is a directory that is known to be under another name, or to be gone.
    pub fn stands_elsewhere(&self, parent: &Node, name: &[u8]) -> bool {
        if !self.is_dir() {
            return false;
        }
        let state = self.state.read();
        self.ino == ROOT || state.removed || !state.links.iter().all(|l| l.is(parent, name))
    }

    /// Forgets a name.
    pub fn drop_link(&self, parent: &Node, name: &[u8]) {
        self.state.write().links.retain(|l| !l.is(parent, name));
    }

    /// The data or the place of the data changed.
    pub fn moved(&self) {
        self.generation.fetch_add(1, Ordering::Release);
    }

    /// Whether the node answers without asking a lower.
    pub fn is_local(&self) -> bool {
        match &self.dir {
            Some(dir) => dir.homegrown.load(Ordering::Relaxed),
            None => {
                let state = self.state.read();
                state.upper && !state.metacopy
            }
        }
    }
}

impl Link {
    pub fn is(&self, parent: &Node, name: &[u8]) -> bool {
        self.parent.ino == parent.ino && *self.name == *name
    }
}

impl Drop for Node {
    /// Lets a long chain of parents go link by link, not by recursion.
    fn drop(&mut self) {
        let mut chain: Vec<Link> = std::mem::take(&mut self.state.get_mut().links);
        while let Some(link) = chain.pop() {
            if let Some(mut node) = Arc::into_inner(link.parent) {
                chain.append(&mut node.state.get_mut().links);
            }
        }
    }
}

/// What the upper holds under a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// `DT_*` of the object there.
    pub object: Option<u8>,
    /// The name is hidden in the lowers.
    pub whiteout: bool,
    /// Tells one object under the name from the next, and orders the names of a listing.
    pub seq: u64,
}

/// The names of one directory of the upper, as users know them.
#[derive(Debug, Default)]
pub struct Index {
    names: HashMap<Box<[u8]>, Held>,
    order: BTreeMap<u64, Box<[u8]>>,
    next: u64,
    /// Whether the directory has a default ACL; None: not asked yet.
    pub default_acl: Option<bool>,
}

impl Index {
    pub fn get(&self, name: &[u8]) -> Option<Held> {
        self.names.get(name).copied()
    }

    /// Records what stands under the name; an object that was not there gets a new number.
    pub fn set(&mut self, name: &[u8], object: Option<u8>, whiteout: bool) {
        if let Some(old) = self.names.get_mut(name) {
            if object.is_some() && old.object.is_some() {
                (old.object, old.whiteout) = (object, whiteout);
                return;
            }
            self.order.remove(&old.seq);
        }
        if object.is_none() && !whiteout {
            self.names.remove(name);
            return;
        }
        self.next += 1;
        self.names.insert(
            name.into(),
            Held {
                object,
                whiteout,
                seq: self.next,
            },
        );
        self.order.insert(self.next, name.into());
    }

    /// The names after a number, oldest first.
    pub fn after(&self, seq: u64) -> impl Iterator<Item = (u64, &[u8], Held)> {
        self.order
            .range(seq.saturating_add(1)..)
            .filter_map(|(seq, name)| Some((*seq, &**name, *self.names.get(name)?)))
    }

    pub fn has_objects(&self) -> bool {
        self.names.values().any(|h| h.object.is_some())
    }
}
