//! Profiles from hand to hand: made by a command, shown, exported, published beside an image, put together, dropped.

use std::collections::BTreeSet;
use std::process::{Command, Output};

use serde_json::json;

use super::*;
use crate::support::{Mounted, PROGRAM, run, text};

/// A thin image of two layers with a program that runs in it, and profiles of its own.
struct Image {
    scratch: Scratch,
    json: PathBuf,
}

impl Image {
    fn new() -> Option<Image> {
        if !require_all(&["root", "fuse"]) {
            return None;
        }
        let scratch = Scratch::new("profiles");
        let layer = |n: usize| {
            scratch
                .path()
                .join(format!("cvmfs/images.example.org/l{n}"))
        };
        copy_program(Path::new("/bin/cat"), &layer(0));
        for name in ["one", "two", "three"] {
            file(layer(1).join("data").join(name), name);
        }
        let entries: Vec<String> = (0..2)
            .map(|n| {
                let digest = format!("{n}").repeat(64);
                let url = format!("cvmfs://images.example.org/l{n}");
                format!(r#"{{"digest": "{digest}", "url": "{url}"}}"#)
            })
            .collect();
        let json = scratch.path().join("thin.json");
        let text = format!(r#"{{"version": "1.0", "layers": [{}]}}"#, entries.join(","));
        fs::write(&json, text).unwrap();
        Some(Image { scratch, json })
    }

    fn profiles(&self, name: &str) -> [String; 2] {
        let dir = self.scratch.path().join(name);
        ["--profiles".into(), dir.display().to_string()]
    }

    fn root(&self) -> [String; 2] {
        let root = self.scratch.path().join("cvmfs");
        ["--cvmfs-root".into(), root.display().to_string()]
    }

    /// `profile WHAT` with the options that choose this image, and more words.
    fn profile(&self, what: &str, place: &str, words: &[&str]) -> Output {
        let mut command = Command::new(PROGRAM);
        command.args(["profile", what]).args(self.profiles(place));
        command.args(self.root()).args(words);
        run(&mut command)
    }

    fn json(&self) -> &str {
        self.json.to_str().unwrap()
    }

    /// Those that `show` shows as expected.
    fn shown(&self, place: &str, of: &str) -> BTreeSet<String> {
        let output = self.profile("show", place, &["--json", of]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
        let files = shown["files"].as_array().unwrap().iter();
        let expected = files.filter(|file| file["expected"] == true);
        let paths = expected.map(|file| file["path"].as_str().unwrap().to_owned());
        paths.filter(|path| path.starts_with("data/")).collect()
    }
}

/// A program and what it needs to run, at the same paths below a directory.
pub fn copy_program(program: &Path, into: &Path) {
    let output = run(Command::new("ldd").arg(program));
    let said = text(&output.stdout);
    let words = said.split_whitespace().filter(|word| word.starts_with('/'));
    for path in words.map(Path::new).chain([program]) {
        let to = into.join(path.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(path, to).unwrap();
    }
}

fn ok(output: &Output) -> String {
    let (said, failed) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{}\n{said}{failed}", output.status);
    said
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| format!("data/{name}")).collect()
}

#[test]
fn a_recorded_run_is_shown_exported_merged_and_dropped() {
    let Some(image) = Image::new() else { return };
    let json = image.json();
    let record = |words: &[&str]| {
        let words = [&[json, "--", "/bin/cat"], words].concat();
        image.profile("record", "own", &words)
    };
    ok(&record(&["/data/one", "/data/two"]));
    assert_eq!(image.shown("own", json), set(&["one", "two"]));
    let table = ok(&image.profile("show", "own", &[json]));
    assert!(
        table.contains("1 runs") && table.contains(":/data/one"),
        "{table}"
    );
    // The command's failure is told.
    let failed = record(&["/data/absent"]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(
        text(&failed.stderr).contains("the command"),
        "{}",
        text(&failed.stderr)
    );

    ok(&record(&["/data/three"]));
    let export = image.scratch.path().join("export");
    let export = export.to_str().unwrap();
    ok(&image.profile("export", "own", &["-o", export, json]));
    assert_eq!(image.shown("own", export), set(&["one", "two", "three"]));
    assert_eq!(
        fs::read_to_string(export).unwrap(),
        ok(&image.profile("export", "own", &[json]))
    );

    // A tag has a profile of its own.
    ok(&image.profile(
        "record",
        "own",
        &["--job=j", json, "--", "/bin/cat", "/data/one"],
    ));
    let tagged = ok(&image.profile("export", "own", &["--job=j", json]));
    let other = image.scratch.path().join("tagged");
    fs::write(&other, tagged).unwrap();
    let other = other.to_str().unwrap();
    assert_eq!(image.shown("own", other), set(&["one"]));
    let whole = image.scratch.path().join("whole");
    let whole = whole.to_str().unwrap();
    ok(&run(
        Command::new(PROGRAM).args(["profile", "merge", "-o", whole, other, export])
    ));
    assert_eq!(image.shown("own", whole), set(&["one", "two", "three"]));

    ok(&image.profile("drop", "own", &[json]));
    let gone = image.profile("show", "own", &[json]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(text(&gone.stderr).contains("no run is known"));
    ok(&image.profile("drop", "own", &["--all", json]));
    assert_eq!(
        image.profile("drop", "own", &["--all", json]).status.code(),
        Some(1)
    );
}

#[test]
fn root_of_a_user_namespace_has_its_profiles_at_home() {
    let Some(image) = Image::new() else { return };
    if !require_all(&["userns"]) {
        return;
    }
    let home = image.scratch.dir("home");
    let mut command = Command::new("unshare");
    command.args(["-Urm", PROGRAM, "profile", "show"]);
    command.args(image.root()).arg(image.json());
    let output = run(command.env("XDG_CACHE_HOME", &home));
    let said = text(&output.stderr);
    let place = home.join("cvmfs-union/profiles/");
    assert!(said.contains(place.to_str().unwrap()), "{said}");
}

#[test]
fn a_profile_beside_the_image_is_used_at_the_first_start() {
    let Some(image) = Image::new() else { return };
    let json = image.json();
    ok(&image.profile(
        "record",
        "elsewhere",
        &[json, "--", "/bin/cat", "/data/one"],
    ));
    let beside = format!("{json}.profile");
    ok(&image.profile("export", "elsewhere", &["-o", &beside, json]));
    let mnt = image.scratch.dir("mnt");
    let mount = |words: &[&str]| {
        let mut command = Command::new(PROGRAM);
        command
            .args(["mount", "--ephemeral", "-v"])
            .args(image.root())
            .args(words);
        let output = run(command.arg(json).arg(&mnt));
        ok(&output);
        let mounted = Mounted(mnt.clone());
        let said = text(&output.stderr);
        (mounted, said)
    };
    let [option, place] = image.profiles("fresh");
    let (mounted, said) = mount(&[&option, &place]);
    assert!(
        said.contains(&beside) && said.contains("fetched ahead"),
        "{said}"
    );
    let deadline = Instant::now() + PATIENCE;
    let used = || number(&Stats::of(&mnt).json()["prefetch"], "used");
    loop {
        let seen = Stats::of(&mnt).json()["prefetch"].clone();
        if number(&seen, "files") == number(&seen, "wanted") && number(&seen, "files") > 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{seen}");
    }
    assert_eq!(used(), 0);
    assert_eq!(fs::read_to_string(mnt.join("data/one")).unwrap(), "one");
    assert_eq!(fs::read_to_string(mnt.join("data/two")).unwrap(), "two");
    assert_eq!(used(), 1);
    let table = ok(&run(Command::new(PROGRAM).arg("stats").arg(&mnt)));
    assert!(
        table.contains("prefetch") && table.contains("saved ms"),
        "{table}"
    );
    let metrics = ok(&run(Command::new(PROGRAM)
        .args(["stats", "--prometheus"])
        .arg(&mnt)));
    assert!(
        metrics.contains("cvmfs_union_prefetch_used 1\n"),
        "{metrics}"
    );
    ok(&run(Command::new(PROGRAM).arg("umount").arg(&mnt)));
    std::mem::forget(mounted);
    // What was there first counts as one run, and this one is another.
    let shown = || image.profile("show", "fresh", &["--json", json]);
    while !shown().status.success() {
        assert!(Instant::now() < deadline, "{}", text(&shown().stderr));
    }
    assert_eq!(image.shown("fresh", json), set(&["one", "two"]));
    let (_mounted, said) = mount(&["--prefetch=off"]);
    assert!(said.contains("nothing is fetched ahead"), "{said}");
    assert_eq!(Stats::of(&mnt).json()["prefetch"], Value::Null);
}

/// An image that is published by its manifest, with a profile in the repository's `.metadata`.
#[test]
fn a_profile_published_in_the_repository_is_used() {
    let Some(image) = Image::new() else { return };
    let repository = image.scratch.path().join("cvmfs/images.example.org");
    let digests = [0, 1].map(|n| format!("{n}").repeat(64));
    for (n, digest) in digests.iter().enumerate() {
        let home = repository.join(format!(".layers/{}/{digest}", &digest[..2]));
        fs::create_dir_all(&home).unwrap();
        fs::rename(repository.join(format!("l{n}")), home.join("layerfs")).unwrap();
    }
    let blob =
        |digest: &str| json!({"MediaType": "x", "Size": 1, "Digest": format!("sha256:{digest}")});
    let manifest = json!({
        "SchemaVersion": 2, "MediaType": "x", "Config": blob(&"c".repeat(64)),
        "Layers": digests.iter().map(|digest| blob(digest)).collect::<Vec<_>>(),
    });
    let name = "registry.example.org/lab/image:1";
    let metadata = repository.join(".metadata").join(name);
    file(metadata.join("manifest.json"), &manifest.to_string());

    let published = format!("cvmfs://images.example.org/{name}");
    let words = [&published, "--", "/bin/cat", "/data/two"];
    ok(&image.profile("record", "elsewhere", &words));
    let profile = metadata.join("profile");
    let profile = profile.to_str().unwrap();
    ok(&image.profile("export", "elsewhere", &["-o", profile, &published]));
    assert_eq!(image.shown("fresh", profile), set(&["two"]));

    let mnt = image.scratch.dir("mnt");
    let mut command = Command::new(PROGRAM);
    command.args(["mount", "--ephemeral", "-v"]);
    command.args(image.root()).args(image.profiles("fresh"));
    let output = run(command.arg(&published).arg(&mnt));
    ok(&output);
    let _mounted = Mounted(mnt.clone());
    let said = text(&output.stderr);
    assert!(
        said.contains(profile) && said.contains("fetched ahead"),
        "{said}"
    );
    let wanted = number(&Stats::of(&mnt).json()["prefetch"], "wanted");
    assert!(wanted > 1, "{wanted}");
    assert_eq!(fs::read_to_string(mnt.join("data/two")).unwrap(), "two");
}
