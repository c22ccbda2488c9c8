//! Reading a session: from a cursor, then live, across any number of connections; each event
//! exactly once.
//!
//! Comes in: stretches of events, of which a server says what range they cover. Goes out: the
//! same, without what was seen before. A hole cannot go out: it is an error in the log and a
//! new attempt from the cursor. Nothing is read ahead of the caller but what flow control lets
//! lie in the connection.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::limits::{ATTEMPT_WITHIN, GRPC_ANSWER_BYTES_MAX, HEARTBEAT_LOST_AFTER};
use everwire_core::{Code, Cursor, Event, Namespace, Offset, Refusal, SessionEpoch, SessionName};
use everwire_proto::refusal::from_error;
use everwire_proto::v1::attach_client::AttachClient;
use everwire_proto::v1::follow_response::Message;
use everwire_proto::{field, v1};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tonic::Streaming;
use tracing::{debug, error};

use crate::backoff::Backoff;
use crate::call::{Caller, Failure, Next, SecondToken, with_token};
use crate::config::BoxFuture;
use crate::connection::Lane;
use crate::route::{Aim, Pace, Route};
use crate::wire::{Stretch, session_epoch};

/// How to read a session.
#[derive(Clone, Default)]
pub struct SubscribeOptions {
    /// The last event that the reader has seen; `None` from the earliest that is kept.
    pub cursor: Option<Cursor>,
    /// Make the session if it is not there and the token allows it. Asked until the first
    /// attach only: a session that is deleted meanwhile is not made again.
    pub create: bool,
    /// Answer only from a replica that has applied this offset.
    pub at_least: Option<Offset>,
    /// For an edge's token only: the namespace that it asks for.
    pub namespace: Option<Namespace>,
    /// Another token than the client's.
    pub token: Option<String>,
}

/// What a reader hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SubscriberEvent {
    /// Attached, for the first time or anew.
    Attached {
        /// The session's history.
        session_epoch: SessionEpoch,
        /// The first offset that comes.
        from: Offset,
        /// The last committed offset at this moment.
        tail: Offset,
    },
    /// The next events. Offsets inside the range that are missing are not for this reader.
    Events {
        /// The first offset that is covered: the one after the last `to`.
        from: Offset,
        /// The last offset that is covered.
        to: Offset,
        /// The last committed offset.
        tail: Offset,
        /// The events, in order.
        events: Vec<Event>,
    },
    /// Nothing new, but the connection lives.
    Alive {
        /// The last committed offset.
        tail: Offset,
        /// How long ago the replica heard its leader.
        leader_seen: Duration,
    },
    /// The cursor belongs to another history or lies below what is kept. Final: subscribe anew.
    Gone {
        /// The history that the session has now.
        session_epoch: Option<SessionEpoch>,
        /// The first offset that can still be read.
        earliest: Offset,
        /// The last committed offset.
        tail: Offset,
    },
    /// There is no such session. Final: subscribe anew.
    NotFound,
    /// The connection broke, or an attempt to make one; it is tried again for ever.
    Disconnected {
        /// Why.
        refusal: Refusal,
    },
    /// Refused for good. Final.
    Ended(Refusal),
}

/// Reads a session. It works only while [`Subscriber::next`] is awaited; nothing piles up.
pub struct Subscriber {
    caller: Caller,
    session: SessionName,
    options: SubscribeOptions,
    /// The last offset that was handed out, once a history is known.
    cursor: Option<Cursor>,
    route: Route,
    backoff: Backoff,
    second: SecondToken,
    stage: Stage,
}

/// Held between calls of `next`, so that a call that is given up loses nothing.
enum Stage {
    /// Opens a stream at that time.
    Pause(Instant),
    /// The stream is being opened.
    Opening(BoxFuture<'static, (Route, Result<Opened, Failure>)>),
    /// Events come; the last sign of life was then.
    Live(Box<Streaming<v1::FollowResponse>>, Instant),
    /// Nothing comes any more.
    Over(Refusal),
}

/// A stream with its first answer.
struct Opened {
    stream: Box<Streaming<v1::FollowResponse>>,
    attached: v1::Attached,
}

/// Opens a stream and waits for its first answer.
async fn opened(
    caller: &Caller,
    route: &mut Route,
    request: v1::FollowRequest,
) -> Result<Opened, Failure> {
    let token = caller.token.token().await.map_err(Failure::refused)?;
    let call = with_token(request, &token).map_err(Failure::refused)?;
    let address = route.choose(&caller.connections, Lane::Read, &token);
    let channel = caller.connections.channel(address, Lane::Read);
    let client = AttachClient::new(channel.map_err(Failure::refused)?);
    let mut client = client.max_decoding_message_size(GRPC_ANSWER_BYTES_MAX);
    let failed = |status: tonic::Status| Failure::status(&status);
    let mut stream = Box::new(client.follow(call).await.map_err(failed)?.into_inner());
    match stream.message().await.map_err(failed)? {
        Some(v1::FollowResponse {
            message: Some(Message::Attached(attached)),
        }) => Ok(Opened { stream, attached }),
        Some(v1::FollowResponse {
            message: Some(Message::Ended(error)),
        }) => Err(Failure::refused(from_error(error))),
        Some(_) => Err(Failure::transport("the first answer was not `attached`")),
        None => Err(Failure::transport("the stream ended before it began")),
    }
}

impl Subscriber {
    pub(crate) fn new(caller: Caller, session: SessionName, options: SubscribeOptions) -> Self {
        Self {
            route: Route::new(
                &caller.connections,
                Aim::Reads(session.clone(), options.namespace.clone()),
            ),
            backoff: Backoff::new(Arc::clone(&caller.random)),
            second: SecondToken::default(),
            cursor: options.cursor,
            stage: Stage::Pause(Instant::now()),
            caller,
            session,
            options,
        }
    }

