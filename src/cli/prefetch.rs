//! What a mount knows of earlier runs of its image: which profiles there are, and what is done with them.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::terminal::say;
use super::{Code, OrFail, Outcome};
use crate::backend::Backend;
use crate::error::printable;
use crate::prefetch::session::{self, Session, Setup};
use crate::prefetch::{LayerAt, Limits};
use crate::profile::store::{self, Job, Store};
use crate::profile::{Profile, Replay, image_name};
use crate::union::api::{LowerSpec, distinct};

/// Which profile, and what to do with it.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Fetch ahead what earlier runs of the image opened, and record this one: auto, off, or a file with the
    /// profile to go by. With --lower, auto is off unless --profiles or --job is given. A union of the kernel
    /// records nothing
    #[arg(long, value_name = "auto|off|FILE", default_value = "auto")]
    prefetch: PathBuf,
    #[command(flatten)]
    pub place: Place,
    /// How much is fetched ahead at most: readers=N (8, and up to 16 where more fetch more), files=N (20000),
    /// bytes=N[K|M|G] (4G), seconds=N (300), cache=PERCENT of what is free in the layers' cache (50)
    #[arg(long, value_name = "LIST", value_parser = limits, default_value = "", hide_default_value = true)]
    prefetch_limits: Limits,
}

/// Where a profile is kept.
#[derive(Clone, Debug, clap::Args)]
pub struct Place {
    /// Tells runs of an image that open other files from the rest: each tag has a profile of its own
    #[arg(long, value_name = "TAG", value_parser = job)]
    pub job: Option<Job>,
    /// Where profiles are kept, a directory for one user [default: /var/cache/cvmfs-union/profiles for root, in $XDG_CACHE_HOME or
    /// ~/.cache for users]
    #[arg(long, value_name = "DIR")]
    pub profiles: Option<PathBuf>,
}

fn job(tag: &str) -> Result<Job, String> {
    let why = "a tag has up to 64 letters, digits, '.', '_' and '-', and does not begin with '.'";
    Job::new(tag).ok_or_else(|| why.to_owned())
}

fn limits(list: &str) -> Result<Limits, String> {
    let mut limits = Limits::default();
    for word in list.split(',').filter(|word| !word.is_empty()) {
        let (key, value) = word
            .split_once('=')
            .ok_or_else(|| format!("{word}: no value"))?;
        let (digits, unit) = match value.char_indices().last() {
            Some((at, unit @ ('K' | 'M' | 'G'))) if key == "bytes" => (value.get(..at), unit),
            _ => (Some(value), ' '),
        };
        let number = digits.and_then(|digits| digits.parse::<u32>().ok());
        let number = u64::from(number.ok_or_else(|| format!("{word}: not a number"))?);
        let count = usize::try_from(number).unwrap_or(usize::MAX);
        match key {
            "readers" if (1..=64).contains(&count) => {
                (limits.readers, limits.most_readers) = (count, count);
            }
            "readers" => return Err(format!("{word}: from 1 to 64")),
            "files" => limits.files = count,
            "bytes" => {
                let shift = " KMG".find(unit).unwrap_or(0) * 10;
                limits.bytes = number << shift;
            }
            "seconds" => limits.time = Duration::from_secs(number),
            "cache" if number <= 100 => limits.cache = number,
            "cache" => return Err(format!("{word}: more than all of it")),
            _ => return Err(format!("{word}: there is no such limit")),
        }
    }
    Ok(limits)
}

impl Args {
    /// An option by which a run is to be recorded, if one is given.
    pub fn given(&self) -> Option<&'static str> {
        let options = [
            (self.place.job.is_some(), "--job"),
            (self.place.profiles.is_some(), "--profiles"),
        ];
        let given = options.into_iter().find(|(given, _)| *given);
        given.map(|(_, name)| name)
    }
}

impl Place {
    /// Where the profile of an image is; None where there is no place for profiles.
    pub fn of(&self, layers: &[LowerSpec]) -> Option<(Store, PathBuf)> {
        let dir = self.profiles.clone().or_else(store::usual_dir)?;
        let dir = std::path::absolute(dir).ok()?;
        let store = Store::new(dir);
        let path = store.path(&name_of(layers), self.job.as_ref());
        Some((store, path))
    }
}

