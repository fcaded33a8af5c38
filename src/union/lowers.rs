//! What the lowers say: merged listings, kept for a while, and the objects behind their names.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

use super::Union;
use super::api::{Kind, Owner};
use super::node::{LowerAt, Node};
use crate::error::{Error, Result};
use crate::hash::{Numbers, stable_hash};
use crate::layer::{Listed, Listing, LowerDir, LowerFile, Lowers, Probe};
use crate::sys::meta::Stat;

/// How many names the kept listings may hold together, which is some 8 MB; the last one read may hold
/// more.
const KEPT_NAMES: usize = 1 << 18;

/// To read a listing of so many names takes much memory for a moment.
const MANY_NAMES: usize = 1 << 16;

/// Mixed into the number of an object that comes from a lower; upper-born numbers lack it.
pub const LOWER_BIT: u64 = 1 << 62;

/// Which directories a listing merges: their layers and hashes.
type Key = Vec<(u32, u64)>;

/// The merged listings, by the layers and hashes of the directories they merge.
#[derive(Debug)]
pub struct Listings {
    kept: Mutex<Kept>,
    /// One of many names was read since somebody asked.
    read_many: AtomicBool,
}

#[derive(Debug)]
struct Kept {
    listings: LruCache<Key, Arc<Listing>, Numbers>,
    names: usize,
}

impl Listings {
    /// Keeps at most so many.
    pub fn new(most: NonZeroUsize) -> Listings {
        let listings = LruCache::with_hasher(most, Numbers::default());
        Listings {
            kept: Mutex::new(Kept { listings, names: 0 }),
            read_many: AtomicBool::new(false),
        }
    }

    /// How many are kept, and the number of names in them.
    pub fn size(&self) -> (usize, usize) {
        let kept = self.kept.lock();
        (kept.listings.len(), kept.names)
    }

    /// Lets go of all but the wanted.
    fn retain(&self, wanted: impl Fn(&Key) -> bool) {
        let mut kept = self.kept.lock();
        let unwanted = kept.listings.iter().map(|(key, _)| key);
        let unwanted: Vec<Key> = unwanted.filter(|key| !wanted(key)).cloned().collect();
        for key in unwanted {
            kept.names -= kept.listings.pop(&key).map_or(0, |old| old.len());
        }
    }

    fn get(&self, key: &Key) -> Option<Arc<Listing>> {
        self.kept.lock().listings.get(key).cloned()
    }

    /// Reads a listing, and keeps it.
    pub fn read(&self, lowers: &Lowers, dirs: &[Arc<LowerDir>]) -> Result<Arc<Listing>> {
        let listing = Arc::new(Listing::read(lowers, dirs)?);
        self.put(key(dirs), listing.clone());
        Ok(listing)
    }

    /// Whether much memory has become free by reading since this was asked last.
    pub fn have_read_many(&self) -> bool {
        self.read_many.load(Ordering::Relaxed) && self.read_many.swap(false, Ordering::Relaxed)
    }

    /// Reads that of the root. On CVMFS a layer is slow to answer for the first time, so all are asked at
    /// once.
    pub fn read_roots(&self, lowers: &Lowers) -> Result<()> {
        let roots = lowers.roots();
        if !lowers.are_cvmfs() {
            return self.read(lowers, &roots).map(drop);
        }
        let listing = Listing::read_at_once(lowers, &roots)?;
        self.put(key(&roots), Arc::new(listing));
        Ok(())
    }

    fn put(&self, key: Key, listing: Arc<Listing>) {
        if listing.len() > MANY_NAMES {
            self.read_many.store(true, Ordering::Relaxed);
        }
        let mut kept = self.kept.lock();
        kept.names += listing.len();
        if let Some((_, old)) = kept.listings.push(key, listing) {
            kept.names -= old.len();
        }
        while kept.names > KEPT_NAMES && kept.listings.len() > 1 {
            let Some((_, old)) = kept.listings.pop_lru() else {
                break;
            };
            kept.names -= old.len();
        }
    }
}

fn key(dirs: &[Arc<LowerDir>]) -> Key {
    dirs.iter().map(|d| (d.layer, d.hash)).collect()
}

/// An object of the lowers.
#[derive(Debug)]
pub struct Below {
    pub ino: u64,
    pub at: LowerAt,
    /// Of a directory: all that merge, topmost first.
    pub dirs: Vec<Arc<LowerDir>>,
}

/// What is known of a name in the lowers before any of them is asked.
#[derive(Clone, Copy, Debug)]
pub enum Clue<'a> {
    /// What the listing of the directory says.
    Listed(Option<Listed<'a>>),
    /// No listing is at hand.
    Unlisted,
}

impl Clue<'_> {
    /// What a listing says of the name, if there is one.
    pub fn of<'a>(listing: Option<&'a Listing>, name: &[u8]) -> Clue<'a> {
        listing.map_or(Clue::Unlisted, |listing| Clue::Listed(listing.get(name)))
    }
}

