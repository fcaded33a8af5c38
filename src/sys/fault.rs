//! Fault injection, for tests: makes the N-th system call of this thread fail, or kills the process
//! there, and records the calls by name. Each wrapper passes `point` before its call.

use std::cell::RefCell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::{Signal, raise};

static ARMED: AtomicBool = AtomicBool::new(false);

/// What comes instead of a call.
#[derive(Clone, Copy, Debug)]
enum Strike {
    Fail(i32),
    Kill,
}

/// How many calls are left, and what to do before the last of them.
type Hook = (u32, Box<dyn FnOnce()>);

/// What is to happen on a thread.
#[derive(Default)]
struct Plan {
    hook: Option<Hook>,
    /// So many calls from now (1 is the next).
    strike: Option<(u32, Strike)>,
    struck: Option<&'static str>,
    lacking: &'static [(&'static str, i32)],
    calls: Option<Vec<&'static str>>,
}

thread_local! {
    static PLAN: RefCell<Plan> = const {
        RefCell::new(Plan { hook: None, strike: None, struck: None, lacking: &[], calls: None })
    };
}

fn plan<T>(change: impl FnOnce(&mut Plan) -> T) -> T {
    ARMED.store(true, Ordering::Relaxed);
    PLAN.with_borrow_mut(change)
}

/// Lets the `n`-th wrapped call from now on (1 is the next) fail with `errno`, on this thread only.
pub fn fail_nth(n: u32, errno: i32) {
    plan(|p| (p.strike, p.struck) = (Some((n, Strike::Fail(errno))), None));
}

/// Kills the process before the `n`-th wrapped call from now on.
pub fn kill_nth(n: u32) {
    plan(|p| (p.strike, p.struck) = (Some((n, Strike::Kill)), None));
}

/// Runs the hook before the `n`-th wrapped call from now on, on this thread only: what other threads do
/// in it happens between two calls of this one.
pub fn pause_before(n: u32, hook: impl FnOnce() + 'static) {
    plan(|p| p.hook = Some((n, Box::new(hook))));
}

/// Takes the hook back; true where it had not run yet.
pub fn dismiss() -> bool {
    plan(|p| p.hook.take()).is_some()
}

/// Takes the plan back; the name of the call that it struck, if it did.
pub fn disarm() -> Option<&'static str> {
    plan(|p| {
        p.strike = None;
        p.struck.take()
    })
}

/// From now on these calls always fail on this thread, as on a file system that does not know them.
pub fn lack(calls: &'static [(&'static str, i32)]) {
    plan(|p| p.lacking = calls);
}

/// Begins to record the names of the calls of this thread.
pub fn record() {
    plan(|p| p.calls = Some(Vec::new()));
}

/// Ends the record, and returns it.
pub fn recorded() -> Vec<&'static str> {
    plan(|p| p.calls.take()).unwrap_or_default()
}

/// Dies as by a kill from outside: nothing is tidied up.
pub fn die() {
    // It cannot fail for this process's own thread.
    crate::error::best_effort("die", raise(Signal::SIGKILL));
}

/// Called by each wrapper before its system call, with the call's name.
pub(super) fn point(call: &'static str) -> io::Result<()> {
    if !ARMED.load(Ordering::Relaxed) {
        return Ok(());
    }
    if let Some(hook) = PLAN.with_borrow_mut(Plan::hook_now) {
        hook();
    }
    PLAN.with_borrow_mut(|plan| plan.meet(call))
}

impl Plan {
    /// The hook, if it is its turn.
    fn hook_now(&mut self) -> Option<Box<dyn FnOnce()>> {
        let (left, hook) = self.hook.take()?;
        if left <= 1 {
            return Some(hook);
        }
        self.hook = Some((left - 1, hook));
        None
    }

    fn meet(&mut self, call: &'static str) -> io::Result<()> {
        if let Some(calls) = &mut self.calls {
            calls.push(call);
        }
        match self.strike {
            Some((n, strike)) if n <= 1 => {
                (self.strike, self.struck) = (None, Some(call));
                match strike {
                    Strike::Fail(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    Strike::Kill => die(),
                }
            }
            Some((n, strike)) => self.strike = Some((n - 1, strike)),
            None => {}
        }
        match self.lacking.iter().find(|(name, _)| *name == call) {
            Some((_, errno)) => Err(io::Error::from_raw_os_error(*errno)),
            None => Ok(()),
        }
    }
}
