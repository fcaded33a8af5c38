//! The command line: arguments, exit codes, and one file for each command.

mod backend;
mod check;
mod diff;
mod explain;
mod inspect;
mod layers;
mod layerstore;
mod list;
mod log;
mod merged;
mod mount;
mod noted;
mod notify;
mod options;
mod overlay;
mod ownership;
mod pages;
mod points;
mod prefetch;
mod probe;
mod profile;
mod run;
mod scan;
mod stats;
mod status;
mod terminal;
mod trial;
mod umount;
mod upper;
mod writer;

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Args as _, FromArgMatches, Subcommand};

use overlay::Personality;

const EXIT_CODES: &str = "Exit codes: 0 success, 1 failure, 2 wrong usage, 3 the image, or a profile that was \
asked for, cannot be found or read, 4 a layer is missing or broken, 5 the upper cannot be used, 6 the mountpoint \
cannot be used, 7 the mount is busy.";

#[derive(Debug, Subcommand)]
enum Command {
    Mount(Box<mount::Args>),
    Overlay(overlay::Args),
    Run(Box<run::Args>),
    Umount(umount::Args),
    Inspect(inspect::Args),
    List(list::Args),
    Layerstore(layerstore::Args),
    Stats(stats::Args),
    Status(status::Args),
    Diff(diff::Args),
    Explain(explain::Args),
    Check(check::Args),
    Probe(probe::Args),
    Man(pages::Man),
    Completions(pages::Completions),
    Profile(profile::Args),
}

/// The grammar of the whole command line.
fn grammar() -> clap::Command {
    Command::augment_subcommands(program())
}

/// The part of [`grammar`] that a command line can meet whose first word this is: to lay out the options of all
/// commands would take a tenth of what a mount takes.
fn grammar_for(word: &OsStr) -> clap::Command {
    match word.as_encoded_bytes() {
        b"mount" => program().subcommand(mount::Args::augment_args(clap::Command::new("mount"))),
        _ => grammar(),
    }
}

/// The program without its commands.
fn program() -> clap::Command {
    clap::Command::new("cvmfs-union")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Mounts thin container images from CVMFS as writable file systems")
        .after_help(EXIT_CODES)
        .subcommand_required(true)
        .arg_required_else_help(true)
}

/// What a command line asks for, whose first word is the program's name.
fn parse(words: &[OsString]) -> Result<Command, clap::Error> {
    let mut grammar = grammar_for(words.get(1).map_or(OsStr::new(""), OsString::as_os_str));
    let mut matches = grammar.try_get_matches_from_mut(words)?;
    Command::from_arg_matches_mut(&mut matches).map_err(|e| e.format(&mut grammar))
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

/// Writes a command's answer.
fn print(text: &str) -> Outcome<()> {
    let written = io::stdout().write_all(text.as_bytes());
    written.or_fail(Code::Failure, "standard output")
}

/// Runs the program.
pub fn run() -> ExitCode {
    let called = std::env::args_os().next().unwrap_or_default();
    let (name, outcome) = match Personality::of(&called) {
        Some(personality) => (personality.name(), personality.run().map(|()| 0)),
        None => command(),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            terminal::say(format_args!("{name}: {}", failure.message));
            ExitCode::from(failure.code)
        }
    }
}

/// Runs the command that the arguments name: the name, and the status to end with.
fn command() -> (&'static str, Outcome<u8>) {
    let done = |outcome: Outcome<()>| outcome.map(|()| 0);
    let words: Vec<_> = std::env::args_os().collect();
    match parse(&words).unwrap_or_else(|e| e.exit()) {
        Command::Mount(args) => ("mount", done(mount::run(*args))),
        Command::Overlay(args) => ("overlay", done(overlay::run(&args))),
        Command::Run(args) => ("run", run::run(*args)),
        Command::Umount(args) => ("umount", done(umount::run(&args))),
        Command::Inspect(args) => ("inspect", done(inspect::run(&args))),
        Command::Layerstore(args) => ("layerstore", done(layerstore::run(&args))),
        Command::List(args) => ("list", done(list::run(&args))),
        Command::Status(args) => ("status", done(status::run(&args))),
        Command::Diff(args) => ("diff", done(diff::run(&args))),
        Command::Explain(args) => ("explain", done(explain::run(&args))),
        Command::Check(args) => ("check", done(check::run(&args))),
        Command::Probe(args) => ("probe", done(probe::run(&args))),
        Command::Man(args) => ("man", done(pages::man(&args))),
        Command::Completions(args) => ("completions", done(pages::completions(&args))),
        Command::Profile(args) => ("profile", done(profile::run(args))),
        Command::Stats(args) => ("stats", done(stats::run(&args))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        grammar().debug_assert();
    }

    /// Said, and with which status, whichever part of the grammar was laid out.
    #[test]
    fn a_part_of_the_grammar_says_what_all_of_it_says() {
        for line in [
            "mount",
            "mount --help",
            "mount -h",
            "mount --version",
            "mount --nothing a b",
            "mount --writeback=perhaps a b",
            "mount --read-only --ephemeral a b",
            "mount a b c",
            "--version mount",
            "--verbose mount a b",
        ] {
            let words = || ["cvmfs-union"].into_iter().chain(line.split(' '));
            let told = |e: clap::Error| (e.exit_code(), e.render().to_string());
            let whole = grammar().try_get_matches_from(words()).err().map(told);
            let part = parse(&words().map(OsString::from).collect::<Vec<_>>());
            assert!(whole.is_some(), "{line}");
            assert_eq!(part.err().map(told), whole, "{line}");
        }
        let words = ["cvmfs-union", "mount", "a", "b"].map(OsString::from);
        assert!(matches!(parse(&words), Ok(Command::Mount(_))));
    }
}
