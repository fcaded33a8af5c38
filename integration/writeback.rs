//! Writes that the kernel collects before the daemon gets them (`--writeback=on`).

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::support::files::{file, union_with};
use crate::support::sys::{self, Map};
use crate::support::{Fixture, daemon};

const ON: [&str; 2] = ["--passthrough=off", "--writeback=on"];

fn mounted(options: &[&str]) -> Option<Fixture> {
    union_with("writeback", 1, options, |lower| {
        file(lower[0].join("f"), &"lower".repeat(2000));
    })
}

/// A record at a time, as logs and databases are written.
fn write_records(f: &Fixture, name: &str) -> u64 {
    let before = daemon::io(&f.mnt, "syscw");
    let fd = sys::open(f.at(name), libc::O_WRONLY | libc::O_CREAT, 0o644).unwrap();
    for _ in 0..1000 {
        assert_eq!(sys::write(&fd, &[b'r'; 100]), Ok(100));
    }
    drop(fd);
    // Close has brought them there.
    assert_eq!(fs::read(f.upper.join(name)).unwrap(), [b'r'; 100_000]);
    daemon::io(&f.mnt, "syscw") - before
}

#[test]
fn small_writes_become_few() {
    for (options, most) in [(["--passthrough=off", "--writeback=off"], 2100), (ON, 50)] {
        let Some(f) = mounted(&options) else { return };
        let born = write_records(&f, "new");
        assert!(born < most, "{options:?}: {born}");
        assert_eq!(born > 1000, most > 1000, "{options:?}: {born}");
    }
}

#[test]
fn what_is_collected_is_seen_by_all() {
    let Some(mut f) = mounted(&ON) else { return };
    for name in ["f", "new"] {
        let path = f.at(name);
        let flags = libc::O_WRONLY | libc::O_CREAT;
        let (writer, appender) = (
            sys::open(&path, flags, 0o644).unwrap(),
            sys::open(&path, flags | libc::O_APPEND, 0o644).unwrap(),
        );
        let reader = sys::open(&path, libc::O_RDONLY, 0).unwrap();
        let size = sys::fstat(&reader).unwrap().st_size;
        // The rest of the page has to be read by a handle that only writes.
        sys::pwrite(&writer, b"middle", 5000).unwrap();
        let size = size.max(5006);
        sys::write(&appender, b"end").unwrap();
        for seen in [sys::stat(&path).unwrap(), sys::fstat(&reader).unwrap()] {
            assert_eq!(seen.st_size, size + 3, "{name}");
        }
        assert_eq!(sys::pread(&reader, 6, 5000).unwrap(), b"middle");
        assert_eq!(sys::pread(&reader, 10, size).unwrap(), b"end");
        let map = Map::new(&reader, 8192, libc::PROT_READ, libc::MAP_SHARED).unwrap();
        assert_eq!(map.get(5005), b'e');
        assert_eq!(sys::lseek(&reader, 5000, libc::SEEK_DATA), Ok(5000));
        sys::fsync(&writer).unwrap();
        let stored = fs::read(f.upper.join(name)).unwrap();
        assert_eq!(&stored[5000..5006], b"middle");
        assert_eq!(stored.len() as i64, size + 3);
        // Shorter, then longer: what lay between is gone.
        sys::pwrite(&writer, b"tail", 6000).unwrap();
        sys::ftruncate(&writer, 5003).unwrap();
        sys::ftruncate(&writer, 7000).unwrap();
        assert_eq!(sys::pread(&reader, 5, 5001).unwrap(), b"id\0\0\0");
        assert_eq!(sys::pread(&reader, 4, 6000).unwrap(), [0; 4]);
        sys::pwrite(&writer, b"late", 100).unwrap();
        sys::utimens(&path, (1000, 1), (2000, 2)).unwrap();
    }
    f.remount();
    for name in ["f", "new"] {
        let stat = sys::stat(f.at(name)).unwrap();
        assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (2000, 2), "{name}");
        let data = fs::read(f.at(name)).unwrap();
        assert_eq!(
            (data.len(), &data[100..104]),
            (7000, &b"late"[..]),
            "{name}"
        );
        assert_eq!(
            &data[4998..5005],
            if name == "f" {
                b"ermid\0\0"
            } else {
                b"\0\0mid\0\0"
            },
            "{name}"
        );
    }
}

/// When the data were changed last, as it is shown.
fn time(path: PathBuf) -> (i64, i64) {
    let stat = sys::stat(path).unwrap();
    (stat.st_mtime, stat.st_mtime_nsec)
}

/// The time of a file is that of its last write, wherever the data were meanwhile.
#[test]
fn collected_writes_keep_their_time() {
    let Some(mut f) = mounted(&ON) else { return };
    let names: Vec<_> = (0..20).map(|i| format!("new{i}")).collect();
    let mut shown = Vec::new();
    for name in names.iter().map(String::as_str).chain(["f"]) {
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
        let fd = sys::open(f.at(name), flags, 0o644).unwrap();
        sys::pwrite(&fd, b"w", 0).unwrap();
        let at = time(f.at(name));
        // Some of them reach the daemon later than the kernel's clock ticks.
        std::thread::sleep(Duration::from_millis(10));
        drop(fd);
        assert_eq!(time(f.at(name)), at, "{name} after close");
        shown.push((name, at));
    }
    f.remount();
    for (name, at) in shown {
        assert_eq!(time(f.at(name)), at, "{name} after a remount");
    }
}

/// Bug: a truncation to the size that a file has changed its time in the upper, and not in the mount.
#[test]
fn truncating_to_the_same_size_changes_no_time() {
    let Some(mut f) = mounted(&ON) else { return };
    let time = |path| {
        let stat = sys::stat(path).unwrap();
        (stat.st_size, stat.st_mtime, stat.st_mtime_nsec)
    };
    sys::make(f.at("new"), &[b'n'; 100]).unwrap();
    let sizes = [("f", 10_000), ("new", 100)];
    for (name, size) in sizes {
        sys::utimens(f.at(name), (1000, 1), (2000, 2)).unwrap();
        sys::truncate(f.at(name), size).unwrap();
        assert_eq!(time(f.at(name)), (size, 2000, 2), "{name}");
    }
    f.remount();
    for (name, size) in sizes {
        assert_eq!(time(f.at(name)), (size, 2000, 2), "{name} after a remount");
        // Another size is another time, and that too is the one in the upper.
        sys::truncate(f.at(name), size - 1).unwrap();
    }
    let shown = sizes.map(|(name, _)| time(f.at(name)));
    assert!(shown.iter().all(|shown| shown.1 > 2000), "{shown:?}");
    f.remount();
    assert_eq!(sizes.map(|(name, _)| time(f.at(name))), shown);
}

/// Bug: an allocation soon after a write gave the file another time in the upper than in the mount.
#[test]
fn allocations_keep_the_time_that_is_shown() {
    let Some(mut f) = mounted(&ON) else { return };
    let names: Vec<_> = (0..20).map(|i| format!("new{i}")).collect();
    let mut shown = Vec::new();
    for name in &names {
        sys::make(f.at(name), b"new").unwrap();
        let fd = sys::open(f.at(name), libc::O_WRONLY, 0).unwrap();
        sys::fallocate(&fd, libc::FALLOC_FL_KEEP_SIZE, 0, 100_000).unwrap();
        sys::flush(&fd).unwrap();
        shown.push(time(f.at(name)));
    }
    f.remount();
    for (name, at) in names.iter().zip(shown) {
        assert_eq!(time(f.at(name)), at, "{name} after a remount");
    }
}
