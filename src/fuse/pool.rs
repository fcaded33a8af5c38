//! An elastic pool of threads for requests that may have to wait for a layer.
//!
//! A job starts at once: on an idle thread where there is one, else on a new one. Only when there
//! are `MAX_THREADS` of them do jobs queue. A thread that had nothing to do for a while ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::guard;

/// The most threads there are at once.
const MAX_THREADS: usize = 512;
/// How long a thread waits for its next job.
const IDLE: Duration = Duration::from_secs(10);
/// Address space of a thread's stack; memory is taken only as it is touched.
const STACK: usize = 512 * 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The pool. Clones are handles of the same pool.
#[derive(Clone, Default)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a job in the queue for a thread that waits.
    job: Condvar,
    /// A job has ended.
    done: Condvar,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    threads: usize,
    idle: usize,
    /// Jobs submitted and not yet ended.
    pending: usize,
}

impl Pool {
    /// Runs the job, soon and elsewhere. A panic in it is logged.
    pub fn submit(&self, op: &'static str, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        state.pending += 1;
        state.queue.push_back(Box::new(move || guard(op, job)));
        if state.queue.len() <= state.idle {
            drop(state);
            self.shared.job.notify_one();
        } else if state.threads < MAX_THREADS {
            state.threads += 1;
            drop(state);
            self.spawn();
        }
    }

    /// Waits until no job is left, or the time is over. Says whether none is left.
    pub fn drain(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let mut state = self.shared.state.lock();
        while state.pending > 0 {
            if self
                .shared
                .done
                .wait_until(&mut state, deadline)
                .timed_out()
            {
                break;
            }
        }
        state.pending == 0
    }

    /// Starts the thread that `submit` has counted already.
    fn spawn(&self) {
        let shared = Arc::clone(&self.shared);
        let spawned = thread::Builder::new()
            .name("union-worker".to_owned())
            .stack_size(STACK)
            .spawn(move || shared.work());
        if let Err(e) = spawned {
            tracing::warn!("no new thread: {e}");
            self.shared.without_thread();
        }
    }
}

impl Shared {
    /// The life of a thread.
    fn work(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                job();
                state = self.state.lock();
                self.ended(&mut state);
                continue;
            }
            state.idle += 1;
            let timed_out = self.job.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.queue.is_empty() {
                state.threads -= 1;
                return;
            }
        }
    }

    /// A thread could not be started: another one takes the job later, or, when there is no other,
    /// the caller does it now.
    fn without_thread(&self) {
        let mut state = self.state.lock();
        state.threads -= 1;
        while state.threads == 0 {
            let Some(job) = state.queue.pop_front() else {
                return;
            };
            drop(state);
            job();
            state = self.state.lock();
            self.ended(&mut state);
        }
    }

    fn ended(&self, state: &mut State) {
        state.pending -= 1;
        if state.pending == 0 {
            self.done.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn jobs_that_wait_for_each_other_all_run() {
        let pool = Pool::default();
        let barrier = Arc::new(Barrier::new(64));
        for _ in 0..64 {
            let barrier = Arc::clone(&barrier);
            pool.submit("test", move || {
                barrier.wait();
            });
        }
        assert!(pool.drain(Duration::from_secs(30)));
    }

    #[test]
    fn more_jobs_than_threads() {
        let pool = Pool::default();
        let count = Arc::new(AtomicUsize::new(0));
        for _ in 0..2 * MAX_THREADS {
            let count = Arc::clone(&count);
            pool.submit("test", move || {
                thread::sleep(Duration::from_millis(5));
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(pool.drain(Duration::from_secs(30)));
        assert_eq!(count.load(Ordering::Relaxed), 2 * MAX_THREADS);
    }

    #[test]
    fn a_panic_ends_only_its_job() {
        let pool = Pool::default();
        let none: Vec<u32> = Vec::new();
        pool.submit("test", move || {
            std::hint::black_box(none[std::hint::black_box(0)]);
        });
        assert!(pool.drain(Duration::from_secs(30)));
        pool.submit("test", || {});
        assert!(pool.drain(Duration::from_secs(30)));
    }
}
