//! The nodes that the kernel knows, by number.
//!
//! A node stays while the kernel counts lookups of it, and while anything here holds it: a child holds
//! its parents, an open handle its node.

use std::borrow::Borrow;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::api::{Ino, ROOT};
use super::node::Node;
use crate::error::{Error, Result};
use crate::hash::Numbers;
use crate::sync::{AtomicBool, Mutex};

#[cfg(all(test, feature = "shuttle"))]
mod model;

const SHARDS: u64 = 16;
/// So many calls of `forget` go by until a shard is swept for nodes that were in use when forgotten.
const SWEEP: u32 = if cfg!(all(test, feature = "shuttle")) {
    2
} else {
    8192
};

/// A shard with room for so many nodes is not worth making smaller.
const SMALL: usize = 128;

#[derive(Debug)]
pub struct Table {
    shards: Vec<Mutex<Shard>>,
    /// Many nodes have gone since somebody asked.
    shrunk: AtomicBool,
}

#[derive(Debug, Default)]
struct Shard {
    nodes: HashSet<Entry, Numbers>,
    watched: HashMap<Ino, Watched, Numbers>,
    forgets: u32,
}

/// A number that somebody watches.
#[derive(Debug, Default)]
struct Watched {
    by: u32,
    /// How many nodes of the number have left the table since it is watched.
    gone: u64,
}

/// Kept while an object is looked at and no node of it is known: tells whether one came and went
/// meanwhile, which may have changed the object.
#[derive(Debug)]
pub struct Watch<'a> {
    table: &'a Table,
    ino: Ino,
    since: u64,
}

/// A node, found by its number.
#[derive(Debug)]
struct Entry(Arc<Node>);

/// A node that was looked up so often stays for ever.
const FOREVER: u32 = u32::MAX;

impl Entry {
    fn lookups(&self) -> u32 {
        self.0.lookups.load(Ordering::Relaxed)
    }

    fn is_unused(&self) -> bool {
        self.lookups() == 0 && Arc::strong_count(&self.0) == 1
    }
}

impl Borrow<Ino> for Entry {
    fn borrow(&self) -> &Ino {
        &self.0.ino
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.0.ino == other.0.ino
    }
}

impl Eq for Entry {}

impl Hash for Entry {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.ino.hash(state);
    }
}

/// A node that a request uses, and that it may be the first to know. Afterwards the table lets go of it,
/// unless somebody needs it: a request that fails leaves no node behind.
#[derive(Debug)]
pub struct Used<'a> {
    // Dropped first, so that it is not in the way of what comes after.
    node: Arc<Node>,
    #[allow(dead_code, reason = "held for its drop")]
    after: Reap<'a>,
}

#[derive(Debug)]
struct Reap<'a> {
    table: &'a Table,
    ino: Ino,
}

impl Deref for Used<'_> {
    type Target = Arc<Node>;

    fn deref(&self) -> &Arc<Node> {
        &self.node
    }
}

impl Drop for Reap<'_> {
    fn drop(&mut self) {
        self.table.reap(self.ino);
    }
}

impl Shard {
    /// Gives memory back when most of it has come to be for nothing. Says whether it did.
    fn shrink(&mut self) -> bool {
        let (len, room) = (self.nodes.len(), self.nodes.capacity());
        let wasted = room > SMALL && len < room / 8;
        if wasted {
            self.nodes.shrink_to(len * 2);
        }
        wasted
    }
}

impl Table {
    pub fn new(root: Node) -> Table {
        let table = Table {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shrunk: AtomicBool::new(false),
        };
        root.lookups.store(FOREVER, Ordering::Relaxed);
        let root = Entry(Arc::new(root));
        table.shard(ROOT).lock().nodes.insert(root);
        table
    }

