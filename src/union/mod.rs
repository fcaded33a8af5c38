//! The union: one file system out of read-only layers and a read-write directory.
//!
//! Every operation is a method of [`Union`]; one file holds each family of them. Changes go the same
//! way everywhere: check, copy up the parents, prepare in the work directory, commit by one rename
//! under the tree lock, update the nodes.
//!
//! Locks, in their order: the tree lock (read to use a place in the upper, write to move or remove
//! names), a directory's index, a node's state, the table. None of them is held while a lower is
//! asked; what a lower said is checked against the index again afterwards. A copy-up holds its flight,
//! which only stops others that want the same file.
//!
//! S and a number is a clause of [`crate::docs::semantics`].

pub mod api;
pub mod shown;

mod apart;
mod attr;
mod barrier;
mod beside;
mod copy_data;
mod copy_meta;
mod copy_up;
mod counts;
mod create;
mod early;
mod file;
mod files;
mod hardlinks;
mod lane;
mod link;
mod lookup;
mod lowers;
mod marks;
mod node;
mod open;
mod place;
mod readdir;
mod remove;
mod rename;
mod statfs;
mod table;
mod upper;
pub mod view;
mod wishes;
mod work;
mod xattr;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use crate::error::Result;
use crate::layer::revisions::Revisions;
use crate::layer::{Layer, Lowers, Repositories};
use crate::sys::realpath::RealPaths;
use api::{Ino, Owner, ROOT, UnionConfig, distinct};
use node::Node;
use table::Table;
use upper::Upper;

/// How long the end waits for changes of names that are under way. None of them waits for a layer.
const LAST_CHANGES: Duration = Duration::from_secs(1);

pub use apart::{Apart, refuse_overlap};
pub use counts::{Counts, LayerCounts};
pub use early::EARLY;
pub use lane::{Lane, Target};
pub use open::{Backing, HandOut, may_write, unopened};
pub use upper::ABILITIES;

/// A mounted stack. Its methods may be called from many threads at once.
#[derive(Debug)]
pub struct Union {
    lowers: Lowers,
    revisions: Arc<Revisions>,
    upper: Option<Upper>,
    owner: Owner,
    shown: shown::Shown,
    tree: RwLock<()>,
    table: Table,
    listings: lowers::Listings,
    flights: copy_up::Flights,
    copied: counts::Copied,
    handles: open::Handles,
    files: files::LowerFiles,
    wishes: wishes::Wishes,
    statfs: Mutex<Option<statfs::Kept>>,
    /// The kernel collects writes.
    writeback: AtomicBool,
    collected: file::Collected,
    habit: early::Habit,
}

impl Union {
    /// Opens the layers and the upper. EWOULDBLOCK: another union holds the upper.
    pub fn new(config: &UnionConfig) -> Result<Union> {
        if let (Some(spec), None) = (&config.upper, config.apart) {
            refuse_overlap(spec, &config.lowers, &mut RealPaths::default())?;
        }
        let mut known = Repositories::default();
        let layers = distinct(&config.lowers)
            .map(|l| Layer::open(&l.path, &l.identity, &mut known))
            .collect::<Result<_>>()?;
        let lowers = Lowers::new(layers, config.limits.directories, config.learning.clone());
        let listings = lowers::Listings::new(config.limits.listings);
        // The first look at the root needs it, and a layer that fails does so before anything is changed.
        listings.read_roots(&lowers)?;
        let upper = config
            .upper
            .as_ref()
            .map(|spec| Upper::open(spec, config))
            .transpose()?;
        let mut is_new = false;
        if let Some(upper) = &upper {
            is_new = upper.adopts_root()?;
            if !upper.numbers_by_inode(is_new)? {
                lowers.number_by_path();
            }
        }
        let root = lookup::root(&lowers, upper.as_ref(), config.owner)?;
        let union = Union {
            revisions: Arc::new(Revisions::of(&lowers)),
            lowers,
            upper,
            owner: config.owner,
            shown: config.shown.clone(),
            tree: RwLock::new(()),
            table: Table::new(root),
            listings,
            flights: copy_up::Flights::default(),
            copied: counts::Copied::default(),
            handles: open::Handles::default(),
            // A read-only union may be told of no open.
            files: files::LowerFiles::new(config.upper.is_none().then_some(config.limits.files)),
            wishes: wishes::Wishes::default(),
            statfs: Mutex::new(None),
            writeback: AtomicBool::new(false),
            collected: file::Collected::default(),
            habit: early::Habit::default(),
        };
        union.adopt_root(is_new)?;
        Ok(union)
    }

    /// Takes `n` lookups of a node back.
    pub fn forget(&self, ino: Ino, n: u64) {
        self.table.forget(ino, n);
    }

    /// Whether much memory has become free since this was asked last: nodes have gone, or a large
    /// directory was read.
    pub fn has_freed(&self) -> bool {
        self.table.has_shrunk() || self.listings.have_read_many()
    }

    /// The union is about to be mounted there: what lies below is not looked at by path any more.
    pub fn cover(&self, mountpoint: &Path) {
        self.lowers.cover(mountpoint);
    }

    /// The revisions of the layers' repositories, which somebody is to watch by [`layer_root`](Self::layer_root).
    pub fn revisions(&self) -> &Arc<Revisions> {
        &self.revisions
    }

    /// The root of a layer, by its position from the top.
    pub fn layer_root(&self, at: usize) -> Option<Arc<OwnedFd>> {
        let layer = self.lowers.layers().get(at)?;
        Some(layer.root.current().1)
    }

    /// Before an end that drops nothing, and as the last call: no request changes names any more, a
    /// volatile upper is synced, so that it can be used again, and the upper is free for the next mount.
    pub fn let_go(&self) -> Result<()> {
        // Kept for ever: a request that still runs must not change what the next mount has begun to read.
        std::mem::forget(self.tree.try_write_for(LAST_CHANGES));
        match &self.upper {
            Some(upper) => upper.settle().and_then(|()| upper.unlock()),
            None => Ok(()),
        }
    }

    /// How many nodes are in memory.
    pub fn nodes(&self) -> usize {
        self.table.len()
    }

    fn root(&self) -> Result<Arc<Node>> {
        self.table.get(ROOT)
    }

    /// A new upper starts with the attributes of the root below it.
    fn adopt_root(&self, is_new: bool) -> Result<()> {
        let (Some(upper), root) = (&self.upper, self.root()?) else {
            return Ok(());
        };
        if is_new && let Some(lower) = root.lower_at() {
            self.copy_metadata(&lower, &root, &upper.root_place(), None, None)?;
            upper.note_adoption()?;
        }
        if root.as_dir()?.lowers.is_empty() {
            root.as_dir()?
                .homegrown
                .store(upper.is_empty()?, Ordering::Relaxed);
        }
        Ok(())
    }
}
