//! The commands of RECIPES.md, for the tests that run them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/docs/RECIPES.md");

/// The block beneath each heading of the document, by the heading in small letters with dashes.
fn recipes() -> BTreeMap<String, String> {
    let document = fs::read_to_string(DOCUMENT).unwrap();
    let sections = document.split("\n## ").skip(1);
    let recipe = |section: &str| {
        let (heading, text) = section.split_once('\n').unwrap();
        let mut blocks = text.split("```sh\n").skip(1);
        let block = blocks.next().and_then(|rest| rest.split_once("```\n"));
        let (block, _) = block.unwrap_or_else(|| panic!("no block beneath {heading}"));
        assert!(blocks.next().is_none(), "two blocks beneath {heading}");
        let words = heading.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let words: Vec<_> = words.filter(|word| !word.is_empty()).collect();
        (words.join("-").to_lowercase(), block.to_owned())
    };
    sections.map(recipe).collect()
}

/// Writes a script for each recipe.
pub fn write_to(dir: &Path) {
    fs::create_dir(dir).unwrap();
    for (name, block) in recipes() {
        fs::write(dir.join(format!("{name}.sh")), block).unwrap();
    }
}

/// The scripts of the tests name each recipe, and no other ones.
#[test]
fn each_recipe_is_run() {
    let scripts = [
        include_str!("apptainer.rs"),
        include_str!("podman.rs"),
        include_str!("podman.sh"),
        include_str!("roots.rs"),
    ];
    let mut run = BTreeSet::new();
    let lines = scripts.iter().flat_map(|script| script.lines());
    for line in lines.filter(|line| !line.starts_with('#') && !line.starts_with("//")) {
        let mut words = line.split(|c: char| c.is_whitespace() || "\"();".contains(c));
        while let Some(word) = words.next() {
            if matches!(word, "recipe" | "try") {
                let name = words
                    .next()
                    .filter(|word| word.starts_with(char::is_alphabetic));
                run.extend(name.map(str::to_owned));
            }
        }
    }
    let written: BTreeSet<_> = recipes().into_keys().collect();
    assert_eq!(run, written);
}
