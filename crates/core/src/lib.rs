//! The words of Everwire: what a session, an event, a run, a signal and a refusal *are*.
//!
//! Everything above speaks in these types. Nothing here does I/O, waits, reads a clock,
//! draws a random number or knows a wire format: `proto` converts, `rules` decides.

pub mod clock;
pub mod code;
pub mod command;
pub mod control;
pub mod event;
pub mod grant;
pub mod ids;
pub mod limits;
pub mod position;
pub mod row;
pub mod topology;
pub mod vocabulary;

pub use clock::{Clock, Random, Timestamp};
pub use code::{Advice, Code, Details, Refusal};
pub use command::{Command, Op, Outcome};
pub use control::{Answer, Cancel, Guard, InputRef, Lease, Request, Signal, Target};
pub use event::{Author, Body, Draft, Event, Kind, ParticipantKind};
pub use ids::{
    ActionHash, ApprovalId, InputId, Key, MessageId, Namespace, NodeId, PartId, ParticipantId,
    RunId, SessionName, SessionNo, ShardId, Slot, StepId,
};
pub use position::{Cursor, Offset, RunEpoch, Seq, SessionEpoch};
