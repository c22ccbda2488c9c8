//! Events, drafts and cursors: the words of `core` and their messages in `everwire.v1`.
//!
//! Comes in: messages that nobody has checked. Goes out: words of `core`, or MALFORMED that
//! names the field as `docs/protocol/edge.md` does. Never: a payload in a message.

#[cfg(test)]
mod tests;

use std::borrow::Borrow;

use everwire_core::Refusal;
use everwire_core::clock::Timestamp;
use everwire_core::control::{InputRef, Target};
use everwire_core::event::{Author, Body, Data, Draft, Event, Raw, RunStamp};
use everwire_core::ids::{Key, RunId};
use everwire_core::position::{Cursor, Offset};

use crate::control::{input_ref, target_from, target_to};
use crate::field::{self, malformed};
use crate::signal::{aim_from, aim_to, request_from, request_to, resolved_from};
use crate::v1::draft::Body as Wire;
use crate::{v1, words};

/// The range that a delivery of events covers; `from` = `to` + 1 in a sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Covered {
    /// The first offset.
    pub from: Offset,
    /// The last offset.
    pub to: Offset,
    /// The last committed offset.
    pub tail: Offset,
    /// How long ago the replica heard its leader, milliseconds.
    pub leader_seen_ms: u32,
}

/// Where a message comes from: what our own disk holds was checked when it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Wire,
    Disk,
}

// === To the wire ===

impl From<&Event> for v1::Event {
    fn from(event: &Event) -> Self {
        Self {
            offset: event.offset.get(),
            time_ms: event.time.0,
            run: event.run.as_ref().map(|stamp| v1::RunStamp {
                run: stamp.run.to_string(),
                run_epoch: stamp.run_epoch.0,
                seq: stamp.seq.map(|seq| seq.0),
            }),
            author: Some((&event.author).into()),
            draft: Some(v1::Draft {
                parent: text(event.parent.as_ref()),
                visibility: words::visibility_to(event.visibility).into(),
                format: event.format.clone(),
                codec: words::codec_to(event.codec).into(),
                raw: event.raw.as_ref().map(raw_to),
                body: Some(body_to(&event.body)),
            }),
        }
    }
}

impl From<&Draft> for v1::Draft {
    fn from(draft: &Draft) -> Self {
        Self {
            parent: text(draft.parent.as_ref()),
            visibility: words::visibility_to(draft.visibility).into(),
            format: draft.format.clone(),
            codec: words::codec_to(draft.codec).into(),
            raw: draft.raw.as_ref().map(raw_to),
            body: Some(body_to(&draft.body)),
        }
    }
}

impl From<&Author> for v1::Author {
    fn from(author: &Author) -> Self {
        Self {
            participant: author.participant.to_string(),
            kind: words::participant_kind_to(author.kind).into(),
        }
    }
}

impl From<Cursor> for v1::Cursor {
    fn from(cursor: Cursor) -> Self {
        Self {
            session_epoch: text(cursor.session_epoch.as_ref()),
            offset: cursor.offset.get(),
        }
    }
}

/// An optional name as text; absent is the empty string.
pub(crate) fn text(name: Option<&impl ToString>) -> String {
    name.map(ToString::to_string).unwrap_or_default()
}

impl From<&Data> for v1::Data {
    fn from(data: &Data) -> Self {
        let data = match data {
            Data::Json(text) => v1::data::Data::Json(text.clone()),
            Data::Binary(bytes) => v1::data::Data::Binary(bytes.clone()),
        };
        Self { data: Some(data) }
    }
}

fn raw_to(raw: &Raw) -> v1::Raw {
    v1::Raw {
        format: raw.format.clone(),
        bytes: raw.bytes.clone(),
    }
}

pub(crate) fn data_to(data: Option<&Data>) -> Option<v1::Data> {
    data.map(v1::Data::from)
}

fn run_started(input: Option<&InputRef>, parent: Option<&RunId>, meta: Option<&Data>) -> Wire {
    Wire::RunStarted(v1::RunStarted {
        input: text(input.map(|input| &input.input)),
        input_by: text(input.and_then(|input| input.author.as_ref())),
        parent: text(parent),
        meta: data_to(meta),
    })
}

