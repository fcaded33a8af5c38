//! What the word IMAGE names: descriptors, saved thin images, and images in a repository.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use cvmfs_union::image::repository::{self, list};
use cvmfs_union::image::{What, locate};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;

const THIN: &str = r#"{"version":"1.0","origin":"lab/app:1","layers":[
 {"digest":"11aa","url":"cvmfs://images.example.org/layers/11aa"}]}"#;
const REPOSITORY: &str = "images.example.org";
const NAME: &str = "registry.example.org/lab/app:1";

/// A tar archive of these files; a content that begins with `->` is a symlink.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        if let Some(target) = content.strip_prefix(b"->") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            let target = std::str::from_utf8(target).unwrap();
            archive.append_link(&mut header, name, target).unwrap();
        } else {
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, name, *content).unwrap();
        }
    }
    archive.into_inner().unwrap()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

fn layer() -> Vec<u8> {
    tar(&[("./thin.json", THIN.as_bytes())])
}

/// What `docker save` writes for an image of these layers.
fn docker_save(layers: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let names: Vec<_> = (0..layers.len())
        .map(|i| format!("{i}/layer.tar"))
        .collect();
    let list = json!([{ "Config": "c.json", "RepoTags": ["lab/app:1"], "Layers": names }]);
    let mut files = vec![("manifest.json".to_owned(), list.to_string().into_bytes())];
    files.extend(names.into_iter().zip(layers.iter().cloned()));
    files
}

/// An OCI layout with one image of one layer.
fn oci(layer: Vec<u8>) -> Vec<(String, Vec<u8>)> {
    let blob = |hex: &str| json!({ "digest": format!("sha256:{hex}"), "size": 1 });
    let text = |value: serde_json::Value| value.to_string().into_bytes();
    vec![
        ("oci-layout".into(), b"{}".to_vec()),
        (
            "index.json".into(),
            text(json!({ "manifests": [blob("aa01")] })),
        ),
        (
            "blobs/sha256/aa01".into(),
            text(json!({ "config": blob("bb02"), "layers": [blob("cc03")] })),
        ),
        ("blobs/sha256/cc03".into(), layer),
    ]
}

fn as_tar(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let files: Vec<_> = files.iter().map(|(n, c)| (&**n, &**c)).collect();
    tar(&files)
}

fn as_dir(files: &[(String, Vec<u8>)], dir: &Path) {
    for (name, content) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// The digests of the layers that are found, or why there are none.
fn found(name: &Path, root: &Path) -> Result<Vec<String>, String> {
    match locate(name, root).map_err(|e| e.to_string())?.what {
        What::Thin(image) => Ok(image.layers.into_iter().map(|l| l.digest).collect()),
        What::Flat(flat) => Ok(vec![flat.identity]),
    }
}

fn found_in(bytes: &[u8]) -> Result<Vec<String>, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    fs::write(&path, bytes).unwrap();
    found(&path, Path::new("/cvmfs"))
}

fn thin() -> Result<Vec<String>, String> {
    Ok(vec!["11aa".to_owned()])
}

#[test]
fn archives_of_all_kinds() {
    let docker = docker_save(&[layer()]);
    for bytes in [
        THIN.as_bytes().to_vec(),
        layer(),
        gz(&layer()),
        as_tar(&docker),
        gz(&as_tar(&docker)),
        as_tar(&docker_save(&[gz(&layer())])),
        as_tar(&docker_save(&[layer(), tar(&[])])),
        as_tar(&oci(gz(&layer()))),
        tar(&[(".thin", THIN.as_bytes())]),
    ] {
        assert_eq!(found_in(&bytes), thin());
    }
    // A layer that several images share is a symlink in an archive of older versions.
    let mut linked = docker_save(&[b"->../shared/layer.tar".to_vec()]);
    linked.push(("shared/layer.tar".to_owned(), layer()));
    assert_eq!(found_in(&as_tar(&linked)), thin());
}

