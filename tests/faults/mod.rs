//! What a fault or a crash at any system call may leave behind: nothing that is half done.
//!
//! `CVMFS_UNION_FAULTS=all` plays everything; a number chooses the part that is played otherwise.

mod calls;
mod crashes;
mod durability;
mod opening;
mod regressions;
mod scenarios;
mod unprivileged;

use std::env;

use crate::support::faults::{Ends, Scenario, Stage, Variant};

/// How much of the matrix is played.
#[derive(Clone, Copy, Debug)]
enum Extent {
    All,
    /// A part that the number chooses.
    Part(usize),
}

fn extent() -> Extent {
    match env::var("CVMFS_UNION_FAULTS") {
        Ok(all) if all == "all" => Extent::All,
        Ok(seed) => Extent::Part(seed.parse().expect("CVMFS_UNION_FAULTS: all or a number")),
        Err(_) => Extent::Part(0),
    }
}

/// Plays one scenario in so many only.
const ONE_IN: &str = "CVMFS_UNION_FAULTS_ONE_IN";

/// How many of the scenarios an ordinary user plays: what differs for it is the same in most.
fn one_in_for_others() -> usize {
    match extent() {
        Extent::All => 1,
        Extent::Part(_) => 8,
    }
}

/// Every scenario in every variant; `CVMFS_UNION_SCENARIO` is what their names must contain.
fn jobs(scenarios: &[Scenario]) -> Vec<(usize, &Scenario, Variant)> {
    let wanted = env::var("CVMFS_UNION_SCENARIO").unwrap_or_default();
    let wanted = |s: &&Scenario| s.name.contains(&wanted);
    let each = scenarios
        .iter()
        .filter(wanted)
        .flat_map(|scenario| scenario.variants().map(move |variant| (scenario, variant)));
    let one_in = env::var(ONE_IN).map_or(1, |n| n.parse().unwrap());
    let seed = match extent() {
        Extent::All => 0,
        Extent::Part(seed) => seed,
    };
    let numbered = each
        .enumerate()
        .filter(|(i, _)| (i + seed).is_multiple_of(one_in));
    numbered.map(|(i, (s, v))| (i, s, v)).collect()
}

/// Plays the scenario of that name in each of its variants.
fn play(name: &str, work: impl Fn(&Stage<'_>, &Ends)) {
    let scenarios = scenarios::all();
    let scenario = scenarios.iter().find(|s| s.name == name);
    let scenario = scenario.unwrap_or_else(|| panic!("no scenario {name}"));
    for variant in scenario.variants() {
        let stage = Stage::new(scenario, variant);
        let ends = stage.ends();
        work(&stage, &ends);
    }
}

fn name_of((_, scenario, variant): &(usize, &Scenario, Variant)) -> String {
    format!("{} ({variant})", scenario.name)
}
