//! The first run, of which nothing is known: nothing is asked of a layer in front of the program that kernel
//! overlayfs would not ask.

use std::collections::BTreeMap;

use super::*;
use crate::support::System;

/// What a cold run brings to the layers: transfers, and requests by kind.
fn cost(case: &Case, system: System, options: &[String]) -> (u64, BTreeMap<&'static str, u64>) {
    let mut fixture = Fixture::on(system, "cold-first");
    fixture.lowers = case.fixture.lowers.clone();
    fixture.trust_lowers();
    fixture.options = options.to_vec();
    case.slow.renew();
    let before = case.slow.faults.tally();
    let ours = system == System::Ours;
    let daemon = ours.then(|| Daemon::mount(&fixture));
    if !ours {
        fixture.mount();
    }
    for n in 0..FILES {
        assert!(fs::read(fixture.mnt.join(path(n))).is_ok());
    }
    let mut seen = case.slow.faults.tally();
    for (kind, count) in before {
        *seen.entry(kind).or_default() -= count;
    }
    match daemon {
        // It records what was opened before it ends, which is after the end of the mount.
        Some(daemon) => drop(daemon.end()),
        None => fixture.umount(),
    }
    (case.cold().transfers(), seen)
}

#[test]
fn a_first_run_asks_for_no_more_than_one_without_profiles_or_kernel_overlayfs() {
    if !require_all(&["overlayfs"]) {
        return;
    }
    let Some(case) = Case::new(0, 10, |_| {}) else {
        return;
    };
    let off = cost(&case, System::Ours, &["--prefetch=off".into()]);
    let first = cost(&case, System::Ours, &case.fixture.options);
    assert_eq!(first, off);
    assert_eq!(case.profile().runs, 1, "it was recorded");
    let (transfers, requests) = cost(&case, System::OverlayfsDefault, &[]);
    assert!(first.0 <= transfers, "{} of {transfers}", first.0);
    let all = |requests: &BTreeMap<_, u64>| requests.values().sum::<u64>();
    let (ours, theirs) = (all(&first.1), all(&requests));
    assert!(
        ours <= theirs,
        "{ours} of {theirs}: {:?}, {requests:?}",
        first.1
    );
    eprintln!(
        "{ours} requests, of overlayfs {theirs}; {} transfers",
        first.0
    );
}
