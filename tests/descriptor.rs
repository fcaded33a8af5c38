//! The thin image descriptor: what is read, what is refused, and in which words.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};

use cvmfs_union::descriptor::resolve::{ResolvedLayer, layer_paths};
use cvmfs_union::descriptor::{DescriptorError, Image, LayerOrder, MAX_LAYERS, MAX_SIZE};
use proptest::prelude::*;
use serde_json::json;

const DOCKER2CVMFS: &str = r#"{"version":"1.0","origin":"library/debian:9@https://registry-1.docker.io/v2","layers":[
 {"digest":"11aa","url":"cvmfs://images.example.org/layers/11aa"},
 {"digest":"22bb","url":"cvmfs://images.example.org/layers/22bb"}]}"#;

const DUCC: &str = r#"{"version":"1.0","origin":"https://registry.example.org/library/python:3.11","layers":[
 {"digest":"3c0d","url":"cvmfs://unpacked.example.org/.layers/3c/3c0d/layerfs"},
 {"digest":"9ef1","url":"cvmfs://unpacked.example.org/.layers/9e/9ef1/layerfs"}]}"#;

const OLD: &str = r#"{"version":"0.1","layers":[
 {"digest":"11aa","repo":"images.example.org"},
 {"digest":"22bb","repo":"images.example.org","location":"other/place"},
 {"digest":"33cc","repo":"images.example.org","location":""}]}"#;

fn parse(text: &str) -> Image {
    Image::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// The message with which a descriptor is refused.
fn refusal(text: &str) -> String {
    match Image::parse(text.as_bytes()) {
        Ok(image) => panic!("accepted: {image:?}\n{text}"),
        Err(e) => e.to_string(),
    }
}

/// The message with which a second layer is refused, after a good first one.
fn layer_refusal(layer: &serde_json::Value) -> String {
    let good = json!({"digest": "00", "url": "cvmfs://a.org/x"});
    refusal(&json!({"version": "1.0", "layers": [good, layer]}).to_string())
}

fn url_refusal(url: &str) -> String {
    layer_refusal(&json!({"digest": "11aa", "url": url}))
}

fn paths(image: &Image, order: LayerOrder) -> Vec<PathBuf> {
    layer_paths(image, Path::new("/cvmfs"), order)
        .into_iter()
        .map(|layer| layer.path)
        .collect()
}

fn as_paths(paths: &[&str]) -> Vec<PathBuf> {
    paths.iter().map(PathBuf::from).collect()
}

#[test]
fn version_1_0() {
    let image = parse(DOCKER2CVMFS);
    assert_eq!(image.version, "1.0");
    assert_eq!(image.min_version, None);
    assert_eq!(
        image.origin.as_deref(),
        Some("library/debian:9@https://registry-1.docker.io/v2")
    );
    assert_eq!(image.comment, None);
    assert!(image.other.is_empty());
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|l| (l.digest.as_str(), l.repository.as_str(), l.folder.as_str()))
        .collect();
    assert_eq!(
        layers,
        [
            ("11aa", "images.example.org", "layers/11aa"),
            ("22bb", "images.example.org", "layers/22bb"),
        ]
    );
}

#[test]
fn all_keys() {
    let image = parse(
        r#"{"min_version":"0.1","version":"1.0","origin":"o","layers":[],"comment":"c","made_by":{"n":1}}"#,
    );
    assert_eq!(image.min_version.as_deref(), Some("0.1"));
    assert_eq!(image.origin.as_deref(), Some("o"));
    assert_eq!(image.comment.as_deref(), Some("c"));
    assert_eq!(image.layers, []);
    assert_eq!(
        serde_json::Value::Object(image.other),
        json!({"made_by": {"n": 1}})
    );
}

#[test]
fn topmost_layer_comes_first() {
    assert_eq!(LayerOrder::default(), LayerOrder::BottomFirst);
    let image = parse(DUCC);
    let three = "/cvmfs/unpacked.example.org/.layers/3c/3c0d/layerfs";
    let nine = "/cvmfs/unpacked.example.org/.layers/9e/9ef1/layerfs";
    assert_eq!(
        paths(&image, LayerOrder::BottomFirst),
        as_paths(&[nine, three])
    );
    assert_eq!(
        paths(&image, LayerOrder::TopFirst),
        as_paths(&[three, nine])
    );
}

#[test]
fn resolved_layer_is_whole() {
    let image = parse(DOCKER2CVMFS);
    let layers = layer_paths(&image, Path::new("/srv/c"), LayerOrder::TopFirst);
    assert_eq!(
        layers.first(),
        Some(&ResolvedLayer {
            digest: "11aa".into(),
            repository: "images.example.org".into(),
            folder: "layers/11aa".into(),
            path: "/srv/c/images.example.org/layers/11aa".into(),
        })
    );
}

