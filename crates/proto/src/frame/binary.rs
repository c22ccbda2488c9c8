//! Subprotocol `everwire.v1.proto`: one message of `everwire.edge.v1` a frame.

use std::borrow::Borrow;

use bytes::Bytes;
use everwire_core::Refusal;
use everwire_core::event::Event;
use everwire_core::ids::SessionName;
use everwire_core::position::Offset;
use prost::Message;

use super::{
    AttachAnswer, BadFrame, ClientFrame, Covered, RAW, ServerFrame, check_form, check_id, outcome,
    outcome_place,
};
use crate::edge_v1 as wire;
use crate::edge_v1::client_frame::Frame as FromClient;
use crate::edge_v1::server_frame::Frame as ToClient;
use crate::event::{check_posted, events_from_wire, events_to_wire, text};
use crate::field::{self, malformed};
use crate::refusal::from_error;
use crate::signal::pressed;
use crate::token::Bearer;

// === From a client ===

pub(super) fn encode_client(id: &str, frame: &ClientFrame) -> Bytes {
    let frame = match frame {
        ClientFrame::Auth { token } => FromClient::Auth(wire::Auth {
            token: token.as_str().to_owned(),
        }),
        ClientFrame::Attach {
            session,
            cursor,
            create,
        } => FromClient::Attach(wire::Attach {
            session: session.to_string(),
            cursor: cursor.map(Into::into),
            form: RAW.to_owned(),
            create: *create,
        }),
        ClientFrame::Detach { session } => FromClient::Detach(wire::Detach {
            session: session.to_string(),
        }),
        ClientFrame::Publish {
            session,
            draft,
            key,
        } => FromClient::Publish(wire::Publish {
            session: session.to_string(),
            draft: Some(draft.into()),
            key: text(key.as_ref()),
        }),
        ClientFrame::Signal {
            session,
            pressed,
            key,
        } => FromClient::Signal(wire::Signal {
            session: session.to_string(),
            key: key.to_string(),
            ..pressed.fields()
        }),
        ClientFrame::Refresh { token } => FromClient::Refresh(wire::Refresh {
            token: token.as_str().to_owned(),
        }),
        ClientFrame::Ping => FromClient::Ping(wire::Ping {}),
    };
    let frame = wire::ClientFrame {
        id: id.to_owned(),
        frame: Some(frame),
    };
    frame.encode_to_vec().into()
}

pub(super) fn decode_client(bytes: &[u8]) -> Result<(String, ClientFrame), BadFrame> {
    let bad = |id: &str, refusal| BadFrame {
        id: id.to_owned(),
        refusal,
    };
    let frame = wire::ClientFrame::decode(bytes)
        .map_err(|_library| bad("", malformed("frame", "is not a ClientFrame")))?;
    check_id(&frame.id).map_err(|refusal| bad("", refusal))?;
    let asked = client(frame.frame).map_err(|refusal| bad(&frame.id, refusal))?;
    Ok((frame.id, asked))
}

fn client(frame: Option<FromClient>) -> Result<ClientFrame, Refusal> {
    let session = |name: &str| field::name("session", name);
    Ok(match frame {
        Some(FromClient::Auth(frame)) => ClientFrame::Auth {
            token: Bearer::new(frame.token),
        },
        Some(FromClient::Attach(frame)) => {
            check_form(&frame.form)?;
            ClientFrame::Attach {
                session: session(&frame.session)?,
                cursor: frame.cursor.map(TryInto::try_into).transpose()?,
                create: frame.create,
            }
        },
        Some(FromClient::Detach(frame)) => ClientFrame::Detach {
            session: session(&frame.session)?,
        },
        Some(FromClient::Publish(frame)) => {
            let session = session(&frame.session)?;
            let draft = frame
                .draft
                .ok_or_else(|| malformed("event", "is missing"))?;
            let draft = draft.try_into()?;
            let key = field::optional_name("key", &frame.key)?;
            check_posted(&draft, key.as_ref())?;
            ClientFrame::Publish {
                session,
                draft,
                key,
            }
        },
        Some(FromClient::Signal(frame)) => ClientFrame::Signal {
            session: session(&frame.session)?,
            pressed: pressed(&frame)?,
            key: field::name("key", &frame.key)?,
        },
        Some(FromClient::Refresh(frame)) => ClientFrame::Refresh {
            token: Bearer::new(frame.token),
        },
        Some(FromClient::Ping(wire::Ping {})) => ClientFrame::Ping,
        None => return Err(malformed("frame", "is missing, or not known here")),
    })
}

// === To a client ===

pub(super) fn encode_events<E: Borrow<Event>>(
    id: &str,
    session: &SessionName,
    range: Covered,
    events: &[E],
) -> Bytes {
    let events = wire::SessionEvents {
        session: session.to_string(),
        events: Some(events_to_wire(range, events)),
    };
    encode(id, ToClient::Events(events))
}

fn encode(id: &str, frame: ToClient) -> Bytes {
    let frame = wire::ServerFrame {
        id: id.to_owned(),
        frame: Some(frame),
    };
    frame.encode_to_vec().into()
}

