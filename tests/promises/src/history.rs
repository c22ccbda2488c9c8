//! The checker: what writers were told, what the log holds and what readers were given must be
//! one history.
//!
//! Comes in: acks with the drafts that they were for, the log, and what each reader saw on each
//! of its attachments. Goes out: every way in which they contradict each other or the rules.
//! Never: a server; so it is itself tested against histories that are broken on purpose.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use everwire_core::{
    Body, Draft, Event, MessageId, Offset, PartId, RunEpoch, RunId, Seq, SessionName,
};
use everwire_proto::storage::encode_event;

/// Violations shown when a check fails, at most.
const SHOWN_MAX: usize = 10;

/// A piece of output that its writer was told is durable, and where.
#[derive(Clone, Debug)]
pub struct Acked {
    /// The run.
    pub run: RunId,
    /// The writer's epoch.
    pub run_epoch: RunEpoch,
    /// The writer's seq.
    pub seq: Seq,
    /// Where it was said to stand.
    pub offset: Offset,
    /// What was sent.
    pub draft: Draft,
}

/// What a reader was given between one attach and the end of that connection.
#[derive(Clone, Debug, Default)]
pub struct Attachment {
    /// The last offset that the reader had seen; `None` when it came without a cursor.
    pub cursor: Option<Offset>,
    /// The ranges that the server said it covers, in the order in which they came; for an event
    /// stream, one for each event.
    pub ranges: Vec<(Offset, Offset)>,
    /// The events, in the order in which they came.
    pub events: Vec<Event>,
}

impl Attachment {
    /// The last offset that it covered.
    fn reached(&self) -> Offset {
        let last = self.ranges.last().map(|(_, to)| *to);
        last.or(self.cursor).unwrap_or(Offset::ZERO)
    }
}

/// A reader: its attachments, one after the other.
#[derive(Clone, Debug)]
pub struct Reader {
    /// What it is called in violations.
    pub name: String,
    /// What it was given.
    pub attachments: Vec<Attachment>,
}

/// One session's history from all sides.
#[derive(Clone, Copy, Debug)]
pub struct History<'a> {
    /// The log, whole, as it was read.
    pub log: &'a [Event],
    /// What writers were told.
    pub acked: &'a [Acked],
    /// What readers were given; each must have come to the end of the log.
    pub readers: &'a [Reader],
}

/// A way in which a history is not one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Violation {
    /// Offsets do not count 1, 2, 3, …
    NotDense {
        /// The offset that should stand there.
        expected: Offset,
        /// The one that does.
        found: Offset,
    },
    /// The same (run, epoch, seq) stands twice.
    Twice(RunId, RunEpoch, Seq, Offset),
    /// A seq stands behind one that is not the one before it.
    SeqGap(RunId, RunEpoch, Seq, Offset),
    /// An acked event is not in the log.
    Lost(RunId, RunEpoch, Seq, Offset),
    /// An acked event stands elsewhere.
    Moved(RunId, RunEpoch, Seq, Offset, Offset),
    /// An acked event does not say what was sent.
    Altered(RunId, RunEpoch, Seq, Offset),
    /// A writer's output stands above its run's cancel.
    AfterCancel(RunId, Offset, Offset),
    /// A delta's position is not where its part's text stood.
    Position(Offset),
    /// A reader came back and was not given the exact rest.
    NotTheRest(String, Offset, Offset),
    /// A range does not begin where the last one ended, or ends before it begins.
    Range(String, Offset, Offset),
    /// An event stands outside the ranges, twice, or out of order.
    Stray(String, Offset),
    /// A range was covered, but this event of the log is not in it.
    Skipped(String, Offset),
    /// A reader saw other bytes than the log holds.
    Different(String, Offset),
    /// A reader did not come to the end of the log.
    Short(String, Offset, Offset),
}

impl History<'_> {
    /// Every violation, in no order of importance.
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = dense(self.log);
        found.extend(seqs(self.log));
        found.extend(cancels(self.log));
        found.extend(positions(self.log));
        found.extend(acks(self.log, self.acked));
        for reader in self.readers {
            found.extend(read(self.log, reader));
        }
        found
    }

    /// Fails with the first violations, if there are any.
    pub fn assert_sound(&self, session: &SessionName) {
        assert_none(session, &self.violations());
    }
}

