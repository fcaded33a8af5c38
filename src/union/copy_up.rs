//! Copy-up: an object of a lower comes to stand in the upper, whole or not at all.
//!
//! One copy-up at a time for each object; others wait for its result. The parents come first. The
//! copy is made in the work directory, with its data, owner, mode, attributes, number and times, and
//! takes its place by one rename.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::Union;
use super::api::{Durability, Ino, Kind, SetAttr};
use super::copy_data::punch;
use super::copy_meta::{capability, restore_mtime, restore_privileges, restore_times};
use super::marks::Mark;
use super::node::{LowerAt, Node};
use super::place::{At, Tree};
use super::work::Temp;
use crate::error::{Context, Error, Result, best_effort};
use crate::sys::meta;
use crate::sys::{file, name};

/// The longest path that a redirect may hold, in bytes: more may not fit beside other attributes.
pub const MAX_REDIRECT: usize = 2048;

/// How much of a file is wanted in the upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// The attributes; the data may stay below.
    Meta,
    Data,
    /// A file of length 0: its data are about to be cut off.
    Empty,
}

/// What a copy-up has come to.
#[derive(Default)]
struct Done {
    /// A copy was made just now.
    made: bool,
    data: Option<Fresh>,
}

/// Data that have just come to the upper.
pub struct Fresh {
    pub generation: u16,
    /// Open for reading and writing.
    pub fd: Arc<OwnedFd>,
}

/// The copy-ups under way, and what else the data of an object must not change for.
#[derive(Debug, Default)]
pub struct Flights {
    nodes: Mutex<HashSet<Ino>>,
    landed: Condvar,
}

/// One copy-up under way; ends when dropped.
pub struct Flight<'a> {
    flights: &'a Flights,
    ino: Ino,
}

impl Flights {
    fn enter(&self, ino: Ino) -> Flight<'_> {
        let mut nodes = self.nodes.lock();
        while !nodes.insert(ino) {
            self.landed.wait(&mut nodes);
        }
        Flight { flights: self, ino }
    }

    /// None if there is one under way.
    pub fn try_enter(&self, ino: Ino) -> Option<Flight<'_>> {
        let entered = self.nodes.lock().insert(ino);
        entered.then_some(Flight { flights: self, ino })
    }
}

impl Drop for Flight<'_> {
    fn drop(&mut self) {
        self.flights.nodes.lock().remove(&self.ino);
        self.flights.landed.notify_all();
    }
}

impl Union {
    /// Brings an object, and its parents, to the upper. EROFS on a read-only mount.
    pub(super) fn copy_up(&self, node: &Arc<Node>, want: Want) -> Result<()> {
        self.bring(node, want, None).map(drop)
    }

    /// The same for a change of attributes. True: the copy was made, and has come with the change.
    pub(super) fn copy_up_changed(&self, node: &Arc<Node>, set: &SetAttr) -> Result<bool> {
        // A new owner takes away what the old one's copy has; that is left to the file system.
        let whole = set
            .mode
            .or(set.atime.and(Some(0)))
            .or(set.mtime.and(Some(0)));
        let change = whole.filter(|_| set.uid.is_none() && set.gid.is_none());
        let done = self.bring(node, Want::Meta, change.map(|_| set))?;
        Ok(change.is_some() && done.made)
    }

    /// The same for a change of the data. If they came just now: the file that they were written to.
    pub(super) fn copy_up_data(&self, node: &Arc<Node>) -> Result<Option<Fresh>> {
        self.bring(node, Want::Data, None).map(|done| done.data)
    }

    fn bring(&self, node: &Arc<Node>, want: Want, change: Option<&SetAttr>) -> Result<Done> {
        self.upper()?;
        let there = |n: &Node| {
            let state = n.state.read();
            state.upper && (want == Want::Meta || !state.metacopy)
        };
        let mut last = Done::default();
        while !there(node) {
            let mut chain = vec![node.clone()];
            while let Some(parent) = chain.last().and_then(missing_parent) {
                chain.push(parent);
            }
            while let Some(next) = chain.pop() {
                let done = if chain.is_empty() {
                    self.copy_up_one(&next, want, change)?
                } else {
                    self.copy_up_one(&next, Want::Meta, None)?
                };
                let Some(done) = done else {
                    // A rename put it under a parent that is not there yet.
                    break;
                };
                last = done;
            }
        }
        Ok(last)
    }

