//! The root of a layer: opened, known again, and opened once more when its file system was mounted anew.
//!
//! The file system of a layer can die (its daemon is killed) and be mounted again at the same place. So the root is
//! opened by its path once more, at most once a second, and taken if it is that of the same layer.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::quiet;
use crate::error::Error;
use crate::sys::readonly::ReadOnlyView;
use crate::sys::{file, meta, mounts, xattr};

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
    /// The number of the file system that the root lies in.
    device: u64,
    root: Arc<OwnedFd>,
    /// A read-only view of it, once somebody has wanted one.
    view: OnceLock<Arc<ReadOnlyView>>,
    /// Whether files there can be opened with `O_DIRECT`, once that is known.
    direct: OnceLock<bool>,
}

impl Current {
    fn new(epoch: Epoch, device: u64, root: OwnedFd) -> Current {
        Current {
            epoch,
            device,
            root: Arc::new(root),
            view: OnceLock::new(),
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

/// What `user.fqrn` is on the file systems that were met so far, by their device numbers.
#[derive(Debug, Default)]
pub struct Repositories(HashMap<u64, Known>);

/// The answer to `user.fqrn`, if there is one.
type Said = Option<Vec<u8>>;

#[derive(Debug)]
enum Known {
    /// What the first layer said, whatever the file system is.
    First(Said),
    /// Of a FUSE file system, which is asked once: a CVMFS client says the same of all that it shows.
    Whole(Said),
    /// It is an attribute like others, and each directory has its own.
    Each,
}

impl Repositories {
    /// A failure says nothing about what the layer is.
    fn of(&mut self, root: BorrowedFd<'_>, device: u64) -> io::Result<Said> {
        if let Some(known) = self.0.get_mut(&device) {
            // Only a second layer makes it worth looking for the type.
            if let Known::First(said) = known {
                let on_fuse = matches!(mounts::mounted_on(device), Ok(Some(fs)) if fs.is_fuse());
                *known = match on_fuse {
                    true => Known::Whole(said.take()),
                    false => Known::Each,
                };
            }
            if let Known::Whole(said) = known {
                return Ok(said.clone());
            }
            return ask(root);
        }
        let said = ask(root)?;
        // A disk has no FUSE on it, but of the kind that the kernel itself mounts on one.
        let known = match libc::major(device) {
            0 => Known::First(said.clone()),
            _ => Known::Each,
        };
        self.0.insert(device, known);
        Ok(said)
    }
}

fn ask(root: BorrowedFd<'_>) -> io::Result<Said> {
    match xattr::get(root, b".", c"user.fqrn") {
        Ok(said) => Ok(Some(said)),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODATA | libc::EOPNOTSUPP)) => Ok(None),
        Err(e) => Err(e),
    }
}

impl Identity {
    /// And the number of the file system.
    fn read(root: BorrowedFd<'_>, known: &mut Repositories) -> io::Result<(Identity, u64)> {
        let stat = meta::fstatat(root, b"")?;
        let identity = Identity {
            repository: known.of(root, stat.st_dev)?,
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            extent: (stat.st_nlink, stat.st_size),
        };
        Ok((identity, stat.st_dev))
    }
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    file::open_path(path, libc::O_PATH | libc::O_DIRECTORY)
}

impl Root {
    /// Opens the directory for the first time.
    pub fn open(path: &Path, known: &mut Repositories) -> io::Result<Root> {
        let fd = open(path)?;
        let (identity, device) = Identity::read(fd.as_fd(), known)?;
        Ok(Root {
            identity,
            current: RwLock::new(Current::new(0, device, fd)),
            health: Mutex::default(),
            covered: AtomicBool::new(false),
        })
    }

    /// Whether a CVMFS client serves it.
    pub fn is_cvmfs(&self) -> bool {
        self.identity.repository.is_some()
    }

    /// The repository that it lies in, if a CVMFS client serves it.
    pub fn repository(&self) -> Option<&[u8]> {
        self.identity.repository.as_deref()
    }

    /// The descriptor, and which opening it is of.
    pub fn current(&self) -> (Epoch, Arc<OwnedFd>) {
        let current = self.current.read();
        (current.epoch, current.root.clone())
    }

    /// The number of the file system that it lies in.
    pub fn device(&self) -> u64 {
        self.current.read().device
    }

    /// Whether an open directory is known to lie in the same file system.
    pub(super) fn holds(&self, dir: BorrowedFd<'_>) -> bool {
        let found = meta::statx_unasked(dir, c"", 0);
        let device = found.map(|x| libc::makedev(x.stx_dev_major, x.stx_dev_minor));
        device.is_ok_and(|device| device == self.device())
    }

    /// A view of its mount, in which nothing can be written and no mounts below it show.
    pub(super) fn view(&self) -> io::Result<Arc<ReadOnlyView>> {
        let (epoch, root) = {
            let current = self.current.read();
            if let Some(view) = current.view.get() {
                return Ok(view.clone());
            }
            (current.epoch, current.root.clone())
        };
        let view = Arc::new(ReadOnlyView::of(root.as_fd())?);
        let current = self.current.read();
        match current.epoch == epoch {
            true => Ok(current.view.get_or_init(|| view).clone()),
            false => Ok(view),
        }
    }

    /// Whether a file of the layer, and so any, can be opened with `O_DIRECT`. Asked with the first one.
    pub(super) fn takes_direct_io(&self, file: BorrowedFd<'_>) -> io::Result<bool> {
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
    pub(super) fn revive(&self, path: &Path, epoch: Epoch, error: &Error) -> bool {
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
            Ok((fd, device)) => {
                self.replace(device, fd);
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

    /// Takes another opening of the layer.
    fn replace(&self, device: u64, root: OwnedFd) {
        let mut current = self.current.write();
        *current = Current::new(current.epoch + 1, device, root);
    }

    /// The root, and its file system's number.
    fn open_again(&self, path: &Path) -> std::result::Result<(OwnedFd, u64), String> {
        if self.covered.load(Ordering::Relaxed) {
            return Err("its path lies under this mount".to_owned());
        }
        let look = || -> io::Result<(OwnedFd, Identity, u64)> {
            let fd = open(path)?;
            // Attributes may come out of the kernel's cache: this asks the file system.
            let asked = quiet::open(fd.as_fd(), b".", libc::O_DIRECTORY)?;
            let (identity, device) = Identity::read(asked.as_fd(), &mut Repositories::default())?;
            Ok((fd, identity, device))
        };
        match look() {
            Ok((fd, identity, device)) if identity == self.identity => Ok((fd, device)),
            Ok(_) => Err("another directory is there now".to_owned()),
            Err(e) => Err(e.to_string()),
        }
    }

    pub(super) fn is_in_trouble(&self) -> bool {
        self.health.lock().trouble.is_some()
    }
}
