//! The store's logic, once, over any disk.
//!
//! ```text
//!   append, vote, truncate, purge          write            read_log, row, events, names
//!        │ group's log in memory             │                        │
//!        ▼                                   ▼                        ▼
//!      queue ──► writer ──► log DB       event DB ◄── flusher     memory, then disk
//!                   │   └──► watermark ◄── mark
//!                   └──► Done, in order
//! ```
//!
//! Locks are taken in this order and never held over a `Done`: a group's log → the queue; the
//! flush gate → durable positions → a group's log.

mod anew;
mod apply;
mod fatal;
mod flush;
mod log;
mod mark;
mod open;
mod peers;
mod queue;
mod room;
mod snapshot;
mod space;
mod spool;
mod verify;
mod weights;
mod writer;

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use everwire_core::clock::{Clock, Timestamp};
use everwire_core::command::Fire;
use everwire_core::event::Event;
use everwire_core::ids::{Namespace, NodeId, RunId, SessionName, ShardId, Slot};
use everwire_core::position::Offset;
use everwire_core::row::{NameRow, Row, RowKey, RowRange, SessionKey};

use crate::disk::Disk;
use crate::engine::anew::Anew;
use crate::engine::fatal::Fatal;
use crate::engine::flush::Flusher;
use crate::engine::log::{Bound, Groups};
use crate::engine::mark::Mark;
use crate::engine::peers::Peers;
use crate::engine::queue::Queue;
use crate::engine::room::Room;
use crate::engine::space::Gauge;
use crate::error::StoreError;
use crate::meters::{Counts, Meters, Timer};
use crate::types::{
    Applied, ApplyWrite, Closing, Done, Identity, LogPosition, LogRecord, LogState, PeerRecord,
    Space, Verified, VoteRecord,
};
use crate::{SnapshotInstall, SnapshotReader, SnapshotSpool, Store};

pub(crate) use apply::{applied_from, applied_message};
pub(crate) use open::open;
pub use peers::regressed;

/// Everything that the store's threads share.
pub(crate) struct Core<D: Disk> {
    pub(crate) disk: D,
    identity: Identity,
    fatal: Fatal,
    groups: Groups,
    tail_bytes: usize,
    pub(crate) queue: Queue,
    mark: Mark,
    flusher: Flusher,
    peers: Peers,
    gauge: Gauge,
    pub(crate) room: Room,
    anew: Anew,
    counts: Counts,
    clock: Option<Arc<dyn Clock>>,
    /// Counts spools, for their names.
    spools: AtomicU64,
    /// No threads: whoever queues an operation runs the writer.
    driven: bool,
    /// Gone when all of the above is: fields are dropped in their order.
    open: Arc<()>,
}

impl Identity {
    /// The slots of a group; none for groups that are no shard.
    pub(crate) fn slots(&self, group: u32) -> Range<u16> {
        if group < self.shards {
            ShardId(group).slots(self.shards)
        } else {
            0..0
        }
    }

    /// The group that holds a slot.
    pub(crate) fn group(&self, slot: Slot) -> u32 {
        ShardId::holding(slot, self.shards).0
    }
}

impl<D: Disk> Core<D> {
    /// Does something and notes how long it took.
    fn timed<T>(&self, timer: &Timer, work: impl FnOnce() -> T) -> T {
        let now = || self.clock.as_ref().map(|clock| clock.elapsed());
        let began = now();
        let done = work();
        let took = now()
            .zip(began)
            .map(|(now, began)| now.saturating_sub(began));
        timer.note(took.unwrap_or(Duration::ZERO));
        done
    }

    /// See [`crate::Store::meters`].
    fn meters(&self) -> Meters {
        let wide = |bytes: usize| u64::try_from(bytes).unwrap_or(u64::MAX);
        let (used, budget) = self.disk.memory();
        Meters {
            syncs: self.counts.syncs.now(),
            sync_bytes: self.counts.sync_bytes.load(Ordering::Relaxed),
            waiting_bytes: wide(self.queue.waiting_bytes()),
            flushes: self.counts.flushes.now(),
            unflushed_bytes: self.flusher.unflushed(),
            memory: (wide(used), wide(budget)),
        }
    }