/// By which profiles know an image.
pub fn name_of(layers: &[LowerSpec]) -> String {
    image_name(distinct(layers).map(|layer| layer.identity.as_str()))
}

/// What is done with profiles in a mount.
#[derive(Debug)]
pub struct Plan {
    setup: Setup,
    /// Where that comes from.
    from: Vec<PathBuf>,
}

impl Plan {
    /// Looks for profiles; `beside` tells where an image may have one with it. A bad one is an error if it was
    /// asked for, else it is said and not used.
    pub fn choose(
        args: &Args,
        beside: Option<Vec<PathBuf>>,
        layers: &[LowerSpec],
        mountpoint: &Path,
    ) -> Outcome<Option<Plan>> {
        let Args {
            prefetch, place, ..
        } = args;
        let auto = prefetch.as_os_str() == "auto";
        let asked = place.job.is_some() || place.profiles.is_some();
        if prefetch.as_os_str() == "off" || auto && beside.is_none() && !asked {
            return Ok(None);
        }
        let mut store = place.of(layers);
        if let Some((_, path)) = &store
            && lies_in(path, mountpoint)
        {
            // Written there, it would go into the union, and ask it for that.
            let path = printable(path);
            say(format_args!(
                "mount: warning: {path} lies in the mountpoint: no run is recorded"
            ));
            store = None;
        }
        let mut from = Vec::new();
        let mut usable = |path: &Path| {
            let profile = usable(path)?;
            from.push(path.to_owned());
            Some(profile)
        };
        let (base, replay);
        if auto {
            let local = store.as_ref().and_then(|(_, path)| usable(path));
            let of_root = Place {
                job: place.job.clone(),
                profiles: Some(store::of_root()),
            };
            let of_root = of_root.of(layers).filter(|_| place.profiles.is_none());
            let others = beside
                .into_iter()
                .flatten()
                .chain(of_root.map(|(_, path)| path));
            let own = store.as_ref().map(|(_, path)| path);
            base = others
                .filter(|path| Some(path) != own)
                .find_map(|path| usable(&path));
            replay = match (local, &base) {
                (Some(local), Some(base)) => Some(local.over(base)),
                (local, base) => local.or_else(|| base.clone()),
            };
        } else {
            let given = store::read(prefetch).or_fail(Code::Image, prefetch.display())?;
            from.push(prefetch.clone());
            (base, replay) = (None, Some(given));
        }
        let layers = distinct(layers).map(|layer| LayerAt {
            identity: layer.identity.clone(),
            path: (!lies_in(&layer.path, mountpoint)).then(|| layer.path.clone()),
        });
        Ok(Some(Plan {
            setup: Setup {
                layers: layers.collect(),
                store,
                replay,
                base,
                limits: args.prefetch_limits,
                open_files: 0,
            },
            from,
        }))
    }

    /// Without what takes a daemon to record runs. None if there is nothing to fetch either.
    pub fn without_record(self) -> Option<Plan> {
        self.setup.replay.is_some().then_some(self)
    }

    /// Fetches for programs that open the files without this one: see
    /// [`session::fetch_for_others`].
    pub fn fetch_for_others(self, wanted: impl Fn() -> bool) {
        session::fetch_for_others(self.setup, wanted);
    }

    /// Begins to fetch and to record.
    pub fn begin(self, open_files: u64) -> Session {
        let open_files = usize::try_from(open_files).unwrap_or(usize::MAX);
        Session::begin(Setup {
            open_files,
            ..self.setup
        })
    }
}

/// The profiles that an image may have with it: beside its file on any disk, and in the `metadata` of its
/// repository.
pub fn beside(image: &Path, metadata: Option<&Path>) -> Vec<PathBuf> {
    if let Some(metadata) = metadata {
        return vec![metadata.join("profile")];
    }
    let mut name = image.as_os_str().to_owned();
    name.push(".profile");
    let mut found = vec![PathBuf::from(name)];
    if image.iter().any(|part| part == ".metadata") {
        found.push(image.with_file_name("profile"));
    }
    found
}

