//! One layer directory, and what it says about names: objects, whiteouts, opaque directories.
//!
//! A lower directory is immutable, so what is learned of it here holds for ever.

pub mod ahead;
pub mod asked;
pub mod attrs;
pub mod dialect;
pub mod dir;
pub mod listing;
pub mod markers;
pub mod name;
mod numbers;
pub mod overrides;
pub mod quiet;
pub mod record;
pub mod reopen;
pub mod revisions;
pub mod root;

pub use asked::Ask;
pub use attrs::Attrs;
pub use dir::{Layer, LayerIndex, LowerDir, Lowers, hash_at};
pub use listing::{Listed, Listing, Observed, Probe};
pub use name::Name;
pub use record::Learning;
pub use reopen::LowerFile;
pub use root::Repositories;