#[test]
fn directories_of_all_kinds() {
    for files in [
        vec![("thin.json".to_owned(), THIN.as_bytes().to_vec())],
        docker_save(&[layer()]),
        oci(layer()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        as_dir(&files, dir.path());
        assert_eq!(found(dir.path(), Path::new("/cvmfs")), thin());
        // Also one below the root of repositories.
        assert_eq!(found(dir.path(), dir.path().parent().unwrap()), thin());
    }
}

#[test]
fn what_is_no_thin_image() {
    let ordinary = tar(&[("bin/sh", b"x"), ("thin.json", THIN.as_bytes())]);
    for (bytes, why) in [
        (tar(&[("a", b"x")]), "neither a thin.json nor a saved image"),
        (
            as_tar(&docker_save(&[tar(&[("a", b"x")])])),
            "none of its layers holds a thin.json",
        ),
        (
            as_tar(&docker_save(&[ordinary])),
            "none of its layers holds a thin.json",
        ),
        (
            as_tar(&docker_save(&[layer(), tar(&[("a", b"x")])])),
            "1 ordinary layers beside thin.json",
        ),
        (b"\x28\xb5\x2f\xfd....".to_vec(), "zstd"),
        (tar(&[("thin.json", b"{")]), "thin.json: line 1"),
        (as_tar(&oci(layer())[..2]), "blobs/sha256/aa01: missing"),
        (gz(&vec![0; 65 << 20]), "neither a thin.json"),
        (gz(&tar(&[("a", &vec![0; 65 << 20])])), "more than"),
        (gz(&layer())[..60].to_vec(), "image: "),
    ] {
        let said = found_in(&bytes).unwrap_err();
        assert!(said.contains(why), "{why}: {said}");
    }
    let mut two = docker_save(&[layer()]);
    two[0].1 = json!([
        { "RepoTags": ["lab/app:1"], "Layers": ["0/layer.tar"] },
        { "RepoTags": ["lab/other:2"], "Layers": ["1/layer.tar"] },
    ])
    .to_string()
    .into_bytes();
    let said = found_in(&as_tar(&two)).unwrap_err();
    assert!(
        said.contains("lab/app:1") && said.contains("lab/other:2"),
        "{said}"
    );
    // A layer that unpacks to a lot, again and again.
    let large = gz(&tar(&[("a", &vec![0; 20 << 20])]));
    for (times, why) in [(2, "none of its layers"), (4, "more than 67108864 bytes")] {
        let mut many = docker_save(std::slice::from_ref(&large));
        many[0].1 = json!([{ "Layers": vec!["0/layer.tar"; times] }])
            .to_string()
            .into_bytes();
        let said = found_in(&as_tar(&many)).unwrap_err();
        assert!(said.contains(why), "{why}: {said}");
    }
    let mut many = docker_save(&[layer()]);
    many[0].1 = json!([{ "Layers": vec!["x"; 100_001] }])
        .to_string()
        .into_bytes();
    let said = found_in(&as_tar(&many)).unwrap_err();
    assert!(said.contains("more than the limit of 100000"), "{said}");
    // Names in a manifest lead nowhere else.
    let mut out = docker_save(&[layer()]);
    out[0].1 = br#"[{"Layers":["../../etc/passwd"]}]"#.to_vec();
    let said = found_in(&as_tar(&out)).unwrap_err();
    assert!(said.contains("none of its layers"), "{said}");
}

/// A repository with one image of two layers, and its root.
struct Published(tempfile::TempDir);

impl Published {
    fn new() -> Published {
        let published = Published(tempfile::tempdir().unwrap());
        for digest in ["3c0d", "9ef1"] {
            fs::create_dir_all(published.layer(digest)).unwrap();
        }
        let blob = |hex: &str| json!({ "Digest": format!("sha256:{hex}"), "Size": 1_000_000 });
        let manifest = json!({
            "SchemaVersion": 2,
            "Config": blob("ab12"),
            "Layers": [blob("3c0d"), blob("9ef1")],
        });
        fs::create_dir_all(published.manifest().parent().unwrap()).unwrap();
        fs::write(published.manifest(), manifest.to_string()).unwrap();
        published
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn home(&self) -> PathBuf {
        self.root().join(REPOSITORY)
    }

    fn layer(&self, digest: &str) -> PathBuf {
        let folder = format!(".layers/{}/{digest}/layerfs", &digest[..2]);
        self.home().join(folder)
    }

    fn manifest(&self) -> PathBuf {
        self.home()
            .join(".metadata")
            .join(NAME)
            .join("manifest.json")
    }

    /// Adds the flat tree and its public name.
    fn flatten(&self) {
        fs::create_dir_all(self.home().join(".flat/ab/ab12")).unwrap();
        let public = self.home().join(NAME);
        fs::create_dir_all(public.parent().unwrap()).unwrap();
        symlink("../../.flat/ab/ab12", public).unwrap();
    }

    fn found(&self, name: &str) -> Result<Vec<String>, String> {
        found(Path::new(name), self.root())
    }
}

#[test]
fn an_image_of_a_repository() {
    let published = Published::new();
    let layers = Ok(vec!["3c0d".to_owned(), "9ef1".to_owned()]);
    let below = format!("{}/{NAME}", published.home().display());
    let named = format!("cvmfs://{REPOSITORY}/{NAME}");
    let elsewhere = format!("/cvmfs/{REPOSITORY}/{NAME}");
    for flat in [false, true] {
        if flat {
            published.flatten();
        }
        for name in [&below, &named, &elsewhere] {
            assert_eq!(published.found(name), layers, "{name}");
        }
    }
    let located = locate(Path::new(&named), published.root()).unwrap();
    assert_eq!(located.remark, None);
    let What::Thin(image) = located.what else {
        panic!("{located:?}")
    };
    assert_eq!(image.origin.as_deref(), Some(&*named));
    assert_eq!(image.layers[0].folder, ".layers/3c/3c0d/layerfs");
    // As docker does it, no tag is `latest`.
    let latest = NAME.replace(":1", ":latest");
    let from = published.manifest();
    let to = published.home().join(".metadata").join(&latest);
    fs::create_dir(&to).unwrap();
    fs::copy(&from, to.join("manifest.json")).unwrap();
    let untagged = named.strip_suffix(":1").unwrap();
    assert_eq!(published.found(untagged), layers);
}

#[test]
fn the_flat_tree_stands_in() {
    let published = Published::new();
    published.flatten();
    let named = format!("cvmfs://{REPOSITORY}/{NAME}");
    let flat = Ok(vec!["flat:ab12".to_owned()]);
    let remark = || locate(Path::new(&named), published.root()).unwrap().remark;
    fs::remove_dir(published.layer("9ef1")).unwrap();
    assert_eq!(published.found(&named), flat);
    assert!(
        remark().unwrap().contains("no layer 9ef1"),
        "{:?}",
        remark()
    );
    fs::write(published.manifest(), "{").unwrap();
    assert_eq!(published.found(&named), flat);
    assert!(remark().unwrap().contains("line 1"), "{:?}", remark());
    fs::remove_file(published.manifest()).unwrap();
    assert_eq!(published.found(&named), flat);
    assert_eq!(remark(), None);
    // A public name that leads elsewhere is no image.
    let public = published.home().join(NAME);
    fs::remove_file(&public).unwrap();
    symlink("/etc", &public).unwrap();
    let said = published.found(&named).unwrap_err();
    assert!(said.contains("no such image"), "{said}");
}

#[test]
fn references_that_are_wrong() {
    let published = Published::new();
    for (name, why) in [
        ("cvmfs://images.example.org", "names no image"),
        ("cvmfs://images.example.org/", "empty"),
        ("cvmfs://images.example.org/../x", "\"..\""),
        ("cvmfs://../x/y", "not a repository name"),
        ("cvmfs://images.example.org/absent:1", "no such image"),
        ("cvmfs://other.example.org/absent:1", "not mounted"),
        ("/absent/thin.json", "No such file"),
    ] {
        let said = published.found(name).unwrap_err();
        assert!(said.contains(why), "{name}: {said}");
    }
    fs::write(
        published.manifest(),
        r#"{"Config":{"Digest":"sha256:../x"},"Layers":[]}"#,
    )
    .unwrap();
    let said = published
        .found(&format!("cvmfs://{REPOSITORY}/{NAME}"))
        .unwrap_err();
    assert!(
        said.contains("config.digest") && said.contains("manifest.json"),
        "{said}"
    );
    // No reference, as it leads into no repository.
    let path = published.root().join("Thin.d");
    assert_eq!(repository::reference(&path, published.root()), None);
}

#[test]
fn a_repository_is_listed() {
    let published = Published::new();
    let names = || -> Vec<(String, bool, bool)> {
        let images = list(REPOSITORY, published.root()).unwrap();
        let image = |i: repository::Entry| (i.name, i.manifest.is_ok(), i.flat);
        images.into_iter().map(image).collect()
    };
    assert_eq!(names(), [(NAME.to_owned(), true, false)]);
    published.flatten();
    assert_eq!(names(), [(NAME.to_owned(), true, true)]);
    fs::remove_dir_all(published.home().join(".metadata")).unwrap();
    assert_eq!(names(), [(NAME.to_owned(), false, true)]);
    symlink(
        "/etc",
        published.home().join("registry.example.org/no:image"),
    )
    .unwrap();
    assert_eq!(names(), [(NAME.to_owned(), false, true)]);
    let absent = list("other.example.org", published.root()).unwrap_err();
    assert!(absent.to_string().contains("other.example.org"), "{absent}");
}

#[test]
fn what_cannot_be_an_image_is_not_walked() {
    let published = Published::new();
    published.flatten();
    // The layers of the first layout: whole trees of files, with symlinks.
    let layer = published.home().join("layers/11aa/usr");
    fs::create_dir_all(&layer).unwrap();
    symlink(
        published.home().join(".flat/ab/ab12"),
        layer.join("looks:like-one"),
    )
    .unwrap();
    let images = list(REPOSITORY, published.root()).unwrap();
    let names: Vec<_> = images.into_iter().map(|image| image.name).collect();
    assert_eq!(names, [NAME]);
}

/// Bug to avoid: an image of which the manifest cannot be asked for is not listed, and nobody hears of it.
#[test]
fn a_list_is_whole_or_an_error() {
    let published = Published::new();
    let mut dir = published.home().join(".metadata");
    // The path of the manifest in there is too long to be asked for.
    while dir.as_os_str().len() < 4090 {
        let left = 4090 - dir.as_os_str().len();
        let next = if left < 400 { left.min(200) } else { 201 };
        dir.push("a".repeat(next - 1));
    }
    fs::create_dir_all(&dir).unwrap();
    let said = list(REPOSITORY, published.root()).unwrap_err().to_string();
    assert!(said.contains("manifest.json"), "{said}");
}
