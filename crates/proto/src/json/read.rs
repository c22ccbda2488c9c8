//! Words of `core` from JSON: each object is first taken apart into fields, so that a refusal
//! can name the field. (serde's own messages quote values, and are never passed on.)

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use everwire_core::Refusal;
use everwire_core::clock::Timestamp;
use everwire_core::control::{Cancel, Request};
use everwire_core::event::Kind;
use everwire_core::event::{
    ApprovalOutcome, Author, Body, Codec, Data, Draft, Event, MessageStatus, PartKind,
    ParticipantKind, Raw, Role, RunStamp, StepStatus, SuspendReason, Verdict, Visibility,
};
use everwire_core::position::Offset;
use serde::Deserialize;
use serde_json::value::RawValue;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::control::{HoldsCancel, input_ref};
use crate::event::forget_stamps;
use crate::field::{self, malformed};
use crate::signal::aimed_at;
use crate::{edge_v1, v1};

/// The fields of one JSON object.
pub(crate) struct Fields<'a> {
    /// What stands before a field's name in a refusal: empty, or ends in a dot.
    path: String,
    fields: BTreeMap<String, &'a RawValue>,
}

impl<'a> Fields<'a> {
    /// One object; `what` names it in a refusal.
    pub(crate) fn parse(what: &str, bytes: &'a [u8]) -> Result<Self, Refusal> {
        let text = std::str::from_utf8(bytes).map_err(|_junk| malformed(what, "is not UTF-8"))?;
        Self::of(what, text, String::new())
    }

    fn of(what: &str, text: &'a str, path: String) -> Result<Self, Refusal> {
        let fields = serde_json::from_str(text)
            .map_err(|_quotes_values| malformed(what, "is not a JSON object"))?;
        Ok(Self { path, fields })
    }

    /// The refusal of a field.
    pub(crate) fn malformed(&self, name: &str, what: impl Display) -> Refusal {
        malformed(&self.full(name), what)
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.path)
    }

    fn get<T: Deserialize<'a>>(&self, name: &str, what: &str) -> Result<Option<T>, Refusal> {
        let Some(raw) = self.fields.get(name) else {
            return Ok(None);
        };
        serde_json::from_str(raw.get())
            .map(Some)
            .map_err(|_quotes_values| self.malformed(name, what))
    }

    /// A field that must be there.
    pub(crate) fn need<T>(&self, name: &str, value: Option<T>) -> Result<T, Refusal> {
        value.ok_or_else(|| self.malformed(name, "is missing"))
    }

    /// A string.
    pub(crate) fn text(&self, name: &str) -> Result<Option<String>, Refusal> {
        self.get(name, "is not a string")
    }

    /// A string that must be there.
    pub(crate) fn some_text(&self, name: &str) -> Result<String, Refusal> {
        self.need(name, self.text(name)?)
    }

    /// A number from 0.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u64>, Refusal> {
        self.get(name, "is not a whole number from 0")
    }

    /// A number from 0 to 2^32 - 1.
    pub(crate) fn small(&self, name: &str) -> Result<Option<u32>, Refusal> {
        self.get(name, "is not a whole number from 0 to 2^32 - 1")
    }

    /// A truth value; absent means false.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, Refusal> {
        let flag = self.get(name, "is neither true nor false")?;
        Ok(flag.unwrap_or(false))
    }

    /// An offset.
    pub(crate) fn offset(&self, name: &str) -> Result<Option<Offset>, Refusal> {
        let number = self.number(name)?;
        let offset = number.map(|number| field::offset(&self.full(name), number));
        offset.transpose()
    }

    /// An offset that must be there.
    pub(crate) fn some_offset(&self, name: &str) -> Result<Offset, Refusal> {
        self.need(name, self.offset(name)?)
    }

    /// Whatever has a checked form as text: names, epochs.
    pub(crate) fn name<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Option<T>, Refusal> {
        let text = self.text(name)?;
        let parsed = text.map(|text| field::name(&self.full(name), &text));
        parsed.transpose()
    }

    /// The same for a field that must be there.
    pub(crate) fn some_name<T: FromStr<Err: Display>>(&self, name: &str) -> Result<T, Refusal> {
        self.need(name, self.name(name)?)
    }

    /// An array of names; absent means none.
    fn names<T: FromStr<Err: Display>>(&self, name: &str) -> Result<Vec<T>, Refusal> {
        let texts: Option<Vec<String>> = self.get(name, "is not an array of strings")?;
        let texts = texts.unwrap_or_default().into_iter();
        texts
            .map(|text| field::name(&self.full(name), &text))
            .collect()
    }

    /// A word of a closed set.
    pub(crate) fn word<T>(
        &self,
        name: &str,
        parse: fn(&str) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let word = parse(&text);
        let word = word.ok_or_else(|| self.malformed(name, "is not a word that is known here"));
        word.map(Some)
    }

    fn some_word<T>(&self, name: &str, parse: fn(&str) -> Option<T>) -> Result<T, Refusal> {
        self.need(name, self.word(name, parse)?)
    }

    /// A time in RFC 3339 that must be there.
    pub(crate) fn time(&self, name: &str) -> Result<Timestamp, Refusal> {
        let text = self.some_text(name)?;
        let time = OffsetDateTime::parse(&text, &Rfc3339)
            .map_err(|_quotes| self.malformed(name, "is not a time in RFC 3339"))?;
        let ms = u64::try_from(time.unix_timestamp_nanos() / 1_000_000)
            .map_err(|_negative| self.malformed(name, "lies before 1970"))?;
        field::time(&self.full(name), ms)
    }

    /// Bytes in base64.
    fn bytes(&self, name: &str) -> Result<Option<Bytes>, Refusal> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let bytes = STANDARD.decode(text);
        let bytes = bytes.map_err(|_quotes| self.malformed(name, "is not base64 with padding"))?;
        Ok(Some(bytes.into()))
    }

    /// An object, whose fields are named after this one.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>, Refusal> {
        let Some(raw) = self.fields.get(name) else {
            return Ok(None);
        };
        let full = self.full(name);
        Self::of(&full, raw.get(), format!("{full}.")).map(Some)
    }

    /// An object whose fields are named as if they stood alone: an event in a frame.
    pub(crate) fn alone(&self, name: &str) -> Result<Option<Fields<'a>>, Refusal> {
        let raw = self.fields.get(name);
        let fields = raw.map(|raw| Self::of(&self.full(name), raw.get(), String::new()));
        fields.transpose()
    }

    /// The objects of an array, likewise.
    pub(crate) fn all_alone(&self, name: &str) -> Result<Vec<Fields<'a>>, Refusal> {
        let array: Option<Vec<&RawValue>> = self.get(name, "is not an array")?;
        let array = self.need(name, array)?.into_iter();
        array
            .map(|raw| Self::of(&self.full(name), raw.get(), String::new()))
            .collect()
    }
}

