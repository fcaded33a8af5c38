//! A look through a whole layer for names that begin with `.wh.`.
//!
//! A layer on CVMFS answers each listing after a while, so several directories are read at a time. What is still
//! to be read is a stack, which does not grow with the size of the layer, but with its depth and its widest
//! directory.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;

use parking_lot::{Condvar, Mutex};

use super::dialect::WH;
use super::quiet;
use crate::sys::{dirent, file, meta};

/// So many directories are read at a time. The CVMFS client answers ten at a time by default.
const MOST: usize = 16;

/// Whether a layer holds a name that begins with `.wh.`; the look ends at the first one. `progress` is told the
/// number of directories that were read. An error names the directory: the layer is not known then.
pub fn holds_markers(layer: &Path, progress: impl Fn(usize) + Sync) -> io::Result<bool> {
    let look = Look {
        state: Mutex::new(State {
            left: vec![PathBuf::new()],
            ..State::default()
        }),
        changed: Condvar::new(),
    };
    let work = || look.work(layer, &progress);
    thread::scope(|scope| {
        for _ in 1..MOST {
            // Where there can be no more threads, those that are there do it all.
            if thread::Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
    let state = look.state.into_inner();
    match state.failed {
        // What was found is there, whatever could not be read.
        Some(e) if !state.found => Err(e),
        _ => Ok(state.found),
    }
}

#[derive(Debug, Default)]
struct State {
    /// Directories that are to be read, by their paths in the layer.
    left: Vec<PathBuf>,
    /// How many are being read.
    busy: usize,
    read: usize,
    found: bool,
    failed: Option<io::Error>,
}

impl State {
    fn is_over(&self) -> bool {
        self.found || self.failed.is_some() || self.left.is_empty() && self.busy == 0
    }
}

struct Look {
    state: Mutex<State>,
    changed: Condvar,
}

impl Look {
    fn work(&self, layer: &Path, progress: &impl Fn(usize)) {
        let mut state = self.state.lock();
        loop {
            if state.is_over() {
                self.changed.notify_all();
                return;
            }
            let Some(dir) = state.left.pop() else {
                self.changed.wait(&mut state);
                continue;
            };
            state.busy += 1;
            drop(state);
            let result = read(layer, &dir);
            state = self.state.lock();
            state.busy -= 1;
            state.read += 1;
            progress(state.read);
            match result {
                Ok(Contents::Marker) => state.found = true,
                Ok(Contents::Dirs(dirs)) => state.left.extend(dirs),
                Err(e) => state.failed = Some(e),
            }
            self.changed.notify_all();
        }
    }
}

/// What a directory holds.
enum Contents {
    Marker,
    /// Its directories, by their paths in the layer.
    Dirs(Vec<PathBuf>),
}

fn read(layer: &Path, dir: &Path) -> io::Result<Contents> {
    let named =
        |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", layer.join(dir).display()));
    read_below(layer, dir).map_err(named)
}

fn read_below(layer: &Path, dir: &Path) -> io::Result<Contents> {
    // One name at a time, as the path may be longer than the kernel takes, and through no symlink.
    let mut at = file::open_path(layer, libc::O_PATH | libc::O_DIRECTORY)?;
    for name in dir.components() {
        let name = name.as_os_str().as_bytes();
        at = file::openat(at.as_fd(), name, libc::O_PATH | libc::O_DIRECTORY, 0)?;
    }
    let open = quiet::open(at.as_fd(), b".", libc::O_DIRECTORY)?;
    let mut marker = false;
    let mut dirs = Vec::new();
    let mut untyped = Vec::new();
    dirent::read_dir(open.as_fd(), |name, kind, _| {
        marker |= name.starts_with(WH);
        match kind {
            libc::DT_DIR => dirs.push(dir.join(OsStr::from_bytes(name))),
            libc::DT_UNKNOWN => untyped.push(name.to_vec()),
            _ => {}
        }
    })?;
    if marker {
        return Ok(Contents::Marker);
    }
    for name in untyped {
        let stat = meta::fstatat(open.as_fd(), &name)?;
        if stat.st_mode & libc::S_IFMT == libc::S_IFDIR {
            dirs.push(dir.join(OsStr::from_bytes(&name)));
        }
    }
    Ok(Contents::Dirs(dirs))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn found(layer: &Path) -> io::Result<bool> {
        holds_markers(layer, |_| {})
    }

    #[test]
    fn a_marker_at_any_depth_is_found() -> io::Result<()> {
        for marker in [".wh.gone", ".wh..wh..opq", ".wh..wh.plnk"] {
            for dir in ["", "a", "a/b/c/d"] {
                let layer = tempfile::tempdir()?;
                for made in ["a/b/c/d", "e/f", "g"] {
                    fs::create_dir_all(layer.path().join(made))?;
                }
                fs::write(layer.path().join("e/f/.whatever"), "")?;
                fs::write(layer.path().join("g/x.wh.y"), "")?;
                assert!(!found(layer.path())?);
                fs::write(layer.path().join(dir).join(marker), "")?;
                assert!(found(layer.path())?, "{marker} in {dir:?}");
            }
        }
        Ok(())
    }

    #[test]
    fn all_directories_are_read_once_and_no_link_is_followed() -> io::Result<()> {
        let (layer, outside) = (tempfile::tempdir()?, tempfile::tempdir()?);
        fs::write(outside.path().join(".wh.x"), "")?;
        symlink(outside.path(), layer.path().join("link"))?;
        for n in 0..300 {
            fs::create_dir_all(layer.path().join(format!("{}/{n}/x", n % 7)))?;
        }
        let most = AtomicUsize::new(0);
        let found = holds_markers(layer.path(), |read| {
            most.fetch_max(read, Ordering::Relaxed);
        })?;
        assert!(!found);
        assert_eq!(most.into_inner(), 1 + 7 + 2 * 300);
        Ok(())
    }

    #[test]
    fn what_cannot_be_read_is_an_error_that_names_it() -> io::Result<()> {
        let layer = tempfile::tempdir()?;
        let absent = layer.path().join("absent");
        let said = found(&absent).err().map(|e| e.to_string());
        assert!(said.is_some_and(|said| said.contains("absent")));
        Ok(())
    }
}
