//! Uppers on different file systems: all serve the same changes, whatever they can store.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::sys::{self, Errno};
use crate::support::volume::{Volume, succeed};
use crate::support::{Compare, Fixture, Mounted, Tree, require, require_all, text};

fn file(path: impl AsRef<Path>, content: &str) {
    fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    sys::make(path, content.as_bytes()).unwrap();
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}

fn fill(top: &Path, base: &Path) {
    for path in [
        "edited",
        "deleted",
        "hidden",
        "d/f",
        "d/g",
        "d/mode",
        "d/.hidden",
    ] {
        file(base.join(path), "base");
    }
    for path in [
        "gone/x",
        "gone/sub/y",
        "replaced/old",
        "moved/m",
        "moved/sub/n",
        "opaque/o",
    ] {
        file(base.join(path), "base");
    }
    file(top.join("d/h"), "top");
    file(top.join("moved/t"), "top");
    file(top.join(".wh.hidden"), "");
    sys::symlink("d/f", base.join("link")).unwrap();
    sys::lchown(base.join("d/g"), 7, 8).unwrap();
    sys::utimens(base.join("d/g"), (1, 2), (1_000_000, 5)).unwrap();
}

/// The changes; without attributes a lower directory cannot be renamed, and says so.
fn change(f: &Fixture, redirects: bool) {
    fs::write(f.at("edited"), "edited").unwrap();
    sys::unlink(f.at("deleted")).unwrap();
    fs::remove_dir_all(f.at("gone")).unwrap();
    fs::remove_dir_all(f.at("replaced")).unwrap();
    sys::mkdir(f.at("replaced"), 0o755).unwrap();
    file(f.at("replaced/new"), "new");
    file(f.at("created/sub/file"), "created");
    sys::rename(f.at("d/g"), f.at("g"), 0).unwrap();
    sys::chmod(f.at("d/mode"), 0o600).unwrap();
    sys::link(f.at("d/f"), f.at("linked")).unwrap();
    sys::rename(f.at("link"), f.at("created/link"), 0).unwrap();
    let renamed = sys::rename(f.at("moved"), f.at("created/moved"), 0);
    assert_eq!(renamed, if redirects { Ok(()) } else { Err(Errno::EXDEV) });
}

/// Names that are marks in some uppers: of nothing, of what a lower holds, of a whole directory.
fn make_marker_names(f: &Fixture) {
    file(f.at(".wh.mine"), "mine");
    file(f.at("d/.wh.h"), "mine");
    file(f.at("opaque/.wh..wh..opq"), "mine");
    file(f.at("replaced/.wh.new"), "mine");
    sys::mkdir(f.at("created/.wh.dir"), 0o755).unwrap();
    file(f.at("created/.wh.dir/.wh."), "mine");
}

fn check(f: &Fixture, redirects: bool) {
    let names = |path: &str| sys::names(f.at(path)).unwrap();
    let mut root = vec![
        ".wh.mine", "created", "d", "edited", "g", "linked", "moved", "opaque", "replaced",
    ];
    let mut created = vec![".wh.dir", "link", "moved", "sub"];
    let moved = if redirects { "created/moved" } else { "moved" };
    if redirects {
        root.retain(|name| *name != "moved");
    } else {
        created.retain(|name| *name != "moved");
    }
    assert_eq!(names(""), root);
    assert_eq!(names("created"), created);
    assert_eq!(names("created/.wh.dir"), [".wh."]);
    assert_eq!(names("d"), [".hidden", ".wh.h", "f", "h", "mode"]);
    assert_eq!(names("opaque"), [".wh..wh..opq", "o"]);
    assert_eq!(names("replaced"), [".wh.new", "new"]);
    assert_eq!(names(moved), ["m", "sub", "t"]);
    assert_eq!(read(f.at(moved).join("sub/n")), "base");
    check_files(f);
}

