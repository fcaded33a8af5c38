//! Opened layers and their directories.
//!
//! A directory is a chain of names from its layer's root. Its descriptor is kept in an LRU, so that a
//! million directories cost no million descriptors; each is opened from its parent, one component at a
//! time, and never through a symlink.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lru::LruCache;
use parking_lot::Mutex;

use super::asked::{Ask, Asked};
use super::dialect;
use super::numbers::ByInode;
use super::overrides::{self, Overrides};
use super::record::Learning;
use super::root::{Epoch, Repositories, Root};
use crate::error::{Context, Error, Result};
use crate::hash::{Numbers, stable_hash};
use crate::sys::dirent::End;
use crate::sys::mounts::Mounts;
use crate::sys::{file, meta, name, xattr};

/// Position of a layer in the stack, 0 the topmost lower.
pub type LayerIndex = u32;

/// One read-only layer.
#[derive(Debug)]
pub struct Layer {
    /// As given at mount; it names the layer in errors.
    pub path: PathBuf,
    /// Hash of the layer's identity: the seed of its inode numbers.
    pub(super) seed: u64,
    pub(crate) root: Root,
    /// A CVMFS client answers for attributes that nobody stored.
    pub cvmfs: bool,
    /// What tells the end of a directory of it.
    pub(super) end: End,
    /// What it was asked.
    pub asked: Asked,
    /// Where it keeps owners and modes beside its files, if it does. Known when its root was listed.
    pub(super) overrides: OnceLock<Overrides>,
}

/// A kept directory: its layer, the opening of the layer that it is of, its hash.
type Key = (LayerIndex, Epoch, u64);

/// The read-only layers, topmost first, and the descriptors kept for them.
#[derive(Debug)]
pub struct Lowers {
    layers: Vec<Layer>,
    kept: Mutex<LruCache<Key, Arc<OwnedFd>, Numbers>>,
    pub(super) learning: Option<Learning>,
    /// The table of mounts when it was first asked for: once for all layers.
    mounts: OnceLock<Option<Mounts>>,
    /// See [`local`](Self::local).
    local: OnceLock<HashSet<u64>>,
    pub(super) by_inode: ByInode,
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

/// What [`LowerDir::hash_of`] is of an object of a layer: the last name of `path`, whose names are
/// separated by slashes, in the directory of those before it.
pub fn hash_at(identity: &str, path: &[u8]) -> u64 {
    path.split(|b| *b == b'/')
        .fold(stable_hash(0, identity.as_bytes()), stable_hash)
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
            overrides: OnceLock::new(),
        })
    }
}

