//! What is to be fetched, in which order, and how much of it at the same time.

use std::sync::Arc;
use std::time::Instant;

use super::super::pace::Pace;
use super::super::queue::Queue;
use super::{Limits, Wanted};

/// The batches, and what is left of the bounds.
#[derive(Debug)]
pub struct Work {
    /// The last one comes first. Those that are done stay: their numbers are their places.
    batches: Vec<Batch>,
    pub pace: Pace,
    /// Files on their way.
    pub running: usize,
    /// So many may still be fetched.
    pub files: usize,
    /// So much of them.
    pub bytes: u64,
}

/// Files that are fetched together.
#[derive(Debug)]
struct Batch {
    files: Arc<[Wanted]>,
    queue: Queue,
}

/// A file of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub batch: usize,
    pub at: usize,
}

impl Work {
    /// None yet.
    pub fn new(limits: &Limits) -> Work {
        Work {
            batches: Vec::new(),
            pace: Pace::new(limits.readers, limits.most_readers),
            running: 0,
            files: limits.files,
            bytes: limits.bytes,
        }
    }

    /// These come before all others.
    pub fn add(&mut self, files: Vec<Wanted>) {
        self.batches.push(Batch {
            queue: Queue::new(files.len()),
            files: files.into(),
        });
    }

    /// The one to fetch now.
    pub fn next(&mut self) -> Option<(Place, Wanted)> {
        let batches = self.batches.iter_mut().enumerate().rev();
        batches.into_iter().find_map(|(batch, of)| {
            let at = of.queue.next()?;
            Some((Place { batch, at }, of.files.get(at)?.clone()))
        })
    }

    /// As [`Queue::is_doubtful`] says.
    pub fn is_doubtful(&self, batch: usize) -> bool {
        let batch = self.batches.get(batch);
        batch.is_some_and(|batch| batch.queue.is_doubtful())
    }

    /// As [`Queue::overtaken`] says, with its layer.
    pub fn overtaken(&mut self, batch: usize) -> Option<(Place, usize, Instant)> {
        let of = self.batches.get_mut(batch)?;
        let (at, since) = of.queue.overtaken()?;
        Some((Place { batch, at }, of.files.get(at)?.layer, since))
    }

    /// As [`Queue::was_there`] is told.
    pub fn was_there(&mut self, place: Place) {
        if let Some(batch) = self.batches.get_mut(place.batch) {
            batch.queue.was_there(place.at);
        }
    }

    /// As [`Queue::was`] is told.
    pub fn was(&mut self, place: Place, warm: Option<bool>) {
        if let Some(batch) = self.batches.get_mut(place.batch) {
            batch.queue.was(place.at, warm);
        }
    }
}
