//! The command line: arguments, exit codes, and one file for each command.

mod inspect;
mod layers;
mod mount;
mod options;
mod stats;
mod umount;
mod upper;

use std::fmt;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

const EXIT_CODES: &str = "Exit codes: 0 success, 1 failure, 2 wrong usage, 3 the descriptor cannot be \
read or is wrong, 4 a layer is missing or broken, 5 the upper cannot be used, 6 the mountpoint \
cannot be used, 7 the mount is busy.";

/// Mounts thin container images from CVMFS as writable file systems.
#[derive(Debug, Parser)]
#[command(name = "cvmfs-union", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Mount(Box<mount::Args>),
    Umount(umount::Args),
    Inspect(inspect::Args),
    Stats(stats::Args),
}

/// Why the program ends, as the caller's `$?` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Code {
    Failure = 1,
    Usage = 2,
    Image = 3,
    Layer = 4,
    Upper = 5,
    Mountpoint = 6,
    Busy = 7,
}

/// A command's failure: what to say and the exit code.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
}

type Outcome<T> = Result<T, Failure>;

impl Failure {
    fn new(code: Code, message: impl Into<String>) -> Self {
        Failure {
            code: code as u8,
            message: message.into(),
        }
    }
}

/// Turns any error into a failure with a code and the words before its cause.
trait OrFail<T> {
    fn or_fail(self, code: Code, what: impl fmt::Display) -> Outcome<T>;
}

impl<T, E: fmt::Display> OrFail<T> for Result<T, E> {
    fn or_fail(self, code: Code, what: impl fmt::Display) -> Outcome<T> {
        self.map_err(|e| Failure::new(code, format!("{what}: {e}")))
    }
}

/// Runs the program.
pub fn run() -> ExitCode {
    let (name, outcome) = match Cli::parse().command {
        Command::Mount(args) => ("mount", mount::run(*args)),
        Command::Umount(args) => ("umount", umount::run(&args)),
        Command::Inspect(args) => ("inspect", inspect::run(&args)),
        Command::Stats(args) => ("stats", stats::run(&args)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("cvmfs-union: {name}: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
