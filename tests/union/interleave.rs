//! Two operations at once, by plan and not by luck: one is stopped before each of its system calls in
//! turn, and another is done meanwhile, as far as the first one's locks let it. What they say and
//! leave behind must be what comes of whole calls of the union, one after the other.
//!
//! All pairs of operations are tried for so long as `CVMFS_UNION_RACES_SECONDS` says, in an order that
//! `CVMFS_UNION_RACES_SEED` repeats.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cvmfs_union::sys::fault;
use cvmfs_union::union::Union;
use cvmfs_union::union::api::{RenameKind, Whiteouts};

use super::races::{patience, seed};
use super::{DIALECTS, sample};
use crate::support::deadline::Deadline;
use crate::support::fs::Res;
use crate::support::random::Random;
use crate::support::{Fs, Merged, Stack, Tree, ok};

/// More calls than any operation makes.
pub const MANY: u32 = 500;
/// So many failures are shown.
const ENOUGH: usize = 10;

type Act = fn(&Merged) -> Res<String>;

fn said(result: Res<()>) -> Res<String> {
    result.map(|()| String::new())
}

fn overwrite(m: &Merged, path: &str, offset: u64) -> Res<String> {
    let fh = m.open(path, libc::O_RDWR)?;
    let done = m.pwrite(fh, offset, b"NEW");
    m.close(fh);
    done.map(|n| n.to_string())
}

fn read(m: &Merged, path: &str) -> Res<String> {
    let fh = m.open(path, libc::O_RDONLY)?;
    let data = m.pread(fh, 0, 100);
    m.close(fh);
    data.map(|data| String::from_utf8(data).unwrap())
}

fn make(m: &Merged, path: &str) -> Res<String> {
    m.create(path, 0o640).map(|fh| {
        m.close(fh);
        String::new()
    })
}

fn moved(m: &Merged, from: &str, to: &str, kind: RenameKind) -> Res<String> {
    said(m.rename(from, to, kind))
}

/// What a listing shows of names that come and go meanwhile is not said.
fn list(m: &Merged, path: &str) -> Res<String> {
    let dir = m.walk(path)?;
    let listed = ok(m.union.readdir(dir, 0, &mut |_| true));
    said(listed)
}

fn look(m: &Merged, path: &str) -> Res<String> {
    let attr = ok(m.union.getattr(m.walk(path)?, None))?;
    Ok(format!("{:o} {}", attr.mode, attr.size))
}

const REPLACE: RenameKind = RenameKind::Replace;
const EXCHANGE: RenameKind = RenameKind::Exchange;

/// What is done, all of it on few names.
const OPS: &[(&str, Act)] = &[
    ("write", |m| overwrite(m, "dir/file", 0)),
    ("write more", |m| overwrite(m, "dir/file", 4)),
    ("read", |m| read(m, "dir/file")),
    ("look", |m| look(m, "dir/file")),
    ("chmod", |m| said(m.chmod("dir/file", 0o640))),
    ("truncate", |m| said(m.truncate("dir/file", 4))),
    ("empty", |m| said(m.truncate("dir/file", 0))),
    ("unlink", |m| said(m.unlink("dir/file"))),
    ("rename", |m| moved(m, "dir/file", "dir/new", REPLACE)),
    ("rename over", |m| moved(m, "plain", "dir/file", REPLACE)),
    ("rename out", |m| {
        moved(m, "dir/file", "shallow/file", REPLACE)
    }),
    ("exchange", |m| moved(m, "plain", "dir/file", EXCHANGE)),
    ("link", |m| said(m.link("dir/file", "dir/sub/link"))),
    ("set xattr", |m| {
        said(m.setxattr("dir/file", "user.b", b"B", 0))
    }),
    ("get xattr", |m| {
        m.getxattr("dir/file", "user.b").map(|v| format!("{v:?}"))
    }),
    ("remove xattr", |m| {
        said(m.removexattr("dir/file", "user.a"))
    }),
    ("move directory", |m| moved(m, "dir", "moved", REPLACE)),
    ("move sub", |m| moved(m, "dir/sub", "shallow/sub", REPLACE)),
    ("move sub onto empty", |m| {
        moved(m, "dir/sub", "empty", REPLACE)
    }),
    ("move into sub", |m| {
        moved(m, "shallow", "dir/sub/s", REPLACE)
    }),
    ("move into shallow", |m| {
        moved(m, "dir", "shallow/d", REPLACE)
    }),
    ("exchange directories", |m| {
        moved(m, "dir/sub", "shallow", EXCHANGE)
    }),
    ("create", |m| make(m, "dir/gone")),
    ("create in sub", |m| make(m, "dir/sub/new")),
    ("create in empty", |m| make(m, "empty/new")),
    ("mkdir", |m| said(m.mkdir("dir/gone", 0o750))),
    ("mkdir in empty", |m| said(m.mkdir("empty/new", 0o750))),
    ("rmdir", |m| said(m.rmdir("empty"))),
    ("rmdir sub", |m| said(m.rmdir("dir/sub"))),
    ("unlink deep", |m| said(m.unlink("dir/sub/deep"))),
    ("chmod directory", |m| said(m.chmod("dir", 0o700))),
    ("list", |m| list(m, "dir")),
    ("unlink first", |m| said(m.unlink("first"))),
    ("write second", |m| overwrite(m, "second", 0)),
    ("chmod second", |m| said(m.chmod("second", 0o600))),
    ("link second", |m| said(m.link("second", "dir/third"))),
    ("write plain", |m| overwrite(m, "plain", 0)),
    ("write more of plain", |m| overwrite(m, "plain", 4)),
    ("rename first", |m| moved(m, "first", "dir/first", REPLACE)),
    ("read first", |m| read(m, "first")),
    ("replace second", |m| moved(m, "plain", "second", REPLACE)),
];

