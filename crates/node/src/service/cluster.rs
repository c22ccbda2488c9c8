//! `Cluster`: how the cluster stands, for operators; and its map, for whoever finds a way by it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::grant::Capability;
use everwire_core::topology::MemberState;
use everwire_core::{Code, NodeId, Refusal, ShardId};
use everwire_proto::v1;
use everwire_shard::{NodeReport, ShardHandle};
use futures_util::stream::{self, BoxStream};
use tonic::{Request, Response, Status};

use crate::context::{Context, drained};
use crate::identity::{self, Caller};
use crate::map::MapReader;
use crate::metrics::Counted;
use crate::service::answer;

/// See the module.
pub(crate) struct Cluster {
    context: Arc<Context>,
}

impl Cluster {
    /// The service of a node.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn status(
        &self,
        caller: &Caller,
        _asked: v1::StatusRequest,
    ) -> Result<v1::StatusResponse, Refusal> {
        let now = self.context.clock.now();
        caller.claims().allows_anywhere(Capability::Operate, now)?;
        if !self.context.shards.is_member() {
            // An empty list would say that there is nobody.
            let message = "this node does not know the cluster yet: ask again, or another node";
            return Err(Refusal::new(Code::Draining, message));
        }
        let map = self.context.maps.reader().next().await;
        let handles = self.context.shards.shards();
        let shards: Vec<_> = handles.iter().map(shard_status).collect();
        let nodes = map.nodes.iter().map(|node| self.node_status(node, &shards));
        Ok(v1::StatusResponse {
            cluster: self.context.cluster.clone(),
            nodes: nodes.collect(),
            shards,
            version: self.context.version.clone(),
            metadata_rules: self.context.shards.metadata_rules(),
        })
    }

    /// A node of the map, with what is known of it besides.
    fn node_status(&self, node: &v1::MapNode, shards: &[v1::ShardStatus]) -> v1::NodeStatus {
        let id = NodeId(node.id);
        let topology = self.context.shards.topology();
        let member = topology.nodes.get(&id);
        let count = |fits: &dyn Fn(&v1::ShardStatus) -> bool| {
            let count = shards.iter().filter(|shard| fits(shard)).count();
            u32::try_from(count).unwrap_or(u32::MAX)
        };
        v1::NodeStatus {
            id: node.id,
            addr: node.addr.clone(),
            alive: node.alive,
            name: member.map(|member| member.name.clone()).unwrap_or_default(),
            leaving: member.is_some_and(|member| member.state == MemberState::Leaving),
            leads: count(&|shard| shard.leader == node.id),
            holds: count(&|shard| shard.replicas.contains(&node.id)),
            metadata_leader: self.context.shards.meta_leader() == Some(id),
            metadata_voter: topology.voters.contains(&id),
            meters: self.context.shards.report(id).map(node_meters),
            rules: self.context.shards.rules_known(id).unwrap_or_default(),
        }
    }

    async fn transfer(
        &self,
        caller: &Caller,
        asked: v1::TransferRequest,
    ) -> Result<v1::TransferResponse, Refusal> {
        let now = self.context.clock.now();
        caller.claims().allows_anywhere(Capability::Operate, now)?;
        let to = (asked.to != 0).then_some(NodeId(asked.to));
        let leader = self
            .context
            .shards
            .transfer(ShardId(asked.shard), to)
            .await?;
        Ok(v1::TransferResponse { leader: leader.0 })
    }

    async fn replace_node(
        &self,
        caller: &Caller,
        asked: v1::ReplaceNodeRequest,
    ) -> Result<v1::ReplaceNodeResponse, Refusal> {
        let now = self.context.clock.now();
        caller.claims().allows_anywhere(Capability::Operate, now)?;
        let version = self.context.shards.retire(NodeId(asked.node)).await?;
        Ok(v1::ReplaceNodeResponse { version })
    }
}

fn shard_status(shard: &ShardHandle) -> v1::ShardStatus {
    let status = shard.status();
    let followers = shard.followers().into_iter();
    let followers = followers.map(|(node, lag)| v1::FollowerStatus { node: node.0, lag });
    v1::ShardStatus {
        id: status.id.0,
        leader: status.leader.map_or(0, |node| node.0),
        replicas: status.replicas.iter().map(|node| node.0).collect(),
        term: status.term,
        applied: status.applied,
        committed: status.committed,
        followers: followers.collect(),
        rules: status.rules,
    }
}

fn node_meters(report: NodeReport) -> v1::NodeMeters {
    let us = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let (disk_total, disk_available) = report.disk;
    let (half, most) = report.sync_took;
    v1::NodeMeters {
        disk_total,
        disk_available,
        elections: report.elections,
        queued_bytes: report.queued_bytes,
        syncs: report.syncs,
        sync_p50_us: us(half),
        sync_p99_us: us(most),
    }
}

/// One watcher: it gets the latest map whenever it takes one, however many there were meanwhile.
struct Watching {
    context: Arc<Context>,
    maps: MapReader,
    /// Resolves when the token's time is over.
    expiry: Pin<Box<dyn Future<Output = Refusal> + Send>>,
    _counted: Counted,
}

impl Watching {
    fn new(context: &Arc<Context>, caller: &Caller) -> Self {
        Self {
            maps: context.maps.reader(),
            expiry: Box::pin(caller.expiry(Arc::clone(&context.clock))),
            _counted: context.metrics.watch_stream(),
            context: Arc::clone(context),
        }
    }

    /// The next map, or why there is none any more.
    async fn next(&mut self) -> Result<v1::Map, Refusal> {
        tokio::select! {
            biased;
            refusal = &mut self.expiry => Err(refusal),
            () = self.context.draining.cancelled() => Err(drained()),
            map = self.maps.next() => Ok(map.as_ref().clone()),
        }
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for Cluster {
    type WatchStream = BoxStream<'static, Result<v1::Map, Status>>;

    /// Any good token will do: addresses are told, and nothing about a session or a tenant.
    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let caller = identity::of(&request).map_err(|refusal| self.context.refuse(&refusal))?;
        let watching = Watching::new(&self.context, &caller);
        let maps = stream::unfold(Some(watching), async |watching| {
            let mut watching = watching?;
            match watching.next().await {
                Ok(map) => Some((Ok(map), Some(watching))),
                Err(refusal) => Some((Err(watching.context.refuse(&refusal)), None)),
            }
        });
        Ok(Response::new(Box::pin(maps)))
    }

    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        answer!(self.status(request))
    }

    async fn transfer(
        &self,
        request: Request<v1::TransferRequest>,
    ) -> Result<Response<v1::TransferResponse>, Status> {
        answer!(self.transfer(request))
    }

    async fn replace_node(
        &self,
        request: Request<v1::ReplaceNodeRequest>,
    ) -> Result<Response<v1::ReplaceNodeResponse>, Status> {
        answer!(self.replace_node(request))
    }
}
