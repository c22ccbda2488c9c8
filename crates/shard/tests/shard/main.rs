//! Shards as their callers see them: commands in, offsets and subscriptions out, on a simulated
//! disk whose plug can be pulled; and once on RocksDB.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a helper's panic fails its test"
)]

mod admission;
mod beats;
mod cluster;
mod crash;
mod duties;
mod far;
mod metadata;
mod read;
mod rebuild;
mod replace;
mod restart;
mod rocks;
mod room;
mod stress;
mod subscribe;
mod support;
