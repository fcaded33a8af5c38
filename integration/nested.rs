//! Layers that hold other mounts.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::files::{ino, names, read};
use crate::support::stats::Stats;
use crate::support::sys;
use crate::support::volume::Volume;
use crate::support::{Fixture, Mounted, Scratch, require_all, run, text};

fn tmpfs(dir: &Path) -> Mounted {
    let output = run(Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(dir));
    assert!(output.status.success(), "{}", text(&output.stderr));
    Mounted(dir.to_owned())
}

/// A layer with a file system of its own on `one` and on `two`, whose files are numbered alike.
fn layer(place: &Scratch) -> Option<[Mounted; 2]> {
    if !require_all(&["root", "fuse"]) {
        return None;
    }
    let lower = place.dir("lower");
    fs::write(lower.join("file"), "outside").unwrap();
    Some(["one", "two"].map(|name| {
        let dir = lower.join(name);
        fs::create_dir(&dir).unwrap();
        let mounted = tmpfs(&dir);
        fs::write(dir.join("file"), name).unwrap();
        sys::link(dir.join("file"), dir.join("again")).unwrap();
        mounted
    }))
}

fn mounted(place: &Scratch, options: &[&str]) -> Fixture {
    let mut f = Fixture::new("nested");
    f.lowers.push(place.path().join("lower"));
    f.options = options.iter().map(|o| (*o).to_owned()).collect();
    f.mount();
    f
}

#[test]
fn files_of_the_same_number_are_not_one() {
    let place = Scratch::new("nested");
    let Some(_mounts) = layer(&place) else {
        return;
    };
    let mut f = mounted(&place, &[]);
    let number = |f: &Fixture, path: &str| ino(f.at(path));
    let lower = |path: &str| ino(place.path().join("lower").join(path));
    assert_eq!(
        lower("one/file"),
        lower("two/file"),
        "or this shows nothing"
    );
    for _ in 0..2 {
        for name in ["one", "two"] {
            for path in ["file", "again"] {
                assert_eq!(read(f.at(name).join(path)), name, "{path}");
            }
            let [file, again] = ["file", "again"].map(|path| format!("{name}/{path}"));
            assert_eq!(number(&f, &file), number(&f, &again), "{name}");
        }
        assert_ne!(number(&f, "one/file"), number(&f, "two/file"));
        f.remount();
    }
    fs::write(f.at("one/file"), "changed").unwrap();
    assert_eq!(
        [read(f.at("one/again")), read(f.at("two/again"))],
        ["changed", "two"]
    );
}

/// By its number a file with several names is found again in the upper, also if meanwhile something was mounted in the layer.
#[test]
fn names_of_one_file_stay_so_when_something_is_mounted() {
    let mut f = Fixture::new("nested-names");
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let lower = f.lower();
    fs::create_dir(lower.join("dir")).unwrap();
    fs::write(lower.join("file"), "layer").unwrap();
    sys::link(lower.join("file"), lower.join("again")).unwrap();
    f.mount();
    fs::write(f.at("file"), "upper").unwrap();
    let number = ino(f.at("file"));
    f.umount();
    let _mounted = tmpfs(&lower.join("dir"));
    f.mount();
    assert_eq!(read(f.at("again")), "upper");
    assert_eq!([ino(f.at("again")), ino(f.at("file"))], [number; 2]);
    f.umount();
}

/// What a listing of a layer says of a mountpoint is the number of what lies under it.
#[test]
fn listings_have_the_numbers_of_what_is_mounted() {
    let place = Scratch::new("nested-listed");
    let Some(_mounts) = layer(&place) else {
        return;
    };
    let lower = place.path().join("lower");
    fs::write(lower.join("under"), "under").unwrap();
    let bound = run(Command::new("mount")
        .arg("--bind")
        .args([lower.join("file"), lower.join("under")]));
    assert!(bound.status.success(), "{}", text(&bound.stderr));
    let _bound = Mounted(lower.join("under"));
    let f = mounted(&place, &[]);
    for dir in ["", "one", "two"] {
        let entries = sys::readdir(f.at(dir)).unwrap();
        assert!(entries.len() >= 4, "{dir}");
        for entry in entries.iter().filter(|entry| entry.name != b"..") {
            let path = f.at(dir).join(text(&entry.name));
            assert_eq!(entry.ino, ino(&path), "{path:?}");
        }
    }
    assert_eq!(read(f.at("under")), "outside");
    assert_ne!(ino(f.at("under")), ino(f.at("file")));
}

