//! Fails the first system call of each operation, then the second, until none is left to fail.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use cvmfs_union::sys::fault;
use nix::errno::Errno;

use super::{Extent, extent, jobs, name_of, play, scenarios};
use crate::support::faults::{End, Ends, Stage, spread, which};
use crate::support::fs::{Fs, Tree};
use crate::support::{Merged, is_root};

/// EINVAL is what file systems answer that lack a feature, so it leads to fallbacks, and EPERM what they
/// answer to who may not. A part is the first at every call, and one of the others at every fourth.
const ERRNOS: [Errno; 6] = [
    Errno::EIO,
    Errno::EPERM,
    Errno::EINVAL,
    Errno::ENOSPC,
    Errno::EDQUOT,
    Errno::EINTR,
];

fn errnos(extent: Extent, at: usize) -> Vec<Errno> {
    let (always, others) = ERRNOS.split_at(1);
    match extent {
        Extent::All => ERRNOS.to_vec(),
        // Twenty seeds come round to all: every fourth call, five errnos.
        Extent::Part(seed) if (at + seed).is_multiple_of(4) => {
            [always, &[others[(seed + at / 4) % others.len()]]].concat()
        }
        Extent::Part(_) => always.to_vec(),
    }
}

#[test]
fn every_call_fails_once() {
    let (extent, scenarios) = (extent(), scenarios::all());
    let jobs = jobs(&scenarios);
    let faults = AtomicUsize::new(0);
    spread(&jobs, name_of, |(i, scenario, variant)| {
        let stage = Stage::new(scenario, *variant);
        let ends = stage.ends();
        let mut n = 1;
        let mut struck = true;
        while struck {
            let again = Again::of(extent, n, variant.cold);
            for errno in errnos(extent, *i + n as usize) {
                struck = fail(&stage, &ends, n, errno, again);
                faults.fetch_add(usize::from(struck), Ordering::Relaxed);
            }
            n += 1;
        }
        let calls = ends.calls.len();
        assert!(n as usize > calls, "only {n} calls of {calls}");
    });
    let faults = faults.into_inner();
    println!(
        "faults: {faults} injected in {} scenarios, {} with their variants ({extent:?})",
        scenarios.len(),
        jobs.len()
    );
}

/// Lets each call of this name in a scenario fail.
pub fn fail_everywhere(name: &str, call: &str, errno: Errno) {
    play(name, |stage, ends| {
        for (n, _) in (1..).zip(&ends.calls).filter(|(_, c)| **c == call) {
            assert!(fail(stage, ends, n, errno, Again::Both));
        }
    });
}

/// Where the operation is tried again.
#[derive(Clone, Copy, Debug)]
enum Again {
    Here,
    Reopened,
    Both,
}

impl Again {
    fn of(extent: Extent, n: u32, cold: bool) -> Again {
        match extent {
            Extent::All => Again::Both,
            _ if n.is_multiple_of(2) != cold => Again::Here,
            _ => Again::Reopened,
        }
    }
}

/// False if there was no such call.
fn fail(stage: &Stage<'_>, ends: &Ends, n: u32, errno: Errno, again: Again) -> bool {
    match again {
        Again::Here => fail_once(stage, ends, n, errno, false),
        Again::Reopened => fail_once(stage, ends, n, errno, true),
        Again::Both => {
            fail_once(stage, ends, n, errno, false) && fail_once(stage, ends, n, errno, true)
        }
    }
}

