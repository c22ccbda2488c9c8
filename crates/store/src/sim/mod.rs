//! A simulated disk, and the store on it: the same engine as on RocksDB, with a modelled fsync.
//!
//! # What may break
//!
//! - **The plug is pulled** ([`SimDisk::crash`]). What was not synced is gone: log writes whose
//!   sync did not return, watermark writes likewise, and all of the event DB since its last
//!   flush, as memtables without a WAL are. [`SimDisk::crash_keeping`] keeps a seeded *head* of
//!   each instead: a kernel may have written some of it, RocksDB may have flushed by itself. Not
//!   a middle: both logs end at the first bad record. A watermark write in flight may also leave
//!   its slot torn. One write batch is whole or absent, as a record of RocksDB's WAL is.
//! - **A sync fails** ([`SimDisk::fail_next_sync`], [`SimDisk::fail_next_flush`]). What it
//!   covered is then in the same limbo. The store must end its process and never try again.
//! - **Bytes rot** ([`SimDisk::damage`]): one byte of a stored value flips.
//! - **The disk goes back in time** ([`SimDisk::image`], [`SimDisk::restore_log`]): what was
//!   synced is gone, as after a restored volume or a drive that lied. The watermark must tell.
//! - **The drive lies** ([`SimDisk::lie`]): a sync says Ok and does nothing.
//! - **The disk is slow** ([`SimDisk::hold`]): operations wait until [`SimDisk::step`] or
//!   [`SimDisk::release`]; a crash meanwhile loses them.
//!
//! Not modelled: a full disk, torn event batches (flushes are atomic), reads that fail.
//!
//! # Threads and determinism
//!
//! There is no writer thread. Whoever queues an operation runs the writer until nothing waits,
//! so `done` is called before `append` returns, on the caller's thread; if another thread is
//! running the writer just then, that one takes it along. A flush that is due by bytes happens
//! inside `write`; by age there is none. With one calling thread everything is deterministic.
//! The reader of a snapshot is a thread, but what it reads is frozen. On a disk that never waits
//! ([`SimDisk::never_wait`]) those above do not hand the work to threads either.
//! [`SimStore::open_threaded`] has the real store's threads instead.

mod disk;

use std::sync::{Arc, Mutex, MutexGuard, Weak};

use crate::engine::{Core, Engine};
use crate::identity::{self, Home};
use crate::layout::{Family, LogFamily};
use crate::types::Identity;
use crate::watermark::Side;
use crate::{OpenOptions, Store, StoreError, engine};

use disk::{Driver, Handle, State};

/// A simulated disk: what survives a crash. Clones are the same disk.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

