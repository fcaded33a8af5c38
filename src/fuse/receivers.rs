//! The threads that receive requests. Each carries out what it received itself, which saves waking
//! another one, as long as one is left that does nothing but receive. The last one hands over to the
//! pool whatever may have to wait for a layer: so nobody waits but who has to.
//!
//! The session ends when all of them have ended, and one that waits for a layer may never. So the end
//! is watched for while requests are carried out.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};

use crate::sys::mount;

/// How often the end is looked for while a receiver may wait.
const LOOK: Duration = Duration::from_millis(50);

/// What the watch is told.
#[derive(Debug)]
enum News {
    /// A receiver has begun a request, and nobody is looking.
    Busy,
    /// The session has ended.
    Ended(io::Result<()>),
}

/// How many receivers there are, and carry out requests.
#[derive(Debug)]
pub struct Receivers {
    all: usize,
    busy: AtomicUsize,
    /// The watch looks for the end, or is about to.
    watched: AtomicBool,
    to_watch: Sender<News>,
    news: Receiver<News>,
}

/// A receiver that carries out a request, until it is dropped.
#[derive(Debug)]
pub struct Busy<'a>(&'a Receivers);

impl Receivers {
    /// So many.
    pub fn new(all: usize) -> Receivers {
        let (to_watch, news) = unbounded();
        Receivers {
            all,
            busy: AtomicUsize::new(0),
            watched: AtomicBool::new(false),
            to_watch,
            news,
        }
    }

    /// Lets the calling receiver carry out a request that may wait, if it is not the last to receive.
    pub fn enter(&self) -> Option<Busy<'_>> {
        let more = |busy| (busy + 1 < self.all).then_some(busy + 1);
        let order = Ordering::SeqCst;
        self.busy
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

    fn tell(&self, news: News) {
        if self.to_watch.send(news).is_err() {
            tracing::debug!("nobody watches the session");
        }
    }

