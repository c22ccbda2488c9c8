//! The figures that a group runs by (RULES 33, 36).

use std::sync::Arc;

use openraft::{Config, SnapshotPolicy};

/// How often a leader beats, milliseconds.
const HEARTBEAT_MS: u64 = 100;
/// The shortest wait for a leader before an election, milliseconds. openraft adds a lease of
/// the longest wait in front of it.
const ELECTION_MIN_MS: u64 = 250;
/// The longest wait, milliseconds.
const ELECTION_MAX_MS: u64 = 450;
/// Entries in one append message; its bytes are bounded by the log reader.
const APPEND_ENTRIES_MAX: u64 = 300;
/// Messages that wait for a group's core. What weighs is bounded in bytes before them, by the
/// lanes and the entries in flight.
const CORE_MESSAGES_MAX: u64 = 4096;

/// The configuration of every group.
pub(crate) fn config() -> Arc<Config> {
    let config = Config {
        cluster_name: "everwire".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        enable_pre_vote: Some(true),
        max_payload_entries: APPEND_ENTRIES_MAX,
        api_channel_size: Some(CORE_MESSAGES_MAX),
        notification_channel_size: Some(CORE_MESSAGES_MAX),
        // The only purge is ours: no snapshot by policy, and none of openraft's purges after
        // one, because it may keep everything.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        // Apply is not synced and `committed` is not kept, so a restarted leader must be elected
        // again to learn what was committed (engine trap 10).
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    Arc::new(config.validate().expect("the figures above satisfy it"))
}
