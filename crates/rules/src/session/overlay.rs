//! Rows as a command sees them: its own changes, over the transaction's, over the view.
//!
//! A [`Step`] belongs to one command; it is committed into the transaction or dropped whole, so
//! a refused command leaves nothing. Rows that were read stay in the transaction, so a row is
//! read from the view once.

use std::collections::{BTreeMap, BTreeSet};

use everwire_core::row::{
    ApprovalRow, BatchRow, EpochRow, HeadRow, InputRow, KeyRow, MessageRow, NameRow, PartRow, Row,
    RowKey, RowRange, RunRow, SessionKey, StepRow, TimerRow, TombstoneRow,
};
use everwire_core::{Event, Timestamp};

use super::guard;
use super::txn::{View, ViewError};

/// A row that the transaction has touched.
pub(super) struct Loaded {
    /// Its value; `None` where there is no row.
    pub(super) row: Option<Row>,
    /// Whether it differs from the view's.
    pub(super) changed: bool,
}

/// What the transaction holds between commands.
#[derive(Default)]
pub(super) struct Overlay {
    pub(super) rows: BTreeMap<RowKey, Loaded>,
    pub(super) events: Vec<(SessionKey, Event)>,
    pub(super) erased: Vec<SessionKey>,
    /// What the last batch did.
    pub(super) batch: BatchTrace,
}

/// Which of a transaction's changes are the last batch's.
#[derive(Default)]
pub(super) struct BatchTrace {
    /// Rows that it wrote or removed.
    rows: BTreeSet<RowKey>,
    /// How many of the last events are its own.
    events: usize,
    /// How many of the last deleted sessions.
    erased: usize,
}

impl Overlay {
    /// The rows that the last batch wrote or removed, as it left them.
    pub(super) fn batch_rows(&self) -> impl Iterator<Item = (&RowKey, Option<&Row>)> {
        let rows = self.batch.rows.iter();
        rows.filter_map(|key| Some((key, self.rows.get(key)?.row.as_ref())))
    }

    /// The events of the last batch, in their order.
    pub(super) fn batch_events(&self) -> &[(SessionKey, Event)] {
        let before = self.events.len().saturating_sub(self.batch.events);
        self.events.get(before..).unwrap_or_default()
    }

    /// The sessions that the last batch deleted.
    pub(super) fn batch_erased(&self) -> &[SessionKey] {
        let before = self.erased.len().saturating_sub(self.batch.erased);
        self.erased.get(before..).unwrap_or_default()
    }

    /// Forgets rows and events of a deleted session: nobody may read them again, and writing
    /// them would only give the erasure more to erase.
    fn erase(&mut self, session: SessionKey) {
        self.rows.retain(|key, _| key.session() != Some(session));
        let events = self.batch_events().iter();
        let ours = events.filter(|(of, _)| *of == session).count();
        self.batch.events = self.batch.events.saturating_sub(ours);
        self.events.retain(|(of, _)| *of != session);
        self.batch.erased += 1;
        self.erased.push(session);
    }
}

/// One command's reads and changes.
pub(super) struct Step<'t> {
    view: &'t dyn View,
    overlay: &'t mut Overlay,
    /// Changes of this command, not yet part of the transaction.
    rows: BTreeMap<RowKey, Option<Row>>,
    events: Vec<(SessionKey, Event)>,
    erase: Option<SessionKey>,
    /// Command time.
    pub(super) time: Timestamp,
    /// The cluster's timeline.
    pub(super) timeline: u32,
    /// The rules that the shard speaks. What newer ones brought is not written below them: every
    /// replica, also one of an older build, must write the same.
    pub(super) rules: u32,
}

/// What every command of a batch shares.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) time: Timestamp,
    pub(super) timeline: u32,
    pub(super) rules: u32,
}

