//! One layer directory, and what it says about names: objects, whiteouts, opaque directories.
//!
//! A lower directory is immutable, so what is learned of it here holds for ever.

pub mod asked;
pub mod attrs;
pub mod dialect;
pub mod dir;
pub mod listing;
pub mod name;
pub mod quiet;
pub mod reopen;

pub use asked::Ask;
pub use attrs::Attrs;
pub use dir::{Layer, LowerDir, Lowers};
pub use listing::{Listed, Listing, Probe};
pub use name::Name;
pub use reopen::{LowerFile, Repositories};
