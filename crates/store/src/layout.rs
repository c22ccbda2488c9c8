//! Keys on disk: one enum per database, its bytes, and the ranges that readers scan.
//!
//! Every key of a session begins `slot u16 ‖ session_no u64 ‖ kind u8`; numbers are big endian,
//! so byte order is number order. Names stand in keys only where the name itself is what is
//! looked up: session names in the family `names`, client-chosen ids after the kind. A string
//! that is not the last field is ended by `0x00`, which no name may hold, so shorter names sort
//! before longer ones and two fields never run into each other.
//!
//! | family (number) | key |
//! |---|---|
//! | `events` (1) | `slot ‖ session_no ‖ 40 ‖ offset u64` |
//! | `rows` (2) | `slot ‖ session_no ‖ kind ‖ …`, see [`kind`] |
//! | `names` (3) | `slot ‖ namespace ‖ 00 ‖ name` |
//! | `index` (4) | `slot ‖ session_no ‖ kind ‖ …` |
//! | `applied` (5) | `group u32` |
//! | log DB `log` | `group u32 ‖ index u64` |
//! | log DB `meta` | `01`, `02 ‖ group u32`, `03 ‖ group u32`, `04 ‖ node u64` |
//!
//! Values, lifetimes and reasons: docs/protocol/storage.md. Pinned by `tests/layout.rs`.

use std::ops::Range;

use everwire_core::clock::Timestamp;
use everwire_core::ids::{
    ApprovalId, InputId, Key as ClientKey, MessageId, Namespace, NodeId, PartId, ParticipantId,
    RunId, SessionName, SessionNo, Slot, StepId,
};
use everwire_core::position::{Offset, RunEpoch};
use everwire_core::row::{RowKey, RowRange, SessionKey, TimerKind};

use crate::error::StoreError;

pub mod kind;

/// A range of key bytes; the end is exclusive.
pub type KeyRange = Range<Vec<u8>>;

/// The column families of the event DB. The numbers stand in snapshots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// Events of sessions.
    Events,
    /// Rows of sessions and of slots.
    Rows,
    /// Session names.
    Names,
    /// Rows that are scanned over a whole shard.
    Index,
    /// What each group has applied. Not part of a snapshot's pieces.
    Applied,
}

impl Family {
    /// Every family, in the order of a snapshot.
    pub const ALL: [Self; 5] = [
        Self::Events,
        Self::Rows,
        Self::Names,
        Self::Index,
        Self::Applied,
    ];

    /// Its number in snapshots.
    pub fn number(self) -> u32 {
        match self {
            Self::Events => 1,
            Self::Rows => 2,
            Self::Names => 3,
            Self::Index => 4,
            Self::Applied => 5,
        }
    }

    /// The family with this number.
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|family| family.number() == number)
    }

    /// Its name in RocksDB.
    pub fn name(self) -> &'static str {
        match self {
            Self::Events => "events",
            Self::Rows => "rows",
            Self::Names => "names",
            Self::Index => "index",
            Self::Applied => "applied",
        }
    }

    /// The families whose keys begin with a slot: what a shard consists of.
    pub fn sharded() -> [Self; 4] {
        [Self::Events, Self::Rows, Self::Names, Self::Index]
    }
}

/// The column families of the log DB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LogFamily {
    /// Log records of all groups.
    Log,
    /// The batch number, purge points, install markers.
    Meta,
}

impl LogFamily {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Log, Self::Meta];

    /// Its name in RocksDB.
    pub fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Meta => "meta",
        }
    }
}

/// A key of the event DB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// An event.
    Event(SessionKey, Offset),
    /// A row.
    Row(RowKey),
    /// What a group has applied.
    Applied(u32),
}

/// A key of the log DB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogKey {
    /// A log record.
    Entry {
        /// The group.
        group: u32,
        /// Its place in the group's log.
        index: u64,
    },
    /// The number of the last synced batch of the writer.
    Batch,
    /// The last purged position of a group.
    Purged(u32),
    /// A group's rows are being replaced.
    Installing(u32),
    /// What we had recorded of a peer.
    Peer(NodeId),
}

