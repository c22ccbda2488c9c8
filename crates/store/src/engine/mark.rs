//! Keeps the watermark behind the log: which batch is synced, and the votes.
//!
//! Votes are written by the log's writer, in its order. The batch number follows within 10 ms on
//! a thread of its own (simulated disk: when the queue is empty), and once when the log goes
//! idle: an ack never waits for it. What a crash can hide from it is a damaged log of these last
//! 10 ms.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::error::StoreError;
use crate::types::{PeerRecord, VoteRecord};
use crate::watermark::{Slots, Watermark};

/// How long numbers are gathered before one is written; with the sync, less than 10 ms.
const GATHER: Duration = Duration::from_millis(5);

/// See the module.
pub(crate) struct Mark {
    file: Mutex<Watermark>,
    /// The last synced batch. Only the writer raises it.
    synced: AtomicU64,
    signal: Mutex<Signal>,
    wake: Condvar,
}

#[derive(Default)]
struct Signal {
    behind: bool,
    closing: bool,
}

const LOCK: &str = "no holder of this lock panics";

impl Mark {
    /// `synced` is the log's own batch number.
    pub(crate) fn new(file: Watermark, synced: u64) -> Self {
        let behind = file.batch() < synced;
        Self {
            file: Mutex::new(file),
            synced: AtomicU64::new(synced),
            signal: Mutex::new(Signal {
                behind,
                closing: false,
            }),
            wake: Condvar::new(),
        }
    }

    /// The last synced batch.
    pub(crate) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// A group's last durable vote.
    pub(crate) fn vote(&self, group: u32) -> Option<VoteRecord> {
        self.file.lock().expect(LOCK).vote(group)
    }

    /// What this node has synced and voted.
    pub(crate) fn own(&self) -> PeerRecord {
        // The votes first: a batch that is synced after them may only raise the number.
        let votes = self.file.lock().expect(LOCK).votes().clone();
        PeerRecord {
            batch: self.synced(),
            votes,
        }
    }

    /// Saves votes durably. Writer only.
    pub(crate) fn save_votes(
        &self,
        slots: &dyn Slots,
        votes: &[(u32, VoteRecord)],
    ) -> Result<(), StoreError> {
        let mut file = self.file.lock().expect(LOCK);
        // A failed write leaves the copy ahead of the disk; the process ends then.
        file.save_votes(slots, votes, self.synced())
    }

    /// Batch `number` is synced. Writer only.
    pub(crate) fn note(&self, number: u64) {
        self.synced.store(number, Ordering::Release);
        let was_behind = {
            let mut signal = self.signal.lock().expect(LOCK);
            std::mem::replace(&mut signal.behind, true)
        };
        // While it gathers it is awake enough: it looks at the number when it writes.
        if !was_behind {
            self.wake.notify_all();
        }
    }

    /// Writes the number if it is behind.
    pub(crate) fn catch_up(&self, slots: &dyn Slots) -> Result<(), StoreError> {
        self.signal.lock().expect(LOCK).behind = false;
        let synced = self.synced();
        let mut file = self.file.lock().expect(LOCK);
        if file.batch() < synced {
            file.save_batch(slots, synced)?;
        }
        Ok(())
    }

    /// Waits until the number is behind and has been for a moment. False when closing.
    pub(crate) fn wait(&self) -> bool {
        let signal = self.signal.lock().expect(LOCK);
        let signal = self
            .wake
            .wait_while(signal, |s| !s.behind && !s.closing)
            .expect(LOCK);
        let (signal, _) = self
            .wake
            .wait_timeout_while(signal, GATHER, |s| !s.closing)
            .expect(LOCK);
        !signal.closing
    }

    /// Ends [`Mark::wait`].
    pub(crate) fn close(&self) {
        self.signal.lock().expect(LOCK).closing = true;
        self.wake.notify_all();
    }
}
