//! Listings: cookies that stay right while names come and go.

use std::collections::HashSet;

use cvmfs_union::layer::Ask;
use cvmfs_union::union::api::{Attr, DirEntry, Ino, Kind, ROOT, RenameKind};

use super::{DIALECTS, sample};
use crate::support::{Fs, Merged, Stack};

/// Up to `count` names after a cookie, and the last cookie.
fn some(merged: &Merged, dir: Ino, after: u64, count: usize) -> (Vec<String>, u64) {
    let (mut names, mut last) = (Vec::new(), after);
    let listed = merged.union.readdir(dir, after, &mut |entry| {
        if names.len() == count {
            return false;
        }
        names.push(String::from_utf8(entry.name.to_vec()).unwrap());
        last = entry.cookie;
        true
    });
    listed.unwrap();
    (names, last)
}

fn dir(merged: &Merged, path: &str) -> Ino {
    merged.walk(path).unwrap()
}

/// Half of the names in the lowers, half in the upper, some hidden.
fn large(stack: &Stack, names: usize) -> Merged {
    for i in 0..names / 2 {
        stack.lower(i % 2).with_file(&format!("dir/lower{i}"), "");
    }
    stack.lower(1).with_file("dir/hidden", "");
    stack.lower(0).with_wh("dir/hidden");
    let merged = stack.mount();
    for i in names / 2..names {
        merged.write(&format!("dir/upper{i}"), b"").unwrap();
    }
    merged
}

#[test]
fn ten_thousand_names_each_once() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        let merged = large(&stack, 10_000);
        let dir = dir(&merged, "dir");
        let (mut all, mut cookie) = (Vec::new(), 0);
        loop {
            let (names, last) = some(&merged, dir, cookie, 77);
            if names.is_empty() {
                break;
            }
            all.extend(names);
            cookie = last;
        }
        assert_eq!(all.len(), 10_002);
        assert_eq!(all[..2], [".", ".."]);
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
    }
}

#[test]
fn removing_while_listing_misses_none() {
    for whiteouts in DIALECTS {
        for step in [1, 7, 64, 65] {
            let stack = Stack::with(2, whiteouts);
            let merged = large(&stack, 300);
            let dir = dir(&merged, "dir");
            let (mut removed, mut cookie) = (0, 2);
            loop {
                let (names, last) = some(&merged, dir, cookie, step);
                if names.is_empty() {
                    break;
                }
                for name in names {
                    merged.unlink(&format!("dir/{name}")).unwrap();
                    removed += 1;
                }
                cookie = last;
            }
            assert_eq!(removed, 300);
            merged.rmdir("dir").unwrap();
        }
    }
}

#[test]
fn what_stays_is_listed_once_whatever_else_happens() {
    let stack = Stack::new(2);
    let merged = large(&stack, 200);
    let dir = dir(&merged, "dir");
    let (mut seen, mut cookie) = (Vec::new(), 2);
    for round in 0.. {
        let (names, last) = some(&merged, dir, cookie, 10);
        if names.is_empty() {
            break;
        }
        seen.extend(names);
        cookie = last;
        if round < 9 {
            // Copies up, makes, hides and removes.
            merged
                .chmod(&format!("dir/lower{}", 10 + round), 0o600)
                .unwrap();
            merged.write(&format!("dir/made{round}"), b"").unwrap();
            merged.unlink(&format!("dir/lower{round}")).unwrap();
            merged.unlink(&format!("dir/upper{}", 100 + round)).unwrap();
        }
    }
    for i in 9..100 {
        let name = format!("lower{i}");
        assert_eq!(seen.iter().filter(|n| **n == name).count(), 1, "{name}");
    }
    for i in 109..200 {
        let name = format!("upper{i}");
        assert_eq!(seen.iter().filter(|n| **n == name).count(), 1, "{name}");
    }
    assert_eq!(
        seen.iter().collect::<HashSet<_>>().len(),
        seen.len(),
        "none twice"
    );
}

#[test]
fn a_cookie_can_be_used_again() {
    let stack = Stack::new(2);
    let merged = large(&stack, 100);
    let dir = dir(&merged, "dir");
    let (_, cookie) = some(&merged, dir, 0, 30);
    let (rest, end) = some(&merged, dir, cookie, 1000);
    assert_eq!(some(&merged, dir, cookie, 1000), (rest, end));
    assert_eq!(some(&merged, dir, end, 1000).0, [""; 0]);
}

#[test]
fn the_dots_name_the_directory_and_its_parent() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let dots = |path: &str| {
        let dir = dir(&merged, path);
        let mut dots = Vec::new();
        let listed = merged.union.readdir(dir, 0, &mut |e| {
            dots.push((e.name.to_vec(), e.ino, e.kind));
            dots.len() < 2
        });
        listed.unwrap();
        dots
    };
    let ino = |path: &str| merged.walk(path).unwrap();
    let dot = |name: &[u8], ino| (name.to_vec(), ino, Kind::Dir);
    assert_eq!(dots(""), [dot(b".", ROOT), dot(b"..", ROOT)]);
    assert_eq!(
        dots("dir/sub"),
        [dot(b".", ino("dir/sub")), dot(b"..", ino("dir"))]
    );
    merged
        .rename(
            "dir/sub",
            "empty/sub",
            cvmfs_union::union::api::RenameKind::Replace,
        )
        .unwrap();
    assert_eq!(
        dots("empty/sub"),
        [dot(b".", ino("empty/sub")), dot(b"..", ino("empty"))]
    );
}

