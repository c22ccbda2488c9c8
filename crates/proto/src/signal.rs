//! Signals that end no run, and requests for approvals, on the wire.
//!
//! A signal has the same flat fields in both subprotocols of the edge and in HTTP:
//! `everwire.edge.v1.Signal`. Comes in: those fields, unchecked. Goes out: a word of `core` of the
//! right shape, or MALFORMED that names the field.

use everwire_core::Refusal;
use everwire_core::clock::Timestamp;
use everwire_core::control::{Answer, Cancel, Request, Signal, Target};
use everwire_core::event::{Body, Verdict};
use everwire_core::ids::{Key, ParticipantId, SessionName};

use crate::control::{CancelFields, HoldsCancel};
use crate::edge_v1::Signal as Fields;
use crate::event::{Source, data_from, data_to};
use crate::field::{self, malformed};
use crate::v1::signal_request::Signal as Call;
use crate::{v1, words};

/// Writes a signal's word and fields.
pub(crate) fn put_signal(fields: &mut Fields, signal: &Signal) {
    signal.as_str().clone_into(&mut fields.signal);
    match signal {
        Signal::Pause(target) | Signal::Resume(target) => {
            let aimed = CancelFields::aimed(target);
            fields.run = aimed.run;
            fields.subtree = aimed.subtree;
            fields.input = aimed.input;
            fields.input_by = aimed.input_by;
            fields.all = aimed.all;
        },
        Signal::Answer(answer) => {
            fields.approval = answer.approval.to_string();
            fields.action_hash = answer.action_hash.to_string();
            fields.note = answer.note.clone().unwrap_or_default();
        },
    }
}

/// A signal as somebody presses it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pressed {
    /// A stop.
    Cancel(Cancel),
    /// Any other.
    Signal(Signal),
}

impl Pressed {
    /// Its word and fields.
    pub(crate) fn fields(&self) -> Fields {
        let mut fields = Fields::default();
        match self {
            Self::Cancel(cancel) => {
                "cancel".clone_into(&mut fields.signal);
                fields.put_cancel(cancel);
            },
            Self::Signal(signal) => put_signal(&mut fields, signal),
        }
        fields
    }
}

/// Reads and checks a signal of any word.
pub fn pressed(fields: &Fields) -> Result<Pressed, Refusal> {
    let answer = |verdict| {
        let wire = v1::Answer {
            approval: fields.approval.clone(),
            action_hash: fields.action_hash.clone(),
            note: fields.note.clone(),
        };
        answer_from(verdict, wire)
    };
    let signal = match fields.signal.as_str() {
        "cancel" => return fields.cancel().map(Pressed::Cancel),
        "pause" => Signal::Pause(aimed_at(fields)?),
        "resume" => Signal::Resume(aimed_at(fields)?),
        "approve" => answer(Verdict::Approve)?,
        "deny" => answer(Verdict::Deny)?,
        _ => return Err(malformed("signal", "is not a word that is known here")),
    };
    signal.check_shape()?;
    Ok(Pressed::Signal(signal))
}

/// A signal that is no stop as a call.
pub fn request_of(session: &SessionName, signal: &Signal, key: &Key) -> v1::SignalRequest {
    let wire = match signal {
        Signal::Pause(target) => Call::Pause(aim_to(target)),
        Signal::Resume(target) => Call::Resume(aim_to(target)),
        Signal::Answer(answer) => {
            let wire = v1::Answer {
                approval: answer.approval.to_string(),
                action_hash: answer.action_hash.to_string(),
                note: answer.note.clone().unwrap_or_default(),
            };
            match answer.verdict {
                Verdict::Approve => Call::Approve(wire),
                Verdict::Deny => Call::Deny(wire),
            }
        },
    };
    v1::SignalRequest {
        session: session.to_string(),
        key: key.to_string(),
        signal: Some(wire),
    }
}

/// Reads and checks the signal of a call.
pub fn signal_of(call: Option<Call>) -> Result<Signal, Refusal> {
    let signal = match call {
        Some(Call::Pause(aim)) => Signal::Pause(aim_from(aim)?),
        Some(Call::Resume(aim)) => Signal::Resume(aim_from(aim)?),
        Some(Call::Approve(answer)) => answer_from(Verdict::Approve, answer)?,
        Some(Call::Deny(answer)) => answer_from(Verdict::Deny, answer)?,
        None => return Err(malformed("signal", "is missing, or not known here")),
    };
    signal.check_shape()?;
    Ok(signal)
}

