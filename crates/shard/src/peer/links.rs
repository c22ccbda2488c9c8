//! Connections to other nodes: by node, by line, made when they are first used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use everwire_core::limits::{PEER_CONNECT_WITHIN, PEER_LOST_AFTER, PEER_MESSAGE_BYTES_MAX};
use everwire_proto::internal_v1::peer_client::PeerClient as Generated;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Request, Status};
use tower::service_fn;

use super::dial::{Dial, PeerTls};

/// A peer's clock counts for so long after it was heard.
const CLOCKS_FRESH: Duration = Duration::from_secs(5);

/// What a connection carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Line {
    /// Log entries.
    Log,
    /// Heartbeats, votes, read indexes: whatever must not wait.
    Beat,
    /// Snapshots.
    Bulk,
    /// Forwarded commands.
    Forward,
}

impl Line {
    fn windows(self) -> (u32, u32) {
        match self {
            Self::Log | Self::Bulk => (8 << 20, 16 << 20),
            Self::Forward => (4 << 20, 8 << 20),
            Self::Beat => (1 << 20, 2 << 20),
        }
    }
}

/// The metadata key of the caller's cluster.
pub(super) const CLUSTER_KEY: &str = "everwire-cluster";
/// The metadata key of the caller's node id.
pub(super) const NODE_KEY: &str = "everwire-node";

/// The metadata key of the node id that the caller means.
pub(super) const TARGET_KEY: &str = "everwire-target";

/// Says who calls, and whom.
#[derive(Clone)]
pub(crate) struct Tag {
    cluster: Option<MetadataValue<Ascii>>,
    node: Option<MetadataValue<Ascii>>,
    target: Option<MetadataValue<Ascii>>,
}

impl Interceptor for Tag {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let (Some(cluster), Some(node)) = (&self.cluster, &self.node) {
            let metadata = request.metadata_mut();
            metadata.insert(CLUSTER_KEY, cluster.clone());
            metadata.insert(NODE_KEY, node.clone());
        }
        if let Some(target) = &self.target {
            request.metadata_mut().insert(TARGET_KEY, target.clone());
        }
        Ok(request)
    }
}

/// A client of one node on one line.
pub(crate) type PeerClient = Generated<InterceptedService<Channel, Tag>>;

/// All connections of this node to others. Connects when a call is made, again after a loss.
pub(crate) struct Links {
    tls: Option<ClientTlsConfig>,
    dial: Option<Arc<dyn Dial>>,
    state: Mutex<State>,
}

struct State {
    tag: Tag,
    /// Where nodes are, as the topology or a group's membership says.
    addrs: BTreeMap<u64, String>,
    /// Where clients reach them.
    client_addrs: BTreeMap<u64, String>,
    channels: BTreeMap<(String, Line), Channel>,
    /// When a node was last heard.
    heard: BTreeMap<u64, Instant>,
    /// How far each node's wall clock is ahead of this one's, milliseconds, and since when.
    clocks: BTreeMap<u64, (i64, Instant)>,
}

