//! What a request may have to wait for, told without asking anybody.

use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::Union;
use super::api::Ino;
use super::node::Node;
use crate::layer::LowerDir;

/// Requests with equal numbers may wait for the same thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lane {
    /// Of the object or the name.
    pub object: u64,
    /// Of the layers that may be asked; None: nothing but the upper.
    pub layers: Option<u64>,
}

/// The object that a request is about: a node, or a name in one.
pub type Target<'a> = (Ino, Option<&'a OsStr>);

fn number(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

impl Union {
    /// The lane of a request, None if it is answered without asking a lower. `changes`: it may copy
    /// something up.
    pub fn lane(&self, targets: &[Target<'_>], changes: bool) -> Option<Lane> {
        let mut layers = Vec::new();
        let mut local = true;
        for (ino, name) in targets {
            // Nothing is asked about a number that nobody was given.
            let Some(node) = self.table.find(*ino) else {
                continue;
            };
            local &= node.is_local();
            self.add_layers(&node, *name, &mut layers);
            if changes {
                self.add_parents(&node, &mut layers);
            }
        }
        if local {
            return None;
        }
        layers.sort_unstable();
        layers.dedup();
        Some(Lane {
            object: number(targets),
            layers: (!layers.is_empty()).then(|| number(&layers)),
        })
    }

    /// The lane of a request that waits for the disk at least.
    pub fn slow_lane(&self, ino: Ino) -> Lane {
        self.lane(&[(ino, None)], true).unwrap_or(Lane {
            object: number(ino),
            layers: None,
        })
    }

    fn add_layers(&self, node: &Node, name: Option<&OsStr>, layers: &mut Vec<u32>) {
        let mut add = |dirs: &[Arc<LowerDir>]| layers.extend(dirs.iter().map(|d| d.layer));
        match (&node.dir, name) {
            // The merged listing tells who holds the name, or that none does.
            (Some(dir), Some(name)) => match self.kept_listing(&dir.lowers) {
                Some(listing) => {
                    if let Some(entry) = listing.get(name.as_bytes()) {
                        add(entry.owners);
                    }
                }
                None => add(&dir.lowers),
            },
            (Some(dir), None) => add(&dir.lowers),
            (None, _) if node.is_local() => {}
            (None, _) => layers.extend(node.lower.as_ref().map(|l| l.dir.layer)),
        }
    }

    /// The layers of what has to be copied up before the node.
    fn add_parents(&self, node: &Node, layers: &mut Vec<u32>) {
        let mut next = self.missing_layer(node, layers);
        while let Some(node) = next {
            next = self.missing_layer(&node, layers);
        }
    }

    /// Adds the layer of a node that is not in the upper, and goes to its parent.
    fn missing_layer(&self, node: &Node, layers: &mut Vec<u32>) -> Option<Arc<Node>> {
        let state = node.state.read();
        if state.upper || state.removed {
            return None;
        }
        layers.extend(node.lower.as_ref().map(|l| l.dir.layer));
        state.parent().cloned()
    }
}
