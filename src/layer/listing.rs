//! The merged, immutable listing of the lower part of a directory.
//!
//! Each contributing layer is read once, top to bottom. A whiteout hides what lies in the layers below
//! it, never a sibling of its own layer (OCI image specification, "Whiteouts").

use std::cmp::Ordering;
use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::dialect::{self, WH_OPAQUE};
use super::dir::LayerIndex;
use super::overrides::Overrides;
use super::{Ask, LowerDir, Lowers, quiet};
use crate::at_once;
use crate::error::{Error, Result};
use crate::sys::dirent::{self, End};
use crate::sys::meta::{self, Stat};
use crate::sys::xattr;

/// One name of the merged lower listing.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'a> {
    /// Never `.`, `..`, a marker or a catalogue of CVMFS.
    pub name: &'a [u8],
    /// `DT_*`.
    pub kind: u8,
    /// The object has no other name, as far as a listing tells that.
    pub alone: bool,
    /// The number of its inode, where files may go by that. None: not known.
    pub inode: Option<u64>,
    /// The directories that hold the name, topmost first: one, or for a directory all that merge.
    pub owners: &'a [Arc<LowerDir>],
}

/// What all the lowers say about the names in one directory: the directories and then the others, each in the order of
/// their bytes. So a name keeps its place when the listing is read again. 8 bytes are kept beside a name, and its inode.
#[derive(Debug, Default)]
pub struct Listing {
    entries: Box<[Entry]>,
    /// So many of them are directories.
    dirs: usize,
    /// All names, one after the other.
    names: Box<[u8]>,
    inodes: Inodes,
    /// The sets of owners that occur.
    owners: Box<[Box<[Arc<LowerDir>]>]>,
}

/// The names before an entry tell where its own begins.
#[derive(Debug)]
struct Entry {
    /// Where the name ends.
    end: u32,
    /// The set of owners, whether the object is known to be alone, and in the lowest bits the kind.
    owners_and_kind: u32,
}

/// `DT_*` of objects have so many bits.
const KIND_BITS: u32 = 4;
const ALONE: u32 = 1 << KIND_BITS;
const BITS: u32 = KIND_BITS + 1;

impl Entry {
    /// None if a number is too large. A kind that does not exist is unknown.
    fn new(end: usize, owners: usize, kind: u8, alone: bool) -> Option<Entry> {
        let owners = u32::try_from(owners).ok()?;
        let kind = if kind < 1 << KIND_BITS {
            kind
        } else {
            libc::DT_UNKNOWN
        };
        let alone = if alone { ALONE } else { 0 };
        (owners < 1 << (u32::BITS - BITS)).then_some(Entry {
            end: u32::try_from(end).ok()?,
            owners_and_kind: owners << BITS | alone | u32::from(kind),
        })
    }

    fn owners(&self) -> usize {
        (self.owners_and_kind >> BITS) as usize
    }

    fn alone(&self) -> bool {
        self.owners_and_kind & ALONE != 0
    }

    fn kind(&self) -> u8 {
        (self.owners_and_kind & ((1 << KIND_BITS) - 1)) as u8
    }
}

/// The numbers of the inodes of all entries; 0 is none.
#[derive(Debug, Default)]
enum Inodes {
    #[default]
    Unknown,
    /// As most file systems have them.
    Narrow(Box<[u32]>),
    Wide(Box<[u64]>),
}

impl Inodes {
    fn new(all: Vec<u64>) -> Inodes {
        if all.iter().all(|inode| *inode == 0) {
            return Inodes::Unknown;
        }
        match all.iter().map(|inode| u32::try_from(*inode)).collect() {
            Ok(narrow) => Inodes::Narrow(narrow),
            Err(_) => Inodes::Wide(all.into()),
        }
    }

    fn get(&self, at: usize) -> Option<u64> {
        let inode = match self {
            Inodes::Unknown => None,
            Inodes::Narrow(all) => all.get(at).map(|inode| u64::from(*inode)),
            Inodes::Wide(all) => all.get(at).copied(),
        };
        inode.filter(|inode| *inode != 0)
    }
}

/// A name while the listing is read.
struct Found {
    object: Object,
    owners: Vec<Arc<LowerDir>>,
}

/// Entries and names as a listing has them.
struct Packed {
    entries: Vec<Entry>,
    names: Vec<u8>,
    inodes: Vec<u64>,
}

/// Where an object has its place in a listing.
fn place(object: &Object) -> (bool, &[u8]) {
    (object.kind != libc::DT_DIR, &object.name)
}

