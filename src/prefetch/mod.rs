//! What an earlier run opened, fetched at once: readers that open files of the layers before programs ask for
//! them, and the life of a profile from the beginning of a mount to its end.
//!
//! Replay begins before the union is opened, and nobody waits for it. Bounds hold for all of it ([`Limits`]);
//! it ends early when the mount ends, and for a layer that fails.

mod downloads;
mod fetch;
mod pace;
mod queue;
pub mod session;

use std::path::PathBuf;
use std::time::Duration;

/// A layer whose files may be fetched.
#[derive(Clone, Debug)]
pub struct LayerAt {
    /// By which profiles and inode numbers know it.
    pub identity: String,
    /// Where it lies. None: in the mountpoint, where its path leads into the union, and waits for who asks.
    pub path: Option<PathBuf>,
}

/// How much may be fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Readers at the beginning.
    pub readers: usize,
    /// Readers at most, where more fetch more.
    pub most_readers: usize,
    /// Files.
    pub files: usize,
    /// Bytes that runs have read of them.
    pub bytes: u64,
    /// From the beginning of the mount.
    pub time: Duration,
    /// Of what is free in the cache of the layers' file system, in percent, where that tells: one that is
    /// served by FUSE.
    pub cache: u64,
}

impl Default for Limits {
    /// The CVMFS client serves 10 requests at a time and has 16 connections.
    fn default() -> Self {
        Limits {
            readers: 8,
            most_readers: 16,
            files: crate::profile::MOST_FILES,
            bytes: 4 << 30,
            time: Duration::from_secs(300),
            cache: 50,
        }
    }
}
