//! `Publish`: a run's output, pipelined or one batch at a time; inputs and `app` events.

use std::sync::Arc;

use everwire_core::command::Published;
use everwire_core::event::SuspendReason;
use everwire_core::grant::Capability;
use everwire_core::limits::{BATCH_BYTES_MAX, BATCH_EVENTS_MAX};
use everwire_core::row::RunState;
use everwire_core::{
    Code, Command, Details, Draft, Key, Namespace, Op, Outcome, Refusal, RunEpoch, RunId,
    SessionEpoch, SessionName,
};
use everwire_proto::{event, field, hash, v1};
use everwire_shard::RunInfo;
use futures_util::stream::{self, BoxStream};
use tonic::{Request, Response, Status, Streaming};

use crate::connection::ConnectionInfo;
use crate::context::Context;
use crate::identity::{self, Caller};
use crate::service::publish_stream::PublishStream;
use crate::service::{answer, optional_key, session};

/// See the module.
pub(crate) struct Publish {
    context: Arc<Context>,
}

/// The run that a caller may write.
#[derive(Clone)]
pub(super) struct Target {
    /// The caller's tenant.
    pub(super) namespace: Namespace,
    /// The session.
    pub(super) session: SessionName,
    /// The run.
    pub(super) run: RunId,
    run_epoch: RunEpoch,
    /// The history that is meant; a stream is bound to the one it was opened in.
    pub(super) session_epoch: Option<SessionEpoch>,
}

impl Target {
    /// Reads which run is meant and asks whether `caller` may write runs there.
    pub(super) fn of(
        context: &Context,
        caller: &Caller,
        (name, run, run_epoch, session_epoch): (&str, &str, u32, &str),
    ) -> Result<Self, Refusal> {
        let session = session(name)?;
        let run = field::name("run", run)?;
        let run_epoch = field::run_epoch("run_epoch", run_epoch)?;
        let now = context.clock.now();
        let namespace = caller.writer(Capability::Run, &session, now)?;
        Ok(Self {
            namespace,
            session,
            run,
            run_epoch,
            session_epoch: field::session_epoch("session_epoch", session_epoch)?,
        })
    }

    /// Why the run takes nothing new under this epoch, if so: what a batch would be answered.
    pub(super) fn over(&self, info: &RunInfo) -> Option<Refusal> {
        let next_epoch = Some(info.run_epoch.next());
        let (code, message, details) = match info.state {
            RunState::Running if info.run_epoch <= self.run_epoch => return None,
            // It knows what it waits for, unless somebody else made it wait.
            RunState::Suspended if info.run_epoch <= self.run_epoch => match info.suspended {
                Some(SuspendReason::Paused) => (
                    Code::WrongState,
                    "the run is paused: claim it to go on once it is resumed",
                    Details {
                        state: Some(info.state.as_str()),
                        next_epoch,
                        ..Details::default()
                    },
                ),
                _ => return None,
            },
            RunState::Running | RunState::Suspended => (
                Code::StaleEpoch,
                "another writer holds the run",
                Details {
                    run_epoch: Some(info.run_epoch),
                    ..Details::default()
                },
            ),
            RunState::Orphaned if info.run_epoch <= self.run_epoch => (
                Code::WrongState,
                "the run's lease has ended: claim the run to go on",
                Details {
                    state: Some(info.state.as_str()),
                    next_epoch,
                    ..Details::default()
                },
            ),
            RunState::Orphaned => (
                Code::StaleEpoch,
                "another writer held the run since",
                Details {
                    run_epoch: Some(info.run_epoch),
                    ..Details::default()
                },
            ),
            // The writer of an epilogue knows that the run was stopped.
            RunState::Cancelled if info.epilogue == Some(self.run_epoch) => return None,
            RunState::Cancelled => (
                Code::RunFenced,
                "the run was cancelled",
                Details {
                    cancel_offset: info.ended,
                    next_epoch,
                    ..Details::default()
                },
            ),
            // This very writer ended it: it knows, or learns it from the answer to its batch.
            RunState::Completed | RunState::Failed if info.run_epoch <= self.run_epoch => {
                return None;
            },
            RunState::Completed | RunState::Failed => (
                Code::RunEnded,
                "the run has ended",
                Details {
                    state: Some(info.state.as_str()),
                    offset: info.ended,
                    next_epoch,
                    ..Details::default()
                },
            ),
        };
        Some(Refusal::with(code, message, details))
    }

