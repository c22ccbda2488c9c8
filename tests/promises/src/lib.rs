//! What the tests of the promises share: agents at a model's pace, readers of every kind, the
//! log as gRPC tells it, and the checker that holds them against each other.
//!
//! Everything goes through the public doors: gRPC, WebSocket, event streams, the binary.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests says what went wrong by failing the test"
)]

pub mod agent;
pub mod follower;
pub mod history;
pub mod log;
pub mod process;
pub mod scene;
pub mod upstream;
pub mod writers;

pub use agent::{Agent, Written};
pub use follower::{Follower, Kind, Leave};
pub use history::{Acked, Attachment, History, Reader};
pub use log::Log;
pub use scene::Scene;
pub use writers::Writers;
