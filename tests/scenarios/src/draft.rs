//! A draft as a command line says it.

use everwire_core::event::{
    ApprovalOutcome, Body, Data, Draft, MessageStatus, PartKind, Role, StepStatus, SuspendReason,
    Verdict,
};
use everwire_core::{Offset, Request, Target, Timestamp};

use crate::step::{duration, name, offset_of, said};
use crate::words::Line;

/// One draft: its kind, then what the kind needs.
pub(crate) fn draft(line: &mut Line) -> Result<Draft, String> {
    let kind = line.take("a kind")?;
    let body = match kind.as_str() {
        "step.start" | "step.end" => step(&kind, line)?,
        "message.start" => Body::MessageStart {
            message: name(line, "a message")?,
            role: word(line, Role::parse, Role::Assistant)?,
        },
        "message.end" => Body::MessageEnd {
            message: name(line, "a message")?,
            status: word(line, MessageStatus::parse, MessageStatus::Complete)?,
        },
        "part.start" => Body::PartStart {
            message: name(line, "a message")?,
            part: name(line, "a part")?,
            kind: word(line, PartKind::parse, PartKind::Text)?,
            name: None,
            data: None,
        },
        "part.delta" => Body::PartDelta {
            message: name(line, "a message")?,
            part: name(line, "a part")?,
            position: 0,
            text: line.take("a text")?,
        },
        "part.end" => Body::PartEnd {
            message: name(line, "a message")?,
            part: name(line, "a part")?,
            data: None,
        },
        "app" => Body::App {
            name: line.take("a name")?,
            data: line.take_if_any().map(Data::Json),
        },
        "input" => Body::Input {
            input: name(line, "an input")?,
            text: line.take("a text")?,
            data: None,
        },
        "run.completed" => Body::RunCompleted,
        "run.failed" => Body::RunFailed {
            reason: line.take_if_any().unwrap_or_default(),
        },
        "run.epilogue" => Body::RunEpilogue {
            data: line.take_if_any().map(Data::Json),
        },
        "run.suspended" | "run.resumed" | "approval.requested" | "approval.resolved"
        | "signal.pause" | "signal.resume" => waiting(&kind, line)?,
        "run.started" => Body::RunStarted {
            input: None,
            parent: None,
            meta: None,
        },
        "run.claimed" => Body::RunClaimed,
        "run.orphaned" => Body::RunOrphaned,
        "run.cancelled" => Body::RunCancelled {
            cancel_offset: Offset::ZERO,
        },
        "signal.cancel" => Body::SignalCancel {
            target: Target::Run(name(line, "a run")?),
            grace_ms: None,
        },
        "signal.observed" => Body::SignalObserved {
            signal_offset: offset_of(&line.take("an offset")?)?,
        },
        other => return Err(format!("{other} is no kind")),
    };
    Ok(Draft::new(body))
}

/// The kinds of runs that wait and of approvals.
fn waiting(kind: &str, line: &mut Line) -> Result<Body, String> {
    Ok(match kind {
        "run.suspended" => Body::RunSuspended {
            reason: word(line, SuspendReason::parse, SuspendReason::Input)?,
            note: line.take_if_any(),
        },
        "run.resumed" => Body::RunResumed,
        "approval.requested" => request(line)?,
        "approval.resolved" => Body::ApprovalResolved {
            approval: name(line, "an approval")?,
            outcome: word(line, ApprovalOutcome::parse, ApprovalOutcome::Withdrawn)?,
            note: line.take_if_any(),
            on_expiry: None,
        },
        "signal.pause" => Body::SignalPause {
            target: Target::Run(name(line, "a run")?),
        },
        _ => Body::SignalResume {
            target: Target::Run(name(line, "a run")?),
        },
    })
}

/// `approval.requested ID HASH ACTION [WITHIN] [deny|approve] [APPROVER …]`.
fn request(line: &mut Line) -> Result<Body, String> {
    let (approval, action_hash) = (name(line, "an approval")?, name(line, "a hash")?);
    let action = line.take("an action")?;
    let within = line.take_if_any().map(|text| duration(&text)).transpose()?;
    let within_ms = within.map_or(Ok(0), |within| u32::try_from(within.as_millis()));
    let on_expiry = word(line, Verdict::parse, Verdict::Deny)?;
    let mut approvers = Vec::new();
    while let Some(approver) = line.take_if_any() {
        approvers.push(approver.parse().map_err(said)?);
    }
    Ok(Body::ApprovalRequested(Request {
        approval,
        action,
        action_hash,
        approvers,
        within_ms: within_ms.map_err(said)?,
        deadline: Timestamp(0),
        on_expiry,
        data: None,
    }))
}

fn step(kind: &str, line: &mut Line) -> Result<Body, String> {
    let step = name(line, "a step")?;
    if kind == "step.start" {
        return Ok(Body::StepStart {
            step,
            attempt: 0,
            name: line.take_if_any(),
        });
    }
    Ok(Body::StepEnd {
        step,
        status: word(line, StepStatus::parse, StepStatus::Complete)?,
        reason: line.take_if_any(),
    })
}

fn word<T>(line: &mut Line, parse: fn(&str) -> Option<T>, default: T) -> Result<T, String> {
    match line.take_if_any() {
        None => Ok(default),
        Some(text) => parse(&text).ok_or_else(|| format!("{text} is not known here")),
    }
}
