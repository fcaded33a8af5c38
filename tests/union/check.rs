//! Uppers in which something is wrong, what is found in them, and what is left after a repair.

use std::time::{Duration, Instant};

use cvmfs_union::error::Error;
use cvmfs_union::union::api::{RenameKind, Whiteouts};
use cvmfs_union::union::view::{Finding, State, View, check};

use super::{DIALECTS, sample};
use crate::support::{Fs, Stack, assert_same, is_root, mark_space, opaque_key};

/// How long to wait for locks that nobody has for long.
const PATIENCE: Duration = Duration::from_secs(20);

/// Tries until no process that another thread starts has the locks of this one any more.
fn unlocked(check: impl Fn() -> Result<Vec<Finding>, Error>) -> Result<Vec<Finding>, Error> {
    let begun = Instant::now();
    loop {
        match check() {
            Err(e) if e.errno() == libc::EWOULDBLOCK && begun.elapsed() < PATIENCE => {
                std::thread::sleep(Duration::from_millis(1));
            }
            found => return found,
        }
    }
}

/// What is found, as lines; the second time after a repair.
fn found(stack: &Stack, repair: bool) -> Vec<String> {
    let config = stack.config();
    let view = View::open(&config.lowers, Some(&stack.path("upper"))).unwrap();
    let (upper, work) = (stack.path("upper"), stack.path("work"));
    let findings = unlocked(|| check(&upper, Some(&work), Some(&view), repair));
    let findings = findings.unwrap().into_iter();
    let mut lines: Vec<_> = findings
        .map(|of| {
            let state = match of.state {
                State::Mendable => "mendable",
                State::Mended => "mended",
                State::Left => "left",
            };
            format!(
                "{state} {}: {}",
                String::from_utf8(of.path).unwrap(),
                of.what
            )
        })
        .collect();
    lines.sort();
    lines
}

/// A sample in which something of everything was changed, and whose union has ended.
fn used(whiteouts: Whiteouts) -> Stack {
    let stack = Stack::with(2, whiteouts);
    sample(&stack);
    let merged = stack.mount();
    merged.chmod("dir/file", 0o600).unwrap();
    merged.write("first", b"changed").unwrap();
    merged.unlink("plain").unwrap();
    merged.rename("dir", "moved", RenameKind::Replace).unwrap();
    merged.mkdir("dir", 0o755).unwrap();
    merged.chmod("moved/upmost", 0o600).unwrap();
    merged.write(".wh.name", b"a user's").unwrap();
    stack
}

#[test]
fn nothing_is_wrong_with_what_a_union_leaves() {
    for whiteouts in DIALECTS {
        let stack = used(whiteouts);
        assert_eq!(found(&stack, false), [""; 0]);
        let before = stack.mount().tree();
        assert_eq!(found(&stack, true), [""; 0]);
        assert_same(&stack.mount().tree(), &before, "after a repair of nothing");
    }
}

#[test]
fn a_mounted_upper_is_left_alone() {
    let stack = used(Whiteouts::Auto);
    let _merged = stack.mount();
    let refused = check(&stack.path("upper"), Some(&stack.path("work")), None, true);
    assert_eq!(refused.unwrap_err().errno(), libc::EWOULDBLOCK);
}

/// What is found is mended, and the merged tree stays what it is.
fn mended(stack: &Stack, expected: &[&str]) {
    let merged = stack.mount().tree();
    let lines = |state: &str| -> Vec<String> {
        expected
            .iter()
            .map(|what| format!("{state} {what}"))
            .collect()
    };
    assert_eq!(found(stack, false), lines("mendable"));
    assert_eq!(found(stack, true), lines("mended"));
    assert_eq!(found(stack, false), [""; 0]);
    assert_same(&stack.mount().tree(), &merged, "after the repair");
}

#[test]
fn leftovers_and_dangling_entries() {
    let stack = used(Whiteouts::Auto);
    stack
        .work()
        .with_file("work/#1.2", "cut off")
        .with_dir("work/#1.3/sub", 0o755);
    let key = format!(
        "{}.cvmfs-union.nlink",
        if is_root() { "trusted" } else { "user" }
    );
    stack
        .work()
        .with_file("index/4000000000000001", "no other name");
    stack
        .work()
        .with_xattr("index/4000000000000001", &key, "-1");
    let left = [
        "index/4000000000000001: an entry of the index whose file has no other name",
        "work/#1.2: left over by a mount that was cut off",
        "work/#1.3: left over by a mount that was cut off",
    ];
    let lines = |state: &str| left.map(|what| format!("{state} {what}"));
    assert_eq!(found(&stack, false), lines("mendable"));
    assert_eq!(found(&stack, true), lines("mended"));
    assert_eq!(found(&stack, false), [""; 0]);
}

#[test]
fn two_ways_to_mark_deletions_become_one() {
    let stack = Stack::with(2, Whiteouts::Auto);
    sample(&stack);
    // As two unions, one after the other, have left it.
    stack
        .upper()
        .with_wh("plain")
        .with_opq("covered")
        .with_file("covered/mine", "x");
    stack
        .upper()
        .with_whiteout("symlink")
        .with_dir("empty", 0o755);
    stack.upper().with_xattr("empty", &opaque_key(), "y");
    stack.upper().with_dir("dir", 0o755).with_wh("dir");
    let mark = "a mark for a deletion in the way that is not used here";
    let expected = ["/.wh.dir", "/.wh.plain", "/covered/.wh..wh..opq"];
    let expected = expected.map(|path| format!("{path}: {mark}"));
    let expected: Vec<&str> = expected.iter().map(|line| &**line).collect();
    mended(&stack, &expected);
    assert!(!stack.upper().exists(".wh.plain") && !stack.upper().exists("covered/.wh..wh..opq"));
}

