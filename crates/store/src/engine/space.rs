//! How full the file system is, and who may still write (RULES 35).
//!
//! Looked at once a second by a thread, and at once when a lot was written since: a small file
//! system fills in less than a second. What stands in memory and will be flushed counts as used.
//! On a full disk everything waits (`room`), so admission must stop before; that is the callers'
//! part, with the levels told here.
//!
//! Ours: the ballast. It is given up when the disk is nearly full, so that deletes, trims and a
//! recovery have room, and made again when there is plenty. And on a disk this full, what was
//! deleted is compacted away at once: nobody else writes, so nothing else would start that.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use everwire_core::limits::{
    BALLAST_BYTES_MAX, SPACE_AGENTS_BYTES, SPACE_LOOK_EVERY, SPACE_PEOPLE_BYTES,
};

use crate::disk::{Disk, Freed};
use crate::engine::Core;
use crate::error::StoreError;
use crate::layout::KeyRange;
use crate::types::{Space, SpaceLevel};

const LOCK: &str = "no holder of this lock panics";
/// The ballast goes when less than this share of the file system is left, percent.
const RELEASE_BELOW: u64 = 3;
/// It comes back when, with it, at least this share is left.
const REMAKE_ABOVE: u64 = 15;
/// Freed ranges that are remembered one by one.
const FREED_MAX: usize = 1024;

/// Ranges that were deleted: where, start → end.
type Ranges = BTreeMap<(Freed, Vec<u8>), Vec<u8>>;

/// See the module.
pub(crate) struct Gauge {
    /// From where on agents and people are refused, percent.
    refuse: (u64, u64),
    now: Mutex<Space>,
    /// Bytes written since the last look.
    written: AtomicU64,
    /// Bytes after which a look is due at once.
    step: AtomicU64,
    /// One look at a time.
    gate: Mutex<()>,
    freed: Mutex<Ranges>,
    closing: Mutex<bool>,
    wake: Condvar,
}

impl Gauge {
    /// Refuses agents and people from so many percent on.
    pub(crate) fn new(refuse: (u64, u64)) -> Self {
        Self {
            refuse,
            now: Mutex::default(),
            written: AtomicU64::new(0),
            step: AtomicU64::new(0),
            gate: Mutex::default(),
            freed: Mutex::default(),
            closing: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// The last look.
    pub(crate) fn now(&self) -> Space {
        *self.now.lock().expect(LOCK)
    }

    /// Notes what was written. Says whether a look is due.
    pub(crate) fn note(&self, bytes: usize) -> bool {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let sum = self.written.fetch_add(bytes, Ordering::Relaxed) + bytes;
        sum >= self.step.load(Ordering::Relaxed)
    }

    /// Notes a range that was deleted: its place can be had back.
    pub(crate) fn freed(&self, what: Freed, range: KeyRange) {
        let mut freed = self.freed.lock().expect(LOCK);
        // All purges of a group start alike: one range stands for them.
        let end = freed.entry((what, range.start)).or_default();
        *end = range.end.max(std::mem::take(end));
        if freed.len() <= FREED_MAX {
            return;
        }
        let all = std::mem::take(&mut *freed);
        if self.now().level == SpaceLevel::Plenty {
            // While there is room, others write on, and RocksDB compacts by itself.
            return;
        }
        for what in [Freed::Log, Freed::Events] {
            let mut of = all.iter().filter(|((of, _), _)| *of == what).peekable();
            if let Some(((_, start), _)) = of.peek() {
                let start = start.clone();
                let end = of.map(|(_, end)| end).max().cloned();
                freed.insert((what, start), end.unwrap_or_default());
            }
        }
    }

    /// Waits until the next look. False when closing.
    pub(crate) fn wait(&self, every: Duration) -> bool {
        let closing = self.closing.lock().expect(LOCK);
        let (closing, _) = self
            .wake
            .wait_timeout_while(closing, every, |closing| !*closing)
            .expect(LOCK);
        !*closing
    }

    /// Ends [`Gauge::wait`].
    pub(crate) fn close(&self) {
        *self.closing.lock().expect(LOCK) = true;
        self.wake.notify_all();
    }
}

impl Space {
    /// What a file system of `total` bytes has, with `available` left.
    pub(crate) fn of(total: u64, available: u64, refuse: (u64, u64)) -> Self {
        let used = total.saturating_sub(available);
        // Of no file system nobody knows anything: nothing is refused.
        let percent = used.saturating_mul(100).checked_div(total).unwrap_or(0);
        let (agents, people) = refuse;
        // On a large disk a percentage is a lot of room: nobody is refused while there is enough.
        let level = if percent >= people && available < SPACE_PEOPLE_BYTES {
            SpaceLevel::PeopleRefused
        } else if percent >= agents && available < SPACE_AGENTS_BYTES {
            SpaceLevel::AgentsRefused
        } else {
            SpaceLevel::Plenty
        };
        Self {
            total,
            available,
            used_percent: percent,
            level,
        }
    }

    fn has(&self, percent: u64, beside: u64) -> bool {
        let left = self.available.saturating_sub(beside);
        left >= self.total / 100 * percent
    }

    fn ballast(&self) -> u64 {
        BALLAST_BYTES_MAX.min(self.total / 100)
    }
}

impl<D: Disk> Core<D> {
    /// Looks how full the file system is. A look that fails leaves the last one standing.
    pub(crate) fn look(&self) {
        let gauge = &self.gauge;
        let Ok(_gate) = gauge.gate.try_lock() else {
            return;
        };
        gauge.written.store(0, Ordering::Relaxed);
        let (total, available) = match self.disk.space() {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "the file system does not say how full it is");
                return;
            },
        };
        gauge
            .step
            .store((total / 512).max(64 << 10), Ordering::Relaxed);
        let available = available.saturating_sub(self.flusher.unflushed());
        let space = Space::of(total, available, gauge.refuse);
        let before = std::mem::replace(&mut *gauge.now.lock().expect(LOCK), space);
        if before.level != space.level {
            tracing::warn!(
                percent = space.used_percent,
                level = ?space.level,
                "the room on the disk has changed"
            );
        }
    }