// === Events ===

pub(crate) fn event(fields: &Fields<'_>) -> Result<Event, Refusal> {
    let author = fields.need("author", fields.object("author")?)?;
    let (body, raw) = body(fields)?;
    let run = match fields.name("run")? {
        None => None,
        Some(run) => {
            let run_epoch = fields.need("run_epoch", fields.small("run_epoch")?)?;
            let seq = fields.number("seq")?;
            Some(RunStamp {
                run,
                run_epoch: field::run_epoch("run_epoch", run_epoch)?,
                seq: seq.map(|seq| field::seq("seq", seq)).transpose()?,
            })
        },
    };
    Ok(Event {
        offset: fields.some_offset("offset")?,
        time: fields.time("time")?,
        run,
        author: Author {
            participant: author.some_name("participant")?,
            kind: author.some_word("kind", ParticipantKind::parse)?,
        },
        parent: fields.name("parent")?,
        visibility: visibility(fields)?,
        format: fields.text("format")?.unwrap_or_default(),
        codec: codec(fields)?,
        body,
        raw,
    })
}

pub(crate) fn draft(fields: &Fields<'_>) -> Result<Draft, Refusal> {
    let (body, raw) = body(fields)?;
    let mut draft = Draft {
        parent: fields.name("parent")?,
        visibility: visibility(fields)?,
        format: fields.text("format")?.unwrap_or_default(),
        codec: codec(fields)?,
        body,
        raw,
    };
    forget_stamps(&mut draft);
    draft.check_shape()?;
    Ok(draft)
}

fn visibility(fields: &Fields<'_>) -> Result<Visibility, Refusal> {
    let word = fields.word("visibility", Visibility::parse)?;
    Ok(word.unwrap_or_default())
}

fn codec(fields: &Fields<'_>) -> Result<Codec, Refusal> {
    Ok(fields.word("codec", Codec::parse)?.unwrap_or_default())
}