#[test]
fn marks_of_other_unions() {
    let stack = Stack::with(2, Whiteouts::Auto);
    sample(&stack);
    stack
        .upper()
        .with_dir("covered", 0o755)
        .with_file("covered/mine", "x");
    stack
        .upper()
        .with_xattr("covered", "user.fuseoverlayfs.opaque", "y");
    let mut expected = vec!["/covered: a mark of another union, user.fuseoverlayfs.opaque"];
    if mark_space() == "trusted" {
        stack
            .upper()
            .with_dir("dir", 0o755)
            .with_xattr("dir", "user.overlay.opaque", "y");
        expected.push("/dir: a mark of another union, user.overlay.opaque");
    }
    mended(&stack, &expected);
    stack
        .upper()
        .with_file(".wh..wh.aufs", "")
        .with_dir(".wh..wh.plnk", 0o700);
    mended(
        &stack,
        &[
            "/.wh..wh.aufs: bookkeeping of another union",
            "/.wh..wh.plnk: bookkeeping of another union",
        ],
    );
    stack.upper().with_file(".wh..wh.plnk/1.2", "data");
    let line = "left /.wh..wh.plnk: bookkeeping of another union, with something in it";
    assert_eq!(found(&stack, true), [line]);
}

#[test]
fn numbers_and_index_of_a_copied_upper() {
    let stack = used(Whiteouts::Auto);
    // Copied by `cp -a` without its work directory, and a file of it once more under another name.
    let key = format!("{}.cvmfs-union.ino", mark_space());
    let number = stack.upper().getxattr("moved/file", &key).unwrap();
    let number = String::from_utf8(number).unwrap();
    stack
        .upper()
        .with_file("moved/twice", "x")
        .with_xattr("moved/twice", &key, &number);
    std::fs::remove_dir_all(stack.path("work/index")).unwrap();
    let before = stack.upper().getxattr("first", &key).unwrap();
    stack.work().with_file("work/kept", "of who knows what");
    let mut lines = found(&stack, true);
    assert!(
        lines[0].starts_with("left index: missing"),
        "first {lines:?}"
    );
    assert_eq!(stack.upper().getxattr("first", &key).unwrap(), before);
    assert!(stack.work().exists("work/kept"));
    // What a mount with a work directory of its own makes.
    stack.work().with_dir("index", 0o755);
    lines.extend(found(&stack, true));
    let index = "mended /first: a file of several names that the index does not know; it becomes one of its own";
    assert!(lines.iter().any(|line| line == index), "{lines:?}");
    assert!(
        lines
            .iter()
            .any(|line| line.contains("the inode number of /moved/")),
        "{lines:?}"
    );
    assert_eq!(found(&stack, false), [""; 0]);
}

#[test]
fn what_is_missing_in_the_layers_is_told() {
    let stack = used(Whiteouts::Auto);
    let config = stack.config();
    // Another image.
    let view = View::open(&config.lowers[..1], Some(&stack.path("upper"))).unwrap();
    let findings = unlocked(|| check(&stack.path("upper"), None, Some(&view), false));
    let findings = findings.unwrap();
    let lines: Vec<_> = findings
        .iter()
        .map(|of| format!("{:?} {}", of.state, of.what))
        .collect();
    let missing = "Left its data are in no layer: only attributes are left";
    assert_eq!(lines, [missing], "of moved/file");
}

#[test]
fn a_torn_upper_and_broken_marks_are_left() {
    let stack = used(Whiteouts::Auto);
    stack.work().with_file("volatile", "");
    let key = format!("{}.cvmfs-union.ino", mark_space());
    stack
        .upper()
        .with_file("broken", "")
        .with_xattr("broken", &key, "no number");
    for repair in [false, true] {
        let lines = found(&stack, repair);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(
            lines[0].starts_with("left /broken: its marks cannot be read"),
            "{lines:?}"
        );
        assert!(
            lines[1].starts_with("left volatile: the upper was not synced"),
            "{lines:?}"
        );
    }
}

/// Root looks at the upper of a user, whose marks stay where the user's next mount reads them.
#[test]
fn the_marks_of_a_user_stay_the_users() {
    if !is_root() {
        return;
    }
    for noted in [true, false] {
        let stack = Stack::with(2, Whiteouts::Auto);
        sample(&stack);
        stack
            .upper()
            .with_xattr("", "user.cvmfs-union.dialect", "plain")
            .with_dir("dir", 0o755)
            .with_xattr("dir", "user.overlay.opaque", "y");
        stack.work().with_dir("index", 0o755);
        if noted {
            stack.work().with_file("abilities", "user whiteouts -\n");
        }
        assert_eq!(found(&stack, false), [""; 0]);
        assert_eq!(found(&stack, true), [""; 0]);
        let mark = stack.upper().getxattr("dir", "user.overlay.opaque");
        assert_eq!(mark.unwrap(), b"y");
    }
}

#[test]
fn the_upper_of_another_user_is_not_repaired() {
    if !is_root() {
        return;
    }
    let stack = used(Whiteouts::Auto);
    stack.work().with_file("work/#1.2", "cut off");
    let note = stack.path("work/abilities");
    std::os::unix::fs::chown(&note, Some(1000), Some(1000)).unwrap();
    assert_eq!(found(&stack, false).len(), 1);
    let (upper, work) = (stack.path("upper"), stack.path("work"));
    let refused = unlocked(|| check(&upper, Some(&work), None, true));
    assert_eq!(refused.unwrap_err().errno(), libc::EPERM);
    assert_eq!(found(&stack, false).len(), 1, "it is still there");
}
