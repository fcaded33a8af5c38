//! Every clause of SEMANTICS has a test, and every test that its last table names is there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const TEXT: &str = include_str!("../src/docs/SEMANTICS.md");

/// The clause at the start of a text, as `S12`.
fn clause(text: &str) -> Option<&str> {
    let digits = text.strip_prefix('S')?;
    let end = digits.find(|c: char| !c.is_ascii_digit());
    let end = end.unwrap_or(digits.len());
    (end > 0).then(|| &text[..=end])
}

/// The rows of the table of tests: a clause, and what it names as `module::function`.
fn rows() -> Vec<(&'static str, Vec<&'static str>)> {
    let (_, table) = TEXT.split_once("## D. Tests").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| "));
    rows.filter_map(|row| {
        let names = row.split('`').skip(1).step_by(2);
        clause(row).map(|clause| (clause, names.collect()))
    })
    .collect()
}

/// `module::function` of each function below a directory, for each folder and file it lies in.
fn functions(dir: &Path, modules: &[String], found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let modules: Vec<_> = modules.iter().cloned().chain([stem.to_owned()]).collect();
        if path.is_dir() {
            functions(&path, &modules, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            for rest in text.split("fn ").skip(1) {
                let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
                let name = &rest[..end.unwrap_or(rest.len())];
                found.extend(modules.iter().map(|module| format!("{module}::{name}")));
            }
        }
    }
}

#[test]
fn every_clause_has_a_test() {
    // A clause is stated where a paragraph or a row of a table begins with its number in bold.
    let stated: BTreeSet<_> = TEXT.split("**").skip(1).filter_map(clause).collect();
    let rows = rows();
    let tested: BTreeSet<_> = rows.iter().map(|(clause, _)| *clause).collect();
    assert_eq!(tested.len(), rows.len(), "a clause has two rows");
    assert_eq!(tested, stated);
    for (clause, tests) in rows {
        assert!(!tests.is_empty(), "{clause} names no test");
    }
}

#[test]
fn every_named_test_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = BTreeSet::new();
    for dir in ["src", "tests", "integration"] {
        functions(&root.join(dir), &[], &mut found);
    }
    for (clause, tests) in rows() {
        for test in tests {
            assert!(found.contains(test), "{clause}: there is no {test}");
        }
    }
}
