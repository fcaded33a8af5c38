//! What an upper changes, in the words of `docker diff`.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::{Dir, Entry, View};
use crate::error::{Context, Error, Result};
use crate::layer::{Listed, LowerDir};
use crate::sys::meta;
use crate::union::beside;
use crate::union::lowers::stat_merged;

/// Deeper trees are refused: each level takes a descriptor.
const MAX_DEPTH: usize = 4000;

/// What has become of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The layers have no such path.
    Added,
    /// Its content, kind or attributes, or for a directory those of something in it.
    Changed,
    /// It is in the layers, and does not show. What was in it is not named.
    Deleted,
}

/// A path that is not what it is in the layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What has become of it.
    pub kind: Kind,
    /// Absolute, in the merged tree.
    pub path: Vec<u8>,
}

/// What is compared.
struct Diff<'a> {
    view: &'a View,
    /// Owners of the layers' files show as they are.
    owners: bool,
    changes: Vec<Change>,
}

impl View {
    /// All changes, a directory before what is in it. `owners`: owners count too; they do not where all files
    /// of the layers are shown as somebody's.
    ///
    /// # Errors
    ///
    /// The first directory that cannot be read.
    pub fn changes(&self, owners: bool) -> Result<Vec<Change>> {
        let mut diff = Diff {
            view: self,
            owners,
            changes: Vec::new(),
        };
        diff.dir(&self.root()?, &self.lowers.roots(), &mut Vec::new(), 0)?;
        Ok(diff.changes)
    }
}

impl Diff<'_> {
    /// Compares a directory with what the layers have under its path.
    fn dir(
        &mut self,
        dir: &Dir,
        base: &[Arc<LowerDir>],
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        if depth > MAX_DEPTH {
            let path = String::from_utf8_lossy(path.get(..100).unwrap_or(path)).into_owned();
            return Err(Error::new(libc::ELOOP, "too deep").at(path));
        }
        if dir.upper.is_none() && same(&dir.lowers, base) {
            return Ok(());
        }
        let shown = self.view.entries(dir)?;
        let elsewhere;
        let base = match same(&dir.lowers, base) {
            true => self.view.below(dir)?,
            false => {
                elsewhere = self.view.listing(base)?;
                &elsewhere
            }
        };
        let names: BTreeSet<&[u8]> = shown.keys().map(|name| &**name).collect();
        let names = names
            .into_iter()
            .chain(base.from(0).map(|entry| entry.name));
        let length = path.len();
        for name in names.collect::<BTreeSet<_>>() {
            path.push(b'/');
            path.extend_from_slice(name);
            match (shown.get(name), base.get(name)) {
                (Some(entry), below) => self.entry(dir, (name, entry), below, path, depth)?,
                (None, _) => self.add(Kind::Deleted, path),
            }
            path.truncate(length);
        }
        Ok(())
    }

    /// Compares what is shown under a name with what the layers have there.
    fn entry(
        &mut self,
        dir: &Dir,
        (name, entry): (&[u8], &Entry),
        below: Option<Listed<'_>>,
        path: &mut Vec<u8>,
        depth: usize,
    ) -> Result<()> {
        let is_dir = entry.kind == libc::DT_DIR;
        let Some(below) = below else {
            self.add(Kind::Added, path);
            if is_dir {
                let child = self.view.child(dir, name, entry)?;
                self.dir(&child, &[], path, depth + 1)?;
            }
            return Ok(());
        };
        if !is_dir {
            let here = self.view.below(dir)?.get(name);
            let theirs =
                !entry.in_upper && here.is_some_and(|here| same(here.owners, below.owners));
            if !theirs {
                self.add(Kind::Changed, path);
            }
            return Ok(());
        }
        let child = self.view.child(dir, name, entry)?;
        if below.kind != libc::DT_DIR {
            self.add(Kind::Changed, path);
            return self.dir(&child, &[], path, depth + 1);
        }
        let under: Vec<_> = below.owners.iter().map(|owner| owner.child(name)).collect();
        let before = self.changes.len();
        self.add(Kind::Changed, path);
        self.dir(&child, &under, path, depth + 1)?;
        if self.changes.len() == before + 1 && !self.differs(&child, &below)? {
            self.changes.pop();
        }
        Ok(())
    }

    /// Whether a directory's own attributes are not those that the layers give it.
    fn differs(&self, dir: &Dir, below: &Listed<'_>) -> Result<bool> {
        let lowers = &self.view.lowers;
        let ours = match &dir.upper {
            Some(upper) => {
                let mut stat = meta::fstatat(upper.as_fd(), b"").op("stat upper")?;
                let beside = self.view.upper.as_ref().and_then(|upper| upper.beside);
                beside::apply(beside, upper.as_fd(), b"", &mut stat).op("read owner and mode")?;
                stat
            }
            None => stat_merged(lowers, &dir.lowers, b"")?.stat,
        };
        let theirs = stat_merged(lowers, below.owners, below.name)?.stat;
        let of = |stat: &meta::Stat| (stat.st_mode, stat.st_mtime, stat.st_mtime_nsec);
        let owner = |stat: &meta::Stat| (stat.st_uid, stat.st_gid);
        Ok(of(&ours) != of(&theirs) || self.owners && owner(&ours) != owner(&theirs))
    }

    fn add(&mut self, kind: Kind, path: &[u8]) {
        self.changes.push(Change {
            kind,
            path: path.to_vec(),
        });
    }
}

/// Whether these are the same directories of the same layers.
fn same(these: &[Arc<LowerDir>], those: &[Arc<LowerDir>]) -> bool {
    let key = |dir: &Arc<LowerDir>| (dir.layer, dir.hash);
    these.iter().map(key).eq(those.iter().map(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;

    use crate::layer::Ask;
    use crate::union::api::LowerSpec;

    /// How often a layer was asked for all names of a directory.
    fn listed(view: &View) -> u64 {
        let layers = view.lowers.layers().iter();
        let asked = layers.flat_map(|layer| layer.asked.read());
        asked
            .filter(|(ask, _)| *ask == Ask::List)
            .map(|(_, seen)| seen.count)
            .sum()
    }

    #[test]
    fn each_directory_of_a_layer_is_listed_once()
    -> std::result::Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let (lower, upper) = (dir.path().join("lower"), dir.path().join("upper"));
        for name in ["a", "b", "c"] {
            fs::create_dir_all(lower.join("kept").join(name))?;
            fs::create_dir_all(lower.join("changed").join(name))?;
            fs::write(lower.join("changed").join(format!("{name}1")), name)?;
        }
        // All of them stand in the upper too, and one file is another.
        fs::create_dir_all(upper.join("changed/a"))?;
        fs::create_dir_all(upper.join("changed/b"))?;
        fs::write(upper.join("changed/c1"), "new")?;
        let spec = LowerSpec {
            path: lower,
            identity: "lower".to_owned(),
        };
        let view = View::open(&[spec], Some(&upper))?;
        let changes = view.changes(false)?;
        let changes = changes
            .iter()
            .filter(|change| change.path == b"/changed/c1");
        assert_eq!(changes.count(), 1);
        // The root, `changed`, and those in it that the upper has too.
        assert_eq!(listed(&view), 4);
        Ok(())
    }
}
