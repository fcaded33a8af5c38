//! What comes out of a run: raw figures as JSON, a table as Markdown.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::place::{SYSTEMS, all_systems};
use crate::support::System;
use crate::support::stats::Tally;
use crate::worker::Used;

/// A row of the table of speed.
pub struct Measured {
    pub name: String,
    pub most: Option<f64>,
    pub runs: Vec<Run>,
    pub counts: Vec<Counts>,
}

/// One system in one repetition.
pub struct Run {
    pub system: System,
    pub repetition: usize,
    pub used: Used,
    pub daemon_cpu: f64,
}

/// What one run of the work asked of a daemon.
#[derive(Debug)]
pub struct Counts {
    pub system: System,
    pub requests: u64,
    pub by_kind: Vec<(&'static str, u64)>,
    pub calls: u64,
    /// What our daemon counted itself, by kind; what comes when the kernel likes is not among it.
    pub own: Option<Tally>,
}

impl Counts {
    /// The kernel's count and ours are the same.
    pub fn agree(&self) -> bool {
        let Some(own) = &self.own else { return true };
        let sent = self
            .by_kind
            .iter()
            .filter(|(kind, _)| !UNTIMELY.contains(kind));
        let sent: Tally = sent.map(|(kind, n)| ((*kind).to_owned(), *n)).collect();
        sent == *own
    }
}

/// The kernel sends these when it likes.
const UNTIMELY: [&str; 2] = ["release", "releasedir"];

/// A row of figures that are no ratios: counts, bytes, seconds.
pub struct Figures {
    pub table: &'static str,
    pub name: String,
    pub unit: &'static str,
    pub most: Option<f64>,
    pub values: Vec<(System, f64)>,
    pub details: Value,
}

#[derive(Default)]
pub struct Report {
    pub speed: Vec<Measured>,
    pub figures: Vec<Figures>,
}

/// Median, least and most.
#[derive(Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Spread {
            median,
            least,
            most,
        })
    }

    fn json(self) -> Value {
        json!([self.median, self.least, self.most])
    }
}

impl Run {
    fn wall(&self) -> f64 {
        self.used.wall
    }

    fn cpu(&self) -> f64 {
        self.used.cpu + self.daemon_cpu
    }
}

impl Measured {
    /// Of a system's runs, each to the run of kernel overlayfs in the same repetition.
    pub fn ratio(&self, system: System, of: impl Fn(&Run) -> f64) -> Option<Spread> {
        let run = |system, repetition| {
            let mut runs = self.runs.iter();
            runs.find(|run| run.system == system && run.repetition == repetition)
        };
        let ratios = self.runs.iter().filter(|run| run.system == system);
        let ratio = |mine: &Run| {
            let base = run(System::OverlayfsDefault, mine.repetition)?;
            Some(of(mine) / of(base).max(1e-6))
        };
        Spread::of(ratios.filter_map(ratio).collect())
    }

    pub fn wall(&self, system: System) -> Option<Spread> {
        self.ratio(system, Run::wall)
    }

    pub fn cpu(&self, system: System) -> Option<Spread> {
        self.ratio(system, Run::cpu)
    }

    /// Milliseconds of kernel overlayfs.
    fn base(&self) -> Option<f64> {
        let runs = self
            .runs
            .iter()
            .filter(|run| run.system == System::OverlayfsDefault);
        Spread::of(runs.map(Run::wall).collect()).map(|s| s.median * 1e3)
    }

    /// Microseconds of the daemon's processor time for each request.
    fn daemon_us(&self, system: System) -> Option<f64> {
        let requests = self.counts(system)?.requests;
        let runs = self.runs.iter().filter(|run| run.system == system);
        let spread = Spread::of(runs.map(|run| run.daemon_cpu).collect())?;
        (requests > 0).then(|| spread.median * 1e6 / requests as f64)
    }

    fn counts(&self, system: System) -> Option<&Counts> {
        self.counts.iter().find(|counts| counts.system == system)
    }

    fn json(&self) -> Value {
        let runs: Vec<_> = self.runs.iter().map(|run| json!({
            "system": run.system.name(), "repetition": run.repetition, "wall": run.used.wall,
            "cpu": run.used.cpu, "daemon_cpu": run.daemon_cpu,
        })).collect();
        let counts: Vec<_> = self.counts.iter().map(|counts| json!({
            "system": counts.system.name(), "requests": counts.requests, "calls": counts.calls,
            "by_kind": counts.by_kind.iter().map(|(kind, n)| json!([kind, n])).collect::<Vec<_>>(),
        })).collect();
        let ratios = |of: fn(&Self, System) -> Option<Spread>| -> Value {
            let known = all_systems().filter_map(|s| Some((s.name(), of(self, s)?.json())));
            known
                .map(|(name, value)| (name.to_owned(), value))
                .collect::<serde_json::Map<_, _>>()
                .into()
        };
        json!({
            "row": self.name, "ours_at_most": self.most, "wall": ratios(Self::wall),
            "cpu": ratios(Self::cpu), "runs": runs, "counts": counts,
        })
    }
}

impl Figures {
    pub fn new(table: &'static str, name: &str, unit: &'static str) -> Figures {
        Figures {
            table,
            name: name.to_owned(),
            unit,
            most: None,
            values: Vec::new(),
            details: json!({}),
        }
    }

    pub fn value(&self, system: System) -> Option<f64> {
        let found = self.values.iter().find(|(of, _)| *of == system);
        found.map(|(_, value)| *value)
    }

    fn json(&self) -> Value {
        let values: serde_json::Map<_, _> = self
            .values
            .iter()
            .map(|(s, v)| (s.name().to_owned(), json!(v)))
            .collect();
        json!({
            "table": self.table, "row": self.name, "unit": self.unit,
            "ours_at_most": self.most, "values": values, "details": self.details,
        })
    }
}

