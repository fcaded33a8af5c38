//! Requests that a layer never answers: nobody else waits, and the mount can be ended.
//!
//! The latencies are printed. What is asserted holds on a busy machine too: nothing that has no part
//! in the waiting waits as long as it lasts.

use std::fs;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::Receiver;
use std::time::Instant;

use super::*;
use crate::support::{PROGRAM, daemon, run};

/// So many files are opened in each measurement.
const SAMPLES: usize = 200;
/// More than the threads that requests for one layer, or for one file, may have.
const MANY: usize = 600;
const BLOCKED: [usize; 3] = [0, 50, MANY];

/// Files in the layer that fails, and in the one that does not. Each measurement takes new ones, as
/// the kernel keeps what was read.
fn fill_many(top: &Path, base: &Path) {
    for dir in ["s", "t"] {
        fs::create_dir(top.join(dir)).unwrap();
    }
    fs::create_dir(base.join("o")).unwrap();
    for i in 0..BLOCKED.iter().sum() {
        fs::write(top.join(format!("s/f{i}")), "top").unwrap();
    }
    for i in 0..BLOCKED.len() * SAMPLES {
        fs::write(top.join(format!("t/f{i}")), "top").unwrap();
        fs::write(base.join(format!("o/f{i}")), "base").unwrap();
    }
}

/// Threads that wait; each says what it has read at the end.
struct Waiting(Vec<Receiver<std::io::Result<Vec<u8>>>>);

impl Waiting {
    /// Reads these files, none of which answers.
    fn on_files(f: &Failing, files: Range<usize>) -> Waiting {
        let paths = files.map(|i| format!("s/f{i}"));
        let wait = |path: String| {
            f.fail(Fault::Stall, &path);
            let path = f.at(path);
            start(move || fs::read(path))
        };
        Waiting(paths.map(wait).collect())
    }

    /// Reads so many pages of one file that does not answer.
    fn on_one_file(f: &Failing, n: usize) -> Waiting {
        f.fail(Fault::Stall, "d/big");
        let wait = |i: usize| {
            let path = f.at("d/big");
            start(move || {
                // Each such read is a request of its own.
                let fd = sys::open(path, libc::O_RDONLY | libc::O_DIRECT, 0)?;
                Ok(sys::pread(&fd, 4096, i as i64 * 4096)?)
            })
        };
        Waiting((0..n).map(wait).collect())
    }

    #[track_caller]
    fn check(&self) {
        for (i, reader) in self.0.iter().enumerate() {
            if let Ok(ended) = reader.try_recv() {
                panic!("blocked reader {i} has ended: {:?}", ended.map(|d| d.len()));
            }
        }
    }

    /// After the fault is lifted: all end, and have read what is there.
    fn end(self, expected: impl Fn(usize) -> Vec<u8>) {
        for (i, reader) in self.0.into_iter().enumerate() {
            let data = reader.recv_timeout(Duration::from_secs(30)).unwrap();
            assert!(data.unwrap() == expected(i), "reader {i}");
        }
    }
}

/// Stat, open and read of files, each by its time.
fn measure(dir: PathBuf, from: usize, expected: &'static str) -> Vec<Duration> {
    (from..from + SAMPLES)
        .map(|i| {
            let path = dir.join(format!("f{i}"));
            let begun = Instant::now();
            sys::stat(&path).unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
            begun.elapsed()
        })
        .collect()
}

fn median_and_worst(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort();
    (times[times.len() / 2], times[times.len() - 1])
}

/// All the measurements, under what waits meanwhile. A measurement of what may wait is left out.
fn others(f: &Failing, round: usize, with_same_layer: bool) -> Vec<(String, Duration, Duration)> {
    let from = round * SAMPLES;
    let upper = f.at(format!("u{round}"));
    let (made, dir) = (upper.clone(), upper.clone());
    prompt_in("create", Duration::from_secs(20), move || {
        fs::create_dir(&made).unwrap();
        for i in from..from + SAMPLES {
            fs::write(made.join(format!("f{i}")), "upper").unwrap();
        }
    });
    let mut places = vec![("other layer", f.at("o"), "base"), ("upper", dir, "upper")];
    if with_same_layer {
        places.push(("same layer", f.at("t"), "top"));
    }
    let mut table = Vec::new();
    for (name, dir, expected) in places {
        for temperature in ["cold", "warm"] {
            let dir = dir.clone();
            let what = format!("{name}, {temperature}");
            let times = prompt_in(&what, Duration::from_secs(20), move || {
                measure(dir, from, expected)
            });
            let (median, worst) = median_and_worst(times);
            table.push((what, median, worst));
        }
    }
    table
}

