//! Open files: the handles, and which descriptor each reads and writes.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::Union;
use super::api::{Caller, Ino, Kind};
use super::copy_up::{Fresh, Want};
use super::early::Trial;
use super::node::Node;
use super::upper::Upper;
use crate::error::{Context, Error, Result};
use crate::hash::Numbers;
use crate::layer::LowerFile;
use crate::sys::readonly::ReadOnlyFile;

/// The flags that the descriptor in the upper gets too; the kernel sees to all others.
const KEPT_FLAGS: i32 = libc::O_ACCMODE | libc::O_SYNC | libc::O_DSYNC | libc::O_NOATIME;

/// Set in the number of a handle that stands for an object which was not opened: the rest is the
/// object's number, which never has this bit.
const UNOPENED: u64 = 1 << 63;

/// The handle to read an object by that was not opened, in a read-only union.
pub fn unopened(ino: Ino) -> u64 {
    UNOPENED | ino
}

/// Where the data of an open file are.
#[derive(Clone, Debug)]
pub enum Data {
    Upper(Arc<OwnedFd>),
    Lower(Arc<LowerFile>),
}

/// Data that the kernel may read, and of the upper also write, in our place.
#[derive(Debug)]
pub enum Backing {
    /// The file in the upper, open as the program has it.
    Upper(Arc<OwnedFd>),
    /// A file of a lower, where it cannot be written.
    Lower(ReadOnlyFile),
}

/// Which files of lowers the kernel may be given, by their least sizes in bytes.
#[derive(Clone, Copy, Debug)]
pub struct HandOut {
    /// Programs and libraries: what may be executed, or has `.so` in its name.
    pub programs: u64,
    /// All others.
    pub others: u64,
    /// Also those of layers that lie elsewhere. What hangs or dies there, then does so to who reads them, and nobody opens
    /// them again.
    pub remote: bool,
}

impl AsFd for Backing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Backing::Upper(fd) => fd.as_fd(),
            Backing::Lower(file) => file.as_fd(),
        }
    }
}

/// An open file.
#[derive(Debug)]
pub struct Handle {
    pub node: Arc<Node>,
    pub flags: i32,
    /// The data, and the node's generation that they are of.
    data: Mutex<Option<(u16, Data)>>,
    pub trial: Trial,
}

impl Handle {
    fn has_read_lower(&self) -> bool {
        matches!(&*self.data.lock(), Some((_, Data::Lower(_))))
    }
}

