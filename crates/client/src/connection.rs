//! Connections to nodes: which there are, which lane, and what is known of the nodes.
//!
//! Comes in: addresses, the map, failures. Goes out: channels that connect when they are used.
//! Three lanes per node, each a connection of its own, so that a stop never waits behind
//! output, and an ack never behind a reader that is slow to take its events.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use everwire_core::limits::{
    CONNECT_WITHIN, HINTED_ADDRESSES_MAX, KEEPALIVE_EVERY, KEEPALIVE_LOST_AFTER,
    REATTACH_PER_SECOND_MAX, SUSPECT_FOR,
};
use everwire_core::{Clock, Code, Random, Refusal, Slot};
use everwire_proto::v1;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tower::Service;

use crate::address::{self, Address};
use crate::config::{BoxFuture, ClientConfig, Connector, Io, TokenSource};
use crate::map::{ClusterMap, Leader};
use crate::standing::Standings;
use crate::watch as map_watch;

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

/// All connections of a client and its clones.
pub(crate) struct Connections {
    /// As configured; never empty.
    addresses: Vec<Address>,
    tls: Option<ClientTlsConfig>,
    connector: Option<Arc<dyn Connector>>,
    clock: Arc<dyn Clock>,
    /// Addresses that servers name are gone to.
    direct: bool,
    /// For what the client does of its own: watching the map.
    pub(crate) token: Arc<dyn TokenSource>,
    pub(crate) random: Arc<dyn Random>,
    state: Mutex<State>,
    /// Rises whenever somebody may lead who did not.
    news: watch::Sender<u64>,
    /// Told to whoever watches the map: do not watch it there.
    doubted: watch::Sender<Option<Address>>,
    /// Ends the watching with the last clone of the client.
    stop: CancellationToken,
}

struct State {
    /// The address for whatever may go anywhere.
    current: Address,
    /// Made when first used, for configured addresses, those of the map and a few hinted ones.
    channels: BTreeMap<(Address, Lane), Channel>,
    /// When the next subscription may be opened, by the clock.
    next_open: Duration,
    map: ClusterMap,
    standings: Standings,
    /// Somebody watches the map.
    watched: bool,
    /// A node streams its map just now.
    mapped: bool,
    /// When a node answered last, but for the one that streams its map.
    heard: Option<Instant>,
}

impl State {
    fn suspect(&self, address: &Address) -> bool {
        self.standings.suspect(address, Instant::now())
    }
}

