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
use everwire_rules::RULES_VERSION;
use everwire_store::{PeerRecord, Store, VoteRecord, regressed};
use futures_util::future::join_all;
use tonic::Status;

use super::links::{Line, Links};
use crate::set::Host;

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
    said: wire::HelloRequest,
) -> Result<wire::HelloResponse, Status> {
    let said = record_from(said.batch, said.votes);
    let work = move || {
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
            rules: RULES_VERSION,
            regressed,
        }
    };
    let told = tokio::task::spawn_blocking(work).await;
    told.map_err(|error| Status::internal(error.to_string()))
}

/// Says Hello to one node. `None`: no answer.
async fn greet(
    links: &Links,
    store: &Arc<dyn Store>,
    node: NodeId,
) -> Option<Result<wire::HelloResponse, Status>> {
    let mut client = links.client(node.0, Line::Beat)?;
    let own = {
        let store = store.clone();
        tokio::task::spawn_blocking(move || store.own_record())
            .await
            .ok()?
    };
    let request = wire::HelloRequest {
        cluster: store.identity().cluster.clone(),
        node: store.identity().node.0,
        batch: own.batch,
        votes: votes_to(&own),
        rules: RULES_VERSION,
    };
    let asked = tokio::time::timeout(ANSWER_WITHIN, client.hello(request))
        .await
        .ok()?;
    Some(asked.map(tonic::Response::into_inner))
}

/// Asks until a majority of the cluster's voters has answered, this node counted. WRONG_CLUSTER
/// when the cluster has removed this node.
pub(crate) async fn greet_all(
    links: &Links,
    store: &Arc<dyn Store>,
    me: NodeId,
    topology: &Topology,
) -> Result<Greeted, Refusal> {
    let living = topology
        .nodes
        .iter()
        .filter(|(_, member)| member.state != MemberState::Removed);
    let others: Vec<NodeId> = living
        .inspect(|(id, member)| links.place(id.0, &member.peer, &member.addr))
        .map(|(id, _)| *id)
        .filter(|id| *id != me)
        .collect();
    let needed = others.len().div_ceil(2);
    let mut welcomed = BTreeSet::new();
    let mut round = 0_u32;
    while welcomed.len() < needed {
        let silent = others.iter().filter(|node| !welcomed.contains(*node));
        let asked = silent.map(|node| async move { (*node, greet(links, store, *node).await) });
        for (node, told) in join_all(asked).await {
            match told {
                Some(Ok(told)) if told.regressed => return Ok(Greeted::Regressed(node)),
                Some(Ok(_)) => {
                    welcomed.insert(node);
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
        if welcomed.len() < needed {
            if round.is_multiple_of(50) {
                let answered = welcomed.len();
                tracing::info!(
                    answered,
                    needed,
                    "waits for the other nodes before it starts"
                );
            }
            round += 1;
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
    Ok(Greeted::Welcome)
}

/// Keeps telling the others what this node has synced, so that they would notice if it forgot.
pub(crate) async fn keep_greeting(host: Arc<Host>) {
    loop {
        let nodes = host.shared.links.known().into_iter().map(NodeId);
        let others = nodes.filter(|node| *node != host.identity.node);
        let links = &host.shared.links;
        let greeted = others.map(|node| greet(links, &host.shared.store, node));
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
