//! Profiles on the disk: a directory with a file for each image and job.
//!
//! A directory is meant for one user: where several write, runs that end at the same moment may be lost, and each
//! can read the others' files, which are no more than hints within bounds.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Profile;
use super::format::{MARK, MAX_SIZE};
use crate::cache::{self, own, remove, replace};
pub use crate::cache::{Lasting, Turn};
use crate::sys::file;

/// So many files are kept in a directory; of more, those that were not written for longest go.
const MOST_PROFILES: usize = 1000;
/// The end of a profile's name.
const SUFFIX: &str = ".profile";
/// The longest tag of a job.
const MAX_TAG: usize = 64;

/// The tag of a job: runs of an image that open other files than others do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job(String);

impl Job {
    /// A tag is a part of a file name: up to 64 letters, digits, `.`, `_` and `-`, the first no `.`.
    pub fn new(tag: &str) -> Option<Job> {
        let good = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let whole = (1..=MAX_TAG).contains(&tag.len()) && tag.bytes().all(good);
        (whole && !tag.starts_with('.')).then(|| Job(tag.to_owned()))
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A directory of profiles.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

/// Where root keeps its profiles, which all may read.
pub fn of_root() -> PathBuf {
    cache::of_root().join("profiles")
}

/// Where this user keeps profiles. None without a home.
pub fn usual_dir() -> Option<PathBuf> {
    Some(cache::usual()?.join("profiles"))
}

/// Reads a profile at a path; an error says what is wrong with it: `InvalidData` if it is none, or not whole,
/// `Unsupported` if it is of another version.
pub fn read(path: &Path) -> io::Result<Profile> {
    let bytes = file::read_regular(path, MAX_SIZE)?;
    Profile::parse(&bytes).map_err(|why| {
        let kind = match why.is_of_another_version() {
            true => io::ErrorKind::Unsupported,
            false => io::ErrorKind::InvalidData,
        };
        io::Error::new(kind, why)
    })
}

/// Whether there is a file at a path that says of itself that it is a profile.
pub fn is_profile(path: &Path) -> io::Result<bool> {
    let mut start = Vec::new();
    let file = match fs::metadata(path) {
        Ok(found) if found.is_file() => File::open(path)?,
        _ => return Ok(false),
    };
    file.take(MARK.len() as u64).read_to_end(&mut start)?;
    Ok(start == MARK.as_bytes())
}

impl Store {
    /// The profiles in a directory, which need not be there.
    pub fn new(dir: PathBuf) -> Store {
        Store { dir }
    }

    /// Where the profile of an image and a job is.
    pub fn path(&self, image: &str, job: Option<&Job>) -> PathBuf {
        let tag = job.map(|job| format!(".{job}")).unwrap_or_default();
        self.dir.join(format!("{image}{tag}{SUFFIX}"))
    }

    /// The profiles of an image, whatever their jobs.
    pub fn all_of(&self, image: &str) -> io::Result<Vec<PathBuf>> {
        let mut found = self.list()?;
        found.retain(|path| {
            let name = path.file_name().map(|name| name.to_string_lossy());
            let rest = name.as_ref().and_then(|name| name.strip_prefix(image));
            rest.is_some_and(|rest| rest.starts_with('.'))
        });
        found.sort();
        Ok(found)
    }

    fn list(&self) -> io::Result<Vec<PathBuf>> {
        let entries = match fs::read_dir(&self.dir) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy());
            if name.is_some_and(|name| name.ends_with(SUFFIX) && !name.starts_with('.')) {
                found.push(path);
            }
        }
        Ok(found)
    }

