//! A userspace union file system for thin container images on CVMFS.
//!
//! Arrows point one way: `descriptor` and `layer` know nothing of `union`, `union` knows nothing of
//! `fuse`, and `cli` ties them together; `sys` and `error` lie beneath all of them.

pub mod cli;
pub mod descriptor;
pub mod error;
pub mod fuse;
pub mod layer;
pub mod sys;
pub mod union;
