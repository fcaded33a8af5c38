//! Revisions of the repositories in which layers lie: which it was at mount, and which it is now.
//!
//! A publication changes it, and no layer, which is named by its digest; but it may have taken layers away,
//! and a directory that is no layer shows what was published. So it is worth a line when something is odd.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Lowers;
use crate::sys::xattr;

/// The time between two looks that nobody asks for.
const EVERY: Duration = Duration::from_secs(60);
/// The attribute by which a CVMFS client answers, on all that it shows.
const KEY: &std::ffi::CStr = c"user.revision";

/// The revision of a repository, at two moments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// Its name.
    pub repository: String,
    /// When the layers were opened.
    pub at_mount: String,
    /// When it was looked at last.
    pub now: String,
}

/// The repositories of some layers.
#[derive(Debug)]
pub struct Revisions {
    /// A layer in each of them, by its position.
    layers: Vec<usize>,
    looks: Mutex<Looks>,
    /// A look is wanted, or has been taken.
    news: Condvar,
}

#[derive(Debug, Default)]
struct Looks {
    seen: Vec<Revision>,
    /// Looks are numbered: the last that is wanted, and the last that was taken.
    wanted: u64,
    taken: u64,
    watched: bool,
    ended: bool,
}

impl Revisions {
    /// Asks each repository once. One that does not tell is left out.
    pub fn of(lowers: &Lowers) -> Revisions {
        let mut known = HashSet::new();
        let mut layers = Vec::new();
        let mut seen = Vec::new();
        for (at, layer) in lowers.layers().iter().enumerate() {
            let Some(name) = layer.root.repository().filter(|name| known.insert(*name)) else {
                continue;
            };
            if let Ok(revision) = read(&layer.root.current().1) {
                layers.push(at);
                seen.push(Revision {
                    repository: String::from_utf8_lossy(name).into_owned(),
                    at_mount: revision.clone(),
                    now: revision,
                });
            }
        }
        Revisions {
            layers,
            looks: Mutex::new(Looks {
                seen,
                ..Looks::default()
            }),
            news: Condvar::new(),
        }
    }

    /// Whether there is nothing to watch.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// Who asks from now on waits for a look, which [`watch`](Self::watch) takes as soon as it runs.
    pub fn begin(&self) {
        let mut looks = self.looks.lock();
        looks.watched = !looks.ended;
    }

    /// Looks again and again, until the end, or until `root` has no descriptor of a layer any more. A repository
    /// that does not answer holds up this thread alone.
    pub fn watch(&self, root: impl Fn(usize) -> Option<Arc<OwnedFd>>) {
        while let Some(look) = self.next_look() {
            for (at, layer) in self.layers.iter().enumerate() {
                let Some(root) = root(*layer) else {
                    return self.end();
                };
                match read(&root) {
                    Ok(revision) => self.note(at, revision),
                    Err(e) => tracing::debug!("the revision of a repository: {e}"),
                }
            }
            self.looks.lock().taken = look;
            self.news.notify_all();
        }
    }

    /// Ends the watch, as soon as it waits for nothing else.
    pub fn end(&self) {
        let mut looks = self.looks.lock();
        (looks.watched, looks.ended) = (false, true);
        self.news.notify_all();
    }

    /// What is known after another look; after so long what is known without.
    pub fn seen(&self, patience: Duration) -> Vec<Revision> {
        let end = Instant::now() + patience;
        let mut looks = self.looks.lock();
        looks.wanted += 1;
        let mine = looks.wanted;
        self.news.notify_all();
        while looks.watched && looks.taken < mine {
            if self.news.wait_until(&mut looks, end).timed_out() {
                break;
            }
        }
        looks.seen.clone()
    }

    /// Waits until a look is due; its number. None: it has ended.
    fn next_look(&self) -> Option<u64> {
        let due = Instant::now() + EVERY;
        let mut looks = self.looks.lock();
        while looks.taken >= looks.wanted && !looks.ended {
            if self.news.wait_until(&mut looks, due).timed_out() {
                break;
            }
        }
        (!looks.ended).then_some(looks.wanted)
    }

