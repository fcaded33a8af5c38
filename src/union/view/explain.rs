//! Where a path comes from: what each layer says of it, and which of them hides what.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::{UpperView, View, marks};
use crate::error::{Context, Error, Result};
use crate::layer::{LowerDir, Observed};
use crate::sys::name;

/// So many symlinks on the way are followed.
const MAX_LINKS: usize = 40;

/// A directory that may hold something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// What was changed.
    Upper,
    /// A layer, by its position from the top.
    Layer(usize),
}

/// What one of them says of the path.
#[derive(Clone, Debug)]
pub struct Story {
    /// Who says it.
    pub source: Source,
    /// The digest or the path of a layer.
    pub identity: Option<String>,
    /// What it has there: `nothing`, `regular file`, `whiteout of /usr`...
    pub says: String,
    /// What becomes of that: `shown`, `merged`, or why it is hidden.
    pub outcome: Option<String>,
}

/// All there is to say of a path.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The path, after the symlinks on the way to it.
    pub path: Vec<u8>,
    /// What kind of object is shown, and by whom; None if nothing is.
    pub shown: Option<(&'static str, Source)>,
    /// Symlinks and renamed directories on the way.
    pub notes: Vec<String>,
    /// The upper first, then all layers from the top.
    pub stories: Vec<Story>,
}

/// One that still counts on the way down.
enum Holder {
    Upper(Arc<OwnedFd>),
    Layer(Arc<LowerDir>),
}

impl Holder {
    fn source(&self) -> Source {
        match self {
            Holder::Upper(_) => Source::Upper,
            Holder::Layer(dir) => Source::Layer(dir.layer as usize),
        }
    }
}

/// What was found under one name.
struct Level {
    /// Those that hold the directory, to go on with.
    next: Vec<Holder>,
    shown: Option<(u8, Source)>,
    /// The upper's directory, where it was renamed from another place.
    redirect: Option<Vec<u8>>,
}

impl View {
    /// Explains an absolute path of the merged tree.
    ///
    /// # Errors
    ///
    /// A directory on the way that cannot be read; more symlinks than the kernel would follow.
    pub fn explain(&self, path: &[u8]) -> Result<Explained> {
        let mut notes = Vec::new();
        let mut names = components(path);
        for _ in 0..MAX_LINKS {
            match self.walk(&names, &mut notes)? {
                Walk::Done(explained) => return Ok(explained),
                Walk::Link(rest) => names = rest,
            }
        }
        Err(Error::new(libc::ELOOP, "symlinks on the way"))
    }

    fn walk(&self, names: &[Vec<u8>], notes: &mut Vec<String>) -> Result<Walk> {
        let count = self.lowers.layers().len();
        let mut stories: Vec<Option<Story>> = vec![None; count + 1];
        let mut level = self.top(&mut stories)?;
        let mut prefix = Vec::new();
        for (at, name) in names.iter().enumerate() {
            let last = at + 1 == names.len();
            let parent = level.next;
            prefix.push(b'/');
            prefix.extend_from_slice(name);
            level = self.level(&parent, name, &prefix, last, &mut stories)?;
            if let (Some((libc::DT_LNK, source)), false) = (level.shown, last) {
                let target = self.read_link(&parent, source, name)?;
                let shown = String::from_utf8_lossy;
                notes.push(format!(
                    "{} is a symlink to {}",
                    shown(&prefix),
                    shown(&target)
                ));
                let mut whole = match target.starts_with(b"/") {
                    true => Vec::new(),
                    false => names.get(..at).unwrap_or_default().to_vec(),
                };
                whole.extend(components(&target));
                whole.extend(names.get(at + 1..).unwrap_or_default().iter().cloned());
                return Ok(Walk::Link(resolved(whole)));
            }
            if let Some(path) = level.redirect.take() {
                let shown = String::from_utf8_lossy;
                notes.push(format!(
                    "{} was renamed: below the upper's part lies {} of the layers",
                    shown(&prefix),
                    shown(&path)
                ));
                level.next.retain(|at| matches!(at, Holder::Upper(_)));
                level
                    .next
                    .extend(self.below_path(&path)?.into_iter().map(Holder::Layer));
                for story in stories.iter_mut().skip(1) {
                    *story = None;
                }
            }
        }
        let stories = stories.into_iter().enumerate().map(|(at, story)| {
            let source = at.checked_sub(1).map_or(Source::Upper, Source::Layer);
            story.unwrap_or_else(|| self.story(source, "nothing", None))
        });
        let shown = if names.is_empty() {
            level.next.first().map(|at| (libc::DT_DIR, at.source()))
        } else {
            level.shown
        };
        Ok(Walk::Done(Explained {
            path: if prefix.is_empty() {
                b"/".to_vec()
            } else {
                prefix
            },
            shown: shown.map(|(kind, source)| (kind_name(kind), source)),
            notes: std::mem::take(notes),
            stories: match self.upper {
                Some(_) => stories.collect(),
                None => stories.skip(1).collect(),
            },
        }))
    }

