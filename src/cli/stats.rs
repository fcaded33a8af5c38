//! `stats`: what a mount has counted, for people, as JSON, or for Prometheus.

use std::fmt::Display;
use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Map, Value};

use super::{Code, Failure, OrFail, Outcome};
use crate::error::printable;
use crate::fuse::stats::fetch;
use crate::sys::mounts::{self, Ours};
use crate::sys::{file, mount};

/// Shows the counts of a mount: requests, copy-ups, what its layers were asked.
#[derive(Debug, clap::Args)]
pub struct Args {
    mountpoint: PathBuf,
    /// Print JSON instead of a table
    #[arg(long, conflicts_with = "prometheus")]
    json: bool,
    /// Print the text format of Prometheus
    #[arg(long)]
    prometheus: bool,
    /// Go on, and print them every so many seconds
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    watch: Option<u64>,
}

pub fn run(args: &Args) -> Outcome<()> {
    loop {
        let stats = ask(&args.mountpoint)?;
        let text = if args.json {
            format!("{stats:#}\n")
        } else if args.prometheus {
            prometheus(&stats)
        } else {
            table(&stats)
        };
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .or_fail(Code::Failure, "standard output")?;
        match args.watch {
            Some(seconds) => thread::sleep(Duration::from_secs(seconds)),
            None => return Ok(()),
        }
    }
}

/// What the daemon of a mount tells.
pub fn ask(mountpoint: &Path) -> Outcome<Value> {
    let text = fetch_at(mountpoint).map_err(|e| {
        let why = match e.raw_os_error() {
            _ if by_kernel(mountpoint).is_some() => {
                "the kernel makes this union, and counts nothing for us".to_owned()
            }
            _ if is_no_mount(&e) => format!("not the mountpoint of a {}", mount::NAME),
            Some(libc::EPERM) => "only root and the user who mounted it may see this".to_owned(),
            _ if mount::is_disconnected(&e) => "the daemon of this mount is gone".to_owned(),
            _ => e.to_string(),
        };
        Failure::new(Code::Mountpoint, format!("{}: {why}", mountpoint.display()))
    })?;
    serde_json::from_str(&text).or_fail(Code::Failure, "the answer")
}

/// Whether a directory is the root of a mount of ours, as far as its daemon answers.
pub fn is_mount(dir: &Path) -> bool {
    !fetch_at(dir).is_err_and(|e| is_no_mount(&e))
}

/// The mount there, if the kernel makes its union for this program.
pub fn by_kernel(dir: &Path) -> Option<Ours> {
    let found = fs::canonicalize(dir).and_then(|dir| mounts::ours_at(&dir));
    found.ok().flatten().filter(Ours::is_by_kernel)
}

fn fetch_at(mountpoint: &Path) -> io::Result<String> {
    let root = file::open_path(mountpoint, libc::O_RDONLY | libc::O_DIRECTORY)?;
    fetch(root.as_fd())
}

fn is_no_mount(e: &io::Error) -> bool {
    let errno = e.raw_os_error();
    matches!(errno, Some(libc::ENOTTY | libc::EINVAL | libc::EOPNOTSUPP))
}

fn members<'a>(of: &'a Value, key: &str) -> impl Iterator<Item = (&'a str, &'a Value)> {
    let members = of.get(key).and_then(Value::as_object);
    members
        .into_iter()
        .flat_map(Map::iter)
        .map(|(key, value)| (key.as_str(), value))
}

