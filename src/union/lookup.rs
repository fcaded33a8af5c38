//! Lookup: what the merged tree holds under a name, and the node of it.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::{MappedMutexGuard, MutexGuard};

use super::Union;
use super::api::{Attr, Ino, Kind, Owner, ROOT};
use super::lowers::{Below, Clue, another_ino, kind_of, shown, stat_merged};
use super::marks::Marks;
use super::node::{Held, Index, Node, State};
use super::place::{At, Tree};
use super::table::Used;
use super::upper::{Names, Upper};
use crate::error::{Context, Error, Result};
use crate::layer::{Listed, Lowers, dialect};
use crate::sys::meta::{self, Stat};

/// The root node.
pub fn root(lowers: &Lowers, upper: Option<&Upper>, owner: Owner) -> Result<Node> {
    let mut dirs = lowers.roots();
    let mut bare = false;
    if let Some(upper) = upper {
        let marks = upper.marks(&upper.root_place())?;
        bare = !marks.others;
        if marks.opaque || wh_opaque(upper, &upper.root_place())? {
            dirs.clear();
        }
    }
    let lower = match dirs.as_slice() {
        [] => None,
        dirs => {
            let mut at = stat_merged(lowers, dirs, b"")?;
            at.stat = shown(at.stat, owner);
            Some(at)
        }
    };
    let state = State::new(upper.is_some());
    if upper.is_none() && lower.is_none() {
        return Err(Error::new(
            libc::EINVAL,
            "an image without layers needs an upper",
        ));
    }
    bare &= upper.is_some();
    let dir = (Kind::Dir, 0);
    Ok(Node::new(ROOT, dir, b"", lower, dirs, state, bare))
}

/// Whether a `.wh..wh..opq` makes an upper directory opaque.
fn wh_opaque(upper: &Upper, at: &At) -> Result<bool> {
    if !upper.wh_is_mark() {
        return Ok(false);
    }
    let fd = at.open(libc::O_PATH | libc::O_DIRECTORY)?;
    upper.with_rights(&[at], || {
        match meta::fstatat(fd.as_fd(), dialect::WH_OPAQUE) {
            Ok(_) => Ok(true),
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(e) => Err(e).op("look for opaque marker"),
        }
    })
}

/// An object of the upper, with its marks.
#[derive(Debug)]
pub struct Seen {
    pub ino: Ino,
    pub stat: Stat,
    pub marks: Marks,
    /// Its `.wh.` marker in the same directory, or one in itself, hides the lowers.
    pub hides: bool,
}

/// Marks of files count on files only. Elsewhere they are somebody's error, and say nothing.
fn believed(mut marks: Marks, stat: &Stat) -> Marks {
    if kind_of(stat.st_mode) != Kind::File {
        (marks.metacopy, marks.special) = (false, None);
    }
    marks
}

impl Seen {
    /// Kind and device number, as users see them.
    fn kind(&self) -> (Kind, u64) {
        let stored = (kind_of(self.stat.st_mode), self.stat.st_rdev);
        self.marks.special.unwrap_or(stored)
    }
}

impl Union {
    /// Finds a name, and counts the lookup. None: no such name in any layer.
    pub fn lookup(&self, parent: Ino, name: &OsStr) -> Result<Option<Attr>> {
        let parent = self.table.get(parent)?;
        let Some(node) = self.resolve(&parent, name.as_bytes())? else {
            return Ok(None);
        };
        let attr = self.attr(&node)?;
        self.table.count(&node);
        self.note_lookup(&parent, &node);
        Ok(Some(attr))
    }

