//! `everwire node`: a storage node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use everwire_core::limits::{
    FLUSH_EVERY, LOG_KEPT_BYTES_MAX, LOG_KEPT_FOR, SCRUB_EVERY, SHARDS_DEFAULT,
};
use everwire_node::{Kept, Node, NodeConfig, PeerOptions, PeerTls, Tls};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::admin::AdminPort;
use super::{Ready, StopSignals, not_started, prepare, read_file, read_tls, rules_known};
use crate::config::{LogFlags, Sources};
use crate::output::Failure;
use crate::system::{SystemClock, SystemRandom, on_fatal};

/// Flags and environment of `everwire node`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct NodeFlags {
    /// The data directory
    #[arg(long, env = "EVERWIRE_NODE_DATA", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// The cluster that the data directory must belong to, and the id that a new one gets
    #[arg(
        long,
        env = "EVERWIRE_NODE_CLUSTER",
        value_name = "ID",
        value_parser = clap::builder::NonEmptyStringValueParser::new()
    )]
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    /// Where agents, edges and tools connect; port 0 picks one
    #[arg(long, env = "EVERWIRE_NODE_GRPC", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc: Option<SocketAddr>,
    /// Where clients reach it, if not at --grpc: host:port
    #[arg(long, env = "EVERWIRE_NODE_ADVERTISE", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise: Option<String>,
    /// Where other nodes connect; port 0 picks one. Without it the node is a cluster of one
    #[arg(long, env = "EVERWIRE_NODE_PEER", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<SocketAddr>,
    /// Where other nodes reach it, if not at --peer: host:port
    #[arg(long, env = "EVERWIRE_NODE_ADVERTISE_PEER", value_name = "HOST:PORT")]
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise_peer: Option<String>,
    /// Peer addresses to find the cluster by, its own among them
    #[arg(
        long,
        env = "EVERWIRE_NODE_SEEDS",
        value_name = "HOST:PORT,…",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    seeds: Vec<String>,
    /// Nodes that must meet before they form a cluster: more than half of the seeds
    #[arg(long, env = "EVERWIRE_NODE_BOOTSTRAP_EXPECT", value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    bootstrap_expect: Option<usize>,
    /// Its name in the cluster; its peer address if none is given
    #[arg(long, env = "EVERWIRE_NODE_NAME", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// The authority of all nodes' certificates, PEM
    #[arg(long, env = "EVERWIRE_NODE_PEER_CA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_ca: Option<PathBuf>,
    /// Its certificate chain for other nodes, PEM; it names the host of its peer address
    #[arg(long, env = "EVERWIRE_NODE_PEER_CERT", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_cert: Option<PathBuf>,
    /// The private key of --peer-cert, PEM
    #[arg(long, env = "EVERWIRE_NODE_PEER_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_key: Option<PathBuf>,
    /// Log kept for nodes that lag or are away, bytes
    #[arg(long, env = "EVERWIRE_NODE_LOG_KEPT", value_name = "BYTES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_kept: Option<u64>,
    /// How long a node may be away before its log is not kept any more, seconds
    #[arg(long, env = "EVERWIRE_NODE_LOG_KEPT_FOR", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    log_kept_for: Option<u64>,
    /// How old un-flushed events may be, seconds
    #[arg(long, env = "EVERWIRE_NODE_FLUSH_EVERY", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    flush_every: Option<u64>,
    /// How often everything that is held is read and held against its checksums, seconds
    #[arg(long, env = "EVERWIRE_NODE_SCRUB_EVERY", value_name = "SECONDS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    scrub_every: Option<u64>,
    /// Health and metrics; port 0 picks one
    #[arg(long, env = "EVERWIRE_NODE_ADMIN", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<SocketAddr>,
    /// What verifies tokens: a PEM public key, or a secret for HS256
    #[arg(long, env = "EVERWIRE_NODE_AUTH_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_key: Option<PathBuf>,
    /// Certificate chain of the gRPC listener, PEM
    #[arg(long, env = "EVERWIRE_NODE_TLS_CERT", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert: Option<PathBuf>,
    /// Private key of the gRPC listener, PEM
    #[arg(long, env = "EVERWIRE_NODE_TLS_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key: Option<PathBuf>,
    /// Serve without TLS off loopback
    #[arg(long, env = "EVERWIRE_NODE_INSECURE", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    insecure: Option<bool>,
}

/// What `everwire node` runs with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct NodeOptions {
    data: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    grpc: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    advertise_peer: Option<String>,
    seeds: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bootstrap_expect: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_ca: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_key: Option<PathBuf>,
    log_kept: u64,
    log_kept_for: u64,
    flush_every: u64,
    scrub_every: u64,
    admin: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key: Option<PathBuf>,
    insecure: bool,
}

