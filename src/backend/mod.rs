//! Who makes the union of a mount: this program's daemon, or the kernel's overlayfs or aufs in its place.
//!
//! [`decide`] is pure: it is told what is known, and asks for a trial only where nothing else stands against a
//! backend. [`overlay`] and [`aufs`] turn a stack of directories into calls of the kernel; [`known`] keeps which
//! layers hold names that overlayfs would show as files.

pub mod aufs;
pub mod known;
pub mod overlay;

use std::fmt;
use std::path::PathBuf;

use nix::mount::MsFlags;

/// What makes the union.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// The kernel's overlayfs.
    Overlay,
    /// aufs, where the kernel has it.
    Aufs,
    /// The daemon of this program.
    Fuse,
}

impl Backend {
    /// All of them, in the order in which they are preferred.
    pub const ALL: [Backend; 3] = [Backend::Overlay, Backend::Aufs, Backend::Fuse];

    /// As it is written in options and notes.
    pub fn name(self) -> &'static str {
        match self {
            Backend::Overlay => "overlay",
            Backend::Aufs => "aufs",
            Backend::Fuse => "fuse",
        }
    }

    /// The reverse.
    pub fn named(name: &str) -> Option<Backend> {
        Backend::ALL.into_iter().find(|of| of.name() == name)
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The directories that a kernel's union is made of, and how it is mounted.
#[derive(Clone, Debug)]
pub struct Stack {
    /// The layers, topmost first.
    pub lowers: Vec<PathBuf>,
    /// The upper and its work directory.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Marks are in `user.` attributes: the one way where root is not root of the machine.
    pub user_marks: bool,
    /// The upper is one that other unions read.
    pub portable: bool,
    /// `MS_*` of mount(2).
    pub flags: MsFlags,
    /// What the table of mounts shows as the source.
    pub source: String,
}

/// Who has written an upper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// There is none, or nothing is in it.
    Nobody,
    /// A mount of this program, which has noted it.
    Noted(Backend),
    /// By the look of its work directory the kernel's overlayfs, mounted by somebody else.
    ForeignOverlay,
    /// Somebody, perhaps another union.
    Unknown,
}

/// What is known before a mount is made.
#[derive(Clone, Debug)]
pub struct Facts {
    /// None: whichever is best.
    pub wanted: Option<Backend>,
    /// Who has written the upper.
    pub writer: Writer,
    /// The daemon may go on with an upper that overlayfs has written.
    pub take_over: bool,
    /// An option that the daemon alone can serve, as it was given.
    pub only_fuse: Option<String>,
    /// The same of aufs, which lacks more.
    pub not_aufs: Option<String>,
    /// Why overlayfs would show deleted names, as far as that is known.
    pub markers: Option<String>,
}

/// Who makes the union, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Who.
    pub backend: Backend,
    /// Why not one that comes before it.
    pub because: Vec<String>,
}

/// Why there is no mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The backend that was asked for cannot do what an option asks for.
    Option(String),
    /// It cannot make this union here.
    Impossible(String),
    /// The upper is another one's.
    Upper(String),
}

/// Chooses. `trial` mounts with a backend of the kernel, and says why that fails.
pub fn decide(
    facts: &Facts,
    mut trial: impl FnMut(Backend) -> Result<(), String>,
) -> Result<Decision, Refusal> {
    let wanted = bound_by_upper(facts)?;
    let mut because = Vec::new();
    for backend in Backend::ALL {
        if wanted.is_some_and(|wanted| wanted != backend) {
            continue;
        }
        let obstacle = obstacle(facts, backend).map_or_else(
            || match backend {
                Backend::Fuse => Ok(()),
                kernel => {
                    trial(kernel).map_err(|why| Refusal::Impossible(format!("{kernel}: {why}")))
                }
            },
            Err,
        );
        match obstacle {
            Ok(()) => return Ok(Decision { backend, because }),
            Err(refusal) if wanted.is_some() => return Err(refusal),
            Err(Refusal::Option(why) | Refusal::Impossible(why) | Refusal::Upper(why)) => {
                because.push(why);
            }
        }
    }
    // The last one has no obstacles.
    Ok(Decision {
        backend: Backend::Fuse,
        because,
    })
}

/// The backend that there is no way around: the one that was asked for, if the upper allows it, or that which
/// has written the upper.
fn bound_by_upper(facts: &Facts) -> Result<Option<Backend>, Refusal> {
    let Writer::Noted(writer) = facts.writer else {
        return Ok(facts.wanted);
    };
    let takes_over = facts.take_over && writer == Backend::Overlay;
    match facts.wanted {
        None | Some(Backend::Fuse) if takes_over => Ok(Some(Backend::Fuse)),
        None => Ok(Some(writer)),
        Some(wanted) if wanted == writer => Ok(Some(wanted)),
        Some(wanted) => {
            let remedy = match (writer, wanted) {
                (Backend::Overlay, Backend::Fuse) => {
                    "let overlayfs go on with it, by `mount` without --backend, or the daemon for ever, by `mount --take-over`"
                }
                _ => "leave out --backend, or begin a new upper",
            };
            let text =
                format!("the upper was written with --backend {writer}, not {wanted}; {remedy}");
            Err(Refusal::Upper(text))
        }
    }
}

/// What stands against a backend, without a trial.
fn obstacle(facts: &Facts, backend: Backend) -> Option<Refusal> {
    if backend == Backend::Fuse {
        return None;
    }
    let noted = matches!(facts.writer, Writer::Noted(_));
    let option = match backend {
        Backend::Aufs => facts.only_fuse.as_ref().or(facts.not_aufs.as_ref()),
        _ => facts.only_fuse.as_ref(),
    };
    if let Some(option) = option {
        let remedy = match facts.wanted {
            None if noted => {
                format!("leave it out, as the upper was written with --backend {backend}")
            }
            _ => "leave out one of the two".to_owned(),
        };
        let text = format!("{option} cannot be had with --backend {backend}; {remedy}");
        return Some(Refusal::Option(text));
    }
    let foreign = match facts.writer {
        Writer::Nobody | Writer::Noted(_) => None,
        Writer::ForeignOverlay if backend == Backend::Overlay => None,
        Writer::ForeignOverlay => Some("by kernel overlayfs"),
        Writer::Unknown => Some("by nobody knows what"),
    };
    if let Some(by) = foreign {
        let text = format!(
            "{backend}: the upper was written {by}, whose marks it may not know; use --backend fuse, which reads \
             those of all unions, or begin a new upper"
        );
        return Some(Refusal::Upper(text));
    }
    let markers = facts
        .markers
        .as_ref()
        .filter(|_| backend == Backend::Overlay)?;
    Some(Refusal::Impossible(format!("{backend}: {markers}")))
}

#[cfg(test)]
mod tests;
