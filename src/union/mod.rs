//! The rules of the union, on directories and descriptors; nothing here knows FUSE.

pub mod api;