/// What [`SimDisk::damage`] flips the last byte of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// The first log record.
    LogHead,
    /// The last log record.
    Log,
    /// The log's batch number.
    Meta,
    /// The last event.
    Events,
    /// The last row.
    Rows,
    /// The last applied row.
    Applied,
    /// The first applied row.
    AppliedHead,
    /// One slot of the watermark: the first or the second.
    Slot(bool),
    /// The file IDENTITY.
    Identity,
    /// The event DB as a whole: it does not open, and an empty one takes its place.
    EventDb,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Pulls the plug: drops what was not synced. The stores on it are dead: they answer errors
    /// and write nothing. Open the disk again afterwards.
    pub fn crash(&self) {
        self.lock().crash(None);
    }

    /// Pulls the plug, but a head of what was not synced survives; the seed decides how much.
    pub fn crash_keeping(&self, seed: u64) {
        self.lock().crash(Some(seed));
    }

    /// The next sync of the log or the watermark fails.
    pub fn fail_next_sync(&self) {
        self.lock().fail_next_sync = true;
    }

    /// The next flush of the event DB fails.
    pub fn fail_next_flush(&self) {
        self.lock().fail_next_flush = true;
    }

    /// From now on syncs and flushes answer Ok and make nothing durable, as a drive does that only
    /// says so. For a test of tests: what was acked is lost with the next crash.
    pub fn lie(&self) {
        self.lock().lies = true;
    }

    /// From now on no call waits, and whoever uses the store may do so on its only thread; see
    /// [`Store::waits`]. A held disk is still slow: who asked hears of it later.
    pub fn never_wait(&self) {
        self.lock().never_waits = true;
    }

    /// Syncs of log and watermark that succeeded so far.
    pub fn syncs(&self) -> u64 {
        self.lock().syncs
    }

    /// From now on operations of the log's FIFO wait.
    pub fn hold(&self) {
        if let Some(driver) = self.driver() {
            driver.hold(true);
        }
    }

    /// Runs one batch of what waits on a held disk. False: nothing waits.
    pub fn step(&self) -> bool {
        self.driver().is_some_and(|driver| driver.step())
    }

    /// Ends [`SimDisk::hold`] and runs what waits.
    pub fn release(&self) {
        if let Some(driver) = self.driver() {
            driver.hold(false);
        }
    }

    /// The file system has `total` bytes, and others use `used` of them. The store sees it at
    /// once. What it writes itself is not counted, and no write fails for want of room.
    pub fn set_space(&self, total: u64, used: u64) {
        self.lock().file_system = (total, used);
        if let Some(driver) = self.driver() {
            driver.look();
        }
    }

    /// From now on a write or flush that needs more than so many bytes waits until there is room
    /// (`None`: no end of it). For stores with threads: the others cannot wait, and answer errors.
    pub fn set_room(&self, bytes: Option<u64>) {
        self.lock().room = bytes;
    }

    /// Bytes of the ballast.
    pub fn ballast(&self) -> u64 {
        self.lock().ballast
    }

    fn driver(&self) -> Option<Arc<dyn Driver>> {
        self.lock().driver.as_ref().and_then(Weak::upgrade)
    }

    /// Flips one byte of something durable. Close the store first. False: nothing is there.
    pub fn damage(&self, what: Damage) -> bool {
        let mut state = self.lock();
        if what == Damage::EventDb {
            state.events = disk::Space::default();
            return true;
        }
        let value = match what {
            Damage::LogHead => state.log.first_value(LogFamily::Log),
            Damage::Log => state.log.last_value(LogFamily::Log),
            Damage::Meta => state.log.first_value(LogFamily::Meta),
            Damage::Events => state.events.last_value(Family::Events),
            Damage::Rows => state.events.last_value(Family::Rows),
            Damage::Applied => state.events.last_value(Family::Applied),
            Damage::AppliedHead => state.events.first_value(Family::Applied),
            Damage::Slot(first) => state.slots.get_mut(&if first { Side::A } else { Side::B }),
            Damage::Identity => state.identity.as_mut(),
            Damage::EventDb => None,
        };
        match value.and_then(|value| value.last_mut()) {
            Some(byte) => {
                *byte ^= 0x10;
                true
            },
            None => false,
        }
    }

    /// A copy of what is durable now, as a disk of its own.
    pub fn image(&self) -> Self {
        Self(Arc::new(Mutex::new(self.lock().image())))
    }

    /// The log database becomes that of `other`; all else stays. Close the store first.
    pub fn restore_log(&self, other: &Self) {
        let log = other.lock().image().log;
        self.lock().log = log;
    }

    /// Whose disk this is, without opening it.
    pub fn peek_identity(&self) -> Result<Option<Identity>, StoreError> {
        let state = self.lock();
        state.identity.as_deref().map(identity::decode).transpose()
    }

    /// Lays it to rest: what it held becomes a disk of its own, and this one is empty. Refused
    /// while it is open, or when there is nothing. At once: no crash comes between.
    pub fn retire(&self) -> Result<Self, StoreError> {
        let mut state = self.lock();
        if state.open {
            return Err(disk::in_use());
        }
        if state.identity.is_none() && state.slots.is_empty() {
            return Err(StoreError::Empty {
                path: "simulated disk".into(),
            });
        }
        let retired = state.image();
        state.empty();
        Ok(Self(Arc::new(Mutex::new(retired))))
    }

    /// Rewrites IDENTITY with another format version: a directory of a newer release.
    pub fn set_format_version(&self, identity: &Identity, format_version: u32) {
        self.lock().identity = Some(identity::encode(identity, format_version));
    }
}

/// A store on a simulated disk.
pub struct SimStore;

impl SimStore {
    /// Opens the disk; it can be open once at a time. Dropping the store closes it in good order,
    /// event DB flushed if the options say so, unless the disk crashed before.
    pub fn open(disk: &SimDisk, options: OpenOptions) -> Result<Arc<dyn Store>, StoreError> {
        let core = Self::recover(disk, &options, true)?;
        Ok(Arc::new(Engine::driven(core)))
    }

    /// The same with the real store's threads: for tests of what only threads can get wrong.
    pub fn open_threaded(
        disk: &SimDisk,
        options: OpenOptions,
    ) -> Result<Arc<dyn Store>, StoreError> {
        let core = Self::recover(disk, &options, false)?;
        Ok(Arc::new(Engine::threaded(core)?))
    }

    fn recover(
        disk: &SimDisk,
        options: &OpenOptions,
        driven: bool,
    ) -> Result<Arc<Core<Handle>>, StoreError> {
        let handle = Handle::lock(disk, options.flush_on_close)?;
        let (identity, watermark) = identity::settle(&handle as &dyn Home, options)?;
        let core = engine::open(handle, identity, watermark, options, driven)?;
        let driver: Weak<dyn Driver> = Arc::<Core<Handle>>::downgrade(&core);
        disk.lock().driver = Some(driver);
        Ok(core)
    }
}
