//! The index of hard links: what keeps a file one file when only some of its names are in the upper.
//!
//! A file with several names in its layer is copied up once. Its copy has one more name in the index,
//! made of the number of its node, by which a lookup of any other of its names finds it; and a mark that
//! says how many of its names only the layer holds.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::Union;
use super::api::Ino;
use super::copy_up::Want;
use super::lowers::LOWER_BIT;
use super::marks::{self, Mark, Marks, Space};
use super::node::{Lower, Node};
use super::place::At;
use super::upper::Upper;
use super::work::{self, Temp};
use crate::error::{Context, Result, best_effort};
use crate::sys::{dirent, meta, name};

impl Upper {
    /// The index entry of a file that had several names in its lower.
    pub fn index_place(&self, ino: Ino) -> At {
        At {
            dir: self.index.clone(),
            name: format!("{ino:016x}").into_bytes(),
        }
    }

    /// Whether the index knows this object as the copy of the file that its marks name.
    pub fn indexes(&self, marks: &Marks, stat: &meta::Stat) -> Result<bool> {
        let Some(ino) = marks.ino else {
            return Ok(false);
        };
        let entry = self.index_place(ino);
        match meta::fstatat(entry.fd(), &entry.name) {
            Ok(found) => Ok((found.st_dev, found.st_ino) == (stat.st_dev, stat.st_ino)),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e).op("look into the index"),
        }
    }

    /// Gives the copy of a file with several names its entry in the index.
    pub fn index_copy(&self, ino: Ino, temp: &Temp<'_>, delta: i64) -> Result<()> {
        let entry = self.index_place(ino);
        if self.space != Space::None {
            let value = marks::nlink_value(delta, &temp.name);
            self.set_mark(&temp.place(), Mark::Nlink, &value)?;
        }
        match name::unlinkat(entry.fd(), &entry.name) {
            Err(e) if e.raw_os_error() != Some(libc::ENOENT) => return Err(e).op("clean index"),
            _ => {}
        }
        name::linkat(temp.fd(), &temp.name, entry.fd(), &entry.name).op("link into index")
    }

    /// Takes the entry out of the index. One that stays behind is swept, or used, by the next opening.
    pub fn unindex(&self, ino: Ino) {
        let entry = self.index_place(ino);
        best_effort("clean index", name::unlinkat(entry.fd(), &entry.name));
    }

    /// The names in the index are numbers: where no attribute keeps them, they are learned there.
    pub fn remember_index(&self) -> Result<()> {
        dirent::read_dir(self.index.as_fd(), |name, _, upper_ino| {
            let ino = std::str::from_utf8(name)
                .ok()
                .and_then(|n| u64::from_str_radix(n, 16).ok());
            if let Some(ino) = ino {
                self.remember(upper_ino & !LOWER_BIT, ino);
            }
        })
        .op("read index")
    }

    /// Removes what a crash has left in the index after the last name of a file had gone.
    pub fn sweep_index(&self) -> Result<()> {
        for name in work::names(self.index.as_fd())? {
            let at = At {
                dir: self.index.clone(),
                name,
            };
            if is_left_over(&at, || Ok(self.marks(&at)?.nlink))? {
                best_effort("sweep index", name::unlinkat(at.fd(), &at.name));
            }
        }
        Ok(())
    }
}

/// Whether an entry of the index is all that is left of a file: its last name in the merged tree has gone.
/// `delta`: what its mark says of the count of names, which is asked for where that matters.
pub fn is_left_over(entry: &At, delta: impl FnOnce() -> Result<Option<i64>>) -> Result<bool> {
    Ok(entry.stat()?.st_nlink == 1 && delta()?.is_some_and(|n| n < 0))
}

impl Union {
    /// A name of a file with several, that only a lower holds, comes to the upper, so that the count
    /// of the others stays right.
    pub(super) fn settle_alias(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        name: &[u8],
    ) -> Result<()> {
        let only_below = {
            let state = node.state.read();
            node.links(&state)
                .any(|l| l.is(parent, name) && !l.in_upper)
                && (state.upper || node.lower.as_ref().is_some_and(Lower::is_shared))
        };
        if only_below && !node.is_dir() {
            self.link_alias(node, parent, name)?;
        }
        Ok(())
    }

    /// Gives a name that only a lower holds to the copied-up object it belongs to.
    fn link_alias(&self, node: &Arc<Node>, parent: &Arc<Node>, name: &[u8]) -> Result<()> {
        self.copy_up(node, Want::Meta)?;
        self.copy_up(parent, Want::Meta)?;
        let upper = self.upper()?;
        let tree = self.write_tree();
        let alone = {
            let state = node.state.read();
            node.links(&state)
                .any(|l| l.is(parent, name) && !l.in_upper)
        };
        if !alone {
            return Ok(());
        }
        let temp = Temp::new(upper);
        let from = self.place(&tree, node)?;
        name::linkat(from.fd(), &from.name, temp.fd(), &temp.name).op("link alias")?;
        let delta = node.state.read().nlink_delta() - 1;
        let note = |value: &[u8]| match upper.space {
            Space::None => Ok(()),
            _ => upper.set_mark(&from, Mark::Nlink, value),
        };
        note(&marks::nlink_value(delta, &temp.name))?;
        if let Err(e) = self.commit_copy(&tree, parent, name, temp, node) {
            best_effort("undo", note((delta + 1).to_string().as_bytes()));
            return Err(e);
        }
        node.add_link(parent, name, true);
        node.state.write().set_nlink_delta(delta);
        Ok(())
    }
}
