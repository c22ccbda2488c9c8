//! Applied state: rows, events and names of the event DB.

use std::ops::{ControlFlow, Range};

use bytes::Bytes;
use everwire_core::clock::Timestamp;
use everwire_core::command::Fire;
use everwire_core::event::Event;
use everwire_core::ids::{Namespace, RunId, SessionName, Slot};
use everwire_core::position::Offset;
use everwire_core::row::{NameRow, Row, RowKey, RowRange, SessionKey, TimerRow};
use everwire_proto::{storage, storage_v1};

use crate::disk::{Batch, Disk, Freed, Reads};
use crate::engine::Core;
use crate::error::StoreError;
use crate::layout::{self, Family, Key};
use crate::record;
use crate::types::{Applied, ApplyWrite, LogPosition};

impl<D: Disk> Core<D> {
    /// See [`crate::Store::write`]. Says whether a flush is due.
    pub(crate) fn write(&self, group: u32, write: &ApplyWrite) -> Result<bool, StoreError> {
        self.fatal.check()?;
        let bytes = self.when_it_fits("applying", || {
            // What memory cannot hold would have to be flushed.
            if self.flusher.is_due() {
                self.flush_fits()?;
            }
            self.write_events("writing the event DB", || {
                let batch = self.batch_of(group, write)?;
                self.read_of(group, Ok(batch))
            })
        })?;
        for session in &write.erased {
            let gone = layout::session_range(*session);
            self.gauge.freed(Freed::Events, gone);
        }
        if self.gauge.note(bytes) {
            self.look();
        }
        Ok(self.flusher.note(bytes))
    }

    /// Writes a batch to the event DB; answers how many bytes it has.
    pub(crate) fn write_events(
        &self,
        what: &str,
        batch: impl FnOnce() -> Result<D::EventBatch, StoreError>,
    ) -> Result<usize, StoreError> {
        // Of no newer database than the batch: one that is replaced meanwhile refuses it.
        let generation = self.disk.generation();
        let batch = batch()?;
        let bytes = batch.bytes();
        let written = self.disk.event_write(batch);
        written.map_err(|error| self.failed(what, generation, error))?;
        Ok(bytes)
    }

    fn batch_of(&self, group: u32, write: &ApplyWrite) -> Result<D::EventBatch, StoreError> {
        let slots = self.identity.slots(group);
        let owned = |key: &[u8]| {
            let slot = key.first_chunk::<2>();
            slot.is_some_and(|slot| slots.contains(&u16::from_be_bytes(*slot)))
        };
        let mut batch = self.disk.event_batch();
        for (key, row) in &write.rows {
            let key = Key::Row(key.clone());
            let bytes = key.encode();
            debug_assert!(
                owned(&bytes),
                "group {group} writes a row of another: {key:?}"
            );
            match row {
                Some(row) => {
                    let value = record::seal(&bytes, &storage::encode_row(row));
                    batch.put(key.family(), &bytes, &value);
                },
                None => batch.delete(key.family(), &bytes),
            }
        }
        for (session, event) in &write.events {
            let key = Key::Event(*session, event.offset).encode();
            debug_assert!(owned(&key), "group {group} writes another's: {session:?}");
            let value = record::seal(&key, &storage::encode_event(event));
            batch.put(Family::Events, &key, &value);
        }
        // Last: a session that was written and deleted in one write is gone.
        for session in &write.erased {
            assert!(session.session_no.0 != 0, "number 0 is the slot's own");
            let gone = layout::session_range(*session);
            for family in [Family::Events, Family::Rows, Family::Index] {
                batch.delete_range(family, &gone);
            }
        }
        put_applied(&mut batch, group, &write.applied)?;
        Ok(batch)
    }

    /// See [`crate::Store::applied`].
    pub(crate) fn applied(&self, group: u32) -> Result<Option<Applied>, StoreError> {
        if self.flusher.is_installing(group) {
            return Ok(None);
        }
        self.read_of(group, read_applied(&self.disk, group))
    }

    /// See [`crate::Store::row`].
    pub(crate) fn row(&self, key: &RowKey) -> Result<Option<Row>, StoreError> {
        let stored = Key::Row(key.clone());
        let bytes = stored.encode();
        let read = || match self.disk.get(stored.family(), &bytes)? {
            Some(value) => open_row(key, &bytes, &value).map(Some),
            None => Ok(None),
        };
        self.read_of(self.identity.group(key.slot()), read())
    }

