use std::error::Error;

use super::format::{HEAD, MAX_SIZE};
use super::*;

type Outcome = Result<(), Box<dyn Error>>;

fn opened(paths: &[&str]) -> Vec<Opened> {
    let one = |path: &&str| Opened {
        layer: "aa".to_owned(),
        path: path.as_bytes().into(),
        size: 6400,
        pieces: 1,
    };
    paths.iter().map(one).collect()
}

fn paths<'a>(files: impl Iterator<Item = &'a File>) -> String {
    let names = files.map(|file| String::from_utf8_lossy(&file.path).into_owned());
    names.collect::<Vec<_>>().join(" ")
}

fn after(runs: &[&[&str]]) -> Profile {
    let mut profile = Profile::default();
    for run in runs {
        profile.add_run(&opened(run));
    }
    profile
}

/// The text with its sum made right.
fn summed(text: &str) -> String {
    let body = text.split_once("sum ").map_or(text, |(body, _)| body);
    format!("{body}sum {:016x}\n", stable_hash(0, body.as_bytes()))
}

#[test]
fn the_last_run_decides_the_order_and_others_stay_where_they_were() {
    let profile = after(&[&["a", "b", "c", "d"], &["d", "x", "b"]]);
    assert_eq!(paths(profile.files.iter()), "a d x b c");
    assert_eq!(paths(profile.expected()), "a d x b c");
}

#[test]
fn what_most_runs_open_stays_and_what_none_opens_any_more_fades_out() {
    let mut runs: Vec<&[&str]> = vec![&["a", "once"]];
    runs.extend([&["a", "b"][..]; 3]);
    let profile = after(&runs);
    assert_eq!(paths(profile.expected()), "a once b", "one in four");
    let profile = after(&[&runs[..], &[&["a"]]].concat());
    assert_eq!(paths(profile.expected()), "a b", "one in five");
    let profile = after(&[&runs[..], &[&["a"][..]; 32]].concat());
    assert_eq!(paths(profile.expected()), "a");
    assert_eq!(paths(profile.files.iter()), "a once b", "not forgotten");
    let profile = after(&[&runs[..], &[&["a"][..]; KEPT_RUNS as usize + 1]].concat());
    assert_eq!(paths(profile.files.iter()), "a", "gone in the end");
}

#[test]
fn a_job_that_runs_seldom_is_one_trail() {
    let daily: &[&str] = &["sh", "daily"];
    let mut runs = vec![daily; 20];
    runs.insert(3, &["sh", "monthly", "its-data"]);
    let profile = after(&runs);
    assert_eq!(paths(profile.expected()), "sh daily");
    let trails = profile.trails();
    assert_eq!(trails.len(), 1);
    let trail = trails.values().flat_map(|trail| &trail.files);
    let trail = trail.map(|(at, _)| &profile.files[*at]);
    assert_eq!(paths(trail), "monthly its-data");
}

fn place(profile: &Profile, path: &[u8]) -> usize {
    let mut files = profile.files.iter();
    files
        .position(|file| *file.path == *path)
        .unwrap_or(usize::MAX)
}

/// Runs that read these pieces of `f`, and each a file of its own.
fn reading(runs: &[(&str, u64)]) -> Profile {
    let mut profile = Profile::default();
    for (own, pieces) in runs {
        let mut run = opened(&["f", own]);
        run[0].pieces = *pieces;
        profile.add_run(&run);
    }
    profile
}

#[test]
fn what_is_read_of_a_file_that_stays_fades_out_as_files_do() {
    let once = [("a", 0b101), ("a", 0b1), ("a", 0b1), ("a", 0b1)];
    let expected = |runs: &[(&str, u64)]| {
        let profile = reading(runs);
        let file = profile.files.iter().find(|file| *file.path == *b"f");
        file.map(|file| (profile.expected_of(file), file.parts.pieces()))
    };
    assert_eq!(expected(&once), Some((0b101, 0b101)), "one in four");
    let more = |n| [&once[..], &vec![("a", 0b1); n]].concat();
    assert_eq!(expected(&more(1)), Some((0b1, 0b101)), "one in five");
    let many = KEPT_RUNS as usize;
    assert_eq!(expected(&more(many)), Some((0b1, 0b1)), "gone in the end");
    let again = [&more(1)[..], &[("a", 0b100)]].concat();
    assert_eq!(expected(&again), Some((0b101, 0b101)), "the last run did");
}

#[test]
fn what_is_read_seldom_is_part_of_a_trail() {
    let mut runs = vec![("daily", 0b1); 20];
    runs.insert(3, ("monthly", 0b110));
    let mut profile = reading(&runs);
    let trail = Trail {
        files: vec![(place(&profile, b"monthly"), 1)],
        parts: vec![(place(&profile, b"f"), 0b110)],
    };
    assert_eq!(profile.trails(), HashMap::from([(4, trail)]));
    // A part alone has no file by which it is known.
    profile.files.retain(|file| *file.path != *b"monthly");
    let trails = profile.trails();
    assert!(trails.values().all(|trail| trail.files.is_empty()));
}

