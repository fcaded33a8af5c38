//! Nodes: the objects of the merged tree, and what is known of each.
//!
//! A node is an object, not a path: rename keeps it, hard links share it, copy-up keeps it and only
//! changes where it stands. Its lower part never changes.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};

use parking_lot::Mutex;

use super::api::{Ino, Kind, ROOT};
use crate::error::{Error, Result};
use crate::layer::{Attrs, LowerDir, Name};
use crate::sync::{AtomicU32, RwLock};
use crate::sys::meta::Stat;

/// An object of a lower: where it stands, and what it is.
#[derive(Debug)]
pub struct LowerAt {
    pub dir: Arc<LowerDir>,
    /// Empty for the root of a layer.
    pub name: Name,
    pub stat: Stat,
}

/// The same as a node keeps it, which has the name.
#[derive(Debug)]
pub struct Lower {
    pub dir: Arc<LowerDir>,
    attrs: Attrs,
}

/// A name of an object.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    pub parent: &'a Arc<Node>,
    pub name: &'a [u8],
    /// False for a name that only a lower holds, be the object copied up or not.
    pub in_upper: bool,
}

/// What changes about a node, all of it under the tree lock.
#[derive(Debug, Default)]
pub struct State {
    /// Of the one link of a node that stands where it was found; its name is the node's own.
    parent: Option<Arc<Node>>,
    in_upper: bool,
    /// What few nodes have.
    rare: Option<Box<Rare>>,
    /// The object stands in the upper.
    pub upper: bool,
    /// The object has no name any more.
    pub removed: bool,
    /// Only the metadata were copied up; the data are still the lower's.
    pub metacopy: bool,
    /// The upper object is also held by the index of hard links.
    pub indexed: bool,
    /// The upper object is known to have one name only; it is no directory.
    pub single: bool,
}

#[derive(Debug, Default)]
struct Rare {
    /// The links, oldest first, of a node that was moved or has several.
    links: Vec<OwnLink>,
    orphan: Option<Arc<OwnedFd>>,
    spare: Option<Arc<OwnedFd>>,
    nlink_delta: i64,
    rdev: u64,
    writers: u32,
}

#[derive(Debug)]
struct OwnLink {
    parent: Arc<Node>,
    name: Box<[u8]>,
    in_upper: bool,
}

/// An object of the merged tree. There may be millions: a test bounds the size.
#[derive(Debug)]
pub struct Node {
    pub ino: Ino,
    pub kind: Kind,
    /// Known to have no extended attributes that users may see.
    pub bare: AtomicBool,
    /// The kernel has been sent data of the lower's file.
    pub was_read: AtomicBool,
    /// Counts the moves of the data, which are few; a handle with another number opens anew.
    generation: AtomicU16,
    /// How often the kernel looked it up; changed by the table only.
    pub lookups: AtomicU32,
    /// Its name in the lower, of others the one it was found under.
    pub name: Name,
    pub lower: Option<Lower>,
    pub dir: Option<Box<Dir>>,
    pub state: RwLock<State>,
}

/// What only directories have.
#[derive(Debug, Default)]
pub struct Dir {
    /// The lower directories that contribute, topmost first.
    pub lowers: Vec<Arc<LowerDir>>,
    /// The names in the upper; None until they are wanted.
    pub index: Mutex<Option<Index>>,
    /// How many names its one layer was asked for in vain.
    pub misses: AtomicU32,
    /// When names of it were handed out last without attributes.
    pub listed: AtomicU32,
    /// How many names that were, in the last listing, and how many of them were looked up since.
    pub alone: AtomicU32,
    pub wanted: AtomicU32,
    /// Everything in here was born in the upper, so nothing in here asks a lower.
    pub homegrown: AtomicBool,
}

impl Lower {
    /// What the layer says of the object.
    pub fn stat(&self) -> Stat {
        self.attrs.stat()
    }

    /// Whether the layer has several names of the object.
    pub fn is_shared(&self) -> bool {
        self.attrs.nlink() > 1
    }
}

impl State {
    /// Of an object without names; `upper`: it stands there.
    pub fn new(upper: bool) -> State {
        State {
            upper,
            ..State::default()
        }
    }

    /// The directory of the oldest known name.
    pub fn parent(&self) -> Option<&Arc<Node>> {
        let first = || self.rare.as_ref()?.links.first().map(|l| &l.parent);
        self.parent.as_ref().or_else(first)
    }