/// Parts of a btrfs number their inodes alike, and are no mounts.
#[test]
fn parts_of_a_btrfs_are_told_apart() {
    if !require_all(&["root", "fuse", "loop", "btrfs"]) {
        return;
    }
    let volume = Volume::new("btrfs");
    let lower = volume.path().join("lower");
    fs::create_dir(&lower).unwrap();
    for name in ["one", "two"] {
        let part = lower.join(name);
        let made = run(Command::new("btrfs")
            .args(["subvolume", "create"])
            .arg(&part));
        assert!(made.status.success(), "{}", text(&made.stderr));
        fs::write(part.join("file"), name).unwrap();
    }
    fs::write(lower.join("file"), "outside").unwrap();
    fs::create_dir(lower.join("plain")).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(lower.join("plain").join(name), "").unwrap();
    }
    assert_eq!(
        ino(lower.join("one/file")),
        ino(lower.join("two/file")),
        "or this shows nothing"
    );
    let mut f = Fixture::new("parts");
    f.lowers.push(lower);
    f.mount();
    // It is a local one: its listings tell the numbers. What is in the parts has to be looked at.
    for (dir, stats) in [("plain", 1), ("one", 2)] {
        let list = || sys::readdir(f.at(dir)).unwrap();
        let (asked, _) = Stats::of(&f.mnt).asked_during(list);
        assert_eq!(asked[0]["stat"], stats, "{dir}: {asked:?}");
    }
    for dir in ["one", "two", ""] {
        let entries = sys::readdir(f.at(dir)).unwrap();
        let entry = entries.iter().find(|entry| entry.name == b"file").unwrap();
        assert_eq!(entry.ino, ino(f.at(dir).join("file")), "{dir}");
    }
    assert_ne!(ino(f.at("one/file")), ino(f.at("two/file")));
    assert_eq!(
        [read(f.at("one/file")), read(f.at("two/file"))],
        ["one", "two"]
    );
    f.umount();
}

/// The kernel is given files by a view of the layer in which no other mounts show.
#[test]
fn they_stay_when_the_kernel_is_given_files() {
    let place = Scratch::new("nested-passed");
    if !require_all(&["passthrough"]) {
        return;
    }
    let Some(_mounts) = layer(&place) else {
        return;
    };
    let content = vec![b'x'; 1 << 20];
    for path in ["large", "one/large"] {
        fs::write(place.path().join("lower").join(path), &content).unwrap();
    }
    let f = mounted(&place, &["--passthrough=all", "--writeback=off"]);
    let reads = |path: &Path| assert!(fs::read(path).unwrap() == content, "{path:?}");
    for path in ["large", "one/large", "large"] {
        reads(&f.at(path));
        assert_eq!(names(f.at("one")), ["again", "file", "large"], "{path}");
        assert_eq!(names(f.at("two")), ["again", "file"], "{path}");
    }
    // Under the mount lies another file of that name, which the view shows.
    let under = place.dir("under");
    fs::create_dir(under.join("three")).unwrap();
    fs::write(under.join("three/large"), vec![b'u'; content.len()]).unwrap();
    let _three = tmpfs(&under.join("three"));
    fs::write(under.join("three/large"), &content).unwrap();
    let mut f = Fixture::new("nested-under");
    f.lowers.push(under);
    f.options = vec!["--passthrough=all".into(), "--writeback=off".into()];
    f.mount();
    reads(&f.at("three/large"));
}