impl Default for NodeOptions {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            data: PathBuf::from("./everwire-data"),
            cluster: None,
            grpc: loopback(7400),
            advertise: None,
            peer: None,
            advertise_peer: None,
            seeds: Vec::new(),
            bootstrap_expect: None,
            name: None,
            peer_ca: None,
            peer_cert: None,
            peer_key: None,
            log_kept: LOG_KEPT_BYTES_MAX,
            log_kept_for: LOG_KEPT_FOR.as_secs(),
            flush_every: FLUSH_EVERY.as_secs(),
            scrub_every: SCRUB_EVERY.as_secs(),
            admin: loopback(7402),
            auth_key: None,
            tls_cert: None,
            tls_key: None,
            insecure: false,
        }
    }
}

impl NodeOptions {
    /// What the configuration says about other nodes; `None`: a cluster of one.
    fn peers(&self) -> Result<Option<PeerOptions>, Failure> {
        let Some(listen) = self.peer else {
            let others = !self.seeds.is_empty() || self.bootstrap_expect.is_some();
            return if others {
                Err(Failure::usage("--seeds and --bootstrap-expect need --peer"))
            } else {
                Ok(None)
            };
        };
        if self.seeds.is_empty() {
            let own = "a node with --peer needs --seeds: its own peer address at least";
            return Err(Failure::usage(own));
        }
        Ok(Some(PeerOptions {
            listen,
            advertise: self.advertise_peer.clone(),
            name: self.name.clone(),
            seeds: self.seeds.clone(),
            expect: self.bootstrap_expect.unwrap_or(self.seeds.len()),
            tls: self.peer_tls()?,
        }))
    }

    fn peer_tls(&self) -> Result<Option<PeerTls>, Failure> {
        match (&self.peer_ca, &self.peer_cert, &self.peer_key) {
            (None, None, None) => Ok(None),
            (Some(ca), Some(cert), Some(key)) => Ok(Some(PeerTls {
                ca_pem: read_file("--peer-ca", ca)?,
                cert_pem: read_file("--peer-cert", cert)?,
                key_pem: read_file("--peer-key", key)?,
            })),
            _ => Err(Failure::usage(
                "--peer-ca, --peer-cert and --peer-key belong together",
            )),
        }
    }
}

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(
    sources: &Sources,
    flags: &NodeFlags,
    log: &LogFlags,
) -> Result<(), Failure> {
    let Some(config) = prepare::<NodeOptions, _>("node", sources, flags, log)? else {
        return Ok(());
    };
    let auth_key = config.auth_key.as_ref();
    let auth_key = auth_key.ok_or_else(|| Failure::usage("a node needs --auth-key"))?;
    let tls = read_tls(config.tls_cert.as_ref(), config.tls_key.as_ref())?;
    let mut stop = StopSignals::new()?;
    let stopped = CancellationToken::new();
    let admin = AdminPort::bind(config.admin, stopped.clone()).await?;
    let config = NodeConfig {
        data: config.data.clone(),
        cluster: config.cluster.clone(),
        grpc: config.grpc,
        listener: None,
        advertise: config.advertise.clone(),
        peers: config.peers()?,
        kept: Kept {
            bytes: config.log_kept,
            time: Duration::from_secs(config.log_kept_for),
        },
        flush_every: Duration::from_secs(config.flush_every.max(1)),
        scrub_every: Duration::from_secs(config.scrub_every.max(1)),
        auth_key: read_file("--auth-key", auth_key)?,
        tls: tls.map(|(cert_pem, key_pem)| Tls { cert_pem, key_pem }),
        insecure: config.insecure,
        shards: SHARDS_DEFAULT,
        clock: SystemClock::shared(),
        random: SystemRandom::shared(),
        on_fatal: on_fatal(),
        rules: rules_known(),
        version: crate::VERSION.to_owned(),
    };
    // It may wait for the others for as long as it takes; it stops when it is told to.
    let node = Node::start_unless(config, stop.received()).await;
    let Some(node) = node.map_err(|error| not_started(&error))? else {
        return Ok(());
    };
    let mut registry = Registry::default();
    node.register_metrics(&mut registry);
    let (grpc, admin_addr) = (node.grpc_addr(), admin.addr());
    admin.started(registry, node.ready_probe());
    let peer = node.peer_addr();
    let told = tokio::select! {
        () = node.wait_ready() => {
            let told = Ready::node(grpc, peer, admin_addr);
            if told.is_ok() {
                stop.received().await;
            }
            told
        },
        () = stop.received() => Ok(()),
    };
    tracing::info!("stopping");
    node.shutdown().await;
    stopped.cancel();
    told
}
