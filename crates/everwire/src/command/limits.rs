//! `everwire limits`: every bound that a client may meet, from the one list that the servers use.

use clap::Args;
use everwire_core::limits as bound;
use serde_json::json;

use crate::output::{Failure, line};

/// `everwire limits`.
#[derive(Args, Clone, Debug)]
pub(crate) struct LimitsArgs {
    /// One JSON object a line on stdout
    #[arg(long)]
    json: bool,
}

const fn size(bytes: usize) -> u64 {
    bytes as u64
}

/// Name, value, unit.
const TABLE: &[(&str, u64, &str)] = &[
    ("event_bytes_max", size(bound::EVENT_BYTES_MAX), "bytes"),
    ("input_bytes_max", size(bound::INPUT_BYTES_MAX), "bytes"),
    ("batch_bytes_max", size(bound::BATCH_BYTES_MAX), "bytes"),
    ("batch_events_max", size(bound::BATCH_EVENTS_MAX), "events"),
    ("name_bytes_max", size(bound::NAME_BYTES_MAX), "bytes"),
    (
        "namespace_bytes_max",
        size(bound::NAMESPACE_BYTES_MAX),
        "bytes",
    ),
    ("label_bytes_max", size(bound::LABEL_BYTES_MAX), "bytes"),
    ("run_credit_bytes", bound::RUN_CREDIT_BYTES as u64, "bytes"),
    (
        "connection_credit_bytes",
        bound::CONNECTION_CREDIT_BYTES as u64,
        "bytes",
    ),
    (
        "live_runs_max",
        bound::LIVE_RUNS_MAX as u64,
        "runs of a session",
    ),
    (
        "open_parts_max",
        bound::OPEN_PARTS_MAX as u64,
        "parts of a run",
    ),
    (
        "steps_per_run_max",
        bound::STEPS_PER_RUN_MAX as u64,
        "steps of a run",
    ),
    (
        "open_approvals_max",
        bound::OPEN_APPROVALS_MAX as u64,
        "approvals of a session",
    ),
    (
        "people_per_day_max",
        bound::PEOPLE_PER_DAY_MAX as u64,
        "inputs and signals",
    ),
    ("key_ttl", bound::KEY_TTL.as_secs(), "seconds"),
    (
        "edge_frame_in_bytes_max",
        size(bound::EDGE_FRAME_IN_BYTES_MAX),
        "bytes",
    ),
    (
        "edge_frame_out_bytes_max",
        size(bound::EDGE_FRAME_OUT_BYTES_MAX),
        "bytes",
    ),
    ("outbox_bytes_max", size(bound::OUTBOX_BYTES_MAX), "bytes"),
    (
        "attachments_per_socket_max",
        size(bound::ATTACHMENTS_PER_SOCKET_MAX),
        "sessions",
    ),
    (
        "requests_per_socket_max",
        size(bound::REQUESTS_PER_SOCKET_MAX),
        "requests",
    ),
    ("auth_within", bound::AUTH_WITHIN.as_secs(), "seconds"),
    (
        "heartbeat_every",
        bound::HEARTBEAT_EVERY.as_secs(),
        "seconds",
    ),
    (
        "heartbeat_lost_after",
        bound::HEARTBEAT_LOST_AFTER.as_secs(),
        "seconds",
    ),
    (
        "slow_reader_after",
        bound::SLOW_READER_AFTER.as_secs(),
        "seconds",
    ),
    (
        "edge_drain_within",
        bound::EDGE_DRAIN_WITHIN.as_secs(),
        "seconds",
    ),
    ("ticket_ttl", bound::TICKET_TTL.as_secs(), "seconds"),
];

/// Runs it.
pub(crate) fn run(args: &LimitsArgs) -> Result<(), Failure> {
    for (name, value, unit) in TABLE {
        if args.json {
            line(&json!({"name": name, "value": value, "unit": unit}).to_string())?;
        } else {
            line(&format!("{name:<28} {value:>9} {unit}"))?;
        }
    }
    Ok(())
}