    /// The node under a name, not counted.
    pub(super) fn resolve(&self, parent: &Arc<Node>, name: &[u8]) -> Result<Option<Used<'_>>> {
        let dir = parent.dir.as_ref();
        let listing = dir.and_then(|dir| self.kept_listing(&dir.lowers));
        self.resolve_with(parent, name, Clue::of(listing.as_deref(), name))
    }

    /// The same for who knows what the lowers' listing says of the name.
    pub(super) fn resolve_with(
        &self,
        parent: &Arc<Node>,
        name: &[u8],
        clue: Clue<'_>,
    ) -> Result<Option<Used<'_>>> {
        check_name(name)?;
        loop {
            let tree = self.read_tree();
            let held = self.held(&tree, parent, name)?;
            if let Some(node) = self.standing(parent, name, held.as_ref(), clue) {
                return Ok(Some(self.table.used(node)));
            }
            let mut alone_below = false;
            let (watch, node) = match held {
                Some(Held {
                    object: Some(_),
                    whiteout,
                    ..
                }) => {
                    let place = self.child_place(&tree, parent, name)?;
                    let mut seen = self.seen(&tree, place, whiteout)?;
                    if let Some(node) = self.known(&tree, &mut seen, parent, name)? {
                        node.add_link(parent, name, true);
                        self.index(&tree, parent)?.set_ino(name, node.ino);
                        return Ok(Some(self.table.used(node)));
                    }
                    let watch = self.table.watch(seen.ino);
                    drop(tree);
                    let below = self.below_upper(&seen, parent, name, clue)?;
                    (watch, self.upper_node(seen, name, below))
                }
                Some(_) => return Ok(None),
                None => {
                    drop(tree);
                    let Some(mut below) = self.below_in(parent, name, clue)? else {
                        if self.held(&self.read_tree(), parent, name)? == held {
                            return Ok(None);
                        }
                        continue;
                    };
                    alone_below = below.has_one_name();
                    while alone_below && self.is_taken(below.ino, parent, name) {
                        below.ino = another_ino(below.ino);
                    }
                    // Before a look into the index of hard links.
                    let watch = self.table.watch(below.ino);
                    (watch, self.lower_node(below)?)
                }
            };
            let tree = self.read_tree();
            if self.held(&tree, parent, name)? != held {
                continue;
            }
            let kind = node.kind;
            // Before others can find it, who may ask for its place.
            node.add_link(parent, name, held.is_some());
            let Some(node) = watch.intern(node) else {
                continue;
            };
            let node = self.table.used(node);
            if alone_below && !node.is_at(parent, name, false) {
                continue;
            }
            if node.kind != kind || node.stands_elsewhere(parent, name) {
                return Err(Error::new(libc::EIO, "two objects have one number"));
            }
            node.add_link(parent, name, held.is_some());
            if held.is_some() {
                self.index(&tree, parent)?.set_ino(name, node.ino);
            }
            return Ok(Some(node));
        }
    }

    /// The number and the kind of what stands under a listed name of the lowers that the upper does not hold. No node is
    /// made of it.
    pub(super) fn glance(&self, parent: &Node, entry: &Listed<'_>) -> Result<(Ino, Kind)> {
        if let Some(known) = self.known_by_listing(entry) {
            return Ok(known);
        }
        check_name(entry.name)?;
        let clue = Clue::Listed(Some(*entry));
        if let Some(node) = self.standing(parent, entry.name, None, clue) {
            return Ok((node.ino, node.kind));
        }
        let below = self.below(entry)?;
        Ok((below.ino, kind_of(below.at.stat.st_mode)))
    }

    /// The node that stands under a name, where memory alone tells: the number that goes with the name
    /// is known, and the node of that number says that it stands there.
    fn standing(
        &self,
        parent: &Node,
        name: &[u8],
        held: Option<&Held>,
        clue: Clue<'_>,
    ) -> Option<Arc<Node>> {
        let ino = match held {
            Some(held) => held.object.map(|_| held.ino)?,
            None => self.number_below(parent, name, clue)?,
        };
        let node = self.table.find(ino)?;
        node.is_at(parent, name, held.is_some()).then_some(node)
    }

    /// Whether a number is that of an object elsewhere. A layer that was changed after all may have another file in an
    /// inode whose number the upper keeps.
    fn is_taken(&self, ino: Ino, parent: &Node, name: &[u8]) -> bool {
        let node = self.table.find(ino);
        node.is_some_and(|node| !node.is_at(parent, name, false))
    }

    /// The node of an upper object, if it is in memory. In an upper that was copied or made up, marks
    /// may give one number to several objects. The first to be seen has it, others go by their own:
    /// else a directory could come to stand in itself.
    fn known(
        &self,
        tree: &Tree<'_>,
        seen: &mut Seen,
        parent: &Node,
        name: &[u8],
    ) -> Result<Option<Arc<Node>>> {
        let Some(node) = self.table.find(seen.ino) else {
            return Ok(None);
        };
        let same = node.kind == seen.kind().0
            && if node.is_dir() {
                !node.stands_elsewhere(parent, name)
            } else {
                seen.marks.ino.is_none()
                    || node.state.read().upper
                        && self.place(tree, &node)?.stat()?.st_ino == seen.stat.st_ino
            };
        if same {
            return Ok(Some(node));
        }
        seen.ino = self.upper()?.number(&seen.stat);
        Ok(self.table.find(seen.ino))
    }

    /// What the upper holds under a name.
    pub(super) fn held(&self, tree: &Tree<'_>, parent: &Node, name: &[u8]) -> Result<Option<Held>> {
        if parent.state.read().removed {
            return Err(Error::new(libc::ENOENT, "removed directory"));
        }
        Ok(self.index(tree, parent)?.get(name))
    }

    /// The names that the upper holds in a directory; they are read once.
    pub(super) fn index<'a>(
        &self,
        tree: &Tree<'_>,
        node: &'a Node,
    ) -> Result<MappedMutexGuard<'a, Index>> {
        let mut slot = node.as_dir()?.index.lock();
        if slot.is_none() {
            let in_upper = node.state.read().upper;
            *slot = Some(if in_upper {
                self.load_index(tree, node)?
            } else {
                Index::default()
            });
        }
        MutexGuard::try_map(slot, Option::as_mut)
            .map_err(|_| Error::new(libc::EIO, "names of the directory"))
    }

    fn load_index(&self, tree: &Tree<'_>, node: &Node) -> Result<Index> {
        let upper = self.upper()?;
        let dir = self.dir_fd(tree, node)?;
        let at = At {
            dir,
            name: Vec::new(),
        };
        let open = upper.open_at(&at, libc::O_RDONLY | libc::O_DIRECTORY)?;
        let found = Names::read(open.as_fd(), upper.wh_is_mark())?;
        let mut index = Index::default();
        for (name, object) in found.names {
            index.set(&name, object, object.is_none());
        }
        for name in found.hidden {
            let object = index.get(&name).and_then(|h| h.object);
            index.set(&name, object, true);
        }
        Ok(index)
    }

    /// Looks at an upper object.
    pub(super) fn seen(&self, _tree: &Tree<'_>, at: At, whiteout: bool) -> Result<Seen> {
        let upper = self.upper()?;
        let stat = at.stat()?;
        let mut marks = believed(upper.marks(&at)?, &stat);
        if marks.nlink.is_some() && !upper.indexes(&marks, &stat)? {
            // The work directory is another one. The names that only the lower holds have its data
            // now; this one must not be taken for the same file.
            (marks.nlink, marks.ino) = (None, None);
        }
        let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        // A redirect names what it merges with, whatever is hidden under the name it has now. Without one
        // a metadata copy has its data under its own name: a marker beside it is of a removal that was cut off.
        let whiteout = whiteout && marks.redirect.is_none() && !marks.metacopy;
        let hides = whiteout || marks.opaque || (is_dir && wh_opaque(upper, &at)?);
        let number = upper.number(&stat);
        let ino = marks.ino.or_else(|| upper.recall(number));
        Ok(Seen {
            ino: ino.unwrap_or(number),
            stat,
            marks,
            hides,
        })
    }

    /// The lower part of an upper object: what a directory merges with, where a metadata copy has
    /// its data.
    fn below_upper(
        &self,
        seen: &Seen,
        parent: &Node,
        name: &[u8],
        clue: Clue<'_>,
    ) -> Result<Option<Below>> {
        let is_dir = seen.stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        if seen.hides || !(is_dir || seen.marks.metacopy) {
            return Ok(None);
        }
        let below = match &seen.marks.redirect {
            Some(path) if path.starts_with(b"/") => self.below_path(path)?,
            Some(other) => {
                // A relative redirect, of kernel overlayfs: another name in the same directory.
                match parent.as_dir()?.lowers.first() {
                    Some(dir) => self.below_path(&[&dir.path(), &b"/"[..], other].concat())?,
                    None => None,
                }
            }
            None => self.below_in(parent, name, clue)?,
        };
        let kind = if is_dir { Kind::Dir } else { Kind::File };
        let wanted = |b: &Below| kind_of(b.at.stat.st_mode) == kind;
        let below = below.filter(wanted);
        if below.is_none() && seen.marks.metacopy {
            return Err(Error::new(
                libc::EIO,
                "the data of a metadata copy are gone",
            ));
        }
        Ok(below)
    }

    fn upper_node(&self, seen: Seen, name: &[u8], below: Option<Below>) -> Node {
        let (lower, dirs) = below.map_or((None, Vec::new()), |b| (Some(b.at), b.dirs));
        let mut state = State::new(true);
        state.metacopy = seen.marks.metacopy;
        state.indexed = seen.marks.nlink.is_some();
        state.set_nlink_delta(seen.marks.nlink.unwrap_or(0));
        state.single =
            seen.kind().0 != Kind::Dir && seen.stat.st_nlink == 1 && seen.marks.nlink.is_none();
        let bare = !seen.marks.others;
        Node::new(seen.ino, seen.kind(), name, lower, dirs, state, bare)
    }

    /// The node of a lower object. One of several names may have been copied up under another.
    fn lower_node(&self, below: Below) -> Result<Node> {
        let kind = kind_of(below.at.stat.st_mode);
        let rdev = below.at.stat.st_rdev;
        if let (Some(upper), true, false) =
            (&self.upper, below.at.stat.st_nlink > 1, kind == Kind::Dir)
        {
            let at = upper.index_place(below.ino);
            if let Some(stat) = at.stat_if_there()? {
                let seen = Seen {
                    ino: below.ino,
                    marks: believed(upper.marks(&at)?, &stat),
                    stat,
                    hides: false,
                };
                // Another kind under that number is not of this union.
                if seen.kind().0 == kind {
                    let name = below.at.name.clone();
                    let mut node = self.upper_node(seen, &name, Some(below));
                    node.state.get_mut().indexed = true;
                    return Ok(node);
                }
            }
        }
        let (name, state) = (below.at.name.clone(), State::new(false));
        let (lower, dirs) = (Some(below.at), below.dirs);
        Ok(Node::new(
            below.ino,
            (kind, rdev),
            &name,
            lower,
            dirs,
            state,
            false,
        ))
    }

    /// The node of an object that was just made in the upper. `bare`: without attributes.
    pub(super) fn born(
        &self,
        ino: Ino,
        name: &[u8],
        stat: &Stat,
        special: Option<(Kind, u64)>,
        bare: bool,
    ) -> Used<'_> {
        let kind = special.unwrap_or((kind_of(stat.st_mode), stat.st_rdev));
        let mut state = State::new(true);
        state.single = kind.0 != Kind::Dir;
        let node = self.table.intern(ino, || {
            let node = Node::new(ino, kind, name, None, Vec::new(), state, bare);
            if let Some(dir) = &node.dir {
                dir.homegrown.store(true, Ordering::Relaxed);
                *dir.index.lock() = Some(Index::default());
            }
            node
        });
        self.table.used(node)
    }
}

/// Refuses what is no name.
pub fn check_name(name: &[u8]) -> Result<()> {
    if name.len() > 255 {
        return Err(Error::new(libc::ENAMETOOLONG, "name"));
    }
    if name.is_empty() || name == b"." || name == b".." || name.contains(&b'/') {
        return Err(Error::new(libc::EINVAL, "name"));
    }
    Ok(())
}