/// Three digits that matter.
pub fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{:.1}M", v / 1e6),
        v if v >= 100.0 || v == v.trunc() => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 0.095 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

fn reached(value: Option<f64>, most: Option<f64>) -> &'static str {
    match (value, most) {
        (Some(value), Some(most)) if value <= most => "yes",
        (Some(_), Some(_)) => "**no**",
        _ => "",
    }
}

fn optional(value: Option<f64>) -> String {
    value.map(short).unwrap_or_default()
}

/// In the order of their columns.
const DAEMONS: [System; 4] = [
    System::FuseOverlayfs2,
    System::FuseOverlayfs1,
    System::Ours,
    System::Floor,
];

const SHORT_NAMES: &str = "plain | overlay | fo2 | fo1 | ours";

/// Where and of what a report is, as a list.
pub fn facts(host: &Value) -> String {
    let mut text = String::new();
    for (key, value) in host.as_object().unwrap() {
        let value = value
            .as_str()
            .map_or_else(|| value.to_string(), str::to_owned);
        writeln!(text, "* {key}: {value}").unwrap();
    }
    text
}

impl Report {
    pub fn write(&self, dir: &Path, host: &Value) {
        fs::create_dir_all(dir).unwrap();
        let raw = json!({
            "host": host,
            "speed": self.speed.iter().map(Measured::json).collect::<Vec<_>>(),
            "figures": self.figures.iter().map(Figures::json).collect::<Vec<_>>(),
        });
        let raw = serde_json::to_string_pretty(&raw).unwrap();
        fs::write(dir.join("results.json"), raw).unwrap();
        fs::write(dir.join("table.md"), self.markdown(host)).unwrap();
    }

    pub fn markdown(&self, host: &Value) -> String {
        let mut text = String::from("# Side by side\n\n") + &facts(host);
        text += "\nplain: the merged tree as one directory. overlay: kernel overlayfs. fo2, fo1: fuse-overlayfs 2.0 and 1.\n";
        text += "floor: a FUSE daemon that answers from memory alone; none goes below it but by fewer requests.\n";
        if !self.speed.is_empty() {
            self.speed(&mut text);
            self.asked(&mut text);
        }
        let mut tables: Vec<_> = self.figures.iter().map(|figures| figures.table).collect();
        tables.dedup();
        for table in tables {
            self.table(table, &mut text);
        }
        text
    }

    fn speed(&self, text: &mut String) {
        *text += "\n## Time, as a multiple of kernel overlayfs\n\nMedian (least to most) of the runs' ratios of elapsed time; cpu: ";
        *text += "of processor time, of the program and the daemon together.\n\n";
        *text += "| row | overlay, ms | plain | fo2 | fo1 | ours | at most | reached | floor | fo2 cpu | fo1 cpu | ours cpu | floor cpu |\n";
        *text += "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";
        for row in &self.speed {
            let cell = |system| {
                row.wall(system).map_or_else(String::new, |s| {
                    format!(
                        "{} ({} to {})",
                        short(s.median),
                        short(s.least),
                        short(s.most)
                    )
                })
            };
            let ours = row.wall(System::Ours).map(|s| s.median);
            write!(text, "| {} | {} |", row.name, optional(row.base())).unwrap();
            for system in [
                System::Plain,
                System::FuseOverlayfs2,
                System::FuseOverlayfs1,
                System::Ours,
            ] {
                write!(text, " {} |", cell(system)).unwrap();
            }
            write!(
                text,
                " {} | {} | {} |",
                optional(row.most),
                reached(ours, row.most),
                cell(System::Floor)
            )
            .unwrap();
            for system in DAEMONS {
                write!(text, " {} |", optional(row.cpu(system).map(|s| s.median))).unwrap();
            }
            text.push('\n');
        }
    }

    fn asked(&self, text: &mut String) {
        if self.speed.iter().all(|row| row.counts.is_empty()) {
            return;
        }
        *text += "\n## Requests to the daemon, its system calls, and its processor time for each request\n\n";
        *text += "| row | fo2 requests | fo1 | ours | floor | fo2 calls | fo1 | ours | floor | fo2 us | fo1 | ours | floor | ours by kind |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n";
        for row in &self.speed {
            write!(text, "| {} |", row.name).unwrap();
            for of in [|c: &Counts| c.requests, |c: &Counts| c.calls] {
                for system in DAEMONS {
                    let value = row.counts(system).map(|c| of(c).to_string());
                    write!(text, " {} |", value.unwrap_or_default()).unwrap();
                }
            }
            for system in DAEMONS {
                write!(text, " {} |", optional(row.daemon_us(system))).unwrap();
            }
            let kinds = row.counts(System::Ours).map(|c| c.by_kind.as_slice());
            let kinds: Vec<_> = kinds
                .unwrap_or_default()
                .iter()
                .take(4)
                .map(|(kind, n)| format!("{kind} {n}"))
                .collect();
            writeln!(text, " {} |", kinds.join(", ")).unwrap();
        }
    }

    fn table(&self, table: &str, text: &mut String) {
        writeln!(
            text,
            "\n## {table}\n\n| row | unit | {SHORT_NAMES} | at most | reached |"
        )
        .unwrap();
        *text += "|---|---|---|---|---|---|---|---|---|\n";
        for row in self.figures.iter().filter(|figures| figures.table == table) {
            write!(text, "| {} | {} |", row.name, row.unit).unwrap();
            for system in SYSTEMS {
                write!(text, " {} |", optional(row.value(system))).unwrap();
            }
            let ours = row.value(System::Ours);
            writeln!(
                text,
                " {} | {} |",
                optional(row.most),
                reached(ours, row.most)
            )
            .unwrap();
        }
    }
}
