//! The read-write directory and its work directory: locks, abilities, the dialect of its names.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::Hasher as _;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use lru::LruCache;
use parking_lot::Mutex;

use super::api::{Durability, Ino, ROOT, UnionConfig, UpperSpec, Whiteouts};
use super::barrier::Barriers;
use super::beside::own_mode;
use super::copy_data::Ways;
use super::lowers::LOWER_BIT;
use super::marks::{Mark, Marks, Space};
use super::node::Node;
use super::place::At;
use super::work::{self, Made, Probe};
use crate::error::{Context, Error, Result, best_effort};
use crate::hash::NumberHasher;
use crate::layer::dialect::{self, WH};
use crate::layer::listing::{dtype_of, is_xattr_whiteout, opaque_xattrs};
use crate::layer::overrides::Overrides;
use crate::sys::{dirent, file, meta, name};

/// How a user's name that begins with `.wh.` is stored where such names are marks.
const ESCAPED: &[u8] = b".wh..wh.u.";
/// The value of the dialect mark of an upper in which `.wh.` names are the users'.
const PLAIN: &[u8] = b"plain";
/// The file in the work directory that tells of an upper which a crash may have torn.
pub const VOLATILE: &[u8] = b"volatile";
/// The file in the work directory that keeps what the file system can hold.
pub const ABILITIES: &[u8] = b"abilities";
/// The file in the work directory that tells of an upper whose root was taken from below.
const ADOPTED: &[u8] = b"adopted";
/// The file in the work directory that tells of an upper over which files of layers may be numbered by their inodes.
const INODES: &[u8] = b"inodes";

/// In the numbers of what has another device than the upper itself. No file system counts so far.
const FOREIGN_BIT: u64 = 1 << 61;

/// How deletions are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A character device 0:0, and the opaque attribute.
    Overlay,
    /// `.wh.NAME` and `.wh..wh..opq`.
    Wh,
}

#[derive(Debug)]
pub struct Upper {
    pub root: Arc<OwnedFd>,
    /// Where temporaries are made.
    pub work: Arc<OwnedFd>,
    /// One more name for each copied-up file with several names, by the number of its node.
    pub index: Arc<OwnedFd>,
    base: OwnedFd,
    /// What stat says of the upper itself.
    device: libc::dev_t,
    pub style: Style,
    /// Where owners and modes are kept, if not by the files themselves.
    pub beside: Option<Overrides>,
    /// `.wh.` names are marks, so the users' are escaped.
    wh_is_mark: bool,
    pub space: Space,
    pub durability: Durability,
    barriers: Barriers,
    pub ways: Ways,
    /// None: not known.
    pub made: Option<Made>,
    /// Redirects and metadata-only copies may be written.
    pub extended: bool,
    /// Real device nodes can be made.
    pub devices: bool,
    /// The user and group of what the daemon makes.
    pub uid: u32,
    pub gid: u32,
    kept: Mutex<LruCache<Ino, Arc<OwnedFd>>>,
    /// The numbers of copied-up objects where no attribute can keep them: by what [`Upper::number`] says.
    remembered: Mutex<HashMap<u64, Ino>>,
    /// Tells the temporaries of this union from those of others, and from each other.
    begun: u128,
    temp: AtomicU64,
}

impl Upper {
    /// Gives the locks back before the end of the process, which a thread may hold up that waits for a
    /// layer. Nothing is to be changed afterwards.
    pub fn unlock(&self) -> Result<()> {
        for fd in [self.root.as_fd(), self.base.as_fd()] {
            file::unlock(fd).op("unlock")?;
        }
        Ok(())
    }

