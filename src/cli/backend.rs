//! Options about backends, and what is found out before one is chosen.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::layers::Layer;
use super::trial::{self, Place};
use super::{Code, Failure, OrFail, Outcome, writer};
use crate::backend::known::{Content, Known};
use crate::backend::{Backend, Decision, Facts, Refusal, Writer, aufs, decide};
use crate::cache;
use crate::sys::namespace;
use crate::union::api::UpperSpec;

/// Who makes the union.
#[derive(Debug, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Who makes the union: the kernel's overlayfs or aufs, or the daemon (fuse). auto goes on with what has
    /// written the upper; else it takes overlayfs if no layer holds .wh. names, as `inspect --scan` has found,
    /// or aufs if that is loaded, if a trial works and no option needs the daemon
    #[arg(long, value_enum, value_name = "BACKEND", default_value_t)]
    backend: Choice,
    /// Take layers that nobody has looked through with `inspect --scan` for ones without .wh. names
    #[arg(long)]
    assume_no_wh: bool,
    /// Let the daemon go on with an upper that was written with --backend overlay, which cannot have it back
    #[arg(long)]
    take_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
enum Choice {
    #[default]
    Auto,
    Overlay,
    Aufs,
    Fuse,
}

impl Choice {
    fn backend(self) -> Option<Backend> {
        match self {
            Choice::Auto => None,
            Choice::Overlay => Some(Backend::Overlay),
            Choice::Aufs => Some(Backend::Aufs),
            Choice::Fuse => Some(Backend::Fuse),
        }
    }
}

/// What is to be mounted.
pub struct Wish<'a> {
    pub layers: &'a [Layer],
    /// None: it is read-only.
    pub upper: Option<&'a UpperSpec>,
    /// An option that the daemon alone can serve.
    pub only_fuse: Option<String>,
    /// One that aufs cannot serve.
    pub not_aufs: Option<String>,
}

/// What has been decided on.
#[derive(Debug)]
pub struct Chosen {
    pub backend: Backend,
    /// Why no other one, in words.
    pub told: String,
    /// A union of the kernel has had the work directory last, and the daemon goes on with it.
    pub from_kernel: bool,
    /// There is an upper, and nothing in it yet.
    pub begins_upper: bool,
}

impl Args {
    pub fn choose(&self, wish: &Wish<'_>) -> Outcome<Chosen> {
        let wanted = self.backend.backend();
        let writer = match wish.upper {
            Some(upper) => writer::of(upper).or_fail(Code::Upper, upper.upper.display())?,
            None => Writer::Nobody,
        };
        // Nothing is looked for that makes no difference.
        let markers = match (wanted, &wish.only_fuse) {
            (None | Some(Backend::Overlay), None) => self.markers(wish.layers),
            _ => None,
        };
        let facts = Facts {
            wanted,
            writer,
            take_over: self.take_over,
            only_fuse: wish.only_fuse.clone(),
            not_aufs: wish.not_aufs.clone(),
            markers,
        };
        let asked = wanted.is_some() || writer == Writer::Noted(Backend::Aufs);
        let Decision { backend, because } = decide(&facts, |kernel| {
            if kernel == Backend::Aufs && !asked && !is_loaded(aufs::FSTYPE) {
                return Err("not loaded".to_owned());
            }
            try_out(kernel, wish)
        })
        .map_err(|refusal| match refusal {
            Refusal::Option(why) => Failure::new(Code::Usage, why),
            Refusal::Impossible(why) => Failure::new(Code::Failure, why),
            Refusal::Upper(why) => Failure::new(Code::Upper, why),
        })?;
        let from_kernel = match wish.upper {
            Some(upper) if backend == Backend::Fuse => {
                writer::was_of_kernel(&upper.work).or_fail(Code::Upper, upper.work.display())?
            }
            _ => false,
        };
        let goes_on = match writer == Writer::Noted(backend) {
            true => ", which has written the upper",
            false => "",
        };
        Ok(Chosen {
            backend,
            told: format!(
                "the union is made by {backend}{goes_on}{}",
                reasons(&because)
            ),
            from_kernel,
            begins_upper: wish.upper.is_some() && writer == Writer::Nobody,
        })
    }

    /// Why overlayfs would show deleted names, as far as that is known.
    fn markers(&self, layers: &[Layer]) -> Option<String> {
        if layers.is_empty() {
            return Some("there is no layer".to_owned());
        }
        let known = Known::here();
        let content = |layer: &Layer| known.of(layer.digest()?, &layer.path);
        if let Some(layer) = layers.iter().find(|l| content(l) == Some(Content::Markers)) {
            let text = format!(
                "layer {} holds .wh. names, which it would show as files",
                layer.identity
            );
            return Some(text);
        }
        let unseen = layers.iter().filter(|l| content(l).is_none()).count();
        (unseen > 0 && !self.assume_no_wh).then(|| {
            format!(
                "{unseen} of {} layers were not looked through for .wh. names, which it would show as files; \
                 `cvmfs-union inspect --scan IMAGE` does that for layers with a digest, and --assume-no-wh says \
                 that there are none",
                layers.len()
            )
        })
    }
}

fn reasons(because: &[String]) -> String {
    match because {
        [] => String::new(),
        reasons => format!("; not by {}", reasons.join("; not by ")),
    }
}

/// Whether the kernel has a type of file system at hand, without asking for a module.
fn is_loaded(fstype: &str) -> bool {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    known
        .lines()
        .any(|line| line.split_whitespace().next_back() == Some(fstype))
}

/// Mounts the layers with directories of a trial on the upper's file system, and uses that. The upper itself is
/// not touched.
fn try_out(backend: Backend, wish: &Wish<'_>) -> Result<(), String> {
    if !namespace::can_mount() {
        let text = "it takes root, of a user namespace at least: unshare -Urm";
        return Err(text.to_owned());
    }
    let place = match wish.upper {
        Some(upper) => Place::on(existing(&upper.work))?,
        None => Place::on(&env::temp_dir())?,
    };
    let below: Vec<PathBuf> = wish.layers.iter().map(|layer| layer.path.clone()).collect();
    trial::in_a_process(|| {
        place
            .enter()?
            .try_kernel(backend, &below, wish.upper.is_some())
    })
    .map_err(|why| format!("a trial failed: {why}"))
}

/// The directory, or the first one above it that is there.
fn existing(dir: &Path) -> &Path {
    let found = dir.ancestors().find(|dir| dir.is_dir());
    found.unwrap_or(Path::new("/"))
}

/// An empty directory, which overlayfs wants as a second one below a single layer without an upper.
pub fn empty_dir() -> Outcome<PathBuf> {
    let home = cache::usual().ok_or_else(|| {
        let text = "neither XDG_CACHE_HOME nor HOME says where to have an empty directory, which overlayfs \
                    needs below a single layer; use --backend fuse";
        Failure::new(Code::Failure, text)
    })?;
    let dir = home.join("empty");
    cache::make(&dir).or_fail(Code::Failure, dir.display())?;
    let mut entries = fs::read_dir(&dir).or_fail(Code::Failure, dir.display())?;
    match entries.next() {
        None => Ok(dir),
        Some(_) => {
            let text = format!(
                "{} is not empty; somebody has put something there",
                dir.display()
            );
            Err(Failure::new(Code::Failure, text))
        }
    }
}
