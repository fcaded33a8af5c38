//! Data: descriptors and mappings over a copy-up, and how data are copied.

use crate::conformance;
use crate::support::sys::{self, Map};
use crate::support::{Fixture, System, run};
use std::process::Command;

const SPARSE: i64 = 64 << 20;

fn write(f: &Fixture, path: &str, content: &[u8]) {
    let fd = sys::open(f.at(path), libc::O_WRONLY, 0).unwrap();
    assert_eq!(sys::pwrite(&fd, content, 0), Ok(content.len()));
}

pub fn fstat_from_before(f: &mut Fixture) {
    let old = sys::open(f.at("file"), libc::O_RDONLY, 0).unwrap();
    let before = sys::fstat(&old).unwrap();
    write(f, "file", b"longer than it was");
    sys::chmod(f.at("file"), 0o600).unwrap();
    let stat = sys::fstat(&old).unwrap();
    assert_eq!((stat.st_size, stat.st_mode & 0o777), (18, 0o600));
    assert!(stat.st_mtime > before.st_mtime);
    assert_eq!(stat.st_ino, sys::stat(f.at("file")).unwrap().st_ino);
}

pub fn read_from_before(f: &mut Fixture) {
    let old = sys::open(f.at("file"), libc::O_RDONLY, 0).unwrap();
    assert_eq!(sys::pread(&old, 100, 0).unwrap(), b"content");
    write(f, "file", b"changed, and longer");
    assert_eq!(sys::pread(&old, 100, 0).unwrap(), b"changed, and longer");
}

pub fn mapping_from_before(f: &mut Fixture) {
    let old = sys::open(f.at("file"), libc::O_RDONLY, 0).unwrap();
    let map = Map::new(&old, 7, libc::PROT_READ, libc::MAP_SHARED).unwrap();
    assert_eq!(map.get(0), b'c');
    write(f, "file", b"C");
    assert_eq!(map.get(0), b'C');
}

pub fn sparse_file(f: &mut Fixture) {
    let path = f.lower().join("sparse");
    let fd = sys::open(path, libc::O_CREAT | libc::O_RDWR, 0o644).unwrap();
    sys::pwrite(&fd, b"begin", 0).unwrap();
    sys::pwrite(&fd, b"end", SPARSE).unwrap();
}

pub fn sparse_stays_sparse(f: &mut Fixture) {
    write(f, "sparse", b"B");
    let fd = sys::open(f.at("sparse"), libc::O_RDONLY, 0).unwrap();
    let stat = sys::fstat(&fd).unwrap();
    assert_eq!(stat.st_size, SPARSE + 3);
    assert_eq!(sys::pread(&fd, 9, SPARSE).unwrap(), b"end");
    drop(fd);
    f.remount();
    let blocks = sys::stat(f.at("sparse")).unwrap().st_blocks;
    assert!(blocks * 512 < SPARSE / 8, "{blocks} blocks");
}

/// A stock lower above one of another file system; the process that fills takes it down.
pub fn two_file_systems(f: &mut Fixture) {
    super::stock(f);
    let other = f.lower();
    if f.system != System::Plain {
        let mount = ["-t", "tmpfs", "tmpfs"];
        assert!(
            run(Command::new("mount").args(mount).arg(&other))
                .status
                .success()
        );
    }
    for dir in ["far", "far/sub"] {
        sys::mkdir(other.join(dir), 0o755).unwrap();
    }
    sys::make(other.join("far/file"), &[7; 300_000]).unwrap();
}

pub fn copy_range(f: &mut Fixture) {
    let from = sys::open(f.at("far/file"), libc::O_RDONLY, 0).unwrap();
    let to = sys::open(f.at("copy"), libc::O_CREAT | libc::O_RDWR, 0o644).unwrap();
    conformance::data::copy_all(&from, &to, 300_000);
    assert_eq!(std::fs::read(f.at("copy")).unwrap(), [7; 300_000]);
}

pub const LOWER_WRITTEN: &str = "the file of the lower has other bytes";

/// A reader's descriptor gives a rival the lower file itself, which the next writer then gets.
pub fn reader_then_writer(f: &mut Fixture) {
    let reader = sys::open(f.at("file"), libc::O_RDONLY, 0).unwrap();
    assert_eq!(sys::pread(&reader, 100, 0).unwrap(), b"content");
    let writer = sys::open(f.at("file"), libc::O_RDWR, 0).unwrap();
    assert_eq!(sys::pwrite(&writer, b"CHANGED", 0), Ok(7));
    drop((reader, writer));
    for lower in &f.lowers {
        let content = std::fs::read(lower.join("file")).unwrap();
        assert_eq!(content, b"content", "{LOWER_WRITTEN}");
    }
    assert_eq!(std::fs::read(f.at("file")).unwrap(), b"CHANGED");
    f.remount();
    assert_eq!(std::fs::read(f.at("file")).unwrap(), b"CHANGED");
}
