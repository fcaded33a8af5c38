//! Opened layers and their directories.
//!
//! A directory is a chain of names from its layer's root. Its descriptor is kept in an LRU, so that a
//! million directories cost no million descriptors; each is opened from its parent, one component at a
//! time, and never through a symlink.

use std::ffi::CStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use super::asked::{Ask, Asked};
use super::dialect;
use super::reopen::{Epoch, Repositories, Root};
use crate::error::{Context, Error, Result};
use crate::hash::Numbers;
use crate::sys::dirent::End;
use crate::sys::{file, meta, xattr};

/// Position of a layer in the stack, 0 the topmost lower.
pub type LayerIndex = u32;

/// One read-only layer.
#[derive(Debug)]
pub struct Layer {
    /// As given at mount; it names the layer in errors.
    pub path: PathBuf,
    /// Hash of the layer's identity: the seed of its inode numbers.
    seed: u64,
    pub(super) root: Root,
    /// A CVMFS client answers for attributes that nobody stored.
    pub cvmfs: bool,
    /// What tells the end of a directory of it.
    pub(super) end: End,
    /// What it was asked.
    pub asked: Asked,
}

/// A kept directory: its layer, the opening of the layer that it is of, its hash.
type Key = (LayerIndex, Epoch, u64);

/// The read-only layers, topmost first, and the descriptors kept for them.
#[derive(Debug)]
pub struct Lowers {
    layers: Vec<Layer>,
    kept: Mutex<LruCache<Key, Arc<OwnedFd>, Numbers>>,
}

/// A directory of one layer.
#[derive(Debug)]
pub struct LowerDir {
    /// Its layer, for [`Lowers::layer`].
    pub layer: LayerIndex,
    parent: Option<Arc<LowerDir>>,
    name: Box<[u8]>,
    /// Hash of the layer's identity and the path in it.
    pub hash: u64,
}

