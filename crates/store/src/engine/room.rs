//! Waiting for room: what must be written waits until the file system has a place for it.
//!
//! A write that was not tried can be waited for; one that failed on its way cannot, and ends the
//! process (RULES 35). So the log's writer, applying and the flush look before they write, and
//! none of them begins what could not be brought to its end: the log leaves room for its own
//! flush, the event DB's flush leaves room for the log's. What RocksDB refuses all the same,
//! because a flush or a compaction of its own met the end of the disk, was not tried either.
//!
//! While the log waits, votes that stand behind none of their group's operations are saved: they
//! lie in blocks that the watermark has already. Everything goes on by itself when there is room.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::disk::{Disk, Left};
use crate::engine::Core;
use crate::error::StoreError;

const LOCK: &str = "no holder of this lock panics";
/// How soon whoever waits looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// See the module.
#[derive(Default)]
pub(crate) struct Room {
    /// The log's writer waits.
    log_waits: AtomicBool,
    /// Nobody may wait any more: the node stops.
    ended: Mutex<bool>,
    wake: Condvar,
}

impl Room {
    /// Whether the log's writer waits.
    pub(crate) fn log_waits(&self) -> bool {
        self.log_waits.load(Ordering::SeqCst)
    }

    /// Notes whether the log's writer waits.
    pub(crate) fn set_log_waits(&self, waits: bool) {
        let was = self.log_waits.swap(waits, Ordering::SeqCst);
        match (was, waits) {
            (false, true) => tracing::error!("the disk is full: the log waits for room"),
            (true, false) => tracing::warn!("the log has room again"),
            _ => {},
        }
    }

    /// Waits for a moment. False: nobody may wait any more.
    pub(crate) fn pause(&self) -> bool {
        let ended = self.ended.lock().expect(LOCK);
        let (ended, _) = self
            .wake
            .wait_timeout_while(ended, LOOK_AGAIN, |ended| !*ended)
            .expect(LOCK);
        !*ended
    }

    /// Ends all waiting, for good.
    pub(crate) fn end(&self) {
        *self.ended.lock().expect(LOCK) = true;
        self.wake.notify_all();
    }

    /// Whether waiting was ended.
    pub(crate) fn has_ended(&self) -> bool {
        *self.ended.lock().expect(LOCK)
    }
}

/// What is answered when there is no room: nothing was written.
pub(crate) fn full() -> StoreError {
    StoreError::Full { used_percent: 100 }
}

impl<D: Disk> Core<D> {
    /// Refuses a batch of the log that its disk may not have room for.
    pub(crate) fn log_fits(&self, bytes: usize) -> Result<(), StoreError> {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.fits(|left| left.log.saturating_add(bytes))
    }

    /// Refuses a flush of the event DB that its disk may not have room for.
    pub(crate) fn flush_fits(&self) -> Result<(), StoreError> {
        let bytes = self.flusher.unflushed();
        self.fits(|left| left.log.saturating_add(bytes))
    }

    /// Refuses what needs more than is left. The ballast is given up first.
    fn fits(&self, needs: impl Fn(&Left) -> u64) -> Result<(), StoreError> {
        let has = || match self.disk.left() {
            Ok(left) => left.bytes >= needs(&left),
            Err(error) => {
                tracing::warn!(%error, "the file system does not say how full it is");
                true
            },
        };
        if has() {
            return Ok(());
        }
        if let Err(error) = self.release_ballast() {
            tracing::warn!(%error, "the ballast stays as it is");
        }
        // Whoever admits must hear of it at once.
        self.look();
        if has() { Ok(()) } else { Err(full()) }
    }

    /// Does something as soon as there is room for it: `attempt` answers [`StoreError::Full`]
    /// while there is none, and has changed nothing then.
    pub(crate) fn when_it_fits<T>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut told = false;
        loop {
            match attempt() {
                Err(full @ StoreError::Full { .. }) => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(what, "the disk is full: waiting for room");
                    }
                    if !self.room.pause() {
                        return Err(full);
                    }
                },
                // Another database has taken the damaged one's place.
                Err(StoreError::Anew) => {},
                done => return done,
            }
        }
    }
}