    /// Opens and locks the directories, cleans the work directory, finds out what can be stored.
    pub fn open(spec: &UpperSpec, config: &UnionConfig) -> Result<Upper> {
        let root = open_dir(&spec.upper, "open upper")?;
        let base = open_dir(&spec.work, "open work directory")?;
        let (in_upper, in_work) = (stat_of(&root, &spec.upper)?, stat_of(&base, &spec.work)?);
        if in_upper.st_dev != in_work.st_dev {
            return Err(
                Error::new(libc::EXDEV, "work directory and upper on two file systems")
                    .at(&spec.work),
            );
        }
        for (fd, path) in [(&root, &spec.upper), (&base, &spec.work)] {
            file::lock_exclusive(fd.as_fd())
                .op("lock")
                .map_err(|e| e.at(path))?;
        }
        if holds(&base, VOLATILE)? {
            let why = "upper was not synced when its last mount was cut off; discard it";
            return Err(Error::new(libc::EINVAL, why).at(&spec.upper));
        }
        let marks = opaque_xattrs(root.as_fd()).op("read marks");
        let found = marks.map_err(|e| e.at(&spec.upper))?.overrides;
        let beside = match (config.shown.beside, found) {
            (Some(asked), Some(found)) if asked.is_met_by(found) => Some(found),
            (asked, _) => asked,
        };
        if found.is_some() && found != beside {
            // What is in it would show with modes that are wider than they are.
            let why = "owners and modes are kept beside the files, in an attribute override_stat: mount it with the \
                       xattr_permissions that it was begun with, or as a layer, below an upper of its own";
            return Err(Error::new(libc::EOPNOTSUPP, why).at(&spec.upper));
        }
        let work = work::fresh(&base, b"work").map_err(|e| e.at(&spec.work))?;
        let index = work::kept(&base, b"index").map_err(|e| e.at(&spec.work))?;
        let probe = abilities(&base, &work).map_err(|e| e.at(&spec.work))?;
        let style = match config.whiteouts {
            Whiteouts::Wh => Style::Wh,
            Whiteouts::Auto if !probe.whiteout || probe.space == Space::None => Style::Wh,
            Whiteouts::Overlay if !probe.whiteout || probe.space == Space::None => {
                let why =
                    "the upper's file system cannot hold overlay whiteouts; use --whiteouts wh";
                return Err(Error::new(libc::EOPNOTSUPP, why).at(&spec.upper));
            }
            _ => Style::Overlay,
        };
        if config.durability == Durability::Volatile {
            let flags = libc::O_CREAT | libc::O_WRONLY;
            file::openat(base.as_fd(), VOLATILE, flags, 0o600).op("volatile marker")?;
        }
        let mut upper = Upper {
            root: Arc::new(root),
            work: Arc::new(work),
            index: Arc::new(index),
            base,
            device: in_upper.st_dev,
            style,
            beside,
            wh_is_mark: true,
            space: probe.space,
            durability: config.durability,
            barriers: Barriers::new(config.durability),
            ways: Ways::default(),
            made: probe.made,
            extended: !config.portable_upper && probe.space != Space::None,
            devices: probe.devices,
            uid: nix::unistd::geteuid().as_raw(),
            gid: nix::unistd::getegid().as_raw(),
            kept: Mutex::new(LruCache::new(config.limits.directories)),
            remembered: Mutex::default(),
            begun: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |since| since.as_nanos()),
            temp: AtomicU64::new(0),
        };
        if found.is_none() {
            upper.begin_beside().map_err(|e| e.at(&spec.upper))?;
        }
        upper.wh_is_mark = upper
            .settle_dialect(config.portable_upper)
            .map_err(|e| e.at(&spec.upper))?;
        if upper.space == Space::None {
            upper.remember_index()?;
        }
        upper.sweep_index()?;
        Ok(upper)
    }

    /// By the attribute on its root an upper is known for one that keeps owners beside its files.
    fn begin_beside(&self) -> Result<()> {
        if self.beside.is_none() {
            return Ok(());
        }
        if !self.is_empty()? {
            let why = "the upper was begun without xattr_permissions, so its files have no owners beside them";
            return Err(Error::new(libc::EINVAL, why));
        }
        let root = self.root_place();
        let stat = root.stat()?;
        self.keep_beside(&root, (stat.st_uid, stat.st_gid), stat.st_mode)
    }

    /// Whether `.wh.` names are marks here. An upper that is ours from its first name on, and holds
    /// other marks for deletions, leaves them to the users, and says so for ever.
    fn settle_dialect(&self, portable: bool) -> Result<bool> {
        let root = self.root_place();
        if is_plain(&self.marks(&root)?) {
            if self.style == Style::Wh {
                let why = "the upper was begun with overlay whiteouts; --whiteouts wh cannot take it over";
                return Err(Error::new(libc::EINVAL, why));
            }
            return Ok(false);
        }
        if self.style == Style::Wh || portable || !self.is_empty()? {
            return Ok(true);
        }
        self.set_mark(&root, Mark::Dialect, PLAIN)?;
        Ok(false)
    }

    /// Whether this upper has not got the attributes of the root below it yet.
    pub fn adopts_root(&self) -> Result<bool> {
        Ok(!holds(&self.base, ADOPTED)? && self.is_empty()?)
    }

    /// The root has its attributes; from now on they are the users'.
    pub fn note_adoption(&self) -> Result<()> {
        note(&self.base, ADOPTED).op("note the adopted root")
    }

    /// Whether files of layers may be numbered by their inodes. `new`: nothing keeps numbers yet.
    pub fn numbers_by_inode(&self, new: bool) -> Result<bool> {
        if new {
            note(&self.base, INODES).op("note the kind of numbers")?;
        }
        Ok(new || holds(&self.base, INODES)?)
    }

    /// Whether its files can be opened with `O_DIRECT`.
    pub fn takes_direct_io(&self) -> bool {
        file::openat(
            self.base.as_fd(),
            ABILITIES,
            libc::O_RDONLY | libc::O_DIRECT,
            0,
        )
        .is_ok()
    }

    pub fn root_place(&self) -> At {
        At {
            dir: self.root.clone(),
            name: Vec::new(),
        }
    }

    /// Whether nothing was ever written to the upper.
    pub fn is_empty(&self) -> Result<bool> {
        let fd = file::openat(
            self.root.as_fd(),
            b".",
            libc::O_RDONLY | libc::O_DIRECTORY,
            0,
        )
        .op("open upper")?;
        let mut any = false;
        // What mkfs made is nobody's work.
        let mut look = |name: &[u8], _, _| any |= name != b"lost+found";
        dirent::read_dir(fd.as_fd(), &mut look).op("read upper")?;
        Ok(!any)
    }

    /// The number that an object of the upper has of its own. Overlayfs over several file systems numbers
    /// directories by itself and takes other numbers from below, so there only device and number together
    /// tell objects apart.
    pub fn number(&self, stat: &meta::Stat) -> Ino {
        if stat.st_dev == self.device {
            return stat.st_ino & !LOWER_BIT;
        }
        let mut hasher = NumberHasher::default();
        hasher.write_u64(stat.st_dev);
        hasher.write_u64(stat.st_ino);
        hasher.finish() & (FOREIGN_BIT - 1) | FOREIGN_BIT
    }

    /// The name under which a user's name is stored.
    pub fn stored(&self, name: &[u8]) -> Result<Vec<u8>> {
        stored(name, self.wh_is_mark)
    }

    /// Whether directories may hold a `.wh..wh..opq`.
    pub fn wh_is_mark(&self) -> bool {
        self.wh_is_mark
    }

    /// To be called when the data of a copy are complete, before what makes them count.
    pub fn before_publishing(&self, copy: BorrowedFd<'_>) -> Result<()> {
        self.barriers.before_publishing(&self.root, copy)
    }

    /// Brings everything to the disk, after which a volatile upper is as good as any.
    pub fn settle(&self) -> Result<()> {
        if self.durability != Durability::Volatile {
            return Ok(());
        }
        nix::unistd::syncfs(self.root.as_fd()).map_err(|e| Error::new(e as i32, "sync upper"))?;
        match name::unlinkat(self.base.as_fd(), VOLATILE) {
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            other => other.op("remove volatile marker"),
        }
    }

    /// A new name for the work directory; none has it ever again.
    pub fn temp_name(&self) -> Vec<u8> {
        let n = self.temp.fetch_add(1, Ordering::Relaxed);
        format!("#{:x}.{n:x}", self.begun).into_bytes()
    }

    pub fn work_fd(&self) -> BorrowedFd<'_> {
        self.work.as_fd()
    }

    /// How many directories are kept open.
    pub fn kept(&self) -> usize {
        self.kept.lock().len()
    }

    pub fn kept_dir(&self, node: &Node) -> Option<Arc<OwnedFd>> {
        if node.ino == ROOT {
            return Some(self.root.clone());
        }
        if let Some(fd) = node.state.read().orphan() {
            return Some(fd.clone());
        }
        self.kept.lock().get(&node.ino).cloned()
    }

    pub fn keep_dir(&self, ino: Ino, fd: &Arc<OwnedFd>) {
        self.kept.lock().put(ino, fd.clone());
    }

    pub fn drop_dir(&self, ino: Ino) {
        self.kept.lock().pop(&ino);
    }

    /// Keeps the number of an object in memory, where attributes cannot.
    pub fn remember(&self, number: Ino, ino: Ino) {
        self.remembered.lock().insert(number, ino);
    }

    /// Lets go of the number, as the inode is about to be free again.
    pub fn unremember(&self, number: Ino) {
        self.remembered.lock().remove(&number);
    }

    /// Whether any number is kept in memory only.
    pub fn remembers(&self) -> bool {
        !self.remembered.lock().is_empty()
    }

    pub fn recall(&self, number: Ino) -> Option<Ino> {
        self.remembered.lock().get(&number).copied()
    }

    /// The mode to make a copy with: that of the original, without the bits that a new owner would take
    /// away, and with the rights that a daemon without privileges needs until the copy is complete.
    pub fn mode_to_make(&self, kind: u32, mode: u32) -> u32 {
        if self.beside.is_some() {
            return own_mode(mode);
        }
        let needed = if self.privileged() {
            0
        } else if kind == libc::S_IFDIR {
            0o700
        } else {
            0o600
        };
        mode & 0o777 | needed
    }

    /// The daemon may give files away.
    pub fn privileged(&self) -> bool {
        self.uid == 0
    }
}