/// Fails with the first violations, if there are any.
pub fn assert_none(session: &SessionName, violations: &[Violation]) {
    let shown = violations.iter().take(SHOWN_MAX);
    let shown: Vec<_> = shown.map(|one| format!("  {one}")).collect();
    let (count, shown) = (violations.len(), shown.join("\n"));
    assert!(count == 0, "{session}: {count} violations:\n{shown}");
}

/// Offsets count from 1 without a hole.
pub fn dense(log: &[Event]) -> Vec<Violation> {
    let mut expected = Offset::ZERO.next();
    let mut found = Vec::new();
    for event in log {
        if event.offset != expected {
            found.push(Violation::NotDense {
                expected,
                found: event.offset,
            });
        }
        expected = event.offset.next();
    }
    found
}

/// In each (run, epoch) the seqs count from 1, in the order of the offsets.
pub fn seqs(log: &[Event]) -> Vec<Violation> {
    let mut last: BTreeMap<(&RunId, RunEpoch), Seq> = BTreeMap::new();
    let mut found = Vec::new();
    for event in log {
        let Some(stamp) = &event.run else { continue };
        let Some(seq) = stamp.seq else { continue };
        let (run, epoch) = (&stamp.run, stamp.run_epoch);
        let last = last.entry((run, epoch)).or_default();
        if seq <= *last {
            found.push(Violation::Twice(run.clone(), epoch, seq, event.offset));
            continue;
        }
        if seq != last.next() {
            found.push(Violation::SeqGap(run.clone(), epoch, seq, event.offset));
        }
        *last = seq;
    }
    found
}

/// Nothing that a writer sent stands above the cancel of its run.
pub fn cancels(log: &[Event]) -> Vec<Violation> {
    let mut cancelled: BTreeMap<&RunId, Offset> = BTreeMap::new();
    let mut found = Vec::new();
    for event in log {
        match (&event.body, &event.run) {
            (Body::SignalCancel { target, .. }, _) => {
                if let Some(run) = target.run() {
                    cancelled.entry(run).or_insert(event.offset);
                }
            },
            // Of a stop of more than one run, or of one that had not begun.
            (Body::RunCancelled { cancel_offset }, Some(stamp)) => {
                cancelled.entry(&stamp.run).or_insert(*cancel_offset);
            },
            _ => {},
        }
        let wrote = event.run.as_ref().filter(|stamp| stamp.seq.is_some());
        let Some(stamp) = wrote.filter(|_| !matches!(event.body, Body::RunEpilogue { .. })) else {
            continue;
        };
        if let Some(at) = cancelled.get(&stamp.run) {
            let run = stamp.run.clone();
            found.push(Violation::AfterCancel(run, *at, event.offset));
        }
    }
    found
}

/// Every delta stands where the text of its part had come to.
pub fn positions(log: &[Event]) -> Vec<Violation> {
    let mut lengths: BTreeMap<(&MessageId, &PartId), u64> = BTreeMap::new();
    let mut found = Vec::new();
    for event in log {
        let Body::PartDelta {
            message,
            part,
            position,
            text,
        } = &event.body
        else {
            continue;
        };
        let length = lengths.entry((message, part)).or_default();
        if position != length {
            found.push(Violation::Position(event.offset));
        }
        *length = position.saturating_add(text.len() as u64);
    }
    found
}

/// Every acked event is in the log, where it was said to be and as it was sent. Works on a part
/// of the log too, if the acks lie in it.
pub fn acks(log: &[Event], acked: &[Acked]) -> Vec<Violation> {
    let first = log.first().map_or(1, |event| event.offset.get());
    let at = |offset: Offset| {
        let index = offset.get().checked_sub(first)?;
        let event = log.get(usize::try_from(index).ok()?)?;
        (event.offset == offset).then_some(event)
    };
    let is_it = |event: &Event, ack: &Acked| {
        event.run.as_ref().is_some_and(|stamp| {
            stamp.run == ack.run && stamp.run_epoch == ack.run_epoch && stamp.seq == Some(ack.seq)
        })
    };
    let mut found = Vec::new();
    for ack in acked {
        let (run, epoch, seq, offset) = (ack.run.clone(), ack.run_epoch, ack.seq, ack.offset);
        match at(offset).filter(|event| is_it(event, ack)) {
            Some(event) if says(event, &ack.draft) => {},
            Some(_) => found.push(Violation::Altered(run, epoch, seq, offset)),
            None => match log.iter().find(|event| is_it(event, ack)) {
                Some(event) => {
                    found.push(Violation::Moved(run, epoch, seq, offset, event.offset));
                },
                None => found.push(Violation::Lost(run, epoch, seq, offset)),
            },
        }
    }
    found
}

