//! The tests that need no mount.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod descriptor;
mod faults;
mod model;
mod resolve;
mod support;
mod union;
