//! The receivers, with pipes and channels in place of the device.

use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// Stands for the mount, which is over when this is dropped.
type Mount = io::PipeReader;

/// Receivers, and what stands for their mount.
fn some(all: usize) -> io::Result<(Arc<Receivers>, Mount)> {
    let (mount, device) = io::pipe()?;
    Ok((Arc::new(Receivers::new(all, device.into())), mount))
}

/// Receivers that never go away.
fn staying(all: usize) -> io::Result<(Arc<Receivers>, Mount)> {
    let some = some(all)?;
    some.0.close();
    Ok(some)
}

fn watch(receivers: &Arc<Receivers>, last_wait: Duration) -> JoinHandle<io::Result<()>> {
    let receivers = receivers.clone();
    thread::spawn(move || receivers.watch(last_wait))
}

fn kind(ended: io::Result<()>) -> Option<io::ErrorKind> {
    ended.err().map(|e| e.kind())
}

/// Whether it comes to be so.
fn soon(so: impl Fn() -> bool) -> bool {
    let begun = Instant::now();
    while !so() {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        thread::sleep(TICK);
    }
    true
}

#[test]
fn the_last_one_only_receives() -> io::Result<()> {
    for all in [1, 2, 4] {
        let (receivers, _mount) = staying(all)?;
        let mut busy: Vec<_> = (1..all).map(|_| receivers.enter()).collect();
        assert!(busy.iter().all(Option::is_some), "{all}");
        assert!(receivers.enter().is_none(), "{all}");
        if busy.pop().is_some() {
            assert!(receivers.enter().is_some(), "{all}");
        }
    }
    Ok(())
}

#[test]
fn the_end_of_the_session_is_the_end() -> io::Result<()> {
    let (receivers, _mount) = staying(2)?;
    let watch = watch(&receivers, TICK * 12);
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
    let (receivers, mount) = staying(2)?;
    let watch = watch(&receivers, TICK * 12);
    let busy = receivers.enter();
    assert!(busy.is_some());
    thread::sleep(TICK * 50);
    assert!(!watch.is_finished(), "the mount is there");
    drop(mount);
    assert!(soon(|| watch.is_finished()));
    assert!(matches!(watch.join(), Ok(Ok(()))));
    Ok(())
}

/// Those who still wait when the mount is gone may come to an end yet.
#[test]
fn the_last_news_are_waited_for() -> io::Result<()> {
    let (receivers, mount) = staying(2)?;
    let watch = watch(&receivers, PATIENCE);
    let _busy = receivers.enter();
    drop(mount);
    thread::sleep(TICK * 50);
    assert!(!watch.is_finished());
    receivers.ended(Err(io::ErrorKind::InvalidData.into()));
    assert!(soon(|| watch.is_finished()));
    let ended = watch.join().ok().and_then(kind);
    assert_eq!(ended, Some(io::ErrorKind::InvalidData));
    Ok(())
}

/// So many threads that take turns at requests as fuser's do: each receives a sign, and carries it out.
struct Crew {
    receivers: Arc<Receivers>,
    requests: crossbeam_channel::Sender<Request>,
    threads: Vec<JoinHandle<()>>,
    watch: JoinHandle<io::Result<()>>,
    _mount: Mount,
}

/// What a receiver does: it waits for its sign, if there is one.
type Request = Option<Receiver<()>>;

impl Crew {
    fn new(all: usize) -> io::Result<Crew> {
        let (receivers, mount) = some(all)?;
        let watch = watch(&receivers, PATIENCE);
        let (requests, queue) = unbounded::<Request>();
        let receive = |_| {
            let (receivers, queue) = (receivers.clone(), queue.clone());
            thread::spawn(move || {
                while let Ok(request) = queue.recv() {
                    let busy = receivers.enter();
                    if let Some(sign) = request.filter(|_| busy.is_some()) {
                        assert!(
                            sign.recv_timeout(PATIENCE).is_err(),
                            "a sign is only given up"
                        );
                    }
                    drop(busy);
                }
            })
        };
        let threads = (0..all).map(receive).collect();
        Ok(Crew {
            receivers,
            requests,
            threads,
            watch,
            _mount: mount,
        })
    }

    fn ask(&self, request: Request) {
        assert!(self.requests.send(request).is_ok());
    }

    /// Requests one after the other, none of which takes long.
    fn ask_often(&self) {
        for _ in 0..200 {
            self.ask(None);
            thread::sleep(TICK / 8);
        }
    }

    /// A request that takes until what is returned is dropped.
    fn hold(&self) -> Sender<()> {
        let (sender, sign) = unbounded();
        self.ask(Some(sign));
        sender
    }

