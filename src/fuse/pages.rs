//! The kernel's caches, told what they do not ask.

use std::io;
use std::sync::OnceLock;

use fuser::{INodeNo, Notifier};

use super::twins::NodeId;
use crate::union::Union;

/// The page cache, if there is a way to it.
#[derive(Default)]
pub struct Pages(OnceLock<Notifier>);

impl Pages {
    /// Opens the way to it.
    pub fn reach(&self, notifier: Notifier) {
        self.0.get_or_init(|| notifier);
    }

    /// Whether the data of a file that was just opened should be there before it is read.
    pub fn wants(&self, union: &Union, fh: u64) -> bool {
        self.0.get().is_some() && union.is_read_next(fh)
    }

    /// Puts the data of such a file there. What does not succeed is left to the reads that come.
    pub fn fill(&self, union: &Union, ino: INodeNo, fh: u64) {
        let Some(notifier) = self.0.get() else {
            return;
        };
        let filled = match union.early(fh) {
            Ok(None) => Ok(()),
            Ok(Some(early)) => notifier.store(ino, 0, &early.data),
            Err(e) => Err(io::Error::other(e)),
        };
        if let Err(e) = filled {
            tracing::debug!("data that were not sent early: {e}");
        }
    }

    /// Has the kernel forget the listings that the union wants to give anew.
    pub fn drop_listings(&self, union: &Union) {
        for dir in union.ended_listings() {
            if let Some(notifier) = self.0.get()
                && let Err(e) = notifier.inval_inode(INodeNo(dir), 0, 0)
            {
                tracing::debug!("a listing that the kernel keeps: {e}");
            }
        }
    }

    /// Has the kernel ask for the attributes of a file anew, which it was told to keep.
    pub fn drop_attributes(&self, node: NodeId) {
        if let Some(notifier) = self.0.get()
            && let Err(e) = notifier.inval_inode(INodeNo(node), -1, 0)
        {
            tracing::debug!("attributes that the kernel keeps: {e}");
        }
    }
}