    /// Runs the writer until nothing waits, where no thread does.
    pub(crate) fn drive(&self) {
        if !self.driven {
            return;
        }
        let mut mine = false;
        while let Some(ops) = self.queue.drive(&mut mine) {
            self.execute(ops);
        }
        if mine {
            self.write_mark();
        }
    }

    /// Writes the watermark's batch number if it is behind.
    fn write_mark(&self) {
        if self.fatal.check().is_err() {
            return;
        }
        if let Err(error) = self.mark.catch_up(&self.disk) {
            self.fatal.fail("writing the watermark", &error);
        }
    }

    /// The body of the writer's thread.
    fn run_writer(&self) {
        while let Some(ops) = self.queue.wait() {
            if let Some(ops) = self.try_execute(ops) {
                self.without_room(ops);
            }
        }
    }

    /// The body of the watermark's thread.
    fn run_mark(&self) {
        while self.mark.wait() {
            self.write_mark();
        }
        self.write_mark();
    }

    /// The body of the flusher's thread.
    fn run_flusher(&self) {
        while self.flusher.wait() {
            // A failure was told to the binary, and every later call answers it.
            if self.flush().is_err() {
                return;
            }
        }
    }
}

/// A store on any disk.
pub(crate) struct Engine<D: Disk> {
    core: Arc<Core<D>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl<D: Disk> Engine<D> {
    /// A store whose writer runs on its callers' threads.
    pub(crate) fn driven(core: Arc<Core<D>>) -> Self {
        Self {
            core,
            threads: Mutex::new(Vec::new()),
        }
    }

    /// A store with threads of its own; they end when it is dropped.
    pub(crate) fn threaded(core: Arc<Core<D>>) -> Result<Self, StoreError> {
        let engine = Self::driven(core);
        engine.spawn("ew-log-writer", Core::run_writer)?;
        engine.spawn("ew-watermark", Core::run_mark)?;
        engine.spawn("ew-flush", Core::run_flusher)?;
        engine.spawn("ew-space", Core::run_gauge)?;
        Ok(engine)
    }

    fn spawn(&self, name: &str, body: fn(&Core<D>)) -> Result<(), StoreError> {
        let core = Arc::clone(&self.core);
        let thread = std::thread::Builder::new()
            .name(name.into())
            .spawn(move || body(&core))
            .map_err(|error| StoreError::Io(format!("no thread {name}: {error}")))?;
        let mut threads = self.threads.lock().expect("no holder of this lock panics");
        threads.push(thread);
        Ok(())
    }
}

/// Ends the threads: what is queued is written first, then the watermark.
impl<D: Disk> Drop for Engine<D> {
    fn drop(&mut self) {
        let threads = std::mem::take(&mut *match self.threads.lock() {
            Ok(threads) => threads,
            Err(poisoned) => poisoned.into_inner(),
        });
        // Threads of its own wait with it; nobody else does any more.
        self.core.room.end();
        self.core.queue.close();
        self.core.flusher.close();
        self.core.gauge.close();
        for (at, thread) in threads.into_iter().enumerate() {
            if at == 1 {
                // The writer, which is first, has ended: its last number stands.
                self.core.mark.close();
            }
            // The last owner may be an answer on the writer's own thread: it cannot wait for itself.
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("a thread of the store panicked");
            }
        }
        self.core.mark.close();
        self.core.disk.close();
    }
}

impl<D: Disk> Store for Engine<D> {
    fn identity(&self) -> &Identity {
        &self.core.identity
    }

    fn waits(&self) -> bool {
        self.core.disk.waits()
    }

    fn closing(&self) -> Closing {
        Closing(Arc::downgrade(&self.core.open))
    }

    fn append(&self, group: u32, records: Vec<LogRecord>, done: Done) {
        self.core.append(group, records, done);
        self.core.drive();
    }

    fn save_vote(&self, group: u32, vote: VoteRecord, done: Done) {
        self.core.save_vote(group, vote, done);
        self.core.drive();
    }

    fn truncate_after(&self, group: u32, index: Option<u64>, done: Done) {
        self.core.truncate_after(group, index, done);
        self.core.drive();
    }

    fn purge(&self, group: u32, upto: LogPosition, done: Done) {
        self.core.purge(group, upto, done);
        self.core.drive();
    }

    fn set_purge_bound(&self, group: u32, index: Option<u64>) {
        let bound = match index {
            Some(index) => Bound::At(Some(index)),
            None => Bound::Lifted,
        };
        log::lock(&self.core.groups.get(group)).bound = bound;
    }

