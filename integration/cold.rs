//! Cold starts: what a run opened is fetched at once at the next mount, within bounds and in nobody's way.
//!
//! The layers lie in a file system that behaves as a CVMFS client with an empty cache: the first open of a file takes
//! time, and few requests are served at once. What was fetched, and how many at a time, is counted there.

mod first;
mod hostile;
mod parts;
mod profiles;
mod programs;
mod trails;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cvmfs_union::profile::{Profile, store};
use serde_json::Value;

use crate::support::files::file;
use crate::support::foreground::Daemon;
use crate::support::slow_fs::{Cold, Fault, SlowFs};
use crate::support::stats::Stats;
use crate::support::{Fixture, Scratch, require_all};

const LAYERS: usize = 5;
const FILES: usize = 100;
const PATIENCE: Duration = Duration::from_secs(20);

/// An image, a client that has nothing of it, and a place for profiles.
struct Case {
    fixture: Fixture,
    slow: SlowFs,
    profiles: Scratch,
    _source: Scratch,
}

/// The files of the image, each in one of its layers.
fn path(n: usize) -> String {
    format!("lib/d{}/f{n}", n % 7)
}

impl Case {
    fn new(latency: u64, in_flight: usize, fill: impl FnOnce(&Path)) -> Option<Case> {
        if !require_all(&["root", "fuse"]) {
            return None;
        }
        let source = Scratch::new("cold");
        for layer in 0..LAYERS {
            file(source.path().join(format!("l{layer}/own/x{layer}")), "x");
        }
        for n in 0..FILES {
            let layer = format!("l{}", n % LAYERS);
            file(source.path().join(layer).join(path(n)), &path(n).repeat(50));
        }
        fill(source.path());
        let layers = (0..LAYERS).map(|n| PathBuf::from(format!("l{n}")));
        let cold = Cold::new(Duration::from_millis(latency), in_flight);
        let slow = SlowFs::cold(source.path(), cold.with_catalogues(layers));
        let mut fixture = Fixture::new("cold-mount");
        fixture.lowers = (0..LAYERS)
            .map(|n| slow.root().join(format!("l{n}")))
            .collect();
        fixture.trust_lowers();
        let profiles = Scratch::new("cold-profiles");
        fixture.options = vec![
            "--prefetch=auto".into(),
            format!("--profiles={}", profiles.path().display()),
        ];
        Some(Case {
            fixture,
            slow,
            profiles,
            _source: source,
        })
    }

    fn cold(&self) -> &Cold {
        self.slow.cold.as_ref().unwrap()
    }

    fn mount(&self) -> Daemon {
        Daemon::mount(&self.fixture)
    }

    fn at(&self, path: &str) -> PathBuf {
        self.fixture.mnt.join(path)
    }

    fn read(&self, numbers: impl Iterator<Item = usize>) {
        for n in numbers {
            let content = fs::read_to_string(self.at(&path(n))).unwrap();
            assert_eq!(content, path(n).repeat(50));
        }
    }

    /// Mounts, reads these files, and unmounts; the client and the kernel know nothing at the beginning.
    fn run(&self, numbers: impl Iterator<Item = usize>) -> Duration {
        self.slow.renew();
        let begun = Instant::now();
        let daemon = self.mount();
        self.read(numbers);
        let took = begun.elapsed();
        daemon.end();
        took
    }

    fn profile_path(&self) -> PathBuf {
        let entries = fs::read_dir(self.profiles.path()).unwrap();
        let mut paths = entries.map(|entry| entry.unwrap().path());
        let named = |path: &PathBuf| path.extension().is_some_and(|end| end == "profile");
        paths.find(named).expect("a profile")
    }

    fn profile(&self) -> Profile {
        store::read(&self.profile_path()).unwrap()
    }

    /// What the mount says of its prefetch.
    fn prefetch(&self) -> Value {
        Stats::of(&self.fixture.mnt).json()["prefetch"].clone()
    }

