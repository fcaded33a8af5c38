//! Where the upper is: given, ephemeral, or found again under a name made from the mountpoint.
//!
//! [`Plan::choose`] only looks and refuses; [`Plan::prepare`] makes directories, in the daemon.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Code, Failure, OrFail, Outcome};
use crate::error::best_effort;
use crate::sys::{file, name, process};
use crate::text;
use crate::union::api::UpperSpec;

/// The file in a state directory that tells of which image the upper is.
const IMAGE: &str = "image";
/// The file in the work directory that tells what was mounted last.
const RECORD: &str = "mount";
/// The largest that is read.
const MAX_RECORD: usize = 64 << 20;

/// The longest readable part of a state directory's name.
const MAX_NAME: usize = 80;

/// What the arguments ask for.
#[derive(Debug)]
pub struct Request<'a> {
    pub read_only: bool,
    pub ephemeral: bool,
    pub upper: Option<&'a Path>,
    pub work: Option<&'a Path>,
    pub mountpoint: &'a Path,
    /// The identities of the layers, topmost first.
    pub image: String,
}

/// The decision.
#[derive(Debug)]
pub enum Plan {
    ReadOnly,
    Given {
        upper: PathBuf,
        work: PathBuf,
    },
    Ephemeral,
    /// `<state>/{upper,work,image}`.
    Kept {
        state: PathBuf,
        image: String,
    },
}

/// An upper that exists; dropping it removes an ephemeral one.
#[derive(Debug, Default)]
pub struct Prepared {
    pub paths: Option<(PathBuf, PathBuf)>,
    /// The file of the image's identity and its content, written when the upper is ours.
    record: Option<(PathBuf, String)>,
    discard: Option<PathBuf>,
}

impl Plan {
    pub fn choose(request: Request<'_>) -> Outcome<Plan> {
        if request.read_only {
            return Ok(Plan::ReadOnly);
        }
        if request.ephemeral {
            return Ok(Plan::Ephemeral);
        }
        if let Some(upper) = request.upper {
            return given(upper, request.work);
        }
        if crate::sys::mount::passed_fd(request.mountpoint).is_some() {
            let text = "a descriptor has no name to keep an upper under; pass --upper DIR, \
                        --ephemeral or --read-only";
            return Err(Failure::new(Code::Usage, text));
        }
        let state = state_home()?
            .join("cvmfs-union")
            .join(name_of(request.mountpoint));
        let record = state.join(IMAGE);
        match fs::read_to_string(&record) {
            Ok(known) if known != request.image => Err(Failure::new(
                Code::Upper,
                format!(
                    "{} holds the changes made to another image at {}; mount that image, pass \
                     --upper DIR (or --ephemeral) for this one, or remove {} to give them up",
                    state.join("upper").display(),
                    request.mountpoint.display(),
                    state.display()
                ),
            )),
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).or_fail(Code::Upper, record.display())
            }
            _ => Ok(Plan::Kept {
                state,
                image: request.image,
            }),
        }
    }

    /// The directories that are known before anything is made.
    pub fn spec(&self) -> Option<UpperSpec> {
        match self {
            Plan::Given { upper, work } => Some(UpperSpec {
                upper: upper.clone(),
                work: work.clone(),
            }),
            Plan::Kept { state, .. } => Some(UpperSpec {
                upper: state.join("upper"),
                work: state.join("work"),
            }),
            Plan::ReadOnly | Plan::Ephemeral => None,
        }
    }

    pub fn prepare(&self) -> Outcome<Prepared> {
        match self {
            Plan::ReadOnly => Ok(Prepared::default()),
            Plan::Given { upper, work } => {
                make_dir(upper, 0o755)?;
                make_dir(work, 0o700)?;
                Ok(Prepared {
                    paths: Some((upper.clone(), work.clone())),
                    record: None,
                    discard: None,
                })
            }
            Plan::Ephemeral => {
                let template = env::temp_dir().join("cvmfs-union.XXXXXX");
                let dir =
                    nix::unistd::mkdtemp(&template).or_fail(Code::Upper, template.display())?;
                let (upper, work) = (dir.join("upper"), dir.join("work"));
                // From here on the directory goes away with the value.
                let prepared = Prepared {
                    paths: Some((upper.clone(), work.clone())),
                    record: None,
                    discard: Some(dir),
                };
                make_dir(&upper, 0o755)?;
                make_dir(&work, 0o700)?;
                Ok(prepared)
            }
            Plan::Kept { state, image } => {
                fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(state)
                    .or_fail(Code::Upper, state.display())?;
                let (upper, work) = (state.join("upper"), state.join("work"));
                make_dir(&upper, 0o755)?;
                make_dir(&work, 0o700)?;
                Ok(Prepared {
                    paths: Some((upper, work)),
                    record: Some((state.clone(), image.clone())),
                    discard: None,
                })
            }
        }
    }
}

