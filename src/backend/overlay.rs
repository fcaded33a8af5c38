//! The kernel's overlayfs over a stack of directories.
//!
//! Each lower is given by a call of its own (`lowerdir+`, Linux 6.7), so that their names may be as long as they
//! are and hold any character. Older kernels take all options in one page of text, where the lowers go by the numbers
//! of descriptors. What is not said here is as the kernel has it by default, but for the index of hard
//! links, which is off: an upper with one is bound to its work directory, and the daemon could not go on with it.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::Stack;
use crate::sys::fscontext::{FsContext, LONGEST};
use crate::sys::{file, namespace};

/// The type, as the table of mounts shows it.
pub const FSTYPE: &str = "overlay";
/// What mount(2) reads of its options, with the NUL at the end (`PAGE_SIZE`, which is nowhere smaller).
const PAGE: usize = 4096;
/// The most layers that the kernel stacks (`OVL_MAX_STACK`).
const MOST_LAYERS: usize = 500;
/// The directories of a descriptor's process, where the numbers are names.
const DESCRIPTORS: &str = "/proc/self/fd";

/// Mounts. An error says at which step, and what the kernel says about it.
pub fn mount(stack: &Stack, mountpoint: &Path) -> Result<(), String> {
    let lowers = distinct(&stack.lowers);
    if lowers.len() > MOST_LAYERS {
        return Err(format!(
            "{} layers, and it stacks {MOST_LAYERS} at most",
            lowers.len()
        ));
    }
    match mount_by_steps(stack, &lowers, mountpoint) {
        Err(Step::NotKnown) => mount_by_numbers(stack, &lowers, mountpoint),
        Err(Step::Failed(why)) => Err(why),
        Ok(()) => Ok(()),
    }
}

/// Whether it is a single layer without an upper, which the kernel takes for no union.
pub fn wants_another(stack: &Stack) -> bool {
    stack.upper.is_none() && distinct(&stack.lowers).len() < 2
}

/// Each directory once: one that comes again further down adds nothing to what it shows further up.
fn distinct(lowers: &[PathBuf]) -> Vec<&Path> {
    let mut seen = HashSet::new();
    let lowers = lowers.iter().map(PathBuf::as_path);
    lowers.filter(|lower| seen.insert(*lower)).collect()
}

/// How a mount by steps did not come to be.
enum Step {
    /// The kernel is older than that way.
    NotKnown,
    Failed(String),
}

/// The options that name no directory; a value, if it has one.
fn settings(stack: &Stack) -> Vec<(&'static CStr, Option<&'static str>)> {
    let mut settings = Vec::new();
    if stack.upper.is_some() {
        settings.push((c"index", Some("off")));
    }
    if stack.user_marks {
        // Neither redirects nor metadata copies are written with these.
        settings.push((c"userxattr", None));
    } else if stack.portable {
        settings.push((c"redirect_dir", Some("off")));
        settings.push((c"metacopy", Some("off")));
    }
    settings
}

fn mount_by_steps(stack: &Stack, lowers: &[&Path], mountpoint: &Path) -> Result<(), Step> {
    let context = match FsContext::open(c"overlay") {
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => return Err(Step::NotKnown),
        other => other.map_err(|e| Step::Failed(e.to_string()))?,
    };
    let failed = |what: fmt::Arguments<'_>, e: &io::Error| {
        let said = context
            .said()
            .map_or_else(|| e.to_string(), |said| format!("{said} ({e})"));
        Step::Failed(format!("{what}: {said}"))
    };
    let mut names = Names::default();
    let mut give = |key: &CStr, dir: &Path| -> io::Result<()> {
        let name = names.of(dir)?;
        context.set(key, name.as_ref())
    };
    let set = context.set(c"source", OsStr::new(&stack.source));
    set.map_err(|e| failed(format_args!("source"), &e))?;
    for (at, lower) in lowers.iter().enumerate() {
        match give(c"lowerdir+", lower) {
            Err(e) if at == 0 && e.raw_os_error() == Some(libc::EINVAL) => {
                return Err(Step::NotKnown);
            }
            other => other.map_err(|e| failed(format_args!("lower {}", lower.display()), &e))?,
        }
    }
    if let Some((upper, work)) = &stack.upper {
        for (key, dir) in [(c"upperdir", upper), (c"workdir", work)] {
            give(key, dir).map_err(|e| failed(format_args!("{}", dir.display()), &e))?;
        }
    }
    for (key, value) in settings(stack) {
        let given = match value {
            Some(value) => context.set(key, OsStr::new(value)),
            None => context.set_flag(key),
        };
        given.map_err(|e| failed(format_args!("option {}", key.to_string_lossy()), &e))?;
    }
    let made = context.mount(stack.flags);
    let made = made.map_err(|e| failed(format_args!("mount"), &e))?;
    let attached = file::open_path(mountpoint, libc::O_PATH | libc::O_DIRECTORY)
        .and_then(|target| namespace::attach(made.as_fd(), target.as_fd()));
    attached.map_err(|e| failed(format_args!("attach"), &e))
}