fn fail_once(stage: &Stage<'_>, ends: &Ends, n: u32, errno: Errno, reopen: bool) -> bool {
    let merged = stage.start();
    fault::fail_nth(n, errno as i32);
    let result = stage.act(&merged);
    let Some(call) = fault::disarm() else {
        return false;
    };
    let what = format!(
        "{} ({}): call {n}, {call}, failed with {errno:?}, the operation returned {result:?}",
        stage.scenario.name, stage.variant
    );
    let forgiven = Forgiven::of(errno, call);
    if let Err(got) = result {
        // One that stayed behind cannot be removed.
        let absent = matches!(forgiven, Forgiven::Xattrs) && got == Errno::ENODATA;
        assert!(got == errno || absent, "{what}");
        // One that succeeded may have failed to tidy up; the next mount does that.
        let left = stage.left_over();
        assert!(
            left.is_empty(),
            "{what}, left in the work directory: {left:?}"
        );
    }
    let trees: Vec<(End, Tree)> = stage
        .allowed(ends, false)
        .into_iter()
        .map(|(end, tree)| (end, forgiven.applied(tree)))
        .collect();
    let allowed: Vec<(End, &Tree)> = trees.iter().map(|(end, tree)| (*end, tree)).collect();
    let live = merged
        .try_tree()
        .unwrap_or_else(|e| panic!("{what}, afterwards: {e}"));
    let at = which(&forgiven.applied(&live), &allowed, &what);
    let done = at != End::Old || ends.old == ends.new;
    assert!(done || result.is_err(), "{what}, and nothing was done");
    // Without a right it is done as well as it can be; there is nothing to do again.
    let settled = !matches!(forgiven, Forgiven::Nothing) && result.is_ok();
    if !reopen {
        if !settled {
            stage.retry(merged, at, ends, &what);
        }
        return true;
    }
    check_let_go(stage, &merged, &what);
    drop(merged);
    let open = open_below(stage.stack.dir(), true);
    // Those of the stack itself.
    let ours = stage.stack.lowers().len();
    assert_eq!(open.len(), ours, "{what}: left open: {open:?}");
    let next = stage.stack.mount();
    let tree = next
        .try_tree()
        .unwrap_or_else(|e| panic!("{what}, reopened: {e}"));
    crate::support::assert_same(&tree, &live.settled(), &format!("{what}, reopened"));
    let left = stage.left_over();
    assert!(
        left.is_empty(),
        "{what}, reopened, in the work directory: {left:?}"
    );
    stage.check_index(ends, at, &what);
    if !stage.scenario.open && !settled {
        stage.retry(next, at, ends, &format!("{what}, reopened"));
    }
    true
}

/// When the kernel has forgotten everything, only the root is known, and only directories are open.
fn check_let_go(stage: &Stage<'_>, merged: &Merged, what: &str) {
    let handles = merged.kept.take();
    for (_, fh) in handles {
        merged.close(fh);
    }
    merged.forget();
    assert_eq!(merged.union.nodes(), 1, "{what}: nodes that nobody counts");
    let open: Vec<String> = open_below(stage.stack.dir(), false);
    assert!(open.is_empty(), "{what}: left open: {open:?}");
}

/// The descriptors of this process that are open below a directory, with those of directories or without.
fn open_below(dir: &Path, directories: bool) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let path = entry.unwrap().path();
        // Other threads open and close theirs meanwhile.
        let (Ok(target), Ok(meta)) = (std::fs::read_link(&path), std::fs::metadata(&path)) else {
            continue;
        };
        if target.starts_with(dir) && (directories || !meta.is_dir()) {
            found.push(target.display().to_string());
        }
    }
    found
}

/// What SEMANTICS lets a copy-up leave behind that is told it has no right.
#[derive(Clone, Copy, Debug)]
enum Forgiven {
    Nothing,
    /// S48: the owner, and set-id bits with it.
    Owner,
    /// S50: extended attributes.
    Xattrs,
    /// S61: the time of a file whose data came, if it cannot be put back.
    Times,
}

impl Forgiven {
    fn of(errno: Errno, call: &str) -> Forgiven {
        match (errno, call) {
            (Errno::EPERM, "fchownat") => Forgiven::Owner,
            // Of an id that the user namespace lacks.
            (Errno::EINVAL, "fchownat") if !is_root() => Forgiven::Owner,
            (Errno::EPERM | Errno::EINVAL, "setxattr") => Forgiven::Xattrs,
            (_, "utimensat") => Forgiven::Times,
            _ => Forgiven::Nothing,
        }
    }

    fn applied(self, tree: &Tree) -> Tree {
        let mut tree = tree.clone();
        for entry in tree.0.values_mut() {
            match self {
                Forgiven::Nothing => {}
                Forgiven::Owner => {
                    (entry.uid, entry.gid) = (0, 0);
                    entry.mode &= 0o1777;
                }
                Forgiven::Xattrs => entry.xattrs.clear(),
                Forgiven::Times => entry.mtime = None,
            }
        }
        tree
    }
}