/// How many absent names a directory is asked for before its listing is read: about as many as reading
/// it takes requests, which are one to open it and one for each page, on most file systems with another
/// one for the end.
fn most_misses(dir: &Node) -> u32 {
    let size = dir.lower.as_ref().map_or(0, |lower| lower.stat().st_size);
    let pages = u32::try_from(size / 4096).unwrap_or(0).clamp(1, 62);
    2 + pages
}

/// The number that goes with a hash.
fn lower_ino(hash: u64) -> u64 {
    (hash & (LOWER_BIT - 1)) | LOWER_BIT
}

/// The number of a listed object, whose inode has that hash if it can go by it; directories go by their paths.
fn listed_number(top: &LowerDir, entry: &Listed<'_>, by_inode: Option<u64>) -> u64 {
    let by_inode = by_inode.filter(|_| entry.kind != libc::DT_DIR);
    lower_ino(by_inode.unwrap_or_else(|| top.hash_of(entry.name)))
}

/// A number for an object whose own has somebody else.
pub fn another_ino(ino: u64) -> u64 {
    lower_ino(stable_hash(ino, b""))
}

/// Whether a number can be one of [`lower_ino`]: no other is ever written in a mark.
pub fn is_lower_ino(ino: u64) -> bool {
    ino & !(LOWER_BIT - 1) == LOWER_BIT
}

/// The kind that goes with a mode.
pub fn kind_of(mode: u32) -> Kind {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => Kind::Dir,
        libc::S_IFLNK => Kind::Symlink,
        libc::S_IFIFO => Kind::Fifo,
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFCHR => Kind::Char,
        libc::S_IFBLK => Kind::Block,
        _ => Kind::File,
    }
}

/// The attributes of a merged directory: of the topmost layer that does not merely imply it. CVMFS
/// shows a directory that no archive held as 65534:65534 with mode 0755.
pub fn stat_merged(lowers: &Lowers, dirs: &[Arc<LowerDir>], name: &[u8]) -> Result<LowerAt> {
    let mut first = None;
    for dir in dirs {
        let stat = lowers.stat(dir, name)?;
        let implied = (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777) == (65534, 65534, 0o755);
        let at = LowerAt {
            dir: dir.clone(),
            name: name.into(),
            stat,
        };
        if !implied {
            return Ok(at);
        }
        first.get_or_insert(at);
    }
    first.ok_or_else(|| Error::new(libc::EIO, "no layer holds the directory"))
}

/// Applies `--owner` and what CVMFS does not store.
pub fn shown(mut stat: Stat, owner: Owner) -> Stat {
    if owner == Owner::Squash {
        (stat.st_uid, stat.st_gid) = (0, 0);
    }
    if stat.st_mode & libc::S_IFMT == libc::S_IFLNK {
        stat.st_mode = libc::S_IFLNK | 0o777;
    }
    stat
}

impl Union {
    /// The merged listing of the lower part of a directory.
    pub(super) fn listing(&self, node: &Node) -> Result<Arc<Listing>> {
        self.listing_of(&node.as_dir()?.lowers)
    }

    fn listing_of(&self, dirs: &[Arc<LowerDir>]) -> Result<Arc<Listing>> {
        if let Some(listing) = self.kept_listing(dirs) {
            return Ok(listing);
        }
        self.listings.read(&self.lowers, dirs)
    }

    /// The listing, if no layer has to be asked for it.
    pub(super) fn kept_listing(&self, dirs: &[Arc<LowerDir>]) -> Option<Arc<Listing>> {
        if dirs.is_empty() {
            return Some(Arc::default());
        }
        self.listings.get(&key(dirs))
    }

    /// Lets go of the listings of directories that nobody knows any more.
    pub fn drop_listings(&self) {
        let root = self.root().ok();
        let root = root.and_then(|root| root.as_dir().ok().map(|dir| key(&dir.lowers)));
        self.listings.retain(|key| {
            let top = key.first().map(|(_, hash)| lower_ino(*hash));
            root.as_ref() == Some(key) || top.is_some_and(|ino| self.table.find(ino).is_some())
        });
    }

    /// The number of the object behind an entry, if it goes by its path or the listing tells its inode.
    fn number_of(&self, entry: &Listed<'_>) -> Option<u64> {
        let top = entry.owners.first()?;
        Some(listed_number(top, entry, self.inode_hash(top, entry)))
    }

    /// The same and the kind, where the listing tells both for certain.
    pub(super) fn known_by_listing(&self, entry: &Listed<'_>) -> Option<(u64, Kind)> {
        let top = entry.owners.first()?;
        let by_inode = self.inode_hash(top, entry);
        let has_its_number = entry.alone || by_inode.is_some();
        let has_its_kind = entry.kind != libc::DT_UNKNOWN && !self.lowers.has_overrides(top);
        let kind = kind_of(u32::from(entry.kind) << 12);
        let known = has_its_number && has_its_kind;
        known.then(|| (listed_number(top, entry, by_inode), kind))
    }

