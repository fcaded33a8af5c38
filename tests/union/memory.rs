//! What known objects cost.

use std::ffi::OsStr;
use std::num::NonZeroUsize;

use cvmfs_union::union::api::ROOT;

use super::DIALECTS;
use crate::support::memory::held;
use crate::support::{Merged, Stack};

const DIRS: usize = 100;
const FILES: usize = 100;
/// At most so many bytes for a known object, with its share of the tables.
const MOST: isize = 200;

/// Names as long as those of images: 13 bytes on average, one of 16 too long to be kept in place.
fn name(i: usize) -> String {
    match i % 16 {
        0 => format!("__module_{i:04}__.cpython-311.pyc"),
        n => format!(
            "{}_{i:04}",
            "library_data"[..n.min(12)].trim_end_matches('_')
        ),
    }
}

fn tree(stack: &Stack) {
    for dir in 0..DIRS {
        for file in 0..FILES {
            stack
                .lower(0)
                .with_file(&format!("directory_{dir:03}/{}", name(file)), "");
        }
    }
}

/// Lists all as `find -ls` does. Returns what was looked up.
fn walk(merged: &Merged) -> Vec<u64> {
    let list = |ino: u64| {
        let mut found = Vec::new();
        let mut each = |entry: &cvmfs_union::union::api::DirEntry<'_>, _: &_| {
            found.extend((entry.cookie > 2).then_some(entry.ino));
            true
        };
        merged.union.readdirplus(ino, 0, &mut each).unwrap();
        found
    };
    let dirs = list(ROOT);
    let files: Vec<u64> = dirs.iter().flat_map(|dir| list(*dir)).collect();
    [dirs, files].concat()
}

/// `listings`: how many are kept beside the objects.
fn cost(listings: usize) -> (isize, isize) {
    let mut stack = Stack::new(1);
    stack.limits.listings = NonZeroUsize::new(listings).unwrap();
    tree(&stack);
    let merged = stack.mount();
    let before = held();
    let known = walk(&merged);
    assert_eq!(known.len(), DIRS + DIRS * FILES);
    let list = isize::try_from(size_of_val(known.as_slice())).unwrap();
    let nodes = isize::try_from(known.len()).unwrap();
    let after_walk = held() - before - list;
    for ino in known.iter().rev() {
        merged.union.forget(*ino, 1);
    }
    assert_eq!(merged.union.nodes(), 1);
    if listings == 1 {
        merged.union.drop_listings();
    }
    let after_forget = held() - before - list;
    (after_walk / nodes, after_forget / nodes)
}

#[test]
fn a_known_object_costs_little_and_all_of_it_comes_back() {
    let (known, forgotten) = cost(1);
    assert!(known <= MOST, "{known} bytes for each object");
    assert!(
        forgotten <= 5,
        "{forgotten} bytes for each forgotten object"
    );
}

/// They stay, so that nobody has to ask the layers again, up to a limit that is stated there.
#[test]
fn a_name_in_a_kept_listing_costs_little() {
    let (_, forgotten) = cost(DIRS + 1);
    assert!(forgotten <= 32, "{forgotten} bytes for each name");
}

#[test]
fn objects_of_the_upper_cost_no_more() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(1, whiteouts);
        let merged = stack.mount();
        let dir = merged
            .union
            .mkdir(&merged.caller, ROOT, OsStr::new("d"), 0o755);
        let dir = dir.unwrap().ino;
        let files = 5_000;
        for i in 0..files {
            let name = name(i);
            let made = merged.union.mknod(
                &merged.caller,
                dir,
                OsStr::new(&name),
                libc::S_IFREG | 0o644,
                0,
            );
            merged.union.forget(made.unwrap().ino, 1);
        }
        // The names of the directory are kept for as long as it is.
        let before = held();
        for i in 0..files {
            merged
                .union
                .lookup(dir, OsStr::new(&name(i)))
                .unwrap()
                .unwrap();
        }
        let each = (held() - before) / isize::try_from(files).unwrap();
        assert!(each <= MOST, "{each} bytes for each of {files} objects");
    }
}

/// What reading a directory of very many names takes is free afterwards, and has to go back to the
/// system: each time, or every listing of it leaves more behind.
#[test]
fn a_large_listing_leaves_memory_to_give_back() {
    let stack = Stack::new(1);
    for i in 0..70_000 {
        stack.lower(0).with_file(&format!("large/{i}"), "");
    }
    stack.lower(0).with_file("small/file", "");
    let merged = stack.mount();
    let frees = |name: &str| {
        let found = merged.union.lookup(ROOT, OsStr::new(name)).unwrap();
        let ino = found.unwrap().ino;
        let mut names = 0;
        let mut each = |_: &cvmfs_union::union::api::DirEntry<'_>| {
            names += 1;
            true
        };
        merged.union.readdir(ino, 0, &mut each).unwrap();
        merged.union.forget(ino, 1);
        (names - 2, merged.union.has_freed())
    };
    assert_eq!(frees("small"), (1, false));
    for _ in 0..2 {
        assert_eq!(frees("large"), (70_000, true));
        assert!(!merged.union.has_freed(), "it is said once");
        merged.union.drop_listings();
    }
}