    /// `O_PATH` descriptor of an upper object without a name.
    pub fn orphan(&self) -> Option<&Arc<OwnedFd>> {
        self.rare.as_ref()?.orphan.as_ref()
    }

    /// `O_PATH` descriptor of an upper object none of whose names is known at the moment.
    pub fn spare(&self) -> Option<&Arc<OwnedFd>> {
        self.rare.as_ref()?.spare.as_ref()
    }

    /// What to add to the upper's `st_nlink`, for the index and for names that only lowers hold.
    pub fn nlink_delta(&self) -> i64 {
        self.rare.as_ref().map_or(0, |r| r.nlink_delta)
    }

    /// Sets the descriptor of an object without a name.
    pub fn set_orphan(&mut self, fd: Option<OwnedFd>) {
        let fd = fd.map(Arc::new);
        self.set(fd.is_none(), |rare| rare.orphan = fd);
    }

    /// Sets the descriptor of an object without a known name.
    pub fn set_spare(&mut self, fd: Option<OwnedFd>) {
        let fd = fd.map(Arc::new);
        self.set(fd.is_none(), |rare| rare.spare = fd);
    }

    /// Sets what is to be added to `st_nlink`.
    pub fn set_nlink_delta(&mut self, delta: i64) {
        self.set(delta == 0, |rare| rare.nlink_delta = delta);
    }

    /// Sets the number of a device.
    pub fn set_rdev(&mut self, rdev: u64) {
        self.set(rdev == 0, |rare| rare.rdev = rdev);
    }

    /// Changes something of the rare; `usual`: to what it is for a node without.
    fn set(&mut self, usual: bool, change: impl FnOnce(&mut Rare)) {
        match (&mut self.rare, usual) {
            (None, true) => {}
            (rare, _) => change(rare.get_or_insert_default()),
        }
        self.rare = self.rare.take().filter(|rare| !rare.is_usual());
    }

    /// The parents, which their children hold.
    pub fn parents(&self) -> impl Iterator<Item = &Arc<Node>> {
        let links = self.rare.as_ref().map_or(&[][..], |r| &r.links);
        self.parent.iter().chain(links.iter().map(|l| &l.parent))
    }

    fn take_parents(&mut self) -> Vec<Arc<Node>> {
        let links = self.rare.take().map_or_else(Vec::new, |r| r.links);
        let links = links.into_iter().map(|l| l.parent);
        self.parent.take().into_iter().chain(links).collect()
    }
}

impl Rare {
    fn is_usual(&self) -> bool {
        self.links.is_empty()
            && self.orphan.is_none()
            && self.spare.is_none()
            && (self.nlink_delta, self.rdev, self.writers) == (0, 0, 0)
    }
}

impl Node {
    /// A node without links. `name`: what it was looked up by.
    pub fn new(
        ino: Ino,
        (kind, rdev): (Kind, u64),
        name: &[u8],
        lower: Option<LowerAt>,
        dirs: Vec<Arc<LowerDir>>,
        mut state: State,
        bare: bool,
    ) -> Node {
        if matches!(kind, Kind::Char | Kind::Block) {
            state.set_rdev(rdev);
        }
        let (name, lower) = match lower {
            None => (name.into(), None),
            Some(LowerAt { dir, name, stat }) => {
                let attrs = Attrs::from(&stat);
                (name, Some(Lower { dir, attrs }))
            }
        };
        Node {
            ino,
            kind,
            bare: AtomicBool::new(bare),
            was_read: AtomicBool::new(false),
            generation: AtomicU16::new(0),
            lookups: AtomicU32::new(0),
            name,
            lower,
            dir: (kind == Kind::Dir).then(|| {
                Box::new(Dir {
                    lowers: dirs,
                    ..Dir::default()
                })
            }),
            state: RwLock::new(state),
        }
    }

    pub fn is_dir(&self) -> bool {
        self.kind == Kind::Dir
    }

    /// The directory part, or ENOTDIR.
    pub fn as_dir(&self) -> Result<&Dir> {
        self.dir
            .as_deref()
            .ok_or_else(|| Error::new(libc::ENOTDIR, "directory"))
    }

    /// The object in the lower.
    pub fn lower_at(&self) -> Option<LowerAt> {
        self.lower.as_ref().map(|lower| LowerAt {
            dir: lower.dir.clone(),
            name: self.name.clone(),
            stat: lower.stat(),
        })
    }

