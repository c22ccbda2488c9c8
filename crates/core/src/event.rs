//! An event: one entry of a session's log, and the draft that a client sends to make one.

use std::fmt;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::code::{Code, Details, Refusal};
use crate::control::Request;
use crate::control::{InputRef, Target};
use crate::ids::{ApprovalId, InputId, MessageId, PartId, ParticipantId, RunId, StepId};
use crate::limits::{EVENT_BYTES_MAX, INPUT_BYTES_MAX, LABEL_BYTES_MAX};
use crate::position::{Offset, RunEpoch, Seq};
pub use crate::vocabulary::{
    ApprovalOutcome, Codec, Kind, MessageStatus, PartKind, ParticipantKind, Role, StepStatus,
    SuspendReason, Verdict, Visibility,
};

/// Who wrote an event: stamped by the server from the verified token, never taken from a request.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Author {
    /// The verified identity.
    pub participant: ParticipantId,
    /// Its kind.
    pub kind: ParticipantKind,
}

impl Author {
    /// The server itself, for what nobody asked for: a lease that ended, a limit that passed.
    pub fn server() -> Self {
        Self {
            participant: ParticipantId::parse("everwire").expect("it is a participant's name"),
            kind: ParticipantKind::Server,
        }
    }
}

/// Where an event stands in its run's own count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunStamp {
    /// The run.
    pub run: RunId,
    /// The writer's epoch; for events that the server itself wrote, the epoch at that moment.
    pub run_epoch: RunEpoch,
    /// The writer's seq; `None` for events that the server itself wrote.
    pub seq: Option<Seq>,
}

/// Bytes that the server keeps byte for byte and never reads: a provider's chunk, an AI SDK
/// chunk, an AG-UI event.
#[derive(Clone, PartialEq, Eq)]
pub struct Raw {
    /// What the bytes speak, for example `openai-chat`; at most 256 bytes.
    pub format: String,
    /// The bytes.
    pub bytes: Bytes,
}

impl fmt::Debug for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Raw({}, {} bytes)", self.format, self.bytes.len())
    }
}

/// A payload of the application's own.
#[derive(Clone, PartialEq, Eq)]
pub enum Data {
    /// JSON text, kept as it was written.
    Json(String),
    /// Any bytes.
    Binary(Bytes),
}

impl Data {
    /// Its size, bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Json(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(text) => write!(f, "Json({} bytes)", text.len()),
            Self::Binary(bytes) => write!(f, "Binary({} bytes)", bytes.len()),
        }
    }
}

/// What an event says. Bodies of messages and parts are typed, because the rules assemble them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// `run.started`.
    RunStarted {
        /// The input that the run answers.
        input: Option<InputRef>,
        /// The run that it works for.
        parent: Option<RunId>,
        /// What the application says about it.
        meta: Option<Data>,
    },
    /// `run.claimed`; the stamp carries the new epoch.
    RunClaimed,
    /// `run.orphaned`: its writer was silent for its whole lease; the stamp says which.
    RunOrphaned,
    /// `run.suspended`: it waits, and holds no lease while it does.
    RunSuspended {
        /// Why; a writer cannot say paused.
        reason: SuspendReason,
        /// What it waits for, for people; at most 256 bytes.
        note: Option<String>,
    },
    /// `run.resumed`: it waits no more.
    RunResumed,
    /// `run.completed`.
    RunCompleted,
    /// `run.failed`.
    RunFailed {
        /// What went wrong; at most 256 bytes.
        reason: String,
    },
    /// `run.cancelled`.
    RunCancelled {
        /// Where the signal was committed.
        cancel_offset: Offset,
    },
    /// `run.epilogue`: what a run that was stopped gracefully still has to say: usage, a note.
    /// Never part of its text.
    RunEpilogue {
        /// Whatever the application needs.
        data: Option<Data>,
    },
    /// `step.start`: what the run writes from here to the step's end is one attempt at it. What
    /// the attempt before it wrote does not count any more.
    StepStart {
        /// The step; unique in its run.
        step: StepId,
        /// Which attempt it is, from 1; stamped by the server, so a draft holds 0.
        attempt: u32,
        /// A label for people; at most 256 bytes.
        name: Option<String>,
    },
    /// `step.end`. Ends the open messages that began in the attempt with it.
    StepEnd {
        /// The step.
        step: StepId,
        /// How the attempt ended.
        status: StepStatus,
        /// What went wrong, or whatever else is to be said; at most 256 bytes.
        reason: Option<String>,
    },
    /// `message.start`.
    MessageStart {
        /// The message; unique in its session.
        message: MessageId,
        /// Who speaks.
        role: Role,
    },
    /// `message.end`. Ends the message's open parts with it.
    MessageEnd {
        /// The message.
        message: MessageId,
        /// How; a writer can only say complete.
        status: MessageStatus,
    },
    /// `part.start`.
    PartStart {
        /// The message.
        message: MessageId,
        /// The part; unique in its message.
        part: PartId,
        /// What it is.
        kind: PartKind,
        /// A label: a tool's name, a file's name; at most 256 bytes.
        name: Option<String>,
        /// What is known at its start: a tool call's id, a file's URL and hash.
        data: Option<Data>,
    },
    /// `part.delta`.
    PartDelta {
        /// The message.
        message: MessageId,
        /// The part.
        part: PartId,
        /// Where the text stands in its part, bytes of UTF-8; stamped by the server, so a
        /// draft holds 0.
        position: u64,
        /// The increment.
        text: String,
    },
    /// `part.end`.
    PartEnd {
        /// The message.
        message: MessageId,
        /// The part.
        part: PartId,
        /// What is known only at its end.
        data: Option<Data>,
    },
    /// `input`.
    Input {
        /// The input; scoped to its author.
        input: InputId,
        /// What was said.
        text: String,
        /// Whatever else the application needs.
        data: Option<Data>,
    },
    /// `signal.cancel`.
    SignalCancel {
        /// What was to be cancelled.
        target: Target,
        /// For how long an epilogue may follow, milliseconds; `None`: not at all.
        grace_ms: Option<u32>,
    },
    /// `signal.pause`.
    SignalPause {
        /// What is to wait: never an input.
        target: Target,
    },
    /// `signal.resume`.
    SignalResume {
        /// What is to go on: never an input.
        target: Target,
    },
    /// `approval.requested`.
    ApprovalRequested(Request),
    /// `approval.resolved`.
    ApprovalResolved {
        /// The request.
        approval: ApprovalId,
        /// What became of it; a writer can only say withdrawn.
        outcome: ApprovalOutcome,
        /// What whoever answered had to say; at most 256 bytes.
        note: Option<String>,
        /// What its expiry stands for; only then.
        on_expiry: Option<Verdict>,
    },
    /// `signal.observed`: the writer of the run has seen a signal.
    SignalObserved {
        /// Where the signal stands.
        signal_offset: Offset,
    },
    /// `app`.
    App {
        /// What the application calls it; at most 256 bytes.
        name: String,
        /// Its payload.
        data: Option<Data>,
    },
}

