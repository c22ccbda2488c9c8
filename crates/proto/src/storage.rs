//! What stands on disk: every value is one format byte and one `everwire.storage.v1` message.
//!
//! Comes in: words of `core`, or bytes that some version wrote. Goes out: the other, byte for
//! byte the same each time. Never: keys and checksums, which are the store's. Values without a
//! word of their own in `core` (log positions, votes, membership) keep their generated types.

use bytes::Bytes;
use everwire_core::Refusal;
use everwire_core::command::Batch;
use everwire_core::event::Event;
use everwire_core::row::Row;
use prost::Message;

use crate::event::{Source, event_from};
use crate::{storage_v1, v1};

pub(crate) mod command;
mod row;
mod topology;

pub use topology::{
    change_from, change_to, decode_change, decode_topology, encode_change, encode_topology,
    members_from, members_to, topology_from, topology_to,
};

/// The format byte that this version writes, and the highest that it reads.
pub const FORMAT: u8 = 1;

/// Why bytes from the disk (or from a peer's log) cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StorageError {
    /// Written by a newer version: stop and upgrade, do not repair.
    #[error("format {found} is newer than {known}, the newest that this version knows")]
    Newer {
        /// The format byte found.
        found: u8,
        /// The newest format known here.
        known: u8,
    },
    /// Not what any version writes.
    #[error("damaged: {what}")]
    Damaged {
        /// What could not be read; no payload.
        what: String,
    },
}

fn damaged(what: impl Into<String>) -> StorageError {
    StorageError::Damaged { what: what.into() }
}

/// A value of ours that breaks its own shape is damage, not somebody's bad request.
impl From<Refusal> for StorageError {
    fn from(refusal: Refusal) -> Self {
        damaged(refusal.message)
    }
}

fn encode(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(FORMAT);
    message
        .encode(&mut bytes)
        .expect("a vector grows as far as it must");
    bytes
}

fn decode<M: Message + Default>(what: &str, bytes: &[u8]) -> Result<M, StorageError> {
    match bytes.split_first() {
        None => Err(damaged(format!("{what}: no bytes"))),
        Some((&FORMAT, message)) => M::decode(message)
            // prost names fields and wire types, never values.
            .map_err(|error| damaged(format!("{what}: {error}"))),
        Some((&found, _)) if found > FORMAT => Err(StorageError::Newer {
            found,
            known: FORMAT,
        }),
        Some((found, _)) => Err(damaged(format!("{what}: format {found}"))),
    }
}

macro_rules! messages {
    ($($(#[$doc:meta])* $encode:ident $decode:ident $type:ident;)*) => {$(
        $(#[$doc])*
        pub fn $encode(value: &storage_v1::$type) -> Bytes {
            encode(value).into()
        }

        #[doc = concat!("Reads what [`", stringify!($encode), "`] wrote.")]
        pub fn $decode(bytes: &[u8]) -> Result<storage_v1::$type, StorageError> {
            decode(stringify!($type), bytes)
        }
    )*};
}

messages! {
    /// A Raft log entry.
    encode_log_entry decode_log_entry LogEntry;
    /// What a shard has applied.
    encode_applied decode_applied Applied;
    /// Who belongs to a group.
    encode_membership decode_membership Membership;
    /// A place in a group's log.
    encode_log_position decode_log_position LogPosition;
    /// A vote.
    encode_vote decode_vote Vote;
    /// The identity of a data directory.
    encode_identity decode_identity Identity;
    /// One slot of the watermark file.
    encode_watermark decode_watermark Watermark;
    /// The head of a snapshot.
    encode_snapshot_head decode_snapshot_head SnapshotHead;
    /// A piece of a snapshot.
    encode_snapshot_chunk decode_snapshot_chunk SnapshotChunk;
}

/// The payload of a Raft log entry. Opaque to the log: replicas pass these bytes on as they are.
pub fn encode_batch(batch: &Batch) -> Bytes {
    encode(&command::batch_to(batch)).into()
}

/// Reads what [`encode_batch`] wrote.
pub fn decode_batch(bytes: &[u8]) -> Result<Batch, StorageError> {
    command::batch_from(decode("Batch", bytes)?)
}

/// The value of a row.
pub fn encode_row(row: &Row) -> Vec<u8> {
    encode(&row::row_to(row))
}

/// Reads what [`encode_row`] wrote.
pub fn decode_row(bytes: &[u8]) -> Result<Row, StorageError> {
    row::row_from(decode("Row", bytes)?)
}

/// The value of an event.
pub fn encode_event(event: &Event) -> Vec<u8> {
    encode(&v1::Event::from(event))
}

/// Reads what [`encode_event`] wrote.
pub fn decode_event(bytes: &[u8]) -> Result<Event, StorageError> {
    let event = decode("Event", bytes)?;
    Ok(event_from(event, Source::Disk)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_formats_are_told_apart_from_damage() {
        let row = encode_row(&Row::Counter(7));
        assert_eq!(decode_row(&row), Ok(Row::Counter(7)));
        let mut newer = row.clone();
        newer[0] = FORMAT + 1;
        let error = StorageError::Newer { found: 2, known: 1 };
        assert_eq!(decode_row(&newer), Err(error));
        let mut zero = row;
        zero[0] = 0;
        for bytes in [&zero[..], &[], &[FORMAT], &[FORMAT, 0xff]] {
            let error = decode_row(bytes).unwrap_err();
            assert!(matches!(error, StorageError::Damaged { .. }), "{bytes:?}");
        }
    }
}
