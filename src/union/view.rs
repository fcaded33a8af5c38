//! The merged tree as it lies on the disk, read without a mount: no lock is taken and nothing is changed.
//!
//! Where a mount changes the upper meanwhile, what is read is of different moments.

mod check;
mod diff;
mod explain;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use super::api::LowerSpec;
use super::marks::{self, Marks};
use super::place::At;
use super::upper::{Names, is_plain, stored};
use crate::error::{Context, Error, Result};
use crate::layer::listing::opaque_xattrs;
use crate::layer::overrides::Overrides;
use crate::layer::{Layer, Listing, LowerDir, Lowers, Repositories};
use crate::sys::file;

pub use check::{Finding, State, check};
pub use diff::{Change, Kind};
pub use explain::{Explained, Source, Story, label};

/// Layers and an upper.
#[derive(Debug)]
pub struct View {
    lowers: Lowers,
    identities: Vec<String>,
    upper: Option<UpperView>,
}

#[derive(Debug)]
struct UpperView {
    root: Arc<OwnedFd>,
    wh_is_mark: bool,
    /// Where owners and modes are kept, if not by the files themselves.
    beside: Option<Overrides>,
}

/// A directory of the merged tree.
#[derive(Debug)]
struct Dir {
    upper: Option<Arc<OwnedFd>>,
    lowers: Vec<Arc<LowerDir>>,
    /// What the layers show in it, once that has been read.
    below: OnceCell<Listing>,
}

impl Dir {
    fn new(upper: Option<Arc<OwnedFd>>, lowers: Vec<Arc<LowerDir>>) -> Dir {
        Dir {
            upper,
            lowers,
            below: OnceCell::new(),
        }
    }
}

/// What the merged tree shows under a name.
#[derive(Debug)]
struct Entry {
    /// `DT_*`, of what is shown.
    kind: u8,
    in_upper: bool,
    /// In the upper, beside a whiteout of its name: nothing from below shows in it.
    hides: bool,
}

impl View {
    /// Opens the layers, topmost first, and the upper.
    pub fn open(lowers: &[LowerSpec], upper: Option<&Path>) -> Result<View> {
        let mut known = Repositories::default();
        let layers = lowers
            .iter()
            .map(|lower| Layer::open(&lower.path, &lower.identity, &mut known))
            .collect::<Result<_>>()?;
        let upper = upper.map(UpperView::open).transpose()?;
        Ok(View {
            lowers: Lowers::new(layers, super::api::Limits::default().directories, None),
            identities: lowers.iter().map(|lower| lower.identity.clone()).collect(),
            upper,
        })
    }

    fn root(&self) -> Result<Dir> {
        let mut lowers = self.lowers.roots();
        if let Some(upper) = &self.upper {
            let opaque = upper.names(&upper.root)?.opaque;
            if opaque || marks::read(&At::of(upper.root.clone()))?.opaque {
                lowers.clear();
            }
        }
        let upper = self.upper.as_ref().map(|upper| upper.root.clone());
        Ok(Dir::new(upper, lowers))
    }

    fn listing(&self, dirs: &[Arc<LowerDir>]) -> Result<Listing> {
        match dirs {
            [] => Ok(Listing::default()),
            dirs => Listing::read(&self.lowers, dirs),
        }
    }