/// Names by which directories are given: their own, unless those are too long or would be read as something else.
#[derive(Default)]
struct Names {
    /// Open for as long as their numbers are names.
    open: Vec<OwnedFd>,
}

impl Names {
    fn of(&mut self, dir: &Path) -> io::Result<PathBuf> {
        let bytes = dir.as_os_str().as_bytes();
        // Whether a backslash is taken for itself differs between options and releases.
        if bytes.len() <= LONGEST && !bytes.contains(&b'\\') {
            return Ok(dir.to_owned());
        }
        Ok(Path::new(DESCRIPTORS).join(self.number(dir)?))
    }

    fn number(&mut self, dir: &Path) -> io::Result<String> {
        let fd = file::open_path(dir, libc::O_PATH | libc::O_DIRECTORY)?;
        let number = fd.as_raw_fd().to_string();
        self.open.push(fd);
        Ok(number)
    }
}

/// The options of mount(2), the lowers by their numbers in [`DESCRIPTORS`].
fn numbered(lowers: &[String], upper: Option<&(String, String)>, stack: &Stack) -> String {
    let mut options = vec![format!("lowerdir={}", lowers.join(":"))];
    if let Some((upper, work)) = upper {
        options.push(format!("upperdir={upper}"));
        options.push(format!("workdir={work}"));
    }
    options.extend(settings(stack).into_iter().map(|(key, value)| {
        let key = key.to_string_lossy();
        value.map_or_else(|| key.to_string(), |value| format!("{key}={value}"))
    }));
    options.join(",")
}

