//! What the word IMAGE of a command names: a descriptor, a saved thin image that holds one, or an image
//! in a repository on CVMFS.
//!
//! Nothing is unpacked, and nothing but descriptors and manifests is read.

pub mod layerstore;
pub mod repository;
mod saved;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use crate::descriptor::{Image, MAX_SIZE};
use crate::error::printable;
use crate::sys::file;

/// Why nothing was found; complete for a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NoImage(String);

impl fmt::Display for NoImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NoImage {}

impl NoImage {
    fn at(path: &Path, why: impl fmt::Display) -> NoImage {
        NoImage(format!("{}: {why}", printable(path)))
    }
}

/// An image that was found.
#[derive(Debug)]
pub struct Located {
    /// Its layers, or one tree.
    pub what: What,
    /// What is not as it should be, though the image can be used.
    pub remark: Option<String>,
    /// Where its repository keeps what is known of it, for one that is published.
    pub metadata: Option<PathBuf>,
}

/// What an image is made of.
#[derive(Debug)]
pub enum What {
    /// Layers.
    Thin(Image),
    /// A tree into which somebody has merged them.
    Flat(Flat),
}

/// An image as one tree in its repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flat {
    /// The repository.
    pub repository: String,
    /// Where the tree lies in it, relative.
    pub folder: PathBuf,
    /// What tells it from other images: the digest of the configuration, or else the folder.
    pub identity: String,
}

/// Finds an image.
///
/// `root` is where repositories are mounted. `name` is one of
/// - `cvmfs://<repository>/<registry>/<image>:<tag>`, or the same below `root` or `/cvmfs`;
/// - a descriptor, of whatever name;
/// - a directory or tar archive, perhaps gzipped, that holds `thin.json`: a thin image as `docker save`
///   or an OCI layout has it, or just the file.
///
/// # Errors
///
/// What is wrong with it. An image that is well described, and whose layers are missing, is found.
pub fn locate(name: &Path, root: &Path) -> Result<Located, NoImage> {
    if let Some(reference) = name.to_str().and_then(|name| name.strip_prefix("cvmfs://")) {
        return repository::find(reference, root);
    }
    let found = std::fs::metadata(name);
    if let Some(reference) = repository::reference(name, root) {
        let is_dir = found.as_ref().map_or(true, |found| found.is_dir());
        if is_dir && !saved::is_saved(name) {
            return repository::find(&reference, root);
        }
    }
    let found = found.map_err(|e| NoImage::at(name, e))?;
    let image = if found.is_dir() {
        saved::in_dir(name)?
    } else {
        saved::in_file(name)?
    };
    Ok(Located {
        what: What::Thin(image),
        remark: None,
        metadata: None,
    })
}

/// Reads a descriptor whose bytes came from there.
fn parse(bytes: &[u8], from: impl AsRef<Path>) -> Result<Image, NoImage> {
    Image::parse(bytes).map_err(|e| NoImage::at(from.as_ref(), e))
}

/// Opens a regular file. Opening anything else could wait for ever, or do something: FIFOs and devices
/// are not opened for reading.
fn open_regular(path: &Path) -> io::Result<File> {
    let found = File::from(file::open_path(path, libc::O_PATH)?);
    if !found.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file::reopen(found.as_fd(), libc::O_RDONLY)?.into())
}

/// The content, no more of it than tells that it is too large.
fn read_bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_SIZE).unwrap_or(u64::MAX);
    let read = from.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
    if read > MAX_SIZE {
        let why = format!("more than the limit of {MAX_SIZE} bytes");
        return Err(io::Error::other(why));
    }
    Ok(bytes)
}
