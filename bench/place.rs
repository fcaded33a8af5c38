//! A system mounted over layers of the image, with a fresh upper, and its daemon.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::support::foreground::Daemon;
use crate::support::{Fixture, System, run, sys, text, umount};

/// What is compared, kernel overlayfs being the measure.
pub const SYSTEMS: [System; 5] = [
    System::Plain,
    System::OverlayfsDefault,
    System::FuseOverlayfs2,
    System::FuseOverlayfs1,
    System::Ours,
];

/// The same with what no FUSE daemon can go below. Only rows of the table of speed are asked of it; it copies nothing up.
pub fn all_systems() -> impl Iterator<Item = System> {
    SYSTEMS.into_iter().chain([System::Floor])
}

/// Directories to be mounted one over the other.
#[derive(Clone, Debug)]
pub struct Layers {
    /// Where the layers lie; mounted from there, so that the names are short.
    pub dir: PathBuf,
    /// Topmost first.
    pub names: Vec<String>,
    /// The same as one directory.
    pub flat: PathBuf,
}

/// How it is mounted.
#[derive(Clone, Default)]
pub struct How {
    /// More options for ours.
    pub options: Vec<String>,
    /// Without an upper.
    pub read_only: bool,
    /// The floor lists names alone.
    pub names: bool,
}

/// A root to work in.
pub struct Place {
    pub system: System,
    pub root: PathBuf,
    daemon: Option<Daemon>,
    mounted: bool,
    // Last: removes the upper.
    _fixture: Fixture,
}

impl Place {
    /// Mounts, with a daemon in the foreground.
    pub fn mount(system: System, layers: &Layers, how: &How) -> Place {
        let (fixture, command) = prepare(system, layers, how);
        let Some(mut command) = command else {
            return Place {
                system,
                root: layers.flat.clone(),
                daemon: None,
                mounted: false,
                _fixture: fixture,
            };
        };
        let daemon = match system {
            System::OverlayfsDefault | System::Overlayfs => {
                succeed(&mut command);
                None
            }
            System::Ours => Some(command.arg("--foreground")),
            System::Floor => Some(&mut command),
            _ => Some(command.arg("-f")),
        };
        let daemon = daemon.map(|command| Daemon::on(system, command, &fixture.mnt));
        Place {
            system,
            root: fixture.mnt.clone(),
            mounted: daemon.is_none(),
            daemon,
            _fixture: fixture,
        }
    }

    pub fn daemon(&self) -> Option<u32> {
        self.daemon.as_ref().map(Daemon::pid)
    }

    /// Seconds of processor time that the daemon has used.
    pub fn daemon_cpu(&self) -> f64 {
        self.daemon().map_or(0.0, cpu_of)
    }

    /// The daemon's resident memory in bytes.
    pub fn memory(&self) -> Option<u64> {
        self.daemon.as_ref().map(Daemon::memory)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(daemon) = self.daemon.take() {
            // Whoever copied the mount meanwhile, as `unshare --mount` does, keeps the daemon. It is killed then, and
            // this is no reason to lose an hour's run.
            if catch_unwind(AssertUnwindSafe(|| daemon.end())).is_err() {
                eprintln!("  the daemon of {} did not end well", self.system.name());
            }
        } else if self.mounted {
            umount(self.system, &self.root).unwrap();
        }
    }
}

fn prepare(system: System, layers: &Layers, how: &How) -> (Fixture, Option<Command>) {
    let mut fixture = Fixture::on(system, "bench");
    fixture.trust_lowers();
    fixture.lowers = layers.names.iter().map(PathBuf::from).collect();
    if system == System::Ours {
        fixture.options = how.options.clone();
    }
    fixture.read_only = how.read_only;
    let mut command = match system {
        System::Floor => Some(floor(&layers.flat, &fixture, how)),
        _ => system.mount_command(&fixture),
    };
    if let Some(command) = &mut command {
        command.current_dir(&layers.dir);
    }
    (fixture, command)
}

/// This program as the floor.
fn floor(tree: &Path, fixture: &Fixture, how: &How) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.arg("floor").arg(tree);
    command.arg(&fixture.upper).arg(&fixture.mnt);
    command.args(how.names.then_some(crate::floor::NAMES));
    command
}

/// Seconds from the start of the mount command until the root can be looked at.
pub fn time_to_mount(system: System, layers: &Layers) -> Option<f64> {
    let (fixture, command) = prepare(system, layers, &How::default());
    let mut command = command?;
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let start = Instant::now();
    let status = command.status().unwrap();
    sys::names(&fixture.mnt).unwrap();
    let took = start.elapsed().as_secs_f64();
    assert!(status.success(), "{command:?}: {status}");
    umount(system, &fixture.mnt).unwrap();
    Some(took)
}

fn succeed(command: &mut Command) {
    let output = run(command);
    let said = text(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// Drops the kernel's clean caches of names and attributes, so that they are read anew.
pub fn drop_names() {
    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

/// Processor time of another process, all its threads, to the nanosecond.
pub fn cpu_of(pid: u32) -> f64 {
    let clock = clock_getcpuclockid(Pid::from_raw(pid as i32)).expect("no such process");
    let time = clock.now().unwrap();
    time.tv_sec() as f64 + time.tv_nsec() as f64 / 1e9
}

/// The layers of the image that `scripts/bench-image` has built.
pub fn image(dir: &Path) -> Layers {
    let order = dir.join("order");
    let names = fs::read_to_string(&order).unwrap_or_else(|e| {
        panic!(
            "no image, run scripts/bench-image: {}: {e}",
            order.display()
        )
    });
    let mut names: Vec<_> = names.lines().map(str::to_owned).collect();
    names.reverse();
    let flat = dir.join("flat");
    // What a run that was ended by force has left there.
    let mut remove = Command::new("find");
    let named = [
        "-name", "bench-*", "-prune", "-exec", "rm", "-rf", "{}", "+",
    ];
    succeed(remove.arg(&flat).args(named));
    Layers {
        dir: dir.join("layers"),
        names,
        flat,
    }
}
