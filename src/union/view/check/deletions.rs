//! Deletions that are marked in two ways, and how they are brought into one.

use std::os::fd::AsFd;
use std::sync::Arc;

use super::{Check, State};
use crate::error::{Context, Error, Result};
use crate::layer::dialect;
use crate::sys::{file, name};
use crate::union::copy_meta::restore_times;
use crate::union::marks::{self, Mark, Space};
use crate::union::place::At;
use crate::union::work::Probe;

/// How deletions are written here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    Overlay,
    Wh,
}

/// A mark for a deletion.
pub(super) struct Deletion {
    /// The directory in which it is, or that is opaque: below the upper. There may be more than can be open.
    dir: Vec<u8>,
    path: Vec<u8>,
    /// The deleted name; none for an opaque directory.
    name: Option<Vec<u8>>,
}

impl Check<'_> {
    /// Notes a mark.
    pub(super) fn deletion(
        &mut self,
        style: Style,
        dir: &[u8],
        path: &[u8],
        name: Option<Vec<u8>>,
    ) {
        let [overlay, wh] = &mut self.seen;
        *(if style == Style::Overlay { overlay } else { wh }) = true;
        let deletion = Deletion {
            dir: dir.to_vec(),
            path: path.to_vec(),
            name,
        };
        self.wrong.push((style, deletion));
    }

    /// Brings the marks for deletions into one form, if there are two.
    pub(super) fn dialects(&mut self, able: Option<Probe>) -> Result<()> {
        let mixed = self.seen == [true, true];
        let Some(able) = able.filter(|_| mixed) else {
            if mixed {
                let what =
                    "deletions are marked in two ways; pass --work DIR to bring them into one form";
                self.tell(b"/", what, State::Left);
            }
            return Ok(());
        };
        let overlay = able.whiteout && able.space != Space::None;
        let wanted = if overlay { Style::Overlay } else { Style::Wh };
        for (style, deletion) in std::mem::take(&mut self.wrong) {
            if style == wanted {
                continue;
            }
            if self.repair {
                self.rewrite(&deletion, wanted)
                    .map_err(|e| e.at(String::from_utf8_lossy(&deletion.path).into_owned()))?;
            }
            self.found(
                &deletion.path,
                "a mark for a deletion in the way that is not used here",
                self.repair,
            );
        }
        Ok(())
    }

    /// Writes the other mark first, so that the name stays deleted whenever this is cut off.
    fn rewrite(&self, of: &Deletion, wanted: Style) -> Result<()> {
        let dir = self.dir_at(&of.dir)?;
        let before = dir.stat()?;
        match (wanted, &of.name) {
            (Style::Overlay, None) => {
                self.space.set(&dir, Mark::Opaque, b"y")?;
                name::unlinkat(dir.fd(), dialect::WH_OPAQUE).op("remove mark")?;
            }
            (Style::Overlay, Some(name)) => {
                let object = At {
                    dir: dir.dir.clone(),
                    name: name.clone(),
                };
                match object.stat_if_there()? {
                    None => self.put_whiteout(&object)?,
                    Some(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => {
                        if marks::read(&object)?.redirect.is_none() {
                            self.space.set(&object, Mark::Opaque, b"y")?;
                        }
                    }
                    Some(_) => {}
                }
                name::unlinkat(dir.fd(), &dialect::marker_for(name)).op("remove mark")?;
            }
            (Style::Wh, None) => {
                let flags = libc::O_CREAT;
                file::openat(dir.fd(), dialect::WH_OPAQUE, flags, 0o444).op("make opaque")?;
                self.space.clear(&dir, Mark::Opaque)?;
            }
            (Style::Wh, Some(name)) => {
                let marker = dialect::marker_for(name);
                file::openat(dir.fd(), &marker, libc::O_CREAT, 0o444).op("make whiteout")?;
                name::unlinkat(dir.fd(), name).op("remove whiteout")?;
            }
        }
        restore_times(&dir, &before)
    }

    /// Opens a directory of the upper by its path.
    fn dir_at(&self, path: &[u8]) -> Result<At> {
        let mut dir = self.root.clone();
        for name in path.split(|b| *b == b'/').filter(|name| !name.is_empty()) {
            let flags = libc::O_RDONLY | libc::O_DIRECTORY;
            dir = Arc::new(file::openat(dir.as_fd(), name, flags, 0).op("open upper")?);
        }
        Ok(At::of(dir))
    }

    fn put_whiteout(&self, at: &At) -> Result<()> {
        let temp = self.temp.as_ref();
        let temp = temp.ok_or_else(|| Error::new(libc::ENOENT, "work directory"))?;
        name::mknodat(temp.as_fd(), b"check", libc::S_IFCHR, 0).op("make whiteout")?;
        let flags = libc::RENAME_NOREPLACE;
        name::renameat(temp.as_fd(), b"check", at.fd(), &at.name, flags).op("publish")
    }
}
