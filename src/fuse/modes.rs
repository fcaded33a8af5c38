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
use parking_lot::Mutex;

use crate::hash::Numbers;
use crate::sys::file;
use crate::union::Backing;
use crate::union::api::Ino;

/// Close needs no request.
const NO_FLUSH: FopenFlags = FopenFlags::FOPEN_NOFLUSH;

/// How to answer an open.
#[derive(Debug)]
pub enum Answer {
    /// With these flags.
    Plain(FopenFlags),
    /// With these flags and a backing file.
    Backed(FopenFlags, Arc<BackingId>),
}

/// Reads and writes with `O_DIRECT` come to this program: the upper's file system might ask for an
/// alignment. Mappings do not.
fn backed(id: &Arc<BackingId>, direct: bool) -> Answer {
    let flags = if direct {
        FopenFlags::FOPEN_DIRECT_IO | NO_FLUSH
    } else {
        NO_FLUSH
    };
    Answer::Backed(flags, id.clone())
}

/// What the open files have in common, by inode.
#[derive(Debug, Default)]
pub struct Modes {
    /// The kernel takes backing files from us, as far as we know.
    on: AtomicBool,
    open: Mutex<HashMap<Ino, Mode, Numbers>>,
}

#[derive(Debug)]
struct Mode {
    /// Handles that are not yet released.
    handles: u64,
    /// None: through the page cache.
    backing: Option<Arc<BackingId>>,
}

impl Modes {
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
        register: impl Fn(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Answer {
        let mut open = self.open.lock();
        if let Some(mode) = open.get_mut(&ino) {
            mode.handles += 1;
            return match &mode.backing {
                Some(id) => backed(id, direct),
                None => Answer::Plain(FopenFlags::FOPEN_KEEP_CACHE | NO_FLUSH),
            };
        }
        let on = self.on.load(Ordering::Relaxed);
        let data = data.filter(|_| on);
        let backing = data.and_then(|data| match registered(data, register) {
            Ok(id) => Some(Arc::new(id)),
            Err(e) => {
                self.refused(&e);
                None
            }
        });
        let answer = match (&backing, data) {
            (Some(id), _) => backed(id, direct),
            // What is in the page cache may be from before a time of passthrough.
            (None, Some(Backing::Upper(_))) => Answer::Plain(NO_FLUSH),
            (None, _) => Answer::Plain(FopenFlags::FOPEN_KEEP_CACHE | NO_FLUSH),
        };
        let handles = 1;
        open.insert(ino, Mode { handles, backing });
        answer
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

/// Makes a backing file. Files of layers come as `O_PATH` descriptors, so that only the kernel opens them;
/// older kernels do not take these.
fn registered(
    data: &Backing,
    register: impl Fn(BorrowedFd<'_>) -> io::Result<BackingId>,
) -> io::Result<BackingId> {
    match register(data.as_fd()) {
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => {
            let flags = libc::O_RDONLY | libc::O_NONBLOCK;
            register(file::reopen(data.as_fd(), flags)?.as_fd())
        }
        other => other,
    }
}
