//! `Cluster`: how the cluster stands, for operators.

use std::sync::Arc;

use everwire_core::Refusal;
use everwire_core::grant::Capability;
use everwire_proto::v1;
use tonic::{Request, Response, Status};

use crate::context::Context;
use crate::identity::Caller;
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

    #[expect(
        clippy::unused_async,
        reason = "one shape for all services; a cluster of several nodes asks the others"
    )]
    async fn status(
        &self,
        caller: &Caller,
        _asked: v1::StatusRequest,
    ) -> Result<v1::StatusResponse, Refusal> {
        let now = self.context.clock.now();
        caller.claims().allows_anywhere(Capability::Operate, now)?;
        let node = v1::NodeStatus {
            id: self.context.node.0,
            addr: self.context.addr.clone(),
            alive: true,
        };
        let shards = self.context.shards.shards().iter().map(|shard| {
            let status = shard.status();
            v1::ShardStatus {
                id: status.id.0,
                leader: status.leader.map_or(0, |node| node.0),
                replicas: status.replicas.iter().map(|node| node.0).collect(),
                term: status.term,
                applied: status.applied,
                committed: status.committed,
            }
        });
        Ok(v1::StatusResponse {
            cluster: self.context.cluster.clone(),
            nodes: vec![node],
            shards: shards.collect(),
            version: self.context.version.clone(),
        })
    }
}

#[tonic::async_trait]
impl v1::cluster_server::Cluster for Cluster {
    async fn status(
        &self,
        request: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        answer!(self.status(request))
    }
}