fn signal_cancel(target: &Target, grace_ms: Option<u32>) -> Wire {
    Wire::SignalCancel(v1::SignalCancel {
        target: Some(target_to(target)),
        graceful_ms: grace_ms.unwrap_or(0),
    })
}

#[expect(
    clippy::too_many_lines,
    reason = "a table: one short arm for each kind of event"
)]
fn body_to(body: &Body) -> Wire {
    match body {
        Body::RunStarted {
            input,
            parent,
            meta,
        } => run_started(input.as_ref(), parent.as_ref(), meta.as_ref()),
        Body::RunClaimed => Wire::RunClaimed(v1::RunClaimed {}),
        Body::RunOrphaned => Wire::RunOrphaned(v1::RunOrphaned {}),
        Body::RunEpilogue { data } => Wire::RunEpilogue(v1::RunEpilogue {
            data: data_to(data.as_ref()),
        }),
        Body::StepStart {
            step,
            attempt,
            name,
        } => Wire::StepStart(v1::StepStart {
            step: step.to_string(),
            attempt: *attempt,
            name: name.clone(),
        }),
        Body::StepEnd {
            step,
            status,
            reason,
        } => Wire::StepEnd(v1::StepEnd {
            step: step.to_string(),
            status: words::step_status_to(*status).into(),
            reason: reason.clone(),
        }),
        Body::RunSuspended { reason, note } => Wire::RunSuspended(v1::RunSuspended {
            reason: words::suspend_reason_to(*reason).into(),
            note: note.clone(),
        }),
        Body::RunResumed => Wire::RunResumed(v1::RunResumed {}),
        Body::RunCompleted => Wire::RunCompleted(v1::RunCompleted {}),
        Body::RunFailed { reason } => Wire::RunFailed(v1::RunFailed {
            reason: reason.clone(),
        }),
        Body::RunCancelled { cancel_offset } => Wire::RunCancelled(v1::RunCancelled {
            cancel_offset: cancel_offset.get(),
        }),
        Body::MessageStart { message, role } => Wire::MessageStart(v1::MessageStart {
            message: message.to_string(),
            role: words::role_to(*role).into(),
        }),
        Body::MessageEnd { message, status } => Wire::MessageEnd(v1::MessageEnd {
            message: message.to_string(),
            status: words::message_status_to(*status).into(),
        }),
        Body::PartStart {
            message,
            part,
            kind,
            name,
            data,
        } => Wire::PartStart(v1::PartStart {
            message: message.to_string(),
            part: part.to_string(),
            kind: words::part_kind_to(*kind).into(),
            name: name.clone(),
            data: data_to(data.as_ref()),
        }),
        Body::PartDelta {
            message,
            part,
            position,
            text,
        } => Wire::PartDelta(v1::PartDelta {
            message: message.to_string(),
            part: part.to_string(),
            position: *position,
            text: text.clone(),
        }),
        Body::PartEnd {
            message,
            part,
            data,
        } => Wire::PartEnd(v1::PartEnd {
            message: message.to_string(),
            part: part.to_string(),
            data: data_to(data.as_ref()),
        }),
        Body::Input { input, text, data } => Wire::Input(v1::Input {
            input: input.to_string(),
            text: text.clone(),
            data: data_to(data.as_ref()),
        }),
        Body::SignalCancel { target, grace_ms } => signal_cancel(target, *grace_ms),
        Body::SignalPause { target } => Wire::SignalPause(aim_to(target)),
        Body::SignalResume { target } => Wire::SignalResume(aim_to(target)),
        Body::ApprovalRequested(request) => Wire::ApprovalRequested(request_to(request)),
        Body::ApprovalResolved {
            approval,
            outcome,
            note,
            on_expiry,
        } => Wire::ApprovalResolved(v1::ApprovalResolved {
            approval: approval.to_string(),
            outcome: words::approval_outcome_to(*outcome).into(),
            note: note.clone(),
            on_expiry: on_expiry.map_or(0, |verdict| words::verdict_to(verdict).into()),
        }),
        Body::SignalObserved { signal_offset } => Wire::SignalObserved(v1::SignalObserved {
            signal_offset: signal_offset.get(),
        }),
        Body::App { name, data } => Wire::App(v1::App {
            name: name.clone(),
            data: data_to(data.as_ref()),
        }),
    }
}

