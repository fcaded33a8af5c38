//! A small disk that can be filled, and stacks whose upper is on it.

use std::fs;
use std::path::PathBuf;

use super::fill_lowers;
use crate::support::Fixture;
use crate::support::sys::{self, Errno};
use crate::support::volume::Volume;

/// Of the volumes that are filled.
const SIZE: u64 = 6 << 20;
const INODES: u64 = 160;

/// What a disk is short of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Short {
    Blocks,
    Inodes,
}

/// Where the uppers are, and what it says when it is full.
pub struct Disk {
    pub root: PathBuf,
    pub full: Errno,
    pub block: i64,
    _volume: Volume,
}

impl Disk {
    pub fn small(kind: &str) -> Disk {
        let volume = Volume::small(kind, SIZE, INODES);
        Disk {
            root: volume.path(),
            full: Errno::ENOSPC,
            block: if kind == "tmpfs" { 4096 } else { 1024 },
            _volume: volume,
        }
    }

    /// The disk has room, the quota has none.
    pub fn limited() -> Disk {
        let volume = Volume::new("btrfs");
        Disk {
            root: volume.limited("limited", SIZE),
            full: Errno::EDQUOT,
            block: 16384,
            _volume: volume,
        }
    }

    /// Fills it, but for so many blocks or inodes.
    pub fn fill(&self, short: Short, left: usize) -> Filler<'_> {
        let dir = self.root.join("filler");
        fs::create_dir(&dir).unwrap();
        let filler = Filler { disk: self, dir };
        let reserved: Vec<_> = (0..left)
            .map(|i| filler.dir.join(format!("r{i}")))
            .collect();
        match short {
            // What is to be left is taken first, and given back.
            Short::Blocks => {
                let reserved = filler.dir.join("reserved");
                sys::make(&reserved, b"").unwrap();
                if left > 0 {
                    let fd = sys::open(&reserved, libc::O_WRONLY, 0).unwrap();
                    let size = i64::try_from(left).unwrap() * self.block;
                    sys::fallocate(&fd, 0, 0, size).unwrap();
                }
                filler.take_blocks();
                sys::unlink(&reserved).unwrap();
            }
            Short::Inodes => {
                reserved
                    .iter()
                    .for_each(|path| sys::make(path, b"").unwrap());
                filler.take_inodes();
                reserved.iter().for_each(|path| sys::unlink(path).unwrap());
            }
        }
        filler.settle();
        filler
    }

    /// A stack whose upper is on this disk, mounted.
    pub fn stack(&self, name: &str, options: &[&str]) -> Fixture {
        let mut fixture = Fixture::new(name);
        for (dir, path) in [("upper", &mut fixture.upper), ("work", &mut fixture.work)] {
            *path = self.root.join(dir);
            if path.exists() {
                fs::remove_dir_all(&*path).unwrap();
            }
            fs::create_dir(&*path).unwrap();
        }
        fixture.options = options.iter().map(|o| (*o).to_owned()).collect();
        let (top, base) = (fixture.lower(), fixture.lower());
        fill_lowers(&top, &base);
        fixture.mount();
        fixture
    }
}

/// Files that leave no room; they go when it is dropped.
pub struct Filler<'a> {
    disk: &'a Disk,
    dir: PathBuf,
}

impl Filler<'_> {
    fn take_blocks(&self) {
        let fd = sys::open(
            self.dir.join("blocks"),
            libc::O_CREAT | libc::O_WRONLY,
            0o600,
        )
        .unwrap();
        let mut at = 0;
        let mut chunk = 1 << 20;
        while chunk >= self.disk.block {
            match sys::fallocate(&fd, 0, at, chunk) {
                Ok(()) => at += chunk,
                Err(e) => {
                    assert_eq!(e, self.disk.full);
                    chunk /= 2;
                }
            }
        }
        // What a file system keeps for itself, or lets go of in smaller pieces.
        let block = vec![1; usize::try_from(self.disk.block).unwrap()];
        let more = sys::open(self.dir.join("more"), libc::O_CREAT | libc::O_WRONLY, 0o600);
        while let Ok(fd) = &more {
            if sys::write(fd, &block).is_err() {
                break;
            }
        }
    }

    fn take_inodes(&self) {
        for number in 0.. {
            match sys::make(self.dir.join(number.to_string()), b"") {
                Ok(()) => {}
                Err(e) => {
                    assert_eq!(e, self.disk.full);
                    break;
                }
            }
        }
    }

    /// What was given back can be used only when it is on the disk that it is free.
    fn settle(&self) {
        let root = sys::open(&self.disk.root, libc::O_RDONLY, 0).unwrap();
        nix::unistd::syncfs(&root).unwrap();
    }
}

impl Drop for Filler<'_> {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.dir).unwrap();
        self.settle();
    }
}