    /// Gives the ballast up or makes it again, as the room demands.
    pub(crate) fn trim_ballast(&self) {
        let space = self.gauge.now();
        let held = self.disk.ballast();
        let wanted = space.ballast();
        let result = if held > 0 && !space.has(RELEASE_BELOW, 0) {
            self.release_ballast()
        } else if held == 0 && wanted > 0 && space.has(REMAKE_ABOVE, wanted) {
            self.disk.set_ballast(wanted)
        } else {
            return;
        };
        if let Err(error) = result {
            tracing::warn!(%error, "the ballast stays as it is");
        }
        self.look();
    }

    /// See [`crate::Store::release_ballast`].
    pub(crate) fn release_ballast(&self) -> Result<(), StoreError> {
        if self.disk.ballast() > 0 {
            tracing::warn!("the disk is nearly full: the ballast is given up");
            self.disk.set_ballast(0)?;
        }
        Ok(())
    }

    /// Gives back the place of what was deleted, while the disk is too full to wait for it.
    fn reclaim(&self) {
        let is_idle = || self.gauge.freed.lock().expect(LOCK).is_empty();
        if self.gauge.now().level == SpaceLevel::Plenty || is_idle() {
            return;
        }
        // A compaction writes before it gives back: not while even a flush has no room.
        if self.try_flush().is_err() {
            return;
        }
        let freed = std::mem::take(&mut *self.gauge.freed.lock().expect(LOCK));
        let ranges = freed.len();
        for ((what, start), end) in freed {
            if let Err(error) = self.disk.reclaim(what, &(start..end)) {
                tracing::warn!(%error, "what was deleted still takes room");
                return;
            }
        }
        self.look();
        tracing::info!(ranges, "what was deleted was given back");
    }

    /// The body of the gauge's thread.
    pub(crate) fn run_gauge(&self) {
        while self.gauge.wait(SPACE_LOOK_EVERY) {
            self.look();
            self.trim_ballast();
            self.reclaim();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_levels_are_those_of_rules_35() {
        let level = |used: u64| Space::of(1000, 1000 - used, (90, 95)).level;
        assert_eq!(level(0), SpaceLevel::Plenty);
        assert_eq!(level(899), SpaceLevel::Plenty);
        assert_eq!(level(900), SpaceLevel::AgentsRefused);
        assert_eq!(level(949), SpaceLevel::AgentsRefused);
        assert_eq!(level(950), SpaceLevel::PeopleRefused);
        assert_eq!(level(1000), SpaceLevel::PeopleRefused);
        assert_eq!(Space::of(0, 0, (90, 95)).level, SpaceLevel::Plenty);
        // Of a large disk a few percent are enough for everybody, or for people at least.
        let large = |left: u64| Space::of(1 << 40, left << 30, (90, 95)).level;
        assert_eq!(large(5), SpaceLevel::Plenty);
        assert_eq!(large(3), SpaceLevel::AgentsRefused);
        assert_eq!(large(1), SpaceLevel::PeopleRefused);
        assert!(SpaceLevel::Plenty < SpaceLevel::AgentsRefused);
        assert!(SpaceLevel::AgentsRefused < SpaceLevel::PeopleRefused);
    }
}