fn check_files(f: &Fixture) {
    let contents = [
        ("edited", "edited"),
        ("g", "base"),
        ("d/mode", "base"),
        ("linked", "base"),
        ("d/h", "top"),
        ("d/.wh.h", "mine"),
        ("opaque/o", "base"),
        ("replaced/new", "new"),
        ("created/sub/file", "created"),
        ("created/.wh.dir/.wh.", "mine"),
    ];
    for (path, content) in contents {
        assert_eq!(read(f.at(path)), content, "{path}");
    }
    assert_eq!(sys::readlink(f.at("created/link")).unwrap(), b"d/f");
    let g = sys::stat(f.at("g")).unwrap();
    assert_eq!(
        (g.st_uid, g.st_gid, g.st_mtime, g.st_mtime_nsec),
        (7, 8, 1_000_000, 5)
    );
    assert_eq!(sys::stat(f.at("d/mode")).unwrap().st_mode & 0o777, 0o600);
    let (one, other) = (
        sys::stat(f.at("d/f")).unwrap(),
        sys::stat(f.at("linked")).unwrap(),
    );
    assert_eq!(
        (one.st_ino, one.st_nlink, other.st_nlink),
        (other.st_ino, 2, 2)
    );
    for name in ["deleted", "gone", "hidden", "link", "d/g", "replaced/old"] {
        assert_eq!(sys::lstat(f.at(name)).err(), Some(Errno::ENOENT), "{name}");
    }
}

/// The marker names go again, and nothing else with them.
fn remove_marker_names(f: &Fixture) {
    for path in [
        ".wh.mine",
        "d/.wh.h",
        "opaque/.wh..wh..opq",
        "replaced/.wh.new",
    ] {
        sys::unlink(f.at(path)).unwrap();
    }
    sys::unlink(f.at("deleted")).unwrap_err();
    file(f.at("deleted"), "again");
}

fn check_removed(f: &Fixture) {
    assert_eq!(
        sys::names(f.at("d")).unwrap(),
        [".hidden", "f", "h", "mode"]
    );
    assert_eq!(sys::names(f.at("opaque")).unwrap(), ["o"]);
    assert_eq!(sys::names(f.at("replaced")).unwrap(), ["new"]);
    assert_eq!(read(f.at("deleted")), "again");
    assert_eq!(sys::lstat(f.at(".wh.mine")).err(), Some(Errno::ENOENT));
}

/// The scenario on a volume of this kind. `attributes`: the kind stores extended ones, with which
/// inode numbers survive a remount and directories of a lower can be renamed.
fn scenario(kind: &str, attributes: bool, redirects: bool, options: &[&str]) {
    let volume = Volume::new(kind);
    let mut f = Fixture::new(kind);
    (f.upper, f.work) = (volume.dir("upper"), volume.dir("work"));
    f.options = options.iter().map(|option| (*option).to_owned()).collect();
    let (top, base) = (f.lower(), f.lower());
    fill(&top, &base);
    f.mount();
    change(&f, redirects);
    make_marker_names(&f);
    check(&f, redirects);
    let before = Tree::read(&f.mnt);
    let how = Compare {
        ino: attributes,
        ..Compare::BYTES
    };
    for _ in 0..2 {
        f.remount();
        check(&f, redirects);
        assert_eq!(before.difference(&Tree::read(&f.mnt), how), None);
    }
    remove_marker_names(&f);
    for _ in 0..2 {
        check_removed(&f);
        f.remount();
    }
}

#[test]
fn tmpfs() {
    if require_all(&["root", "fuse"]) {
        scenario("tmpfs", true, true, &[]);
    }
}

#[test]
fn ext4() {
    if require_all(&["root", "fuse", "loop"]) {
        scenario("ext4", true, true, &[]);
    }
}

#[test]
fn xfs() {
    if require_all(&["root", "fuse", "loop", "xfs"]) {
        scenario("xfs", true, true, &[]);
    }
}

#[test]
fn btrfs() {
    if require_all(&["root", "fuse", "loop", "btrfs"]) {
        scenario("btrfs", true, true, &[]);
    }
}

/// No attributes at all: deletions are `.wh.` names, and numbers last as long as the mount.
#[test]
fn ramfs() {
    if require_all(&["root", "fuse"]) {
        scenario("ramfs", false, false, &[]);
    }
}

#[test]
fn marker_files() {
    if require_all(&["root", "fuse"]) {
        scenario("tmpfs", true, true, &["--whiteouts", "wh"]);
    }
}

#[test]
fn portable() {
    if require("root") && require("fuse") {
        scenario("tmpfs", true, false, &["--portable-upper"]);
    }
}

