//! `layerstore`: the layers of a repository for podman.

use std::io::{self, Write};
use std::path::PathBuf;

use super::{Code, Failure, OrFail, Outcome, list};
use crate::error::printable;
use crate::image::layerstore;

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
}

pub fn run(args: &Args) -> Outcome<()> {
    let root = &args.cvmfs_root;
    let repository = list::name_of(&args.repository, root)?;
    // podman follows links from places of its own.
    let root = std::path::absolute(root).or_fail(Code::Usage, root.display())?;
    let done = layerstore::refresh(&repository, &root, &args.dir)
        .map_err(|e| Failure::new(Code::Image, e.to_string()))?;
    for what in &done.left_out {
        eprintln!("cvmfs-union: layerstore: left out: {}", printable(what));
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
    io::stdout()
        .write_all(text.as_bytes())
        .or_fail(Code::Failure, "standard output")
}