    /// The command for a sign of life.
    pub(super) fn heartbeat(
        &self,
        caller: &Caller,
        observed_through: Option<u64>,
    ) -> Result<Command, Refusal> {
        let observed = observed_through;
        let observed = observed.map(|through| field::offset("observed_through", through));
        let op = Op::Heartbeat {
            run: self.run.clone(),
            run_epoch: self.run_epoch,
            observed_through: observed.transpose()?,
        };
        Ok(Command {
            session_epoch: self.session_epoch,
            ..caller.command(self.namespace.clone(), self.session.clone(), op)
        })
    }

    /// The command for one batch, its shape checked.
    pub(super) fn command(
        &self,
        caller: &Caller,
        batch: v1::PublishBatch,
    ) -> Result<Command, Refusal> {
        let first_seq = field::seq("first_seq", batch.first_seq)?;
        let count = batch.drafts.len();
        if count == 0 {
            return Err(field::malformed("drafts", "a batch has at least one"));
        }
        if count > BATCH_EVENTS_MAX {
            return Err(too_large(
                format!("the batch has {count} events"),
                BATCH_EVENTS_MAX,
            ));
        }
        let drafts = batch
            .drafts
            .into_iter()
            .map(Draft::try_from)
            .collect::<Result<Vec<_>, _>>()?;
        let bytes: usize = drafts.iter().map(Draft::payload_bytes).sum();
        if bytes > BATCH_BYTES_MAX {
            return Err(too_large(
                format!("the batch has {bytes} bytes of payload"),
                BATCH_BYTES_MAX,
            ));
        }
        let op = Op::Publish {
            run: self.run.clone(),
            run_epoch: self.run_epoch,
            first_seq,
            drafts,
        };
        Ok(Command {
            session_epoch: self.session_epoch,
            ..caller.command(self.namespace.clone(), self.session.clone(), op)
        })
    }
}

fn too_large(message: String, limit: usize) -> Refusal {
    let details = Details {
        limit: u64::try_from(limit).ok(),
        ..Details::default()
    };
    Refusal::with(Code::TooLarge, message, details)
}

/// Where the events of a batch that began at `first_seq` stand: the part that had been committed
/// before, then the part that was committed now.
pub(super) fn ranges(first_seq: u64, published: &Published) -> Vec<v1::AckRange> {
    let mut ranges = Vec::new();
    // Without the exact place there is no range: only `through` is known.
    if let Some(before) = published.duplicate.filter(|before| before.exact) {
        let count = before.through_seq.0.saturating_sub(first_seq);
        ranges.push(v1::AckRange {
            first_seq,
            last_seq: before.through_seq.0,
            first_offset: before.through_offset.get().saturating_sub(count),
            duplicate: true,
        });
    }
    if let Some(now) = published.appended {
        ranges.push(v1::AckRange {
            first_seq: now.first_seq.0,
            last_seq: now.last_seq.0,
            first_offset: now.first_offset.get(),
            duplicate: false,
        });
    }
    ranges
}

/// How many events a batch added to the log.
pub(super) fn appended(published: &Published) -> u64 {
    published
        .appended
        .map_or(0, |now| now.last_seq.0 - now.first_seq.0 + 1)
}