#[test]
fn a_file_of_a_trail_comes_with_what_its_last_run_read() {
    let mut profile = reading(&[("one", 0b11), ("two", 0b110)]);
    for _ in 0..20 {
        profile.add_run(&opened(&["daily"]));
    }
    let at = place(&profile, b"f");
    let trails = profile.trails();
    assert!(trails[&2].files.contains(&(at, 0b110)));
    assert_eq!(trails[&1].parts, [(at, 0b1)]);
}

#[test]
fn a_profile_does_not_grow_without_end() {
    let mut profile = Profile::default();
    let mut bytes = 0;
    for run in 0..4 {
        let names: Vec<String> = (0..MOST_FILES / 2).map(|n| format!("{run}/{n}")).collect();
        profile.add_run(&opened(
            &names.iter().map(String::as_str).collect::<Vec<_>>(),
        ));
        assert!(profile.files.len() <= MOST_FILES);
        bytes = profile.to_text().len();
    }
    assert_eq!(profile.files.len(), MOST_FILES);
    assert!(
        profile.files.iter().all(|file| file.last > 2),
        "the oldest go"
    );
    assert!(bytes < 40 * MOST_FILES, "{bytes} bytes");
}

#[test]
fn what_is_too_much_to_be_read_again_is_not_written() -> Outcome {
    let name = |n: usize| format!("{n}/{}", vec!["é".repeat(100); 20].join("/"));
    let names: Vec<String> = (0..1000).map(name).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let profile = after(&[&["old"], &names]);
    assert!((500..1000).contains(&profile.files.len()));
    Profile::parse(profile.to_text().as_bytes())?;
    let many = |from: usize| {
        let mut profile = Profile::default();
        let mut all = opened(&vec!["f"; MOST_LAYERS]);
        for (one, n) in all.iter_mut().zip(from..) {
            one.layer = n.to_string();
        }
        profile.add_run(&all);
        profile
    };
    let both = many(0).over(&many(MOST_LAYERS));
    assert_eq!(both.layers.len(), MOST_LAYERS);
    assert_eq!(Profile::parse(both.to_text().as_bytes())?, both);
    Ok(())
}

#[test]
fn the_read_parts_of_a_file_add_up_until_it_is_another() {
    let mut profile = Profile::default();
    let mut run = opened(&["f"]);
    profile.add_run(&run);
    run[0].pieces = 4;
    profile.add_run(&run);
    assert_eq!(profile.files[0].parts.pieces(), 5);
    run[0].size += 1;
    profile.add_run(&run);
    assert_eq!(profile.files[0].parts.pieces(), 4);
}

#[test]
fn pieces_are_64ths() {
    assert_eq!(pieces(64, 0, 1), 1);
    assert_eq!(pieces(64, 63, 1), 1 << 63);
    assert_eq!(pieces(64, 0, 64), u64::MAX);
    assert_eq!(pieces(6400, 100, 101), 0b110);
    assert_eq!(pieces(6400, 6400, 10), 0);
    assert_eq!(pieces(6400, 0, 0), 0);
    assert_eq!(pieces(10, 0, u64::MAX), 0x3ff);
    assert_eq!(pieces(u64::MAX, u64::MAX - 1, 1), 1 << 63);
    assert_eq!(pieces(65, 64, 1), 1 << 32);
}

#[test]
fn a_profile_from_elsewhere_is_one_run_before_all_others() {
    let base = after(&[&["a", "b"], &["a", "c"]]).exported();
    assert_eq!(base.runs, 1);
    let mut local = Profile::default().over(&base);
    assert_eq!(paths(local.expected()), "a b c");
    for _ in 0..4 {
        local.add_run(&opened(&["a", "d"]));
    }
    assert_eq!(paths(local.expected()), "a d");
    let again = after(&[&["x", "a"]]).over(&base);
    assert_eq!(
        (again.runs, paths(again.expected())),
        (2, "x a b c".to_owned())
    );
}

#[test]
fn what_others_read_of_a_file_is_expected_too() {
    let base = reading(&[("a", 0b10), ("a", 0b1), ("a", 0b1)]).exported();
    let local = reading(&[("a", 0b1000)]).over(&base);
    let of_f = |profile: &Profile| profile.expected_of(&profile.files[0]);
    assert_eq!((of_f(&base), of_f(&local)), (0b11, 0b1011));
    let mut local = local;
    for _ in 0..4 {
        let mut run = opened(&["f"]);
        run[0].pieces = 0b1000;
        local.add_run(&run);
    }
    assert_eq!(of_f(&local), 0b1000);
}

