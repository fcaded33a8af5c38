//! Layers that fail, and come back: the one way on which all accesses to a layer go.
//!
//! The file system of a layer can die (its daemon is killed) and be mounted again at the same place.
//! Descriptors of the old mount stay dead then. So an access that fails that way opens the layer's
//! root by its path once more, at most once a second, checks that it is the same layer, and is made
//! once more with new descriptors. No lock is held meanwhile; others fail at once, as before.
//!
//! What leaves here says nothing about our own mount or about a name's absence: ENOTCONN would read
//! as if our daemon were gone, ESTALE makes the kernel ask again, and ENOENT of a name that a listing
//! holds is a layer that is not what it was. They become EIO.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::{Ask, Layer, LowerDir, Lowers, quiet};
use crate::error::{Error, Result};
use crate::sys::meta::{self, Stat};
use crate::sys::readonly::{ReadOnlyFile, ReadOnlyView};
use crate::sys::{file, mount, xattr};

/// The time between two attempts to open a layer again.
const PAUSE: Duration = Duration::from_secs(1);
/// An attempt that waits for longer does not keep others from trying.
const STUCK: Duration = Duration::from_secs(10);

/// Counts the openings of a layer; each descriptor in it belongs to one of them.
pub type Epoch = u64;

/// The root directory of a layer, open.
#[derive(Debug)]
pub struct Root {
    current: RwLock<Current>,
    identity: Identity,
    health: Mutex<Health>,
    /// Its path leads into our own mount by now.
    covered: AtomicBool,
}

/// One opening of a layer.
#[derive(Debug)]
struct Current {
    epoch: Epoch,
    root: Arc<OwnedFd>,
    /// What `root` is of, if the layer is looked at through a read-only view.
    view: Option<Arc<ReadOnlyView>>,
    /// Whether files there can be opened with `O_DIRECT`, once that is known.
    direct: OnceLock<bool>,
}

impl Current {
    /// Through a view, if there can be one.
    fn confined(epoch: Epoch, root: &Arc<OwnedFd>) -> io::Result<Current> {
        let view = ReadOnlyView::of(root.as_fd())?;
        Ok(Current {
            epoch,
            root: view.root().clone(),
            view: Some(Arc::new(view)),
            direct: OnceLock::new(),
        })
    }

    fn plain(epoch: Epoch, root: &Arc<OwnedFd>) -> Current {
        Current {
            epoch,
            root: root.clone(),
            view: None,
            direct: OnceLock::new(),
        }
    }
}

/// By what a layer is known again. Device and inode number are not of it, as a FUSE file system
/// comes back with others. Nor are `user.root_hash` and `user.revision` of CVMFS: they change with
/// each publication in the repository, while a layer's directory, which is named by its digest, does
/// not. Its own attributes are stored in the catalogue.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    /// `user.fqrn`, which only a CVMFS client answers.
    repository: Option<Vec<u8>>,
    mode: u32,
    owner: (u32, u32),
    mtime: (i64, i64),
    /// Link count and size, which tell an empty mountpoint from a tree of the same moment.
    extent: (u64, i64),
}

#[derive(Debug, Default)]
struct Health {
    /// When the layer may be opened again.
    not_before: Option<Instant>,
    /// Why it could not be; said already.
    trouble: Option<String>,
}

/// What `user.fqrn` is on the file systems that were met so far, by their device numbers. A FUSE file
/// system is asked once: a CVMFS client says the same of all that it shows. Elsewhere it is an
/// attribute like others, and each directory has its own: None.
#[derive(Debug, Default)]
pub struct Repositories(HashMap<u64, Option<Said>>);

/// The answer to `user.fqrn`, if there is one.
type Said = Option<Vec<u8>>;

impl Repositories {
    /// A failure says nothing about what the layer is.
    fn of(&mut self, root: BorrowedFd<'_>, device: u64) -> io::Result<Said> {
        let known = self.0.get(&device);
        if let Some(Some(said)) = known {
            return Ok(said.clone());
        }
        let said = match xattr::get(root, b"", c"user.fqrn") {
            Ok(said) => Some(said),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => None,
            Err(e) => return Err(e),
        };
        if known.is_none() {
            let on_fuse = matches!(mount::mounted_on(device), Ok(Some(fs)) if fs.is_fuse());
            self.0.insert(device, on_fuse.then(|| said.clone()));
        }
        Ok(said)
    }
}

