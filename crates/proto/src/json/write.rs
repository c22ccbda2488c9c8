//! Words of `core` as JSON, borrowed: a room writes many events, and copies none of them.

use std::fmt;

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use everwire_core::clock::Timestamp;
use everwire_core::control::{InputRef, Request, Target};
use everwire_core::event::{Body, Data, Draft, Event, Raw};
use everwire_core::position::{Offset, SessionEpoch};
use everwire_core::{Details, ParticipantId, Refusal, RunId, StepId};
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;
use time::OffsetDateTime;

use crate::field::TIME_MS_MAX;

/// The value as JSON bytes.
pub(crate) fn bytes(value: &impl Serialize, capacity: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(capacity);
    serde_json::to_writer(&mut bytes, value)
        .expect("a vector takes every byte, and our maps have text keys");
    bytes
}

/// The value as JSON text.
pub(crate) fn text(value: &impl Serialize) -> String {
    String::from_utf8(bytes(value, 256)).expect("JSON is UTF-8")
}

/// RFC 3339 in UTC with milliseconds.
pub(crate) struct Rfc3339(pub(crate) Timestamp);

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = i128::from(self.0.0.min(TIME_MS_MAX));
        let time = OffsetDateTime::from_unix_timestamp_nanos(ms * 1_000_000)
            .expect("up to the year 9999 every time has a date");
        let (year, month, day) = time.to_calendar_date();
        let (hour, minute, second, ms) = time.to_hms_milli();
        let month = u8::from(month);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z"
        )
    }
}

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Base64 with padding.
struct Base64<'a>(&'a [u8]);

impl Serialize for Base64<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(self.0, &STANDARD))
    }
}

/// JSON text, as it was written. It was checked when it came in; should it be none all the
/// same, it is written as a string, so that the frame around it stays whole.
struct AsWritten<'a>(&'a str);

impl Serialize for AsWritten<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serde_json::from_str::<&RawValue>(self.0) {
            Ok(raw) => raw.serialize(serializer),
            Err(_) => serializer.serialize_str(self.0),
        }
    }
}

/// A session epoch as its text.
pub(crate) struct EpochText(pub(crate) SessionEpoch);

impl Serialize for EpochText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

// === Events ===

#[derive(Serialize)]
struct AuthorJson<'a> {
    participant: &'a str,
    kind: &'static str,
}

/// An event.
#[derive(Serialize)]
pub(crate) struct EventJson<'a> {
    offset: u64,
    time: Rfc3339,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_epoch: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    author: AuthorJson<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a str>,
    visibility: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    format: &'a str,
    codec: &'static str,
    body: BodyJson<'a>,
}

impl<'a> EventJson<'a> {
    pub(crate) fn new(event: &'a Event) -> Self {
        let stamp = event.run.as_ref();
        Self {
            offset: event.offset.get(),
            time: Rfc3339(event.time),
            kind: event.kind().as_str(),
            run: stamp.map(|stamp| stamp.run.as_str()),
            run_epoch: stamp.map(|stamp| stamp.run_epoch.0),
            seq: stamp.and_then(|stamp| stamp.seq).map(|seq| seq.0),
            author: AuthorJson {
                participant: event.author.participant.as_str(),
                kind: event.author.kind.as_str(),
            },
            parent: event.parent.as_ref().map(|parent| parent.as_str()),
            visibility: event.visibility.as_str(),
            format: &event.format,
            codec: event.codec.as_str(),
            body: BodyJson::new(&event.body, event.raw.as_ref()),
        }
    }
}

/// A draft.
#[derive(Serialize)]
pub(crate) struct DraftJson<'a> {
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a str>,
    visibility: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    format: &'a str,
    codec: &'static str,
    body: BodyJson<'a>,
}

impl<'a> DraftJson<'a> {
    pub(crate) fn new(draft: &'a Draft) -> Self {
        Self {
            kind: draft.body.kind().as_str(),
            parent: draft.parent.as_ref().map(|parent| parent.as_str()),
            visibility: draft.visibility.as_str(),
            format: &draft.format,
            codec: draft.codec.as_str(),
            body: BodyJson::new(&draft.body, draft.raw.as_ref()),
        }
    }
}

