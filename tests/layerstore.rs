//! The additional layer store: what is in it after which change of a repository.

use std::fs;
use std::path::{Path, PathBuf};

use cvmfs_union::image::layerstore::{Refreshed, refresh};
use serde_json::{Value, json};
use tempfile::TempDir;

const REPOSITORY: &str = "images.example.org";

/// A repository, and a store of it.
struct Lab {
    dir: TempDir,
}

impl Lab {
    fn new() -> Lab {
        let lab = Lab {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(lab.home().join(".layers")).unwrap();
        lab
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("cvmfs")
    }

    fn home(&self) -> PathBuf {
        self.root().join(REPOSITORY)
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn layer(&self, hex: &str) -> PathBuf {
        self.home().join(".layers").join(&hex[..2]).join(hex)
    }

    fn publish(&self, name: &str, layers: &[&str]) {
        let blob = |hex: &str| json!({"Digest": format!("sha256:{hex}"), "Size": 7});
        let listed: Vec<Value> = layers.iter().map(|hex| blob(hex)).collect();
        let manifest = json!({"SchemaVersion": 2, "Config": blob("cc00"), "Layers": listed});
        let about = self.home().join(".metadata").join(name);
        fs::create_dir_all(&about).unwrap();
        fs::write(about.join("manifest.json"), manifest.to_string()).unwrap();
        for hex in layers {
            fs::create_dir_all(self.layer(hex).join("layerfs")).unwrap();
        }
    }

    fn refresh(&self) -> Refreshed {
        refresh(REPOSITORY, &self.root(), &self.store()).unwrap()
    }

    /// The directories of the store that have a colon in their names, with what is in them.
    fn entries(&self) -> Vec<(String, Vec<String>)> {
        let mut found = Vec::new();
        collect(&self.store(), &self.store(), &mut found);
        found.sort();
        found
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn collect(store: &Path, dir: &Path, found: &mut Vec<(String, Vec<String>)>) {
    for name in names(dir) {
        let path = dir.join(&name);
        if name.contains(':') {
            let below = path.strip_prefix(store).unwrap().display().to_string();
            found.push((below, names(&path)));
        } else {
            collect(store, &path, found);
        }
    }
}

#[test]
fn entries_are_as_podman_wants_them() {
    let lab = Lab::new();
    // The same layer twice is one entry.
    lab.publish("r.example.org/a:1", &["11aa", "22bb", "11aa"]);
    let done = lab.refresh();
    assert_eq!((done.images, done.layers, done.written), (1, 2, 2));
    // By `printf r.example.org/a:1 | base64`.
    let reference = "ci5leGFtcGxlLm9yZy9hOjE=";
    let files = ["blob", "diff", "info"].map(str::to_owned).to_vec();
    assert_eq!(
        lab.entries(),
        [
            (format!("{reference}/sha256:11aa"), files.clone()),
            (format!("{reference}/sha256:22bb"), files),
        ]
    );
    let entry = lab.store().join(reference).join("sha256:22bb");
    let diff = fs::read_link(entry.join("diff")).unwrap();
    assert_eq!(diff, lab.layer("22bb").join("layerfs"));
    let info: Value = serde_json::from_slice(&fs::read(entry.join("info")).unwrap()).unwrap();
    assert_eq!(info["compressed-diff-digest"], "sha256:22bb");
    assert_eq!(
        (&info["compressed-size"], &info["compression"]),
        (&json!(7), &json!(2))
    );
    assert_eq!(lab.refresh().written, 0);
}

#[test]
fn an_entry_stays_while_its_layer_is_there() {
    let lab = Lab::new();
    lab.publish("r.example.org/a:1", &["11aa", "22bb"]);
    lab.refresh();
    // The tag moves on: images that podman has pulled still need the old layer.
    lab.publish("r.example.org/a:1", &["11aa", "33cc"]);
    let done = lab.refresh();
    assert_eq!((done.layers, done.written, done.removed), (2, 1, 0));
    assert_eq!(lab.entries().len(), 3);
    // It is collected, with what a run that was killed has left beside it.
    let entry = lab.store().join("ci5leGFtcGxlLm9yZy9hOjE=/sha256:22bb");
    fs::write(entry.join("1.new"), "").unwrap();
    fs::remove_dir_all(lab.layer("22bb")).unwrap();
    assert_eq!(lab.refresh().removed, 1);
    assert_eq!(lab.entries().len(), 2);
}

#[test]
fn what_is_missing_is_said_and_left_out() {
    let lab = Lab::new();
    lab.publish("r.example.org/a:1", &["11aa", "22bb"]);
    lab.publish("r.example.org/b:1", &["11aa"]);
    fs::remove_dir_all(lab.layer("22bb")).unwrap();
    fs::write(
        lab.home().join(".metadata/r.example.org/b:1/manifest.json"),
        "{",
    )
    .unwrap();
    let done = lab.refresh();
    assert_eq!((done.images, done.layers), (1, 1));
    let [missing, broken] = done.left_out.as_slice() else {
        panic!("{:?}", done.left_out);
    };
    assert!(missing.contains("a:1: layer 22bb is missing"), "{missing}");
    assert!(broken.contains("b:1"), "{broken}");
}

#[test]
fn a_repository_that_went_away_does_not_empty_the_store() {
    let lab = Lab::new();
    lab.publish("r.example.org/a:1", &["11aa"]);
    lab.refresh();
    // The client has died, and the mountpoint is empty.
    fs::rename(lab.home(), lab.root().join("away")).unwrap();
    fs::create_dir(lab.home()).unwrap();
    assert!(refresh(REPOSITORY, &lab.root(), &lab.store()).is_err());
    assert_eq!(lab.entries().len(), 1);
}

#[test]
fn a_store_of_two_repositories() {
    let lab = Lab::new();
    lab.publish("r.example.org/a:1", &["11aa"]);
    lab.refresh();
    // Entries of another repository are not this one's to remove.
    let other = lab.store().join("b3RoZXI=/sha256:44dd");
    fs::create_dir_all(&other).unwrap();
    std::os::unix::fs::symlink("/nowhere/layerfs", other.join("diff")).unwrap();
    assert_eq!(lab.refresh().removed, 0);
    assert_eq!(lab.entries().len(), 2);
}

#[test]
fn nothing_but_entries_of_layers_that_are_gone_is_removed() {
    let lab = Lab::new();
    lab.publish("r.example.org/a:1", &["11aa"]);
    lab.publish("r.example.org/b:1", &["22bb"]);
    lab.refresh();
    // `Zm9v` is "foo" in base64: an image of which somebody else makes the first entry.
    let others = ["empty/empty", "www", "Zm9v", "www/sha256:11aa"].map(|name| {
        let path = lab.store().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    });
    fs::remove_dir_all(lab.layer("11aa")).unwrap();
    std::os::unix::fs::symlink(lab.layer("11aa").join("layerfs"), others[3].join("diff")).unwrap();
    fs::remove_dir_all(lab.home().join(".metadata/r.example.org/a:1")).unwrap();
    assert_eq!(lab.refresh().removed, 1);
    for path in others {
        assert!(path.is_dir(), "{} was removed", path.display());
    }
    // Nothing is left of the image of which the only layer is gone.
    assert!(!lab.store().join("ci5leGFtcGxlLm9yZy9hOjE=").exists());
    assert!(lab.store().join("ci5leGFtcGxlLm9yZy9iOjE=").exists());
}

#[test]
fn a_name_that_podman_cannot_ask_for_is_left_out() {
    let lab = Lab::new();
    lab.publish("r.example.org/aaa?:1", &["11aa"]);
    let done = lab.refresh();
    assert_eq!((done.images, done.layers), (0, 0));
    assert!(done.left_out[0].contains("aaa?:1"), "{:?}", done.left_out);
    assert!(lab.entries().is_empty());
}
