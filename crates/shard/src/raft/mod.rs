//! openraft's side of the house: the types, and the adapters from its traits to `store` and
//! `rules`.
//!
//! Entries are opaque bytes from the proposer to `apply`; nothing of openraft is serialised.
//! Only this module and [`crate::group`] name openraft.

pub(crate) mod codec;
pub(crate) mod config;
pub(crate) mod log;
pub(crate) mod machine;
#[cfg(test)]
mod suite;
pub(crate) mod tail;
pub(crate) mod types;
