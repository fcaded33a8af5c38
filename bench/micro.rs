//! Micro-benchmarks of the pure parts: no file system, no mount.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::string_slice,
    reason = "a benchmark may fail"
)]

use cvmfs_union::descriptor::Image;
use cvmfs_union::layer::dialect;
use divan::{Bencher, black_box};

fn main() {
    divan::main();
}

/// An image of so many layers.
#[divan::bench(args = [1, 12, 100, 400])]
fn descriptor(bencher: Bencher<'_, '_>, layers: usize) {
    let layer = |n: usize| {
        let digest = format!("{n:064x}");
        let url = format!(
            "cvmfs://images.example.org/.layers/{}/{digest}/layerfs",
            &digest[..2]
        );
        format!("{{\"digest\": \"{digest}\", \"url\": \"{url}\"}}")
    };
    let layers: Vec<_> = (0..layers).map(layer).collect();
    let layers = layers.join(",");
    let text = format!("{{\"version\": \"1.0\", \"origin\": \"a/b:c\", \"layers\": [{layers}]}}");
    Image::parse(text.as_bytes()).unwrap();
    bencher.bench(|| Image::parse(black_box(text.as_bytes())));
}

/// What a listing asks about each name.
#[divan::bench(args = ["file.txt", ".wh.file.txt", ".wh..wh..opq", ".cvmfscatalog"])]
fn name(name: &str) -> (bool, bool) {
    let name = black_box(name.as_bytes());
    (
        dialect::hidden_in_lower(name),
        dialect::deleted_by(name).is_some(),
    )
}

#[divan::bench(args = ["user.comment", "trusted.overlay.opaque", "user.cvmfs-union.ino"])]
fn xattr(name: &str) -> (bool, bool) {
    let name = black_box(name.as_bytes());
    (dialect::is_union_xattr(name), dialect::is_cvmfs_magic(name))
}
