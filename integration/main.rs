//! Tests on real mounts: the binary is run, and programs' system calls are made on what it mounts.
//!
//! `REQUIRE="fuse root overlayfs pjdfstest fsx setfacl userns"` (or `all`) turns the skipping of tests
//! that this machine cannot do into a failure. `CVMFS_UNION_TEST_DIR` is where the tests' files
//! lie, `CVMFS_UNION_TOOLS` where `bin/` has pjdfstest, fsx and fuse-overlayfs 2.0.
//! `CVMFS_UNION_MOUNT_OPTIONS="--passthrough off"` is given to each mount of ours, to run all tests in another mode;
//! `scripts/test-modes` does so for each.
#![allow(
    unsafe_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::panic_in_result_fn,
    clippy::indexing_slicing,
    clippy::string_slice,
    clippy::unreachable,
    clippy::let_underscore_must_use
)]

mod backends;
mod bind_points;
mod cold;
mod conformance;
mod consumers;
mod costs;
mod counters;
mod differential;
mod durability;
mod failing;
mod fsx;
mod full_disk;
mod hostile;
mod interchange;
mod kills;
mod layered;
mod limits;
mod logs;
mod looks;
mod lower_listings;
mod lower_requests;
mod machine_crash;
mod messages;
mod nested;
mod opens;
mod pages;
mod passed_fd;
mod passthrough;
mod pjdfstest;
mod privilege;
mod races;
mod rivals;
mod rootless;
mod run;
mod support;
mod uppers;
mod warm;
mod writeback;