    /// See [`crate::Store::scan`].
    pub(crate) fn scan(&self, range: RowRange, limit: usize) -> Result<Vec<RowKey>, StoreError> {
        let (family, keys) = layout::row_range(range);
        let mut found = Vec::new();
        if limit == 0 {
            return Ok(found);
        }
        let session = range.session();
        let scanned = self.disk.scan(family, &keys, &mut |key, value| {
            record::unseal("an index row", key, value)?;
            if let Key::Row(key) = Key::decode(family, key)? {
                found.push(key);
            }
            Ok(go_on(found.len() < limit))
        });
        self.read_of(self.identity.group(session.slot), scanned)?;
        Ok(found)
    }

    /// See [`crate::Store::timers`].
    pub(crate) fn timers(&self, group: u32, until: Timestamp) -> Result<Vec<Fire>, StoreError> {
        let mut found = Vec::new();
        let range = layout::slots_range(self.identity.slots(group));
        let scanned = self.disk.scan(Family::Index, &range, &mut |bytes, value| {
            let Key::Row(key) = Key::decode(Family::Index, bytes)? else {
                return Err(damaged("a key of an index"));
            };
            if let RowKey::Timer(session, due, kind) = key
                && due <= until
                && let Row::Timer(TimerRow { guard, .. }) = open_row(&key, bytes, value)?
            {
                found.push(Fire {
                    session,
                    due,
                    kind,
                    guard,
                });
            }
            Ok(ControlFlow::Continue(()))
        });
        self.read_of(group, scanned)?;
        Ok(found)
    }

    /// See [`crate::Store::live_runs`].
    pub(crate) fn live_runs(&self, group: u32) -> Result<Vec<(SessionKey, RunId)>, StoreError> {
        let mut found = Vec::new();
        let range = layout::slots_range(self.identity.slots(group));
        let scanned = self.disk.scan(Family::Index, &range, &mut |bytes, value| {
            let Key::Row(key) = Key::decode(Family::Index, bytes)? else {
                return Err(damaged("a key of an index"));
            };
            if let RowKey::LiveRun(session, run) = key {
                record::unseal("an index row", bytes, value)?;
                found.push((session, run));
            }
            Ok(ControlFlow::Continue(()))
        });
        self.read_of(group, scanned)?;
        Ok(found)
    }

    /// See [`crate::Store::names`].
    pub(crate) fn names(
        &self,
        slots: Range<u16>,
        after: Option<(Slot, Namespace, SessionName)>,
        namespace: &Namespace,
        prefix: &str,
        limit: usize,
    ) -> Result<Vec<(Slot, SessionName, NameRow)>, StoreError> {
        let after = after.map(|(slot, ns, name)| Key::Row(RowKey::Name(slot, ns, name)).encode());
        let mut found = Vec::new();
        for slot in slots.filter_map(Slot::new) {
            if found.len() >= limit {
                break;
            }
            let mut range = layout::names_range(slot, namespace, prefix);
            if let Some(after) = &after
                && *after >= range.start
            {
                range.start.clone_from(after);
                // The smallest key above `after`.
                range.start.push(0);
            }
            if range.start >= range.end {
                continue;
            }
            let scanned = self.disk.scan(Family::Names, &range, &mut |bytes, value| {
                let Key::Row(key @ RowKey::Name(..)) = Key::decode(Family::Names, bytes)? else {
                    return Err(damaged("a name's key"));
                };
                if let (Row::Name(row), RowKey::Name(slot, _, name)) =
                    (open_row(&key, bytes, value)?, key)
                {
                    found.push((slot, name, row));
                }
                Ok(go_on(found.len() < limit))
            });
            self.read_of(self.identity.group(slot), scanned)?;
        }
        Ok(found)
    }

    /// See [`crate::Store::events`].
    pub(crate) fn events(
        &self,
        session: SessionKey,
        from: Offset,
        bytes_max: usize,
        count_max: usize,
    ) -> Result<Vec<Event>, StoreError> {
        let mut found: Vec<Event> = Vec::new();
        if count_max == 0 {
            return Ok(found);
        }
        let mut bytes = 0_usize;
        let mut next = from.max(Offset::ZERO.next());
        let range = layout::events_range(session, next);
        let scanned = self.disk.scan(Family::Events, &range, &mut |key, value| {
            bytes = bytes.saturating_add(value.len());
            if bytes > bytes_max && !found.is_empty() {
                return Ok(ControlFlow::Break(()));
            }
            let payload = record::unseal("an event", key, value)?;
            let event = storage::decode_event(payload).map_err(StoreError::from)?;
            let stands_at = Key::Event(session, event.offset).encode();
            if event.offset != next || stands_at != key {
                return Err(damaged(&format!(
                    "slot {} session {}: event {next} is missing or misplaced",
                    session.slot.get(),
                    session.session_no.0
                )));
            }
            next = next.next();
            found.push(event);
            Ok(go_on(found.len() < count_max))
        });
        self.read_of(self.identity.group(session.slot), scanned)?;
        Ok(found)
    }
}

