//! The nodes that the kernel knows, by number.
//!
//! A node stays while the kernel counts lookups of it, and while anything here holds it: a child holds
//! its parents, an open handle its node.

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::Arc;

use parking_lot::Mutex;

use super::api::{Ino, ROOT};
use super::node::Node;
use crate::error::{Error, Result};

const SHARDS: u64 = 16;
/// So many calls of `forget` go by until a shard is swept for nodes that were in use when forgotten.
const SWEEP: u32 = 8192;

#[derive(Debug)]
pub struct Table {
    shards: Vec<Mutex<Shard>>,
}

#[derive(Debug, Default)]
struct Shard {
    nodes: HashMap<Ino, Entry>,
    forgets: u32,
}

#[derive(Debug)]
struct Entry {
    node: Arc<Node>,
    lookups: u64,
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

impl Table {
    pub fn new(root: Node) -> Table {
        let table = Table {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
        };
        let node = Arc::new(root);
        table.shard(ROOT).lock().nodes.insert(
            ROOT,
            Entry {
                node,
                lookups: u64::MAX / 2,
            },
        );
        table
    }

    #[expect(clippy::indexing_slicing, reason = "the modulus is below the length")]
    fn shard(&self, ino: Ino) -> &Mutex<Shard> {
        &self.shards[(ino % SHARDS) as usize]
    }

    /// The node, if it is known.
    pub fn find(&self, ino: Ino) -> Option<Arc<Node>> {
        self.shard(ino)
            .lock()
            .nodes
            .get(&ino)
            .map(|e| e.node.clone())
    }

    /// The node; ESTALE for a number that nobody was given.
    pub fn get(&self, ino: Ino) -> Result<Arc<Node>> {
        self.find(ino)
            .ok_or_else(|| Error::new(libc::ESTALE, "unknown node"))
    }

    /// The node of that number, made if it is new.
    pub fn intern(&self, ino: Ino, make: impl FnOnce() -> Node) -> Arc<Node> {
        let mut shard = self.shard(ino).lock();
        let entry = shard.nodes.entry(ino).or_insert_with(|| Entry {
            node: Arc::new(make()),
            lookups: 0,
        });
        entry.node.clone()
    }

    /// The node for the time of a request.
    pub fn used(&self, node: Arc<Node>) -> Used<'_> {
        let ino = node.ino;
        Used {
            node,
            after: Reap { table: self, ino },
        }
    }

    /// Counts a lookup.
    pub fn count(&self, node: &Arc<Node>) {
        let mut shard = self.shard(node.ino).lock();
        let entry = shard.nodes.entry(node.ino).or_insert_with(|| Entry {
            node: node.clone(),
            lookups: 0,
        });
        entry.lookups += 1;
    }

    /// Takes `n` lookups back.
    pub fn forget(&self, ino: Ino, n: u64) {
        let idle = {
            let mut shard = self.shard(ino).lock();
            shard.forgets += 1;
            if let Some(entry) = shard.nodes.get_mut(&ino) {
                entry.lookups = entry.lookups.saturating_sub(n);
            }
            if shard.forgets < SWEEP {
                vec![ino]
            } else {
                shard.forgets = 0;
                let unused = |e: &&Entry| e.lookups == 0;
                shard
                    .nodes
                    .values()
                    .filter(unused)
                    .map(|e| e.node.ino)
                    .collect()
            }
        };
        for ino in idle {
            self.reap(ino);
        }
    }

    /// Lets go of a node that nobody needs, and of its parents that it was the last to need.
    pub fn reap(&self, ino: Ino) {
        let mut candidates = vec![ino];
        while let Some(ino) = candidates.pop() {
            let gone = {
                let mut shard = self.shard(ino).lock();
                let unused = |e: &Entry| e.lookups == 0 && Arc::strong_count(&e.node) == 1;
                if shard.nodes.get(&ino).is_some_and(unused) {
                    shard.nodes.remove(&ino)
                } else {
                    None
                }
            };
            if let Some(entry) = gone {
                let state = entry.node.state.read();
                candidates.extend(state.links.iter().map(|l| l.parent.ino));
                drop(state);
                drop(entry);
            }
        }
    }

    /// How many nodes are known.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().nodes.len()).sum()
    }
}
