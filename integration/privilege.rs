//! Who may do what: the mount against a plain directory, and what nobody may reach.

mod namespaces;
mod others;
mod rights;
mod set_id;
mod unreachable;
