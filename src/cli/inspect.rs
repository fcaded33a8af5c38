//! `inspect`: the layers of an image in order, where they are, whether they are there, and what is known of them.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::layers::{self, Order};
use super::{Code, Failure, Outcome, scan};
use crate::backend::known::{Content, Known};
use crate::error::printable;
use crate::sys::realpath::RealPaths;
use crate::text;

/// Shows the layers of a thin image, topmost first; fails if one is missing.
///
/// With --scan they are looked through for names that begin with `.wh.`, and what is found is remembered by
/// their digests: `mount` can leave the union to the kernel's overlayfs if there are none.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A descriptor, a saved thin image, or cvmfs://<repository>/<registry>/<image>:<tag>
    image: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    /// Look through all layers of which it is not known whether they hold .wh. names
    #[arg(long)]
    scan: bool,
    /// Where the repositories are mounted
    #[arg(long, value_name = "DIR", default_value = "/cvmfs")]
    cvmfs_root: PathBuf,
    /// The order in which the descriptor lists its layers
    #[arg(long, value_enum, default_value_t)]
    layer_order: Order,
}

struct Row {
    digest: String,
    path: PathBuf,
    dialect: &'static str,
    /// Whether there are `.wh.` names in it: `none`, `wh` or `unknown`.
    markers: &'static str,
    problem: Option<String>,
}

pub fn run(args: &Args) -> Outcome<()> {
    let found = layers::find(&args.image, &args.cvmfs_root, args.layer_order)?;
    let scanned = if args.scan {
        scan::all(&found.layers)
    } else {
        Vec::new()
    };
    let known = Known::here();
    let mut paths = RealPaths::default();
    let rows: Vec<Row> = found
        .layers
        .into_iter()
        .map(|layer| {
            let problem = layer.problem(&mut paths);
            let dialect = if problem.is_none() {
                dialect_of(&layer.path)
            } else {
                "unknown"
            };
            let content = layer
                .digest()
                .and_then(|digest| known.of(digest, &layer.path));
            Row {
                markers: content.map_or("unknown", Content::word),
                digest: layer.identity,
                path: layer.path,
                dialect,
                problem,
            }
        })
        .collect();
    let text = if args.json {
        let layers: Vec<_> = rows.iter().map(Row::json).collect();
        let image = found.image.as_ref();
        let version = image.map(|image| &image.version);
        let origin = image.and_then(|image| image.origin.as_ref());
        format!(
            "{:#}\n",
            json!({ "version": version, "origin": origin, "layers": layers })
        )
    } else {
        table(&rows)
    };
    super::print(&text)?;
    if !scanned.is_empty() {
        return Err(Failure::new(Code::Layer, scanned.join("\n")));
    }
    match rows.iter().filter(|row| row.problem.is_some()).count() {
        0 => Ok(()),
        n => {
            let text = format!("{n} of {} layers cannot be used", rows.len());
            Err(Failure::new(Code::Failure, text))
        }
    }
}

impl Row {
    fn json(&self) -> serde_json::Value {
        json!({
            "digest": self.digest,
            "path": text::of_path(&self.path),
            "dialect": self.dialect,
            "markers": self.markers,
            "present": self.problem.is_none(),
            "reason": self.problem,
        })
    }
}

fn table(rows: &[Row]) -> String {
    let width = rows
        .iter()
        .map(|row| row.digest.len())
        .fold("DIGEST".len(), usize::max);
    let mut text = format!(
        "{:<width$}  {:<8}  {:<7}  PATH\n",
        "DIGEST", "DIALECT", "MARKERS"
    );
    for row in rows {
        text.push_str(&format!(
            "{:<width$}  {:<8}  {:<7}  ",
            row.digest, row.dialect, row.markers
        ));
        text.push_str(&printable(&row.path));
        if let Some(problem) = &row.problem {
            text.push_str(&format!("\n{:<width$}  {:<17}  {problem}", "", "missing:"));
        }
        text.push('\n');
    }
    text
}

/// The whiteout style that the root of a layer shows; deeper marks are not looked for.
fn dialect_of(path: &Path) -> &'static str {
    let Ok(entries) = fs::read_dir(path) else {
        return "unknown";
    };
    for entry in entries.flatten() {
        if entry.file_name().as_bytes().starts_with(b".wh.") {
            return "wh";
        }
        let is_char = entry.file_type().is_ok_and(|kind| kind.is_char_device());
        if is_char && entry.metadata().is_ok_and(|meta| meta.rdev() == 0) {
            return "overlay";
        }
    }
    "unknown"
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn the_dialect_of_a_root() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        assert_eq!(dialect_of(dir.path()), "unknown");
        fs::write(dir.path().join(".wh.gone"), b"")?;
        assert_eq!(dialect_of(dir.path()), "wh");
        Ok(())
    }
}
