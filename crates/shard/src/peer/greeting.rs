//! Hello: what a node says of its own disk, held against what others recorded of it (RULES 30).
//!
//! A node whose disk went back in time must not vote: it could vote twice in one term, or help to
//! commit what it has forgotten. So it asks before it starts a single group; and each of the
//! others keeps what it said last.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::topology::{MemberState, Topology};
use everwire_core::{Code, NodeId, Refusal};
use everwire_proto::{internal_v1 as wire, refusal, storage_v1 as disk};
use everwire_store::{Identity, PeerRecord, Store, VoteRecord, regressed};
use futures_util::future::join_all;
use tonic::Status;

use super::door::Door;
use super::links::{Line, Links};
use crate::formation::{self, Wish};
use crate::host::Host;
use crate::wait::on_disk;

/// How soon those that gave no answer are asked again.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long one may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How often a running node says what it has synced by now.
const SAY_EVERY: Duration = Duration::from_secs(2);

/// What the others said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Greeted {
    /// A majority knows nothing that this node does not know itself.
    Welcome,
    /// This node had told more: its disk went back.
    Regressed(NodeId),
}

fn votes_to(record: &PeerRecord) -> Vec<disk::GroupVote> {
    let votes = record.votes.iter();
    votes
        .map(|(group, vote)| disk::GroupVote {
            group: *group,
            vote: Some(disk::Vote {
                term: vote.term,
                node: vote.node,
                committed: vote.committed,
            }),
        })
        .collect()
}

fn record_from(batch: u64, votes: Vec<disk::GroupVote>) -> PeerRecord {
    let votes = votes.into_iter().filter_map(|one| {
        let vote = one.vote?;
        let record = VoteRecord {
            term: vote.term,
            node: vote.node,
            committed: vote.committed,
        };
        Some((one.group, record))
    });
    PeerRecord {
        batch,
        votes: votes.collect(),
    }
}

/// Answers a Hello, and keeps what it said unless that was less than before.
pub(super) async fn answer(
    store: Arc<dyn Store>,
    node: u64,
    rules: u32,
    said: wire::HelloRequest,
) -> Result<wire::HelloResponse, Status> {
    let said = record_from(said.batch, said.votes);
    let work = move |store: &Arc<dyn Store>| {
        let known = store.peer_record(NodeId(node));
        let regressed = known.is_some_and(|known| regressed(&known, &said));
        if regressed {
            tracing::error!(node, "a node's disk went back: it is told to begin anew");
        } else {
            store.note_peer(NodeId(node), said);
        }
        let own = store.own_record();
        wire::HelloResponse {
            cluster: store.identity().cluster.clone(),
            node: store.identity().node.0,
            batch: own.batch,
            votes: votes_to(&own),
            rules,
            regressed,
        }
    };
    let told = on_disk(&store, work).await;
    told.map_err(|error| Status::internal(error.to_string()))
}

/// Says Hello to one node. `None`: no answer.
async fn greet(
    links: &Links,
    store: &Arc<dyn Store>,
    node: NodeId,
    rules: u32,
) -> Option<Result<wire::HelloResponse, Status>> {
    let mut client = links.client(node.0, Line::Beat)?;
    let own = on_disk(store, |store| store.own_record()).await.ok()?;
    let request = wire::HelloRequest {
        cluster: store.identity().cluster.clone(),
        node: store.identity().node.0,
        batch: own.batch,
        votes: votes_to(&own),
        rules,
    };
    let asked = tokio::time::timeout(ANSWER_WITHIN, client.hello(request))
        .await
        .ok()?;
    Some(asked.map(tonic::Response::into_inner))
}

/// Whom a node asks before it starts.
struct Circle<'a> {
    door: &'a Door,
    wish: &'a Wish,
    identity: &'a Identity,
    /// `None`: this node knows none of its peers' ids, only its seeds.
    topology: Option<&'a Topology>,
    /// The others by id, as far as they are known.
    others: BTreeSet<NodeId>,
    /// Others that know nothing of this node.
    welcomed: BTreeSet<NodeId>,
    /// Seeds that are nobody yet: they know nothing of this node either.
    empty: usize,
}

impl<'a> Circle<'a> {
    fn new(
        door: &'a Door,
        wish: &'a Wish,
        identity: &'a Identity,
        topology: Option<&'a Topology>,
    ) -> Self {
        let members = topology.iter().flat_map(|topology| &topology.nodes);
        let living = members.filter(|(_, member)| member.state != MemberState::Removed);
        let others = living
            .inspect(|(id, member)| door.links.place(id.0, &member.peer, &member.addr))
            .map(|(id, _)| *id)
            .filter(|id| *id != identity.node);
        Self {
            others: others.collect(),
            door,
            wish,
            identity,
            topology,
            welcomed: BTreeSet::new(),
            empty: 0,
        }
    }

