//! Reads of a shard that other nodes hold: the question goes one hop, to its leader or another
//! holder, and the answer comes back as if it had been read here.
//!
//! A holder that cannot answer is passed over for the next. A subscription that loses its holder
//! ends with STALE and never goes on by itself: the reader says again where it stands, as after
//! any other loss.

mod question;
mod serve;

use std::sync::Arc;
use std::time::Duration;

use everwire_core::limits::FORWARD_OPEN_WITHIN;
use everwire_core::{Code, Namespace, Offset, Refusal, RunId, SessionEpoch, SessionName, ShardId};
use everwire_proto::internal_v1 as wire;
use everwire_proto::internal_v1::read_request::Question;
use everwire_proto::internal_v1::read_response::Answer as Said;
use everwire_proto::refusal;
use tonic::Streaming;

use crate::handle::{AttachRequest, Attached};
use crate::host::Host;
use crate::peer::Line;
use crate::reads::{Listed, Page, RunInfo, SessionInfo};
use crate::run_watch::{Heard, RunWatch};
use crate::subscription::{Delivery, Subscription};

pub(crate) use serve::{Saying, serve};

fn lost() -> Refusal {
    let message = "the node that this one reads from was lost, or reads no more: ask again";
    Refusal::new(Code::Stale, message)
}

/// An answer that no node gives, or not to this question.
fn strange() -> Refusal {
    Refusal::new(Code::Internal, "another node's answer cannot be read")
}

/// Whether another holder may have the answer that this one refused.
fn asks_elsewhere(refusal: &Refusal) -> bool {
    matches!(
        refusal.code,
        Code::NotLeader | Code::NoQuorum | Code::Draining | Code::Stale | Code::Internal
    )
}

/// What a holder goes on to say, as it is heard here.
type Hearing = Streaming<wire::ReadResponse>;

/// The next that a holder says.
async fn next(hearing: &mut Hearing) -> Result<Said, Refusal> {
    match hearing.message().await {
        Ok(Some(response)) => response.answer.ok_or_else(strange),
        Ok(None) | Err(_) => Err(lost()),
    }
}

/// Reads of one shard, at whoever holds it.
pub(crate) struct FarReader<'h> {
    host: &'h Arc<Host>,
    shard: ShardId,
}

impl<'h> FarReader<'h> {
    pub(crate) fn of(host: &'h Arc<Host>, shard: ShardId) -> Self {
        Self { host, shard }
    }

    /// Asks one holder after the other until one answers. NOT_LEADER when there is none to ask.
    async fn ask(
        &self,
        namespace: &Namespace,
        question: Question,
    ) -> Result<(Said, Hearing), Refusal> {
        let request = wire::ReadRequest {
            shard: self.shard.0,
            namespace: namespace.to_string(),
            question: Some(question),
        };
        let links = &self.host.shared.links;
        let mut refused = None;
        for holder in self.host.holders(self.shard) {
            let Some(mut client) = links.client(holder.0, Line::Read) else {
                continue;
            };
            let opened = tokio::time::timeout(FORWARD_OPEN_WITHIN, client.read(request.clone()));
            // One of an older build knows no such call.
            let Ok(Ok(response)) = opened.await else {
                continue;
            };
            let mut hearing = response.into_inner();
            match next(&mut hearing).await {
                Ok(Said::Refusal(error)) => {
                    let refusal = refusal::from_error(error);
                    if !asks_elsewhere(&refusal) {
                        return Err(refusal);
                    }
                    refused = Some(refusal);
                },
                Ok(said) => return Ok((said, hearing)),
                Err(refusal) => refused = Some(refusal),
            }
        }
        let message = "this node does not hold the session's shard, and reached none that does";
        Err(match refused {
            // What a holder says of itself is not true of this node.
            Some(refusal) if matches!(refusal.code, Code::NotLeader | Code::Draining) => lost(),
            Some(refusal) => refusal,
            None => self.host.elsewhere(self.shard, message),
        })
    }

    pub(crate) async fn attach(&self, request: AttachRequest) -> Result<Attached, Refusal> {
        let asked = question::follow(&request);
        let (said, hearing) = self.ask(&request.namespace, asked).await?;
        let Said::Followed(answer) = said else {
            return Err(strange());
        };
        let answer = question::place_from(answer)?;
        let subscription = match answer {
            crate::Answer::Resumed {
                session_epoch,
                from,
                tail,
            } => Some(Subscription::far(FarSubscription {
                session_epoch,
                hearing,
                next: from,
                tail,
                ended: None,
            })),
            _ => None,
        };
        Ok(Attached {
            answer,
            subscription,
        })
    }

