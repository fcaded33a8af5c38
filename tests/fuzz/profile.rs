//! Bytes as a profile: what is accepted stays in its layers and within the bounds, and means the same when it is
//! written and read once more, and when runs are added.

use cvmfs_union::hash::stable_hash;
use cvmfs_union::profile::{MOST_FILES, MOST_LAYERS, Opened, Profile};

const TOKENS: &[&[u8]] = &[
    b"cvmfs-union profile 1\n",
    b"cvmfs-union profile 2\n",
    b"runs 4294967295\n",
    b"poor 3\n",
    b"replay 1 2 3 4 5\n",
    b"layer aa\n",
    b"layer %41\n",
    b"file 0 100 ffffffffffffffff ffffffff 1 0 a/b\n",
    b"file 0 18446744073709551615 1 1 1 3 c\n",
    b"file 1 0 0 0 2 0 %ff\n",
    b"part 2 1 1\n",
    b"part fffffffffffffff0 ffffffff 4294967295\n",
    b"..",
    b"/",
    b"%2e%2e",
    b"%2f",
    b"%00",
    b"%",
    b" ",
    b"\n",
    b"0",
    b"-1",
    b"\xff",
];

#[test]
fn profiles() {
    super::run("profile", TOKENS, check);
}

pub fn check(bytes: &[u8]) {
    look(bytes);
    // Random edits never hit upon the sum: here it is right.
    let body = bytes.split_inclusive(|b| *b == b'\n');
    let mut summed: Vec<u8> = body
        .filter(|line| !line.starts_with(b"sum "))
        .flatten()
        .copied()
        .collect();
    let sum = format!("sum {:016x}\n", stable_hash(0, &summed));
    summed.extend(sum.as_bytes());
    look(&summed);
}

fn look(bytes: &[u8]) {
    let mut profile = match Profile::parse(bytes) {
        Ok(profile) => profile,
        Err(e) => {
            let text = e.to_string();
            assert!(!text.is_empty() && text.len() < 400, "{text}");
            assert!(!text.chars().any(char::is_control), "{text:?}");
            return;
        }
    };
    within(&profile);
    let run = [Opened {
        layer: "bb".to_owned(),
        path: b"x/y".as_slice().into(),
        size: 1,
        pieces: 1,
    }];
    let both = [
        profile.exported(),
        profile.over(&profile),
        Profile::default().over(&profile),
    ];
    both.iter().for_each(within);
    profile.add_run(&run);
    within(&profile);
    assert!(
        profile
            .files
            .iter()
            .any(|file| *file.path == *b"x/y" && profile.expects(file))
    );
}

fn within(profile: &Profile) {
    assert!(profile.files.len() <= MOST_FILES && profile.layers.len() <= MOST_LAYERS);
    for file in &profile.files {
        assert!(file.layer < profile.layers.len());
        let bad =
            |name: &[u8]| name.is_empty() || name == b"." || name == b".." || name.contains(&0);
        assert!(!file.path.split(|b| *b == b'/').any(bad), "{file:?}");
    }
    assert_eq!(
        Profile::parse(profile.to_text().as_bytes()).as_ref(),
        Ok(profile)
    );
}