    /// Held while metadata change. The data of a metadata copy do not come meanwhile: what their
    /// coming changes is put back to what it was before.
    pub(super) fn hold_metadata(&self, node: &Node) -> Option<Flight<'_>> {
        let waits = node.state.read().metacopy;
        waits.then(|| self.flights.enter(node.ino))
    }

    /// None if the parent is missing in the upper after all.
    fn copy_up_one(
        &self,
        node: &Arc<Node>,
        want: Want,
        change: Option<&SetAttr>,
    ) -> Result<Option<Done>> {
        let _flight = self.flights.enter(node.ino);
        let (upper, metacopy) = {
            let state = node.state.read();
            (state.upper, state.metacopy)
        };
        if upper {
            if metacopy && want != Want::Meta {
                self.fill(node, want)?;
            }
            return Ok(Some(Done::default()));
        }
        let lower = &node
            .lower_at()
            .ok_or_else(|| Error::new(libc::EIO, "copy up nothing"))?;
        let keeps_data = want == Want::Meta
            && node.kind == Kind::File
            && lower.stat.st_size > 0
            && lower.path().len() <= MAX_REDIRECT
            && self.upper()?.extended;
        let (temp, file) = self.make_copy(node, lower, want, keeps_data, change)?;
        let Some(generation) = self.publish_copy(node, temp, keeps_data)? else {
            return Ok(None);
        };
        self.copied.object();
        let parent = node.parent();
        if let (Some(parent), Durability::Full) = (parent, self.upper()?.durability) {
            self.sync_dir(&parent, false)?;
        }
        let data = file.filter(|_| want == Want::Data);
        Ok(Some(Done {
            made: true,
            data: data.map(|fd| Fresh { generation, fd }),
        }))
    }

    /// The copy in the work directory, complete; of a file it is open.
    fn make_copy(
        &self,
        node: &Node,
        lower: &LowerAt,
        want: Want,
        keeps_data: bool,
        change: Option<&SetAttr>,
    ) -> Result<(Temp<'_>, Option<Arc<OwnedFd>>)> {
        let upper = self.upper()?;
        let temp = Temp::new(upper);
        let mut at = temp.place();
        let kind = lower.stat.st_mode & libc::S_IFMT;
        let wanted = change.and_then(|set| set.mode);
        let mut mode = upper.mode_to_make(kind, wanted.unwrap_or(lower.stat.st_mode));
        let mut opened = None;
        match node.kind {
            Kind::Dir => name::mkdirat(at.fd(), &at.name, mode).op("copy up directory")?,
            Kind::Symlink => {
                let target = self.read_lower_link(lower)?;
                name::symlinkat(&target, at.fd(), &at.name).op("copy up symlink")?;
            }
            Kind::File => {
                let flags = libc::O_CREAT | libc::O_EXCL | libc::O_RDWR;
                let fd = file::openat(at.fd(), &at.name, flags, mode).op("copy up file")?;
                let fd = Arc::new(fd);
                opened = Some(fd.clone());
                at = At::of(fd);
                let size = u64::try_from(lower.stat.st_size).unwrap_or(0);
                if keeps_data {
                    file::ftruncate(at.fd(), size).op("copy up file")?;
                    if lower.stat.st_nlink > 1 {
                        // A name of it may come to stand where the layers hold something else.
                        upper.set_mark(&at, Mark::Redirect, &lower.path())?;
                    }
                    upper.set_mark(&at, Mark::Metacopy, b"")?;
                } else if want != Want::Empty {
                    self.copy_data(lower, at.fd(), size, 0)?;
                }
            }
            _ if upper.devices || matches!(node.kind, Kind::Fifo | Kind::Socket) => {
                name::mknodat(at.fd(), &at.name, kind | mode, lower.stat.st_rdev)
                    .op("copy up special file")?;
            }
            kind => {
                mode = 0o600;
                upper.write_special(&at, kind, lower.stat.st_rdev)?;
            }
        }
        let made = upper.made.map(|made| (made, mode));
        self.copy_metadata(lower, node, &at, made, change)?;
        if want == Want::Empty {
            // The cut shows with the copy, and so must its time.
            let time = |tv_nsec| libc::timespec { tv_sec: 0, tv_nsec };
            let times = [time(libc::UTIME_OMIT), time(libc::UTIME_NOW)];
            meta::utimensat(at.fd(), &at.name, &times).op("set times")?;
        }
        if let Some(fd) = &opened
            && want != Want::Empty
            && !keeps_data
            && lower.stat.st_size > 0
        {
            upper.before_publishing(fd.as_fd())?;
        }
        Ok((temp, opened))
    }

    /// Moves the copy to its place, under the tree lock. Returns the generation of what is there now;
    /// None: there is no parent to put it in.
    fn publish_copy(
        &self,
        node: &Arc<Node>,
        temp: Temp<'_>,
        keeps_data: bool,
    ) -> Result<Option<u16>> {
        let upper = self.upper()?;
        let tree = self.write_tree();
        let (removed, link) = {
            let state = node.state.read();
            let link = node.links(&state).next();
            (
                state.removed,
                link.map(|l| (l.parent.clone(), l.name.to_vec())),
            )
        };
        if removed {
            // Its names are gone, but it is open: it goes on without a name.
            let fd = temp.place().open(libc::O_PATH)?;
            drop(temp);
            let mut state = node.state.write();
            state.set_orphan(Some(fd));
            state.upper = true;
            state.metacopy = keeps_data;
            drop(state);
            return Ok(Some(node.moved()));
        }
        let (parent, name) = link.ok_or_else(|| Error::new(libc::EIO, "copy up without a name"))?;
        if !parent.state.read().upper {
            return Ok(None);
        }
        let shared = node
            .lower
            .as_ref()
            .filter(|l| !node.is_dir() && l.is_shared());
        let mut delta = 0;
        if let Some(lower) = shared {
            // Two names are in the upper then: this one and the index entry.
            delta = i64::try_from(lower.stat().st_nlink)
                .unwrap_or(i64::MAX)
                .saturating_sub(2);
            upper.index_copy(node.ino, &temp, delta)?;
        }
        if let Err(e) = self.commit_copy(&tree, &parent, &name, temp, node) {
            if shared.is_some() {
                upper.unindex(node.ino);
            }
            return Err(e);
        }
        let mut state = node.state.write();
        state.upper = true;
        state.metacopy = keeps_data;
        state.indexed = shared.is_some();
        state.set_nlink_delta(delta);
        state.single = !node.is_dir() && shared.is_none();
        node.settle_link(&mut state, &parent, &name, true);
        drop(state);
        Ok(Some(node.moved()))
    }

    /// The rename, with the parent's times kept: nothing changed as users see it.
    pub(super) fn commit_copy(
        &self,
        tree: &Tree<'_>,
        parent: &Arc<Node>,
        name: &[u8],
        mut temp: Temp<'_>,
        node: &Node,
    ) -> Result<()> {
        let upper = self.upper()?;
        let dir = At::of(self.dir_fd(tree, parent)?);
        let to = self.child_place(tree, parent, name)?;
        let mut index = self.index(tree, parent)?;
        let before = match index.mtime() {
            Some(known) => known,
            None => {
                let stat = dir.stat()?;
                (stat.st_mtime, stat.st_mtime_nsec)
            }
        };
        let from = temp.place();
        upper.with_rights(&[&dir, &from], || temp.publish(&to, 0))?;
        index.set(name, Some(node.kind.dtype()), false);
        index.set_ino(name, node.ino);
        let kept = restore_mtime(&dir, before);
        index.set_mtime(kept.is_ok().then_some(before));
        drop(index);
        best_effort("keep the time of the parent", kept);
        Ok(())
    }

    /// Brings the data of a metadata copy to where its metadata are.
    fn fill(&self, node: &Arc<Node>, want: Want) -> Result<()> {
        let upper = self.upper()?;
        let at = {
            let tree = self.read_tree();
            let at = self.place(&tree, node)?;
            At::of(Arc::new(upper.open_at(&at, libc::O_RDWR)?))
        };
        let fd = at.dir.clone();
        let before = at.stat()?;
        let capability = capability(&at)?;
        match (node.lower_at(), want) {
            (Some(lower), Want::Data) => {
                // A truncation that a crash cut off may have made it shorter.
                let size = u64::try_from(before.st_size.min(lower.stat.st_size)).unwrap_or(0);
                // The disk may be full of what did arrive.
                let has = u64::try_from(before.st_size).unwrap_or(0);
                let undo = |_: &Error| best_effort("empty a metadata copy", punch(&fd, size));
                let copied = self
                    .copy_data(&lower, fd.as_fd(), size, has)
                    .inspect_err(undo);
                // Also after half of it: the time and the privileges are the user's to lose, not ours.
                let kept = restore_times(&at, &before)
                    .and_then(|()| restore_privileges(&at, &before, capability.as_deref()));
                copied.and(kept)?;
                upper.before_publishing(fd.as_fd())?;
            }
            _ => {
                file::ftruncate(fd.as_fd(), 0).op("truncate")?;
                restore_privileges(&at, &before, None)?;
            }
        }
        // Under the lock, so that no lookup reads the marks that go and enters a node made from them.
        let _tree = self.write_tree();
        upper.clear_mark(&at, Mark::Metacopy)?;
        upper.clear_mark(&at, Mark::Redirect)?;
        node.state.write().metacopy = false;
        node.moved();
        Ok(())
    }
}

fn missing_parent(node: &Arc<Node>) -> Option<Arc<Node>> {
    let state = node.state.read();
    if state.upper || state.removed {
        return None;
    }
    let parent = state.parent().cloned()?;
    let missing = !parent.state.read().upper;
    missing.then_some(parent)
}
