//! The simulated disk's memory: what is durable, what only looks written, and the faults.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::{Arc, Weak};

use crate::disk::{Batch, Disk, Freed, Left, Pair, Reads, Scratch, Visit};
use crate::engine::Core;
use crate::error::StoreError;
use crate::identity::Home;
use crate::layout::{Family, KeyRange, LogFamily};
use crate::sim::SimDisk;
use crate::watermark::{Side, Slots};

type Map = BTreeMap<Vec<u8>, Vec<u8>>;
/// Shared until written: a scan or a snapshot keeps its own moment for the price of a pointer.
type Maps<F> = BTreeMap<F, Arc<Map>>;

/// One change of a batch.
#[derive(Clone)]
enum Change {
    Put(Vec<u8>, Vec<u8>),
    Delete(Vec<u8>),
    DeleteRange(KeyRange),
}

/// See [`Batch`].
#[derive(Clone)]
pub(crate) struct SimBatch<F> {
    changes: Vec<(F, Change)>,
    bytes: usize,
}

impl<F> SimBatch<F> {
    fn new() -> Self {
        Self {
            changes: Vec::new(),
            bytes: 0,
        }
    }

    fn add(&mut self, family: F, change: Change, bytes: usize) {
        self.bytes += bytes + 8;
        self.changes.push((family, change));
    }
}

impl<F: Send> Batch<F> for SimBatch<F> {
    fn put(&mut self, family: F, key: &[u8], value: &[u8]) {
        let bytes = key.len() + value.len();
        self.add(family, Change::Put(key.to_vec(), value.to_vec()), bytes);
    }

    fn delete(&mut self, family: F, key: &[u8]) {
        self.add(family, Change::Delete(key.to_vec()), key.len());
    }

