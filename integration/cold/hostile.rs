//! Profiles that mean harm, and those that are damaged.

use std::os::unix::fs::symlink;
use std::process::Command;

use cvmfs_union::profile::{Opened, Profile};

use super::*;
use crate::support::{PROGRAM, run, sys, text};

fn profile(of: &Case, paths: &[&str], size: u64) -> Profile {
    let mut profile = Profile::default();
    let layer = of.slow.root().join("l0").display().to_string();
    let opened: Vec<Opened> = paths
        .iter()
        .map(|path| Opened {
            layer: layer.clone(),
            path: path.as_bytes().into(),
            size,
            pieces: u64::MAX,
        })
        .collect();
    profile.add_run(&opened);
    profile
}

fn mount(case: &Case, profile: &Path) -> std::process::Output {
    let mut command = case.fixture.mount_command();
    command
        .arg("--prefetch")
        .arg(profile)
        .arg(&case.fixture.mnt);
    run(&mut command)
}

#[test]
fn nothing_but_regular_files_of_the_layers_is_opened() {
    let outside = Scratch::new("outside");
    let Some(mut case) = Case::new(0, 10, |source| {
        let secret = source.join("secret");
        file(&secret, "secret");
        let l0 = source.join("l0");
        symlink("../secret", l0.join("link")).unwrap();
        symlink("..", l0.join("up")).unwrap();
        symlink(outside.path(), l0.join("out")).unwrap();
        sys::mknod(l0.join("fifo"), libc::S_IFIFO | 0o644, 0).unwrap();
        sys::mknod(
            l0.join("null"),
            libc::S_IFCHR | 0o644,
            nix::sys::stat::makedev(1, 3),
        )
        .unwrap();
    }) else {
        return;
    };
    file(outside.path().join("x"), "x");
    let bad = [
        "link",
        "up/secret",
        "out/x",
        "fifo",
        "null",
        "own",
        "absent",
        "own/x0/y",
    ];
    let given = case.profiles.path().join("given");
    let text = profile(&case, &[&bad[..], &["own/x0"]].concat(), 1 << 20).to_text();
    fs::write(&given, text).unwrap();
    case.fixture
        .options
        .extend(["--prefetch".to_owned(), given.display().to_string()]);
    let daemon = case.mount();
    let seen = case.wait("the end", |seen| {
        number(seen, "failed") + number(seen, "files") == bad.len() as u64 + 1
    });
    assert_eq!(
        (number(&seen, "files"), number(&seen, "failed")),
        (1, bad.len() as u64)
    );
    assert_eq!(
        number(&seen, "bytes"),
        1,
        "what there is, not what it tells"
    );
    let opens = case.slow.faults.tally_below(Path::new("secret"));
    assert_eq!(opens.get("open"), None);
    daemon.end();
}

#[test]
fn sizes_that_are_made_up_exceed_the_bound_and_nothing_is_fetched() {
    let Some(mut case) = Case::new(0, 10, |_| {}) else {
        return;
    };
    let given = case.profiles.path().join("given");
    fs::write(&given, profile(&case, &["own/x0"], 1 << 40).to_text()).unwrap();
    case.fixture
        .options
        .extend(["--prefetch".to_owned(), given.display().to_string()]);
    let daemon = case.mount();
    case.read(0..5);
    assert_eq!(number(&case.prefetch(), "files"), 0);
    daemon.end();
}

#[test]
fn sizes_that_are_made_small_do_not_get_past_the_bound() {
    let Some(mut case) = Case::new(0, 10, |source| {
        file(source.join("l0/big"), &"0123456789abcdef".repeat(1 << 18));
    }) else {
        return;
    };
    let given = case.profiles.path().join("given");
    fs::write(&given, profile(&case, &["big", "own/x0"], 1).to_text()).unwrap();
    case.fixture.options.extend([
        "--prefetch".to_owned(),
        given.display().to_string(),
        "--prefetch-limits=bytes=1M".to_owned(),
    ]);
    let daemon = case.mount();
    let seen = case.wait("both", |seen| {
        number(seen, "files") + number(seen, "failed") == 2
    });
    assert_eq!((number(&seen, "files"), number(&seen, "failed")), (1, 1));
    assert!(number(&seen, "bytes") <= 1 << 20, "{seen}");
    assert_eq!(
        case.slow
            .faults
            .tally_below(Path::new("l0/big"))
            .get("open"),
        None
    );
    daemon.end();
}

/// The client tells of 4 GiB, all of it free.
#[test]
fn no_more_is_fetched_than_the_share_of_what_is_free_in_the_cache() {
    let Some(mut case) = Case::new(0, 10, |_| {}) else {
        return;
    };
    let given = case.profiles.path().join("given");
    let large = profile(&case, &["own/x0"], 1 << 30);
    let both = profile(&case, &["lib/d0/f0"], 1).over(&large);
    let order = both.expected().map(|file| file.size).collect::<Vec<_>>();
    assert_eq!(order, [1 << 30, 1]);
    fs::write(&given, both.to_text()).unwrap();
    let options = case.fixture.options.clone();
    for (percent, files) in [(20, 1), (30, 2)] {
        case.fixture.options = options.clone();
        case.fixture.options.extend([
            "--prefetch".to_owned(),
            given.display().to_string(),
            format!("--prefetch-limits=readers=1,cache={percent}"),
        ]);
        let daemon = case.mount();
        // The small one comes last.
        let seen = case.wait("the small file", |seen| {
            number(seen, "bytes") >= path(0).repeat(50).len() as u64
        });
        assert_eq!(number(&seen, "files"), files, "{percent} %");
        daemon.end();
    }
}