pub(super) fn encode_server(id: &str, frame: &ServerFrame) -> Bytes {
    let frame = match frame {
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
        } => ToClient::Welcome(wire::Welcome {
            participant: participant.to_string(),
            heartbeat_ms: *heartbeat_ms,
            lost_after_ms: *lost_after_ms,
            token_expires_ms: token_expires.0,
            edge: edge.clone(),
        }),
        ServerFrame::Attached { session, answer } => attached_to(session, *answer),
        ServerFrame::Ack {
            session,
            session_epoch,
            offset,
            duplicate,
        } => ToClient::Ack(wire::Ack {
            session: session.to_string(),
            session_epoch: session_epoch.to_string(),
            offset: offset.get(),
            duplicate: *duplicate,
        }),
        ServerFrame::Outcome {
            session,
            session_epoch,
            outcome,
            duplicate,
        } => {
            let (offset, state) = outcome_place(outcome);
            ToClient::Outcome(wire::Outcome {
                session: session.to_string(),
                session_epoch: text(session_epoch.as_ref()),
                outcome: outcome.as_str().to_owned(),
                offset: offset.map(Offset::get),
                state: state.map(str::to_owned),
                duplicate: *duplicate,
            })
        },
        ServerFrame::Expiring { token_expires } => ToClient::Expiring(wire::Expiring {
            token_expires_ms: token_expires.0,
        }),
        ServerFrame::Moving { within_ms } => ToClient::Moving(wire::Moving {
            within_ms: *within_ms,
        }),
        ServerFrame::Pong => ToClient::Pong(wire::Pong {}),
        ServerFrame::Error { session, refusal } => ToClient::Error(wire::SessionError {
            session: text(session.as_ref()),
            error: Some(refusal.into()),
        }),
        ServerFrame::Bye { refusal } => ToClient::Bye(wire::Bye {
            error: Some(refusal.into()),
        }),
    };
    encode(id, frame)
}

fn attached_to(session: &SessionName, answer: AttachAnswer) -> ToClient {
    let place = answer.place();
    ToClient::Attached(wire::Attached {
        session: session.to_string(),
        session_epoch: text(place.map(|(epoch, _, _)| epoch).as_ref()),
        answer: answer.as_str().to_owned(),
        from: place.map_or(0, |(_, from, _)| from.get()),
        tail: place.map_or(0, |(_, _, tail)| tail.get()),
    })
}

pub(super) fn decode_server(bytes: &[u8]) -> Result<Option<(String, ServerFrame)>, Refusal> {
    let frame = wire::ServerFrame::decode(bytes)
        .map_err(|_library| malformed("frame", "is not a ServerFrame"))?;
    match frame.frame {
        Some(told) => Ok(Some((frame.id, server(told)?))),
        None => Ok(None),
    }
}

fn server(frame: ToClient) -> Result<ServerFrame, Refusal> {
    let session = |name: &str| field::name("session", name);
    let error = |error: Option<crate::v1::Error>| {
        let error = error.ok_or_else(|| malformed("error", "is missing"))?;
        Ok::<_, Refusal>(from_error(error))
    };
    Ok(match frame {
        ToClient::Welcome(frame) => ServerFrame::Welcome {
            participant: field::name("participant", &frame.participant)?,
            edge: frame.edge,
            heartbeat_ms: frame.heartbeat_ms,
            lost_after_ms: frame.lost_after_ms,
            token_expires: field::time("token_expires", frame.token_expires_ms)?,
        },
        ToClient::Attached(frame) => ServerFrame::Attached {
            session: session(&frame.session)?,
            answer: attached(&frame)?,
        },
        ToClient::Events(frame) => {
            let events = frame
                .events
                .ok_or_else(|| malformed("events", "is missing"))?;
            let (range, events) = events_from_wire(events)?;
            ServerFrame::Events {
                session: session(&frame.session)?,
                range,
                events,
            }
        },
        ToClient::Ack(frame) => ServerFrame::Ack {
            session: session(&frame.session)?,
            session_epoch: field::name("session_epoch", &frame.session_epoch)?,
            offset: field::offset("offset", frame.offset)?,
            duplicate: frame.duplicate,
        },
        ToClient::Outcome(frame) => {
            let offset = frame.offset.map(|offset| field::offset("offset", offset));
            let state = frame.state.as_deref();
            ServerFrame::Outcome {
                session: session(&frame.session)?,
                session_epoch: field::session_epoch("session_epoch", &frame.session_epoch)?,
                outcome: outcome(&frame.outcome, offset.transpose()?, state)?,
                duplicate: frame.duplicate,
            }
        },
        ToClient::Expiring(frame) => ServerFrame::Expiring {
            token_expires: field::time("token_expires", frame.token_expires_ms)?,
        },
        ToClient::Moving(frame) => ServerFrame::Moving {
            within_ms: frame.within_ms,
        },
        ToClient::Pong(wire::Pong {}) => ServerFrame::Pong,
        ToClient::Error(frame) => ServerFrame::Error {
            session: field::optional_name("session", &frame.session)?,
            refusal: error(frame.error)?,
        },
        ToClient::Bye(frame) => ServerFrame::Bye {
            refusal: error(frame.error)?,
        },
    })
}

fn attached(frame: &wire::Attached) -> Result<AttachAnswer, Refusal> {
    let epoch = field::session_epoch("session_epoch", &frame.session_epoch)?;
    let place = match epoch {
        None => None,
        Some(epoch) => Some((
            epoch,
            field::offset("from", frame.from)?,
            field::offset("tail", frame.tail)?,
        )),
    };
    AttachAnswer::of(&frame.answer, place)
}
