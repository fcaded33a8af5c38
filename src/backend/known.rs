//! What is known of layers: whether they hold `.wh.` names, which overlayfs would show as files.
//!
//! A layer is known by its digest and its directory, since a descriptor may give any directory any digest. Only
//! who has looked a layer through writes of it; what nobody has looked through is not known.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cache::{self, Lasting};
use crate::sys::file;
use crate::text::{escaped, unescaped};

/// The first line of the file.
const MARK: &str = "cvmfs-union layers 1";
/// The name of the file.
const FILE: &str = "layers";
/// The largest file that is read.
const MAX_SIZE: usize = 16 << 20;
/// So many layers are kept; of more, those that were looked through first go.
const MOST_LAYERS: usize = 20_000;
/// How long to wait for others who write.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a look through a layer has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// No name begins with `.wh.`.
    NoMarkers,
    /// At least one does.
    Markers,
}

impl Content {
    /// As it is written in the file.
    pub fn word(self) -> &'static str {
        match self {
            Content::NoMarkers => "none",
            Content::Markers => "wh",
        }
    }

    fn of_word(word: &str) -> Option<Content> {
        [Content::NoMarkers, Content::Markers]
            .into_iter()
            .find(|content| content.word() == word)
    }
}

/// The digest of a layer, and its directory.
type Layer = (String, PathBuf);

/// What is known of layers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The number is that of the line, by which older ones are told from newer ones.
    layers: BTreeMap<Layer, (usize, Content)>,
}

impl Known {
    /// What this user and root have found out. What cannot be read is said in the log, and counts for nothing.
    pub fn here() -> Known {
        let mut known = Known::default();
        let own = cache::usual().filter(|dir| *dir != cache::of_root());
        for dir in [Some(cache::of_root()), own].into_iter().flatten() {
            match Known::read(&dir) {
                Ok(more) => known.layers.extend(more.layers),
                Err(e) => tracing::warn!("{}: {e}", dir.join(FILE).display()),
            }
        }
        known
    }

