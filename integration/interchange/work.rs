//! Two layers, and a day's work on them: deletions, renames, copy-ups, replaced directories, links.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::support::files::file;
use crate::support::script::all_old;
use crate::support::sys::{self, Errno};
use crate::support::{Fixture, System, Tree, initial_root, text};

/// The layers, topmost first.
pub fn layers(f: &mut Fixture) {
    let (top, base) = (f.lower(), f.lower());
    fill(&top, &base);
}

pub fn fill(top: &Path, base: &Path) {
    for dir in [
        "keep",
        "gone",
        "replaced",
        "again",
        "moved",
        "outer/inner",
        "deep/a/b/c",
        "near",
    ] {
        for name in ["one", "two", "sub/three"] {
            file(base.join(dir).join(name), "base");
        }
    }
    for dir in ["keep", "gone", "replaced", "moved", "near"] {
        file(top.join(dir).join("top"), "top");
        file(top.join(dir).join("two"), "top");
    }
    for name in [
        "edited",
        "deleted",
        "renamed",
        "mode",
        "owner",
        "times",
        "marked",
        "cut",
        "file to dir",
        "over",
    ] {
        file(
            base.join("files").join(name),
            "base, with some more to read",
        );
    }
    file(base.join("links/one"), "linked");
    for name in ["links/two", "links/untouched"] {
        sys::link(base.join("links/one"), base.join(name)).unwrap();
    }
    sys::symlink("one", base.join("keep/link")).unwrap();
    sys::setxattr(base.join("files/mode"), "user.kept", b"value", 0).unwrap();
    all_old(top);
    all_old(base);
}

/// Renames a directory as mv does where rename refuses: not at all, for the comparison.
fn rename_dir(f: &Fixture, from: &str, to: &str) {
    match sys::rename(f.at(from), f.at(to), 0) {
        Err(Errno::EXDEV) => {}
        other => other.unwrap_or_else(|e| panic!("rename {from} to {to}: {e}")),
    }
}

/// The first of the paths that is there: a directory may have stayed where it was.
fn either(f: &Fixture, paths: [&str; 2]) -> PathBuf {
    let found = paths
        .map(|path| f.at(path))
        .into_iter()
        .find(|p| p.exists());
    found.unwrap_or_else(|| panic!("none of {paths:?}"))
}

pub fn day(f: &Fixture) {
    let at = |path: &str| f.at(path);
    // Deletions.
    for path in [
        "files/deleted",
        "keep/two",
        "keep/top",
        "deep/a/b/c/sub/three",
    ] {
        sys::unlink(at(path)).unwrap();
    }
    fs::remove_dir_all(at("gone")).unwrap();
    sys::unlink(at("keep/link")).unwrap();
    sys::symlink("two", at("keep/link")).unwrap();
    // Directories in the place of others, and what was something else.
    for dir in ["replaced", "again"] {
        fs::remove_dir_all(at(dir)).unwrap();
        sys::mkdir(at(dir), 0o750).unwrap();
    }
    file(at("again/new/file"), "made");
    sys::unlink(at("files/file to dir")).unwrap();
    file(at("files/file to dir/inside"), "made");
    fs::remove_dir_all(at("near/sub")).unwrap();
    file(at("near/sub"), "a file now");
    // Copy-ups.
    fs::write(at("files/edited"), "changed").unwrap();
    sys::chmod(at("files/mode"), 0o600).unwrap();
    sys::utimens(at("files/times"), (5, 6), (1_000_000_007, 8)).unwrap();
    sys::setxattr(at("files/marked"), "user.mark", b"mine", 0).unwrap();
    sys::truncate(at("files/cut"), 4).unwrap();
    file(at("deep/a/b/c/new"), "made");
    // Renames: of what is below, of what was made, over what is below, there and back.
    sys::rename(at("files/renamed"), at("keep/arrived"), 0).unwrap();
    file(at("files/temporary"), "saved");
    sys::rename(at("files/temporary"), at("files/over"), 0).unwrap();
    sys::rename(at("near/one"), at("near/away"), 0).unwrap();
    sys::rename(at("near/away"), at("near/one"), 0).unwrap();
    // A metadata copy that moves.
    sys::chmod(at("deep/a/b/c/one"), 0o640).unwrap();
    sys::rename(at("deep/a/b/c/one"), at("deep/moved"), 0).unwrap();
    // Directories: beside, elsewhere, one in another, changed afterwards.
    rename_dir(f, "near", "beside");
    rename_dir(f, "outer/inner", "keep/inner");
    rename_dir(f, "moved", "outer/moved");
    rename_dir(f, "outer", "last");
    let near = either(f, ["beside", "near"]);
    sys::unlink(near.join("two")).unwrap();
    file(near.join("later"), "made");
    let inner = either(f, ["keep/inner", "outer/inner"]);
    fs::write(inner.join("one"), "changed").unwrap();
    sys::mkdir(at("made"), 0o755).unwrap();
    sys::rename(at("made"), at("keep/made"), 0).unwrap();
    file(at("keep/made/file"), "made");
    // Links.
    fs::write(at("links/one"), "changed").unwrap();
    sys::chmod(at("links/two"), 0o640).unwrap();
    file(at("links/new"), "made");
    sys::link(at("links/new"), at("keep/new link")).unwrap();
    sys::link(at("files/times"), at("keep/times too")).unwrap();
    // Other objects and names.
    sys::mknod(at("keep/pipe"), libc::S_IFIFO | 0o640, 0).unwrap();
    sys::symlink("x".repeat(300), at("keep/long link")).unwrap();
    file(at("keep/\u{e4}\u{1F980} \\ \"\n"), "odd");
    file(f.at("keep").join("n".repeat(250)), "long");
    if initial_root() {
        sys::lchown(at("files/owner"), 7, 8).unwrap();
        sys::lchown(at("keep/link"), 9, 9).unwrap();
        sys::mknod(at("keep/null"), libc::S_IFCHR | 0o666, libc::makedev(1, 3)).unwrap();
        sys::chmod(at("files/edited"), 0o4755).unwrap();
    }
    sys::utimens(at("keep"), (1, 2), (1_100_000_000, 5)).unwrap();
}

