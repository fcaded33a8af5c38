//! Bytes as users' names and attributes: what was stored under a name comes back under it, also after the
//! union was opened again, whatever the upper writes in its place.
//!
//! An input is lines: the style of deletions, the names, and attributes as `KEY=VALUE`.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use cvmfs_union::union::Union;
use cvmfs_union::union::api::{Caller, ROOT, Whiteouts};
use nix::errno::Errno;

use crate::support::{Fs, Stack, ok};

const TOKENS: &[&[u8]] = &[
    b"\n",
    b"=",
    b".wh.",
    b".wh..wh.u.",
    b".wh..wh..opq",
    b"user.",
    b"trusted.",
    b"overlay.",
    b"overlay.opaque=y",
    b"cvmfs-union.ino=1",
    b"fuseoverlayfs.",
    b".cvmfscatalog",
    b"#0",
    b"..",
    b".",
    b"/",
    b"\0",
    b"\xff",
];

#[test]
fn names() {
    super::run("names", TOKENS, check);
}

type Stored = (BTreeSet<Vec<u8>>, BTreeMap<Vec<u8>, Vec<u8>>);

pub fn check(input: &[u8]) {
    let mut lines = input.split(|b| *b == b'\n');
    let wh = lines.next().is_some_and(|style| style.starts_with(b"wh"));
    let stack = Stack::with(1, if wh { Whiteouts::Wh } else { Whiteouts::Auto });
    stack
        .lower(0)
        .with_file("a", "lower")
        .with_file("b", "lower");
    let merged = stack.mount();
    let (uid, gid) = (merged.caller.uid, merged.caller.gid);
    let caller = Caller { uid, gid, umask: 0 };
    let union = &merged.union;
    let mut names: BTreeSet<Vec<u8>> = [b"a".to_vec(), b"b".to_vec()].into();
    let mut attributes = BTreeMap::new();
    for line in lines.take(20) {
        let eq = line.iter().position(|b| *b == b'=');
        match eq.map(|at| (&line[..at], &line[at + 1..])) {
            Some((key, value)) if key.starts_with(b"user.") || key.starts_with(b"trusted.") => {
                let set = union.setxattr(&caller, ROOT, OsStr::from_bytes(key), value, 0);
                if set.is_ok() {
                    attributes.insert(key.to_vec(), value.to_vec());
                }
            }
            _ => {
                let name = OsStr::from_bytes(line);
                let made = ok(union.mkdir(&caller, ROOT, name, 0o755)).map(drop);
                assert_eq!(made, expected(line, &names, wh), "{line:?}");
                if made.is_ok() {
                    names.insert(line.to_vec());
                }
            }
        }
    }
    let stored = (names, attributes);
    assert_eq!(list(union), stored);
    let merged = stack.reopen(merged);
    assert_eq!(list(&merged.union), stored);
    // All of it can be taken away.
    for name in &stored.0 {
        let name = OsStr::from_bytes(name);
        let gone = merged
            .union
            .rmdir(ROOT, name)
            .or_else(|_| merged.union.unlink(ROOT, name));
        assert!(gone.is_ok(), "{name:?}: {gone:?}");
    }
    let merged = stack.reopen(merged);
    assert_eq!(list(&merged.union).0, BTreeSet::new());
    assert_eq!(merged.names("").unwrap(), [""; 0]);
}

/// What making the name says.
fn expected(name: &[u8], names: &BTreeSet<Vec<u8>>, wh: bool) -> Result<(), Errno> {
    let dots = [&b""[..], b".", b".."].contains(&name);
    if name.len() > 255 {
        Err(Errno::ENAMETOOLONG)
    } else if dots || name.contains(&b'/') {
        Err(Errno::EINVAL)
    } else if names.contains(name) {
        Err(Errno::EEXIST)
    } else if wh && name.starts_with(b".wh.") && name.len() > 249 {
        Err(Errno::ENAMETOOLONG)
    } else if name.contains(&0) {
        Err(Errno::EINVAL)
    } else {
        Ok(())
    }
}

fn list(union: &Union) -> Stored {
    let mut names = BTreeSet::new();
    let listed = union.readdir(ROOT, 0, &mut |e| {
        if e.name != b"." && e.name != b".." {
            assert!(names.insert(e.name.to_vec()), "{:?} twice", e.name);
        }
        true
    });
    listed.unwrap();
    let keys = union.listxattr(ROOT).unwrap();
    let keys = keys
        .split(|b| *b == 0)
        .filter(|k| k.starts_with(b"user.") || k.starts_with(b"trusted."));
    let value = |key: &[u8]| {
        (
            key.to_vec(),
            union.getxattr(ROOT, OsStr::from_bytes(key)).unwrap(),
        )
    };
    (names, keys.map(value).collect())
}
