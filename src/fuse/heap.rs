//! What the daemon holds of memory: no more than it uses, and it gives back what it does not need.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::sys::process;
use crate::union::Union;

/// Memory that becomes free is given back so long after it was noticed: more will follow.
const DELAY: Duration = Duration::from_secs(1);
/// Allocations from this size on are mappings of their own. The buffers of the receiving threads are:
/// most of their 16 MiB is never touched, and so never there. The data of a read are not: mapping and
/// clearing them anew for each would cost more than the read.
const MAPPED: i32 = 4 << 20;
/// So many threads share a heap that what they free can be used by others.
const HEAPS: i32 = 4;

/// To be called before the session begins.
pub fn limit() {
    process::limit_heap(MAPPED, HEAPS);
}

/// Gives back what goes with nodes that the kernel has forgotten, and free memory to the system.
#[derive(Clone, Debug, Default)]
pub struct Trim {
    pending: Arc<AtomicBool>,
}

impl Trim {
    /// Does it soon and elsewhere, once for all who ask meanwhile.
    pub fn soon(&self, union: &Arc<Union>) {
        if self.pending.swap(true, Ordering::Relaxed) {
            return;
        }
        let (pending, union) = (self.pending.clone(), Arc::downgrade(union));
        let trim = move || {
            thread::sleep(DELAY);
            pending.store(false, Ordering::Relaxed);
            if let Some(union) = union.upgrade() {
                union.drop_listings();
            }
            process::trim_heap();
        };
        let thread = thread::Builder::new().name("trim".to_owned());
        if let Err(e) = thread.spawn(trim) {
            tracing::debug!("no thread to trim the heap: {e}");
            self.pending.store(false, Ordering::Relaxed);
        }
    }
}