/// Changes on top of the changes.
pub fn next_day(f: &Fixture) {
    let at = |path: &str| f.at(path);
    fs::remove_dir_all(at("again")).unwrap();
    file(at("gone/reborn"), "made");
    file(at("files/deleted"), "made again");
    sys::unlink(at("keep/one")).unwrap();
    fs::write(at("deep/a/b/c/new"), "changed").unwrap();
    fs::write(at("files/mode"), "changed").unwrap();
    sys::rename(at("files/cut"), at("replaced/cut"), 0).unwrap();
    sys::unlink(at("keep/new link")).unwrap();
    let near = either(f, ["beside", "near"]);
    file(near.join("two"), "made again");
    fs::remove_dir_all(near).unwrap();
}

/// What is to be the same for both: without what is known to look different.
pub fn comparable(writer: System, reader: System, tree: &Tree) -> Tree {
    let mut tree = tree.clone();
    // The index of hard links stays behind in the work directory.
    let indexed = |path: &[u8]| path.starts_with(b"links/") && path != b"links/new";
    tree.0.retain(|path, _| !indexed(path));
    let fo2 = [writer, reader].contains(&System::FuseOverlayfs2);
    if fo2 {
        // A directory that it makes where one was deleted shows the deleted names after a remount.
        let revived = |path: &[u8]| path.starts_with(b"gone/") && path != b"gone/reborn";
        tree.0.retain(|path, _| !revived(path));
    }
    for node in tree.0.values_mut() {
        // Our marks, which another union shows as attributes.
        let mark = |key: &[u8]| String::from_utf8_lossy(key).contains(".cvmfs-union.");
        node.xattrs.retain(|key, _| !mark(key));
        if fo2 {
            // It counts the links that it has seen.
            node.nlink = 0;
        }
    }
    tree
}

/// By what the upper says what it says: the kinds of whiteouts, and the marks with their values, of
/// a redirect only whether it is absolute.
pub fn marks(upper: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (path, node) in &Tree::read(upper).0 {
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or_default();
        if node.mode & libc::S_IFMT == libc::S_IFCHR && node.rdev == 0 {
            found.insert("device 0:0".into());
        }
        if name == b".wh..wh..opq" {
            found.insert(".wh..wh..opq".into());
        } else if name.starts_with(b".wh.") {
            found.insert(".wh.NAME".into());
        }
        for (key, value) in &node.xattrs {
            let (key, value) = (text(key), text(value));
            let value = match key.rsplit('.').next() {
                Some("opaque") => value.as_str(),
                Some("redirect") if value.starts_with('/') => "absolute",
                Some("redirect") => "relative",
                _ => "",
            };
            if key.contains(".overlay.") || key.contains(".fuseoverlayfs.") {
                found.insert(format!("{key} {value}").trim().to_owned());
            }
        }
    }
    found
}

/// That the upper has the marks that the test is about.
pub fn check_marks(writer: System, f: &Fixture) {
    let found = marks(&f.upper);
    let wh = f.options.iter().any(|option| option == "wh");
    let own = if initial_root() { "trusted" } else { "user" };
    let opaque = format!("{own}.overlay.opaque y");
    let redirects = [
        "trusted.overlay.metacopy",
        "trusted.overlay.redirect absolute",
        "trusted.overlay.redirect relative",
    ];
    let mut expected = match writer {
        System::Ours if wh => vec![".wh.NAME", ".wh..wh..opq"],
        System::FuseOverlayfs1 if initial_root() => vec![&*opaque, ".wh.NAME", ".wh..wh..opq"],
        System::FuseOverlayfs1 => vec!["user.fuseoverlayfs.opaque y", ".wh.NAME", ".wh..wh..opq"],
        System::FuseOverlayfs2 => vec![&*opaque, ".wh..wh..opq"],
        _ => vec![&*opaque],
    };
    if !wh {
        expected.push("device 0:0");
    }
    if writer == System::Overlayfs && initial_root() {
        expected.extend(redirects);
    }
    for mark in expected {
        assert!(found.contains(mark), "no {mark} in {found:?}");
    }
    let beyond = |mark: &String| mark.contains("redirect") || mark.contains("metacopy");
    if writer == System::Ours {
        assert!(!found.iter().any(beyond), "not portable: {found:?}");
    }
}