    fn any_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst) > 0
    }

    /// Waits for the end of the session, or of the mount if receivers still wait then; these have so
    /// long to end. An idle mount wakes nobody.
    pub fn watch(&self, device: impl AsFd, last_wait: Duration) -> io::Result<()> {
        loop {
            match self.news.recv() {
                Ok(News::Busy) => {}
                Ok(News::Ended(result)) => return result,
                Err(_) => return Err(io::Error::other("the session is gone")),
            }
            while self.watched.load(Ordering::SeqCst) {
                if let Ok(News::Ended(result)) = self.news.recv_timeout(LOOK) {
                    return result;
                }
                if !self.any_busy() {
                    self.rest();
                } else if mount::is_over(device.as_fd()) {
                    return self.last_news(last_wait);
                }
            }
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

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.busy.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::thread::{self, JoinHandle};
    use std::time::Instant;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    /// Stands for the device: its mount is over when the reader is dropped.
    fn device() -> io::Result<(io::PipeReader, OwnedFd)> {
        let (reader, writer) = io::pipe()?;
        Ok((reader, writer.into()))
    }

    fn watch(
        receivers: &Arc<Receivers>,
        device: OwnedFd,
        last_wait: Duration,
    ) -> JoinHandle<io::Result<()>> {
        let receivers = receivers.clone();
        thread::spawn(move || receivers.watch(device, last_wait))
    }

    fn kind(ended: io::Result<()>) -> Option<io::ErrorKind> {
        ended.err().map(|e| e.kind())
    }

    /// Whether it comes to be so.
    fn soon(so: impl Fn() -> bool) -> bool {
        let begun = Instant::now();
        while !so() && begun.elapsed() < PATIENCE {
            thread::sleep(LOOK / 10);
        }
        so()
    }

    #[test]
    fn the_last_one_only_receives() {
        for all in [1, 2, 4] {
            let receivers = Receivers::new(all);
            let mut busy: Vec<_> = (1..all).map(|_| receivers.enter()).collect();
            assert!(busy.iter().all(Option::is_some), "{all}");
            assert!(receivers.enter().is_none(), "{all}");
            if busy.pop().is_some() {
                assert!(receivers.enter().is_some(), "{all}");
            }
        }
    }

    #[test]
    fn the_end_of_the_session_is_the_end() -> io::Result<()> {
        let receivers = Arc::new(Receivers::new(2));
        let (_mount, device) = device()?;
        let watch = watch(&receivers, device, LOOK);
        let busy = receivers.enter();
        receivers.ended(Err(io::ErrorKind::InvalidData.into()));
        assert!(soon(|| watch.is_finished()));
        let ended = watch.join().ok().and_then(kind);
        assert_eq!(ended, Some(io::ErrorKind::InvalidData));
        drop(busy);
        Ok(())
    }

    #[test]
    fn a_receiver_that_waits_does_not_keep_the_end_away() -> io::Result<()> {
        let receivers = Arc::new(Receivers::new(2));
        let (mount, device) = device()?;
        let watch = watch(&receivers, device, LOOK);
        let busy = receivers.enter();
        assert!(busy.is_some());
        thread::sleep(LOOK * 4);
        assert!(!watch.is_finished(), "the mount is there");
        drop(mount);
        assert!(soon(|| watch.is_finished()));
        assert!(matches!(watch.join(), Ok(Ok(()))));
        Ok(())
    }

    /// Those who still wait when the mount is gone may come to an end yet.
    #[test]
    fn the_last_news_are_waited_for() -> io::Result<()> {
        let receivers = Arc::new(Receivers::new(2));
        let (mount, device) = device()?;
        let watch = watch(&receivers, device, PATIENCE);
        let _busy = receivers.enter();
        drop(mount);
        thread::sleep(LOOK * 4);
        assert!(!watch.is_finished());
        receivers.ended(Err(io::ErrorKind::InvalidData.into()));
        assert!(soon(|| watch.is_finished()));
        let ended = watch.join().ok().and_then(kind);
        assert_eq!(ended, Some(io::ErrorKind::InvalidData));
        Ok(())
    }

    #[test]
    fn nobody_looks_while_nothing_is_done() -> io::Result<()> {
        let receivers = Arc::new(Receivers::new(2));
        let (mount, device) = device()?;
        let watch = watch(&receivers, device, LOOK);
        for _ in 0..3 {
            let busy = receivers.enter();
            assert!(receivers.watched.load(Ordering::SeqCst));
            drop(busy);
            assert!(soon(|| !receivers.watched.load(Ordering::SeqCst)));
        }
        // Then the session ends by itself, and says so.
        drop(mount);
        thread::sleep(LOOK * 2);
        assert!(!watch.is_finished());
        receivers.ended(Err(io::ErrorKind::InvalidData.into()));
        assert!(soon(|| watch.is_finished()));
        let ended = watch.join().ok().and_then(kind);
        assert_eq!(ended, Some(io::ErrorKind::InvalidData));
        Ok(())
    }

    /// Who begins while the watch comes to rest is looked after, or has told of it.
    #[test]
    fn nobody_begins_unseen() {
        let receivers = Receivers::new(2);
        let (rests, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    if !receivers.any_busy() {
                        receivers.rest();
                    }
                    rests.fetch_add(1, Ordering::SeqCst);
                }
            });
            let end = Instant::now() + LOOK * 6;
            let mut tries = (0..20_000).take_while(|_| Instant::now() < end);
            let unseen = tries.find(|_| {
                receivers.watched.store(true, Ordering::SeqCst);
                let busy = receivers.enter();
                let begun = rests.load(Ordering::SeqCst);
                while rests.load(Ordering::SeqCst) < begun + 2 {
                    thread::yield_now();
                }
                let seen = receivers.watched.load(Ordering::SeqCst);
                let told = receivers.news.try_iter().count() > 0;
                drop(busy);
                !seen && !told
            });
            over.store(true, Ordering::SeqCst);
            assert_eq!(unseen, None);
        });
    }
}
