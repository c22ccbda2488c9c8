//! The Rust SDK: publish, attach, signal; routing, retry, reattach.
//!
//! Comes in: what an agent, an edge or a command wants. Goes out: calls of `everwire.v1`, each
//! exactly once in effect however often a connection breaks. Never: a rule of a session. What
//! to do after a refusal is read off its [`Advice`](everwire_core::Advice), nothing else.
//!
//! Three doors: [`Client`] for single calls, [`Publisher`] for the output of a run,
//! [`Subscriber`] for reading a session. Waits go by tokio's clock, which a simulation owns too.

pub mod adapter;
mod address;
mod answers;
mod backoff;
mod call;
mod client;
mod config;
mod connection;
mod map;
mod message;
mod publisher;
mod route;
mod signals;
mod standing;
mod subscriber;
mod waiting;
mod watch;
mod wire;

pub use answers::{
    Ack, AckRange, ClusterStatus, Created, ListedSession, NodeInfo, NodeMeters, Page, Posted,
    RunGrant, RunInfo, SessionInfo, SessionPage, ShardInfo, Signalled,
};
pub use client::Client;
pub use config::{BoxFuture, ClientConfig, Connector, Io, TlsConfig, TokenSource};
pub use everwire_core::command::StartRun;
pub use everwire_core::control::{Cancel, Guard, InputRef, Lease, Target};
pub use message::RunWriter;
pub use publisher::{Acks, Publisher};
pub use subscriber::{SubscribeOptions, Subscriber, SubscriberEvent};
pub use waiting::{Resolution, is_paused};