#[test]
fn layers_that_no_file_is_in_are_dropped_and_numbers_follow() {
    let mut one = opened(&["f"]);
    one[0].layer = "bb".to_owned();
    let base = after(&[&["a"]]);
    let mut local = Profile::default();
    local.add_run(&one);
    let both = local.over(&base);
    let named = |path: &[u8]| {
        let file = both.files.iter().find(|file| *file.path == *path);
        file.map(|file| both.layers[file.layer].as_str())
    };
    assert_eq!((named(b"a"), named(b"f")), (Some("aa"), Some("bb")));
    let mut gone = both.clone();
    gone.files.retain(|file| *file.path == *b"f");
    assert_eq!(gone.exported().layers, ["bb"]);
}

#[test]
fn after_poor_replays_in_a_row_only_the_last_run_is_expected_and_no_trail_lost() {
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut profile = after(&[&names, &["new"]]);
    let replay = |used| Replay {
        files: 20,
        used,
        ..Replay::default()
    };
    assert!(!profile.add_replay(replay(0), 1), "a run that did nothing");
    for used in [4, 4, 5, 4, 4] {
        assert!(!profile.add_replay(replay(used), 20));
    }
    assert!(profile.add_replay(replay(4), 20));
    assert_eq!(paths(profile.expected()), "new");
    assert_eq!((profile.runs, profile.poor), (2, 0));
    let trails = profile.trails();
    let sizes = trails.values().map(|trail| trail.files.len());
    assert_eq!(sizes.collect::<Vec<_>>(), [20]);
    profile.poor = u32::MAX;
    assert!(profile.add_replay(replay(4), 20), "as nobody writes it");
}

#[test]
fn what_is_written_is_read() -> Outcome {
    let mut profile = after(&[&["usr/lib/a.so", "usr/lib/b.so", "etc/x"]]);
    let odd: Vec<u8> = (1..=255).filter(|b| *b != b'/').collect();
    let mut run = opened(&["usr/lib/b.so"]);
    run.push(Opened {
        layer: "/a dir/with %\nétc".to_owned(),
        path: odd.as_slice().into(),
        size: u64::MAX,
        pieces: u64::MAX,
    });
    profile.add_run(&run);
    run[0].pieces = 0b110;
    profile.add_run(&run);
    run[0].pieces = 0;
    profile.add_run(&run);
    profile.replay = Some(Replay {
        files: 1,
        bytes: 2,
        millis: 3,
        used: 4,
        saved: 5,
    });
    let text = profile.to_text();
    assert!(text.is_ascii());
    assert_eq!(Profile::parse(text.as_bytes())?, profile);
    let parts = profile.files.iter().map(|file| file.parts.iter().count());
    assert_eq!(parts.max(), Some(2));
    let empty = Profile::default();
    assert_eq!(Profile::parse(empty.to_text().as_bytes())?, empty);
    Ok(())
}

#[test]
fn parts_count_when_a_profile_gets_too_long() {
    let mut profile = Profile::default();
    // Each run reads one piece more of each file.
    for run in 0..64 {
        let mut all = opened(&vec!["f"; MOST_FILES / 4]);
        for (n, one) in all.iter_mut().enumerate() {
            one.path = n.to_string().into_bytes().into();
            one.pieces = 1 << run;
        }
        profile.add_run(&all);
    }
    let text = profile.to_text();
    assert!(text.len() <= MAX_SIZE && profile.files.len() > 1000);
    assert_eq!(Profile::parse(text.as_bytes()).as_ref(), Ok(&profile));
}

/// All that was ever read of a file counts as read by all runs that opened it.
#[test]
fn a_profile_of_the_first_version_is_read() -> Outcome {
    let old = include_bytes!("../../tests/corpus/profile/version-1");
    let mut profile = Profile::parse(old)?;
    assert_eq!(
        (profile.runs, paths(profile.files.iter())),
        (3, "sh libc data".to_owned())
    );
    assert_eq!(paths(profile.expected()), "sh libc data");
    let read = |profile: &Profile| {
        let of = |file| profile.expected_of(file);
        profile.files.iter().map(of).collect::<Vec<_>>()
    };
    assert_eq!(read(&profile), [u64::MAX, 0x1f, 0x8000_0000_0000_0001]);
    assert!(profile.to_text().starts_with(HEAD));
    for _ in 0..9 {
        let mut run = opened(&["data"]);
        run[0].size = 1 << 30;
        run[0].layer = profile.layers[0].clone();
        profile.add_run(&run);
    }
    let data = profile.files.iter().find(|file| *file.path == *b"data");
    assert_eq!(data.map(|file| profile.expected_of(file)), Some(1));
    Ok(())
}