    fn vote(&self, group: u32) -> Result<Option<VoteRecord>, StoreError> {
        self.core.fatal.check()?;
        Ok(self.core.mark.vote(group))
    }

    fn space(&self) -> Space {
        self.core.gauge.now()
    }

    fn log_waits(&self) -> bool {
        self.core.room.log_waits()
    }

    fn stop_waiting(&self) {
        self.core.room.end();
    }

    fn release_ballast(&self) -> Result<(), StoreError> {
        self.core.release_ballast()?;
        self.core.look();
        Ok(())
    }

    fn own_record(&self) -> PeerRecord {
        self.core.mark.own()
    }

    fn peer_record(&self, node: NodeId) -> Option<PeerRecord> {
        self.core.peers.get(node)
    }

    fn note_peer(&self, node: NodeId, record: PeerRecord) {
        self.core.peers.note(node, record);
    }

    fn log_state(&self, group: u32) -> Result<LogState, StoreError> {
        Ok(log::lock(&self.core.groups.get(group)).state())
    }

    fn log_bytes(&self, group: u32) -> u64 {
        log::lock(&self.core.groups.get(group)).weights.total()
    }

    fn log_beyond(&self, group: u32, keep: u64) -> Option<u64> {
        log::lock(&self.core.groups.get(group)).weights.beyond(keep)
    }

    fn read_log(
        &self,
        group: u32,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<LogRecord>, StoreError> {
        self.core
            .groups
            .read(&self.core.disk, group, range, bytes_max)
    }

    fn applied(&self, group: u32) -> Result<Option<Applied>, StoreError> {
        self.core.applied(group)
    }

    fn write(&self, group: u32, write: ApplyWrite) -> Result<(), StoreError> {
        let due = self.core.write(group, &write)?;
        if due && self.core.driven {
            return self.core.flush();
        }
        Ok(())
    }

    fn row(&self, key: &RowKey) -> Result<Option<Row>, StoreError> {
        self.core.row(key)
    }

    fn scan(&self, range: RowRange, limit: usize) -> Result<Vec<RowKey>, StoreError> {
        self.core.scan(range, limit)
    }

    fn timers(&self, group: u32, until: Timestamp) -> Result<Vec<Fire>, StoreError> {
        self.core.timers(group, until)
    }

    fn live_runs(&self, group: u32) -> Result<Vec<(SessionKey, RunId)>, StoreError> {
        self.core.live_runs(group)
    }

    fn names(
        &self,
        slots: Range<u16>,
        after: Option<(Slot, Namespace, SessionName)>,
        namespace: &Namespace,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(Slot, SessionName, NameRow)>, StoreError> {
        self.core.names(slots, after, namespace, prefix, limit)
    }

    fn events(
        &self,
        session: SessionKey,
        from: Offset,
        bytes_max: usize,
        count_max: usize,
    ) -> Result<Vec<Event>, StoreError> {
        self.core.events(session, from, bytes_max, count_max)
    }

    fn flush(&self) -> Result<(), StoreError> {
        self.core.flush()
    }

    fn durable_applied(&self, group: u32) -> Option<LogPosition> {
        self.core.flusher.durable(group)
    }

    fn unflushed_bytes(&self) -> u64 {
        self.core.flusher.unflushed()
    }

    fn meters(&self) -> Meters {
        self.core.meters()
    }

    fn snapshot(&self, group: u32) -> Result<Box<dyn SnapshotReader>, StoreError> {
        snapshot::read(&self.core, group)
    }

    fn spool(&self, group: u32, applied: Applied) -> Result<Box<dyn SnapshotSpool>, StoreError> {
        spool::open(&self.core, group, applied)
    }

    fn verify(
        &self,
        group: u32,
        from: Option<Verified>,
        bytes_max: usize,
    ) -> Result<Option<Verified>, StoreError> {
        self.core.verify(group, from, bytes_max)
    }

    fn damaged(&self) -> Vec<StoreError> {
        self.core.flusher.all_damaged()
    }

    fn drop_rows(&self, group: u32) -> Result<(), StoreError> {
        snapshot::begin(&self.core, group)
    }

    fn install(&self, group: u32) -> Result<Box<dyn SnapshotInstall>, StoreError> {
        snapshot::install(&self.core, group)
    }
}