impl Key {
    /// The family that holds it.
    pub fn family(&self) -> Family {
        match self {
            Self::Event(..) => Family::Events,
            Self::Row(RowKey::Name(..)) => Family::Names,
            Self::Row(RowKey::LiveRun(..) | RowKey::Timer(..)) => Family::Index,
            Self::Row(
                RowKey::Counter(..)
                | RowKey::Head(..)
                | RowKey::Run(..)
                | RowKey::Epoch(..)
                | RowKey::Batch(..)
                | RowKey::Step(..)
                | RowKey::Message(..)
                | RowKey::Part(..)
                | RowKey::Input(..)
                | RowKey::Key(..)
                | RowKey::KeyAge(..)
                | RowKey::Tombstone(..)
                | RowKey::Approval(..),
            ) => Family::Rows,
            Self::Applied(..) => Family::Applied,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Self::Event(session, offset) => of_session(*session, kind::EVENT)
                .number(offset.get())
                .done(),
            Self::Row(key) => row_bytes(key),
            Self::Applied(group) => group.to_be_bytes().to_vec(),
        }
    }

    /// Reads the bytes of a key of `family`.
    pub fn decode(family: Family, bytes: &[u8]) -> Result<Self, StoreError> {
        let mut read = Reader(bytes);
        let key = read.key(family);
        match key {
            Some(key) if read.0.is_empty() => Ok(key),
            _ => Err(StoreError::Damaged {
                what: format!("a key of {} bytes in {}", bytes.len(), family.name()),
            }),
        }
    }
}

impl LogKey {
    const BATCH: u8 = 0x01;
    const PURGED: u8 = 0x02;
    const INSTALLING: u8 = 0x03;
    const PEER: u8 = 0x04;

