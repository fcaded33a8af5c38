//! What is printed: for people as wide as their terminal, and without colours where there is none; for programs as JSON.

use std::fs::File;
use std::io::Read;
use std::process::Command;

use nix::pty::{Winsize, openpty};
use serde_json::Value;

use crate::support::{PROGRAM, Scratch, run, text};

/// What the program prints on a terminal of so many columns, all of it.
fn on_a_terminal(columns: u16, words: &[&str]) -> String {
    let size = Winsize {
        ws_row: 24,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    let ends = openpty(Some(&size), None).unwrap();
    let terminal = || ends.slave.try_clone().unwrap();
    let mut command = Command::new(PROGRAM);
    command
        .args(words)
        .env_remove("COLUMNS")
        .stdin(terminal())
        .stdout(terminal())
        .stderr(terminal());
    let mut child = command.spawn().unwrap();
    drop((command, ends.slave));
    let mut said = Vec::new();
    // A terminal that nobody has open any more fails, and what was read before is there.
    let closed = File::from(ends.master).read_to_end(&mut said).unwrap_err();
    assert_eq!(closed.raw_os_error(), Some(libc::EIO));
    child.wait().unwrap();
    text(&said).replace('\r', "")
}

/// The same in a pipe.
fn in_a_pipe(words: &[&str]) -> String {
    let output = run(Command::new(PROGRAM).args(words).env("COLUMNS", "100000"));
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// What a terminal shows, without what colours it.
fn without_colours(said: &str) -> String {
    let mut parts = said.split('\x1b');
    let first = parts.next().unwrap_or_default().to_owned();
    let rest = parts.map(|part| part.split_once('m').map_or(part, |(_, rest)| rest));
    first + &rest.collect::<String>()
}

#[test]
fn lines_fit_the_terminal() {
    let scratch = Scratch::new("messages");
    let dir = scratch.path().display().to_string();
    let deep = scratch.dir("a/b").display().to_string();
    for words in [
        &["mount", "--help"][..],
        &["--help"],
        &["probe"],
        // Both are refused, with a reason that is longer than a line.
        &[
            "mount", "--lower", &dir, "--upper", &dir, "--work", &deep, &deep,
        ],
        &["mount", &dir],
    ] {
        let (wide, said) = (in_a_pipe(words), on_a_terminal(80, words));
        assert!(!wide.contains('\x1b'), "{words:?}: {wide}");
        assert!(
            wide.lines().any(|line| line.chars().count() > 80),
            "{words:?}: {wide}"
        );
        let said = without_colours(&said);
        for line in said.lines() {
            let one_word = line.split_whitespace().count() == 1;
            assert!(line.chars().count() <= 80 || one_word, "{words:?}: {line}");
        }
        let words_of = |text: &str| {
            text.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        };
        assert_eq!(words_of(&said), words_of(&wide), "{words:?}");
    }
}

#[test]
fn a_refreshed_store_is_told_to_programs() {
    let scratch = Scratch::new("layerstore-json");
    scratch.dir("cvmfs/r.example.org/.metadata/registry.example.org/image:1");
    scratch.dir("cvmfs/r.example.org/.layers");
    let store = scratch.path().join("store").display().to_string();
    let output = run(Command::new(PROGRAM)
        .args(["layerstore", "--json", "--cvmfs-root"])
        .arg(scratch.path().join("cvmfs"))
        .args(["r.example.org", &store]));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{output:?}"
    );
    assert_eq!(said["directory"], store);
    for count in ["layers", "images", "written", "removed"] {
        assert_eq!(said[count], 0, "{said}");
    }
    assert!(said["left_out"].is_array(), "{said}");
}
