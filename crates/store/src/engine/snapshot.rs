//! Snapshots of a group: read from one frozen moment, installed under a marker.
//!
//! Reading: a thread owns the frozen event DB and sends pieces over a bounded channel; dropping
//! the reader ends it. The applied row comes out of the same frozen moment (RULES 32).
//!
//! Installing: marker in the log DB (synced) → old range and applied row dropped → pieces
//! written → applied row → flush → marker cleared (synced). A crash anywhere between leaves the
//! marker, and the next open drops the range again.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use bytes::Bytes;
use everwire_proto::{storage, storage_v1};

use crate::disk::{Batch, Disk, Reads};
use crate::engine::queue::Work;
use crate::engine::{Core, apply, log};
use crate::error::StoreError;
use crate::layout::{self, Family, Key};
use crate::record;
use crate::types::Applied;
use crate::{SnapshotInstall, SnapshotReader};

/// A piece is sent when it holds this much, bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// Pieces that are read ahead of the reader.
const CHUNKS_AHEAD: usize = 2;

enum Piece {
    Head(Option<Applied>),
    Rows(Bytes),
    End,
}

/// See [`crate::Store::snapshot`].
pub(crate) fn read<D: Disk>(
    core: &Arc<Core<D>>,
    group: u32,
) -> Result<Box<dyn SnapshotReader>, StoreError> {
    core.fatal.check()?;
    if core.flusher.is_installing(group) {
        return Err(StoreError::Io("the group is being installed".into()));
    }
    let slots = core.identity.slots(group);
    let (send, pieces) = sync_channel(CHUNKS_AHEAD);
    let thread_core = Arc::clone(core);
    let thread = std::thread::Builder::new()
        .name("ew-snapshot".into())
        .spawn(move || {
            thread_core.disk.frozen(&mut |reads| {
                // A send fails when the reader is gone: nobody is left to tell.
                let whole = thread_core.read_of(group, Ok(()));
                let produced = whole.and_then(|()| produce(reads, group, slots.clone(), &send));
                let last = match produced {
                    Ok(()) => Ok(Piece::End),
                    Err(error) => Err(error.of_rows(group)),
                };
                drop(send.send(last));
            });
        })
        .map_err(|error| StoreError::Io(format!("no thread for a snapshot: {error}")))?;
    let mut reader = Reader {
        applied: None,
        pieces: Some(pieces),
        thread: Some(thread),
    };
    match reader.receive()? {
        Piece::Head(applied) => {
            reader.applied = applied;
            Ok(Box::new(reader))
        },
        Piece::Rows(_) | Piece::End => Err(StoreError::Io("a snapshot without a head".into())),
    }
}

struct Reader {
    applied: Option<Applied>,
    /// `None` after the last piece.
    pieces: Option<Receiver<Result<Piece, StoreError>>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    fn receive(&self) -> Result<Piece, StoreError> {
        let Some(pieces) = &self.pieces else {
            return Ok(Piece::End);
        };
        match pieces.recv() {
            Ok(piece) => piece,
            Err(gone) => Err(StoreError::Io(format!(
                "the snapshot's thread ended: {gone}"
            ))),
        }
    }
}

/// The thread ends when nobody listens; waiting for it gives the disk back at once.
impl Drop for Reader {
    fn drop(&mut self) {
        self.pieces = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a snapshot panicked");
        }
    }
}

impl SnapshotReader for Reader {
    fn applied(&self) -> Option<&Applied> {
        self.applied.as_ref()
    }

    fn next_chunk(&mut self) -> Result<Option<Bytes>, StoreError> {
        match self.receive()? {
            Piece::Rows(bytes) => Ok(Some(bytes)),
            Piece::Head(_) | Piece::End => {
                self.pieces = None;
                Ok(None)
            },
        }
    }
}

type Pieces = SyncSender<Result<Piece, StoreError>>;

/// Sends head and rows of a group; stops silently when the reader is gone.
fn produce(
    reads: &dyn Reads,
    group: u32,
    slots: Range<u16>,
    send: &Pieces,
) -> Result<(), StoreError> {
    let applied = apply::read_applied(reads, group)?;
    let mut open = send.send(Ok(Piece::Head(applied))).is_ok();
    let mut chunk = storage_v1::SnapshotChunk::default();
    let mut bytes = 0;
    let range = layout::slots_range(slots);
    for family in Family::sharded() {
        if !open {
            return Ok(());
        }
        reads.scan(family, &range, &mut |key, value| {
            record::unseal("a row of a snapshot", key, value)?;
            bytes += key.len() + value.len() + 16;
            chunk.rows.push(storage_v1::SnapshotRow {
                family: family.number(),
                key: Bytes::copy_from_slice(key),
                value: Bytes::copy_from_slice(value),
            });
            if bytes >= CHUNK_BYTES {
                open = send_chunk(send, &mut chunk);
                bytes = 0;
            }
            Ok(if open {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            })
        })?;
    }
    if open && !chunk.rows.is_empty() {
        send_chunk(send, &mut chunk);
    }
    Ok(())
}

