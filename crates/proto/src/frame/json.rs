//! Subprotocol `everwire.v1.json`: one object a frame, `t` says which.

use std::borrow::Borrow;

use bytes::Bytes;
use everwire_core::Refusal;
use everwire_core::event::Event;
use everwire_core::ids::SessionName;
use everwire_core::position::{Cursor, Offset, SessionEpoch};
use serde::{Serialize, Serializer};

use super::{
    AttachAnswer, BadFrame, ClientFrame, Covered, RAW, ServerFrame, check_form, check_id, outcome,
    outcome_place,
};
use crate::event::check_posted;
use crate::field::malformed;
use crate::json::read::{self, Fields};
use crate::json::write::{self, DetailsJson, DraftJson, EpochText, EventJson, Rfc3339};
use crate::signal::{Pressed, pressed};
use crate::token::Bearer;

/// Bytes of an event's JSON besides its payload, roughly: the first guess of a buffer's size.
const ENVELOPE_BYTES: usize = 320;

fn encode(frame: &impl Serialize) -> Bytes {
    write::bytes(frame, ENVELOPE_BYTES).into()
}

// === From a client ===

#[derive(Serialize)]
#[serde(tag = "t", rename_all = "snake_case")]
enum ClientJson<'a> {
    Auth {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        token: &'a str,
    },
    Attach {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        session: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        cursor: Option<CursorJson>,
        form: &'static str,
        create: bool,
    },
    Detach {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        session: &'a str,
    },
    Publish {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        session: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        key: Option<&'a str>,
        event: Box<DraftJson<'a>>,
    },
    Signal {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        session: &'a str,
        #[serde(flatten)]
        fields: Box<SignalJson>,
        key: &'a str,
    },
    Refresh {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        token: &'a str,
    },
    Ping {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
    },
}

/// The fields of a signal that are set.
#[derive(Serialize)]
struct SignalJson {
    signal: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    run: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    subtree: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    input: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    input_by: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    all: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    graceful_ms: Option<u32>,
    #[serde(skip_serializing_if = "String::is_empty")]
    expect: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    as_of: Option<u64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    approval: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    action_hash: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    note: String,
}

impl SignalJson {
    fn new(pressed: &Pressed) -> Self {
        let fields = pressed.fields();
        Self {
            signal: fields.signal,
            run: fields.run,
            subtree: fields.subtree,
            input: fields.input,
            input_by: fields.input_by,
            all: fields.all.then_some(true),
            graceful_ms: (fields.graceful_ms > 0).then_some(fields.graceful_ms),
            expect: fields.expect,
            as_of: fields.as_of,
            approval: fields.approval,
            action_hash: fields.action_hash,
            note: fields.note,
        }
    }
}

#[derive(Serialize)]
struct CursorJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    session_epoch: Option<EpochText>,
    offset: u64,
}

pub(super) fn encode_client(id: &str, frame: &ClientFrame) -> Bytes {
    encode(&match frame {
        ClientFrame::Auth { token } => ClientJson::Auth {
            id,
            token: token.as_str(),
        },
        ClientFrame::Attach {
            session,
            cursor,
            create,
        } => ClientJson::Attach {
            id,
            session: session.as_str(),
            cursor: cursor.map(|cursor| CursorJson {
                session_epoch: cursor.session_epoch.map(EpochText),
                offset: cursor.offset.get(),
            }),
            form: RAW,
            create: *create,
        },
        ClientFrame::Detach { session } => ClientJson::Detach {
            id,
            session: session.as_str(),
        },
        ClientFrame::Publish {
            session,
            draft,
            key,
        } => ClientJson::Publish {
            id,
            session: session.as_str(),
            key: key.as_ref().map(|key| key.as_str()),
            event: Box::new(DraftJson::new(draft)),
        },
        ClientFrame::Signal {
            session,
            pressed,
            key,
        } => ClientJson::Signal {
            id,
            session: session.as_str(),
            fields: Box::new(SignalJson::new(pressed)),
            key: key.as_str(),
        },
        ClientFrame::Refresh { token } => ClientJson::Refresh {
            id,
            token: token.as_str(),
        },
        ClientFrame::Ping => ClientJson::Ping { id },
    })
}

pub(super) fn decode_client(bytes: &[u8]) -> Result<(String, ClientFrame), BadFrame> {
    let bad = |id: &str, refusal| BadFrame {
        id: id.to_owned(),
        refusal,
    };
    let fields = Fields::parse("frame", bytes).map_err(|refusal| bad("", refusal))?;
    let id = id(&fields).map_err(|refusal| bad("", refusal))?;
    let frame = client(&fields).map_err(|refusal| bad(&id, refusal))?;
    Ok((id, frame))
}

fn id(fields: &Fields<'_>) -> Result<String, Refusal> {
    let id = fields.text("id")?.unwrap_or_default();
    check_id(&id)?;
    Ok(id)
}

