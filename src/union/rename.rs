//! Rename, in the merged view. A directory with a lower part moves by a redirect: an attribute that
//! names the lower directory it goes on merging with.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Union;
use super::api::{Ino, Kind, RenameKind};
use super::copy_meta::restore_times;
use super::copy_up::{MAX_REDIRECT, Want};
use super::marks::{Mark, Space};
use super::node::Node;
use super::place::{At, Tree};
use super::upper::Style;
use super::work::{self, Temp};
use crate::error::{Context, Error, Result, best_effort};
use crate::sys::meta::Stat;
use crate::sys::name;

/// A name in a directory.
#[derive(Debug)]
struct Spot<'a> {
    parent: Arc<Node>,
    name: &'a [u8],
}

/// A rename that has been checked.
#[derive(Debug)]
struct Move<'a> {
    from: Spot<'a>,
    to: Spot<'a>,
    kind: RenameKind,
}

impl Union {
    /// The target is judged in the merged view. EXDEV: a directory with a lower part, where redirects
    /// cannot be written (S40, S44).
    pub fn rename(
        &self,
        parent: Ino,
        name: &OsStr,
        new_parent: Ino,
        new_name: &OsStr,
        kind: RenameKind,
    ) -> Result<()> {
        let from = Spot {
            parent: self.table.get(parent)?,
            name: name.as_bytes(),
        };
        let to = Spot {
            parent: self.table.get(new_parent)?,
            name: new_name.as_bytes(),
        };
        let job = Move { from, to, kind };
        while !self.try_rename(&job)? {}
        Ok(())
    }

    /// False if somebody else changed the names meanwhile.
    fn try_rename(&self, job: &Move<'_>) -> Result<bool> {
        let (from, to) = (&job.from, &job.to);
        let source = self.existing(&from.parent, from.name)?;
        let target = self.resolve(&to.parent, to.name)?;
        let exchange = job.kind == RenameKind::Exchange;
        if job.kind == RenameKind::Whiteout && self.upper()?.space == Space::None {
            return Err(Error::new(libc::EINVAL, "leave a whiteout without xattrs"));
        }
        match &target {
            Some(_) if job.kind == RenameKind::NoReplace => {
                return Err(Error::new(libc::EEXIST, "rename"));
            }
            None if exchange => return Err(Error::new(libc::ENOENT, "exchange")),
            Some(target) if Arc::ptr_eq(&source, target) => {
                // Two names of it, unless it was moved from one to the other just now.
                let tree = self.read_tree();
                let at = |s: &Spot<'_>| self.stands(&tree, &source, &s.parent, s.name);
                return Ok(at(from)?.is_some() && at(to)?.is_some());
            }
            Some(target) if !exchange => match (source.is_dir(), target.is_dir()) {
                (true, false) => return Err(Error::new(libc::ENOTDIR, "rename")),
                (false, true) => return Err(Error::new(libc::EISDIR, "rename")),
                (true, true) => {
                    let inside = self.listing(target)?;
                    self.require_empty(&self.read_tree(), target, &inside)?;
                }
                (false, false) => {}
            },
            _ => {}
        }
        refuse_loop(&source, &to.parent)?;
        let from_below = self.listing(&from.parent)?.get(from.name).is_some();
        let to_below = self.listing(&to.parent)?.get(to.name).is_some();
        self.prepare_move(&source, from, to_below)?;
        self.copy_up(&to.parent, Want::Meta)?;
        if let Some(target) = &target {
            if exchange {
                refuse_loop(target, &from.parent)?;
                self.prepare_move(target, to, from_below)?;
            } else {
                self.settle_alias(target, &to.parent, to.name)?;
            }
        }
        let inside = match &target {
            Some(target) if target.is_dir() => Some(self.listing(target)?),
            _ => None,
        };

        let tree = self.write_tree();
        refuse_loop(&source, &to.parent)?;
        if self.stands(&tree, &source, &from.parent, from.name)? != Some(true) {
            return Ok(false);
        }
        let target_in_upper = match &target {
            Some(target) => match self.stands(&tree, target, &to.parent, to.name)? {
                Some(in_upper) => in_upper,
                None => return Ok(false),
            },
            None => {
                let held = self.held(&tree, &to.parent, to.name)?;
                if held.map_or(to_below, |h| h.object.is_some()) {
                    return Ok(false);
                }
                false
            }
        };
        if exchange {
            let Some(target) = &target else {
                return Ok(false);
            };
            if !target_in_upper {
                return Ok(false);
            }
            refuse_loop(target, &from.parent)?;
            self.exchange(&tree, job, &source, target)?;
            return Ok(true);
        }
        if let (Some(target), Some(inside)) = (&target, &inside) {
            self.require_empty(&tree, target, inside)?;
        }
        let rest = self.replace(
            &tree,
            job,
            &source,
            target.as_deref(),
            target_in_upper,
            from_below,
        )?;
        drop(tree);
        drop(rest);
        Ok(true)
    }

