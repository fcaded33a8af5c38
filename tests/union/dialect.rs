//! How deletions are written, and reading what others wrote.

use cvmfs_union::union::Union;
use cvmfs_union::union::api::{Kind, RenameKind, Whiteouts};
use nix::errno::Errno;

use super::{DIALECTS, sample};
use crate::support::{Fs, Merged, Stack, assert_same, ok};

/// Names that mean something in one dialect or another.
const ODD: [&str; 7] = [
    ".wh.x",
    ".wh.",
    ".wh..wh..opq",
    ".wh..wh.plnk",
    ".wh..wh.u.x",
    ".wh..wh.",
    ".wh.plain",
];

fn deletions(merged: &Merged) {
    merged.unlink("plain").unwrap();
    merged.unlink("dir/sub/deep").unwrap();
    merged.rmdir("empty").unwrap();
    merged.mkdir("empty", 0o755).unwrap();
}

#[test]
fn overlay_whiteouts_are_devices() {
    let stack = Stack::with(2, Whiteouts::Overlay);
    sample(&stack);
    let merged = stack.mount();
    deletions(&merged);
    let upper = stack.upper();
    for path in ["plain", "dir/sub/deep"] {
        let attr = upper.stat(path).unwrap();
        assert_eq!((attr.kind, attr.rdev), (Kind::Char, 0));
    }
    assert_eq!(
        upper
            .getxattr("empty", &crate::support::opaque_key())
            .unwrap(),
        b"y"
    );
    assert_eq!(upper.names("").unwrap(), ["dir", "empty", "plain"]);
}

#[test]
fn wh_whiteouts_are_files() {
    let stack = Stack::with(2, Whiteouts::Wh);
    sample(&stack);
    let merged = stack.mount();
    deletions(&merged);
    let upper = stack.upper();
    for path in [".wh.plain", "dir/sub/.wh.deep", "empty/.wh..wh..opq"] {
        let attr = upper.stat(path).unwrap();
        assert_eq!((attr.kind, attr.size), (Kind::File, 0), "{path}");
    }
    assert!(!upper.exists("plain"));
}

#[test]
fn odd_names_of_users_survive() {
    for whiteouts in DIALECTS {
        for portable in [false, true] {
            let mut stack = Stack::with(2, whiteouts);
            stack.portable = portable;
            sample(&stack);
            let merged = stack.mount();
            for name in ODD {
                merged.write(name, name.as_bytes()).unwrap();
                merged.mkdir(&format!("dir/sub/{name}"), 0o755).unwrap();
            }
            merged.write("x", b"not hidden").unwrap();
            let tree = merged.tree();
            let merged = stack.reopen(merged);
            assert_same(&merged.tree(), &tree, "reopened");
            for name in ODD {
                assert_eq!(merged.read(name).unwrap(), name.as_bytes());
                merged.rename(name, "other", RenameKind::Replace).unwrap();
                merged.rename("other", name, RenameKind::Replace).unwrap();
                merged.unlink(name).unwrap();
                merged.rmdir(&format!("dir/sub/{name}")).unwrap();
            }
            let merged = stack.reopen(merged);
            assert_eq!(merged.read("x").unwrap(), b"not hidden");
            assert_eq!(merged.read("plain").unwrap(), b"plain");
            assert_eq!(merged.names("dir/sub").unwrap(), ["deep"]);
        }
    }
}

#[test]
fn an_odd_name_that_cannot_be_escaped_is_too_long() {
    let stack = Stack::with(1, Whiteouts::Wh);
    let merged = stack.mount();
    let name = format!(".wh.{}", "x".repeat(251));
    assert_eq!(merged.write(&name, b""), Err(Errno::ENAMETOOLONG));
    assert_eq!(merged.tree().paths(), [""]);
}

/// What an engine left behind that writes `.wh.`.
fn foreign_wh(stack: &Stack) {
    stack
        .upper()
        .with_wh("plain")
        .with_wh("dir/file")
        .with_opq("dir/sub")
        .with_file("new", "n");
    stack
        .upper()
        .with_file("dir/sub/fresh", "f")
        .with_dir("empty", 0o700);
}

/// The same, of an engine that writes devices.
fn foreign_overlay(stack: &Stack) {
    stack
        .upper()
        .with_whiteout("plain")
        .with_whiteout("dir/file")
        .with_file("new", "n");
    stack
        .upper()
        .with_opaque("dir/sub")
        .with_file("dir/sub/fresh", "f")
        .with_dir("empty", 0o700);
}

