//! How each file is open in the kernel: through the page cache and this program, or straight on its
//! file in the upper or in a layer ("passthrough").
//!
//! All opens of an inode that use the page cache or a backing file must agree, and name the same
//! backing file; else the program gets EIO (Linux, fs/fuse/iomode.c). So the first one decides, until
//! the last is released. The kernel opens a backing file with the flags of each caller, so a file of a
//! layer would be open to writers: it is handed out only as a [`Backing::Lower`], which nobody can write.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, FopenFlags};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::hash::Numbers;
use crate::sys::file;
use crate::union::Backing;
use crate::union::api::Ino;

/// Close needs no request.
const NO_FLUSH: FopenFlags = FopenFlags::FOPEN_NOFLUSH;

/// How to answer an open.
#[derive(Debug)]
pub enum Answer<I = BackingId> {
    /// With these flags.
    Plain(FopenFlags),
    /// With these flags and a backing file.
    Backed(FopenFlags, Arc<I>),
}

/// Reads and writes with `O_DIRECT` come to this program: the upper's file system might ask for an
/// alignment. Mappings do not.
fn backed<I>(id: &Arc<I>, direct: bool) -> Answer<I> {
    let flags = if direct {
        FopenFlags::FOPEN_DIRECT_IO | NO_FLUSH
    } else {
        NO_FLUSH
    };
    Answer::Backed(flags, id.clone())
}

/// What the open files have in common, by inode. A backing file goes when its `I` is dropped.
#[derive(Debug)]
pub struct Modes<I = BackingId> {
    /// The kernel takes backing files from us, as far as we know.
    on: AtomicBool,
    open: Mutex<Open<I>>,
    filled: Condvar,
}

type Open<I> = HashMap<Ino, Mode<I>, Numbers>;

#[derive(Debug)]
struct Mode<I> {
    /// Handles that are not yet released.
    handles: u64,
    /// None: through the page cache.
    backing: Option<Arc<I>>,
    /// The first open is not answered yet.
    filling: bool,
}

impl<I> Default for Modes<I> {
    fn default() -> Self {
        Modes {
            on: AtomicBool::new(false),
            open: Mutex::default(),
            filled: Condvar::new(),
        }
    }
}

impl<I> Mode<I> {
    /// Counts one more handle.
    fn join(&mut self, direct: bool) -> Answer<I> {
        self.handles += 1;
        match &self.backing {
            Some(id) => backed(id, direct),
            None => Answer::Plain(FopenFlags::FOPEN_KEEP_CACHE | NO_FLUSH),
        }
    }
}

impl<I> Modes<I> {
    /// The kernel has agreed to take backing files.
    pub fn enable(&self) {
        self.on.store(true, Ordering::Relaxed);
    }

    /// Whether the next open of a file decides for it, and may hand out a file of a layer.
    pub fn undecided(&self, ino: Ino) -> bool {
        self.on.load(Ordering::Relaxed) && !self.open.lock().contains_key(&ino)
    }

