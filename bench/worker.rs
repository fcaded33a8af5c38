//! The loops that are measured. Each runs in a process of its own, in the mounted root, and times itself.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{AccessFlags, ForkResult, fork};
use serde_json::{Value, json};

use crate::support::random::Random;
use crate::support::sys::Map;

const MIB: usize = 1 << 20;
const PAGE: usize = 4096;
/// Random reads and writes are of one page each, so many.
const RANDOM_PAGES: usize = 50_000;

/// What a process used: seconds.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub wall: f64,
    pub cpu: f64,
}

/// One measured piece of work: its name and its arguments, as [`main`] takes them.
#[derive(Clone, Debug)]
pub struct Work(pub Vec<String>);

pub fn work(words: &[&str]) -> Work {
    Work(words.iter().map(|word| (*word).to_owned()).collect())
}

impl Work {
    /// Does it in a process in the root; says what it took.
    pub fn run(&self, root: &Path) -> Result<Used, String> {
        let program = std::env::current_exe().map_err(|e| e.to_string())?;
        let output = Command::new(program)
            .arg("worker")
            .arg(root)
            .args(&self.0)
            .stdin(Stdio::null())
            .output()
            .map_err(|e| e.to_string())?;
        let told = String::from_utf8_lossy(&output.stdout);
        let failed = || {
            let error = String::from_utf8_lossy(&output.stderr);
            format!("{:?}: {}\n{told}{error}", self.0, output.status)
        };
        if !output.status.success() {
            return Err(failed());
        }
        let last = told.lines().last().unwrap_or_default();
        let value: Value = serde_json::from_str(last).map_err(|_| failed())?;
        let number = |key: &str| value[key].as_f64().ok_or_else(failed);
        Ok(Used {
            wall: number("wall")?,
            cpu: number("cpu")?,
        })
    }
}

/// The worker's process: `ROOT WORK ARGUMENTS`.
pub fn main(args: &[String]) {
    let (root, name, args) = (&args[0], args[1].as_str(), &args[2..]);
    std::env::set_current_dir(root).unwrap();
    let argument = |n: usize| args[n].as_str();
    let number = |n: usize| args[n].parse::<usize>().unwrap();
    // What is read before the clock starts.
    let list = || -> Vec<String> {
        let text = fs::read_to_string(argument(0)).unwrap();
        text.lines().map(str::to_owned).collect()
    };
    match name {
        "stat" => timed(list(), |list| list.iter().for_each(|p| stat(p))),
        "absent" => timed(list(), |list| list.iter().for_each(|p| absent(p))),
        "open" => timed(list(), |list| list.iter().for_each(|p| drop(open(p)))),
        "read" => timed(list(), |list| list.iter().for_each(|p| read(p))),
        "read-by" => timed((list(), number(1)), |(list, n)| {
            forked(*n, |_| list.iter().for_each(|p| read(p)));
        }),
        // A fixed amount of work, split between so many.
        "stat-and-open-by" => timed((list(), number(1)), |(list, n)| {
            forked(*n, |i| {
                for path in list.iter().skip(i).step_by(*n) {
                    stat(path);
                    read(path);
                }
            });
        }),
        "list" => timed((), |()| {
            assert!(fs::read_dir(argument(0)).unwrap().count() > 0);
        }),
        "chmod" => timed(list(), |list| list.iter().for_each(|p| chmod(p))),
        "append" => timed(list(), |list| list.iter().for_each(|p| append(p))),
        "shorten" => list().iter().for_each(|path| shorten(path)),
        "populate" => timed(list(), |list| list.iter().for_each(|dir| populate(dir))),
        "create" => timed(number(1), |n| (0..*n).for_each(|i| create(argument(0), i))),
        "rename" => timed(number(1), |n| (0..*n).for_each(|i| rename(argument(0), i))),
        "unlink" => timed(number(1), |n| (0..*n).for_each(|i| unlink(argument(0), i))),
        "mkdir" => timed((), |()| fs::create_dir(argument(0)).unwrap()),
        "read-file" => timed((), |()| read_file(argument(0))),
        "map-file" => timed((), |()| map_file(argument(0))),
        "read-pages" => timed((), |()| pages(argument(0), false)),
        "warm-memory" => timed(number(1), |mib| warm_memory(argument(0), *mib)),
        "write-file" => timed(number(1), |mib| write_file(argument(0), *mib)),
        "write-pages" => timed((), |()| pages(argument(0), true)),
        "chroot" => timed((), |()| run(args, true)),
        "run" => timed((), |()| run(args, false)),
        other => panic!("no work is called {other}"),
    }
    if name == "shorten" {
        println!("{}", json!({"wall": 0.0, "cpu": 0.0}));
    }
}

/// Runs the body with what was prepared for it, and tells the parent what it took.
fn timed<T>(prepared: T, body: impl FnOnce(&T)) {
    let (cpu, start) = (cpu(), Instant::now());
    body(&prepared);
    let wall = start.elapsed().as_secs_f64();
    let used = self::cpu() - cpu;
    println!("{}", json!({"wall": wall, "cpu": used}));
}