/// Typed reads: a row of another kind under a key is damage, never skipped.
macro_rules! read {
    ($(#[$doc:meta])* $name:ident, $variant:ident, $type:ty) => {
        $(#[$doc])*
        pub(super) fn $name(&mut self, key: &RowKey) -> Result<Option<$type>, ViewError> {
            match self.get(key)? {
                None => Ok(None),
                Some(Row::$variant(row)) => Ok(Some(row.clone())),
                Some(_) => Err(damaged(key)),
            }
        }
    };
}

fn damaged(key: &RowKey) -> ViewError {
    ViewError(format!("another kind of row under {key:?}"))
}

impl<'t> Step<'t> {
    pub(super) fn new(view: &'t dyn View, overlay: &'t mut Overlay, moment: Moment) -> Self {
        Self {
            view,
            overlay,
            rows: BTreeMap::new(),
            events: Vec::new(),
            erase: None,
            time: moment.time,
            timeline: moment.timeline,
            rules: moment.rules,
        }
    }

    /// Drops what this command has changed so far.
    pub(super) fn discard(&mut self) {
        self.rows.clear();
        self.events.clear();
        self.erase = None;
    }

    /// Makes this command's changes part of the transaction.
    pub(super) fn commit(self) {
        let batch = &mut self.overlay.batch;
        batch.rows.extend(self.rows.keys().cloned());
        batch.events += self.events.len();
        let changed = self.rows.into_iter().map(|(key, row)| {
            let changed = true;
            (key, Loaded { row, changed })
        });
        self.overlay.rows.extend(changed);
        self.overlay.events.extend(self.events);
        if let Some(session) = self.erase {
            self.overlay.erase(session);
        }
    }

    fn get(&mut self, key: &RowKey) -> Result<Option<&Row>, ViewError> {
        if let Some(row) = self.rows.get(key) {
            return Ok(row.as_ref());
        }
        if !self.overlay.rows.contains_key(key) {
            let row = guard::read(|| self.view.get(key))?;
            let changed = false;
            let loaded = Loaded { row, changed };
            self.overlay.rows.insert(key.clone(), loaded);
        }
        let loaded = self.overlay.rows.get(key);
        Ok(loaded.and_then(|loaded| loaded.row.as_ref()))
    }

    read!(
        /// A session's number by its name.
        name, Name, NameRow
    );
    read!(
        /// The last session number of a slot.
        counter, Counter, u64
    );
    read!(
        /// A session's head.
        head, Head, HeadRow
    );
    read!(
        /// A run.
        run, Run, RunRow
    );
    read!(
        /// What one writer of a run has committed.
        epoch, Epoch, EpochRow
    );
    read!(
        /// Where a batch stands.
        batch, Batch, BatchRow
    );
    read!(
        /// A step of a run.
        step_of_run, Step, StepRow
    );
    read!(
        /// A message.
        message, Message, MessageRow
    );
    read!(
        /// A part.
        part, Part, PartRow
    );
    read!(
        /// An input.
        input, Input, InputRow
    );
    read!(
        /// A client key.
        key, Key, KeyRow
    );
    read!(
        /// A stop of an input that no run answers yet.
        tombstone, Tombstone, TombstoneRow
    );
    read!(
        /// A deadline.
        timer, Timer, TimerRow
    );
    read!(
        /// A request for an approval.
        approval, Approval, ApprovalRow
    );

    /// A part, to be changed in place: the one row that each delta writes.
    pub(super) fn part_mut(&mut self, key: &RowKey) -> Result<Option<&mut PartRow>, ViewError> {
        if !self.rows.contains_key(key) {
            let Some(part) = self.part(key)? else {
                return Ok(None);
            };
            self.put(key.clone(), Row::Part(part));
        }
        match self.rows.get_mut(key) {
            Some(Some(Row::Part(part))) => Ok(Some(part)),
            Some(Some(_)) => Err(damaged(key)),
            Some(None) | None => Ok(None),
        }
    }

    pub(super) fn put(&mut self, key: RowKey, row: Row) {
        self.rows.insert(key, Some(row));
    }

    pub(super) fn remove(&mut self, key: RowKey) {
        self.rows.insert(key, None);
    }

    pub(super) fn emit(&mut self, session: SessionKey, event: Event) {
        self.events.push((session, event));
    }

    /// Marks a session as deleted: on commit its rows and events of this transaction go too.
    pub(super) fn erase(&mut self, session: SessionKey) {
        self.erase = Some(session);
    }

    /// The first keys of a range, at most `limit`, in their order. Sees what earlier commands of
    /// the transaction did, and not this one: ask before writing such keys.
    pub(super) fn scan(&self, range: RowRange, limit: usize) -> Result<Vec<RowKey>, ViewError> {
        let ours = self.overlay.rows.range(range.lowest()..);
        let ours = ours.take_while(|(key, _)| range.holds(key));
        let mut removed = 0;
        let mut found = Vec::new();
        for (key, loaded) in ours.filter(|(_, loaded)| loaded.changed) {
            match loaded.row {
                Some(_) => found.push(key.clone()),
                None => removed += 1,
            }
            // What stands behind cannot be among the first, and a burst has thousands there.
            if found.len() >= limit {
                break;
            }
        }
        // The view still holds what earlier commands removed, so ask for that many more.
        let scan = || self.view.scan(range, limit.saturating_add(removed));
        for key in guard::read(scan)? {
            if !range.holds(&key) {
                return Err(ViewError(format!("{key:?} in a scan of {range:?}")));
            }
            if !self.overlay.rows.get(&key).is_some_and(|of| of.changed) {
                found.push(key);
            }
        }
        found.sort();
        found.truncate(limit);
        Ok(found)
    }
}
