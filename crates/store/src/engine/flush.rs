//! Flushes of the event DB, and what they make durable.
//!
//! What a group had applied is read *before* a flush starts and published after it finished: the
//! flush covers at least that. The purge bound follows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use everwire_core::ids::META_GROUP;

use crate::disk::{Disk, Reads};
use crate::engine::{Core, apply, log};
use crate::error::StoreError;
use crate::layout::{self, Family, Key};
use crate::types::{Identity, LogPosition};

const LOCK: &str = "no holder of this lock panics";

/// See the module.
pub(crate) struct Flusher {
    bytes_max: u64,
    every: Duration,
    unflushed: AtomicU64,
    /// One flush at a time.
    gate: Mutex<()>,
    durable: Mutex<BTreeMap<u32, LogPosition>>,
    /// Groups whose rows are being replaced: neither applied nor durable is known of them.
    installing: Mutex<BTreeSet<u32>>,
    /// Groups whose rows must be fetched anew, and why.
    damaged: Mutex<BTreeMap<u32, StoreError>>,
    /// Whether there ever were any: reads ask for each row.
    any_damaged: AtomicBool,
    signal: Mutex<Signal>,
    wake: Condvar,
}

#[derive(Default)]
struct Signal {
    /// Something was written since the last flush began.
    dirty: bool,
    /// Enough for a flush.
    due: bool,
    closing: bool,
}

impl Flusher {
    /// `found` at open.
    pub(crate) fn new(bytes_max: u64, every: Duration, found: Positions) -> Self {
        Self {
            bytes_max,
            every,
            unflushed: AtomicU64::new(0),
            gate: Mutex::new(()),
            durable: Mutex::new(found.applied),
            installing: Mutex::new(BTreeSet::new()),
            any_damaged: AtomicBool::new(!found.damaged.is_empty()),
            damaged: Mutex::new(found.damaged),
            signal: Mutex::new(Signal::default()),
            wake: Condvar::new(),
        }
    }

    /// Bytes written since the last flush began.
    pub(crate) fn unflushed(&self) -> u64 {
        self.unflushed.load(Ordering::Relaxed)
    }

    /// Whether as much waits in memory as may.
    pub(crate) fn is_due(&self) -> bool {
        self.unflushed() >= self.bytes_max
    }

    /// Notes a write. Says whether a flush is due.
    pub(crate) fn note(&self, bytes: usize) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let sum = self.unflushed.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let due = sum >= self.bytes_max;
        let mut signal = self.signal.lock().expect(LOCK);
        if !signal.dirty || (due && !signal.due) {
            signal.dirty = true;
            signal.due |= due;
            self.wake.notify_all();
        }
        due
    }

    /// See [`crate::Store::durable_applied`].
    pub(crate) fn durable(&self, group: u32) -> Option<LogPosition> {
        self.durable.lock().expect(LOCK).get(&group).copied()
    }

    /// Whether a group's rows are being replaced.
    pub(crate) fn is_installing(&self, group: u32) -> bool {
        self.installing.lock().expect(LOCK).contains(&group)
    }

    /// The rows of all these groups are gone.
    pub(crate) fn lose(&self, groups: Range<u32>, what: &str) {
        let mut damaged = self.damaged.lock().expect(LOCK);
        let mut durable = self.durable.lock().expect(LOCK);
        for group in groups {
            durable.remove(&group);
            let what = what.to_owned();
            damaged.insert(group, StoreError::DamagedRows { group, what });
        }
        self.any_damaged.store(true, Ordering::SeqCst);
    }

    /// All groups whose rows must be fetched anew.
    pub(crate) fn all_damaged(&self) -> Vec<StoreError> {
        if !self.any_damaged.load(Ordering::SeqCst) {
            return Vec::new();
        }
        self.damaged.lock().expect(LOCK).values().cloned().collect()
    }

    /// Why a group's rows must be fetched anew, if they must.
    pub(crate) fn damage(&self, group: u32) -> Option<StoreError> {
        if !self.any_damaged.load(Ordering::SeqCst) {
            return None;
        }
        self.damaged.lock().expect(LOCK).get(&group).cloned()
    }

    /// A group's rows begin to be replaced.
    pub(crate) fn begin_install(&self, group: u32) {
        // A flush under way may still publish what it read of the group.
        let _gate = self.gate.lock().expect(LOCK);
        self.installing.lock().expect(LOCK).insert(group);
        self.damaged.lock().expect(LOCK).remove(&group);
        self.durable.lock().expect(LOCK).remove(&group);
    }

    /// They are replaced, and flushed with what stands at `applied`.
    pub(crate) fn end_install(&self, group: u32, applied: LogPosition) {
        self.durable.lock().expect(LOCK).insert(group, applied);
        self.installing.lock().expect(LOCK).remove(&group);
    }

    /// Waits until a flush is due by bytes or by age. False when closing.
    pub(crate) fn wait(&self) -> bool {
        let signal = self.signal.lock().expect(LOCK);
        let signal = self
            .wake
            .wait_while(signal, |s| !s.dirty && !s.closing)
            .expect(LOCK);
        let (mut signal, _) = self
            .wake
            .wait_timeout_while(signal, self.every, |s| !s.due && !s.closing)
            .expect(LOCK);
        signal.dirty = false;
        signal.due = false;
        !signal.closing
    }

    /// Ends [`Flusher::wait`].
    pub(crate) fn close(&self) {
        self.signal.lock().expect(LOCK).closing = true;
        self.wake.notify_all();
    }
}