/// Whether an event says what its draft said. A delta's position is the server's.
fn says(event: &Event, draft: &Draft) -> bool {
    let mut body = event.body.clone();
    if let Body::PartDelta { position, .. } = &mut body {
        *position = 0;
    }
    body == draft.body
        && event.raw == draft.raw
        && event.format == draft.format
        && event.codec == draft.codec
        && event.parent == draft.parent
        && event.visibility == draft.visibility
}

/// A reader was given every event of the log exactly once, in order, with the log's bytes; after
/// each return exactly the rest.
pub fn read(log: &[Event], reader: &Reader) -> Vec<Violation> {
    let mut found = Vec::new();
    let name = || reader.name.clone();
    let logged: BTreeMap<Offset, &Event> = log.iter().map(|event| (event.offset, event)).collect();
    let mut reached = Offset::ZERO;
    for attachment in &reader.attachments {
        // Without a cursor a reader begins at the first event, which only the first time is no
        // repetition.
        let cursor = attachment.cursor.unwrap_or(Offset::ZERO);
        if cursor != reached {
            found.push(Violation::NotTheRest(name(), reached, cursor));
        }
        let mut next = cursor.next();
        let mut covered = BTreeSet::new();
        for (from, to) in &attachment.ranges {
            if *from != next || *to < from.previous() {
                found.push(Violation::Range(name(), *from, *to));
            }
            covered.extend((from.get()..=to.get()).filter_map(Offset::new));
            next = to.next();
        }
        let mut last = cursor;
        for event in &attachment.events {
            let due = covered.remove(&event.offset);
            if !due || event.offset <= last {
                found.push(Violation::Stray(name(), event.offset));
            }
            last = last.max(event.offset);
            let same = |logged: &&Event| encode_event(logged) == encode_event(event);
            if !logged.get(&event.offset).is_some_and(same) {
                found.push(Violation::Different(name(), event.offset));
            }
        }
        let skipped = covered.into_iter().map(|at| Violation::Skipped(name(), at));
        found.extend(skipped);
        reached = attachment.reached();
    }
    let tail = log.last().map_or(Offset::ZERO, |event| event.offset);
    if reached != tail {
        found.push(Violation::Short(name(), reached, tail));
    }
    found
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDense { expected, found } => {
                write!(f, "offset {found} stands where {expected} should")
            },
            Self::Twice(run, epoch, seq, at) => {
                write!(f, "{run}/{epoch}/{seq} stands again at {at}")
            },
            Self::SeqGap(run, epoch, seq, at) => {
                write!(
                    f,
                    "{run}/{epoch}/{seq} at {at} follows another than the one before"
                )
            },
            Self::Lost(run, epoch, seq, at) => {
                write!(f, "{run}/{epoch}/{seq} was acked at {at} and is lost")
            },
            Self::Moved(run, epoch, seq, at, found) => {
                write!(
                    f,
                    "{run}/{epoch}/{seq} was acked at {at} and stands at {found}"
                )
            },
            Self::Altered(run, epoch, seq, at) => {
                write!(f, "{run}/{epoch}/{seq} at {at} is not what was sent")
            },
            Self::AfterCancel(run, cancel, at) => {
                write!(f, "output of {run} stands at {at}, cancelled at {cancel}")
            },
            Self::Position(at) => write!(f, "the position of the delta at {at} is wrong"),
            Self::NotTheRest(reader, reached, cursor) => {
                write!(f, "{reader} had seen {reached} and came back with {cursor}")
            },
            Self::Range(reader, from, to) => {
                write!(f, "{reader} was given {from}..{to} where another was due")
            },
            Self::Stray(reader, at) => write!(f, "{reader} was given {at} where it was not due"),
            Self::Skipped(reader, at) => write!(f, "{reader} was not given {at}"),
            Self::Different(reader, at) => {
                write!(f, "{reader} saw other bytes at {at} than the log holds")
            },
            Self::Short(reader, reached, tail) => {
                write!(f, "{reader} came to {reached}, the log to {tail}")
            },
        }
    }
}
