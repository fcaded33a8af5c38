//! Who has written an upper, as its work directory tells, and whether the kernel has it mounted.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::noted;
use super::upper::recorded;
use crate::backend::{Backend, Writer};
use crate::sys::file;
use crate::sys::meta::{self, Stat};
use crate::sys::mounts::{self, Ours};
use crate::union::ABILITIES;
use crate::union::api::UpperSpec;

/// Who has written an upper. One in which there is nothing was written by nobody, whatever was noted of it.
pub fn of(upper: &UpperSpec) -> io::Result<Writer> {
    if is_empty(&upper.upper)? {
        return Ok(Writer::Nobody);
    }
    if let Some(backend) = backend_of(&upper.work) {
        return Ok(Writer::Noted(backend));
    }
    if stat_in(&upper.work, ABILITIES)?.is_some() {
        return Ok(Writer::Noted(Backend::Fuse));
    }
    Ok(match is_left_by_overlay(&upper.work)? {
        true => Writer::ForeignOverlay,
        false => Writer::Unknown,
    })
}

/// Whether a union of the kernel has had a work directory last, whatever is in its upper.
pub fn was_of_kernel(work: &Path) -> io::Result<bool> {
    let kernel = backend_of(work).is_some_and(|of| of != Backend::Fuse);
    Ok(kernel || is_left_by_overlay(work)?)
}

/// The backend that has noted itself in a work directory.
fn backend_of(work: &Path) -> Option<Backend> {
    Backend::named(recorded(work)?.get("backend")?.as_str()?)
}

fn is_left_by_overlay(work: &Path) -> io::Result<bool> {
    // The kernel makes this directory with no rights at all, and leaves it behind.
    Ok(stat_in(work, b"work")?.is_some_and(|found| found.st_mode == libc::S_IFDIR))
}

fn is_empty(upper: &Path) -> io::Result<bool> {
    let entries = match fs::read_dir(upper) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(true),
        other => other?,
    };
    for entry in entries {
        // What mkfs made is nobody's work.
        if entry?.file_name() != "lost+found" {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What stands under a name in a work directory, if both are there. Nothing in it is followed.
fn stat_in(work: &Path, name: &[u8]) -> io::Result<Option<Stat>> {
    let found = file::open_path(work, libc::O_PATH | libc::O_DIRECTORY)
        .and_then(|work| meta::fstatat(work.as_fd(), name));
    match found {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Whether a union of the kernel has this upper mounted, in any namespace that the caller may look at. They take
/// no locks.
pub fn is_mounted_by_kernel(upper: &Path) -> io::Result<bool> {
    let upper = fs::canonicalize(upper).unwrap_or_else(|_| upper.to_owned());
    // One that the table does not tell of, or by a number, may have a note.
    let is_noted = |mount: &Ours| {
        let of = noted::of(mount).and_then(|note| noted::upper_of(&note));
        of.is_some_and(|of| of == upper)
    };
    Ok(mounts::tables()?.any(|(_, table)| {
        mounts::is_upper_in(&table, &upper) || mounts::ours_in(&table).iter().any(is_noted)
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_a_work_directory_tells() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let spec = UpperSpec {
            upper: dir.path().join("upper"),
            work: dir.path().join("work"),
        };
        assert_eq!(of(&spec)?, Writer::Nobody);
        fs::create_dir_all(spec.work.join("work"))?;
        fs::create_dir_all(spec.upper.join("lost+found"))?;
        fs::write(spec.work.join("mount"), r#"{"backend": "overlay"}"#)?;
        assert_eq!(of(&spec)?, Writer::Nobody);
        fs::write(spec.upper.join("file"), "")?;
        assert_eq!(of(&spec)?, Writer::Noted(Backend::Overlay));
        // A note of a later version, perhaps, or a damaged one.
        for odd in [r#"{"backend": "other"}"#, "{", r#"{"backend": 1}"#] {
            fs::write(spec.work.join("mount"), odd)?;
            assert_eq!(of(&spec)?, Writer::Unknown, "{odd}");
        }
        fs::set_permissions(spec.work.join("work"), fs::Permissions::from_mode(0o000))?;
        assert_eq!(of(&spec)?, Writer::ForeignOverlay);
        fs::write(spec.work.join("abilities"), "")?;
        assert_eq!(of(&spec)?, Writer::Noted(Backend::Fuse));
        Ok(())
    }
}
