//! What goes wrong in a [`SlowFs`](super::SlowFs), and the requests that it had.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::Duration;

use fuser::Errno;

/// What goes wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// A lookup fails.
    Lookup,
    /// Its attributes cannot be had.
    Getattr,
    /// A listing fails at once.
    List,
    /// A listing fails after some names.
    ListRest,
    /// Each answer about the names of a directory holds a few, though there is room for more, and the
    /// cookies are numbers. No CVMFS client does so.
    FewNames,
    /// Each answer about the names of a directory is a page at most, as if an older kernel asked.
    Page,
    /// It cannot be asked for its repository (`user.fqrn`).
    Repository,
    /// An open of a file fails.
    Open,
    /// Any read fails.
    Read,
    /// What lies behind the middle of the file cannot be read.
    ReadRest,
    /// The file ends in its middle, whatever its size says.
    Short,
    /// Reads wait until the fault is lifted.
    Stall,
    /// Everything in the file system waits, whatever the path.
    StallAll,
}

const PATIENCE: Duration = Duration::from_secs(20);

/// The faults there are, and the requests that wait.
#[derive(Default)]
pub struct Faults {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    set: HashMap<(Fault, PathBuf), Errno>,
    delay: Duration,
    stalled: usize,
    requests: u64,
    kinds: BTreeMap<(PathBuf, &'static str), u64>,
    /// The requests from one number on, or only that one, fail.
    plan: Option<Plan>,
}

struct Plan {
    from: u64,
    lasting: bool,
    errno: Errno,
}

impl Faults {
    /// Makes this go wrong from now on, with EIO. The path is relative to the root.
    pub fn set(&self, fault: Fault, path: impl Into<PathBuf>) {
        self.set_errno(fault, path, Errno::EIO);
    }

    /// The same with another errno.
    pub fn set_errno(&self, fault: Fault, path: impl Into<PathBuf>, errno: Errno) {
        self.lock().set.insert((fault, path.into()), errno);
    }

    /// Makes the request after the next `n` fail; if `lasting`, all after it too.
    pub fn fail_after(&self, n: u64, lasting: bool, errno: Errno) {
        let mut state = self.lock();
        let from = state.requests + n;
        state.plan = Some(Plan {
            from,
            lasting,
            errno,
        });
    }

    /// Each answer takes so long from now on.
    pub fn delay(&self, delay: Duration) {
        self.lock().delay = delay;
    }

    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// The requests so far, by kind. What the kernel sends when it likes is not among them.
    pub fn tally(&self) -> BTreeMap<&'static str, u64> {
        self.tally_below(Path::new(""))
    }

    /// The same, of what lies below a directory.
    pub fn tally_below(&self, path: &Path) -> BTreeMap<&'static str, u64> {
        let mut tally = BTreeMap::new();
        for ((of, kind), count) in &self.lock().kinds {
            if of.starts_with(path) {
                *tally.entry(*kind).or_default() += count;
            }
        }
        tally
    }

    /// How many there are of one kind while `body` runs.
    pub fn count<T>(&self, kind: &str, body: impl FnOnce() -> T) -> (u64, T) {
        let now = || self.tally().get(kind).copied().unwrap_or(0);
        let before = now();
        let done = body();
        (now() - before, done)
    }

    /// All is well again; the requests that wait go on.
    pub fn lift(&self) {
        let mut state = self.lock();
        state.set.clear();
        state.delay = Duration::ZERO;
        state.plan = None;
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until a request stalls.
    pub fn wait_for_stall(&self) {
        self.wait_for_stalls(1);
    }

    /// Waits until so many requests stall.
    pub fn wait_for_stalls(&self, n: usize) {
        let (state, timeout) = self
            .changed
            .wait_timeout_while(self.lock(), PATIENCE, |s| s.stalled < n)
            .unwrap();
        let stalled = state.stalled;
        drop(state);
        assert!(!timeout.timed_out(), "{stalled} requests stall, not {n}");
    }

    pub(super) fn has(&self, fault: Fault, path: &Path) -> bool {
        self.check(fault, path).is_err()
    }

    pub(super) fn check(&self, fault: Fault, path: &Path) -> Result<(), Errno> {
        match self.lock().set.get(&(fault, path.to_owned())) {
            Some(errno) => Err(*errno),
            None => Ok(()),
        }
    }

    /// Whether a request may have to wait.
    pub(super) fn may_wait(&self) -> bool {
        let state = self.lock();
        let stalls =
            |(fault, _): &(Fault, PathBuf)| matches!(fault, Fault::Stall | Fault::StallAll);
        !state.delay.is_zero() || state.set.keys().any(stalls)
    }

    /// What each request goes through first.
    pub(super) fn enter(&self, kind: &'static str, path: &Path) -> Result<(), Errno> {
        self.stall(Fault::StallAll, Path::new(""));
        let delay = self.lock().delay;
        std::thread::sleep(delay);
        let mut state = self.lock();
        let number = state.requests;
        state.requests += 1;
        *state.kinds.entry((path.to_owned(), kind)).or_default() += 1;
        match &state.plan {
            Some(plan) if number == plan.from || plan.lasting && number > plan.from => {
                Err(plan.errno)
            }
            _ => Ok(()),
        }
    }

    pub(super) fn stall(&self, fault: Fault, path: &Path) {
        let key = (fault, path.to_owned());
        let mut state = self.lock();
        if !state.set.contains_key(&key) {
            return;
        }
        state.stalled += 1;
        self.changed.notify_all();
        let mut state = self
            .changed
            .wait_while(state, |s| s.set.contains_key(&key))
            .unwrap();
        state.stalled -= 1;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that fails poisons nothing that the clean-up needs.
        self.state
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}
