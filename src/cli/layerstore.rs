//! `layerstore`: the layers of a repository for podman.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::terminal::say;
use super::{Code, Failure, OrFail, Outcome, list};
use crate::error::printable;
use crate::image::layerstore::{self, Refreshed};
use crate::text;

/// Writes and refreshes a tree by which podman takes the layers of a repository's images from CVMFS.
///
/// storage.conf: [storage.options] additionallayerstores = ["DIR:ref"], beside this program as mount_program.
/// It is to be run again when images are published; podman's images refer to the tree, so it is to stay.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The repository: its name, cvmfs://<name> or its path below the root of repositories
    repository: PathBuf,
    /// Where the tree is, or is made
    dir: PathBuf,
    /// Where the repositories are mounted
    #[arg(long, value_name = "DIR", default_value = "/cvmfs")]
    cvmfs_root: PathBuf,
    /// Print JSON instead of a line
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Outcome<()> {
    let root = &args.cvmfs_root;
    let repository = list::name_of(&args.repository, root)?;
    // podman follows links from places of its own.
    let root = std::path::absolute(root).or_fail(Code::Usage, root.display())?;
    let done = layerstore::refresh(&repository, &root, &args.dir)
        .map_err(|e| Failure::new(Code::Image, e.to_string()))?;
    if args.json {
        return super::print(&format!("{:#}\n", row(&done, &args.dir)));
    }
    for what in &done.left_out {
        say(format_args!("layerstore: left out: {}", printable(what)));
    }
    let text = format!(
        "{}: {} layers of {} images; {} written, {} removed, {} left out\n",
        args.dir.display(),
        done.layers,
        done.images,
        done.written,
        done.removed,
        done.left_out.len()
    );
    super::print(&text)
}

fn row(done: &Refreshed, dir: &Path) -> Value {
    json!({
        "directory": text::of_path(dir),
        "layers": done.layers,
        "images": done.images,
        "written": done.written,
        "removed": done.removed,
        "left_out": done.left_out,
    })
}