impl Connections {
    /// Checks the addresses; connects to nothing yet.
    pub(crate) fn new(config: &ClientConfig) -> Result<Self, Refusal> {
        let tls = config
            .tls
            .as_ref()
            .map(|tls| ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&tls.ca_pem)));
        let secure = tls.is_some();
        let parse = |text: &String| address::parse(text, secure);
        let addresses = config
            .addrs
            .iter()
            .map(parse)
            .collect::<Result<Vec<_>, _>>()?;
        // Many clients with one list begin at different nodes.
        let first = index(config.random.as_ref(), addresses.len());
        let Some(current) = addresses.get(first).cloned() else {
            return Err(Refusal::new(Code::Malformed, "a client needs an address"));
        };
        let connections = Self {
            state: Mutex::new(State {
                current,
                channels: BTreeMap::new(),
                next_open: Duration::ZERO,
                map: ClusterMap::default(),
                standings: Standings::default(),
                watched: false,
                mapped: false,
                heard: None,
            }),
            addresses,
            tls,
            connector: config.connector.clone(),
            clock: Arc::clone(&config.clock),
            direct: config.direct,
            token: Arc::clone(&config.token),
            random: Arc::clone(&config.random),
            news: watch::Sender::new(0),
            doubted: watch::Sender::new(None),
            stop: CancellationToken::new(),
        };
        for address in &connections.addresses {
            connections.endpoint(address, Lane::People)?;
        }
        Ok(connections)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    // === where to go ===

    /// Where whatever may go anywhere goes.
    pub(crate) fn current(&self) -> Address {
        self.state().current.clone()
    }

    /// Who leads the shard of a slot, if it is worth going there.
    pub(crate) fn leader(&self, slot: Option<Slot>) -> Leader {
        let Some(slot) = slot else {
            return Leader::Unmapped;
        };
        let state = self.state();
        match state.map.leader(slot, Instant::now()) {
            Leader::At(address, _) if state.suspect(&address) => Leader::Nobody,
            leader => leader,
        }
    }

    /// Where a replica of a slot's shard serves: the current address if it does, or if it is not
    /// known who does.
    pub(crate) fn replica(&self, slot: Option<Slot>) -> Address {
        let state = self.state();
        let Some(slot) = slot.filter(|_| state.map.names(&state.current)) else {
            return state.current.clone();
        };
        let good: Vec<_> = {
            let all = state.map.replicas(slot);
            all.filter(|address| !state.suspect(address)).collect()
        };
        // Slots spread over the replicas, so that a client's sessions do too.
        let spread = usize::from(slot.get()) % good.len().max(1);
        let chosen = match good.get(spread) {
            Some(other) if !good.contains(&&state.current) => other,
            Some(_) | None => &state.current,
        };
        chosen.clone()
    }

    /// Another address than `failed` for whatever may go anywhere, for everybody, unless somebody
    /// moved on already. Those that failed lately come last.
    pub(crate) fn leave(&self, failed: &Address) {
        let mut state = self.state();
        if state.current == *failed {
            state.current = self.other(&state, failed).unwrap_or_else(|| failed.clone());
        }
    }

    /// The next address in turn behind this one: as configured, then those of the map.
    fn other(&self, state: &State, than: &Address) -> Option<Address> {
        let configured = self.addresses.iter();
        let of_map = state.map.alive();
        let all = configured.chain(of_map.filter(|address| !self.addresses.contains(address)));
        let all: Vec<&Address> = all.collect();
        let place = all.iter().position(|address| *address == than);
        let (before, behind) = all.split_at(place.map_or(0, |place| place + 1));
        let turn = || behind.iter().chain(before).filter(|one| **one != than);
        let good = turn().find(|address| !state.suspect(address));
        good.or_else(|| turn().next())
            .map(|address| (*address).clone())
    }

    /// Where to watch the map: not at `not`, if there is another.
    pub(crate) fn watch_at(&self, not: Option<&Address>) -> Address {
        let state = self.state();
        match not {
            Some(not) if *not == state.current => self.other(&state, not),
            Some(_) | None => None,
        }
        .unwrap_or_else(|| state.current.clone())
    }

    // === what is heard of nodes ===

    /// Begins to watch the map, with the first call that finds its way by it. The task holds no
    /// client: it ends with the last one.
    pub(crate) fn watch(self: &Arc<Self>, lane: Lane) {
        if !self.direct || std::mem::replace(&mut self.state().watched, true) {
            return;
        }
        // Readers fill their connections as they like; the map must not wait for them.
        let lane = match lane {
            Lane::Read | Lane::People => Lane::People,
            Lane::Data => Lane::Data,
        };
        let watching = map_watch::run(Arc::downgrade(self), lane, self.doubted.subscribe());
        let stop = self.stop.clone();
        tokio::spawn(stop.run_until_cancelled_owned(watching));
    }

    /// Takes a map.
    pub(crate) fn take(&self, map: v1::Map) {
        let mut state = self.state();
        state.mapped = true;
        for address in state.map.take(map, self.tls.is_some()) {
            state.standings.back(&address);
        }
        let State { map, channels, .. } = &mut *state;
        let hinted = |address: &Address| !self.addresses.contains(address);
        channels.retain(|(address, _), _| !hinted(address) || map.names(address));
        drop(state);
        self.news.send_modify(|count| *count += 1);
    }

    /// No node streams its map any more.
    pub(crate) fn unwatched(&self) {
        let mut state = self.state();
        if std::mem::replace(&mut state.mapped, false) {
            state.heard = Some(Instant::now());
        }
    }

    /// How long ago a node was heard of last; `None` before the first.
    pub(crate) fn heard_ago(&self) -> Option<Duration> {
        let state = self.state();
        if state.mapped {
            return Some(Duration::ZERO);
        }
        state.heard.map(|heard| heard.elapsed())
    }

    /// A refusal names another leader. Answers whether that is news.
    pub(crate) fn hint(&self, slot: Option<Slot>, leader: Address, term: Option<u64>) -> bool {
        let Some(slot) = slot else { return false };
        let taken = self.state().map.hint(slot, leader, term, Instant::now());
        if taken {
            self.news.send_modify(|count| *count += 1);
        }
        taken
    }

    /// A node said that it does not lead.
    pub(crate) fn leads_not(&self, slot: Option<Slot>, address: &Address) {
        if let Some(slot) = slot {
            let until = Instant::now() + SUSPECT_FOR;
            self.state().map.leads_not(slot, address, until);
        }
    }

    /// A leader's address that a server named, if it may be gone to. It must not take TLS away.
    pub(crate) fn hinted(&self, text: &str) -> Option<Address> {
        let parsed = address::parse(text, self.tls.is_some()).ok();
        parsed.filter(|_| self.direct)
    }

    /// An address did not answer, or said that it is about to stop: everybody passes it over.
    pub(crate) fn failed(&self, address: &Address) {
        self.state().standings.failed(address, Instant::now());
        self.leave(address);
        self.doubt(address);
    }

    /// An address answered.
    pub(crate) fn answered(&self, address: &Address) {
        let mut state = self.state();
        let was_suspect = state.suspect(address);
        state.standings.answered(address);
        state.heard = Some(Instant::now());
        drop(state);
        if was_suspect {
            // It may lead, and nobody went there.
            self.news.send_modify(|count| *count += 1);
        }
    }

    /// An address is late: whoever watches the map there asks another node.
    pub(crate) fn doubt(&self, address: &Address) {
        self.doubted.send_replace(Some(address.clone()));
    }

    /// Resolves with the first answer of `check`, which is asked whenever somebody may lead who
    /// did not.
    pub(crate) async fn until<T>(&self, mut check: impl FnMut(&Self) -> Option<T>) -> T {
        let mut news = self.news.subscribe();
        loop {
            if let Some(answer) = check(self) {
                return answer;
            }
            if news.changed().await.is_err() {
                // The sender is this very client's.
                return std::future::pending().await;
            }
        }
    }

    // === channels ===

    /// The channel of a lane. It connects when it is used and again after every loss.
    pub(crate) fn channel(&self, address: &Address, lane: Lane) -> Result<Channel, Refusal> {
        let key = (address.clone(), lane);
        let mut state = self.state();
        if let Some(channel) = state.channels.get(&key) {
            return Ok(channel.clone());
        }
        let endpoint = self.endpoint(address, lane)?;
        let channel = match &self.connector {
            Some(connector) => endpoint.connect_with_connector_lazy(Plug(Arc::clone(connector))),
            None => endpoint.connect_lazy(),
        };
        self.forget_hints(&mut state);
        state.channels.insert(key, channel.clone());
        Ok(channel)
    }

    /// Keeps hinted addresses few: a server that hints at ever new ones must not fill memory.
    fn forget_hints(&self, state: &mut State) {
        let State { map, channels, .. } = state;
        let hinted = |address: &Address| !self.addresses.contains(address) && !map.names(address);
        let all: BTreeSet<&Address> = channels.keys().map(|(address, _)| address).collect();
        if all.into_iter().filter(|address| hinted(address)).count() >= HINTED_ADDRESSES_MAX {
            channels.retain(|(address, _), _| !hinted(address));
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
        let endpoint = Endpoint::from_shared(address.as_str().to_owned())
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

impl Drop for Connections {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn index(random: &dyn Random, count: usize) -> usize {
    let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
    usize::try_from(random.next() % count).unwrap_or(0)
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
