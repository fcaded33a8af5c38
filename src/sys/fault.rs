//! Fault injection: makes the N-th system call of this thread fail, for tests.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static ARMED: AtomicBool = AtomicBool::new(false);

/// How many calls are left, and what to do before the last of them.
type Hook = (u32, Box<dyn FnOnce()>);

thread_local! {
    static HOOK: Cell<Option<Hook>> = const { Cell::new(None) };
    static PLAN: Cell<Option<(u32, i32)>> = const { Cell::new(None) };
}

/// Lets the `n`-th wrapped call from now on (1 is the next) fail with `errno`, on this thread only.
pub fn fail_nth(n: u32, errno: i32) {
    ARMED.store(true, Ordering::Relaxed);
    PLAN.set(Some((n, errno)));
}

/// Runs the hook before the `n`-th wrapped call from now on, on this thread only: what other threads do
/// in it happens between two calls of this one.
pub fn pause_before(n: u32, hook: impl FnOnce() + 'static) {
    ARMED.store(true, Ordering::Relaxed);
    HOOK.set(Some((n, Box::new(hook))));
}

/// Takes the hook back; true where it had not run yet.
pub fn dismiss() -> bool {
    HOOK.take().is_some()
}

fn run_hook() {
    match HOOK.take() {
        Some((n, hook)) if n <= 1 => hook(),
        Some((n, hook)) => HOOK.set(Some((n - 1, hook))),
        None => {}
    }
}

/// Takes the plan back; true where it had not struck yet.
pub fn disarm() -> bool {
    PLAN.take().is_some()
}

/// Called by each wrapper before its system call.
pub(super) fn point() -> io::Result<()> {
    if !ARMED.load(Ordering::Relaxed) {
        return Ok(());
    }
    run_hook();
    match PLAN.get() {
        Some((n, errno)) if n <= 1 => {
            PLAN.set(None);
            Err(io::Error::from_raw_os_error(errno))
        }
        Some((n, errno)) => {
            PLAN.set(Some((n - 1, errno)));
            Ok(())
        }
        None => Ok(()),
    }
}
