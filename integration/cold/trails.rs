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

#[test]
fn a_profile_of_which_three_runs_used_nothing_is_retired_and_stays_as_a_trail() {
    let Some(case) = Case::new(0, 10, |_| {}) else {
        return;
    };
    case.run(0..40);
    let before = case.profile();
    for (n, expected) in [40, 56, 72].into_iter().enumerate() {
        case.slow.renew();
        let daemon = case.mount();
        case.wait("the expected", |seen| number(seen, "files") == expected);
        let first = 40 + 16 * n;
        case.read(first..first + 16);
        daemon.end();
    }
    let profile = case.profile();
    assert_eq!((profile.runs, profile.files.len()), (4, 88));
    // Without that, all would be: one of four runs has opened each.
    let expected: Vec<_> = profile.expected().map(|file| &file.path).collect();
    assert_eq!(expected.len(), 16);
    assert!(
        before
            .files
            .iter()
            .all(|file| !expected.contains(&&file.path))
    );

    case.slow.renew();
    let daemon = case.mount();
    case.wait("the expected", |seen| number(seen, "files") == 16);
    case.read(std::iter::once(0));
    case.wait("the first run's", |seen| number(seen, "files") == 16 + 39);
    daemon.end();
}