impl Prepared {
    pub fn spec(&self) -> Option<UpperSpec> {
        let (upper, work) = self.paths.clone()?;
        Some(UpperSpec { upper, work })
    }

    /// Notes whose changes these are, once the union holds the upper.
    pub fn record_image(&self) -> Outcome<()> {
        match &self.record {
            Some((state, image)) => file::open_path(state, libc::O_RDONLY | libc::O_DIRECTORY)
                .and_then(|dir| replace_text(dir.as_fd(), IMAGE, image))
                .or_fail(Code::Upper, state.join(IMAGE).display()),
            None => Ok(()),
        }
    }

    /// Notes what is mounted, beside an upper that stays, for commands that look at it later.
    pub fn record_mount(&self, about: &Value) -> io::Result<()> {
        match &self.paths {
            Some((_, work)) if self.discard.is_none() => {
                let work = file::open_path(work, libc::O_RDONLY | libc::O_DIRECTORY)?;
                write_record(work.as_fd(), &format!("{about:#}\n"))
            }
            _ => Ok(()),
        }
    }

    /// Removes an ephemeral upper; nothing else is touched.
    pub fn discard(&self) {
        if let Some(dir) = &self.discard {
            best_effort("remove the ephemeral upper", remove_tree(dir));
        }
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        self.discard();
    }
}

/// Where the work directory of an upper is: as given, or where `mount` has it, unless another upper's is there.
pub fn work_of(upper: &Path, given: Option<&Path>) -> Option<PathBuf> {
    if let Some(work) = given {
        return Some(work.to_owned());
    }
    let upper = fs::canonicalize(upper).ok()?;
    let mut beside = upper.clone().into_os_string();
    beside.push(".work");
    let kept = upper.parent().map(|state| state.join("work"));
    let places = [Some(PathBuf::from(beside)), kept];
    let mut places = places.into_iter().flatten();
    places.find(|work| belongs(work, &upper).unwrap_or_else(|| work.join("index").is_dir()))
}

/// Whether a work directory was last mounted with that upper; None if it does not tell.
pub fn belongs(work: &Path, upper: &Path) -> Option<bool> {
    let record = recorded(work)?;
    let of = record.get("upper")?.as_str()?;
    let upper = fs::canonicalize(upper).ok()?;
    Some(of == text::of_path(upper))
}

fn replace_text(dir: BorrowedFd<'_>, name: &str, text: &str) -> io::Result<()> {
    let new = format!("{name}.new");
    name::replace_file(dir, name.as_bytes(), new.as_bytes(), text.as_bytes())
}

fn write_record(work: BorrowedFd<'_>, text: &str) -> io::Result<()> {
    let mut known = String::new();
    let read = file::openat(
        work,
        RECORD.as_bytes(),
        libc::O_RDONLY | libc::O_NONBLOCK,
        0,
    );
    let most = text.len() as u64 + 1;
    let read = read.and_then(|fd| File::from(fd).take(most).read_to_string(&mut known));
    // A disk that is full may hold it already.
    if read.is_ok() && known == text {
        return Ok(());
    }
    replace_text(work, RECORD, text)
}

/// What [`Prepared::record_mount`] has noted in a work directory.
pub fn recorded(work: &Path) -> Option<Value> {
    let work = file::open_path(work, libc::O_PATH | libc::O_DIRECTORY).ok()?;
    let text = file::read_regular_in(work.as_fd(), RECORD.as_bytes(), MAX_RECORD).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Removes a directory, if it is there, with all that is in it.
pub fn remove_tree(dir: &Path) -> io::Result<()> {
    let gone = fs::remove_dir_all(dir).or_else(|_| {
        // Directories that their owner may not enter or change.
        open_up(dir)?;
        fs::remove_dir_all(dir)
    });
    match gone {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn open_up(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            open_up(&entry.path())?;
        }
    }
    Ok(())
}

fn make_dir(dir: &Path, mode: u32) -> Outcome<()> {
    match fs::DirBuilder::new().mode(mode).create(dir) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
        other => other.or_fail(Code::Upper, dir.display()),
    }
}

