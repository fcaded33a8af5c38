//! `list`: the images of a repository.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Code, Failure, Outcome};
use crate::error::printable;
use crate::image::repository::{self, Entry};

/// Shows the images of a repository, each by the name that `mount`, `run` and `inspect` take.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The repository: its name, cvmfs://<name> or its path below the root of repositories
    repository: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Where the repositories are mounted
    #[arg(long, value_name = "DIR", default_value = "/cvmfs")]
    cvmfs_root: PathBuf,
}

pub fn run(args: &Args) -> Outcome<()> {
    let repository = name_of(&args.repository, &args.cvmfs_root)?;
    let images = repository::list(&repository, &args.cvmfs_root)
        .map_err(|e| Failure::new(Code::Image, e.to_string()))?;
    let text = if args.json {
        let images: Vec<_> = images.iter().map(|image| row(&repository, image)).collect();
        format!("{:#}\n", Value::from(images))
    } else {
        table(&repository, &images)
    };
    super::print(&text)
}

/// The repository that the argument names.
pub fn name_of(argument: &Path, root: &Path) -> Outcome<String> {
    let below = argument.strip_prefix(root);
    let below = below.or_else(|_| argument.strip_prefix("/cvmfs"));
    let name = below.unwrap_or(argument).to_str().unwrap_or_default();
    let name = name.strip_prefix("cvmfs://").unwrap_or(name);
    let name = name.trim_end_matches('/');
    if name.is_empty() || name.contains('/') {
        let text = format!("{} is no repository", printable(argument));
        return Err(Failure::new(Code::Usage, text));
    }
    Ok(name.to_owned())
}

/// The compressed size of all layers, if each is known.
fn size_of(image: &Entry) -> Option<u64> {
    let layers = &image.manifest.as_ref().ok()?.layers;
    layers.iter().map(|layer| layer.size).sum()
}

fn row(repository: &str, image: &Entry) -> Value {
    let manifest = image.manifest.as_ref();
    let known = manifest.ok();
    json!({
        "image": image.name,
        "reference": format!("cvmfs://{repository}/{}", image.name),
        "layers": known.map(|manifest| manifest.layers.len()),
        "compressed_bytes": size_of(image),
        "config": known.map(|manifest| format!("{}:{}", manifest.config.algorithm, manifest.config.hex)),
        "flat": image.flat,
        "reason": manifest.err(),
    })
}

fn table(repository: &str, images: &[Entry]) -> String {
    let mut text = format!("{:>6}  {:>9}  {:<4}  IMAGE\n", "LAYERS", "MB", "FLAT");
    for image in images {
        let layers = image.manifest.as_ref().map(|m| m.layers.len().to_string());
        let layers = layers.unwrap_or_else(|_| "-".to_owned());
        let size = size_of(image).map(|bytes| format!("{:.1}", bytes as f64 / 1e6));
        let size = size.unwrap_or_else(|| "-".to_owned());
        let flat = if image.flat { "yes" } else { "no" };
        let name = printable(format!("cvmfs://{repository}/{}", image.name));
        text.push_str(&format!("{layers:>6}  {size:>9}  {flat:<4}  {name}\n"));
        if let (Err(why), false) = (&image.manifest, image.flat) {
            text.push_str(&format!("{:>23}  {}\n", "", printable(why)));
        }
    }
    text
}