/// The body and the raw chunk in it. A body without fields may be absent.
fn body(event: &Fields<'_>) -> Result<(Body, Option<Raw>), Refusal> {
    let kind = event.some_word("kind", Kind::parse)?;
    let none = || Fields {
        path: "body.".to_owned(),
        fields: BTreeMap::new(),
    };
    let fields = event.object("body")?.unwrap_or_else(none);
    let raw = match fields.object("raw")? {
        None => None,
        Some(raw) => Some(Raw {
            format: raw.some_text("format")?,
            bytes: raw.need("bytes", raw.bytes("bytes")?)?,
        }),
    };
    Ok((body_of(kind, &fields)?, raw))
}

fn run_started(fields: &Fields<'_>) -> Result<Body, Refusal> {
    let input = fields.text("input")?.unwrap_or_default();
    let author = fields.text("input_by")?.unwrap_or_default();
    Ok(Body::RunStarted {
        input: input_ref(&input, &author)?,
        parent: fields.name("parent")?,
        meta: data_in(fields, "meta", "meta_base64")?,
    })
}

fn step_start(fields: &Fields<'_>) -> Result<Body, Refusal> {
    Ok(Body::StepStart {
        step: fields.some_name("step")?,
        attempt: fields.small("attempt")?.unwrap_or(0),
        name: fields.text("name")?,
    })
}

fn step_end(fields: &Fields<'_>) -> Result<Body, Refusal> {
    let status = fields.word("status", StepStatus::parse)?;
    Ok(Body::StepEnd {
        step: fields.some_name("step")?,
        status: status.unwrap_or(StepStatus::Complete),
        reason: fields.text("reason")?,
    })
}

fn approval_requested(fields: &Fields<'_>) -> Result<Body, Refusal> {
    let on_expiry = fields.word("on_expiry", Verdict::parse)?;
    let deadline = fields
        .text("deadline")?
        .map(|_there| fields.time("deadline"));
    Ok(Body::ApprovalRequested(Request {
        approval: fields.some_name("approval")?,
        action: fields.some_text("action")?,
        action_hash: fields.some_name("action_hash")?,
        approvers: fields.names("approvers")?,
        within_ms: fields.small("within_ms")?.unwrap_or(0),
        deadline: deadline.transpose()?.unwrap_or(Timestamp(0)),
        on_expiry: on_expiry.unwrap_or(Verdict::Deny),
        data: data(fields)?,
    }))
}

fn approval_resolved(fields: &Fields<'_>) -> Result<Body, Refusal> {
    Ok(Body::ApprovalResolved {
        approval: fields.some_name("approval")?,
        outcome: fields.some_word("outcome", ApprovalOutcome::parse)?,
        note: fields.text("note")?,
        on_expiry: fields.word("on_expiry", Verdict::parse)?,
    })
}

#[expect(
    clippy::too_many_lines,
    reason = "a table: one short arm for each kind of event"
)]
fn body_of(kind: Kind, fields: &Fields<'_>) -> Result<Body, Refusal> {
    Ok(match kind {
        Kind::RunStarted => run_started(fields)?,
        Kind::RunClaimed => Body::RunClaimed,
        Kind::RunOrphaned => Body::RunOrphaned,
        Kind::RunEpilogue => Body::RunEpilogue {
            data: data(fields)?,
        },
        Kind::RunSuspended => Body::RunSuspended {
            reason: fields.some_word("reason", SuspendReason::parse)?,
            note: fields.text("note")?,
        },
        Kind::RunResumed => Body::RunResumed,
        Kind::RunCompleted => Body::RunCompleted,
        Kind::RunFailed => Body::RunFailed {
            reason: fields.some_text("reason")?,
        },
        Kind::RunCancelled => Body::RunCancelled {
            cancel_offset: fields.some_offset("cancel_offset")?,
        },
        Kind::StepStart => step_start(fields)?,
        Kind::StepEnd => step_end(fields)?,
        Kind::MessageStart => Body::MessageStart {
            message: fields.some_name("message")?,
            role: fields.some_word("role", Role::parse)?,
        },
        Kind::MessageEnd => {
            let status = fields.word("status", MessageStatus::parse)?;
            Body::MessageEnd {
                message: fields.some_name("message")?,
                status: status.unwrap_or(MessageStatus::Complete),
            }
        },
        Kind::PartStart => Body::PartStart {
            message: fields.some_name("message")?,
            part: fields.some_name("part")?,
            kind: fields.some_word("part_kind", PartKind::parse)?,
            name: fields.text("name")?,
            data: data(fields)?,
        },
        Kind::PartDelta => {
            let position = fields.number("position")?.unwrap_or(0);
            Body::PartDelta {
                message: fields.some_name("message")?,
                part: fields.some_name("part")?,
                position: field::number("body.position", position)?,
                text: fields.some_text("text")?,
            }
        },
        Kind::PartEnd => Body::PartEnd {
            message: fields.some_name("message")?,
            part: fields.some_name("part")?,
            data: data(fields)?,
        },
        Kind::Input => Body::Input {
            input: fields.some_name("input")?,
            text: fields.some_text("text")?,
            data: data(fields)?,
        },
        Kind::SignalCancel => {
            let cancel = cancel(fields)?;
            Body::SignalCancel {
                target: cancel.target,
                grace_ms: cancel.grace_ms,
            }
        },
        Kind::SignalPause => Body::SignalPause {
            target: aimed_at(&signal_fields(fields)?)?,
        },
        Kind::SignalResume => Body::SignalResume {
            target: aimed_at(&signal_fields(fields)?)?,
        },
        Kind::ApprovalRequested => approval_requested(fields)?,
        Kind::ApprovalResolved => approval_resolved(fields)?,
        Kind::SignalObserved => Body::SignalObserved {
            signal_offset: fields.some_offset("signal_offset")?,
        },
        Kind::App => Body::App {
            name: fields.some_text("name")?,
            data: data(fields)?,
        },
    })
}