/// What an upper directory holds.
#[derive(Debug, Default)]
pub struct Names {
    /// Each name that is no marker, with its `DT_*`, or None for a whiteout.
    pub names: Vec<(Vec<u8>, Option<u8>)>,
    /// The names for which there is a `.wh.` marker.
    pub hidden: Vec<Vec<u8>>,
    /// There is a `.wh..wh..opq`.
    pub opaque: bool,
}

impl Names {
    /// Reads the names in an open directory. `wh_is_mark`: `.wh.` names are marks.
    pub fn read(dir: BorrowedFd<'_>, wh_is_mark: bool) -> Result<Names> {
        let mut raw: Vec<(Vec<u8>, u8)> = Vec::new();
        dirent::read_dir(dir, |name, kind, _| raw.push((name.to_vec(), kind)))
            .op("read upper directory")?;
        let marked = opaque_xattrs(dir).op("read marks")?;
        let mut found = Names::default();
        for (stored, mut kind) in raw {
            let name = match meaning(&stored, wh_is_mark) {
                Stored::Name(name) => name,
                Stored::Whiteout(name) => {
                    found.hidden.push(name.to_vec());
                    continue;
                }
                Stored::Opaque => {
                    found.opaque = true;
                    continue;
                }
                Stored::Other => continue,
            };
            let mut whiteout = false;
            if kind == libc::DT_CHR || kind == libc::DT_UNKNOWN {
                let stat = meta::fstatat(dir, &stored).op("stat upper")?;
                kind = dtype_of(stat.st_mode);
                whiteout = kind == libc::DT_CHR && stat.st_rdev == 0;
            } else if kind == libc::DT_REG && marked.holds_xattr_whiteouts {
                whiteout = is_xattr_whiteout(dir, &stored).op("read marks")?;
            }
            let name = name.into_owned();
            found.names.push((name, (!whiteout).then_some(kind)));
        }
        Ok(found)
    }
}

