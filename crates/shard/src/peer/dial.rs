//! How a node listens to its peers and reaches them: sockets, TLS, or a simulated network.

use std::fmt;
use std::io;

use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use tokio::io::{AsyncRead, AsyncWrite};

/// Bytes both ways: what a connection is made of.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// Connections as peers open them.
pub type Incoming = BoxStream<'static, io::Result<Box<dyn Io>>>;

/// A network of somebody's own: the simulation's.
pub trait Dial: Send + Sync + 'static {
    /// Opens a connection to `host:port`. TLS, if any, is put on top of it.
    fn dial(&self, addr: String) -> BoxFuture<'static, io::Result<Box<dyn Io>>>;
}

/// Mutual TLS between nodes, PEM. A node shows its certificate both when it calls and when it is
/// called, and takes only what the authority has signed.
#[derive(Clone)]
pub struct PeerTls {
    /// The authority of all nodes' certificates.
    pub ca_pem: Vec<u8>,
    /// This node's chain, its own certificate first. It must name the host of its peer address.
    pub cert_pem: Vec<u8>,
    /// Its private key.
    pub key_pem: Vec<u8>,
}

impl fmt::Debug for PeerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PeerTls")
    }
}

/// The other nodes, as the configuration knows them.
pub struct Peers {
    /// This node's name; one living node of the cluster has it.
    pub name: String,
    /// Where other nodes reach this one, `host:port`.
    pub addr: String,
    /// Peer addresses to ask for the cluster, this node's own among them or not.
    pub seeds: Vec<String>,
    /// Nodes that must meet before they form a cluster.
    pub expect: usize,
    /// Connections of other nodes.
    pub incoming: Incoming,
    /// Mutual TLS; `None` speaks plain text.
    pub tls: Option<PeerTls>,
    /// A network of one's own; `None` is TCP.
    pub dial: Option<std::sync::Arc<dyn Dial>>,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers")
            .field("name", &self.name)
            .field("addr", &self.addr)
            .field("seeds", &self.seeds)
            .field("expect", &self.expect)
            .finish_non_exhaustive()
    }
}
