//! WebSocket frames of the edge, in both subprotocols, as words of `core`.
//!
//! Comes in: a frame that nobody has checked. Goes out: what it asks or says, and the other way
//! round. Never: the order of frames on a socket, which is the edge's.

use std::borrow::Borrow;

use bytes::Bytes;
use everwire_core::clock::Timestamp;
use everwire_core::command::SignalOutcome;
use everwire_core::event::{Draft, Event};
use everwire_core::ids::{Key, ParticipantId, SessionName};
use everwire_core::limits::{EDGE_FRAME_IN_BYTES_MAX, LABEL_BYTES_MAX};
use everwire_core::position::{Cursor, Offset, SessionEpoch};
use everwire_core::row::RunState;
use everwire_core::{Code, Details, Refusal};

pub use crate::event::Covered;
use crate::field::malformed;
use crate::signal::Pressed;
use crate::token::Bearer;

mod binary;
mod json;

/// How frames are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Subprotocol {
    /// `everwire.v1.json`: text frames, one JSON object each.
    Json,
    /// `everwire.v1.proto`: binary frames, `everwire.edge.v1`.
    Proto,
}

impl Subprotocol {
    /// Both, the default first.
    pub const ALL: [Self; 2] = [Self::Json, Self::Proto];

    /// The name in the WebSocket handshake.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Json => "everwire.v1.json",
            Self::Proto => "everwire.v1.proto",
        }
    }

    /// The subprotocol with this name.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.as_str() == text)
    }
}

/// What a client sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientFrame {
    /// The first frame of a socket.
    Auth {
        /// The token.
        token: Bearer,
    },
    /// Follow a session, in raw form.
    Attach {
        /// The session.
        session: SessionName,
        /// The last event seen.
        cursor: Option<Cursor>,
        /// Make the session if it is not there.
        create: bool,
    },
    /// Follow it no more.
    Detach {
        /// The session.
        session: SessionName,
    },
    /// One input or `app` event; [`crate::event::check_posted`] has passed.
    Publish {
        /// The session.
        session: SessionName,
        /// The input or event.
        draft: Draft,
        /// The idempotency key; there is one for inputs.
        key: Option<Key>,
    },
    /// `signal`.
    Signal {
        /// The session.
        session: SessionName,
        /// Which, and of what.
        pressed: Pressed,
        /// The idempotency key.
        key: Key,
    },
    /// A new token for the socket.
    Refresh {
        /// The token.
        token: Bearer,
    },
    /// A sign of life.
    Ping,
}

/// What an edge sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerFrame {
    /// The token was taken.
    Welcome {
        /// Who the client is.
        participant: ParticipantId,
        /// Which edge this is.
        edge: String,
        /// How often the client should ping, milliseconds.
        heartbeat_ms: u32,
        /// A side that is silent for so long is gone, milliseconds.
        lost_after_ms: u32,
        /// When the token ends.
        token_expires: Timestamp,
    },
    /// The answer to `attach`.
    Attached {
        /// The session.
        session: SessionName,
        /// Where the reader stands.
        answer: AttachAnswer,
    },
    /// Events, or a sign of life. For many readers use [`encode_events`].
    Events {
        /// The session.
        session: SessionName,
        /// What the frame covers.
        range: Covered,
        /// The events in it.
        events: Vec<Event>,
    },
    /// An input or event was taken.
    Ack {
        /// The session.
        session: SessionName,
        /// Its history.
        session_epoch: SessionEpoch,
        /// Where the event stands.
        offset: Offset,
        /// Whether it stood there before.
        duplicate: bool,
    },
    /// A signal was decided.
    Outcome {
        /// The session.
        session: SessionName,
        /// Its history; unknown when the signal was denied before the log.
        session_epoch: Option<SessionEpoch>,
        /// How.
        outcome: SignalOutcome,
        /// Whether this answers a repeated request.
        duplicate: bool,
    },
    /// The token ends soon.
    Expiring {
        /// When.
        token_expires: Timestamp,
    },
    /// The edge stops soon.
    Moving {
        /// Connect anew within so many milliseconds.
        within_ms: u32,
    },
    /// The answer to `ping`.
    Pong,
    /// A request, or a session, was refused; the socket lives.
    Error {
        /// The session, if it is about one.
        session: Option<SessionName>,
        /// Why.
        refusal: Refusal,
    },
    /// The last frame.
    Bye {
        /// Why.
        refusal: Refusal,
    },
}

/// The answers to `attach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachAnswer {
    /// Events follow from `from`.
    Resumed {
        /// The session's history.
        session_epoch: SessionEpoch,
        /// The first offset that will be delivered.
        from: Offset,
        /// The last committed offset.
        tail: Offset,
    },
    /// The cursor cannot be served.
    Gone {
        /// The session's history now.
        session_epoch: SessionEpoch,
        /// Where to start anew: the earliest event.
        from: Offset,
        /// The last committed offset.
        tail: Offset,
    },
    /// There is no such session.
    NotFound,
}

