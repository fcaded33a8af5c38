//! Whether a repository has downloaded anything meanwhile, where its client tells.
//!
//! The time that an open takes says little on a machine that is busy. The client of CVMFS counts its downloads
//! (`user.ndownload`, on all that it shows): while that count stays, what it opened was in its cache.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use parking_lot::Mutex;

use crate::sys::{meta, xattr};

/// The attribute by which a client tells.
const KEY: &CStr = c"user.ndownload";

/// What was seen of the counts, by the devices of the repositories.
#[derive(Debug, Default)]
pub struct Downloads(Mutex<HashMap<u64, Look>>);

#[derive(Debug)]
enum Look {
    /// It does not tell, and is not asked again.
    Silent,
    /// It was that many at that time.
    Count(Vec<u8>, Instant),
}

impl Downloads {
    /// Whether the repository of this layer, by a directory of it, is known to have downloaded nothing since
    /// `begun`. That takes a look from before, so the first answer is no.
    pub fn none_since(&self, root: BorrowedFd<'_>, begun: Instant) -> bool {
        let Ok(stat) = meta::fstatat(root, b"") else {
            return false;
        };
        if matches!(self.0.lock().get(&stat.st_dev), Some(Look::Silent)) {
            return false;
        }
        let count = xattr::get(root, b"", KEY);
        let mut looks = self.0.lock();
        let look = match (count, looks.get(&stat.st_dev)) {
            (Ok(count), Some(Look::Count(before, at))) if *before == count => return *at <= begun,
            (Ok(count), _) => Look::Count(count, Instant::now()),
            (Err(_), _) => Look::Silent,
        };
        looks.insert(stat.st_dev, look);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::File;
    use std::io;
    use std::os::fd::AsFd;

    #[test]
    fn a_count_that_stays_says_so_of_what_was_begun_after_the_first_look() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let root = File::open(dir.path())?;
        let set = |count: &[u8]| xattr::set(root.as_fd(), b"", KEY, count, 0);
        if set(b"9").is_err() {
            eprintln!("skipped: the file system has no attributes");
            return Ok(());
        }
        let downloads = Downloads::default();
        let before = Instant::now();
        assert!(!downloads.none_since(root.as_fd(), before), "first look");
        assert!(!downloads.none_since(root.as_fd(), before), "begun before");
        let after = Instant::now();
        assert!(downloads.none_since(root.as_fd(), after));
        set(b"10")?;
        assert!(!downloads.none_since(root.as_fd(), after), "one more");
        assert!(!downloads.none_since(root.as_fd(), after), "begun before");
        assert!(downloads.none_since(root.as_fd(), Instant::now()));
        Ok(())
    }

    #[test]
    fn who_does_not_tell_is_asked_once() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let root = File::open(dir.path())?;
        let downloads = Downloads::default();
        assert!(!downloads.none_since(root.as_fd(), Instant::now()));
        if xattr::set(root.as_fd(), b"", KEY, b"9", 0).is_ok() {
            for _ in 0..2 {
                assert!(!downloads.none_since(root.as_fd(), Instant::now()));
            }
        }
        Ok(())
    }
}
