//! What a [`SlowFs`](super::SlowFs) has to fetch first, as a CVMFS client with an empty cache has: the first
//! open of each file and the first look into each catalogue take time, so many requests are served at once,
//! and all others wait in their order, also those that need nothing to be fetched.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// The cache of a client, and its threads.
pub struct Cold {
    latency: Duration,
    /// Directories whose content has a catalogue of its own.
    catalogues: Vec<PathBuf>,
    jobs: Mutex<Sender<Job>>,
    asked: Arc<Mutex<Asked>>,
    fetched: Mutex<Fetched>,
    ended: Condvar,
}

type Job = Box<dyn FnOnce() + Send>;

/// Requests that are served or wait for that.
#[derive(Default)]
struct Asked {
    now: usize,
    most: usize,
}

#[derive(Default)]
struct Fetched {
    /// Whether it is there, or under way.
    objects: HashMap<PathBuf, bool>,
    running: usize,
    most: usize,
    transfers: u64,
}

impl Cold {
    /// Each transfer takes so long; so many requests are served at once.
    pub fn new(latency: Duration, in_flight: usize) -> Cold {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..in_flight {
            let queue = queue.clone();
            thread::spawn(move || {
                loop {
                    let job = queue.lock().unwrap().recv();
                    // The file system is gone.
                    let Ok(job) = job else { return };
                    job();
                }
            });
        }
        Cold {
            latency,
            catalogues: Vec::new(),
            jobs: Mutex::new(jobs),
            asked: Arc::default(),
            fetched: Mutex::default(),
            ended: Condvar::new(),
        }
    }

    /// These directories have catalogues of their own.
    pub fn with_catalogues(mut self, of: impl IntoIterator<Item = PathBuf>) -> Cold {
        self.catalogues.extend(of);
        self
    }

    /// Nothing is in the cache any more.
    pub fn forget(&self) {
        *self.fetched.lock().unwrap() = Fetched::default();
    }

    /// How much was fetched, catalogues included.
    pub fn transfers(&self) -> u64 {
        self.fetched.lock().unwrap().transfers
    }

    /// The most transfers that there were at one time.
    pub fn most(&self) -> usize {
        self.fetched.lock().unwrap().most
    }

    /// The most requests that there are at one time while `body` runs, those that wait included.
    pub fn most_asked(&self, body: impl FnOnce()) -> usize {
        let lock = || self.asked.lock().unwrap();
        let now = lock().now;
        lock().most = now;
        body();
        lock().most
    }

    /// Waits until so many transfers have begun.
    pub fn wait_for(&self, transfers: u64) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut fetched = self.fetched.lock().unwrap();
        while fetched.transfers < transfers {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} transfers", fetched.transfers);
            fetched = self.ended.wait_timeout(fetched, left).unwrap().0;
        }
    }

    pub(super) fn serve(&self, job: impl FnOnce() + Send + 'static) {
        let mut asked = self.asked.lock().unwrap();
        asked.now += 1;
        asked.most = asked.most.max(asked.now);
        drop(asked);
        let asked = self.asked.clone();
        let job = move || {
            job();
            asked.lock().unwrap().now -= 1;
        };
        self.jobs.lock().unwrap().send(Box::new(job)).unwrap();
    }

    pub(super) fn fetch_catalogue(&self, path: &Path, within: bool) {
        let of = |dir: &&PathBuf| path.starts_with(dir) && (within || path != dir.as_path());
        if let Some(dir) = self.catalogues.iter().find(of) {
            self.fetch(&dir.join(".cvmfscatalog"));
        }
    }

    pub(super) fn fetch(&self, path: &Path) {
        let mut fetched = self.fetched.lock().unwrap();
        match fetched.objects.get(path) {
            Some(true) => return,
            Some(false) => {
                let under_way = |f: &mut Fetched| f.objects.get(path) == Some(&false);
                drop(self.ended.wait_while(fetched, under_way).unwrap());
                return;
            }
            None => {}
        }
        fetched.objects.insert(path.to_owned(), false);
        fetched.transfers += 1;
        fetched.running += 1;
        fetched.most = fetched.most.max(fetched.running);
        drop(fetched);
        self.ended.notify_all();
        thread::sleep(self.latency);
        let mut fetched = self.fetched.lock().unwrap();
        fetched.running = fetched.running.saturating_sub(1);
        fetched.objects.insert(path.to_owned(), true);
        drop(fetched);
        self.ended.notify_all();
    }
}
