//! `explain`: which layer a path comes from, and what hides what.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Code, OrFail, Outcome, merged, umount};
use crate::error::printable;
use crate::text;
use crate::union::view::{Explained, Source, Story, label};

/// Tells which layer a path comes from, what each of them has there, and why it shows or does not.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A mountpoint, or an upper directory that is not mounted
    #[arg(value_name = "MOUNTPOINT|UPPER")]
    of: PathBuf,
    /// The path in the merged tree, or one that begins with the mountpoint
    path: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    merged: merged::LayersOf,
}

pub fn run(args: &Args) -> Outcome<()> {
    let merged = merged::open(&args.of, &args.merged)?;
    let path = if merged.mounted {
        within(&args.of, &args.path)
    } else {
        args.path.clone()
    };
    let explained = merged.view.explain(path.as_os_str().as_bytes());
    let explained = explained.or_fail(Code::Failure, printable(&path))?;
    let text = match args.json {
        true => format!("{:#}\n", json(&explained)),
        false => table(&explained),
    };
    super::print(&text)
}

/// The path in the merged tree of one that may name the mountpoint, too.
fn within(mountpoint: &Path, path: &Path) -> PathBuf {
    let places = [Some(mountpoint.to_owned()), umount::locate(mountpoint).ok()];
    let mut places = places.into_iter().flatten();
    let below = places.find_map(|place| path.strip_prefix(place).map(Path::to_owned).ok());
    below.unwrap_or_else(|| path.to_owned())
}

fn json(of: &Explained) -> Value {
    let stories = of.stories.iter().map(|story| {
        json!({
            "source": source(story.source),
            "layer": number(story.source),
            "identity": story.identity,
            "has": story.says,
            "outcome": story.outcome,
        })
    });
    json!({
        "path": text::of_path(OsStr::from_bytes(&of.path)),
        "kind": of.shown.map(|(kind, _)| kind),
        "source": of.shown.map(|(_, from)| source(from)),
        "layer": of.shown.and_then(|(_, from)| number(from)),
        "notes": of.notes,
        "sources": stories.collect::<Vec<_>>(),
    })
}

fn source(of: Source) -> &'static str {
    match of {
        Source::Upper => "upper",
        Source::Layer(_) => "layer",
    }
}

/// The number of a layer, from the top.
fn number(of: Source) -> Option<usize> {
    match of {
        Source::Upper => None,
        Source::Layer(at) => Some(at + 1),
    }
}

fn table(of: &Explained) -> String {
    let path = printable(String::from_utf8_lossy(&of.path).as_ref());
    let mut text = match of.shown {
        Some((kind, from)) => format!("{path}: {kind}, from {}\n", label(from)),
        None => format!("{path}: nothing is shown\n"),
    };
    for note in &of.notes {
        text.push_str(&format!("  {}\n", printable(note)));
    }
    let head = |story: &Story| match &story.identity {
        Some(identity) => format!("{} ({})", label(story.source), short(identity)),
        None => label(story.source),
    };
    let width = of.stories.iter().map(|story| head(story).len()).max();
    for story in &of.stories {
        let head = head(story);
        text.push_str(&format!(
            "  {head:<0$}  {1}",
            width.unwrap_or(0),
            printable(&story.says)
        ));
        if let Some(outcome) = &story.outcome {
            text.push_str(&format!(": {}", printable(outcome)));
        }
        text.push('\n');
    }
    text
}

/// As much of a digest as tells it from others, or a whole path.
fn short(identity: &str) -> String {
    match identity.get(..12) {
        Some(digest) if !identity.contains('/') => digest.to_owned(),
        _ => printable(identity),
    }
}
