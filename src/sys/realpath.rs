//! Paths without symlinks, for many that begin alike: what they have in common is looked at once.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// What was looked at. Not to be kept: it may change.
#[derive(Debug, Default)]
pub struct RealPaths {
    known: HashMap<OsString, PathBuf>,
    here: Option<PathBuf>,
}

impl RealPaths {
    /// As [`fs::canonicalize`], with one system call where the directory around is known, and none for what is known
    /// itself.
    pub fn of(&mut self, path: &Path) -> io::Result<PathBuf> {
        let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::RootDir);
        let real = match path.components().all(plain) && !path.as_os_str().is_empty() {
            true if path.is_absolute() => self.resolve(path)?,
            true => {
                let path = self.here()?.join(path);
                self.resolve(&path)?
            }
            false => fs::canonicalize(path)?,
        };
        self.note(&real, &real);
        Ok(real)
    }

    /// The directory that relative paths start from.
    fn here(&mut self) -> io::Result<&Path> {
        let here = match self.here.take() {
            Some(here) => here,
            None => std::env::current_dir()?,
        };
        Ok(self.here.insert(here))
    }

    fn note(&mut self, path: &Path, real: &Path) {
        let path = path.as_os_str();
        if !self.known.contains_key(path) {
            self.known.insert(path.to_owned(), real.to_owned());
        }
    }

    fn resolve(&mut self, path: &Path) -> io::Result<PathBuf> {
        if let Some(real) = self.known.get(path.as_os_str()) {
            return Ok(real.clone());
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(path.to_owned());
        };
        let below = self.resolve(parent)?.join(name);
        let real = match fs::read_link(&below) {
            Ok(_) => fs::canonicalize(below)?,
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => below,
            Err(e) => return Err(e),
        };
        self.note(path, &real);
        Ok(real)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn as_canonicalize() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at("a/b/c"))?;
        fs::create_dir_all(at("d/e"))?;
        fs::write(at("a/file"), b"")?;
        symlink("../a/b", at("d/to_b"))?;
        symlink(at("d"), at("a/to_d"))?;
        symlink("loop", at("loop"))?;
        symlink("nowhere", at("dangling"))?;
        let mut real = RealPaths::default();
        for path in [
            "",
            "a",
            "a/b/c",
            "d/to_b",
            "d/to_b/c",
            "a/to_d",
            "a/to_d/to_b/c",
            "a/../d/e",
            "a/./b",
            "a//b",
            "a/b/",
            "absent",
            "absent/below",
            "a/file",
            "a/file/below",
            "loop",
            "dangling",
            "dangling/below",
            "a/to_d/absent",
        ] {
            let (ours, std) = (real.of(&at(path)), fs::canonicalize(at(path)));
            assert_eq!(ours.as_ref().ok(), std.as_ref().ok(), "{path}");
            let errno =
                |r: &io::Result<PathBuf>| r.as_ref().err().and_then(io::Error::raw_os_error);
            assert_eq!(errno(&ours), errno(&std), "{path}");
        }
        assert_eq!(real.of(Path::new("/"))?, Path::new("/"));
        assert_eq!(real.of(Path::new("."))?, fs::canonicalize(".")?);
        Ok(())
    }
}