impl Links {
    pub(crate) fn new(tls: Option<&PeerTls>, dial: Option<Arc<dyn Dial>>) -> Self {
        let tls = tls.map(|tls| {
            ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(&tls.ca_pem))
                .identity(Identity::from_pem(&tls.cert_pem, &tls.key_pem))
        });
        Self {
            tls,
            dial,
            state: Mutex::new(State {
                tag: Tag {
                    cluster: None,
                    node: None,
                    target: None,
                },
                addrs: BTreeMap::new(),
                client_addrs: BTreeMap::new(),
                channels: BTreeMap::new(),
                heard: BTreeMap::new(),
                clocks: BTreeMap::new(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens under this lock")
    }

    /// From here on calls say who makes them.
    pub(crate) fn introduce(&self, cluster: &str, node: u64) {
        let tag = Tag {
            cluster: cluster.parse().ok(),
            node: node.to_string().parse().ok(),
            target: None,
        };
        let mut state = self.lock();
        state.tag = tag;
        // Those made before speak for nobody.
        state.channels.clear();
    }

    /// Where a node is, for its peers and for clients.
    pub(crate) fn place(&self, node: u64, peer: &str, addr: &str) {
        let mut state = self.lock();
        if !peer.is_empty() {
            state.addrs.insert(node, peer.to_owned());
        }
        state.client_addrs.insert(node, addr.to_owned());
    }

    /// Where clients reach a node.
    pub(crate) fn client_addr(&self, node: u64) -> Option<String> {
        self.lock().client_addrs.get(&node).cloned()
    }

    /// The nodes with a known address.
    pub(crate) fn known(&self) -> Vec<u64> {
        self.lock().addrs.keys().copied().collect()
    }

    /// A node was heard just now.
    pub(crate) fn heard(&self, node: u64) {
        self.lock().heard.insert(node, Instant::now());
    }

    /// A node's wall clock is so far ahead of this one's, milliseconds.
    pub(crate) fn note_clock(&self, node: u64, ahead: i64) {
        self.lock().clocks.insert(node, (ahead, Instant::now()));
    }

    /// How far the peers' clocks are ahead of this one's, by their median: of an even number,
    /// the middle one that is nearer to this node's. `None`: none has told of late.
    pub(crate) fn clock_ahead(&self) -> Option<i64> {
        let state = self.lock();
        let fresh = state.clocks.values();
        let fresh = fresh.filter(|(_, at)| at.elapsed() < CLOCKS_FRESH);
        let mut ahead: Vec<i64> = fresh.map(|(ahead, _)| *ahead).collect();
        ahead.sort_unstable();
        let middle = ahead.len().checked_sub(1)? / 2;
        let (low, high) = (ahead.get(middle)?, ahead.get(ahead.len() / 2)?);
        Some(if low.abs() < high.abs() { *low } else { *high })
    }

    /// How long a node has been silent; `None`: it was never heard.
    pub(crate) fn silent_for(&self, node: u64) -> Option<Duration> {
        self.lock().heard.get(&node).map(Instant::elapsed)
    }

    /// A client of a node. `None`: nobody knows where it is, or its address cannot be used.
    pub(crate) fn client(&self, node: u64, line: Line) -> Option<PeerClient> {
        let addr = self.lock().addrs.get(&node).cloned()?;
        self.connected(&addr, line, Some(node))
    }

    /// A client of whoever listens at an address.
    pub(crate) fn client_at(&self, addr: &str, line: Line) -> Option<PeerClient> {
        self.connected(addr, line, None)
    }

    fn connected(&self, addr: &str, line: Line, target: Option<u64>) -> Option<PeerClient> {
        let mut state = self.lock();
        let key = (addr.to_owned(), line);
        let channel = match state.channels.get(&key) {
            Some(channel) => channel.clone(),
            None => {
                let channel = self.connect(addr, line)?;
                state.channels.insert(key, channel.clone());
                channel
            },
        };
        let mut tag = state.tag.clone();
        tag.target = target.and_then(|node| node.to_string().parse().ok());
        let client = Generated::with_interceptor(channel, tag);
        Some(
            client
                .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
                .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX),
        )
    }

    fn connect(&self, addr: &str, line: Line) -> Option<Channel> {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        let (stream, connection) = line.windows();
        let endpoint = Endpoint::from_shared(format!("{scheme}://{addr}"))
            .inspect_err(|error| tracing::warn!(addr, %error, "a peer's address cannot be used"))
            .ok()?
            .connect_timeout(PEER_CONNECT_WITHIN)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PEER_LOST_AFTER / 2)
            .keep_alive_timeout(PEER_LOST_AFTER)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(stream)
            .initial_connection_window_size(connection);
        let endpoint = match &self.tls {
            Some(tls) => endpoint
                .tls_config(tls.clone())
                .inspect_err(|error| tracing::error!(%error, "the peers' TLS cannot be used"))
                .ok()?,
            None => endpoint,
        };
        Some(match &self.dial {
            None => endpoint.connect_lazy(),
            Some(dial) => {
                let dial = dial.clone();
                endpoint.connect_with_connector_lazy(service_fn(move |uri: Uri| {
                    let addr = uri.authority().map(ToString::to_string);
                    let dialing = dial.dial(addr.unwrap_or_default());
                    async move { dialing.await.map(TokioIo::new) }
                }))
            },
        })
    }
}
