//! Fault injection: makes the N-th system call of this thread fail, for tests.

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

static ARMED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static PLAN: Cell<Option<(u32, i32)>> = const { Cell::new(None) };
}

/// Lets the `n`-th wrapped call from now on (1 is the next) fail with `errno`, on this thread only.
pub fn fail_nth(n: u32, errno: i32) {
    ARMED.store(true, Ordering::Relaxed);
    PLAN.set(Some((n, errno)));
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