fn number(of: &Value, key: &str) -> u64 {
    of.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn layers(stats: &Value) -> impl Iterator<Item = (&str, &Value)> {
    let layers = stats.get("lowers").and_then(Value::as_array);
    layers.into_iter().flatten().map(|layer| {
        (
            layer.get("layer").and_then(Value::as_str).unwrap_or(""),
            layer,
        )
    })
}

/// A line for each repository of which another revision was published since the mount.
pub fn moved_on(of: &Value) -> impl Iterator<Item = String> {
    repositories(of).filter_map(|(name, at_mount, now)| {
        let name = printable(name);
        let line = || {
            format!(
                "repository: {name}, revision {} now, {} at mount",
                printable(now),
                printable(at_mount)
            )
        };
        (now != at_mount).then(line)
    })
}

/// Each repository of the layers: its name, its revision at mount, and that of now.
fn repositories(of: &Value) -> impl Iterator<Item = (&str, &str, &str)> {
    let all = of.get("repositories").and_then(Value::as_array);
    all.into_iter().flatten().filter_map(|of| {
        let text = |key| of.get(key).and_then(Value::as_str);
        Some((
            text("repository")?,
            text("revision_at_mount")?,
            text("revision")?,
        ))
    })
}

/// One line for each kind that was counted.
fn rows(text: &mut String, title: &str, of: &Value) {
    let mut counted: Vec<_> = members(of, "requests")
        .filter(|(_, seen)| number(seen, "count") > 0)
        .collect();
    counted.sort_by_key(|(_, seen)| std::cmp::Reverse(number(seen, "count")));
    let heads = ["COUNT", "RUNNING", "TOTAL us", "MAX us"];
    text.push_str(&format!("{title}\n"));
    let mut row = |name: &str, cells: [String; 4]| {
        let cells = cells.map(|cell| format!("{cell:>14}")).concat();
        text.push_str(&format!("  {name:<18}{cells}\n"));
    };
    row("", heads.map(str::to_owned));
    for (kind, seen) in counted {
        let cells = ["count", "running", "total_us", "max_us"];
        row(kind, cells.map(|key| number(seen, key).to_string()));
    }
}

fn table(stats: &Value) -> String {
    let mut text = String::new();
    let (pid, seconds) = (number(stats, "pid"), number(stats, "seconds"));
    text.push_str(&format!("daemon {pid}, up for {seconds} s\n"));
    for line in moved_on(stats) {
        text.push_str(&format!("{line}\n"));
    }
    rows(&mut text, "requests", stats);
    for (path, layer) in layers(stats) {
        if members(layer, "requests").any(|(_, seen)| number(seen, "count") > 0) {
            rows(&mut text, &format!("asked of {}", printable(path)), layer);
        }
    }
    for group in ["copy_ups", "prefetch", "kept"] {
        text.push_str(&format!("{}\n", group.replace('_', "-")));
        for (name, value) in members(stats, group) {
            text.push_str(&format!("  {:<18}{value:>14}\n", name.replace('_', " ")));
        }
    }
    text
}

/// The requests of a kind: the labels that say whose, and what was counted.
type Sample<'a> = (String, &'a Value);

fn prometheus(stats: &Value) -> String {
    let requests: Vec<Sample<'_>> = members(stats, "requests")
        .map(|(kind, seen)| (labels(&[("kind", kind)]), seen))
        .collect();
    let lowers: Vec<Sample<'_>> = layers(stats)
        .flat_map(|(path, layer)| {
            let of = move |kind| labels(&[("layer", path), ("kind", kind)]);
            members(layer, "requests").map(move |(kind, seen)| (of(kind), seen))
        })
        .collect();
    let mut text = String::new();
    for (name, what, samples) in [
        ("requests", "Requests of the kernel", &requests),
        ("lower_requests", "Requests to layers", &lowers),
    ] {
        let seconds = |seen: &Value, key| number(seen, key) as f64 / 1e6;
        metric(
            &mut text,
            &format!("{name}_total"),
            "counter",
            what,
            |each| {
                for (labels, seen) in samples {
                    each(labels, &number(seen, "count"));
                }
            },
        );
        let help = format!("{what}: the time they took");
        let name_of_time = format!("{name}_seconds_total");
        metric(&mut text, &name_of_time, "counter", &help, |each| {
            for (labels, seen) in samples {
                each(labels, &seconds(seen, "total_us"));
            }
        });
        let help = format!("{what}: the longest time of one");
        let name_of_time = format!("{name}_seconds_max");
        metric(&mut text, &name_of_time, "gauge", &help, |each| {
            for (labels, seen) in samples {
                each(labels, &seconds(seen, "max_us"));
            }
        });
        let help = format!("{what} under way");
        metric(
            &mut text,
            &format!("{name}_running"),
            "gauge",
            &help,
            |each| {
                for (labels, seen) in samples {
                    each(labels, &number(seen, "running"));
                }
            },
        );
    }
    let help = "Revisions of the layers' repositories";
    metric(&mut text, "repository_revision", "gauge", help, |each| {
        for (name, at_mount, now) in repositories(stats) {
            for (at, revision) in [("mount", at_mount), ("now", now)] {
                if let Ok(revision) = revision.parse::<u64>() {
                    each(&labels(&[("repository", name), ("at", at)]), &revision);
                }
            }
        }
    });
    for (group, kind, suffix) in [
        ("copy_ups", "counter", "_total"),
        ("prefetch", "gauge", ""),
        ("kept", "gauge", ""),
    ] {
        for (name, value) in members(stats, group).filter(|(_, value)| value.is_u64()) {
            let help = format!("{}: {}", group.replace('_', "-"), name.replace('_', " "));
            let name = format!("{group}_{name}{suffix}");
            metric(&mut text, &name, kind, &help, |each| each("", value));
        }
    }
    text
}

