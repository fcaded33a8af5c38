//! Files of layers that somebody opens before programs ask for them, and hands over.
//!
//! Each is known by its hash ([`LowerDir::hash_of`](super::LowerDir::hash_of)). Who wants one that is being
//! opened waits for that, and asks the layer no second time; one that waits in the queue is the program's own
//! from then on, and not opened twice. The descriptors that nobody has wanted are let go of together.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::hash::Numbers;

/// The files, by what has become of them so far.
#[derive(Debug, Default)]
pub struct Ahead {
    state: Mutex<State>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    files: HashMap<u64, Slot, Numbers>,
    /// Files that are queued when one of them is wanted, by the number of their trail.
    trails: HashMap<u64, u32, Numbers>,
    /// The trails of which a file was wanted.
    called: Vec<u32>,
    closed: bool,
    /// How many more descriptors may be kept.
    room: usize,
    counts: Counts,
}

#[derive(Debug)]
enum Slot {
    Queued,
    /// Since when somebody opens it, and whether a program has come meanwhile that does not wait.
    Running {
        since: Instant,
        wanted: bool,
    },
    /// Open, if there was room for it; how long that took, and whether it has been wanted.
    Fetched {
        fd: Option<Arc<OwnedFd>>,
        took: Duration,
        used: bool,
    },
    /// A program was faster, or it could not be opened.
    Gone,
}

/// What has been fetched, and what it was good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Files that were to be fetched.
    pub wanted: u64,
    /// Those that were.
    pub files: u64,
    /// Bytes that were read of them.
    pub bytes: u64,
    /// Those that programs wanted afterwards, or meanwhile.
    pub used: u64,
    /// Those that programs wanted before.
    pub late: u64,
    /// Those that the layer refused, or that are no regular files.
    pub failed: u64,
    /// How long the used ones took, less what programs waited for them.
    pub saved: Duration,
    /// From the beginning to the last one.
    pub took: Duration,
}

impl Ahead {
    /// Keeps so many descriptors open.
    pub fn new(room: usize) -> Ahead {
        let ahead = Ahead::default();
        ahead.state.lock().room = room;
        ahead
    }

    /// These are going to be fetched.
    pub fn queue(&self, files: impl Iterator<Item = u64>) {
        let mut state = self.state.lock();
        for file in files {
            state.files.entry(file).or_insert(Slot::Queued);
        }
        state.counts.wanted = state.files.len() as u64;
    }

    /// When a program wants one of these files, its trail is [`called`](Self::next_trail).
    pub fn watch(&self, trails: impl Iterator<Item = (u64, u32)>) {
        self.state.lock().trails.extend(trails);
    }

    /// Waits until a file of a trail is wanted. None: nothing is fetched ahead any more.
    pub fn next_trail(&self) -> Option<u32> {
        let mut state = self.state.lock();
        loop {
            if state.closed || state.trails.is_empty() && state.called.is_empty() {
                return None;
            }
            if let Some(trail) = state.called.pop() {
                return Some(trail);
            }
            self.ended.wait(&mut state);
        }
    }

    /// Somebody begins to open the file ahead. False: that is not wanted any more.
    pub fn begin(&self, file: u64) -> bool {
        let mut state = self.state.lock();
        match state.files.get_mut(&file) {
            Some(slot @ Slot::Queued) => {
                *slot = Slot::Running {
                    since: Instant::now(),
                    wanted: false,
                };
                true
            }
            _ => false,
        }
    }

    /// It is open, or cannot be opened. Whoever waits goes on.
    pub fn opened(&self, file: u64, fd: Option<&Arc<OwnedFd>>) {
        let mut state = self.state.lock();
        let kept = fd.filter(|_| state.room > 0).cloned();
        let Some(slot) = state.files.get_mut(&file) else {
            return;
        };
        let Slot::Running { since, wanted } = *slot else {
            return;
        };
        *slot = match fd {
            None => Slot::Gone,
            Some(_) => Slot::Fetched {
                fd: kept.clone(),
                took: since.elapsed(),
                used: wanted,
            },
        };
        match fd {
            None => state.counts.failed += 1,
            Some(_) => {
                state.counts.files += 1;
                state.counts.used += u64::from(wanted);
            }
        }
        if kept.is_some() {
            state.room -= 1;
        }
        drop(state);
        self.ended.notify_all();
    }

    /// It has been read, too: so many bytes, which took so long. `since`: when all began.
    pub fn read(&self, file: u64, bytes: u64, time: Duration, since: Instant) {
        let mut state = self.state.lock();
        state.counts.bytes += bytes;
        state.counts.took = state.counts.took.max(since.elapsed());
        if let Some(Slot::Fetched { took, .. }) = state.files.get_mut(&file) {
            *took += time;
        }
    }

    /// A program wants the file, and opens it itself in any case: waits for nothing.
    pub fn note(&self, file: u64) {
        let mut state = self.state.lock();
        match state.files.get_mut(&file) {
            Some(Slot::Running { wanted, .. }) => *wanted = true,
            _ => drop(self.claimed(state, file)),
        }
    }

    /// A program wants the file: what was opened ahead, if something was.
    pub fn claim(&self, file: u64) -> Option<Arc<OwnedFd>> {
        self.claimed(self.state.lock(), file)
    }

