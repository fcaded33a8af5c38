//! The tests that need no mount.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::panic_in_result_fn,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::unreachable
)]

mod descriptor;
mod faults;
mod fuzz;
mod image;
mod layerstore;
mod model;
mod requests;
mod resolve;
mod semantics;
mod support;
mod union;