/// Seconds of processor time of this process and of its ended children.
fn cpu() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let of = |who| {
        let usage = getrusage(who).unwrap();
        let seconds =
            |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
        seconds(usage.user_time()) + seconds(usage.system_time())
    };
    of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)
}

/// Runs the body in so many processes at once, and waits for them.
fn forked(n: usize, body: impl Fn(usize)) {
    // SAFETY: this process has one thread, so that its child may do all that it does.
    let start = |i| match unsafe { fork() }.unwrap() {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            body(i);
            // SAFETY: nothing is to be tidied up in the child.
            unsafe { libc::_exit(0) }
        }
    };
    let children: Vec<_> = (0..n).map(start).collect();
    for pid in children {
        let ended = waitpid(pid, None);
        assert_eq!(ended, Ok(WaitStatus::Exited(pid, 0)), "a process failed");
    }
}

fn stat(path: &str) {
    fs::symlink_metadata(path).unwrap();
}

fn absent(path: &str) {
    assert!(nix::unistd::access(path, AccessFlags::F_OK).is_err());
}

fn open(path: &str) -> File {
    let mut how = OpenOptions::new();
    how.read(true).custom_flags(libc::O_NOATIME);
    how.open(path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

fn read(path: &str) {
    let mut buffer = [0; 4 * PAGE];
    let mut file = open(path);
    while file.read(&mut buffer).unwrap() > 0 {}
}

/// Twice is as it was.
fn chmod(path: &str) {
    let mode = fs::symlink_metadata(path).unwrap().mode();
    fs::set_permissions(path, fs::Permissions::from_mode(mode ^ 1)).unwrap();
}

fn append(path: &str) {
    let mut file = OpenOptions::new().append(true).open(path).unwrap();
    file.write_all(b"\n").unwrap();
}

/// Undoes an append.
fn shorten(path: &str) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1).unwrap();
}

fn populate(dir: &str) {
    let made = format!("{dir}/bench-made");
    fs::create_dir(&made).unwrap();
    fs::write(format!("{made}/file"), b"content").unwrap();
}

fn create(dir: &str, i: usize) {
    File::create(format!("{dir}/file-{i}")).unwrap();
}

fn rename(dir: &str, i: usize) {
    fs::rename(format!("{dir}/file-{i}"), format!("{dir}/moved-{i}")).unwrap();
}

fn unlink(dir: &str, i: usize) {
    fs::remove_file(format!("{dir}/moved-{i}")).unwrap();
}

fn read_file(path: &str) {
    let mut buffer = vec![0; MIB];
    let mut file = open(path);
    while file.read(&mut buffer).unwrap() > 0 {}
}

fn map_file(path: &str) {
    let file = open(path);
    let len = file.metadata().unwrap().len() as usize;
    let map = Map::new(&file, len, libc::PROT_READ, libc::MAP_SHARED).unwrap();
    let sum: u64 = (0..len)
        .step_by(PAGE)
        .map(|at| u64::from(map.get(at)))
        .sum();
    std::hint::black_box(sum);
}

fn pages(path: &str, write: bool) {
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .open(path)
        .unwrap();
    let count = file.metadata().unwrap().len() as usize / PAGE;
    let (mut random, mut page) = (Random::new(7), [1; PAGE]);
    for _ in 0..RANDOM_PAGES {
        let at = (random.below(count) * PAGE) as u64;
        if write {
            file.write_all_at(&page, at).unwrap();
        } else {
            file.read_exact_at(&mut page, at).unwrap();
        }
    }
}

/// Writes a file of so many MiB and removes it, so that the next one finds its memory there. A host takes from a virtual
/// machine what lay free for some seconds (free page reporting of virtio-balloon), and whoever is first to use such a page
/// again waits for it: a GiB of them takes 2 s, where writing a GiB takes 0.2. Memory of a process does not do: the kernel
/// gives it other pages.
fn warm_memory(path: &str, mib: usize) {
    write_file(path, mib);
    fs::remove_file(path).unwrap();
}

fn write_file(path: &str, mib: usize) {
    let mut file = File::create(path).unwrap();
    let buffer = vec![1; MIB];
    (0..mib).for_each(|_| file.write_all(&buffer).unwrap());
}

/// A program, with the current directory as its root if wanted. What it writes is not looked at.
fn run(args: &[String], chroot: bool) {
    let mut command = Command::new(&args[0]);
    command
        .args(&args[1..])
        .env_clear()
        .env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        )
        .env("HOME", "/root")
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    if chroot {
        // SAFETY: only system calls are made between fork and exec.
        unsafe {
            command.pre_exec(|| {
                std::os::unix::fs::chroot(".")?;
                std::env::set_current_dir("/")
            });
        }
    }
    let status = command.status().unwrap_or_else(|e| panic!("{args:?}: {e}"));
    assert!(status.success(), "{args:?}: {status}");
}
