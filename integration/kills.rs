//! The daemon is killed at random moments under load. The next mount at the same place recovers by
//! itself, and every object is as it was before or after the call that was cut off; what had returned
//! before that is there.
//!
//! `CVMFS_UNION_KILLS` (300) kills over all styles; `CVMFS_UNION_KILLS_SEED` (1) is the first seed. A
//! seed makes the layers, the operations and the delays; where a kill strikes is for the machine to say.

mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use self::worker::Worker;
use crate::support::script::{Item, Random, all_old, layer, put};
use crate::support::sys;
use crate::support::volume::Volume;
use crate::support::{Fixture, Tree, daemon, isolated, now, require_all, run, setting, text};

/// Each works in a directory of its own.
const WORKERS: usize = 4;
/// Kills under load before the next stack; more leave little of the lowers.
const KILLS_OF_A_STACK: usize = 12;
const LARGE: usize = 2 << 20;
/// For the change of a large file; there may be none left.
const LONGEST_WAIT: Duration = Duration::from_millis(200);

/// How an upper is written, and what follows for what may be seen.
#[derive(Clone, Copy, Debug)]
struct Style {
    name: &'static str,
    options: &'static [&'static str],
    /// S62 holds.
    wh: bool,
    /// S44 holds.
    portable: bool,
    /// S41 and S49 hold.
    user_namespace: bool,
}

const OVERLAY: Style = Style {
    name: "overlay",
    options: &[],
    wh: false,
    portable: false,
    user_namespace: false,
};

/// What the kills met, for the report.
#[derive(Debug, Default)]
struct Tally {
    kills: usize,
    operations: usize,
    /// Calls that were cut off, by what had become of them.
    cut: BTreeMap<&'static str, usize>,
}

/// A mounted stack with its workers.
struct Stack {
    fixture: Fixture,
    workers: Vec<Worker>,
    style: Style,
    random: Random,
    // Unmounted last.
    _volume: Option<Volume>,
}

impl Stack {
    fn new(style: Style, seed: u64) -> Stack {
        let mut fixture = Fixture::new(&format!("kills-{}-{seed}", style.name));
        fixture.options = style.options.iter().map(|o| (*o).to_owned()).collect();
        // Without a disk to wait for, a kill meets other steps.
        let volume =
            (seed.is_multiple_of(2) && !style.user_namespace).then(|| Volume::new("tmpfs"));
        if let Some(volume) = &volume {
            (fixture.upper, fixture.work) = (volume.dir("upper"), volume.dir("work"));
        }
        let plain = fixture.scratch().join("plain");
        let mut random = Random::new(seed);
        let names: Vec<_> = (0..WORKERS).map(|i| format!("w{i}")).collect();
        isolated(|| {
            sys::mkdir(&plain, 0o755).unwrap();
            let count = 2 + random.below(2);
            let dirs: Vec<_> = (0..count).map(|_| fixture.lower()).collect();
            for name in &names {
                sys::mkdir(plain.join(name), 0o755).unwrap();
                for (i, dir) in dirs.iter().enumerate().rev() {
                    sys::mkdir(dir.join(name), 0o755).unwrap();
                    for item in layer(&mut random, i == 0, i + 1 == count) {
                        let item = enlarge(item, &mut random);
                        put(&dir.join(name), &item, false);
                        put(&plain.join(name), &item, true);
                    }
                }
            }
            dirs.iter().for_each(|dir| all_old(dir));
            all_old(&plain);
        });
        let start = now() - 1;
        let workers = names.iter().zip(1..);
        let workers =
            workers.map(|(name, i)| Worker::new(&fixture, &plain, name, seed * 1000 + i, start));
        Stack {
            workers: workers.collect(),
            fixture,
            style,
            random,
            _volume: volume,
        }
    }

    /// Until the next kill: now and then at once, mostly after a while.
    fn delay(&mut self) -> Duration {
        let limit = self
            .random
            .pick(&[2_000, 30_000, 100_000, 200_000, 400_000]);
        Duration::from_micros(self.random.below(limit) as u64)
    }

    /// The workers work until the daemon is killed; often while a large file is copied.
    fn kill_under_load(&mut self) {
        let (style, delay, mnt) = (self.style, self.delay(), self.fixture.mnt.clone());
        let aimed = self.random.chance(60);
        let limit = self.random.pick(&[1_000, 5_000]);
        let then = Duration::from_micros(self.random.below(limit) as u64);
        let long = AtomicUsize::new(0);
        let pid = daemon::of(&mnt);
        std::thread::scope(|scope| {
            for worker in &mut self.workers {
                let long = &long;
                scope.spawn(move || isolated(|| worker.work(style, long)));
            }
            std::thread::sleep(delay);
            if aimed {
                let before = long.load(Ordering::Relaxed);
                let end = Instant::now() + LONGEST_WAIT;
                while long.load(Ordering::Relaxed) == before && Instant::now() < end {
                    std::thread::sleep(Duration::from_micros(50));
                }
                std::thread::sleep(then);
            }
            daemon::kill_process(pid, &mnt);
        });
    }