#[derive(Serialize)]
struct RawJson<'a> {
    format: &'a str,
    bytes: Base64<'a>,
}

/// The fields of every body, in one order; each kind sets its own.
#[derive(Default, Serialize)]
struct BodyJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subtree: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    input_by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    all: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    graceful_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    part_kind: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    approval: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action_hash: Option<&'a str>,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    approvers: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    within_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline: Option<Rfc3339>,
    #[serde(skip_serializing_if = "Option::is_none")]
    outcome: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    on_expiry: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    signal_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta: Option<AsWritten<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    meta_base64: Option<Base64<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<AsWritten<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<Base64<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw: Option<RawJson<'a>>,
}

impl<'a> BodyJson<'a> {
    #[expect(
        clippy::too_many_lines,
        reason = "a table: one short arm for each kind of event"
    )]
    fn new(body: &'a Body, raw: Option<&'a Raw>) -> Self {
        let mut json = Self {
            raw: raw.map(|raw| RawJson {
                format: &raw.format,
                bytes: Base64(&raw.bytes),
            }),
            ..Self::default()
        };
        match body {
            Body::RunStarted {
                input,
                parent,
                meta,
            } => json.of_start(input.as_ref(), parent.as_ref(), meta.as_ref()),
            Body::RunClaimed | Body::RunOrphaned | Body::RunResumed | Body::RunCompleted => {},
            Body::RunSuspended { reason, note } => {
                json.reason = Some(reason.as_str());
                json.note = note.as_deref();
            },
            Body::RunEpilogue { data } => json.with_data(data.as_ref()),
            Body::RunFailed { reason } => json.reason = Some(reason),
            Body::RunCancelled { cancel_offset } => json.cancel_offset = Some(cancel_offset.get()),
            Body::StepStart {
                step,
                attempt,
                name,
            } => json.of_step(step, Some(*attempt), name.as_deref()),
            Body::StepEnd {
                step,
                status,
                reason,
            } => {
                json.of_step(step, None, None);
                json.status = Some(status.as_str());
                json.reason = reason.as_deref();
            },
            Body::MessageStart { message, role } => {
                json.message = Some(message.as_str());
                json.role = Some(role.as_str());
            },
            Body::MessageEnd { message, status } => {
                json.message = Some(message.as_str());
                json.status = Some(status.as_str());
            },
            Body::PartStart {
                message,
                part,
                kind,
                name,
                data,
            } => {
                json.of_part(message.as_str(), part.as_str(), data.as_ref());
                json.part_kind = Some(kind.as_str());
                json.name = name.as_deref();
            },
            Body::PartDelta {
                message,
                part,
                position,
                text,
            } => {
                json.of_part(message.as_str(), part.as_str(), None);
                json.position = Some(*position);
                json.text = Some(text);
            },
            Body::PartEnd {
                message,
                part,
                data,
            } => json.of_part(message.as_str(), part.as_str(), data.as_ref()),
            Body::Input { input, text, data } => {
                json.input = Some(input.as_str());
                json.text = Some(text);
                json.with_data(data.as_ref());
            },
            Body::SignalCancel { target, grace_ms } => {
                json.with_target(target);
                json.graceful_ms = *grace_ms;
            },
            Body::SignalPause { target } | Body::SignalResume { target } => {
                json.with_target(target);
            },
            Body::ApprovalRequested(request) => json.of_request(request),
            Body::ApprovalResolved {
                approval,
                outcome,
                note,
                on_expiry,
            } => {
                json.approval = Some(approval.as_str());
                json.outcome = Some(outcome.as_str());
                json.note = note.as_deref();
                json.on_expiry = on_expiry.map(|verdict| verdict.as_str());
            },
            Body::SignalObserved { signal_offset } => {
                json.signal_offset = Some(signal_offset.get());
            },
            Body::App { name, data } => {
                json.name = Some(name);
                json.with_data(data.as_ref());
            },
        }
        json
    }

    fn of_start(
        &mut self,
        input: Option<&'a InputRef>,
        parent: Option<&'a RunId>,
        meta: Option<&'a Data>,
    ) {
        self.with_input(input);
        self.parent = parent.map(|parent| parent.as_str());
        (self.meta, self.meta_base64) = written(meta);
    }

    fn of_step(&mut self, step: &'a StepId, attempt: Option<u32>, name: Option<&'a str>) {
        self.step = Some(step.as_str());
        self.attempt = attempt;
        self.name = name;
    }

    fn of_request(&mut self, request: &'a Request) {
        let approvers = request.approvers.iter();
        self.approval = Some(request.approval.as_str());
        self.action = Some(&request.action);
        self.action_hash = Some(request.action_hash.as_str());
        self.approvers = approvers.map(ParticipantId::as_str).collect();
        self.within_ms = Some(request.within_ms);
        self.deadline = Some(Rfc3339(request.deadline));
        self.on_expiry = Some(request.on_expiry.as_str());
        self.with_data(request.data.as_ref());
    }

    fn with_target(&mut self, target: &'a Target) {
        match target {
            Target::Run(run) => self.run = Some(run.as_str()),
            Target::Subtree(root) => self.subtree = Some(root.as_str()),
            Target::Input(input) => self.with_input(Some(input)),
            Target::Session => self.all = Some(true),
        }
    }

    fn of_part(&mut self, message: &'a str, part: &'a str, data: Option<&'a Data>) {
        self.message = Some(message);
        self.part = Some(part);
        self.with_data(data);
    }

    fn with_data(&mut self, data: Option<&'a Data>) {
        (self.data, self.data_base64) = written(data);
    }

    fn with_input(&mut self, input: Option<&'a InputRef>) {
        self.input = input.map(|input| input.input.as_str());
        let author = input.and_then(|input| input.author.as_ref());
        self.input_by = author.map(|author| author.as_str());
    }
}

