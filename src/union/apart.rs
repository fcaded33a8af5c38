//! Whether the directories of an upper and the layers lie apart: in one that holds a layer, the layer would be written.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::api::{LowerSpec, UpperSpec};
use crate::error::{Context, Error, Result};
use crate::sys::realpath::RealPaths;

/// Says that [`refuse_overlap`] was asked.
#[derive(Clone, Copy, Debug)]
pub struct Apart(());

/// Refuses an upper or work directory that holds a lower or lies in one, with EINVAL. The directories of the upper need
/// not exist yet. `paths` may know some of the way.
pub fn refuse_overlap(
    spec: &UpperSpec,
    lowers: &[LowerSpec],
    paths: &mut RealPaths,
) -> Result<Apart> {
    let ours = [real(paths, &spec.upper)?, real(paths, &spec.work)?];
    for lower in lowers {
        let lower = real(paths, &lower.path)?;
        for path in &ours {
            if holds(&lower, path) || holds(path, &lower) {
                let why = "upper and lower must not contain each other, upper";
                let layer = lower.to_string_lossy();
                return Err(Error::new(libc::EINVAL, why).at(path).in_layer(layer));
            }
        }
    }
    Ok(Apart(()))
}

/// Whether a directory is the other one or holds it, by paths as [`real`] makes them: their bytes say it.
fn holds(dir: &Path, other: &Path) -> bool {
    let (dir, other) = (dir.as_os_str().as_bytes(), other.as_os_str().as_bytes());
    match other.strip_prefix(dir) {
        Some(rest) => rest.is_empty() || rest.starts_with(b"/") || dir.ends_with(b"/"),
        None => false,
    }
}

/// The path without symlinks, as far as it exists.
fn real(paths: &mut RealPaths, path: &Path) -> Result<PathBuf> {
    match paths.of(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        other => return other.op("resolve").map_err(|e| e.at(path)),
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) if parent.as_os_str().is_empty() => {
            Ok(real(paths, Path::new("."))?.join(name))
        }
        (Some(parent), Some(name)) => Ok(real(paths, parent)?.join(name)),
        _ => Err(Error::new(libc::ENOENT, "resolve").at(path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_holds_what_is_below_it() {
        let holds = |dir, other| holds(Path::new(dir), Path::new(other));
        assert!(holds("/a", "/a") && holds("/a", "/a/b") && holds("/", "/a") && holds("/", "/"));
        assert!(!holds("/a", "/ab") && !holds("/a/b", "/a") && !holds("/a", "/b/a"));
    }
}
