//! The files of lowers that are being read: one for each object, however many have it open.
//!
//! Opening a file of a lower may be a download. So all handles of an object share one descriptor, and
//! whoever wants it while it is being opened waits for that.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};

use lru::LruCache;
use parking_lot::Mutex;

use super::api::Ino;
use super::node::LowerAt;
use crate::hash::Numbers;
use crate::layer::LowerFile;

/// The table is swept of files that nobody has any more when it has grown by so many.
const SWEEP: usize = 1024;

#[derive(Debug)]
pub struct LowerFiles {
    open: Mutex<Open>,
    /// Where programs' opens are not told to us, neither is their end: these stay open then.
    kept: Option<Mutex<LruCache<Ino, Arc<LowerFile>>>>,
}

#[derive(Debug, Default)]
struct Open {
    files: HashMap<Ino, Weak<LowerFile>, Numbers>,
    /// Sweep when there are so many.
    sweep: usize,
}

impl LowerFiles {
    /// `kept`: so many stay open without a handle.
    pub fn new(kept: Option<NonZeroUsize>) -> LowerFiles {
        LowerFiles {
            open: Mutex::default(),
            kept: kept.map(|most| Mutex::new(LruCache::new(most))),
        }
    }

    /// The file of a node. Nothing is opened before it is read.
    pub fn of(&self, ino: Ino, lower: &LowerAt) -> Arc<LowerFile> {
        let file = self.open.lock().file(ino, lower);
        if let Some(kept) = &self.kept {
            let old = kept.lock().push(ino, file.clone());
            // Closed without the lock: that may be a request to the layer.
            drop(old);
        }
        file
    }

    /// A handle of the file is gone: if nobody has the file any more, neither does this table.
    pub fn let_go(&self, ino: Ino) {
        let files = &mut self.open.lock().files;
        if files.get(&ino).is_some_and(|file| file.strong_count() == 0) {
            files.remove(&ino);
        }
    }
}

impl Open {
    fn file(&mut self, ino: Ino, lower: &LowerAt) -> Arc<LowerFile> {
        if let Some(file) = self.files.get(&ino).and_then(Weak::upgrade) {
            return file;
        }
        if self.files.len() >= self.sweep {
            self.files.retain(|_, file| file.strong_count() > 0);
            self.sweep = self.files.len() + SWEEP;
        }
        let file = Arc::new(lower.file());
        self.files.insert(ino, Arc::downgrade(&file));
        file
    }
}
