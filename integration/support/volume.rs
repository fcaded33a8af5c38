//! File systems of a test's own: in memory, or in a file on a loop device.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Mounted, Scratch, daemon, run, sys, text, wait_for_namespaces};

/// Enough for each mkfs; the image is sparse.
const IMAGE_SIZE: u64 = 512 << 20;

/// A file system of its own, mounted for the upper.
pub struct Volume {
    // Unmounted first, removed then.
    mounted: Option<Mounted>,
    options: String,
    scratch: Scratch,
}

impl Volume {
    pub fn new(kind: &str) -> Volume {
        Self::with(kind, IMAGE_SIZE, &[], "")
    }

    /// A device with these options.
    pub fn mounted_with(kind: &str, options: &str) -> Volume {
        Self::with(kind, IMAGE_SIZE, &[], options)
    }

    /// One that is soon full: of so many bytes and inodes.
    pub fn small(kind: &str, size: u64, inodes: u64) -> Volume {
        match kind {
            "tmpfs" => Self::with(kind, 0, &[], &format!("size={size},nr_inodes={inodes}")),
            _ => {
                let inodes = inodes.to_string();
                Self::with(kind, size, &["-m", "0", "-b", "1024", "-N", &inodes], "")
            }
        }
    }

    fn with(kind: &str, size: u64, mkfs: &[&str], options: &str) -> Volume {
        let scratch = Scratch::new(kind);
        let dir = scratch.dir("mnt");
        let mut mount = Command::new("mount");
        if matches!(kind, "tmpfs" | "ramfs") {
            mount.args(["-t", kind, kind]);
            if !options.is_empty() {
                mount.args(["-o", options]);
            }
        } else {
            let image = scratch.path().join("image");
            fs::File::create(&image).unwrap().set_len(size).unwrap();
            succeed(
                Command::new(format!("mkfs.{kind}"))
                    .arg("-q")
                    .args(mkfs)
                    .arg(&image),
            );
            let options = if options.is_empty() { "loop" } else { options };
            mount.args(["-o", options]).arg(&image);
        }
        succeed(mount.arg(&dir));
        Volume {
            mounted: Some(Mounted(dir)),
            options: options.to_owned(),
            scratch,
        }
    }

    /// Cuts the file system off from its disk, as it is at this moment.
    pub fn crash(&self) {
        sys::shut_down(&self.path()).unwrap();
    }

    /// Unmounts what has crashed, and mounts what the disk has.
    pub fn mount_again(&mut self) {
        let dir = self.path();
        daemon::wait("the volume is in use", || nix::mount::umount(&dir).is_ok());
        // Where it goes on, the device would show it as it was in memory. A namespace that has just ended
        // is seen no more, and lets go of it a little later.
        wait_for_namespaces(&dir);
        let image = self.scratch.path().join("image");
        daemon::wait("the device is in use", || !has_loop_device(&image));
        std::mem::forget(self.mounted.take());
        let mount = ["-o", &self.options];
        succeed(Command::new("mount").args(mount).args([&image, &dir]));
        self.mounted = Some(Mounted(dir));
    }

    pub fn path(&self) -> PathBuf {
        self.scratch.path().join("mnt")
    }

    pub fn dir(&self, name: &str) -> PathBuf {
        self.scratch.dir(&format!("mnt/{name}"))
    }

    /// A part of a btrfs that may hold so many bytes.
    pub fn limited(&self, name: &str, bytes: u64) -> PathBuf {
        let dir = self.path().join(name);
        let btrfs =
            |args: &[&str], path: &Path| succeed(Command::new("btrfs").args(args).arg(path));
        btrfs(&["quota", "enable"], &self.path());
        btrfs(&["subvolume", "create"], &dir);
        btrfs(&["qgroup", "limit", &bytes.to_string()], &dir);
        dir
    }
}

/// Whether a loop device shows this file.
fn has_loop_device(image: &Path) -> bool {
    let devices = fs::read_dir("/sys/block").unwrap().flatten();
    let mut files = devices.filter_map(|d| fs::read(d.path().join("loop/backing_file")).ok());
    files.any(|file| file.trim_ascii_end() == image.as_os_str().as_encoded_bytes())
}

pub fn succeed(command: &mut Command) {
    let output = run(command);
    assert!(
        output.status.success(),
        "{command:?}: {}",
        text(&output.stderr)
    );
}