// === From the wire ===

impl TryFrom<v1::Event> for Event {
    type Error = Refusal;

    fn try_from(event: v1::Event) -> Result<Self, Refusal> {
        event_from(event, Source::Wire)
    }
}

/// Checks the draft's shape as well ([`Draft::check_shape`]). A `position` and an `attempt` are
/// dropped: the server stamps them.
impl TryFrom<v1::Draft> for Draft {
    type Error = Refusal;

    fn try_from(draft: v1::Draft) -> Result<Self, Refusal> {
        let mut draft = draft_from(draft, Source::Wire)?;
        forget_stamps(&mut draft);
        draft.check_shape()?;
        Ok(draft)
    }
}

impl TryFrom<v1::Author> for Author {
    type Error = Refusal;

    fn try_from(author: v1::Author) -> Result<Self, Refusal> {
        Ok(Self {
            participant: field::name("author.participant", &author.participant)?,
            kind: words::participant_kind_from("author.kind", author.kind)?,
        })
    }
}

impl TryFrom<v1::Cursor> for Cursor {
    type Error = Refusal;

    fn try_from(cursor: v1::Cursor) -> Result<Self, Refusal> {
        Ok(Self {
            session_epoch: field::session_epoch("cursor.session_epoch", &cursor.session_epoch)?,
            offset: field::offset("cursor.offset", cursor.offset)?,
        })
    }
}

/// A draft's position, attempt or deadline is the server's to stamp.
pub(crate) fn forget_stamps(draft: &mut Draft) {
    match &mut draft.body {
        Body::PartDelta { position, .. } => *position = 0,
        Body::StepStart { attempt, .. } => *attempt = 0,
        Body::ApprovalRequested(request) => request.deadline = Timestamp(0),
        _ => {},
    }
}

pub(crate) fn event_from(event: v1::Event, source: Source) -> Result<Event, Refusal> {
    let author = event
        .author
        .ok_or_else(|| malformed("author", "is missing"))?;
    let draft = event.draft.ok_or_else(|| malformed("body", "is missing"))?;
    let draft = draft_from(draft, source)?;
    Ok(Event {
        offset: field::offset("offset", event.offset)?,
        time: match source {
            Source::Wire => field::time("time", event.time_ms)?,
            Source::Disk => Timestamp(event.time_ms),
        },
        run: event.run.map(stamp_from).transpose()?,
        author: author.try_into()?,
        parent: draft.parent,
        visibility: draft.visibility,
        format: draft.format,
        codec: draft.codec,
        body: draft.body,
        raw: draft.raw,
    })
}

fn stamp_from(stamp: v1::RunStamp) -> Result<RunStamp, Refusal> {
    Ok(RunStamp {
        run: field::name("run", &stamp.run)?,
        run_epoch: field::run_epoch("run_epoch", stamp.run_epoch)?,
        seq: stamp.seq.map(|seq| field::seq("seq", seq)).transpose()?,
    })
}

pub(crate) fn draft_from(draft: v1::Draft, source: Source) -> Result<Draft, Refusal> {
    let body = draft
        .body
        .ok_or_else(|| malformed("body", "is missing, or of a kind that is not known here"))?;
    Ok(Draft {
        parent: field::optional_name("parent", &draft.parent)?,
        visibility: words::visibility_from("visibility", draft.visibility)?,
        format: draft.format,
        codec: words::codec_from("codec", draft.codec)?,
        body: body_from(body, source)?,
        raw: draft.raw.map(|raw| Raw {
            format: raw.format,
            bytes: raw.bytes,
        }),
    })
}

/// Reads a payload of the application's; a refusal names `field`.
pub fn data(field: &str, data: Option<v1::Data>) -> Result<Option<Data>, Refusal> {
    match data.and_then(|data| data.data) {
        None => Ok(None),
        Some(v1::data::Data::Json(text)) => {
            field::json(field, &text)?;
            Ok(Some(Data::Json(text)))
        },
        Some(v1::data::Data::Binary(bytes)) => Ok(Some(Data::Binary(bytes))),
    }
}

