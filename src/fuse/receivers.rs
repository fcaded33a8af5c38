//! The threads that receive requests. Each carries out what it received itself, which saves waking
//! another one, as long as one is left that does nothing but receive. The last one hands over to the
//! pool whatever may have to wait for a layer: so nobody waits but who has to.
//!
//! The kernel gives a request to whoever has waited longest. Several that receive would take turns at the
//! requests of one program, each woken on cold caches. So while all goes fast one receives, and the others
//! are *away*. All are called back for a while
//!
//! * when whoever receives is held up: at a tick of the watch nobody receives, and nobody has begun
//!   anything since the last one;
//! * when requests pile up: the receiver hardly ever found none to wait for.
//!
//! While one receives alone, it looks for the next request a little before it sleeps (`linger.rs`).
//!
//! The session ends when all of them have ended, and one that waits for a layer may never. So the end
//! is watched for while requests are carried out. The first one that ends calls those who are away, as
//! nobody else would. A thread is known only when it has received something; so nobody goes away before all
//! have, which does not take long while they take turns.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::{Condvar, Mutex};

use self::linger::Linger;
use crate::sys::{mount, process};

mod linger;

/// How often the watch looks after the receivers while they are busy: how long one that is held up may
/// keep the others' requests waiting, at most twice.
const TICK: Duration = Duration::from_millis(4);
/// The end is looked for once in so many ticks, and the watch rests after as many without anything to do.
const TICKS: u32 = 12;
/// How long those who were called stay, in milliseconds: at first, and at most. Twice as long each time that they are
/// called soon again, so that what is held up again and again delays others once in the longest.
const STAY: (u64, u64) = (16, 1000);
/// Soon is within so many times what they stayed.
const SOON: u64 = 4;
/// How many requests are looked at together, and in how many of them a receiver waits at least if the
/// requests do not pile up.
const ROUND: u32 = 64;
const WAITS: u64 = 4;

/// What the watch is told.
#[derive(Debug)]
enum News {
    /// A receiver has begun a request, and nobody is looking.
    Busy,
    /// The session has ended.
    Ended(io::Result<()>),
}

/// Counts that change together: how many carry out a request, how many are not away, and how many requests
/// were begun, which may overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts(u64);

impl Counts {
    const BUSY: u64 = 1;
    const HERE: u64 = 1 << 16;
    const BEGUN: u64 = 1 << 32;
    const MASK: u64 = 0xffff;

    fn busy(self) -> u64 {
        self.0 & Self::MASK
    }

    fn here(self) -> u64 {
        (self.0 / Self::HERE) & Self::MASK
    }

    fn begun(self) -> u64 {
        self.0 / Self::BEGUN
    }

    /// How many do nothing but receive.
    fn free(self) -> u64 {
        self.here().saturating_sub(self.busy())
    }
}

/// The receivers.
#[derive(Debug)]
pub struct Receivers {
    all: u64,
    counts: AtomicU64,
    /// How many have received something.
    seats: AtomicU64,
    /// One that receives is enough.
    alone: AtomicBool,
    /// When they were called last, in milliseconds after the start, and how long they stay.
    called: AtomicU64,
    stay: AtomicU64,
    start: Instant,
    door: Mutex<Door>,
    call: Condvar,
    /// The watch looks for the end, or is about to.
    watched: AtomicBool,
    to_watch: Sender<News>,
    news: Receiver<News>,
    /// Where requests are looked for.
    device: OwnedFd,
}

/// What those who are away wait for.
#[derive(Debug, Default)]
struct Door {
    calls: u64,
    /// The session ends, and nobody goes away any more.
    over: bool,
}

/// A receiver that carries out a request, until it is dropped.
#[derive(Debug)]
pub struct Busy<'a>(&'a Receivers);

/// What a receiving thread knows of itself. It goes with the thread.
#[derive(Debug)]
struct Seat {
    receivers: Arc<Receivers>,
    /// Requests of this round.
    requests: u32,
    /// How often it had waited when the round began.
    waited: u64,
    linger: Linger,
}

