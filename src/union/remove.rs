//! `unlink` and `rmdir`. What a lower still holds under the name is hidden by the same step that
//! takes the upper's object away, so no crash brings a deleted name back.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::Union;
use super::api::Ino;
use super::copy_up::Want;
use super::node::{Index, Link, Node};
use super::place::{At, Tree};
use super::table::Used;
use super::upper::Style;
use super::work::Temp;
use crate::error::{Context, Error, Result, best_effort};
use crate::layer::Listing;
use crate::sys::name;

/// What stands for an object after one of its names has gone.
#[derive(Debug)]
pub enum Leaving {
    /// It has other names; the descriptor stands in while none of them is known.
    Others(Option<OwnedFd>),
    /// It has none; the descriptor is of an object of the upper.
    Last(Option<OwnedFd>),
}

impl Union {
    /// EISDIR for a directory. What is open stays usable (S8).
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let (parent, name) = (self.table.get(parent)?, name.as_bytes());
        loop {
            let node = self.existing(&parent, name)?;
            if node.is_dir() {
                return Err(Error::new(libc::EISDIR, "unlink"));
            }
            self.copy_up(&parent, Want::Meta)?;
            self.settle_alias(&node, &parent, name)?;
            let below = self.listing(&parent)?.get(name).is_some();
            let tree = self.write_tree();
            let Some(in_upper) = self.stands(&tree, &node, &parent, name)? else {
                continue;
            };
            let leaving = self.leaving(&tree, &node, &parent, name, in_upper)?;
            self.hide(&tree, &parent, name, in_upper, below)?;
            self.index(&tree, &parent)?.set(name, None, below);
            self.left(&node, &parent, name, leaving)?;
            return Ok(());
        }
    }

    /// ENOTEMPTY if the merged view shows a name in it; ENOTDIR for a file.
    pub fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let (parent, name) = (self.table.get(parent)?, name.as_bytes());
        loop {
            let node = self.existing(&parent, name)?;
            if !node.is_dir() {
                return Err(Error::new(libc::ENOTDIR, "rmdir"));
            }
            let inside = self.listing(&node)?;
            let below = self.listing(&parent)?.get(name).is_some();
            self.require_empty(&self.read_tree(), &node, &inside)?;
            self.copy_up(&parent, Want::Meta)?;
            let tree = self.write_tree();
            let Some(in_upper) = self.stands(&tree, &node, &parent, name)? else {
                continue;
            };
            self.require_empty(&tree, &node, &inside)?;
            let leaving = self.leaving(&tree, &node, &parent, name, in_upper)?;
            let rest = self.hide_dir(&tree, &parent, name, in_upper, below)?;
            self.index(&tree, &parent)?.set(name, None, below);
            self.left(&node, &parent, name, leaving)?;
            drop(tree);
            drop(rest);
            return Ok(());
        }
    }

    /// The node under a name, or ENOENT.
    pub(super) fn existing(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Used<'_>> {
        let node = self.resolve(parent, name)?;
        node.ok_or_else(|| Error::new(libc::ENOENT, "find"))
    }

    /// Whether the node still stands there: Some of whether in the upper.
    pub(super) fn stands(
        &self,
        tree: &Tree<'_>,
        node: &Node,
        parent: &Node,
        name: &[u8],
    ) -> Result<Option<bool>> {
        let held = self.held(tree, parent, name)?;
        let in_upper = match held {
            Some(h) if h.object.is_none() => return Ok(None),
            held => held.is_some(),
        };
        let state = node.state.read();
        let known = node
            .links(&state)
            .any(|l| l.is(parent, name) && l.in_upper == in_upper);
        Ok(known.then_some(in_upper))
    }

    /// ENOTEMPTY if the merged directory shows anything.
    pub(super) fn require_empty(
        &self,
        tree: &Tree<'_>,
        node: &Node,
        listing: &Listing,
    ) -> Result<()> {
        let index = self.index(tree, node)?;
        if index.has_objects() || listing.from(0).any(|e| index.get(e.name).is_none()) {
            return Err(Error::new(libc::ENOTEMPTY, "remove directory"));
        }
        Ok(())
    }

    /// Before a name goes: what stands for the object afterwards.
    pub(super) fn leaving(
        &self,
        tree: &Tree<'_>,
        node: &Node,
        parent: &Node,
        name: &[u8],
        in_upper: bool,
    ) -> Result<Leaving> {
        if !in_upper {
            return Ok(Leaving::Last(None));
        }
        let at = self.child_place(tree, parent, name)?;
        let upper = self.upper()?;
        let last = node.is_dir() || node.state.read().single;
        if last && !upper.remembers() {
            return at.open(libc::O_PATH).map(|fd| Leaving::Last(Some(fd)));
        }
        let stat = at.stat()?;
        if !last {
            let links = i64::try_from(stat.st_nlink).unwrap_or(i64::MAX);
            let state = node.state.read();
            if links + state.nlink_delta() > 1 {
                let known = |l: Link<'_>| l.in_upper && !l.is(parent, name);
                if state.indexed || node.links(&state).any(known) {
                    return Ok(Leaving::Others(None));
                }
                drop(state);
                return at.open(libc::O_PATH).map(|fd| Leaving::Others(Some(fd)));
            }
        }
        upper.unremember(upper.number(&stat));
        at.open(libc::O_PATH).map(|fd| Leaving::Last(Some(fd)))
    }

    /// After a name has gone.
    pub(super) fn left(
        &self,
        node: &Node,
        parent: &Node,
        name: &[u8],
        leaving: Leaving,
    ) -> Result<()> {
        node.drop_link(parent, name);
        let orphan = match leaving {
            Leaving::Last(orphan) => orphan,
            Leaving::Others(spare) => {
                node.state.write().set_spare(spare);
                return Ok(());
            }
        };
        let mut state = node.state.write();
        state.removed = true;
        let indexed = std::mem::take(&mut state.indexed);
        state.set_orphan(orphan);
        drop(state);
        let upper = self.upper()?;
        upper.drop_dir(node.ino);
        if let Some(dir) = &node.dir {
            *dir.index.lock() = Some(Index::default());
        }
        if indexed {
            // The name has gone: an entry that stays behind must not fail that.
            upper.unindex(node.ino);
        }
        Ok(())
    }

    /// Takes a name that is no directory away from the upper, and hides it if a lower holds it.
    fn hide(
        &self,
        tree: &Tree<'_>,
        parent: &Node,
        name: &[u8],
        in_upper: bool,
        below: bool,
    ) -> Result<()> {
        let upper = self.upper()?;
        let at = self.child_place(tree, parent, name)?;
        match (below, upper.style) {
            (false, _) => name::unlinkat(at.fd(), &at.name).op("unlink"),
            (true, Style::Overlay) if in_upper => upper.prepare_whiteout()?.publish(&at, 0),
            (true, Style::Overlay) => {
                name::mknodat(at.fd(), &at.name, libc::S_IFCHR, 0).op("make whiteout")
            }
            (true, Style::Wh) => {
                upper.write_wh(at.fd(), name)?;
                if !in_upper {
                    return Ok(());
                }
                let gone = name::unlinkat(at.fd(), &at.name).op("unlink");
                gone.inspect_err(|_| best_effort("undo", upper.clear_wh(at.fd(), name)))
            }
        }
    }

    /// The same for a directory that is empty as users see it. Returns what is to be cleaned up.
    fn hide_dir(
        &self,
        tree: &Tree<'_>,
        parent: &Node,
        name: &[u8],
        in_upper: bool,
        below: bool,
    ) -> Result<Option<Temp<'_>>> {
        if !in_upper {
            return self.hide(tree, parent, name, false, below).map(|()| None);
        }
        let upper = self.upper()?;
        let at = self.child_place(tree, parent, name)?;
        if !below {
            return match name::rmdirat(at.fd(), &at.name) {
                Err(e) if is_full(&e) => self.move_away(&at).map(Some),
                other => other.op("rmdir").map(|()| None),
            };
        }
        match upper.style {
            Style::Overlay => {
                let temp = upper.prepare_whiteout()?;
                name::renameat(
                    temp.fd(),
                    &temp.name,
                    at.fd(),
                    &at.name,
                    libc::RENAME_EXCHANGE,
                )
                .op("hide directory")?;
                Ok(Some(temp))
            }
            Style::Wh => {
                upper.write_wh(at.fd(), name)?;
                let away = self.move_away(&at).map(Some);
                away.inspect_err(|_| best_effort("undo", upper.clear_wh(at.fd(), name)))
            }
        }
    }

    /// Moves an upper object into the work directory, to be cleaned up there.
    pub(super) fn move_away(&self, at: &At) -> Result<Temp<'_>> {
        let temp = Temp::new(self.upper()?);
        name::renameat(at.fd(), &at.name, temp.fd(), &temp.name, 0).op("move away")?;
        Ok(temp)
    }
}

fn is_full(e: &std::io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOTEMPTY | libc::EEXIST))
}
