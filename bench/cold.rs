//! Cold starts: mount and job on layers whose client has nothing in its cache, by each system; and what an earlier
//! run is worth. Each run has a file system of its own below, so nothing is warm but where it says so.

use std::fmt::Write;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::place::{How, Layers, Place};
use crate::support::slow_fs::{Cold, SlowFs};
use crate::support::stats::Stats;
use crate::support::{Scratch, System, text};

/// A job that is not done by then is given up.
const GIVE_UP: u32 = 100;
const LATENCIES: [u64; 3] = [5, 25, 100];
const IN_FLIGHT: [usize; 2] = [10, 16];
const PYTHON: [&str; 3] = ["python3", "-c", "import numpy, scipy.linalg"];
const GCC: [&str; 3] = [
    "sh",
    "-c",
    "echo 'int main(void) { return 0; }' | gcc -O2 -x c -o /tmp/program - && /tmp/program",
];
/// A row's second run takes at most so much more than the bound.
const BOUND: f64 = 1.5;
/// From this latency on it is so much faster than kernel overlayfs.
const FASTER: (u64, f64) = (25, 5.0);
/// A first run is no slower than kernel overlayfs, but for the noise of the machine.
const NOISE: f64 = 1.1;

/// One cold start.
struct Run {
    /// Mount and job, seconds; None: given up.
    wall: Option<f64>,
    /// What the client below had to fetch.
    transfers: u64,
    /// The most at a time.
    most: usize,
    /// Requests that reached it.
    requests: u64,
    /// What our daemon has counted of its replay.
    replay: Value,
}

impl Run {
    fn given_up() -> Run {
        Run {
            wall: None,
            transfers: 0,
            most: 0,
            requests: 0,
            replay: Value::Null,
        }
    }

    fn json(&self) -> Value {
        json!({
            "wall": self.wall,
            "transfers": self.transfers,
            "most at a time": self.most,
            "requests": self.requests,
            "prefetch": self.replay,
        })
    }
}

/// The client below.
#[derive(Clone, Copy)]
struct Client {
    latency: u64,
    in_flight: usize,
}