    /// The family that holds it.
    pub fn family(&self) -> LogFamily {
        match self {
            Self::Entry { .. } => LogFamily::Log,
            Self::Batch | Self::Purged(..) | Self::Installing(..) | Self::Peer(..) => {
                LogFamily::Meta
            },
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let tagged = |tag: u8, group: &u32| {
            let mut bytes = vec![tag];
            bytes.extend_from_slice(&group.to_be_bytes());
            bytes
        };
        match self {
            Self::Entry { group, index } => {
                let mut bytes = group.to_be_bytes().to_vec();
                bytes.extend_from_slice(&index.to_be_bytes());
                bytes
            },
            Self::Batch => vec![Self::BATCH],
            Self::Purged(group) => tagged(Self::PURGED, group),
            Self::Installing(group) => tagged(Self::INSTALLING, group),
            Self::Peer(node) => {
                let mut bytes = vec![Self::PEER];
                bytes.extend_from_slice(&node.0.to_be_bytes());
                bytes
            },
        }
    }

    /// Reads the bytes of a key of `family`.
    pub fn decode(family: LogFamily, bytes: &[u8]) -> Result<Self, StoreError> {
        let mut read = Reader(bytes);
        let key = read.log_key(family);
        match key {
            Some(key) if read.0.is_empty() => Ok(key),
            _ => Err(StoreError::Damaged {
                what: format!("a key of {} bytes in {}", bytes.len(), family.name()),
            }),
        }
    }
}

// === Ranges ===

/// All keys of a session in a family whose keys begin with a slot and a session number.
pub fn session_range(session: SessionKey) -> KeyRange {
    prefix_range(Writer::session(session).done())
}

/// All keys of some slots, in any family whose keys begin with a slot.
pub fn slots_range(slots: Range<u16>) -> KeyRange {
    slots.start.to_be_bytes().to_vec()..slots.end.to_be_bytes().to_vec()
}

/// A session's events from an offset on.
pub fn events_range(session: SessionKey, from: Offset) -> KeyRange {
    let end = prefix_range(of_session(session, kind::EVENT).done()).end;
    Key::Event(session, from).encode()..end
}

/// The keys of a [`RowRange`], and their family.
pub fn row_range(range: RowRange) -> (Family, KeyRange) {
    let (family, kind) = match range {
        RowRange::KeyAges(_) => (Family::Rows, kind::KEY_AGE),
        RowRange::LiveRuns(_) => (Family::Index, kind::LIVE_RUN),
        RowRange::Tombstones(_) => (Family::Rows, kind::TOMBSTONE),
    };
    let prefix = of_session(range.session(), kind).done();
    (family, prefix_range(prefix))
}

/// The names of a slot and namespace that begin with `prefix`.
pub fn names_range(slot: Slot, namespace: &Namespace, prefix: &str) -> KeyRange {
    prefix_range(
        Writer::slot(slot)
            .text(namespace.as_str())
            .last(prefix)
            .done(),
    )
}

/// The log records of a group, by index.
pub fn log_range(group: u32, indexes: Range<u64>) -> KeyRange {
    let key = |index| LogKey::Entry { group, index }.encode();
    key(indexes.start)..key(indexes.end)
}

/// The log records of all groups ≥ `group`.
pub fn log_from(group: u32) -> KeyRange {
    LogKey::Entry { group, index: 0 }.encode()..vec![0xff; 13]
}

/// The purge points (`installing` = false) or install markers (true) of all groups.
pub fn meta_range(installing: bool) -> KeyRange {
    let tag = if installing {
        LogKey::INSTALLING
    } else {
        LogKey::PURGED
    };
    vec![tag]..vec![tag + 1]
}

/// What was recorded of all peers.
pub fn peers_range() -> KeyRange {
    vec![LogKey::PEER]..vec![LogKey::PEER + 1]
}

/// Everything in the family `applied`.
pub fn applied_range() -> KeyRange {
    Vec::new()..vec![0xff; 5]
}

/// All keys that begin with `prefix`. The prefix holds a byte below 0xff: all of ours begin with
/// a slot below 4,096.
fn prefix_range(prefix: Vec<u8>) -> KeyRange {
    let mut end = prefix.clone();
    while let Some(last) = end.pop() {
        if let Some(next) = last.checked_add(1) {
            end.push(next);
            break;
        }
    }
    prefix..end
}

// === Bytes ===

fn row_bytes(key: &RowKey) -> Vec<u8> {
    match key {
        RowKey::Name(slot, namespace, name) => Writer::slot(*slot)
            .text(namespace.as_str())
            .last(name.as_str()),
        RowKey::Counter(slot) => of_session(slot_itself(*slot), kind::COUNTER),
        RowKey::Head(session) => of_session(*session, kind::HEAD),
        RowKey::Run(session, run) => of_session(*session, kind::RUN).last(run.as_str()),
        RowKey::Epoch(session, run, epoch) => of_session(*session, kind::EPOCH)
            .text(run.as_str())
            .bytes(&epoch.0.to_be_bytes()),
        RowKey::Batch(session, run, epoch, n) => of_session(*session, kind::BATCH)
            .text(run.as_str())
            .bytes(&epoch.0.to_be_bytes())
            .bytes(&[*n]),
        RowKey::Step(session, run, step) => of_session(*session, kind::STEP)
            .text(run.as_str())
            .last(step.as_str()),
        RowKey::Message(session, message) => {
            of_session(*session, kind::MESSAGE).last(message.as_str())
        },
        RowKey::Part(session, message, part) => of_session(*session, kind::PART)
            .text(message.as_str())
            .last(part.as_str()),
        RowKey::Input(session, author, input) => of_session(*session, kind::INPUT)
            .text(author.as_str())
            .last(input.as_str()),
        RowKey::Key(session, author, key) => of_session(*session, kind::KEY)
            .text(author.as_str())
            .last(key.as_str()),
        RowKey::KeyAge(session, time, author, key) => of_session(*session, kind::KEY_AGE)
            .number(time.0)
            .text(author.as_str())
            .last(key.as_str()),
        RowKey::LiveRun(session, run) => of_session(*session, kind::LIVE_RUN).last(run.as_str()),
        RowKey::Tombstone(session, author, input) => of_session(*session, kind::TOMBSTONE)
            .text(author.as_str())
            .last(input.as_str()),
        RowKey::Approval(session, approval) => {
            of_session(*session, kind::APPROVAL).last(approval.as_str())
        },
        RowKey::Timer(session, due, kind) => of_session(*session, kind::TIMER)
            .number(due.0)
            .bytes(&[kind.number()]),
    }
    .done()
}

/// Session number 0 is never given: it stands for the slot itself.
fn slot_itself(slot: Slot) -> SessionKey {
    SessionKey {
        slot,
        session_no: SessionNo(0),
    }
}

fn of_session(session: SessionKey, kind: u8) -> Writer {
    Writer::session(session).bytes(&[kind])
}

struct Writer(Vec<u8>);

impl Writer {
    fn slot(slot: Slot) -> Self {
        let mut bytes = Vec::with_capacity(48);
        bytes.extend_from_slice(&slot.get().to_be_bytes());
        Self(bytes)
    }

    fn session(session: SessionKey) -> Self {
        Self::slot(session.slot).number(session.session_no.0)
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn number(self, number: u64) -> Self {
        self.bytes(&number.to_be_bytes())
    }

    /// A string that others follow.
    fn text(self, text: &str) -> Self {
        self.bytes(text.as_bytes()).bytes(&[0])
    }

    /// A string that ends the key.
    fn last(self, text: &str) -> Self {
        self.bytes(text.as_bytes())
    }

    fn done(self) -> Vec<u8> {
        self.0
    }
}

/// Takes fields off the front; `None` where no key looks like that.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn key(&mut self, family: Family) -> Option<Key> {
        match family {
            Family::Applied => Some(Key::Applied(u32::from_be_bytes(self.array()?))),
            Family::Names => {
                let slot = self.slot()?;
                let namespace = Namespace::parse(self.text()?).ok()?;
                let name = SessionName::parse(self.last()?).ok()?;
                Some(Key::Row(RowKey::Name(slot, namespace, name)))
            },
            Family::Events | Family::Rows | Family::Index => {
                let session = SessionKey {
                    slot: self.slot()?,
                    session_no: SessionNo(self.number()?),
                };
                let [kind] = self.array()?;
                let key = self.session_key(session, kind)?;
                (key.family() == family).then_some(key)
            },
        }
    }

