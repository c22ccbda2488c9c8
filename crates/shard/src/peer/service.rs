//! The callee's side of the peer transport: each call goes to the group that it names.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::limits::FORWARDS_WAITING_MAX;
use everwire_core::{Code, NodeId, Refusal, ShardId};
use everwire_proto::internal_v1 as wire;
use everwire_proto::internal_v1::peer_server::Peer;
use everwire_proto::{internal, storage, v1};
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, Stream, StreamExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::door::{Door, Phase};
use super::{greeting, pieces, wire as convert};
use crate::far;
use crate::lanes::Pending;
use crate::meters::one_more;
use crate::raft::codec;
use crate::raft::machine::SnapshotData;
use crate::raft::types::{SnapshotMeta, Vote};
use crate::wait::on_disk;

/// How long one group may hold up the answers of the others in its message: the caller counts
/// what is older than a heartbeat's interval as lost.
const BEAT_ANSWER_WITHIN: Duration = Duration::from_millis(50);

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
        let told = greeting::answer(store, node, self.0.rules, request.into_inner()).await?;
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

    type FetchStream = Answers<wire::SnapshotPiece>;

    async fn fetch(
        &self,
        request: Request<wire::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let node = self.0.caller(&request)?;
        let group = request.into_inner().group;
        let reader = pieces::prove_and_read(&self.0, group).await;
        let reader = reader.map_err(|refusal| everwire_proto::refusal::to_status(&refusal))?;
        let damages = self.0.damages.get().cloned();
        let damages = damages.ok_or_else(|| Status::unavailable("the node is on its way in"))?;
        tracing::info!(group, node, "another replica fetches the rows");
        let waits = self.0.store().is_none_or(|store| store.waits());
        let stream = pieces::serve(waits, group, reader, damages, self.0.counts.clone());
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
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

    type ReadStream = far::Saying;

    async fn read(
        &self,
        request: Request<wire::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        self.0.caller(&request)?;
        let asked = request.into_inner();
        let shard = self.0.readable(asked.shard);
        Ok(Response::new(far::serve(shard, asked)))
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
            rules: self.0.rules,
            draining: self.0.is_draining() || self.0.clock_is_off(),
            space: self.0.space(),
            meters: Some(self.0.meters()),
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
        let (group, vote) = (entry.applier.group(), request.vote);
        let answered = entry.raft.append_entries(request.clone());
        let answer = match tokio::time::timeout(BEAT_ANSWER_WITHIN, answered).await {
            Ok(Ok(response)) => convert::beat_answer(response, &request),
            Err(_late) if self.follows_without_room(group, vote).await => Ok(request.prev_log_id),
            // No answer is the truth: the caller counts it as silence.
            Ok(Err(_)) | Err(_) => return convert::absent(),
        };
        if answer.is_ok() {
            entry.leadership.heard(NodeId(node));
        }
        convert::appended_to(&answer)
    }

    /// Whether this node's log waits for room, so that Raft cannot answer, and the vote that it
    /// has durably given is this leader's. Then that is the answer: a beat asks for nothing else,
    /// and it claims nothing of the log but what the leader had heard before. Without it a full
    /// disk would be silence, and readers could not be served because nobody proves that it leads.
    async fn follows_without_room(&self, group: u32, vote: Vote) -> bool {
        let store = self.0.store();
        let Some(store) = store.filter(|store| store.log_waits()) else {
            return false;
        };
        let saved = on_disk(&store, move |store| store.vote(group)).await;
        matches!(saved, Ok(Ok(Some(saved))) if saved == codec::vote_record(&vote))
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
    // What cannot be written must not pile up in memory: the leader sends it again.
    let has_room = door.clone();
    let requests = requests.take_while(move |_| {
        let waits = has_room.store().is_some_and(|store| store.log_waits());
        std::future::ready(!waits)
    });
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
    let (group, vote, applied) = pieces::open(&mut pieces).await?;
    let entry = door.groups.get(group);
    let entry = entry.ok_or_else(|| Status::unavailable("the group is not here"))?;
    let store = door.store();
    let store = store.ok_or_else(|| Status::unavailable("the node is on its way in"))?;
    let vote = convert::vote_from(vote).map_err(|error| bad(&error))?;
    let membership = codec::membership(&applied.membership, applied.membership_position);
    let meta = SnapshotMeta {
        last_log_id: Some(codec::log_id(applied.position)),
        last_membership: membership.map_err(|error| bad(&error))?,
    };
    tracing::info!(group, at = %applied.position, "a snapshot arrives");
    let (reader, chunks) = pieces::spool(store, group, applied, &mut pieces).await?;
    let snapshot = openraft::Snapshot {
        meta,
        snapshot: SnapshotData::Rows(reader),
    };
    let installed = entry.raft.install_full_snapshot(vote, snapshot).await;
    let installed = installed.map_err(|error| Status::unavailable(error.to_string()))?;
    one_more(&door.counts.snapshots_installed);
    tracing::info!(group, chunks, "a snapshot was taken");
    Ok(wire::SnapshotResponse {
        vote: Some(convert::vote_to(&installed.vote)),
    })
}
