//! What an edge is told at its start, and why a start fails.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use everwire_client::TokenSource;
use everwire_core::limits::{
    AUTH_WITHIN, EDGE_DRAIN_WITHIN, EDGE_READY_WITHIN, EDGE_UNHEARD_MAX, HEARTBEAT_EVERY,
    HEARTBEAT_LOST_AFTER, SLOW_READER_AFTER, TICKET_TTL,
};
use everwire_core::{Clock, Random, Refusal};
use everwire_proto::token::Verifier;

/// What an edge is told at its start.
pub struct EdgeConfig {
    /// Where WebSocket, SSE and HTTP are served; port 0 picks one.
    pub http: SocketAddr,
    /// The nodes' gRPC addresses.
    pub nodes: Vec<String>,
    /// The edge's own token: kind `edge`, capability `relay`; asked for again when it ends. Used
    /// for shared subscriptions only: what people write goes to the node with their own token.
    pub edge_token: Arc<dyn TokenSource>,
    /// What this edge is called in `welcome`.
    pub name: String,
    /// Verifies the tokens of clients.
    pub verifier: Verifier,
    /// The browser origins that may come, `https://app.example.com`; compared as they stand.
    /// Requests without an `Origin` do not come from a browser's page and may always.
    pub origins: Vec<String>,
    /// Also let pages of this machine come (`everwire dev`).
    pub allow_loopback_origins: bool,
    /// TLS towards clients; `None` serves in the clear.
    pub tls: Option<EdgeTls>,
    /// The CA that signed the nodes' certificates, PEM; `None` speaks in the clear to `http`
    /// addresses and trusts nobody else.
    pub node_tls_ca: Option<Vec<u8>>,
    /// Serve in the clear although the address is not loopback.
    pub insecure: bool,
    /// Connections of all kinds at once; more are turned away with OVERLOADED.
    pub connections_max: usize,
    /// Bytes of recent events that all rooms keep together, more or less: above it each room that
    /// takes more keeps a sixteenth.
    pub rooms_bytes_max: usize,
    /// How long clients are given to move when the edge stops, at most; few need less.
    pub drain_window: Duration,
    /// How long things take; tests shorten them.
    pub timings: Timings,
    /// Wall clock: tells when tokens end.
    pub clock: Arc<dyn Clock>,
    /// Mints tickets and keys: it must not be guessable.
    pub random: Arc<dyn Random>,
}

impl EdgeConfig {
    /// A configuration with the defaults: no origins, no TLS, 15,000 connections.
    pub fn new(
        http: SocketAddr,
        nodes: Vec<String>,
        edge_token: impl TokenSource,
        verifier: Verifier,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Self {
        Self {
            http,
            nodes,
            edge_token: Arc::new(edge_token),
            name: "edge".to_owned(),
            verifier,
            origins: Vec::new(),
            allow_loopback_origins: false,
            tls: None,
            node_tls_ca: None,
            insecure: false,
            connections_max: 15_000,
            rooms_bytes_max: 256 << 20,
            drain_window: EDGE_DRAIN_WITHIN,
            timings: Timings::default(),
            clock,
            random,
        }
    }
}

impl fmt::Debug for EdgeConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeConfig")
            .field("http", &self.http)
            .field("nodes", &self.nodes)
            .field("name", &self.name)
            .field("origins", &self.origins)
            .finish_non_exhaustive()
    }
}

/// How long things take. The defaults are the protocol's (`core::limits`, docs/protocol/edge.md).
#[derive(Clone, Copy, Debug)]
pub struct Timings {
    /// A new socket authenticates within this.
    pub auth_within: Duration,
    /// How often an idle socket is pinged, and an idle SSE stream gets a comment.
    pub heartbeat_every: Duration,
    /// A socket that was silent for so long is gone; answers to pings count as sound.
    pub lost_after: Duration,
    /// A connection that takes no byte for so long, though some wait, is closed.
    pub slow_after: Duration,
    /// What a closing socket is given to take its last frames.
    pub close_within: Duration,
    /// `expiring` is sent so long before a token ends, or at half its remaining life.
    pub expiring_before: Duration,
    /// A request to a node is given up after this.
    pub request_within: Duration,
    /// A room answers nothing from memory when its upstream has been silent for so long.
    pub memory_valid: Duration,
    /// A room whose upstream has been lost for so long sends its members elsewhere.
    pub upstream_lost_after: Duration,
    /// A room without members is kept for so long.
    pub room_idle: Duration,
    /// A ticket for SSE lives so long.
    pub ticket_ttl: Duration,
    /// An edge that has heard of no node for so long is not ready.
    pub ready_within: Duration,
    /// An edge that has heard of no node for so long takes no socket.
    pub unheard_max: Duration,
}

impl Default for Timings {
    fn default() -> Self {
        Self {
            auth_within: AUTH_WITHIN,
            heartbeat_every: HEARTBEAT_EVERY,
            lost_after: HEARTBEAT_LOST_AFTER,
            slow_after: SLOW_READER_AFTER,
            close_within: Duration::from_secs(3),
            expiring_before: Duration::from_secs(60),
            request_within: Duration::from_secs(20),
            memory_valid: Duration::from_secs(5),
            upstream_lost_after: Duration::from_secs(30),
            room_idle: Duration::from_secs(30),
            ticket_ttl: TICKET_TTL,
            ready_within: EDGE_READY_WITHIN,
            unheard_max: EDGE_UNHEARD_MAX,
        }
    }
}

/// Certificate chain and key of the edge, PEM.
#[derive(Clone)]
pub struct EdgeTls {
    /// The chain, the edge's own certificate first.
    pub cert_pem: Vec<u8>,
    /// The private key.
    pub key_pem: Vec<u8>,
}

impl fmt::Debug for EdgeTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EdgeTls")
    }
}

/// Why an edge did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EdgeError {
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
    /// The certificate or its key cannot be used.
    #[error("the TLS certificate cannot be used: {0}")]
    Tls(String),
    /// The nodes' addresses or their CA cannot be used.
    #[error("the nodes cannot be reached: {0}")]
    Nodes(Refusal),
}
