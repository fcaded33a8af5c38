//! A name of a lower file with several is looked up, and the file changes under another of its names
//! meanwhile, as far as locks let it, and is forgotten there. What the lookup read of the file before
//! must not come into memory.

use std::sync::mpsc::channel;
use std::time::Duration;

use cvmfs_union::sys::fault;

use super::DIALECTS;
use super::interleave::{MANY, meanwhile};
use super::link::{one_file, three_names};
use crate::support::deadline::Deadline;
use crate::support::{Fs, Merged, Stack};

type Act = fn(&Merged);

/// What is done before, on a union that then forgets; what is done slowly; what is done meanwhile.
struct Case {
    before: Act,
    slow: Act,
    meanwhile: Act,
}

impl Case {
    fn start(&self, stack: &Stack) -> Merged {
        stack.reset();
        let merged = stack.mount();
        (self.before)(&merged);
        merged.forget();
        merged
    }

    /// Does the other before the `n`-th system call of the slow one. With `answer` that call fails with
    /// it, as it would have if it had been made just before. Whether there is such a call.
    fn stopped_at(&self, merged: &Merged, n: u32, answer: Option<i32>) -> bool {
        let (union, other) = (merged.union.share(), self.meanwhile);
        let (sender, started) = channel();
        fault::pause_before(n, move || sender.send(meanwhile(union, other)).unwrap());
        if let Some(errno) = answer {
            fault::fail_nth(n, errno);
        }
        (self.slow)(merged);
        fault::disarm();
        let met = !fault::dismiss();
        if met {
            started.recv().unwrap().join().unwrap();
        }
        met
    }

    /// At each call. The names are one file then, also for a union that is opened anew.
    fn check(&self, stack: &Stack, names: &[&str], data: &[u8]) {
        let _deadline = Deadline::new("a slow lookup", Duration::from_secs(120));
        for n in 1..MANY {
            let merged = self.start(stack);
            if !self.stopped_at(&merged, n, None) {
                assert!(n > 3, "it makes so few calls: {n}");
                return;
            }
            eprintln!("before call {n}");
            check_file(stack, merged, names, data);
        }
        panic!("no end of calls");
    }
}

fn check_file(stack: &Stack, merged: Merged, names: &[&str], data: &[u8]) {
    one_file(&merged, names, data);
    one_file(&stack.reopen(merged), names, data);
}

/// Opens it to write, which brings its data, and writes nothing.
fn open_to_write(m: &Merged, path: &str) {
    let fh = m.open(path, libc::O_RDWR).unwrap();
    m.close(fh);
}

fn change_mode(m: &Merged) {
    m.chmod("a", 0o600).unwrap();
}

/// Bug: the lookup found no entry in the index of hard links, the file was copied up under another
/// name, and the node that the lookup made said that the file is only in the lower. A write copied it
/// up once more, and the names were two files.
#[test]
fn a_slow_lookup_of_an_alias_notices_a_copy_up() {
    for whiteouts in DIALECTS {
        let stack = three_names(whiteouts);
        let case = Case {
            before: |_| {},
            slow: |m| assert!(m.walk("b").is_ok()),
            meanwhile: |m| m.write("a", b"changed").unwrap(),
        };
        // The look into the index is the last thing that a lookup does.
        let merged = case.start(&stack);
        fault::record();
        (case.slow)(&merged);
        let calls = fault::recorded();
        assert_eq!(calls.last(), Some(&"fstatat"), "{calls:?}");
        drop(merged);

        let merged = case.start(&stack);
        let last = u32::try_from(calls.len()).unwrap();
        assert!(case.stopped_at(&merged, last, Some(libc::ENOENT)));
        assert_eq!(merged.read("b").unwrap(), b"changed");
        merged.chmod("b", 0o640).unwrap();
        check_file(&stack, merged, &["a", "b", "dir/c"], b"changed");
    }
}

/// Bug: the lookup read from the index of hard links that the data were the layer's still. A write
/// filled them in over what had been written under another name.
#[test]
fn a_slow_lookup_of_an_alias_takes_no_data_back() {
    for whiteouts in DIALECTS {
        let case = Case {
            before: change_mode,
            slow: |m| open_to_write(m, "b"),
            meanwhile: |m| m.write("a", b"changed").unwrap(),
        };
        let stack = three_names(whiteouts);
        case.check(&stack, &["a", "b", "dir/c"], b"changed");
    }
}

/// The same under the name that was copied up: while the lookup reads one mark after the other of what
/// it found there, no data come and take marks away.
#[test]
fn a_slow_lookup_reads_all_marks_at_one_time() {
    for whiteouts in DIALECTS {
        let case = Case {
            before: change_mode,
            slow: |m| open_to_write(m, "a"),
            meanwhile: |m| m.write("a", b"changed").unwrap(),
        };
        let stack = three_names(whiteouts);
        case.check(&stack, &["a", "b", "dir/c"], b"changed");
    }
}

/// Bug: the lookup read how many names only the lower has, one of them came to the upper and was
/// removed, and the next one that came there was counted from what had been read.
#[test]
fn a_slow_lookup_of_an_alias_counts_its_names_right() {
    for whiteouts in DIALECTS {
        let stack = three_names(whiteouts);
        for slow in [(|m| m.link("a", "new").unwrap()) as Act, |m| {
            m.link("dir/c", "new").unwrap()
        }] {
            let case = Case {
                before: change_mode,
                slow,
                meanwhile: |m| m.unlink("b").unwrap(),
            };
            case.check(&stack, &["a", "dir/c", "new"], b"shared");
        }
        let case = Case {
            before: change_mode,
            slow: |m| m.unlink("dir/c").unwrap(),
            meanwhile: |m| m.unlink("b").unwrap(),
        };
        case.check(&stack, &["a"], b"shared");
    }
}
