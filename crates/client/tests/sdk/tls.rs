//! TLS by a CA file: who is signed by it is trusted, nobody else.

use std::time::Duration;

use everwire_client::{Client, TlsConfig};
use everwire_proto::v1;
use everwire_proto::v1::cluster_server::{Cluster, ClusterServer};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

use crate::config;
use crate::net::net;

struct Answers;

#[tonic::async_trait]
impl Cluster for Answers {
    async fn status(
        &self,
        _: Request<v1::StatusRequest>,
    ) -> Result<Response<v1::StatusResponse>, Status> {
        let cluster = "c1".to_owned();
        Ok(Response::new(v1::StatusResponse {
            cluster,
            ..Default::default()
        }))
    }

    async fn transfer(
        &self,
        _: Request<v1::TransferRequest>,
    ) -> Result<Response<v1::TransferResponse>, Status> {
        Err(Status::unimplemented("not in this fake"))
    }

    async fn replace_node(
        &self,
        _: Request<v1::ReplaceNodeRequest>,
    ) -> Result<Response<v1::ReplaceNodeResponse>, Status> {
        Err(Status::unimplemented("not in this fake"))
    }

    type WatchStream = tokio_stream::Empty<Result<v1::Map, Status>>;

    async fn watch(
        &self,
        _: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }
}

/// A certificate for loopback that signs itself, and its key.
fn certificate() -> (String, String) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[tokio::test]
async fn a_node_is_trusted_by_its_ca_only() {
    let (cert, key) = certificate();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound").to_string();
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(&cert, &key));
    let mut server = Server::builder().tls_config(tls).expect("a good pair");
    let server = server.add_service(ClusterServer::new(Answers));
    let served = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    let client = |ca: &str| {
        let mut config = config(&net(), &[&addr], 1);
        config.connector = None;
        config.deadline = Duration::from_secs(2);
        config.tls = Some(TlsConfig {
            ca_pem: ca.as_bytes().to_vec(),
        });
        Client::new(config).expect("a good certificate")
    };
    let status = client(&cert).cluster_status().await.expect("trusted");
    assert_eq!(status.cluster, "c1");
    let (stranger, _) = certificate();
    assert!(client(&stranger).cluster_status().await.is_err());
    let mut plain = config(&net(), &[&addr], 1);
    plain.connector = None;
    plain.deadline = Duration::from_secs(2);
    assert!(Client::new(plain).unwrap().cluster_status().await.is_err());
    let mut nonsense = config(&net(), &[&addr], 1);
    nonsense.tls = Some(TlsConfig {
        ca_pem: b"-----BEGIN CERTIFICATE-----\nAA\n".to_vec(),
    });
    let _refused_now_or_at_the_first_call = Client::new(nonsense);
    served.abort();
}
