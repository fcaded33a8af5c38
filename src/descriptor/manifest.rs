//! The manifests around images: bytes in, checked values out.
//!
//! Three kinds are read. A repository of images keeps the registry's manifest of each image, with keys in
//! CamelCase as Go writes them; an OCI layout has one with keys in lower case, and an index of manifests;
//! `docker save` writes a list of its own. Keys match in any case, as in a descriptor.

use serde_json::{Map, Value};

use super::error::{DescriptorError, quote};
use super::fields::Fields;
use super::{Image, LayerRef, MAX_LAYERS, digest};

/// A blob, as `sha256:3c0d...` names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    /// The algorithm, `sha256`.
    pub algorithm: String,
    /// The digest in bare lower-case hex, two digits at least.
    pub hex: String,
    /// Its size in bytes, if the manifest says it.
    pub size: Option<u64>,
}

/// What an image consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The image's configuration.
    pub config: Blob,
    /// The layers' compressed archives, the base first.
    pub layers: Vec<Blob>,
}

/// One image in the list that `docker save` writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The names of the image, which may be none.
    pub tags: Vec<String>,
    /// The archives of its layers by name, the base first.
    pub layers: Vec<String>,
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    ///
    /// What is wrong, with its place, but for the name of the file.
    pub fn parse(bytes: &[u8]) -> Result<Self, DescriptorError> {
        let mut fields = Fields::of_image(json(bytes)?)?;
        let config = fields
            .object("config")?
            .ok_or_else(|| fields.error("config", "missing"))?;
        let layers = fields
            .array("layers")?
            .ok_or_else(|| fields.error("layers", "missing"))?;
        if layers.len() > MAX_LAYERS {
            return Err(fields.error("layers", too_many()));
        }
        Ok(Manifest {
            config: Blob::read(config)?,
            layers: blobs("layers", layers)?,
        })
    }

    /// The thin image of layers that lie in a repository as published there, `.layers/3c/3c0d.../layerfs`.
    pub fn thin(&self, repository: &str, origin: &str) -> Image {
        let layers = self.layers.iter().map(|layer| LayerRef {
            digest: layer.hex.clone(),
            repository: repository.to_owned(),
            folder: format!(".layers/{}/layerfs", layer.sorted()),
            other: Map::new(),
        });
        Image {
            version: "1.0".to_owned(),
            min_version: None,
            origin: Some(origin.to_owned()),
            comment: None,
            layers: layers.collect(),
            other: Map::new(),
        }
    }

    /// The folder of the image's flat tree in its repository.
    pub fn flat(&self) -> String {
        format!(".flat/{}", self.config.sorted())
    }
}

impl Blob {
    fn read(mut fields: Fields) -> Result<Blob, DescriptorError> {
        let digest = fields
            .text("digest")?
            .ok_or_else(|| fields.error("digest", "missing"))?;
        let size = fields.size("size")?;
        let (algorithm, hex) = checked(&digest).map_err(|why| fields.error("digest", why))?;
        Ok(Blob {
            algorithm: algorithm.to_owned(),
            hex: hex.to_owned(),
            size,
        })
    }

    /// The digest in the directory of its first two digits: `3c/3c0d...`.
    pub fn sorted(&self) -> String {
        let first = self.hex.get(..2).unwrap_or_default();
        format!("{first}/{}", self.hex)
    }

    /// The name of the blob in an OCI layout.
    pub fn in_layout(&self) -> String {
        format!("blobs/{}/{}", self.algorithm, self.hex)
    }
}

/// The manifests that the index of an OCI layout names.
///
/// # Errors
///
/// As those of [`Manifest::parse`].
pub fn parse_index(bytes: &[u8]) -> Result<Vec<Blob>, DescriptorError> {
    let mut fields = Fields::of_image(json(bytes)?)?;
    let manifests = fields
        .array("manifests")?
        .ok_or_else(|| fields.error("manifests", "missing"))?;
    blobs("manifests", manifests)
}

/// The images in the `manifest.json` of `docker save`; None if it is no such list.
///
/// # Errors
///
/// As those of [`Manifest::parse`].
pub fn parse_saved(bytes: &[u8]) -> Result<Option<Vec<Saved>>, DescriptorError> {
    let Value::Array(images) = json(bytes)? else {
        return Ok(None);
    };
    let images = images.into_iter().enumerate().map(|(at, image)| {
        let mut fields = Fields::of_part(format!("[{at}]"), image)?;
        Ok(Saved {
            tags: texts(&mut fields, "RepoTags")?,
            layers: texts(&mut fields, "Layers")?,
        })
    });
    images.collect::<Result<_, _>>().map(Some)
}

fn json(bytes: &[u8]) -> Result<Value, DescriptorError> {
    if bytes.len() > super::MAX_SIZE {
        return Err(DescriptorError::TooLarge { size: bytes.len() });
    }
    serde_json::from_slice(bytes).map_err(|e| DescriptorError::syntax(&e))
}

fn too_many() -> String {
    format!("more than the limit of {MAX_LAYERS}")
}

fn blobs(key: &str, of: Vec<Value>) -> Result<Vec<Blob>, DescriptorError> {
    let blobs = of.into_iter().enumerate();
    blobs
        .map(|(at, value)| Blob::read(Fields::of_part(format!("{key}[{at}]"), value)?))
        .collect()
}

fn texts(fields: &mut Fields, key: &str) -> Result<Vec<String>, DescriptorError> {
    let values = fields.array(key)?.unwrap_or_default();
    if values.len() > MAX_LAYERS {
        return Err(fields.error(key, too_many()));
    }
    values
        .into_iter()
        .map(|value| match value {
            Value::String(text) => Ok(text),
            _ => Err(fields.error(key, "expected strings")),
        })
        .collect()
}

/// The parts of `sha256:3c0d...`; both become names of files.
fn checked(digest: &str) -> Result<(&str, &str), String> {
    let (algorithm, hex) = digest
        .split_once(':')
        .ok_or_else(|| format!("{} names no algorithm", quote(digest)))?;
    let letters = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if algorithm.is_empty() || !algorithm.chars().all(letters) {
        return Err(format!("{} names no algorithm", quote(digest)));
    }
    digest::check(hex)?;
    if hex.len() < 2 {
        return Err(format!("{} is too short", quote(digest)));
    }
    Ok((algorithm, hex))
}
