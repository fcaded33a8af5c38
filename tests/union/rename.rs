//! Rename in the merged view.

use cvmfs_union::union::api::{Kind, RenameKind, Whiteouts};
use nix::errno::Errno;

use super::{DIALECTS, sample};
use crate::support::{Fs, Merged, Stack, assert_same, is_root};

use RenameKind::{Exchange, NoReplace, Replace, Whiteout};

/// One rename of the sample in a fresh union, and what a later mount shows.
fn renamed(whiteouts: Whiteouts, from: &str, to: &str, kind: RenameKind) -> (Stack, Merged) {
    let stack = Stack::with(2, whiteouts);
    sample(&stack);
    let merged = stack.mount();
    merged.rename(from, to, kind).unwrap();
    let tree = merged.tree();
    let merged = stack.reopen(merged);
    assert_same(&merged.tree(), &tree, "reopened");
    (stack, merged)
}

#[test]
fn a_directory_takes_its_lower_part_along() {
    for whiteouts in DIALECTS {
        let (stack, merged) = renamed(whiteouts, "dir", "moved", Replace);
        assert_eq!(merged.names("moved").unwrap(), ["file", "sub", "upmost"]);
        assert_eq!(merged.read("moved/sub/deep").unwrap(), b"deep down");
        assert!(!merged.exists("dir"));
        assert_eq!(
            stack.upper().names("moved").unwrap(),
            [""; 0],
            "nothing was copied"
        );
        merged.write("moved/sub/deep", b"changed").unwrap();
        merged.rename("moved", "empty/again", Replace).unwrap();
        merged.mkdir("dir", 0o755).unwrap();
        let merged = stack.reopen(merged);
        assert_eq!(merged.read("empty/again/sub/deep").unwrap(), b"changed");
        assert_eq!(
            merged.read("empty/again/file").unwrap(),
            b"of the lowest layer"
        );
        assert_eq!(merged.names("dir").unwrap(), [""; 0]);
    }
}

#[test]
fn a_child_of_a_moved_directory_moves_out() {
    for whiteouts in DIALECTS {
        let (stack, merged) = renamed(whiteouts, "dir", "moved", Replace);
        merged.rename("moved/sub", "sub", Replace).unwrap();
        merged.rmdir("empty").unwrap();
        merged.rename("moved", "empty", Replace).unwrap();
        let merged = stack.reopen(merged);
        assert_eq!(merged.names("empty").unwrap(), ["file", "upmost"]);
        assert_eq!(merged.names("sub").unwrap(), ["deep"]);
    }
}

#[test]
fn a_portable_upper_moves_no_lower_directory() {
    for whiteouts in DIALECTS {
        let mut stack = Stack::with(2, whiteouts);
        stack.portable = true;
        sample(&stack);
        let merged = stack.mount();
        let tree = merged.tree();
        assert_eq!(merged.rename("dir", "moved", Replace), Err(Errno::EXDEV));
        assert_eq!(merged.rename("plain", "dir", Exchange), Err(Errno::EXDEV));
        assert_same(&merged.tree(), &tree, "after EXDEV");
        merged.mkdir("new", 0o755).unwrap();
        merged.rename("new", "newer", Replace).unwrap();
        merged.rename("plain", "plainer", Replace).unwrap();
        assert!(stack.reopen(merged).exists("newer"));
    }
}

#[test]
fn a_directory_replaces_one_that_looks_empty() {
    for whiteouts in DIALECTS {
        let (_stack, merged) = renamed(whiteouts, "dir/sub", "shallow", Replace);
        assert_eq!(merged.names("shallow").unwrap(), ["deep"]);
    }
}

#[test]
fn an_exchange_of_directories_and_files() {
    for whiteouts in DIALECTS {
        let (stack, merged) = renamed(whiteouts, "dir", "plain", Exchange);
        assert_eq!(merged.read("dir").unwrap(), b"plain");
        assert_eq!(merged.names("plain").unwrap(), ["file", "sub", "upmost"]);
        merged.rename("dir", "plain", Exchange).unwrap();
        let merged = stack.reopen(merged);
        assert_eq!(merged.read("plain").unwrap(), b"plain");
        assert_eq!(merged.names("dir").unwrap(), ["file", "sub", "upmost"]);
    }
}

