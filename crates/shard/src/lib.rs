//! Replicated groups: one Raft group per shard, `rules` applied to `store` in log order, and
//! the committed events handed to whoever reads.
//!
//! In come [`Command`](everwire_core::Command)s and attach requests; out go outcomes, pages and
//! subscriptions. This is the only crate that names openraft, and nothing of openraft leaves
//! it: not in a signature, not on disk, not on a wire. It never sees a client's socket or token.
//! The whole is told in docs/protocol/replication.md.

mod admission;
mod apply;
mod audit;
mod compare;
mod damage;
mod duties;
mod entrance;
mod far;
mod feed;
mod formation;
mod group;
mod handle;
mod host;
mod lanes;
mod leadership;
mod leases;
mod local;
mod meta;
mod meters;
mod peer;
mod proposer;
mod purge;
mod raft;
mod readiness;
mod reads;
mod rebuild;
mod rows;
mod run_watch;
mod scrub;
mod set;
mod space;
mod steward;
mod subscription;
mod support;
mod timers;
mod trial;
mod wait;

pub use audit::{Audits, Verdict, verdict};
pub use everwire_rules::RULES_VERSION;
pub use everwire_rules::catches_panics;
#[cfg(feature = "test-poison")]
pub use everwire_rules::poison;
pub use everwire_rules::resolve::Answer;
pub use everwire_store::{Identity, OpenOptions, Space, SpaceLevel, Store, StoreError, Times};
pub use handle::{AttachRequest, Attached, ShardHandle, ShardStatus};
pub use lanes::Pending;
pub use meters::{Meters, NodeReport, PeerMeters};
pub use peer::{Dial, Incoming, Io, PeerTls, Peers};
pub use purge::Kept;
pub use reads::{Listed, Page, RunInfo, SessionInfo};
pub use run_watch::{Heard, RunWatch};
#[cfg(feature = "rocks")]
pub use set::Directory;
pub use set::{Disk, OnFatal, OpenError, ShardSet, ShardSetConfig};
pub use subscription::{Delivery, Subscription};
pub use support::Support;