#[test]
fn readdirplus_counts_what_it_passes() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let before = merged.union.nodes();
    let dir = dir(&merged, "");
    let mut seen = Vec::new();
    let listed = merged.union.readdirplus(dir, 0, &mut |entry, attr| {
        assert_eq!((entry.ino, entry.kind), (attr.ino, attr.kind));
        seen.push((entry.name.to_vec(), *attr));
        true
    });
    listed.unwrap();
    for (name, attr) in &seen[2..] {
        assert_eq!(merged.union.getattr(attr.ino, None).unwrap(), *attr);
        let name = String::from_utf8(name.clone()).unwrap();
        assert_eq!(merged.stat(&name).unwrap(), *attr);
        merged.union.forget(attr.ino, 1);
    }
    merged.forget();
    assert_eq!(merged.union.nodes(), before);
}

/// How many listings of layers were asked for.
fn listed(merged: &Merged) -> u64 {
    let layers = merged.union.counts().layers;
    let asked = layers.iter().flat_map(|layer| &layer.asked);
    let lists = asked.filter(|(ask, _)| *ask == Ask::List);
    lists.map(|(_, seen)| seen.count).sum()
}

/// To count the subdirectories of what many layers hold, each of them would have to be listed.
#[test]
fn link_counts_that_cost_much_are_left_out_of_a_listing() {
    for layers in [7, 8] {
        let stack = Stack::new(layers);
        for layer in 0..layers {
            stack
                .lower(layer)
                .with_file(&format!("dir/sub{layer}/f"), "");
        }
        let merged = stack.mount();
        let list = || {
            let mut found = None;
            let mut each = |entry: &DirEntry<'_>, attr: &Attr| {
                if entry.name == b"dir" {
                    found = Some((entry.ino, entry.partial, *attr));
                }
                true
            };
            merged.union.readdirplus(ROOT, 0, &mut each).unwrap();
            found.unwrap()
        };
        let before = listed(&merged);
        let (ino, partial, first) = list();
        assert_eq!(partial, layers == 8);
        let asked = listed(&merged) - before;
        assert_eq!(asked, if partial { 0 } else { layers as u64 });
        let attr = merged.union.getattr(ino, None).unwrap();
        assert_eq!(attr.nlink, 2 + layers as u32);
        let whole = Attr {
            nlink: attr.nlink,
            ..first
        };
        assert_eq!(whole, attr);
        // It is known now.
        assert_eq!(list(), (ino, false, attr));
    }
}

#[test]
fn readdir_counts_nothing() {
    let stack = Stack::new(2);
    let merged = large(&stack, 50);
    merged.forget();
    let before = merged.union.nodes();
    let dir = dir(&merged, "dir");
    assert_eq!(some(&merged, dir, 0, 1000).0.len(), 52);
    merged.forget();
    assert_eq!(merged.union.nodes(), before);
}

#[test]
fn a_removed_directory_lists_nothing() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let dir = dir(&merged, "empty");
    merged.rmdir("empty").unwrap();
    merged.mkdir("empty", 0o755).unwrap();
    merged.write("empty/new", b"").unwrap();
    assert_eq!(some(&merged, dir, 0, 100).0, [""; 0]);
}

/// On CVMFS a listing tells the numbers of all but files with several names, so no layer is asked for
/// attributes, and the numbers are those that a lookup finds.
#[test]
fn names_alone_have_their_numbers() {
    let stack = Stack::new(2);
    for lower in stack.lowers() {
        lower.with_xattr("", "user.fqrn", "images.example.org");
        lower.with_file("dir/sub/f", "");
    }
    let below = stack.lower(1);
    for name in ["copied", "moved", "removed", "hidden", "replaced", "left"] {
        below.with_file(&format!("dir/{name}"), name);
    }
    below.with_symlink("dir/symlink", "left");
    below.with_file("dir/linked", "");
    below.with_link("dir/linked", "dir/other");
    stack
        .lower(0)
        .with_wh("dir/hidden")
        .with_file("dir/replaced", "");
    let merged = stack.mount();
    let asked = || -> u64 {
        let layers = merged.union.counts().layers;
        let asked = layers.iter().flat_map(|layer| &layer.asked);
        let stats = asked.filter(|(ask, _)| *ask == Ask::Stat);
        stats.map(|(_, seen)| seen.count).sum()
    };
    let dir = dir(&merged, "dir");
    let before = asked();
    assert_eq!(some(&merged, dir, 0, 100).0.len(), 2 + 9);
    assert_eq!(asked() - before, 2, "those with two names");
    let names = |merged: &Merged| merged.names("dir").unwrap();
    assert_eq!(names(&merged).len(), 9);

    merged.chmod("dir/copied", 0o600).unwrap();
    merged.chmod("dir/other", 0o600).unwrap();
    merged.unlink("dir/removed").unwrap();
    merged
        .rename("dir/moved", "dir/new", RenameKind::Replace)
        .unwrap();
    merged
        .rename("dir/sub", "dir/renamed", RenameKind::Replace)
        .unwrap();
    merged.link("dir/left", "dir/again").unwrap();
    merged.write("dir/moved", b"").unwrap();
    let seen = names(&merged);
    let want = [
        "again", "copied", "left", "linked", "moved", "new", "other", "renamed", "replaced",
        "symlink",
    ];
    assert_eq!(seen, want);
    merged.forget();
    assert_eq!(names(&merged), want);
    drop(merged);
    assert_eq!(names(&stack.mount()), want);
}