impl Body {
    /// The kind of the event that carries this body.
    pub fn kind(&self) -> Kind {
        match self {
            Self::RunStarted { .. } => Kind::RunStarted,
            Self::RunClaimed => Kind::RunClaimed,
            Self::RunOrphaned => Kind::RunOrphaned,
            Self::RunSuspended { .. } => Kind::RunSuspended,
            Self::RunResumed => Kind::RunResumed,
            Self::RunCompleted => Kind::RunCompleted,
            Self::RunFailed { .. } => Kind::RunFailed,
            Self::RunCancelled { .. } => Kind::RunCancelled,
            Self::RunEpilogue { .. } => Kind::RunEpilogue,
            Self::StepStart { .. } => Kind::StepStart,
            Self::StepEnd { .. } => Kind::StepEnd,
            Self::MessageStart { .. } => Kind::MessageStart,
            Self::MessageEnd { .. } => Kind::MessageEnd,
            Self::PartStart { .. } => Kind::PartStart,
            Self::PartDelta { .. } => Kind::PartDelta,
            Self::PartEnd { .. } => Kind::PartEnd,
            Self::Input { .. } => Kind::Input,
            Self::SignalCancel { .. } => Kind::SignalCancel,
            Self::SignalPause { .. } => Kind::SignalPause,
            Self::SignalResume { .. } => Kind::SignalResume,
            Self::SignalObserved { .. } => Kind::SignalObserved,
            Self::ApprovalRequested(_) => Kind::ApprovalRequested,
            Self::ApprovalResolved { .. } => Kind::ApprovalResolved,
            Self::App { .. } => Kind::App,
        }
    }

    /// Bytes of payload: what counts against the bounds.
    pub fn payload_bytes(&self) -> usize {
        let data = |data: &Option<Data>| data.as_ref().map_or(0, Data::len);
        match self {
            Self::RunStarted { meta, .. } => data(meta),
            Self::RunFailed { reason } => reason.len(),
            Self::RunEpilogue { data: extra } => data(extra),
            Self::StepStart { name: label, .. }
            | Self::StepEnd { reason: label, .. }
            | Self::RunSuspended { note: label, .. }
            | Self::ApprovalResolved { note: label, .. } => label.as_ref().map_or(0, String::len),
            Self::ApprovalRequested(request) => request.action.len() + data(&request.data),
            Self::PartStart {
                name, data: extra, ..
            } => name.as_ref().map_or(0, String::len) + data(extra),
            Self::PartDelta { text, .. } => text.len(),
            Self::PartEnd { data: extra, .. } => data(extra),
            Self::Input {
                text, data: extra, ..
            } => text.len() + data(extra),
            Self::App { name, data: extra } => name.len() + data(extra),
            Self::RunClaimed
            | Self::RunOrphaned
            | Self::RunResumed
            | Self::RunCompleted
            | Self::RunCancelled { .. }
            | Self::MessageStart { .. }
            | Self::MessageEnd { .. }
            | Self::SignalCancel { .. }
            | Self::SignalPause { .. }
            | Self::SignalResume { .. }
            | Self::SignalObserved { .. } => 0,
        }
    }
}

