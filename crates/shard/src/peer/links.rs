//! Connections to other nodes: by node, by line, made when they are first used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use everwire_core::limits::{
    PEER_CONNECT_WITHIN, PEER_LOST_AFTER, PEER_MESSAGE_BYTES_MAX, STREAMS_PER_CONNECTION_MAX,
};
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

/// What a reader elsewhere may have been sent and not taken, bytes.
const READ_WINDOW_BYTES: u32 = 64 << 10;
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
    /// Reads of shards that this node does not hold.
    Read,
}

impl Line {
    const ALL: [Self; 5] = [Self::Log, Self::Beat, Self::Bulk, Self::Forward, Self::Read];

    /// Its name in metrics.
    fn name(self) -> &'static str {
        match self {
            Self::Log => "log",
            Self::Beat => "beat",
            Self::Bulk => "bulk",
            Self::Forward => "forward",
            Self::Read => "read",
        }
    }

    fn windows(self) -> (u32, u32) {
        match self {
            Self::Log | Self::Bulk => (8 << 20, 16 << 20),
            Self::Forward => (4 << 20, 8 << 20),
            Self::Beat => (1 << 20, 2 << 20),
            // A reader that takes nothing fills its own window, and all of them together not the
            // connection's: nobody waits for another's reader.
            Self::Read => (
                READ_WINDOW_BYTES,
                READ_WINDOW_BYTES * STREAMS_PER_CONNECTION_MAX,
            ),
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

/// Where a node is: for its peers, and for clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    peer: String,
    addr: String,
    /// What the topology, or a group's membership, says. A node that was found elsewhere stays
    /// where it was found until this changes.
    told: (String, String),
}

struct State {
    tag: Tag,
    /// Where nodes are.
    places: BTreeMap<u64, Place>,
    channels: BTreeMap<(String, Line), Channel>,
    /// Calls that were begun.
    calls: BTreeMap<Line, u64>,
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
                places: BTreeMap::new(),
                channels: BTreeMap::new(),
                calls: BTreeMap::new(),
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

    /// Where a node is, as the topology or a group's membership says.
    pub(crate) fn place(&self, node: u64, peer: &str, addr: &str) {
        let mut state = self.lock();
        let place = state.places.entry(node).or_default();
        let told = (peer.to_owned(), addr.to_owned());
        if place.told == told {
            return;
        }
        if !peer.is_empty() {
            peer.clone_into(&mut place.peer);
        }
        addr.clone_into(&mut place.addr);
        place.told = told;
    }

    /// Where a node is, as it says itself.
    pub(crate) fn found(&self, node: u64, peer: &str, addr: &str) {
        let mut state = self.lock();
        let place = state.places.entry(node).or_default();
        peer.clone_into(&mut place.peer);
        addr.clone_into(&mut place.addr);
    }

    /// A node was let go: nobody asks for it any more.
    pub(crate) fn forget(&self, node: u64) {
        self.lock().places.remove(&node);
    }

    /// Where clients reach a node.
    pub(crate) fn client_addr(&self, node: u64) -> Option<String> {
        let state = self.lock();
        state.places.get(&node).map(|place| place.addr.clone())
    }

    /// Whether a node's address is known.
    pub(crate) fn knows(&self, node: u64) -> bool {
        let state = self.lock();
        let place = state.places.get(&node);
        place.is_some_and(|place| !place.peer.is_empty())
    }

    /// Calls that were begun so far, by the name of their line.
    pub(crate) fn calls(&self) -> [(&'static str, u64); 5] {
        let state = self.lock();
        Line::ALL.map(|line| {
            let calls = state.calls.get(&line).copied();
            (line.name(), calls.unwrap_or_default())
        })
    }

    /// The nodes with a known address.
    pub(crate) fn known(&self) -> Vec<u64> {
        let state = self.lock();
        let placed = state.places.iter();
        let known = placed.filter(|(_, place)| !place.peer.is_empty());
        known.map(|(node, _)| *node).collect()
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

    /// A client of a node, for one call. `None`: nobody knows where it is, or its address cannot
    /// be used.
    pub(crate) fn client(&self, node: u64, line: Line) -> Option<PeerClient> {
        let addr = {
            let state = self.lock();
            let place = state.places.get(&node)?;
            place.peer.clone()
        };
        (!addr.is_empty()).then_some(())?;
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
        *state.calls.entry(line).or_default() += 1;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_stays_where_it_was_found_until_the_topology_says_something_new() {
        let links = Links::new(None, None);
        let peer = || links.lock().places[&7].peer.clone();
        links.place(7, "old:1", "old:2");
        links.found(7, "found:1", "found:2");
        links.place(7, "old:1", "old:2");
        assert_eq!(peer(), "found:1");
        assert_eq!(links.client_addr(7).as_deref(), Some("found:2"));
        links.place(7, "new:1", "new:2");
        assert_eq!(peer(), "new:1");
        links.forget(7);
        assert!(!links.knows(7));
        assert!(links.known().is_empty());
    }
}
