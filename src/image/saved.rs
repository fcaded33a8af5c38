//! Saved thin images: a directory or an archive that holds a descriptor, itself or in its one layer.

use std::collections::HashMap;
use std::io::{self, BufReader, Cursor, Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use flate2::read::MultiGzDecoder;
use tar::{Archive, Entries, EntryType};

use super::{NoImage, open_regular, parse, read_bounded};
use crate::descriptor::manifest::{self, Manifest, Saved};
use crate::descriptor::{Image, MAX_SIZE};
use crate::error::printable;

/// The names of a descriptor; tools of long ago wrote the latter.
const NAMES: [&str; 4] = ["thin.json", ".thin.json", ".thin", "thin-image.json"];
/// What tells a directory or an archive with images in it.
const OCI_INDEX: &str = "index.json";
const MANIFEST: &str = "manifest.json";
/// A thin image has a few kilobytes. More than this is not read to look for one.
const MAX_UNPACKED: u64 = 64 << 20;
/// Nor are more names read.
const MAX_NAMES: usize = 100_000;
/// So many manifests are read.
const MAX_MANIFESTS: usize = 1000;
/// So many symlinks are followed to a file.
const MAX_LINKS: usize = 8;

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Where the header of an archive says that it is one.
const USTAR: usize = 257;

/// Whether a directory holds a descriptor or saved images.
pub fn is_saved(dir: &Path) -> bool {
    let marks = [OCI_INDEX, MANIFEST];
    NAMES
        .iter()
        .chain(&marks)
        .any(|name| dir.join(name).is_file())
}

/// The image in a directory.
pub fn in_dir(dir: &Path) -> Result<Image, NoImage> {
    Shelf::Dir(dir).image(dir)
}

/// The image in an archive, or the descriptor that the file is.
pub fn in_file(path: &Path) -> Result<Image, NoImage> {
    let refuse = |e: io::Error| NoImage::at(path, e);
    let mut file = open_regular(path).map_err(refuse)?;
    let mut head = Vec::new();
    let read = file.by_ref().take(512).read_to_end(&mut head);
    read.and_then(|_| file.rewind()).map_err(refuse)?;
    match Format::of(&head) {
        Format::Other => parse(&read_bounded(file).map_err(refuse)?, path),
        format => {
            let mut left = Budget(MAX_UNPACKED);
            Shelf::Files(files(format, file, &mut left).map_err(refuse)?).image(path)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Tar,
    Gzip,
    Zstd,
    Other,
}

impl Format {
    fn of(head: &[u8]) -> Format {
        let ustar = head.get(USTAR..USTAR + 5) == Some(b"ustar");
        match head {
            _ if head.starts_with(GZIP) => Format::Gzip,
            _ if head.starts_with(ZSTD) => Format::Zstd,
            _ if ustar => Format::Tar,
            _ => Format::Other,
        }
    }
}

/// What stands under a name in an archive.
#[derive(Debug)]
enum Stored {
    Bytes(Vec<u8>),
    /// Another name.
    Link(PathBuf),
    /// Larger than any descriptor.
    Large,
}

type Files = HashMap<PathBuf, Stored>;

/// How many bytes may still be read.
struct Budget(u64);

impl Budget {
    fn take(&mut self, bytes: usize) -> io::Result<()> {
        let left = self.0.checked_sub(bytes as u64);
        self.0 = left.ok_or_else(|| {
            let why = format!("more than {MAX_UNPACKED} bytes are in it: no thin image");
            io::Error::other(why)
        })?;
        Ok(())
    }
}

/// What reads no more than a thin image has, whatever an archive says of the length of its parts. What is
/// skipped does not count.
struct Bounded<'a, R> {
    from: R,
    left: &'a mut Budget,
}

impl<R: Read> Read for Bounded<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buf)?;
        self.left.take(read)?;
        Ok(read)
    }
}

impl<R: Seek> Seek for Bounded<'_, R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.from.seek(to)
    }
}

/// All files of an archive, but not the content of the large ones.
fn files<R: Read + Seek>(format: Format, from: R, left: &mut Budget) -> io::Result<Files> {
    match format {
        Format::Gzip => {
            let from = MultiGzDecoder::new(BufReader::new(from));
            collect(Archive::new(Bounded { from, left }).entries()?)
        }
        Format::Zstd => Err(io::Error::other(
            "compressed with zstd, which is not read; unpack it, or save the image again with gzip",
        )),
        _ => collect(Archive::new(Bounded { from, left }).entries_with_seek()?),
    }
}

fn collect<R: Read>(entries: Entries<'_, R>) -> io::Result<Files> {
    let mut found = Files::new();
    for entry in entries {
        let entry = entry?;
        let Some(name) = plain(&entry.path()?) else {
            continue;
        };
        let stored = match entry.header().entry_type() {
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            EntryType::Symlink => {
                let target = entry.link_name()?.unwrap_or_default();
                let beside = name.parent().unwrap_or(Path::new(""));
                plain(&beside.join(target)).map_or(Stored::Large, Stored::Link)
            }
            EntryType::Link => {
                let target = entry.link_name()?.unwrap_or_default();
                plain(&target).map_or(Stored::Large, Stored::Link)
            }
            _ if entry.size() > MAX_SIZE as u64 => Stored::Large,
            _ => Stored::Bytes(read_bounded(entry)?),
        };
        found.insert(name, stored);
        if found.len() > MAX_NAMES {
            let why = format!("holds more than {MAX_NAMES} files: no thin image");
            return Err(io::Error::other(why));
        }
    }
    Ok(found)
}

/// A name without `.` and with each `..` taken up; None if it leads out of the archive.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir if !plain.pop() => return None,
            _ => {}
        }
    }
    Some(plain)
}

