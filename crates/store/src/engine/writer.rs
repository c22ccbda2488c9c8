//! The writer: takes batches off the FIFO and makes them durable, one sync each.
//!
//! A batch: votes → both slots of the watermark, synced; then all log operations and
//! `meta/batch = n` → one write batch of the log DB, synced; then the answers, in order. The
//! number n goes into the watermark afterwards, off the ack path (`mark`). A batch for which the
//! disk has no room is not begun: it waits (`room`). Whatever fails ends everything: this batch's
//! answers and all later ones are errors.

use std::sync::atomic::Ordering;

use crate::disk::{Batch, Disk, Freed};
use crate::engine::Core;
use crate::engine::log::{self, Bound};
use crate::engine::queue::{Op, PIECE_BYTES, Work};
use crate::error::StoreError;
use crate::layout::{self, LogFamily, LogKey};
use crate::record;
use crate::types::{Done, LogPosition, LogRecord, VoteRecord};

impl<D: Disk> Core<D> {
    /// See [`crate::Store::append`].
    pub(crate) fn append(&self, group: u32, records: Vec<LogRecord>, done: Done) {
        let cell = self.groups.get(group);
        let mut log = log::lock(&cell);
        if let Err(error) = contiguous(group, log.next_index(), &records) {
            self.queue.push(group, Work::Refused(error), Some(done));
            return;
        }
        let mut done = Some(done);
        let mut pieces = cut(records).into_iter().peekable();
        while let Some(piece) = pieces.next() {
            let done = if pieces.peek().is_none() {
                done.take()
            } else {
                None
            };
            // The records are shared, not copied: their bytes are reference-counted.
            let seq = self.queue.push(group, Work::Append(piece.clone()), done);
            log.append(seq, &piece);
        }
    }

    /// See [`crate::Store::save_vote`].
    pub(crate) fn save_vote(&self, group: u32, vote: VoteRecord, done: Done) {
        let cell = self.groups.get(group);
        let _order = log::lock(&cell);
        self.queue.push(group, Work::Vote(vote), Some(done));
    }

    /// See [`crate::Store::truncate_after`].
    pub(crate) fn truncate_after(&self, group: u32, index: Option<u64>, done: Done) {
        let cell = self.groups.get(group);
        let mut log = log::lock(&cell);
        let gone = log.above(index);
        if !gone.is_empty() {
            let before = if gone.start == log.first {
                Ok(None)
            } else {
                let last_kept = gone.start - 1;
                match log.in_tail(last_kept) {
                    Some(record) => Ok(Some(record.position)),
                    None => self.position_on_disk(group, last_kept).map(Some),
                }
            };
            match before {
                Ok(before) => log.truncate(gone.start, before),
                Err(error) => {
                    let error = self.fatal.fail("truncating the log", &error);
                    self.queue.push(group, Work::Refused(error), Some(done));
                    return;
                },
            }
        }
        self.queue.push(group, Work::Truncate(gone), Some(done));
    }

    fn position_on_disk(&self, group: u32, index: u64) -> Result<LogPosition, StoreError> {
        let key = LogKey::Entry { group, index }.encode();
        let value = self.disk.log_get(LogFamily::Log, &key)?;
        let value = value.ok_or_else(|| StoreError::Damaged {
            what: format!("entry {index} of group {group} is missing"),
        })?;
        Ok(log::open_entry(group, &key, &value)?.position)
    }

    /// See [`crate::Store::purge`].
    pub(crate) fn purge(&self, group: u32, upto: LogPosition, done: Done) {
        let cell = self.groups.get(group);
        let mut log = log::lock(&cell);
        if let Bound::At(bound) = log.bound
            && bound.is_none_or(|bound| upto.index > bound)
        {
            let error = StoreError::AboveBound {
                group,
                upto: upto.index,
                bound,
            };
            drop(log);
            self.fatal.tell(&error.to_string());
            self.queue.push(group, Work::Refused(error), Some(done));
            return;
        }
        let work = if log.purge(upto) {
            Work::Purge(upto)
        } else {
            Work::Truncate(0..0)
        };
        self.queue.push(group, work, Some(done));
    }

    /// Makes a batch durable and answers it.
    pub(crate) fn execute(&self, ops: Vec<Op>) {
        let result = self.make_durable(&ops);
        self.answer(ops, &result);
    }

    /// The same; a batch for which there is no room is given back, unless nobody may wait.
    pub(crate) fn try_execute(&self, ops: Vec<Op>) -> Option<Vec<Op>> {
        let result = self.make_durable(&ops);
        let is_full = matches!(result, Err(StoreError::Full { .. }));
        if is_full && !self.room.has_ended() {
            return Some(ops);
        }
        self.room.set_log_waits(is_full);
        self.answer(ops, &result);
        None
    }

    /// Puts a batch back and lets a moment go by, in which votes are saved that nothing stands
    /// before: an election must not wait for room.
    pub(crate) fn without_room(&self, ops: Vec<Op>) {
        self.room.set_log_waits(true);
        self.queue.put_back(ops);
        let votes = self.queue.free_votes();
        if !votes.is_empty() {
            self.execute(votes);
        }
        self.room.pause();
    }

    fn answer(&self, ops: Vec<Op>, result: &Result<(), StoreError>) {
        for op in ops {
            if result.is_ok() && matches!(op.work, Work::Append(_)) {
                let cell = self.groups.get(op.group);
                log::lock(&cell).settle(op.seq, self.tail_bytes);
            }
            let Some(done) = op.done else { continue };
            match op.work {
                Work::Refused(error) => done(Err(error)),
                _ => done(result.clone()),
            }
        }
    }

