//! A podman "additional layer store" of a repository: a tree by which podman finds the layers of an image
//! by the image's name, so that it takes them from CVMFS and downloads none.
//!
//! `<store>/<base64 of the reference>/<digest>/` holds `diff`, a symlink to the layer's directory, `info`
//! about its digests, and an empty `blob`, which is to be there. What podman has pulled refers to `diff`,
//! so an entry stays for as long as its layer is in the repository, whatever becomes of the tag.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::NoImage;
use super::repository::{self, Entry};
use crate::at_once;
use crate::descriptor::manifest::Blob;
use crate::sys::{file, name};

const LAYERS: &str = ".layers";
const DIFF: &str = "diff";
const INFO: &str = "info";
const BLOB: &str = "blob";
/// The end of the names of files that are being written.
const NEW: &str = ".new";
/// podman makes and removes it when it uses the entry.
const USE: &str = "use";
/// Names that stand for Docker's registry, which podman calls `docker.io`.
const DOCKER: [&str; 3] = [
    "registry.hub.docker.com",
    "registry-1.docker.io",
    "index.docker.io",
];

/// What was done.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Refreshed {
    /// Images of which layers are in the store.
    pub images: usize,
    /// Entries that are in the store for them.
    pub layers: usize,
    /// Entries that were not there, or not as they should be.
    pub written: usize,
    /// Entries whose layer is gone from the repository.
    pub removed: usize,
    /// What is not in the store, and why: images without a manifest, and layers that are missing.
    pub left_out: Vec<String>,
}

/// Writes the entries of all images of a repository below `root`, and removes those whose layers are gone.
///
/// # Errors
///
/// What cannot be read or written. Entries are complete or not there at any time.
pub fn refresh(repository: &str, root: &Path, store: &Path) -> Result<Refreshed, NoImage> {
    let images = repository::list(repository, root)?;
    let layers = root.join(repository).join(LAYERS);
    let refuse = |path: &Path| {
        let path = path.to_owned();
        move |e: io::Error| NoImage::at(&path, e)
    };
    fs::create_dir_all(store).map_err(refuse(store))?;
    let mut done = Refreshed::default();
    for image in &images {
        put_image(image, &layers, store, &mut done)?;
    }
    // A repository that has just gone away must not empty the store.
    fs::read_dir(&layers).map_err(refuse(&layers))?;
    remove_gone(store, &layers, &mut done.removed).map_err(refuse(store))?;
    Ok(done)
}

fn put_image(
    image: &Entry,
    layers: &Path,
    store: &Path,
    done: &mut Refreshed,
) -> Result<(), NoImage> {
    let manifest = match &image.manifest {
        Ok(manifest) => manifest,
        Err(why) => {
            done.left_out.push(format!("{}: {why}", image.name));
            return Ok(());
        }
    };
    // An image can have the same layer twice.
    let mut blobs: Vec<&Blob> = Vec::new();
    for blob in &manifest.layers {
        if !blobs.contains(&blob) {
            blobs.push(blob);
        }
    }
    let of = |blob: &Blob| layers.join(blob.sorted()).join("layerfs");
    let found = at_once::ask(&blobs, |blob| fs::metadata(of(blob)));
    let names = references(&image.name).map(|reference| STANDARD.encode(reference));
    let names: Vec<String> = names.collect();
    // What podman takes for a reference never has one in base64.
    if names.iter().any(|name| name.contains('/')) {
        let text = format!("{:?}: not a name that podman knows", image.name);
        done.left_out.push(text);
        return Ok(());
    }
    let mut any = false;
    for (blob, found) in blobs.into_iter().zip(found) {
        let diff = of(blob);
        match found {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let text = format!("{}: layer {} is missing", image.name, blob.hex);
                done.left_out.push(text);
                continue;
            }
            other => other.map_err(|e| NoImage::at(&diff, e))?,
        };
        any = true;
        for name in &names {
            let entry = store
                .join(name)
                .join(format!("{}:{}", blob.algorithm, blob.hex));
            let written = put(&entry, &diff, blob).map_err(|e| NoImage::at(&entry, e))?;
            done.layers += 1;
            done.written += usize::from(written);
        }
    }
    done.images += usize::from(any);
    Ok(())
}