pub(crate) fn data_from(data: Option<v1::Data>, source: Source) -> Result<Option<Data>, Refusal> {
    let Some(data) = data else { return Ok(None) };
    match data.data {
        Some(v1::data::Data::Json(text)) => {
            if source == Source::Wire {
                field::json("body.data", &text)?;
            }
            Ok(Some(Data::Json(text)))
        },
        Some(v1::data::Data::Binary(bytes)) => Ok(Some(Data::Binary(bytes))),
        None => Err(malformed("body.data", "is neither json nor binary")),
    }
}

fn step_start_from(body: v1::StepStart) -> Result<Body, Refusal> {
    Ok(Body::StepStart {
        step: field::name("body.step", &body.step)?,
        attempt: body.attempt,
        name: body.name,
    })
}

fn step_end_from(body: v1::StepEnd) -> Result<Body, Refusal> {
    Ok(Body::StepEnd {
        step: field::name("body.step", &body.step)?,
        status: words::step_status_from("body.status", body.status)?,
        reason: body.reason,
    })
}

#[expect(
    clippy::too_many_lines,
    reason = "a table: one short arm for each kind of event"
)]
fn body_from(body: Wire, source: Source) -> Result<Body, Refusal> {
    Ok(match body {
        Wire::RunStarted(body) => Body::RunStarted {
            input: input_ref(&body.input, &body.input_by)?,
            parent: field::optional_name("body.parent", &body.parent)?,
            meta: data_from(body.meta, source)?,
        },
        Wire::RunClaimed(v1::RunClaimed {}) => Body::RunClaimed,
        Wire::RunOrphaned(v1::RunOrphaned {}) => Body::RunOrphaned,
        Wire::RunEpilogue(body) => Body::RunEpilogue {
            data: data_from(body.data, source)?,
        },
        Wire::RunSuspended(body) => Body::RunSuspended {
            reason: words::suspend_reason_from("body.reason", body.reason)?,
            note: body.note,
        },
        Wire::RunResumed(v1::RunResumed {}) => Body::RunResumed,
        Wire::RunCompleted(v1::RunCompleted {}) => Body::RunCompleted,
        Wire::RunFailed(body) => Body::RunFailed {
            reason: body.reason,
        },
        Wire::RunCancelled(body) => Body::RunCancelled {
            cancel_offset: field::offset("body.cancel_offset", body.cancel_offset)?,
        },
        Wire::StepStart(body) => step_start_from(body)?,
        Wire::StepEnd(body) => step_end_from(body)?,
        Wire::MessageStart(body) => Body::MessageStart {
            message: field::name("body.message", &body.message)?,
            role: words::role_from("body.role", body.role)?,
        },
        Wire::MessageEnd(body) => Body::MessageEnd {
            message: field::name("body.message", &body.message)?,
            status: words::message_status_from("body.status", body.status)?,
        },
        Wire::PartStart(body) => Body::PartStart {
            message: field::name("body.message", &body.message)?,
            part: field::name("body.part", &body.part)?,
            kind: words::part_kind_from("body.part_kind", body.kind)?,
            name: body.name,
            data: data_from(body.data, source)?,
        },
        Wire::PartDelta(body) => Body::PartDelta {
            message: field::name("body.message", &body.message)?,
            part: field::name("body.part", &body.part)?,
            position: field::number("body.position", body.position)?,
            text: body.text,
        },
        Wire::PartEnd(body) => Body::PartEnd {
            message: field::name("body.message", &body.message)?,
            part: field::name("body.part", &body.part)?,
            data: data_from(body.data, source)?,
        },
        Wire::Input(body) => Body::Input {
            input: field::name("body.input", &body.input)?,
            text: body.text,
            data: data_from(body.data, source)?,
        },
        Wire::SignalCancel(body) => Body::SignalCancel {
            target: target_from(body.target)?,
            grace_ms: (body.graceful_ms > 0).then_some(body.graceful_ms),
        },
        Wire::SignalPause(aim) => Body::SignalPause {
            target: aim_from(aim)?,
        },
        Wire::SignalResume(aim) => Body::SignalResume {
            target: aim_from(aim)?,
        },
        Wire::ApprovalRequested(body) => request_from(body, source)?,
        Wire::ApprovalResolved(body) => resolved_from(body)?,
        Wire::SignalObserved(body) => Body::SignalObserved {
            signal_offset: field::offset("body.signal_offset", body.signal_offset)?,
        },
        Wire::App(body) => Body::App {
            name: body.name,
            data: data_from(body.data, source)?,
        },
    })
}

