//! Flushes of the event DB, and what they make durable.
//!
//! What a group had applied is read *before* a flush starts and published after it finished: the
//! flush covers at least that. The purge bound follows.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::disk::{Disk, Reads};
use crate::engine::{Core, log};
use crate::error::StoreError;
use crate::layout::{self, Family, Key};
use crate::types::LogPosition;

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
    /// `durable` is what was found at open.
    pub(crate) fn new(
        bytes_max: u64,
        every: Duration,
        durable: BTreeMap<u32, LogPosition>,
    ) -> Self {
        Self {
            bytes_max,
            every,
            unflushed: AtomicU64::new(0),
            gate: Mutex::new(()),
            durable: Mutex::new(durable),
            installing: Mutex::new(BTreeSet::new()),
            signal: Mutex::new(Signal::default()),
            wake: Condvar::new(),
        }
    }

    /// Bytes written since the last flush began.
    pub(crate) fn unflushed(&self) -> u64 {
        self.unflushed.load(Ordering::Relaxed)
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

    /// A group's rows begin to be replaced.
    pub(crate) fn begin_install(&self, group: u32) {
        // A flush under way may still publish what it read of the group.
        let _gate = self.gate.lock().expect(LOCK);
        self.installing.lock().expect(LOCK).insert(group);
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
        let _gate = self.flusher.gate.lock().expect(LOCK);
        self.fatal.check()?;
        let before = self.flusher.unflushed.swap(0, Ordering::Relaxed);
        let covered = applied_positions(&self.disk)
            .map_err(|error| self.fatal.fail("reading what is applied", &error))?;
        self.disk
            .event_flush()
            .map_err(|error| self.fatal.fail("flushing the event DB", &error))?;
        tracing::debug!(bytes = before, "flushed the event DB");
        for (group, position) in covered {
            if self.flusher.is_installing(group) {
                continue;
            }
            self.flusher
                .durable
                .lock()
                .expect(LOCK)
                .insert(group, position);
            log::lock(&self.groups.get(group)).raise_bound(position.index);
        }
        Ok(())
    }
}

/// What each group has applied.
pub(crate) fn applied_positions(
    reads: &dyn Reads,
) -> Result<BTreeMap<u32, LogPosition>, StoreError> {
    let mut positions = BTreeMap::new();
    reads.scan(
        Family::Applied,
        &layout::applied_range(),
        &mut |key, value| {
            if let Key::Applied(group) = Key::decode(Family::Applied, key)? {
                let applied = super::apply::open_applied(key, value)?;
                positions.insert(group, applied.position);
            }
            Ok(ControlFlow::Continue(()))
        },
    )?;
    Ok(positions)
}
