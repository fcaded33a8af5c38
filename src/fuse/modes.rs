//! How each file is open in the kernel: through the page cache and this program, or straight on its
//! file in the upper ("passthrough").
//!
//! All opens of an inode that use the page cache or a backing file must agree, and name the same
//! backing file; else the program gets EIO (Linux, fs/fuse/iomode.c). So the first one decides, until
//! the last is released. Only files of the upper are ever handed out: the kernel opens a backing file
//! with the flags of each caller, so a lower would be open to writers.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, FopenFlags};
use parking_lot::Mutex;

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
    open: Mutex<HashMap<Ino, Mode>>,
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

    /// Decides for a handle, and counts it. `upper`: where the data are, if that is the upper;
    /// `register` makes a backing file of it.
    pub fn open(
        &self,
        ino: Ino,
        direct: bool,
        upper: Option<&OwnedFd>,
        register: impl FnOnce(&OwnedFd) -> io::Result<BackingId>,
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
        let upper = upper.filter(|_| on);
        let backing = upper.and_then(|fd| match register(fd) {
            Ok(id) => Some(Arc::new(id)),
            Err(e) => {
                self.refused(&e);
                None
            }
        });
        let answer = match (&backing, upper) {
            (Some(id), _) => backed(id, direct),
            // What is in the page cache may be from before a time of passthrough.
            (None, Some(_)) => Answer::Plain(NO_FLUSH),
            (None, None) => Answer::Plain(FopenFlags::FOPEN_KEEP_CACHE | NO_FLUSH),
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