fn go_on(more: bool) -> ControlFlow<()> {
    if more {
        ControlFlow::Continue(())
    } else {
        ControlFlow::Break(())
    }
}

fn damaged(what: &str) -> StoreError {
    StoreError::Damaged { what: what.into() }
}

/// Reads a row and checks that it is of its key's kind.
fn open_row(key: &RowKey, bytes: &[u8], value: &[u8]) -> Result<Row, StoreError> {
    let payload = record::unseal("a row", bytes, value)?;
    let row = storage::decode_row(payload).map_err(StoreError::from)?;
    let right = matches!(
        (key, &row),
        (RowKey::Name(..), Row::Name(_))
            | (RowKey::Counter(..), Row::Counter(_))
            | (RowKey::Head(..), Row::Head(_))
            | (RowKey::Run(..), Row::Run(_))
            | (RowKey::Epoch(..), Row::Epoch(_))
            | (RowKey::Batch(..), Row::Batch(_))
            | (RowKey::Message(..), Row::Message(_))
            | (RowKey::Part(..), Row::Part(_))
            | (RowKey::Input(..), Row::Input(_))
            | (RowKey::Key(..), Row::Key(_))
            | (RowKey::Step(..), Row::Step(_))
            | (RowKey::Tombstone(..), Row::Tombstone(_))
            | (RowKey::Timer(..), Row::Timer(_))
            | (RowKey::KeyAge(..) | RowKey::LiveRun(..), Row::Index)
    );
    if right {
        Ok(row)
    } else {
        Err(damaged("a row of another kind than its key"))
    }
}

/// Reads what a group has applied.
pub(crate) fn read_applied(reads: &dyn Reads, group: u32) -> Result<Option<Applied>, StoreError> {
    let key = Key::Applied(group).encode();
    match reads.get(Family::Applied, &key)? {
        Some(value) => open_applied(&key, &value).map(Some),
        None => Ok(None),
    }
}

/// Adds what a group has applied to a batch.
pub(crate) fn put_applied(
    batch: &mut impl Batch<Family>,
    group: u32,
    applied: &Applied,
) -> Result<(), StoreError> {
    let message = applied_message(applied)?;
    let key = Key::Applied(group).encode();
    let value = record::seal(&key, &storage::encode_applied(&message));
    batch.put(Family::Applied, &key, &value);
    Ok(())
}

/// What a group has applied, as it is stored and sent.
pub(crate) fn applied_message(applied: &Applied) -> Result<storage_v1::Applied, StoreError> {
    let position = |at: LogPosition| storage_v1::LogPosition {
        term: at.term,
        node: at.node,
        index: at.index,
    };
    let membership = if applied.membership.is_empty() {
        None
    } else {
        Some(storage::decode_membership(&applied.membership).map_err(StoreError::from)?)
    };
    Ok(storage_v1::Applied {
        position: Some(position(applied.position)),
        membership,
        membership_position: applied.membership_position.map(position),
        time_ms: applied.time.0,
        rules_version: applied.rules_version,
        state: applied.state.clone(),
        audit_hash: match applied.audit_hash {
            0 => Bytes::new(),
            hash => Bytes::copy_from_slice(&hash.to_be_bytes()),
        },
    })
}

/// Reads what [`put_applied`] wrote.
pub(crate) fn open_applied(key: &[u8], value: &[u8]) -> Result<Applied, StoreError> {
    let payload = record::unseal("an applied row", key, value)?;
    applied_from(storage::decode_applied(payload).map_err(StoreError::from)?)
}

/// Reads what [`applied_message`] made.
pub(crate) fn applied_from(message: storage_v1::Applied) -> Result<Applied, StoreError> {
    let position = |at: storage_v1::LogPosition| LogPosition {
        term: at.term,
        node: at.node,
        index: at.index,
    };
    let at = message
        .position
        .ok_or_else(|| damaged("an applied row without a position"))?;
    Ok(Applied {
        position: position(at),
        membership: match &message.membership {
            Some(membership) => storage::encode_membership(membership),
            None => Bytes::new(),
        },
        membership_position: message.membership_position.map(position),
        time: Timestamp(message.time_ms),
        rules_version: message.rules_version,
        state: message.state,
        audit_hash: match &message.audit_hash[..] {
            [] => 0,
            hash => u128::from_be_bytes(
                hash.try_into()
                    .map_err(|_length| damaged("an audit hash of other than 16 bytes"))?,
            ),
        },
    })
}
