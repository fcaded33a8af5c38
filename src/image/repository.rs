//! Images in a repository on CVMFS, in the layout of the tools that publish them there.
//!
//! `.metadata/<registry>/<image>:<tag>/manifest.json` is the image's manifest, its layers lie in
//! `.layers`, and `<registry>/<image>:<tag>` is a symlink to its flat tree in `.flat`.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::{Flat, Located, NoImage, What, open_regular, read_bounded};
use crate::at_once;
use crate::descriptor::check_repository;
use crate::descriptor::manifest::Manifest;
use crate::error::printable;

const METADATA: &str = ".metadata";
const MANIFEST: &str = "manifest.json";
const FLAT: &str = ".flat";
/// Where the first layout has its layers: whole trees, and no image.
const OLD_LAYERS: &str = "layers";
/// No image has a name of more components.
const MAX_DEPTH: usize = 32;
/// So many directories are read to find all images. One has the tags of an image, so that a repository
/// with more is of something else, software perhaps, and each directory of it a download.
const MAX_DIRECTORIES: usize = 20_000;

/// An image that a repository shows.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name in the repository, `<registry>/<image>:<tag>`.
    pub name: String,
    /// Its manifest, or why there is none.
    pub manifest: Result<Manifest, String>,
    /// Whether its flat tree is there.
    pub flat: bool,
}

/// The reference that a path is, if it is one: `<repository>/<name>` below the root of repositories.
/// Where there is no such path, `/cvmfs` stands for that root.
pub fn reference(path: &Path, root: &Path) -> Option<String> {
    let below = path.strip_prefix(root).or_else(|e| match path.exists() {
        true => Err(e),
        false => path.strip_prefix("/cvmfs"),
    });
    let below = below.ok()?.to_str()?;
    let (repository, name) = below.split_once('/')?;
    (check_repository(repository).is_ok() && !name.is_empty()).then(|| below.to_owned())
}

/// Finds `<repository>/<registry>/<image>:<tag>`. Without a tag it is `latest`, unless that is a name too.
pub fn find(reference: &str, root: &Path) -> Result<Located, NoImage> {
    let whole = format!("cvmfs://{reference}");
    let refuse = |why: String| Err(NoImage::at(Path::new(&whole), why));
    let Some((repository, name)) = reference.split_once('/') else {
        return refuse(
            "names no image, as in cvmfs://<repository>/<registry>/<image>:<tag>".into(),
        );
    };
    if let Err(why) = check_repository(repository) {
        return refuse(why);
    }
    let name = name.trim_end_matches('/');
    let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    if name.is_empty() || name.contains('\0') || !Path::new(name).components().all(plain) {
        return refuse("the name of the image has an empty, \".\" or \"..\" component".into());
    }
    let home = root.join(repository);
    let last = name.rsplit('/').next().unwrap_or(name);
    let mut names = vec![name.to_owned()];
    if !last.contains([':', '@']) {
        names.push(format!("{name}:latest"));
    }
    for name in &names {
        if let Some(found) = find_named(&home, repository, name)? {
            return Ok(found);
        }
    }
    if !home.is_dir() {
        return refuse(format!(
            "repository {repository} is not mounted under {} (is --cvmfs-root right?)",
            root.display()
        ));
    }
    refuse(format!(
        "repository {repository} has no such image; `cvmfs-union list {repository}` shows those that it has"
    ))
}

/// The image of exactly that name.
fn find_named(home: &Path, repository: &str, name: &str) -> Result<Option<Located>, NoImage> {
    let metadata = home.join(METADATA).join(name);
    let path = metadata.join(MANIFEST);
    let flat = || flat_of(home, repository, name);
    let manifest = match read_manifest(&path) {
        Ok(manifest) => manifest,
        Err(Unread::Absent) => {
            return Ok(flat().map(|flat| Located {
                what: What::Flat(flat),
                remark: None,
                metadata: Some(metadata),
            }));
        }
        Err(Unread::Broken(why)) => {
            let why = NoImage::at(&path, why);
            return flat()
                .map(|flat| Some(instead(flat, why.to_string(), metadata)))
                .ok_or(why);
        }
    };
    let origin = format!("cvmfs://{repository}/{name}");
    let image = manifest.thin(repository, &origin);
    let missing = at_once::ask(&image.layers, |layer| {
        let found = fs::metadata(home.join(&layer.folder));
        found.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
    });
    let missing = image.layers.iter().zip(missing).find(|(_, gone)| *gone);
    if let Some((layer, _)) = missing
        && let Some(flat) = flat().or_else(|| flat_at(home, repository, manifest.flat().into()))
    {
        return Ok(Some(instead(
            flat,
            format!("repository {repository} has no layer {}", layer.digest),
            metadata,
        )));
    }
    Ok(Some(Located {
        what: What::Thin(image),
        remark: None,
        metadata: Some(metadata),
    }))
}

fn instead(flat: Flat, why: String, metadata: PathBuf) -> Located {
    let folder = flat.folder.display();
    let remark = format!("{why}; its flat tree {folder} is used");
    Located {
        what: What::Flat(flat),
        remark: Some(remark),
        metadata: Some(metadata),
    }
}