    /// The session.
    pub fn session(&self) -> &SessionName {
        &self.session
    }

    /// The last event that was handed out, as a cursor to come back with.
    pub fn cursor(&self) -> Option<Cursor> {
        self.cursor
    }

    /// What comes next. Cancel-safe. After a final event it answers [`SubscriberEvent::Ended`].
    pub async fn next(&mut self) -> SubscriberEvent {
        loop {
            match &mut self.stage {
                Stage::Over(refusal) => return SubscriberEvent::Ended(refusal.clone()),
                Stage::Pause(until) => {
                    // The timer rounds up to a millisecond; the first attach need not wait it.
                    if *until > Instant::now() {
                        sleep_until(*until).await;
                    }
                    self.stage = Stage::Opening(self.open());
                },
                Stage::Opening(opening) => {
                    let (route, opened) = opening.await;
                    self.route = route;
                    // A finished future must not be asked again.
                    self.stage = Stage::Pause(Instant::now());
                    return match opened {
                        Ok(opened) => self.attached(opened),
                        Err(failure) => self.failed(failure),
                    };
                },
                Stage::Live(stream, heard) => {
                    // A socket can be open and dead: signs of life come every 10 s.
                    let message = timeout_at(*heard + HEARTBEAT_LOST_AFTER, stream.message()).await;
                    *heard = Instant::now();
                    if let Some(event) = self.heard(message) {
                        return event;
                    }
                },
            }
        }
    }

    /// Opens a stream from the cursor; owns all that it needs, so that it can wait in `stage`.
    fn open(&mut self) -> BoxFuture<'static, (Route, Result<Opened, Failure>)> {
        let request = v1::FollowRequest {
            session: self.session.to_string(),
            cursor: self.cursor.map(v1::Cursor::from),
            create: self.options.create,
            at_least: self.options.at_least.map_or(0, Offset::get),
            namespace: self
                .options
                .namespace
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default(),
        };
        let (caller, mut route) = (self.caller.clone(), self.route.clone());
        Box::pin(async move {
            caller.connections.pace().await;
            let opening = opened(&caller, &mut route, request);
            let silent = |_elapsed| Failure::transport("no answer to the attach");
            let opened = timeout(ATTEMPT_WITHIN, opening).await;
            let opened = opened.map_err(silent).and_then(|opened| opened);
            (route, opened)
        })
    }

    fn attached(&mut self, opened: Opened) -> SubscriberEvent {
        self.second.accepted();
        let attached = opened.attached;
        match self.resolved(&attached) {
            Ok(event) => {
                if let SubscriberEvent::Attached { .. } = event {
                    self.options.create = false;
                    self.stage = Stage::Live(opened.stream, Instant::now());
                }
                event
            },
            Err(failure) => self.failed(failure),
        }
    }

    /// What an attach answer means for this reader.
    fn resolved(&mut self, attached: &v1::Attached) -> Result<SubscriberEvent, Failure> {
        let bad = |refusal: Refusal| Failure::transport(refusal.message);
        let from = field::offset("from", attached.from).map_err(bad)?;
        let tail = field::offset("tail", attached.tail).map_err(bad)?;
        let epoch = session_epoch(&attached.session_epoch);
        match attached.answer() {
            v1::AttachAnswer::Resumed => {
                let epoch = epoch.map_err(bad)?;
                let known = self.cursor.and_then(|cursor| cursor.session_epoch);
                if known.is_some_and(|known| known != epoch) {
                    error!(session = %self.session, "a cursor was resumed in another history");
                    return Ok(self.gone(Some(epoch), Offset::ZERO.next(), tail));
                }
                let seen = match self.cursor {
                    Some(cursor) if from > cursor.offset.next() => {
                        return Err(self.hole(cursor.offset.next(), from));
                    },
                    Some(cursor) => cursor.offset,
                    None => from.previous(),
                };
                self.cursor = Some(Cursor {
                    session_epoch: Some(epoch),
                    offset: seen,
                });
                let from = seen.next();
                Ok(SubscriberEvent::Attached {
                    session_epoch: epoch,
                    from,
                    tail,
                })
            },
            v1::AttachAnswer::Gone => Ok(self.gone(epoch.ok(), from, tail)),
            v1::AttachAnswer::NotFound => Ok(self.not_found()),
            v1::AttachAnswer::Unspecified | v1::AttachAnswer::Snapshot => {
                let message = "the attach answer is not known here";
                Err(Failure::refused(Refusal::new(
                    Code::UnsupportedVersion,
                    message,
                )))
            },
        }
    }

