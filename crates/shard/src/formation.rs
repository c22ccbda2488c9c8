//! How a node with an empty disk comes to a cluster: it joins the one that is there, or forms it
//! together with the others that have met (RULES 39).
//!
//! A cluster is formed by the node of the lowest name alone, and only when all that are expected
//! answer and all are empty. It tells them their ids; each writes down its own, and any of them
//! can go on from there, because all begin the metadata group with the same voters.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everwire_core::{Code, NodeId, Random, Refusal};
use everwire_proto::internal_v1 as wire;
use everwire_proto::{refusal, storage_v1 as disk};
use everwire_store::Identity;
use futures_util::future::join_all;

use crate::peer::{Door, Line, Phase};
use crate::raft::types::Peer;

/// How often seeds are asked.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// How long a seed may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// What a node tells about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct About {
    /// Its configured name.
    pub(crate) name: String,
    /// Where clients reach it.
    pub(crate) addr: String,
    /// Where other nodes reach it.
    pub(crate) peer: String,
    /// Drawn when it started: tells it from another node of its name.
    pub(crate) incarnation: u64,
}

/// What a node looks for.
pub(crate) struct Wish {
    pub(crate) seeds: Vec<String>,
    pub(crate) expect: usize,
    /// The cluster that it must be.
    pub(crate) cluster: Option<String>,
    /// Shards of a new one.
    pub(crate) shards: u32,
}

/// The voters of the metadata group of a cluster that was formed like this.
pub(crate) fn voters(formation: &wire::Formation) -> BTreeMap<u64, Peer> {
    let count = match formation.nodes.len() {
        0..=4 => 3,
        _ => 5,
    };
    let nodes = formation.nodes.iter().take(count);
    nodes
        .map(|node| {
            let peer = Peer {
                addr: node.addr.clone(),
                peer: node.peer.clone(),
            };
            (node.id, peer)
        })
        .collect()
}

/// A cluster of these, the ids in the order of their names.
fn formation(cluster: String, shards: u32, mut nodes: Vec<About>) -> wire::Formation {
    nodes.sort_by(|one, other| one.name.cmp(&other.name));
    let nodes = (1..).zip(nodes).map(|(id, about)| disk::TopologyNode {
        id,
        name: about.name,
        addr: about.addr,
        peer: about.peer,
        incarnation: about.incarnation,
        state: disk::TopologyNodeState::Active.into(),
    });
    wire::Formation {
        cluster,
        timeline: 1,
        shards,
        nodes: nodes.collect(),
    }
}

/// A cluster of one.
pub(crate) fn alone(about: &About, cluster: String, shards: u32) -> wire::Formation {
    formation(cluster, shards, vec![about.clone()])
}

/// A new cluster's id.
pub(crate) fn mint(random: &dyn Random) -> String {
    let high = u128::from(random.next()) << 64;
    format!("{:032x}", high | u128::from(random.next()))
}

/// The identity that a formation gives to a node, if it takes part.
pub(crate) fn identity_in(formation: &wire::Formation, about: &About) -> Option<Identity> {
    let mine = |node: &&disk::TopologyNode| {
        node.name == about.name && node.incarnation == about.incarnation
    };
    let node = formation.nodes.iter().find(mine)?;
    Some(Identity {
        cluster: formation.cluster.clone(),
        node: NodeId(node.id),
        timeline: formation.timeline,
        shards: formation.shards,
    })
}

