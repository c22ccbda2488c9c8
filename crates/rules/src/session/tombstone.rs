//! Stops of inputs that no run answers yet: whoever starts one later finds it cancelled
//! (RULES 13).

use everwire_core::control::InputRef;
use everwire_core::limits::{TOMBSTONE_TTL, TOMBSTONES_MAX, TOMBSTONES_PER_PARTICIPANT_MAX};
use everwire_core::row::{Row, RowKey, RowRange, TombstoneRow};
use everwire_core::{InputId, Offset, ParticipantId};

use super::Stop;
use super::lookup::Session;
use super::run::too_many;
use super::txn::ViewError;

/// One more than there can be, so that a scan of so many finds all.
fn all() -> usize {
    usize::try_from(TOMBSTONES_MAX).map_or(usize::MAX, |max| max + 1)
}

impl Session<'_, '_> {
    /// The tombstones of the session that still count. Sees what earlier commands did.
    fn tombstones(&mut self) -> Result<Vec<(RowKey, TombstoneRow)>, Stop> {
        let mut found = Vec::new();
        for key in self.step.scan(RowRange::Tombstones(self.key), all())? {
            let row = self.step.tombstone(&key)?;
            let row = row.ok_or_else(|| ViewError(format!("no row for {key:?}")))?;
            if row.until < self.step.time {
                self.step.remove(key);
            } else {
                found.push((key, row));
            }
        }
        Ok(found)
    }

    /// Makes sure that one more of the caller's has room. Call it before anything is appended.
    pub(super) fn room_for_tombstone(
        &mut self,
        author: &ParticipantId,
        input: &InputId,
    ) -> Result<(), Stop> {
        let others = self.tombstones()?;
        let this = RowKey::Tombstone(self.key, author.clone(), input.clone());
        let others = others.iter().filter(|(key, _)| *key != this);
        let (mut total, mut own) = (0, 0);
        for (_, row) in others {
            total += 1;
            own += u32::from(row.by.participant == self.actor.participant);
        }
        if total >= TOMBSTONES_MAX {
            let message = "too many inputs of this session are stopped before they began";
            return Err(too_many(message, TOMBSTONES_MAX).into());
        }
        if own >= TOMBSTONES_PER_PARTICIPANT_MAX {
            let message = "you have stopped too many inputs before they began";
            return Err(too_many(message, TOMBSTONES_PER_PARTICIPANT_MAX).into());
        }
        Ok(())
    }

    /// Remembers that an input was stopped at `cancel_offset`.
    pub(super) fn bury(&mut self, author: ParticipantId, input: InputId, cancel_offset: Offset) {
        let row = TombstoneRow {
            cancel_offset,
            by: self.actor.clone(),
            until: self.step.time.plus(TOMBSTONE_TTL),
        };
        let key = RowKey::Tombstone(self.key, author, input);
        self.step.put(key, Row::Tombstone(row));
    }

    /// The newest stop of the input that a new run answers, if there is one.
    pub(super) fn stopped_before(
        &mut self,
        input: &InputRef,
    ) -> Result<Option<TombstoneRow>, Stop> {
        // Below these rules there are none.
        if self.step.rules < 2 {
            return Ok(None);
        }
        let stops = self.tombstones()?.into_iter();
        let stops = stops.filter(|(key, _)| match key {
            RowKey::Tombstone(_, author, stopped) => input.may_be(&InputRef {
                input: stopped.clone(),
                author: Some(author.clone()),
            }),
            _ => false,
        });
        let stops = stops.map(|(_, row)| row);
        Ok(stops.max_by_key(|row| row.cancel_offset))
    }
}