    /// How many others make a majority together with this node.
    fn needed(&self) -> usize {
        let others = match self.topology {
            Some(_) => self.others.len(),
            None => self.wish.expect.saturating_sub(1),
        };
        others.div_ceil(2)
    }

    fn is_welcome(&self) -> bool {
        let empty = if self.topology.is_none() {
            self.empty
        } else {
            0
        };
        self.welcomed.len() + empty >= self.needed()
    }

    /// Looks behind the seeds: nodes may have moved, or not be known yet. WRONG_CLUSTER when a
    /// majority of them is of another cluster and none of this node's.
    async fn look(&mut self) -> Result<(), Refusal> {
        let answers = formation::discover(self.door, &self.wish.seeds).await;
        let me = self.identity.node.0;
        let answers = answers.into_iter().map(|(_, answer)| answer);
        let others: Vec<_> = answers
            .filter(|answer| answer.incarnation != self.door.about.incarnation)
            .collect();
        let own = &self.door.about.peer;
        let seeds = self.wish.seeds.iter().filter(|seed| *seed != own).count();
        let (mut ours, mut foreign) = (0, Vec::new());
        self.empty = 0;
        for answer in others {
            if answer.cluster.is_empty() {
                self.empty += 1;
            } else if answer.cluster != self.identity.cluster {
                foreign.push(answer.cluster);
            } else if answer.node != me {
                ours += 1;
                let links = &self.door.links;
                links.found(answer.node, &answer.peer, &answer.addr);
                if self.topology.is_none() {
                    self.others.insert(NodeId(answer.node));
                }
            }
        }
        match foreign.first() {
            // One foreign node where a peer used to be, while another peer is down, proves nothing.
            Some(other) if ours == 0 && 2 * foreign.len() > seeds => {
                let own = &self.identity.cluster;
                let message = format!("the seeds belong to cluster {other}, this node to {own}");
                Err(Refusal::new(Code::WrongCluster, message))
            },
            _ => Ok(()),
        }
    }

    /// Says Hello to those that have not answered yet. `Some`: the node that knows better.
    async fn greet(&mut self, store: &Arc<dyn Store>) -> Result<Option<NodeId>, Refusal> {
        let (links, rules) = (&self.door.links, self.door.rules);
        let silent = self.others.difference(&self.welcomed);
        let asked =
            silent.map(|node| async move { (*node, greet(links, store, *node, rules).await) });
        for (node, told) in join_all(asked).await {
            match told {
                Some(Ok(told)) if told.regressed => return Ok(Some(node)),
                Some(Ok(_)) => {
                    self.welcomed.insert(node);
                },
                Some(Err(status)) => {
                    let told = refusal::from_status(&status);
                    if !status.details().is_empty() && told.code == Code::WrongCluster {
                        return Err(told);
                    }
                },
                None => {},
            }
        }
        Ok(None)
    }
}

/// Asks until a majority of the cluster's nodes has answered, this node counted. WRONG_CLUSTER
/// when the cluster has removed this node, or the seeds are another cluster.
pub(crate) async fn greet_all(
    door: &Door,
    wish: &Wish,
    store: &Arc<dyn Store>,
    topology: Option<&Topology>,
) -> Result<Greeted, Refusal> {
    let mut circle = Circle::new(door, wish, store.identity(), topology);
    let mut round = 0_u32;
    loop {
        if let Some(node) = circle.greet(store).await? {
            return Ok(Greeted::Regressed(node));
        }
        if circle.is_welcome() {
            return Ok(Greeted::Welcome);
        }
        if round.is_multiple_of(50) {
            let (answered, needed) = (circle.welcomed.len(), circle.needed());
            tracing::info!(
                answered,
                needed,
                "waits for the other nodes before it starts"
            );
        }
        round += 1;
        circle.look().await?;
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Keeps telling the others what this node has synced, so that they would notice if it forgot.
pub(crate) async fn keep_greeting(host: Arc<Host>) {
    loop {
        let nodes = host.shared.links.known().into_iter().map(NodeId);
        let others = nodes.filter(|node| *node != host.identity.node);
        let links = &host.shared.links;
        let greeted = others.map(|node| greet(links, &host.shared.store, node, host.door.rules));
        let told = join_all(greeted).await.into_iter().flatten().flatten();
        if told.into_iter().any(|told| told.regressed) {
            let reason = "its disk went back while it ran: another node knows more of it";
            (host.shared.on_fatal)(reason);
            return;
        }
        tokio::select! {
            () = host.stop.cancelled() => return,
            () = tokio::time::sleep(SAY_EVERY) => {},
        }
    }
}
