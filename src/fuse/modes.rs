//! How each file is open in the kernel: through the page cache and this program, or straight on its
//! file in the upper or in a layer ("passthrough").
//!
//! All opens of an inode that use the page cache or a backing file must agree, and name the same
//! backing file; else the program gets EIO (Linux, fs/fuse/iomode.c). So the first one decides, until
//! the last is released. The kernel opens a backing file with the flags of each caller, so a file of a
//! layer would be open to writers: it is handed out only as a [`Backing::Lower`], which nobody can write, and who
//! wants to write the file gets another inode of it (see [`twins`](super::twins)).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, FopenFlags};
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::twins::{Away, NodeId, Thread, Twins};
use crate::hash::Numbers;
use crate::sys::file;
use crate::union::Backing;
use crate::union::api::Ino;

/// Close needs no request.
const NO_FLUSH: FopenFlags = FopenFlags::FOPEN_NOFLUSH;
const KEEP: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(NO_FLUSH);
const DIRECT: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(NO_FLUSH);

/// An open of a program.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// Of what.
    pub node: NodeId,
    /// With `O_DIRECT`.
    pub direct: bool,
    /// Not for reading alone.
    pub writes: bool,
    /// By whom.
    pub who: Thread,
}

/// How to answer an open.
#[derive(Debug)]
pub enum Answer<I = BackingId> {
    /// With these flags.
    Plain(FopenFlags),
    /// With these flags and a backing file.
    Backed(FopenFlags, Arc<I>),
    /// With an error: the file is not opened by this number at the moment.
    Away(Away),
}

/// Reads and writes with `O_DIRECT` come to this program: the upper's file system might ask for an
/// alignment. Mappings do not.
fn backed<I>(id: &Arc<I>, direct: bool) -> Answer<I> {
    Answer::Backed(if direct { DIRECT } else { NO_FLUSH }, id.clone())
}

/// What the open files have in common, by inode. A backing file goes when its `I` is dropped.
#[derive(Debug)]
pub struct Modes<I = BackingId> {
    /// The kernel takes files of the upper from us, as far as we know.
    on: AtomicBool,
    /// The same of files of layers.
    lowers: AtomicBool,
    /// There are twins.
    twins: AtomicBool,
    state: Mutex<State<I>>,
    filled: Condvar,
}

#[derive(Debug)]
struct State<I> {
    open: HashMap<NodeId, Mode<I>, Numbers>,
    twins: Twins,
}

#[derive(Debug)]
struct Mode<I> {
    /// Handles that are not yet released.
    handles: u64,
    how: How<I>,
}

#[derive(Debug)]
enum How<I> {
    /// Through the page cache.
    Cached,
    /// Likewise, and the first open is not answered yet.
    Filling,
    Upper(Arc<I>),
    Lower(Arc<I>),
}

impl<I> Default for Modes<I> {
    fn default() -> Self {
        Modes {
            on: AtomicBool::new(false),
            lowers: AtomicBool::new(true),
            twins: AtomicBool::new(false),
            state: Mutex::new(State {
                open: HashMap::default(),
                twins: Twins::default(),
            }),
            filled: Condvar::new(),
        }
    }
}

impl<I> Modes<I> {
    /// The kernel has agreed to take backing files.
    pub fn enable(&self) {
        self.on.store(true, Ordering::Relaxed);
    }

    /// Whether the next open of a file decides for it, and may hand out a file of a layer.
    pub fn undecided(&self, node: NodeId) -> bool {
        let may = self.on.load(Ordering::Relaxed) && self.lowers.load(Ordering::Relaxed);
        let state = self.state.lock();
        may && !state.open.contains_key(&node) && !state.twins.was_split(node)
    }

