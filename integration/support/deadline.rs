//! An end to waiting: a test that hangs says where every thread stands, and fails.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// Ends the process, with the state of the threads, if it is not dropped in time.
pub struct Deadline {
    _done: Sender<()>,
}

impl Deadline {
    /// Watches this process.
    pub fn new(what: &str, time: Duration) -> Deadline {
        Deadline::of(what, time, vec![std::process::id()])
    }

    /// Watches others too, such as a daemon.
    pub fn of(what: &str, time: Duration, pids: Vec<u32>) -> Deadline {
        let (_done, gone) = channel();
        let what = what.to_owned();
        std::thread::spawn(move || {
            if gone.recv_timeout(time) == Err(RecvTimeoutError::Timeout) {
                eprintln!("{what}: not done after {time:?}");
                for pid in pids {
                    eprintln!("{}", threads(pid));
                }
                std::process::abort();
            }
        });
        Deadline { _done }
    }
}

/// Where the threads of a process stand: name, state, what they wait for and in which call.
pub fn threads(pid: u32) -> String {
    let mut text = format!("threads of {pid}:\n");
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return text + "  none\n";
    };
    for task in tasks.flatten() {
        let read = |name: &str| {
            let path: PathBuf = task.path().join(name);
            let content = std::fs::read_to_string(path).unwrap_or_else(|e| e.to_string());
            content.trim().replace('\n', "\n      ")
        };
        let stat = read("stat");
        let state = stat.rsplit(") ").next().and_then(|rest| rest.get(..1));
        text += &format!(
            "  {} {} {}: waits in {}, call {}\n      {}\n",
            task.file_name().display(),
            read("comm"),
            state.unwrap_or("?"),
            read("wchan"),
            read("syscall"),
            read("stack"),
        );
    }
    text
}