    fn note(&self, at: usize, revision: String) {
        let mut looks = self.looks.lock();
        let Some(seen) = looks.seen.get_mut(at).filter(|seen| seen.now != revision) else {
            return;
        };
        let first = seen.now == seen.at_mount;
        seen.now = revision;
        let Revision {
            repository,
            at_mount,
            now,
        } = seen.clone();
        drop(looks);
        // One warning for each mount; a busy repository publishes every few minutes.
        if first {
            tracing::warn!("{repository}: revision {now} now, {at_mount} at mount");
        } else {
            tracing::info!("{repository}: revision {now} now, {at_mount} at mount");
        }
    }
}

fn read(root: &OwnedFd) -> io::Result<String> {
    let value = xattr::get(root.as_fd(), b"", KEY)?;
    Ok(String::from_utf8_lossy(&value)
        .trim_end_matches('\0')
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::File;
    use std::num::NonZeroUsize;
    use std::thread;

    use crate::layer::{Layer, Repositories};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// Layers with these repositories and revisions; None where there are no such attributes.
    fn layers(of: &[Option<(&str, &str)>]) -> Option<(tempfile::TempDir, Lowers)> {
        let dir = tempfile::tempdir().ok()?;
        let mut known = Repositories::default();
        let mut layers = Vec::new();
        for (at, attributes) in of.iter().enumerate() {
            let path = dir.path().join(at.to_string());
            std::fs::create_dir(&path).ok()?;
            let open = File::open(&path).ok()?;
            for (key, value) in attributes
                .iter()
                .flat_map(|(name, revision)| [(c"user.fqrn", *name), (KEY, *revision)])
            {
                xattr::set(open.as_fd(), b"", key, value.as_bytes(), 0).ok()?;
            }
            layers.push(Layer::open(&path, "x", &mut known).ok()?);
        }
        Some((dir, Lowers::new(layers, NonZeroUsize::MIN, None)))
    }

    #[test]
    fn each_repository_is_told_once() {
        let of = [
            Some(("a.org", "7")),
            None,
            Some(("b.org", "9")),
            Some(("a.org", "7")),
        ];
        let Some((_dir, lowers)) = layers(&of) else {
            return eprintln!("skipped: the file system has no attributes");
        };
        let revisions = Revisions::of(&lowers);
        let seen = revisions.seen(PATIENCE);
        let seen: Vec<_> = seen
            .iter()
            .map(|r| (&*r.repository, &*r.at_mount))
            .collect();
        assert_eq!(seen, [("a.org", "7"), ("b.org", "9")]);
        let Some((_dir, lowers)) = layers(&[None]) else {
            return;
        };
        assert!(Revisions::of(&lowers).is_empty());
    }

    #[test]
    fn who_asks_is_told_what_is_there_now() {
        let Some((dir, lowers)) = layers(&[Some(("a.org", "7"))]) else {
            return eprintln!("skipped: the file system has no attributes");
        };
        let revisions = Revisions::of(&lowers);
        let root = |at: usize| lowers.layers().get(at).map(|l| l.root.current().1);
        thread::scope(|scope| {
            revisions.begin();
            scope.spawn(|| {
                // Who asks earlier waits.
                thread::sleep(Duration::from_millis(50));
                revisions.watch(root);
            });
            let set = |value: &[u8]| {
                let open = File::open(dir.path().join("0"))?;
                xattr::set(open.as_fd(), b"", KEY, value, 0)
            };
            for revision in ["8", "10"] {
                assert!(set(revision.as_bytes()).is_ok());
                let seen = revisions.seen(PATIENCE);
                let seen: Vec<_> = seen.iter().map(|r| (&*r.at_mount, &*r.now)).collect();
                assert_eq!(seen, [("7", revision)]);
            }
            revisions.end();
        });
        // Nobody looks any more, and nobody waits.
        let begun = Instant::now();
        assert_eq!(revisions.seen(PATIENCE).len(), 1);
        assert!(begun.elapsed() < PATIENCE);
    }
}
