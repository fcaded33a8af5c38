//! How often something was done, and how long it took. Counting takes no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Counts one kind of work. It is counted where it begins, so that who has seen its result finds it
/// counted; its time is added when it ends.
#[derive(Debug, Default)]
pub struct Meter {
    begun: AtomicU64,
    ended: AtomicU64,
    nanos: AtomicU64,
    longest: AtomicU64,
}

/// What a meter shows at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// How often it was begun.
    pub count: u64,
    /// How many have not ended.
    pub running: u64,
    /// The time of all that have ended, in nanoseconds.
    pub nanos: u64,
    /// The longest time of one, in nanoseconds.
    pub longest: u64,
}

impl Meter {
    /// Counts something that begins; to be ended by [`end`](Self::end).
    pub fn begin(&self) -> Instant {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Instant::now()
    }

    /// Counts the end of what began then.
    pub fn end(&self, begun: Instant) {
        let nanos = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
        self.longest.fetch_max(nanos, Ordering::Relaxed);
        self.ended.fetch_add(1, Ordering::Release);
    }

    /// Counts the job and its time.
    pub fn time<T>(&self, job: impl FnOnce() -> T) -> T {
        let begun = self.begin();
        let done = job();
        self.end(begun);
        done
    }

    /// What it shows now.
    pub fn read(&self) -> Reading {
        // First those that have ended, which are never more than have begun.
        let ended = self.ended.load(Ordering::Acquire);
        let count = self.begun.load(Ordering::Relaxed);
        Reading {
            count,
            running: count.saturating_sub(ended),
            nanos: self.nanos.load(Ordering::Relaxed),
            longest: self.longest.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_not_ended_is_running() {
        let meter = Meter::default();
        let begun = meter.begin();
        assert_eq!(meter.time(|| meter.read().running), 2);
        assert_eq!((meter.read().count, meter.read().running), (2, 1));
        meter.end(begun);
        let seen = meter.read();
        assert_eq!((seen.count, seen.running), (2, 0));
        assert!(0 < seen.longest && seen.longest <= seen.nanos);
    }
}
