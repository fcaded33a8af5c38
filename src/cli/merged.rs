//! Where `diff` and `explain` find layers and upper: from a mount, from an upper's record, or as told.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::layers::{self, Layer, Order};
use super::{Code, Failure, OrFail, Outcome, noted, stats, upper};
use crate::sys::process;
use crate::sys::realpath::RealPaths;
use crate::union::api::LowerSpec;
use crate::union::view::View;

/// The layers of an upper that no mount has left a record of.
#[derive(Debug, clap::Args)]
pub struct LayersOf {
    /// The image of an upper that has no record of its layers
    #[arg(long, conflicts_with = "lower")]
    image: Option<PathBuf>,
    /// A layer of such an upper, topmost first; repeat it
    #[arg(long, value_name = "DIR")]
    lower: Vec<PathBuf>,
    /// The work directory of the upper, where that record is [default: <upper>.work]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,
    /// Where the repositories are mounted
    #[arg(long, value_name = "DIR", default_value = "/cvmfs")]
    cvmfs_root: PathBuf,
    /// The order in which the descriptor lists its layers
    #[arg(long, value_enum, default_value_t)]
    layer_order: Order,
}

/// A merged tree, and how it is shown.
#[derive(Debug)]
pub struct Merged {
    pub view: View,
    /// Owners of the layers' files show as they are stored.
    pub owners: bool,
    /// The directory is a mountpoint.
    pub mounted: bool,
}

/// Opens the tree of a mountpoint or an upper.
pub fn open(of: &Path, args: &LayersOf) -> Outcome<Merged> {
    // Each level of directories takes a descriptor.
    process::raise_open_files().or_fail(Code::Failure, "limit of open files")?;
    let by_kernel = stats::by_kernel(of);
    let by_daemon = by_kernel.is_none() && stats::is_mount(of);
    let mounted = by_daemon || by_kernel.is_some();
    let about = if by_daemon {
        stats::ask(of)?.get("mount").cloned().unwrap_or_default()
    } else {
        let recorded = |work: Option<PathBuf>| work.and_then(|work| upper::recorded(&work));
        let about = match &by_kernel {
            Some(mount) => noted::of(mount).or_else(|| recorded(mount.work.clone())),
            None => recorded(upper::work_of(of, args.work.as_deref())),
        };
        about.unwrap_or_default()
    };
    let upper = match mounted {
        true => noted::upper_of(&about).or_else(|| by_kernel?.upper),
        false => Some(of.to_owned()),
    };
    let lowers = match told(args)? {
        Some(layers) => layers,
        None => about
            .get("layers")
            .and_then(layers::specs_of)
            .ok_or_else(|| {
                let (of, what) = (
                    of.display(),
                    match mounted {
                        true => "the kernel has this mounted, and nothing is noted of its layers",
                        false => {
                            "neither a mountpoint of ours nor an upper with a record of its layers"
                        }
                    },
                );
                let text =
                    format!("{of}: {what}; pass --image IMAGE or --lower DIR, or --work DIR");
                Failure::new(Code::Upper, text)
            })?,
    };
    let view = View::open(&lowers, upper.as_deref()).map_err(|e| {
        let code = if e.layer().is_some() {
            Code::Layer
        } else {
            Code::Upper
        };
        Failure::new(code, e.to_string())
    })?;
    let owner = about.get("owner").and_then(Value::as_str);
    Ok(Merged {
        view,
        owners: owner.is_none_or(|owner| owner == "keep"),
        mounted,
    })
}

/// The layers that the arguments name.
fn told(args: &LayersOf) -> Outcome<Option<Vec<LowerSpec>>> {
    let found = match &args.image {
        Some(image) => layers::find(image, &args.cvmfs_root, args.layer_order)?.layers,
        None if args.lower.is_empty() => return Ok(None),
        None => {
            let mut paths = RealPaths::default();
            layers::of_dirs(&args.lower, &args.cvmfs_root, args.layer_order, &mut paths)?
        }
    };
    layers::check_all(&found, Layer::misplaced)?;
    Ok(Some(found.iter().map(Layer::spec).collect()))
}
