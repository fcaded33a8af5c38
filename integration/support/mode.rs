//! The mode that a run's mounts have, for tests of what not every mode promises.
//!
//! A mount is in the mode of `CVMFS_UNION_MOUNT_OPTIONS`, but for the options that the test gives itself.

use std::os::fd::AsFd;

use super::sys;

/// What the run says of an option, the last time it does.
fn option(name: &str) -> Option<String> {
    let all = std::env::var("CVMFS_UNION_MOUNT_OPTIONS").unwrap_or_default();
    let words: Vec<_> = all.split([' ', '=']).collect();
    let at = words.iter().rposition(|word| *word == name)?;
    words.get(at + 1).map(|value| (*value).to_owned())
}

/// Whether the kernel collects the writes of a run's mounts. Where it is given the upper's files it
/// does not.
pub fn collects_writes() -> bool {
    let passes = option("--passthrough").is_some_and(|what| what == "upper" || what == "all");
    option("--writeback").is_some_and(|when| when == "on") && !passes
}

/// Brings what was collected of a file to the daemon, and says what came of it.
pub fn settle(fd: &impl AsFd) -> sys::Result<()> {
    if collects_writes() {
        sys::fsync(fd)
    } else {
        Ok(())
    }
}
