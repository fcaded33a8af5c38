//! Open files and directories: the handles, and which descriptor each reads and writes.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Union;
use super::api::{Caller, Data, Ino, Kind};
use super::attr::drop_set_ids;
use super::copy_up::Want;
use super::node::Node;
use super::work::Temp;
use crate::error::{Error, Result};
use crate::sys::file;

/// The flags that the descriptor in the upper gets too; the kernel sees to all others.
const KEPT_FLAGS: i32 = libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC | libc::O_NOATIME;

/// The flags with which a new file is opened in the upper.
pub const CREATE_FLAGS: i32 = KEPT_FLAGS;

/// An open file or directory.
#[derive(Debug)]
pub struct Handle {
    pub node: Arc<Node>,
    pub flags: i32,
    /// The descriptor, and the node's generation that it is of.
    data: Mutex<Option<(u64, Data)>>,
}

fn may_write(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

impl Drop for Handle {
    fn drop(&mut self) {
        if may_write(self.flags) {
            self.node.writers.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The open files and directories, by the number that the kernel was given.
#[derive(Debug, Default)]
pub struct Handles {
    shards: [Mutex<HashMap<u64, Arc<Handle>>>; 8],
    next: AtomicU64,
}

impl Handles {
    pub fn add(&self, node: Arc<Node>, flags: i32, data: Option<(u64, Data)>) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        if may_write(flags) {
            node.writers.fetch_add(1, Ordering::Relaxed);
        }
        let handle = Arc::new(Handle {
            node,
            flags,
            data: Mutex::new(data),
        });
        self.shard(fh).lock().insert(fh, handle);
        fh
    }

    #[expect(clippy::indexing_slicing, reason = "the modulus is below the length")]
    fn shard(&self, fh: u64) -> &Mutex<HashMap<u64, Arc<Handle>>> {
        &self.shards[(fh % 8) as usize]
    }

    pub fn get(&self, fh: u64) -> Result<Arc<Handle>> {
        let handle = self.shard(fh).lock().get(&fh).cloned();
        handle.ok_or_else(|| Error::new(libc::EBADF, "unknown handle"))
    }

    pub fn remove(&self, fh: u64) -> Option<Arc<Handle>> {
        self.shard(fh).lock().remove(&fh)
    }
}

impl Union {
    /// Opens a file. One of a lower is not touched before it is read, and not copied up before it
    /// is written: a truncation may come first.
    pub fn open(&self, caller: &Caller, ino: Ino, flags: i32) -> Result<u64> {
        let node = self.table.get(ino)?;
        self.open_node(caller, node, flags)
    }

    pub(super) fn open_node(&self, caller: &Caller, node: Arc<Node>, flags: i32) -> Result<u64> {
        match node.kind {
            Kind::Dir => return Err(Error::new(libc::EISDIR, "open")),
            Kind::Symlink => return Err(Error::new(libc::ELOOP, "open")),
            _ => {}
        }
        if flags & libc::O_TRUNC != 0 {
            self.copy_up(&node, Want::Empty)?;
        } else if may_write(flags) {
            self.upper()?;
        }
        let in_upper = {
            let state = node.state.read();
            state.upper && !state.metacopy
        };
        let data = if in_upper {
            Some(self.open_data(&node, flags)?)
        } else {
            None
        };
        if let (true, Some((_, fd))) = (flags & libc::O_TRUNC != 0, &data) {
            use std::os::fd::AsFd;
            if caller.uid != 0 {
                drop_set_ids(fd.as_fd())?;
            }
        }
        Ok(self.handles.add(node, flags & !libc::O_TRUNC, data))
    }

    /// A descriptor of the data, wherever they are now.
    fn open_data(&self, node: &Node, flags: i32) -> Result<(u64, Data)> {
        let generation = node.generation.load(Ordering::Acquire);
        let (upper, metacopy) = {
            let state = node.state.read();
            (state.upper, state.metacopy)
        };
        let fd = match (&node.lower, upper && !metacopy) {
            (Some(lower), false) => self.open_lower(lower)?,
            _ => {
                let tree = self.read_tree();
                let at = self.place(&tree, node)?;
                self.upper()?
                    .open_at(&at, flags & (KEPT_FLAGS | libc::O_TRUNC))?
            }
        };
        Ok((generation, Arc::new(fd)))
    }

    /// The descriptor behind a handle, opened anew if the data have moved.
    pub(super) fn fd_of(&self, fh: u64) -> Result<Data> {
        self.data_of(&*self.handles.get(fh)?)
    }

    /// The same for a change of the data, which brings them to the upper.
    pub(super) fn fd_to_change(&self, fh: u64) -> Result<Data> {
        let handle = self.handles.get(fh)?;
        if !may_write(handle.flags) {
            return Err(Error::new(libc::EBADF, "write"));
        }
        self.copy_up(&handle.node, Want::Data)?;
        self.data_of(&handle)
    }

    pub(super) fn data_of(&self, handle: &Handle) -> Result<Data> {
        let generation = handle.node.generation.load(Ordering::Acquire);
        if let Some((of, fd)) = &*handle.data.lock()
            && *of == generation
        {
            return Ok(fd.clone());
        }
        let (generation, fd) = self.open_data(&handle.node, handle.flags)?;
        *handle.data.lock() = Some((generation, fd.clone()));
        Ok(fd)
    }

    /// Whether files of the upper can be opened with `O_DIRECT`. Where they cannot, the kernel must not
    /// open them in our place: a program that asks for that would get an error.
    pub fn takes_direct_io(&self) -> bool {
        let Ok(upper) = self.upper() else {
            return false;
        };
        let temp = Temp::new(upper);
        let flags = libc::O_CREAT | libc::O_RDWR | libc::O_DIRECT;
        file::openat(temp.fd(), &temp.name, flags, 0o600).is_ok()
    }

    /// The descriptor behind a handle whose data are in the upper, where they stay.
    pub fn upper_data(&self, fh: u64) -> Option<Data> {
        let handle = self.handles.get(fh).ok()?;
        let state = handle.node.state.read();
        let settled = handle.node.kind == Kind::File && state.upper && !state.metacopy;
        drop(state);
        let data = handle.data.lock();
        let (generation, fd) = data.as_ref()?;
        let current = *generation == handle.node.generation.load(Ordering::Acquire);
        (settled && current).then(|| fd.clone())
    }

    /// A handle of something that was just made and is open already.
    pub(super) fn opened(&self, node: Arc<Node>, flags: i32, fd: OwnedFd) -> u64 {
        let generation = node.generation.load(Ordering::Acquire);
        self.handles.add(
            node,
            flags & !libc::O_TRUNC,
            Some((generation, Arc::new(fd))),
        )
    }

    /// Closes a file.
    pub fn release(&self, fh: u64) {
        if let Some(handle) = self.handles.remove(fh) {
            let ino = handle.node.ino;
            drop(handle);
            self.table.reap(ino);
        }
    }
}
