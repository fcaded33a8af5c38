//! The FUSE side: each request is converted, becomes one call of the union, and is answered.
//!
//! A request runs on the thread that received it, or, if it may wait for a layer and no other one of the
//! [`receivers`] is free, on the [`pool`]. Either way a panic ends that request only: its reply object answers EIO when dropped.

pub mod convert;
pub mod heap;
pub mod modes;
pub mod pool;
pub mod receivers;
pub mod session;
pub mod stats;
pub mod twins;

mod more;
mod open;
mod ops;
mod pages;

use std::any::Any;
use std::ffi::OsStr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileHandle, FopenFlags, Generation, INodeNo, InitFlags, KernelConfig, ReplyAttr,
    ReplyEmpty, ReplyEntry, ReplyXattr, Request,
};

use crate::error::Result;
use crate::sys::process::is_initial_root;
use crate::union::api::{Attr, Caller, Ino};
use crate::union::{HandOut, Lane, Target, Union, may_write, unopened};
use modes::{Modes, Opening};
use pages::Pages;
use pool::Pool;
use receivers::{Busy, Receivers};
use stats::Requests;
use twins::{Away, NodeId};

pub use session::{Options, Passthrough, serve, serve_with};

/// A node id is an inode number, which comes back at the earliest when the kernel has forgotten it.
const GENERATION: Generation = Generation(0);

/// How long requests under way are waited for when the mount is gone.
const LAST_WAIT: Duration = Duration::from_millis(300);

/// The most bytes of one write or readahead.
pub const MAX_IO: u32 = 1 << 20;

/// What is asked of the kernel, each where it is on offer.
///
/// Left out on purpose: `SETXATTR_EXT` (fuser panics on its requests), locks (the kernel's own
/// follow the inode), `ATOMIC_O_TRUNC` (the kernel would have a running program cut off before it
/// finds that the open is ETXTBSY), `AUTO_INVAL_DATA` (the data has other writers than the page
/// cache). `READDIRPLUS_AUTO` is for [layers whose attributes cost much more than their names](Union::prefers_names).
const CAPABILITIES: [InitFlags; 10] = [
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_HAS_IOCTL_DIR,
];

/// The file system that fuser drives.
pub struct UnionFs {
    union: Arc<Union>,
    receivers: Arc<Receivers>,
    pool: Pool,
    modes: Arc<Modes>,
    pages: Arc<Pages>,
    requests: Arc<Requests>,
    trim: heap::Trim,
    options: Options,
    opens: Opens,
    /// Which files of lowers the kernel is given. Without privileges it would take none.
    lowers: Option<HandOut>,
    /// Listings are of names alone, unless attributes seem to be wanted.
    names_first: bool,
    /// The kernel collects writes.
    writeback: bool,
}

/// Which opens the kernel tells us of. What it does not is closed without a word, too.
#[derive(Clone, Copy, Debug)]
struct Opens {
    files: bool,
    dirs: bool,
}

impl UnionFs {
    /// Serves this union.
    pub fn new(union: Arc<Union>, options: Options, receivers: Arc<Receivers>) -> Self {
        UnionFs {
            lowers: options
                .passthrough
                .lowers(!union.is_read_only())
                .filter(|_| is_initial_root()),
            union,
            receivers,
            pool: Pool::default(),
            modes: Arc::default(),
            pages: Arc::default(),
            requests: Arc::new(Requests::about(options.about.clone())),
            trim: heap::Trim::default(),
            options,
            opens: Opens {
                files: true,
                dirs: true,
            },
            names_first: false,
            writeback: false,
        }
    }