    fn delete_range(&mut self, family: F, range: &KeyRange) {
        self.add(family, Change::DeleteRange(range.clone()), range.end.len());
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

/// One database: what is durable, what is visible, and the batches between the two.
#[derive(Clone)]
pub(crate) struct Space<F> {
    durable: Maps<F>,
    now: Maps<F>,
    pending: Vec<SimBatch<F>>,
}

impl<F: Ord + Copy> Default for Space<F> {
    fn default() -> Self {
        Self {
            durable: BTreeMap::new(),
            now: BTreeMap::new(),
            pending: Vec::new(),
        }
    }
}

impl<F: Ord + Copy> Space<F> {
    fn write(&mut self, batch: SimBatch<F>) {
        perform(&mut self.now, &batch);
        self.pending.push(batch);
    }

    fn sync(&mut self) {
        for batch in self.pending.drain(..) {
            perform(&mut self.durable, &batch);
        }
    }

    /// Keeps the first `kept` of the pending batches.
    fn crash(&mut self, kept: usize) {
        self.pending.truncate(kept);
        self.sync();
        self.now = self.durable.clone();
    }

    fn get(&self, family: F, key: &[u8]) -> Option<Vec<u8>> {
        self.now.get(&family)?.get(key).cloned()
    }

    /// The value of the first key, for damage; the next open reads what is durable.
    pub(crate) fn first_value(&mut self, family: F) -> Option<&mut Vec<u8>> {
        let map = Arc::make_mut(self.durable.get_mut(&family)?);
        map.values_mut().next()
    }

    /// The value of the last key, for damage.
    pub(crate) fn last_value(&mut self, family: F) -> Option<&mut Vec<u8>> {
        let map = Arc::make_mut(self.durable.get_mut(&family)?);
        map.values_mut().next_back()
    }
}

fn perform<F: Ord + Copy>(maps: &mut Maps<F>, batch: &SimBatch<F>) {
    for (family, change) in &batch.changes {
        let map = Arc::make_mut(maps.entry(*family).or_default());
        match change {
            Change::Put(key, value) => {
                map.insert(key.clone(), value.clone());
            },
            Change::Delete(key) => {
                map.remove(key);
            },
            Change::DeleteRange(range) => {
                if range.start < range.end {
                    let keys: Vec<_> = map.range(range.clone()).map(|(k, _)| k.clone()).collect();
                    for key in keys {
                        map.remove(&key);
                    }
                }
            },
        }
    }
}

/// What a disk holds.
#[derive(Default)]
pub(crate) struct State {
    /// Rises with each crash and each open: an older store is dead.
    incarnation: u64,
    pub(crate) open: bool,
    pub(crate) identity: Option<Vec<u8>>,
    pub(crate) slots: BTreeMap<Side, Vec<u8>>,
    /// A slot write whose sync failed.
    slot_pending: Option<(Side, Vec<u8>)>,
    pub(crate) log: Space<LogFamily>,
    pub(crate) events: Space<Family>,
    pub(crate) fail_next_sync: bool,
    pub(crate) fail_next_flush: bool,
    pub(crate) syncs: u64,
    /// Syncs answer Ok and sync nothing.
    pub(crate) lies: bool,
    /// See [`crate::Store::waits`].
    pub(crate) never_waits: bool,
    /// Bytes of the file system and what others use of them; nothing: endless.
    pub(crate) file_system: (u64, u64),
    pub(crate) ballast: u64,
    /// What is left for writes; `None`: no end of it.
    pub(crate) room: Option<u64>,
    pub(crate) driver: Option<Weak<dyn Driver>>,
}

impl State {
    /// See [`SimDisk::crash`] and [`SimDisk::crash_keeping`].
    pub(crate) fn crash(&mut self, seed: Option<u64>) {
        self.incarnation += 1;
        self.open = false;
        self.fail_next_sync = false;
        self.fail_next_flush = false;
        let mut dice = Dice(seed.unwrap_or_default());
        let mut kept = |pending: usize| match seed {
            Some(_) => dice.below(pending + 1),
            None => 0,
        };
        let log = kept(self.log.pending.len());
        self.log.crash(log);
        let events = kept(self.events.pending.len());
        self.events.crash(events);
        if let Some((side, bytes)) = self.slot_pending.take() {
            let written = kept(bytes.len());
            // A slot that was never there is made whole or not at all.
            if let Some(slot) = self.slots.get_mut(&side) {
                let rest = slot.split_off(written.min(slot.len()));
                slot.clear();
                slot.extend(bytes.iter().take(written));
                slot.extend(rest);
            }
        }
    }

    /// A closed copy of what is durable.
    pub(crate) fn image(&self) -> Self {
        let durable = |space: &Space<LogFamily>| Space {
            durable: space.durable.clone(),
            now: space.durable.clone(),
            pending: Vec::new(),
        };
        Self {
            identity: self.identity.clone(),
            slots: self.slots.clone(),
            log: durable(&self.log),
            events: Space {
                durable: self.events.durable.clone(),
                now: self.events.durable.clone(),
                pending: Vec::new(),
            },
            ..Self::default()
        }
    }

    /// Forgets everything that is stored. The disk is closed.
    pub(crate) fn empty(&mut self) {
        self.identity = None;
        self.slots.clear();
        self.slot_pending = None;
        self.log = Space::default();
        self.events = Space::default();
    }

    fn sync(&mut self) -> Result<(), StoreError> {
        if std::mem::take(&mut self.fail_next_sync) {
            return Err(StoreError::Io("injected: the sync failed".into()));
        }
        self.syncs += 1;
        Ok(())
    }
}

/// Seeded numbers (splitmix64).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
        usize::try_from((z ^ (z >> 31)) % bound).unwrap_or_default()
    }
}

/// The writer of an open store, as the disk sees it.
pub(crate) trait Driver: Send + Sync {
    /// Holds the queue, or releases it and runs what waits.
    fn hold(&self, held: bool);
    /// Runs one batch. False: nothing waits.
    fn step(&self) -> bool;
    /// Looks how full the disk is.
    fn look(&self);
}

impl Driver for Core<Handle> {
    fn hold(&self, held: bool) {
        self.queue.hold(held);
        self.drive();
    }

    fn step(&self) -> bool {
        match self.queue.step() {
            Some(ops) => {
                self.execute(ops);
                true
            },
            None => false,
        }
    }

    fn look(&self) {
        Self::look(self);
        self.trim_ballast();
    }
}

