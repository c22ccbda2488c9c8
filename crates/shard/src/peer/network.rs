//! openraft's network of one group: appends pipelined on a stream of their own, heartbeats
//! together with those of all groups, snapshots streamed; a deadline on everything.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use everwire_core::limits::{APPEND_WITHIN, SNAPSHOT_PIECE_WITHIN, VOTE_WITHIN};
use everwire_proto::internal_v1 as wire;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use openraft::alias::SnapshotOf;
use openraft::errors::{
    NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable,
};
use openraft::network::{
    Backoff, RPCOption, RaftNetworkFactory, RaftNetworkV2, stream_append_sequential,
};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError,
    StreamAppendResult, TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::beats::Beats;
use super::links::{Line, Links, PeerClient};
use super::pieces::{self, PIECES_WAITING_MAX};
use super::wire as convert;
use crate::damage::Damages;
use crate::meters::{Counts, UnderWay, one_more};
use crate::raft::machine::SnapshotData;
use crate::raft::types::{LogId, Peer, TypeConfig, Vote};

/// How soon entries that did not arrive are sent again, milliseconds; the last one for ever.
const ENTRIES_AGAIN_MS: [u64; 4] = [25, 50, 100, 200];
/// The same for snapshots, each of which is read from the disk.
const SNAPSHOT_AGAIN_MS: [u64; 4] = [100, 250, 500, 1_000];

/// Makes one group's connections.
pub(crate) struct PeerNetwork {
    pub(crate) group: u32,
    /// Whether a snapshot's reader waits for a device.
    pub(crate) waits: bool,
    pub(crate) links: Arc<Links>,
    pub(crate) beats: Arc<Beats>,
    pub(crate) damages: Arc<Damages>,
    pub(crate) counts: Arc<Counts>,
}

/// What a way to a peer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Carries {
    Entries,
    Beats,
    Snapshots,
}

/// One group's way to one peer.
pub(crate) struct PeerLink {
    group: u32,
    waits: bool,
    target: u64,
    carries: Carries,
    links: Arc<Links>,
    beats: Arc<Beats>,
    damages: Arc<Damages>,
    counts: Arc<Counts>,
    /// The last entry that this peer is known to have on disk.
    matched: Option<LogId>,
}

type Rpc = RPCError<TypeConfig>;

impl RaftNetworkFactory<TypeConfig> for PeerNetwork {
    type Network = PeerLink;

    async fn new_client(&mut self, target: u64, node: &Peer) -> PeerLink {
        // The topology's address wins; this one is for who has no topology yet.
        if !self.links.knows(target) {
            self.links.place(target, &node.peer, &node.addr);
        }
        PeerLink {
            group: self.group,
            waits: self.waits,
            target,
            carries: Carries::Entries,
            links: self.links.clone(),
            beats: self.beats.clone(),
            damages: self.damages.clone(),
            counts: self.counts.clone(),
            matched: None,
        }
    }

    // Without this openraft would beat as it appends: by a stream of the log's connection for
    // each beat of each group, given up when it is late.
    async fn new_heartbeat_client(&mut self, target: u64, node: &Peer) -> PeerLink {
        let mut link = self.new_client(target, node).await;
        link.carries = Carries::Beats;
        link
    }

    async fn new_snapshot_client(&mut self, target: u64, node: &Peer) -> PeerLink {
        let mut link = self.new_client(target, node).await;
        link.carries = Carries::Snapshots;
        link
    }
}

fn unreachable(what: impl ToString) -> Rpc {
    Unreachable::from_string(what).into()
}

impl PeerLink {
    fn client(&self, line: Line) -> Result<PeerClient, Rpc> {
        let client = self.links.client(self.target, line);
        client.ok_or_else(|| unreachable(format!("nobody knows where node {} is", self.target)))
    }

    fn timeout(&self, action: RPCTypes, timeout: Duration) -> Rpc {
        Timeout {
            action,
            id: 0,
            target: self.target,
            timeout,
        }
        .into()
    }

