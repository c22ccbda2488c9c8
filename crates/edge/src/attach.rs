//! Attaching a reader: from a cursor to a seat and a place to start.
//!
//! The table of docs/protocol/edge.md. What the room's memory covers is answered from there;
//! everything else the nodes decide, so that both ways give the same answer.

use std::sync::Arc;
use std::time::Duration;

use everwire_client::SubscriberEvent;
use everwire_core::{Code, Cursor, Offset, Refusal, SessionEpoch};
use everwire_proto::frame::AttachAnswer;
use everwire_proto::token::Bearer;
use tokio::time::timeout;

use crate::hub::Hub;
use crate::room::{Closing, Room, Seat, Start, gone};
use crate::upstream::{RoomKey, not_the_readers_fault};
use crate::wake::Wake;

/// Who wants to read what, from where.
pub(crate) struct AttachRequest {
    /// The session.
    pub(crate) key: RoomKey,
    /// The last event seen.
    pub(crate) cursor: Option<Cursor>,
    /// Make the session with this token if it is not there.
    pub(crate) create: Option<Bearer>,
    /// Whom the room wakes, and as what.
    pub(crate) wake: Arc<Wake>,
    /// The attachment's place on its connection.
    pub(crate) slot: u8,
}

/// The answer: a place to start, with a seat, or no.
pub(crate) enum Attachment {
    /// Read on from here.
    Resumed(Seat, Start),
    /// The cursor cannot be served; start anew at `from`.
    Gone(Start),
    /// There is no such session.
    NotFound,
}

impl Attachment {
    /// What the reader is told.
    pub(crate) fn answer(&self) -> AttachAnswer {
        match self {
            Self::Resumed(_, start) => AttachAnswer::Resumed {
                session_epoch: start.session_epoch,
                from: start.from,
                tail: start.tail,
            },
            Self::Gone(start) => AttachAnswer::Gone {
                session_epoch: start.session_epoch,
                from: start.from,
                tail: start.tail,
            },
            Self::NotFound => AttachAnswer::NotFound,
        }
    }
}

/// What the nodes say about a cursor.
enum Verdict {
    Resumed(Start),
    Gone(Option<SessionEpoch>, Offset, Offset),
    NotFound,
}

/// How often an attach starts over because the session was made or replaced meanwhile.
const ATTEMPTS: usize = 4;

/// Attaches a reader. Dropping the future gives the seat back.
pub(crate) async fn attach(hub: Arc<Hub>, request: AttachRequest) -> Result<Attachment, Refusal> {
    let mut create = request.create.as_ref();
    let hint = request.cursor.map(|cursor| cursor.offset);
    for _ in 0..ATTEMPTS {
        let seat = hub.join(&request.key, &request.wake, request.slot, hint);
        match opened(seat.room(), hub.timings.request_within).await {
            Ok(()) => {},
            Err(Closing::NotFound) => match create.take() {
                Some(token) if make(&hub, &request.key, token).await? => continue,
                Some(_) | None => return Ok(Attachment::NotFound),
            },
            Err(Closing::Refused(refusal)) => return Err(refusal),
        }
        if let Some(start) = seat.room().resolve(request.cursor) {
            let (session, from) = (&request.key.session, start.from);
            tracing::debug!(%session, offset = %from, tail = %start.tail, "a reader attaches");
            return Ok(Attachment::Resumed(seat, start));
        }
        let Some(known) = seat.room().session_epoch() else {
            continue;
        };
        match ask(&hub, &request.key, request.cursor).await? {
            Verdict::Resumed(start) if start.session_epoch == known => {
                return Ok(Attachment::Resumed(seat, start));
            },
            // The session was replaced, and the nodes say so before the room's upstream does.
            Verdict::Resumed(start) => {
                let refusal = gone(start.session_epoch, Some(start.from), start.tail);
                seat.room().close(Closing::Refused(refusal));
            },
            Verdict::NotFound => seat.room().close(Closing::NotFound),
            Verdict::Gone(session_epoch, from, tail) => {
                let session_epoch = session_epoch.unwrap_or(known);
                return Ok(Attachment::Gone(Start {
                    session_epoch,
                    from,
                    tail,
                }));
            },
        }
    }
    let message = "the session is being replaced over and over";
    Err(Refusal::new(Code::Overloaded, message))
}

async fn opened(room: &Room, within: Duration) -> Result<(), Closing> {
    match timeout(within, room.opened()).await {
        Ok(result) => result,
        Err(_) => Err(Closing::Refused(room.trouble().unwrap_or_else(|| {
            Refusal::new(Code::Overloaded, "the session's node does not answer")
        }))),
    }
}

/// Makes the session, if the token allows it: that is for the nodes to say.
async fn make(hub: &Hub, key: &RoomKey, token: &Bearer) -> Result<bool, Refusal> {
    match hub.upstream.create(token, &key.session).await {
        Ok(_) => Ok(true),
        Err(refusal) if matches!(refusal.code, Code::Denied | Code::UnknownSession) => Ok(false),
        Err(refusal) => Err(refusal),
    }
}

async fn ask(hub: &Hub, key: &RoomKey, cursor: Option<Cursor>) -> Result<Verdict, Refusal> {
    let within = hub.timings.request_within;
    let verdict = async {
        match cursor {
            None => earliest(hub, key).await,
            Some(cursor) => judge(hub, key, cursor).await,
        }
    };
    match timeout(within, verdict).await {
        Ok(verdict) => verdict.map_err(not_the_readers_fault),
        Err(_) => {
            let message = "the session's node does not answer";
            Err(Refusal::new(Code::Overloaded, message))
        },
    }
}

/// Where a reader without a cursor starts.
async fn earliest(hub: &Hub, key: &RoomKey) -> Result<Verdict, Refusal> {
    match hub.upstream.read(key, None, Offset::ZERO, 1).await {
        Ok(page) => Ok(Verdict::Resumed(Start {
            session_epoch: page.session_epoch,
            from: page.from,
            tail: page.tail,
        })),
        Err(refusal) if refusal.code == Code::UnknownSession => Ok(Verdict::NotFound),
        Err(refusal) => Err(refusal),
    }
}

/// What the nodes say about a cursor: attaches there for one answer.
async fn judge(hub: &Hub, key: &RoomKey, cursor: Cursor) -> Result<Verdict, Refusal> {
    let mut subscription = hub.upstream.subscribe(key, Some(cursor));
    loop {
        return match subscription.next().await {
            SubscriberEvent::Attached {
                session_epoch,
                from,
                tail,
            } => Ok(Verdict::Resumed(Start {
                session_epoch,
                from,
                tail,
            })),
            SubscriberEvent::Gone {
                session_epoch,
                earliest,
                tail,
            } => Ok(Verdict::Gone(session_epoch, earliest, tail)),
            SubscriberEvent::NotFound => Ok(Verdict::NotFound),
            SubscriberEvent::Ended(refusal) => Err(refusal),
            SubscriberEvent::Disconnected { .. }
            | SubscriberEvent::Events { .. }
            | SubscriberEvent::Alive { .. } => continue,
        };
    }
}