impl Publish {
    /// The service of a node.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn post(
        &self,
        caller: &Caller,
        asked: v1::PostRequest,
    ) -> Result<v1::PostResponse, Refusal> {
        let session = session(&asked.session)?;
        let key: Option<Key> = optional_key(&asked.key)?;
        let now = self.context.clock.now();
        let namespace = caller.writer(Capability::Publish, &session, now)?;
        let draft = asked
            .draft
            .ok_or_else(|| field::malformed("draft", "it is missing"))?;
        let draft = Draft::try_from(draft)?;
        event::check_posted(&draft, key.as_ref())?;
        let bytes = draft.payload_bytes();
        let op = Op::Post {
            body_hash: hash::body_hash(&draft),
            draft,
            key,
        };
        let command = caller.command(namespace, session, op);
        match self.context.propose(command).await? {
            Outcome::Posted {
                session_epoch,
                offset,
                duplicate,
            } => {
                if !duplicate {
                    self.context.metrics.published(1, bytes);
                }
                Ok(v1::PostResponse {
                    session_epoch: session_epoch.to_string(),
                    offset: offset.get(),
                    duplicate,
                })
            },
            other => Err(Context::unexpected(&other)),
        }
    }

    async fn append(
        &self,
        caller: &Caller,
        asked: v1::AppendRequest,
    ) -> Result<v1::AppendResponse, Refusal> {
        let place = (
            asked.session.as_str(),
            asked.run.as_str(),
            asked.run_epoch,
            asked.session_epoch.as_str(),
        );
        let target = Target::of(&self.context, caller, place)?;
        let batch = asked
            .batch
            .ok_or_else(|| field::malformed("batch", "it is missing"))?;
        let first_seq = batch.first_seq;
        let command = target.command(caller, batch)?;
        let bytes = payload(&command);
        match self.context.propose(command).await? {
            Outcome::Published(published) => {
                self.context.metrics.published(appended(&published), bytes);
                let (seq, offset) = published.through().unwrap_or_default();
                Ok(v1::AppendResponse {
                    session_epoch: published.session_epoch.to_string(),
                    through_seq: seq.0,
                    through_offset: offset.get(),
                    ranges: ranges(first_seq, &published),
                })
            },
            other => Err(Context::unexpected(&other)),
        }
    }
}

/// Bytes of payload of a publish command: what its batch costs in credit.
pub(super) fn payload(command: &Command) -> usize {
    match &command.op {
        Op::Publish { drafts, .. } => drafts.iter().map(Draft::payload_bytes).sum(),
        Op::Post { draft, .. } => draft.payload_bytes(),
        Op::CreateSession
        | Op::DeleteSession
        | Op::Unfreeze
        | Op::StartRun(_)
        | Op::ClaimRun { .. }
        | Op::Heartbeat { .. }
        | Op::Cancel { .. }
        | Op::Signal { .. } => 0,
    }
}

#[tonic::async_trait]
impl v1::publish_server::Publish for Publish {
    type StreamStream = BoxStream<'static, Result<v1::PublishStreamResponse, Status>>;

    async fn stream(
        &self,
        request: Request<Streaming<v1::PublishStreamRequest>>,
    ) -> Result<Response<Self::StreamStream>, Status> {
        let refuse = |refusal| self.context.refuse(&refusal);
        let caller = identity::of(&request).map_err(refuse)?;
        let connection = request
            .extensions()
            .get::<ConnectionInfo>()
            .ok_or_else(|| refuse(Refusal::new(Code::Internal, "a call without a connection")))?
            .credit();
        let inbound = request.into_inner();
        let stream = PublishStream::new(&self.context, caller, inbound, connection);
        // Answered before it is opened: a client may wait for headers before it sends a thing.
        Ok(Response::new(Box::pin(stream::unfold(
            stream,
            |mut stream| async {
                let message = stream.next().await?;
                Some((message, stream))
            },
        ))))
    }

    async fn post(
        &self,
        request: Request<v1::PostRequest>,
    ) -> Result<Response<v1::PostResponse>, Status> {
        answer!(self.post(request))
    }

    async fn append(
        &self,
        request: Request<v1::AppendRequest>,
    ) -> Result<Response<v1::AppendResponse>, Status> {
        answer!(self.append(request))
    }
}