    /// The device number, 0 of what is no device.
    pub fn rdev(&self) -> u64 {
        self.state.read().rare.as_ref().map_or(0, |r| r.rdev)
    }

    /// The known names, oldest first; a directory has one, the root none.
    pub fn links<'a>(&'a self, state: &'a State) -> impl Iterator<Item = Link<'a>> {
        let own = state.parent.as_ref().map(|parent| Link {
            parent,
            name: &self.name,
            in_upper: state.in_upper,
        });
        let links = state.rare.as_ref().map_or(&[][..], |r| &r.links);
        own.into_iter().chain(links.iter().map(|l| Link {
            parent: &l.parent,
            name: &l.name,
            in_upper: l.in_upper,
        }))
    }

    /// The directory of the oldest known name.
    pub fn parent(&self) -> Option<Arc<Node>> {
        self.state.read().parent().cloned()
    }

    /// Remembers a name.
    pub fn add_link(&self, parent: &Arc<Node>, name: &[u8], in_upper: bool) {
        let mut state = self.state.write();
        if in_upper {
            state.set_spare(None);
        }
        if self.settle_link(&mut state, parent, name, in_upper) {
            return;
        }
        if *self.name == *name && self.links(&state).next().is_none() {
            (state.parent, state.in_upper) = (Some(parent.clone()), in_upper);
            return;
        }
        let own = state.parent.take().map(|parent| OwnLink {
            parent,
            name: self.name.to_vec().into(),
            in_upper: state.in_upper,
        });
        let link = OwnLink {
            parent: parent.clone(),
            name: name.into(),
            in_upper,
        };
        let links = &mut state.rare.get_or_insert_default().links;
        links.reserve_exact(1 + usize::from(own.is_some()));
        links.extend(own.into_iter().chain([link]));
    }

    /// A name that is known comes to stand in the upper, if `in_upper`. False for one that is not known.
    pub fn settle_link(
        &self,
        state: &mut State,
        parent: &Node,
        name: &[u8],
        in_upper: bool,
    ) -> bool {
        if state.parent.as_ref().is_some_and(|p| p.ino == parent.ino) && *self.name == *name {
            state.in_upper |= in_upper;
            return true;
        }
        let links = state.rare.iter_mut().flat_map(|r| &mut r.links);
        let mut same = links.filter(|l| l.parent.ino == parent.ino && *l.name == *name);
        same.next().map(|l| l.in_upper |= in_upper).is_some()
    }

    /// Whether it is known under this name, in the upper or only in a lower.
    pub fn is_at(&self, parent: &Node, name: &[u8], in_upper: bool) -> bool {
        let state = self.state.read();
        let mut links = self.links(&state);
        links.any(|l| l.is(parent, name) && l.in_upper == in_upper)
    }

    /// The attributes of a directory have changed: what was known of them is asked again.
    pub fn attributes_changed(&self) {
        if let Some(dir) = &self.dir
            && let Some(index) = dir.index.lock().as_mut()
            && let Some(names) = &mut index.known
        {
            (names.inherited, names.mtime) = (None, None);
        }
    }

    /// Whether this is a directory that is known to be under another name, or to be gone.
    pub fn stands_elsewhere(&self, parent: &Node, name: &[u8]) -> bool {
        if !self.is_dir() {
            return false;
        }
        let state = self.state.read();
        self.ino == ROOT || state.removed || !self.links(&state).all(|l| l.is(parent, name))
    }

    /// Forgets a name.
    pub fn drop_link(&self, parent: &Node, name: &[u8]) {
        let mut state = self.state.write();
        if *self.name == *name {
            let other = |p: &Arc<Node>| p.ino != parent.ino;
            state.parent = state.parent.take().filter(other);
        }
        let other = |l: &OwnLink| l.parent.ino != parent.ino || *l.name != *name;
        state.set(true, |rare| rare.links.retain(other));
    }

    /// A handle may write from now on.
    pub fn begin_writing(&self) {
        self.state.write().set(false, |rare| rare.writers += 1);
    }

    /// Such a handle is gone.
    pub fn end_writing(&self) {
        let less = |rare: &mut Rare| rare.writers = rare.writers.saturating_sub(1);
        self.state.write().set(true, less);
    }

    /// Whether a handle may write.
    pub fn is_written(&self) -> bool {
        let state = self.state.read();
        state.rare.as_ref().is_some_and(|r| r.writers > 0)
    }