    /// One call with a deadline.
    async fn call<T>(
        &self,
        action: RPCTypes,
        within: Duration,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T, Rpc> {
        match tokio::time::timeout(within, call).await {
            Ok(Ok(response)) => {
                self.links.heard(self.target);
                Ok(response.into_inner())
            },
            Ok(Err(status)) => Err(unreachable(status.message())),
            Err(_elapsed) => Err(self.timeout(action, within)),
        }
    }

    async fn ask_vote(
        &self,
        request: VoteRequest<TypeConfig>,
        option: &RPCOption,
        pre_vote: bool,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        let message = convert::vote_request_to(self.group, &request, pre_vote);
        let mut client = self.client(Line::Beat)?;
        let within = option.hard_ttl().min(VOTE_WITHIN);
        let asked = self.call(RPCTypes::Vote, within, client.vote(message));
        let response = asked.await?;
        if response.absent {
            return Err(unreachable("the node does not have the group"));
        }
        convert::vote_response_from(&response).map_err(|error| NetworkError::new(&error).into())
    }

    /// An answer to an append, as openraft may see it.
    fn answer(
        &mut self,
        response: wire::AppendResponse,
    ) -> Result<StreamAppendResult<TypeConfig>, Rpc> {
        let answer = convert::appended_from(response);
        let answer = answer.map_err(|error| Rpc::from(NetworkError::new(&error)))?;
        let answer = answer.ok_or_else(|| unreachable("the node does not have the group"))?;
        match &answer {
            Ok(matched) => self.matched = self.matched.max(*matched),
            // A peer that lost what it had acked: openraft asserts that this cannot be, here on
            // the leader (RULES 30). The peer learns of it by our Hello.
            Err(StreamAppendError::Conflict(at)) if self.matched.as_ref() >= Some(at) => {
                let (group, node, matched) = (self.group, self.target, self.matched);
                tracing::error!(group, node, %at, ?matched, "a peer lost what it had acked");
                return Err(unreachable("the peer lost what it had acked"));
            },
            Err(StreamAppendError::Conflict(_) | StreamAppendError::HigherVote(_)) => {},
        }
        Ok(answer)
    }
}

impl RaftNetworkV2<TypeConfig> for PeerLink {
    type SnapshotData = SnapshotData;