/// ramfs keeps the number of a copied-up file while it is mounted.
#[test]
fn numbers_without_attributes() {
    if !require_all(&["root", "fuse"]) {
        return;
    }
    let volume = Volume::new("ramfs");
    let mut f = Fixture::new("numbers-ramfs");
    (f.upper, f.work) = (volume.dir("upper"), volume.dir("work"));
    let lower = f.lower();
    fill(&lower, &lower);
    f.mount();
    let paths = ["", "d", "d/f", "d/g", "edited", "opaque"];
    let numbers = || paths.map(|path| sys::lstat(f.at(path)).unwrap().st_ino);
    let before = numbers();
    for path in ["d/f", "edited"] {
        fs::write(f.at(path), "new").unwrap();
    }
    sys::chmod(f.at("d/g"), 0o600).unwrap();
    sys::chmod(f.at("opaque"), 0o700).unwrap();
    assert_eq!(numbers(), before);
    // The listing looks each name up anew.
    for entry in sys::readdir(f.at("d")).unwrap() {
        let name = text(&entry.name);
        if name != ".." {
            assert_eq!(entry.ino, sys::lstat(f.at("d").join(name)).unwrap().st_ino);
        }
    }
    assert_eq!(numbers(), before);
}

/// Two names of one file of a lower: a change through one shows through both, also after a remount.
fn hard_links(kind: &str) {
    let volume = Volume::new(kind);
    let mut f = Fixture::new("hardlinks");
    (f.upper, f.work) = (volume.dir("upper"), volume.dir("work"));
    let lower = f.lower();
    file(lower.join("d/one"), "base");
    sys::link(lower.join("d/one"), lower.join("two")).unwrap();
    f.mount();
    fs::write(f.at("two"), "changed").unwrap();
    let check = |f: &Fixture| {
        let [one, two] = ["d/one", "two"].map(|path| sys::stat(f.at(path)).unwrap());
        assert_eq!(
            [read(f.at("d/one")), read(f.at("two"))],
            ["changed", "changed"]
        );
        assert_eq!((one.st_ino, one.st_nlink, two.st_nlink), (two.st_ino, 2, 2));
    };
    check(&f);
    f.remount();
    check(&f);
    fs::write(f.at("d/one"), "again").unwrap();
    assert_eq!(read(f.at("two")), "again");
}

#[test]
fn hard_links_on_tmpfs() {
    if require_all(&["root", "fuse"]) {
        hard_links("tmpfs");
    }
}

#[test]
fn hard_links_on_ramfs() {
    if require_all(&["root", "fuse"]) {
        hard_links("ramfs");
    }
}

/// An overlayfs over two file systems numbers its directories by itself, and its files as the file system of
/// its upper does: both from 1 on.
#[test]
fn overlayfs_of_two_file_systems() {
    if !require_all(&["root", "fuse", "overlayfs"]) {
        return;
    }
    let volume = Volume::new("tmpfs");
    let mut f = Fixture::new("overlay");
    let (below, over) = (f.scratch().join("below"), volume.dir("root"));
    fs::create_dir(&below).unwrap();
    let options = format!(
        "xino=off,lowerdir={},upperdir={},workdir={}",
        below.display(),
        volume.dir("upper").display(),
        volume.dir("work").display()
    );
    succeed(
        Command::new("mount")
            .args(["-t", "overlay", "overlay", "-o", &options])
            .arg(&over),
    );
    let _mounted = Mounted(over.clone());
    (f.upper, f.work) = (over.join("upper"), over.join("work"));
    for dir in [&f.upper, &f.work] {
        fs::create_dir(dir).unwrap();
    }
    f.lower();
    f.mount();
    let mut numbers = BTreeSet::new();
    for n in 0..50 {
        let (dir, name) = (f.at(format!("dir{n}")), f.at(format!("file{n}")));
        sys::mkdir(&dir, 0o755).unwrap();
        file(&name, "content");
        for path in [dir, name] {
            let number = sys::lstat(&path).unwrap().st_ino;
            assert!(numbers.insert(number), "{number} twice");
        }
    }
    f.remount();
    for n in 0..50 {
        assert_eq!(read(f.at(format!("file{n}"))), "content");
        assert!(sys::names(f.at(format!("dir{n}"))).unwrap().is_empty());
    }
    f.umount();
}
