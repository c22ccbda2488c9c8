//! `everwire dev`: a node and an edge in one process, with keys of their own making.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use everwire_core::limits::{EDGE_DRAIN_MIN, FLUSH_EVERY, SCRUB_EVERY, SHARDS_DEFAULT};
use everwire_core::{Clock, Random};
use everwire_edge::{Edge, EdgeConfig};
use everwire_node::{Kept, Node, NodeConfig};
use everwire_proto::token::Verifier;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::admin::AdminPort;
use super::keys::DevKeys;
use super::{Ready, StopSignals, not_started, prepare, read_file, rules_known};
use crate::config::{LogFlags, Sources};
use crate::output::Failure;
use crate::system::{SystemClock, SystemRandom, on_fatal};

/// Flags and environment of `everwire dev`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct DevFlags {
    /// The data directory
    #[arg(long, env = "EVERWIRE_DEV_DATA", value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<PathBuf>,
    /// Where agents and tools connect; port 0 picks one
    #[arg(long, env = "EVERWIRE_DEV_GRPC", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc: Option<SocketAddr>,
    /// Where browsers connect; port 0 picks one
    #[arg(long, env = "EVERWIRE_DEV_HTTP", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<SocketAddr>,
    /// Health and metrics; port 0 picks one
    #[arg(long, env = "EVERWIRE_DEV_ADMIN", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<SocketAddr>,
    /// A browser origin that may connect besides loopback ones; repeatable
    #[arg(
        long,
        env = "EVERWIRE_DEV_ORIGIN",
        value_name = "URL",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    origin: Vec<String>,
    /// Also take tokens of these keys: PEM public keys, or a secret for HS256
    #[arg(long, env = "EVERWIRE_DEV_AUTH_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_key: Option<PathBuf>,
    /// Serve without TLS off loopback
    #[arg(long, env = "EVERWIRE_DEV_INSECURE", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    insecure: Option<bool>,
}

/// What `everwire dev` runs with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct DevConfig {
    data: PathBuf,
    grpc: SocketAddr,
    http: SocketAddr,
    admin: SocketAddr,
    origin: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_key: Option<PathBuf>,
    insecure: bool,
}

impl Default for DevConfig {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            data: PathBuf::from("./everwire-data"),
            grpc: loopback(7400),
            http: loopback(7410),
            admin: loopback(7402),
            origin: Vec::new(),
            auth_key: None,
            insecure: false,
        }
    }
}

impl DevConfig {
    fn node(
        &self,
        auth_key: Vec<u8>,
        clock: &Arc<dyn Clock>,
        random: &Arc<dyn Random>,
    ) -> NodeConfig {
        NodeConfig {
            data: self.data.clone(),
            cluster: None,
            grpc: self.grpc,
            listener: None,
            advertise: None,
            auth_key,
            tls: None,
            insecure: self.insecure,
            shards: SHARDS_DEFAULT,
            peers: None,
            kept: Kept::default(),
            flush_every: FLUSH_EVERY,
            scrub_every: SCRUB_EVERY,
            clock: clock.clone(),
            random: random.clone(),
            on_fatal: on_fatal(),
            rules: rules_known(),
            version: crate::VERSION.to_owned(),
        }
    }
}

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(
    sources: &Sources,
    flags: &DevFlags,
    log: &LogFlags,
) -> Result<(), Failure> {
    let Some(config) = prepare::<DevConfig, _>("dev", sources, flags, log)? else {
        return Ok(());
    };
    let mut stop = StopSignals::new()?;
    // Bound first: a taken port should be told before minutes of recovery, not after.
    let stopped = CancellationToken::new();
    let admin = AdminPort::bind(config.admin, stopped.clone()).await?;
    let (clock, random) = (SystemClock::shared(), SystemRandom::shared());
    let given = config.auth_key.as_deref();
    let given = given
        .map(|path| read_file("--auth-key", path))
        .transpose()?;
    let keys = DevKeys::open(&config.data, given)?;
    keys.write_dev_token(&config.data, clock.now())?;
    let verifier = Verifier::new(&keys.verifying)
        .map_err(|error| Failure::failed(format!("--auth-key cannot be used: {error}")))?;
    let token = keys.edge_token(clock.now())?;
    let node = config.node(keys.verifying.clone(), &clock, &random);
    let node = Node::start_unless(node, stop.received()).await;
    let Some(node) = node.map_err(|error| not_started(&error))? else {
        return Ok(());
    };
    // The edge reaches its node over gRPC like any other edge: `dev` has no short cut.
    let nodes = vec![node.grpc_addr().to_string()];
    let edge = EdgeConfig::new(config.http, nodes, token, verifier, clock, random);
    let edge = Edge::start(EdgeConfig {
        name: "dev".to_owned(),
        origins: config.origin.clone(),
        allow_loopback_origins: true,
        insecure: config.insecure,
        // There is no other edge that clients could move to.
        drain_window: EDGE_DRAIN_MIN,
        ..edge
    });
    let edge = match edge.await {
        Ok(edge) => edge,
        Err(error) => {
            // RocksDB does not survive a process that ends around its open databases.
            node.shutdown().await;
            return Err(Failure::failed(error.to_string()));
        },
    };

    let mut registry = Registry::default();
    node.register_metrics(&mut registry);
    edge.register_metrics(&mut registry);
    let (grpc, http, admin_addr) = (node.grpc_addr(), edge.http_addr(), admin.addr());
    let (node_ready, edge_ready) = (node.ready_probe(), edge.ready_probe());
    let ready = Arc::new(move || node_ready() && edge_ready());
    admin.started(registry, ready);
    let told = tokio::select! {
        () = node.wait_ready() => {
            let told = Ready::announce(Some(grpc), Some(http), admin_addr);
            if told.is_ok() {
                stop.received().await;
            }
            told
        },
        () = stop.received() => Ok(()),
    };
    tracing::info!("stopping");
    edge.shutdown().await;
    node.shutdown().await;
    stopped.cancel();
    told
}