    pub(crate) async fn read(
        &self,
        namespace: &Namespace,
        session: &SessionName,
        epoch: Option<SessionEpoch>,
        from: Offset,
        limit: usize,
    ) -> Result<Page, Refusal> {
        let asked = question::page(session, epoch, from, limit);
        match self.ask(namespace, asked).await?.0 {
            Said::Page(page) => question::page_from(page),
            _ => Err(strange()),
        }
    }

    pub(crate) async fn show(
        &self,
        namespace: &Namespace,
        session: &SessionName,
    ) -> Result<SessionInfo, Refusal> {
        let asked = Question::Show(session.to_string());
        match self.ask(namespace, asked).await?.0 {
            Said::Session(stand) => question::session_from(self.shard, stand),
            _ => Err(strange()),
        }
    }

    pub(crate) async fn list(
        &self,
        namespace: &Namespace,
        prefix: &str,
        after: Option<&SessionName>,
        limit: usize,
    ) -> Result<Vec<Listed>, Refusal> {
        let asked = question::list(prefix, after, limit);
        match self.ask(namespace, asked).await?.0 {
            Said::Sessions(answer) => question::sessions_from(self.shard, answer),
            _ => Err(strange()),
        }
    }

    pub(crate) async fn run(
        &self,
        namespace: &Namespace,
        session: &SessionName,
        run: &RunId,
    ) -> Result<RunInfo, Refusal> {
        let asked = Question::Run(question::run(session, run));
        match self.ask(namespace, asked).await?.0 {
            Said::Run(stand) => question::run_from(run, stand),
            _ => Err(strange()),
        }
    }

    pub(crate) async fn watch_run(
        &self,
        namespace: &Namespace,
        session: &SessionName,
        run: &RunId,
    ) -> Result<RunWatch, Refusal> {
        let asked = Question::Watch(question::run(session, run));
        match self.ask(namespace, asked).await? {
            (Said::Touched(_), hearing) => Ok(RunWatch::far(FarWatch { hearing })),
            _ => Err(strange()),
        }
    }
}

/// A watch that another node keeps. It ends with that node's service, or with the way there.
pub(crate) struct FarWatch {
    hearing: Hearing,
}

impl FarWatch {
    /// See [`RunWatch::heard`].
    pub(crate) async fn heard(&mut self) -> Heard {
        match next(&mut self.hearing).await {
            Ok(Said::Touched(_)) => Heard::Touched,
            Ok(_) | Err(_) => Heard::Ended,
        }
    }
}

impl std::fmt::Debug for FarWatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("elsewhere")
    }
}

/// A reader's place in a session of another node's.
pub(crate) struct FarSubscription {
    session_epoch: SessionEpoch,
    hearing: Hearing,
    next: Offset,
    tail: Offset,
    ended: Option<Refusal>,
}

impl FarSubscription {
    pub(crate) fn session_epoch(&self) -> SessionEpoch {
        self.session_epoch
    }

    pub(crate) fn position(&self) -> Offset {
        self.next
    }

    pub(crate) fn tail(&self) -> Offset {
        self.tail
    }

    /// See [`Subscription::next`].
    pub(crate) async fn next(&mut self) -> Delivery {
        if let Some(refusal) = &self.ended {
            return Delivery::Ended(refusal.clone());
        }
        let said = next(&mut self.hearing).await;
        match said.and_then(|said| self.take(said)) {
            Ok(delivery) => delivery,
            Err(refusal) => {
                self.ended = Some(refusal.clone());
                Delivery::Ended(refusal)
            },
        }
    }

    fn take(&mut self, said: Said) -> Result<Delivery, Refusal> {
        match said {
            Said::Events(stretch) => {
                let (events, tail) = question::stretch_from(stretch)?;
                let from = self.next;
                let mut expected = from;
                for event in &events {
                    if event.offset != expected {
                        let found = event.offset;
                        tracing::error!(%expected, %found, "another node's answer has a hole");
                        return Err(strange());
                    }
                    expected = expected.next();
                }
                let to = expected.previous();
                self.next = expected;
                self.tail = self.tail.max(tail).max(to);
                Ok(Delivery::Events {
                    from,
                    to,
                    tail: self.tail,
                    events,
                })
            },
            Said::Alive(alive) => {
                self.tail = self.tail.max(question::offset(alive.tail)?);
                Ok(Delivery::Alive {
                    next: self.next,
                    tail: self.tail,
                    leader_seen: Duration::from_millis(alive.leader_seen_ms),
                })
            },
            Said::Refusal(error) => {
                let refusal = refusal::from_error(error);
                // This node is none of what that one says of itself.
                Err(if asks_elsewhere(&refusal) {
                    lost()
                } else {
                    refusal
                })
            },
            _ => Err(strange()),
        }
    }
}