fn given(upper: &Path, work: Option<&Path>) -> Outcome<Plan> {
    let upper = real_path(upper)?;
    let work = match work {
        Some(work) => real_path(work)?,
        None => {
            let mut beside = upper.clone().into_os_string();
            beside.push(".work");
            beside.into()
        }
    };
    let refuse = |why: &str| {
        let text = format!("work directory {}: {why}", work.display());
        Err(Failure::new(Code::Upper, text))
    };
    if work.starts_with(&upper) || upper.starts_with(&work) {
        return refuse("it and the upper must not contain each other; pass --work DIR");
    }
    if device_of(&upper)? != device_of(&work)? {
        return refuse("not on the file system of the upper; pass --work DIR on the same one");
    }
    Ok(Plan::Given { upper, work })
}

/// The canonical path of a directory that may not exist yet, in one that does.
fn real_path(dir: &Path) -> Outcome<PathBuf> {
    match fs::canonicalize(dir) {
        Ok(path) if path.is_dir() => return Ok(path),
        Ok(path) => {
            let text = format!("{}: not a directory", path.display());
            return Err(Failure::new(Code::Upper, text));
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).or_fail(Code::Upper, dir.display()),
    }
    let path = std::path::absolute(dir).or_fail(Code::Upper, dir.display())?;
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => Ok(fs::canonicalize(parent)
            .or_fail(Code::Upper, parent.display())?
            .join(name)),
        _ => Err(Failure::new(
            Code::Upper,
            format!("{}: not a directory", path.display()),
        )),
    }
}

/// The file system of a directory, or of the one that it will be made in.
fn device_of(dir: &Path) -> Outcome<u64> {
    let meta = match (fs::metadata(dir), dir.parent()) {
        (Err(e), Some(parent)) if e.kind() == io::ErrorKind::NotFound => fs::metadata(parent),
        (other, _) => other,
    };
    Ok(meta.or_fail(Code::Upper, dir.display())?.dev())
}

fn state_home() -> Outcome<PathBuf> {
    if process::is_initial_root() {
        return Ok("/var/lib".into());
    }
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .ok_or_else(|| {
            let text =
                "neither XDG_STATE_HOME nor HOME says where to keep the upper; pass --upper DIR";
            Failure::new(Code::Usage, text)
        })
}

/// A name that a reader recognizes, made unique by a hash of the whole path.
fn name_of(mountpoint: &Path) -> String {
    let bytes = mountpoint.as_os_str().as_bytes();
    let readable: String = bytes
        .iter()
        .skip_while(|&&b| b == b'/')
        .take(MAX_NAME)
        .map(|&b| match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'_' => char::from(b),
            _ => '-',
        })
        .collect();
    format!("{readable}-{:016x}", fnv1a(bytes))
}

/// FNV-1a: the same in every release, which the standard library's hashes do not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &b| {
        (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_readable_and_fixed() {
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert!(name_of(Path::new("/mnt/root")).starts_with("mnt-root-"));
        assert_ne!(
            name_of(Path::new("/mnt/root")),
            name_of(Path::new("/mnt-root"))
        );
    }

    #[test]
    fn work_lies_beside_the_upper() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let upper = dir.path().join("u");
        let planned = given(&upper, None);
        assert!(matches!(planned, Ok(Plan::Given { work, .. }) if work.ends_with("u.work")));
        assert!(given(&upper, Some(&upper)).is_err());
        assert!(given(&dir.path().join("no/u"), None).is_err());
        Ok(())
    }

    #[test]
    fn the_work_of_another_upper_is_not_taken() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let (upper, other) = (dir.path().join("upper"), dir.path().join("other"));
        let work = dir.path().join("work");
        for made in [&upper, &other, &work.join("work"), &work.join("index")] {
            fs::create_dir_all(made)?;
        }
        let of = fs::canonicalize(&upper)?;
        let record = serde_json::json!({ "upper": text::of_path(of) });
        fs::write(work.join(RECORD), record.to_string())?;
        let found = work_of(&upper, None);
        assert_eq!(found, Some(fs::canonicalize(&work)?));
        assert_eq!(work_of(&other, None), None);
        assert_eq!(belongs(&work, &other), Some(false));
        Ok(())
    }

    #[test]
    fn an_ephemeral_upper_goes_away() -> io::Result<()> {
        let Ok(prepared) = Plan::Ephemeral.prepare() else {
            return Err(io::Error::other("not prepared"));
        };
        let Some((upper, _)) = prepared.paths.clone() else {
            return Err(io::Error::other("no upper"));
        };
        fs::create_dir(upper.join("closed"))?;
        fs::write(upper.join("closed/file"), b"x")?;
        fs::set_permissions(upper.join("closed"), fs::Permissions::from_mode(0o0))?;
        drop(prepared);
        assert!(!upper.exists());
        Ok(())
    }
}