impl Packed {
    /// With room for these.
    fn for_names<'a>(names: impl ExactSizeIterator<Item = &'a [u8]>) -> Packed {
        Packed {
            entries: Vec::with_capacity(names.len()),
            inodes: Vec::with_capacity(names.len()),
            names: Vec::with_capacity(names.map(<[u8]>::len).sum()),
        }
    }

    fn add(&mut self, object: &Object, owners: usize) -> Result<()> {
        self.names.extend_from_slice(&object.name);
        let entry = Entry::new(self.names.len(), owners, object.kind, object.alone);
        let too_many = || Error::new(libc::EOVERFLOW, "list a directory");
        self.entries.push(entry.ok_or_else(too_many)?);
        self.inodes.push(object.inode);
        Ok(())
    }

    fn listing(self, owners: Vec<Box<[Arc<LowerDir>]>>) -> Listing {
        Listing {
            dirs: self
                .entries
                .partition_point(|entry| entry.kind() == libc::DT_DIR),
            entries: self.entries.into(),
            names: self.names.into(),
            inodes: Inodes::new(self.inodes),
            owners: owners.into(),
        }
    }
}

/// What is said of a name by the layers above.
enum Seen {
    Whiteout,
    /// The entry, and whether directories below still merge into it.
    Entry(usize, bool),
}

impl Listing {
    /// Reads the listing. A layer that fails fails it all: a partial one would lose files.
    pub fn read(lowers: &Lowers, dirs: &[Arc<LowerDir>]) -> Result<Listing> {
        if let [only] = dirs {
            return Listing::of_one(only, read_layer(lowers, only)?.objects);
        }
        Self::merge(dirs, dirs.iter().map(|dir| read_layer(lowers, dir)))
    }

    /// The same; no layer waits for another, though a layer that is opaque hides those below it.
    pub fn read_at_once(lowers: &Lowers, dirs: &[Arc<LowerDir>]) -> Result<Listing> {
        Self::merge(dirs, at_once::ask(dirs, |dir| read_layer(lowers, dir)))
    }

    /// Merges what the directories say, and asks for no more of it than counts.
    fn merge(
        dirs: &[Arc<LowerDir>],
        said: impl IntoIterator<Item = Result<LayerListing>>,
    ) -> Result<Listing> {
        let mut entries: Vec<Found> = Vec::new();
        let mut seen: HashMap<Box<[u8]>, Seen> = HashMap::new();
        for (dir, layer) in dirs.iter().zip(said) {
            let layer = layer?;
            for object in layer.objects {
                let is_dir = object.kind == libc::DT_DIR;
                match seen.get_mut(&object.name) {
                    None => {
                        seen.insert(object.name.clone(), Seen::Entry(entries.len(), is_dir));
                        entries.push(Found {
                            object,
                            owners: vec![dir.clone()],
                        });
                    }
                    Some(Seen::Entry(at, merging)) if *merging => {
                        *merging = is_dir;
                        if let (true, Some(entry)) = (*merging, entries.get_mut(*at)) {
                            entry.owners.push(dir.clone());
                        }
                    }
                    Some(_) => {}
                }
            }
            for name in layer.whiteouts {
                match seen.get_mut(&name) {
                    None => drop(seen.insert(name, Seen::Whiteout)),
                    Some(Seen::Entry(_, merging)) => *merging = false,
                    Some(Seen::Whiteout) => {}
                }
            }
            if layer.opaque {
                break;
            }
        }
        Listing::pack(entries)
    }

    /// What one layer holds, which nothing hides.
    fn of_one(dir: &Arc<LowerDir>, mut objects: Vec<Object>) -> Result<Listing> {
        objects.sort_unstable_by(|a, b| place(a).cmp(&place(b)));
        objects.dedup_by(|a, b| a.name == b.name);
        let mut packed = Packed::for_names(objects.iter().map(|object| &*object.name));
        for object in &objects {
            packed.add(object, 0)?;
        }
        Ok(packed.listing(vec![Box::new([dir.clone()])]))
    }

    fn pack(mut found: Vec<Found>) -> Result<Listing> {
        found.sort_unstable_by(|a, b| place(&a.object).cmp(&place(&b.object)));
        let mut packed = Packed::for_names(found.iter().map(|f| &*f.object.name));
        let mut sets: HashMap<Vec<LayerIndex>, usize> = HashMap::new();
        let mut owners = Vec::new();
        for f in found {
            let layers = f.owners.iter().map(|dir| dir.layer).collect();
            let set = *sets.entry(layers).or_insert(owners.len());
            if set == owners.len() {
                owners.push(f.owners.into());
            }
            packed.add(&f.object, set)?;
        }
        Ok(packed.listing(owners))
    }

