//! Where a mount is to be: what can be mounted on, and what is there already.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cli::{Code, Failure, OrFail, Outcome, umount};
use crate::sys::{mount, mounts};

/// The mountpoint's canonical path, if something can be mounted there.
pub(super) fn usable_mountpoint(mountpoint: &Path) -> Outcome<PathBuf> {
    if mount::passed_fd(mountpoint).is_some() {
        return Ok(mountpoint.to_owned());
    }
    let shown = mountpoint.display();
    let path = umount::locate(mountpoint).or_fail(Code::Mountpoint, &shown)?;
    match fs::metadata(&path) {
        Err(e) if mount::is_disconnected(&e) => Ok(path),
        Err(e) => Err(e).or_fail(Code::Mountpoint, shown),
        Ok(meta) if !meta.is_dir() => Err(Failure::new(
            Code::Mountpoint,
            format!("{shown}: not a directory"),
        )),
        Ok(_) => Ok(path),
    }
}

/// Detaches our mount there if its daemon was killed; any other dead mount is the user's affair.
pub(super) fn recover(mountpoint: &Path) -> Outcome<()> {
    let shown = mountpoint.display();
    match mounts::mounted_type(mountpoint).or_fail(Code::Failure, mounts::TABLE)? {
        Some(fstype) if fstype == mount::FSTYPE => {
            if mount::is_dead(mountpoint) {
                tracing::info!("{shown}: detaching the mount of a daemon that is gone");
                let gone = mount::umount(mountpoint, true);
                gone.or_fail(Code::Mountpoint, format!("{shown}: detaching a dead mount"))?;
            }
            Ok(())
        }
        Some(fstype) if mount::is_dead(mountpoint) => {
            let text = format!("{shown}: a dead mount of type {fstype}; unmount it first");
            Err(Failure::new(Code::Mountpoint, text))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn unusable_mountpoints_are_refused() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("file");
        fs::write(&file, b"")?;
        for path in [&file, &dir.path().join("absent")] {
            assert!(usable_mountpoint(path).is_err_and(|e| e.code == Code::Mountpoint as u8));
        }
        assert!(usable_mountpoint(dir.path()).is_ok());
        assert!(usable_mountpoint(Path::new("/dev/fd/9")).is_ok());
        Ok(())
    }
}
