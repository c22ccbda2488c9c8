//! `everwire edge`: a stateless edge in front of nodes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use everwire_client::{BoxFuture, TokenSource};
use everwire_core::limits::EDGE_DRAIN_WITHIN;
use everwire_core::{Code, Refusal};
use everwire_edge::{Edge, EdgeConfig, EdgeTls};
use everwire_proto::token::Verifier;
use prometheus_client::registry::Registry;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::admin::AdminPort;
use super::{Ready, StopSignals, prepare, read_file, read_tls};
use crate::config::{LogFlags, Sources, duration};
use crate::output::Failure;
use crate::system::{SystemClock, SystemRandom};

/// Flags and environment of `everwire edge`.
#[derive(Args, Clone, Debug, Serialize)]
pub(crate) struct EdgeFlags {
    /// Where browsers connect; port 0 picks one
    #[arg(long, env = "EVERWIRE_EDGE_HTTP", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<SocketAddr>,
    /// Health and metrics; port 0 picks one
    #[arg(long, env = "EVERWIRE_EDGE_ADMIN", value_name = "ADDR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<SocketAddr>,
    /// gRPC addresses of the nodes, comma-separated
    #[arg(
        long,
        env = "EVERWIRE_EDGE_NODES",
        value_name = "A,B,C",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<String>,
    /// A file with the edge's own token (kind edge, capability relay); renew it in place
    #[arg(long, env = "EVERWIRE_EDGE_TOKEN_FILE", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    /// What verifies the tokens of clients: a PEM public key, or a secret for HS256
    #[arg(long, env = "EVERWIRE_EDGE_AUTH_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_key: Option<PathBuf>,
    /// A browser origin that may connect; repeatable
    #[arg(
        long,
        env = "EVERWIRE_EDGE_ORIGIN",
        value_name = "URL",
        value_delimiter = ','
    )]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    origin: Vec<String>,
    /// What this edge is called in `welcome`
    #[arg(long, env = "EVERWIRE_EDGE_NAME", value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    /// Certificate chain towards browsers, PEM
    #[arg(long, env = "EVERWIRE_EDGE_TLS_CERT", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert: Option<PathBuf>,
    /// Private key towards browsers, PEM
    #[arg(long, env = "EVERWIRE_EDGE_TLS_KEY", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key: Option<PathBuf>,
    /// The authority that signed the nodes' certificates, PEM
    #[arg(long, env = "EVERWIRE_EDGE_NODE_CA", value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    node_ca: Option<PathBuf>,
    /// How long clients are given to move when the edge stops, at most
    #[arg(long, env = "EVERWIRE_EDGE_DRAIN_WITHIN", value_name = "TIME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    drain_within: Option<String>,
    /// Serve without TLS off loopback
    #[arg(long, env = "EVERWIRE_EDGE_INSECURE", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip_serializing_if = "Option::is_none")]
    insecure: Option<bool>,
}

/// What `everwire edge` runs with.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct EdgeOptions {
    http: SocketAddr,
    admin: SocketAddr,
    nodes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    auth_key: Option<PathBuf>,
    origin: Vec<String>,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_cert: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tls_key: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    node_ca: Option<PathBuf>,
    drain_within: String,
    insecure: bool,
}

impl Default for EdgeOptions {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self {
            http: loopback(7410),
            admin: loopback(7412),
            nodes: vec!["127.0.0.1:7400".to_owned()],
            token_file: None,
            auth_key: None,
            origin: Vec::new(),
            name: "edge".to_owned(),
            tls_cert: None,
            tls_key: None,
            node_ca: None,
            drain_within: format!("{}s", EDGE_DRAIN_WITHIN.as_secs()),
            insecure: false,
        }
    }
}

/// Runs until SIGTERM or SIGINT.
pub(crate) async fn run(
    sources: &Sources,
    flags: &EdgeFlags,
    log: &LogFlags,
) -> Result<(), Failure> {
    let Some(options) = prepare::<EdgeOptions, _>("edge", sources, flags, log)? else {
        return Ok(());
    };
    let mut stop = StopSignals::new()?;
    let stopped = CancellationToken::new();
    let admin = AdminPort::bind(options.admin, stopped.clone()).await?;
    let edge = Edge::start(edge_config(&options)?).await;
    let edge = edge.map_err(|error| Failure::failed(error.to_string()))?;
    let mut registry = Registry::default();
    edge.register_metrics(&mut registry);
    let (http, admin_addr) = (edge.http_addr(), admin.addr());
    admin.started(registry, edge.ready_probe());
    Ready::announce(None, Some(http), admin_addr)?;

    stop.received().await;
    tracing::info!("stopping");
    edge.shutdown().await;
    stopped.cancel();
    Ok(())
}

/// The edge's token, read anew for each use: whoever renews the file need not restart the edge.
struct TokenFile {
    path: PathBuf,
}

impl TokenFile {
    fn read(path: &Path) -> std::io::Result<String> {
        Ok(std::fs::read_to_string(path)?.trim().to_owned())
    }
}

impl TokenSource for TokenFile {
    fn token(&self) -> BoxFuture<'_, Result<String, Refusal>> {
        let path = self.path.clone();
        Box::pin(async move {
            let read = tokio::task::spawn_blocking(move || Self::read(&path)).await;
            let read = read.unwrap_or_else(|error| Err(std::io::Error::other(error)));
            read.map_err(|error| {
                let message = format!("the edge's token file cannot be read: {error}");
                Refusal::new(Code::Unauthenticated, message)
            })
        })
    }
}

fn edge_config(options: &EdgeOptions) -> Result<EdgeConfig, Failure> {
    let needed = |what: &str, path: Option<&PathBuf>| {
        let path = path.ok_or_else(|| Failure::usage(format!("an edge needs {what}")))?;
        read_file(what, path)
    };
    let token_file = options.token_file.clone();
    let token_file = token_file.ok_or_else(|| Failure::usage("an edge needs --token-file"))?;
    // Read once now, so that a wrong path is told at the start.
    TokenFile::read(&token_file)
        .map_err(|error| Failure::usage(format!("--token-file cannot be used: {error}")))?;
    let key = needed("--auth-key", options.auth_key.as_ref())?;
    let verifier = Verifier::new(&key)
        .map_err(|error| Failure::usage(format!("--auth-key cannot be used: {error}")))?;
    let tls = read_tls(options.tls_cert.as_ref(), options.tls_key.as_ref())?;
    let node_ca = options.node_ca.as_ref();
    let node_tls_ca = node_ca
        .map(|path| read_file("--node-ca", path))
        .transpose()?;
    let config = EdgeConfig::new(
        options.http,
        options.nodes.clone(),
        TokenFile { path: token_file },
        verifier,
        SystemClock::shared(),
        SystemRandom::shared(),
    );
    Ok(EdgeConfig {
        name: options.name.clone(),
        origins: options.origin.clone(),
        tls: tls.map(|(cert_pem, key_pem)| EdgeTls { cert_pem, key_pem }),
        node_tls_ca,
        drain_window: duration("--drain-within", &options.drain_within)?,
        insecure: options.insecure,
        ..config
    })
}