    /// What the layers show in a directory: each of them is asked for it once.
    fn below<'a>(&self, dir: &'a Dir) -> Result<&'a Listing> {
        match dir.below.get() {
            Some(listing) => Ok(listing),
            None => {
                let listing = self.listing(&dir.lowers)?;
                Ok(dir.below.get_or_init(|| listing))
            }
        }
    }

    /// What a directory shows.
    fn entries(&self, dir: &Dir) -> Result<BTreeMap<Vec<u8>, Entry>> {
        let mut entries = BTreeMap::new();
        for listed in self.below(dir)?.from(0) {
            let entry = Entry {
                kind: listed.kind,
                in_upper: false,
                hides: false,
            };
            entries.insert(listed.name.to_vec(), entry);
        }
        let Some((upper, open)) = self.upper.as_ref().zip(dir.upper.as_ref()) else {
            return Ok(entries);
        };
        let found = upper.names(open)?;
        for name in &found.hidden {
            entries.remove(name);
        }
        for (name, object) in found.names {
            match object {
                None => drop(entries.remove(&name)),
                Some(kind) => {
                    let entry = Entry {
                        kind,
                        in_upper: true,
                        hides: found.hidden.contains(&name),
                    };
                    entries.insert(name, entry);
                }
            }
        }
        Ok(entries)
    }

    /// A directory in another.
    fn child(&self, dir: &Dir, name: &[u8], entry: &Entry) -> Result<Dir> {
        let below = || -> Result<Vec<Arc<LowerDir>>> {
            let entry = self.below(dir)?.get(name);
            let entry = entry.filter(|entry| entry.kind == libc::DT_DIR);
            let owners = entry.map_or(&[][..], |entry| entry.owners).iter();
            Ok(owners.map(|owner| owner.child(name)).collect())
        };
        let upper = self.upper.as_ref().zip(dir.upper.as_ref());
        let Some((upper, open)) = upper.filter(|_| entry.in_upper) else {
            return Ok(Dir::new(None, below()?));
        };
        let at = upper.place(open, name)?;
        let child = Arc::new(at.open(libc::O_RDONLY | libc::O_DIRECTORY)?);
        let marks = marks::read(&at)?;
        let hides = entry.hides && marks.redirect.is_none();
        let lowers = if hides || marks.opaque || upper.names(&child)?.opaque {
            Vec::new()
        } else if let Some(path) = self.redirect(dir, &marks) {
            self.below_path(&path)?
        } else {
            below()?
        };
        Ok(Dir::new(Some(child), lowers))
    }

    /// The path in the lowers that a redirect names: absolute, or beside the object's own.
    fn redirect(&self, dir: &Dir, marks: &Marks) -> Option<Vec<u8>> {
        let redirect = marks.redirect.as_ref()?;
        if redirect.starts_with(b"/") {
            return Some(redirect.clone());
        }
        let beside = dir.lowers.first()?.path();
        Some([&beside, &b"/"[..], redirect].concat())
    }

    /// The directories that merge under a path in the lowers; none if it is no directory.
    fn below_path(&self, path: &[u8]) -> Result<Vec<Arc<LowerDir>>> {
        let mut dirs = self.lowers.roots();
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            let listing = self.listing(&dirs)?;
            let entry = listing.get(name).filter(|entry| entry.kind == libc::DT_DIR);
            let owners = entry.map_or(&[][..], |entry| entry.owners).iter();
            dirs = owners.map(|owner| owner.child(name)).collect();
        }
        Ok(dirs)
    }
}

impl UpperView {
    fn open(path: &Path) -> Result<UpperView> {
        let root = file::open_path(path, libc::O_RDONLY | libc::O_DIRECTORY)
            .op("open upper")
            .map_err(|e: Error| e.at(path))?;
        let root = Arc::new(root);
        let wh_is_mark = !is_plain(&marks::read(&At::of(root.clone()))?);
        let beside = opaque_xattrs(root.as_fd()).op("read marks")?.overrides;
        Ok(UpperView {
            root,
            wh_is_mark,
            beside,
        })
    }

    /// Where a name of the merged tree stands.
    fn place(&self, dir: &Arc<OwnedFd>, name: &[u8]) -> Result<At> {
        Ok(At {
            dir: dir.clone(),
            name: stored(name, self.wh_is_mark)?,
        })
    }

    fn names(&self, dir: &Arc<OwnedFd>) -> Result<Names> {
        // Opened anew: the place in a directory belongs to its descriptor.
        let flags = libc::O_RDONLY | libc::O_DIRECTORY;
        let open = file::openat(dir.as_fd(), b".", flags, 0).op("open upper")?;
        Names::read(open.as_fd(), self.wh_is_mark)
    }
}