/// The disk is open.
pub(crate) fn in_use() -> StoreError {
    StoreError::Locked {
        path: "simulated disk".into(),
    }
}

/// One opening of a disk; dead after a crash.
pub(crate) struct Handle {
    disk: SimDisk,
    incarnation: u64,
    flush_on_close: bool,
}

impl Handle {
    /// Opens the disk, if it is not open.
    pub(crate) fn lock(disk: &SimDisk, flush_on_close: bool) -> Result<Self, StoreError> {
        let mut state = disk.lock();
        if state.open {
            return Err(in_use());
        }
        state.open = true;
        state.incarnation += 1;
        // Damage is done to what is durable.
        state.log.crash(0);
        state.events.crash(0);
        Ok(Self {
            disk: disk.clone(),
            incarnation: state.incarnation,
            flush_on_close,
        })
    }

    fn with<T>(
        &self,
        act: impl FnOnce(&mut State) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut state = self.disk.lock();
        if state.incarnation != self.incarnation {
            return Err(StoreError::Io("the disk crashed".into()));
        }
        act(&mut state)
    }

    /// A map as it stands now.
    fn map(&self, map: impl FnOnce(&State) -> Option<&Arc<Map>>) -> Result<Arc<Map>, StoreError> {
        self.with(|state| Ok(map(state).map(Arc::clone).unwrap_or_default()))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // An error: it crashed, and may be open again already.
        drop(self.with(|state| {
            state.open = false;
            state.driver = None;
            Ok(())
        }));
    }
}

fn within<'m>(
    map: &'m Map,
    range: &KeyRange,
) -> impl DoubleEndedIterator<Item = (&'m Vec<u8>, &'m Vec<u8>)> {
    let start = range.start.clone();
    let end = range.end.clone().max(range.start.clone());
    map.range::<Vec<u8>, _>((Bound::Included(start), Bound::Excluded(end)))
}

fn visit_all(map: &Map, range: &KeyRange, visit: Visit<'_>) -> Result<(), StoreError> {
    for (key, value) in within(map, range) {
        if visit(key, value)? == ControlFlow::Break(()) {
            break;
        }
    }
    Ok(())
}

impl Slots for Handle {
    fn read_slot(&self, side: Side) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|state| Ok(state.slots.get(&side).cloned()))
    }

    fn write_slot(&self, side: Side, bytes: &[u8]) -> Result<(), StoreError> {
        self.with(|state| {
            state.slot_pending = Some((side, bytes.to_vec()));
            state.sync()?;
            state.slot_pending = None;
            if !state.lies {
                state.slots.insert(side, bytes.to_vec());
            }
            Ok(())
        })
    }
}

impl Home for Handle {
    fn path(&self) -> String {
        "simulated disk".into()
    }

    fn read_identity(&self) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|state| Ok(state.identity.clone()))
    }

    fn write_identity(&self, bytes: &[u8]) -> Result<(), StoreError> {
        self.with(|state| {
            state.identity = Some(bytes.to_vec());
            Ok(())
        })
    }

    fn has_log(&self) -> Result<bool, StoreError> {
        self.with(|state| Ok(!state.log.durable.is_empty()))
    }
}

impl Reads for Handle {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|state| Ok(state.events.get(family, key)))
    }

    fn scan(&self, family: Family, range: &KeyRange, visit: Visit<'_>) -> Result<(), StoreError> {
        let map = self.map(|state| state.events.now.get(&family))?;
        visit_all(&map, range, visit)
    }
}

/// A scratch in memory.
struct Memory(Vec<u8>);

impl Scratch for Memory {
    fn append(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn read(&self, place: u64, count: usize) -> Result<Vec<u8>, StoreError> {
        let start = usize::try_from(place).unwrap_or(usize::MAX);
        let rest = self.0.get(start..).unwrap_or_default();
        Ok(rest.get(..count).unwrap_or(rest).to_vec())
    }

    fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

/// The event DB of one moment.
struct Frozen(Maps<Family>);

impl Reads for Frozen {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.get(&family).and_then(|map| map.get(key)).cloned())
    }

