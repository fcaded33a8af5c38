//! Data for the kernel's page cache before it asks for them: a small file of a lower that is opened to be
//! read is sent along with the answer, and the reading of it needs no request.
//!
//! Whether files that are opened are read is learnt from those whose data are not sent, one in
//! [`SAMPLE`] of the small ones even while all seems well. A program that opens files and reads none soon
//! costs the lowers nothing any more.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::Union;
use super::copy_up::Flight;
use super::open::{Data, Handle};
use crate::error::Result;

/// The largest file that is sent, in bytes: what the kernel reads ahead at first.
pub const EARLY: u64 = 128 * 1024;

/// One small file in so many is not sent, to see whether it is read.
const SAMPLE: u32 = 16;

/// How many files that were read make it certain that the next one will be.
const CERTAIN: u32 = 8;

/// How much of that certainty is enough.
const ENOUGH: u32 = 4;

/// So much of it goes for a file that was opened and not read.
const LOST: u32 = 2;

/// Whether files that are opened are read.
#[derive(Debug, Default)]
pub struct Habit {
    /// From 0 to [`CERTAIN`].
    certainty: AtomicU32,
    opens: AtomicU32,
}

impl Habit {
    fn expects_a_read(&self) -> bool {
        let sample = self
            .opens
            .fetch_add(1, Ordering::Relaxed)
            .is_multiple_of(SAMPLE);
        !sample && self.certainty.load(Ordering::Relaxed) >= ENOUGH
    }

    /// A file that was not sent was closed.
    fn learn(&self, read: bool) {
        let was = self.certainty.load(Ordering::Relaxed);
        let is = if read {
            (was + 1).min(CERTAIN)
        } else {
            was.saturating_sub(LOST)
        };
        // What others have learnt meanwhile may get lost: it is a guess in any case.
        self.certainty.store(is, Ordering::Relaxed);
    }
}

/// What an open handle has to tell of the habit when it is closed.
#[derive(Debug, Default)]
pub struct Trial(AtomicBool);

/// All data of a file, which do not change while this is held.
pub struct Early<'a> {
    pub data: Vec<u8>,
    _flight: Flight<'a>,
}

impl Union {
    /// Whether the kernel is likely to ask for the data of a file that was just opened, has none of them,
    /// and they may be sent. The answer "no" to a file of which all else is true makes it a trial.
    pub fn is_read_next(&self, fh: u64) -> bool {
        let Ok(handle) = self.handle(fh) else {
            return false;
        };
        if !is_small_and_new(&handle) {
            return false;
        }
        let expected = self.habit.expects_a_read();
        handle.trial.0.store(!expected, Ordering::Relaxed);
        expected
    }

    /// The data of such a file, all of them. None: it is in the upper now, or about to be. An error is
    /// left to the read that comes.
    pub fn early(&self, fh: u64) -> Result<Option<Early<'_>>> {
        let handle = self.handle(fh)?;
        let Some(flight) = self.flights.try_enter(handle.node.ino) else {
            return Ok(None);
        };
        if handle.node.state.read().upper {
            return Ok(None);
        }
        let Data::Lower(file) = self.data_of(&handle)? else {
            return Ok(None);
        };
        let size = usize::try_from(file.size()).unwrap_or(usize::MAX);
        let data = self.read_lower(&file, 0, size)?;
        handle.node.was_read.store(true, Ordering::Relaxed);
        Ok(Some(Early {
            data,
            _flight: flight,
        }))
    }

    /// A handle is being closed.
    pub(super) fn learn_from(&self, handle: &Handle, read: bool) {
        if handle.trial.0.load(Ordering::Relaxed) {
            self.habit.learn(read);
        }
    }
}

/// Opened for reading through the page cache, which holds nothing of it yet.
fn is_small_and_new(handle: &Handle) -> bool {
    let node = &handle.node;
    let reads = handle.flags & (libc::O_ACCMODE | libc::O_DIRECT) == libc::O_RDONLY;
    let size = node.lower.as_ref().map_or(0, |lower| lower.stat().st_size);
    reads
        && u64::try_from(size).is_ok_and(|size| (1..=EARLY).contains(&size))
        && !node.state.read().upper
        && !node.was_read.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expected(habit: &Habit, opens: u32) -> usize {
        (0..opens).filter(|_| habit.expects_a_read()).count()
    }

    #[test]
    fn files_are_sent_once_files_are_read() {
        let habit = Habit::default();
        assert_eq!(expected(&habit, 100), 0);
        for _ in 1..ENOUGH {
            habit.learn(true);
        }
        assert_eq!(expected(&habit, 100), 0);
        habit.learn(true);
        // But for the samples.
        assert_eq!(expected(&habit, 160), 150);
    }

    #[test]
    fn what_nobody_reads_is_sent_no_more() {
        let habit = Habit::default();
        for _ in 0..100 {
            habit.learn(true);
        }
        let mut opens = 0;
        while expected(&habit, SAMPLE) > 0 {
            opens += SAMPLE;
            habit.learn(false);
        }
        assert_eq!(opens, 3 * SAMPLE);
    }
}