/// The name under which a user's name is stored. `wh_is_mark`: `.wh.` names are marks.
pub fn stored(name: &[u8], wh_is_mark: bool) -> Result<Vec<u8>> {
    match name.strip_prefix(WH) {
        Some(rest) if wh_is_mark => {
            let stored = [ESCAPED, rest].concat();
            if stored.len() > libc::FILENAME_MAX.min(255) as usize {
                return Err(Error::new(libc::ENAMETOOLONG, "escape name"));
            }
            Ok(stored)
        }
        _ => Ok(name.to_vec()),
    }
}

/// What a stored name means. `wh_is_mark`: `.wh.` names are marks.
pub fn meaning(stored: &[u8], wh_is_mark: bool) -> Stored<'_> {
    if !wh_is_mark || !stored.starts_with(WH) {
        Stored::Name(Cow::Borrowed(stored))
    } else if let Some(rest) = stored.strip_prefix(ESCAPED) {
        Stored::Name(Cow::Owned([WH, rest].concat()))
    } else if stored == dialect::WH_OPAQUE {
        Stored::Opaque
    } else if let Some(deleted) = dialect::deleted_by(stored) {
        Stored::Whiteout(deleted)
    } else {
        Stored::Other
    }
}

/// Whether the marks of an upper's root say that `.wh.` names are the users'.
pub fn is_plain(root: &Marks) -> bool {
    root.dialect.as_deref() == Some(PLAIN)
}