    /// Decides for a handle, and counts it. `data`: what may be handed out; `register` makes a backing
    /// file of it.
    pub fn open(
        &self,
        ino: Ino,
        direct: bool,
        data: Option<&Backing>,
        register: impl Fn(BorrowedFd<'_>) -> io::Result<I>,
    ) -> Answer<I> {
        if let Some(answer) = self.join(&mut self.open.lock(), ino, direct) {
            return answer;
        }
        // Without the lock, as it may mean to open a file of a layer.
        let on = self.on.load(Ordering::Relaxed);
        let data = data.filter(|_| on);
        let backing = data.and_then(|data| match registered(data, register) {
            Ok(id) => Some(Arc::new(id)),
            Err(e) => {
                self.refused(&e);
                None
            }
        });
        let mut open = self.open.lock();
        if let Some(answer) = self.join(&mut open, ino, direct) {
            // Somebody else has decided meanwhile.
            return answer;
        }
        let answer = match (&backing, data) {
            (Some(id), _) => backed(id, direct),
            // What is in the page cache may be from before a time of passthrough.
            (None, Some(Backing::Upper(_))) => Answer::Plain(NO_FLUSH),
            (None, _) => Answer::Plain(FopenFlags::FOPEN_KEEP_CACHE | NO_FLUSH),
        };
        let mode = Mode {
            handles: 1,
            backing,
            filling: false,
        };
        open.insert(ino, mode);
        answer
    }

    /// Decides for the page cache, and has it filled before anybody can read the file: a page that the kernel has
    /// asked for could not be given to it unasked. Who opens the file meanwhile waits. For a file of which
    /// [`Modes::open`] would hand out nothing.
    pub fn open_filling(&self, ino: Ino, direct: bool, fill: impl FnOnce()) -> Answer<I> {
        let mut open = self.open.lock();
        if let Some(answer) = self.join(&mut open, ino, direct) {
            return answer;
        }
        let mode = Mode {
            handles: 1,
            backing: None,
            filling: true,
        };
        open.insert(ino, mode);
        drop(open);
        let filling = Filling(self, ino);
        fill();
        drop(filling);
        Answer::Plain(FopenFlags::FOPEN_KEEP_CACHE | NO_FLUSH)
    }

    /// Counts one more handle of a file that is open. None: it is not.
    fn join(
        &self,
        open: &mut MutexGuard<'_, Open<I>>,
        ino: Ino,
        direct: bool,
    ) -> Option<Answer<I>> {
        loop {
            let mode = open.get_mut(&ino)?;
            if !mode.filling {
                return Some(mode.join(direct));
            }
            self.filled.wait(open);
        }
    }

    /// Without privileges, and where the upper is itself stacked, nothing can be passed through.
    fn refused(&self, e: &io::Error) {
        tracing::debug!("no passthrough: {e}");
        if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ELOOP)) {
            self.on.store(false, Ordering::Relaxed);
        }
    }

    /// A handle is gone.
    pub fn release(&self, ino: Ino) {
        let mut open = self.open.lock();
        if let Some(mode) = open.get_mut(&ino) {
            mode.handles -= 1;
            if mode.handles == 0 {
                open.remove(&ino);
            }
        }
    }
}

/// The first open of a file fills its pages; over when dropped.
struct Filling<'a, I>(&'a Modes<I>, Ino);

impl<I> Drop for Filling<'_, I> {
    fn drop(&mut self) {
        let Filling(modes, ino) = self;
        if let Some(mode) = modes.open.lock().get_mut(ino) {
            mode.filling = false;
        }
        modes.filled.notify_all();
    }
}