#[test]
fn version_0_1() {
    let image = parse(OLD);
    assert_eq!(image.version, "0.1");
    assert_eq!(
        paths(&image, LayerOrder::TopFirst),
        as_paths(&[
            "/cvmfs/images.example.org/layers/11aa",
            "/cvmfs/images.example.org/other/place",
            "/cvmfs/images.example.org/layers/33cc",
        ])
    );
}

#[test]
fn location_is_decided_per_layer_and_url_wins() {
    let image = parse(
        r#"{"version":"1.0","layers":[
            {"digest":"11aa","url":"cvmfs://a.org/x","repo":"b.org","location":"../y","size":3},
            {"digest":"22bb","url":"","repo":"b.org"},
            {"digest":"33cc","url":null,"repo":"b.org","location":"z"}]}"#,
    );
    assert_eq!(
        paths(&image, LayerOrder::TopFirst),
        as_paths(&[
            "/cvmfs/a.org/x",
            "/cvmfs/b.org/layers/22bb",
            "/cvmfs/b.org/z"
        ])
    );
    assert_eq!(
        serde_json::Value::Object(image.layers[0].other.clone()),
        json!({"repo": "b.org", "location": "../y", "size": 3})
    );
}

#[test]
fn keys_match_in_any_case() {
    let image = parse(
        r#"{"VERSION":"1.0","Min_Version":"1.0","Origin":"o","Comment":"c",
            "Layers":[{"Digest":"11aa","URL":"cvmfs://a.org/x"},{"DIGEST":"22bb","Repo":"b.org","Location":"y"}]}"#,
    );
    assert_eq!(image.min_version.as_deref(), Some("1.0"));
    assert_eq!(image.origin.as_deref(), Some("o"));
    assert_eq!(image.comment.as_deref(), Some("c"));
    assert!(image.other.is_empty());
    assert_eq!(
        paths(&image, LayerOrder::TopFirst),
        as_paths(&["/cvmfs/a.org/x", "/cvmfs/b.org/y"])
    );
}

