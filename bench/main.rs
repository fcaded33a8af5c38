//! The benchmark: all systems side by side, interleaved, in one run. `scripts/bench` runs it, PERFORMANCE explains it.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::panic_in_result_fn,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::unreachable,
    clippy::let_underscore_must_use
)]

mod cold;
mod counters;
mod floor;
mod lists;
mod lowers;
mod place;
mod plot;
mod report;
mod rows;
mod smoke;
mod speed;
mod stacks;
#[path = "../integration/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod support;
mod worker;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use serde_json::{Value, json};

use crate::lists::{Lists, Sizes};
use crate::place::{Layers, all_systems};
use crate::report::{Figures, Report};
use crate::support::{System, require_all, run, text};

/// Measures cvmfs-union beside a plain directory, kernel overlayfs and fuse-overlayfs.
#[derive(Parser)]
struct Args {
    /// Three repetitions, and at most 100 layers: minutes. Otherwise it is an hour.
    #[arg(long)]
    quick: bool,
    /// A few rows of a tiny image: seconds. Checks that everything comes out.
    #[arg(long)]
    smoke: bool,
    /// Only the rows with one of these texts in the name.
    #[arg(long, value_name = "TEXT")]
    only: Vec<String>,
    /// Only these parts.
    #[arg(long, value_enum)]
    part: Vec<Part>,
    /// Only these systems, and kernel overlayfs, to which all are compared.
    #[arg(long, value_enum)]
    system: Vec<Which>,
    /// Repetitions of each row.
    #[arg(long, value_name = "N")]
    repetitions: Option<usize>,
    /// How long the counting lower takes for each answer.
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0)]
    latency: u64,
    /// The image that scripts/bench-image has built.
    #[arg(long, value_name = "DIR", default_value = "target/bench/image")]
    image: PathBuf,
    /// Where table.md, results.json and plot.svg go.
    #[arg(long, value_name = "DIR", default_value = "target/bench/results/last")]
    out: PathBuf,
    /// Given by cargo.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// The rows of the table of speed.
    Speed,
    /// Requests to the daemon and system calls of the same rows.
    Counts,
    /// Requests that reach a lower.
    Lowers,
    /// What grows with the number of layers.
    Layers,
    /// Memory of the daemon.
    Memory,
    /// Cold starts; only if it is asked for, since it takes minutes of its own.
    Cold,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Which {
    Plain,
    Overlay,
    Fo2,
    Fo1,
    Ours,
    Floor,
}

impl Which {
    fn system(self) -> System {
        match self {
            Which::Plain => System::Plain,
            Which::Overlay => System::OverlayfsDefault,
            Which::Fo2 => System::FuseOverlayfs2,
            Which::Fo1 => System::FuseOverlayfs1,
            Which::Ours => System::Ours,
            Which::Floor => System::Floor,
        }
    }
}

/// What is measured, and how thoroughly.
struct Plan {
    layers: Layers,
    lists: Lists,
    programs: bool,
    repetitions: usize,
    counts_of_layers: Vec<usize>,
    split: PathBuf,
    latency: Duration,
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if words.get(1).is_some_and(|word| word == "worker") {
        return worker::main(&words[2..]);
    }
    if words.get(1).is_some_and(|word| word == "floor") {
        return floor::main(&words[2..]);
    }
    let mut args = Args::parse();
    assert!(
        require_all(&["root", "fuse", "overlayfs"]),
        "nothing was measured"
    );
    if args.smoke {
        smoke::run(&mut args);
    } else {
        let plan = of_image(&args);
        measure(&args, &plan);
    }
}

fn of_image(args: &Args) -> Plan {
    let image = args
        .image
        .canonicalize()
        .unwrap_or_else(|e| panic!("{}: {e}: run scripts/bench-image", args.image.display()));
    let layers = place::image(&image);
    let mut counts_of_layers = vec![1, 10, 50, 100];
    if !args.quick {
        counts_of_layers.push(400);
    }
    Plan {
        lists: Lists::of(&layers.flat, Sizes::ANCHORS),
        layers,
        programs: true,
        repetitions: args.repetitions.unwrap_or(if args.quick { 3 } else { 5 }),
        counts_of_layers,
        split: image.join("split"),
        latency: Duration::from_millis(args.latency),
    }
}

