//! `diff`: what was changed, as `docker diff` prints it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Code, OrFail, Outcome, merged};
use crate::error::printable;
use crate::text;
use crate::union::view::{Change, Kind};

/// Shows what a mount or an upper changes of its layers: A added, C changed, D deleted.
///
/// Of a mount that is in use, what is just being changed may be missing.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A mountpoint, or an upper directory that is not mounted
    #[arg(value_name = "MOUNTPOINT|UPPER")]
    of: PathBuf,
    /// Print JSON instead of lines
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    merged: merged::LayersOf,
}

pub fn run(args: &Args) -> Outcome<()> {
    let merged = merged::open(&args.of, &args.merged)?;
    let changes = merged.view.changes(merged.owners);
    let changes = changes.or_fail(Code::Failure, args.of.display())?;
    let text = if args.json {
        let changes: Vec<_> = changes.iter().map(row).collect();
        format!("{:#}\n", Value::from(changes))
    } else {
        let line = |change: &Change| {
            let path = printable(OsStr::from_bytes(&change.path));
            format!("{} {path}\n", letter(change.kind))
        };
        changes.iter().map(line).collect()
    };
    super::print(&text)
}

fn row(change: &Change) -> Value {
    json!({
        "kind": letter(change.kind),
        "path": text::of_path(OsStr::from_bytes(&change.path)),
    })
}

fn letter(kind: Kind) -> &'static str {
    match kind {
        Kind::Added => "A",
        Kind::Changed => "C",
        Kind::Deleted => "D",
    }
}
