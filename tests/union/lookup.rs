//! Lookup: names, numbers, and what is no name.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use cvmfs_union::union::Union;
use cvmfs_union::union::api::{Kind, ROOT};
use nix::errno::Errno;

use super::{DIALECTS, sample};
use crate::support::{Fs, Stack, ok};

#[test]
fn the_sample_is_merged() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    assert_eq!(
        merged.tree().paths(),
        [
            "",
            "covered",
            "covered/above",
            "dir",
            "dir/file",
            "dir/sub",
            "dir/sub/deep",
            "dir/upmost",
            "empty",
            "fifo",
            "first",
            "plain",
            "second",
            "shallow",
            "symlink",
        ]
    );
    assert_eq!(merged.readlink("symlink").unwrap(), b"dir/file");
    assert_eq!(merged.stat("dir/gone"), Err(Errno::ENOENT));
    assert_eq!(merged.stat("plain/x"), Err(Errno::ENOTDIR));
}

#[test]
fn what_is_no_name_is_refused() {
    let stack = Stack::new(1);
    let merged = stack.mount();
    for (name, errno) in [
        (&b""[..], Errno::EINVAL),
        (b".", Errno::EINVAL),
        (b"..", Errno::EINVAL),
        (b"a/b", Errno::EINVAL),
        (&[b'x'; 256], Errno::ENAMETOOLONG),
    ] {
        let name = OsStr::from_bytes(name);
        let made = merged.union.mkdir(&merged.caller, ROOT, name, 0o755);
        assert_eq!(ok(made), Err(errno), "{name:?}");
        assert_eq!(ok(merged.union.lookup(ROOT, name)), Err(errno), "{name:?}");
    }
}

#[test]
fn names_are_bytes() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(1, whiteouts);
        let merged = stack.mount();
        let (name, other) = (
            OsStr::from_bytes(b"\xff\xfe\n"),
            OsStr::from_bytes(b".wh.\xff"),
        );
        let made = merged
            .union
            .mkdir(&merged.caller, ROOT, name, 0o755)
            .unwrap();
        merged
            .union
            .mkdir(&merged.caller, made.ino, other, 0o755)
            .unwrap();
        drop(merged);
        let merged = stack.mount();
        let found = merged.union.lookup(ROOT, name).unwrap().unwrap();
        assert!(merged.union.lookup(found.ino, other).unwrap().is_some());
    }
}

#[test]
fn the_longest_name_is_a_name() {
    let stack = Stack::new(1);
    stack.lower(0).with_file(&"l".repeat(255), "lower");
    let merged = stack.mount();
    merged.write(&"u".repeat(255), b"upper").unwrap();
    merged.unlink(&"l".repeat(255)).unwrap();
    assert_eq!(stack.reopen(merged).names("").unwrap(), ["u".repeat(255)]);
}

#[test]
fn numbers_stay_over_mounts() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    merged.write("new", b"").unwrap();
    let paths = merged.tree();
    let inos = |m: &crate::support::Merged| -> Vec<u64> {
        paths
            .paths()
            .iter()
            .map(|p| m.stat(p).unwrap().ino)
            .collect()
    };
    let before = inos(&merged);
    merged.chmod("dir/sub/deep", 0o600).unwrap();
    merged.write("plain", b"changed").unwrap();
    assert_eq!(inos(&merged), before);
    assert_eq!(inos(&stack.reopen(merged)), before);
}

#[test]
fn two_names_of_a_lower_file_are_one_object() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let first = merged.stat("first").unwrap();
    assert_eq!(first, merged.stat("second").unwrap());
    assert_eq!(first.nlink, 2);
}

#[test]
fn a_forgotten_number_is_stale() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let nodes = merged.union.nodes();
    let ino = merged.walk("dir/sub/deep").unwrap();
    assert_eq!(merged.union.nodes(), nodes + 3);
    merged.forget();
    assert_eq!(merged.union.nodes(), nodes, "a node and its parents go");
    assert_eq!(ok(merged.union.getattr(ino, None)), Err(Errno::ESTALE));
    merged.stat("dir/sub/deep").unwrap();
}

#[test]
fn the_same_layer_twice_is_no_harm() {
    let stack = Stack::new(1);
    stack
        .lower(0)
        .with_file("d/f", "x")
        .with_wh("d/f")
        .with_opq("e")
        .with_file("e/f", "y");
    let mut config = stack.config();
    let again = stack.config().lowers;
    config.lowers.extend(again);
    let union = Union::new(&config).unwrap();
    let merged = crate::support::Merged::new(union);
    assert_eq!(merged.tree().paths(), ["", "d", "d/f", "e", "e/f"]);
}

#[test]
fn a_whiteout_in_an_absent_directory_is_none() {
    let stack = Stack::new(2);
    stack.lower(0).with_wh("d/f").with_whiteout("d/g");
    let merged = stack.mount();
    assert_eq!(merged.tree().paths(), ["", "d"]);
}

#[test]
fn an_upper_within_a_layer_is_refused() {
    let stack = Stack::new(1);
    let mut config = stack.config();
    config.lowers[0].path = stack.path("");
    assert_eq!(ok(Union::new(&config)).unwrap_err(), Errno::EINVAL);
}

#[test]
fn an_upper_has_one_union_at_a_time() {
    let stack = Stack::new(1);
    let merged = stack.mount();
    assert_eq!(
        ok(Union::new(&stack.config())).unwrap_err(),
        Errno::EWOULDBLOCK
    );
    assert_eq!(merged.stat("").unwrap().kind, Kind::Dir);
}

/// What is in memory is found there, whether a listing tells of it or one layer holds the directory alone.
#[test]
fn a_known_name_costs_no_layer_anything() {
    let stack = Stack::new(2);
    stack.lower(0).with_file("both/f", "");
    stack.lower(1).with_file("both/g", "");
    stack.lower(1).with_file("one/f", "");
    let merged = stack.mount();
    let asked = || -> u64 {
        let layers = merged.union.counts().layers;
        let asked = layers.iter().flat_map(|layer| &layer.asked);
        asked.map(|(_, seen)| seen.count).sum()
    };
    for path in ["both/f", "both/g", "one/f"] {
        let before = asked();
        let first = merged.walk(path).unwrap();
        assert!(asked() > before, "{path}");
        let before = asked();
        assert_eq!(merged.walk(path).unwrap(), first);
        assert_eq!(asked(), before, "{path}");
    }
}