/// Labels, with what Prometheus asks to be escaped in their values.
fn labels(of: &[(&str, &str)]) -> String {
    let escaped = |value: &str| {
        value
            .replace('\\', r"\\")
            .replace('"', "\\\"")
            .replace('\n', r"\n")
    };
    let of: Vec<_> = of
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .collect();
    format!("{{{}}}", of.join(","))
}

/// One metric, and its samples as `fill` passes them on.
fn metric(
    text: &mut String,
    name: &str,
    kind: &str,
    help: &str,
    fill: impl FnOnce(&mut dyn FnMut(&str, &dyn Display)),
) {
    let name = format!("cvmfs_union_{name}");
    text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
    fill(&mut |labels, value| text.push_str(&format!("{name}{labels} {value}\n")));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stats() -> Value {
        let seen = json!({ "count": 3, "running": 1, "total_us": 1_500_000, "max_us": 2 });
        json!({
            "requests": { "lookup": seen },
            "lowers": [{ "layer": "/a\"b", "requests": { "stat": seen } }],
            "copy_ups": { "bytes": 7 },
            "kept": { "nodes": 5, "memory_bytes": null },
            "repositories": [
                { "repository": "a.org", "revision_at_mount": "7", "revision": "9" },
                { "repository": "b.org", "revision_at_mount": "7", "revision": "7" },
            ],
        })
    }

    #[test]
    fn prometheus_gets_names_labels_and_values() {
        let text = prometheus(&stats());
        for line in [
            "# TYPE cvmfs_union_requests_total counter",
            "cvmfs_union_requests_total{kind=\"lookup\"} 3",
            "cvmfs_union_requests_seconds_total{kind=\"lookup\"} 1.5",
            "cvmfs_union_lower_requests_total{layer=\"/a\\\"b\",kind=\"stat\"} 3",
            "cvmfs_union_lower_requests_running{layer=\"/a\\\"b\",kind=\"stat\"} 1",
            "cvmfs_union_copy_ups_bytes_total 7",
            "cvmfs_union_kept_nodes 5",
            "cvmfs_union_repository_revision{repository=\"a.org\",at=\"mount\"} 7",
            "cvmfs_union_repository_revision{repository=\"a.org\",at=\"now\"} 9",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} not in\n{text}");
        }
        assert!(!text.contains("null"), "{text}");
    }

    #[test]
    fn the_table_shows_what_was_counted() {
        let text = table(&stats());
        for word in ["lookup", "stat", "nodes", "bytes"] {
            assert!(text.contains(word), "{word} not in\n{text}");
        }
        let line = "repository: a.org, revision 9 now, 7 at mount\n";
        assert!(text.contains(line) && !text.contains("b.org"), "{text}");
    }
}