/// Whether a path, of which the end need not be there yet, leads into a directory.
fn lies_in(path: &Path, dir: &Path) -> bool {
    let real = |part: &Path| {
        let rest = path.strip_prefix(part).ok()?;
        Some(std::fs::canonicalize(part).ok()?.join(rest))
    };
    let found = path.ancestors().find_map(real);
    found.is_some_and(|path| path.starts_with(dir))
}

fn usable(path: &Path) -> Option<Profile> {
    match store::read(path) {
        Ok(profile) => Some(profile),
        Err(e) if e.kind() == io::ErrorKind::NotFound => None,
        Err(e) => {
            let path = printable(path);
            say(format_args!(
                "mount: warning: the profile {path} is not used: {e}"
            ));
            None
        }
    }
}

/// What is known and done, in a line or two. `by`: who makes the union.
pub fn told(plan: Option<&Plan>, by: Backend) -> String {
    let Some(plan) = plan else {
        return match by {
            Backend::Fuse => "nothing is fetched ahead, and nothing recorded",
            _ => "nothing is fetched ahead, and nothing recorded, which takes --backend fuse",
        }
        .to_owned();
    };
    let Some(profile) = &plan.setup.replay else {
        return "no run of this image is known yet; this one is recorded".to_owned();
    };
    let from: Vec<String> = plan.from.iter().map(printable).collect();
    let mut text = format!(
        "{} files of {} runs are fetched ahead, known from {}",
        profile.expected().count(),
        profile.runs,
        from.join(" and ")
    );
    if by != Backend::Fuse {
        text.push_str("; this run is not recorded, which takes --backend fuse");
    }
    if let Some(replay) = &profile.replay {
        text.push_str(&format!("; last time {}", replay_told(replay)));
    }
    text
}

/// What a replay came to, in words.
pub fn replay_told(replay: &Replay) -> String {
    let seconds = |millis: u64| millis as f64 / 1000.0;
    format!(
        "{} files, {:.1} MB in {:.1} s were fetched ahead, {} of them used, {:.1} s of waiting saved",
        replay.files,
        replay.bytes as f64 / 1e6,
        seconds(replay.millis),
        replay.used,
        seconds(replay.saved),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_and_bad_ones_named() {
        assert_eq!(limits(""), Ok(Limits::default()));
        let some = limits("readers=3,bytes=2G,cache=7,seconds=9,files=5");
        let wanted = Limits {
            readers: 3,
            most_readers: 3,
            files: 5,
            bytes: 2 << 30,
            time: Duration::from_secs(9),
            cache: 7,
        };
        assert_eq!(some, Ok(wanted));
        assert_eq!(limits("bytes=17").map(|l| l.bytes), Ok(17));
        for bad in [
            "readers",
            "readers=0",
            "readers=65",
            "readers=x",
            "cache=101",
            "files=-1",
            "files=1K",
            "bytes=G",
            "speed=9",
            "bytes=99999999999",
        ] {
            let said = limits(bad).err();
            assert!(said.is_some_and(|why| why.starts_with(bad)), "{bad}");
        }
    }

    #[test]
    fn what_lies_in_a_directory_is_found_through_links() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let real = std::fs::canonicalize(dir.path())?;
        std::fs::create_dir(real.join("in"))?;
        std::os::unix::fs::symlink(real.join("in"), real.join("link"))?;
        let lies = |path: &str| lies_in(&real.join(path), &real.join("in"));
        assert!(lies("in/not/yet") && lies("link/not/yet") && lies("in"));
        assert!(!lies("inner/x") && !lies("x"));
        Ok(())
    }

    #[test]
    fn a_profile_lies_beside_its_image() {
        let published = beside(Path::new("cvmfs://r/h/i:t"), Some(Path::new("/m")));
        assert_eq!(published, [PathBuf::from("/m/profile")]);
        let beside = |path: &str| beside(Path::new(path), None);
        assert_eq!(
            beside("/a/thin.json"),
            [PathBuf::from("/a/thin.json.profile")]
        );
        let of = "/cvmfs/r/.metadata/h/i:t/";
        let both =
            ["thin.json.profile", "profile"].map(|name| PathBuf::from(format!("{of}{name}")));
        assert_eq!(beside(&format!("{of}thin.json")), both);
    }
}