/// Who holds what mounts take turns by holds up nobody else, and writes nothing of theirs.
#[test]
fn what_another_user_holds_keeps_nobody_from_fetching() {
    let Some(case) = Case::new(0, 10, |_| {}) else {
        return;
    };
    case.run(0..20);
    let profile = case.profile_path();
    let name = profile.file_name().unwrap().to_string_lossy();
    let held = [format!(".turn-{name}-0"), ".write-0".to_owned()].map(|name| {
        let path = case.profiles.path().join(name);
        let file = fs::File::create(&path).unwrap();
        std::os::unix::fs::chown(&path, Some(1234), Some(1234)).unwrap();
        file.lock().unwrap();
        file
    });
    case.slow.renew();
    let daemon = case.mount();
    case.wait("all", |seen| number(seen, "files") == 20);
    case.read(0..20);
    let log = daemon.end().log;
    assert!(log.contains("is not kept"), "{log}");
    assert_eq!(case.profile().runs, 1);
    drop(held);
}

#[test]
fn a_bad_profile_is_an_error_if_it_was_asked_for_and_else_a_warning() {
    let Some(case) = Case::new(0, 10, |_| {}) else {
        return;
    };
    case.run(0..5);
    let path = case.profile_path();
    let good = fs::read_to_string(&path).unwrap();
    for bad in [
        good.replace("lib/", "../"),
        good.replace("profile 2", "profile 9"),
        good[..good.len() / 2].to_owned(),
        "{}".to_owned(),
        String::new(),
    ] {
        let given = case.profiles.path().join("given");
        fs::write(&given, &bad).unwrap();
        let output = mount(&case, &given);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("given") && said.contains("line "), "{said}");

        fs::write(&path, &bad).unwrap();
        let daemon = case.mount();
        case.read(0..5);
        assert_eq!(number(&case.prefetch(), "wanted"), 0);
        let log = daemon.end().log;
        assert!(
            log.contains("is not used") && log.contains("line "),
            "{log}"
        );
        match bad.contains("profile 9") {
            true => assert_eq!(fs::read_to_string(&path).unwrap(), bad, "another's"),
            false => assert_eq!(case.profile().runs, 1, "made anew"),
        }
    }
    let output = mount(&case, Path::new("/nowhere/profile"));
    assert_eq!(output.status.code(), Some(3));
    fs::remove_file(&path).unwrap();
    sys::mknod(&path, libc::S_IFIFO | 0o644, 0).unwrap();
    let daemon = case.mount();
    case.read(0..5);
    assert!(daemon.end().log.contains("not a regular file"));
}

#[test]
fn a_place_for_profiles_that_cannot_be_written_keeps_no_mount_from_its_work() {
    let Some(mut case) = Case::new(0, 10, |_| {}) else {
        return;
    };
    case.fixture.options = ["--prefetch=auto", "--profiles=/proc/no/such/place"]
        .map(String::from)
        .to_vec();
    let daemon = case.mount();
    case.read(0..5);
    let log = daemon.end().log;
    assert!(
        log.contains("/proc/no/such/place") && log.contains("is not kept"),
        "{log}"
    );
}

#[test]
fn profiles_below_the_mountpoint_are_not_written_into_the_union() {
    let Some(mut case) = Case::new(0, 10, |_| {}) else {
        return;
    };
    let place = case.at("profiles");
    case.fixture.options = vec![
        "--prefetch=auto".into(),
        format!("--profiles={}", place.display()),
    ];
    let daemon = case.mount();
    case.read(0..5);
    assert!(!place.exists());
    let log = daemon.end().log;
    assert!(log.contains("lies in the mountpoint"), "{log}");
    assert!(!place.exists() && !case.fixture.upper.join("profiles").exists());
}

/// Its path leads into the union then, which would wait for itself.
#[test]
fn a_layer_in_the_mountpoint_is_not_fetched_by_its_path() {
    let Some(mut case) = Case::new(0, 10, |_| {}) else {
        return;
    };
    let hidden = case.fixture.mnt.join("hidden");
    file(hidden.join("lib/below"), "below");
    let link = case.profiles.path().join("link");
    symlink(&hidden, &link).unwrap();
    for layer in [&hidden, &link] {
        case.fixture.lowers.push(layer.clone());
        case.slow.renew();
        let daemon = case.mount();
        assert_eq!(fs::read_to_string(case.at("lib/below")).unwrap(), "below");
        daemon.end();
        let daemon = case.mount();
        case.wait("the end", |seen| number(seen, "wanted") == 1);
        assert_eq!(fs::read_to_string(case.at("lib/below")).unwrap(), "below");
        let seen = case.prefetch();
        assert_eq!((number(&seen, "files"), number(&seen, "failed")), (0, 0));
        daemon.end();
        case.fixture.lowers.pop();
    }
}

#[test]
fn tags_and_limits_that_are_none_are_wrong_usage() {
    for (option, said) in [
        ("--job=a/b", "a tag has"),
        ("--job=..", "a tag has"),
        ("--prefetch-limits=readers=0", "from 1 to 64"),
        ("--prefetch-limits=speed=9", "no such limit"),
    ] {
        let output = run(Command::new(PROGRAM).args(["mount", option, "--lower", "/", "/mnt"]));
        let text = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(said), "{text}");
    }
}
