//! Short forms: a filled fixture, files, and what is read from them.

use std::fs;
use std::path::{Path, PathBuf};

use super::sys::{self, Errno};
use super::{Fixture, require_all};

/// A fixture with lowers filled by `fill` (topmost first), mounted, or None to skip.
pub fn union(name: &str, count: usize, fill: impl FnOnce(&[PathBuf])) -> Option<Fixture> {
    union_with(name, count, &[], fill)
}

/// [`union`] with options for the mount.
pub fn union_with(
    name: &str,
    count: usize,
    options: &[&str],
    fill: impl FnOnce(&[PathBuf]),
) -> Option<Fixture> {
    if !require_all(&["root", "fuse"]) {
        return None;
    }
    let mut fixture = Fixture::new(name);
    fixture.options = options.iter().map(ToString::to_string).collect();
    let lowers: Vec<_> = (0..count).map(|_| fixture.lower()).collect();
    fill(&lowers);
    fixture.mount();
    Some(fixture)
}

/// A file, and the directories it lies in.
pub fn file(path: impl AsRef<Path>, content: &str) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    sys::make(path, content.as_bytes()).unwrap();
}

pub fn device_zero(path: impl AsRef<Path>) {
    sys::mknod(path, libc::S_IFCHR | 0o600, 0).unwrap();
}

pub fn names(path: impl AsRef<Path>) -> Vec<String> {
    sys::names(path).unwrap()
}

pub fn ino(path: impl AsRef<Path>) -> u64 {
    sys::lstat(path).unwrap().st_ino
}

pub fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

/// Asserts that nothing is there.
pub fn gone(path: impl AsRef<Path>) {
    assert_eq!(sys::lstat(path).err(), Some(Errno::ENOENT));
}
