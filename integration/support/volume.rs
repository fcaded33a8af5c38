//! File systems of a test's own: in memory, or in a file on a loop device.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::{Mounted, Scratch, run, text};

/// Enough for each mkfs; the image is sparse.
const IMAGE_SIZE: u64 = 512 << 20;

/// A file system of its own, mounted for the upper.
pub struct Volume {
    // Unmounted first, removed then.
    _mounted: Mounted,
    scratch: Scratch,
}

impl Volume {
    pub fn new(kind: &str) -> Volume {
        let scratch = Scratch::new(kind);
        let dir = scratch.dir("mnt");
        if matches!(kind, "tmpfs" | "ramfs") {
            succeed(Command::new("mount").args(["-t", kind, kind]).arg(&dir));
        } else {
            let image = scratch.path().join("image");
            fs::File::create(&image)
                .unwrap()
                .set_len(IMAGE_SIZE)
                .unwrap();
            succeed(Command::new(format!("mkfs.{kind}")).arg("-q").arg(&image));
            succeed(
                Command::new("mount")
                    .args(["-o", "loop"])
                    .arg(&image)
                    .arg(&dir),
            );
        }
        Volume {
            _mounted: Mounted(dir),
            scratch,
        }
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        self.scratch.dir(&format!("mnt/{name}"))
    }
}

pub fn succeed(command: &mut Command) {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?}: {}",
        text(&output.stderr)
    );
}
