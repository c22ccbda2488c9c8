//! `Attach`: reads a session, from a cursor and then live, or page by page.
//!
//! The place of a reader is the shard's business; here is who may read and what of it. Events
//! that a reader may not see leave no hole: ranges cover them.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use everwire_core::grant::Capability;
use everwire_core::limits::READ_BYTES_MAX;
use everwire_core::{
    Event, Namespace, Offset, Op, ParticipantKind, Refusal, SessionEpoch, SessionName,
};
use everwire_proto::{field, v1};
use everwire_shard::{Answer, AttachRequest, Attached, Delivery, Subscription};
use futures_util::Stream;
use futures_util::stream::{self, BoxStream};
use tonic::{Request, Response, Status};

use crate::context::{Context, drained};
use crate::identity::{self, Caller};
use crate::metrics::Counted;
use crate::service::{answer, session};

/// What an event weighs in a message besides its payload. Names and labels can take up to about
/// 1,200 bytes, so a message that is full by this count is still below the decoders' bound.
const ENVELOPE_BYTES: usize = 640;

/// See the module.
pub(crate) struct Attach {
    context: Arc<Context>,
}

impl Attach {
    /// The service of a node.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn follow(
        &self,
        caller: &Caller,
        asked: v1::FollowRequest,
    ) -> Result<impl Stream<Item = Result<v1::FollowResponse, Status>> + Send + use<>, Refusal>
    {
        let session = session(&asked.session)?;
        let namespace = self.readable(caller, &session, &asked.namespace)?;
        let at_least = field::offset("at_least", asked.at_least)?;
        let request = AttachRequest {
            namespace,
            session,
            cursor: asked.cursor.map(TryInto::try_into).transpose()?,
            at_least: (at_least > Offset::ZERO).then_some(at_least),
        };
        let shard = self.context.shard(&request.namespace, &request.session);
        let mut attached = shard.attach(request.clone()).await?;
        if matches!(attached.answer, Answer::NotFound)
            && asked.create
            && self.create(caller, &request).await?
        {
            attached = shard.attach(request.clone()).await?;
        }
        tracing::debug!(
            session = %request.session,
            shard = %shard.id(),
            answer = ?attached.answer,
            "attached"
        );
        let following = Following::new(&self.context, caller, attached);
        Ok(stream::unfold(following, |mut following| async {
            let message = following.next().await?;
            Some((Ok(message), following))
        }))
    }

    /// Makes the session that a reader asked for; `false` if its token does not allow that.
    async fn create(&self, caller: &Caller, request: &AttachRequest) -> Result<bool, Refusal> {
        let (namespace, session) = (request.namespace.clone(), request.session.clone());
        let now = self.context.clock.now();
        if caller.writer(Capability::Create, &session, now).is_err() {
            return Ok(false);
        }
        let command = caller.command(namespace, session, Op::CreateSession);
        self.context.propose(command).await?;
        Ok(true)
    }

    fn readable(
        &self,
        caller: &Caller,
        session: &SessionName,
        namespace: &str,
    ) -> Result<Namespace, Refusal> {
        let asked: Option<Namespace> = field::optional_name("namespace", namespace)?;
        caller.reader(session, asked.as_ref(), self.context.clock.now())
    }

    async fn read(
        &self,
        caller: &Caller,
        asked: v1::ReadRequest,
    ) -> Result<v1::ReadResponse, Refusal> {
        let session = session(&asked.session)?;
        let namespace = self.readable(caller, &session, &asked.namespace)?;
        let epoch: Option<SessionEpoch> =
            field::session_epoch("session_epoch", &asked.session_epoch)?;
        let wanted = field::offset("from", asked.from)?.max(Offset::ZERO.next());
        let limit = usize::try_from(asked.limit).unwrap_or(usize::MAX);
        let shard = self.context.shard(&namespace, &session);
        if asked.own_replica {
            shard.check_held()?;
        }
        let page = shard
            .read(&namespace, &session, epoch, wanted, limit)
            .await?;
        let from = page.events.first().map_or(wanted, |event| event.offset);
        let kind = caller.claims().kind;
        let events = messages(from, page.tail, &page.events, kind)
            .pop_front()
            .unwrap_or_else(|| v1::Events {
                from: from.get(),
                to: from.previous().get(),
                tail: page.tail.get(),
                events: Vec::new(),
                leader_seen_ms: 0,
            });
        self.context.metrics.delivered(events.events.len());
        Ok(v1::ReadResponse {
            session_epoch: page.session_epoch.to_string(),
            events: Some(events),
        })
    }
}