    /// The root directories.
    fn top(&self, stories: &mut [Option<Story>]) -> Result<Level> {
        let root = self.root()?;
        let mut next: Vec<Holder> = Vec::new();
        next.extend(root.upper.map(Holder::Upper));
        let hidden = root
            .lowers
            .is_empty()
            .then(|| "the upper is opaque".to_owned());
        let mut blocked = hidden;
        for dir in self.lowers.roots() {
            let source = Source::Layer(dir.layer as usize);
            if let Some(why) = &blocked {
                self.tell(
                    stories,
                    source,
                    kind_name(libc::DT_DIR),
                    Some(format!("hidden: {why}")),
                );
                continue;
            }
            self.tell(
                stories,
                source,
                kind_name(libc::DT_DIR),
                Some("merged".to_owned()),
            );
            if self.lowers.observe(&dir, b"")?.opaque {
                blocked = Some(format!("{} is opaque", label(source)));
            }
            next.push(Holder::Layer(dir));
        }
        if self.upper.is_some() {
            let outcome = Some("shown".to_owned());
            self.tell(stories, Source::Upper, kind_name(libc::DT_DIR), outcome);
        }
        Ok(Level {
            next,
            shown: None,
            redirect: None,
        })
    }

    /// What those that hold a directory say of a name in it.
    fn level(
        &self,
        parent: &[Holder],
        name: &[u8],
        prefix: &[u8],
        last: bool,
        stories: &mut [Option<Story>],
    ) -> Result<Level> {
        let mut level = Level {
            next: Vec::new(),
            shown: None,
            redirect: None,
        };
        // Who stands in the way of those below, and why.
        let mut blocked: Option<String> = None;
        let shown_prefix = String::from_utf8_lossy(prefix).into_owned();
        for at in parent {
            let source = at.source();
            let seen = self.observe(at, name)?;
            // It has nothing to do with the path, or with what follows.
            self.forget(stories, source);
            if let Some(kind) = seen.object {
                let is_dir = kind == libc::DT_DIR;
                let outcome = match (&blocked, level.shown) {
                    (Some(why), _) => format!("hidden: {why}"),
                    (None, None) => "shown".to_owned(),
                    (None, Some(_)) if is_dir => "merged".to_owned(),
                    (None, Some((_, above))) => {
                        format!("hidden: {} has a directory there", label(above))
                    }
                };
                let counts = !outcome.starts_with("hidden");
                let says = match last {
                    true => kind_name(kind).to_owned(),
                    false => format!("{} {shown_prefix}", kind_name(kind)),
                };
                let more = if counts {
                    self.more(at, name, kind)?
                } else {
                    More::default()
                };
                let says = if more.metacopy {
                    format!("{says}, its attributes only")
                } else {
                    says
                };
                self.tell(stories, source, &says, Some(outcome));
                if counts {
                    level.shown.get_or_insert((kind, source));
                    level.redirect = level.redirect.or(more.redirect);
                    if !is_dir && !more.metacopy {
                        blocked.get_or_insert(format!(
                            "{} has a {} {shown_prefix}",
                            label(source),
                            kind_name(kind)
                        ));
                    }
                    if let Some(dir) = more.dir {
                        level.next.push(dir);
                    }
                    if more.opaque {
                        blocked.get_or_insert(format!(
                            "{shown_prefix} is opaque in {}",
                            label(source)
                        ));
                    }
                }
            }
            if seen.whiteout {
                if seen.object.is_none() {
                    let says = format!("whiteout of {shown_prefix}");
                    self.tell(stories, source, &says, None);
                }
                blocked.get_or_insert(format!("{shown_prefix} is deleted in {}", label(source)));
            }
        }
        Ok(level)
    }

