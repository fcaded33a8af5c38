//! `man` and `completions`: from the one definition of the commands.

use std::fs;
use std::path::PathBuf;

use clap_complete::Shell;

use super::{Code, OrFail, Outcome};

/// Writes the manual pages, one for each command, into a directory.
#[derive(Debug, clap::Args)]
pub struct Man {
    /// The directory, such as /usr/local/share/man/man1; it is made if it is not there
    dir: PathBuf,
}

/// Prints the completions of a shell.
#[derive(Debug, clap::Args)]
pub struct Completions {
    shell: Shell,
}

pub fn man(args: &Man) -> Outcome<()> {
    fs::create_dir_all(&args.dir).or_fail(Code::Failure, args.dir.display())?;
    let written = clap_mangen::generate_to(super::grammar(), &args.dir);
    written.or_fail(Code::Failure, args.dir.display())
}

pub fn completions(args: &Completions) -> Outcome<()> {
    let mut text = Vec::new();
    let mut command = super::grammar();
    let name = command.get_name().to_owned();
    clap_complete::generate(args.shell, &mut command, name, &mut text);
    // clap_complete 4.6 takes the hyphen in the program's name for a blank in half of what it writes for bash,
    // and then finds no command of it.
    let text = String::from_utf8_lossy(&text).replace("cvmfs__subcmd__union", "cvmfs__union");
    super::print(&text)
}
