//! One group's log as the node sees it: where it begins and ends, and its newest entries.
//!
//! The tail holds what is not yet synced, and behind that as much as fits its bound; everything
//! older is read from disk. Invariants: `purged < first ≤ last`; the tail is contiguous and ends
//! at `last`; an entry leaves the front of the tail only when it is synced (or purged).

use std::collections::{BTreeMap, VecDeque};
use std::ops::{ControlFlow, Range};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;

use crate::disk::Disk;
use crate::engine::weights::Weights;
use crate::error::StoreError;
use crate::layout::{self, LogFamily, LogKey};
use crate::record;
use crate::types::{LogPosition, LogRecord, LogState};

/// How far a purge may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bound {
    /// Up to this index; `None`: nothing.
    At(Option<u64>),
    /// Anywhere: openraft's suite.
    Lifted,
}

/// See the module.
pub(crate) struct Group {
    /// The last purged entry.
    pub(crate) purged: Option<LogPosition>,
    /// The last entry that exists.
    pub(crate) last: Option<LogPosition>,
    /// The index of the first entry that exists, while `last` is set.
    pub(crate) first: u64,
    /// See [`Bound`].
    pub(crate) bound: Bound,
    /// Rises when entries go: a reader that saw it change starts again.
    generation: u64,
    /// The newest entries and the operation that writes each.
    tail: VecDeque<(u64, LogRecord)>,
    tail_bytes: usize,
    /// Operations up to this one are synced.
    settled: u64,
    /// How much stands where.
    pub(crate) weights: Weights,
}

impl Default for Group {
    fn default() -> Self {
        Self::new(None, None, 0)
    }
}

impl Group {
    /// A log whose entries, if any, are all on disk.
    pub(crate) fn new(purged: Option<LogPosition>, last: Option<LogPosition>, first: u64) -> Self {
        Self {
            purged,
            last,
            first,
            bound: Bound::At(None),
            generation: 0,
            tail: VecDeque::new(),
            tail_bytes: 0,
            settled: 0,
            weights: Weights::default(),
        }
    }

    /// The index that continues the log; `None`: any.
    pub(crate) fn next_index(&self) -> Option<u64> {
        self.last.or(self.purged).map(|last| last.index + 1)
    }

    /// The ends, as Raft wants them.
    pub(crate) fn state(&self) -> LogState {
        LogState {
            purged: self.purged,
            last: self.last.or(self.purged),
        }
    }

    /// Adds records that continue the log and that operation `seq` writes.
    pub(crate) fn append(&mut self, seq: u64, records: &[LogRecord]) {
        for record in records {
            if self.last.is_none() {
                self.first = record.position.index;
            }
            self.last = Some(record.position);
            self.weights.add(record.position.index, record.bytes.len());
            self.tail_bytes += record.bytes.len();
            self.tail.push_back((seq, record.clone()));
        }
    }

    /// The indexes that go when entries above `index` go.
    pub(crate) fn above(&self, index: Option<u64>) -> Range<u64> {
        match self.last {
            Some(last) => {
                let from = index.map_or(0, |index| index + 1).max(self.first);
                from..(last.index + 1).max(from)
            },
            None => 0..0,
        }
    }

    /// Drops entries ≥ `from`, which is not below `first`. `before` is the entry in front of it;
    /// `None` when none is left.
    pub(crate) fn truncate(&mut self, from: u64, before: Option<LogPosition>) {
        while let Some((_, record)) = self.tail.back()
            && record.position.index >= from
        {
            self.tail_bytes -= record.bytes.len();
            self.tail.pop_back();
        }
        self.weights.truncate(from);
        self.last = before;
        self.generation += 1;
    }

    /// Forgets entries ≤ `upto`. Says whether anything changes.
    pub(crate) fn purge(&mut self, upto: LogPosition) -> bool {
        if self.purged.is_some_and(|purged| purged.index >= upto.index) {
            return false;
        }
        self.purged = Some(upto);
        self.weights.purge(upto.index);
        while let Some((_, record)) = self.tail.front()
            && record.position.index <= upto.index
        {
            self.tail_bytes -= record.bytes.len();
            self.tail.pop_front();
        }
        self.last = self.last.filter(|last| last.index > upto.index);
        self.first = self.first.max(upto.index + 1);
        self.generation += 1;
        true
    }

    /// Raises the bound to what is durably applied.
    pub(crate) fn raise_bound(&mut self, durable: u64) {
        if let Bound::At(bound) = self.bound {
            self.bound = Bound::At(bound.max(Some(durable)));
        }
    }

    /// Operations up to `seq` are synced: old entries may leave the tail.
    pub(crate) fn settle(&mut self, seq: u64, tail_bytes_max: usize) {
        self.settled = self.settled.max(seq);
        while self.tail_bytes > tail_bytes_max
            && let Some((seq, record)) = self.tail.front()
            && *seq <= self.settled
        {
            self.tail_bytes -= record.bytes.len();
            self.tail.pop_front();
        }
    }

    /// The entry at `index`, if the tail holds it.
    pub(crate) fn in_tail(&self, index: u64) -> Option<&LogRecord> {
        let start = self.tail.front()?.1.position.index;
        let at = usize::try_from(index.checked_sub(start)?).ok()?;
        self.tail.get(at).map(|(_, record)| record)
    }

    /// Where the next piece of a read comes from.
    fn piece(&self, next: u64, end: u64, reading: &mut Reading) -> Piece {
        let end = end.min(self.last.map_or(0, |last| last.index + 1));
        if next >= end {
            return Piece::End;
        }
        let Some((_, front)) = self.tail.front() else {
            return Piece::Disk(next..end);
        };
        if next < front.position.index {
            return Piece::Disk(next..end.min(front.position.index));
        }
        for index in next..end {
            let Some(record) = self.in_tail(index) else {
                break;
            };
            if !reading.take(record.clone()) {
                break;
            }
        }
        Piece::End
    }
}