/// A hash that stays the same over time and machines (FNV-1a, finished as MurmurHash3 does).
fn stable_hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut h = seed ^ 0xcbf2_9ce4_8422_2325;
    for b in bytes {
        h = (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h ^= h >> 33;
    h = h.wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^= h >> 33;
    h = h.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

impl Layer {
    /// Opens the root directory of a layer. `known`: what those opened before it have told.
    pub fn open(path: &Path, identity: &str, known: &mut Repositories) -> Result<Layer> {
        let fail = |e: Error| e.at(path).in_layer(identity);
        let root = Root::open(path, known).op("open layer").map_err(fail)?;
        let seed = stable_hash(0, identity.as_bytes());
        let cvmfs = root.is_cvmfs();
        Ok(Layer {
            path: path.to_owned(),
            seed,
            cvmfs,
            end: if cvmfs {
                End::of_filled_answers()
            } else {
                End::Empty
            },
            root,
            asked: Asked::default(),
        })
    }
}

impl Lowers {
    /// Takes the layers topmost first; a layer's position is its `LayerIndex`. `kept` is how many
    /// descriptors of directories stay open.
    pub fn new(layers: Vec<Layer>, kept: NonZeroUsize) -> Lowers {
        Lowers {
            layers,
            kept: Mutex::new(LruCache::with_hasher(kept, Numbers::default())),
        }
    }

    /// The root directory of each layer, topmost first.
    pub fn roots(&self) -> Vec<Arc<LowerDir>> {
        let root = |(i, layer): (usize, &Layer)| {
            let layer_index = LayerIndex::try_from(i).unwrap_or(LayerIndex::MAX);
            let hash = layer.seed;
            Arc::new(LowerDir {
                layer: layer_index,
                parent: None,
                name: Box::default(),
                hash,
            })
        };
        self.layers.iter().enumerate().map(root).collect()
    }

    /// The layer of a directory; None is possible only for one of other `Lowers`.
    pub fn layer(&self, dir: &LowerDir) -> Option<&Layer> {
        self.layers.get(dir.layer as usize)
    }

    /// Names the layer and the path in it, for a failed operation.
    pub fn blame(&self, e: Error, dir: &LowerDir, name: &[u8]) -> Error {
        use std::os::unix::ffi::OsStrExt;
        let mut path = dir.path();
        if !name.is_empty() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        let layer = self
            .layer(dir)
            .map(|l| l.path.display().to_string())
            .unwrap_or_default();
        e.at(std::ffi::OsStr::from_bytes(&path)).in_layer(layer)
    }

    /// An `O_PATH` descriptor of the directory, and the opening of the layer that it is of.
    pub(super) fn open_dir(&self, dir: &LowerDir) -> (Epoch, io::Result<Arc<OwnedFd>>) {
        let Some(layer) = self.layer(dir) else {
            return (0, Err(io::Error::from_raw_os_error(libc::EIO)));
        };
        let (epoch, root) = layer.root.current();
        (epoch, self.walk(layer, epoch, root, dir))
    }

    fn walk(
        &self,
        layer: &Layer,
        epoch: Epoch,
        root: Arc<OwnedFd>,
        dir: &LowerDir,
    ) -> io::Result<Arc<OwnedFd>> {
        let mut missing: Vec<&LowerDir> = Vec::new();
        let mut at = dir;
        let mut fd = loop {
            let Some(parent) = &at.parent else {
                break root;
            };
            if let Some(fd) = self.kept.lock().get(&(at.layer, epoch, at.hash)) {
                break fd.clone();
            }
            missing.push(at);
            at = parent;
        };
        for dir in missing.into_iter().rev() {
            let flags = libc::O_PATH | libc::O_DIRECTORY;
            let open = || file::openat(fd.as_fd(), &dir.name, flags, 0);
            let opened = layer.asked.ask(Ask::Walk, open)?;
            fd = Arc::new(opened);
            self.kept
                .lock()
                .put((dir.layer, epoch, dir.hash), fd.clone());
        }
        Ok(fd)
    }

    /// Lets go of the directories of a layer's former openings.
    pub(super) fn drop_kept(&self, layer: LayerIndex, before: Epoch) {
        let mut kept = self.kept.lock();
        let old = |key: &&Key| key.0 == layer && key.1 < before;
        let keys: Vec<Key> = kept
            .iter()
            .map(|(key, _)| key)
            .filter(old)
            .copied()
            .collect();
        let gone: Vec<_> = keys.iter().map(|key| kept.pop(key)).collect();
        drop(kept);
        drop(gone);
    }

    /// How many directories are open.
    pub fn kept(&self) -> usize {
        self.kept.lock().len()
    }

    /// The layers, topmost first.
    pub fn layers(&self) -> &[Layer] {
        &self.layers
    }

    /// Whether all of them are on CVMFS.
    pub fn are_cvmfs(&self) -> bool {
        !self.layers.is_empty() && self.layers.iter().all(|l| l.cvmfs)
    }

    /// The attributes of a name that is known to be there.
    pub fn stat(&self, dir: &LowerDir, name: &[u8]) -> Result<meta::Stat> {
        self.with(dir, name, Ask::Stat, "stat lower", |fd| {
            meta::fstatat(fd, name)
        })
    }

    /// The names of all attributes that somebody stored, the unions' own among them.
    pub fn list_xattrs(&self, dir: &LowerDir, name: &[u8]) -> Result<Vec<Vec<u8>>> {
        let raw = self.with(
            dir,
            name,
            Ask::Xattr,
            "list xattrs of lower",
            |fd| match xattr::list(fd, name) {
                Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(Vec::new()),
                other => other,
            },
        )?;
        let cvmfs = self.layer(dir).is_some_and(|l| l.cvmfs);
        let magic = |key: &[u8]| cvmfs && dialect::is_cvmfs_magic(key);
        let keys = raw
            .split(|b| *b == 0)
            .filter(|k| !k.is_empty() && !magic(k));
        Ok(keys.map(<[u8]>::to_vec).collect())
    }

    /// The value of an attribute; ENODATA for an absent one.
    pub fn get_xattr(&self, dir: &LowerDir, name: &[u8], key: &CStr) -> Result<Vec<u8>> {
        self.with(dir, name, Ask::Xattr, "get xattr of lower", |fd| {
            xattr::get(fd, name, key)
        })
    }
}

impl LowerDir {
    /// A directory in this one. Nothing is opened or checked before it is used, by [`Lowers::with`].
    pub fn child(self: &Arc<Self>, name: &[u8]) -> Arc<LowerDir> {
        Arc::new(LowerDir {
            layer: self.layer,
            parent: Some(self.clone()),
            name: name.into(),
            hash: stable_hash(self.hash, name),
        })
    }

    /// The hash of a name in this directory.
    pub fn hash_of(&self, name: &[u8]) -> u64 {
        stable_hash(self.hash, name)
    }

    /// The hash of an inode of this layer that has several names.
    pub fn hash_of_inode(&self, lowers: &Lowers, ino: u64) -> u64 {
        let seed = lowers.layer(self).map_or(0, |l| l.seed);
        stable_hash(seed ^ 0x6c69_6e6b, &ino.to_le_bytes())
    }

    /// The path in the layer, beginning with `/`.
    pub fn path(&self) -> Vec<u8> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = self;
        while let Some(parent) = &at.parent {
            names.push(&at.name);
            at = parent;
        }
        let mut path = Vec::new();
        for name in names.iter().rev() {
            path.push(b'/');
            path.extend_from_slice(name);
        }
        path
    }
}

impl Drop for LowerDir {
    /// Lets a long chain go link by link, not by recursion.
    fn drop(&mut self) {
        let mut next = self.parent.take();
        while let Some(dir) = next.and_then(Arc::into_inner) {
            let mut dir = dir;
            next = dir.parent.take();
        }
    }
}
