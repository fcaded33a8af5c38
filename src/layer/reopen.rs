//! Layers that fail, and come back: the one way on which all accesses to a layer go.
//!
//! Where the file system of a layer was mounted anew, descriptors of the old mount stay dead. So an access that
//! fails that way has the [root](super::root) opened once more, and is made once more with new descriptors. No
//! lock is held meanwhile; others fail at once, as before.
//!
//! What leaves here says nothing about our own mount or about a name's absence: ENOTCONN would read
//! as if our daemon were gone, ESTALE makes the kernel ask again, and ENOENT of a name that a listing
//! holds is a layer that is not what it was. They become EIO.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use super::record::{Learning, Seen};
use super::root::Epoch;
use super::{Ask, Layer, LowerDir, Lowers, quiet};
use crate::error::{Error, Result};
use crate::profile::pieces;
use crate::sys::file;
use crate::sys::meta::{self, Stat};
use crate::sys::readonly::ReadOnlyFile;

/// Files of up to so many bytes are taken to be read whole where the kernel does not tell, of larger ones the
/// beginning.
const WHOLE: u64 = 4 << 20;

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
    /// Where it is noted what is read of it.
    seen: OnceLock<Option<Arc<Seen>>>,
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
            seen: OnceLock::new(),
        }
    }

    /// The size in bytes that the file was found with.
    pub fn size(&self) -> u64 {
        u64::try_from(self.stat.st_size).unwrap_or(0)
    }

    /// Notes that so many bytes were read.
    pub fn note_read(&self, offset: u64, len: u64) {
        if let Some(Some(seen)) = self.seen.get() {
            seen.add(pieces(self.size(), offset, len));
        }
    }

    fn is_same(&self, now: &Stat) -> bool {
        let facts = |s: &Stat| {
            let kind = s.st_mode & libc::S_IFMT;
            (kind, s.st_size, s.st_mtime, s.st_mtime_nsec)
        };
        facts(&self.stat) == facts(now)
    }
}

/// The file on the view of its layer. None where another one is there, as the view shows no mounts that lie below the
/// layer's root, or where a program's open with `O_DIRECT`, which the kernel would pass on, would fail.
fn viewed(layer: &Layer, file: &LowerFile, expected: &Stat) -> io::Result<Option<ReadOnlyFile>> {
    let view = layer.root.view()?;
    let open = |dir: &OwnedFd, name: &[u8], kind| {
        let open = || file::openat(dir.as_fd(), name, libc::O_PATH | kind, 0);
        layer.asked.ask(Ask::Walk, open).map(Arc::new)
    };
    let walk = || -> io::Result<Arc<OwnedFd>> {
        let mut dir = view.root().clone();
        for name in file.dir.names() {
            dir = open(&dir, name, libc::O_DIRECTORY)?;
        }
        open(&dir, &file.name, 0)
    };
    let found = match walk() {
        Err(e) if is_absent(&e) => return Ok(None),
        found => found?,
    };
    let stat = meta::fstatat(found.as_fd(), b"")?;
    let there = (stat.st_dev, stat.st_ino) == (expected.st_dev, expected.st_ino);
    if !there || !layer.root.takes_direct_io(found.as_fd())? {
        return Ok(None);
    }
    view.holds(found)
}

fn is_absent(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR))
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

    /// Whether [`read_only`](Self::read_only) can work here at all.
    pub fn can_be_viewed(&self) -> io::Result<()> {
        self.layers()
            .iter()
            .try_for_each(|l| l.root.view().map(drop))
    }

    /// The file for others to read. It is not opened for that; its attributes are asked for, so that a layer that has
    /// died is noticed. None: the kernel cannot be given it.
    pub fn read_only(&self, file: &LowerFile) -> Result<Option<ReadOnlyFile>> {
        let Some(layer) = self.layer(&file.dir) else {
            return Ok(None);
        };
        let now = self.with(&file.dir, &file.name, Ask::Stat, "find lower", |dir| {
            meta::fstatat(dir, &file.name)
        })?;
        if let Some(learning) = self.record_open(file) {
            learning.ahead.note(file.dir.hash_of(&file.name));
            // The kernel does not tell what it reads.
            let guess = if file.size() <= WHOLE { file.size() } else { 1 };
            file.note_read(0, guess);
        }
        let blame = |e| self.blame(Error::io("view lower", &e), &file.dir, &file.name);
        let found = viewed(layer, file, &now).map_err(blame)?;
        Ok(found.filter(|_| file.is_same(&now)))
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
        let fd = match self.opened_ahead(file, epoch) {
            Some(fd) => fd,
            None => {
                let dir = self.open_dir(&file.dir).1?;
                let open = || quiet::open(dir.as_fd(), &file.name, libc::O_NONBLOCK);
                Arc::new(layer.asked.ask(Ask::Open, open)?)
            }
        };
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
        Ok(fd)
    }

    /// Notes that a program opens the file.
    fn record_open(&self, file: &LowerFile) -> Option<&Learning> {
        let learning = self.learning.as_ref()?;
        file.seen
            .get_or_init(|| learning.record.opened(&file.dir, &file.name, file.size()));
        Some(learning)
    }

    /// The file from those that were opened ahead, once that is done; that it was wanted is noted. Those
    /// were opened when the layer was opened first, so later they are of no use.
    fn opened_ahead(&self, file: &LowerFile, epoch: Epoch) -> Option<Arc<OwnedFd>> {
        let learning = self.record_open(file)?;
        (epoch == 0)
            .then(|| learning.ahead.claim(file.dir.hash_of(&file.name)))
            .flatten()
    }
}