enum Piece {
    End,
    Disk(Range<u64>),
}

/// What a read has gathered, and how much it may still take.
struct Reading {
    records: Vec<LogRecord>,
    bytes: usize,
    bytes_max: usize,
}

impl Reading {
    fn new(bytes_max: usize) -> Self {
        Self {
            records: Vec::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Takes a record unless it would pass the bound; the first always fits.
    fn take(&mut self, record: LogRecord) -> bool {
        let bytes = self.bytes.saturating_add(record.bytes.len());
        if bytes > self.bytes_max && !self.records.is_empty() {
            return false;
        }
        self.bytes = bytes;
        self.records.push(record);
        true
    }
}

/// The logs of all groups.
#[derive(Default)]
pub(crate) struct Groups(Mutex<BTreeMap<u32, Arc<Mutex<Group>>>>);

/// Locks one group's log.
pub(crate) fn lock(group: &Mutex<Group>) -> MutexGuard<'_, Group> {
    group.lock().expect("no holder of this lock panics")
}

impl Groups {
    /// The log of a group; an empty one if it never had any.
    pub(crate) fn get(&self, group: u32) -> Arc<Mutex<Group>> {
        let mut groups = self.0.lock().expect("no holder of this lock panics");
        Arc::clone(groups.entry(group).or_default())
    }

    /// Puts a group's log in, at open.
    pub(crate) fn put(&self, group: u32, log: Group) {
        let mut groups = self.0.lock().expect("no holder of this lock panics");
        groups.insert(group, Arc::new(Mutex::new(log)));
    }

    /// See [`crate::Store::read_log`].
    pub(crate) fn read(
        &self,
        disk: &impl Disk,
        group: u32,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogRecord>, StoreError> {
        let cell = self.get(group);
        if range.is_empty() {
            return Ok(Vec::new());
        }
        loop {
            let (mut next, generation) = {
                let log = lock(&cell);
                if let Some(purged) = log.purged
                    && range.start <= purged.index
                {
                    let upto = purged.index;
                    return Err(StoreError::Purged { group, upto });
                }
                (range.start.max(log.first), log.generation)
            };
            let mut reading = Reading::new(bytes_max);
            let done = loop {
                let piece = {
                    let log = lock(&cell);
                    if log.generation != generation {
                        break None;
                    }
                    // The first entries of an empty log may have come since the look above.
                    if reading.records.is_empty() {
                        next = next.max(log.first);
                    }
                    log.piece(next, range.end, &mut reading)
                };
                let Piece::Disk(indexes) = piece else {
                    break Some(Ok(()));
                };
                match read_disk(disk, group, indexes, &mut reading) {
                    Ok(Some(index)) => next = index,
                    Ok(None) => break Some(Ok(())),
                    Err(error) => break Some(Err(error)),
                }
            };
            // What was purged or truncated meanwhile may be half gone from disk.
            if lock(&cell).generation == generation
                && let Some(done) = done
            {
                return done.map(|()| reading.records);
            }
        }
    }
}

/// Reads all of `indexes`, which must be on disk. `None`: the bound of bytes is reached; else the
/// index to go on with.
fn read_disk(
    disk: &impl Disk,
    group: u32,
    indexes: Range<u64>,
    reading: &mut Reading,
) -> Result<Option<u64>, StoreError> {
    let mut next = indexes.start;
    let mut full = false;
    let range = layout::log_range(group, indexes.clone());
    disk.log_scan(LogFamily::Log, &range, &mut |key, value| {
        let record = open_entry(group, key, value)?;
        if record.position.index != next {
            return Err(hole(group, next));
        }
        if !reading.take(record) {
            full = true;
            return Ok(ControlFlow::Break(()));
        }
        next += 1;
        Ok(ControlFlow::Continue(()))
    })?;
    if full {
        return Ok(None);
    }
    if next < indexes.end {
        return Err(hole(group, next));
    }
    Ok(Some(next))
}

fn hole(group: u32, index: u64) -> StoreError {
    StoreError::Damaged {
        what: format!("entry {index} of group {group} is missing"),
    }
}

/// The value of a log record: `term u64 ‖ node u64 ‖ entry`, sealed.
pub(crate) fn seal_entry(key: &[u8], record: &LogRecord) -> Vec<u8> {
    let mut payload = Vec::with_capacity(16 + record.bytes.len());
    payload.extend_from_slice(&record.position.term.to_be_bytes());
    payload.extend_from_slice(&record.position.node.to_be_bytes());
    payload.extend_from_slice(&record.bytes);
    record::seal(key, &payload)
}

/// Reads what [`seal_entry`] wrote under a key of `group`.
pub(crate) fn open_entry(group: u32, key: &[u8], value: &[u8]) -> Result<LogRecord, StoreError> {
    let damaged = |how: &str| StoreError::Damaged {
        what: format!("a log record of group {group}: {how}"),
    };
    let index = match LogKey::decode(LogFamily::Log, key)? {
        LogKey::Entry {
            group: found,
            index,
        } if found == group => index,
        _ => return Err(damaged("its key is another group's")),
    };
    let payload = record::unseal("a log record", key, value)?;
    let (term, rest) = payload
        .split_first_chunk::<8>()
        .ok_or_else(|| damaged("no term"))?;
    let (node, bytes) = rest
        .split_first_chunk::<8>()
        .ok_or_else(|| damaged("no node"))?;
    Ok(LogRecord {
        position: LogPosition {
            term: u64::from_be_bytes(*term),
            node: u64::from_be_bytes(*node),
            index,
        },
        bytes: Bytes::copy_from_slice(bytes),
    })
}