    /// Makes an object ready to stand under another name: in the upper, with its lower part named or
    /// cut off.
    fn prepare_move(&self, node: &Arc<Node>, at: &Spot<'_>, onto_lower: bool) -> Result<()> {
        let upper = self.upper()?;
        let merges = node.dir.as_ref().is_some_and(|d| !d.lowers.is_empty());
        if merges && !upper.extended {
            return Err(Error::new(libc::EXDEV, "rename a directory of a lower"));
        }
        self.copy_up(node, Want::Meta)?;
        self.settle_alias(node, &at.parent, at.name)?;
        if !node.is_dir() {
            return Ok(());
        }
        let tree = self.read_tree();
        if node.state.read().removed {
            // It is being cleaned away, and nothing may be put into it; the move will not find it.
            return Ok(());
        }
        let place = self.place(&tree, node)?;
        match node.lower_at() {
            Some(lower) if merges && lower.path().len() > MAX_REDIRECT => Err(Error::new(
                libc::EXDEV,
                "rename a directory of a lower, whose path is too long",
            )),
            Some(lower) if merges => upper.set_mark(&place, Mark::Redirect, &lower.path()),
            _ if onto_lower => upper.make_opaque(&place),
            _ => Ok(()),
        }
    }

    fn exchange(
        &self,
        tree: &Tree<'_>,
        job: &Move<'_>,
        source: &Arc<Node>,
        target: &Arc<Node>,
    ) -> Result<()> {
        let (from, to) = (&job.from, &job.to);
        let a = self.child_place(tree, &from.parent, from.name)?;
        let b = self.child_place(tree, &to.parent, to.name)?;
        self.name_data(source, &a)?;
        self.name_data(target, &b)?;
        name::renameat(a.fd(), &a.name, b.fd(), &b.name, libc::RENAME_EXCHANGE).op("exchange")?;
        for (node, old, new) in [(source, from, to), (target, to, from)] {
            node.drop_link(&old.parent, old.name);
            self.moved_in(tree, node, new)?;
        }
        Ok(())
    }

    /// Before an object gets another name, under the tree lock for writing: a metadata copy finds its data
    /// by the name, so now they are named.
    pub(super) fn name_data(&self, node: &Node, at: &At) -> Result<()> {
        if !node.state.read().metacopy {
            return Ok(());
        }
        let lower = node.lower_at();
        lower.map_or(Ok(()), |lower| {
            self.upper()?.set_mark(at, Mark::Redirect, &lower.path())
        })
    }