// === Deliveries ===

/// A delivery of events as a message. Takes events, references or `Arc`s of them.
pub fn events_to_wire<E: Borrow<Event>>(range: Covered, events: &[E]) -> v1::Events {
    v1::Events {
        from: range.from.get(),
        to: range.to.get(),
        tail: range.tail.get(),
        events: events.iter().map(|event| event.borrow().into()).collect(),
        leader_seen_ms: range.leader_seen_ms,
    }
}

/// A delivery of events from a message. Whether ranges follow densely is the reader's check.
pub fn events_from_wire(events: v1::Events) -> Result<(Covered, Vec<Event>), Refusal> {
    let range = Covered {
        from: field::offset("from", events.from)?,
        to: field::offset("to", events.to)?,
        tail: field::offset("tail", events.tail)?,
        leader_seen_ms: events.leader_seen_ms,
    };
    let events = events
        .events
        .into_iter()
        .map(Event::try_from)
        .collect::<Result<_, _>>()?;
    Ok((range, events))
}

// === Posts and their hashes ===

/// Checks what may be posted outside runs: an input with a key, or an `app` event.
pub fn check_posted(draft: &Draft, key: Option<&Key>) -> Result<(), Refusal> {
    match draft.body {
        Body::Input { .. } if key.is_none() => {
            Err(malformed("key", "an input needs an idempotency key"))
        },
        Body::Input { .. } | Body::App { .. } => Ok(()),
        _ => Err(malformed("kind", "only input and app can be posted")),
    }
}

/// Bytes of payload of a draft as it came, good or bad: what it costs in publish credit. The
/// same count as [`Draft::payload_bytes`].
pub fn payload_bytes(draft: &v1::Draft) -> usize {
    let data = |data: &Option<v1::Data>| match data.as_ref().and_then(|data| data.data.as_ref()) {
        Some(v1::data::Data::Json(text)) => text.len(),
        Some(v1::data::Data::Binary(bytes)) => bytes.len(),
        None => 0,
    };
    let body = match &draft.body {
        Some(Wire::RunFailed(body)) => body.reason.len(),
        Some(Wire::PartStart(body)) => body.name.as_ref().map_or(0, String::len) + data(&body.data),
        Some(Wire::PartDelta(body)) => body.text.len(),
        Some(Wire::PartEnd(body)) => data(&body.data),
        Some(Wire::Input(body)) => body.text.len() + data(&body.data),
        Some(Wire::App(body)) => body.name.len() + data(&body.data),
        Some(Wire::RunStarted(body)) => data(&body.meta),
        Some(Wire::RunEpilogue(body)) => data(&body.data),
        Some(Wire::StepStart(body)) => body.name.as_ref().map_or(0, String::len),
        Some(Wire::StepEnd(body)) => body.reason.as_ref().map_or(0, String::len),
        Some(Wire::RunSuspended(body)) => body.note.as_ref().map_or(0, String::len),
        Some(Wire::ApprovalRequested(body)) => body.action.len() + data(&body.data),
        Some(Wire::ApprovalResolved(body)) => body.note.as_ref().map_or(0, String::len),
        Some(
            Wire::RunClaimed(_)
            | Wire::RunOrphaned(_)
            | Wire::RunResumed(_)
            | Wire::RunCompleted(_)
            | Wire::RunCancelled(_)
            | Wire::MessageStart(_)
            | Wire::MessageEnd(_)
            | Wire::SignalCancel(_)
            | Wire::SignalPause(_)
            | Wire::SignalResume(_)
            | Wire::SignalObserved(_),
        )
        | None => 0,
    };
    body + draft.raw.as_ref().map_or(0, |raw| raw.bytes.len())
}
