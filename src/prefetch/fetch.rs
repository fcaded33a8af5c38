//! The readers. Each opens one file of a layer after the other, beneath the layer's root and through no
//! symlink, and reads what runs have read of it, so that it is in whatever cache the layer has.
//!
//! The client of CVMFS fetches a small file at its open, a large one in pieces as they are read, and other
//! file systems fetch when something is read; reading is right for all of them.

mod work;

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lru::LruCache;
use parking_lot::{Condvar, Mutex};

use self::work::{Place, Work};
use super::downloads::Downloads;
use super::{LayerAt, Limits};
use crate::at_once;
use crate::layer::ahead::Ahead;
use crate::layer::quiet;
use crate::profile;
use crate::sys::{file, meta, mounts};

/// What came faster was there already. What came later may have been, on a busy machine.
const WARM: Duration = Duration::from_millis(1);
/// So many directories stay open.
const DIRECTORIES: usize = 256;
/// The most bytes of one read.
const BUFFER: usize = 256 << 10;

/// A file to fetch.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Its place among the layers.
    pub layer: usize,
    /// In the layer.
    pub path: Box<[u8]>,
    /// Which 64ths of it, as [`profile::pieces`] counts them.
    pub pieces: u64,
    /// How long it was.
    pub size: u64,
    /// By which [`Ahead`] knows it.
    pub hash: u64,
    /// Whether these are more pieces of a file that may have been fetched, or opened by a program, already.
    pub is_more: bool,
}

/// By the places of their layers, and by their paths.
type Directories = LruCache<(usize, Box<[u8]>), Arc<OwnedFd>>;

/// All that the readers share.
#[derive(Debug)]
pub struct Fetcher {
    layers: Vec<Root>,
    dirs: Mutex<Directories>,
    downloads: Downloads,
    ahead: Arc<Ahead>,
    limits: Limits,
    begun: Instant,
    stop: AtomicBool,
    work: Mutex<Work>,
    changed: Condvar,
}

#[derive(Debug)]
struct Root {
    path: PathBuf,
    fd: Mutex<Option<Arc<OwnedFd>>>,
    /// It failed, or can be reached no longer, and is not asked.
    failed: AtomicBool,
}

/// What was read of a file.
#[derive(Debug, Default)]
struct Amount {
    bytes: u64,
    /// How long the first read took. All of them take their time with a large file that is there, too.
    first: Duration,
}

/// What became of a file.
enum Outcome {
    /// Nobody wants it from us.
    Passed,
    /// It is there.
    Fetched {
        /// Whether it was before.
        warm: bool,
    },
    /// It is not.
    Failed,
}

impl Fetcher {
    /// Fetches nothing yet.
    pub fn new(layers: Vec<LayerAt>, limits: Limits, ahead: Arc<Ahead>) -> Fetcher {
        let root = |at: LayerAt| Root {
            failed: AtomicBool::new(at.path.is_none()),
            path: at.path.unwrap_or_default(),
            fd: Mutex::new(None),
        };
        let directories = NonZeroUsize::new(DIRECTORIES).unwrap_or(NonZeroUsize::MIN);
        Fetcher {
            layers: layers.into_iter().map(root).collect(),
            dirs: Mutex::new(LruCache::new(directories)),
            downloads: Downloads::default(),
            ahead,
            limits,
            begun: Instant::now(),
            stop: AtomicBool::new(false),
            work: Mutex::new(Work::new(&limits)),
            changed: Condvar::new(),
        }
    }