    #[expect(clippy::indexing_slicing, reason = "the modulus is below the length")]
    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[(ino % SHARDS) as usize]
    }

    /// The node, if it is known.
    pub fn find(&self, ino: Ino) -> Option<Arc<Node>> {
        self.shard(ino).lock().nodes.get(&ino).map(|e| e.0.clone())
    }

    /// The node; ESTALE for a number that nobody was given.
    pub fn get(&self, ino: Ino) -> Result<Arc<Node>> {
        self.find(ino)
            .ok_or_else(|| Error::new(libc::ESTALE, "unknown node"))
    }

    /// The node of that number, made if it is new.
    pub fn intern(&self, ino: Ino, make: impl FnOnce() -> Node) -> Arc<Node> {
        let mut shard = self.shard(ino).lock();
        if let Some(entry) = shard.nodes.get(&ino) {
            return entry.0.clone();
        }
        let node = Arc::new(make());
        shard.nodes.insert(Entry(node.clone()));
        node
    }

    /// The node for the time of a request.
    pub fn used(&self, node: Arc<Node>) -> Used<'_> {
        let ino = node.ino;
        Used {
            node,
            after: Reap { table: self, ino },
        }
    }

    /// Watches a number of which no node is known.
    pub fn watch(&self, ino: Ino) -> Watch<'_> {
        let mut shard = self.shard(ino).lock();
        let watched = shard.watched.entry(ino).or_default();
        watched.by += 1;
        Watch {
            table: self,
            ino,
            since: watched.gone,
        }
    }

    /// Counts a lookup.
    pub fn count(&self, node: &Arc<Node>) {
        let mut shard = self.shard(node.ino).lock();
        if let Some(entry) = shard.nodes.get(&node.ino) {
            let lookups = entry.lookups().saturating_add(1);
            entry.0.lookups.store(lookups, Ordering::Relaxed);
        } else {
            node.lookups.store(1, Ordering::Relaxed);
            shard.nodes.insert(Entry(node.clone()));
        }
    }

    /// Takes `n` lookups back.
    pub fn forget(&self, ino: Ino, n: u64) {
        let idle = {
            let mut shard = self.shard(ino).lock();
            shard.forgets += 1;
            if let Some(entry) = shard.nodes.get(&ino)
                && entry.lookups() != FOREVER
            {
                let n = u32::try_from(n).unwrap_or(FOREVER);
                let lookups = entry.lookups().saturating_sub(n);
                entry.0.lookups.store(lookups, Ordering::Relaxed);
            }
            if shard.forgets < SWEEP {
                Vec::new()
            } else {
                shard.forgets = 0;
                let unused = |e: &&Entry| e.lookups() == 0;
                let nodes = shard.nodes.iter().filter(unused);
                nodes.map(|e| e.0.ino).collect()
            }
        };
        self.reap(ino);
        for ino in idle {
            self.reap(ino);
        }
    }

    /// Lets go of a node that nobody needs, and of its parents that it was the last to need.
    pub fn reap(&self, ino: Ino) {
        let (mut first, mut candidates) = (Some(ino), Vec::new());
        while let Some(ino) = first.take().or_else(|| candidates.pop()) {
            let gone = {
                let mut shard = self.shard(ino).lock();
                if shard.nodes.get(&ino).is_some_and(Entry::is_unused) {
                    if let Some(watched) = shard.watched.get_mut(&ino) {
                        watched.gone += 1;
                    }
                    let gone = shard.nodes.take(&ino);
                    if shard.shrink() {
                        self.shrunk.store(true, Ordering::Relaxed);
                    }
                    gone
                } else {
                    None
                }
            };
            if let Some(entry) = gone {
                let state = entry.0.state.read();
                candidates.extend(state.parents().map(|parent| parent.ino));
                drop(state);
                drop(entry);
            }
        }
    }

    /// Whether many nodes have gone since this was asked last.
    pub fn has_shrunk(&self) -> bool {
        self.shrunk.load(Ordering::Relaxed) && self.shrunk.swap(false, Ordering::Relaxed)
    }

    /// How many nodes are known.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().nodes.len()).sum()
    }
}

impl Watch<'_> {
    /// The node of the number, this one if none is known. None if what it was made from may be out of
    /// date.
    pub fn intern(self, node: Node) -> Option<Arc<Node>> {
        let mut shard = self.table.shard(self.ino).lock();
        if let Some(entry) = shard.nodes.get(&self.ino) {
            return Some(entry.0.clone());
        }
        if shard.watched.get(&self.ino).map(|w| w.gone) != Some(self.since) {
            return None;
        }
        let node = Arc::new(node);
        shard.nodes.insert(Entry(node.clone()));
        Some(node)
    }
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        let mut shard = self.table.shard(self.ino).lock();
        if let Some(watched) = shard.watched.get_mut(&self.ino) {
            watched.by -= 1;
            if watched.by == 0 {
                shard.watched.remove(&self.ino);
            }
        }
    }
}
