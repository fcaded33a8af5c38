//! An elastic pool of threads for requests that may have to wait for a layer.
//!
//! A job starts at once: on an idle thread where there is one, else on a new one. Only when the jobs
//! of its lane, which wait for the same object or the same layers, have their share of the threads it
//! stays in the queue; jobs of other lanes pass it there. A thread that had nothing to do for a while
//! ends.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::guard;
use crate::hash::Numbers;
use crate::union::Lane;

/// The most threads there are at once. More than any few lanes together can hold.
const MAX_THREADS: usize = 4096;
/// The most threads that jobs about one object have.
const MAX_OF_OBJECT: usize = 32;
/// The most threads that jobs waiting for the same layers have.
const MAX_OF_LAYERS: usize = 256;
/// How long a thread waits for its next job.
const IDLE: Duration = Duration::from_secs(10);
/// Address space of a thread's stack; memory is taken only as it is touched.
const STACK: usize = 512 * 1024;

struct Job {
    lane: Lane,
    body: Box<dyn FnOnce() + Send>,
}

/// The pool. Clones are handles of the same pool.
#[derive(Clone, Default)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// There is a job that may start for a thread that waits.
    job: Condvar,
    /// A job has ended.
    done: Condvar,
}

#[derive(Default)]
struct State {
    /// Jobs that may start, and count as running.
    ready: VecDeque<Job>,
    /// Jobs whose lane is full, in their order.
    held: VecDeque<Job>,
    running: Running,
    threads: usize,
    idle: usize,
    /// Jobs submitted and not yet ended.
    pending: usize,
}

/// How many jobs run, by object and by layers.
#[derive(Default)]
struct Running {
    objects: HashMap<u64, usize, Numbers>,
    layers: HashMap<u64, usize, Numbers>,
}

impl Running {
    /// Whether the lane has a thread left.
    fn has_room(&self, lane: Lane) -> bool {
        let below = |map: &HashMap<u64, usize, Numbers>, key: u64, most| {
            map.get(&key).is_none_or(|n| *n < most)
        };
        below(&self.objects, lane.object, MAX_OF_OBJECT)
            && lane
                .layers
                .is_none_or(|layers| below(&self.layers, layers, MAX_OF_LAYERS))
    }

    fn begin(&mut self, lane: Lane) {
        *self.objects.entry(lane.object).or_default() += 1;
        if let Some(layers) = lane.layers {
            *self.layers.entry(layers).or_default() += 1;
        }
    }

    fn end(&mut self, lane: Lane) {
        let less = |map: &mut HashMap<u64, usize, Numbers>, key: u64| {
            if let Some(n) = map.get_mut(&key) {
                *n -= 1;
                if *n == 0 {
                    map.remove(&key);
                }
            }
        };
        less(&mut self.objects, lane.object);
        if let Some(layers) = lane.layers {
            less(&mut self.layers, layers);
        }
    }
}

impl Pool {
    /// Runs the job, soon and elsewhere. A panic in it is logged.
    pub fn submit(&self, op: &'static str, lane: Lane, job: impl FnOnce() + Send + 'static) {
        let job = Job {
            lane,
            body: Box::new(move || guard(op, job)),
        };
        let mut state = self.shared.state.lock();
        state.pending += 1;
        if !state.running.has_room(lane) {
            state.held.push_back(job);
            return;
        }
        state.running.begin(lane);
        state.ready.push_back(job);
        self.shared.staff(state);
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
}

impl Shared {
    /// Sees to it that somebody takes the jobs that may start.
    fn staff(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        if state.ready.len() <= state.idle {
            drop(state);
            self.job.notify_one();
        } else if state.threads < MAX_THREADS {
            state.threads += 1;
            drop(state);
            self.spawn();
        }
    }

    /// Starts a thread that is counted already.
    fn spawn(self: &Arc<Self>) {
        let shared = Arc::clone(self);
        let spawned = thread::Builder::new()
            .name("union-worker".to_owned())
            .stack_size(STACK)
            .spawn(move || shared.work());
        if let Err(e) = spawned {
            tracing::warn!("no new thread: {e}");
            self.without_thread();
        }
    }

