//! What is noted of mounts that have no daemon to ask: of each a file, under a number that the mount carries.
//!
//! A number is given once, so that a note is never taken for one of another mount. The notes lie where a reboot
//! ends them, a directory for root and one for each user; what other users could have written is not read.

use std::env;
use std::fs::{self, DirBuilder};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::error::best_effort;
use crate::sys::mounts::{self, Ours};
use crate::sys::{file, meta, name, process};
use crate::text;

/// Of root.
const OF_ROOT: &str = "/run/cvmfs-union";
/// Before the number, in names of files.
const PREFIX: &str = "mount-";
/// The largest note that is read.
const MAX_SIZE: usize = 64 << 20;
/// Who may write into a directory beside its owner.
const OTHERS_WRITE: u32 = 0o022;

/// A number for a mount that is going to be made.
pub fn number() -> String {
    // Each of these has keys of its own, which nobody can guess.
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

/// Notes what a mount is that has been made under a number. What others have unmounted is forgotten.
pub fn note(number: &str, about: &Value, mountpoint: &Path) -> io::Result<()> {
    let dir = own_dirs().iter().map(|dir| make(dir)).reduce(Result::or);
    let dir = dir.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))?;
    forget();
    let mut about = about.clone();
    if let Some(members) = about.as_object_mut() {
        members.insert("device".to_owned(), json!(mounts::device_of(mountpoint)?));
        members.insert("since".to_owned(), json!(now()));
    }
    let file = format!("{PREFIX}{number}");
    let new = format!(".{file}");
    let text = format!("{about:#}\n");
    name::replace_file(
        dir.as_fd(),
        file.as_bytes(),
        new.as_bytes(),
        text.as_bytes(),
    )
}

/// What was noted of a mount, by this user or by root.
pub fn of(mount: &Ours) -> Option<Value> {
    let file = format!("{PREFIX}{}", mount.number.as_ref()?);
    let mut dirs = own_dirs();
    dirs.push(OF_ROOT.into());
    let read = |dir: PathBuf| -> Option<Value> {
        let dir = open(&dir).ok()?;
        let text = file::read_regular_in(dir.as_fd(), file.as_bytes(), MAX_SIZE).ok()?;
        serde_json::from_slice(&text).ok()
    };
    let note = dirs.into_iter().find_map(read)?;
    // Anybody can give a mount of a namespace of his own the number of another one.
    (note.get("device")?.as_str()? == mount.device).then_some(note)
}

/// For how long a mount has been there.
pub fn seconds_of(note: &Value) -> Option<u64> {
    Some(now().saturating_sub(note.get("since")?.as_u64()?))
}

/// The upper of a mount, as its note has it.
pub fn upper_of(note: &Value) -> Option<PathBuf> {
    Some(text::to_path(note.get("upper")?.as_str()?))
}

/// Forgets the mounts of this user that are no longer there, as far as the tables of mounts can be read.
pub fn forget() {
    for dir in own_dirs() {
        let Ok(opened) = open(&dir) else {
            continue;
        };
        best_effort("forget mounts that are gone", forget_in(&dir, &opened));
    }
}

fn forget_in(dir: &Path, opened: &OwnedFd) -> io::Result<()> {
    let mut noted = Vec::new();
    // Before the tables: what is noted by now has been mounted before.
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) {
            noted.push(number.to_owned());
        }
    }
    for (_, table) in mounts::tables()? {
        let there = mounts::ours_in(&table);
        noted.retain(|number| !there.iter().any(|of| of.number.as_ref() == Some(number)));
    }
    for number in noted {
        let file = format!("{PREFIX}{number}");
        name::unlinkat(opened.as_fd(), file.as_bytes())?;
    }
    Ok(())
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

/// Where this user's notes may be, the best place first.
fn own_dirs() -> Vec<PathBuf> {
    if process::is_initial_root() {
        return vec![OF_ROOT.into()];
    }
    let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|dir| dir.is_absolute());
    let runtime = runtime.map(|dir| dir.join("cvmfs-union"));
    // One that is there whoever this is in a user namespace.
    let shared = env::temp_dir().join(format!("cvmfs-union-{}", process::user_outside()));
    runtime.into_iter().chain([shared]).collect()
}

fn make(dir: &Path) -> io::Result<OwnedFd> {
    // What root has mounted all may see, in the table of mounts as well.
    let mode = match process::is_initial_root() {
        true => 0o755,
        false => 0o700,
    };
    match DirBuilder::new().mode(mode).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        other => other?,
    }
    open(dir)
}

/// Opens a directory of notes, unless others may write there.
fn open(dir: &Path) -> io::Result<OwnedFd> {
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let opened = file::open_path(dir, flags)?;
    let stat = meta::fstatat(opened.as_fd(), b"")?;
    // In a user namespace root has no number; and nobody else can have put something in /run.
    let owned = match dir == Path::new(OF_ROOT) {
        true => stat.st_uid == 0 || !process::is_initial(),
        false => stat.st_uid == process::user(),
    };
    if !owned || stat.st_mode & OTHERS_WRITE != 0 {
        let why = format!("{}: others may write there", dir.display());
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok(opened)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn numbers_are_different() {
        assert_ne!(number(), number());
        assert!(number().len() == 16 && mounts::number_of(&mounts::source_of(&number())).is_some());
    }

    #[test]
    fn only_a_directory_of_ones_own_is_opened() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (own, link) = (dir.path().join("own"), dir.path().join("link"));
        make(&own)?;
        make(&own)?;
        symlink(&own, &link)?;
        assert!(open(&own).is_ok() && open(&link).is_err() && make(&link).is_err());
        for mode in [0o770, 0o707] {
            fs::set_permissions(&own, fs::Permissions::from_mode(mode))?;
            assert!(open(&own).is_err());
        }
        Ok(())
    }
}
