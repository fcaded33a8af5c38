//! `inspect`: the layers of an image in order, where they are and whether they are there.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::layers::{self, Order};
use super::{Code, Failure, OrFail, Outcome};
use crate::error::printable;
use crate::sys::realpath::RealPaths;

/// Shows the layers of a thin image, topmost first; fails if one is missing.
#[derive(Debug, clap::Args)]
pub struct Args {
    thin_json: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
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
    problem: Option<String>,
}

pub fn run(args: &Args) -> Outcome<()> {
    let image = layers::read_image(&args.thin_json)?;
    let mut paths = RealPaths::default();
    let rows: Vec<Row> = layers::of_image(&image, &args.cvmfs_root, args.layer_order)?
        .into_iter()
        .map(|layer| {
            let problem = layer.problem(&mut paths);
            let dialect = if problem.is_none() {
                dialect_of(&layer.path)
            } else {
                "unknown"
            };
            Row {
                digest: layer.identity,
                path: layer.path,
                dialect,
                problem,
            }
        })
        .collect();
    let text = if args.json {
        let layers: Vec<_> = rows.iter().map(Row::json).collect();
        let (version, origin) = (&image.version, &image.origin);
        format!(
            "{:#}\n",
            json!({ "version": version, "origin": origin, "layers": layers })
        )
    } else {
        table(&rows)
    };
    io::stdout()
        .write_all(text.as_bytes())
        .or_fail(Code::Failure, "standard output")?;
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
            "path": self.path.display().to_string(),
            "dialect": self.dialect,
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
    let mut text = format!("{:<width$}  {:<8}  PATH\n", "DIGEST", "DIALECT");
    for row in rows {
        text.push_str(&format!("{:<width$}  {:<8}  ", row.digest, row.dialect));
        text.push_str(&printable(&row.path));
        if let Some(problem) = &row.problem {
            text.push_str(&format!("\n{:<width$}  {:<8}  {problem}", "", "missing:"));
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
