//! The callee's side of the peer transport: each call goes to the group that it names.

use std::io;
use std::pin::Pin;
use std::sync::Arc;

use everwire_core::limits::{APPEND_BYTES_MAX, BEAT_WITHIN, FORWARDS_WAITING_MAX};
use everwire_core::{Code, NodeId, Refusal, ShardId};
use everwire_proto::internal_v1 as wire;
use everwire_proto::internal_v1::peer_server::Peer;
use everwire_proto::{internal, storage, v1};
use everwire_store::{SnapshotReader, SnapshotSpool, StoreError};
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::door::{Door, Phase};
use super::{greeting, wire as convert};
use crate::lanes::Pending;
use crate::raft::codec;
use crate::raft::machine::SnapshotData;
use crate::raft::types::SnapshotMeta;

/// The service itself.
pub(crate) struct Service(pub(crate) Arc<Door>);

fn bad(error: &io::Error) -> Status {
    Status::invalid_argument(error.to_string())
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Peer for Service {
    async fn discover(
        &self,
        request: Request<wire::DiscoverRequest>,
    ) -> Result<Response<wire::DiscoverResponse>, Status> {
        let _asked = request.into_inner();
        let about = self.0.about.clone();
        let mut response = wire::DiscoverResponse {
            name: about.name,
            addr: about.addr,
            peer: about.peer,
            incarnation: about.incarnation,
            ..wire::DiscoverResponse::default()
        };
        match self.0.phase() {
            Phase::Opening => {
                // Empty would be a lie, and the beginning of a second cluster.
                return Err(Status::unavailable("the node has not opened its disk yet"));
            },
            Phase::Empty => {},
            Phase::Forming(formation) => response.formation = Some(formation),
            Phase::Member {
                cluster,
                node,
                formation,
            } => {
                response.cluster = cluster;
                response.node = node.0;
                response.formation = formation;
                let meta = self.0.meta.get();
                response.joinable = meta.is_some_and(|meta| meta.topology().is_formed());
            },
        }
        Ok(Response::new(response))
    }

    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::JoinResponse>, Status> {
        let asked = request.into_inner();
        let joined = match self.0.meta() {
            Ok(meta) => meta.join(asked).await,
            Err(refusal) => Err(refusal),
        };
        Ok(Response::new(joined.unwrap_or_else(|refusal| {
            wire::JoinResponse {
                refusal: Some(v1::Error::from(&refusal)),
                ..wire::JoinResponse::default()
            }
        })))
    }

    async fn hello(
        &self,
        request: Request<wire::HelloRequest>,
    ) -> Result<Response<wire::HelloResponse>, Status> {
        let node = self.0.caller(&request)?;
        let store = self.0.store();
        let store = store.ok_or_else(|| Status::unavailable("the node is on its way in"))?;
        let told = greeting::answer(store, node, request.into_inner()).await?;
        Ok(Response::new(told))
    }

    type AppendStream = Answers<wire::AppendResponse>;

    async fn append(
        &self,
        request: Request<Streaming<wire::AppendRequest>>,
    ) -> Result<Response<Self::AppendStream>, Status> {
        let node = self.0.caller(&request)?;
        let (answers, stream) = mpsc::channel(16);
        let door = self.0.clone();
        // The answer's head goes out at once: the first request may be long in coming.
        tokio::spawn(append(door, node, request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn beat(
        &self,
        request: Request<wire::BeatRequest>,
    ) -> Result<Response<wire::BeatResponse>, Status> {
        let node = self.0.caller(&request)?;
        let asked = request.into_inner();
        let answers = asked
            .beats
            .into_iter()
            .map(|beat| self.one_beat(node, beat));
        Ok(Response::new(wire::BeatResponse {
            answers: join_all(answers).await,
            time_ms: self.0.clock.now().0,
        }))
    }

    async fn vote(
        &self,
        request: Request<wire::VoteRequest>,
    ) -> Result<Response<wire::VoteResponse>, Status> {
        self.0.caller(&request)?;
        let asked = request.into_inner();
        let Some(entry) = self.0.groups.get(asked.group) else {
            return Ok(Response::new(wire::VoteResponse {
                absent: true,
                ..wire::VoteResponse::default()
            }));
        };
        let vote = convert::vote_request_from(&asked).map_err(|error| bad(&error))?;
        let voted = if asked.pre_vote {
            entry.raft.pre_vote(vote).await
        } else {
            entry.raft.vote(vote).await
        };
        let voted = voted.map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Response::new(convert::vote_response_to(&voted)))
    }

    async fn transfer(
        &self,
        request: Request<wire::TransferRequest>,
    ) -> Result<Response<wire::TransferResponse>, Status> {
        self.0.caller(&request)?;
        let asked = request.into_inner();
        let Some(entry) = self.0.groups.get(asked.group) else {
            return Ok(Response::new(wire::TransferResponse { accepted: false }));
        };
        let transfer = convert::transfer_from(&asked).map_err(|error| bad(&error))?;
        let taken = entry.raft.handle_transfer_leader(transfer).await;
        let taken = taken.map_err(|error| Status::unavailable(error.to_string()))?;
        let accepted = taken.is_ok();
        Ok(Response::new(wire::TransferResponse { accepted }))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<wire::SnapshotPiece>>,
    ) -> Result<Response<wire::SnapshotResponse>, Status> {
        self.0.caller(&request)?;
        let taken = take_snapshot(&self.0, request.into_inner()).await;
        taken.map(Response::new)
    }

    type SubmitStream = Answers<wire::SubmitResponse>;

    async fn submit(
        &self,
        request: Request<Streaming<wire::SubmitRequest>>,
    ) -> Result<Response<Self::SubmitStream>, Status> {
        self.0.caller(&request)?;
        let (answers, stream) = mpsc::channel(FORWARDS_WAITING_MAX);
        tokio::spawn(submit(self.0.clone(), request.into_inner(), answers));
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn read_index(
        &self,
        request: Request<wire::ReadIndexRequest>,
    ) -> Result<Response<wire::ReadIndexResponse>, Status> {
        self.0.caller(&request)?;
        let index = match self.0.shard(request.into_inner().group) {
            Ok(shard) => shard.read_index().await,
            Err(refusal) => Err(refusal),
        };
        let (index, refusal) = match index {
            Ok(index) => (index, None),
            Err(refusal) => (0, Some(v1::Error::from(&refusal))),
        };
        Ok(Response::new(wire::ReadIndexResponse { index, refusal }))
    }

    async fn change(
        &self,
        request: Request<wire::ChangeRequest>,
    ) -> Result<Response<wire::ChangeResponse>, Status> {
        self.0.caller(&request)?;
        let change = request.into_inner().change.unwrap_or_default();
        let change = storage::change_from(change).map_err(|error| {
            Status::invalid_argument(format!("the change cannot be read: {error}"))
        })?;
        let changed = match self.0.meta() {
            Ok(meta) => meta.change_here(change).await,
            Err(refusal) => Err(refusal),
        };
        Ok(Response::new(match changed {
            Ok(changed) => wire::ChangeResponse {
                version: changed.version,
                node: changed.node.map_or(0, |node| node.0),
                refusal: None,
            },
            Err(refusal) => wire::ChangeResponse {
                refusal: Some(v1::Error::from(&refusal)),
                ..wire::ChangeResponse::default()
            },
        }))
    }

    async fn report(
        &self,
        request: Request<wire::ReportRequest>,
    ) -> Result<Response<wire::ReportResponse>, Status> {
        self.0.caller(&request)?;
        let version = self.0.meta.get().map_or(0, |meta| meta.topology().version);
        Ok(Response::new(wire::ReportResponse {
            version,
            replicas: self.0.replicas(),
            rules: everwire_rules::RULES_VERSION,
            draining: self.0.is_draining() || self.0.clock_is_off(),
            space: self.0.space(),
        }))
    }

    async fn hand_over(
        &self,
        request: Request<wire::HandOverRequest>,
    ) -> Result<Response<wire::HandOverResponse>, Status> {
        self.0.caller(&request)?;
        let asked = request.into_inner();
        let to = (asked.to != 0).then_some(NodeId(asked.to));
        let handed = match self.0.shard(asked.group) {
            Ok(shard) => shard.hand_over(to).await,
            Err(refusal) => Err(refusal),
        };
        Ok(Response::new(match handed {
            Ok(leader) => wire::HandOverResponse {
                leader: leader.0,
                refusal: None,
            },
            Err(refusal) => wire::HandOverResponse {
                leader: 0,
                refusal: Some(v1::Error::from(&refusal)),
            },
        }))
    }
}

impl Service {
    async fn one_beat(&self, node: u64, beat: wire::AppendRequest) -> wire::AppendResponse {
        let Some(entry) = self.0.groups.get(beat.group) else {
            return convert::absent();
        };
        let Ok(request) = convert::append_from(beat) else {
            return convert::absent();
        };
        let answered = entry.raft.append_entries(request.clone());
        match tokio::time::timeout(BEAT_WITHIN / 2, answered).await {
            Ok(Ok(response)) => {
                let answer = convert::beat_answer(response, &request);
                if answer.is_ok() {
                    entry.leadership.heard(NodeId(node));
                }
                convert::appended_to(&answer)
            },
            // No answer is the truth: the caller counts it as silence.
            Ok(Err(_)) | Err(_) => convert::absent(),
        }
    }
}

/// Takes one group's entries until the stream ends.
async fn append(
    door: Arc<Door>,
    node: u64,
    mut requests: Streaming<wire::AppendRequest>,
    answers: mpsc::Sender<Result<wire::AppendResponse, Status>>,
) {
    let Ok(Some(first)) = requests.message().await else {
        return;
    };
    let group = first.group;
    let Some(entry) = door.groups.get(group) else {
        // Nobody listens if the caller left.
        let _ = answers.send(Ok(convert::absent())).await;
        return;
    };
    let heard = entry.leadership.clone();
    let rest = futures_util::stream::unfold(requests, |mut requests| async move {
        let next = requests.message().await.ok()??;
        Some((next, requests))
    });
    let requests = futures_util::stream::once(async { first }).chain(rest);
    let requests = requests.scan((), move |(), request| {
        let read = convert::append_from(request);
        let read = read.inspect_err(|error| {
            tracing::error!(group, node, %error, "a peer's entries cannot be read");
        });
        std::future::ready(read.ok())
    });
    let appended = entry.raft.stream_append(requests);
    tokio::pin!(appended);
    while let Some(result) = appended.next().await {
        let answer = match result {
            Ok(result) => {
                if result.is_ok() {
                    heard.heard(NodeId(node));
                }
                Ok(convert::appended_to(&result))
            },
            Err(fatal) => Err(Status::unavailable(fatal.to_string())),
        };
        let ends = answer.is_err();
        if answers.send(answer).await.is_err() || ends {
            return;
        }
    }
}

/// Takes commands of one lane in their order; answers as they are decided.
async fn submit(
    door: Arc<Door>,
    mut requests: Streaming<wire::SubmitRequest>,
    answers: mpsc::Sender<Result<wire::SubmitResponse, Status>>,
) {
    use wire::submit_response::Answer;
    let mut pending = FuturesUnordered::new();
    let waits = |id: u64, pending: Pending| async move { (id, pending.await) };
    let mut open = true;
    while open || !pending.is_empty() {
        let (id, outcome) = tokio::select! {
            request = requests.message(), if open => match request {
                Ok(Some(request)) => {
                    let id = request.id;
                    match admit(&door, request) {
                        Ok(admitted) => {
                            pending.push(waits(id, admitted));
                            continue;
                        },
                        Err(refusal) => (id, Err(refusal)),
                    }
                },
                Ok(None) | Err(_) => {
                    open = false;
                    continue;
                },
            },
            Some(decided) = pending.next(), if !pending.is_empty() => decided,
        };
        let answer = match outcome {
            Ok(outcome) => Answer::Outcome(internal::outcome_to(&outcome)),
            Err(refusal) => Answer::Refusal(v1::Error::from(&refusal)),
        };
        let response = wire::SubmitResponse {
            id,
            answer: Some(answer),
        };
        if answers.send(Ok(response)).await.is_err() {
            return;
        }
    }
}

fn admit(door: &Door, request: wire::SubmitRequest) -> Result<Pending, Refusal> {
    let shard = door.shard(request.shard)?;
    let command = internal::command_from(request.command.unwrap_or_default())?;
    let held = shard.holds(&command.namespace, &command.session);
    if !held {
        let shard = ShardId(request.shard);
        let message = format!("the session does not belong to shard {shard}");
        return Err(Refusal::new(Code::Internal, message));
    }
    door.check_space(&command)?;
    // Never on to somebody else: one hop (RULES 38).
    shard.admit(command)
}

/// Takes a snapshot to the end, then installs it. A transfer that breaks off leaves nothing.
async fn take_snapshot(
    door: &Door,
    mut pieces: Streaming<wire::SnapshotPiece>,
) -> Result<wire::SnapshotResponse, Status> {
    use wire::snapshot_piece::Piece;
    let broken = || Status::invalid_argument("the snapshot broke off");
    let Some(Piece::Open(open)) = pieces.message().await?.and_then(|piece| piece.piece) else {
        return Err(broken());
    };
    let group = open.group;
    let entry = door.groups.get(group);
    let entry = entry.ok_or_else(|| Status::unavailable("the group is not here"))?;
    let store = door.store().ok_or_else(broken)?;
    let vote = convert::vote_from(open.vote).map_err(|error| bad(&error))?;
    let applied = everwire_store::Applied::from_bytes(&open.applied);
    let applied = applied.map_err(|error| Status::invalid_argument(error.to_string()))?;
    let membership = codec::membership(&applied.membership, applied.membership_position);
    let meta = SnapshotMeta {
        last_log_id: Some(codec::log_id(applied.position)),
        last_membership: membership.map_err(|error| bad(&error))?,
    };
    tracing::info!(group, at = %applied.position, "a snapshot arrives");
    let mut spool = on_disk(move || store.spool(group, applied)).await?;
    let mut chunks = 0_u64;
    loop {
        match pieces.message().await?.and_then(|piece| piece.piece) {
            Some(Piece::Chunk(chunk)) if chunk.len() <= 2 * APPEND_BYTES_MAX => {
                spool = on_disk(move || spool.chunk(chunk).map(|()| spool)).await?;
                chunks += 1;
            },
            Some(Piece::End(count)) if count == chunks => break,
            _ => return Err(broken()),
        }
    }
    let reader: Box<dyn SnapshotReader> = on_disk(move || SnapshotSpool::finish(spool)).await?;
    let snapshot = openraft::Snapshot {
        meta,
        snapshot: SnapshotData::Rows(reader),
    };
    let installed = entry.raft.install_full_snapshot(vote, snapshot).await;
    let installed = installed.map_err(|error| Status::unavailable(error.to_string()))?;
    tracing::info!(group, chunks, "a snapshot was taken");
    Ok(wire::SnapshotResponse {
        vote: Some(convert::vote_to(&installed.vote)),
    })
}

/// Work that waits for the disk, on a thread that may wait.
async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    let done = done.map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| Status::unavailable(error.to_string()))
}
