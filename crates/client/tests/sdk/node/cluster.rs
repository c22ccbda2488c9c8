//! The cluster service of the scripted node: tells whatever map it was given.

use std::sync::atomic::Ordering;

use everwire_core::Code;
use everwire_proto::v1;
use everwire_proto::v1::cluster_server::Cluster;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::WatchStream;
use tonic::{Response, Status};

use super::{Answers, Node, Reply, refused};

#[tonic::async_trait]
impl Cluster for Node {
    type WatchStream = Answers<v1::Map>;

    async fn status(
        &self,
        request: tonic::Request<v1::StatusRequest>,
    ) -> Reply<v1::StatusResponse> {
        self.admit(&request)?;
        self.before()?;
        Ok(Response::new(v1::StatusResponse::default()))
    }

    async fn transfer(
        &self,
        _: tonic::Request<v1::TransferRequest>,
    ) -> Reply<v1::TransferResponse> {
        Err(Status::unimplemented("not in this fake"))
    }

    async fn replace_node(
        &self,
        _: tonic::Request<v1::ReplaceNodeRequest>,
    ) -> Reply<v1::ReplaceNodeResponse> {
        Err(Status::unimplemented("not in this fake"))
    }

    async fn watch(&self, _: tonic::Request<v1::WatchRequest>) -> Reply<Self::WatchStream> {
        if self.map.borrow().is_none() {
            return Err(refused(Code::UnsupportedVersion));
        }
        self.watches.fetch_add(1, Ordering::Relaxed);
        let maps = WatchStream::new(self.map.subscribe());
        let maps = maps.filter_map(|map| map.map(Ok::<_, Status>));
        Ok(Response::new(Box::pin(maps)))
    }
}
