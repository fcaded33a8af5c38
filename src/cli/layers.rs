//! From the arguments to layer directories, each looked at, with the likely cause of a broken one.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::terminal::say;
use super::{Code, Failure, OrFail, Outcome};
use crate::at_once;
use crate::descriptor::resolve::{self, ResolvedLayer};
use crate::descriptor::{Image, LayerOrder};
use crate::error::printable;
use crate::image::{self, What};
use crate::sys::realpath::RealPaths;
use crate::text;
use crate::union::api::LowerSpec;

/// The order in which the descriptor lists its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Order {
    #[default]
    BottomFirst,
    TopFirst,
}

impl From<Order> for LayerOrder {
    fn from(order: Order) -> Self {
        match order {
            Order::BottomFirst => LayerOrder::BottomFirst,
            Order::TopFirst => LayerOrder::TopFirst,
        }
    }
}

/// A layer and where it should be.
#[derive(Debug)]
pub struct Layer {
    /// The digest; the canonical path for a plain directory.
    pub identity: String,
    pub path: PathBuf,
    /// The root and the repository, for the story of a missing layer.
    home: Option<(PathBuf, String)>,
    /// It was seen to be a directory just now.
    seen: bool,
}

/// An image and its layers.
#[derive(Debug)]
pub struct Found {
    /// What the descriptor or the manifest says; None for a flat tree.
    pub image: Option<Image>,
    /// Topmost first.
    pub layers: Vec<Layer>,
    /// Where its repository keeps what is known of it, for one that is published.
    pub metadata: Option<PathBuf>,
}

/// Finds an image by its name; what is not as it should be is said aloud.
pub fn find(name: &Path, root: &Path, order: Order) -> Outcome<Found> {
    let root = std::path::absolute(root).or_fail(Code::Usage, root.display())?;
    let located =
        image::locate(name, &root).map_err(|e| Failure::new(Code::Image, e.to_string()))?;
    if let Some(remark) = located.remark {
        say(format_args!("warning: {remark}"));
    }
    let metadata = located.metadata;
    Ok(match located.what {
        What::Thin(image) => Found {
            layers: of_image(&image, &root, order),
            image: Some(image),
            metadata,
        },
        What::Flat(flat) => Found {
            image: None,
            metadata,
            layers: vec![Layer {
                path: root.join(&flat.repository).join(&flat.folder),
                identity: flat.identity,
                home: Some((root, flat.repository)),
                seen: false,
            }],
        },
    })
}

/// The layers of an image, topmost first.
fn of_image(image: &Image, root: &Path, order: Order) -> Vec<Layer> {
    let resolved = resolve::layer_paths(image, root, order.into());
    let layer = |layer: ResolvedLayer| Layer {
        identity: layer.digest,
        path: layer.path,
        home: Some((root.to_owned(), layer.repository)),
        seen: false,
    };
    resolved.into_iter().map(layer).collect()
}

/// A stack of plain directories, topmost first. A file among them is an image, and stands for its layers.
pub fn of_dirs(
    dirs: &[PathBuf],
    root: &Path,
    order: Order,
    paths: &mut RealPaths,
) -> Outcome<Vec<Layer>> {
    let mut layers = Vec::new();
    for dir in dirs {
        let found = fs::metadata(dir);
        if found.as_ref().is_ok_and(|meta| meta.is_file()) {
            match find(dir, root, order) {
                Ok(image) => {
                    layers.extend(image.layers);
                    continue;
                }
                // Then it is a layer that is no directory, and named with the others that are broken.
                Err(why) => say(format_args!("no image either: {}", why.message)),
            }
        }
        let path = match paths.of(dir) {
            Ok(path) => path,
            Err(_) => std::path::absolute(dir).or_fail(Code::Usage, dir.display())?,
        };
        layers.push(Layer {
            identity: text::of_path(&path),
            path,
            home: None,
            seen: found.is_ok_and(|meta| meta.is_dir()),
        });
    }
    Ok(layers)
}

/// Finds what is wrong with a layer.
type Check = fn(&Layer, &mut RealPaths) -> Option<String>;