impl<D: Disk> Core<D> {
    /// See [`crate::Store::flush`].
    pub(crate) fn flush(&self) -> Result<(), StoreError> {
        self.when_it_fits("the flush of the event DB", || self.try_flush())
    }

    /// The same; [`StoreError::Full`] if there is no room for it now.
    pub(crate) fn try_flush(&self) -> Result<(), StoreError> {
        let _gate = self.flusher.gate.lock().expect(LOCK);
        self.fatal.check()?;
        self.flush_fits()?;
        let generation = self.disk.generation();
        let before = self.flusher.unflushed.swap(0, Ordering::Relaxed);
        let covered = applied_positions(&self.disk, &self.identity)
            .map_err(|error| self.fatal.fail("reading what is applied", &error))?;
        let flushed = self.timed(&self.counts.flushes, || self.disk.event_flush());
        if let Err(error) = flushed {
            // It waits in memory as before.
            self.flusher.unflushed.fetch_add(before, Ordering::Relaxed);
            return Err(self.failed("flushing the event DB", generation, error));
        }
        tracing::debug!(bytes = before, "flushed the event DB");
        // Nothing of a damaged one counts as durable; the others go on.
        for (group, error) in covered.damaged {
            tracing::error!(group, %error, "the applied row cannot be read");
        }
        for (group, position) in covered.applied {
            // What was read before the event DB was replaced is gone.
            if self.flusher.is_installing(group) || self.flusher.damage(group).is_some() {
                continue;
            }
            // The bound first: who reads what is durable may purge up to there at once.
            log::lock(&self.groups.get(group)).raise_bound(position.index);
            self.flusher
                .durable
                .lock()
                .expect(LOCK)
                .insert(group, position);
        }
        Ok(())
    }
}

/// What the applied rows say.
#[derive(Default)]
pub(crate) struct Positions {
    /// How far each group has applied.
    pub(crate) applied: BTreeMap<u32, LogPosition>,
    /// Groups whose row cannot be read.
    pub(crate) damaged: BTreeMap<u32, StoreError>,
}

impl Positions {
    fn add(
        &mut self,
        group: u32,
        found: Result<LogPosition, StoreError>,
    ) -> Result<(), StoreError> {
        match found {
            Ok(position) => {
                self.applied.insert(group, position);
            },
            Err(error @ StoreError::Damaged { .. }) => {
                self.damaged.insert(group, error.of_rows(group));
            },
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// What each group has applied. Damage of one group's row is that group's alone.
pub(crate) fn applied_positions(
    reads: &dyn Reads,
    identity: &Identity,
) -> Result<Positions, StoreError> {
    let mut found = Positions::default();
    let range = layout::applied_range();
    let scanned = reads.scan(Family::Applied, &range, &mut |key, value| {
        if let Key::Applied(group) = Key::decode(Family::Applied, key)? {
            let applied = apply::open_applied(key, value);
            found.add(group, applied.map(|applied| applied.position))?;
        }
        Ok(ControlFlow::Continue(()))
    });
    match scanned {
        Ok(()) => return Ok(found),
        Err(StoreError::Damaged { what }) => {
            tracing::error!(
                what,
                "the applied rows cannot be listed: looked up one by one"
            );
        },
        Err(error) => return Err(error),
    }
    // What holds several of them is bad; those beside it are still good.
    for group in (0..identity.shards).chain([META_GROUP]) {
        if let Some(applied) = apply::read_applied(reads, group).transpose() {
            found.add(group, applied.map(|applied| applied.position))?;
        }
    }
    Ok(found)
}