    /// Decides for a handle, and counts it unless it is turned away. `data`: what may be handed out; `register`
    /// makes a backing file of it. `unmoved`: the data are still those of the layer, if they ever were.
    pub fn open(
        &self,
        how: Opening,
        data: Option<&Backing>,
        unmoved: impl Fn() -> bool,
        register: impl Fn(BorrowedFd<'_>) -> io::Result<I>,
    ) -> Answer<I> {
        if let Some(answer) = self.admit(&mut self.state.lock(), how, &unmoved) {
            return answer;
        }
        // Without the lock, as it may mean to open a file of a layer.
        let data = data.filter(|data| self.takes(data));
        let registered = data.and_then(|data| match registered(data, register) {
            Ok(id) => Some(Arc::new(id)),
            Err(e) => {
                self.refused(data, &e);
                None
            }
        });
        let mut state = self.state.lock();
        if let Some(answer) = self.admit(&mut state, how, &unmoved) {
            // Somebody else has decided meanwhile.
            return answer;
        }
        let (how_open, answer) = match (registered, data) {
            (Some(id), Some(Backing::Lower(_)))
                if unmoved() && !state.twins.was_split(state.twins.object(how.node)) =>
            {
                let answer = backed(&id, how.direct);
                (How::Lower(id), answer)
            }
            (Some(id), Some(Backing::Upper(_))) => {
                let answer = backed(&id, how.direct);
                (How::Upper(id), answer)
            }
            // What is in the page cache may be from before a time of passthrough.
            (None, Some(Backing::Upper(_))) => {
                state.twins.is_outdated(how.node);
                (How::Cached, Answer::Plain(NO_FLUSH))
            }
            _ => (How::Cached, state.cached(how.node)),
        };
        state.open.insert(how.node, Mode::of(how_open));
        answer
    }

    /// Decides for the page cache, and has it filled before anybody can read the file: a page that the kernel has
    /// asked for could not be given to it unasked. Who opens the file meanwhile waits. For a file of which
    /// [`Modes::open`] would hand out nothing.
    pub fn open_filling(
        &self,
        how: Opening,
        unmoved: impl Fn() -> bool,
        fill: impl FnOnce(),
    ) -> Answer<I> {
        let mut state = self.state.lock();
        if let Some(answer) = self.admit(&mut state, how, &unmoved) {
            return answer;
        }
        let answer = state.cached(how.node);
        state.open.insert(how.node, Mode::of(How::Filling));
        drop(state);
        let filling = Filling(self, how.node);
        fill();
        drop(filling);
        answer
    }

    /// Turns a handle away, or counts one more of a file that is open. None: it is not.
    fn admit(
        &self,
        state: &mut MutexGuard<'_, State<I>>,
        how: Opening,
        unmoved: impl Fn() -> bool,
    ) -> Option<Answer<I>> {
        if let Err(away) = self.find(state, how, unmoved) {
            if how.writes || away == Away::LookAgain {
                return Some(Answer::Away(away));
            }
            // There is no path to look up. What it reads through us is right; what it maps is what others have.
            let mode = state.open.entry(how.node).or_insert(Mode {
                handles: 0,
                how: How::Cached,
            });
            return Some(match mode.join(true) {
                Answer::Plain(_) => Answer::Plain(DIRECT),
                backed => backed,
            });
        }
        loop {
            let mode = state.open.get_mut(&how.node)?;
            if !matches!(mode.how, How::Filling) {
                return Some(mode.join(how.direct));
            }
            self.filled.wait(state);
        }
    }

    /// Whether the file is opened by this number at the moment. If it is open past us and is to be written, or was,
    /// it gets another one.
    fn find(
        &self,
        state: &mut State<I>,
        how: Opening,
        unmoved: impl Fn() -> bool,
    ) -> Result<(), Away> {
        let ino = state.twins.object(how.node);
        if state.twins.current(ino) == how.node {
            let mode = state.open.get(&how.node).map(|mode| &mode.how);
            if !matches!(mode, Some(How::Lower(_))) || !how.writes && unmoved() {
                return Ok(());
            }
            state.twins.split(ino);
            self.twins.store(true, Ordering::Release);
        }
        Err(state.twins.turn_away(ino, how.who))
    }

    /// Whether a file may be cut off by its path, without a handle. `how` is of an open that would write.
    pub fn may_truncate(&self, how: Opening) -> Result<(), Away> {
        self.find(&mut self.state.lock(), how, || false)
    }

    /// Whether the kernel takes a file of this sort.
    fn takes(&self, data: &Backing) -> bool {
        let lower = matches!(data, Backing::Lower(_));
        self.on.load(Ordering::Relaxed) && (!lower || self.lowers.load(Ordering::Relaxed))
    }

    /// Without privileges, and where the file system is itself stacked, no other one of the sort would be taken.
    fn refused(&self, data: &Backing, e: &io::Error) {
        tracing::debug!("no passthrough: {e}");
        if matches!(e.raw_os_error(), Some(libc::EPERM | libc::ELOOP)) {
            match data {
                Backing::Upper(_) => self.on.store(false, Ordering::Relaxed),
                Backing::Lower(_) => self.lowers.store(false, Ordering::Relaxed),
            }
        }
    }

    /// A handle is gone.
    pub fn release(&self, node: NodeId) {
        let State { open, twins } = &mut *self.state.lock();
        if let Some(mode) = open.get_mut(&node) {
            mode.handles -= 1;
            if mode.handles == 0 {
                open.remove(&node);
                twins.rejoin(twins.object(node), |node| open.contains_key(&node));
                self.twins.store(!twins.are_none(), Ordering::Release);
            }
        }
    }

    /// The file that the kernel means by the number.
    pub fn object(&self, node: NodeId) -> Ino {
        if self.twins.load(Ordering::Acquire) {
            self.state.lock().twins.object(node)
        } else {
            node
        }
    }

    /// The number by which to answer a lookup of the file, which is counted.
    pub fn looked_up(&self, ino: Ino) -> NodeId {
        if !self.twins.load(Ordering::Acquire) {
            return ino;
        }
        self.state.lock().twins.looked_up(ino)
    }

    /// Whether the kernel is to keep nothing that it is told of the file by this number.
    pub fn is_passing(&self, node: NodeId) -> bool {
        self.twins.load(Ordering::Acquire) && self.state.lock().twins.is_passing(node)
    }

    /// The kernel has forgotten so many lookups of the number. The file that they were of.
    pub fn forget(&self, node: NodeId, lookups: u64) -> Ino {
        if !self.twins.load(Ordering::Acquire) {
            return node;
        }
        let State { open, twins } = &mut *self.state.lock();
        let ino = twins.forget(node, lookups, |node| open.contains_key(&node));
        self.twins.store(!twins.are_none(), Ordering::Release);
        ino
    }
}

impl<I> State<I> {
    /// The answer to the first of those who use the page cache.
    fn cached(&mut self, node: NodeId) -> Answer<I> {
        let outdated = self.twins.is_outdated(node);
        Answer::Plain(if outdated { NO_FLUSH } else { KEEP })
    }
}

impl<I> Mode<I> {
    /// Of the first handle.
    fn of(how: How<I>) -> Mode<I> {
        Mode { handles: 1, how }
    }

    /// Counts one more handle.
    fn join(&mut self, direct: bool) -> Answer<I> {
        self.handles += 1;
        match &self.how {
            How::Upper(id) | How::Lower(id) => backed(id, direct),
            How::Cached | How::Filling => Answer::Plain(KEEP),
        }
    }
}

/// The first open of a file fills its pages; over when dropped.
struct Filling<'a, I>(&'a Modes<I>, NodeId);

impl<I> Drop for Filling<'_, I> {
    fn drop(&mut self) {
        let Filling(modes, node) = self;
        if let Some(mode) = modes.state.lock().open.get_mut(node) {
            mode.how = How::Cached;
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
mod tests;
