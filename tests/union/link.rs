//! Hard links: those of a lower are one file before and after copy-up, and counted right.

use cvmfs_union::union::api::{RenameKind, Whiteouts};
use nix::errno::Errno;

use super::{DIALECTS, sample};
use crate::support::{Fs, Merged, Stack};

#[test]
fn refusals() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    assert_eq!(merged.link("plain", "dir/file"), Err(Errno::EEXIST));
    assert_eq!(merged.link("plain", "plain"), Err(Errno::EEXIST));
    assert_eq!(merged.link("dir", "new"), Err(Errno::EPERM));
    assert_eq!(merged.link("nowhere", "new"), Err(Errno::ENOENT));
    let ino = merged.walk("plain").unwrap();
    merged.unlink("plain").unwrap();
    let linked = merged
        .union
        .link(ino, cvmfs_union::union::api::ROOT, "new".as_ref());
    assert_eq!(crate::support::ok(linked), Err(Errno::ENOENT));
}

/// Three names of one lower file, in two directories.
pub fn three_names(whiteouts: Whiteouts) -> Stack {
    let stack = Stack::with(2, whiteouts);
    stack
        .lower(1)
        .with_file("a", "shared")
        .with_link("a", "b")
        .with_link("a", "dir/c");
    stack.lower(0).with_dir("dir", 0o755);
    stack
}

/// The names are one object, that has so many names.
#[track_caller]
pub fn one_file(merged: &Merged, names: &[&str], data: &[u8]) {
    let first = merged.stat(names[0]).unwrap();
    assert_eq!(first.nlink as usize, names.len(), "names of {}", names[0]);
    for name in names {
        let attr = merged.stat(name).unwrap();
        assert_eq!(
            (attr.ino, attr.nlink, attr.size),
            (first.ino, first.nlink, first.size)
        );
        assert_eq!(merged.read(name).unwrap(), data, "{name}");
    }
}

#[test]
fn the_names_of_a_lower_file_stay_one_file() {
    for whiteouts in DIALECTS {
        for reopening in [false, true] {
            let stack = three_names(whiteouts);
            let mut merged = stack.mount();
            let mut step = |act: &dyn Fn(&Merged), names: &[&str], data: &[u8]| {
                act(&merged);
                one_file(&merged, names, data);
                if reopening {
                    take_mut(&mut merged, |m| stack.reopen(m));
                    one_file(&merged, names, data);
                }
            };
            step(&|_| {}, &["a", "b", "dir/c"], b"shared");
            step(
                &|m| m.write("b", b"changed").unwrap(),
                &["a", "b", "dir/c"],
                b"changed",
            );
            step(&|m| m.unlink("b").unwrap(), &["a", "dir/c"], b"changed");
            step(
                &|m| m.link("dir/c", "d").unwrap(),
                &["a", "d", "dir/c"],
                b"changed",
            );
            let rename = |m: &Merged| m.rename("a", "dir/e", RenameKind::Replace).unwrap();
            step(&rename, &["d", "dir/c", "dir/e"], b"changed");
            step(
                &|m| m.write("dir/e", b"again").unwrap(),
                &["d", "dir/c", "dir/e"],
                b"again",
            );
            step(&|m| m.unlink("dir/c").unwrap(), &["d", "dir/e"], b"again");
            step(&|m| m.unlink("d").unwrap(), &["dir/e"], b"again");
            assert_eq!(stack.work().names("index").unwrap().len(), 1);
            merged.unlink("dir/e").unwrap();
            assert_eq!(
                stack.work().names("index").unwrap(),
                [""; 0],
                "the last name is gone"
            );
            assert_eq!(merged.tree().paths(), ["", "dir"]);
        }
    }
}

/// Replaces the union by one that is made of it.
fn take_mut(merged: &mut Merged, next: impl FnOnce(Merged) -> Merged) {
    let spare = Stack::new(1);
    let old = std::mem::replace(merged, spare.mount());
    *merged = next(old);
}

#[test]
fn removing_every_name_without_looking_at_the_others() {
    for whiteouts in DIALECTS {
        let stack = three_names(whiteouts);
        let mut merged = stack.mount();
        for (name, left) in [("a", 2), ("dir/c", 1), ("b", 0)] {
            let ino = merged.walk(name).unwrap();
            merged.unlink(name).unwrap();
            assert_eq!(
                merged.union.getattr(ino, None).unwrap().nlink,
                left,
                "after {name}"
            );
            merged = stack.reopen(merged);
        }
        assert_eq!(merged.tree().paths(), ["", "dir"]);
    }
}

#[test]
fn a_link_of_a_metadata_copy_shares_its_data() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        merged.link("plain", "dir/plain").unwrap();
        let merged = stack.reopen(merged);
        one_file(&merged, &["dir/plain", "plain"], b"plain");
        merged.write("dir/plain", b"changed").unwrap();
        one_file(&stack.reopen(merged), &["dir/plain", "plain"], b"changed");
    }
}

#[test]
fn an_open_file_sees_writes_through_another_name() {
    for whiteouts in DIALECTS {
        let stack = three_names(whiteouts);
        let merged = stack.mount();
        let fh = merged.open("a", libc::O_RDONLY).unwrap();
        assert_eq!(merged.pread(fh, 0, 10).unwrap(), b"shared");
        merged.write("dir/c", b"changed").unwrap();
        assert_eq!(merged.pread(fh, 0, 10).unwrap(), b"changed");
        merged.close(fh);
    }
}

/// An upper may come without the work directory it had. Names that only a lower holds have the
/// lower's data then, whichever of them is looked at first.
#[test]
fn a_copy_without_its_index_entry_is_a_file_of_its_own() {
    for whiteouts in DIALECTS {
        for first in ["a", "b"] {
            let stack = three_names(whiteouts);
            let merged = stack.mount();
            merged.write("a", b"changed").unwrap();
            merged.link("a", "dir/new").unwrap();
            drop(merged);
            std::fs::remove_dir_all(stack.path("work")).unwrap();
            std::fs::create_dir(stack.path("work")).unwrap();
            let mut merged = stack.mount();
            merged.stat(first).unwrap();
            for _ in 0..2 {
                for name in ["a", "dir/new"] {
                    assert_eq!(merged.read(name).unwrap(), b"changed", "{name}");
                }
                for name in ["b", "dir/c"] {
                    assert_eq!(merged.read(name).unwrap(), b"shared", "{name}");
                }
                let number = |name| merged.stat(name).unwrap().ino;
                assert_eq!(number("a"), number("dir/new"));
                assert_eq!(number("b"), number("dir/c"));
                assert_ne!(number("a"), number("b"));
                // A copy-up of the others makes an entry, which is theirs only.
                merged.chmod("b", 0o600).unwrap();
                merged = stack.reopen(merged);
            }
        }
    }
}