/// What was before: nothing known; all known; metadata copies on the disk, and nothing known.
#[derive(Clone, Copy, Debug)]
enum Before {
    Cold,
    Warm,
    Metadata,
}

const BEFORES: [Before; 3] = [Before::Cold, Before::Warm, Before::Metadata];

impl Before {
    fn start(self, stack: &Stack) -> Merged {
        stack.reset();
        let merged = stack.mount();
        match self {
            Before::Cold => {}
            Before::Warm => drop(merged.tree()),
            Before::Metadata => {
                for path in ["dir/file", "first", "plain", "dir/sub"] {
                    merged.chmod(path, 0o755).unwrap();
                }
                merged.forget();
            }
        }
        merged
    }
}

#[derive(Clone, PartialEq, Eq)]
struct Outcome {
    first: Res<String>,
    second: Res<String>,
    tree: Tree,
}

/// The outcome, after the union has proved that it shows what is on the disk and holds nothing back.
fn outcome(
    stack: &Stack,
    merged: Merged,
    first: Res<String>,
    second: Res<String>,
) -> Result<Outcome, String> {
    let nodes = merged.nodes_left();
    let tree = merged.try_tree()?;
    let next = stack.reopen(merged);
    let reopened = next.try_tree().map_err(|e| format!("reopened: {e}"))?;
    drop(next);
    let open = stack.descriptors() - stack.lowers().len();
    let left = stack.work().names("work").unwrap();
    let outcome = Outcome {
        first,
        second,
        tree,
    };
    if reopened != outcome.tree {
        let now = Outcome {
            tree: reopened,
            ..outcome.clone()
        };
        let (was, now) = (outcome.against(&now), now.against(&outcome));
        return Err(format!("reopened: {now}before: {was}"));
    }
    if (nodes, open, left.len()) != (1, 0, 0) {
        let text = "nodes nobody knows, descriptors, temporaries";
        return Err(format!("{} {text}: {open} {left:?}", nodes - 1));
    }
    Ok(outcome)
}

/// Does the second whole before the `n`-th call of the union by the first, the first of which is 1.
/// None: the first makes fewer.
fn by_calls(
    stack: &Stack,
    before: Before,
    n: u32,
    first: Act,
    second: Act,
) -> Result<Option<Outcome>, String> {
    let merged = before.start(stack);
    let slot: Rc<Cell<Option<Res<String>>>> = Rc::default();
    let (union, other_said) = (merged.union.share(), slot.clone());
    let other = move || {
        let other = Merged::sharing(union);
        other_said.set(Some(second(&other)));
        other.forget();
    };
    merged.union.pause_before(n, other);
    let said = first(&merged);
    if merged.union.dismiss() {
        return Ok(None);
    }
    outcome(stack, merged, said, slot.take().unwrap()).map(Some)
}

