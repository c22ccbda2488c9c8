//! What the nodes of a cluster say to each other: the transport of every group, forwarded
//! commands, read indexes, discovery. On listeners and connections of its own.
//!
//! Five connections per pair of nodes, so that nothing that is urgent waits behind what is
//! large: log entries, heartbeats and votes, snapshots, forwarded commands, forwarded reads. Every call has a
//! deadline here, because openraft has none (engine trap 5).

mod beats;
mod dial;
mod door;
mod forward;
mod greeting;
mod links;
mod network;
mod pieces;
mod server;
mod service;
mod wire;

pub(crate) use beats::Beats;
pub use dial::{Dial, Incoming, Io, PeerTls, Peers};
pub(crate) use door::{Door, GroupEntry, Phase};
pub(crate) use forward::Forwards;
pub(crate) use greeting::{Greeted, greet_all, keep_greeting};
pub(crate) use links::{Line, Links};
pub(crate) use network::PeerNetwork;
pub(crate) use pieces::fetch;
pub(crate) use server::serve;
pub(crate) use wire::{change_refusal, refusal_from};