    // openraft appends by the stream: what comes here is a heartbeat.
    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, Rpc> {
        let message = convert::append_to(self.group, &request);
        let response = self.beats.beat(self.target, message).await;
        let response = response.ok_or_else(|| unreachable("a heartbeat was not answered"))?;
        Ok(self.answer(response)?.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, Rpc>>, Rpc>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        if self.carries == Carries::Beats {
            return stream_append_sequential(self, input, option);
        }
        Box::pin(async move {
            let mut input = input;
            // openraft waits between attempts inside of its stream of requests. So that is asked
            // before anything is sent: else a peer that refuses at once is called without pause.
            let Some(first) = input.next().await else {
                return Ok(stream::empty().boxed());
            };
            let mut client = self.client(Line::Log)?;
            let under_way = Arc::new(UnderWay::new(self.counts.clone()));
            let (group, sent) = (self.group, under_way.clone());
            let input = stream::once(std::future::ready(first)).chain(input);
            let requests = input.map(move |request| {
                let message = convert::append_to(group, &request);
                sent.sent(message.entries.iter().map(|entry| entry.len()).sum());
                message
            });
            let opened = client.append(requests);
            let answers = self.call(RPCTypes::AppendEntries, APPEND_WITHIN, opened);
            let answers = answers.await?;
            let state = Answers {
                link: self,
                answers,
                under_way,
                over: false,
            };
            let answers = stream::unfold(state, |mut state| async move {
                let answer = state.next().await?;
                Some((answer, state))
            });
            Ok(answers.boxed())
        })
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        self.ask_vote(request, &option, false).await
    }

    // openraft's default grants (engine trap 6).
    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, Rpc> {
        self.ask_vote(request, &option, true).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<TypeConfig, SnapshotData>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        let SnapshotData::Rows(reader) = snapshot.snapshot else {
            return Err(Unreachable::from_string("a marker holds nothing to send").into());
        };
        let mut client = self.client(Line::Bulk).map_err(streaming)?;
        let (pieces, receiver) = mpsc::channel(PIECES_WAITING_MAX);
        // The number of chunks, then `u64::MAX`.
        let progress = Arc::new(AtomicU64::new(0));
        let sending = pieces::Sending {
            waits: self.waits,
            group: self.group,
            vote: Some(convert::vote_to(&vote)),
            damages: self.damages.clone(),
            pieces,
            wrap: std::convert::identity,
            moved: progress.clone(),
        };
        let moved = progress.clone();
        let sending = tokio::spawn(async move {
            sending.run(reader).await?;
            moved.store(u64::MAX, Ordering::SeqCst);
            Ok::<_, String>(())
        });
        let call = client.snapshot(ReceiverStream::new(receiver));
        tokio::pin!(call, cancel);
        let mut last = 0;
        loop {
            tokio::select! {
                closed = &mut cancel => return Err(closed.into()),
                answer = &mut call => {
                    let answer = answer.map_err(|status| {
                        let what = format!("the snapshot was not taken: {}", status.message());
                        StreamingError::from(Unreachable::from_string(what))
                    })?;
                    if let Ok(Err(error)) = sending.await {
                        return Err(Unreachable::from_string(error).into());
                    }
                    let vote = convert::vote_from(answer.into_inner().vote);
                    let vote = vote.map_err(|error| NetworkError::new(&error))?;
                    one_more(&self.counts.snapshots_sent);
                    return Ok(SnapshotResponse::new(vote));
                },
                () = tokio::time::sleep(SNAPSHOT_PIECE_WITHIN) => {
                    let now = progress.load(Ordering::SeqCst);
                    // The peer installs when it has everything: that takes as long as it takes,
                    // and its connection is watched by keepalive.
                    if now == last && now != u64::MAX {
                        return Err(Unreachable::from_string("the snapshot does not move").into());
                    }
                    last = now;
                },
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        _option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, Rpc> {
        let message = convert::transfer_to(self.group, &request);
        let mut client = self.client(Line::Beat)?;
        let asked = self.call(
            RPCTypes::TransferLeader,
            VOTE_WITHIN,
            client.transfer(message),
        );
        let response = asked.await?;
        if response.accepted {
            return Ok(Ok(()));
        }
        Err(unreachable("the node did not take the leadership"))
    }

    fn backoff(&self) -> Option<Backoff> {
        let pauses = match self.carries {
            Carries::Entries | Carries::Beats => ENTRIES_AGAIN_MS,
            Carries::Snapshots => SNAPSHOT_AGAIN_MS,
        };
        let [.., last] = pauses;
        let pauses = pauses.into_iter().chain(std::iter::repeat(last));
        Some(Backoff::new(pauses.map(Duration::from_millis)))
    }
}

fn streaming(error: Rpc) -> StreamingError<TypeConfig> {
    match error {
        RPCError::Timeout(error) => error.into(),
        RPCError::Unreachable(error) => error.into(),
        RPCError::Network(error) => error.into(),
        RPCError::RemoteError(error) => NetworkError::new(&error).into(),
    }
}

/// The answers of one append stream.
struct Answers<'s> {
    link: &'s mut PeerLink,
    answers: tonic::Streaming<wire::AppendResponse>,
    /// What the peer owes an answer to.
    under_way: Arc<UnderWay>,
    over: bool,
}

impl Answers<'_> {
    /// The next answer. An error ends the stream: so does a peer that owes one for too long.
    async fn next(&mut self) -> Option<Result<StreamAppendResult<TypeConfig>, Rpc>> {
        if self.over {
            return None;
        }
        loop {
            let owed = self.under_way.is_any();
            match tokio::time::timeout(APPEND_WITHIN, self.answers.message()).await {
                Ok(Ok(Some(response))) => {
                    self.under_way.answered();
                    self.link.links.heard(self.link.target);
                    let answer = self.link.answer(response);
                    self.over = answer.is_err();
                    return Some(answer);
                },
                Ok(Ok(None)) => return None,
                Ok(Err(status)) => {
                    self.over = true;
                    return Some(Err(unreachable(status.message())));
                },
                Err(_elapsed) if owed => {
                    self.over = true;
                    let late = self.link.timeout(RPCTypes::AppendEntries, APPEND_WITHIN);
                    return Some(Err(late));
                },
                Err(_elapsed) => {},
            }
        }
    }
}