    /// The entry at a position.
    fn at(&self, at: usize) -> Option<Listed<'_>> {
        let entry = self.entries.get(at)?;
        let before = at.checked_sub(1).and_then(|at| self.entries.get(at));
        let begin = before.map_or(0, |before| before.end as usize);
        let owners = self.owners.get(entry.owners());
        Some(Listed {
            name: self.names.get(begin..entry.end as usize)?,
            kind: entry.kind(),
            alone: entry.alone(),
            inode: self.inodes.get(at),
            owners: owners.map_or(&[], |owners| owners),
        })
    }

    /// None for a name that no layer shows: absent, deleted or hidden.
    pub fn get(&self, name: &[u8]) -> Option<Listed<'_>> {
        let found = self.find(name, self.dirs, self.len());
        found.or_else(|| self.find(name, 0, self.dirs))
    }

    /// Looks between two positions where names are in their order.
    fn find(&self, name: &[u8], mut low: usize, mut high: usize) -> Option<Listed<'_>> {
        while low < high {
            let middle = low + (high - low) / 2;
            let listed = self.at(middle)?;
            match listed.name.cmp(name) {
                Ordering::Equal => return Some(listed),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The entries from position `at` on.
    pub fn from(&self, at: usize) -> impl Iterator<Item = Listed<'_>> {
        (at..self.len()).map_while(|at| self.at(at))
    }

    /// The number of names, and the position after the last.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The directories among them, which come first.
    pub fn dirs(&self) -> impl Iterator<Item = Listed<'_>> {
        self.from(0).take(self.dirs)
    }

    /// Whether the layers show nothing here; whiteouts do not count.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

/// What a layer that was asked for one name says, in a directory that no other layer has a part in.
#[derive(Debug)]
pub enum Probe {
    /// It has no such name.
    Absent,
    /// The object.
    There(Stat),
    /// Only the listing tells.
    Unclear,
}

impl Lowers {
    /// Asks for one name.
    pub fn probe(&self, dir: &LowerDir, name: &[u8]) -> Result<Probe> {
        if dialect::hidden_in_lower(name) {
            return Ok(Probe::Absent);
        }
        let cvmfs = self.layer(dir).is_some_and(|l| l.cvmfs);
        self.with(dir, name, Ask::Stat, "stat lower", |fd| {
            let mut stat = match meta::fstatat(fd, name) {
                Ok(stat) => stat,
                Err(e) => return unless_there(e),
            };
            let kind = dtype_of(stat.st_mode);
            self.override_stat(dir, fd, name, &mut stat)?;
            Ok(match kind {
                libc::DT_CHR if stat.st_rdev == 0 => Probe::Absent,
                // It may be a whiteout by its attribute.
                libc::DT_REG if stat.st_size == 0 && !cvmfs => Probe::Unclear,
                _ => Probe::There(stat),
            })
        })
    }
}

/// What one layer says of a name, in one directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Observed {
    /// `DT_*` of the object that it holds.
    pub object: Option<u8>,
    /// It deletes what the layers below hold under the name.
    pub whiteout: bool,
    /// It hides what they hold of the directory.
    pub opaque: bool,
}

impl Lowers {
    /// Asks a layer for a name without regard to the others; its whole directory is read for that.
    pub fn observe(&self, dir: &LowerDir, name: &[u8]) -> Result<Observed> {
        let listing = read_layer(self, dir)?;
        let object = listing.objects.iter().find(|object| &*object.name == name);
        Ok(Observed {
            object: object.map(|object| object.kind),
            whiteout: listing.whiteouts.iter().any(|gone| &**gone == name),
            opaque: listing.opaque,
        })
    }
}

/// What the error of a probe means. A listing needs other rights, and knows no name too long.
fn unless_there(e: io::Error) -> io::Result<Probe> {
    match e.raw_os_error() {
        Some(libc::ENOENT | libc::ENAMETOOLONG) => Ok(Probe::Absent),
        Some(libc::EACCES) => Ok(Probe::Unclear),
        _ => Err(e),
    }
}

/// A name in one layer.
struct Object {
    name: Box<[u8]>,
    kind: u8,
    alone: bool,
    /// 0: not known.
    inode: u64,
}

#[derive(Default)]
struct LayerListing {
    objects: Vec<Object>,
    whiteouts: Vec<Box<[u8]>>,
    opaque: bool,
}

