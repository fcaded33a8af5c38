//! Removal: gone for good, and what is open stays.

use nix::errno::Errno;

use super::{DIALECTS, sample};
use crate::support::{Fs, Stack};

#[test]
fn what_is_removed_stays_so() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        merged.unlink("dir/sub/deep").unwrap();
        assert_eq!(merged.stat("dir/sub/deep"), Err(Errno::ENOENT));
        assert_eq!(merged.unlink("dir/sub/deep"), Err(Errno::ENOENT));
        merged.rmdir("dir/sub").unwrap();
        merged.rmdir("shallow").unwrap();
        let tree = merged.tree();
        assert!(!tree.0.contains_key("dir/sub") && !tree.0.contains_key("shallow"));
        crate::support::assert_same(&stack.reopen(merged).tree(), &tree, "reopened");
    }
}

#[test]
fn only_empty_directories_go() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    assert_eq!(merged.rmdir("dir"), Err(Errno::ENOTEMPTY));
    assert_eq!(merged.rmdir("plain"), Err(Errno::ENOTDIR));
    assert_eq!(merged.rmdir("nowhere"), Err(Errno::ENOENT));
    assert_eq!(merged.unlink("dir"), Err(Errno::EISDIR));
    merged.mkdir("empty/new", 0o755).unwrap();
    assert_eq!(merged.rmdir("empty"), Err(Errno::ENOTEMPTY));
    assert_eq!(
        stack.upper().names("").unwrap(),
        ["empty"],
        "a refusal changes nothing"
    );
}

#[test]
fn an_open_file_outlives_its_name() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        merged.write("new", b"of the upper").unwrap();
        for (path, data) in [("plain", &b"plain"[..]), ("new", b"of the upper")] {
            let ino = merged.walk(path).unwrap();
            let fh = merged.open(path, libc::O_RDONLY).unwrap();
            merged.unlink(path).unwrap();
            assert_eq!(merged.pread(fh, 0, 100).unwrap(), data);
            assert_eq!(merged.union.getattr(ino, Some(fh)).unwrap().nlink, 0);
            merged.write(path, b"another").unwrap();
            assert_eq!(merged.pread(fh, 0, 100).unwrap(), data);
            assert_ne!(merged.stat(path).unwrap().ino, ino);
            merged.close(fh);
        }
    }
}

#[test]
fn nothing_is_made_in_a_removed_directory() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        let dir = merged.walk("empty").unwrap();
        merged.rmdir("empty").unwrap();
        merged.mkdir("empty", 0o755).unwrap();
        let made = merged.union.mkdir(&merged.caller, dir, "x".as_ref(), 0o755);
        assert_eq!(crate::support::ok(made), Err(Errno::ENOENT));
        assert_eq!(merged.names("empty").unwrap(), [""; 0]);
    }
}

#[test]
fn a_name_that_only_the_upper_had_leaves_no_whiteout() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        merged.write("new", b"").unwrap();
        merged.mkdir("newdir", 0o755).unwrap();
        merged.unlink("new").unwrap();
        merged.rmdir("newdir").unwrap();
        assert_eq!(stack.upper().names("").unwrap(), [""; 0]);
    }
}