/// An event before the log has it: what a client may say about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The message that it answers or replaces.
    pub parent: Option<MessageId>,
    /// Who may see it.
    pub visibility: Visibility,
    /// What the payload speaks; empty means `everwire/1`. At most 256 bytes.
    pub format: String,
    /// How the payload is to be read.
    pub codec: Codec,
    /// What it says.
    pub body: Body,
    /// What the server keeps and never reads.
    pub raw: Option<Raw>,
}

impl Draft {
    /// A plain draft of a body, visible to all.
    pub fn new(body: Body) -> Self {
        Self {
            parent: None,
            visibility: Visibility::All,
            format: String::new(),
            codec: Codec::Plain,
            body,
            raw: None,
        }
    }

    /// The same draft with a raw chunk.
    pub fn with_raw(mut self, format: impl Into<String>, bytes: impl Into<Bytes>) -> Self {
        self.raw = Some(Raw {
            format: format.into(),
            bytes: bytes.into(),
        });
        self
    }

    /// Bytes of payload, raw included: what counts against bounds and credit.
    pub fn payload_bytes(&self) -> usize {
        self.body.payload_bytes() + self.raw.as_ref().map_or(0, |raw| raw.bytes.len())
    }

    /// Checks sizes that do not depend on a session's state. Call it where bytes stop being
    /// untrusted; `rules` relies on it.
    pub fn check_shape(&self) -> Result<(), Refusal> {
        let max = match self.body {
            Body::Input { .. } => INPUT_BYTES_MAX,
            _ => EVENT_BYTES_MAX,
        };
        let size = self.payload_bytes();
        if size > max {
            let details = Details {
                limit: Some(max as u64),
                ..Details::default()
            };
            let message = format!("the event has {size} bytes of payload");
            return Err(Refusal::with(Code::TooLarge, message, details));
        }
        let label = match &self.body {
            Body::RunFailed { reason } => reason.len(),
            Body::App { name, .. } => name.len(),
            Body::PartStart { name: label, .. }
            | Body::StepStart { name: label, .. }
            | Body::StepEnd { reason: label, .. }
            | Body::RunSuspended { note: label, .. }
            | Body::ApprovalResolved { note: label, .. } => label.as_ref().map_or(0, String::len),
            Body::ApprovalRequested(request) => request.action.len(),
            _ => 0,
        };
        let raw_label = self.raw.as_ref().map_or(0, |raw| raw.format.len());
        if label.max(raw_label).max(self.format.len()) > LABEL_BYTES_MAX {
            let details = Details {
                limit: Some(LABEL_BYTES_MAX as u64),
                ..Details::default()
            };
            return Err(Refusal::with(
                Code::TooLarge,
                "a label is too long",
                details,
            ));
        }
        match &self.body {
            Body::ApprovalRequested(request) => request.check_shape(),
            _ => Ok(()),
        }
    }
}

/// One entry of a session's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place.
    pub offset: Offset,
    /// The leader's time when it was committed.
    pub time: Timestamp,
    /// Its run; `None` outside runs.
    pub run: Option<RunStamp>,
    /// Who wrote it. Events that the server derives carry the author of what caused them.
    pub author: Author,
    /// The message that it answers or replaces.
    pub parent: Option<MessageId>,
    /// Who may see it.
    pub visibility: Visibility,
    /// What the payload speaks; empty means `everwire/1`.
    pub format: String,
    /// How the payload is to be read.
    pub codec: Codec,
    /// What it says.
    pub body: Body,
    /// What the server keeps and never reads.
    pub raw: Option<Raw>,
}

impl Event {
    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.body.kind()
    }

    /// Bytes of payload, raw included.
    pub fn payload_bytes(&self) -> usize {
        self.body.payload_bytes() + self.raw.as_ref().map_or(0, |raw| raw.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_bytes_count_against_the_bound() {
        let body = Body::App {
            name: "x".into(),
            data: None,
        };
        let fits = Draft::new(body.clone()).with_raw("f", vec![0; EVENT_BYTES_MAX - 1]);
        assert_eq!(fits.check_shape(), Ok(()));
        let above = Draft::new(body).with_raw("f", vec![0; EVENT_BYTES_MAX]);
        assert_eq!(above.check_shape().unwrap_err().code, Code::TooLarge);
    }
}
