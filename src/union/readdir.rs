//! Listings. A cookie belongs to a name, not to a moment: the position in the immutable lower listing,
//! or for a name that only the upper holds its number in the directory's index. So names that come
//! and go move no other, and no listing needs a handle: the kernel keeps the node while it is open.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Union;
use super::api::{Attr, DirEntry, Ino, Kind};
use super::lowers::Clue;
use super::node::Node;
use super::wishes;
use crate::error::{Error, Result};

/// The cookies after `.` and `..`.
const DOT: u64 = 1;
const DOTDOT: u64 = 2;
/// Where the cookies of names that only the upper holds begin.
const UPPER: u64 = 1 << 40;
/// So many names are taken from the index at once.
const BATCH: usize = 64;

/// What a listing is to tell.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// Names, numbers and kinds.
    Names,
    /// All nodes.
    Nodes,
    /// The nodes of the lowers' directories, and nothing else.
    Directories,
}

/// An entry, as far as it had to be looked at.
enum Found<'a> {
    Node(&'a Arc<Node>),
    /// In the lowers; only its number and kind were wanted.
    Listed(Ino, Kind),
}

/// Takes an entry and its attributes; says whether there is room for more.
type EachWhole<'a> = &'a mut dyn FnMut(&DirEntry<'_>, &Attr) -> bool;

/// Takes an entry, its name and the cookie after it; says whether to go on.
type Each<'a> = &'a mut dyn FnMut(Found<'_>, &[u8], u64) -> Result<bool>;

impl Union {
    /// Passes the names after a cookie to `each`, until it says false. ENOTDIR for a file.
    pub fn readdir(
        &self,
        ino: Ino,
        cookie: u64,
        each: &mut dyn FnMut(&DirEntry<'_>) -> bool,
    ) -> Result<()> {
        let node = self.table.get(ino)?;
        let dir = node.as_dir()?;
        if cookie <= DOTDOT {
            dir.alone.store(0, Ordering::Relaxed);
            dir.wanted.store(0, Ordering::Relaxed);
        }
        let mut alone = 0;
        let done = self.list(&node, cookie, Wanted::Names, &mut |found, name, cookie| {
            let (ino, kind, in_lower) = match found {
                Found::Node(node) => (node.ino, node.kind, !node.state.read().upper),
                Found::Listed(ino, kind) => (ino, kind, true),
            };
            let taken = each(&DirEntry {
                ino,
                kind,
                name,
                cookie,
                partial: false,
            });
            if taken && in_lower && kind != Kind::Dir {
                alone += 1;
            }
            Ok(taken)
        });
        if alone > 0 {
            let moment = self.wishes.listed(alone);
            dir.listed.store(moment, Ordering::Relaxed);
            dir.alone.fetch_add(alone, Ordering::Relaxed);
        }
        done
    }

    /// Like `readdir`, with attributes. What `each` takes is counted as looked up, but for the dots.
    pub fn readdirplus(&self, ino: Ino, cookie: u64, each: EachWhole<'_>) -> Result<()> {
        let node = self.table.get(ino)?;
        self.list_whole(&node, cookie, Wanted::Nodes, each)
    }

    /// The beginning of a listing of names, as far as attributes go with it. `each`: as in `readdirplus`.
    ///
    /// That is `.`, `..` and the directories, which come first: who goes down a tree looks into each of them, and would
    /// ask for each by a lookup. On CVMFS that would cost the layer a request each, also for those who do not.
    pub fn begin_names(&self, ino: Ino, each: EachWhole<'_>) -> Result<()> {
        let node = self.table.get(ino)?;
        match self.lowers.are_local() {
            true => self.list_whole(&node, 0, Wanted::Directories, each),
            false => {
                let dots = self.list_dots(&node, 0, &mut |found, name, cookie| {
                    self.give_whole(found, name, cookie, each)
                });
                dots.map(drop)
            }
        }
    }

    fn list_whole(
        &self,
        node: &Arc<Node>,
        cookie: u64,
        wanted: Wanted,
        each: EachWhole<'_>,
    ) -> Result<()> {
        self.list(node, cookie, wanted, &mut |found, name, cookie| {
            self.give_whole(found, name, cookie, each)
        })
    }

    /// Passes an entry on with its attributes, and counts the lookup.
    fn give_whole(
        &self,
        found: Found<'_>,
        name: &[u8],
        cookie: u64,
        each: EachWhole<'_>,
    ) -> Result<bool> {
        let Found::Node(node) = found else {
            return Err(Error::new(libc::EIO, "entry without attributes"));
        };
        let (attr, whole) = self.attr_at_hand(node)?;
        let entry = DirEntry {
            ino: node.ino,
            kind: node.kind,
            name,
            cookie,
            partial: !whole,
        };
        let taken = each(&entry, &attr);
        if taken && cookie > DOTDOT {
            self.table.count(node);
        }
        Ok(taken)
    }

    /// Whether attributes are given to those who want them, and names alone to others.
    ///
    /// On CVMFS attributes cost the layer requests, and on a disk still a search for each name. With layers of other
    /// kinds, which may stop answering, it is better that the kernel has names before somebody asks for one: a lookup
    /// that waits for its layer keeps all others from changing the directory.
    pub fn prefers_names(&self) -> bool {
        self.lowers.are_cvmfs() || self.lowers.are_local()
    }

    /// Whether somebody who begins to list the directory is to be given attributes.
    pub fn gives_attributes(&self, ino: Ino) -> Result<bool> {
        let node = self.table.get(ino)?;
        let of_upper = node.as_dir()?.lowers.is_empty();
        Ok(of_upper || self.wishes.attributes())
    }

    /// Somebody wants to know more of a name.
    pub(super) fn note_lookup(&self, parent: &Node, node: &Node) {
        let Some(dir) = &parent.dir else {
            return;
        };
        let moment = dir.listed.load(Ordering::Relaxed);
        if moment == 0 || node.is_dir() || node.state.read().upper {
            return;
        }
        self.wishes.looked_up(moment);
        let names = dir.alone.load(Ordering::Relaxed);
        let wanted = dir.wanted.fetch_add(1, Ordering::Relaxed) + 1;
        if wishes::ends_listing(names, wanted) {
            self.wishes.end_listing(parent.ino);
        }
    }

    /// Directories of which the kernel should forget the listing it keeps: the names of it, which were handed out
    /// alone, are looked up one after the other, and with the next listing come their attributes. Each is named once.
    pub fn ended_listings(&self) -> Vec<Ino> {
        self.wishes.ended_listings()
    }

    /// The dots after a cookie. The cookie to go on from, if all were taken.
    fn list_dots(&self, node: &Arc<Node>, cookie: u64, each: Each<'_>) -> Result<Option<u64>> {
        if node.state.read().removed {
            return Ok(None);
        }
        if cookie < DOT && !each(Found::Node(node), b".", DOT)? {
            return Ok(None);
        }
        if cookie < DOTDOT {
            let parent = node.parent();
            let parent = Found::Node(parent.as_ref().unwrap_or(node));
            if !each(parent, b"..", DOTDOT)? {
                return Ok(None);
            }
        }
        Ok(Some(cookie.max(DOTDOT)))
    }

    fn list(&self, node: &Arc<Node>, cookie: u64, wanted: Wanted, each: Each<'_>) -> Result<()> {
        node.as_dir()?;
        let Some(mut cookie) = self.list_dots(node, cookie, each)? else {
            return Ok(());
        };
        let listing = self.listing(node)?;
        let show = |each: Each<'_>, name: &[u8], clue, cookie| {
            let child = self.resolve_with(node, name, clue)?;
            child.map_or(Ok(true), |child| each(Found::Node(&child), name, cookie))
        };
        if cookie < UPPER {
            let at = usize::try_from(cookie - DOTDOT).unwrap_or(usize::MAX);
            for (i, entry) in listing.from(at).enumerate() {
                if wanted == Wanted::Directories && entry.kind != libc::DT_DIR {
                    return Ok(());
                }
                let held = {
                    let tree = self.read_tree();
                    self.index(&tree, node)?.get(entry.name)
                };
                let shown = held.is_none_or(|h| h.object.is_some());
                let cookie = cookie + i as u64 + 1;
                let more = if held.is_none() && wanted == Wanted::Names {
                    let (ino, kind) = self.glance(node, &entry)?;
                    each(Found::Listed(ino, kind), entry.name, cookie)?
                } else {
                    !shown || show(each, entry.name, Clue::Listed(Some(entry)), cookie)?
                };
                if !more {
                    return Ok(());
                }
            }
            cookie = UPPER;
        }
        if wanted == Wanted::Directories {
            return Ok(());
        }
        loop {
            let names: Vec<(u64, Box<[u8]>, bool)> = {
                let tree = self.read_tree();
                let index = self.index(&tree, node)?;
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
                if *object && listing.get(name).is_none() && !show(each, name, clue, UPPER + seq)? {
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