    fn claimed(&self, mut state: MutexGuard<'_, State>, file: u64) -> Option<Arc<OwnedFd>> {
        let mut waited = Duration::ZERO;
        loop {
            let State { files, counts, .. } = &mut *state;
            let Some(slot) = files.get_mut(&file) else {
                self.call(&mut state, file);
                return None;
            };
            match slot {
                Slot::Gone => return None,
                slot @ Slot::Queued => {
                    *slot = Slot::Gone;
                    counts.late += 1;
                    return None;
                }
                Slot::Running { .. } => {
                    let begun = Instant::now();
                    self.ended.wait(&mut state);
                    waited += begun.elapsed();
                }
                Slot::Fetched { fd, took, used } => {
                    if !*used {
                        *used = true;
                        counts.used += 1;
                        counts.saved += took.saturating_sub(waited);
                    }
                    return fd.clone();
                }
            }
        }
    }

    /// A file that is not queued was wanted.
    fn call(&self, state: &mut State, file: u64) {
        let Some(trail) = state.trails.remove(&file) else {
            return;
        };
        state.trails.retain(|_, of| *of != trail);
        state.files.insert(file, Slot::Gone);
        state.called.push(trail);
        self.ended.notify_all();
    }

    /// The end: trails are called no more, and all descriptors are let go of.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.ended.notify_all();
        self.release();
    }

    /// Lets go of all descriptors, and keeps no more.
    pub fn release(&self) {
        let mut state = self.state.lock();
        state.room = 0;
        let slots = state.files.values_mut();
        let open: Vec<_> = slots
            .filter_map(|slot| match slot {
                Slot::Fetched { fd, .. } => fd.take(),
                _ => None,
            })
            .collect();
        drop(state);
        // Closed without the lock: that may be a request to the layer.
        drop(open);
    }

    /// The counts of this moment.
    pub fn counts(&self) -> Counts {
        self.state.lock().counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io;
    use std::thread;

    fn fd() -> io::Result<Arc<OwnedFd>> {
        Ok(Arc::new(File::open("/dev/null")?.into()))
    }

    #[test]
    fn what_is_open_is_handed_over_and_counted_once() -> io::Result<()> {
        let ahead = Ahead::new(1);
        ahead.queue([1, 2, 3, 4].into_iter());
        let fd = fd()?;
        assert!(ahead.begin(1) && !ahead.begin(1) && !ahead.begin(9));
        ahead.opened(1, Some(&fd));
        assert!(ahead.begin(2));
        ahead.opened(2, Some(&fd));
        assert!(ahead.begin(3));
        ahead.opened(3, None);
        assert!(ahead.claim(1).is_some() && ahead.claim(1).is_some());
        assert!(ahead.claim(2).is_none(), "no room for its descriptor");
        assert!(ahead.claim(3).is_none());
        assert!(
            ahead.claim(4).is_none() && !ahead.begin(4),
            "the program's own"
        );
        assert!(ahead.claim(5).is_none());
        let counts = ahead.counts();
        let seen = [
            counts.wanted,
            counts.files,
            counts.used,
            counts.late,
            counts.failed,
        ];
        assert_eq!(seen, [4, 2, 2, 1, 1]);
        ahead.close();
        assert!(ahead.claim(1).is_none());
        assert_eq!(Arc::strong_count(&fd), 1);
        Ok(())
    }

    #[test]
    fn a_trail_is_called_once_by_any_of_its_files() {
        let ahead = Ahead::new(0);
        ahead.watch([(1, 5), (2, 5), (3, 6)].into_iter());
        assert!(ahead.claim(9).is_none() && ahead.claim(2).is_none());
        assert_eq!(ahead.next_trail(), Some(5));
        assert!(ahead.claim(1).is_none() && ahead.claim(3).is_none());
        assert_eq!((ahead.next_trail(), ahead.next_trail()), (Some(6), None));
        ahead.queue([1, 2].into_iter());
        assert!(ahead.begin(1) && !ahead.begin(2), "it is the program's own");
        ahead.watch([(4, 7)].into_iter());
        ahead.close();
        assert_eq!(ahead.next_trail(), None);
    }

    #[test]
    fn who_opens_a_file_itself_waits_for_nothing() -> io::Result<()> {
        let ahead = Ahead::new(8);
        ahead.queue([1, 2].into_iter());
        assert!(ahead.begin(1));
        ahead.note(1);
        ahead.note(2);
        ahead.opened(1, Some(&fd()?));
        ahead.note(1);
        let counts = ahead.counts();
        assert_eq!((counts.files, counts.used, counts.late), (1, 1, 1));
        assert!(!ahead.begin(2));
        Ok(())
    }

    #[test]
    fn who_wants_what_is_being_opened_waits_for_it() -> io::Result<()> {
        let ahead = Arc::new(Ahead::new(8));
        ahead.queue([7].into_iter());
        assert!(ahead.begin(7));
        let waits = ahead.clone();
        let claim = thread::spawn(move || waits.claim(7).is_some());
        // Whether it waits already or comes later, it gets what is opened now.
        ahead.opened(7, Some(&fd()?));
        assert!(claim.join().is_ok_and(|got| got));
        assert_eq!(ahead.counts().used, 1);
        Ok(())
    }
}
