//! Connections to nodes: which address, which lane, and where to go when one fails.
//!
//! Comes in: addresses, in any spelling. Goes out: channels that connect when they are used.
//! Three lanes per node, each a connection of its own, so that a stop never waits behind
//! output, and an ack never behind a reader that is slow to take its events.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use everwire_core::limits::{
    CONNECT_WITHIN, HINTED_ADDRESSES_MAX, KEEPALIVE_EVERY, KEEPALIVE_LOST_AFTER,
    REATTACH_PER_SECOND_MAX,
};
use everwire_core::{Clock, Code, Random, Refusal};
use http::Uri;
use hyper_util::rt::TokioIo;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tower::Service;

use crate::config::{BoxFuture, ClientConfig, Connector, Io};

/// What a connection carries. A stream holds its connection's window while nobody takes its
/// bytes; lanes keep that from those who must not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Lane {
    /// Inputs, signals and look-ups.
    People,
    /// Output of runs.
    Data,
    /// Subscriptions and pages.
    Read,
}

impl Lane {
    /// Flow control of one stream and of the whole connection, bytes. Readers are many and
    /// may stall: each holds little, all together much.
    fn windows(self) -> (u32, u32) {
        match self {
            Self::People | Self::Data => (1 << 20, 4 << 20),
            Self::Read => (512 << 10, 16 << 20),
        }
    }
}

/// A node's address as a URI with scheme and authority.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Address(Arc<str>);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// All connections of a client and its clones.
pub(crate) struct Connections {
    /// As configured; never empty.
    addresses: Vec<Address>,
    tls: Option<ClientTlsConfig>,
    connector: Option<Arc<dyn Connector>>,
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

struct State {
    /// The address to begin with: an index, modulo their number.
    current: usize,
    /// Made when first used. Besides the configured addresses it holds a few that were hinted.
    channels: BTreeMap<(Address, Lane), Channel>,
    /// When the next subscription may be opened, by the clock.
    next_open: Duration,
}

impl Connections {
    /// Checks the addresses; connects to nothing yet.
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, Refusal> {
        let tls = config
            .tls
            .as_ref()
            .map(|tls| ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca_pem)));
        let secure = tls.is_some();
        let parse = |text: &String| parse(text, secure);
        let addresses = config
            .addrs
            .iter()
            .map(parse)
            .collect::<Result<Vec<_>, _>>()?;
        if addresses.is_empty() {
            return Err(Refusal::new(Code::Malformed, "a client needs an address"));
        }
        let connections = Self {
            state: Mutex::new(State {
                // Many clients with one list begin at different nodes.
                current: index(config.random.as_ref(), addresses.len()),
                channels: BTreeMap::new(),
                next_open: Duration::ZERO,
            }),
            addresses,
            tls,
            connector: config.connector.clone(),
            clock: Arc::clone(&config.clock),
        };
        for address in &connections.addresses {
            connections.endpoint(address, Lane::People)?;
        }
        Ok(connections)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at(&self, current: usize) -> Address {
        let index = current % self.addresses.len();
        let address = self
            .addresses
            .get(index)
            .expect("the index is taken modulo their number");
        address.clone()
    }

    /// The way to begin with.
    pub(crate) fn route(&self) -> Route {
        let current = self.state().current;
        Route {
            address: self.at(current),
        }
    }

    /// The configured address after `failed`, for everybody, unless somebody moved on already.
    fn after(&self, failed: &Address) -> Address {
        let mut state = self.state();
        if self.at(state.current) == *failed {
            state.current = state.current.wrapping_add(1);
        }
        self.at(state.current)
    }

    /// The channel of a lane. It connects when it is used and again after every loss.
    pub(crate) fn channel(&self, route: &Route, lane: Lane) -> Result<Channel, Refusal> {
        let key = (route.address.clone(), lane);
        let mut state = self.state();
        if let Some(channel) = state.channels.get(&key) {
            return Ok(channel.clone());
        }
        let endpoint = self.endpoint(&route.address, lane)?;
        let channel = match &self.connector {
            Some(connector) => endpoint.connect_with_connector_lazy(Plug(Arc::clone(connector))),
            None => endpoint.connect_lazy(),
        };
        if !self.addresses.contains(&route.address) {
            self.forget_hints(&mut state);
        }
        state.channels.insert(key, channel.clone());
        Ok(channel)
    }

    /// Keeps hinted addresses few: a server that hints at ever new ones must not fill memory.
    fn forget_hints(&self, state: &mut State) {
        let hinted = |address: &Address| !self.addresses.contains(address);
        let count = state
            .channels
            .keys()
            .filter(|(address, _)| hinted(address))
            .count();
        if count >= HINTED_ADDRESSES_MAX {
            state.channels.retain(|(address, _), _| !hinted(address));
        }
    }

