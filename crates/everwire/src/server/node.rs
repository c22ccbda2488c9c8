//! `everwire node`: a storage node.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use everwire_core::limits::SHARDS_DEFAULT;
use everwire_node::{Node, NodeConfig, Tls};
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::admin::AdminPort;
use super::{Ready, StopSignals, not_started, prepare, read_file, read_tls};
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
            admin: loopback(7402),
            auth_key: None,
            tls_cert: None,
            tls_key: None,
            insecure: false,
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
    let node = Node::start(NodeConfig {
        data: config.data.clone(),
        cluster: config.cluster.clone(),
        grpc: config.grpc,
        listener: None,
        advertise: None,
        auth_key: read_file("--auth-key", auth_key)?,
        tls: tls.map(|(cert_pem, key_pem)| Tls { cert_pem, key_pem }),
        insecure: config.insecure,
        shards: SHARDS_DEFAULT,
        clock: SystemClock::shared(),
        random: SystemRandom::shared(),
        on_fatal: on_fatal(),
        version: crate::VERSION.to_owned(),
    });
    let node = node.await.map_err(|error| not_started(&error))?;
    let mut registry = Registry::default();
    node.register_metrics(&mut registry);
    let (grpc, admin_addr) = (node.grpc_addr(), admin.addr());
    admin.started(registry, node.ready_probe());
    Ready::announce(Some(grpc), None, admin_addr)?;

    stop.received().await;
    tracing::info!("stopping");
    node.shutdown().await;
    stopped.cancel();
    Ok(())
}