    /// The number of the data's last move.
    pub fn generation(&self) -> u16 {
        self.generation.load(Ordering::Acquire)
    }

    /// The data or the place of the data changed. Returns the number that handles of them have now.
    pub fn moved(&self) -> u16 {
        self.generation
            .fetch_add(1, Ordering::Release)
            .wrapping_add(1)
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

impl Link<'_> {
    pub fn is(&self, parent: &Node, name: &[u8]) -> bool {
        self.parent.ino == parent.ino && *self.name == *name
    }
}

impl Drop for Node {
    /// Lets a long chain of parents go link by link, not by recursion.
    fn drop(&mut self) {
        let mut chain = self.state.get_mut().take_parents();
        while let Some(parent) = chain.pop() {
            if let Some(mut node) = Arc::into_inner(parent) {
                chain.append(&mut node.state.get_mut().take_parents());
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
    /// Orders the names of a listing; one that gets another object keeps it.
    pub seq: u64,
    /// Tells one object under the name from the next.
    pub version: u64,
    /// The number of the object, once it is known; else 0.
    pub ino: Ino,
}

/// The names of one directory of the upper, as users know them.
#[derive(Debug, Default)]
pub struct Index {
    /// None: nothing was ever there, as in most directories.
    known: Option<Box<Names>>,
}

/// Seconds and nanoseconds.
pub type Mtime = (i64, i64);

/// What a directory lends to what is made in it.
#[derive(Clone, Copy, Debug)]
pub struct Inherited {
    /// It has a default ACL.
    pub acl: bool,
    /// It has no attributes that users may see, and so gives none.
    pub bare: bool,
    /// Its group, if that goes over.
    pub gid: Option<u32>,
}

#[derive(Debug, Default)]
struct Names {
    held: HashMap<Box<[u8]>, Held>,
    order: BTreeMap<u64, Box<[u8]>>,
    next: u64,
    inherited: Option<Inherited>,
    mtime: Option<Mtime>,
}

impl Index {
    pub fn get(&self, name: &[u8]) -> Option<Held> {
        self.known.as_ref()?.held.get(name).copied()
    }

    /// Records what stands under the name; an object where none was gets a new place in listings.
    pub fn set(&mut self, name: &[u8], object: Option<u8>, whiteout: bool) {
        let names = &mut **self.known.get_or_insert_default();
        names.mtime = None;
        let Names {
            held, order, next, ..
        } = names;
        *next += 1;
        if let Some(old) = held.get_mut(name) {
            if object.is_some() && old.object.is_some() {
                (old.object, old.whiteout, old.version) = (object, whiteout, *next);
                old.ino = 0;
                return;
            }
            order.remove(&old.seq);
        }
        if object.is_none() && !whiteout {
            held.remove(name);
            return;
        }
        held.insert(
            name.into(),
            Held {
                object,
                whiteout,
                seq: *next,
                version: *next,
                ino: 0,
            },
        );
        order.insert(*next, name.into());
    }

    /// Records the number of the object under the name.
    pub fn set_ino(&mut self, name: &[u8], ino: Ino) {
        let names = self.known.as_mut();
        if let Some(held) = names.and_then(|names| names.held.get_mut(name)) {
            held.ino = ino;
        }
    }

    /// What the directory lends, once that is known.
    pub fn inherited(&self) -> Option<Inherited> {
        self.known.as_ref()?.inherited
    }

    /// Records what the directory lends.
    pub fn set_inherited(&mut self, inherited: Inherited) {
        self.known.get_or_insert_default().inherited = Some(inherited);
    }

    /// The directory's time of modification, if it is known; a change of a name makes it unknown.
    pub fn mtime(&self) -> Option<Mtime> {
        self.known.as_ref()?.mtime
    }

    /// Records the directory's time of modification.
    pub fn set_mtime(&mut self, mtime: Option<Mtime>) {
        self.known.get_or_insert_default().mtime = mtime;
    }

    /// The names after a number, oldest first.
    pub fn after(&self, seq: u64) -> impl Iterator<Item = (u64, &[u8], Held)> {
        self.known.iter().flat_map(move |names| {
            let after = names.order.range(seq.saturating_add(1)..);
            after.filter_map(|(seq, name)| Some((*seq, &**name, *names.held.get(name)?)))
        })
    }

    pub fn has_objects(&self) -> bool {
        let mut held = self.known.iter().flat_map(|names| names.held.values());
        held.any(|h| h.object.is_some())
    }
}