fn client(fields: &Fields<'_>) -> Result<ClientFrame, Refusal> {
    let session = || fields.some_name("session");
    let token = || fields.some_text("token").map(Bearer::new);
    Ok(match fields.some_text("t")?.as_str() {
        "auth" => ClientFrame::Auth { token: token()? },
        "attach" => {
            check_form(&fields.text("form")?.unwrap_or_default())?;
            ClientFrame::Attach {
                session: session()?,
                cursor: cursor(fields)?,
                create: fields.flag("create")?,
            }
        },
        "detach" => ClientFrame::Detach {
            session: session()?,
        },
        "publish" => {
            let session = session()?;
            let event = fields.need("event", fields.alone("event")?)?;
            let draft = read::draft(&event)?;
            let key = fields.name("key")?;
            check_posted(&draft, key.as_ref())?;
            ClientFrame::Publish {
                session,
                draft,
                key,
            }
        },
        "signal" => ClientFrame::Signal {
            session: session()?,
            pressed: pressed(&read::signal_fields(fields)?)?,
            key: fields.some_name("key")?,
        },
        "refresh" => ClientFrame::Refresh { token: token()? },
        "ping" => ClientFrame::Ping,
        _ => return Err(malformed("t", "is not a frame that is known here")),
    })
}

fn cursor(fields: &Fields<'_>) -> Result<Option<Cursor>, Refusal> {
    let Some(cursor) = fields.object("cursor")? else {
        return Ok(None);
    };
    Ok(Some(Cursor {
        session_epoch: cursor.name("session_epoch")?,
        offset: cursor.some_offset("offset")?,
    }))
}

// === To a client ===

#[derive(Serialize)]
#[serde(tag = "t", rename_all = "snake_case")]
enum ServerJson<'a> {
    Welcome {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        participant: &'a str,
        edge: &'a str,
        heartbeat_ms: u32,
        lost_after_ms: u32,
        token_expires: Rfc3339,
    },
    Attached {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        session: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        session_epoch: Option<EpochText>,
        answer: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        from: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        tail: Option<u64>,
    },
    Ack {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        session: &'a str,
        session_epoch: EpochText,
        offset: u64,
        duplicate: bool,
    },
    Outcome {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        session: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        session_epoch: Option<EpochText>,
        outcome: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        offset: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        state: Option<&'static str>,
        duplicate: bool,
    },
    Expiring {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        token_expires: Rfc3339,
    },
    Moving {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        within_ms: u32,
    },
    Pong {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
    },
    Error {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        session: Option<&'a str>,
        code: &'static str,
        message: &'a str,
        advice: &'static str,
        details: DetailsJson<'a>,
    },
    Bye {
        #[serde(skip_serializing_if = "str::is_empty")]
        id: &'a str,
        code: &'static str,
        message: &'a str,
        advice: &'static str,
        details: DetailsJson<'a>,
    },
}

#[derive(Serialize)]
#[serde(bound(serialize = "E: Borrow<Event>"))]
struct EventsJson<'a, E> {
    t: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    id: &'a str,
    session: &'a str,
    from: u64,
    to: u64,
    tail: u64,
    events: EventList<'a, E>,
    leader_seen_ms: u32,
}

struct EventList<'a, E>(&'a [E]);

impl<E: Borrow<Event>> Serialize for EventList<'_, E> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|event| EventJson::new(event.borrow())))
    }
}

pub(super) fn encode_events<E: Borrow<Event>>(
    id: &str,
    session: &SessionName,
    range: Covered,
    events: &[E],
) -> Bytes {
    let payload = |event: &E| event.borrow().payload_bytes() + ENVELOPE_BYTES;
    let capacity = events.iter().map(payload).sum::<usize>() + ENVELOPE_BYTES;
    let frame = EventsJson {
        t: "events",
        id,
        session: session.as_str(),
        from: range.from.get(),
        to: range.to.get(),
        tail: range.tail.get(),
        events: EventList(events),
        leader_seen_ms: range.leader_seen_ms,
    };
    write::bytes(&frame, capacity).into()
}

pub(super) fn encode_server(id: &str, frame: &ServerFrame) -> Bytes {
    encode(&match frame {
        ServerFrame::Events {
            session,
            range,
            events,
        } => return encode_events(id, session, *range, events),
        ServerFrame::Welcome {
            participant,
            edge,
            heartbeat_ms,
            lost_after_ms,
            token_expires,
        } => ServerJson::Welcome {
            id,
            participant: participant.as_str(),
            edge,
            heartbeat_ms: *heartbeat_ms,
            lost_after_ms: *lost_after_ms,
            token_expires: Rfc3339(*token_expires),
        },
        ServerFrame::Attached { session, answer } => attached_json(id, session, *answer),
        ServerFrame::Ack {
            session,
            session_epoch,
            offset,
            duplicate,
        } => ServerJson::Ack {
            id,
            session: session.as_str(),
            session_epoch: EpochText(*session_epoch),
            offset: offset.get(),
            duplicate: *duplicate,
        },
        ServerFrame::Outcome {
            session,
            session_epoch,
            outcome,
            duplicate,
        } => {
            let (offset, state) = outcome_place(outcome);
            ServerJson::Outcome {
                id,
                session: session.as_str(),
                session_epoch: session_epoch.map(EpochText),
                outcome: outcome.as_str(),
                offset: offset.map(Offset::get),
                state,
                duplicate: *duplicate,
            }
        },
        ServerFrame::Expiring { token_expires } => ServerJson::Expiring {
            id,
            token_expires: Rfc3339(*token_expires),
        },
        ServerFrame::Moving { within_ms } => ServerJson::Moving {
            id,
            within_ms: *within_ms,
        },
        ServerFrame::Pong => ServerJson::Pong { id },
        ServerFrame::Error { session, refusal } => error_json(id, session.as_ref(), refusal),
        ServerFrame::Bye { refusal } => bye_json(id, refusal),
    })
}