#[test]
fn two_spellings_of_a_key() {
    assert_eq!(
        refusal(r#"{"version":"1.0","Version":"0.1","layers":[]}"#),
        r#"version: given as both "Version" and "version""#
    );
    assert_eq!(
        layer_refusal(&json!({"digest": "11", "url": "cvmfs://a.org/x", "URL": "cvmfs://b.org/x"})),
        r#"layers[1].url: given as both "URL" and "url""#
    );
}

#[test]
fn the_same_layer_may_come_twice() {
    let image = parse(
        r#"{"version":"1.0","layers":[{"digest":"aa","url":"cvmfs://a.org/x"},{"digest":"aa","url":"cvmfs://a.org/x"}]}"#,
    );
    assert_eq!(image.layers.len(), 2);
}

#[test]
fn scratch_has_no_layers() {
    for layers in ["[]", "null"] {
        let image = parse(&format!(r#"{{"version":"1.0","layers":{layers}}}"#));
        assert_eq!(paths(&image, LayerOrder::BottomFirst), as_paths(&[]));
    }
}

#[test]
fn broken_json_names_line_and_column() {
    for (text, message) in [
        ("", "line 1, column 0: EOF while parsing a value"),
        ("thin", "line 1, column 2: expected ident"),
        (
            "{\n \"version\": \"1.0\",\n \"layers\": [,]\n}",
            "line 3, column 13: expected value",
        ),
        (
            "{\"version\":\"1.0\",\n\"layers\":[]",
            "line 2, column 11: EOF while parsing an object",
        ),
        (
            "{\"version\":\"1.0\",\"layers\":[]}\n}",
            "line 2, column 1: trailing characters",
        ),
        (
            "{\"version\":\"1.0\",\"layers\":[],}",
            "line 1, column 30: trailing comma",
        ),
    ] {
        assert_eq!(refusal(text), message, "{text}");
    }
}

#[test]
fn broken_json_has_its_place_as_numbers() {
    assert_eq!(
        Image::parse(b"{\n?"),
        Err(DescriptorError::Syntax {
            line: 2,
            column: 1,
            reason: "key must be a string".into()
        })
    );
}

#[test]
fn text_that_is_not_utf_8() {
    let error = Image::parse(b"{\"version\":\"\xff\"}").unwrap_err();
    assert_eq!(
        error.to_string(),
        "line 1, column 13: invalid unicode code point"
    );
}

#[test]
fn deep_nesting_is_an_error_not_a_crash() {
    let text = "[".repeat(1_000_000);
    assert_eq!(
        refusal(&text),
        "line 1, column 128: recursion limit exceeded"
    );
}

#[test]
fn wrong_kinds() {
    for (text, message) in [
        ("[]", "expected an object, found an array"),
        ("null", "expected an object, found null"),
        (
            r#"{"version":1.0,"layers":[]}"#,
            "version: expected a string, found a number",
        ),
        (
            r#"{"version":"1.0","min_version":false,"layers":[]}"#,
            "min_version: expected a string, found a boolean",
        ),
        (
            r#"{"version":"1.0","origin":{},"layers":[]}"#,
            "origin: expected a string, found an object",
        ),
        (
            r#"{"version":"1.0","comment":[],"layers":[]}"#,
            "comment: expected a string, found an array",
        ),
        (
            r#"{"version":"1.0","layers":{}}"#,
            "layers: expected an array, found an object",
        ),
        (
            r#"{"version":"1.0","layers":["11aa"]}"#,
            "layers[0]: expected an object, found a string",
        ),
        (
            r#"{"version":"1.0","layers":[null]}"#,
            "layers[0]: expected an object, found null",
        ),
    ] {
        assert_eq!(refusal(text), message, "{text}");
    }
    assert_eq!(
        layer_refusal(&json!({"digest": 11, "url": "cvmfs://a.org/x"})),
        "layers[1].digest: expected a string, found a number"
    );
    assert_eq!(
        layer_refusal(&json!({"digest": "11", "url": ["cvmfs://a.org/x"]})),
        "layers[1].url: expected a string, found an array"
    );
}

#[test]
fn missing_fields() {
    assert_eq!(refusal("{}"), "version: missing");
    assert_eq!(
        refusal(r#"{"version":null,"layers":[]}"#),
        "version: missing"
    );
    assert_eq!(refusal(r#"{"version":"1.0"}"#), "layers: missing");
    assert_eq!(
        layer_refusal(&json!({"url": "cvmfs://a.org/x"})),
        "layers[1].digest: missing"
    );
    let no_place = "layers[1].url: missing, and there is no repo in its place";
    assert_eq!(layer_refusal(&json!({"digest": "11"})), no_place);
    assert_eq!(
        layer_refusal(&json!({"digest": "11", "url": "", "repo": "", "location": "x"})),
        no_place
    );
}

#[test]
fn unknown_versions() {
    assert_eq!(
        refusal(r#"{"version":"2.0","layers":[]}"#),
        r#"version: "2.0" is not supported, only 1.0 and 0.1"#
    );
    assert_eq!(
        refusal(r#"{"version":"1.0","min_version":"1.1","layers":[]}"#),
        r#"min_version: "1.1" is not supported, only 1.0 and 0.1"#
    );
}

#[test]
fn bad_digests() {
    let refusal =
        |digest: &str| layer_refusal(&json!({"digest": digest, "url": "cvmfs://a.org/x"}));
    assert_eq!(refusal(""), "layers[1].digest: empty");
    for digest in ["11AA", "sha256:11aa", "../11aa", "11aa ", "11ag", "é"] {
        assert_eq!(
            refusal(digest),
            format!("layers[1].digest: {digest:?} is not lower-case hex")
        );
    }
    assert_eq!(
        refusal(&"a".repeat(129)),
        "layers[1].digest: 129 digits, more than the limit of 128"
    );
}

#[test]
fn bad_urls() {
    for (url, reason) in [
        (
            "https://a.org/x",
            r#""https://a.org/x" does not begin with cvmfs://"#,
        ),
        (
            "CVMFS://a.org/x",
            r#""CVMFS://a.org/x" does not begin with cvmfs://"#,
        ),
        (
            "/cvmfs/a.org/x",
            r#""/cvmfs/a.org/x" does not begin with cvmfs://"#,
        ),
        (
            "cvmfs://a.org",
            r#""cvmfs://a.org" has no folder after the repository"#,
        ),
        ("cvmfs://a.org/", r#"folder "" has an empty component"#),
    ] {
        assert_eq!(url_refusal(url), format!("layers[1].url: {reason}"));
    }
}

#[test]
fn bad_repositories() {
    for repository in [
        "", ".", "..", ".a.org", "-a.org", "A.org", "a_b.org", "a.org:80", "u@a.org", "a\0b",
        "ä.org",
    ] {
        let reason = format!("{repository:?} is not a repository name ([a-z0-9][a-z0-9.-]*)");
        assert_eq!(
            url_refusal(&format!("cvmfs://{repository}/x")),
            format!("layers[1].url: {reason}")
        );
        if !repository.is_empty() {
            assert_eq!(
                layer_refusal(&json!({"digest": "11", "repo": repository})),
                format!("layers[1].repo: {reason}")
            );
        }
    }
    assert_eq!(
        layer_refusal(&json!({"digest": "11", "repo": "a.org/../b.org"})),
        r#"layers[1].repo: "a.org/../b.org" is not a repository name ([a-z0-9][a-z0-9.-]*)"#
    );
}

#[test]
fn folders_cannot_leave_the_repository() {
    for (folder, offence) in [
        ("..", r#"has a ".." component"#),
        ("../../etc", r#"has a ".." component"#),
        ("x/..", r#"has a ".." component"#),
        ("x/../y", r#"has a ".." component"#),
        (".", r#"has a "." component"#),
        ("x/./y", r#"has a "." component"#),
        ("/etc", "has an empty component"),
        ("x//y", "has an empty component"),
        ("x/", "has an empty component"),
        ("x\0y", "contains a NUL"),
    ] {
        assert_eq!(
            url_refusal(&format!("cvmfs://a.org/{folder}")),
            format!("layers[1].url: folder {folder:?} {offence}")
        );
        assert_eq!(
            layer_refusal(&json!({"digest": "11", "repo": "a.org", "location": folder})),
            format!("layers[1].location: folder {folder:?} {offence}")
        );
    }
}

#[test]
fn dots_and_odd_bytes_within_a_component_are_names() {
    for folder in [
        "...",
        "..x",
        "x..",
        ".layers/a b",
        "%2e%2e",
        "x?y#z",
        "é\\n",
    ] {
        let url = format!("cvmfs://a.org/{folder}");
        let image =
            parse(&json!({"version": "1.0", "layers": [{"digest": "11", "url": url}]}).to_string());
        assert_eq!(
            paths(&image, LayerOrder::BottomFirst),
            [Path::new("/cvmfs/a.org").join(folder)]
        );
    }
}

#[test]
fn long_values_are_cut_in_messages() {
    let url = "é".repeat(1000);
    assert_eq!(
        url_refusal(&url),
        format!(
            "layers[1].url: \"{}\"... does not begin with cvmfs://",
            "é".repeat(80)
        )
    );
}

#[test]
fn size_limit() {
    let mut text = r#"{"version":"1.0","layers":[]}"#.to_owned();
    text.push_str(&" ".repeat(MAX_SIZE - text.len()));
    parse(&text);
    text.push(' ');
    assert_eq!(
        refusal(&text),
        "16777217 bytes, more than the limit of 16777216"
    );
}

#[test]
fn layer_limit() {
    let layer = r#"{"digest":"aa","url":"cvmfs://a.org/x"}"#;
    let text = |n| {
        format!(
            r#"{{"version":"1.0","layers":[{}]}}"#,
            vec![layer; n].join(",")
        )
    };
    assert_eq!(parse(&text(MAX_LAYERS)).layers.len(), MAX_LAYERS);
    assert_eq!(
        refusal(&text(MAX_LAYERS + 1)),
        "layers: 100001 layers, more than the limit of 100000"
    );
}

proptest! {
    /// Whatever is accepted stays beneath its repository.
    #[test]
    fn accepted_paths_are_plain(rest in r"[a-b./\x00-]{0,12}", old in any::<bool>()) {
        let layer = if old {
            json!({"digest": "11", "repo": "a.org", "location": rest})
        } else {
            json!({"digest": "11", "url": format!("cvmfs://{rest}")})
        };
        let text = json!({"version": "1.0", "layers": [layer]}).to_string();
        if let Ok(image) = Image::parse(text.as_bytes()) {
            for layer in layer_paths(&image, Path::new("/cvmfs"), LayerOrder::BottomFirst) {
                let inside = layer.path.strip_prefix(Path::new("/cvmfs").join(&layer.repository));
                prop_assert_eq!(inside, Ok(Path::new(&layer.folder)));
                prop_assert!(layer.folder.split('/').all(|c| !matches!(c, "" | "." | "..")));
                prop_assert!(!layer.folder.contains('\0'));
            }
        }
    }

    /// No input makes the parser panic.
    #[test]
    fn damaged_descriptors_are_errors(at in 0..DUCC.len(), byte in any::<u8>()) {
        let mut bytes = DUCC.as_bytes().to_vec();
        bytes[at] = byte;
        if let Err(error) = Image::parse(&bytes) {
            prop_assert!(!error.to_string().is_empty());
        }
    }
}
