//! The behaviour suite: what every [`Store`] must do, run against each of them.
//!
//! Comes in: a maker of [`Harness`]es, each an empty disk of its own. Goes out: nothing, or a
//! panic that names what was broken. Never: knowledge of one disk; what only the simulated disk
//! can show stands in `tests/sim.rs`, what only a killed process can in `tests/kill.rs`.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test suite: its panics are its answers"
)]

mod apply;
mod log;
mod rebuild;
mod recovery;
mod snapshot;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use everwire_core::clock::Timestamp;
use everwire_core::event::{Author, Body, Codec, Event, ParticipantKind, Visibility};
use everwire_core::ids::{NodeId, ParticipantId, SessionNo, ShardId, Slot};
use everwire_core::position::Offset;
use everwire_core::row::{HeadRow, Row, RowKey, SessionKey};

use crate::sim::{Damage, SimDisk, SimStore};
use crate::{
    Applied, ApplyWrite, Done, Identity, LogPosition, LogRecord, OpenOptions, Store, StoreError,
};

/// One disk under test.
pub trait Bed {
    /// Opens it.
    fn open(&self, options: OpenOptions) -> Result<Arc<dyn Store>, StoreError>;
    /// Pulls the plug: what was not durable is gone. The disk can be opened again.
    fn crash(&self, store: Arc<dyn Store>);
    /// Flips a byte of a value. The store is closed.
    fn damage(&self, what: Damage);
    /// Remembers the log DB as it is. The store is closed.
    fn remember_log(&self);
    /// Puts the remembered log DB back. The store is closed.
    fn restore_log(&self);
    /// Whose directory it is, without opening it.
    fn peek(&self) -> Result<Option<Identity>, StoreError>;
    /// Lays it to rest.
    fn retire(&self) -> Result<(), StoreError>;
    /// Makes it a directory of another format version. The store is closed.
    fn set_format_version(&self, identity: &Identity, format_version: u32);
}

/// A disk under test; dropped when its case is over.
pub type Harness = Box<dyn Bed>;

/// Runs every case, each on a fresh harness.
pub fn suite(make: &dyn Fn() -> Harness) {
    log::cases(make);
    apply::cases(make);
    snapshot::cases(make);
    recovery::cases(make);
    rebuild::cases(make);
}

/// A harness on a simulated disk.
#[derive(Default)]
pub struct SimBed {
    disk: SimDisk,
    remembered: Mutex<SimDisk>,
    threaded: bool,
    /// Set by a crash: what the dead store still says is nobody's business.
    dead: Mutex<Arc<AtomicBool>>,
}

impl SimBed {
    /// With the writer on the callers' threads, or with threads of its own.
    pub fn new(threaded: bool) -> Self {
        Self {
            threaded,
            ..Self::default()
        }
    }
}

impl Bed for SimBed {
    fn open(&self, mut options: OpenOptions) -> Result<Arc<dyn Store>, StoreError> {
        let dead = Arc::new(AtomicBool::new(false));
        *self.dead.lock().unwrap() = Arc::clone(&dead);
        let on_fatal = options.on_fatal;
        options.on_fatal = Arc::new(move |message| {
            if !dead.load(Ordering::SeqCst) {
                on_fatal(message);
            }
        });
        if self.threaded {
            SimStore::open_threaded(&self.disk, options)
        } else {
            SimStore::open(&self.disk, options)
        }
    }

    fn crash(&self, store: Arc<dyn Store>) {
        self.dead.lock().unwrap().store(true, Ordering::SeqCst);
        self.disk.crash();
        drop(store);
    }

    fn damage(&self, what: Damage) {
        assert!(self.disk.damage(what), "nothing to damage: {what:?}");
    }

    fn remember_log(&self) {
        *self.remembered.lock().unwrap() = self.disk.image();
    }

    fn restore_log(&self) {
        self.disk.restore_log(&self.remembered.lock().unwrap());
    }

    fn peek(&self) -> Result<Option<Identity>, StoreError> {
        self.disk.peek_identity()
    }

    fn retire(&self) -> Result<(), StoreError> {
        self.disk.retire().map(drop)
    }

    fn set_format_version(&self, identity: &Identity, format_version: u32) {
        self.disk.set_format_version(identity, format_version);
    }
}

// === What the cases share ===

/// The cluster of every case.
pub fn identity() -> Identity {
    Identity::new("cluster-of-the-suite", NodeId(7))
}

/// Options that create, and count what is fatal.
pub fn counting() -> (OpenOptions, Arc<AtomicUsize>) {
    let fatal = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fatal);
    let options = OpenOptions {
        on_fatal: Arc::new(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
        }),
        ..options()
    };
    (options, fatal)
}

/// Options of a case in which nothing fatal may happen.
pub fn options() -> OpenOptions {
    let fatal = Arc::new(|message: &str| panic!("fatal: {message}"));
    OpenOptions {
        // However full the disk of the machine that runs this is.
        refuse_percent: (101, 101),
        ..OpenOptions::create(identity(), fatal)
    }
}