/// What podman calls an image of a repository.
fn references(name: &str) -> impl Iterator<Item = String> {
    let docker = name.split_once('/').and_then(|(registry, rest)| {
        let is_docker = DOCKER.contains(&registry);
        is_docker.then(|| format!("docker.io/{rest}"))
    });
    [name.to_owned()].into_iter().chain(docker)
}

/// Makes an entry complete; false if it is.
fn put(entry: &Path, layer: &Path, blob: &Blob) -> io::Result<bool> {
    let digest = format!("{}:{}", blob.algorithm, blob.hex);
    // The digest of the unpacked archive is not known here; podman wants one that tells the layer from others.
    let info = json!({
        "compressed-diff-digest": digest,
        "compressed-size": blob.size.unwrap_or_default(),
        "diff-digest": digest,
        "compression": 2,
    });
    let info = info.to_string();
    let (diff, info_path) = (entry.join(DIFF), entry.join(INFO));
    let is_complete = fs::read_link(&diff).is_ok_and(|to| to == layer)
        && fs::read(&info_path).is_ok_and(|known| known == info.as_bytes())
        && entry.join(BLOB).exists();
    if is_complete {
        return Ok(false);
    }
    fs::create_dir_all(entry)?;
    let dir = file::open_path(entry, libc::O_RDONLY | libc::O_DIRECTORY)?;
    let dir = dir.as_fd();
    // Others may write the same entry.
    let new = format!("{}{NEW}", std::process::id());
    let new = new.as_bytes();
    let target = layer.as_os_str().as_bytes();
    name::replace(dir, DIFF.as_bytes(), new, || {
        name::symlinkat(target, dir, new)
    })?;
    name::replace_file(dir, BLOB.as_bytes(), new, b"")?;
    // Without it podman does not see the entry.
    name::replace_file(dir, INFO.as_bytes(), new, info.as_bytes())?;
    Ok(true)
}

/// Removes the entries of layers that were in this directory of a repository, and what is empty then.
///
/// The store can be any directory that somebody has named: only what is called and built as an entry is one.
fn remove_gone(store: &Path, layers: &Path, removed: &mut usize) -> io::Result<()> {
    for image in fs::read_dir(store)? {
        let image = image?;
        if !image.file_type()?.is_dir() || !is_reference(&image.file_name()) {
            continue;
        }
        let before = *removed;
        for entry in fs::read_dir(image.path())? {
            let entry = entry?;
            let is_named = entry.file_name().to_string_lossy().contains(':');
            if is_named && entry.file_type()?.is_dir() && is_gone(&entry.path(), layers) {
                remove(&entry.path())?;
                *removed += 1;
            }
        }
        // A directory in which nothing was removed can be one that is just being filled.
        if *removed > before {
            match fs::remove_dir(image.path()) {
                Err(e) if e.kind() == io::ErrorKind::DirectoryNotEmpty => {}
                other => other?,
            }
        }
    }
    Ok(())
}

/// Whether a name is a reference in base64.
fn is_reference(name: &OsStr) -> bool {
    let decoded = STANDARD.decode(name.as_bytes());
    let text = decoded.ok().and_then(|bytes| String::from_utf8(bytes).ok());
    text.is_some_and(|text| !text.chars().any(char::is_control))
}

fn remove(entry: &Path) -> io::Result<()> {
    for file in fs::read_dir(entry)? {
        let name = file?.file_name();
        let is_ours = [INFO, DIFF, BLOB, USE].iter().any(|ours| name == *ours);
        // What a run that was killed has left is of no use either.
        if is_ours || name.as_bytes().ends_with(NEW.as_bytes()) {
            match fs::remove_file(entry.join(name)) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                _ => {}
            }
        }
    }
    fs::remove_dir(entry)
}

/// Whether an entry is of a layer in there that is no more. Any other error is not that.
fn is_gone(entry: &Path, layers: &Path) -> bool {
    let Ok(layer) = fs::read_link(entry.join(DIFF)) else {
        return false;
    };
    let found = fs::metadata(&layer);
    layer.starts_with(layers) && found.is_err_and(|e| e.kind() == io::ErrorKind::NotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_registry_has_one_more_name() {
        let names = |name| references(name).collect::<Vec<_>>();
        assert_eq!(names("r.example.org/a/b:1"), ["r.example.org/a/b:1"]);
        assert_eq!(
            names("registry.hub.docker.com/library/debian:9"),
            [
                "registry.hub.docker.com/library/debian:9",
                "docker.io/library/debian:9"
            ]
        );
    }
}