/// A payload of the application's: JSON as it was written, or other bytes.
fn written(data: Option<&Data>) -> (Option<AsWritten<'_>>, Option<Base64<'_>>) {
    match data {
        Some(Data::Json(text)) => (Some(AsWritten(text)), None),
        Some(Data::Binary(bytes)) => (None, Some(Base64(bytes))),
        None => (None, None),
    }
}

// === Refusals ===

/// A refusal: the body of an HTTP error.
#[derive(Serialize)]
pub(crate) struct RefusalJson<'a> {
    code: &'static str,
    message: &'a str,
    advice: &'static str,
    details: DetailsJson<'a>,
}

impl<'a> RefusalJson<'a> {
    pub(crate) fn new(refusal: &'a Refusal) -> Self {
        Self {
            code: refusal.code.as_str(),
            message: &refusal.message,
            advice: refusal.advice().as_str(),
            details: DetailsJson::new(&refusal.details),
        }
    }
}

/// What stands in a refusal's `details`.
#[derive(Serialize)]
pub(crate) struct DetailsJson<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cancel_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_epoch: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run_epoch: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seq: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    last_offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offset: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    by: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    earliest: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tail: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_epoch: Option<EpochText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leader: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    map_version: Option<u64>,
}

impl<'a> DetailsJson<'a> {
    pub(crate) fn new(details: &'a Details) -> Self {
        Self {
            cancel_offset: details.cancel_offset.map(Offset::get),
            next_epoch: details.next_epoch.map(|epoch| epoch.0),
            run_epoch: details.run_epoch.map(|epoch| epoch.0),
            expected_seq: details.expected_seq.map(|seq| seq.0),
            last_seq: details.last_seq.map(|seq| seq.0),
            last_offset: details.last_offset.map(Offset::get),
            state: details.state,
            offset: details.offset.map(Offset::get),
            by: details.by.as_ref().map(|by| by.as_str()),
            earliest: details.earliest.map(Offset::get),
            tail: details.tail.map(Offset::get),
            session_epoch: details.session_epoch.map(EpochText),
            limit: details.limit,
            leader: details.leader.as_deref(),
            term: details.term,
            map_version: details.map_version,
        }
    }
}