impl Lowers {
    /// Takes the layers topmost first; a layer's position is its `LayerIndex`. `kept` is how many
    /// descriptors of directories stay open; `learning` is told of files that are opened.
    pub fn new(layers: Vec<Layer>, kept: NonZeroUsize, learning: Option<Learning>) -> Lowers {
        Lowers {
            by_inode: ByInode::of(layers.len()),
            layers,
            learning,
            mounts: OnceLock::new(),
            local: OnceLock::new(),
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

    pub(super) fn mounts(&self) -> Option<&Mounts> {
        self.mounts.get_or_init(|| Mounts::read().ok()).as_ref()
    }

    /// The file systems of layers that are known to lie on this machine.
    fn local(&self) -> &HashSet<u64> {
        self.local.get_or_init(|| {
            let Some(mounts) = self.mounts() else {
                return HashSet::default();
            };
            let mut seen = HashMap::new();
            for layer in &self.layers {
                let device = layer.root.device();
                seen.entry(device).or_insert_with(|| {
                    let fs = mounts.holding(layer.root.current().1.as_fd(), device);
                    fs.is_some_and(|fs| fs.is_local())
                });
            }
            let local = seen.into_iter().filter(|(_, is_local)| *is_local);
            local.map(|(device, _)| device).collect()
        })
    }

    /// Whether all layers are known to lie on this machine.
    pub fn are_local(&self) -> bool {
        let local = self.local();
        let is_local = |layer: &Layer| local.contains(&layer.root.device());
        self.layers.iter().all(is_local)
    }

    /// What is learned of the files that are opened, if anything is.
    pub fn learning(&self) -> Option<&Learning> {
        self.learning.as_ref()
    }

    /// Whether all of them are on CVMFS.
    pub fn are_cvmfs(&self) -> bool {
        !self.layers.is_empty() && self.layers.iter().all(|l| l.cvmfs)
    }

    /// Whether the directory is known to lie on this machine.
    pub fn is_local(&self, dir: &LowerDir) -> bool {
        let is_local = |layer: &Layer| self.local().contains(&layer.root.device());
        self.layer(dir).is_some_and(is_local)
    }

    /// Whether a CVMFS client serves the directory.
    pub fn is_cvmfs(&self, dir: &LowerDir) -> bool {
        self.layer(dir).is_some_and(|layer| layer.cvmfs)
    }

    /// Whether the directory's layer keeps owners and modes beside its files.
    pub fn has_overrides(&self, dir: &LowerDir) -> bool {
        self.layer(dir).is_some_and(|l| l.overrides.get().is_some())
    }

    /// The attributes of a name that is known to be there.
    pub fn stat(&self, dir: &LowerDir, name: &[u8]) -> Result<meta::Stat> {
        self.with(dir, name, Ask::Stat, "stat lower", |fd| {
            let mut stat = meta::fstatat(fd, name)?;
            self.override_stat(dir, fd, name, &mut stat)?;
            Ok(stat)
        })
    }

    /// Puts what the layer keeps beside a file in the place of what the file says.
    pub(super) fn override_stat(
        &self,
        dir: &LowerDir,
        fd: BorrowedFd<'_>,
        name: &[u8],
        stat: &mut meta::Stat,
    ) -> io::Result<()> {
        let Some(overrides) = self.layer(dir).and_then(|l| l.overrides.get()) else {
            return Ok(());
        };
        match xattr::get(fd, name, overrides.key()) {
            Ok(value) => overrides::apply(&value, stat),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(()),
            Err(e) => Err(e),
        }
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
        let layer = self.layer(dir);
        let cvmfs = layer.is_some_and(|l| l.cvmfs);
        let overrides = layer.and_then(|l| l.overrides.get());
        let magic = |key: &[u8]| {
            cvmfs && dialect::is_cvmfs_magic(key)
                || overrides.is_some_and(|o| o.key().to_bytes() == key)
        };
        let keys = raw
            .split(|b| *b == 0)
            .filter(|k| !k.is_empty() && !magic(k));
        Ok(keys.map(<[u8]>::to_vec).collect())
    }

    /// The target of a symlink.
    pub fn read_link(&self, dir: &LowerDir, name: &[u8]) -> Result<Vec<u8>> {
        self.with(dir, name, Ask::Link, "read link of lower", |fd| {
            name::readlinkat(fd, name)
        })
    }

    /// The value of an attribute; ENODATA for an absent one.
    pub fn get_xattr(&self, dir: &LowerDir, name: &[u8], key: &CStr) -> Result<Vec<u8>> {
        self.with(dir, name, Ask::Xattr, "get xattr of lower", |fd| {
            xattr::get(fd, name, key)
        })
    }
}

impl LowerDir {
    /// Whether it is the root of its layer.
    pub(super) fn is_root(&self) -> bool {
        self.parent.is_none()
    }

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

    /// The names that lead to it from the root of its layer.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = self;
        while let Some(parent) = &at.parent {
            names.push(&at.name);
            at = parent;
        }
        names.into_iter().rev()
    }

    /// The path in the layer, beginning with `/`.
    pub fn path(&self) -> Vec<u8> {
        let mut path = Vec::new();
        for name in self.names() {
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
