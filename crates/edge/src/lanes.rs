//! What a person asks the nodes to write, in order: one request at a time and lane.
//!
//! People (inputs and signals) and agents (application events) wait apart, so that a stop never
//! waits behind data. Within a lane nothing overtakes. Requests come only from frames that were
//! read; the end of a connection adds none.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use everwire_client::BoxFuture;
use everwire_core::code::Details;
use everwire_core::command::Lane;
use everwire_core::event::Body;
use everwire_core::limits::REQUESTS_PER_SOCKET_MAX;
use everwire_core::{Code, Draft, Key, Refusal, SessionName};
use everwire_proto::frame::ServerFrame;
use everwire_proto::signal::Pressed;
use everwire_proto::token::Bearer;
use tokio::time::timeout;

use crate::upstream::Upstream;

/// Bytes of one socket's requests that wait for their answer.
const REQUEST_BYTES_MAX: usize = 512 << 10;

/// What to write.
#[derive(Debug)]
pub(crate) enum Ask {
    /// An input or an application event.
    Post {
        /// What it says.
        draft: Draft,
        /// The idempotency key.
        key: Option<Key>,
    },
    /// A signal.
    Signal {
        /// Which, and of what.
        pressed: Pressed,
        /// The idempotency key; one is minted if absent.
        key: Option<Key>,
    },
}

/// A request as it was read from a client.
#[derive(Debug)]
pub(crate) struct Request {
    /// The client's name for it.
    pub(crate) id: String,
    /// The session.
    pub(crate) session: SessionName,
    /// What to write.
    pub(crate) ask: Ask,
    /// Bytes that it keeps while it waits.
    pub(crate) bytes: usize,
}

/// The answer to a request.
#[derive(Debug)]
pub(crate) struct Answer {
    /// The client's name for the request.
    pub(crate) id: String,
    /// The session.
    pub(crate) session: SessionName,
    /// What the nodes said.
    pub(crate) result: Result<ServerFrame, Refusal>,
}

impl Ask {
    fn lane(&self) -> Lane {
        match self {
            Self::Signal { .. } => Lane::People,
            Self::Post { draft, .. } => match draft.body {
                Body::Input { .. } => Lane::People,
                _ => Lane::Agents,
            },
        }
    }

    /// Asks the nodes, in the name of `token`'s bearer.
    pub(crate) async fn run(
        self,
        upstream: &dyn Upstream,
        token: &Bearer,
        session: &SessionName,
        within: Duration,
    ) -> Result<ServerFrame, Refusal> {
        let answered = timeout(within, self.ask(upstream, token, session)).await;
        answered.unwrap_or_else(|_| {
            let message = "the session's node does not answer; with the same key it is safe to \
                           ask again";
            Err(Refusal::new(Code::Overloaded, message))
        })
    }

    async fn ask(
        self,
        upstream: &dyn Upstream,
        token: &Bearer,
        session: &SessionName,
    ) -> Result<ServerFrame, Refusal> {
        match self {
            Self::Post { draft, key } => {
                let posted = upstream.post(token, session, draft, key).await?;
                Ok(ServerFrame::Ack {
                    session: session.clone(),
                    session_epoch: posted.session_epoch,
                    offset: posted.offset,
                    duplicate: posted.duplicate,
                })
            },
            Self::Signal { pressed, key } => {
                let signalled = upstream.signal(token, session, &pressed, key).await?;
                Ok(ServerFrame::Outcome {
                    session: session.clone(),
                    session_epoch: signalled.session_epoch,
                    outcome: signalled.outcome,
                    duplicate: signalled.duplicate,
                })
            },
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Request>,
    /// The one that is being answered, and its bytes.
    running: Option<(usize, BoxFuture<'static, Answer>)>,
}

/// The requests of one socket.
pub(crate) struct Lanes {
    upstream: Arc<dyn Upstream>,
    within: Duration,
    people: Queue,
    agents: Queue,
    pending: usize,
    bytes: usize,
}

impl Lanes {
    /// Empty lanes; a request is given up after `within`.
    pub(crate) fn new(upstream: Arc<dyn Upstream>, within: Duration) -> Self {
        Self {
            upstream,
            within,
            people: Queue::default(),
            agents: Queue::default(),
            pending: 0,
            bytes: 0,
        }
    }

    /// Requests that wait for their answer.
    pub(crate) fn pending(&self) -> usize {
        self.pending
    }

    /// Takes a request, unless too much waits already.
    pub(crate) fn push(&mut self, request: Request, token: &Bearer) -> Result<(), Refusal> {
        if self.bytes + request.bytes > REQUEST_BYTES_MAX && self.pending > 0 {
            return Err(too_many(REQUEST_BYTES_MAX));
        }
        self.pending += 1;
        self.bytes += request.bytes;
        let queue = match request.ask.lane() {
            Lane::People => &mut self.people,
            Lane::Agents => &mut self.agents,
        };
        queue.waiting.push_back(request);
        self.start(token);
        Ok(())
    }

    /// Begins whatever is first in its lane. To be called after each answer.
    pub(crate) fn start(&mut self, token: &Bearer) {
        for queue in [&mut self.people, &mut self.agents] {
            if queue.running.is_some() {
                continue;
            }
            let Some(request) = queue.waiting.pop_front() else {
                continue;
            };
            let upstream = Arc::clone(&self.upstream);
            let (token, within) = (token.clone(), self.within);
            let bytes = request.bytes;
            let answer = async move {
                let Request {
                    id, session, ask, ..
                } = request;
                let result = ask.run(&*upstream, &token, &session, within).await;
                Answer {
                    id,
                    session,
                    result,
                }
            };
            queue.running = Some((bytes, Box::pin(answer)));
        }
    }

    /// The next answer; waits for ever when nothing was asked. Cancel-safe.
    pub(crate) async fn answered(&mut self) -> Answer {
        poll_fn(|cx| self.poll_answered(cx)).await
    }

    /// See [`Self::answered`].
    pub(crate) fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<Answer> {
        for queue in [&mut self.people, &mut self.agents] {
            let Some((bytes, running)) = &mut queue.running else {
                continue;
            };
            if let Poll::Ready(answer) = running.as_mut().poll(cx) {
                self.bytes -= *bytes;
                self.pending -= 1;
                queue.running = None;
                return Poll::Ready(answer);
            }
        }
        Poll::Pending
    }

    /// Carries out what was asked before its connection ended: whoever pressed Send or Stop and
    /// then closed the tab meant it.
    pub(crate) async fn finish(mut self, token: Bearer) {
        while self.pending > 0 {
            let _ = self.answered().await;
            self.start(&token);
        }
    }
}

/// Too much of one socket waits for an answer.
pub(crate) fn too_many(limit: usize) -> Refusal {
    let details = Details {
        limit: u64::try_from(limit).ok(),
        ..Details::default()
    };
    let message = "too many requests wait for their answer";
    Refusal::with(Code::TooManyPending, message, details)
}

/// Refuses one request more than a socket may have waiting.
pub(crate) fn check_pending(pending: usize) -> Result<(), Refusal> {
    if pending < REQUESTS_PER_SOCKET_MAX {
        return Ok(());
    }
    Err(too_many(REQUESTS_PER_SOCKET_MAX))
}
