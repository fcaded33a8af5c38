//! The thin image descriptor, `thin.json`: bytes in, checked values out.
//!
//! A thin image holds one file that names its layers instead of carrying them. This module reads
//! that file and touches nothing else: no directory is opened and no layer has to exist.
//!
//! Whatever [`Image::parse`] lets through can be joined to a root without leaving the layer's
//! repository by name: repositories and folders are checked component by component. The plugin that
//! first read this format refused neither a foreign scheme nor `..`, and took broken JSON for an
//! image of zero layers; here each of these is an error that names its place.

mod digest;
mod error;
mod fields;
mod location;
pub mod manifest;
pub mod resolve;

use serde_json::{Map, Value};

pub use self::error::DescriptorError;
use self::fields::Fields;
use self::location::Location;
pub use self::location::check_repository;

/// The largest descriptor that is read, in bytes; a real one has a few kilobytes.
pub const MAX_SIZE: usize = 16 * 1024 * 1024;

/// The largest number of layers in one descriptor; a real one has a few dozen.
pub const MAX_LAYERS: usize = 100_000;

/// The format versions that are read.
///
/// Tools write `1.0` since November 2017 and wrote `0.1` before. Where a layer lies is decided
/// layer by layer from the keys it has, not from the version.
pub const VERSIONS: [&str; 2] = ["1.0", "0.1"];

/// The order in which a descriptor lists its layers.
///
/// The format lists the base first. The graph driver plugin's commit however put the new layer in
/// front of the others, and nothing in the file tells, so the user has to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LayerOrder {
    /// The base is `layers[0]`, as the format and the conversion tools have it.
    #[default]
    BottomFirst,
    /// The topmost layer is `layers[0]`.
    TopFirst,
}

/// A thin image: what its descriptor says, checked.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Image {
    /// The format version, one of [`VERSIONS`].
    pub version: String,
    /// The oldest version a reader must know, one of [`VERSIONS`]; declared by the format, written
    /// by no known tool.
    pub min_version: Option<String>,
    /// Where the image came from, as free text: each tool has its own form, so it is only shown.
    pub origin: Option<String>,
    /// A remark, as free text; declared by the format, written by no known tool.
    pub comment: Option<String>,
    /// The layers in the order of the file; [`resolve::layer_paths`] puts the topmost first. An
    /// image without layers is legal: it is `scratch`.
    pub layers: Vec<LayerRef>,
    /// The keys this module does not know, as they were.
    pub other: Map<String, Value>,
}

/// One layer of an [`Image`] and where it lies.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerRef {
    /// The digest of the layer's *compressed* blob (not its diffID), in bare lower-case hex.
    pub digest: String,
    /// The CVMFS repository, `images.example.org`.
    pub repository: String,
    /// The layer's directory within the repository: relative, without empty, `.` or `..` components.
    pub folder: String,
    /// The keys that had no part in locating the layer, as they were. Beside a `url` these include
    /// `repo` and `location`.
    pub other: Map<String, Value>,
}

impl Image {
    /// Reads a descriptor.
    ///
    /// Keys match in any case, as in the format's first readers, which were written with Go's
    /// `encoding/json`; one key in two spellings is an error, because which one counts would depend
    /// on the reader. From the same origin, a `null` is an absent value, and a `layers` of `null` is
    /// an empty list. Unknown keys are kept.
    ///
    /// # Errors
    ///
    /// Anything that does not follow the format, with the line and column for broken JSON and the
    /// field for the rest. The message does not name the file, whose name is not known here.
    pub fn parse(bytes: &[u8]) -> Result<Self, DescriptorError> {
        if bytes.len() > MAX_SIZE {
            return Err(DescriptorError::TooLarge { size: bytes.len() });
        }
        let value = serde_json::from_slice(bytes).map_err(|e| DescriptorError::syntax(&e))?;
        let mut fields = Fields::of_image(value)?;
        Ok(Self {
            version: read_version(&mut fields, "version")?
                .ok_or_else(|| fields.error("version", "missing"))?,
            min_version: read_version(&mut fields, "min_version")?,
            origin: fields.text("origin")?,
            comment: fields.text("comment")?,
            layers: read_layers(&mut fields)?,
            other: fields.into_rest(),
        })
    }
}

fn read_version(fields: &mut Fields, key: &str) -> Result<Option<String>, DescriptorError> {
    let version = fields.text(key)?;
    match &version {
        Some(v) if !VERSIONS.contains(&v.as_str()) => {
            let reason = format!(
                "{} is not supported, only {}",
                error::quote(v),
                VERSIONS.join(" and ")
            );
            Err(fields.error(key, reason))
        }
        _ => Ok(version),
    }
}

fn read_layers(fields: &mut Fields) -> Result<Vec<LayerRef>, DescriptorError> {
    let layers = fields
        .array("layers")?
        .ok_or_else(|| fields.error("layers", "missing"))?;
    if layers.len() > MAX_LAYERS {
        let reason = format!(
            "{} layers, more than the limit of {MAX_LAYERS}",
            layers.len()
        );
        return Err(fields.error("layers", reason));
    }
    layers
        .into_iter()
        .enumerate()
        .map(|(index, value)| read_layer(index, value))
        .collect()
}

fn read_layer(index: usize, value: Value) -> Result<LayerRef, DescriptorError> {
    let mut fields = Fields::of_part(format!("layers[{index}]"), value)?;
    let digest = fields
        .text("digest")?
        .ok_or_else(|| fields.error("digest", "missing"))?;
    digest::check(&digest).map_err(|reason| fields.error("digest", reason))?;
    let Location { repository, folder } = read_location(&mut fields, &digest)?;
    Ok(LayerRef {
        digest,
        repository,
        folder,
        other: fields.into_rest(),
    })
}

/// Finds where a layer lies: `url` wins, else `repo` and `location`, whose default is
/// `layers/<digest>`. The latter two are how version 0.1 located its layers.
///
/// An empty text counts as absent, since a Go program does not tell the two apart.
fn read_location(fields: &mut Fields, digest: &str) -> Result<Location, DescriptorError> {
    if let Some(url) = set(fields.text("url")?) {
        return Location::from_url(&url).map_err(|reason| fields.error("url", reason));
    }
    let repository = set(fields.text("repo")?)
        .ok_or_else(|| fields.error("url", "missing, and there is no repo in its place"))?;
    location::check_repository(&repository).map_err(|reason| fields.error("repo", reason))?;
    let folder = set(fields.text("location")?).unwrap_or_else(|| format!("layers/{digest}"));
    location::check_folder(&folder).map_err(|reason| fields.error("location", reason))?;
    Ok(Location { repository, folder })
}

fn set(text: Option<String>) -> Option<String> {
    text.filter(|t| !t.is_empty())
}