/// Makes a backing file. Files of layers come as `O_PATH` descriptors, so that only the kernel opens them;
/// older kernels do not take these.
fn registered<I>(
    data: &Backing,
    register: impl Fn(BorrowedFd<'_>) -> io::Result<I>,
) -> io::Result<I> {
    match register(data.as_fd()) {
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => {
            let flags = libc::O_RDONLY | libc::O_NONBLOCK;
            register(file::reopen(data.as_fd(), flags)?.as_fd())
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::os::fd::OwnedFd;
    use std::path::Path;
    use std::thread;
    use std::time::Duration;

    use crossbeam_channel::unbounded;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;
    use crate::sys::readonly::{ReadOnlyFile, ReadOnlyView};

    const PATIENCE: Duration = Duration::from_secs(10);
    const FILE: Ino = 7;
    const OTHER: Ino = 8;
    const KEEP: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(NO_FLUSH);
    const DIRECT: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(NO_FLUSH);

    /// The kernel: numbers the backing files, as far as it takes them.
    #[derive(Default)]
    struct Kernel {
        refuses: Cell<Option<i32>>,
        takes_no_path: bool,
        given: RefCell<Vec<OwnedFd>>,
    }

    impl Kernel {
        fn refusing(errno: i32) -> Kernel {
            let kernel = Kernel::default();
            kernel.refuses.set(Some(errno));
            kernel
        }

        fn register(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
            let mut given = self.given.borrow_mut();
            given.push(fd.try_clone_to_owned()?);
            match self.refuses.get() {
                None if self.takes_no_path && is_path(fd)? => {
                    Err(io::Error::from_raw_os_error(libc::EBADF))
                }
                None => Ok(given.len()),
                Some(errno) => Err(io::Error::from_raw_os_error(errno)),
            }
        }

        fn open(&self, modes: &Modes<usize>, ino: Ino, data: Option<&Backing>) -> Opened {
            modes.open(ino, false, data, |fd| self.register(fd)).into()
        }

        fn asked(&self) -> usize {
            self.given.borrow().len()
        }
    }

    /// The flags of an answer, and the number of the backing file.
    #[derive(Debug, PartialEq)]
    struct Opened(FopenFlags, Option<usize>);

    impl From<Answer<usize>> for Opened {
        fn from(answer: Answer<usize>) -> Opened {
            match answer {
                Answer::Plain(flags) => Opened(flags, None),
                Answer::Backed(flags, id) => Opened(flags, Some(*id)),
            }
        }
    }

    fn is_path(fd: BorrowedFd<'_>) -> io::Result<bool> {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        Ok(flags.contains(OFlag::O_PATH))
    }

    fn enabled() -> Modes<usize> {
        let modes = Modes::default();
        modes.enable();
        modes
    }

    fn upper() -> io::Result<Backing> {
        let file = OwnedFd::from(tempfile::tempfile()?);
        Ok(Backing::Upper(Arc::new(file)))
    }

    /// A view of a directory, and a file on it. None without privileges.
    fn lower(dir: &Path) -> io::Result<Option<(ReadOnlyView, ReadOnlyFile)>> {
        std::fs::write(dir.join("file"), b"content")?;
        let dir = file::open_path(dir, libc::O_PATH | libc::O_DIRECTORY)?;
        let view = match ReadOnlyView::of(dir.as_fd()) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                eprintln!("skipped: without privileges nothing of a layer is handed out");
                return Ok(None);
            }
            other => other?,
        };
        let inside = file::openat(view.root().as_fd(), b"file", libc::O_PATH, 0)?;
        let file = view.holds(Arc::new(inside))?;
        Ok(file.map(|file| (view, file)))
    }

    #[test]
    fn the_first_open_decides_until_the_last_release() -> io::Result<()> {
        let (modes, kernel, upper) = (enabled(), Kernel::default(), upper()?);
        for (first, second) in [(None, Some(&upper)), (Some(&upper), None)] {
            assert!(modes.undecided(FILE));
            let decided = kernel.open(&modes, FILE, first);
            let asked = kernel.asked();
            assert_eq!(decided.1, first.map(|_| asked));
            assert_eq!(kernel.open(&modes, FILE, second), decided);
            assert_eq!(decided.0, if first.is_some() { NO_FLUSH } else { KEEP });
            let direct = modes.open(FILE, true, second, |fd| kernel.register(fd));
            let flags = if first.is_some() { DIRECT } else { KEEP };
            assert_eq!(Opened::from(direct), Opened(flags, decided.1));
            for _ in 0..3 {
                assert!(!modes.undecided(FILE));
                assert_eq!(kernel.asked(), asked, "for one that is decided");
                modes.release(FILE);
            }
        }
        assert!(modes.undecided(FILE));
        Ok(())
    }

    #[test]
    fn a_backing_file_goes_with_the_last_who_has_it_open() -> io::Result<()> {
        let (modes, upper) = (Modes::default(), upper()?);
        modes.enable();
        let alive = Arc::new(());
        for _ in 0..2 {
            let answer = modes.open(FILE, false, Some(&upper), |_| Ok(alive.clone()));
            assert!(matches!(answer, Answer::Backed(..)));
        }
        modes.release(FILE);
        assert_eq!(Arc::strong_count(&alive), 2);
        modes.release(FILE);
        assert_eq!(Arc::strong_count(&alive), 1);
        Ok(())
    }

    /// Bug: all opens waited while an older kernel had a file of a layer opened that did not answer.
    #[test]
    fn opens_do_not_wait_for_the_registering_of_another_file() -> io::Result<()> {
        let (modes, upper) = (enabled(), upper()?);
        let (registering, begun) = unbounded();
        let (go, wait) = unbounded::<()>();
        thread::scope(|scope| {
            let slow = scope.spawn(|| {
                let answer = modes.open(FILE, false, Some(&upper), |_| {
                    registering.send(()).map_err(io::Error::other)?;
                    wait.recv_timeout(PATIENCE).map_err(io::Error::other)?;
                    Ok(1)
                });
                Opened::from(answer)
            });
            assert!(begun.recv_timeout(PATIENCE).is_ok());
            let kernel = Kernel::default();
            for ino in [OTHER, FILE] {
                let opened = kernel.open(&modes, ino, Some(&upper));
                assert!(opened.1.is_some());
            }
            modes.release(OTHER);
            assert!(go.send(()).is_ok());
            // Somebody has decided meanwhile.
            assert_eq!(slow.join().ok(), Some(Opened(NO_FLUSH, Some(2))));
        });
        modes.release(FILE);
        assert!(!modes.undecided(FILE));
        modes.release(FILE);
        assert!(modes.undecided(FILE));
        Ok(())
    }

    /// Else a page could be wanted by a reader, whom the kernel has wait for an answer, and by who fills it.
    #[test]
    fn nobody_has_a_file_open_while_its_pages_are_filled() {
        let modes = enabled();
        let (begun, filling) = unbounded();
        let (go, wait) = unbounded::<()>();
        let (answered, second) = unbounded();
        thread::scope(|scope| {
            scope.spawn(|| {
                let answer = modes.open_filling(FILE, false, || {
                    let told = begun.send(());
                    assert!(told.is_ok() && wait.recv_timeout(PATIENCE).is_ok());
                });
                assert_eq!(Opened::from(answer), Opened(KEEP, None));
            });
            assert!(filling.recv_timeout(PATIENCE).is_ok());
            scope.spawn(|| {
                let never = || assert_eq!(0, 1, "filled twice");
                let answer = modes.open_filling(FILE, false, never);
                assert!(answered.send(Opened::from(answer)).is_ok());
            });
            // Other files do not wait for it.
            let other = Kernel::default().open(&modes, OTHER, None);
            assert_eq!(other, Opened(KEEP, None));
            assert!(second.recv_timeout(Duration::from_millis(50)).is_err());
            assert!(go.send(()).is_ok());
            assert_eq!(second.recv_timeout(PATIENCE), Ok(Opened(KEEP, None)));
        });
        for _ in 0..2 {
            assert!(!modes.undecided(FILE));
            modes.release(FILE);
        }
        assert!(modes.undecided(FILE));
    }

    #[test]
    fn nothing_is_handed_out_unless_the_kernel_has_agreed() -> io::Result<()> {
        let (modes, kernel) = (Modes::default(), Kernel::default());
        assert!(!modes.undecided(FILE));
        assert_eq!(
            kernel.open(&modes, FILE, Some(&upper()?)),
            Opened(KEEP, None)
        );
        assert_eq!(kernel.asked(), 0);
        Ok(())
    }

    /// Without privileges, and on a stacked file system, no other file would be taken either.
    #[test]
    fn a_file_that_is_refused_goes_through_the_page_cache() -> io::Result<()> {
        let upper = upper()?;
        for (errno, for_good) in [
            (libc::EPERM, true),
            (libc::ELOOP, true),
            (libc::EBADF, false),
            (libc::ENOMEM, false),
            (libc::EIO, false),
        ] {
            let (modes, kernel) = (enabled(), Kernel::refusing(errno));
            // The page cache may be from before a time of passthrough.
            let refused = kernel.open(&modes, FILE, Some(&upper));
            assert_eq!(refused, Opened(NO_FLUSH, None), "{errno}");
            // But not from before this open.
            let again = kernel.open(&modes, FILE, Some(&upper));
            assert_eq!(again, Opened(KEEP, None), "{errno}");
            kernel.refuses.set(None);
            assert_eq!(modes.undecided(OTHER), !for_good, "{errno}");
            let other = kernel.open(&modes, OTHER, Some(&upper));
            assert_eq!(other.1.is_none(), for_good, "{errno}");
        }
        Ok(())
    }

    /// Nobody writes a file of a layer, so what is in the page cache stays right.
    #[test]
    fn a_file_of_a_layer_that_is_refused_stays_in_the_page_cache() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let Some((_view, file)) = lower(dir.path())? else {
            return Ok(());
        };
        let (modes, kernel) = (enabled(), Kernel::refusing(libc::ENOMEM));
        let answer = kernel.open(&modes, FILE, Some(&Backing::Lower(file)));
        assert_eq!(answer, Opened(KEEP, None));
        assert_eq!(kernel.asked(), 1);
        Ok(())
    }

    /// It is opened then, for reading, and where nobody can write it.
    #[test]
    fn older_kernels_take_an_open_file_of_a_layer() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        for takes_no_path in [false, true] {
            let Some((view, file)) = lower(dir.path())? else {
                return Ok(());
            };
            let kernel = Kernel {
                takes_no_path,
                ..Kernel::default()
            };
            let asked = 1 + usize::from(takes_no_path);
            let answer = kernel.open(&enabled(), FILE, Some(&Backing::Lower(file)));
            assert_eq!(answer, Opened(NO_FLUSH, Some(asked)));
            let mut given = kernel.given.into_inner();
            assert_eq!(given.len(), asked);
            let last = given.remove(asked - 1);
            assert_eq!(is_path(last.as_fd())?, !takes_no_path);
            if takes_no_path {
                let mut content = [0; 8];
                assert_eq!(file::pread(last.as_fd(), &mut content, 0)?, 7);
                assert_eq!(&content, b"content\0");
            }
            assert!(view.holds(Arc::new(last))?.is_some());
        }
        Ok(())
    }
}
