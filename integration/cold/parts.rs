//! Parts of a large file: each is fetched as long as runs read it.

use std::os::unix::fs::FileExt;

use super::*;

const BIG: usize = 32 << 20;
/// More than the kernel reads ahead.
const FAR: u64 = 24 << 20;
const PIECE: u64 = BIG as u64 / 64;

/// An image with a file of which runs read parts.
fn case() -> Option<Case> {
    Case::new(0, 10, |source| {
        file(source.join("l0/big"), &"0123456789abcdef".repeat(BIG / 16));
    })
}

/// A run that reads these files, and the large one in these places.
fn run(case: &Case, numbers: impl Iterator<Item = usize>, places: &[u64]) {
    case.slow.renew();
    let daemon = case.mount();
    case.read(numbers);
    let large = fs::File::open(case.at("big")).unwrap();
    for place in places {
        large.read_exact_at(&mut [0; 4096], *place).unwrap();
    }
    drop(large);
    daemon.end();
}

/// How many pieces of the large file are fetched at a mount in which no program does anything.
fn fetched(case: &Case) -> u64 {
    case.slow.renew();
    let daemon = case.mount();
    // All of it counts when the last byte is there.
    let seen = case.wait("the large file", |seen| number(seen, "bytes") >= PIECE);
    daemon.end();
    number(&seen, "bytes") / PIECE
}

#[test]
fn a_part_that_nobody_reads_any_more_is_fetched_no_more() {
    let Some(case) = case() else { return };
    run(&case, 0..1, &[0]);
    let head = fetched(&case);
    run(&case, 0..1, &[0, FAR]);
    let both = fetched(&case);
    assert!(both > head, "{both} of {head}");
    // One of five runs has read it.
    for _ in 0..3 {
        run(&case, 0..1, &[0]);
    }
    assert_eq!(fetched(&case), head);
}

#[test]
fn a_job_that_runs_seldom_has_its_parts_of_what_others_open_too() {
    let Some(case) = case() else { return };
    run(&case, 0..1, &[0]);
    let head = fetched(&case);
    run(&case, 50..52, &[FAR]);
    for _ in 0..5 {
        run(&case, 0..1, &[0]);
    }
    assert_eq!(fetched(&case), head);
    case.slow.renew();
    let daemon = case.mount();
    // Programs have the file open already when its other part is fetched.
    fs::File::open(case.at("big")).unwrap();
    case.read(50..51);
    let seen = case.wait("its trail", |seen| number(seen, "bytes") / PIECE > head);
    assert_eq!(number(&seen, "failed"), 0, "{seen}");
    daemon.end();
}