    /// Chooses how data go to and fro: by the kernel alone, collected in the page cache, or as they come.
    /// Where all is cached and nothing changes, the kernel need not even tell of an open.
    fn choose(&mut self, config: &mut KernelConfig) {
        let read_only = self.union.is_read_only();
        let offered = config.capabilities();
        // Listings need no handle.
        let keeps = !self.options.timeout.is_zero();
        self.opens.dirs = !keeps || !offered.contains(InitFlags::FUSE_NO_OPENDIR_SUPPORT);
        let auto = InitFlags::FUSE_READDIRPLUS_AUTO;
        self.names_first = self.union.prefers_names() && config.add_capabilities(auto).is_ok();
        if self.passes() && negotiate_passthrough(config) {
            self.modes.enable();
        } else if read_only {
            self.opens.files = !keeps || !offered.contains(InitFlags::FUSE_NO_OPEN_SUPPORT);
        } else if self.options.writeback {
            let taken = config.add_capabilities(InitFlags::FUSE_WRITEBACK_CACHE);
            self.writeback = taken.is_ok();
            if self.writeback {
                self.union.expect_writeback();
            }
        }
    }

    /// Whether the kernel may be asked to read and write files by itself.
    fn passes(&self) -> bool {
        if self.union.is_read_only() {
            self.lowers.is_some() && self.union.can_hand_out_lowers().is_ok()
        } else {
            self.options.passthrough != Passthrough::Off && self.union.takes_direct_io()
        }
    }

    /// The file that the kernel means.
    fn object(&self, node: INodeNo) -> Ino {
        self.modes.object(node.0)
    }

    /// How long the kernel may keep what it is told of the file by this number.
    fn timeout_of(&self, node: NodeId) -> Duration {
        passing(&self.modes, node, self.options.timeout)
    }

    /// Runs the job here if this receiver can be spared, or the job cannot wait for a layer; else on the
    /// pool.
    fn run(
        &self,
        op: &'static str,
        lane: impl FnOnce(&Union) -> Option<Lane>,
        job: impl FnOnce(&Union) + Send + 'static,
    ) {
        self.tidy();
        match self.spot(lane) {
            Spot::Here(_busy) => self.here(op, || job(&self.union)),
            Spot::Pool(lane) => self.submit(op, lane, job),
        }
    }

    /// Sees to it that memory goes back.
    fn tidy(&self) {
        if self.union.has_freed() {
            self.trim.soon(&self.union);
        }
    }

    /// Where a request is to be carried out.
    fn spot(&self, lane: impl FnOnce(&Union) -> Option<Lane>) -> Spot<'_> {
        if let Some(busy) = self.receivers.enter() {
            return Spot::Here(Some(busy));
        }
        let mut found = None;
        guard("lane", || found = lane(&self.union));
        found.map_or(Spot::Here(None), Spot::Pool)
    }

    fn submit(&self, op: &'static str, lane: Lane, job: impl FnOnce(&Union) + Send + 'static) {
        let (union, requests) = (Arc::clone(&self.union), Arc::clone(&self.requests));
        let begun = requests.of(op).begin();
        self.pool.submit(op, lane, move || {
            guard(op, || job(&union));
            requests.of(op).end(begun);
        });
    }

    /// Runs the job here.
    fn here(&self, op: &'static str, job: impl FnOnce()) {
        self.requests.of(op).time(|| guard(op, job));
    }
}

/// Where a request is carried out.
enum Spot<'a> {
    /// By the receiver, which counts as busy if it may have to wait.
    Here(Option<Busy<'a>>),
    /// On the pool.
    Pool(Lane),
}

/// The lane of a request that reads.
fn reading(ino: Ino) -> impl FnOnce(&Union) -> Option<Lane> {
    move |union| union.lane(&[(ino, None)], false)
}

/// The lane of a lookup.
fn looking_up(parent: Ino, name: &OsStr) -> impl FnOnce(&Union) -> Option<Lane> {
    move |union| union.lane(&[(parent, Some(name))], false)
}

/// The lane of a request that changes names or a node.
fn changing<const N: usize>(targets: [Target<'_>; N]) -> impl FnOnce(&Union) -> Option<Lane> {
    move |union| union.lane(&targets, true)
}

/// The lane of a request that waits for the disk at least.
fn slow(ino: Ino) -> impl FnOnce(&Union) -> Option<Lane> {
    move |union| Some(union.slow_lane(ino))
}

/// Calls the job; a panic in it is logged, and goes no further.
fn guard(op: &'static str, job: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(job)) {
        tracing::error!("{op} panicked: {}", message(panic.as_ref()));
    }
}