    /// What a directory holds; nothing, if there is no file.
    fn read(dir: &Path) -> io::Result<Known> {
        let bytes = match file::read_regular(&dir.join(FILE), MAX_SIZE) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Known::default()),
            other => other?,
        };
        let text = String::from_utf8(bytes).ok();
        let known = text.and_then(|text| Known::parse(&text));
        known.ok_or_else(|| {
            let why = "not a list of layers, or damaged, or of another version";
            io::Error::new(io::ErrorKind::InvalidData, why)
        })
    }

    /// What a layer holds, if somebody has looked it through.
    pub fn of(&self, digest: &str, dir: &Path) -> Option<Content> {
        let found = self.layers.get(&(digest.to_owned(), dir.to_owned()));
        found.map(|(_, content)| *content)
    }

    /// Adds a layer to what this user knows. A damaged file is made anew.
    pub fn add(digest: &str, dir: &Path, content: Content) -> io::Result<()> {
        let home = cache::usual().ok_or_else(|| {
            let why = "neither XDG_CACHE_HOME nor HOME says where to keep what is known of layers";
            io::Error::new(io::ErrorKind::NotFound, why)
        })?;
        Known::add_in(&home, digest, dir, content)
    }

    fn add_in(home: &Path, digest: &str, dir: &Path, content: Content) -> io::Result<()> {
        cache::make(home)?;
        let _turn = cache::wait_for_turn(home, |waited| waited < PATIENCE)?;
        let mut known = match Known::read(home) {
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!("{}: {e}; it is made anew", home.join(FILE).display());
                Known::default()
            }
            other => other?,
        };
        let newest = known.layers.values().map(|(line, _)| line + 1).max();
        let layer = (digest.to_owned(), dir.to_owned());
        known.layers.insert(layer, (newest.unwrap_or(0), content));
        let text = known.to_text();
        cache::replace(
            &cache::own(home, "new"),
            &home.join(FILE),
            text.as_bytes(),
            Lasting::Synced,
        )
    }

    fn to_text(&self) -> String {
        let mut lines: Vec<_> = self.layers.iter().collect();
        lines.sort_by_key(|(_, (line, _))| *line);
        let old = lines.len().saturating_sub(MOST_LAYERS);
        let mut text = format!("{MARK}\n");
        for ((digest, dir), (_, content)) in lines.into_iter().skip(old) {
            let digest = escaped(digest.as_bytes());
            let dir = escaped(dir.as_os_str().as_bytes());
            text.push_str(&format!("{} {digest} {dir}\n", content.word()));
        }
        text
    }

    fn parse(text: &str) -> Option<Known> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        if lines.next()? != MARK {
            return None;
        }
        let mut known = Known::default();
        for (number, line) in lines.enumerate() {
            let mut words = line.split(' ');
            let content = Content::of_word(words.next()?)?;
            let digest = String::from_utf8(unescaped(words.next()?)?).ok()?;
            let dir = OsString::from_vec(unescaped(words.next()?)?);
            if words.next().is_some() || digest.is_empty() {
                return None;
            }
            known.layers.insert((digest, dir.into()), (number, content));
        }
        Some(known)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn what_is_added_is_found_again() -> io::Result<()> {
        let home = tempfile::tempdir()?;
        let (one, odd) = (Path::new("/cvmfs/a/1"), Path::new("/odd %\n dir"));
        Known::add_in(home.path(), "d1", one, Content::Markers)?;
        Known::add_in(home.path(), "d2", odd, Content::NoMarkers)?;
        Known::add_in(home.path(), "d1", odd, Content::NoMarkers)?;
        let known = Known::read(home.path())?;
        assert_eq!(known.of("d1", one), Some(Content::Markers));
        assert_eq!(known.of("d2", odd), Some(Content::NoMarkers));
        assert_eq!(known.of("d1", odd), Some(Content::NoMarkers));
        // Of the same digest elsewhere nothing is known.
        assert_eq!(known.of("d2", one), None);
        assert_eq!(Known::parse(&known.to_text()).as_ref(), Some(&known));
        Ok(())
    }

    #[test]
    fn what_is_damaged_says_nothing_and_is_made_anew() -> io::Result<()> {
        let home = tempfile::tempdir()?;
        let file = home.path().join(FILE);
        for damaged in [
            "",
            "cvmfs-union layers 2\nnone d /a\n",
            "cvmfs-union layers 1\nnone d /a",
            "cvmfs-union layers 1\nmaybe d /a\n",
            "cvmfs-union layers 1\nnone d\n",
            "cvmfs-union layers 1\nnone d /a b\n",
            "cvmfs-union layers 1\nnone  /a\n",
        ] {
            fs::write(&file, damaged)?;
            let kind = Known::read(home.path()).map_err(|e| e.kind());
            assert_eq!(kind, Err(io::ErrorKind::InvalidData), "{damaged:?}");
        }
        Known::add_in(home.path(), "d", Path::new("/b"), Content::NoMarkers)?;
        let known = Known::read(home.path())?;
        assert_eq!(known.of("d", Path::new("/b")), Some(Content::NoMarkers));
        assert_eq!(known.layers.len(), 1);
        Ok(())
    }

    #[test]
    fn the_oldest_go_first() {
        let mut known = Known::default();
        for n in 0..MOST_LAYERS + 2 {
            let layer = (format!("{n:08}"), PathBuf::from("/a"));
            // Not in the order of their names.
            let line = MOST_LAYERS + 2 - n;
            known.layers.insert(layer, (line, Content::Markers));
        }
        let kept = Known::parse(&known.to_text()).unwrap_or_default();
        assert_eq!(kept.layers.len(), MOST_LAYERS);
        let last = format!("{:08}", MOST_LAYERS + 1);
        assert_eq!(kept.of(&last, Path::new("/a")), None);
        assert!(kept.of("00000000", Path::new("/a")).is_some());
    }
}