fn mount_by_numbers(stack: &Stack, lowers: &[&Path], mountpoint: &Path) -> Result<(), String> {
    let mut names = Names::default();
    let mut number = |dir: &Path| {
        let number = names.number(dir);
        number.map_err(|e| format!("{}: {e}", dir.display()))
    };
    let lowers = lowers
        .iter()
        .map(|dir| number(dir))
        .collect::<Result<Vec<_>, _>>()?;
    // These keep their names where they can, so that the table of mounts tells whose they are.
    let mut shown = |dir: &Path| match dir.to_str().filter(|name| !name.contains([',', '\\'])) {
        Some(name) => Ok(name.to_owned()),
        None => number(dir),
    };
    let upper = match &stack.upper {
        Some((upper, work)) => Some((shown(upper)?, shown(work)?)),
        None => None,
    };
    let options = numbered(&lowers, upper.as_ref(), stack);
    if options.len() >= PAGE {
        let text = "more layers than this kernel takes at once; Linux 6.7 takes 500";
        return Err(text.to_owned());
    }
    let options = CString::new(options).map_err(|e| e.to_string())?;
    // The numbers are the shorter names, and relative.
    let mounted = nix::unistd::chdir(DESCRIPTORS).and_then(|()| {
        nix::mount::mount(
            Some(stack.source.as_str()),
            mountpoint,
            Some(FSTYPE),
            stack.flags,
            Some(options.as_c_str()),
        )
    });
    nix::unistd::chdir("/").map_err(|e| format!("/: {e}"))?;
    mounted.map_err(|e| format!("mount: {e}"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::mount::MsFlags;

    use super::*;
    use crate::sys::mount::NAME;

    fn stack(upper: bool, user_marks: bool, portable: bool) -> Stack {
        Stack {
            lowers: ["/a", "/b", "/a"].map(PathBuf::from).into(),
            upper: upper.then(|| ("/u".into(), "/w".into())),
            user_marks,
            portable,
            flags: MsFlags::empty(),
            source: NAME.to_owned(),
        }
    }

    #[test]
    fn options_in_one_text() {
        let lowers = ["3", "4"].map(str::to_owned);
        let upper = ("5".to_owned(), "6".to_owned());
        let rows = [
            (stack(false, false, false), "lowerdir=3:4"),
            (stack(false, true, false), "lowerdir=3:4,userxattr"),
            (
                stack(true, false, false),
                "lowerdir=3:4,upperdir=5,workdir=6,index=off",
            ),
            (
                stack(true, true, true),
                "lowerdir=3:4,upperdir=5,workdir=6,index=off,userxattr",
            ),
            (
                stack(true, false, true),
                "lowerdir=3:4,upperdir=5,workdir=6,index=off,redirect_dir=off,metacopy=off",
            ),
        ];
        for (stack, expected) in rows {
            let upper = stack.upper.as_ref().map(|_| &upper);
            assert_eq!(numbered(&lowers, upper, &stack), expected);
        }
    }

    #[test]
    fn a_layer_counts_once_where_it_is_topmost() {
        let stack = stack(false, false, false);
        assert_eq!(distinct(&stack.lowers), [Path::new("/a"), Path::new("/b")]);
    }

    #[test]
    fn names_that_cannot_be_given_are_numbers() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let mut names = Names::default();
        assert_eq!(names.of(dir.path())?, dir.path());
        for name in ["x".repeat(250), "back\\slash".to_owned()] {
            let odd = dir.path().join(name);
            fs::create_dir(&odd)?;
            let given = names.of(&odd)?;
            assert!(given.starts_with(DESCRIPTORS), "{}", given.display());
            assert_eq!(fs::canonicalize(given)?, fs::canonicalize(odd)?);
        }
        Ok(())
    }

    /// Both ways show the same, in a mount namespace of a thread's own.
    #[test]
    fn both_ways_to_mount() -> io::Result<()> {
        if !namespace::can_mount() {
            eprintln!("skipped: needs CAP_SYS_ADMIN to mount");
            return Ok(());
        }
        let dir = tempfile::tempdir()?;
        let made = ["a", "b", "u", "w", "mnt"].map(|name| dir.path().join(name));
        for dir in &made {
            fs::create_dir(dir)?;
        }
        let [a, b, upper, work, mnt] = made;
        fs::write(a.join("top"), "a")?;
        fs::write(b.join("below"), "b")?;
        let stack = Stack {
            lowers: vec![a, b],
            upper: Some((upper.clone(), work)),
            ..stack(false, false, false)
        };
        type Way = fn(&Stack, &[&Path], &Path) -> Result<(), String>;
        let by_steps: Way = |stack, lowers, mnt| match mount_by_steps(stack, lowers, mnt) {
            Err(Step::NotKnown) => {
                eprintln!("skipped in part: this kernel does not know lowerdir+");
                mount_by_numbers(stack, lowers, mnt)
            }
            Err(Step::Failed(why)) => Err(why),
            Ok(()) => Ok(()),
        };
        let in_namespace = |way: Way| -> io::Result<()> {
            namespace::enter_mounts()?;
            way(&stack, &distinct(&stack.lowers), &mnt).map_err(io::Error::other)?;
            assert_eq!(fs::read_to_string(mnt.join("top"))?, "a");
            assert_eq!(fs::read_to_string(mnt.join("below"))?, "b");
            fs::write(mnt.join("made"), "c")?;
            fs::remove_file(mnt.join("made"))
        };
        for way in [by_steps, mount_by_numbers as Way] {
            std::thread::scope(|scope| {
                let thread = scope.spawn(|| in_namespace(way));
                thread
                    .join()
                    .map_err(|_| io::Error::other("the thread panicked"))
            })??;
        }
        assert!(!mnt.join("top").exists(), "nothing of it is left");
        Ok(())
    }
}