/// All of it: a table, and the raw figures.
pub fn measure(
    layers: &Layers,
    systems: &[System],
    repetitions: usize,
    named: impl Fn(&str) -> bool,
) -> (String, Value) {
    let mut table = String::from(
        "| job | latency, ms | in flight | overlayfs | fuse-overlayfs 2.0 | fuse-overlayfs 1 | off | first run \
         | second run | warm | bound | second / bound | overlayfs / second | first / overlayfs | transfers | requests, first / second |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut raw = Vec::new();
    for (job, command) in [("python", &PYTHON[..]), ("gcc", &GCC[..])] {
        // Who is too slow is so all the more on a slower layer.
        let mut hopeless = Vec::new();
        for latency in LATENCIES {
            for in_flight in IN_FLIGHT {
                if !named(&format!("{job}, {latency} ms, {in_flight} in flight")) {
                    continue;
                }
                let client = Client { latency, in_flight };
                let mut rows = Vec::new();
                for _ in 0..repetitions {
                    rows.push(row(layers, systems, client, command, &mut hopeless));
                }
                rows.sort_by(|a, b| a.second().total_cmp(&b.second()));
                let middle = &rows[rows.len() / 2];
                let from = table.len();
                middle.write(&mut table, job, client, first_to_overlayfs(&rows));
                eprint!("{}", &table[from..]);
                let all: Vec<Value> = rows.iter().map(Row::json).collect();
                raw.push(json!({
                    "job": job, "latency": latency, "in flight": in_flight, "runs": all,
                }));
            }
        }
    }
    (table, json!(raw))
}

/// How long a first run takes, in times of kernel overlayfs: the median of the repetitions' ratios.
fn first_to_overlayfs(rows: &[Row]) -> Option<f64> {
    let ratio = |row: &Row| {
        let overlay = row.other(System::OverlayfsDefault)?;
        Some(row.first.wall? / overlay.wall?)
    };
    let mut ratios: Vec<f64> = rows.iter().filter_map(ratio).collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied()
}

/// One repetition.
struct Row {
    others: Vec<(System, Run)>,
    off: Run,
    first: Run,
    second: Run,
    warm: Run,
    bound: f64,
}

impl Row {
    fn second(&self) -> f64 {
        self.second.wall.unwrap_or(f64::INFINITY)
    }

    fn other(&self, system: System) -> Option<&Run> {
        let found = self.others.iter().find(|(of, _)| *of == system);
        found.map(|(_, run)| run)
    }

    fn json(&self) -> Value {
        let others: Value = self
            .others
            .iter()
            .map(|(system, run)| (system.name().to_owned(), run.json()))
            .collect::<serde_json::Map<_, _>>()
            .into();
        json!({
            "others": others,
            "off": self.off.json(),
            "first": self.first.json(),
            "second": self.second.json(),
            "warm": self.warm.json(),
            "bound": self.bound,
        })
    }

    fn write(&self, table: &mut String, job: &str, client: Client, first: Option<f64>) {
        let wall = |run: Option<&Run>| match run.map(|run| run.wall) {
            None => String::new(),
            Some(None) => format!("> {GIVE_UP}"),
            Some(Some(wall)) => format!("{wall:.2}"),
        };
        let second = self.second();
        let overlay = self.other(System::OverlayfsDefault);
        let gain = overlay.and_then(|run| run.wall).map(|wall| wall / second);
        let share = second / self.bound;
        let missed = share > BOUND
            || client.latency >= FASTER.0 && gain.is_some_and(|g| g < FASTER.1)
            || first.is_some_and(|first| first > NOISE);
        let mark = if job == "python" && missed { " !" } else { "" };
        writeln!(
            table,
            "| {job}{mark} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {:.2} | {share:.2} | {} | {} | {} | {} / {} |",
            client.latency,
            client.in_flight,
            wall(overlay),
            wall(self.other(System::FuseOverlayfs2)),
            wall(self.other(System::FuseOverlayfs1)),
            wall(Some(&self.off)),
            wall(Some(&self.first)),
            wall(Some(&self.second)),
            wall(Some(&self.warm)),
            self.bound,
            gain.map_or_else(String::new, |gain| format!("{gain:.1}")),
            first.map_or_else(String::new, |first| format!("{first:.2}")),
            self.second.transfers,
            self.first.requests,
            self.second.requests,
        )
        .unwrap();
    }
}

fn row(
    layers: &Layers,
    systems: &[System],
    client: Client,
    command: &[&str],
    hopeless: &mut Vec<System>,
) -> Row {
    let Client { latency, in_flight } = client;
    eprintln!("  {}, {latency} ms, {in_flight} in flight", command[0]);
    // In one place: plain directories are known by their paths.
    let slow = below(layers, client);
    let cold = |system, with: &[String]| {
        slow.renew();
        start(system, layers, &slow, command, with)
    };
    let mut others = Vec::new();
    for system in systems {
        if matches!(system, System::Ours | System::Plain | System::Floor) {
            continue;
        }
        let run = match hopeless.contains(system) {
            true => Run::given_up(),
            false => cold(*system, &[]),
        };
        if run.wall.is_none() && !hopeless.contains(system) {
            hopeless.push(*system);
        }
        others.push((*system, run));
    }
    let profiles = Scratch::new("profiles");
    let with = [
        "--prefetch=auto".to_owned(),
        format!("--profiles={}", profiles.path().display()),
    ];
    let off = cold(System::Ours, &[]);
    let first = cold(System::Ours, &with);
    wait_for_profile(profiles.path());
    let second = cold(System::Ours, &with);
    // The client has all of it now; the kernel and the union have nothing.
    let warm = start(System::Ours, layers, &slow, command, &[]);
    let rounds = second.transfers as f64 / in_flight as f64;
    let bound = rounds * latency as f64 / 1000.0 + warm.wall.unwrap_or(0.0);
    Row {
        others,
        off,
        first,
        second,
        warm,
        bound,
    }
}

fn below(layers: &Layers, client: Client) -> SlowFs {
    let cold = Cold::new(Duration::from_millis(client.latency), client.in_flight);
    // As ingestion has it: each layer has a catalogue.
    let catalogues = layers.names.iter().map(PathBuf::from);
    SlowFs::cold(&layers.dir, cold.with_catalogues(catalogues))
}

/// From the mount command to the end of the job.
fn start(system: System, layers: &Layers, slow: &SlowFs, command: &[&str], with: &[String]) -> Run {
    let shown = Layers {
        dir: slow.root().to_owned(),
        ..layers.clone()
    };
    let how = How {
        options: with.to_vec(),
        ..How::default()
    };
    let cold = slow.cold.as_ref().unwrap();
    let (transfers, requests) = (cold.transfers(), slow.faults.requests());
    let begun = Instant::now();
    let place = Place::mount(system, &shown, &how);
    let done = in_time(&place.root, command);
    let wall = done.then(|| begun.elapsed().as_secs_f64());
    let replay = match system {
        System::Ours => Stats::of(&place.root).json()["prefetch"].clone(),
        _ => Value::Null,
    };
    Run {
        wall,
        transfers: cold.transfers() - transfers,
        most: cold.most(),
        requests: slow.faults.requests() - requests,
        replay,
    }
}

/// Whether the job was done before it was given up.
fn in_time(root: &Path, command: &[&str]) -> bool {
    let output = Command::new("timeout")
        .args(["-s", "KILL"])
        .arg(GIVE_UP.to_string())
        .arg(std::env::current_exe().unwrap())
        .arg("worker")
        .arg(root)
        .arg("chroot")
        .args(command)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let given_up = output.status.signal() == Some(libc::SIGKILL);
    assert!(
        output.status.success() || given_up,
        "{command:?}: {}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    output.status.success()
}

/// The daemon keeps its profile when its mount is gone.
fn wait_for_profile(dir: &Path) {
    let begun = Instant::now();
    let there = || {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
        let mut names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
        names.any(|name| name.ends_with(".profile"))
    };
    while !there() {
        assert!(begun.elapsed().as_secs() < 20, "no profile");
        std::thread::sleep(Duration::from_millis(10));
    }
}