    fn scan(&self, family: Family, range: &KeyRange, visit: Visit<'_>) -> Result<(), StoreError> {
        match self.0.get(&family) {
            Some(map) => visit_all(map, range, visit),
            None => Ok(()),
        }
    }
}

impl Disk for Handle {
    type LogBatch = SimBatch<LogFamily>;
    type EventBatch = SimBatch<Family>;

    fn waits(&self) -> bool {
        !self.disk.lock().never_waits
    }

    fn log_batch(&self) -> Self::LogBatch {
        SimBatch::new()
    }

    fn log_write(&self, batch: Self::LogBatch) -> Result<(), StoreError> {
        self.with(|state| {
            state.log.write(batch);
            state.sync()?;
            if !state.lies {
                state.log.sync();
            }
            Ok(())
        })
    }

    fn log_get(&self, family: LogFamily, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.with(|state| Ok(state.log.get(family, key)))
    }

    fn log_scan(
        &self,
        family: LogFamily,
        range: &KeyRange,
        visit: Visit<'_>,
    ) -> Result<(), StoreError> {
        let map = self.map(|state| state.log.now.get(&family))?;
        visit_all(&map, range, visit)
    }

    fn log_size(&self, family: LogFamily, range: &KeyRange) -> u64 {
        let map = self.map(|state| state.log.now.get(&family));
        let sum = |map: Arc<Map>| {
            let pairs = within(&map, range);
            pairs
                .map(|(key, value)| (key.len() + value.len()) as u64)
                .sum()
        };
        map.map_or(0, sum)
    }

    fn log_last(&self, family: LogFamily, range: &KeyRange) -> Result<Option<Pair>, StoreError> {
        let map = self.map(|state| state.log.now.get(&family))?;
        let last = within(&map, range).next_back();
        Ok(last.map(|(key, value)| (key.clone(), value.clone())))
    }

    fn event_batch(&self) -> Self::EventBatch {
        SimBatch::new()
    }

    fn event_write(&self, batch: Self::EventBatch) -> Result<(), StoreError> {
        self.with(|state| {
            state.events.write(batch);
            Ok(())
        })
    }

    fn event_flush(&self) -> Result<(), StoreError> {
        self.with(|state| {
            if std::mem::take(&mut state.fail_next_flush) {
                return Err(StoreError::Io("injected: the flush failed".into()));
            }
            if !state.lies {
                state.events.sync();
            }
            Ok(())
        })
    }

    fn space(&self) -> Result<(u64, u64), StoreError> {
        self.with(|state| {
            let (total, used) = state.file_system;
            Ok((
                total,
                total.saturating_sub(used.saturating_add(state.ballast)),
            ))
        })
    }

    fn left(&self) -> Result<Left, StoreError> {
        self.with(|state| {
            let bytes = state.room.unwrap_or(u64::MAX);
            Ok(Left { bytes, log: 0 })
        })
    }

    fn memory(&self) -> (usize, usize) {
        (0, 0)
    }

    fn ballast(&self) -> u64 {
        self.disk.lock().ballast
    }

    fn set_ballast(&self, bytes: u64) -> Result<(), StoreError> {
        self.with(|state| {
            state.ballast = bytes;
            Ok(())
        })
    }

    fn reclaim(&self, _freed: Freed, _range: &KeyRange) -> Result<(), StoreError> {
        Ok(())
    }

    fn generation(&self) -> u64 {
        0
    }

    fn replace_events(&self, _keep: &[(Family, Vec<u8>)]) -> Result<(), StoreError> {
        Err(StoreError::Io("this disk has no compactions".into()))
    }

    fn scratch(&self, _name: &str) -> Result<Box<dyn Scratch>, StoreError> {
        Ok(Box::new(Memory(Vec::new())))
    }

    fn close(&self) {
        if self.flush_on_close {
            // An error: it crashed, and nothing of this store may reach it any more.
            drop(self.event_flush());
        }
    }

    fn frozen(&self, read: &mut dyn FnMut(&dyn Reads)) {
        let frozen = Frozen(self.disk.lock().events.now.clone());
        read(&frozen);
    }
}