/// Like `prompt`, for more than one call.
fn prompt_in<T: Send + 'static>(
    what: &str,
    limit: Duration,
    body: impl FnOnce() -> T + Send + 'static,
) -> T {
    start(body)
        .recv_timeout(limit)
        .unwrap_or_else(|e| panic!("{what} waits: {e}"))
}

fn print(
    blocked: &str,
    table: &[(String, Duration, Duration)],
    base: &[(String, Duration, Duration)],
) {
    for (what, median, worst) in table {
        let ratio = base
            .iter()
            .find(|(name, ..)| name == what)
            .map_or(1.0, |(_, idle, _)| {
                median.as_secs_f64() / idle.as_secs_f64()
            });
        eprintln!(
            "{blocked:>22}: {what:>18}: median {median:>9.1?}, worst {worst:>9.1?}, \
             median to none blocked {ratio:.2}"
        );
        assert!(*worst < PROMPT, "{what}: {worst:?} with {blocked}");
    }
}

#[test]
fn blocked_requests_delay_nobody_else() {
    let Some(f) = Failing::filled("latency", &[], fill_many) else {
        return;
    };
    let (mut base, mut seen) = (Vec::new(), 0);
    for (round, n) in BLOCKED.into_iter().enumerate() {
        let waiting = Waiting::on_files(&f, seen..seen + n);
        seen += n;
        f.slow.faults.wait_for_stalls(n.min(200));
        let table = others(&f, round, n < 200);
        if round == 0 {
            base = table.clone();
        }
        print(&format!("{n} files blocked"), &table, &base);
        waiting.check();
        f.lift();
        waiting.end(|_| b"top".to_vec());
    }
}

#[test]
fn one_blocked_file_delays_nobody_else() {
    let Some(f) = Failing::filled("one-file", &[], fill_many) else {
        return;
    };
    let waiting = Waiting::on_one_file(&f, MANY);
    f.slow.faults.wait_for_stalls(20);
    print("one file, 600 times", &others(&f, 0, true), &[]);
    waiting.check();
    f.lift();
    let all = content();
    waiting.end(|i| all[i * 4096..][..4096].to_vec());
}

#[test]
fn a_layer_that_answers_nothing_delays_no_other() {
    let Some(f) = Failing::filled("silent", &[], fill_many) else {
        return;
    };
    // Known before, as a listing of a merged directory needs all its layers.
    names(&f.fixture.mnt).unwrap();
    names(&f.at("t")).unwrap();
    let dir = f.at("o");
    measure(dir.clone(), 0, "base");
    f.fail(Fault::StallAll, "");
    let wait = |i: usize| {
        let path = f.at(format!("s/f{i}"));
        start(move || fs::read(path))
    };
    let waiting = Waiting((0..MANY).map(wait).collect());
    f.slow.faults.wait_for_stall();
    let times = prompt_in("another layer", Duration::from_secs(20), move || {
        [
            measure(dir.clone(), 0, "base"),
            measure(dir, SAMPLES, "base"),
        ]
        .concat()
    });
    let (median, worst) = median_and_worst(times);
    eprintln!("a silent layer: median {median:.1?}, worst {worst:.1?}");
    assert!(worst < PROMPT, "{worst:?}");
    let new = f.at("new");
    prompt("create", move || fs::write(new, "new").unwrap());
    waiting.check();
    f.lift();
    waiting.end(|_| b"top".to_vec());
}

/// A slow layer is slow for those that ask it.
#[test]
fn a_slow_layer_slows_no_other() {
    let Some(f) = Failing::filled("slow", &[], fill_many) else {
        return;
    };
    names(&f.at("o")).unwrap();
    let delay = Duration::from_millis(300);
    f.slow.faults.delay(delay);
    let path = f.at("t/f1");
    let slow = start(move || {
        let begun = Instant::now();
        (fs::read_to_string(path).unwrap(), begun.elapsed())
    });
    let dir = f.at("o");
    let times = prompt_in("another layer", Duration::from_secs(20), move || {
        measure(dir, 0, "base")
    });
    let (median, worst) = median_and_worst(times);
    eprintln!("a slow layer: median {median:.1?}, worst {worst:.1?}");
    assert!(median < delay, "{median:?}");
    let (data, took) = slow.recv_timeout(PATIENCE).unwrap();
    assert_eq!(data, "top");
    assert!(took >= delay, "{took:?}");
}

