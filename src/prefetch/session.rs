//! The life of a profile in a mount: replay at its beginning, recording, and what is kept at the end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

use super::fetch::{Fetcher, Wanted};
use super::{LayerAt, Limits};
use crate::error::best_effort;
use crate::layer::ahead::Ahead;
use crate::layer::hash_at;
use crate::layer::record::{Learning, Record, Seen, Settling};
use crate::profile::store::{Lasting, Store, Turn};
use crate::profile::{File, MOST_FILES, Opened, Profile, Replay};

/// A job has settled when it opens nothing new for so long.
const SETTLING: Settling = Settling {
    quiet: Duration::from_secs(10),
    most: Duration::from_secs(600),
};
/// How long others may write before a run is not kept, while the mount goes on.
const PATIENCE: Duration = Duration::from_secs(60);
/// The same at the end of a mount, which waits for it.
const LAST_PATIENCE: Duration = Duration::from_millis(200);
/// How often it is looked whether another mount has ended its replay.
const TURN: Duration = Duration::from_millis(50);
/// How often it is asked whether what is fetched for others is still wanted.
const LOOK: Duration = Duration::from_secs(1);
/// So many files that were opened ahead stay open until programs want them or the job has settled.
const KEPT: usize = 1024;

/// What a session needs.
#[derive(Debug)]
pub struct Setup {
    /// The distinct layers of the union, in its order.
    pub layers: Vec<LayerAt>,
    /// Where the profile is kept.
    pub store: Option<(Store, PathBuf)>,
    /// What is replayed.
    pub replay: Option<Profile>,
    /// What a profile that is not there yet begins with.
    pub base: Option<Profile>,
    /// How much may be fetched.
    pub limits: Limits,
    /// How many files may be open in this process.
    pub open_files: usize,
}

/// A session that has begun. It works on its own; [`end`](Self::end) it when the mount ends.
#[derive(Debug)]
pub struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    learning: Learning,
    fetcher: Fetcher,
    layers: Vec<String>,
    store: Option<(Store, PathBuf)>,
    base: Mutex<Option<Profile>>,
    limits: Limits,
    /// The turn to fetch, while that is so.
    turn: Mutex<Option<Turn>>,
    /// Whether another mount had the turn.
    waited: AtomicBool,
    ending: AtomicBool,
}

impl Session {
    /// Begins to fetch and to record, on threads of its own.
    pub fn begin(setup: Setup) -> Session {
        let (inner, replay) = Inner::new(setup);
        if let Some(profile) = replay {
            // Before any program runs: what one opens from now on is its own, and not fetched again.
            let expected = inner.expect(&profile);
            let replay = move |inner: &Inner| inner.replay(&profile, expected);
            inner.clone().spawn("replay", replay);
        }
        inner.clone().spawn("profile", Inner::keep);
        Session(inner)
    }

    /// For the union.
    pub fn learning(&self) -> Learning {
        self.0.learning.clone()
    }

    /// Begins to fetch nothing more, and lets other mounts do so. To be called first when a mount ends; waits
    /// for nothing.
    pub fn stop(&self) {
        self.0.stop();
    }

    /// Ends it, and keeps what was recorded. Waits for no layer.
    pub fn end(&self) {
        self.stop();
        self.0
            .save(Lasting::Written, |waited| waited < LAST_PATIENCE);
    }
}

/// Fetches what is expected, for programs that open it without this one, and returns when that is done. It ends
/// earlier when its time is over, or `wanted` says that nobody wants it any more; a reader that waits for a
/// layer then is left behind, until its process ends.
pub fn fetch_for_others(setup: Setup, wanted: impl Fn() -> bool) {
    // Nobody takes a file over.
    let (inner, replay) = Inner::new(Setup {
        open_files: 0,
        ..setup
    });
    let Some(profile) = replay else {
        return;
    };
    let (done, is_done) = mpsc::channel::<()>();
    let expected = inner.expect(&profile);
    inner.clone().spawn("replay", move |inner| {
        inner.fetcher.open_roots();
        inner.wait_for_turn();
        inner.fetcher.fetch(expected);
        drop(done);
    });
    while !inner.fetcher.is_over() && wanted() {
        if is_done.recv_timeout(LOOK) == Err(RecvTimeoutError::Disconnected) {
            break;
        }
    }
    inner.stop();
}

