//! What the union counts of its work, and how much it keeps.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Union;
use crate::layer::{Ask, ahead};
use crate::meter::Reading;
use crate::text;

/// The copy-ups so far.
#[derive(Debug, Default)]
pub struct Copied {
    objects: AtomicU64,
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Copied {
    /// An object has come to stand in the upper.
    pub fn object(&self) {
        self.objects.fetch_add(1, Ordering::Relaxed);
    }

    /// The data of a file have, of that length.
    pub fn data(&self, bytes: u64) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The counts of a moment.
#[derive(Debug)]
pub struct Counts {
    /// Objects that were copied up.
    pub copied_objects: u64,
    /// Files whose data were, with their attributes or later.
    pub copied_files: u64,
    /// The length of those data, holes included.
    pub copied_bytes: u64,
    /// Nodes in memory.
    pub nodes: usize,
    /// Open files.
    pub handles: usize,
    /// Merged listings in memory.
    pub listings: usize,
    /// The names in them.
    pub listed_names: usize,
    /// Directories of lowers that are kept open.
    pub lower_directories: usize,
    /// Directories of the upper that are kept open.
    pub upper_directories: usize,
    /// Each layer, topmost first.
    pub layers: Vec<LayerCounts>,
    /// What was fetched ahead, and how many files are recorded at the moment.
    pub learned: Option<(ahead::Counts, usize)>,
}

/// What one layer was asked.
#[derive(Debug)]
pub struct LayerCounts {
    /// As given at mount.
    pub path: String,
    /// All kinds, in their order.
    pub asked: Vec<(Ask, Reading)>,
}

impl Union {
    /// The counts of this moment.
    pub fn counts(&self) -> Counts {
        let (listings, listed_names) = self.listings.size();
        let load = |n: &AtomicU64| n.load(Ordering::Relaxed);
        let layers = self.lowers.layers().iter();
        Counts {
            copied_objects: load(&self.copied.objects),
            copied_files: load(&self.copied.files),
            copied_bytes: load(&self.copied.bytes),
            nodes: self.nodes(),
            handles: self.handles.len(),
            listings,
            listed_names,
            lower_directories: self.lowers.kept(),
            upper_directories: self.upper.as_ref().map_or(0, |upper| upper.kept()),
            learned: self
                .lowers
                .learning()
                .map(|learning| (learning.ahead.counts(), learning.record.len())),
            layers: layers
                .map(|layer| LayerCounts {
                    path: text::of_path(&layer.path),
                    asked: layer.asked.read().collect(),
                })
                .collect(),
        }
    }
}
