//! Numbers of files that a layer numbers by its inodes, and of those that it does not.

use cvmfs_union::layer::Ask;
use cvmfs_union::union::api::{DirEntry, Ino};
use tempfile::TempDir;

use crate::support::{Fs, Merged, Stack, temp_dir};

fn numbers<const N: usize>(merged: &Merged, paths: [&str; N]) -> [Ino; N] {
    paths.map(|path| merged.stat(path).unwrap().ino)
}

/// The names of a directory and the numbers beside them.
fn listed(merged: &Merged, path: &str) -> Vec<(String, Ino)> {
    let mut found = Vec::new();
    let mut each = |entry: &DirEntry<'_>| {
        if entry.cookie > 2 {
            found.push((String::from_utf8_lossy(entry.name).into_owned(), entry.ino));
        }
        true
    };
    let dir = merged.walk(path).unwrap();
    merged.union.readdir(dir, 0, &mut each).unwrap();
    found
}

/// A directory of two layers with files, of which some have several names or another kind.
fn sample(stack: &Stack) {
    stack.lower(0).with_file("d/top", "top");
    stack
        .lower(1)
        .with_file("d/one", "one")
        .with_link("d/one", "d/two")
        .with_link("d/one", "elsewhere")
        .with_file("d/alone", "alone")
        .with_symlink("d/symlink", "one")
        .with_file("d/sub/deep", "deep");
}

/// For a stack whose layer changes between two mounts.
fn place() -> TempDir {
    let dir = temp_dir();
    for name in ["upper", "work", "lower0"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    dir
}

#[test]
fn a_listing_tells_the_numbers_and_asks_for_no_file() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let stats = |merged: &Merged| -> u64 {
        let layers = merged.union.counts().layers;
        let asked = layers.iter().flat_map(|layer| layer.asked.clone());
        let stats = asked.filter(|(ask, _)| *ask == Ask::Stat);
        stats.map(|(_, reading)| reading.count).sum()
    };
    merged.walk("d").unwrap();
    let before = stats(&merged);
    let found = listed(&merged, "d");
    assert_eq!(stats(&merged), before);
    assert_eq!(found.len(), 6);
    for (name, ino) in found {
        let path = format!("d/{name}");
        assert_eq!(merged.stat(&path).unwrap().ino, ino, "{path}");
    }
    let [one, two, elsewhere] = numbers(&merged, ["d/one", "d/two", "elsewhere"]);
    assert!(one == two && two == elsewhere);
}

/// An upper of before there was the note goes on as it was begun, or names of one file would part.
#[test]
fn an_upper_keeps_the_kind_of_numbers_that_it_was_begun_with() {
    let stack = Stack::new(2);
    sample(&stack);
    let paths = [
        "d/top",
        "d/alone",
        "d/one",
        "d/two",
        "elsewhere",
        "d/sub/deep",
    ];
    let merged = stack.mount();
    let by_inode = numbers(&merged, paths);
    drop(merged);
    stack.work().remove("inodes");
    stack.upper().with_file("something", "");
    let merged = stack.mount();
    let by_path = numbers(&merged, paths);
    for (path, (a, b)) in paths.iter().zip(by_inode.iter().zip(by_path)) {
        assert_ne!(*a, b, "{path}");
    }
    for (name, ino) in listed(&merged, "d") {
        let path = format!("d/{name}");
        assert_eq!(merged.stat(&path).unwrap().ino, ino, "{path}");
    }
    merged.write("d/one", b"changed").unwrap();
    let merged = stack.reopen(merged);
    assert_eq!(numbers(&merged, paths), by_path);
    assert_eq!(merged.read("elsewhere").unwrap(), b"changed");
}

/// A layer that was copied: an inode of it may have the number that another file had before.
#[test]
fn numbers_kept_by_an_upper_are_not_those_of_a_copied_layer() {
    let dir = place();
    let stack = Stack::attach(dir.path(), 1);
    stack.lower(0).with_file("f", "f").with_file("g", "g");
    let merged = stack.mount();
    merged.chmod("f", 0o600).unwrap();
    let [f, g] = numbers(&merged, ["f", "g"]);
    drop((merged, stack));
    let lower = dir.path().join("lower0");
    let old = dir.path().join("old");
    std::fs::rename(&lower, &old).unwrap();
    std::fs::create_dir(&lower).unwrap();
    for name in ["f", "g"] {
        std::fs::copy(old.join(name), lower.join(name)).unwrap();
    }
    let merged = Stack::attach(dir.path(), 1).mount();
    let [f_now, g_now] = numbers(&merged, ["f", "g"]);
    assert_eq!(f_now, f, "kept");
    assert!(g_now != g && g_now != f);
}

/// A layer was changed, and another file of it is in an inode whose number the upper keeps. They stay two files.
#[test]
fn an_inode_that_was_used_again_is_another_file() {
    let dir = place();
    let stack = Stack::attach(dir.path(), 1);
    stack.lower(0).with_file("f", "f").with_file("h", "h");
    let merged = stack.mount();
    merged.write("f", b"upper").unwrap();
    drop((merged, stack));
    // The same inode under another name, and with one name.
    let lower = dir.path().join("lower0");
    std::fs::rename(lower.join("f"), lower.join("g")).unwrap();
    for order in [["f", "g"], ["g", "f"]] {
        let stack = Stack::attach(dir.path(), 1);
        let merged = stack.mount();
        let [first, second] = numbers(&merged, order);
        assert_ne!(first, second, "{order:?}");
        assert_eq!(merged.read("f").unwrap(), b"upper", "{order:?}");
        assert_eq!(merged.read("g").unwrap(), b"f", "{order:?}");
        // Over and over, in one mount.
        assert_eq!(numbers(&merged, order), [first, second], "{order:?}");
    }
}