impl AttachAnswer {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resumed { .. } => "resumed",
            Self::Gone { .. } => "gone",
            Self::NotFound => "not_found",
        }
    }

    /// The session's history, `from` and `tail`, if there is a session.
    fn place(self) -> Option<(SessionEpoch, Offset, Offset)> {
        match self {
            Self::Resumed {
                session_epoch,
                from,
                tail,
            }
            | Self::Gone {
                session_epoch,
                from,
                tail,
            } => Some((session_epoch, from, tail)),
            Self::NotFound => None,
        }
    }

    fn of(word: &str, place: Option<(SessionEpoch, Offset, Offset)>) -> Result<Self, Refusal> {
        let place = place.ok_or_else(|| malformed("session_epoch", "is missing"));
        match word {
            "resumed" => place.map(|(session_epoch, from, tail)| Self::Resumed {
                session_epoch,
                from,
                tail,
            }),
            "gone" => place.map(|(session_epoch, from, tail)| Self::Gone {
                session_epoch,
                from,
                tail,
            }),
            "not_found" => Ok(Self::NotFound),
            _ => Err(malformed("answer", "is not a word that is known here")),
        }
    }
}

/// A client's frame that cannot be read, with its id as far as that could.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{refusal}")]
pub struct BadFrame {
    /// The request's id; empty if it could not be read.
    pub id: String,
    /// Why.
    pub refusal: Refusal,
}

impl From<BadFrame> for Refusal {
    fn from(bad: BadFrame) -> Self {
        bad.refusal
    }
}

/// Reads a client's frame: its id (empty if it has none) and what it asks.
///
/// A published draft has passed [`crate::event::check_posted`] and its shape.
pub fn decode_client(
    subprotocol: Subprotocol,
    bytes: &[u8],
) -> Result<(String, ClientFrame), BadFrame> {
    if bytes.len() > EDGE_FRAME_IN_BYTES_MAX {
        let details = Details {
            limit: Some(EDGE_FRAME_IN_BYTES_MAX as u64),
            ..Details::default()
        };
        return Err(BadFrame {
            id: String::new(),
            refusal: Refusal::with(Code::TooLarge, "the frame is too large", details),
        });
    }
    match subprotocol {
        Subprotocol::Json => json::decode_client(bytes),
        Subprotocol::Proto => binary::decode_client(bytes),
    }
}

/// Writes a client's frame.
pub fn encode_client(subprotocol: Subprotocol, id: &str, frame: &ClientFrame) -> Bytes {
    match subprotocol {
        Subprotocol::Json => json::encode_client(id, frame),
        Subprotocol::Proto => binary::encode_client(id, frame),
    }
}

/// Writes an edge's frame. JSON is UTF-8.
pub fn encode_server(subprotocol: Subprotocol, id: &str, frame: &ServerFrame) -> Bytes {
    match subprotocol {
        Subprotocol::Json => json::encode_server(id, frame),
        Subprotocol::Proto => binary::encode_server(id, frame),
    }
}

/// Reads an edge's frame; `None` for a type that is not known here, which a client ignores.
pub fn decode_server(
    subprotocol: Subprotocol,
    bytes: &[u8],
) -> Result<Option<(String, ServerFrame)>, Refusal> {
    match subprotocol {
        Subprotocol::Json => json::decode_server(bytes),
        Subprotocol::Proto => binary::decode_server(bytes),
    }
}

/// Writes an `events` frame once, to be shared by all who read it. Takes events, references or
/// `Arc`s of them.
pub fn encode_events<E: Borrow<Event>>(
    subprotocol: Subprotocol,
    session: &SessionName,
    range: Covered,
    events: &[E],
) -> Bytes {
    match subprotocol {
        Subprotocol::Json => json::encode_events("", session, range, events),
        Subprotocol::Proto => binary::encode_events("", session, range, events),
    }
}

/// The id of a request: any text, but not a long one, for it comes back in the answer.
fn check_id(id: &str) -> Result<(), Refusal> {
    if id.len() > LABEL_BYTES_MAX {
        let what = format!("an id has at most {LABEL_BYTES_MAX} bytes");
        return Err(malformed("id", what));
    }
    Ok(())
}

/// The `form` of an attach: `raw`, which is the default.
fn check_form(form: &str) -> Result<(), Refusal> {
    match form {
        "" | RAW => Ok(()),
        _ => Err(malformed("form", "only raw is known here")),
    }
}

/// The outcome of a signal from its parts on the wire.
fn outcome(
    word: &str,
    offset: Option<Offset>,
    state: Option<&str>,
) -> Result<SignalOutcome, Refusal> {
    let offset = offset.ok_or_else(|| malformed("offset", "is missing"));
    let state = state
        .and_then(RunState::parse)
        .ok_or_else(|| malformed("state", "is missing, or not known here"));
    match word {
        "applied" => Ok(SignalOutcome::Applied { offset: offset? }),
        "already_terminal" => Ok(SignalOutcome::AlreadyTerminal {
            state: state?,
            offset: offset?,
        }),
        "denied" => Ok(SignalOutcome::Denied),
        "unknown_run" => Ok(SignalOutcome::UnknownRun),
        _ => Err(malformed("outcome", "is not a word that is known here")),
    }
}

/// The offset and state that an outcome tells.
fn outcome_place(outcome: &SignalOutcome) -> (Option<Offset>, Option<&'static str>) {
    match outcome {
        SignalOutcome::Applied { offset } => (Some(*offset), None),
        SignalOutcome::AlreadyTerminal { state, offset } => (Some(*offset), Some(state.as_str())),
        SignalOutcome::Denied | SignalOutcome::UnknownRun => (None, None),
    }
}

const RAW: &str = "raw";