    fn endpoint(&self, address: &Address, lane: Lane) -> Result<Endpoint, Refusal> {
        let bad = |error: &dyn fmt::Display| {
            Refusal::new(
                Code::Malformed,
                format!("the address {address} cannot be used: {error}"),
            )
        };
        let (stream, connection) = lane.windows();
        let endpoint = Endpoint::from_shared(address.0.to_string())
            .and_then(|endpoint| {
                endpoint.user_agent(concat!("everwire-rust/", env!("CARGO_PKG_VERSION")))
            })
            .map_err(|error| bad(&error))?
            .connect_timeout(CONNECT_WITHIN)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_LOST_AFTER)
            .initial_stream_window_size(stream)
            .initial_connection_window_size(connection);
        match &self.tls {
            Some(tls) => endpoint
                .tls_config(tls.clone())
                .map_err(|error| bad(&error)),
            None => Ok(endpoint),
        }
    }

    /// Waits for a place among those who open subscriptions: after the loss of a node an edge
    /// comes back with all its sessions, and must not come back with all at once (RULES 24).
    pub(crate) async fn pace(&self) {
        let wait = {
            let now = self.clock.elapsed();
            let mut state = self.state();
            let place = state.next_open.max(now);
            state.next_open = place + Duration::from_secs(1) / REATTACH_PER_SECOND_MAX;
            place.saturating_sub(now)
        };
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }
}

/// Where one piece of work goes. Moves on by itself; others learn of failures only.
#[derive(Clone)]
pub(crate) struct Route {
    address: Address,
}

impl Route {
    /// The address, for the log.
    pub(crate) fn address(&self) -> &Address {
        &self.address
    }

    /// Goes elsewhere: to the leader that the refusal names, else to the next address in turn.
    /// Answers whether a leader was named.
    pub(crate) fn elsewhere(&mut self, connections: &Connections, refusal: &Refusal) -> bool {
        let hint = refusal.details.leader.as_deref();
        // A hint is an authority; that a server names must not take TLS away.
        let hint = hint.and_then(|text| parse(text, connections.tls.is_some()).ok());
        match hint {
            Some(address) if address != self.address => {
                self.address = address;
                true
            },
            Some(_) | None => {
                self.address = connections.after(&self.address);
                false
            },
        }
    }
}

fn index(random: &dyn Random, count: usize) -> usize {
    let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
    usize::try_from(random.next() % count).unwrap_or(0)
}

/// `host:port`, `http://host:port` or `https://host:port`.
fn parse(text: &str, secure: bool) -> Result<Address, Refusal> {
    let bad = |why: &str| Refusal::new(Code::Malformed, format!("the address {text}: {why}"));
    let scheme = if secure { "https" } else { "http" };
    let (given, authority) = text
        .trim()
        .split_once("://")
        .unwrap_or_else(|| (scheme, text.trim()));
    match (given, secure) {
        ("http", false) | ("https", true) => {},
        ("https", false) => return Err(bad("https needs a CA certificate")),
        ("http", true) => return Err(bad("http does without the TLS that was asked for")),
        _ => return Err(bad("the scheme is http or https")),
    }
    let uri = format!("{scheme}://{}", authority.trim_end_matches('/'));
    let parsed: Uri = uri.parse().map_err(|_error| bad("it is not host:port"))?;
    let bare = parsed.path() == "/" && parsed.query().is_none();
    if parsed.host().is_none_or(str::is_empty) || !bare {
        return Err(bad("it is not host:port"));
    }
    Ok(Address(Arc::from(uri)))
}

/// A [`Connector`] in the shape that tonic wants.
#[derive(Clone)]
struct Plug(Arc<dyn Connector>);

impl Service<Uri> for Plug {
    type Response = TokioIo<Box<dyn Io>>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.connect(uri);
        Box::pin(async move { connecting.await.map(TokioIo::new) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str, secure: bool) -> Result<String, Code> {
        parse(text, secure)
            .map(|address| address.to_string())
            .map_err(|refusal| refusal.code)
    }

    #[test]
    fn addresses_are_read_in_any_spelling() {
        for text in [
            "127.0.0.1:7400",
            "http://127.0.0.1:7400",
            " http://127.0.0.1:7400/ ",
        ] {
            assert_eq!(parsed(text, false).as_deref(), Ok("http://127.0.0.1:7400"));
        }
        assert_eq!(
            parsed("[::1]:7400", true).as_deref(),
            Ok("https://[::1]:7400")
        );
        assert_eq!(
            parsed("https://node-1:7400", true).as_deref(),
            Ok("https://node-1:7400")
        );
    }

    #[test]
    fn tls_is_never_taken_away_and_nonsense_is_refused() {
        assert_eq!(parsed("http://node:1", true), Err(Code::Malformed));
        assert_eq!(parsed("https://node:1", false), Err(Code::Malformed));
        for text in ["", "ftp://x:1", "a b", "node:1/path", "http://", ":70"] {
            assert_eq!(parsed(text, false), Err(Code::Malformed), "{text}");
        }
    }
}
