//! The holder's side: reads its replica for another node's reader, and passes nothing on.

use std::sync::Arc;

use everwire_core::{Cursor, Namespace, Refusal, RunId, SessionName};
use everwire_proto::internal_v1 as wire;
use everwire_proto::internal_v1::read_request::Question;
use everwire_proto::internal_v1::read_response::Answer as Said;
use everwire_proto::{field, v1};
use futures_util::stream::{self, BoxStream, StreamExt};
use tonic::Status;

use super::question;
use crate::group::Shard;
use crate::handle::AttachRequest;
use crate::local::LocalReader;
use crate::run_watch::{Heard, RunWatch};
use crate::subscription::{Delivery, Subscription};

/// What is said to the reader's node, until one of the two leaves.
pub(crate) type Saying = BoxStream<'static, Result<wire::ReadResponse, Status>>;

fn response(said: Said) -> Result<wire::ReadResponse, Status> {
    Ok(wire::ReadResponse { answer: Some(said) })
}

/// The head of the answer goes out at once; what a reader asks may take its time.
pub(crate) fn serve(shard: Result<Arc<Shard>, Refusal>, asked: wire::ReadRequest) -> Saying {
    stream::once(async move {
        match answer(shard, asked).await {
            Ok(saying) => saying,
            Err(refusal) => just(Said::Refusal(v1::Error::from(&refusal))),
        }
    })
    .flatten()
    .boxed()
}

fn just(said: Said) -> Saying {
    stream::iter([response(said)]).boxed()
}

async fn answer(
    shard: Result<Arc<Shard>, Refusal>,
    asked: wire::ReadRequest,
) -> Result<Saying, Refusal> {
    let shard = shard?;
    let reader = LocalReader::of(&shard);
    let namespace: Namespace = field::name("namespace", &asked.namespace)?;
    let question = asked.question;
    let question = question.ok_or_else(|| field::malformed("question", "is missing"))?;
    Ok(match question {
        Question::Follow(asked) => return follow(&reader, namespace, asked).await,
        Question::Page(asked) => {
            let session = field::name("session", &asked.session)?;
            let epoch = field::session_epoch("session_epoch", &asked.session_epoch)?;
            let from = field::offset("from", asked.from)?;
            let limit = narrow(asked.limit);
            let page = reader.read(&namespace, &session, epoch, from, limit);
            just(Said::Page(question::page_to(&page.await?)))
        },
        Question::Show(session) => {
            let session = field::name("session", &session)?;
            let info = reader.show(&namespace, &session).await?;
            just(Said::Session(question::session_to(info)))
        },
        Question::List(asked) => {
            let after: Option<SessionName> = field::optional_name("after", &asked.after)?;
            let limit = narrow(asked.limit);
            let listed = reader.list(&namespace, &asked.prefix, after.as_ref(), limit);
            just(Said::Sessions(question::sessions_to(listed.await?)))
        },
        Question::Run(asked) => {
            let (session, run) = named(&asked)?;
            let info = reader.run(&namespace, &session, &run).await?;
            just(Said::Run(question::run_to(&info)))
        },
        Question::Watch(asked) => {
            let (session, run) = named(&asked)?;
            let watch = reader.watch_run(&namespace, &session, &run).await?;
            just(Said::Touched(false)).chain(touches(watch)).boxed()
        },
    })
}

fn narrow(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn named(asked: &wire::RunQuestion) -> Result<(SessionName, RunId), Refusal> {
    let session = field::name("session", &asked.session)?;
    Ok((session, field::name("run", &asked.run)?))
}

async fn follow(
    reader: &LocalReader<'_>,
    namespace: Namespace,
    asked: wire::FollowQuestion,
) -> Result<Saying, Refusal> {
    let epoch = field::session_epoch("session_epoch", &asked.session_epoch)?;
    let offset = asked.offset.map(|offset| field::offset("offset", offset));
    let at_least = field::offset("at_least", asked.at_least)?;
    let attached = reader.attach(AttachRequest {
        namespace,
        session: field::name("session", &asked.session)?,
        cursor: offset.transpose()?.map(|offset| Cursor {
            session_epoch: epoch,
            offset,
        }),
        at_least: (at_least.get() > 0).then_some(at_least),
    });
    let attached = attached.await?;
    let first = just(Said::Followed(question::place_to(attached.answer)));
    Ok(match attached.subscription {
        Some(subscription) => first.chain(deliveries(subscription)).boxed(),
        None => first,
    })
}

/// Nothing is read ahead of the reader.
fn deliveries(subscription: Subscription) -> Saying {
    stream::unfold(Some(subscription), |subscription| async move {
        let mut subscription = subscription?;
        let (said, goes_on) = match subscription.next().await {
            Delivery::Events { tail, events, .. } => {
                (Said::Events(question::stretch_to(&events, tail)), true)
            },
            Delivery::Alive {
                tail, leader_seen, ..
            } => {
                let alive = wire::StillThere {
                    tail: tail.get(),
                    leader_seen_ms: u64::try_from(leader_seen.as_millis()).unwrap_or(u64::MAX),
                };
                (Said::Alive(alive), true)
            },
            Delivery::Ended(refusal) => (Said::Refusal(v1::Error::from(&refusal)), false),
        };
        Some((response(said), goes_on.then_some(subscription)))
    })
    .boxed()
}

/// Ends with the watch: the reader's node makes another then.
fn touches(watch: RunWatch) -> Saying {
    stream::unfold(watch, |mut watch| async move {
        match watch.heard().await {
            Heard::Touched => Some((response(Said::Touched(true)), watch)),
            Heard::Ended => None,
        }
    })
    .boxed()
}