    /// Begins nothing any more.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
        let _work = self.work.lock();
        self.changed.notify_all();
    }

    /// Whether nothing more is to be begun.
    pub fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed) || self.begun.elapsed() >= self.limits.time
    }

    /// Opens the roots of all layers at once. Opening a directory has the client of CVMFS load its
    /// catalogue, which looking at it does not.
    pub fn open_roots(&self) {
        at_once::ask(&self.layers, |root| {
            if self.is_over() || root.failed.load(Ordering::Relaxed) {
                return;
            }
            match file::open_path(&root.path, libc::O_RDONLY | libc::O_DIRECTORY) {
                Ok(fd) => *root.fd.lock() = Some(Arc::new(fd)),
                Err(e) => self.blame(root, &e),
            }
        });
        let roots = self.layers.iter().filter_map(|root| root.fd.lock().clone());
        let free = roots.filter_map(|root| free_in_cache(root.as_fd(), self.limits.cache).ok()?);
        if let Some(free) = free.min() {
            let mut work = self.work.lock();
            work.bytes = work.bytes.min(free);
        }
    }

    /// Lets go of all directories. Nothing can be fetched afterwards.
    pub fn let_go(&self) {
        for root in &self.layers {
            let fd = root.fd.lock().take();
            drop(fd);
        }
        let dirs = std::mem::replace(&mut *self.dirs.lock(), Directories::new(NonZeroUsize::MIN));
        drop(dirs);
    }

    /// Fetches these files, before those that are being fetched already. Returns when that is done, or over.
    pub fn fetch(&self, files: Vec<Wanted>) {
        let new = files.iter().filter(|file| !file.is_more);
        self.ahead.queue(new.map(|file| file.hash));
        let most = self.limits.most_readers.max(self.limits.readers);
        let readers = most.clamp(1, files.len().max(1));
        self.work.lock().add(files);
        thread::scope(|scope| {
            for _ in 0..readers {
                let reader = thread::Builder::new().name("prefetch".to_owned());
                if let Err(e) = reader.spawn_scoped(scope, || self.read()) {
                    tracing::debug!("a reader: {e}");
                    break;
                }
            }
        });
    }

    fn read(&self) {
        let mut buffer = vec![0; BUFFER];
        while let Some((place, wanted)) = self.next() {
            let outcome = self.fetch_one(place, &wanted, &mut buffer);
            let mut work = self.work.lock();
            let width = work.pace.width();
            work.running -= 1;
            match outcome {
                Outcome::Passed => {
                    work.was(place, None);
                    work.files += 1;
                    work.bytes += profile::bytes_of(wanted.pieces, wanted.size);
                }
                Outcome::Fetched { warm } => {
                    work.was(place, Some(warm));
                    if !warm {
                        work.pace.fetched(self.begun.elapsed());
                    }
                }
                Outcome::Failed => work.was(place, Some(true)),
            }
            let wider = work.pace.width() > width;
            let overtaken = work.overtaken(place.batch);
            drop(work);
            if let Some(overtaken) = overtaken {
                self.make_sure(overtaken);
            }
            // This reader goes on itself.
            if wider {
                self.changed.notify_all();
            }
        }
        // Those that wait end, too, or take what is left.
        self.changed.notify_all();
    }

    /// The next file, when it may be fetched.
    fn next(&self) -> Option<(Place, Wanted)> {
        let mut work = self.work.lock();
        loop {
            if self.is_over() || work.files == 0 {
                return None;
            }
            if work.running >= work.pace.width() {
                self.changed.wait_for(&mut work, Duration::from_secs(1));
                continue;
            }
            let (place, wanted) = work.next()?;
            let bytes = profile::bytes_of(wanted.pieces, wanted.size);
            if bytes > work.bytes {
                work.was(place, None);
                continue;
            }
            work.bytes -= bytes;
            work.files -= 1;
            work.running += 1;
            return Some((place, wanted));
        }
    }

    fn fetch_one(&self, place: Place, wanted: &Wanted, buffer: &mut [u8]) -> Outcome {
        let Some(root) = self.layers.get(wanted.layer) else {
            return Outcome::Passed;
        };
        if root.failed.load(Ordering::Relaxed) {
            return Outcome::Passed;
        }
        if !wanted.is_more && !self.ahead.begin(wanted.hash) {
            return Outcome::Passed;
        }
        let begun = Instant::now();
        let opened = self.open(root, wanted).map(Arc::new);
        if !wanted.is_more {
            self.ahead.opened(wanted.hash, opened.as_ref().ok());
        }
        let fd = match opened {
            Ok(fd) => fd,
            Err(e) => {
                self.failed(root, wanted, &e);
                return Outcome::Failed;
            }
        };
        let open = begun.elapsed();
        match self.read_pieces(fd.as_fd(), wanted, buffer) {
            Ok(Amount { bytes, first }) => {
                let time = begun.elapsed() - open;
                self.ahead.read(wanted.hash, bytes, time, self.begun);
                Outcome::Fetched {
                    warm: open + first < WARM || self.was_there(place, root, begun),
                }
            }
            Err(e) => {
                self.failed(root, wanted, &e);
                Outcome::Failed
            }
        }
    }

    /// Whether one of which the time does not tell was there already. Most that take their time are fetched,
    /// and asking takes a request; so it is seldom asked where all others were fetched.
    fn was_there(&self, place: Place, root: &Root, begun: Instant) -> bool {
        let doubtful = self.work.lock().is_doubtful(place.batch);
        doubtful && self.is_quiet(root, begun)
    }

    /// One that others have overtaken may wait for a processor only.
    fn make_sure(&self, (place, layer, since): (Place, usize, Instant)) {
        if self
            .layers
            .get(layer)
            .is_some_and(|root| self.is_quiet(root, since))
        {
            self.work.lock().was_there(place);
        }
    }

    /// Whether the layer's client has fetched nothing since then, and says so.
    fn is_quiet(&self, root: &Root, since: Instant) -> bool {
        let fd = root.fd.lock().clone();
        fd.is_some_and(|fd| self.downloads.none_since(fd.as_fd(), since))
    }

    /// Opens a regular file, and nothing else.
    fn open(&self, root: &Root, wanted: &Wanted) -> io::Result<OwnedFd> {
        let (dir, name) = match wanted.path.iter().rposition(|b| *b == b'/') {
            Some(slash) => {
                let (dir, name) = wanted.path.split_at(slash);
                (dir, name.get(1..).unwrap_or_default())
            }
            None => (&[][..], &*wanted.path),
        };
        let dir = self.dir(root, wanted.layer, dir)?;
        let stat = meta::fstatat(dir.as_fd(), name)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if !self.charge(wanted, size) {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        quiet::open(dir.as_fd(), name, libc::O_NONBLOCK)
    }

    /// Takes what a file has from the bytes that may be fetched, instead of what the profile says it has.
    fn charge(&self, wanted: &Wanted, size: u64) -> bool {
        let mut work = self.work.lock();
        let with = work.bytes + profile::bytes_of(wanted.pieces, wanted.size);
        let left = with.checked_sub(profile::bytes_of(wanted.pieces, size));
        work.bytes = left.unwrap_or(with);
        left.is_some()
    }

    /// A directory of a layer, one name after the other.
    fn dir(&self, root: &Root, layer: usize, path: &[u8]) -> io::Result<Arc<OwnedFd>> {
        if path.is_empty() {
            let fd = root.fd.lock().clone();
            return fd.ok_or_else(|| io::Error::from_raw_os_error(libc::EIO));
        }
        let key = (layer, path.into());
        if let Some(fd) = self.dirs.lock().get(&key) {
            return Ok(fd.clone());
        }
        let slash = path.iter().rposition(|b| *b == b'/');
        let (parent, name) = match slash {
            Some(slash) => (path.get(..slash), path.get(slash + 1..)),
            None => (Some(&[][..]), Some(path)),
        };
        let parent = self.dir(root, layer, parent.unwrap_or_default())?;
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        let fd = file::openat(parent.as_fd(), name.unwrap_or_default(), flags, 0)?;
        let fd = Arc::new(fd);
        self.dirs.lock().put(key, fd.clone());
        Ok(fd)
    }

    /// Reads the pieces.
    fn read_pieces(
        &self,
        fd: BorrowedFd<'_>,
        wanted: &Wanted,
        buffer: &mut [u8],
    ) -> io::Result<Amount> {
        let size = u64::try_from(meta::fstatat(fd, b"")?.st_size).unwrap_or(0);
        let piece = profile::piece(size);
        let begun = Instant::now();
        let mut all = Amount::default();
        for number in (0..64).filter(|n| wanted.pieces >> n & 1 == 1) {
            let mut at = number * piece;
            let end = (at + piece).min(size);
            while at < end && !self.is_over() {
                let most = usize::try_from(end - at)
                    .unwrap_or(usize::MAX)
                    .min(buffer.len());
                let room = buffer.get_mut(..most).unwrap_or_default();
                match file::pread(fd, room, at) {
                    Ok(0) => return Ok(all),
                    Ok(n) => {
                        if all.bytes == 0 {
                            all.first = begun.elapsed();
                        }
                        at += n as u64;
                        all.bytes += n as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(all)
    }

    /// What is wrong with one file says nothing about the layer; anything else does.
    fn failed(&self, root: &Root, wanted: &Wanted, e: &io::Error) {
        match e.raw_os_error() {
            Some(
                libc::ENOENT
                | libc::ENOTDIR
                | libc::ELOOP
                | libc::EACCES
                | libc::EPERM
                | libc::ENXIO
                | libc::EFBIG
                | libc::ENAMETOOLONG
                | libc::EINTR,
            ) => {
                let path = String::from_utf8_lossy(&wanted.path);
                tracing::debug!(
                    "{}: not fetched ahead: {e}",
                    crate::error::printable(&*path)
                );
            }
            _ => self.blame(root, e),
        }
    }

    /// Nothing more is fetched: of the layer, or at all where this process has no more to fetch with.
    fn blame(&self, root: &Root, e: &io::Error) {
        match e.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM) => {
                tracing::info!("nothing more is fetched ahead: {e}");
                self.stop();
            }
            _ => root.give_up(e),
        }
    }
}

impl Root {
    fn give_up(&self, e: &io::Error) {
        if !self.failed.swap(true, Ordering::Relaxed) {
            let layer = crate::error::printable(&self.path);
            tracing::info!("layer {layer}: nothing of it is fetched ahead: {e}");
        }
    }
}

/// A share, in percent, of what the cache behind a directory has free: what its file system says is free, if
/// it is served by FUSE. None for others, whose free space tells of no cache.
fn free_in_cache(dir: BorrowedFd<'_>, percent: u64) -> io::Result<Option<u64>> {
    let device = meta::fstatat(dir, b"")?.st_dev;
    if !matches!(mounts::mounted_on(device), Ok(Some(fs)) if fs.is_fuse()) {
        return Ok(None);
    }
    let fs = meta::fstatvfs(dir)?;
    if fs.f_blocks == 0 {
        // It does not tell.
        return Ok(None);
    }
    let free = fs.f_bfree.saturating_mul(fs.f_frsize);
    // A full cache makes room by itself: a little is always fetched.
    let least = fs.f_blocks.saturating_mul(fs.f_frsize) / 16;
    Ok(Some((free / 100 * percent).max(least)))
}

#[cfg(test)]
mod tests;