impl Identity {
    fn read(root: BorrowedFd<'_>, known: &mut Repositories) -> io::Result<Identity> {
        let stat = meta::fstatat(root, b"")?;
        Ok(Identity {
            repository: known.of(root, stat.st_dev)?,
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            extent: (stat.st_nlink, stat.st_size),
        })
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    file::open_path(path, libc::O_PATH | libc::O_DIRECTORY)
}

impl Root {
    /// Opens the directory for the first time.
    pub fn open(path: &Path, known: &mut Repositories) -> io::Result<Root> {
        let fd = open(path)?;
        Ok(Root {
            identity: Identity::read(fd.as_fd(), known)?,
            current: RwLock::new(Current::plain(0, &Arc::new(fd))),
            health: Mutex::default(),
            covered: AtomicBool::new(false),
        })
    }

    /// Whether a CVMFS client serves it.
    pub fn is_cvmfs(&self) -> bool {
        self.identity.repository.is_some()
    }

    /// The descriptor, and which opening it is of.
    pub fn current(&self) -> (Epoch, Arc<OwnedFd>) {
        let current = self.current.read();
        (current.epoch, current.root.clone())
    }

    /// From now on the layer is looked at through a read-only view of its mount.
    pub fn confine(&self) -> io::Result<()> {
        let mut current = self.current.write();
        *current = Current::confined(current.epoch, &current.root)?;
        Ok(())
    }

    fn view(&self) -> Option<Arc<ReadOnlyView>> {
        self.current.read().view.clone()
    }

    /// Whether a file of the layer, and so any, can be opened with `O_DIRECT`. Asked with the first one.
    fn takes_direct_io(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
        if let Some(known) = self.current.read().direct.get() {
            return Ok(*known);
        }
        let flags = libc::O_RDONLY | libc::O_DIRECT | libc::O_NONBLOCK;
        let takes = match file::reopen(file, flags) {
            Ok(_) => true,
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => false,
            Err(e) => return Err(e),
        };
        Ok(*self.current.read().direct.get_or_init(|| takes))
    }

    /// From now on the path leads to something of our own, and is not opened again.
    pub fn cover(&self) {
        self.covered.store(true, Ordering::Relaxed);
    }

    /// Opens the root again, if nobody has since `epoch`. True: there is something new to try.
    fn revive(&self, path: &Path, epoch: Epoch, error: &Error) -> bool {
        if self.current().0 != epoch {
            return true;
        }
        {
            let mut health = self.health.lock();
            let now = Instant::now();
            if health.not_before.is_some_and(|then| now < then) {
                return false;
            }
            health.not_before = Some(now + STUCK);
        }
        let opened = self.open_again(path);
        let mut health = self.health.lock();
        health.not_before = Some(Instant::now() + PAUSE);
        match opened {
            Ok(fd) => {
                self.replace(&Arc::new(fd));
                if health.trouble.take().is_some() {
                    tracing::info!("layer {} is back", path.display());
                }
                true
            }
            Err(why) => {
                if health.trouble.as_ref() != Some(&why) {
                    tracing::warn!("{error}; the layer cannot be opened again: {why}");
                    health.trouble = Some(why);
                }
                false
            }
        }
    }

    /// Takes another opening of the layer, through a view if the last one was.
    fn replace(&self, root: &Arc<OwnedFd>) {
        let mut current = self.current.write();
        let epoch = current.epoch + 1;
        *current = match &current.view {
            None => Current::plain(epoch, root),
            Some(_) => Current::confined(epoch, root).unwrap_or_else(|e| {
                tracing::warn!("no read-only view of a layer that came back: {e}");
                Current::plain(epoch, root)
            }),
        };
    }

