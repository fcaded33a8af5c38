//! The session: the handshake on a FUSE descriptor that is mounted already, and the loop after it.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;

use fuser::{Config, Session, SessionACL};

use super::receivers::Receivers;
use super::{LAST_WAIT, UnionFs, heap};
use crate::union::Union;

/// How to serve.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Threads that receive requests. Few are enough: when all but one wait, the pool takes over.
    pub threads: usize,
    /// Give each thread its own queue. To be off for a descriptor that was opened in another user
    /// namespace: the kernel refuses to clone that one.
    pub clone_fd: bool,
    /// Which files the kernel may read and write without us, where it can.
    pub passthrough: Passthrough,
    /// Let the kernel collect writes in the page cache, where it does not write without us.
    pub writeback: bool,
}

/// Which files the kernel reads and writes itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passthrough {
    /// None.
    Off,
    /// Those of the upper.
    Upper,
    /// Those of the upper, and in a union without one those of lowers.
    All,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            threads: 4,
            clone_fd: true,
            passthrough: Passthrough::Upper,
            writeback: false,
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
    let device = fd.try_clone()?;
    let receivers = Arc::new(Receivers::new(threads));
    let fs = UnionFs::new(union, options, receivers.clone());
    let session = Session::from_fd(fs, fd, SessionACL::All, config)?;
    ready();
    let watched = receivers.clone();
    thread::Builder::new()
        .name("session".to_owned())
        .spawn(move || watched.ended(session.run()))?;
    receivers.watch(device, LAST_WAIT)
}

/// Whether the device can be opened here, as cloning a descriptor takes. A container may lack it.
fn device_opens() -> bool {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_ok()
}
