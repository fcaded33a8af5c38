//! A userspace union file system for thin container images on CVMFS.
//!
//! Arrows point one way: `descriptor` and `layer` know nothing of `union`, `union` knows nothing of
//! `fuse`, and `cli` ties them together; `sys` and `error` lie beneath all of them.
//! See [`docs::architecture`], [`docs::semantics`], [`docs::format`], [`docs::reliability`]
//! and [`docs::performance`].
#![cfg_attr(
    test,
    allow(
        clippy::panic_in_result_fn,
        clippy::indexing_slicing,
        reason = "tests may fail"
    )
)]

pub mod at_once;
pub mod backend;
pub mod cache;
pub mod cli;
pub mod descriptor;
pub mod error;
pub mod fuse;
pub mod hash;
pub mod image;
pub mod layer;
pub mod meter;
pub mod prefetch;
pub mod profile;
mod sync;
pub mod sys;
pub mod text;
pub mod union;

/// How the crate is built, how the mounted file system behaves, what is stored on disk, what it costs, and
/// what is promised when things go wrong.
pub mod docs {
    #[doc = include_str!("docs/ARCHITECTURE.md")]
    pub mod architecture {}

    #[doc = include_str!("docs/FORMAT.md")]
    pub mod format {}

    #[doc = include_str!("docs/PERFORMANCE.md")]
    pub mod performance {}

    #[doc = include_str!("docs/RELIABILITY.md")]
    pub mod reliability {}

    #[doc = include_str!("docs/SEMANTICS.md")]
    pub mod semantics {}
}