    fn open_again(&self, path: &Path) -> std::result::Result<OwnedFd, String> {
        if self.covered.load(Ordering::Relaxed) {
            return Err("its path lies under this mount".to_owned());
        }
        let look = || -> io::Result<(OwnedFd, Identity)> {
            let fd = open(path)?;
            // Attributes may come out of the kernel's cache: this asks the file system.
            let asked = quiet::open(fd.as_fd(), b".", libc::O_DIRECTORY)?;
            let identity = Identity::read(asked.as_fd(), &mut Repositories::default())?;
            Ok((fd, identity))
        };
        match look() {
            Ok((fd, identity)) if identity == self.identity => Ok(fd),
            Ok(_) => Err("another directory is there now".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn is_in_trouble(&self) -> bool {
        self.health.lock().trouble.is_some()
    }
}

/// Whether the error may end when the layer is opened again. An absent name is such an error too: what
/// is asked for here was listed before.
fn may_come_back(e: &io::Error) -> bool {
    let lost = |errno| is_lost(errno) || errno == libc::EIO;
    e.raw_os_error().is_none_or(lost)
}

/// Whether the errno tells of a layer that is gone, or is another.
fn is_lost(errno: i32) -> bool {
    matches!(
        errno,
        libc::ENOTCONN | libc::ECONNABORTED | libc::ESTALE | libc::ENOENT | libc::ENOTDIR
    )
}

/// The error of a file with fewer data than it says.
pub fn too_short() -> io::Error {
    io::Error::from(io::ErrorKind::UnexpectedEof)
}

/// An error of a layer, in words that say nothing wrong about the mount or the name.
fn told_as(what: &'static str, e: &io::Error) -> Error {
    match e.raw_os_error() {
        Some(seen) if is_lost(seen) => Error::new(libc::EIO, what).because(seen),
        None if e.kind() == io::ErrorKind::UnexpectedEof => {
            Error::new(libc::EIO, "read lower, which is shorter than it says")
        }
        _ => Error::io(what, e),
    }
}

/// A file of a layer, opened when it is first used, and again when its layer has come back.
#[derive(Debug)]
pub struct LowerFile {
    dir: Arc<LowerDir>,
    name: Box<[u8]>,
    /// What the file was known to be when it was found.
    stat: Stat,
    open: Mutex<Option<(Epoch, Opening)>>,
}

/// An open that is under way or done: who comes meanwhile waits for it, and asks the layer no more.
type Opening = Arc<OnceLock<io::Result<Arc<OwnedFd>>>>;

impl LowerFile {
    /// Opens nothing yet.
    pub fn new(dir: &Arc<LowerDir>, name: &[u8], stat: Stat) -> LowerFile {
        LowerFile {
            dir: dir.clone(),
            name: name.into(),
            stat,
            open: Mutex::new(None),
        }
    }

    /// The size in bytes that the file was found with.
    pub fn size(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    fn is_same(&self, now: &Stat) -> bool {
        let facts = |s: &Stat| {
            let kind = s.st_mode & libc::S_IFMT;
            (kind, s.st_size, s.st_mtime, s.st_mtime_nsec)
        };
        facts(&self.stat) == facts(now)
    }
}

impl Lowers {
    /// Does `op` with an `O_PATH` descriptor of a directory, perhaps twice. `name` is what in the
    /// directory it is about, for the error.
    pub fn with<T>(
        &self,
        dir: &LowerDir,
        name: &[u8],
        ask: Ask,
        what: &'static str,
        mut op: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Result<T> {
        self.attempt(dir, name, what, |layer, _| {
            let (epoch, fd) = self.open_dir(dir);
            let op = |fd: Arc<OwnedFd>| layer.asked.ask(ask, || op(fd.as_fd()));
            (epoch, fd.and_then(op))
        })
    }

    /// Does `op` with a descriptor of a file, perhaps twice.
    pub fn with_file<T>(
        &self,
        file: &LowerFile,
        what: &'static str,
        mut op: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Result<T> {
        self.attempt(&file.dir, &file.name, what, |layer, again| {
            let (epoch, fd) = self.open_file(layer, file, again);
            let op = |fd: Arc<OwnedFd>| layer.asked.ask(Ask::Data, || op(fd.as_fd()));
            (epoch, fd.and_then(op))
        })
    }

    /// From now on all layers are looked at through read-only views of their mounts. To be called before
    /// anything else is asked of them.
    pub fn confine(&self) -> io::Result<()> {
        self.layers().iter().try_for_each(|l| l.root.confine())
    }

    /// The file for others to read, if its layer is looked at through a read-only view. It is not opened
    /// for that; its attributes are asked for, so that a layer that has died is noticed.
    pub fn read_only(&self, file: &LowerFile) -> Result<Option<ReadOnlyFile>> {
        let Some(root) = self.layer(&file.dir).map(|layer| &layer.root) else {
            return Ok(None);
        };
        if root.view().is_none() {
            return Ok(None);
        }
        let (found, now, direct) =
            self.with(&file.dir, &file.name, Ask::Stat, "find lower", |dir| {
                let found = file::openat(dir, &file.name, libc::O_PATH, 0)?;
                let now = meta::fstatat(found.as_fd(), b"")?;
                // The kernel opens it as each program does, and a failure of that would be EIO.
                let direct = root.takes_direct_io(found.as_fd())?;
                Ok((Arc::new(found), now, direct))
            })?;
        match root.view() {
            Some(view) if direct && file.is_same(&now) => view
                .holds(found)
                .map_err(|e| self.blame(Error::io("find lower", &e), &file.dir, &file.name)),
            _ => Ok(None),
        }
    }

    /// From now on the path leads into our own mount: layers below it are not opened again by theirs.
    pub fn cover(&self, mountpoint: &Path) {
        for layer in self.layers() {
            if layer.path.starts_with(mountpoint) {
                layer.root.cover();
            }
        }
    }

    /// `op` is told whether it is the second time, and says from which opening its descriptor is.
    fn attempt<T>(
        &self,
        dir: &LowerDir,
        name: &[u8],
        what: &'static str,
        mut op: impl FnMut(&Layer, bool) -> (Epoch, io::Result<T>),
    ) -> Result<T> {
        let layer = self
            .layer(dir)
            .ok_or_else(|| Error::new(libc::EIO, "layer"))?;
        let blame = |e: &io::Error| self.blame(told_as(what, e), dir, name);
        let (epoch, first) = op(layer, false);
        let mut failed = match first {
            Ok(done) => return Ok(done),
            Err(e) => e,
        };
        if !may_come_back(&failed) {
            return Err(blame(&failed));
        }
        if layer.root.revive(&layer.path, epoch, &blame(&failed)) {
            self.drop_kept(dir.layer, layer.root.current().0);
            match op(layer, true).1 {
                Ok(done) => return Ok(done),
                Err(e) => failed = e,
            }
        }
        let error = blame(&failed);
        // One line in the log for an outage, not one for each request that meets it.
        Err(if layer.root.is_in_trouble() {
            error.logged()
        } else {
            error
        })
    }

    /// The descriptor of the file; one of an older opening of the layer only for a first try.
    fn open_file(
        &self,
        layer: &Layer,
        file: &LowerFile,
        again: bool,
    ) -> (Epoch, io::Result<Arc<OwnedFd>>) {
        let current = layer.root.current().0;
        let (epoch, opening) = {
            let mut open = file.open.lock();
            match &*open {
                // An open in a layer that was given up may never end.
                Some((epoch, opening))
                    if *epoch == current || !again && opening.get().is_some() =>
                {
                    (*epoch, opening.clone())
                }
                _ => {
                    let opening = Opening::default();
                    *open = Some((current, opening.clone()));
                    (current, opening)
                }
            }
        };
        match opening.get_or_init(|| self.open_once(layer, file, epoch)) {
            Ok(fd) => (epoch, Ok(fd.clone())),
            Err(e) => {
                // Those who have waited share the failure, the next one tries anew.
                let mut open = file.open.lock();
                open.take_if(|(_, failed)| Arc::ptr_eq(failed, &opening));
                let errno = e.raw_os_error().unwrap_or(libc::EIO);
                (epoch, Err(io::Error::from_raw_os_error(errno)))
            }
        }
    }

    fn open_once(&self, layer: &Layer, file: &LowerFile, epoch: Epoch) -> io::Result<Arc<OwnedFd>> {
        let dir = self.open_dir(&file.dir).1?;
        let open = || quiet::open(dir.as_fd(), &file.name, libc::O_NONBLOCK);
        let fd = layer.asked.ask(Ask::Open, open)?;
        if layer.cvmfs {
            // Our kernel asks for much at a time. This one then asks the layer for it in half as many
            // requests. It is a wish: whoever cannot grant it reads as ever.
            drop(file::expect_sequential(fd.as_fd()));
        }
        // What a layer holds does not change, unless it is another one after all.
        if epoch > 0 && !file.is_same(&meta::fstatat(fd.as_fd(), b"")?) {
            let error = Error::new(libc::EIO, "open lower, which is another file now");
            tracing::warn!("{}", self.blame(error, &file.dir, &file.name));
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        Ok(Arc::new(fd))
    }
}