impl Inner {
    /// One that does nothing yet, and what there is to replay.
    fn new(setup: Setup) -> (Arc<Inner>, Option<Profile>) {
        let learning = Learning {
            ahead: Arc::new(Ahead::new(KEPT.min(setup.open_files / 8))),
            record: Arc::new(Record::new(MOST_FILES)),
        };
        let layers: Vec<String> = setup.layers.iter().map(|l| l.identity.clone()).collect();
        let inner = Inner {
            fetcher: Fetcher::new(setup.layers, setup.limits, learning.ahead.clone()),
            learning,
            layers,
            store: setup.store,
            base: Mutex::new(setup.base),
            limits: setup.limits,
            turn: Mutex::new(None),
            waited: AtomicBool::new(false),
            ending: AtomicBool::new(false),
        };
        (Arc::new(inner), setup.replay)
    }

    /// Begins nothing more, and gives the turn back: a reader may wait for a layer for ever; others need not.
    fn stop(&self) {
        self.ending.store(true, Ordering::Relaxed);
        self.fetcher.stop();
        drop(self.turn.lock().take());
    }

    fn spawn(self: Arc<Self>, name: &str, job: impl FnOnce(&Inner) + Send + 'static) {
        let thread = thread::Builder::new().name(name.to_owned());
        best_effort(name, thread.spawn(move || job(&self)));
    }

    /// Queues what the profile expects, and watches for its trails.
    fn expect(&self, profile: &Profile) -> Vec<Wanted> {
        let expected: Vec<Wanted> = profile
            .expected()
            .filter_map(|file| self.wanted(profile, file, profile.expected_of(file)))
            .collect();
        let ahead = &self.learning.ahead;
        ahead.queue(expected.iter().map(|file| file.hash));
        for (number, trail) in profile.trails() {
            let files = self.all_wanted(profile, &trail.files);
            ahead.watch(files.map(|file| (file.hash, number)));
        }
        expected
    }

    /// Fetches what is expected, and the trails that programs step on: at once, as somebody waits for them.
    fn replay(&self, profile: &Profile, expected: Vec<Wanted>) {
        self.fetcher.open_roots();
        thread::scope(|scope| {
            let trails = thread::Builder::new().name("trails".to_owned());
            let trails = trails.spawn_scoped(scope, || self.follow(profile));
            best_effort("follow trails", trails);
            self.wait_for_turn();
            self.fetcher.fetch(expected);
            drop(self.turn.lock().take());
        });
        self.fetcher.let_go();
    }

    /// Fetches the trails that programs step on, until there are no more.
    fn follow(&self, profile: &Profile) {
        let trails = profile.trails();
        while let Some(number) = self.learning.ahead.next_trail() {
            if let Some(trail) = trails.get(&number) {
                let files = self.all_wanted(profile, &trail.files);
                let parts = self.all_wanted(profile, &trail.parts);
                let parts = parts.map(|part| Wanted {
                    is_more: true,
                    ..part
                });
                self.fetcher.fetch(files.chain(parts).collect());
            }
        }
    }

    fn all_wanted(
        &self,
        profile: &Profile,
        files: &[(usize, u64)],
    ) -> impl Iterator<Item = Wanted> {
        files.iter().filter_map(move |(at, pieces)| {
            let file = profile.files.get(*at)?;
            self.wanted(profile, file, *pieces)
        })
    }

    fn wanted(&self, profile: &Profile, file: &File, pieces: u64) -> Option<Wanted> {
        let identity = profile.layers.get(file.layer)?;
        Some(Wanted {
            layer: self.layers.iter().position(|layer| layer == identity)?,
            path: file.path.clone(),
            pieces,
            size: file.size,
            hash: hash_at(identity, &file.path),
            is_more: false,
        })
    }

    /// Waits while another mount of this user replays the same profile: what it fetches needs not be
    /// fetched here, and would only stand in its way.
    fn wait_for_turn(&self) {
        let Some((store, path)) = &self.store else {
            return;
        };
        while !self.fetcher.is_over() {
            // Taken under the lock, so that the end finds it.
            let mut turn = self.turn.lock();
            match store.try_turn(path) {
                Ok(Some(_)) if self.ending.load(Ordering::Relaxed) => return,
                Ok(Some(taken)) => {
                    *turn = Some(taken);
                    return;
                }
                Ok(None) => self.waited.store(true, Ordering::Relaxed),
                Err(e) => return tracing::debug!("{}: {e}", path.display()),
            }
            drop(turn);
            thread::sleep(TURN);
        }
    }

    /// Keeps what was recorded when the job has settled.
    fn keep(&self) {
        // Open files stand in the way of whoever wants to unmount the layers.
        if !self.learning.record.wait_for_first(self.limits.time) {
            self.learning.ahead.close();
        }
        if self.learning.record.wait(SETTLING) {
            let ending = || self.ending.load(Ordering::Relaxed);
            self.save(Lasting::Synced, |waited| waited < PATIENCE && !ending());
        }
        self.learning.ahead.close();
    }

