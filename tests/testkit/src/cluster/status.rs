//! How a cluster stands, as its nodes tell an operator: who leads what.

use std::collections::BTreeMap;
use std::time::Duration;

use everwire_core::{NodeId, Refusal, SessionName, ShardId, Slot, limits};
use everwire_proto::v1::StatusResponse;
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Leaders {
    /// By shard.
    pub of: BTreeMap<ShardId, Option<usize>>,
    /// The number of the term of each shard.
    pub terms: BTreeMap<ShardId, u64>,
    /// Which of our nodes hold each shard.
    pub replicas: BTreeMap<ShardId, Vec<usize>>,
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
    pub async fn status_of(&self, number: usize) -> Result<StatusResponse, Refusal> {
        let node = self.direct(number, &self.operator(), ANSWER_WITHIN);
        node.status().await
    }

    /// The cluster as any node sees it that is up; waits for one that answers.
    pub async fn status(&self) -> StatusResponse {
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

    fn leaders_in(&self, status: &StatusResponse) -> Leaders {
        let mut leaders = Leaders::default();
        for shard in &status.shards {
            let id = ShardId(shard.id);
            let numbers = shard.replicas.iter();
            let numbers = numbers.filter_map(|node| self.number_of(status, NodeId(*node)));
            leaders.replicas.insert(id, numbers.collect());
            let leader = self.number_of(status, NodeId(shard.leader));
            leaders.of.insert(id, leader);
            leaders.terms.insert(id, shard.term);
        }
        leaders
    }

    /// Which of our nodes has this id.
    fn number_of(&self, status: &StatusResponse, id: NodeId) -> Option<usize> {
        let node = status.nodes.iter().find(|node| node.id == id.0)?;
        self.nodes.iter().position(|ours| ours.grpc == node.addr)
    }

    /// A node's id, as the cluster has it now; waits until it has one and is alive.
    pub async fn id_of(&self, number: usize) -> NodeId {
        let addr = self.grpc(number);
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            let nodes = self.status().await.nodes;
            let mut alive = nodes.iter().filter(|node| node.alive);
            if let Some(node) = alive.find(|node| node.addr == addr) {
                return NodeId(node.id);
            }
            assert!(Instant::now() < until, "{addr} is not in {nodes:?}");
            tokio::time::sleep(ASK_EVERY).await;
        }
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
            if Instant::now() >= until {
                let status = self.status().await;
                panic!("not balanced within {within:?}, but {seen:?}, that is {status:?}");
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }
}
