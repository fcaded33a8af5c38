//! The locks and counters of the tables of nodes. With the feature `shuttle` unit tests have those of a model
//! checker, which tries the orders of what threads do.
//!
//! `Arc` is the standard library's in both: it is cloned and dropped between two steps of the model, and
//! its count is read under a lock.

#[cfg(not(all(test, feature = "shuttle")))]
pub use parking_lot::{Mutex, RwLock};
#[cfg(not(all(test, feature = "shuttle")))]
pub use std::sync::atomic::{AtomicBool, AtomicU32};

#[cfg(all(test, feature = "shuttle"))]
pub use shuttle::sync::atomic::{AtomicBool, AtomicU32};
#[cfg(all(test, feature = "shuttle"))]
pub use shuttle_parking_lot::{Mutex, RwLock};