/// On CVMFS the attributes of a directory's names come with them if those of the last ones were wanted: such
/// as a layer was not asked for, and would have to be.
#[test]
fn attributes_are_wanted_of_what_was_listed_alone() {
    const EACH: usize = 10;
    let stack = Stack::new(1);
    let lower = stack.lower(0);
    lower.with_xattr("", "user.fqrn", "images.example.org");
    for i in 0..EACH {
        for dir in ["all", "dirs", "more"] {
            lower.with_file(&format!("{dir}/file{i}"), "");
            lower.with_file(&format!("{dir}/dir{i}/f"), "");
        }
    }
    // Which directory is listed, what of it is looked up, and whether that tells of a wish.
    for (path, looked_up, wanted) in [
        ("all", &["file", "dir"][..], true),
        ("dirs", &["dir"], false),
        ("more", &["new"], false),
    ] {
        let merged = stack.mount();
        let in_upper = (0..EACH).map(|i| format!("more/new{i}"));
        in_upper.for_each(|path| merged.write(&path, b"").unwrap());
        let ino = dir(&merged, path);
        some(&merged, ino, 0, 1000);
        for name in looked_up {
            (0..EACH).for_each(|i| {
                dir(&merged, &format!("{path}/{name}{i}"));
            });
        }
        let gives = merged.union.gives_attributes(ino).unwrap();
        assert_eq!(gives, wanted, "{path}");
    }
}

/// The names that a listing begins with, attributes and all, and the last cookie.
fn beginning(merged: &Merged, dir: Ino, room: usize) -> (Vec<String>, u64) {
    let (mut names, mut found, mut last) = (Vec::new(), Vec::new(), 0);
    let begun = merged.union.begin_names(dir, &mut |entry, attr| {
        if names.len() == room {
            return false;
        }
        assert_eq!((entry.kind, attr.kind), (Kind::Dir, Kind::Dir));
        names.push(String::from_utf8(entry.name.to_vec()).unwrap());
        if entry.cookie > 2 {
            found.push(*attr);
        }
        last = entry.cookie;
        true
    });
    begun.unwrap();
    for attr in found {
        merged.counted(attr);
    }
    (names, last)
}

/// Who goes down a tree has the directories with the beginning of a listing, and the other names by what follows.
#[test]
fn a_listing_of_names_begins_with_the_directories() {
    for cvmfs in [false, true] {
        let stack = Stack::new(2);
        for name in ["a", "d2", "z"] {
            stack.lower(1).with_file(&format!("dir/{name}"), "");
        }
        stack.lower(1).with_dir("dir/m", 0o755);
        stack
            .lower(0)
            .with_dir("dir/b", 0o755)
            .with_dir("dir/x", 0o755);
        // A directory that the upper hides by a file, one that it removes, and one of its own.
        for name in ["c", "e"] {
            stack.lower(0).with_dir(&format!("dir/{name}"), 0o755);
        }
        if cvmfs {
            for lower in stack.lowers() {
                lower.with_xattr("", "user.fqrn", "images.example.org");
            }
        }
        let merged = stack.mount();
        merged.rmdir("dir/e").unwrap();
        merged.mkdir("dir/own", 0o755).unwrap();
        let ino = dir(&merged, "dir");
        let expected: &[&str] = match cvmfs {
            true => &[".", ".."],
            false => &[".", "..", "b", "c", "m", "x"],
        };
        for room in 1..=expected.len() {
            let (mut names, last) = beginning(&merged, ino, room);
            assert_eq!(names, expected[..room]);
            names.extend(some(&merged, ino, last, 100).0);
            assert_eq!(
                names,
                [".", "..", "b", "c", "m", "x", "a", "d2", "z", "own"],
                "{cvmfs}, {room}"
            );
        }
        merged.rmdir("dir/c").unwrap();
        merged.write("dir/c", b"").unwrap();
        let (names, last) = some(&merged, ino, 0, 100);
        assert_eq!(names.len(), 10);
        assert_eq!(some(&merged, ino, last, 100).0.len(), 0);
    }
}