    /// Takes one answer of a live stream; `None` when there is nothing in it for the caller.
    fn heard(
        &mut self,
        message: Result<Result<Option<v1::FollowResponse>, tonic::Status>, impl Sized>,
    ) -> Option<SubscriberEvent> {
        let failure = match message {
            Ok(Ok(Some(v1::FollowResponse {
                message: Some(Message::Events(events)),
            }))) => match Stretch::from_wire(events).map_err(Failure::refused) {
                Ok(stretch) => match self.stretch(stretch) {
                    Ok(event) => return event,
                    Err(failure) => failure,
                },
                Err(failure) => failure,
            },
            Ok(Ok(Some(v1::FollowResponse {
                message: Some(Message::Ended(error)),
            }))) => Failure::refused(from_error(error)),
            Ok(Ok(Some(_))) => Failure::transport("an answer of an unknown kind"),
            Ok(Ok(None)) => Failure::transport("the stream ended"),
            Ok(Err(status)) => Failure::status(&status),
            Err(_elapsed) => Failure::transport("the stream was silent for too long"),
        };
        // Behind an attach, `gone` means that the session changed under the stream: the next
        // attach says how.
        if failure.refusal.code == Code::Gone {
            self.stage = Stage::Pause(Instant::now() + self.backoff.pause());
            return Some(SubscriberEvent::Disconnected {
                refusal: failure.refusal,
            });
        }
        Some(self.failed(failure))
    }

    /// Cuts off what was seen before and moves the cursor.
    fn stretch(&mut self, stretch: Stretch) -> Result<Option<SubscriberEvent>, Failure> {
        let Stretch {
            from,
            to,
            tail,
            mut events,
            leader_seen,
        } = stretch;
        let cursor = self.cursor.as_mut().expect("a live stream has a cursor");
        let expected = cursor.offset.next();
        if from > expected {
            return Err(self.hole(expected, from));
        }
        self.backoff.reset();
        self.route.answered(&self.caller.connections);
        if to < expected {
            // A sign of life, or a stretch that was seen in whole.
            let alive = SubscriberEvent::Alive { tail, leader_seen };
            return Ok((to < from).then_some(alive));
        }
        cursor.offset = to;
        events.retain(|event| event.offset >= expected);
        Ok(Some(SubscriberEvent::Events {
            from: expected,
            to,
            tail,
            events,
        }))
    }

    /// Offsets are missing. That is our mistake somewhere; never the caller's problem.
    fn hole(&self, expected: Offset, from: Offset) -> Failure {
        let session = &self.session;
        error!(%session, %expected, %from, "a hole in a subscription; attaching again");
        Failure::transport(format!("expected offset {expected}, but {from} came"))
    }

    fn failed(&mut self, failure: Failure) -> SubscriberEvent {
        let refusal = failure.refusal.clone();
        let (session, address) = (&self.session, self.route.address());
        debug!(%session, %address, %refusal, "a subscription broke off");
        let connections = Arc::clone(&self.caller.connections);
        let pace = self.route.failed(&connections, &failure);
        let mut pause = match pace {
            Pace::Now => Duration::ZERO,
            Pace::Pause(_) => self.backoff.pause(),
        };
        match (failure.next(), refusal.code) {
            (_, Code::UnknownSession) => return self.not_found(),
            (_, Code::Gone) => {
                let details = &refusal.details;
                let earliest = details.earliest.unwrap_or_else(|| Offset::ZERO.next());
                let tail = details.tail.unwrap_or(Offset::ZERO);
                return self.gone(details.session_epoch, earliest, tail);
            },
            (Next::Here | Next::Elsewhere | Next::Reattach, _) => {},
            (Next::Reauthenticate, _) if self.second.refused() => pause = Duration::ZERO,
            (Next::Reauthenticate | Next::Stop, _) => {
                self.stage = Stage::Over(refusal.clone());
                return SubscriberEvent::Ended(refusal);
            },
        }
        self.stage = Stage::Pause(Instant::now() + pause);
        SubscriberEvent::Disconnected { refusal }
    }

    fn gone(
        &mut self,
        session_epoch: Option<SessionEpoch>,
        earliest: Offset,
        tail: Offset,
    ) -> SubscriberEvent {
        let message = "the cursor belongs to another history or lies below what is kept";
        self.stage = Stage::Over(Refusal::new(Code::Gone, message));
        SubscriberEvent::Gone {
            session_epoch,
            earliest,
            tail,
        }
    }

    fn not_found(&mut self) -> SubscriberEvent {
        let message = "there is no session of this name";
        self.stage = Stage::Over(Refusal::new(Code::UnknownSession, message));
        SubscriberEvent::NotFound
    }
}
