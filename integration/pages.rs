//! Manual pages, completions and the README against the program's own help.

use std::fs;
use std::process::Command;

use crate::support::{PROGRAM, Scratch, run, text};

fn said(words: &[&str]) -> String {
    // Each option on a line of its own, however long that is.
    let output = run(Command::new(PROGRAM).args(words).env("COLUMNS", "100000"));
    assert!(
        output.status.success(),
        "{words:?}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// The commands that the help names.
fn commands() -> Vec<String> {
    let help = said(&["--help"]);
    let (_, list) = help.split_once("Commands:\n").unwrap();
    let lines = list.lines().take_while(|line| !line.is_empty());
    let words = lines.filter_map(|line| line.split_whitespace().next());
    let commands: Vec<_> = words
        .map(str::to_owned)
        .filter(|word| word != "help")
        .collect();
    assert!(commands.len() > 10, "{help}");
    commands
}

/// The long options of a command.
fn options(command: &str) -> Vec<String> {
    let help = said(&[command, "--help"]);
    let words = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--"));
    let words = words.map(|line| line.split([' ', '=']).next().unwrap().to_owned());
    words.collect()
}

#[test]
fn each_command_has_a_page_with_its_options() {
    let scratch = Scratch::new("man");
    let dir = scratch.path().join("man1");
    said(&["man", dir.to_str().unwrap()]);
    for command in commands() {
        let page = fs::read_to_string(dir.join(format!("cvmfs-union-{command}.1"))).unwrap();
        let page = page.replace('\\', "");
        for option in options(&command) {
            assert!(
                page.contains(&format!("--{option}")),
                "{command} --{option}"
            );
        }
    }
    assert!(dir.join("cvmfs-union.1").is_file());
    assert_eq!(
        run(Command::new(PROGRAM).args(["man", "/proc/none"]))
            .status
            .code(),
        Some(1)
    );
}

#[test]
fn completions_know_each_command() {
    let scratch = Scratch::new("completions");
    let script = scratch.path().join("bash");
    fs::write(&script, said(&["completions", "bash"])).unwrap();
    // As bash does it for a word that was begun, or not.
    let complete = |words: &str, at: usize| -> Vec<String> {
        let ask = format!(
            ". {}; COMP_WORDS=({words}); COMP_CWORD={at}; _cvmfs__union cvmfs-union \"${{COMP_WORDS[{at}]}}\" cvmfs-union; \
             echo \"${{COMPREPLY[@]}}\"",
            script.display()
        );
        let output = run(Command::new("bash").args(["-c", &ask]));
        let said = text(&output.stdout);
        said.split_whitespace().map(str::to_owned).collect()
    };
    let offered = complete("cvmfs-union ''", 1);
    for command in commands() {
        assert!(offered.contains(&command), "{command} not in {offered:?}");
    }
    assert_eq!(complete("cvmfs-union mount --pass", 2), ["--passthrough"]);
}

#[test]
fn the_readme_names_each_command_and_option_of_mount_and_run() {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    for command in commands() {
        let named = [format!("| `{command} "), format!(", `{command} ")];
        assert!(named.iter().any(|n| readme.contains(n)), "{command}");
    }
    for command in ["mount", "run", "diff", "explain", "check", "list", "status"] {
        for option in options(command) {
            let known = ["help", "cvmfs-root", "layer-order"].contains(&&*option);
            assert!(
                known || readme.contains(&format!("--{option}")),
                "{command} --{option}"
            );
        }
    }
}