/// Whether the flags of an open allow more than reading.
pub fn may_write(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

impl Drop for Handle {
    fn drop(&mut self) {
        if may_write(self.flags) {
            self.node.end_writing();
        }
    }
}

/// The open files, by the number that the kernel was given.
#[derive(Debug, Default)]
pub struct Handles {
    shards: [Mutex<HashMap<u64, Arc<Handle>, Numbers>>; 8],
    next: AtomicU64,
}

impl Handles {
    pub fn add(&self, node: Arc<Node>, flags: i32, data: Option<(u16, Data)>) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        if may_write(flags) {
            node.begin_writing();
        }
        let handle = Arc::new(Handle {
            node,
            flags,
            data: Mutex::new(data),
            trial: Trial::default(),
        });
        self.shard(fh).lock().insert(fh, handle);
        fh
    }

    #[expect(clippy::indexing_slicing, reason = "the modulus is below the length")]
    fn shard(&self, fh: u64) -> &Mutex<HashMap<u64, Arc<Handle>, Numbers>> {
        &self.shards[(fh % 8) as usize]
    }

    fn get(&self, fh: u64) -> Result<Arc<Handle>> {
        let handle = self.shard(fh).lock().get(&fh).cloned();
        handle.ok_or_else(|| Error::new(libc::EBADF, "unknown handle"))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
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
            Kind::File => {}
            // The kernel serves these itself. Opening them here could wait for ever.
            _ => return Err(Error::new(libc::ENXIO, "open")),
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
        if let (true, Some((_, Data::Upper(fd)))) = (flags & libc::O_TRUNC != 0, &data)
            && caller.uid != 0
        {
            self.upper()?.drop_set_ids(fd.as_fd())?;
        }
        Ok(self.handles.add(node, flags & !libc::O_TRUNC, data))
    }

    /// The open file.
    pub(super) fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        if fh & UNOPENED == 0 {
            return self.handles.get(fh);
        }
        Ok(Arc::new(Handle {
            node: self.table.get(fh & !UNOPENED)?,
            flags: libc::O_RDONLY,
            data: Mutex::default(),
            trial: Trial::default(),
        }))
    }

    /// The data, wherever they are now. A file of a lower is opened when it is read.
    fn open_data(&self, node: &Node, flags: i32) -> Result<(u16, Data)> {
        let generation = node.generation();
        let (upper, metacopy) = {
            let state = node.state.read();
            (state.upper, state.metacopy)
        };
        let data = match (node.lower_at(), upper && !metacopy) {
            (Some(lower), false) => Data::Lower(self.files.of(node.ino, &lower)),
            _ => {
                let tree = self.read_tree();
                let at = self.place(&tree, node)?;
                let flags = self.upper_flags(flags) | flags & libc::O_TRUNC;
                Data::Upper(Arc::new(self.upper()?.open_at(&at, flags)?))
            }
        };
        Ok((generation, data))
    }

    /// Does `op` with a descriptor of a handle's data; for a lower's perhaps twice.
    pub(super) fn on_data<T>(
        &self,
        handle: &Handle,
        what: &'static str,
        mut op: impl FnMut(BorrowedFd<'_>) -> io::Result<T>,
    ) -> Result<T> {
        match self.data_of(handle)? {
            Data::Upper(fd) => op(fd.as_fd()).op(what),
            Data::Lower(file) => self.lowers.with_file(&file, what, op),
        }
    }

    /// The descriptor behind a handle of data that are in the upper.
    pub(super) fn upper_fd(&self, handle: &Handle) -> Result<Arc<OwnedFd>> {
        match self.data_of(handle)? {
            Data::Upper(fd) => Ok(fd),
            Data::Lower(_) => Err(Error::new(libc::EIO, "data that were to be in the upper")),
        }
    }

    /// The same for a change of the data, which brings them to the upper.
    pub(super) fn fd_to_change(&self, fh: u64) -> Result<Arc<OwnedFd>> {
        self.upper()?;
        let handle = self.handle(fh)?;
        if !may_write(handle.flags) {
            return Err(Error::new(libc::EBADF, "write"));
        }
        let fresh = self.copy_up_data(&handle.node)?;
        if let Some(Fresh { generation, fd }) = fresh
            && handle.flags & KEPT_FLAGS & !libc::O_ACCMODE == 0
        {
            *handle.data.lock() = Some((generation, Data::Upper(fd.clone())));
            return Ok(fd);
        }
        self.upper_fd(&handle)
    }

    pub(super) fn data_of(&self, handle: &Handle) -> Result<Data> {
        let generation = handle.node.generation();
        if let Some((of, data)) = &*handle.data.lock()
            && *of == generation
        {
            return Ok(data.clone());
        }
        let (generation, data) = self.open_data(&handle.node, handle.flags)?;
        *handle.data.lock() = Some((generation, data.clone()));
        Ok(data)
    }

    /// Without an upper nothing ever changes.
    pub fn is_read_only(&self) -> bool {
        self.upper.is_none()
    }

    /// Whether the kernel can be given files of the lowers at all.
    pub fn can_hand_out_lowers(&self) -> io::Result<()> {
        self.lowers.can_be_viewed()
    }

    /// From now on the kernel collects writes, and reads what surrounds them by the same handles.
    pub fn expect_writeback(&self) {
        self.writeback.store(true, Ordering::Relaxed);
    }

    /// Whether the kernel collects writes, and with them has the time of each file's last change.
    pub(super) fn expects_writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    /// The flags with which a program's file is opened in the upper.
    pub(super) fn upper_flags(&self, flags: i32) -> i32 {
        let writes_only = flags & libc::O_ACCMODE == libc::O_WRONLY;
        if writes_only && self.expects_writeback() {
            flags & KEPT_FLAGS & !libc::O_ACCMODE | libc::O_RDWR
        } else {
            flags & KEPT_FLAGS
        }
    }

    /// Whether files of the upper can be opened with `O_DIRECT`. Where they cannot, the kernel must not
    /// open them in our place: a program that asks for that would get an error.
    pub fn takes_direct_io(&self) -> bool {
        self.upper().is_ok_and(Upper::takes_direct_io)
    }

    /// What the kernel may be given to read and write in our place: of the upper, data that stay where they are; of
    /// a lower, which costs the layer requests, a file of `lowers` that is opened to be read and not in the upper.
    pub fn backing(&self, fh: u64, lowers: Option<&HandOut>) -> Option<Backing> {
        let handle = self.handles.get(fh).ok()?;
        if let Some(upper) = self.upper.as_ref().and_then(|_| settled(&handle)) {
            return Some(Backing::Upper(upper));
        }
        let file = self.may_hand_out(&handle, lowers?)?;
        match self.lowers.read_only(&file) {
            Ok(file) => file.map(Backing::Lower),
            Err(e) => {
                // The first read meets it again.
                tracing::debug!("{e}");
                None
            }
        }
    }

    /// The file of a lower behind a handle, if it is one of these, and nothing would be lost.
    fn may_hand_out(&self, handle: &Handle, which: &HandOut) -> Option<Arc<LowerFile>> {
        let node = &handle.node;
        let lower = node.lower.as_ref()?;
        if may_write(handle.flags) || node.state.read().upper {
            return None;
        }
        let stat = lower.stat();
        let least = match stat.st_mode & 0o111 != 0 || is_library(&node.name) {
            true => which.programs.min(which.others),
            false => which.others,
        };
        if u64::try_from(stat.st_size).is_ok_and(|size| size < least)
            || !which.remote && !self.lowers.is_local(&lower.dir)
        {
            return None;
        }
        // Which parts of a file are read is to be known when it is fetched ahead: it is seen the first time.
        let learns = self.lowers.learning().is_some() && self.upper.is_some();
        if learns && !node.was_read.load(Ordering::Relaxed) && self.lowers.is_cvmfs(&lower.dir) {
            return None;
        }
        match self.data_of(handle) {
            Ok(Data::Lower(file)) => Some(file),
            _ => None,
        }
    }

    /// Whether the data behind a handle are those of a lower.
    pub fn is_of_lower(&self, fh: u64) -> bool {
        self.handle(fh).is_ok_and(|handle| {
            let state = handle.node.state.read();
            !state.upper || state.metacopy
        })
    }

    /// A handle of something that was just made and is open already.
    pub(super) fn opened(&self, node: Arc<Node>, flags: i32, fd: OwnedFd) -> u64 {
        let generation = node.generation();
        self.handles.add(
            node,
            flags & !libc::O_TRUNC,
            Some((generation, Data::Upper(Arc::new(fd)))),
        )
    }

    /// Closes a file.
    pub fn release(&self, fh: u64) {
        if let Some(handle) = self.handles.remove(fh) {
            let ino = handle.node.ino;
            let read = handle.has_read_lower();
            self.learn_from(&handle, read);
            drop(handle);
            if read {
                self.files.let_go(ino);
            }
            self.table.reap(ino);
        }
    }
}

/// The descriptor behind a handle whose data are in the upper, where they stay.
fn settled(handle: &Handle) -> Option<Arc<OwnedFd>> {
    let state = handle.node.state.read();
    let settled = handle.node.kind == Kind::File && state.upper && !state.metacopy;
    drop(state);
    let data = handle.data.lock();
    let (generation, data) = data.as_ref()?;
    let current = *generation == handle.node.generation();
    match data {
        Data::Upper(fd) if settled && current => Some(fd.clone()),
        _ => None,
    }
}

/// Whether a name is that of a shared library, perhaps with a version.
fn is_library(name: &[u8]) -> bool {
    name.ends_with(b".so") || name.windows(4).any(|part| part == b".so.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_known_by_their_names() {
        for name in ["libc.so.6", "a.so", "b.cpython-311-x86_64-linux-gnu.so"] {
            assert!(is_library(name.as_bytes()), "{name}");
        }
        for name in ["a.sock", "so", "libc.soft", "a.a"] {
            assert!(!is_library(name.as_bytes()), "{name}");
        }
    }
}
