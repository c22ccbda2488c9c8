//! What a node is told at its start, and why a start fails.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::{Clock, Code, Random};
use everwire_shard::{Kept, OpenError, PeerTls, StoreError};

/// What a node is told at its start.
pub struct NodeConfig {
    /// The data directory; made if it is not there.
    pub data: PathBuf,
    /// The cluster that the data directory must belong to, and the id that a new one gets;
    /// `None` takes any, and mints one.
    pub cluster: Option<String>,
    /// Where gRPC is served; port 0 picks one. Ignored if `listener` is given.
    pub grpc: SocketAddr,
    /// A socket that is already bound and listening.
    pub listener: Option<std::net::TcpListener>,
    /// The address that clients are told, `host:port`; `None` for the one that is served.
    pub advertise: Option<String>,
    /// What verifies tokens: a PEM public key, or a secret for HS256.
    pub auth_key: Vec<u8>,
    /// TLS for gRPC; `None` serves in the clear.
    pub tls: Option<Tls>,
    /// Serve in the clear although the address is not loopback.
    pub insecure: bool,
    /// Shards of a new cluster; a data directory that exists keeps its own.
    pub shards: u32,
    /// The other nodes; `None` for a cluster of one.
    pub peers: Option<PeerOptions>,
    /// How much log is kept for nodes that lag or are away.
    pub kept: Kept,
    /// Un-flushed apply that is older than this is flushed.
    pub flush_every: Duration,
    /// Once in so long everything that the node holds is read and held against its checksums.
    pub scrub_every: Duration,
    /// Wall clock and monotonic clock.
    pub clock: Arc<dyn Clock>,
    /// Mints the cluster's id, if none is given.
    pub random: Arc<dyn Random>,
    /// Ends the process when going on could lose or invent data.
    pub on_fatal: Arc<dyn Fn(&str) + Send + Sync>,
    /// The newest rules that this node knows: [`RULES_VERSION`](everwire_shard::RULES_VERSION),
    /// unless a test is to see what an older or a newer build does.
    pub rules: u32,
    /// What `Cluster.Status` says about the program: version and commit.
    pub version: String,
}

/// How a node finds the others, and is found by them.
pub struct PeerOptions {
    /// Where other nodes connect; port 0 picks one.
    pub listen: SocketAddr,
    /// The address that other nodes are told, `host:port`; `None` for the one that is served.
    pub advertise: Option<String>,
    /// This node's name in the cluster; `None` for its peer address.
    pub name: Option<String>,
    /// Peer addresses to ask for the cluster.
    pub seeds: Vec<String>,
    /// Nodes that must meet before they form a cluster.
    pub expect: usize,
    /// Mutual TLS; `None` speaks plain text.
    pub tls: Option<PeerTls>,
}

/// Certificate chain and key of a server, PEM.
#[derive(Clone)]
pub struct Tls {
    /// The chain, the server's own certificate first.
    pub cert_pem: Vec<u8>,
    /// The private key.
    pub key_pem: Vec<u8>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The address cannot be bound.
    #[error("cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Tokens would travel in the clear.
    #[error("{0} is not loopback and there is no TLS: give a certificate, or say insecure")]
    InTheClear(SocketAddr),
    /// The seeds and the number to expect cannot make one cluster only.
    #[error("{0}")]
    Seeds(String),
    /// The certificate or its key cannot be used.
    #[error("the TLS certificate cannot be used: {0}")]
    Tls(String),
    /// The key that verifies tokens cannot be used.
    #[error("the auth key cannot be used: {0}")]
    AuthKey(String),
    /// The data directory cannot be opened, or a shard did not start.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// Our mistake: opening the data directory panicked.
    #[error("opening the data directory failed: {0}")]
    Panicked(String),
    /// Our mistake: the committed description of the services cannot be read.
    #[error("reflection cannot be served: {0}")]
    Reflection(String),
}

impl NodeError {
    /// The code to show for it, if it is a refusal and not the doing of the configuration or the
    /// machine.
    pub fn code(&self) -> Option<Code> {
        match self {
            // The environment's doing: somebody else's process, a disk that fails.
            Self::Open(OpenError::Store(StoreError::Locked { .. } | StoreError::Io(_))) => None,
            Self::Open(error) => Some(error.code()),
            Self::Panicked(_) | Self::Reflection(_) => Some(Code::Internal),
            Self::Listen { .. }
            | Self::InTheClear(_)
            | Self::Seeds(_)
            | Self::Tls(_)
            | Self::AuthKey(_) => None,
        }
    }
}
