//! Directories in which the program keeps what it can find out again: root's, and one for each user.
//!
//! A file there is replaced by a rename, so readers see the old one or the new one; writers of one user take
//! turns under a lock that only this user can take.

use std::env;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::{file, process};

/// Only one at a time has it; given back when it goes.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

/// What is awaited of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// What is written outlives a crash of the machine.
    Synced,
    /// A crash of the machine at once may leave it damaged, which its reader has to know: for the end of a
    /// mount, which waits for no disk.
    Written,
}

/// Where root keeps what all may read.
pub fn of_root() -> PathBuf {
    PathBuf::from("/var/cache/cvmfs-union")
}

/// Where this user keeps it: in `$XDG_CACHE_HOME` or `~/.cache`, or [`of_root`]. None without a home.
pub fn usual() -> Option<PathBuf> {
    // Root of a user namespace is a user, whose home it has, and can write nothing of root's.
    if process::is_initial_root() {
        return Some(of_root());
    }
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
    };
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    Some(cache?.join("cvmfs-union"))
}

/// Makes a directory of this kind, if it is missing.
pub fn make(dir: &Path) -> io::Result<()> {
    // What users' jobs do is theirs to know; what is known of root's helps them all.
    let mode = if process::is_initial_root() {
        0o755
    } else {
        0o700
    };
    DirBuilder::new().recursive(true).mode(mode).create(dir)
}

/// The path of a file that is this user's alone.
pub fn own(dir: &Path, what: &str) -> PathBuf {
    dir.join(format!(".{what}-{}", process::user()))
}

/// The turn to write in a directory. While others write, `patience` is asked whether to wait on, after a wait of
/// so long.
pub fn wait_for_turn(dir: &Path, patience: impl Fn(Duration) -> bool) -> io::Result<Turn> {
    let begun = Instant::now();
    loop {
        if let Some(turn) = try_lock(&own(dir, "write"))? {
            return Ok(turn);
        }
        if !patience(begun.elapsed()) {
            let why = "others write there all the time";
            return Err(io::Error::new(io::ErrorKind::WouldBlock, why));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// None: somebody else has it. Others than the user cannot even open it, so that they cannot hold it.
pub fn try_lock(path: &Path) -> io::Result<Option<Turn>> {
    let mut how = OpenOptions::new();
    how.write(true).create(true).truncate(false).mode(0o600);
    let lock = how
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(path)?;
    if lock.metadata()?.uid() != process::user() {
        // Who put it there could hold it for ever.
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    match file::lock_exclusive(lock.as_fd()) {
        Ok(()) => Ok(Some(Turn { _lock: lock })),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(e),
    }
}

/// Writes a file beside its place, and takes that with it.
pub fn replace(new: &Path, path: &Path, bytes: &[u8], lasting: Lasting) -> io::Result<()> {
    remove(new)?;
    let mut how = OpenOptions::new();
    how.write(true).create_new(true).mode(0o644);
    let mut file = how.custom_flags(libc::O_NOFOLLOW).open(new)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| match lasting {
            Lasting::Synced => file.sync_data(),
            Lasting::Written => Ok(()),
        })
        .and_then(|()| fs::rename(new, path));
    if written.is_err() {
        remove(new)?;
    }
    written
}

/// Removes a file that need not be there.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
