//! Where the seqs of one epoch stand: the memory that lets a writer send again.
//!
//! Seqs of an epoch are dense, so its last seq says which are committed. Their places are kept
//! per batch, for the last 256 batches, in a ring of rows.

use everwire_core::command::Duplicate;
use everwire_core::limits::BATCHES_REMEMBERED;
use everwire_core::row::{BatchRow, EpochRow, Row, RowKey};
use everwire_core::{Offset, RunEpoch, RunId, Seq};

use super::Stop;
use super::lookup::Session;
use super::txn::ViewError;

/// One epoch of one run, with what it has committed.
pub(super) struct Memory<'a> {
    pub(super) run: &'a RunId,
    pub(super) run_epoch: RunEpoch,
    pub(super) epoch: &'a EpochRow,
}

impl Memory<'_> {
    /// The row of a batch's number: a ring, so that nothing ever has to be removed.
    fn row_key(&self, session: &Session<'_, '_>, number: u64) -> RowKey {
        let slot = number % BATCHES_REMEMBERED;
        let slot = u8::try_from(slot).expect("256 batches are remembered, so it fits a byte");
        RowKey::Batch(session.key, self.run.clone(), self.run_epoch, slot)
    }

    fn row(&self, session: &mut Session<'_, '_>, number: u64) -> Result<BatchRow, Stop> {
        let key = self.row_key(session, number);
        let row = session.step.batch(&key)?;
        Ok(row.ok_or_else(|| ViewError(format!("no row for {key:?}, which is remembered")))?)
    }

    /// Answers the place of the seqs `first..=through`, all committed in this epoch.
    pub(super) fn place(
        &self,
        session: &mut Session<'_, '_>,
        first: Seq,
        through: Seq,
    ) -> Result<Duplicate, Stop> {
        let oldest = self.epoch.batches.saturating_sub(BATCHES_REMEMBERED);
        let Some(mut number) = self.holder(session, through, oldest)? else {
            return Ok(Duplicate {
                through_seq: through,
                through_offset: self.epoch.last_offset,
                exact: false,
            });
        };
        let mut row = self.row(session, number)?;
        let through_offset = row
            .first_offset
            .plus(through.0.saturating_sub(row.first_seq.0));
        // Walk back while batches stand wall to wall, until one reaches the first seq.
        let mut exact = row.first_seq <= first;
        while !exact && number > oldest {
            number -= 1;
            let before = self.row(session, number)?;
            let length = row.first_seq.0.saturating_sub(before.first_seq.0);
            if before.first_offset.plus(length) != row.first_offset {
                break;
            }
            row = before;
            exact = row.first_seq <= first;
        }
        Ok(Duplicate {
            through_seq: through,
            through_offset,
            exact,
        })
    }

    /// The number of the remembered batch that holds a committed seq; found by halving, because
    /// batches ascend in seq.
    fn holder(
        &self,
        session: &mut Session<'_, '_>,
        seq: Seq,
        oldest: u64,
    ) -> Result<Option<u64>, Stop> {
        let (mut low, mut high) = (oldest, self.epoch.batches);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.row(session, middle)?.last_seq < seq {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if low >= self.epoch.batches {
            return Ok(None);
        }
        Ok((self.row(session, low)?.first_seq <= seq).then_some(low))
    }
}

/// Remembers a batch that was just committed, and where its epoch stands now.
pub(super) fn remember(
    session: &mut Session<'_, '_>,
    run: RunId,
    run_epoch: RunEpoch,
    mut epoch: EpochRow,
    batch: BatchRow,
    last_offset: Offset,
) {
    let memory = Memory {
        run: &run,
        run_epoch,
        epoch: &epoch,
    };
    let key = memory.row_key(session, epoch.batches);
    session.step.put(key, Row::Batch(batch));
    epoch.last_seq = batch.last_seq;
    epoch.last_offset = last_offset;
    epoch.batches += 1;
    let key = RowKey::Epoch(session.key, run, run_epoch);
    session.step.put(key, Row::Epoch(epoch));
}