/// All that may come of the two: each call of the union is atomic, and one of the two is done whole
/// between two calls of the other, or at an end.
fn orders(stack: &Stack, before: Before, a: Act, b: Act) -> Result<Vec<Outcome>, String> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for n in 1..MANY {
        let Some(outcome) = by_calls(stack, before, n, a, b)? else {
            break;
        };
        outcomes.push(outcome);
    }
    for n in 1..MANY {
        let Some(outcome) = by_calls(stack, before, n, b, a)? else {
            return Ok(outcomes);
        };
        outcomes.push(Outcome {
            first: outcome.second,
            second: outcome.first,
            tree: outcome.tree,
        });
    }
    Err("no end of calls".into())
}

/// Does the second before the `n`-th system call of the first. None: the first makes fewer.
fn interleaved(
    stack: &Stack,
    before: Before,
    n: u32,
    first: Act,
    second: Act,
) -> Result<Option<Outcome>, String> {
    let merged = before.start(stack);
    let slot: Rc<Cell<Option<JoinHandle<Res<String>>>>> = Rc::default();
    let (union, started) = (merged.union.share(), slot.clone());
    fault::pause_before(n, move || started.set(Some(meanwhile(union, second))));
    let said = first(&merged);
    if fault::dismiss() {
        return Ok(None);
    }
    let other_said = slot.take().unwrap().join().unwrap();
    outcome(stack, merged, said, other_said).map(Some)
}

/// Starts it, and waits until it has ended or waits for a lock.
pub fn meanwhile<T: Send + 'static>(
    union: Arc<Union>,
    act: impl FnOnce(&Merged) -> T + Send + 'static,
) -> JoinHandle<T> {
    let (send, tid) = channel();
    let thread = std::thread::spawn(move || {
        send.send(nix::unistd::gettid()).unwrap();
        let other = Merged::sharing(union);
        let said = act(&other);
        other.forget();
        said
    });
    let stat = format!("/proc/self/task/{}/stat", tid.recv().unwrap());
    let mut asleep = 0;
    while !thread.is_finished() && asleep < 3 {
        std::thread::sleep(Duration::from_micros(60));
        let text = std::fs::read_to_string(&stat).unwrap_or_default();
        let sleeps = text.rsplit(") ").next().is_some_and(|s| s.starts_with('S'));
        asleep = if sleeps { asleep + 1 } else { 0 };
    }
    thread
}

impl Outcome {
    /// What was said, and the lines of the tree that the other one lacks.
    fn against(&self, other: &Outcome) -> String {
        let tree = self.tree.against(&other.tree);
        let lines = tree.lines().filter(|line| line.starts_with('*'));
        let lines: String = lines.map(|line| format!("  {line}\n")).collect();
        format!("{:?}, {:?}\n{lines}", self.first, self.second)
    }
}

/// How many points there are to stop at, if all goes well at each.
fn check_pair(stack: &Stack, before: Before, a: Act, b: Act) -> Result<u32, String> {
    let orders = orders(stack, before, a, b)?;
    for n in 1..MANY {
        let at = |e| format!("before call {n}: {e}");
        match interleaved(stack, before, n, a, b).map_err(at)? {
            None => return Ok(n - 1),
            Some(got) if orders.contains(&got) => {}
            Some(got) => {
                let mut text = format!("before call {n}: {}", got.against(&orders[0]));
                for order in orders {
                    text += &format!("or else: {}", order.against(&got));
                }
                return Err(text);
            }
        }
    }
    Err("no end of calls".into())
}