fn send_chunk(send: &Pieces, chunk: &mut storage_v1::SnapshotChunk) -> bool {
    let chunk = std::mem::take(chunk);
    send.send(Ok(Piece::Rows(storage::encode_snapshot_chunk(&chunk))))
        .is_ok()
}

// === Install ===

/// See [`crate::Store::drop_rows`].
pub(crate) fn begin<D: Disk>(core: &Arc<Core<D>>, group: u32) -> Result<(), StoreError> {
    core.fatal.check()?;
    core.marker(group, true)?;
    core.when_it_fits("dropping rows", || {
        // Whole again from here on, unless everything is lost before the first piece.
        core.flusher.begin_install(group);
        let generation = core.disk.generation();
        let dropped = drop_group(&core.disk, core.identity.slots(group), group);
        dropped.map_err(|error| core.failed("dropping a group's rows", generation, error))
    })
}

/// See [`crate::Store::install`].
pub(crate) fn install<D: Disk>(
    core: &Arc<Core<D>>,
    group: u32,
) -> Result<Box<dyn SnapshotInstall>, StoreError> {
    begin(core, group)?;
    Ok(Box::new(Install {
        core: Arc::clone(core),
        group,
    }))
}

/// Removes all rows and events of a group and its applied row; durable with the next flush.
pub(crate) fn drop_group(
    disk: &impl Disk,
    slots: Range<u16>,
    group: u32,
) -> Result<(), StoreError> {
    let mut batch = disk.event_batch();
    let range = layout::slots_range(slots);
    if range.start < range.end {
        for family in Family::sharded() {
            batch.delete_range(family, &range);
        }
    }
    batch.delete(Family::Applied, &Key::Applied(group).encode());
    disk.event_write(batch)
}

struct Install<D: Disk> {
    core: Arc<Core<D>>,
    group: u32,
}

/// Checks a row that comes from elsewhere: whole, and of this group. Says which family it is of.
pub(crate) fn check_row(
    group: u32,
    slots: &Range<u16>,
    row: &storage_v1::SnapshotRow,
) -> Result<Family, StoreError> {
    let damaged = |how: &str| StoreError::Damaged {
        what: format!("a row of a snapshot of group {group}: {how}"),
    };
    let family = Family::from_number(row.family)
        .filter(|family| *family != Family::Applied)
        .ok_or_else(|| damaged("no such family"))?;
    Key::decode(family, &row.key)?;
    record::unseal("a row of a snapshot", &row.key, &row.value)?;
    let slot = row
        .key
        .first_chunk::<2>()
        .map(|slot| u16::from_be_bytes(*slot));
    if slot.is_some_and(|slot| slots.contains(&slot)) {
        Ok(family)
    } else {
        Err(damaged("its key is not in the group's slots"))
    }
}

impl<D: Disk> SnapshotInstall for Install<D> {
    fn chunk(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        let core = &self.core;
        core.fatal.check()?;
        let chunk = storage::decode_snapshot_chunk(&chunk).map_err(StoreError::from)?;
        let slots = core.identity.slots(self.group);
        let bytes = core.when_it_fits("installing rows", || {
            if core.flusher.is_due() {
                core.flush_fits()?;
            }
            core.write_events("writing a snapshot", || {
                let mut batch = core.disk.event_batch();
                for row in &chunk.rows {
                    let family = check_row(self.group, &slots, row)?;
                    batch.put(family, &row.key, &row.value);
                }
                core.read_of(self.group, Ok(batch))
            })
        })?;
        core.flusher.note(bytes);
        if core.gauge.note(bytes) {
            core.look();
        }
        Ok(())
    }

    fn finish(self: Box<Self>, applied: Applied) -> Result<(), StoreError> {
        let core = &self.core;
        core.when_it_fits("installing rows", || {
            core.write_events("writing a snapshot", || {
                let mut batch = core.disk.event_batch();
                apply::put_applied(&mut batch, self.group, &applied)?;
                core.read_of(self.group, Ok(batch))
            })
        })?;
        core.flush()?;
        core.read_of(self.group, Ok(()))?;
        core.marker(self.group, false)?;
        log::lock(&core.groups.get(self.group)).raise_bound(applied.position.index);
        core.flusher.end_install(self.group, applied.position);
        Ok(())
    }
}

impl<D: Disk> Core<D> {
    /// Sets or clears a group's install marker and waits until that is synced.
    fn marker(&self, group: u32, set: bool) -> Result<(), StoreError> {
        let (send, answer) = sync_channel(1);
        self.queue.push(
            group,
            Work::Marker(set),
            Some(Box::new(move |result| {
                // The waiter below is always there.
                drop(send.send(result));
            })),
        );
        self.drive();
        if !self.disk.waits() {
            // The caller is the only thread there is: nobody else would run a held writer.
            while let Some(ops) = self.queue.step() {
                self.execute(ops);
            }
        }
        answer
            .recv()
            .map_err(|gone| StoreError::Io(format!("the log writer ended: {gone}")))?
    }
}