#[test]
fn refusals() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        for (from, to, kind, errno) in [
            ("nowhere", "new", Replace, Errno::ENOENT),
            ("plain", "nowhere/new", Replace, Errno::ENOENT),
            ("plain", "symlink/new", Replace, Errno::ENOTDIR),
            ("plain", "fifo", NoReplace, Errno::EEXIST),
            ("plain", "new", Exchange, Errno::ENOENT),
            ("plain", "dir", Replace, Errno::EISDIR),
            ("empty", "plain", Replace, Errno::ENOTDIR),
            ("empty", "dir", Replace, Errno::ENOTEMPTY),
            ("dir", "dir/sub/new", Replace, Errno::EINVAL),
            ("dir", "dir/sub", Exchange, Errno::EINVAL),
            ("dir/sub", "dir", Exchange, Errno::EINVAL),
            ("dir/sub", "dir", Replace, Errno::ENOTEMPTY),
        ] {
            assert_eq!(
                merged.rename(from, to, kind),
                Err(errno),
                "{from} to {to}, {kind:?}"
            );
        }
        assert_same(
            &merged.tree(),
            &stack.reopen(merged).tree(),
            "after refusals",
        );
    }
}

#[test]
fn two_names_of_one_file_both_stay() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    merged.rename("first", "second", Replace).unwrap();
    assert!(merged.exists("first") && merged.exists("second"));
}

#[test]
fn a_rename_with_a_whiteout_leaves_a_device() {
    for whiteouts in DIALECTS {
        let (_stack, merged) = renamed(whiteouts, "dir", "moved", Whiteout);
        let left = merged.stat("dir").unwrap();
        assert_eq!((left.kind, left.rdev, left.mode), (Kind::Char, 0, 0));
        assert_eq!(merged.names("moved").unwrap(), ["file", "sub", "upmost"]);
    }
}

/// The plain directory's answer: what is made in a set-gid directory has its group.
#[test]
fn the_device_left_behind_inherits_the_group() {
    if !is_root() {
        return;
    }
    let stack = Stack::new(1);
    stack
        .lower(0)
        .with_file("dir/file", "")
        .chown("dir", 0, 500)
        .unwrap();
    stack.lower(0).with_mode("dir", 0o2755);
    let merged = stack.mount();
    merged.rename("dir/file", "moved", Whiteout).unwrap();
    assert_eq!(merged.stat("dir/file").unwrap().gid, 500);
}

/// Another program wrote overlay whiteouts, and now `.wh.` ones are asked for.
#[test]
fn a_directory_moves_onto_a_device_whiteout_of_a_foreign_upper() {
    let stack = Stack::with(1, Whiteouts::Wh);
    stack
        .lower(0)
        .with_dir("dir", 0o755)
        .with_file("deleted", "");
    stack
        .upper()
        .with_whiteout("deleted")
        .with_dir("above", 0o755);
    let merged = stack.mount();
    merged.rename("dir", "deleted", Replace).unwrap();
    merged.mkdir("dir", 0o755).unwrap();
    merged.rename("above", "dir", Replace).unwrap();
    assert_eq!(stack.reopen(merged).tree().paths(), ["", "deleted", "dir"]);
}

/// A `.wh.` marker beside an object hides the lowers; it must not hide what is moved there.
#[test]
fn an_exchange_with_a_name_beside_its_wh_marker() {
    for whiteouts in [Whiteouts::Auto, Whiteouts::Wh] {
        let stack = Stack::with(1, whiteouts);
        stack
            .lower(0)
            .with_file("dir/file", "below")
            .with_file("plain", "plain");
        stack.upper().with_dir("first", 0o755).with_wh("first");
        stack.upper().with_file("second", "").with_wh("second");
        let merged = stack.mount();
        // A copy of the metadata only: its data are the lower's.
        merged.chmod("plain", 0o600).unwrap();
        merged.rename("dir", "first", Exchange).unwrap();
        merged.rename("plain", "second", Exchange).unwrap();
        let tree = merged.tree();
        assert_eq!(merged.read("second").unwrap(), b"plain");
        assert_same(&stack.reopen(merged).tree(), &tree, "reopened");
    }
}
