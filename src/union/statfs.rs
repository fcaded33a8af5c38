//! `statfs`: the upper's, or the first layer's on a read-only mount, asked at most once a second.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::Union;
use super::api::StatFs;
use crate::error::{Context, Error, Result};
use crate::layer::Ask;
use crate::sys::meta;

const FRESH: Duration = Duration::from_secs(1);

/// An answer, and when it was given.
#[derive(Debug)]
pub struct Kept {
    at: Instant,
    answer: StatFs,
}

impl Union {
    /// At most one second old; an error is not kept.
    pub fn statfs(&self) -> Result<StatFs> {
        if let Some(kept) = &*self.statfs.lock()
            && kept.at.elapsed() < FRESH
        {
            return Ok(kept.answer);
        }
        let s = match &self.upper {
            Some(upper) => meta::fstatvfs(upper.root.as_fd()).op("statfs")?,
            None => {
                let roots = self.lowers.roots();
                let top = roots
                    .first()
                    .ok_or_else(|| Error::new(libc::EIO, "no layer"))?;
                self.lowers
                    .with(top, b"", Ask::Statfs, "statfs of lower", meta::fstatvfs)?
            }
        };
        let narrow = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let answer = StatFs {
            blocks: s.f_blocks,
            bfree: s.f_bfree,
            bavail: s.f_bavail,
            files: s.f_files,
            ffree: s.f_ffree,
            bsize: narrow(s.f_bsize),
            namelen: 255,
            frsize: narrow(s.f_frsize),
        };
        *self.statfs.lock() = Some(Kept {
            at: Instant::now(),
            answer,
        });
        Ok(answer)
    }
}