    fn inode_hash(&self, top: &LowerDir, entry: &Listed<'_>) -> Option<u64> {
        self.lowers.hash_of_inode(top, entry.inode?)
    }

    /// The number of what the lowers hold under a name, if that can be told without a look at it.
    pub(super) fn number_below(&self, parent: &Node, name: &[u8], clue: Clue<'_>) -> Option<u64> {
        match (clue, parent.dir.as_ref()?.lowers.as_slice()) {
            (Clue::Listed(entry), _) => self.number_of(&entry?),
            (Clue::Unlisted, [only]) => Some(lower_ino(only.hash_of(name))),
            (Clue::Unlisted, _) => None,
        }
    }

    /// What the lowers hold under a name of a directory.
    ///
    /// Where one layer alone holds the directory, it is asked for the name itself, until so many names
    /// were not there that its listing would have cost no more. A huge directory is not read for one name.
    pub(super) fn below_in(
        &self,
        parent: &Node,
        name: &[u8],
        clue: Clue<'_>,
    ) -> Result<Option<Below>> {
        if let Clue::Listed(entry) = clue {
            return entry.map(|entry| self.below(&entry)).transpose();
        }
        let dir = parent.as_dir()?;
        if let [only] = dir.lowers.as_slice()
            && dir.misses.load(Ordering::Relaxed) < most_misses(parent)
        {
            match self.lowers.probe(only, name)? {
                Probe::There(stat) => return Ok(Some(self.below_alone(only, name, stat))),
                Probe::Absent => {
                    dir.misses.fetch_add(1, Ordering::Relaxed);
                    return Ok(None);
                }
                Probe::Unclear => {}
            }
        }
        let listing = self.listing_of(&dir.lowers)?;
        let entry = listing.get(name);
        entry.map(|entry| self.below(&entry)).transpose()
    }

    /// The object that one layer alone holds under a name.
    fn below_alone(&self, top: &Arc<LowerDir>, name: &[u8], stat: Stat) -> Below {
        let is_dir = kind_of(stat.st_mode) == Kind::Dir;
        let hash = if is_dir {
            top.hash_of(name)
        } else {
            self.lowers.hash_of_file(top, name, &stat)
        };
        let at = LowerAt {
            dir: top.clone(),
            name: name.into(),
            stat: shown(stat, self.owner),
        };
        Below {
            ino: lower_ino(hash),
            at,
            dirs: is_dir.then(|| top.child(name)).into_iter().collect(),
        }
    }

    /// The object behind an entry of a listing.
    pub(super) fn below(&self, entry: &Listed<'_>) -> Result<Below> {
        let Some(top) = entry.owners.first() else {
            return Err(Error::new(libc::EIO, "entry without a layer"));
        };
        if entry.kind == libc::DT_DIR {
            let mut at = stat_merged(&self.lowers, entry.owners, entry.name)?;
            at.stat = shown(at.stat, self.owner);
            let ino = lower_ino(top.hash_of(entry.name));
            let dirs = entry.owners.iter().map(|d| d.child(entry.name)).collect();
            return Ok(Below { ino, at, dirs });
        }
        let stat = self.lowers.stat(top, entry.name)?;
        Ok(self.below_alone(top, entry.name, stat))
    }

    /// What the merged lowers hold under an absolute path, as redirects name it.
    pub(super) fn below_path(&self, path: &[u8]) -> Result<Option<Below>> {
        let mut dirs = self.lowers.roots();
        let mut names = path
            .split(|b| *b == b'/')
            .filter(|n| !n.is_empty())
            .peekable();
        while let Some(name) = names.next() {
            let listing = self.listing_of(&dirs)?;
            let Some(entry) = listing.get(name) else {
                return Ok(None);
            };
            if names.peek().is_none() {
                return self.below(&entry).map(Some);
            }
            if entry.kind != libc::DT_DIR {
                return Ok(None);
            }
            dirs = entry.owners.iter().map(|d| d.child(name)).collect();
        }
        Ok(None)
    }

    /// The target of a symlink of a lower.
    pub(super) fn read_lower_link(&self, at: &LowerAt) -> Result<Vec<u8>> {
        self.lowers.read_link(&at.dir, &at.name)
    }
}

impl Below {
    /// Whether it is no directory, and its layer has no other name of it.
    pub fn has_one_name(&self) -> bool {
        self.dirs.is_empty() && self.at.stat.st_nlink <= 1
    }
}

impl LowerAt {
    /// The file, for reading its data.
    pub fn file(&self) -> LowerFile {
        LowerFile::new(&self.dir, &self.name, self.stat)
    }

    /// The absolute path in the lowers.
    pub fn path(&self) -> Vec<u8> {
        let mut path = self.dir.path();
        path.push(b'/');
        path.extend_from_slice(&self.name);
        path
    }
}