fn pairs(whiteouts: Whiteouts) {
    let stack = Stack::with(2, whiteouts);
    sample(&stack);
    let seed = seed();
    let mut random = Random::new(seed);
    let mut todo = Vec::new();
    for a in OPS {
        for b in OPS {
            todo.extend(BEFORES.map(|before| (before, *a, *b)));
        }
    }
    let all = todo.len();
    let end = Instant::now() + patience(10);
    let (mut done, mut points) = (0, 0);
    let mut failed = Vec::new();
    while Instant::now() < end && !todo.is_empty() && failed.len() < ENOUGH {
        let (before, a, b) = todo.swap_remove(random.below(todo.len()));
        let what = format!("{whiteouts:?} {before:?}: {:?} during {:?}", b.0, a.0);
        let _deadline = Deadline::new(&what, Duration::from_secs(60));
        match check_pair(&stack, before, a.1, b.1) {
            Ok(n) => points += n,
            Err(e) => failed.push(format!("{what}, {e}")),
        }
        done += 1;
    }
    eprintln!("{whiteouts:?}: {done} of {all} pairs, {points} points, seed {seed}");
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// One pair, in both dialects.
fn pair(before: Before, a: &str, b: &str) {
    let act = |name| OPS.iter().find(|op| op.0 == name).unwrap().1;
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let what = format!("{whiteouts:?} {before:?}: {b:?} during {a:?}");
        let _deadline = Deadline::new(&what, Duration::from_secs(60));
        if let Err(e) = check_pair(&stack, before, act(a), act(b)) {
            panic!("{what}, {e}");
        }
    }
}

/// Bug: a lookup read the marks of a metadata copy, somebody wrote to the file and it was forgotten,
/// and then the lookup entered a node made from the old marks. The next write put the layer's data
/// over what had been written.
#[test]
fn a_slow_lookup_takes_no_data_back() {
    pair(Before::Metadata, "write", "write more");
    // In a directory that stays known, and what it says of the name stays the same.
    pair(Before::Metadata, "write plain", "write more of plain");
}

/// Bug: a lookup took a name for unchanged although two objects had changed places, and what was
/// written went into the other one.
#[test]
fn a_slow_lookup_notices_an_exchange() {
    pair(Before::Metadata, "write", "exchange");
}

/// Bug: a rename found its source, the same rename was done by somebody else, and then the object that
/// stood at the target was taken for a second name of the source: both said that they had moved it.
#[test]
fn of_two_equal_renames_one_succeeds() {
    for before in BEFORES {
        pair(before, "rename", "rename");
        pair(before, "rename out", "rename out");
    }
}

/// Stops an exchange before its `n`-th system call for a removal, and that before its `m`-th until the
/// exchange is over. Whether each was stopped, and what lies in the work directory then.
fn exchange_in_a_removal(stack: &Stack, n: u32, m: u32) -> (bool, bool, Vec<String>) {
    stack.reset();
    let merged = stack.mount();
    for path in ["empty", "shallow"] {
        merged.rmdir(path).unwrap();
        merged.mkdir(path, 0o755).unwrap();
    }
    let (over, wait) = channel::<()>();
    let union = merged.union.share();
    let slot: Rc<Cell<Option<JoinHandle<bool>>>> = Rc::default();
    let started = slot.clone();
    fault::pause_before(n, move || {
        let removal = meanwhile(union, move |other| {
            // Where it holds what the exchange needs, that is never over.
            let held_up = Duration::from_millis(5);
            fault::pause_before(m, move || {
                wait.recv_timeout(held_up).ok();
            });
            other.rmdir("shallow").ok();
            !fault::dismiss()
        });
        started.set(Some(removal));
    });
    merged.rename("empty", "shallow", EXCHANGE).ok();
    drop(over);
    let stopped = !fault::dismiss();
    let removal_stopped = slot.take().is_some_and(|removal| removal.join().unwrap());
    (
        stopped,
        removal_stopped,
        stack.work().names("work").unwrap(),
    )
}

/// Bug: a directory that was to be moved to a name of a lower, and was removed at the same time, got its
/// opaque marker while it was being cleaned away, and stayed in the work directory.
#[test]
fn nothing_is_put_into_what_is_cleaned_away() {
    for whiteouts in DIALECTS {
        let stack = Stack::with(2, whiteouts);
        sample(&stack);
        let mut removals = 0;
        'exchange: for n in 1..MANY {
            for m in 1..MANY {
                let (stopped, removal_stopped, left) = exchange_in_a_removal(&stack, n, m);
                assert_eq!(left, [""; 0], "{whiteouts:?}, calls {n} and {m}");
                removals += u32::from(removal_stopped);
                match (stopped, removal_stopped) {
                    (false, _) => break 'exchange,
                    (true, false) => break,
                    (true, true) => {}
                }
            }
        }
        assert!(removals > 20, "{removals}");
    }
}

#[test]
fn pairs_in_overlay_style() {
    pairs(DIALECTS[0]);
}

#[test]
fn pairs_in_wh_style() {
    pairs(DIALECTS[1]);
}
