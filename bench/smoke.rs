//! The benchmark on a tiny image, so that it does not rot: everything has to come out, whatever the figures are.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::lists::{Lists, Sizes};
use crate::place::{Layers, SYSTEMS};
use crate::report::Counts;
use crate::support::files::{device_zero, file};
use crate::support::{Scratch, System};
use crate::{Args, Plan, lowers, measure};

const PAGES_OF_BIG: usize = 256;
const DIRS: usize = 20;
const ENTRIES: usize = 50;

/// Rows of every part.
const ROWS: [&str; 8] = [
    "20k absent names",
    "readdir",
    "create 10k",
    "chmod 2k, volatile",
    "x 20",
    "find",
    "mount",
    "object",
];

pub fn run(args: &mut Args) {
    args.only = ROWS.map(str::to_owned).to_vec();
    let scratch = Scratch::new("smoke");
    let layers = image(scratch.path());
    let plan = Plan {
        lists: Lists::of(&layers.flat, Sizes::SMOKE),
        layers,
        programs: false,
        repetitions: 1,
        counts_of_layers: vec![1, 5],
        split: scratch.dir("split"),
        latency: Duration::ZERO,
    };
    let report = measure(args, &plan);
    for row in &report.speed {
        let floor = row.runs.iter().any(|run| run.system == System::Floor);
        let few = if floor { Some(System::Floor) } else { None };
        for system in SYSTEMS.into_iter().chain(few) {
            let runs = row.runs.iter().filter(|run| run.system == system);
            assert_eq!(
                runs.count(),
                plan.repetitions,
                "{}: {}",
                row.name,
                system.name()
            );
        }
        for system in [System::Ours, System::FuseOverlayfs1, System::FuseOverlayfs2] {
            let counts = row.counts.iter().find(|counts| counts.system == system);
            assert!(counts.is_none_or(Counts::agree), "{}: {counts:?}", row.name);
            let calls = counts.map(|counts| (counts.requests, counts.calls));
            assert!(calls.is_some(), "{}: {}", row.name, system.name());
            // Without requests the daemon has nothing to do, and the other way round.
            let fresh = row.name.contains("fresh") || row.name.contains("first");
            assert!(!fresh || calls > Some((0, 0)), "{}: {calls:?}", row.name);
        }
    }
    for row in report
        .figures
        .iter()
        .filter(|row| row.table == lowers::TABLE)
    {
        assert!(
            row.value(System::Plain) > Some(0.0) || row.name.contains("absent"),
            "{}",
            row.name
        );
        assert_eq!(row.values.len(), SYSTEMS.len(), "{}", row.name);
    }
    check_files(&args.out, report.speed.iter().map(|row| row.name.as_str()));
}

fn check_files<'a>(out: &Path, rows: impl Iterator<Item = &'a str>) {
    let read = |name: &str| fs::read_to_string(out.join(name)).unwrap();
    let (table, plot) = (read("table.md"), read("plot.svg"));
    let raw: serde_json::Value = serde_json::from_str(&read("results.json")).unwrap();
    for (at, name) in rows.enumerate() {
        assert!(
            table.contains(&format!("| {name} |")),
            "{name} is not in the table"
        );
        assert_eq!(raw["speed"][at]["row"], name);
        let ratio = &raw["speed"][at]["wall"][System::Ours.name()][0];
        assert!(
            ratio.as_f64().is_some_and(|ratio| ratio > 0.0),
            "{name}: {ratio}"
        );
    }
    assert!(
        plot.starts_with("<svg") && plot.trim_end().ends_with("</svg>"),
        "{plot}"
    );
}

/// Three layers with a deletion, and what they show.
fn image(dir: &Path) -> Layers {
    let (layers, flat) = (dir.join("layers"), dir.join("flat"));
    let names = ["top", "middle", "bottom"];
    let add = |layer: &str, path: &str, content: &str| {
        file(layers.join(layer).join(path), content);
        file(flat.join(path), content);
    };
    for dir in 0..DIRS {
        for name in names {
            add(name, &format!("usr/share/a/b/dir-{dir}/{name}"), "content");
        }
    }
    let packages = "usr/lib/python3/dist-packages";
    add("bottom", &format!("{packages}/module.py"), "pass");
    add("bottom", "opt/kept", "kept");
    file(layers.join("bottom/opt/deleted"), "deleted");
    fs::create_dir_all(layers.join("top/opt")).unwrap();
    device_zero(layers.join("top/opt/deleted"));
    for entry in 0..ENTRIES {
        add("middle", &format!("srv/huge/entry-{entry}"), "");
    }
    add(
        "middle",
        "srv/big",
        &"0123456789abcdef".repeat(PAGES_OF_BIG * 256),
    );
    Layers {
        dir: layers,
        names: names.map(str::to_owned).to_vec(),
        flat,
    }
}
