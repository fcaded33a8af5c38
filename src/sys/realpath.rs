//! Paths without symlinks, for many that begin alike: what they have in common is looked at once.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The directories on the way that were looked at. Not to be kept: they may change.
#[derive(Debug, Default)]
pub struct RealPaths {
    known: HashMap<PathBuf, PathBuf>,
}

impl RealPaths {
    /// As [`fs::canonicalize`], with one system call where the directory around is known.
    pub fn of(&mut self, path: &Path) -> io::Result<PathBuf> {
        let plain = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::RootDir);
        if !path.is_absolute() || !path.components().all(plain) {
            return fs::canonicalize(path);
        }
        self.resolve(path)
    }

    fn resolve(&mut self, path: &Path) -> io::Result<PathBuf> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Ok(path.to_owned());
        };
        let parent = match self.known.get(parent) {
            Some(real) => real.clone(),
            None => {
                let real = self.resolve(parent)?;
                self.known.insert(parent.to_owned(), real.clone());
                real
            }
        };
        let path = parent.join(name);
        match fs::read_link(&path) {
            Ok(_) => fs::canonicalize(path),
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Ok(path),
            Err(e) => Err(e),
        }
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