    /// Adds the run to the profile, once. What could not be kept is there for another attempt.
    fn save(&self, lasting: Lasting, patience: impl Fn(Duration) -> bool) {
        // Held to the end: whoever comes second must not end the process before the first has written.
        let mut base = self.base.lock();
        let record = &self.learning.record;
        record.close();
        let seen = record.seen();
        let Some((store, path)) = &self.store else {
            return;
        };
        if seen.is_empty() {
            return;
        }
        let opened: Vec<Opened> = seen.iter().filter_map(|seen| self.opened(seen)).collect();
        let replay = self.replayed();
        let saved = store.update(path, lasting, patience, |old| {
            let mut profile = old.unwrap_or_else(|| match &*base {
                Some(base) => Profile::default().over(base),
                None => Profile::default(),
            });
            profile.add_run(&opened);
            // Where another mount has fetched, and programs did not wait for it, that says nothing.
            let telling = !self.waited.load(Ordering::Relaxed);
            if telling && profile.add_replay(replay, opened.len()) {
                tracing::info!("{}: runs open other files by now", path.display());
            }
            profile
        });
        match saved {
            Ok(()) => {
                record.clear();
                *base = None;
            }
            Err(e) => tracing::warn!("the profile {} is not kept: {e}", path.display()),
        }
    }

    fn opened(&self, seen: &Seen) -> Option<Opened> {
        Some(Opened {
            layer: self.layers.get(seen.layer as usize)?.clone(),
            path: seen.path.as_slice().into(),
            size: seen.size,
            pieces: seen.pieces(),
        })
    }

    fn replayed(&self) -> Replay {
        let counts = self.learning.ahead.counts();
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Replay {
            files: counts.files,
            bytes: counts.bytes,
            millis: millis(counts.took),
            used: counts.used,
            saved: millis(counts.saved),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs;
    use std::io;
    use std::num::NonZeroUsize;
    use std::os::fd::AsFd;
    use std::path::Path;
    use std::time::Instant;

    use crate::layer::{Layer, Lowers, Repositories};
    use crate::profile::store;
    use crate::sys::{file, process};

    fn profile_of(path: &str) -> Profile {
        let mut profile = Profile::default();
        profile.add_run(&[Opened {
            layer: "aa".to_owned(),
            path: path.as_bytes().into(),
            size: 1,
            pieces: 1,
        }]);
        profile
    }

    fn setup(layer: &Path) -> Setup {
        Setup {
            layers: vec![LayerAt {
                identity: "aa".to_owned(),
                path: Some(layer.to_owned()),
            }],
            store: None,
            replay: None,
            base: None,
            limits: Limits::default(),
            open_files: 0,
        }
    }

    /// How many descriptors of this process lead below a directory.
    fn open_below(dir: &Path) -> io::Result<usize> {
        let fds = fs::read_dir("/proc/self/fd")?;
        let targets = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        Ok(targets.filter(|to| to.starts_with(dir)).count())
    }

    #[test]
    fn no_directory_of_a_layer_stays_open_when_all_is_fetched() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("d"))?;
        fs::write(dir.path().join("d/f"), "x")?;
        let session = Session::begin(Setup {
            replay: Some(profile_of("d/f")),
            ..setup(dir.path())
        });
        let begun = Instant::now();
        let fetched = || session.learning().ahead.counts().files == 1;
        while !fetched() || open_below(dir.path())? > 0 {
            assert!(begun.elapsed() < Duration::from_secs(20), "{}", fetched());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    #[test]
    fn a_run_that_could_not_be_kept_is_kept_at_the_end() -> Result<(), Box<dyn std::error::Error>> {
        let dir = tempfile::tempdir()?;
        let layer = Layer::open(dir.path(), "aa", &mut Repositories::default())?;
        let lowers = Lowers::new(vec![layer], NonZeroUsize::MIN, None);
        let kept = Store::new(dir.path().join("profiles"));
        let path = kept.path("01", None);
        fs::create_dir(dir.path().join("profiles"))?;
        let session = Session::begin(Setup {
            store: Some((kept, path.clone())),
            base: Some(profile_of("base")),
            ..setup(dir.path())
        });
        for root in lowers.roots() {
            session.learning().record.opened(&root, b"f", 1);
        }
        let name = format!("profiles/.write-{}", process::user());
        let other = fs::File::create(dir.path().join(name))?;
        file::lock_exclusive(other.as_fd())?;
        session.0.save(Lasting::Synced, |_| false);
        assert!(!path.exists());
        drop(other);
        session.end();
        let profile = store::read(&path)?;
        assert_eq!((profile.runs, profile.files.len()), (2, 2));
        session.end();
        assert_eq!(store::read(&path)?, profile, "once");
        Ok(())
    }
}
