//! What a run opens in the layers, in its order: each file once, when it is first opened to be read.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::ahead::Ahead;
use super::{LayerIndex, LowerDir};
use crate::hash::Numbers;

/// What a run is watched by, and helped by.
#[derive(Clone, Debug)]
pub struct Learning {
    /// Files that are opened before programs want them.
    pub ahead: Arc<Ahead>,
    /// Files that programs open.
    pub record: Arc<Record>,
}

/// A file that was opened.
#[derive(Debug)]
pub struct Seen {
    /// Its layer.
    pub layer: LayerIndex,
    /// Its path in the layer, without a slash at the beginning.
    pub path: Vec<u8>,
    /// Its length in bytes.
    pub size: u64,
    /// As [`pieces`](crate::profile::pieces) counts them.
    pieces: AtomicU64,
}

impl Seen {
    /// Notes what was read of it.
    pub fn add(&self, pieces: u64) {
        if self.pieces.load(Ordering::Relaxed) & pieces != pieces {
            self.pieces.fetch_or(pieces, Ordering::Relaxed);
        }
    }

    /// All that was read of it so far.
    pub fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }
}

/// Records, until it is closed.
#[derive(Debug)]
pub struct Record {
    open: AtomicBool,
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    places: HashMap<u64, Arc<Seen>, Numbers>,
    order: Vec<Arc<Seen>>,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// When a recording ends by itself.
#[derive(Clone, Copy, Debug)]
pub struct Settling {
    /// No new file was opened for so long.
    pub quiet: Duration,
    /// So long after the first one.
    pub most: Duration,
}

impl Record {
    /// At most so many files.
    pub fn new(most: usize) -> Record {
        Record {
            open: AtomicBool::new(true),
            most,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// A file is opened to be read. None: nothing is recorded any more.
    pub fn opened(&self, dir: &LowerDir, name: &[u8], size: u64) -> Option<Arc<Seen>> {
        if !self.open.load(Ordering::Relaxed) {
            return None;
        }
        let hash = dir.hash_of(name);
        let mut state = self.state.lock();
        if let Some(seen) = state.places.get(&hash) {
            return Some(seen.clone());
        }
        if state.order.len() >= self.most {
            return None;
        }
        let mut path = dir.path();
        path.push(b'/');
        path.extend_from_slice(name);
        path.remove(0);
        let seen = Arc::new(Seen {
            layer: dir.layer,
            path,
            size,
            pieces: AtomicU64::new(0),
        });
        state.places.insert(hash, seen.clone());
        state.order.push(seen.clone());
        let now = Instant::now();
        state.last = Some(now);
        if state.first.is_none() {
            state.first = Some(now);
            drop(state);
            self.changed.notify_all();
        }
        Some(seen)
    }

    /// Waits for the first file, but no longer than that.
    pub fn wait_for_first(&self, most: Duration) -> bool {
        let end = Instant::now() + most;
        let mut state = self.state.lock();
        while state.first.is_none() && self.open.load(Ordering::Relaxed) {
            if self.changed.wait_until(&mut state, end).timed_out() {
                return false;
            }
        }
        true
    }

    /// Waits until the run has settled. False: the recording was closed before.
    pub fn wait(&self, settling: Settling) -> bool {
        let mut state = self.state.lock();
        while self.open.load(Ordering::Relaxed) {
            let (Some(first), Some(last)) = (state.first, state.last) else {
                self.changed.wait(&mut state);
                continue;
            };
            let full = state.order.len() >= self.most;
            let end = (last + settling.quiet).min(first + settling.most);
            if full || Instant::now() >= end {
                return true;
            }
            self.changed.wait_until(&mut state, end);
        }
        false
    }

    /// Records nothing more.
    pub fn close(&self) {
        let _state = self.state.lock();
        self.open.store(false, Ordering::Relaxed);
        self.changed.notify_all();
    }

    /// How many files there are.
    pub fn len(&self) -> usize {
        self.state.lock().order.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What was recorded, in its order.
    pub fn seen(&self) -> Vec<Arc<Seen>> {
        self.state.lock().order.clone()
    }

    /// Forgets what was recorded.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        (state.places, state.order) = Default::default();
    }
}
