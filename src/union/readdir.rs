//! Listings. A cookie belongs to a name, not to a moment: the position in the immutable lower listing,
//! or for a name that only the upper holds its number in the directory's index. So names that come
//! and go move no other, and no listing needs a handle: the kernel keeps the node while it is open.

use std::sync::Arc;

use super::Union;
use super::api::{Attr, DirEntry, Ino};
use super::lowers::Clue;
use super::node::Node;
use crate::error::Result;

/// The cookies after `.` and `..`.
const DOT: u64 = 1;
const DOTDOT: u64 = 2;
/// Where the cookies of names that only the upper holds begin.
const UPPER: u64 = 1 << 40;
/// So many names are taken from the index at once.
const BATCH: usize = 64;

/// Takes a node, its name and the cookie after it; says whether to go on.
type Each<'a> = &'a mut dyn FnMut(&Arc<Node>, &[u8], u64) -> Result<bool>;

impl Union {
    /// Passes the names after a cookie to `each`, until it says false. ENOTDIR for a file.
    pub fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        each: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<()> {
        self.list(ino, cookie, &mut |node, name, cookie| {
            let kind = node.kind;
            Ok(each(&DirEntry {
                ino: node.ino,
                kind,
                name,
                cookie,
            }))
        })
    }

    /// Like `readdir`, with attributes. What `each` takes is counted as looked up, but for the dots.
    pub fn readdirplus(
        &self,
        ino: Ino,
        cookie: u64,
        each: &mut dyn FnMut(&DirEntry<'_>, &Attr) -> bool,
    ) -> Result<()> {
        self.list(ino, cookie, &mut |node, name, cookie| {
            let attr = self.attr(node)?;
            let entry = DirEntry {
                ino: node.ino,
                kind: node.kind,
                name,
                cookie,
            };
            let taken = each(&entry, &attr);
            if taken && cookie > DOTDOT {
                self.table.count(node);
            }
            Ok(taken)
        })
    }

    fn list(&self, ino: Ino, mut cookie: u64, each: Each<'_>) -> Result<()> {
        let node = self.table.get(ino)?;
        node.as_dir()?;
        if node.state.read().removed {
            return Ok(());
        }
        if cookie < DOT {
            if !each(&node, b".", DOT)? {
                return Ok(());
            }
            cookie = DOT;
        }
        if cookie < DOTDOT {
            let parent = node.parent();
            if !each(parent.as_ref().unwrap_or(&node), b"..", DOTDOT)? {
                return Ok(());
            }
            cookie = DOTDOT;
        }
        let listing = self.listing(&node)?;
        let mut show = |name: &[u8], clue, cookie| {
            let Some(child) = self.resolve_with(&node, name, clue)? else {
                return Ok(true);
            };
            each(&child, name, cookie)
        };
        if cookie < UPPER {
            let at = usize::try_from(cookie - DOTDOT).unwrap_or(usize::MAX);
            for (i, entry) in listing.from(at).enumerate() {
                let held = {
                    let tree = self.read_tree();
                    self.index(&tree, &node)?.get(entry.name)
                };
                let shown = held.is_none_or(|h| h.object.is_some());
                let clue = Clue::Listed(Some(entry));
                if shown && !show(entry.name, clue, cookie + i as u64 + 1)? {
                    return Ok(());
                }
            }
            cookie = UPPER;
        }
        loop {
            let names: Vec<(u64, Box<[u8]>, bool)> = {
                let tree = self.read_tree();
                let index = self.index(&tree, &node)?;
                let after = index.after(cookie - UPPER).take(BATCH);
                after
                    .map(|(seq, name, h)| (seq, name.into(), h.object.is_some()))
                    .collect()
            };
            let Some((last, ..)) = names.last() else {
                return Ok(());
            };
            cookie = UPPER + last;
            for (seq, name, object) in &names {
                let clue = Clue::Listed(None);
                if *object && listing.get(name).is_none() && !show(name, clue, UPPER + seq)? {
                    return Ok(());
                }
            }
        }
    }

    /// Brings the names of a directory to the disk.
    pub fn fsyncdir(&self, ino: Ino, datasync: bool) -> Result<()> {
        let node = self.table.get(ino)?;
        node.as_dir()?;
        self.sync_dir(&node, datasync)
    }
}