#[test]
fn uppers_of_others_are_read() {
    for build in [foreign_wh, foreign_overlay] {
        for whiteouts in [Whiteouts::Auto, Whiteouts::Overlay, Whiteouts::Wh] {
            let stack = Stack::with(2, whiteouts);
            sample(&stack);
            build(&stack);
            let merged = stack.mount();
            assert!(!merged.exists("plain") && !merged.exists("dir/file"));
            assert_eq!(merged.names("dir").unwrap(), ["sub", "upmost"]);
            assert_eq!(merged.names("dir/sub").unwrap(), ["fresh"]);
            assert_eq!(merged.stat("empty").unwrap().mode, 0o700);
        }
    }
}

#[test]
fn uppers_of_others_are_changed() {
    for build in [foreign_wh, foreign_overlay] {
        for whiteouts in [Whiteouts::Auto, Whiteouts::Overlay, Whiteouts::Wh] {
            let stack = Stack::with(2, whiteouts);
            sample(&stack);
            build(&stack);
            let merged = stack.mount();
            merged.write("plain", b"again").unwrap();
            merged.mkdir("dir/file", 0o755).unwrap();
            merged.write(".wh.plain", b"of a user").unwrap();
            merged.unlink("dir/sub/fresh").unwrap();
            merged.rmdir("dir/sub").unwrap();
            merged.mkdir("dir/sub", 0o755).unwrap();
            let tree = merged.tree();
            assert_eq!(merged.names("dir/file").unwrap(), [""; 0]);
            assert_eq!(merged.names("dir/sub").unwrap(), [""; 0]);
            let merged = stack.reopen(merged);
            assert_same(&merged.tree(), &tree, "reopened");
            assert_eq!(merged.read("plain").unwrap(), b"again");
            assert_eq!(merged.read(".wh.plain").unwrap(), b"of a user");
        }
    }
}

/// A marker beside the object it names hides what is below, not the object.
#[test]
fn a_marker_beside_its_object() {
    let stack = Stack::new(1);
    stack
        .lower(0)
        .with_file("dir/below", "")
        .with_file("file", "below");
    stack.upper().with_file("dir/above", "").with_wh("dir");
    stack.upper().with_file("file", "above").with_wh("file");
    let merged = stack.mount();
    assert_eq!(merged.names("dir").unwrap(), ["above"]);
    assert_eq!(merged.read("file").unwrap(), b"above");
    merged.unlink("file").unwrap();
    merged.unlink("dir/above").unwrap();
    merged.rmdir("dir").unwrap();
    assert_eq!(stack.reopen(merged).tree().paths(), [""]);
}

#[test]
fn an_opaque_root_of_an_upper_hides_all() {
    let stack = Stack::new(2);
    sample(&stack);
    stack.upper().with_opq("").with_file("only", "");
    assert_eq!(stack.mount().tree().paths(), ["", "only"]);
}

#[test]
fn a_plain_upper_is_not_taken_over() {
    let stack = Stack::with(1, Whiteouts::Overlay);
    stack.mount().write(".wh.name", b"of a user").unwrap();
    let mut config = stack.config();
    config.whiteouts = Whiteouts::Wh;
    assert_eq!(ok(Union::new(&config)).unwrap_err(), Errno::EINVAL);
    assert_eq!(stack.mount().read(".wh.name").unwrap(), b"of a user");
}

/// Of the kernel's xattr whiteouts: `overlay.opaque` is `x`, empty files have `overlay.whiteout`.
#[test]
fn whiteouts_by_attribute_are_read() {
    let space = crate::support::mark_space();
    let mark = |disk: &crate::support::Disk| {
        disk.with_file("dir/gone", "").with_file("dir/empty", "");
        disk.with_xattr("dir/gone", &format!("{space}.overlay.whiteout"), "");
        disk.with_xattr("dir", &crate::support::opaque_key(), "x");
    };
    let below = |stack: &Stack, index: usize| {
        stack
            .lower(index)
            .with_file("dir/gone", "below")
            .with_file("dir/stays", "");
    };
    let stack = Stack::new(2);
    mark(stack.lower(0));
    below(&stack, 1);
    assert_eq!(stack.mount().names("dir").unwrap(), ["empty", "stays"]);
    let stack = Stack::new(1);
    mark(&stack.upper());
    below(&stack, 0);
    let merged = stack.mount();
    assert_eq!(merged.names("dir").unwrap(), ["empty", "stays"]);
    merged.mkdir("dir/gone", 0o755).unwrap();
    assert_eq!(stack.reopen(merged).names("dir/gone").unwrap(), [""; 0]);
}