    /// Records that a node stands under a name now.
    fn moved_in(&self, tree: &Tree<'_>, node: &Arc<Node>, at: &Spot<'_>) -> Result<()> {
        let mut index = self.index(tree, &at.parent)?;
        index.set(at.name, Some(node.kind.dtype()), false);
        index.set_ino(at.name, node.ino);
        drop(index);
        node.add_link(&at.parent, at.name, true);
        if !node.is_local() {
            at.parent
                .as_dir()?
                .homegrown
                .store(false, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Moves the source over the target, or to where nothing is. Returns what is to be cleaned up.
    fn replace(
        &self,
        tree: &Tree<'_>,
        job: &Move<'_>,
        source: &Arc<Node>,
        target: Option<&Arc<Node>>,
        target_in_upper: bool,
        from_below: bool,
    ) -> Result<Option<Temp<'_>>> {
        let (from, to) = (&job.from, &job.to);
        let upper = self.upper()?;
        let a = self.child_place(tree, &from.parent, from.name)?;
        let b = self.child_place(tree, &to.parent, to.name)?;
        self.name_data(source, &a)?;
        let mut rest = None;
        let mut leaving = None;
        // The steps of `.wh.` style show in the times of the parents, also when they are undone.
        let times = match upper.style {
            Style::Wh => vec![times_around(&a)?, times_around(&b)?],
            Style::Overlay => Vec::new(),
        };
        let device = match job.kind {
            RenameKind::Whiteout => Some(self.prepare_device(&At {
                dir: a.dir.clone(),
                name: Vec::new(),
            })?),
            _ => None,
        };
        if let Some(target) = target {
            leaving = Some(self.leaving(tree, target, &to.parent, to.name, target_in_upper)?);
            if target.is_dir() && target_in_upper {
                rest = self.empty_target(tree, target, &b, to.name)?;
            }
        }
        match upper.style {
            Style::Overlay => self.move_over(&a, &b, source, from_below)?,
            Style::Wh => {
                let hidden = if from_below {
                    upper.write_wh(a.fd(), from.name)
                } else {
                    Ok(())
                };
                let moved = hidden.and_then(|()| self.move_over(&a, &b, source, false));
                if let Err(e) = moved {
                    if let Some(mut target) = rest.take() {
                        best_effort("undo", target.publish(&b, 0));
                        best_effort("undo", upper.clear_wh(b.fd(), to.name));
                    }
                    if from_below {
                        best_effort("undo", upper.clear_wh(a.fd(), from.name));
                    }
                    for (dir, before) in &times {
                        best_effort("undo", restore_times(dir, before));
                    }
                    return Err(e);
                }
            }
        }
        let mut leaves_device = device.is_some();
        if let Some(mut device) = device
            && let Err(e) = device.publish(&a, 0)
        {
            if target.is_some() {
                // Too late to undo: what was replaced is gone.
                tracing::warn!("no device is left behind by a rename: {e}");
                leaves_device = false;
            } else {
                let hidden = self.index(tree, &to.parent)?.get(to.name).is_some();
                best_effort("undo", self.move_back(&a, &b, from, from_below, hidden));
                return Err(e);
            }
        }
        if let (Some(target), Some(leaving)) = (target, leaving) {
            self.left(target, &to.parent, to.name, leaving)?;
        }
        let device = leaves_device.then_some(libc::DT_CHR);
        self.index(tree, &from.parent)?
            .set(from.name, device, device.is_none() && from_below);
        source.drop_link(&from.parent, from.name);
        self.moved_in(tree, source, to)?;
        if upper.wh_is_mark() {
            best_effort("remove whiteout", upper.clear_wh(b.fd(), to.name));
            if leaves_device {
                best_effort("remove whiteout", upper.clear_wh(a.fd(), from.name));
            }
        }
        Ok(rest)
    }

    /// Makes an upper directory, that shows nothing, really empty: opaque first, so that a crash
    /// between the steps shows nothing either.
    fn empty_target(
        &self,
        tree: &Tree<'_>,
        node: &Node,
        at: &At,
        name: &[u8],
    ) -> Result<Option<Temp<'_>>> {
        let upper = self.upper()?;
        match upper.style {
            Style::Wh => {
                upper.write_wh(at.fd(), name)?;
                self.move_away(at).map(Some)
            }
            Style::Overlay => {
                upper.make_opaque(at)?;
                let dir = self.dir_fd(tree, node)?;
                work::clean(std::os::fd::AsFd::as_fd(&dir)).map(|()| None)
            }
        }
    }

    /// One rename, or one exchange with a whiteout; `whiteout` leaves one behind.
    fn move_over(&self, a: &At, b: &At, source: &Node, from_below: bool) -> Result<()> {
        let upper = self.upper()?;
        let rename = |flags| name::renameat(a.fd(), &a.name, b.fd(), &b.name, flags);
        let is_whiteout = |st: Stat| st.st_mode & libc::S_IFMT == libc::S_IFCHR && st.st_rdev == 0;
        // Only a directory cannot simply replace it.
        if source.is_dir() && b.stat_if_there()?.is_some_and(is_whiteout) {
            rename(libc::RENAME_EXCHANGE).op("rename")?;
            if !from_below {
                best_effort("remove whiteout", name::unlinkat(a.fd(), &a.name));
            }
            return Ok(());
        }
        if !from_below {
            return rename(0).op("rename");
        }
        match rename(libc::RENAME_WHITEOUT) {
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
            other => return other.op("rename"),
        }
        // A file system without RENAME_WHITEOUT: a whiteout at the new name changes places.
        if b.stat_if_there()?.is_none() {
            name::mknodat(b.fd(), &b.name, libc::S_IFCHR, 0).op("make whiteout")?;
            let undo = |_: &std::io::Error| best_effort("undo", name::unlinkat(b.fd(), &b.name));
            return rename(libc::RENAME_EXCHANGE).inspect_err(undo).op("rename");
        }
        let mut whiteout = upper.prepare_whiteout()?;
        rename(libc::RENAME_EXCHANGE).op("rename")?;
        let flags = if source.is_dir() {
            libc::RENAME_EXCHANGE
        } else {
            0
        };
        let undo = |_: &Error| best_effort("undo", rename(libc::RENAME_EXCHANGE));
        whiteout.publish(a, flags).inspect_err(undo)
    }

    /// Takes a move back, to where nothing else stands.
    fn move_back(
        &self,
        a: &At,
        b: &At,
        from: &Spot<'_>,
        from_below: bool,
        to_hidden: bool,
    ) -> Result<()> {
        let upper = self.upper()?;
        if upper.style == Style::Wh {
            name::renameat(b.fd(), &b.name, a.fd(), &a.name, 0).op("rename")?;
            return if from_below {
                upper.clear_wh(a.fd(), from.name)
            } else {
                Ok(())
            };
        }
        if !from_below {
            name::mknodat(a.fd(), &a.name, libc::S_IFCHR, 0).op("make whiteout")?;
        }
        name::renameat(a.fd(), &a.name, b.fd(), &b.name, libc::RENAME_EXCHANGE).op("rename")?;
        if to_hidden {
            return Ok(());
        }
        name::unlinkat(b.fd(), &b.name).op("remove whiteout")
    }

    /// For `RENAME_WHITEOUT` by a user: a device 0:0 that users see takes the old name.
    fn prepare_device(&self, parent: &At) -> Result<Temp<'_>> {
        let upper = self.upper()?;
        let temp = Temp::new(upper);
        upper.write_special(&temp.place(), Kind::Char, 0)?;
        let stat = upper.stat(parent)?;
        if stat.st_mode & libc::S_ISGID != 0 {
            upper.set_owner(&temp.place(), None, Some(stat.st_gid))?;
        }
        upper.set_mode(&temp.place(), 0)?;
        Ok(temp)
    }
}

/// The directory that a place is in, with its times.
fn times_around(at: &At) -> Result<(At, Stat)> {
    let dir = At {
        dir: at.dir.clone(),
        name: Vec::new(),
    };
    let stat = dir.stat()?;
    Ok((dir, stat))
}

/// EINVAL if the directory would come to stand in itself.
fn refuse_loop(node: &Arc<Node>, parent: &Arc<Node>) -> Result<()> {
    if !node.is_dir() {
        return Ok(());
    }
    let mut at = Some(parent.clone());
    while let Some(dir) = at {
        if Arc::ptr_eq(&dir, node) {
            return Err(Error::new(libc::EINVAL, "move a directory into itself"));
        }
        at = dir.parent();
    }
    Ok(())
}