    fn observe(&self, at: &Holder, name: &[u8]) -> Result<Observed> {
        let dir = match at {
            Holder::Layer(dir) => return self.lowers.observe(dir, name),
            Holder::Upper(dir) => dir,
        };
        let names = self.upper_view()?.names(dir)?;
        let found = names.names.iter().find(|(of, _)| of == name);
        let object = found.and_then(|(_, object)| *object);
        let hidden = names.hidden.iter().any(|hidden| hidden == name);
        Ok(Observed {
            object,
            whiteout: found.is_some() && object.is_none() || hidden,
            opaque: names.opaque,
        })
    }

    fn upper_view(&self) -> Result<&UpperView> {
        let upper = self.upper.as_ref();
        upper.ok_or_else(|| Error::new(libc::EIO, "no upper"))
    }

    /// What the object itself says.
    fn more(&self, at: &Holder, name: &[u8], kind: u8) -> Result<More> {
        let mut more = More::default();
        match at {
            Holder::Layer(dir) if kind == libc::DT_DIR => {
                let child = dir.child(name);
                more.opaque = self.lowers.observe(&child, b"")?.opaque;
                more.dir = Some(Holder::Layer(child));
            }
            Holder::Layer(_) => {}
            Holder::Upper(dir) => {
                let upper = self.upper_view()?;
                let place = upper.place(dir, name)?;
                let marks = marks::read(&place)?;
                more.metacopy = marks.metacopy && kind == libc::DT_REG;
                if kind == libc::DT_DIR {
                    let child = Arc::new(place.open(libc::O_RDONLY | libc::O_DIRECTORY)?);
                    more.opaque = marks.opaque || upper.names(&child)?.opaque;
                    more.dir = Some(Holder::Upper(child));
                }
                if kind == libc::DT_DIR || more.metacopy {
                    more.redirect = marks.redirect;
                }
            }
        }
        Ok(more)
    }

    fn read_link(&self, parent: &[Holder], source: Source, name: &[u8]) -> Result<Vec<u8>> {
        let at = parent.iter().find(|at| at.source() == source);
        match at {
            Some(Holder::Upper(dir)) => {
                let place = self.upper_view()?.place(dir, name)?;
                name::readlinkat(place.fd(), &place.name).op("read link")
            }
            Some(Holder::Layer(dir)) => self.lowers.read_link(dir, name),
            None => Err(Error::new(libc::EIO, "read link")),
        }
    }

    fn story(&self, source: Source, says: &str, outcome: Option<String>) -> Story {
        let identity = match source {
            Source::Upper => None,
            Source::Layer(at) => self.identities.get(at).cloned(),
        };
        Story {
            source,
            identity,
            says: says.to_owned(),
            outcome,
        }
    }

    fn tell(
        &self,
        stories: &mut [Option<Story>],
        source: Source,
        says: &str,
        outcome: Option<String>,
    ) {
        if let Some(slot) = stories.get_mut(place_of(source)) {
            *slot = Some(self.story(source, says, outcome));
        }
    }

    fn forget(&self, stories: &mut [Option<Story>], source: Source) {
        if let Some(slot) = stories.get_mut(place_of(source)) {
            *slot = None;
        }
    }
}

#[derive(Default)]
struct More {
    opaque: bool,
    metacopy: bool,
    redirect: Option<Vec<u8>>,
    dir: Option<Holder>,
}

enum Walk {
    Done(Explained),
    /// Another path, for the symlink that was met.
    Link(Vec<Vec<u8>>),
}

fn place_of(source: Source) -> usize {
    match source {
        Source::Upper => 0,
        Source::Layer(at) => at + 1,
    }
}

/// How a source is called, layers by their number from the top.
pub fn label(source: Source) -> String {
    match source {
        Source::Upper => "the upper".to_owned(),
        Source::Layer(at) => format!("layer {}", at + 1),
    }
}

fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|b| *b == b'/');
    resolved(names.map(<[u8]>::to_vec).collect())
}

/// Without `.`, and with each `..` taken up.
fn resolved(names: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut plain = Vec::new();
    for name in names {
        match &*name {
            b"" | b"." => {}
            b".." => drop(plain.pop()),
            _ => plain.push(name),
        }
    }
    plain
}

fn kind_name(kind: u8) -> &'static str {
    match kind {
        libc::DT_DIR => "directory",
        libc::DT_LNK => "symlink",
        libc::DT_REG => "regular file",
        libc::DT_FIFO => "fifo",
        libc::DT_SOCK => "socket",
        libc::DT_CHR => "character device",
        libc::DT_BLK => "block device",
        _ => "object",
    }
}