    /// Waits until that is true of the prefetch.
    fn wait(&self, what: &str, mut is: impl FnMut(&Value) -> bool) -> Value {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.prefetch();
            if is(&seen) {
                return seen;
            }
            assert!(Instant::now() < deadline, "{what}: {seen}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn number(of: &Value, key: &str) -> u64 {
    of[key].as_u64().unwrap_or_else(|| panic!("{key}: {of}"))
}

#[test]
fn the_second_run_fetches_at_once_what_the_first_opened() {
    let served = |latency| [(latency, 10), (latency, 16)];
    for (latency, in_flight) in [5, 25, 100].into_iter().flat_map(served) {
        let Some(case) = Case::new(latency, in_flight, |_| {}) else {
            return;
        };
        let first = case.run(0..FILES);
        let fetched = (FILES + LAYERS) as u64;
        assert_eq!(case.cold().transfers(), fetched);
        let profile = case.profile();
        assert_eq!((profile.runs, profile.files.len()), (1, FILES));
        let order: Vec<String> = (0..FILES).map(path).collect();
        let recorded = profile
            .files
            .iter()
            .map(|file| String::from_utf8_lossy(&file.path));
        assert_eq!(recorded.collect::<Vec<_>>(), order);

        case.slow.renew();
        let begun = Instant::now();
        let daemon = case.mount();
        case.read(0..FILES);
        let second = begun.elapsed();
        let seen = case.prefetch();
        daemon.end();
        // Each once, though two wanted it: the readers and the program.
        assert_eq!(case.cold().transfers(), fetched);
        assert!(case.cold().most() >= 8, "{} at a time", case.cold().most());
        assert!(case.cold().most() <= in_flight);
        eprintln!("{latency} ms, {in_flight} in flight: {first:?}, then {second:?}");
        let [wanted, files, used, late, failed] =
            ["wanted", "files", "used", "late", "failed"].map(|key| number(&seen, key));
        assert_eq!((wanted, failed), (FILES as u64, 0));
        assert_eq!((files, used), (wanted - late, files), "{seen}");
        assert!(
            files > wanted / 2 && number(&seen, "saved_ms") > 0,
            "{seen}"
        );
        assert_eq!(case.profile().runs, 2);
    }
}

#[test]
fn files_are_opened_once_whoever_opens_them() {
    let Some(case) = Case::new(300, 10, |_| {}) else {
        return;
    };
    case.run(0..3);
    case.slow.renew();
    let before = case.slow.faults.tally().get("open").copied().unwrap_or(0);
    let daemon = case.mount();
    // They are on their way, or wait for it.
    case.read(0..3);
    let opens = case.slow.faults.tally()["open"] - before;
    assert_eq!(opens, 3);
    daemon.end();
}

/// As many requests are under way as the layers' file system serves, and more wait in it.
#[test]
fn a_program_waits_for_one_transfer_at_most_before_its_own() {
    const LATENCY: u64 = 100;
    const SERVED: usize = 10;
    const MANY: usize = 400;
    // Names in one directory are looked up one after the other.
    let many = |n: usize| format!("many/d{}/f{n}", n % 50);
    let Some(case) = Case::new(LATENCY, SERVED, |source| {
        for n in 0..MANY {
            file(source.join("l0").join(many(n)), "x");
        }
    }) else {
        return;
    };
    case.slow.renew();
    let daemon = case.mount();
    std::thread::scope(|scope| {
        for part in 0..10 {
            let case = &case;
            scope.spawn(move || {
                for n in (part..MANY).step_by(10) {
                    fs::read(case.at(&many(n))).unwrap();
                }
            });
        }
    });
    daemon.end();
    case.slow.renew();
    let daemon = case.mount();
    // What leads to it takes requests of its own.
    fs::symlink_metadata(case.at(&path(0))).unwrap();
    case.cold().wait_for(LAYERS as u64 + 60);
    let begun = Instant::now();
    let asked = case.cold().most_asked(|| case.read(std::iter::once(0)));
    let took = begun.elapsed();
    // Of fewer than twice what is served at once, each waits for one transfer at most before its turn.
    assert!(asked < 2 * SERVED, "{asked} requests at one time");
    let left = MANY as u64 - number(&case.prefetch(), "files");
    assert!(left > 100, "it was served behind the queue: {left}");
    let one = Duration::from_millis(LATENCY);
    assert!(took >= one, "{took:?}");
    eprintln!("a program's own file took {took:?}, of it {one:?} to fetch it");
    daemon.end();
}

/// The kernel tells of no read then, and opens the files itself.
#[test]
fn files_that_the_kernel_reads_by_itself_are_known_too() {
    let large = |source: &Path| file(source.join("l0/large"), &"x".repeat(8 << 20));
    let Some(mut case) = Case::new(5, 10, large) else {
        return;
    };
    if !require_all(&["passthrough"]) {
        return;
    }
    case.fixture.read_only = true;
    case.fixture.options.push("--passthrough=all".into());
    let daemon = case.mount();
    fs::read(case.at("large")).unwrap();
    daemon.end();
    assert_eq!(
        case.profile().files[0].parts.pieces(),
        1,
        "not all of a large one"
    );
    fs::remove_file(case.profile_path()).unwrap();
    case.run(0..40);
    assert_eq!(case.profile().files.len(), 40);
    case.slow.renew();
    let daemon = case.mount();
    case.wait("all are there", |seen| number(seen, "files") == 40);
    case.read(0..40);
    let seen = case.prefetch();
    assert_eq!(number(&seen, "used"), 40, "{seen}");
    assert_eq!(case.cold().transfers(), (40 + LAYERS) as u64);
    daemon.end();
}

#[test]
fn replay_ends_with_the_mount() {
    let Some(case) = Case::new(100, 1, |_| {}) else {
        return;
    };
    let daemon = case.mount();
    case.read(0..30);
    daemon.end();
    case.slow.renew();
    let daemon = case.mount();
    case.cold().wait_for(LAYERS as u64 + 3);
    let begun = Instant::now();
    daemon.end();
    let took = begun.elapsed();
    let fetched = case.cold().transfers();
    assert!(fetched < 25, "{fetched} were fetched");
    assert!(took < Duration::from_secs(2), "{took:?}");
    // Nobody is left who fetches: what was under way ends.
    std::thread::sleep(Duration::from_millis(500));
    assert!(case.cold().transfers() <= fetched + 1);
    assert_eq!(
        case.profile().runs,
        1,
        "nothing was opened in the second run"
    );
}

#[test]
fn a_layer_that_fails_is_asked_no_more() {
    let Some(case) = Case::new(1, 10, |_| {}) else {
        return;
    };
    case.run(0..FILES);
    case.slow.renew();
    for n in (0..FILES).filter(|n| n % LAYERS == 2) {
        case.slow.faults.set(Fault::Open, format!("l2/{}", path(n)));
    }
    let daemon = case.mount();
    let rest = (FILES - FILES / LAYERS) as u64;
    let seen = case.wait("the other layers", |seen| number(seen, "files") == rest);
    // As many as were under way when the first one failed.
    assert!((1..=16).contains(&number(&seen, "failed")), "{seen}");
    case.slow.faults.lift();
    case.read(0..FILES);
    daemon.end();
}

#[test]
fn limits_hold() {
    let big = 4 << 20;
    let Some(mut case) = Case::new(1, 10, |source| {
        file(source.join("l0/big"), &"0123456789abcdef".repeat(big / 16));
    }) else {
        return;
    };
    case.slow.renew();
    let daemon = case.mount();
    case.read(0..FILES);
    // The beginning of it, and what the kernel reads ahead of that.
    let mut head = vec![0; 4096];
    let mut large = fs::File::open(case.at("big")).unwrap();
    std::io::Read::read_exact(&mut large, &mut head).unwrap();
    drop(large);
    daemon.end();
    let profile = case.profile();
    let large = profile
        .files
        .iter()
        .find(|file| *file.path == *b"big")
        .unwrap();
    assert!(
        large.parts.pieces() & 1 == 1 && large.parts.pieces().count_ones() < 40,
        "{large:?}"
    );

    let options = case.fixture.options.clone();
    let mut with = |limits: &str, is: &dyn Fn(&Value) -> bool| {
        case.slow.renew();
        case.fixture.options = options.clone();
        case.fixture
            .options
            .push(format!("--prefetch-limits={limits}"));
        let daemon = case.mount();
        let seen = case.wait(limits, is);
        let most = case.cold().most();
        daemon.end();
        (seen, most)
    };
    let count = |seen: &Value| number(seen, "files");
    let (seen, most) = with("readers=2", &|seen| count(seen) == FILES as u64 + 1);
    assert!(most <= LAYERS, "{most} at a time");
    let bytes = number(&seen, "bytes");
    assert!(bytes < big as u64, "only what was read: {bytes}");
    with("files=7", &|seen| count(seen) == 7);
    let (seen, _) = with("bytes=2K", &|seen| count(seen) > 0);
    assert!(number(&seen, "bytes") <= 2048, "{seen}");
    let (seen, _) = with("seconds=0", &|seen| number(seen, "wanted") > 0);
    assert_eq!(count(&seen), 0);
}

#[test]
fn many_mounts_at_once_fetch_each_file_once() {
    const MOUNTS: usize = 64;
    let Some(case) = Case::new(10, 10, |_| {}) else {
        return;
    };
    case.run(0..FILES);
    case.slow.renew();
    let fixtures: Vec<Fixture> = (0..MOUNTS)
        .map(|_| {
            let mut fixture = Fixture::new("cold-many");
            fixture.lowers = case.fixture.lowers.clone();
            fixture.trust_lowers();
            fixture.options = case.fixture.options.clone();
            fixture
        })
        .collect();
    std::thread::scope(|scope| {
        for fixture in &fixtures {
            scope.spawn(|| {
                let daemon = Daemon::mount(fixture);
                for n in 0..FILES {
                    assert!(fs::read(fixture.mnt.join(path(n))).is_ok());
                }
                daemon.end();
            });
        }
    });
    assert_eq!(case.cold().transfers(), (FILES + LAYERS) as u64);
    // Writing takes turns, and who has waited too long gives up.
    let runs = case.profile().runs as usize;
    assert!((2..=MOUNTS + 1).contains(&runs), "{runs} runs");
}

/// How many files the next mount fetches, seen when it fetches no more.
fn fetched_next(case: &Case) -> u64 {
    let daemon = case.mount();
    let (mut files, mut since) = (0, Instant::now());
    let seen = case.wait("the end", |seen| {
        let now = number(seen, "files");
        if now != files {
            (files, since) = (now, Instant::now());
        }
        now > 64 && since.elapsed() > Duration::from_millis(500)
    });
    daemon.end();
    number(&seen, "files")
}

/// With as many readers as there are by default, on a machine as busy as it is: time does not tell then, the
/// client does.
#[test]
fn what_is_warm_already_is_tried_here_and_there() {
    const MANY: usize = 500;
    let name = |n: usize| format!("many/f{n}");
    let Some(case) = Case::new(5, 10, |source| {
        for n in 0..MANY {
            file(source.join("l0").join(name(n)), "x");
        }
    }) else {
        return;
    };
    let run = || {
        let daemon = case.mount();
        for n in 0..MANY {
            assert!(fs::read(case.at(&name(n))).is_ok());
        }
        daemon.end();
    };
    case.slow.renew();
    run();
    // The client has all of it, and so has the kernel.
    let transfers = case.cold().transfers();
    let fetched = fetched_next(&case);
    eprintln!("{fetched} of {MANY} were tried");
    assert!(fetched < MANY as u64 * 9 / 10, "{fetched} of {MANY}");
    assert_eq!(case.cold().transfers(), transfers);
    // The client has nothing of it: all is fetched.
    case.slow.renew();
    let daemon = case.mount();
    case.wait("all are fetched", |seen| {
        number(seen, "files") == MANY as u64
    });
    daemon.end();
}

#[test]
fn a_run_is_kept_when_the_job_has_settled_and_a_crash_loses_no_more_than_the_recording() {
    let Some(case) = Case::new(0, 10, |_| {}) else {
        return;
    };
    case.run(0..10);
    let before = fs::read(case.profile_path()).unwrap();
    let daemon = case.mount();
    case.read(5..20);
    // Killed before that: the profile is the one from before.
    let kill = |daemon: &Daemon| {
        let pid = nix::unistd::Pid::from_raw(daemon.pid() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    };
    kill(&daemon);
    drop(daemon);
    assert_eq!(fs::read(case.profile_path()).unwrap(), before);
    let daemon = case.mount();
    case.read(5..20);
    let deadline = Instant::now() + Duration::from_secs(60);
    while case.profile().runs != 2 {
        assert!(Instant::now() < deadline, "not settled");
        std::thread::sleep(Duration::from_millis(100));
    }
    kill(&daemon);
    drop(daemon);
    let profile = case.profile();
    assert_eq!((profile.runs, profile.files.len()), (2, 20));
}