/// Lets the kernel find all layers of an image, several at a time: what is looked at afterwards is
/// known, so that slow catalogues do not come one after the other.
pub fn find_all(layers: &[Layer]) {
    let on_cvmfs: Vec<&Layer> = layers.iter().filter(|l| l.home.is_some()).collect();
    at_once::ask(&on_cvmfs, |layer| drop(fs::metadata(&layer.path)));
}

/// Fails with a line for each layer in which the check finds something.
pub fn check_all(layers: &[Layer], check: Check) -> Outcome<()> {
    let mut paths = RealPaths::default();
    let broken: Vec<String> = layers
        .iter()
        .filter_map(|layer| {
            check(layer, &mut paths).map(|why| format!("  {}: {why}", layer.name()))
        })
        .collect();
    if broken.is_empty() {
        return Ok(());
    }
    let head = format!(
        "{} of {} layers cannot be used:",
        broken.len(),
        layers.len()
    );
    Err(Failure::new(
        Code::Layer,
        format!("{head}\n{}", broken.join("\n")),
    ))
}

/// The layers that [`Layer::json`] has told of; None for anything else.
pub fn specs_of(layers: &Value) -> Option<Vec<LowerSpec>> {
    fn field<'a>(layer: &'a Value, key: &str) -> Option<&'a str> {
        layer.get(key)?.as_str()
    }
    let spec = |layer: &Value| {
        Some(LowerSpec {
            identity: field(layer, "identity")?.to_owned(),
            path: text::to_path(field(layer, "path")?),
        })
    };
    layers.as_array()?.iter().map(spec).collect()
}

impl Layer {
    pub fn spec(&self) -> LowerSpec {
        LowerSpec {
            identity: self.identity.clone(),
            path: self.path.clone(),
        }
    }

    /// By which it is known wherever it lies; None for a plain directory.
    pub fn digest(&self) -> Option<&str> {
        self.home.as_ref().map(|_| self.identity.as_str())
    }

    /// For [`specs_of`].
    pub fn json(&self) -> Value {
        json!({ "identity": self.identity, "path": text::of_path(&self.path) })
    }

    fn name(&self) -> String {
        match self.home {
            Some(_) => format!("layer {} at {}", self.identity, printable(&self.path)),
            None => format!("layer {}", printable(&self.path)),
        }
    }

    /// What is wrong with the directory, and why that may be; None when it can be listed.
    pub fn problem(&self, paths: &mut RealPaths) -> Option<String> {
        if let Some(problem) = self.misplaced(paths) {
            return Some(problem);
        }
        // Reading one entry shows what opening does not: a client that cannot fetch the catalog.
        match fs::read_dir(&self.path).and_then(|mut entries| entries.next().transpose()) {
            Ok(_) => None,
            Err(e) => Some(self.explain(&e)),
        }
    }

    /// The same, found without reading in it; None when there is a directory in its repository.
    pub fn misplaced(&self, paths: &mut RealPaths) -> Option<String> {
        if self.seen && self.home.is_none() {
            return None;
        }
        match fs::metadata(&self.path) {
            Ok(meta) if !meta.is_dir() => return Some("not a directory".to_owned()),
            Ok(_) => {}
            Err(e) => return Some(self.explain(&e)),
        }
        match self.way_out(paths) {
            Ok(None) => None,
            Ok(Some(target)) => {
                let target = printable(target);
                let why = format!("a symlink leads out of the repository, to {target}");
                Some(why)
            }
            Err(e) => Some(self.explain(&e)),
        }
    }

    /// Where the layer really is, if that is not in its repository. Whoever writes a repository may
    /// say what is in it, and not that a directory of this host is a layer.
    fn way_out(&self, paths: &mut RealPaths) -> io::Result<Option<PathBuf>> {
        let Some((root, repository)) = &self.home else {
            return Ok(None);
        };
        let real = paths.of(&self.path)?;
        let inside = real.starts_with(paths.of(&root.join(repository))?);
        Ok((!inside).then_some(real))
    }

