//! From an image to the directories to mount.
//!
//! This only computes paths. Symbolic links inside a repository are for whoever opens them.

use std::path::{Path, PathBuf};

use super::{Image, LayerOrder, LayerRef};

/// A layer and the directory that holds its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedLayer {
    /// The digest of the layer's compressed blob, in bare lower-case hex.
    pub digest: String,
    /// The CVMFS repository.
    pub repository: String,
    /// The layer's directory within the repository.
    pub folder: String,
    /// `<root>/<repository>/<folder>`, the path the format defines.
    pub path: PathBuf,
}

/// Lists the layers of an image with their paths beneath `root`, topmost first.
///
/// `root` is where repositories are mounted, `/cvmfs` on most hosts. `order` says how the
/// descriptor lists its layers; see [`LayerOrder`].
#[must_use]
pub fn layer_paths(image: &Image, root: &Path, order: LayerOrder) -> Vec<ResolvedLayer> {
    let layers = image.layers.iter().map(|layer| resolve(layer, root));
    match order {
        LayerOrder::BottomFirst => layers.rev().collect(),
        LayerOrder::TopFirst => layers.collect(),
    }
}

fn resolve(layer: &LayerRef, root: &Path) -> ResolvedLayer {
    ResolvedLayer {
        digest: layer.digest.clone(),
        repository: layer.repository.clone(),
        folder: layer.folder.clone(),
        path: root.join(&layer.repository).join(&layer.folder),
    }
}
