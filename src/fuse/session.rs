//! The session: the handshake on a FUSE descriptor that is mounted already, and the loop after it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use fuser::{Config, Session, SessionACL};
use serde_json::Value;

use super::convert::FOREVER;
use super::receivers::Receivers;
use super::{LAST_WAIT, UnionFs, heap};
use crate::layer::revisions::Revisions;
use crate::union::{EARLY, HandOut, Union};

/// How to serve.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is told of the mount beside its counts, as `mount`.
    pub about: Value,
    /// Threads that receive requests. Few are enough: when all but one wait, the pool takes over.
    pub threads: usize,
    /// Give each thread its own queue. To be off for a descriptor that was opened in another user
    /// namespace: the kernel refuses to clone that one.
    pub clone_fd: bool,
    /// Which files the kernel may read and write without us, where it can.
    pub passthrough: Passthrough,
    /// Let the kernel collect writes in the page cache, where it does not write without us.
    pub writeback: bool,
    /// Have the kernel look after POSIX ACLs, and check rights itself.
    pub acls: bool,
    /// How long the kernel goes by a name and by attributes before it asks again; with 0 it keeps no
    /// listings and no data either.
    pub timeout: Duration,
}

/// Which files the kernel reads and writes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passthrough {
    /// None.
    Off,
    /// Those of the upper.
    Upper,
    /// Those of the upper, and of lowers on this machine those that are mapped rather than read, and seldom written.
    Auto,
    /// Those of the upper, and of lowers all that are large enough for it to be of use.
    All,
}

impl Passthrough {
    /// Which files of lowers the kernel is to be given, in a union that has an upper or not.
    pub(super) fn lowers(self, upper: bool) -> Option<HandOut> {
        let (programs, others) = match (self, upper) {
            (Passthrough::Off | Passthrough::Upper, _) | (Passthrough::Auto, false) => return None,
            (Passthrough::Auto, true) => (1 << 20, 64 << 20),
            // Smaller ones come with the answer to their open.
            (Passthrough::All, true) => (EARLY + 1, EARLY + 1),
            (Passthrough::All, false) => (0, 0),
        };
        Some(HandOut {
            programs,
            others,
            remote: self == Passthrough::All,
        })
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            about: Value::Null,
            threads: 4,
            clone_fd: true,
            passthrough: Passthrough::Auto,
            writeback: false,
            acls: true,
            timeout: FOREVER,
        }
    }
}

/// Serves the union on the descriptor with the default options, until it is unmounted. `ready` is
/// called once the kernel has been answered.
pub fn serve(union: Arc<Union>, fd: OwnedFd, ready: impl FnOnce()) -> io::Result<()> {
    serve_with(union, fd, Options::default(), ready)
}

/// Like [`serve`], with options.
pub fn serve_with(
    union: Arc<Union>,
    fd: OwnedFd,
    options: Options,
    ready: impl FnOnce(),
) -> io::Result<()> {
    heap::limit();
    let threads = options.threads.max(1);
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads);
    config.clone_fd = options.clone_fd && threads > 1 && device_opens();
    let revisions = watch_revisions(&union)?;
    let receivers = Arc::new(Receivers::new(threads, fd.try_clone()?));
    // What the kernel drops at each open need not come with it.
    let fills = !options.timeout.is_zero();
    let fs = UnionFs::new(union, options, receivers.clone());
    let pages = fs.pages.clone();
    let session = Session::from_fd(fs, fd, SessionACL::All, config)?;
    if fills {
        pages.reach(session.notifier());
    }
    ready();
    let watched = receivers.clone();
    thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || watched.ended(session.run()))?;
    let ended = receivers.watch(LAST_WAIT);
    revisions.end();
    ended
}

/// Watches the revisions of the layers' repositories, if there are any, on a thread that does not keep the union.
fn watch_revisions(union: &Arc<Union>) -> io::Result<Arc<Revisions>> {
    let revisions = union.revisions().clone();
    if !revisions.is_empty() {
        revisions.begin();
        let (watched, union) = (revisions.clone(), Arc::downgrade(union));
        thread::Builder::new()
            .name("revisions".to_owned())
            .spawn(move || watched.watch(|at| union.upgrade()?.layer_root(at)))?;
    }
    Ok(revisions)
}

/// Whether the device can be opened here, as cloning a descriptor takes. A container may lack it.
fn device_opens() -> bool {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_ok()
}