thread_local! {
    static SEAT: RefCell<Option<Seat>> = const { RefCell::new(None) };
}

impl Seat {
    /// Counts a request, and says whether they pile up.
    fn piles_up(&mut self) -> bool {
        self.requests += 1;
        if self.requests < ROUND {
            return false;
        }
        self.requests = 0;
        let waits = self.waits();
        let before = std::mem::replace(&mut self.waited, waits);
        self.waited.saturating_sub(before) < WAITS
    }

    /// How often it has waited for a request, asleep or awake.
    fn waits(&self) -> u64 {
        process::waits_of_thread() + self.linger.won()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.receivers.close();
    }
}

impl Receivers {
    /// So many, of the requests of a FUSE descriptor.
    pub fn new(all: usize, device: OwnedFd) -> Receivers {
        let (to_watch, news) = unbounded();
        let all = u64::try_from(all).unwrap_or(1).min(Counts::MASK);
        Receivers {
            all,
            counts: AtomicU64::new(all * Counts::HERE),
            seats: AtomicU64::new(0),
            alone: AtomicBool::new(true),
            called: AtomicU64::new(0),
            stay: AtomicU64::new(0),
            start: Instant::now(),
            door: Mutex::default(),
            call: Condvar::new(),
            watched: AtomicBool::new(false),
            to_watch,
            news,
            device,
        }
    }