    /// Changes a profile. `change` gets the one that is there, or none; one that is damaged is none. One that
    /// cannot be read at the moment, or is of another version, stays as it is. While others write, `patience`
    /// is asked whether to wait on, after a wait of so long.
    pub fn update(
        &self,
        path: &Path,
        lasting: Lasting,
        patience: impl Fn(Duration) -> bool,
        change: impl FnOnce(Option<Profile>) -> Profile,
    ) -> io::Result<()> {
        cache::make(&self.dir)?;
        let _turn = cache::wait_for_turn(&self.dir, patience)?;
        let old = match read(path) {
            Ok(old) => Some(old),
            Err(e) if e.kind() == io::ErrorKind::NotFound => None,
            Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                tracing::warn!("{}: {e}; it is made anew", path.display());
                None
            }
            Err(e) => return Err(e),
        };
        let new = own(&self.dir, "new");
        replace(&new, path, change(old).to_text().as_bytes(), lasting)?;
        self.prune();
        Ok(())
    }

    /// Removes a profile; false if there was none.
    pub fn drop(&self, path: &Path) -> io::Result<bool> {
        let gone = match fs::remove_file(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => false,
            other => other.map(|()| true)?,
        };
        remove(&self.turn_of(path))?;
        Ok(gone)
    }

    /// The turn to replay a profile, if nobody of this user has it at the moment. Of many mounts of an
    /// image that begin together, one fetches.
    pub fn try_turn(&self, path: &Path) -> io::Result<Option<Turn>> {
        cache::make(&self.dir)?;
        cache::try_lock(&self.turn_of(path))
    }

    fn turn_of(&self, path: &Path) -> PathBuf {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        own(&self.dir, &format!("turn-{name}"))
    }

    /// Keeps the directory from growing without end. What cannot be removed is others'.
    fn prune(&self) {
        let Ok(paths) = self.list() else { return };
        if paths.len() <= MOST_PROFILES {
            return;
        }
        let mut dated: Vec<_> = paths
            .into_iter()
            .filter_map(|path| Some((fs::symlink_metadata(&path).ok()?.mtime(), path)))
            .collect();
        dated.sort();
        let many = dated.len().saturating_sub(MOST_PROFILES);
        for (_, path) in dated.into_iter().take(many) {
            crate::error::best_effort("remove an old profile", self.drop(&path));
        }
    }
}

