//! A session as an event stream, for those who cannot hold a socket.
//!
//! The same rooms and the same readers as sockets have. hyper asks for the next piece only when
//! the one before has left, so nothing piles up here either.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use everwire_core::{Code, Cursor, Refusal, SessionName};
use everwire_proto::frame::{ServerFrame, Subprotocol, encode_server};
use everwire_proto::json::refusal_to_json;
use everwire_proto::token::Bearer;
use futures_util::stream;
use serde::Deserialize;
use tokio::time::sleep;

use crate::attach::{AttachRequest, Attachment, attach};
use crate::encode::{Encoding, Form, sse_event};
use crate::http::{answered, caller, path};
use crate::identity::Identity;
use crate::member::{Member, Step};
use crate::shared::{Shared, SocketPlace};

const LAST_EVENT_ID: &str = "last-event-id";

/// How long a browser waits before it comes back: at least so much, and at most double.
const COME_BACK_MS: u64 = 1_000;

/// What stands behind the `?`.
#[derive(Deserialize)]
pub(crate) struct Asked {
    from: Option<String>,
    form: Option<String>,
    ticket: Option<String>,
    #[serde(default)]
    create: bool,
}

/// `GET /v1/sessions/{session}/events`.
pub(crate) async fn open(
    State(edge): State<Arc<Shared>>,
    session: Result<Path<String>, PathRejection>,
    asked: Result<Query<Asked>, QueryRejection>,
    headers: HeaderMap,
) -> Response {
    let work = async {
        let Ok(Query(asked)) = asked else {
            return Err(Refusal::new(Code::Malformed, "the query cannot be read"));
        };
        let identity = match &asked.ticket {
            Some(ticket) => edge.tickets.redeem(ticket)?,
            None => caller(&edge, &headers)?,
        };
        if asked.form.is_some_and(|form| form != "raw") {
            return Err(Refusal::new(Code::Malformed, "the form is raw"));
        }
        let session = SessionName::parse(&path(session)?)?;
        let last_seen = headers.get(LAST_EVENT_ID);
        let last_seen = last_seen.map(|value| value.to_str().unwrap_or("?").to_owned());
        let cursor = match last_seen.or(asked.from) {
            Some(text) if !text.is_empty() => Some(text.parse::<Cursor>()?),
            Some(_) | None => None,
        };
        let create = asked.create.then(|| identity.token.clone());
        follow(&edge, identity, session, cursor, create).await
    };
    answered(&edge, work.await)
}

async fn follow(
    edge: &Arc<Shared>,
    identity: Identity,
    session: SessionName,
    cursor: Option<Cursor>,
    create: Option<Bearer>,
) -> Result<Response, Refusal> {
    edge.check_heard()?;
    let place = edge.enter_stream();
    let request = AttachRequest {
        key: identity.may_read(&session, edge.clock.now())?,
        cursor,
        create,
        wake: Arc::clone(place.wake()),
        slot: 0,
    };
    let attachment = attach(Arc::clone(&edge.hub), request).await?;
    let answer = attachment.answer();
    let mut events = EventStream {
        edge: Arc::clone(edge),
        place,
        identity,
        member: None,
        first: None,
    };
    match attachment {
        Attachment::NotFound => {
            let message = "there is no such session";
            return Err(Refusal::new(Code::UnknownSession, message));
        },
        Attachment::Gone(_) => {
            let attached = ServerFrame::Attached { session, answer };
            let json = encode_server(Subprotocol::Json, "", &attached);
            let json = String::from_utf8_lossy(&json);
            events.first = Some(Bytes::from(sse_event("gone", &json)));
        },
        Attachment::Resumed(seat, start) => {
            let form = Form {
                encoding: Encoding::Sse,
                viewer: events.identity.viewer(),
            };
            events.member = Some(Member::new(seat, start, form));
            let retry = COME_BACK_MS + edge.random.next() % COME_BACK_MS;
            events.first = Some(Bytes::from(format!("retry: {retry}\n\n")));
        },
    }
    let body = stream::unfold(events, |mut events| async move {
        let piece = events.next().await?;
        Some((Ok::<_, Infallible>(piece), events))
    });
    let mut response = Response::new(Body::from_stream(body));
    *response.status_mut() = StatusCode::OK;
    let value = HeaderValue::from_static("text/event-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    Ok(response)
}

/// One reader behind an event stream. Dropping it gives its seat back and does nothing else.
struct EventStream {
    edge: Arc<Shared>,
    place: SocketPlace,
    identity: Identity,
    /// `None` when nothing more comes.
    member: Option<Member>,
    /// What goes before the first event.
    first: Option<Bytes>,
}

impl EventStream {
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(first) = self.first.take() {
            return Some(first);
        }
        loop {
            let member = self.member.as_mut()?;
            if let Err(refusal) = self.identity.claims().check_time(self.edge.clock.now()) {
                return Some(self.bye(&refusal));
            }
            match member.step(true) {
                Step::Send(bytes) => return Some(bytes),
                Step::Fetch(fetch) => match fetch.run(Arc::clone(&self.edge.hub)).await {
                    Ok(fetched) => {
                        member.fetched(&fetched);
                        return Some(fetched.bytes);
                    },
                    Err(refusal) => return Some(self.bye(&refusal)),
                },
                Step::Over(refusal) => return Some(self.bye(&refusal)),
                Step::Wait => {
                    if let Some(piece) = self.wait().await {
                        return Some(piece);
                    }
                },
            }
        }
    }

    /// Waits for the room, the edge's end or the time for a sign of life.
    async fn wait(&mut self) -> Option<Bytes> {
        let left = self.identity.expires().since(self.edge.clock.now());
        let heartbeat = self.edge.timings.heartbeat_every;
        tokio::select! {
            () = self.place.wake().woken() => {},
            () = sleep(left.min(heartbeat)) => {
                return Some(Bytes::from_static(b": alive\n\n"));
            },
        }
        let (_, orders) = self.place.wake().take();
        if orders.bye || orders.moving_ms.is_some() {
            let message = "this edge stops; connect to another";
            return Some(self.bye(&Refusal::new(Code::Draining, message)));
        }
        None
    }

    fn bye(&mut self, refusal: &Refusal) -> Bytes {
        self.member = None;
        self.edge.metrics.refused(refusal.code);
        Bytes::from(sse_event("bye", &refusal_to_json(refusal)))
    }
}