#[test]
fn what_is_not_whole_is_refused() {
    let text = after(&[&["usr/lib/a", "usr/lib/b"]]).to_text();
    for end in 0..text.len() {
        assert!(Profile::parse(&text.as_bytes()[..end]).is_err(), "{end}");
    }
    for at in 0..text.len() {
        let mut bytes = text.clone().into_bytes();
        bytes[at] ^= 1;
        assert!(Profile::parse(&bytes).is_err(), "{at}");
    }
    assert!(Profile::parse(&vec![b' '; MAX_SIZE + 1]).is_err());
}

#[test]
fn hostile_profiles_are_refused_with_the_line() {
    let good = after(&[&["usr/lib/a", "usr/lib/b"]]).to_text();
    assert!(Profile::parse(summed(&good).as_bytes()).is_ok());
    let second = "0 6400 1 1 1 8 b";
    for (change, said) in [
        ("0 6400 1 1 1 8 ../../etc/shadow", "component \"..\""),
        ("0 6400 1 1 1 0 /etc/shadow", "component \"\""),
        ("0 6400 1 1 1 0 a//b", "component \"\""),
        ("0 6400 1 1 1 0 a/./b", "component \".\""),
        ("0 6400 1 1 1 0 a/", "component \"\""),
        ("0 6400 1 1 1 0 a%00b", "component"),
        ("0 6400 1 1 1 0 a%2", "without two digits"),
        ("0 6400 1 1 1 10 b", "more than the one before"),
        ("7 6400 1 1 1 8 b", "no layer 7"),
        ("0 -1 1 1 1 8 b", "no number"),
        ("0 +1 1 1 1 8 b", "no number"),
        ("0 99999999999999999999999 1 1 1 8 b", "too large"),
        ("0 6400 1 100000000 1 8 b", "32 runs"),
        ("0 6400 11111111111111111 1 1 8 b", "too large"),
        ("0 6400 1 1 9 8 b", "none with the number 9"),
        ("0 6400 1 1 0 8 b", "none with the number 0"),
        ("0 6400 1 1 1 8 b c", "too much"),
        ("0 6400 1 1 1 8", "missing"),
        ("0 6400 1 1 1 8 a", "twice"),
        ("0 6400 1 1 1 8 b\npart 1 1 1", "in another one"),
        ("0 6400 1 1 1 8 b\npart 0 1 1", "empty"),
        ("0 6400 1 1 1 8 b\npart 2 1 2", "none with the number 2"),
        ("0 6400 1 1 1 8 b\npart 2 100000000 1", "32 runs"),
        ("0 6400 1 1 1 8 b\npart 2 1", "missing"),
        ("0 6400 1 1 1 8 b\nruns 1", "after a file"),
        ("0 6400 1 1 1 8 b\npoor 0", "after a file"),
        ("0 6400 1 1 1 8 b\nreplay 1 2 3 4 5", "after a file"),
        ("0 6400 1 1 1 8 b\nlayer bb", "after a file"),
    ] {
        let text = summed(&good.replace(second, change));
        let refused = Profile::parse(text.as_bytes()).err().map(|e| e.to_string());
        assert!(
            refused.as_ref().is_some_and(|why| why.contains(said)),
            "{change}: {refused:?}"
        );
    }
    let first = summed(&good.replace("poor 0\n", "poor 0\npart 1 1 1\n"));
    assert!(Profile::parse(first.as_bytes()).is_err());
    let of_1 = good
        .replace("profile 2", "profile 1")
        .replace(second, "0 6400 1 1 1 8 b\npart 2 1 1");
    assert!(Profile::parse(summed(&of_1).as_bytes()).is_err());
    let long = format!("0 6400 1 1 1 0 {}", ["x"; 3000].join("/"));
    let text = summed(&good.replace(second, &long));
    assert!(Profile::parse(text.as_bytes()).is_err());
    for (head, said) in [
        ("cvmfs-union profile 3", "another version"),
        ("#!/bin/sh", "not a profile"),
    ] {
        let text = summed(&good.replace(HEAD, head));
        let refused = Profile::parse(text.as_bytes()).err().map(|e| e.to_string());
        assert!(refused.is_some_and(|why| why.contains(said)));
    }
}

#[test]
fn images_have_names_of_their_own() {
    let name = |layers: &[&str]| image_name(layers.iter().copied());
    let all = [
        name(&["a", "b"]),
        name(&["b", "a"]),
        name(&["ab"]),
        name(&[]),
    ];
    let distinct: HashSet<&String> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
    assert!(all.iter().all(|name| name.len() == 32));
    assert_eq!(name(&["a", "b"]), "32a59ccf55dc1c796bd14ea51cce1277");
}
