//! A cluster in one thread: three nodes, an edge, an agent and a person, under a network, clocks
//! and disks that a seed decides about. The same seed gives the same log, byte for byte.
//!
//! Real are the crates `node`, `shard`, `rules`, `store` (its engine), `edge` and `client`, with
//! openraft, tonic, hyper and tokio under them. Made up are the wires ([`net`]), the disks
//! (`everwire_store::sim`), time and randomness. docs/simulation.md tells the whole.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a simulation that meets its own mistake must stop"
)]

pub mod agent;
pub mod check;
pub mod cluster;
pub mod dice;
pub mod faults;
pub mod net;
pub mod person;
pub mod scene;
pub mod sky;
pub mod world;