    /// The life of a thread.
    fn work(self: &Arc<Self>) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.ready.pop_front() {
                drop(state);
                (job.body)();
                state = self.state.lock();
                if self.ended(&mut state, job.lane) > 1 {
                    // One is for this thread.
                    self.staff(state);
                    state = self.state.lock();
                }
                continue;
            }
            state.idle += 1;
            let timed_out = self.job.wait_for(&mut state, IDLE).timed_out();
            state.idle -= 1;
            if timed_out && state.ready.is_empty() {
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
            let Some(job) = state.ready.pop_front() else {
                return;
            };
            drop(state);
            (job.body)();
            state = self.state.lock();
            self.ended(&mut state, job.lane);
        }
    }

    /// Takes a job off the books, and lets those start that this makes room for. Says how many.
    fn ended(&self, state: &mut State, lane: Lane) -> usize {
        let State { running, held, .. } = state;
        running.end(lane);
        let mut started = 0;
        while let Some(at) = held.iter().position(|job| running.has_room(job.lane)) {
            let Some(job) = held.remove(at) else { break };
            running.begin(job.lane);
            state.ready.push_back(job);
            started += 1;
        }
        state.pending -= 1;
        if state.pending == 0 {
            self.done.notify_all();
        }
        started
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;

    const PATIENCE: Duration = Duration::from_secs(30);

    fn lane(object: usize, layers: u64) -> Lane {
        Lane {
            object: object as u64,
            layers: Some(layers),
        }
    }

    /// A gate that holds jobs until it is dropped.
    struct Gate {
        _open: mpsc::Sender<()>,
        closed: Arc<Mutex<mpsc::Receiver<()>>>,
    }

    impl Gate {
        fn new() -> Gate {
            let (_open, receiver) = mpsc::channel();
            let closed = Arc::new(Mutex::new(receiver));
            Gate { _open, closed }
        }

        fn hold(&self, pool: &Pool, lane: Lane) {
            let gate = self.closed.clone();
            pool.submit("test", lane, move || while gate.lock().recv().is_ok() {});
        }
    }

    #[test]
    fn jobs_that_wait_for_each_other_all_run() {
        let pool = Pool::default();
        let barrier = Arc::new(Barrier::new(64));
        for i in 0..64 {
            let barrier = Arc::clone(&barrier);
            pool.submit("test", lane(i, 1), move || {
                barrier.wait();
            });
        }
        assert!(pool.drain(PATIENCE));
    }

    #[test]
    fn more_jobs_than_threads() {
        let pool = Pool::default();
        let count = Arc::new(AtomicUsize::new(0));
        for i in 0..4 * MAX_OF_LAYERS {
            let count = Arc::clone(&count);
            pool.submit("test", lane(i % 20, 1), move || {
                thread::sleep(Duration::from_millis(5));
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(pool.drain(PATIENCE));
        assert_eq!(count.load(Ordering::Relaxed), 4 * MAX_OF_LAYERS);
        assert!(pool.shared.state.lock().running.objects.is_empty());
        assert!(pool.shared.state.lock().running.layers.is_empty());
    }

    #[test]
    fn lanes_that_are_full_hold_up_no_others() {
        for same_object in [false, true] {
            let (pool, gate) = (Pool::default(), Gate::new());
            for i in 0..1000 {
                gate.hold(&pool, lane(if same_object { 0 } else { i }, 1));
            }
            let (sender, receiver) = mpsc::channel();
            let mut others = vec![lane(5000, 2)];
            if same_object {
                others.push(lane(5001, 1));
            }
            for lane in others {
                let sender = sender.clone();
                pool.submit("test", lane, move || sender.send(()).unwrap_or_default());
                assert!(receiver.recv_timeout(PATIENCE).is_ok(), "{lane:?} waits");
            }
            assert!(pool.shared.state.lock().pending >= 1000, "nothing waits");
            assert!(pool.shared.state.lock().threads <= MAX_OF_LAYERS + 2);
            drop(gate);
            assert!(pool.drain(PATIENCE));
        }
    }

    #[test]
    fn a_panic_ends_only_its_job() {
        let pool = Pool::default();
        let none: Vec<u32> = Vec::new();
        pool.submit("test", lane(1, 1), move || {
            std::hint::black_box(none[std::hint::black_box(0)]);
        });
        assert!(pool.drain(PATIENCE));
        pool.submit("test", lane(1, 1), || {});
        assert!(pool.drain(PATIENCE));
    }
}