fn answer_from(verdict: Verdict, answer: v1::Answer) -> Result<Signal, Refusal> {
    Ok(Signal::Answer(Answer {
        approval: field::name("approval", &answer.approval)?,
        verdict,
        action_hash: field::name("action_hash", &answer.action_hash)?,
        note: (!answer.note.is_empty()).then_some(answer.note),
    }))
}

/// What is to wait, or to go on.
pub(crate) fn aimed_at(fields: &Fields) -> Result<Target, Refusal> {
    let aimed = CancelFields {
        run: fields.run.clone(),
        subtree: fields.subtree.clone(),
        input: fields.input.clone(),
        input_by: fields.input_by.clone(),
        all: fields.all,
        ..CancelFields::default()
    };
    match aimed.target()? {
        Target::Input(_) => Err(malformed("input", "can be neither paused nor resumed")),
        target => Ok(target),
    }
}

pub(crate) fn aim_to(target: &Target) -> v1::SignalAim {
    use v1::signal_aim::Target as Wire;
    let target = match target {
        Target::Run(run) => Some(Wire::Run(run.to_string())),
        Target::Subtree(root) => Some(Wire::Subtree(root.to_string())),
        Target::Session => Some(Wire::Session(v1::SessionTarget {})),
        // Of no such signal.
        Target::Input(_) => None,
    };
    v1::SignalAim { target }
}

pub(crate) fn aim_from(aim: v1::SignalAim) -> Result<Target, Refusal> {
    use v1::signal_aim::Target as Wire;
    Ok(match aim.target {
        Some(Wire::Run(run)) => Target::Run(field::name("body.run", &run)?),
        Some(Wire::Subtree(root)) => Target::Subtree(field::name("body.subtree", &root)?),
        Some(Wire::Session(v1::SessionTarget {})) => Target::Session,
        None => return Err(malformed("body.run", "is missing")),
    })
}

pub(crate) fn request_to(request: &Request) -> v1::ApprovalRequested {
    let approvers = request.approvers.iter();
    v1::ApprovalRequested {
        approval: request.approval.to_string(),
        action: request.action.clone(),
        action_hash: request.action_hash.to_string(),
        approvers: approvers.map(ToString::to_string).collect(),
        within_ms: request.within_ms,
        deadline_ms: request.deadline.0,
        on_expiry: words::verdict_to(request.on_expiry).into(),
        data: data_to(request.data.as_ref()),
    }
}

pub(crate) fn request_from(body: v1::ApprovalRequested, source: Source) -> Result<Body, Refusal> {
    let approvers = body.approvers.iter();
    let approvers = approvers.map(|one| field::name::<ParticipantId>("body.approvers", one));
    Ok(Body::ApprovalRequested(Request {
        approval: field::name("body.approval", &body.approval)?,
        action: body.action,
        action_hash: field::name("body.action_hash", &body.action_hash)?,
        approvers: approvers.collect::<Result<_, _>>()?,
        within_ms: body.within_ms,
        deadline: match source {
            Source::Wire => field::time("body.deadline", body.deadline_ms)?,
            Source::Disk => Timestamp(body.deadline_ms),
        },
        on_expiry: verdict("body.on_expiry", body.on_expiry)?.unwrap_or(Verdict::Deny),
        data: data_from(body.data, source)?,
    }))
}

pub(crate) fn resolved_from(body: v1::ApprovalResolved) -> Result<Body, Refusal> {
    Ok(Body::ApprovalResolved {
        approval: field::name("body.approval", &body.approval)?,
        outcome: words::approval_outcome_from("body.outcome", body.outcome)?,
        note: body.note,
        on_expiry: verdict("body.on_expiry", body.on_expiry)?,
    })
}

fn verdict(name: &str, number: i32) -> Result<Option<Verdict>, Refusal> {
    match number {
        0 => Ok(None),
        number => words::verdict_from(name, number).map(Some),
    }
}