fn measure(args: &Args, plan: &Plan) -> Report {
    let systems: Vec<_> = all_systems()
        .filter(|system| require_all(system.needs()))
        .collect();
    let chosen = |system: &System| {
        args.system.is_empty()
            || *system == System::OverlayfsDefault
            || args.system.iter().any(|which| which.system() == *system)
    };
    let asked: Vec<_> = systems.into_iter().filter(chosen).collect();
    let mut systems = asked.clone();
    systems.retain(|system| *system != System::Floor);
    let wanted = |part| args.part.is_empty() || args.part.contains(&part);
    let named =
        |name: &str| args.only.is_empty() || args.only.iter().any(|text| name.contains(text));
    let host = host();
    let mut report = Report::default();
    let save = |report: &Report| {
        report.write(&args.out, &host);
        if !report.speed.is_empty() {
            plot::draw(&report.speed, &args.out.join("plot.svg")).unwrap();
        }
    };
    if args.part.contains(&Part::Cold) {
        let (table, raw) = cold::measure(&plan.layers, &systems, plan.repetitions, named);
        let text = format!("# Cold starts\n\n{}\n{table}", report::facts(&host));
        std::fs::create_dir_all(&args.out).unwrap();
        std::fs::write(args.out.join("cold.md"), &text).unwrap();
        let raw = json!({"host": host, "rows": raw});
        std::fs::write(args.out.join("cold.json"), format!("{raw:#}\n")).unwrap();
        println!("{text}");
    }
    if args.part == [Part::Cold] {
        return report;
    }
    let keep = |figures: Vec<Figures>| figures.into_iter().filter(|row| named(&row.name));
    if wanted(Part::Lowers) {
        let rows = lowers::measure(
            &plan.layers,
            &plan.lists,
            &systems,
            plan.programs,
            plan.latency,
        );
        report.figures.extend(keep(rows));
        save(&report);
    }
    if wanted(Part::Memory) {
        report
            .figures
            .extend(keep(stacks::memory(&plan.layers, &systems)));
        save(&report);
    }
    if wanted(Part::Layers) {
        let (flat, counts) = (&plan.layers.flat, &plan.counts_of_layers);
        let rows = stacks::layers(
            flat,
            &plan.split,
            &plan.lists,
            &systems,
            counts,
            plan.repetitions,
        );
        report.figures.extend(keep(rows));
        save(&report);
    }
    let scenarios = match wanted(Part::Speed) || wanted(Part::Counts) {
        true => rows::all(&plan.layers, &plan.lists),
        false => Vec::new(),
    };
    for scenario in scenarios {
        let mut rows = scenario.steps.iter().filter_map(|step| step.row.as_ref());
        if !rows.any(|row| named(&row.name)) || scenario.programs && !plan.programs {
            continue;
        }
        let repetitions = if wanted(Part::Speed) {
            plan.repetitions
        } else {
            0
        };
        let measured = speed::measure(&scenario, &asked, repetitions, wanted(Part::Counts));
        report
            .speed
            .extend(measured.into_iter().filter(|row| named(&row.name)));
        save(&report);
    }
    println!("{}", report.markdown(&host));
    println!("in {}", args.out.display());
    report
}

/// Where and of what this is.
fn host() -> Value {
    let say = |program: &str, args: &[&str]| {
        let output = run(Command::new(program).args(args));
        text(&output.stdout).trim().to_owned()
    };
    let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let cpu = file("/proc/cpuinfo");
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name\t: "));
    let version = |system| {
        support::fuse_overlayfs(system).map_or_else(
            |e| e,
            |program| {
                let output = run(Command::new(program).arg("--version"));
                let said = text(&output.stdout) + &text(&output.stderr);
                said.lines()
                    .find(|line| line.starts_with("fuse-overlayfs"))
                    .unwrap_or_default()
                    .to_owned()
            },
        )
    };
    let changed = !say("git", &["status", "--porcelain", "--untracked-files=no"]).is_empty();
    json!({
        "date": say("date", &["-u", "+%F %H:%M UTC"]),
        "commit": say("git", &["rev-parse", "--short=12", "HEAD"]) + if changed { ", changed" } else { "" },
        "kernel": file("/proc/sys/kernel/osrelease").trim(),
        "processors": format!("{} x {}", std::thread::available_parallelism().unwrap(), model.unwrap_or("?")),
        "load before": file("/proc/loadavg").trim(),
        "upper on": say("findmnt", &["-no", "FSTYPE", "-T", scratches().to_str().unwrap()]),
        "rivals": format!("{}; {}", version(System::FuseOverlayfs2), version(System::FuseOverlayfs1)),
    })
}

/// Where uppers and mountpoints lie.
fn scratches() -> PathBuf {
    let scratch = support::Scratch::new("where");
    scratch.path().parent().map(Path::to_owned).unwrap()
}