    /// Lets the calling receiver carry out a request that may wait, if it is not the last to receive. After it
    /// the receiver may be kept away, until it is called.
    pub fn enter(self: &Arc<Self>) -> Option<Busy<'_>> {
        self.take_seat();
        let more = |counts| {
            let room = Counts(counts).busy() + 1 < self.all;
            room.then(|| counts.wrapping_add(Counts::BUSY + Counts::BEGUN))
        };
        let order = Ordering::SeqCst;
        self.counts
            .fetch_update(order, Ordering::Relaxed, more)
            .ok()?;
        let busy = Busy(self);
        if !self.watched.load(order) && !self.watched.swap(true, order) {
            self.tell(News::Busy);
        }
        Some(busy)
    }

    /// The session has ended.
    pub fn ended(&self, result: io::Result<()>) {
        self.tell(News::Ended(result));
    }

    /// The end of the calling thread will be noticed.
    fn take_seat(self: &Arc<Self>) {
        SEAT.with_borrow_mut(|seat| {
            seat.get_or_insert_with(|| {
                self.seats.fetch_add(1, Ordering::SeqCst);
                Seat {
                    receivers: self.clone(),
                    requests: 0,
                    waited: process::waits_of_thread(),
                    linger: Linger::default(),
                }
            });
        });
    }

    fn counts(&self) -> Counts {
        Counts(self.counts.load(Ordering::SeqCst))
    }

    fn leave(&self) {
        let order = Ordering::SeqCst;
        let left = Counts(self.counts.fetch_sub(Counts::BUSY, order) - Counts::BUSY);
        if !self.alone.load(order) {
            return;
        }
        let piles_up = SEAT.with_borrow_mut(|seat| seat.as_mut().is_some_and(Seat::piles_up));
        if piles_up {
            self.call();
        } else if left.free() == 1 {
            self.linger();
        } else if self.seats.load(order) == self.all {
            self.stay_away();
        }
    }

    /// Looks for the next request while nobody else would receive it.
    fn linger(&self) {
        SEAT.with_borrow_mut(|seat| {
            if let Some(seat) = seat {
                seat.linger.wait(|| mount::has_request(self.device.as_fd()));
            }
        });
    }

    /// Waits to be called, unless nobody else would receive.
    fn stay_away(&self) {
        let mut door = self.door.lock();
        let less = |counts| (Counts(counts).free() > 1).then(|| counts - Counts::HERE);
        let order = Ordering::SeqCst;
        if door.over || self.counts.fetch_update(order, order, less).is_err() {
            return;
        }
        let calls = door.calls;
        while door.calls == calls {
            self.call.wait(&mut door);
        }
    }

    /// Calls those who are away. They stay until the watch finds that one is enough.
    fn call(&self) {
        self.alone.store(false, Ordering::SeqCst);
        let now = self.now();
        let since = now.saturating_sub(self.called.swap(now, Ordering::SeqCst));
        let stay = next_stay(self.stay.load(Ordering::SeqCst), since);
        self.stay.store(stay, Ordering::SeqCst);
        self.open(&mut self.door.lock());
    }

    /// Calls them for good.
    fn close(&self) {
        let mut door = self.door.lock();
        door.over = true;
        self.open(&mut door);
    }

    fn open(&self, door: &mut Door) {
        let all_here = |counts| Some(counts + (self.all - Counts(counts).here()) * Counts::HERE);
        let order = Ordering::SeqCst;
        // Always Ok: the closure always has an answer.
        let _before = self.counts.fetch_update(order, order, all_here);
        door.calls += 1;
        self.call.notify_all();
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn tell(&self, news: News) {
        if self.to_watch.send(news).is_err() {
            tracing::debug!("nobody watches the session");
        }
    }

    fn any_busy(&self) -> bool {
        self.counts().busy() > 0
    }

    /// Looks after the receivers until the end of the session, or of the mount if receivers still wait then;
    /// these have so long to end. An idle mount wakes nobody.
    pub fn watch(&self, last_wait: Duration) -> io::Result<()> {
        loop {
            match self.news.recv() {
                Ok(News::Busy) => {}
                Ok(News::Ended(result)) => return result,
                Err(_) => return Err(io::Error::other("the session is gone")),
            }
            let (mut last, mut ticks, mut quiet) = (self.counts(), 0, 0);
            while self.watched.load(Ordering::SeqCst) {
                // Not by a wait for news, which would spin before it sleeps.
                thread::sleep(TICK);
                if let Ok(News::Ended(result)) = self.news.try_recv() {
                    return result;
                }
                let counts = self.counts();
                if counts.free() == 0 && counts.here() < self.all && counts.begun() == last.begun()
                {
                    self.call();
                }
                last = counts;
                self.send_away();
                ticks += 1;
                quiet = if counts.busy() > 0 { 0 } else { quiet + 1 };
                if quiet >= TICKS && self.alone.load(Ordering::SeqCst) {
                    quiet = 0;
                    self.rest();
                } else if ticks % TICKS == 0
                    && counts.busy() > 0
                    && mount::is_over(self.device.as_fd())
                {
                    self.close();
                    return self.last_news(last_wait);
                }
            }
        }
    }

    /// Those who were called are no longer wanted, after a while. Each goes away when it has carried out a
    /// request.
    fn send_away(&self) {
        let (called, stay) = (
            self.called.load(Ordering::SeqCst),
            self.stay.load(Ordering::SeqCst),
        );
        if !self.alone.load(Ordering::SeqCst) && self.now().saturating_sub(called) >= stay {
            self.alone.store(true, Ordering::SeqCst);
        }
    }

    /// The watch looks no more, unless somebody has begun meanwhile, who has told nobody.
    fn rest(&self) {
        self.watched.store(false, Ordering::SeqCst);
        if self.any_busy() {
            self.watched.store(true, Ordering::SeqCst);
        }
    }

    fn last_news(&self, wait: Duration) -> io::Result<()> {
        match self.news.recv_timeout(wait) {
            Ok(News::Ended(result)) => result,
            _ => {
                tracing::warn!("unmounted while requests still wait for a layer");
                Ok(())
            }
        }
    }
}

/// How long those stay who are called, `since` so many milliseconds after the last time, when they stayed for `last`.
fn next_stay(last: u64, since: u64) -> u64 {
    let (least, most) = STAY;
    match since <= last * SOON {
        true => (last * 2).clamp(least, most),
        false => least,
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests;
