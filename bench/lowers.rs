//! Requests that reach a lower. All layers lie on a FUSE file system that counts what is asked of it, and that the
//! kernel may cache as it caches CVMFS; so these figures are free of noise.

use std::time::Duration;

use serde_json::json;

use crate::lists::Lists;
use crate::place::{How, Layers, Place};
use crate::report::Figures;
use crate::support::System;
use crate::support::slow_fs::SlowFs;
use crate::worker::{Work, work};

pub const TABLE: &str = "Requests that reach a lower";
const PROCESSES: &str = "500";
/// For the row about many processes: they must meet while the lower is asked.
const LATENCY: Duration = Duration::from_millis(2);

/// What ours may cost at most, beside what the others cost in the same run.
#[derive(Clone, Copy)]
enum Most {
    /// As kernel overlayfs.
    Overlay,
    /// As if there were one directory.
    Plain,
    /// As the best of all others.
    Best,
}

struct Step {
    name: &'static str,
    most: Most,
    /// None: the mount itself.
    work: Option<Work>,
    programs: bool,
}

fn step(name: &'static str, most: Most, words: &[&str]) -> Step {
    Step {
        name,
        most,
        work: Some(work(words)),
        programs: words[0] == "chroot",
    }
}

fn steps(lists: &Lists) -> Vec<Step> {
    let python = ["chroot", "python3", "-c", "import numpy"];
    let packages = ["run", "find", "usr/lib/python3/dist-packages"];
    let mount = Step {
        name: "mount and stat the root",
        most: Most::Overlay,
        work: None,
        programs: false,
    };
    vec![
        mount,
        step("import numpy, cold", Most::Plain, &python),
        step("the same again", Most::Best, &python),
        step("find dist-packages", Most::Plain, &packages),
        step(
            "100 absent names x 20",
            Most::Plain,
            &["absent", &lists.path("absent-100")],
        ),
        step(
            "stat of 2,000 paths",
            Most::Plain,
            &["stat", &lists.path("stat-2k")],
        ),
        step("find usr/share", Most::Plain, &["run", "find", "usr/share"]),
    ]
}

/// All rows; `latency` is how long each answer of the lower takes.
pub fn measure(
    layers: &Layers,
    lists: &Lists,
    systems: &[System],
    programs: bool,
    latency: Duration,
) -> Vec<Figures> {
    let mut rows: Vec<_> = steps(lists)
        .into_iter()
        .filter(|step| programs || !step.programs)
        .map(|step| {
            let figures = Figures::new(TABLE, step.name, "requests");
            (step, figures)
        })
        .collect();
    for system in systems {
        eprintln!("  requests to a lower: {}", system.name());
        let slow = SlowFs::showing(layers.dir.parent().unwrap());
        slow.faults.delay(latency);
        let mut before = slow.faults.tally();
        let mut total = slow.faults.requests();
        let place = Place::mount(*system, &shown(layers, &slow), &How::default());
        for (step, figures) in &mut rows {
            let used = match &step.work {
                None => work(&["stat", &lists.path("root")]).run(&place.root),
                Some(work) => work.run(&place.root),
            };
            let used = used.unwrap();
            let (kinds, now) = (slow.faults.tally(), slow.faults.requests());
            let mut added = kinds.clone();
            for (kind, n) in &before {
                *added.get_mut(kind).unwrap() -= n;
            }
            figures.values.push((*system, (now - total) as f64));
            figures.details[system.name()] = json!({"by_kind": added, "wall": used.wall});
            (before, total) = (kinds, now);
        }
    }
    for (step, figures) in &mut rows {
        figures.most = match step.most {
            Most::Overlay => figures.value(System::OverlayfsDefault),
            Most::Plain => figures.value(System::Plain),
            Most::Best => {
                let others = figures.values.iter().filter(|(of, _)| *of != System::Ours);
                others.map(|(_, n)| *n).min_by(f64::total_cmp)
            }
        };
    }
    let mut figures: Vec<_> = rows.into_iter().map(|(_, figures)| figures).collect();
    figures.push(at_once(layers, lists, systems));
    figures
}

/// Many processes read one cold file at once.
fn at_once(layers: &Layers, lists: &Lists, systems: &[System]) -> Figures {
    let name = format!("{PROCESSES} processes read one cold file: opens of it");
    let mut figures = Figures::new(TABLE, &name, "requests");
    figures.most = Some(1.0);
    for system in systems {
        let slow = SlowFs::showing(layers.dir.parent().unwrap());
        slow.faults.delay(LATENCY);
        let place = Place::mount(*system, &shown(layers, &slow), &How::default());
        let before = slow.faults.tally();
        work(&["read-by", &lists.path("one"), PROCESSES])
            .run(&place.root)
            .unwrap();
        let mut added = slow.faults.tally();
        for (kind, n) in before {
            *added.get_mut(kind).unwrap() -= n;
        }
        figures
            .values
            .push((*system, added.get("open").copied().unwrap_or(0) as f64));
        figures.details[system.name()] = json!({"by_kind": added});
    }
    figures
}

fn shown(layers: &Layers, slow: &SlowFs) -> Layers {
    let at = |dir: &std::path::Path| slow.root().join(dir.file_name().unwrap());
    Layers {
        dir: at(&layers.dir),
        names: layers.names.clone(),
        flat: at(&layers.flat),
    }
}
