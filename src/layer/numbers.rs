//! By what the objects of a layer have their numbers.
//!
//! A number is made of the path in the layer, which says the same in each copy of it. A file with several names has to go
//! by its inode, and how many names it has no listing tells. So where inode numbers last as long as the layer does,
//! all files go by theirs: then the listing alone tells each number, and no file is looked at for it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::dir::{Layer, LayerIndex, LowerDir, Lowers};
use crate::hash::stable_hash;
use crate::sys::meta::{self, Stat};
use crate::sys::mounts::Mounts;

/// Mixed into the hashes of inodes.
const INODE: u64 = 0x6c69_6e6b;

/// Which layers' files go by their inodes, as far as somebody has asked.
#[derive(Debug)]
pub(super) struct ByInode {
    /// No layer's do.
    never: AtomicBool,
    /// By the layers' positions.
    seeds: Box<[OnceLock<Option<Seed>>]>,
}

/// Of a layer whose files can go by their inodes.
#[derive(Clone, Copy, Debug)]
struct Seed {
    /// Of the hashes of inodes.
    hash: u64,
    /// Nothing is mounted in it. Else only files with several names go by inodes: a listing says of a mountpoint what lies under
    /// it, and a file may show at several places.
    whole: bool,
    /// The file system has parts that number their inodes apart.
    volumes: bool,
}

impl Seed {
    fn hash_of(&self, inode: u64) -> u64 {
        stable_hash(self.hash, &inode.to_le_bytes())
    }
}

impl ByInode {
    pub fn of(layers: usize) -> ByInode {
        ByInode {
            never: AtomicBool::new(false),
            seeds: (0..layers).map(|_| OnceLock::new()).collect(),
        }
    }
}

/// None for a layer whose files cannot go by their inodes. A copy of a layer has another seed: an upper that was begun over
/// the one may be mounted over the other, and keeps numbers.
fn seed_of(layer: &Layer, mounts: &Mounts) -> io::Result<Option<Seed>> {
    let (_, root) = layer.root.current();
    let fs = mounts.holding(root.as_fd(), layer.root.device());
    let Some(fs) = fs.filter(|fs| fs.has_lasting_inodes() && !layer.cvmfs) else {
        return Ok(None);
    };
    let path = fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd()))?;
    let found = meta::statx_unasked(root.as_fd(), c"", libc::STATX_INO | libc::STATX_BTIME)?;
    if found.stx_mask & libc::STATX_BTIME == 0 {
        return Ok(None);
    }
    let parts = [
        found.stx_ino,
        found.stx_btime.tv_sec.cast_unsigned(),
        found.stx_btime.tv_nsec.into(),
    ];
    let hash = parts.iter().fold(layer.seed ^ INODE, |seed, part| {
        stable_hash(seed, &part.to_le_bytes())
    });
    Ok(Some(Seed {
        hash,
        whole: !mounts.any_below(&path),
        volumes: fs.has_volumes(),
    }))
}

impl Lowers {
    /// Numbers all objects by their paths, for an upper that was begun when that was the only way. To be called before
    /// any number is asked for.
    pub fn number_by_path(&self) {
        self.by_inode.never.store(true, Ordering::Relaxed);
    }

    fn seed(&self, at: LayerIndex, layer: &Layer) -> Option<Seed> {
        if self.by_inode.never.load(Ordering::Relaxed) {
            return None;
        }
        let seed = self.by_inode.seeds.get(at as usize)?;
        *seed.get_or_init(|| seed_of(layer, self.mounts()?).ok().flatten())
    }

    /// Whether a listing of an open directory tells inodes that its files go by.
    pub(super) fn lists_inodes(&self, dir: &LowerDir, open: BorrowedFd<'_>) -> bool {
        self.layer(dir).is_some_and(|layer| {
            let seed = || self.seed(dir.layer, layer);
            let home = |seed: Seed| seed.whole && (!seed.volumes || layer.root.holds(open));
            // At mount nobody has to know yet.
            dir.is_root() || seed().is_some_and(home)
        })
    }

    /// The hash of an inode that a listing tells of, and that is no directory. None if it does not go by that.
    pub fn hash_of_inode(&self, dir: &LowerDir, inode: u64) -> Option<u64> {
        let seed = self.seed(dir.layer, self.layer(dir)?)?;
        seed.whole.then(|| seed.hash_of(inode))
    }

    /// The hash of an object of a layer that is no directory.
    pub fn hash_of_file(&self, dir: &LowerDir, name: &[u8], stat: &Stat) -> u64 {
        let layer = self.layer(dir);
        let at_home = layer.is_some_and(|l| l.root.device() == stat.st_dev);
        let seed = layer.filter(|_| at_home);
        let seed = seed.and_then(|layer| self.seed(dir.layer, layer));
        let has_names = stat.st_nlink > 1;
        if let Some(seed) = seed.filter(|seed| seed.whole || has_names) {
            return seed.hash_of(stat.st_ino);
        }
        if !has_names {
            return dir.hash_of(name);
        }
        let hash = stable_hash(
            layer.map_or(0, |l| l.seed) ^ INODE,
            &stat.st_ino.to_le_bytes(),
        );
        match at_home {
            true => hash,
            // A layer that holds other file systems may have several inodes of the same number.
            false => stable_hash(hash, &stat.st_dev.to_le_bytes()),
        }
    }
}
