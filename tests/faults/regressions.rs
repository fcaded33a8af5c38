//! Bugs that the matrix has found, each by its name and at the call where it was.

use cvmfs_union::sys::fault;
use cvmfs_union::union::Union;
use cvmfs_union::union::api::{ROOT, Whiteouts};
use nix::errno::Errno;

use super::calls::fail_everywhere;
use super::crashes::crash_everywhere;
use crate::support::{Fs, Stack};
use crate::union::sample;

/// It was taken for absent, so a directory was renamed over a whiteout: ENOTDIR.
#[test]
fn a_target_that_cannot_be_looked_at_is_not_absent() {
    fail_everywhere(
        "mkdir over a whiteout of a directory",
        "fstatat",
        Errno::EIO,
    );
    fail_everywhere(
        "rename a merged directory over a whiteout",
        "fstatat",
        Errno::EIO,
    );
    fail_everywhere("link over a whiteout", "fstatat", Errno::EIO);
}

/// The target had been moved aside already, and was removed.
#[test]
fn a_failed_wh_marker_puts_the_replaced_directory_back() {
    fail_everywhere(
        "rename a directory over one of the upper",
        "openat to make",
        Errno::EIO,
    );
}

/// The disk held both objects under each other's name, and the union did not know.
#[test]
fn a_failed_whiteout_after_an_exchange_takes_it_back() {
    fail_everywhere(
        "rename plain to dir/file, Replace, without RENAME_WHITEOUT",
        "renameat",
        Errno::EIO,
    );
}

/// Reading went on into the lower's data behind the end.
#[test]
fn a_half_done_truncation_shows_no_more_than_its_size() {
    fail_everywhere("open a metadata copy with O_TRUNC", "fstatat", Errno::EIO);
}

/// A full disk, say: the file kept its data, and not its time.
#[test]
fn a_failed_filling_puts_the_time_back() {
    for call in ["copy_file_range", "ftruncate", "fdatasync"] {
        fail_everywhere("write to a metadata copy", call, Errno::ENOSPC);
    }
}

/// The file was empty, with the time from before.
#[test]
fn a_crash_in_a_truncation_shows_its_time_too() {
    crash_everywhere("truncate to nothing", "renameat");
}

/// EPERM became ENOTDIR.
#[test]
fn what_cannot_be_removed_says_why() {
    fail_everywhere(
        "rename a directory over one with whiteouts",
        "unlinkat",
        Errno::EPERM,
    );
}

/// It counted as absent: the next mount showed the lower's data again.
#[test]
fn a_metacopy_mark_that_may_not_be_removed_is_an_error() {
    fail_everywhere("write to a metadata copy", "removexattr", Errno::EPERM);
}

/// The number was kept in memory only, and the names became two files at the next mount.
#[test]
fn a_number_that_may_not_be_stored_fails_the_copy_of_a_file() {
    fail_everywhere("write to one of two names", "setxattr", Errno::EPERM);
}

/// The count of links was one too high or too low, for ever.
#[test]
fn a_crash_while_a_name_is_copied_up_keeps_the_count_of_links() {
    for call in ["linkat", "setxattr"] {
        crash_everywhere("unlink second", call);
        crash_everywhere("unlink the other of two names", call);
        crash_everywhere("write to one of two names", call);
    }
}

/// The data of a file without a name stayed in the index.
#[test]
fn a_crash_after_the_last_name_leaves_no_entry_in_the_index() {
    for call in ["renameat", "mknodat", "unlinkat"] {
        crash_everywhere("unlink the last of two names", call);
    }
}

/// Its node stayed until 8192 more were forgotten.
#[test]
fn a_request_that_fails_leaves_no_node() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    let mut n = 1;
    loop {
        fault::fail_nth(n, libc::EIO);
        let found = merged.union.lookup(ROOT, "dir".as_ref());
        if fault::disarm().is_none() {
            assert!(found.unwrap().is_some());
            break;
        }
        if let Ok(Some(attr)) = found {
            merged.union.forget(attr.ino, 1);
        }
        assert_eq!(merged.union.nodes(), 1, "call {n}");
        n += 1;
    }
    let made = merged
        .union
        .mkdir(&merged.caller, ROOT, "plain".as_ref(), 0o755);
    assert_eq!(made.unwrap_err().errno(), libc::EEXIST);
    merged.union.rmdir(ROOT, "dir".as_ref()).unwrap_err();
    merged.union.unlink(ROOT, "dir".as_ref()).unwrap_err();
    assert_eq!(merged.union.nodes(), 2, "the root and dir");
}

/// An upper that could hold overlay whiteouts was begun with `.wh.` ones.
#[test]
fn an_interrupted_probe_decides_nothing() {
    let stack = Stack::with(2, Whiteouts::Auto);
    sample(&stack);
    let styles = |union: Union| {
        union.unlink(ROOT, "plain".as_ref()).unwrap();
        drop(union);
        stack.upper().names("").unwrap()
    };
    stack.reset();
    let want = styles(stack.open().unwrap());
    for n in 1.. {
        stack.reset();
        let union = stack.open_after(&|| fault::fail_nth(n, libc::EINTR));
        let struck = fault::disarm();
        if let Ok(union) = union {
            assert_eq!(styles(union), want, "call {n}, {struck:?}");
        }
        if struck.is_none() {
            break;
        }
    }
}

/// EIO counted as "no such note": the upper of a torn volatile mount was opened, and the root's
/// attributes were taken from below once more.
#[test]
fn a_note_that_cannot_be_looked_for_is_not_absent() {
    let stack = Stack::new(1);
    stack.lower(0).with_mode("", 0o711);
    let merged = stack.mount();
    merged.chmod("", 0o700).unwrap();
    drop(merged);
    let opens = |torn: bool| {
        for n in 1.. {
            let union = stack.open_after(&|| fault::fail_nth(n, libc::EIO));
            let struck = fault::disarm();
            assert!(!(torn && union.is_ok()), "call {n}, {struck:?}");
            if let Ok(union) = &union {
                let mode = union.getattr(ROOT, None).unwrap().mode;
                assert_eq!(mode, 0o700, "call {n}, {struck:?}");
            }
            if struck.is_none() {
                break;
            }
        }
    };
    opens(false);
    stack.work().with_file("volatile", "");
    opens(true);
}

/// The kernel takes fewer bytes than it asked for as the end of the file.
#[test]
fn a_read_that_fails_later_is_no_short_read() {
    let stack = Stack::new(2);
    sample(&stack);
    let merged = stack.mount();
    merged.write("plain", b"of the upper").unwrap();
    let fh = merged.open("plain", libc::O_RDONLY).unwrap();
    let whole = merged.pread(fh, 0, 100).unwrap();
    assert!(!whole.is_empty() && whole.len() < 100);
    // The first call gives all there is, the second looks for more.
    fault::fail_nth(2, libc::EIO);
    assert_eq!(merged.pread(fh, 0, 100), Err(Errno::EIO));
    assert_eq!(fault::disarm(), Some("pread"));
    assert_eq!(merged.pread(fh, 0, 100), Ok(whole));
    merged.close(fh);
}