fn data(fields: &Fields<'_>) -> Result<Option<Data>, Refusal> {
    data_in(fields, "data", "data_base64")
}

fn data_in(fields: &Fields<'_>, json: &str, base64: &str) -> Result<Option<Data>, Refusal> {
    let binary = fields.bytes(base64)?;
    match (fields.fields.get(json), binary) {
        (None, None) => Ok(None),
        (None, Some(bytes)) => Ok(Some(Data::Binary(bytes))),
        (Some(raw), None) => {
            field::json(&fields.full(json), raw.get())?;
            Ok(Some(Data::Json(raw.get().to_owned())))
        },
        (Some(_), Some(_)) => Err(fields.malformed(json, format!("stands beside {base64}"))),
    }
}

// === Signals ===

/// The fields of a cancel, among whatever else stands there.
pub(crate) fn cancel(fields: &Fields<'_>) -> Result<Cancel, Refusal> {
    signal_fields(fields)?.cancel()
}

/// The fields of any signal, among whatever else stands there; its session and key are left out.
pub(crate) fn signal_fields(fields: &Fields<'_>) -> Result<edge_v1::Signal, Refusal> {
    let text = |name: &str| Ok::<_, Refusal>(fields.text(name)?.unwrap_or_default());
    Ok(edge_v1::Signal {
        signal: text("signal")?,
        run: text("run")?,
        subtree: text("subtree")?,
        input: text("input")?,
        input_by: text("input_by")?,
        all: fields.flag("all")?,
        graceful_ms: fields.small("graceful_ms")?.unwrap_or(0),
        expect: text("expect")?,
        as_of: fields.number("as_of")?,
        approval: text("approval")?,
        action_hash: text("action_hash")?,
        note: text("note")?,
        ..edge_v1::Signal::default()
    })
}

// === Refusals ===

pub(crate) fn refusal(fields: &Fields<'_>) -> Result<Refusal, Refusal> {
    let details = match fields.object("details")? {
        None => None,
        Some(details) => Some(details_of(&details)?),
    };
    Ok(crate::refusal::from_error(v1::Error {
        code: fields.some_text("code")?,
        advice: fields.text("advice")?.unwrap_or_default(),
        message: fields.text("message")?.unwrap_or_default(),
        details,
    }))
}

fn details_of(fields: &Fields<'_>) -> Result<v1::ErrorDetails, Refusal> {
    Ok(v1::ErrorDetails {
        cancel_offset: fields.number("cancel_offset")?,
        next_epoch: fields.small("next_epoch")?,
        run_epoch: fields.small("run_epoch")?,
        expected_seq: fields.number("expected_seq")?,
        last_seq: fields.number("last_seq")?,
        last_offset: fields.number("last_offset")?,
        state: fields.text("state")?,
        offset: fields.number("offset")?,
        by: fields.text("by")?,
        earliest: fields.number("earliest")?,
        tail: fields.number("tail")?,
        session_epoch: fields.text("session_epoch")?,
        limit: fields.number("limit")?,
        leader: fields.text("leader")?,
        term: fields.number("term")?,
        map_version: fields.number("map_version")?,
    })
}