/// Finds a place for a node with an empty disk. Asks until there is one; the end of the process
/// is the only other end, but for a cluster that it must not join.
pub(crate) async fn find_place(
    door: &Door,
    wish: &Wish,
    random: &Arc<dyn Random>,
) -> Result<(Identity, Option<wire::Formation>), Refusal> {
    let mut told = 0_u32;
    loop {
        let answers = discover(door, &wish.seeds).await;
        if let Some(found) = adopt(door, wish, &answers).await? {
            return Ok(found);
        }
        if let Some(formation) = may_form(door, wish, &answers, random) {
            let about = &door.about;
            let identity = identity_in(&formation, about).expect("a node forms with itself");
            tracing::info!(cluster = formation.cluster, "forms a cluster");
            door.set_phase(Phase::Forming(formation.clone()));
            return Ok((identity, Some(formation)));
        }
        if told.is_multiple_of(50) {
            let (answered, expect) = (answers.len(), wish.expect);
            tracing::info!(
                answered,
                expect,
                "waits for the others to form or join a cluster"
            );
        }
        told += 1;
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// Asks all seeds what they are, this node among them.
pub(crate) async fn discover(
    door: &Door,
    seeds: &[String],
) -> Vec<(String, wire::DiscoverResponse)> {
    let about = &door.about;
    let asking = seeds.iter().map(|seed| async move {
        let mut client = door.links.client_at(seed, Line::Beat)?;
        let request = wire::DiscoverRequest {
            name: about.name.clone(),
            addr: about.addr.clone(),
            peer: about.peer.clone(),
            incarnation: about.incarnation,
            cluster: String::new(),
        };
        let asked = tokio::time::timeout(ANSWER_WITHIN, client.discover(request)).await;
        match asked {
            Ok(Ok(response)) => Some((seed.clone(), response.into_inner())),
            Ok(Err(status)) => {
                tracing::debug!(seed, reason = status.message(), "a seed gave no answer");
                None
            },
            Err(_elapsed) => None,
        }
    });
    join_all(asking).await.into_iter().flatten().collect()
}

/// Takes the place that the others have for this node, if they have one.
async fn adopt(
    door: &Door,
    wish: &Wish,
    answers: &[(String, wire::DiscoverResponse)],
) -> Result<Option<(Identity, Option<wire::Formation>)>, Refusal> {
    let about = &door.about;
    for (_, answer) in answers {
        let Some(formation) = &answer.formation else {
            continue;
        };
        if let Some(identity) = identity_in(formation, about) {
            check_cluster(wish, &identity.cluster)?;
            tracing::info!(cluster = identity.cluster, node = %identity.node, "takes part in a new cluster");
            return Ok(Some((identity, Some(formation.clone()))));
        }
    }
    for (seed, answer) in answers {
        if answer.cluster.is_empty() || !answer.joinable {
            continue;
        }
        check_cluster(wish, &answer.cluster)?;
        let Some(mut client) = door.links.client_at(seed, Line::Beat) else {
            continue;
        };
        let request = wire::JoinRequest {
            name: about.name.clone(),
            addr: about.addr.clone(),
            peer: about.peer.clone(),
            incarnation: about.incarnation,
            cluster: wish.cluster.clone().unwrap_or_default(),
        };
        let asked = tokio::time::timeout(ANSWER_WITHIN, client.join(request)).await;
        let Ok(Ok(response)) = asked else {
            continue;
        };
        let response = response.into_inner();
        if let Some(error) = response.refusal {
            let told = refusal::from_error(error);
            tracing::warn!(seed, refusal = %told, "the cluster did not let this node in");
            continue;
        }
        let identity = Identity {
            cluster: response.cluster,
            node: NodeId(response.node),
            timeline: response.timeline,
            shards: response.shards,
        };
        tracing::info!(cluster = identity.cluster, node = %identity.node, "joins a cluster");
        return Ok(Some((identity, None)));
    }
    Ok(None)
}

fn check_cluster(wish: &Wish, found: &str) -> Result<(), Refusal> {
    match &wish.cluster {
        Some(wanted) if wanted != found => {
            let message = format!("the seeds belong to cluster {found}, not {wanted}");
            Err(Refusal::new(Code::WrongCluster, message))
        },
        Some(_) | None => Ok(()),
    }
}

/// The cluster that this node may form now: it has the lowest name, all that are expected
/// answer, and all are empty.
fn may_form(
    door: &Door,
    wish: &Wish,
    answers: &[(String, wire::DiscoverResponse)],
    random: &Arc<dyn Random>,
) -> Option<wire::Formation> {
    let about = &door.about;
    let all_empty = answers
        .iter()
        .all(|(_, answer)| answer.cluster.is_empty() && answer.formation.is_none());
    let met: Vec<About> = answers.iter().map(|(_, answer)| about_of(answer)).collect();
    let names: BTreeSet<&str> = met.iter().map(|about| about.name.as_str()).collect();
    if names.len() < met.len() {
        tracing::warn!("two seeds have one name, or one node is named by two seeds");
        return None;
    }
    let complete = all_empty && met.len() >= wish.expect && met.contains(about);
    let lowest = names.first().is_some_and(|lowest| *lowest == about.name);
    if !(complete && lowest) {
        return None;
    }
    let cluster = wish.cluster.clone();
    let cluster = cluster.unwrap_or_else(|| mint(&**random));
    Some(formation(cluster, wish.shards, met))
}

/// Goes on where this node stopped in the middle of a formation: it knows who it is, and its
/// metadata group is empty. `None`: somebody will reach it, or already has.
pub(crate) async fn go_on(
    door: &Door,
    wish: &Wish,
    identity: &Identity,
) -> Result<Option<wire::Formation>, Refusal> {
    let answers = discover(door, &wish.seeds).await;
    for (_, answer) in &answers {
        if !answer.cluster.is_empty() && answer.cluster != identity.cluster {
            let (found, own) = (&answer.cluster, &identity.cluster);
            let message = format!("the seeds belong to cluster {found}, this node to {own}");
            return Err(Refusal::new(Code::WrongCluster, message));
        }
        if let Some(formation) = &answer.formation
            && formation.cluster == identity.cluster
        {
            return Ok(Some(formation.clone()));
        }
    }
    // It formed, wrote down who it is, and died before anybody heard of it.
    let about = &door.about;
    let others = answers
        .iter()
        .filter(|(_, answer)| answer.name != about.name);
    let others: Vec<About> = others
        .filter(|(_, answer)| answer.cluster.is_empty() && answer.formation.is_none())
        .map(|(_, answer)| about_of(answer))
        .collect();
    let complete = others.len() + 1 >= wish.expect && others.len() + 1 >= answers.len();
    let lowest = others.iter().all(|other| other.name > about.name);
    if complete && lowest && identity.node == NodeId(1) {
        let mut met = others;
        met.push(about.clone());
        return Ok(Some(formation(
            identity.cluster.clone(),
            identity.shards,
            met,
        )));
    }
    Ok(None)
}

fn about_of(answer: &wire::DiscoverResponse) -> About {
    About {
        name: answer.name.clone(),
        addr: answer.addr.clone(),
        peer: answer.peer.clone(),
        incarnation: answer.incarnation,
    }
}
