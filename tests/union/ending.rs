//! The end of a union whose requests cannot be waited for: it lets go of the upper while they last.

use cvmfs_union::sys::fault;
use cvmfs_union::union::api::RenameKind;

use super::interleave::meanwhile;
use super::{DIALECTS, sample};
use crate::support::{Fs, Merged, Stack, ok};

fn rename(m: &Merged, from: &str, to: &str) {
    m.rename(from, to, RenameKind::Replace).unwrap();
}

/// Bug: a request that was under way at the end changed names of the upper after the lock was given
/// back, when the next mount had read them.
#[test]
fn no_name_changes_when_the_upper_was_let_go() {
    let changes: [fn(&Merged); 3] = [
        |m| m.unlink("dir/file").unwrap(),
        |m| rename(m, "made", "renamed"),
        |m| m.mkdir("empty/new", 0o755).unwrap(),
    ];
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let merged = stack.mount();
        merged.mkdir("made", 0o755).unwrap();
        let before = merged.tree();
        merged.union.let_go().unwrap();
        for change in changes {
            // It waits for ever, and its thread too.
            let thread = meanwhile(merged.union.share(), change);
            assert!(!thread.is_finished());
        }
        let after = stack.mount().tree();
        assert!(after == before, "{}", after.against(&before));
    }
}

/// A change that has begun is finished first.
#[test]
fn the_upper_stays_locked_while_names_change() {
    let stack = Stack::new(1);
    stack.lower(0).with_dir("dir", 0o755);
    let merged = stack.mount();
    for path in ["dir/first", "dir/second"] {
        let fh = merged.create(path, 0o644).unwrap();
        merged.close(fh);
    }
    fault::record();
    rename(&merged, "dir/first", "dir/one");
    let calls = fault::recorded();
    let at = calls.iter().position(|call| *call == "renameat").unwrap();

    let (sender, receiver) = std::sync::mpsc::channel();
    let (union, config) = (merged.union.share(), stack.config());
    fault::pause_before(u32::try_from(at).unwrap() + 1, move || {
        let ending = meanwhile(union, |m| ok(m.union.let_go()));
        let open = cvmfs_union::union::Union::new(&config);
        sender
            .send((ending, open.err().map(|e| e.errno())))
            .unwrap();
    });
    rename(&merged, "dir/second", "dir/two");
    let (ending, opened) = receiver.recv().unwrap();
    assert_eq!(opened, Some(libc::EWOULDBLOCK));
    ending.join().unwrap().unwrap();
    let next = stack.mount();
    assert_eq!(next.names("dir").unwrap(), ["one", "two"]);
}