fn open(bed: &Harness) -> Arc<dyn Store> {
    bed.open(options()).unwrap()
}

/// What a [`Done`] was told.
pub type Answer = Receiver<Result<(), StoreError>>;

/// A [`Done`] and where its answer arrives.
pub fn done() -> (Done, Answer) {
    let (send, answer) = channel();
    let done = Box::new(move |result| {
        send.send(result).ok();
    });
    (done, answer)
}

/// Waits for an answer.
pub fn answer(answer: &Answer) -> Result<(), StoreError> {
    answer
        .recv_timeout(Duration::from_secs(20))
        .expect("an operation is answered within seconds")
}

/// A position of term 3, node 7.
pub fn at(index: u64) -> LogPosition {
    LogPosition {
        term: 3,
        node: 7,
        index,
    }
}

/// A record of a term whose bytes tell where it stands.
pub fn record(term: u64, index: u64, bytes: usize) -> LogRecord {
    let mut text = format!("{term}/{index}/").into_bytes();
    text.resize(text.len().max(bytes), b'.');
    LogRecord {
        position: LogPosition {
            term,
            node: 7,
            index,
        },
        bytes: Bytes::from(text),
    }
}

fn records(indexes: std::ops::RangeInclusive<u64>) -> Vec<LogRecord> {
    indexes.map(|index| record(3, index, 0)).collect()
}

/// Appends and waits.
pub fn append(store: &dyn Store, group: u32, records: Vec<LogRecord>) -> Result<(), StoreError> {
    let (send, told) = done();
    store.append(group, records, send);
    answer(&told)
}

fn truncate(store: &dyn Store, group: u32, index: Option<u64>) {
    let (send, told) = done();
    store.truncate_after(group, index, send);
    answer(&told).unwrap();
}

fn purge(store: &dyn Store, group: u32, upto: LogPosition) -> Result<(), StoreError> {
    let (send, told) = done();
    store.purge(group, upto, send);
    answer(&told)
}

/// All that is left of a group's log.
pub fn whole_log(store: &dyn Store, group: u32) -> Vec<LogRecord> {
    let mut from = 0;
    loop {
        match store.read_log(group, from..u64::MAX, usize::MAX) {
            Err(StoreError::Purged { upto, .. }) => from = upto + 1,
            found => return found.unwrap(),
        }
    }
}

fn indexes(store: &dyn Store, group: u32) -> Vec<u64> {
    let found = whole_log(store, group);
    found.iter().map(|record| record.position.index).collect()
}

/// A session in a group's slots, `nth` slot of it.
pub fn session(group: u32, nth: u16, number: u64) -> SessionKey {
    let slots = ShardId(group).slots(identity().shards);
    SessionKey {
        slot: Slot::new(slots.start + nth).unwrap(),
        session_no: SessionNo(number),
    }
}

/// An event at an offset; `bytes` of text.
pub fn event(offset: u64, bytes: usize) -> Arc<Event> {
    Arc::new(Event {
        offset: Offset::new(offset).unwrap(),
        time: Timestamp(1_700_000_000_000 + offset),
        run: None,
        author: Author {
            participant: ParticipantId::parse("ann").unwrap(),
            kind: ParticipantKind::User,
        },
        parent: None,
        visibility: Visibility::All,
        format: String::new(),
        codec: Codec::Plain,
        body: Body::App {
            name: "x".repeat(bytes.min(200)),
            data: Some(everwire_core::event::Data::Binary(Bytes::from(vec![
                7;
                bytes
            ]))),
        },
        raw: None,
    })
}

/// A head row with this tail.
pub fn head(tail: u64) -> Row {
    Row::Head(HeadRow {
        created: Timestamp(1),
        last_time: Timestamp(2),
        tail: Offset::new(tail).unwrap(),
        trimmed: Offset::ZERO,
        bytes: 3,
        live_runs: 0,
        day: 19_000,
        people_today: 1,
        frozen: None,
        keys_due: None,
        open_approvals: 0,
    })
}

/// Nothing but an applied index.
pub fn write_of(index: u64) -> ApplyWrite {
    ApplyWrite {
        rows: BTreeMap::new(),
        events: Vec::new(),
        erased: Vec::new(),
        applied: Applied {
            position: at(index),
            membership: Bytes::new(),
            membership_position: None,
            time: Timestamp(1000 + index),
            rules_version: 1,
            state: Bytes::new(),
            audit_hash: 0,
        },
    }
}

/// A write of one session: events `offsets` and the head.
pub fn write_session(
    index: u64,
    session: SessionKey,
    offsets: std::ops::RangeInclusive<u64>,
) -> ApplyWrite {
    let mut write = write_of(index);
    let tail = *offsets.end();
    write.rows.insert(RowKey::Head(session), Some(head(tail)));
    write.events = offsets.map(|offset| (session, event(offset, 50))).collect();
    write
}

fn offsets(store: &dyn Store, session: SessionKey) -> Vec<u64> {
    let events = store
        .events(session, Offset::ZERO.next(), usize::MAX, usize::MAX)
        .unwrap();
    events.iter().map(|event| event.offset.get()).collect()
}