/// A process that reads a file which does not answer.
fn blocked_process(f: &Failing) -> Child {
    f.fail(Fault::Stall, "d/big");
    let mut command = Command::new("cat");
    command.arg(f.at("d/big")).stdout(Stdio::null());
    let child = command.stderr(Stdio::null()).spawn().unwrap();
    f.slow.faults.wait_for_stall();
    child
}

/// How long it takes for the process to be gone.
fn killed(mut child: Child) -> Duration {
    child.kill().unwrap();
    let begun = Instant::now();
    prompt("a killed process", move || child.wait().unwrap());
    begun.elapsed()
}

#[test]
fn a_blocked_reader_can_be_killed() {
    let Some(f) = Failing::new("kill-reader") else {
        return;
    };
    let took = killed(blocked_process(&f));
    eprintln!("killed in {took:.1?}");
    // Nothing is left over of it.
    f.lift();
    assert!(fs::read(f.at("d/big")).unwrap() == content());
}

/// An upper that is refused unless its last mount has come to its end.
const VOLATILE: [&str; 2] = ["--durability", "volatile"];

/// The thread that waits cannot end before its layer answers, but it keeps nothing from the next mount.
fn can_be_mounted_again(f: &mut Failing) {
    f.fixture.forget_mount();
    f.fixture.mount();
    assert_eq!(fs::read_to_string(f.at("d/a")).unwrap(), "top");
}

#[test]
fn umount_while_a_layer_blocks() {
    let Some(mut f) = Failing::filled("umount-blocked", &VOLATILE, |_, _| ()) else {
        return;
    };
    killed(blocked_process(&f));
    let begun = Instant::now();
    let output = run(Command::new(PROGRAM).arg("umount").arg(&f.fixture.mnt));
    assert!(output.status.success(), "{output:?}");
    eprintln!("unmounted in {:.1?}", begun.elapsed());
    assert!(begun.elapsed() < PROMPT);
    can_be_mounted_again(&mut f);
    f.lift();
}

#[test]
fn sigterm_while_a_layer_blocks() {
    let Some(mut f) = Failing::filled("sigterm-blocked", &VOLATILE, |_, _| ()) else {
        return;
    };
    let mut reader = blocked_process(&f);
    let held: OwnedFd = sys::open(f.at("d/a"), libc::O_RDONLY, 0).unwrap();
    let daemon = daemon::of(&f.fixture.mnt);
    let begun = Instant::now();
    daemon::signal(daemon, libc::SIGTERM);
    // Its requests end with it.
    prompt("the reader", move || reader.wait().unwrap());
    eprintln!("the reader ended {:.1?} after SIGTERM", begun.elapsed());
    // What is asked before the daemon has closed its last descriptor is aborted.
    let ended = [Some(Errno::ENOTCONN), Some(Errno::ECONNABORTED)];
    let said = sys::pread(&held, 3, 0).err();
    assert!(ended.contains(&said), "{said:?}");
    can_be_mounted_again(&mut f);
    f.lift();
}

/// A request other than a read holds its caller until it is answered, as the kernel asks for the answer
/// of a daemon that has taken it. The end of the mount is one.
#[test]
fn callers_of_a_silent_layer_end_with_the_mount() {
    let Some(mut f) = Failing::filled("silent-end", &VOLATILE, |_, _| ()) else {
        return;
    };
    let held = sys::open(f.at("d/a"), libc::O_RDONLY, 0).unwrap();
    assert_eq!(sys::pread(&held, 3, 0).unwrap(), b"top");
    f.fail(Fault::StallAll, "");
    let mut command = Command::new("stat");
    let mut caller = command
        .arg(f.at("e/y"))
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    f.slow.faults.wait_for_stall();
    caller.kill().unwrap();
    let begun = Instant::now();
    let daemon = daemon::of(&f.fixture.mnt);
    daemon::signal(daemon, libc::SIGTERM);
    prompt("the caller", move || caller.wait().unwrap());
    eprintln!("the caller ended {:.1?} after SIGTERM", begun.elapsed());
    drop(held);
    f.lift();
    can_be_mounted_again(&mut f);
}
