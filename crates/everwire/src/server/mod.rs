//! The servers: `dev`, `node` and `edge`, and what they share: ready line, stop signals, files.

pub(crate) mod admin;
pub(crate) mod dev;
pub(crate) mod edge;
pub(crate) mod keys;
pub(crate) mod node;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use everwire_core::Refusal;
use everwire_node::NodeError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{LogConfig, LogFlags, Sources, layered, printed};
use crate::output::{Failure, line};
use crate::system::{die_on_panic, start_log};

/// Reads the layers, starts the log and makes panics fatal. `None`: the configuration was
/// printed, and that was all that was asked for.
pub(crate) fn prepare<Config, Flags>(
    section: &str,
    sources: &Sources,
    flags: &Flags,
    log: &LogFlags,
) -> Result<Option<Config>, Failure>
where
    Config: Serialize + DeserializeOwned + Default,
    Flags: Serialize,
{
    let config: Config = layered(section, sources, flags)?;
    let log: LogConfig = layered("log", sources, log)?;
    if sources.print_config {
        line(printed(section, &config, &log)?.trim_end())?;
        return Ok(None);
    }
    start_log(log.format, &log.level).map_err(Failure::usage)?;
    die_on_panic();
    #[cfg(feature = "test-poison")]
    if std::env::var_os("EVERWIRE_TEST_POISON").is_some() {
        everwire_node::poison::arm();
    }
    Ok(Some(config))
}

/// The newest rules that this program knows; in builds for tests what a test says, so that one
/// program can stand for an older and a newer one. No release has that.
fn rules_known() -> u32 {
    #[cfg(feature = "test-poison")]
    if let Ok(said) = std::env::var("EVERWIRE_TEST_RULES") {
        return said.parse().expect("EVERWIRE_TEST_RULES is a number");
    }
    everwire_node::RULES_VERSION
}

/// Why a node did not start: with its code if it is a refusal (a data directory of a newer
/// release, of another cluster), else as what it is: a wrong setting.
pub(crate) fn not_started(error: &NodeError) -> Failure {
    match error.code() {
        Some(code) => Failure::Refused(Refusal::new(code, error.to_string())),
        None => Failure::failed(error.to_string()),
    }
}

/// The one line on stdout that tells scripts where the server is.
#[derive(Serialize)]
pub(crate) struct Ready {
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    grpc: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    http: Option<String>,
    admin: String,
}

impl Ready {
    /// Prints it.
    pub(crate) fn announce(
        grpc: Option<SocketAddr>,
        http: Option<SocketAddr>,
        admin: SocketAddr,
    ) -> Result<(), Failure> {
        Self::print(grpc, None, http, admin)
    }

    /// The same for a storage node.
    pub(crate) fn node(
        grpc: SocketAddr,
        peer: Option<SocketAddr>,
        admin: SocketAddr,
    ) -> Result<(), Failure> {
        Self::print(Some(grpc), peer, None, admin)
    }

    fn print(
        grpc: Option<SocketAddr>,
        peer: Option<SocketAddr>,
        http: Option<SocketAddr>,
        admin: SocketAddr,
    ) -> Result<(), Failure> {
        let text = |addr: SocketAddr| addr.to_string();
        let ready = Self {
            ready: true,
            grpc: grpc.map(text),
            peer: peer.map(text),
            http: http.map(text),
            admin: text(admin),
        };
        line(&serde_json::to_string(&ready).map_err(|error| Failure::failed(error.to_string()))?)
    }
}

/// SIGTERM and SIGINT, listened for from its making on.
pub(crate) struct StopSignals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl StopSignals {
    /// Starts to listen.
    pub(crate) fn new() -> Result<Self, Failure> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// Resolves at the first of them.
    pub(crate) async fn received(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {},
            _ = self.interrupt.recv() => {},
        }
    }
}

/// A file that the configuration names.
pub(crate) fn read_file(what: &str, path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| {
        Failure::usage(format!("{what} {} cannot be read: {error}", path.display()))
    })
}

/// Certificate chain and private key, PEM.
pub(crate) type TlsFiles = (Vec<u8>, Vec<u8>);

/// Certificate and key of a listener; one without the other is a mistake.
pub(crate) fn read_tls(
    cert: Option<&PathBuf>,
    key: Option<&PathBuf>,
) -> Result<Option<TlsFiles>, Failure> {
    match (cert, key) {
        (None, None) => Ok(None),
        (Some(cert), Some(key)) => Ok(Some((
            read_file("--tls-cert", cert)?,
            read_file("--tls-key", key)?,
        ))),
        _ => Err(Failure::usage("--tls-cert and --tls-key belong together")),
    }
}