fn attached_json<'a>(
    id: &'a str,
    session: &'a SessionName,
    answer: AttachAnswer,
) -> ServerJson<'a> {
    let place = answer.place();
    ServerJson::Attached {
        id,
        session: session.as_str(),
        session_epoch: place.map(|(epoch, _, _)| EpochText(epoch)),
        answer: answer.as_str(),
        from: place.map(|(_, from, _)| from.get()),
        tail: place.map(|(_, _, tail)| tail.get()),
    }
}

fn error_json<'a>(
    id: &'a str,
    session: Option<&'a SessionName>,
    refusal: &'a Refusal,
) -> ServerJson<'a> {
    ServerJson::Error {
        id,
        session: session.map(|session| session.as_str()),
        code: refusal.code.as_str(),
        message: &refusal.message,
        advice: refusal.advice().as_str(),
        details: DetailsJson::new(&refusal.details),
    }
}

fn bye_json<'a>(id: &'a str, refusal: &'a Refusal) -> ServerJson<'a> {
    ServerJson::Bye {
        id,
        code: refusal.code.as_str(),
        message: &refusal.message,
        advice: refusal.advice().as_str(),
        details: DetailsJson::new(&refusal.details),
    }
}

pub(super) fn decode_server(bytes: &[u8]) -> Result<Option<(String, ServerFrame)>, Refusal> {
    let fields = Fields::parse("frame", bytes)?;
    let frame = server(&fields)?;
    let id = fields.text("id")?.unwrap_or_default();
    Ok(frame.map(|frame| (id, frame)))
}

fn server(fields: &Fields<'_>) -> Result<Option<ServerFrame>, Refusal> {
    let session = || fields.some_name("session");
    let some_small = |name| fields.need(name, fields.small(name)?);
    Ok(Some(match fields.some_text("t")?.as_str() {
        "welcome" => ServerFrame::Welcome {
            participant: fields.some_name("participant")?,
            edge: fields.some_text("edge")?,
            heartbeat_ms: some_small("heartbeat_ms")?,
            lost_after_ms: some_small("lost_after_ms")?,
            token_expires: fields.time("token_expires")?,
        },
        "attached" => ServerFrame::Attached {
            session: session()?,
            answer: attached(fields)?,
        },
        "events" => ServerFrame::Events {
            session: session()?,
            range: Covered {
                from: fields.some_offset("from")?,
                to: fields.some_offset("to")?,
                tail: fields.some_offset("tail")?,
                leader_seen_ms: fields.small("leader_seen_ms")?.unwrap_or(0),
            },
            events: fields
                .all_alone("events")?
                .iter()
                .map(read::event)
                .collect::<Result<_, _>>()?,
        },
        "ack" => ServerFrame::Ack {
            session: session()?,
            session_epoch: fields.some_name("session_epoch")?,
            offset: fields.some_offset("offset")?,
            duplicate: fields.flag("duplicate")?,
        },
        "outcome" => ServerFrame::Outcome {
            session: session()?,
            session_epoch: fields.name("session_epoch")?,
            outcome: outcome(
                &fields.some_text("outcome")?,
                fields.offset("offset")?,
                fields.text("state")?.as_deref(),
            )?,
            duplicate: fields.flag("duplicate")?,
        },
        "expiring" => ServerFrame::Expiring {
            token_expires: fields.time("token_expires")?,
        },
        "moving" => ServerFrame::Moving {
            within_ms: some_small("within_ms")?,
        },
        "pong" => ServerFrame::Pong,
        "error" => ServerFrame::Error {
            session: fields.name("session")?,
            refusal: read::refusal(fields)?,
        },
        "bye" => ServerFrame::Bye {
            refusal: read::refusal(fields)?,
        },
        _ => return Ok(None),
    }))
}

fn attached(fields: &Fields<'_>) -> Result<AttachAnswer, Refusal> {
    let epoch: Option<SessionEpoch> = fields.name("session_epoch")?;
    let place = match epoch {
        None => None,
        Some(epoch) => Some((
            epoch,
            fields.some_offset("from")?,
            fields.some_offset("tail")?,
        )),
    };
    AttachAnswer::of(&fields.some_text("answer")?, place)
}