    fn here(&self) -> u64 {
        self.receivers.counts().here()
    }

    /// All threads come to an end.
    fn end(self) {
        drop(self.requests);
        for thread in self.threads {
            assert!(soon(|| thread.is_finished()), "a thread stays away");
        }
        self.receivers.ended(Ok(()));
        assert!(matches!(self.watch.join(), Ok(Ok(()))));
    }
}

#[test]
fn one_receives_while_all_goes_fast() -> io::Result<()> {
    let crew = Crew::new(4)?;
    let alone = || {
        crew.ask_often();
        crew.here() == 1
    };
    // A thread that was not given the processor is taken for one that is held up, for a while.
    assert!(soon(alone));
    crew.end();
    Ok(())
}

#[test]
fn who_is_held_up_has_all_called() -> io::Result<()> {
    let crew = Crew::new(4)?;
    crew.ask_often();
    let signs: Vec<_> = (0..3).map(|_| crew.hold()).collect();
    assert!(
        soon(|| crew.receivers.counts().busy() == 3),
        "somebody receives"
    );
    assert!(soon(|| crew.here() == 4));
    // The last one goes on, and all go away again after a while, but for who receives.
    crew.ask_often();
    drop(signs);
    let alone = || {
        crew.ask_often();
        crew.here() == 1
    };
    assert!(soon(alone));
    crew.end();
    Ok(())
}

/// Carries out requests without ever waiting, as many as are looked at together.
fn work_without_a_pause(receivers: &Arc<Receivers>) {
    for _ in 0..ROUND {
        drop(receivers.enter());
    }
}

#[test]
fn who_is_called_again_and_again_stays_longer() {
    let mut stay = next_stay(0, 12_345);
    assert_eq!(stay, 16);
    let stays: Vec<u64> = (0..8)
        .map(|_| {
            stay = next_stay(stay, stay + 10);
            stay
        })
        .collect();
    assert_eq!(stays, [32, 64, 128, 256, 512, 1000, 1000, 1000]);
    assert_eq!(next_stay(1000, 4001), 16);
}

#[test]
fn requests_that_pile_up_have_all_called() -> io::Result<()> {
    let (receivers, _mount) = some(2)?;
    drop(receivers.enter());
    let done = Arc::new(AtomicBool::new(false));
    let away = {
        let (receivers, done) = (receivers.clone(), done.clone());
        thread::spawn(move || {
            drop(receivers.enter());
            done.store(true, Ordering::SeqCst);
        })
    };
    assert!(soon(|| receivers.counts().here() == 1));
    assert!(!done.load(Ordering::SeqCst));
    let called = || {
        work_without_a_pause(&receivers);
        receivers.counts().here() == 2
    };
    assert!(soon(called));
    assert!(away.join().is_ok() && done.load(Ordering::SeqCst));
    Ok(())
}

/// Bug: the one that was left had received nothing, so nobody noticed its end.
#[test]
fn nobody_goes_away_before_all_are_known() -> io::Result<()> {
    let (receivers, _mount) = some(2)?;
    let begun = Instant::now();
    while begun.elapsed() < TICK * 5 {
        drop(receivers.enter());
    }
    assert_eq!(receivers.counts().here(), 2);
    Ok(())
}

#[test]
fn a_thread_that_ends_calls_all() -> io::Result<()> {
    let crew = Crew::new(4)?;
    crew.ask_often();
    crew.end();
    Ok(())
}

#[test]
fn nobody_looks_while_nothing_is_done() -> io::Result<()> {
    let (receivers, mount) = staying(2)?;
    let watch = watch(&receivers, TICK * 12);
    for _ in 0..3 {
        let busy = receivers.enter();
        assert!(receivers.watched.load(Ordering::SeqCst));
        drop(busy);
        assert!(soon(|| !receivers.watched.load(Ordering::SeqCst)));
    }
    // Then the session ends by itself, and says so.
    drop(mount);
    thread::sleep(TICK * 25);
    assert!(!watch.is_finished());
    receivers.ended(Err(io::ErrorKind::InvalidData.into()));
    assert!(soon(|| watch.is_finished()));
    let ended = watch.join().ok().and_then(kind);
    assert_eq!(ended, Some(io::ErrorKind::InvalidData));
    Ok(())
}

/// Who begins while the watch comes to rest is looked after, or has told of it.
#[test]
fn nobody_begins_unseen() -> io::Result<()> {
    let (receivers, _mount) = staying(2)?;
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
        let end = Instant::now() + TICK * 75;
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
    Ok(())
}
