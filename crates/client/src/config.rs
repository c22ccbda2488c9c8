//! What a client is given: addresses, token, trust, time, randomness and, for a simulation, its
//! network.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::{Clock, Random, Refusal};
use http::Uri;
use tokio::io::{AsyncRead, AsyncWrite};

/// A future behind a pointer, as the traits of this crate return it.
pub type BoxFuture<'a, T> = futures_util::future::BoxFuture<'a, T>;

/// Where tokens come from. Asked for every connection and every single call, so it should keep
/// the token at hand; asked once more after a refusal that advises to reauthenticate.
pub trait TokenSource: Send + Sync + 'static {
    /// The token to use now, without `Bearer`.
    fn token(&self) -> BoxFuture<'_, Result<String, Refusal>>;
}

/// A token that never changes is its own source.
impl TokenSource for String {
    fn token(&self) -> BoxFuture<'_, Result<String, Refusal>> {
        let token = self.clone();
        Box::pin(async move { Ok(token) })
    }
}

/// Bytes both ways: what a connection is made of.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A network of somebody's own: the simulation's.
pub trait Connector: Send + Sync + 'static {
    /// Opens a connection to the authority of `uri`. TLS, if any, is put on top of it.
    fn connect(&self, uri: Uri) -> BoxFuture<'static, io::Result<Box<dyn Io>>>;
}

/// Whom to trust.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// Certificates of the authorities that sign the nodes' certificates, PEM.
    pub ca_pem: Vec<u8>,
}

/// What a client is made from.
#[derive(Clone)]
pub struct ClientConfig {
    /// Nodes, tried in turn: `127.0.0.1:7400`, `http://…` or `https://…`. Without a scheme it is
    /// `https` when `tls` is given.
    pub addrs: Vec<String>,
    /// Where tokens come from.
    pub token: Arc<dyn TokenSource>,
    /// Whom to trust; `None` speaks plain text.
    pub tls: Option<TlsConfig>,
    /// Time, for pacing. Waits go by tokio's own clock.
    pub clock: Arc<dyn Clock>,
    /// Randomness, for jitter and minted keys.
    pub random: Arc<dyn Random>,
    /// A network of one's own; `None` is TCP.
    pub connector: Option<Arc<dyn Connector>>,
    /// How long a single call is retried before its last refusal is the answer.
    pub deadline: Duration,
    /// Goes straight to the addresses that the cluster itself names. `false` for a client that
    /// reaches the configured ones only, such as a load balancer's: any node takes any call.
    pub direct: bool,
}

impl ClientConfig {
    /// How long a single call is retried, unless said otherwise.
    pub const DEADLINE: Duration = everwire_core::limits::CALL_WITHIN;

    /// A plain-text client of these addresses with one token.
    pub fn new(
        addrs: Vec<String>,
        token: impl TokenSource,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Self {
        Self {
            addrs,
            token: Arc::new(token),
            tls: None,
            clock,
            random,
            connector: None,
            deadline: Self::DEADLINE,
            direct: true,
        }
    }
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientConfig")
            .field("addrs", &self.addrs)
            .field("tls", &self.tls.is_some())
            .field("connector", &self.connector.is_some())
            .field("deadline", &self.deadline)
            .finish_non_exhaustive()
    }
}
