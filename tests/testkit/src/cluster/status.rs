//! How a cluster stands, as its nodes tell an operator: who leads what.

use std::collections::BTreeMap;
use std::time::Duration;

use everwire_client::ClusterStatus;
use everwire_core::{NodeId, Refusal, SessionName, ShardId, Slot, limits};
use tokio::time::Instant;

use super::{Cluster, namespace};

/// Longest wait for one answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// How often a cluster is asked while somebody waits for it.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// The shard of a session of namespace `dev`.
pub fn shard_of(session: &SessionName) -> ShardId {
    let slot = Slot::of(&namespace(), session);
    ShardId::holding(slot, limits::SHARDS_DEFAULT)
}

/// Who leads which shard: the number of the node, `None` while nobody does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaders {
    /// By shard.
    pub of: BTreeMap<ShardId, Option<usize>>,
    /// The number of the term of each shard.
    pub terms: BTreeMap<ShardId, u64>,
    /// How many replicas each shard has.
    pub replicas: BTreeMap<ShardId, usize>,
}

impl Leaders {
    /// The shards that a node leads.
    pub fn led_by(&self, node: usize) -> Vec<ShardId> {
        let led = self.of.iter().filter(|(_, leader)| **leader == Some(node));
        led.map(|(shard, _)| *shard).collect()
    }

    /// Whether these nodes, and no others, lead every shard, none of them one more than its share.
    fn are_spread_over(&self, nodes: &[usize]) -> bool {
        let counts: Vec<_> = nodes.iter().map(|node| self.led_by(*node).len()).collect();
        let (least, most) = (counts.iter().min(), counts.iter().max());
        let all = counts.iter().sum::<usize>() == self.of.len() && !self.of.is_empty();
        all && least
            .zip(most)
            .is_some_and(|(least, most)| most - least <= 1)
    }
}

impl Cluster {
    /// The cluster as one node sees it.
    pub async fn status_of(&self, number: usize) -> Result<ClusterStatus, Refusal> {
        let client = self.client_of(number, &self.operator());
        client.with_deadline(ANSWER_WITHIN).cluster_status().await
    }

    /// The cluster as any node sees it that is up; waits for one that answers.
    pub async fn status(&self) -> ClusterStatus {
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let mut said = Vec::new();
            for number in self.acting() {
                match self.status_of(number).await {
                    Ok(status) => return status,
                    Err(refusal) => said.push(format!("n{number}: {refusal}")),
                }
            }
            assert!(Instant::now() < until, "no node answers: {said:?}");
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// The nodes that are up and not paused.
    pub fn acting(&self) -> Vec<usize> {
        let nodes = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(_, node)| node.acts());
        nodes.map(|(number, _)| number).collect()
    }

    /// Who leads what, as any node sees it.
    pub async fn leaders(&self) -> Leaders {
        self.leaders_in(&self.status().await)
    }

    fn leaders_in(&self, status: &ClusterStatus) -> Leaders {
        let numbers: BTreeMap<NodeId, usize> = status
            .nodes
            .iter()
            .filter_map(|node| {
                let number = self.nodes.iter().position(|ours| ours.grpc == node.addr)?;
                Some((node.id, number))
            })
            .collect();
        let leader = |node: Option<NodeId>| numbers.get(&node?).copied();
        let shards = status.shards.iter();
        Leaders {
            of: shards
                .clone()
                .map(|shard| (shard.id, leader(shard.leader)))
                .collect(),
            terms: shards.clone().map(|shard| (shard.id, shard.term)).collect(),
            replicas: shards
                .map(|shard| (shard.id, shard.replicas.len()))
                .collect(),
        }
    }

    /// The number of a node's id, as the cluster has it now.
    pub async fn id_of(&self, number: usize) -> NodeId {
        let status = self.status().await;
        let addr = self.grpc(number);
        let mut alive = status.nodes.iter().filter(|node| node.alive);
        let node = alive.find(|node| node.addr == addr);
        node.unwrap_or_else(|| panic!("{addr} is not in {:?}", status.nodes))
            .id
    }

    /// The node that leads a session's shard; waits for one.
    pub async fn leader_of(&self, session: &SessionName) -> usize {
        let shard = shard_of(session);
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let leaders = self.leaders().await;
            if let Some(Some(leader)) = leaders.of.get(&shard) {
                return *leader;
            }
            assert!(
                Instant::now() < until,
                "shard {shard} has no leader: {leaders:?}"
            );
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Waits until the shards' leaders are spread evenly over all nodes that are up, as each of
    /// these sees it.
    pub async fn wait_balanced(&self, within: Duration) -> Leaders {
        let (nodes, until) = (self.acting(), Instant::now() + within);
        loop {
            let mut seen = Vec::new();
            for node in &nodes {
                if let Ok(status) = self.status_of(*node).await {
                    seen.push(self.leaders_in(&status));
                }
            }
            let first = seen.first();
            let agreed = seen.len() == nodes.len()
                && first.is_some_and(|first| seen.iter().all(|other| other.of == first.of));
            if let Some(leaders) = first.filter(|leaders| agreed && leaders.are_spread_over(&nodes))
            {
                return leaders.clone();
            }
            let late = Instant::now() >= until;
            assert!(!late, "not balanced within {within:?}, but {seen:?}");
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}