    fn make_durable(&self, ops: &[Op]) -> Result<(), StoreError> {
        self.fatal.check()?;
        let mut batch = self.disk.log_batch();
        for op in ops {
            self.add(&mut batch, op);
        }
        if batch.bytes() > 0 {
            // Before the votes: what waits here is tried again, whole.
            self.log_fits(batch.bytes())?;
        }
        let votes: Vec<_> = ops
            .iter()
            .filter_map(|op| match op.work {
                Work::Vote(vote) => Some((op.group, vote)),
                _ => None,
            })
            .collect();
        if !votes.is_empty() {
            self.mark
                .save_votes(&self.disk, &votes)
                .map_err(|error| self.fatal.fail("saving a vote", &error))?;
        }
        self.write_log(batch).map_err(|error| match error {
            full @ StoreError::Full { .. } => full,
            error => self.fatal.fail("writing the log", &error),
        })?;
        self.note_freed(ops);
        Ok(())
    }

    /// Writes the log operations of a batch, if any, and syncs.
    fn write_log(&self, mut batch: D::LogBatch) -> Result<(), StoreError> {
        if batch.bytes() == 0 {
            return Ok(());
        }
        let peers = self.peers.add(&self.identity, &mut batch);
        let number = self.mark.synced() + 1;
        let key = LogKey::Batch.encode();
        let value = record::seal(&key, &number.to_be_bytes());
        batch.put(LogFamily::Meta, &key, &value);
        let bytes = batch.bytes();
        let written = self.timed(&self.counts.syncs, || self.disk.log_write(batch));
        if let Err(error) = written {
            self.peers.put_back(peers);
            return Err(error);
        }
        let wide = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.counts.sync_bytes.fetch_add(wide, Ordering::Relaxed);
        self.mark.note(number);
        if self.gauge.note(bytes) {
            self.look();
        }
        Ok(())
    }

    /// What was purged can be had back.
    fn note_freed(&self, ops: &[Op]) {
        for op in ops {
            if let Work::Purge(upto) = op.work {
                let gone = layout::log_range(op.group, 0..upto.index + 1);
                self.gauge.freed(Freed::Log, gone);
            }
        }
    }

    fn add(&self, batch: &mut D::LogBatch, op: &Op) {
        let group = op.group;
        match &op.work {
            Work::Append(records) => {
                for record in records {
                    let index = record.position.index;
                    let key = LogKey::Entry { group, index }.encode();
                    batch.put(LogFamily::Log, &key, &log::seal_entry(&key, record));
                }
            },
            // One by one: a range tombstone over the log's live end would be paid by every read.
            Work::Truncate(indexes) => {
                for index in indexes.clone() {
                    let key = LogKey::Entry { group, index }.encode();
                    batch.delete(LogFamily::Log, &key);
                }
            },
            // From zero on, so that it stands for all tombstones before it.
            Work::Purge(upto) => {
                let gone = layout::log_range(group, 0..upto.index + 1);
                batch.delete_range(LogFamily::Log, &gone);
                let key = LogKey::Purged(group).encode();
                batch.put(LogFamily::Meta, &key, &seal_position(&key, *upto));
            },
            Work::Marker(set) => {
                let key = LogKey::Installing(group).encode();
                if *set {
                    batch.put(LogFamily::Meta, &key, &record::seal(&key, &[]));
                } else {
                    batch.delete(LogFamily::Meta, &key);
                }
            },
            Work::Vote(_) | Work::Refused(_) => {},
        }
    }
}

/// The value of a purge point: `term u64 ‖ node u64 ‖ index u64`, sealed.
pub(crate) fn seal_position(key: &[u8], position: LogPosition) -> Vec<u8> {
    let mut payload = Vec::with_capacity(24);
    for number in [position.term, position.node, position.index] {
        payload.extend_from_slice(&number.to_be_bytes());
    }
    record::seal(key, &payload)
}

/// Reads what [`seal_position`] wrote.
pub(crate) fn open_position(key: &[u8], value: &[u8]) -> Result<LogPosition, StoreError> {
    let mut rest = record::unseal("a purge point", key, value)?;
    let mut number = || {
        let (head, tail) = rest.split_first_chunk::<8>()?;
        rest = tail;
        Some(u64::from_be_bytes(*head))
    };
    match (number(), number(), number()) {
        (Some(term), Some(node), Some(index)) => Ok(LogPosition { term, node, index }),
        _ => Err(StoreError::Damaged {
            what: "a purge point is too short".into(),
        }),
    }
}

fn contiguous(
    group: u32,
    mut expected: Option<u64>,
    records: &[LogRecord],
) -> Result<(), StoreError> {
    for record in records {
        let found = record.position.index;
        if let Some(expected) = expected
            && expected != found
        {
            return Err(StoreError::Hole {
                group,
                expected,
                found,
            });
        }
        expected = Some(found + 1);
    }
    Ok(())
}

/// Cuts records into pieces that fit a sync beside those that overtake them; at least one piece.
fn cut(records: Vec<LogRecord>) -> Vec<Vec<LogRecord>> {
    let mut pieces = vec![Vec::new()];
    let mut bytes = 0;
    for record in records {
        let size = record.bytes.len() + 128;
        if bytes + size > PIECE_BYTES && bytes > 0 {
            pieces.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(piece) = pieces.last_mut() {
            piece.push(record);
        }
    }
    pieces
}
