//! `status`: the mounts of this host, those in other mount namespaces too, as far as the caller may look.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Code, OrFail, Outcome, noted, stats, upper};
use crate::error::printable;
use crate::sys::mount;
use crate::sys::mounts::{self, Ours};
use crate::text;

/// Shows the mounts of this host that the caller may see: what each of them is, and since when.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

/// A mount, and how it is reached.
struct Found {
    mount: Ours,
    /// The process in whose namespace it is, if that is not ours.
    seen_by: Option<u32>,
}

pub fn run(args: &Args) -> Outcome<()> {
    let found = find().or_fail(Code::Failure, mounts::TABLE)?;
    let rows: Vec<Value> = found.iter().map(row).collect();
    let text = match args.json {
        true => format!("{:#}\n", Value::from(rows)),
        false => table(&rows),
    };
    super::print(&text)
}

/// All mounts, each once, by its device: those of this namespace first.
fn find() -> io::Result<Vec<Found>> {
    let mut devices = HashSet::new();
    let tables = mounts::tables()?;
    let all = tables.flat_map(|(seen_by, table)| {
        let ours = mounts::ours_in(&table).into_iter();
        ours.map(move |mount| Found { mount, seen_by })
    });
    let found = all.filter(|found| devices.insert(found.mount.device.clone()));
    Ok(found.collect())
}

impl Found {
    /// The way to its root from here.
    fn path(&self) -> PathBuf {
        let mountpoint = &self.mount.mountpoint;
        match self.seen_by {
            None => mountpoint.clone(),
            Some(pid) => {
                let below = mountpoint.strip_prefix("/").unwrap_or(mountpoint);
                Path::new("/proc")
                    .join(pid.to_string())
                    .join("root")
                    .join(below)
            }
        }
    }
}

fn row(found: &Found) -> Value {
    if found.mount.is_by_kernel() {
        return row_of_kernel(found);
    }
    let path = found.path();
    let told = stats::ask(&path);
    let (told, reason) = match told {
        Ok(told) => (told, None),
        Err(failure) => (Value::Null, Some(failure.message)),
    };
    let state = match (&reason, mount::is_dead(&path)) {
        (None, _) => "serving",
        (Some(_), true) => "dead",
        (Some(_), false) => "unknown",
    };
    let about = |key: &str| told.get("mount").and_then(|mount| mount.get(key)).cloned();
    let layers = about("layers").and_then(|layers| layers.as_array().map(Vec::len));
    json!({
        "mountpoint": text::of_path(&found.mount.mountpoint),
        "seen_by": found.seen_by,
        "device": found.mount.device,
        "state": state,
        "reason": reason,
        "pid": told.get("pid"),
        "uptime_seconds": told.get("seconds"),
        "backend": about("backend"),
        "image": about("image"),
        "layers": layers,
        "upper": about("upper"),
        "repositories": told.get("repositories"),
    })
}

/// A mount that has no daemon. What was noted of it, or in its work directory, is all that is known of it.
fn row_of_kernel(found: &Found) -> Value {
    let mount = &found.mount;
    let here = text::of_path(&mount.mountpoint);
    let note = noted::of(mount);
    let seconds = note.as_ref().and_then(noted::seconds_of);
    let note = note.or_else(|| {
        let work = mount.work.as_ref().filter(|_| found.seen_by.is_none());
        let record = work.and_then(|work| upper::recorded(work))?;
        // Another one may have had it since.
        (record.get("mountpoint")? == &here).then_some(record)
    });
    let about = |key: &str| note.as_ref().and_then(|note| note.get(key)).cloned();
    let layers = about("layers").and_then(|layers| layers.as_array().map(Vec::len));
    let upper = mount.upper.as_ref().map(text::of_path);
    json!({
        "mountpoint": here,
        "seen_by": found.seen_by,
        "device": mount.device,
        "state": "kernel",
        "reason": null,
        "pid": null,
        "uptime_seconds": seconds,
        "backend": mount.fstype,
        "image": about("image"),
        "layers": layers,
        "upper": about("upper").filter(Value::is_string).or(upper.map(Value::from)),
    })
}

fn table(rows: &[Value]) -> String {
    let text = |row: &Value, key: &str| match row.get(key) {
        Some(Value::String(text)) => printable(text),
        Some(Value::Number(number)) => number.to_string(),
        _ => "-".to_owned(),
    };
    let heads = ["PID", "UP", "BACKEND", "LAYERS", "MOUNTPOINT"].map(str::to_owned);
    let mut lines = vec![(heads, Vec::new())];
    for row in rows {
        let seconds = row.get("uptime_seconds").and_then(Value::as_u64);
        let mountpoint = match row.get("seen_by").and_then(Value::as_u64) {
            Some(pid) => format!("{} (of process {pid})", text(row, "mountpoint")),
            None => text(row, "mountpoint"),
        };
        let cells = [
            text(row, "pid"),
            seconds.map_or_else(|| "-".to_owned(), uptime),
            text(row, "backend"),
            text(row, "layers"),
            mountpoint,
        ];
        let more = ["image", "upper", "reason"].into_iter().filter_map(|key| {
            let value = text(row, key);
            (value != "-").then(|| format!("{key}: {value}"))
        });
        lines.push((cells, more.chain(stats::moved_on(row)).collect()));
    }
    let width = |at: usize| {
        lines
            .iter()
            .filter_map(|(cells, _)| cells.get(at))
            .map(String::len)
            .max()
    };
    let widths: Vec<usize> = (0..4).filter_map(width).collect();
    let mut out = String::new();
    for (cells, more) in &lines {
        for (at, cell) in cells.iter().enumerate() {
            let wide = widths.get(at).copied().unwrap_or(0);
            let end = if at + 1 == cells.len() { "\n" } else { "  " };
            out.push_str(&format!("{cell:<wide$}{end}"));
        }
        for line in more {
            out.push_str(&format!("    {line}\n"));
        }
    }
    out
}

/// `5s`, `3m`, `2h05m`, `4d03h`.
fn uptime(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m"),
        (0, _, _) => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_short() {
        let said = [5, 200, 7500, 356_400].map(uptime);
        assert_eq!(said, ["5s", "3m", "2h05m", "4d03h"]);
    }
}