    /// Kills a daemon that is about to mount, or has just done so.
    fn kill_at_start(&mut self) {
        let mut child = self
            .fixture
            .mount_command()
            .arg("--foreground")
            .arg(&self.fixture.mnt)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_micros(self.random.below(25_000) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Kills a daemon that was asked to end.
    fn kill_at_end(&mut self) {
        self.fixture.mount();
        let pid = daemon::of(&self.fixture.mnt);
        daemon::signal(pid, libc::SIGTERM);
        std::thread::sleep(Duration::from_micros(self.random.below(3_000) as u64));
        // It may be gone.
        let _gone = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        daemon::wait_for_end(pid);
    }

    fn kill(&mut self, tally: &mut Tally) {
        self.kill_under_load();
        tally.kills += 1;
        while self.random.chance(25) {
            if self.random.chance(70) {
                self.kill_at_start();
            } else {
                self.kill_at_end();
            }
            tally.kills += 1;
        }
    }

    /// Mounts again and looks at everything.
    fn verify(&mut self, tally: &mut Tally) {
        self.fixture.mount();
        let names: Vec<_> = (0..WORKERS).map(|i| format!("w{i}")).collect();
        assert_eq!(sys::names(&self.fixture.mnt).unwrap(), names);
        let mut numbers = Vec::new();
        for worker in &mut self.workers {
            let tree = worker.verify(self.style, tally);
            numbers.extend(tree.0.values().map(|node| node.ino));
        }
        let work = &self.fixture.work;
        assert_eq!(
            sys::names(work.join("work")).unwrap(),
            [""; 0],
            "left in the work directory"
        );
        let known = ["abilities", "adopted", "index", "inodes", "mount", "work"];
        assert_eq!(sys::names(work).unwrap(), known);
        for entry in sys::names(work.join("index")).unwrap() {
            let ino = u64::from_str_radix(&entry, 16).unwrap();
            assert!(numbers.contains(&ino), "{entry} is left in the index");
        }
        let upper = Tree::read(&self.fixture.upper);
        let temporary = |path: &&Vec<u8>| path.contains(&b'#');
        let left: Vec<_> = upper.0.keys().filter(temporary).map(|p| text(p)).collect();
        assert_eq!(left, [""; 0], "temporaries in the upper");
    }
}

/// Some files are large, so that a kill meets their copying.
fn enlarge(item: Item, random: &mut Random) -> Item {
    match item {
        Item::File(path, content, mode) if content.len() >= 5000 && random.chance(25) => {
            Item::File(path, vec![b'L'; LARGE], mode)
        }
        other => other,
    }
}

/// Kills as many daemons as this style's share of all.
fn campaign(style: Style, share: u64) {
    let kills = setting("CVMFS_UNION_KILLS", 300) * share / 100;
    let first = setting("CVMFS_UNION_KILLS_SEED", 1);
    let mut tally = Tally::default();
    for seed in first.. {
        if tally.kills as u64 >= kills {
            break;
        }
        eprintln!("{}: seed {seed}", style.name);
        let mut stack = Stack::new(style, seed);
        stack.verify(&mut tally);
        for _ in 0..KILLS_OF_A_STACK {
            stack.kill(&mut tally);
            stack.verify(&mut tally);
        }
        tally.operations += stack.workers.iter().map(|w| w.operations).sum::<usize>();
    }
    eprintln!("{}: {tally:?}", style.name);
}

#[test]
fn overlay_style() {
    if require_all(&["root", "fuse"]) {
        campaign(OVERLAY, 40);
    }
}

#[test]
fn wh_style() {
    if require_all(&["root", "fuse"]) {
        let style = Style {
            name: "wh",
            options: &["--whiteouts", "wh"],
            wh: true,
            ..OVERLAY
        };
        campaign(style, 30);
    }
}

#[test]
fn portable_upper() {
    if require_all(&["root", "fuse"]) {
        let style = Style {
            name: "portable",
            options: &["--portable-upper"],
            portable: true,
            ..OVERLAY
        };
        campaign(style, 15);
    }
}

/// Runs [`inside_user_namespace`] where the caller is root of a user namespace only.
#[test]
fn user_namespace() {
    if !require_all(&["fuse", "userns"]) {
        return;
    }
    let program: PathBuf = std::env::current_exe().unwrap();
    let output = run(Command::new("unshare").arg("-Urm").arg(program).args([
        "--exact",
        "--ignored",
        "--nocapture",
        "kills::inside_user_namespace",
    ]));
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("1 passed"), "{said}");
    eprintln!("{said}");
}

#[test]
#[ignore = "run by user_namespace"]
fn inside_user_namespace() {
    let style = Style {
        name: "userns",
        user_namespace: true,
        ..OVERLAY
    };
    campaign(style, 15);
}