/// The flat tree behind the public name of an image. The link may lead to no place but `.flat`.
fn flat_of(home: &Path, repository: &str, name: &str) -> Option<Flat> {
    let real = fs::canonicalize(home.join(name)).ok()?;
    let folder = real.strip_prefix(fs::canonicalize(home).ok()?).ok()?;
    let in_flat = folder.starts_with(FLAT) && folder.components().count() > 1;
    in_flat.then(|| flat_at(home, repository, folder.to_owned()))?
}

fn flat_at(home: &Path, repository: &str, folder: PathBuf) -> Option<Flat> {
    let identity = format!("flat:{}", folder.file_name()?.to_str()?);
    home.join(&folder).is_dir().then(|| Flat {
        repository: repository.to_owned(),
        folder,
        identity,
    })
}

enum Unread {
    Absent,
    Broken(String),
}

fn read_manifest(path: &Path) -> Result<Manifest, Unread> {
    let bytes = match open_regular(path).and_then(read_bounded) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(Unread::Absent),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => return Err(Unread::Absent),
        other => other.map_err(|e| Unread::Broken(e.to_string()))?,
    };
    Manifest::parse(&bytes).map_err(|e| Unread::Broken(e.to_string()))
}

/// All images of a repository, by name: those that have a manifest, and those that have a flat tree only.
///
/// # Errors
///
/// The first directory that cannot be read, and a repository of more directories than images need: a
/// partial list would hide images.
pub fn list(repository: &str, root: &Path) -> Result<Vec<Entry>, NoImage> {
    check_repository(repository).map_err(|why| NoImage::at(Path::new(repository), why))?;
    let home = root.join(repository);
    // The listing of the repository itself mounts it, where an automounter does that.
    let top = names_in(&home)?;
    let mut names = Vec::new();
    let mut budget = MAX_DIRECTORIES;
    for (name, _) in top.into_iter().filter(|(_, kind)| kind.is_dir()) {
        if name == METADATA {
            let from = (home.join(METADATA), String::new());
            walk(from, &mut budget, &mut names, &has_manifest)?;
        } else if !name.starts_with('.') && name != OLD_LAYERS {
            let from = (home.join(&name), name);
            walk(from, &mut budget, &mut names, &|_| Ok(false))?;
        }
    }
    names.sort_unstable();
    names.dedup();
    let entries = at_once::ask(&names, |name| {
        let flat = flat_of(&home, repository, name).is_some();
        let manifest = home.join(METADATA).join(name).join(MANIFEST);
        let manifest = read_manifest(&manifest).map_err(|e| match e {
            Unread::Absent => "no manifest".to_owned(),
            Unread::Broken(why) => why,
        });
        let absent = manifest.as_ref().is_err_and(|why| why == "no manifest");
        (flat || !absent).then(|| Entry {
            name: name.clone(),
            manifest,
            flat,
        })
    });
    Ok(entries.into_iter().flatten().collect())
}

fn has_manifest(dir: &Path) -> Result<bool, NoImage> {
    let path = dir.join(MANIFEST);
    match fs::symlink_metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        other => other.map(|_| true).map_err(|e| NoImage::at(&path, e)),
    }
}

/// Adds the names of what is an image below a directory, which is given with its own: a directory in which
/// `is_image` finds what it wants, or a symlink. Reads as many directories as there are in the budget.
fn walk(
    (from, name): (PathBuf, String),
    budget: &mut usize,
    names: &mut Vec<String>,
    is_image: &dyn Fn(&Path) -> Result<bool, NoImage>,
) -> Result<(), NoImage> {
    let mut left = vec![(from, name, 0)];
    while let Some((dir, name, depth)) = left.pop() {
        if depth > 0 && is_image(&dir)? {
            names.push(name);
            continue;
        }
        *budget = budget.checked_sub(1).ok_or_else(|| {
            let why = "too many directories: the repository is not one of images";
            NoImage::at(&dir, why)
        })?;
        for (child, kind) in names_in(&dir)? {
            let name = match name.is_empty() {
                true => child.clone(),
                false => format!("{name}/{child}"),
            };
            if kind.is_symlink() {
                names.push(name);
            } else if kind.is_dir() && depth < MAX_DEPTH {
                left.push((dir.join(child), name, depth + 1));
            }
        }
    }
    Ok(())
}

/// The names in a directory that are text, with their kinds.
fn names_in(dir: &Path) -> Result<Vec<(String, fs::FileType)>, NoImage> {
    let refuse = |e: io::Error| NoImage::at(dir, printable(e.to_string()));
    let entries = fs::read_dir(dir).map_err(refuse)?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(refuse)?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push((name, entry.file_type().map_err(refuse)?));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_directories_are_read_than_images_need() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir_all(dir.path().join("a/b/c"))?;
        let walked = |mut budget: usize| {
            let from = (dir.path().to_owned(), String::new());
            walk(from, &mut budget, &mut Vec::new(), &has_manifest).map_err(|e| e.to_string())
        };
        assert_eq!(walked(4), Ok(()));
        assert!(walked(3).is_err_and(|why| why.contains("a/b/c: too many directories")));
        Ok(())
    }
}
