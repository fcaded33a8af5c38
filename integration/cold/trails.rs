//! What one run opened last, and none after it, comes when a program opens the first of it.

use super::*;

#[test]
fn a_job_that_runs_seldom_is_known_by_its_first_file() {
    let Some(case) = Case::new(2, 10, |_| {}) else {
        return;
    };
    case.run(50..80);
    for _ in 0..5 {
        case.run(0..10);
    }
    let profile = case.profile();
    assert_eq!(profile.expected().count(), 10);
    case.slow.renew();
    let daemon = case.mount();
    case.wait("the expected", |seen| number(seen, "files") == 10);
    case.read(std::iter::once(60));
    case.wait("its trail", |seen| number(seen, "files") == 10 + 29);
    daemon.end();
}

/// Another mount has the turn, and what is expected waits for it.
#[test]
fn a_trail_is_fetched_before_what_is_expected() {
    let Some(case) = Case::new(2, 10, |_| {}) else {
        return;
    };
    case.run(90..FILES);
    for _ in 0..5 {
        case.run(0..10);
    }
    assert_eq!(case.profile().expected().count(), 10);
    let name = case.profile_path();
    let name = name.file_name().unwrap().to_string_lossy();
    let turn = fs::File::create(case.profiles.path().join(format!(".turn-{name}-0"))).unwrap();
    turn.lock().unwrap();
    case.slow.renew();
    let daemon = case.mount();
    case.read(std::iter::once(95));
    let trail = FILES - 90 - 1;
    case.wait("its trail", |seen| number(seen, "files") == trail as u64);
    drop(turn);
    case.wait("the rest", |seen| {
        number(seen, "files") == trail as u64 + 10
    });
    daemon.end();
}
