//! Fuzzing on stable: each target is a property of arbitrary bytes, and takes its inputs from its corpus in
//! `tests/corpus/`, and from what becomes of these by random edits.
//!
//! `CVMFS_UNION_FUZZ_SECONDS` is the time for each target, `CVMFS_UNION_FUZZ_SEED` the seed of a failed run.
//! A coverage-guided fuzzer can call the targets' `check` as it is.

mod calls;
mod descriptor;
mod dialect;
mod marks;
mod names;
mod profile;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use arbtest::arbitrary::{Result, Unstructured};
use arbtest::arbtest;

/// The time for a target that nobody asked more of.
const SECONDS: u64 = 3;
/// The longest input.
const MOST: usize = 1 << 14;

/// Holds a property against the corpus of a target, and against edited inputs until the time is over.
fn run(name: &str, tokens: &[&[u8]], check: fn(&[u8])) {
    let corpus = corpus(name);
    assert!(!corpus.is_empty(), "{name} has no corpus");
    for (file, input) in &corpus {
        eprintln!("{name}: {file}");
        check(input);
    }
    let inputs: Vec<&[u8]> = corpus.iter().map(|(_, input)| input.as_slice()).collect();
    let seconds = std::env::var("CVMFS_UNION_FUZZ_SECONDS");
    let seconds = seconds.map_or(SECONDS, |text| text.parse().unwrap());
    let mut tried = 0;
    let search = arbtest(|u| {
        let input = edited(u, &inputs, tokens)?;
        tried += 1;
        check(&input);
        Ok(())
    })
    .size_max(4096)
    .budget(Duration::from_secs(seconds));
    match std::env::var("CVMFS_UNION_FUZZ_SEED") {
        Ok(seed) => {
            let digits = seed.trim_start_matches("0x");
            search.seed(u64::from_str_radix(digits, 16).unwrap()).run();
        }
        Err(_) => search.run(),
    }
    eprintln!(
        "{name}: {} of the corpus and {tried} edited inputs",
        corpus.len()
    );
}

/// The committed inputs by their names, which say what they hold.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(name);
    let mut found: Vec<_> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, fs::read(entry.path()).unwrap())
        })
        .collect();
    found.sort();
    found
}

/// An input of the corpus after some edits, or nothing but what was drawn.
fn edited(u: &mut Unstructured<'_>, corpus: &[&[u8]], tokens: &[&[u8]]) -> Result<Vec<u8>> {
    let mut input = if u.ratio(1, 8)? {
        u.arbitrary::<Vec<u8>>()?
    } else {
        u.choose(corpus)?.to_vec()
    };
    for _ in 0..u.int_in_range(0..=12)? {
        let at = u.int_in_range(0..=input.len())?;
        let end = at + u.int_in_range(0..=(input.len() - at).min(64))?;
        match u.int_in_range(0..=6)? {
            0 => drop(input.drain(at..end)),
            1 => drop(input.splice(at..at, u.choose(tokens)?.iter().copied())),
            2 => drop(input.splice(at..end, u.choose(tokens)?.iter().copied())),
            3 => {
                let again = input.get(at..end).unwrap_or_default().to_vec();
                for _ in 0..u.int_in_range(1..=8)? {
                    input.splice(at..at, again.iter().copied());
                }
            }
            4 => {
                let other = *u.choose(corpus)?;
                let from = u.int_in_range(0..=other.len())?;
                input.splice(at.., other.get(from..).unwrap_or_default().iter().copied());
            }
            5 => drop(input.splice(at..at, u.bytes(4)?.iter().copied())),
            _ => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = u.arbitrary()?;
                }
            }
        }
        input.truncate(MOST);
    }
    Ok(input)
}