/// Writes a profile to a path, where there is the old file or the new one, whole, at any time.
pub fn write(path: &Path, profile: &Profile) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        // A pipe or a terminal takes it as it comes.
        return fs::write(path, profile.to_text());
    }
    // A link stays one.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let new = path.with_file_name(format!(".{name}.{}", std::process::id()));
    replace(&new, &path, profile.to_text().as_bytes(), Lasting::Synced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::thread;

    use crate::profile::Opened;
    use crate::sys::fault;

    fn store() -> io::Result<(tempfile::TempDir, Store)> {
        let dir = tempfile::tempdir()?;
        let store = Store::new(dir.path().join("a/profiles"));
        Ok((dir, store))
    }

    fn run(path: &str) -> [Opened; 1] {
        [Opened {
            layer: "aa".to_owned(),
            path: path.as_bytes().into(),
            size: 1,
            pieces: 1,
        }]
    }

    fn add(store: &Store, path: &Path, file: &str) -> io::Result<()> {
        let patience = |waited| waited < Duration::from_secs(60);
        store.update(path, Lasting::Written, patience, |old| {
            let mut profile = old.unwrap_or_default();
            profile.add_run(&run(file));
            profile
        })
    }

    #[test]
    fn tags_are_parts_of_names() {
        for good in ["a", "Job_1.2-x", &"x".repeat(64)] {
            assert!(Job::new(good).is_some(), "{good}");
        }
        for bad in ["", ".a", "a/b", "..", "a b", "é", "a\n", &"x".repeat(65)] {
            assert!(Job::new(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn profiles_are_kept_by_image_and_job() -> io::Result<()> {
        let (_dir, store) = store()?;
        let job = Job::new("j");
        let (plain, tagged) = (store.path("01", None), store.path("01", job.as_ref()));
        assert_eq!(store.all_of("01")?, Vec::<PathBuf>::new());
        add(&store, &plain, "x")?;
        add(&store, &tagged, "y")?;
        add(&store, &store.path("012", None), "z")?;
        add(&store, &plain, "w")?;
        assert_eq!(read(&plain)?.runs, 2);
        assert_eq!(store.all_of("01")?, [tagged.clone(), plain.clone()]);
        assert!(store.drop(&plain)? && !store.drop(&plain)?);
        assert_eq!(store.all_of("01")?, [tagged]);
        Ok(())
    }

    #[test]
    fn one_that_is_damaged_is_made_anew_and_nothing_is_written_through_a_link() -> io::Result<()> {
        let (dir, store) = store()?;
        let path = store.path("01", None);
        add(&store, &path, "x")?;
        fs::write(&path, "cvmfs-union profile 1\nruns 1\n")?;
        assert_eq!(
            read(&path).map_err(|e| e.kind()).err(),
            Some(io::ErrorKind::InvalidData)
        );
        add(&store, &path, "y")?;
        assert_eq!(read(&path)?.runs, 1);
        fs::write(&path, "cvmfs-union profile 3\n")?;
        assert_eq!(
            add(&store, &path, "z").map_err(|e| e.kind()).err(),
            Some(io::ErrorKind::Unsupported)
        );
        assert_eq!(fs::read(&path)?, b"cvmfs-union profile 3\n");
        fs::remove_file(&path)?;
        add(&store, &path, "y")?;
        // Left behind by one that was killed, or put there.
        let victim = dir.path().join("victim");
        fs::write(&victim, "precious")?;
        symlink(&victim, own(&store.dir, "new"))?;
        add(&store, &path, "z")?;
        assert_eq!(fs::read_to_string(&victim)?, "precious");
        assert_eq!(read(&path)?.runs, 2);
        Ok(())
    }

    #[test]
    fn one_that_is_written_takes_the_place_of_another_in_one_step() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (path, link) = (dir.path().join("p"), dir.path().join("link"));
        write(&path, &Profile::default())?;
        symlink("p", &link)?;
        let reader = fs::File::open(&path)?;
        let mut other = Profile::default();
        other.add_run(&run("x"));
        write(&link, &other)?;
        let old = io::read_to_string(reader)?;
        assert_eq!(old, Profile::default().to_text(), "not written in place");
        assert_eq!(read(&path)?, other);
        assert_eq!(
            fs::read_dir(dir.path())?.count(),
            2,
            "nothing is left beside"
        );
        write(Path::new("/dev/null"), &other)?;
        assert!(!fs::metadata("/dev/null")?.is_file());
        Ok(())
    }

    #[test]
    fn one_that_cannot_be_read_at_the_moment_is_kept() -> io::Result<()> {
        let (_dir, store) = store()?;
        let path = store.path("01", None);
        add(&store, &path, "x")?;
        let before = fs::read(&path)?;
        fault::lack(&[("open", libc::EIO)]);
        let added = add(&store, &path, "y");
        fault::lack(&[]);
        assert_eq!(
            added.map_err(|e| e.raw_os_error()).err(),
            Some(Some(libc::EIO))
        );
        assert_eq!(fs::read(&path)?, before);
        Ok(())
    }

    #[test]
    fn no_run_is_lost_when_many_write() -> io::Result<()> {
        let (_dir, store) = store()?;
        let path = store.path("01", None);
        let one = |n: u32| (0..10).try_for_each(|k| add(&store, &path, &format!("{n}-{k}")));
        thread::scope(|scope| {
            let writers: Vec<_> = (0..8).map(|n| scope.spawn(move || one(n))).collect();
            writers
                .into_iter()
                .try_for_each(|w| w.join().unwrap_or(Ok(())))
        })?;
        let profile = read(&path)?;
        assert_eq!((profile.runs, profile.files.len()), (80, 80));
        Ok(())
    }

    #[test]
    fn who_may_not_wait_for_others_gives_up() -> io::Result<()> {
        let (_dir, store) = store()?;
        let path = store.path("01", None);
        cache::make(&store.dir)?;
        let other = cache::wait_for_turn(&store.dir, |_| false)?;
        let asked = std::cell::Cell::new(0);
        let patience = |_| {
            asked.set(asked.get() + 1);
            asked.get() < 3
        };
        let given_up = store.update(&path, Lasting::Written, patience, Option::unwrap_or_default);
        assert_eq!(
            given_up.map_err(|e| e.kind()).err(),
            Some(io::ErrorKind::WouldBlock)
        );
        assert_eq!((asked.get(), path.exists()), (3, false));
        drop(other);
        store.update(&path, Lasting::Synced, |_| false, Option::unwrap_or_default)?;
        assert_eq!(read(&path)?, Profile::default());
        Ok(())
    }

    #[test]
    fn one_at_a_time_has_the_turn() -> io::Result<()> {
        let (_dir, store) = store()?;
        let (one, other) = (store.path("01", None), store.path("02", None));
        let turn = store.try_turn(&one)?;
        assert!(turn.is_some() && store.try_turn(&other)?.is_some());
        assert!(store.try_turn(&one)?.is_none());
        drop(turn);
        assert!(store.try_turn(&one)?.is_some());
        Ok(())
    }
}