    fn explain(&self, e: &io::Error) -> String {
        let likely = match e.raw_os_error() {
            Some(libc::ENOENT) => match &self.home {
                Some((root, repository)) => absent(root, repository),
                None => "there is no such directory".to_owned(),
            },
            Some(libc::ENOTDIR) => "not a directory".to_owned(),
            Some(libc::ENOTCONN | libc::ECONNABORTED) => {
                "the CVMFS client of the repository has died; unmount and mount it again".to_owned()
            }
            Some(libc::ELOOP) => {
                "an automount that this mount namespace does not see, or a loop of symlinks; mount \
                 the repository before entering the namespace, or share mount propagation"
                    .to_owned()
            }
            Some(libc::EIO) => {
                "the client cannot fetch the data; network, proxy or cache".to_owned()
            }
            Some(libc::ESTALE) => "the repository was reloaded beneath; try again".to_owned(),
            Some(libc::EACCES | libc::EPERM) => {
                "this user may not read it, or the repository needs an authorization".to_owned()
            }
            _ => return e.to_string(),
        };
        format!("{e}: {likely}")
    }
}

/// Why a layer's directory does not exist: the first thing missing on the way to it tells.
fn absent(root: &Path, repository: &str) -> String {
    let home = root.join(repository);
    if !root.is_dir() {
        return format!("{} does not exist; is --cvmfs-root right?", root.display());
    }
    let mut entries = match fs::read_dir(&home) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return format!(
                "repository {repository} is not mounted under {} (is --cvmfs-root right?)",
                root.display()
            );
        }
        Err(e) => return format!("{}: {e}", home.display()),
    };
    if entries.next().is_none() {
        return format!(
            "repository {repository} is not mounted: {} is empty",
            home.display()
        );
    }
    format!("repository {repository} has no such layer; it was collected or never published")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn the_cause_of_an_absent_layer() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let layer = |root: PathBuf| Layer {
            identity: "11aa".to_owned(),
            path: root.join("repo.example.org/layers/11aa"),
            home: Some((root, "repo.example.org".to_owned())),
            seen: false,
        };
        let said = |root: &Path| {
            layer(root.to_owned())
                .problem(&mut RealPaths::default())
                .unwrap_or_default()
        };
        assert!(said(&dir.path().join("wrong")).contains("--cvmfs-root"));
        assert!(said(dir.path()).contains("is not mounted under"));
        fs::create_dir(dir.path().join("repo.example.org"))?;
        assert!(said(dir.path()).contains("is empty"));
        fs::create_dir(dir.path().join("repo.example.org/layers"))?;
        assert!(said(dir.path()).contains("collected"));
        fs::write(dir.path().join("repo.example.org/layers/11aa"), b"")?;
        assert_eq!(said(dir.path()), "not a directory");
        Ok(())
    }

    #[test]
    fn a_layer_stays_in_its_repository() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let root = dir.path().join("cvmfs");
        let repository = root.join("repo.example.org");
        let layer = Layer {
            identity: "11aa".to_owned(),
            path: repository.join("layers/11aa"),
            home: Some((root, "repo.example.org".to_owned())),
            seen: false,
        };
        fs::create_dir_all(repository.join("layers"))?;
        fs::create_dir_all(repository.join("data/11aa"))?;
        fs::create_dir_all(dir.path().join("outside/11aa"))?;
        let said = |link: &Path, target: &Path| -> io::Result<Option<String>> {
            symlink(target, link)?;
            let problem = layer.problem(&mut RealPaths::default());
            fs::remove_file(link)?;
            Ok(problem)
        };
        let out = |problem: Option<String>| problem.is_some_and(|p| p.contains("out of the"));
        assert_eq!(said(&layer.path, Path::new("../data/11aa"))?, None);
        assert!(out(said(&layer.path, &dir.path().join("outside"))?));
        assert!(out(said(&layer.path, Path::new("../../.."))?));
        fs::remove_dir(repository.join("layers"))?;
        let on_the_way = said(&repository.join("layers"), Path::new("../../outside"))?;
        assert!(out(on_the_way));
        Ok(())
    }
}