/// The words of a panic.
fn message(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "(no message)"
    }
}

/// Tells the kernel what is wanted of it. What it does not offer is done without.
pub fn negotiate(config: &mut KernelConfig, acls: bool) {
    for capability in CAPABILITIES {
        if capability == InitFlags::FUSE_POSIX_ACL && !acls {
            continue;
        }
        if let Err(missing) = config.add_capabilities(capability) {
            tracing::debug!("the kernel does not offer {missing:?}");
        }
    }
    if let Err(nearest) = config.set_max_write(MAX_IO) {
        tracing::debug!("max_write stays below {MAX_IO}: {nearest}");
    }
    // Readahead that waits for a layer counts too: the kernel would hold back all other readahead.
    if let Err(nearest) = config.set_max_background(u16::MAX) {
        tracing::debug!("max_background: {nearest}");
    }
    // The kernel's own offer is the default, and the most there is.
    if let Err(nearest) = config.set_max_readahead(MAX_IO) {
        tracing::debug!("max_readahead is {nearest}");
    }
}

/// Asks for passthrough. A depth of one leaves room for an overlayfs upon the mount, and takes any
/// upper that is not itself stacked.
fn negotiate_passthrough(config: &mut KernelConfig) -> bool {
    config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(1).is_ok()
}

/// The union's number of a handle. The kernel sends 0 for what it did not tell of at the open.
fn handle(ino: Ino, fh: FileHandle) -> u64 {
    match fh.0 {
        0 => unopened(ino),
        fh => fh,
    }
}

/// What the request means to open.
fn opening(req: &Request, node: NodeId, flags: i32) -> Opening {
    Opening {
        node,
        direct: flags & libc::O_DIRECT != 0,
        writes: may_write(flags) || flags & libc::O_TRUNC != 0,
        who: req.pid(),
    }
}

/// The error that has the kernel look the path up again, which it does once, or the last word.
fn turned_away(away: Away) -> Errno {
    match away {
        Away::LookAgain => Errno::ESTALE,
        Away::NoPath => Errno::ETXTBSY,
    }
}

/// `timeout`, or none for a file that the kernel knows by two numbers.
fn passing(modes: &Modes, node: NodeId, timeout: Duration) -> Duration {
    if modes.is_passing(node) {
        Duration::ZERO
    } else {
        timeout
    }
}

/// Who asks.
fn caller(req: &Request, umask: u32) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        umask,
    }
}

fn reply_empty(op: &'static str, ino: Ino, result: Result<()>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(convert::errno(op, ino, &e)),
    }
}

/// What the kernel may keep over opens, of these flags.
fn kept(flags: FopenFlags, timeout: Duration) -> FopenFlags {
    if timeout.is_zero() {
        flags - (FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_CACHE_DIR)
    } else {
        flags
    }
}

fn reply_attr(
    op: &'static str,
    ino: Ino,
    result: Result<Attr>,
    timeout: Duration,
    reply: ReplyAttr,
) {
    match result {
        Ok(attr) => reply.attr(&timeout, &convert::file_attr(&attr)),
        Err(e) => reply.error(convert::errno(op, ino, &e)),
    }
}

fn reply_entry(
    op: &'static str,
    ino: Ino,
    result: Result<Attr>,
    timeout: Duration,
    reply: ReplyEntry,
) {
    match result {
        Ok(attr) => reply.entry(&timeout, &convert::file_attr(&attr), GENERATION),
        Err(e) => reply.error(convert::errno(op, ino, &e)),
    }
}

/// Answers with the length if the caller has no room at all, else with the bytes if they fit.
fn reply_xattr(op: &'static str, ino: Ino, result: Result<Vec<u8>>, size: u32, reply: ReplyXattr) {
    let value = match result {
        Ok(value) => value,
        Err(e) => return reply.error(convert::errno(op, ino, &e)),
    };
    match u32::try_from(value.len()) {
        Ok(len) if size == 0 => reply.size(len),
        Ok(len) if len <= size => reply.data(&value),
        _ => reply.error(Errno::ERANGE),
    }
}