/// A dense stretch of events as messages of bounded size. Those that a reader of `kind` may not
/// see are left out, but covered.
fn messages(
    from: Offset,
    tail: Offset,
    events: &[Arc<Event>],
    kind: ParticipantKind,
) -> VecDeque<v1::Events> {
    let mut messages = VecDeque::new();
    let mut open = v1::Events {
        from: from.get(),
        to: from.previous().get(),
        tail: tail.get(),
        events: Vec::new(),
        leader_seen_ms: 0,
    };
    let mut bytes = 0;
    for event in events {
        let weight = event.payload_bytes() + ENVELOPE_BYTES;
        if bytes > 0 && bytes + weight > READ_BYTES_MAX {
            let next = v1::Events {
                from: event.offset.get(),
                to: event.offset.previous().get(),
                tail: tail.get(),
                events: Vec::new(),
                leader_seen_ms: 0,
            };
            messages.push_back(std::mem::replace(&mut open, next));
            bytes = 0;
        }
        open.to = event.offset.get();
        if event.visibility.shown_to(kind) {
            bytes += weight;
            open.events.push((&**event).into());
        }
    }
    if open.to >= open.from {
        messages.push_back(open);
    }
    messages
}

/// One reader's stream: what was answered, then what the subscription delivers. Nothing is read
/// ahead of the reader; one that takes nothing costs its one delivery.
struct Following {
    context: Arc<Context>,
    kind: ParticipantKind,
    subscription: Option<Subscription>,
    /// Resolves when the node drains or the token's time is over.
    over: Pin<Box<dyn Future<Output = Refusal> + Send>>,
    ready: VecDeque<v1::follow_response::Message>,
    _counted: Counted,
}

impl Following {
    fn new(context: &Arc<Context>, caller: &Caller, attached: Attached) -> Self {
        let expiry = caller.expiry(Arc::clone(&context.clock));
        let draining = context.draining.clone();
        let over = async move {
            tokio::select! {
                refusal = expiry => refusal,
                () = draining.cancelled() => drained(),
            }
        };
        let first = v1::follow_response::Message::Attached(attached_message(attached.answer));
        Self {
            kind: caller.claims().kind,
            subscription: attached.subscription,
            over: Box::pin(over),
            ready: VecDeque::from([first]),
            _counted: context.metrics.follow_stream(),
            context: Arc::clone(context),
        }
    }

    /// The next message; `None` once the stream is over.
    async fn next(&mut self) -> Option<v1::FollowResponse> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(v1::FollowResponse {
                    message: Some(message),
                });
            }
            let delivery = tokio::select! {
                biased;
                refusal = &mut self.over => Delivery::Ended(refusal),
                delivery = self.subscription.as_mut()?.next() => delivery,
            };
            self.take(delivery);
        }
    }

    fn take(&mut self, delivery: Delivery) {
        use v1::follow_response::Message;
        match delivery {
            Delivery::Events {
                from, tail, events, ..
            } => {
                self.context.metrics.delivered(events.len());
                let messages = messages(from, tail, &events, self.kind);
                self.ready.extend(messages.into_iter().map(Message::Events));
            },
            Delivery::Alive {
                next,
                tail,
                leader_seen,
            } => self.ready.push_back(Message::Events(v1::Events {
                from: next.get(),
                to: next.previous().get(),
                tail: tail.get(),
                events: Vec::new(),
                leader_seen_ms: u32::try_from(leader_seen.as_millis()).unwrap_or(u32::MAX),
            })),
            Delivery::Ended(refusal) => {
                self.context.note(&refusal);
                self.ready.push_back(Message::Ended((&refusal).into()));
                self.subscription = None;
            },
        }
    }
}

fn attached_message(answer: Answer) -> v1::Attached {
    let (answer, session_epoch, from, tail) = match answer {
        Answer::Resumed {
            session_epoch,
            from,
            tail,
        } => (v1::AttachAnswer::Resumed, session_epoch, from, tail),
        Answer::Gone {
            session_epoch,
            earliest,
            tail,
            ..
        } => (v1::AttachAnswer::Gone, session_epoch, earliest, tail),
        Answer::NotFound | Answer::Wait => {
            return v1::Attached {
                answer: v1::AttachAnswer::NotFound.into(),
                ..v1::Attached::default()
            };
        },
    };
    v1::Attached {
        answer: answer.into(),
        session_epoch: session_epoch.to_string(),
        from: from.get(),
        tail: tail.get(),
    }
}

#[tonic::async_trait]
impl v1::attach_server::Attach for Attach {
    type FollowStream = BoxStream<'static, Result<v1::FollowResponse, Status>>;

    async fn follow(
        &self,
        request: Request<v1::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let caller = identity::of(&request).map_err(|refusal| self.context.refuse(&refusal))?;
        let stream = Self::follow(self, &caller, request.into_inner()).await;
        let stream = stream.map_err(|refusal| self.context.refuse(&refusal))?;
        Ok(Response::new(Box::pin(stream)))
    }

    async fn read(
        &self,
        request: Request<v1::ReadRequest>,
    ) -> Result<Response<v1::ReadResponse>, Status> {
        answer!(self.read(request))
    }
}
