//! Directories: what a stream shows while names come and go, link counts, numbers.

use std::collections::BTreeSet;

use crate::support::Fixture;
use crate::support::sys::{self, Dir};
use crate::support::text;

/// More than fit in one request for entries.
const MANY: usize = 300;

pub fn many_names(f: &mut Fixture) {
    let lower = f.lower();
    sys::mkdir(lower.join("many"), 0o755).unwrap();
    for number in 0..MANY {
        let name = format!("many/a file with a longer name, number {number}");
        sys::make(lower.join(name), b"").unwrap();
    }
}

fn rest(stream: &mut Dir) -> Vec<String> {
    let entries = stream.rest().unwrap();
    entries.iter().map(|entry| text(&entry.name)).collect()
}

pub fn rewinddir(f: &mut Fixture) {
    let mut stream = Dir::open(f.at("dir")).unwrap();
    let before: BTreeSet<_> = rest(&mut stream).into_iter().collect();
    assert!(before.contains("inside"));
    sys::make(f.at("dir/new"), b"").unwrap();
    sys::unlink(f.at("dir/inside")).unwrap();
    stream.rewind();
    let after: BTreeSet<_> = rest(&mut stream).into_iter().collect();
    assert!(after.contains("new"), "{after:?}");
    assert!(!after.contains("inside"), "{after:?}");
}

/// Reads a directory, removes some names of its first half and makes others, and checks that the
/// position in the middle is still followed by the names of the other half.
fn position_stays_good(f: &Fixture, again: impl FnOnce(Dir) -> Dir) {
    let mut stream = Dir::open(f.at("many")).unwrap();
    let all = stream.rest().unwrap();
    assert_eq!(all.len(), MANY + 2);
    let (first, second) = all.split_at(MANY / 2);
    for (i, entry) in first.iter().enumerate().step_by(3) {
        if entry.name.len() > 2 {
            sys::unlink(f.at("many").join(text(&entry.name))).unwrap();
            sys::make(f.at(format!("many/new {i}")), b"").unwrap();
        }
    }
    let mut stream = again(stream);
    stream.seek(first.last().unwrap().next);
    // Where the new ones come is left to the file system.
    let mut found = rest(&mut stream);
    found.retain(|name| !name.starts_with("new "));
    let expected: Vec<_> = second.iter().map(|e| text(&e.name)).collect();
    assert_eq!(found, expected);
}

pub fn cookies(f: &mut Fixture) {
    position_stays_good(f, |mut stream| {
        stream.rewind();
        assert!(stream.next().unwrap().is_some());
        stream
    });
}

pub fn cookies_in_new_descriptor(f: &mut Fixture) {
    position_stays_good(f, |_closed| Dir::open(f.at("many")).unwrap());
}

pub fn directory_counts(f: &mut Fixture) {
    let count = |path: &str| sys::stat(f.at(path)).unwrap().st_nlink;
    assert_eq!((count("dir"), count("empty")), (4, 2));
    sys::mkdir(f.at("dir/more"), 0o755).unwrap();
    sys::rmdir(f.at("empty")).unwrap();
    assert_eq!(count("dir"), 5);
    sys::make(f.at("shared/new"), b"").unwrap();
    assert_eq!(count("shared"), 2);
}

pub fn directory_made_anew(f: &mut Fixture) {
    std::fs::remove_dir_all(f.at("dir")).unwrap();
    sys::mkdir(f.at("dir"), 0o755).unwrap();
    for _ in 0..2 {
        assert_eq!(sys::names(f.at("dir")).unwrap(), [""; 0]);
        f.remount();
    }
}

const FAR_AND_NEAR: [&str; 7] = [
    "",
    "file",
    "dir",
    "dir/inside",
    "far",
    "far/file",
    "far/sub",
];

pub fn one_device(f: &mut Fixture) {
    let devices = |f: &Fixture| -> BTreeSet<_> {
        let stat = |path| sys::lstat(f.at(path)).unwrap();
        FAR_AND_NEAR
            .into_iter()
            .map(|path| stat(path).st_dev)
            .collect()
    };
    assert_eq!(devices(f).len(), 1);
    std::fs::write(f.at("far/file"), b"changed").unwrap();
    assert_eq!(devices(f).len(), 1);
}

pub fn listed_numbers(f: &mut Fixture) {
    std::fs::write(f.at("dir/inside"), b"changed").unwrap();
    for dir in ["", "dir", "far"] {
        for entry in sys::readdir(f.at(dir)).unwrap() {
            let name = text(&entry.name);
            // Above a mount's root is another file system.
            if name != ".." {
                let number = sys::lstat(f.at(dir).join(&name)).unwrap().st_ino;
                assert_eq!(entry.ino, number, "{dir}/{name}");
            }
        }
    }
}