    fn session_key(&mut self, session: SessionKey, kind: u8) -> Option<Key> {
        if kind == kind::EVENT {
            return Some(Key::Event(session, Offset::new(self.number()?)?));
        }
        let row = match kind {
            kind::COUNTER if session.session_no.0 == 0 => RowKey::Counter(session.slot),
            kind::HEAD => RowKey::Head(session),
            kind::RUN => RowKey::Run(session, RunId::parse(self.last()?).ok()?),
            kind::EPOCH => RowKey::Epoch(session, self.run()?, self.epoch()?),
            kind::BATCH => {
                let (run, epoch) = (self.run()?, self.epoch()?);
                let [n] = self.array()?;
                RowKey::Batch(session, run, epoch, n)
            },
            kind::STEP => RowKey::Step(session, self.run()?, StepId::parse(self.last()?).ok()?),
            kind::MESSAGE => RowKey::Message(session, MessageId::parse(self.last()?).ok()?),
            kind::PART => {
                let message = MessageId::parse(self.text()?).ok()?;
                RowKey::Part(session, message, PartId::parse(self.last()?).ok()?)
            },
            kind::INPUT => {
                let author = self.participant()?;
                RowKey::Input(session, author, InputId::parse(self.last()?).ok()?)
            },
            kind::KEY => {
                let author = self.participant()?;
                RowKey::Key(session, author, ClientKey::parse(self.last()?).ok()?)
            },
            kind::KEY_AGE => {
                let time = Timestamp(self.number()?);
                let author = self.participant()?;
                let key = ClientKey::parse(self.last()?).ok()?;
                RowKey::KeyAge(session, time, author, key)
            },
            kind::TOMBSTONE => {
                let author = self.participant()?;
                RowKey::Tombstone(session, author, InputId::parse(self.last()?).ok()?)
            },
            kind::APPROVAL => RowKey::Approval(session, ApprovalId::parse(self.last()?).ok()?),
            kind::LIVE_RUN => RowKey::LiveRun(session, RunId::parse(self.last()?).ok()?),
            kind::TIMER => {
                let due = Timestamp(self.number()?);
                let [kind] = self.array()?;
                RowKey::Timer(session, due, TimerKind::of_number(kind)?)
            },
            _ => return None,
        };
        Some(Key::Row(row))
    }

    fn log_key(&mut self, family: LogFamily) -> Option<LogKey> {
        match family {
            LogFamily::Log => Some(LogKey::Entry {
                group: u32::from_be_bytes(self.array()?),
                index: self.number()?,
            }),
            LogFamily::Meta => match self.array()? {
                [LogKey::BATCH] => Some(LogKey::Batch),
                [LogKey::PURGED] => Some(LogKey::Purged(u32::from_be_bytes(self.array()?))),
                [LogKey::INSTALLING] => Some(LogKey::Installing(u32::from_be_bytes(self.array()?))),
                [LogKey::PEER] => Some(LogKey::Peer(NodeId(self.number()?))),
                _ => None,
            },
        }
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }

    fn slot(&mut self) -> Option<Slot> {
        Slot::new(u16::from_be_bytes(self.array()?))
    }

    fn run(&mut self) -> Option<RunId> {
        RunId::parse(self.text()?).ok()
    }

    fn epoch(&mut self) -> Option<RunEpoch> {
        Some(RunEpoch(u32::from_be_bytes(self.array()?)))
    }

    fn participant(&mut self) -> Option<ParticipantId> {
        ParticipantId::parse(self.text()?).ok()
    }

    /// A string up to its `0x00`.
    fn text(&mut self) -> Option<&'a str> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let (head, rest) = self.0.split_at_checked(end)?;
        self.0 = rest.get(1..)?;
        std::str::from_utf8(head).ok()
    }

    /// The rest as a string.
    fn last(&mut self) -> Option<&'a str> {
        let text = std::str::from_utf8(self.0).ok()?;
        self.0 = &[];
        Some(text)
    }
}
