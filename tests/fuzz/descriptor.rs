//! Bytes as a descriptor: what is accepted stays in its repository, and means the same when it is written
//! and read once more.

use std::path::{Component, Path};

use cvmfs_union::descriptor::resolve::layer_paths;
use cvmfs_union::descriptor::{Image, LayerOrder, MAX_LAYERS};
use serde_json::{Map, Value, json};

const TOKENS: &[&[u8]] = &[
    b"\"version\":\"1.0\"",
    b"\"layers\":[",
    b"\"digest\":\"11aa\"",
    b"\"url\":\"cvmfs://a.org/x\"",
    b"\"repo\":\"a.org\"",
    b"\"location\":\"x\"",
    b"\"URL\":",
    b"null",
    b"..",
    b"/",
    b"//",
    b"/../",
    b"\\u0000",
    b"\\u002e\\u002e",
    b"%2e%2e",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"\"",
    b"\\ud800",
    b"\xef\xbb\xbf",
    b"1e999",
    b"cvmfs://",
    b"\"0.1\"",
    b"true",
    b"\\/",
    b"\xff",
];

#[test]
fn descriptors() {
    super::run("descriptor", TOKENS, check);
}

pub fn check(bytes: &[u8]) {
    let image = match Image::parse(bytes) {
        Ok(image) => image,
        Err(e) => {
            let text = e.to_string();
            assert!(!text.is_empty() && text.len() < 2000, "{text}");
            assert!(!text.chars().any(char::is_control), "{text:?}");
            return;
        }
    };
    assert!(image.layers.len() <= MAX_LAYERS);
    assert!(["0.1", "1.0"].contains(&image.version.as_str()));
    let root = Path::new("/cvmfs");
    let mut layers = layer_paths(&image, root, LayerOrder::BottomFirst);
    for layer in &layers {
        let mut parts = layer.path.components();
        assert_eq!(parts.next(), Some(Component::RootDir));
        assert_eq!(parts.next(), Some(Component::Normal("cvmfs".as_ref())));
        assert_eq!(
            parts.next(),
            Some(Component::Normal(layer.repository.as_ref()))
        );
        let folder: Vec<_> = parts.collect();
        assert!(!folder.is_empty(), "{layer:?}");
        assert!(
            folder
                .iter()
                .all(|part| matches!(part, Component::Normal(_))),
            "{layer:?}"
        );
        assert_eq!(folder.len(), layer.folder.split('/').count(), "{layer:?}");
        assert!(!layer.folder.contains('\0'));
        assert!(
            layer
                .digest
                .bytes()
                .all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
        );
    }
    layers.reverse();
    assert_eq!(layers, layer_paths(&image, root, LayerOrder::TopFirst));

    let text = write(&image);
    let again = Image::parse(text.as_bytes()).unwrap_or_else(|e| panic!("{e}\n{text}"));
    assert_eq!(plain(again), plain(image), "{text}");
}

/// The image as a tool of today writes it.
fn write(image: &Image) -> String {
    let mut object = image.other.clone();
    object.insert("version".into(), json!(image.version));
    for (key, value) in [
        ("min_version", &image.min_version),
        ("origin", &image.origin),
        ("comment", &image.comment),
    ] {
        object.extend(value.as_ref().map(|value| (key.to_owned(), json!(value))));
    }
    let layers = image.layers.iter().map(|layer| {
        let mut object = layer.other.clone();
        object.insert("digest".into(), json!(layer.digest));
        object.insert(
            "url".into(),
            json!(format!("cvmfs://{}/{}", layer.repository, layer.folder)),
        );
        Value::Object(object)
    });
    object.insert("layers".into(), layers.collect());
    Value::Object(object).to_string()
}

/// Without the numbers that nobody asked for, which need not come back to the last digit.
fn plain(mut image: Image) -> Image {
    fn round(value: &mut Value) {
        match value {
            Value::Number(_) => *value = json!(0),
            Value::Array(values) => values.iter_mut().for_each(round),
            Value::Object(map) => map.values_mut().for_each(round),
            _ => {}
        }
    }
    let others = image.layers.iter_mut().map(|layer| &mut layer.other);
    let maps: Vec<&mut Map<_, _>> = others.chain([&mut image.other]).collect();
    maps.into_iter()
        .flat_map(|map| map.values_mut())
        .for_each(round);
    image
}
