//! Runs the rows of the table of speed: in each repetition all systems, one after the other, in changing order.

use crate::counters::Tracing;
use crate::place::{Place, drop_names};
use crate::report::{Counts, Measured, Run};
use crate::rows::{Scenario, Step};
use crate::support::System;
use crate::support::stats::Stats;
use crate::worker::Used;

/// Measures the scenario's rows. What the kernel keeps of the lowers is there before, unless the rows are about
/// cold lowers.
pub fn measure(
    scenario: &Scenario,
    systems: &[System],
    repetitions: usize,
    counts: bool,
) -> Vec<Measured> {
    let rows = scenario.steps.iter().filter_map(|step| step.row.as_ref());
    let mut rows: Vec<_> = rows
        .map(|row| Measured {
            name: row.name.clone(),
            most: row.most,
            runs: Vec::new(),
            counts: Vec::new(),
        })
        .collect();
    let names: Vec<_> = rows.iter().map(|row| row.name.clone()).collect();
    eprintln!("  {}", names.join("; "));
    let systems: Vec<_> = systems
        .iter()
        .copied()
        .filter(|system| scenario.is_for(*system))
        .collect();
    if !scenario.cold {
        for system in [System::Plain, System::OverlayfsDefault] {
            if systems.contains(&system) {
                run(scenario, system, |place, step| {
                    done(place, step);
                });
            }
        }
    }
    for repetition in 0..repetitions {
        for at in 0..systems.len() {
            let system = systems[(at + repetition) % systems.len()];
            let mut measured = rows.iter_mut();
            run(scenario, system, |place, step| {
                let before = place.daemon_cpu();
                let used = done(place, step);
                let daemon_cpu = place.daemon_cpu() - before;
                if step.row.is_some() {
                    measured.next().unwrap().runs.push(Run {
                        system,
                        repetition,
                        used,
                        daemon_cpu,
                    });
                }
            });
        }
    }
    if counts {
        let tracing = Tracing::new().unwrap();
        // Without a daemon nothing is done, and there is nothing to undo.
        for system in systems.into_iter().filter(|system| has_daemon(*system)) {
            count(scenario, system, &tracing, &mut rows);
        }
    }
    rows
}

fn run(scenario: &Scenario, system: System, mut step: impl FnMut(&Place, &Step)) {
    if scenario.cold {
        drop_names();
    }
    let place = Place::mount(system, &scenario.layers, &scenario.how);
    for each in &scenario.steps {
        step(&place, each);
    }
    if system == System::Plain {
        for work in &scenario.undo {
            work.run(&place.root).unwrap();
        }
    }
}

fn has_daemon(system: System) -> bool {
    !matches!(system, System::Plain | System::OverlayfsDefault)
}

fn done(place: &Place, step: &Step) -> Used {
    let failed = |e| panic!("{}: {e}", place.system.name());
    step.work.run(&place.root).unwrap_or_else(failed)
}

fn count(scenario: &Scenario, system: System, tracing: &Tracing, rows: &mut [Measured]) {
    let mut measured = rows.iter_mut();
    run(scenario, system, |place, step| {
        let daemon = place.daemon().unwrap();
        let counted = || {
            let requests = tracing.requests(&place.root).unwrap();
            let calls = tracing.calls(daemon).unwrap();
            done(place, step);
            Counts {
                system,
                calls: calls.get(),
                requests: requests.all(),
                by_kind: requests.by_kind(),
                own: None,
            }
        };
        let counts = if system == System::Ours {
            let (own, counts) = Stats::of(&place.root).during(counted);
            Counts {
                own: Some(own),
                ..counts
            }
        } else {
            counted()
        };
        if step.row.is_some() {
            measured.next().unwrap().counts.push(counts);
        }
    });
}