fn read_layer(lowers: &Lowers, dir: &LowerDir) -> Result<LayerListing> {
    let layer = lowers.layer(dir);
    let cvmfs = layer.is_some_and(|l| l.cvmfs);
    let end = layer.map_or(End::Empty, |l| l.end);
    let (raw, marks, inodes) = lowers.with(dir, b"", Ask::List, "read lower directory", |fd| {
        let open = quiet::open(fd, b".", libc::O_DIRECTORY)?;
        let mut raw: Vec<(Box<[u8]>, u8, u64)> = Vec::new();
        let each = |name: &[u8], kind, ino| raw.push((name.into(), kind, ino));
        dirent::read_dir_to(end, open.as_fd(), each)?;
        if cvmfs {
            return Ok((raw, Opaque::default(), false));
        }
        let inodes = lowers.lists_inodes(dir, open.as_fd());
        Ok((raw, opaque_xattrs(open.as_fd())?, inodes))
    })?;
    if let (Some(layer), Some(overrides), true) = (layer, marks.overrides, dir.is_root()) {
        layer.overrides.get_or_init(|| overrides);
    }
    let mut out = LayerListing {
        opaque: marks.opaque,
        ..LayerListing::default()
    };
    // On CVMFS the names of a file lie in one directory. Elsewhere they may be anywhere in the layer.
    let mut names_of = HashMap::new();
    if cvmfs {
        raw.iter()
            .for_each(|(_, _, ino)| *names_of.entry(*ino).or_insert(0) += 1);
    }
    for (name, mut kind, ino) in raw {
        if &*name == WH_OPAQUE {
            out.opaque = true;
        } else if let Some(deleted) = dialect::deleted_by(&name) {
            out.whiteouts.push(deleted.into());
        } else if !dialect::hidden_in_lower(&name) {
            let mut whiteout = false;
            if kind == libc::DT_CHR || kind == libc::DT_UNKNOWN {
                let st = lowers.stat(dir, &name)?;
                kind = dtype_of(st.st_mode);
                whiteout = kind == libc::DT_CHR && st.st_rdev == 0;
            } else if kind == libc::DT_REG && marks.holds_xattr_whiteouts {
                whiteout = lowers.with(dir, &name, Ask::Xattr, "read xattrs of lower", |fd| {
                    is_xattr_whiteout(fd, &name)
                })?;
            }
            if whiteout {
                out.whiteouts.push(name);
            } else {
                let alone = kind == libc::DT_DIR || names_of.get(&ino) == Some(&1);
                let inode = if inodes { ino } else { 0 };
                out.objects.push(Object {
                    name,
                    kind,
                    alone,
                    inode,
                });
            }
        }
    }
    Ok(out)
}

/// The `d_type` that goes with a mode.
pub fn dtype_of(mode: u32) -> u8 {
    u8::try_from((mode & libc::S_IFMT) >> 12).unwrap_or(libc::DT_UNKNOWN)
}

/// What the attributes of a directory say about deletions in it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opaque {
    /// What layers below hold of the directory is hidden.
    pub opaque: bool,
    /// `overlay.opaque` is `x`: files with an `overlay.whiteout` attribute are whiteouts.
    pub holds_xattr_whiteouts: bool,
    /// Owners and modes are kept beside the files; it counts on the root of a layer.
    pub overrides: Option<Overrides>,
}

/// Reads the opaque marks of a directory, of all unions.
pub fn opaque_xattrs(dir: BorrowedFd<'_>) -> io::Result<Opaque> {
    let mut marks = Opaque::default();
    let keys = match xattr::list(dir, b"") {
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(marks),
        other => other?,
    };
    marks.overrides = Overrides::among(&keys);
    for key in [
        c"trusted.overlay.opaque",
        c"user.overlay.opaque",
        c"user.fuseoverlayfs.opaque",
    ] {
        if keys.split(|b| *b == 0).any(|k| k == key.to_bytes()) {
            match xattr::get(dir, b"", key)?.as_slice() {
                b"y" => marks.opaque = true,
                b"x" => marks.holds_xattr_whiteouts = true,
                _ => {}
            }
        }
    }
    Ok(marks)
}

/// Whether an empty file stands for a deletion by its attribute.
pub fn is_xattr_whiteout(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<bool> {
    if meta::fstatat(dir, name)?.st_size != 0 {
        return Ok(false);
    }
    for key in [c"trusted.overlay.whiteout", c"user.overlay.whiteout"] {
        match xattr::get(dir, name, key) {
            Ok(_) => return Ok(true),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}