/// Where the files of a saved image are.
enum Shelf<'a> {
    Dir(&'a Path),
    Files(Files),
}

/// What an image's layer turned out to be.
enum Layer {
    /// It holds the descriptor, under that name, and nothing else.
    Thin(Vec<u8>, &'static str),
    Empty,
    Ordinary,
}

impl Shelf<'_> {
    /// The content under a name; None if there is none, or it is too large for one.
    fn get(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let Some(mut name) = plain(Path::new(name)).filter(|name| name.iter().next().is_some())
        else {
            return Ok(None);
        };
        match self {
            Shelf::Dir(dir) => match open_regular(&dir.join(name)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(e) => Err(e),
                Ok(file) if file.metadata()?.len() > MAX_SIZE as u64 => Ok(None),
                Ok(file) => read_bounded(file).map(Some),
            },
            Shelf::Files(files) => {
                for _ in 0..MAX_LINKS {
                    match files.get(&name) {
                        Some(Stored::Bytes(bytes)) => return Ok(Some(bytes.clone())),
                        Some(Stored::Link(target)) => name.clone_from(target),
                        Some(Stored::Large) | None => return Ok(None),
                    }
                }
                Ok(None)
            }
        }
    }

    /// The one thin image that is here.
    fn image(&self, from: &Path) -> Result<Image, NoImage> {
        let read = |name: &str| self.get(name).map_err(|e| NoImage::at(&from.join(name), e));
        for name in NAMES {
            if let Some(bytes) = read(name)? {
                return parse(&bytes, from.join(name));
            }
        }
        let mut images = self.saved(from)?;
        let Some(image) = images.pop() else {
            let why = "neither a thin.json nor a saved image is in it";
            return Err(NoImage::at(from, why));
        };
        if images.iter().any(|other| other.layers != image.layers) {
            images.push(image);
            let names: Vec<_> = images.iter().flat_map(|image| &image.tags).collect();
            let names = names.iter().map(printable).collect::<Vec<_>>().join(", ");
            let why = format!("several images are in it ({names}); save the one that is wanted");
            return Err(NoImage::at(from, why));
        }
        self.thin(from, &image)
    }

    /// The images that are saved here, by their layers.
    fn saved(&self, from: &Path) -> Result<Vec<Saved>, NoImage> {
        let read = |name: &str| self.get(name).map_err(|e| NoImage::at(&from.join(name), e));
        if let Some(bytes) = read(MANIFEST)? {
            let refuse = |e| NoImage::at(&from.join(MANIFEST), e);
            if let Some(images) = manifest::parse_saved(&bytes).map_err(refuse)? {
                return Ok(images);
            }
            // As skopeo writes a directory: blobs by the digits of their digests.
            let layers = Manifest::parse(&bytes).map_err(refuse)?.layers;
            return Ok(vec![Saved {
                tags: Vec::new(),
                layers: layers.into_iter().map(|layer| layer.hex).collect(),
            }]);
        }
        let Some(bytes) = read(OCI_INDEX)? else {
            return Ok(Vec::new());
        };
        let refuse = |name: &str, e| NoImage::at(&from.join(name), e);
        let mut images = Vec::new();
        let mut left = manifest::parse_index(&bytes).map_err(|e| refuse(OCI_INDEX, e))?;
        let mut seen = 0;
        while let Some(blob) = left.pop() {
            let name = blob.in_layout();
            let Some(bytes) = read(&name)? else {
                return Err(NoImage::at(&from.join(name), "missing"));
            };
            seen += 1;
            // An index may name others, one for each architecture.
            if let (Ok(more), true) = (manifest::parse_index(&bytes), seen < MAX_MANIFESTS) {
                left.extend(more);
                continue;
            }
            let layers = Manifest::parse(&bytes)
                .map_err(|e| refuse(&name, e))?
                .layers;
            images.push(Saved {
                tags: Vec::new(),
                layers: layers.iter().map(|layer| layer.in_layout()).collect(),
            });
        }
        Ok(images)
    }

    /// The descriptor of an image that has nothing but that.
    fn thin(&self, from: &Path, image: &Saved) -> Result<Image, NoImage> {
        let mut found = None;
        let mut ordinary = 0;
        // For all layers together: the same one may be listed again and again.
        let mut left = Budget(MAX_UNPACKED);
        for name in &image.layers {
            match self
                .layer(name, &mut left)
                .map_err(|e| NoImage::at(&from.join(name), e))?
            {
                Layer::Thin(bytes, file) => found = Some((bytes, from.join(name).join(file))),
                Layer::Ordinary => ordinary += 1,
                Layer::Empty => {}
            }
        }
        match found {
            None => {
                let why = "no thin image: none of its layers holds a thin.json";
                Err(NoImage::at(from, why))
            }
            Some(_) if ordinary > 0 => {
                let why = format!("{ordinary} ordinary layers beside thin.json would be missing");
                Err(NoImage::at(from, why))
            }
            Some((bytes, place)) => parse(&bytes, place),
        }
    }

    fn layer(&self, name: &str, left: &mut Budget) -> io::Result<Layer> {
        let Some(bytes) = self.get(name)? else {
            return Ok(Layer::Ordinary);
        };
        left.take(bytes.len())?;
        let mut files = files(Format::of(&bytes), Cursor::new(bytes), left)?;
        if files.len() == 1 {
            for name in NAMES {
                if let Some(Stored::Bytes(bytes)) = files.remove(Path::new(name)) {
                    return Ok(Layer::Thin(bytes, name));
                }
            }
            return Ok(Layer::Ordinary);
        }
        Ok(if files.is_empty() {
            Layer::Empty
        } else {
            Layer::Ordinary
        })
    }
}
