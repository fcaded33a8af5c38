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

/// An open for reading.
fn reading(node: NodeId) -> Opening {
    Opening {
        node,
        direct: false,
        writes: false,
        who: 1,
    }
}

fn unmoved() -> bool {
    true
}

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
        modes
            .open(reading(ino), data, unmoved, |fd| self.register(fd))
            .into()
    }

    fn asked(&self) -> usize {
        self.given.borrow().len()
    }
}

/// The flags of an answer, none of one that is turned away, and the number of the backing file.
#[derive(Debug, PartialEq)]
struct Opened(FopenFlags, Option<usize>);

impl From<Answer<usize>> for Opened {
    fn from(answer: Answer<usize>) -> Opened {
        match answer {
            Answer::Plain(flags) => Opened(flags, None),
            Answer::Backed(flags, id) => Opened(flags, Some(*id)),
            Answer::Away(_) => Opened(FopenFlags::empty(), None),
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
        let direct = modes.open(
            Opening {
                direct: true,
                ..reading(FILE)
            },
            second,
            unmoved,
            |fd| kernel.register(fd),
        );
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
        let answer = modes.open(reading(FILE), Some(&upper), unmoved, |_| Ok(alive.clone()));
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
            let answer = modes.open(reading(FILE), Some(&upper), unmoved, |_| {
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
            let answer = modes.open_filling(reading(FILE), unmoved, || {
                let told = begun.send(());
                assert!(told.is_ok() && wait.recv_timeout(PATIENCE).is_ok());
            });
            assert_eq!(Opened::from(answer), Opened(KEEP, None));
        });
        assert!(filling.recv_timeout(PATIENCE).is_ok());
        scope.spawn(|| {
            let never = || assert_eq!(0, 1, "filled twice");
            let answer = modes.open_filling(reading(FILE), unmoved, never);
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

fn writing(node: NodeId) -> Opening {
    Opening {
        writes: true,
        ..reading(node)
    }
}

/// A file of a layer that is open past us, once.
fn open_past_us(dir: &Path) -> io::Result<Option<(Modes<usize>, Kernel)>> {
    let Some((_view, file)) = lower(dir)? else {
        return Ok(None);
    };
    let (modes, kernel) = (enabled(), Kernel::default());
    let answer = kernel.open(&modes, FILE, Some(&Backing::Lower(file)));
    assert_eq!(answer, Opened(NO_FLUSH, Some(1)));
    Ok(Some((modes, kernel)))
}

fn plain(modes: &Modes<usize>, how: Opening, moved: bool) -> Answer<usize> {
    modes.open(how, None, || !moved, |_| Err(io::Error::other("asked")))
}

fn flags(answer: &Answer<usize>) -> Option<FopenFlags> {
    match answer {
        Answer::Plain(flags) => Some(*flags),
        _ => None,
    }
}

fn sent_away(answer: &Answer<usize>) -> Option<Away> {
    match answer {
        Answer::Away(away) => Some(*away),
        _ => None,
    }
}

#[test]
fn who_writes_what_others_read_past_us_gets_another_inode() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let Some((modes, kernel)) = open_past_us(dir.path())? else {
        return Ok(());
    };
    assert_eq!(kernel.open(&modes, FILE, None), Opened(NO_FLUSH, Some(1)));
    let away = plain(&modes, writing(FILE), false);
    assert_eq!(sent_away(&away), Some(Away::LookAgain));
    let twin = modes.looked_up(FILE);
    assert_ne!(twin, FILE);
    // The kernel has found that the path leads elsewhere.
    assert_eq!(modes.forget(twin, 1), FILE);
    assert_eq!(modes.object(twin), FILE);
    assert!(modes.is_passing(FILE) && modes.is_passing(twin) && !modes.is_passing(OTHER));
    let writer = plain(&modes, writing(twin), false);
    assert_eq!(flags(&writer), Some(KEEP));
    // Readers that come now have to see what is written.
    let away = plain(&modes, reading(FILE), true);
    assert_eq!(sent_away(&away), Some(Away::LookAgain));
    // The two readers from before and the writer.
    for node in [FILE, FILE, twin] {
        assert_eq!(modes.looked_up(FILE), twin);
        assert_eq!(modes.forget(twin, 1), FILE);
        modes.release(node);
    }
    assert_eq!(modes.object(twin), twin, "nobody has it any more");
    assert_eq!(modes.looked_up(FILE), FILE);
    assert!(!modes.is_passing(FILE));
    assert!(!modes.undecided(FILE), "it may be written again");
    // What the kernel keeps by the file's own number is from before.
    for expected in [NO_FLUSH, KEEP] {
        let answer = plain(&modes, reading(FILE), true);
        assert_eq!(flags(&answer), Some(expected));
        modes.release(FILE);
    }
    Ok(())
}

/// A link in `/proc` leads to an inode, so looking again leads nowhere else.
#[test]
fn who_comes_without_a_path_reads_through_us_and_writes_nothing() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let Some((modes, _)) = open_past_us(dir.path())? else {
        return Ok(());
    };
    for (how, expected) in [
        (writing(FILE), Away::LookAgain),
        (writing(FILE), Away::NoPath),
        (reading(FILE), Away::LookAgain),
    ] {
        assert_eq!(sent_away(&plain(&modes, how, false)), Some(expected));
    }
    let reader = plain(&modes, reading(FILE), false);
    assert_eq!(Opened::from(reader), Opened(DIRECT, Some(1)));
    modes.release(FILE);
    modes.release(FILE);
    assert_eq!(modes.looked_up(FILE), FILE);
    assert_eq!(flags(&plain(&modes, writing(FILE), false)), Some(NO_FLUSH));
    Ok(())
}

#[test]
fn a_file_that_is_read_past_us_is_not_cut_off() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let Some((modes, _)) = open_past_us(dir.path())? else {
        return Ok(());
    };
    assert_eq!(modes.may_truncate(writing(OTHER)), Ok(()));
    let away = modes.may_truncate(writing(FILE));
    assert_eq!(away, Err(Away::LookAgain));
    let twin = modes.looked_up(FILE);
    assert_eq!(modes.may_truncate(writing(twin)), Ok(()));
    Ok(())
}

/// The layer's file was found while it was written in the upper.
#[test]
fn a_file_that_was_written_meanwhile_is_not_handed_out() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let Some((_view, file)) = lower(dir.path())? else {
        return Ok(());
    };
    let (modes, kernel) = (enabled(), Kernel::default());
    let data = Backing::Lower(file);
    let answer = modes.open(
        reading(FILE),
        Some(&data),
        || false,
        |fd| kernel.register(fd),
    );
    assert_eq!(Opened::from(answer), Opened(KEEP, None));
    Ok(())
}

/// The kernel may take files of the upper all the same.
#[test]
fn a_layer_on_a_stacked_file_system_does_not_keep_the_upper_back() -> io::Result<()> {
    let dir = tempfile::tempdir()?;
    let Some((_view, file)) = lower(dir.path())? else {
        return Ok(());
    };
    let (modes, kernel) = (enabled(), Kernel::refusing(libc::ELOOP));
    let answer = kernel.open(&modes, FILE, Some(&Backing::Lower(file)));
    assert_eq!(answer, Opened(KEEP, None));
    assert!(!modes.undecided(OTHER), "no other one is looked for");
    kernel.refuses.set(None);
    assert!(kernel.open(&modes, OTHER, Some(&upper()?)).1.is_some());
    Ok(())
}
