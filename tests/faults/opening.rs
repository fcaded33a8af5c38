//! Faults and crashes while a union is opened on a new upper, which takes its root's attributes from
//! below, and on one that a crash has left with temporaries and an entry of the index too many.

use std::path::Path;

use cvmfs_union::sys::fault;
use cvmfs_union::union::api::Whiteouts;
use nix::errno::Errno;

use super::crashes::{self, Killed};
use crate::support::{Fs, Stack, assert_same};
use crate::union::{DIALECTS, sample};

/// Both uppers.
const USED: [bool; 2] = [false, true];

fn stack(whiteouts: Whiteouts) -> Stack {
    let stack = Stack::with(2, whiteouts);
    sample(&stack);
    stack.lower(0).with_mode("", 0o711);
    stack
}

fn begin(stack: &Stack, used: bool) {
    stack.reset();
    if !used {
        return;
    }
    let merged = stack.mount();
    merged.chmod("", 0o700).unwrap();
    merged.unlink("plain").unwrap();
    merged.chmod("first", 0o600).unwrap();
    drop(merged);
    stack.work().with_file("work/#1/leftover", "x");
    let entry = stack.work().names("index").unwrap();
    stack
        .work()
        .with_link(&format!("index/{}", entry[0]), "work/#2");
}

#[test]
fn an_opening_fails_at_each_call() {
    for whiteouts in DIALECTS {
        let stack = stack(whiteouts);
        for used in USED {
            begin(&stack, used);
            let want = stack.mount().tree();
            for errno in [Errno::EIO, Errno::ENOSPC, Errno::EINTR] {
                let mut n = 1;
                loop {
                    begin(&stack, used);
                    let opened = stack.open_after(&|| fault::fail_nth(n, errno as i32));
                    let Some(call) = fault::disarm() else {
                        break;
                    };
                    let what = format!("{whiteouts:?}: call {n}, {call}, failed with {errno:?}");
                    if let Err(e) = &opened {
                        assert_eq!(e.errno(), errno as i32, "{what}: {e}");
                    }
                    drop(opened);
                    let merged = stack.mount();
                    assert_eq!(stack.work().names("work").unwrap(), [""; 0], "{what}");
                    assert_same(&merged.tree(), &want, &what);
                    n += 1;
                }
                assert!(n > 20, "only {n} calls");
            }
        }
    }
}

#[test]
fn an_opening_is_killed_at_each_call() {
    for whiteouts in DIALECTS {
        let stack = stack(whiteouts);
        for used in USED {
            begin(&stack, used);
            fault::record();
            let want = stack.mount();
            let calls = fault::recorded();
            let want = want.tree();
            for after in crashes::points(&calls) {
                begin(&stack, used);
                let what = format!("{whiteouts:?}: killed after {after} calls of {calls:?}");
                Killed {
                    scenario: OPENING,
                    whiteouts,
                    cold: false,
                    after,
                    dir: stack.dir(),
                }
                .run(&what);
                let merged = stack.mount();
                assert_eq!(stack.work().names("work").unwrap(), [""; 0], "{what}");
                assert_same(&merged.tree(), &want, &what);
            }
        }
    }
}

/// What stands for a scenario in the process that is killed.
pub const OPENING: &str = "opening";

pub fn die_opening(whiteouts: Whiteouts, dir: &Path, after: u32) {
    let mut stack = Stack::attach(dir, 2);
    stack.whiteouts = whiteouts;
    fault::kill_nth(after + 1);
    drop(stack.mount());
}
