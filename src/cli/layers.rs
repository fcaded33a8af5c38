//! From the arguments to layer directories, each looked at, with the likely cause of a broken one.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::{Code, Failure, OrFail, Outcome};
use crate::at_once;
use crate::descriptor::{Image, LayerOrder, MAX_SIZE, resolve};
use crate::error::printable;
use crate::sys::file;
use crate::sys::realpath::RealPaths;
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
}

/// Reads and parses a descriptor.
pub fn read_image(path: &Path) -> Outcome<Image> {
    let bytes = read_bounded(path).or_fail(Code::Image, path.display())?;
    Image::parse(&bytes).or_fail(Code::Image, path.display())
}

/// The content of a regular file, no more of it than tells that it is too large. Opening anything
/// else could wait for ever, or do something: FIFOs and devices are not opened for reading.
fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let found = File::from(file::open_path(path, libc::O_PATH)?);
    if !found.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let found = file::reopen(found.as_fd(), libc::O_RDONLY)?;
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_SIZE).unwrap_or(u64::MAX);
    let read = File::from(found)
        .take(most.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if read > MAX_SIZE {
        let why = format!("more than the limit of {MAX_SIZE} bytes");
        return Err(io::Error::other(why));
    }
    Ok(bytes)
}

/// The layers of an image, topmost first.
pub fn of_image(image: &Image, root: &Path, order: Order) -> Outcome<Vec<Layer>> {
    let root = std::path::absolute(root).or_fail(Code::Usage, root.display())?;
    let resolved = resolve::layer_paths(image, &root, order.into());
    Ok(resolved
        .into_iter()
        .map(|layer| Layer {
            identity: layer.digest,
            path: layer.path,
            home: Some((root.clone(), layer.repository)),
        })
        .collect())
}

/// A stack of plain directories, topmost first.
pub fn of_dirs(dirs: &[PathBuf]) -> Outcome<Vec<Layer>> {
    let mut paths = RealPaths::default();
    dirs.iter()
        .map(|dir| {
            let path = match paths.of(dir) {
                Ok(path) => path,
                Err(_) => std::path::absolute(dir).or_fail(Code::Usage, dir.display())?,
            };
            Ok(Layer {
                identity: path.display().to_string(),
                path,
                home: None,
            })
        })
        .collect()
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

impl Layer {
    pub fn spec(&self) -> LowerSpec {
        LowerSpec {
            identity: self.identity.clone(),
            path: self.path.clone(),
        }
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
