//! What a mount counts, read without adding to it.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cvmfs_union::fuse::stats::fetch;
use serde_json::Value;

use super::sys;

/// A look at a mount's counts. It keeps the root open, so it has to go before the mount does.
pub struct Stats(OwnedFd);

/// How often each kind was counted, without those that were not.
pub type Tally = BTreeMap<String, u64>;

impl Stats {
    pub fn of(mnt: &Path) -> Stats {
        Stats(sys::open(mnt, libc::O_RDONLY | libc::O_DIRECTORY, 0).unwrap())
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&fetch(self.0.as_fd()).unwrap()).unwrap()
    }

    /// The requests so far, but for those that read the counts; for what the kernel sends when it
    /// likes, the end of open files and of nodes; and for statfs, which others beside this test ask of the machine's mounts.
    pub fn requests(&self) -> Tally {
        const OTHERS: [&str; 5] = ["ioctl", "release", "releasedir", "forget", "statfs"];
        let mut tally = tally(&self.json()["requests"]);
        tally.retain(|kind, _| !OTHERS.contains(&&**kind));
        tally
    }

    /// What each layer was asked, topmost first.
    pub fn lowers(&self) -> Vec<Tally> {
        let json = self.json();
        let lowers = json["lowers"].as_array().unwrap();
        lowers.iter().map(|of| tally(&of["requests"])).collect()
    }

    /// The requests that the job leads to.
    pub fn during<T>(&self, job: impl FnOnce() -> T) -> (Tally, T) {
        let before = self.requests();
        let done = job();
        (since(self.requests(), &before), done)
    }

    /// What the job makes the daemon ask of each layer.
    pub fn asked_during<T>(&self, job: impl FnOnce() -> T) -> (Vec<Tally>, T) {
        let before = self.lowers();
        let done = job();
        let after = self.lowers().into_iter().zip(&before);
        (
            after.map(|(after, before)| since(after, before)).collect(),
            done,
        )
    }
}

fn tally(requests: &Value) -> Tally {
    let requests = requests.as_object().unwrap().iter();
    requests
        .map(|(kind, seen)| (kind.clone(), seen["count"].as_u64().unwrap()))
        .filter(|(_, count)| *count > 0)
        .collect()
}

fn since(after: Tally, before: &Tally) -> Tally {
    let less = |(kind, count): (String, u64)| {
        let more = count - before.get(&kind).unwrap_or(&0);
        (more > 0).then_some((kind, more))
    };
    after.into_iter().filter_map(less).collect()
}

/// A tally in short.
pub fn counts<const N: usize>(of: [(&str, u64); N]) -> Tally {
    of.map(|(kind, count)| (kind.to_owned(), count)).into()
}
