//! A snapshot on its way in: kept beside the databases until all of it is there.
//!
//! A transfer may break, stall or lie; the group's own rows stay until a whole, checked snapshot
//! stands next to them. Pieces are checked as they come (rows whole, of this group, in order), so
//! that a bad one is the transfer's failure and never the install's. They are framed as
//! `length u32 ‖ CRC-32C u32 ‖ piece`, big endian; what reads back differently is damage.
//!
//! Nothing of it is durable, and nothing of it is left when its owner drops it or after a crash.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use everwire_proto::{storage, storage_v1};

use crate::disk::{Disk, Scratch};
use crate::engine::{Core, apply, snapshot};
use crate::error::StoreError;
use crate::types::{Applied, SpaceLevel};
use crate::{SnapshotReader, SnapshotSpool};

/// Bytes in front of each piece.
const FRAME_BYTES: usize = 8;

/// See [`crate::Store::spool`].
pub(crate) fn open<D: Disk>(
    core: &Arc<Core<D>>,
    group: u32,
    applied: Applied,
) -> Result<Box<dyn SnapshotSpool>, StoreError> {
    core.fatal.check()?;
    // What cannot be written must be refused here, not in the middle of an install.
    apply::applied_message(&applied)?;
    let number = core.spools.fetch_add(1, Ordering::Relaxed);
    let scratch = core.disk.scratch(&format!("{group}-{number}"))?;
    Ok(Box::new(Spool {
        core: Arc::clone(core),
        group,
        slots: core.identity.slots(group),
        applied,
        scratch,
        last: None,
        failed: None,
    }))
}

struct Spool<D: Disk> {
    core: Arc<Core<D>>,
    group: u32,
    slots: Range<u16>,
    applied: Applied,
    scratch: Box<dyn Scratch>,
    /// Family and key of the last row.
    last: Option<(u32, Bytes)>,
    /// What was wrong with an earlier piece.
    failed: Option<StoreError>,
}

impl<D: Disk> Spool<D> {
    fn check(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        let chunk = storage::decode_snapshot_chunk(chunk).map_err(StoreError::from)?;
        for row in chunk.rows {
            snapshot::check_row(self.group, &self.slots, &row)?;
            let at = (row.family, row.key);
            if self.last.as_ref().is_some_and(|last| *last >= at) {
                return Err(StoreError::Damaged {
                    what: format!(
                        "a snapshot of group {}: its rows are not in order",
                        self.group
                    ),
                });
            }
            self.last = Some(at);
        }
        Ok(())
    }

    fn take(&mut self, chunk: &[u8]) -> Result<(), StoreError> {
        // It must not take the room that the log needs.
        let space = self.core.gauge.now();
        if space.level == SpaceLevel::PeopleRefused {
            return Err(StoreError::Full {
                used_percent: space.used_percent,
            });
        }
        self.check(chunk)?;
        let length = u32::try_from(chunk.len()).map_err(|_too_long| StoreError::Damaged {
            what: format!("a piece of a snapshot of {} bytes", chunk.len()),
        })?;
        let mut frame = [0; FRAME_BYTES];
        let (head, crc) = frame.split_at_mut(4);
        head.copy_from_slice(&length.to_be_bytes());
        crc.copy_from_slice(&crc32c::crc32c(chunk).to_be_bytes());
        self.scratch.append(&frame)?;
        self.scratch.append(chunk)?;
        if self.core.gauge.note(chunk.len()) {
            self.core.look();
        }
        Ok(())
    }
}

impl<D: Disk> SnapshotSpool for Spool<D> {
    fn chunk(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.take(&chunk)
            .inspect_err(|error| self.failed = Some(error.clone()))
    }

    fn finish(self: Box<Self>) -> Result<Box<dyn SnapshotReader>, StoreError> {
        match self.failed {
            Some(error) => Err(error),
            None => Ok(Box::new(Spooled {
                applied: self.applied,
                scratch: self.scratch,
                next: 0,
            })),
        }
    }
}

/// Reads a whole spool back.
struct Spooled {
    applied: Applied,
    scratch: Box<dyn Scratch>,
    /// Where the next frame begins.
    next: u64,
}

impl SnapshotReader for Spooled {
    fn applied(&self) -> Option<&Applied> {
        Some(&self.applied)
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.next >= self.scratch.len() {
            return Ok(None);
        }
        let frame = self.scratch.read(self.next, FRAME_BYTES)?;
        let (Some((length, rest)), true) =
            (frame.split_first_chunk::<4>(), frame.len() == FRAME_BYTES)
        else {
            return Err(damaged("its last piece is cut"));
        };
        let length = u32::from_be_bytes(*length);
        let start = self.next + FRAME_BYTES as u64;
        let bytes = usize::try_from(length).map_err(|_too_long| damaged("a piece is too long"))?;
        if start.saturating_add(u64::from(length)) > self.scratch.len() {
            return Err(damaged("its last piece is cut"));
        }
        let chunk = self.scratch.read(start, bytes)?;
        if chunk.len() != bytes || crc32c::crc32c(&chunk).to_be_bytes() != rest {
            return Err(damaged("a piece reads back differently"));
        }
        self.next = start + u64::from(length);
        Ok(Some(chunk.into()))
    }
}

fn damaged(how: &str) -> StoreError {
    StoreError::Damaged {
        what: format!("a spooled snapshot: {how}"),
    }
}

// === The head ===

impl Applied {
    /// The head of a snapshot stream: an encoded `storage.v1.SnapshotHead`.
    pub fn to_head(&self, group: u32) -> Result<Bytes, StoreError> {
        Ok(storage::encode_snapshot_head(&storage_v1::SnapshotHead {
            applied: Some(apply::applied_message(self)?),
            group,
        }))
    }

    /// Reads the head of a snapshot stream: which group, and what it had applied.
    pub fn from_head(bytes: &[u8]) -> Result<(u32, Self), StoreError> {
        let head = storage::decode_snapshot_head(bytes).map_err(StoreError::from)?;
        let applied = head.applied.ok_or_else(|| StoreError::Damaged {
            what: "the head of a snapshot without an applied row".into(),
        })?;
        Ok((head.group, apply::applied_from(applied)?))
    }
}