/// What a name in the upper means.
#[derive(Debug)]
pub enum Stored<'a> {
    Name(Cow<'a, [u8]>),
    Whiteout(&'a [u8]),
    Opaque,
    /// Bookkeeping of another union.
    Other,
}

impl Drop for Upper {
    fn drop(&mut self) {
        best_effort("clean work directory", work::clean(self.work.as_fd()));
        best_effort("sync upper", self.settle());
    }
}

/// What the file system can hold, as found out now, or where it is full as noted before.
fn abilities(base: &OwnedFd, work: &OwnedFd) -> Result<Probe> {
    let flags = libc::O_CREAT | libc::O_RDWR;
    let probe = match work::probe(work) {
        Err(e) if matches!(e.errno(), libc::ENOSPC | libc::EDQUOT) => {
            let mut text = [0; 64];
            let noted = file::openat(base.as_fd(), ABILITIES, libc::O_RDONLY, 0)
                .and_then(|fd| file::pread(fd.as_fd(), &mut text, 0))
                .unwrap_or(0);
            return text.get(..noted).and_then(Probe::from_text).ok_or(e);
        }
        other => other?,
    };
    let note = file::openat(base.as_fd(), ABILITIES, flags, 0o600).op("note abilities")?;
    let text = probe.to_text();
    file::pwrite(note.as_fd(), text.as_bytes(), 0).op("note abilities")?;
    file::ftruncate(note.as_fd(), text.len() as u64).op("note abilities")?;
    Ok(probe)
}

/// Makes a note that says all by its name.
fn note(base: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let flags = libc::O_CREAT | libc::O_WRONLY;
    file::openat(base.as_fd(), name, flags, 0o600).map(drop)
}

/// Whether the note is there. An error says neither.
fn holds(base: &OwnedFd, note: &[u8]) -> Result<bool> {
    match meta::fstatat(base.as_fd(), note) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        other => other.op("look for a note").map(|_| true),
    }
}

fn open_dir(path: &Path, op: &'static str) -> Result<OwnedFd> {
    file::open_path(path, libc::O_RDONLY | libc::O_DIRECTORY)
        .op(op)
        .map_err(|e| e.at(path))
}

fn stat_of(fd: &OwnedFd, path: &Path) -> Result<meta::Stat> {
    meta::fstatat(fd.as_fd(), b"")
        .op("stat")
        .map_err(|e| e.at(path))
}
