//! The SDK against a node that misbehaves as scripted, over a network that breaks as scripted,
//! in paused time: whatever happens on the way, the caller sees each thing exactly once.

#[cfg(test)]
mod calls;
#[cfg(test)]
mod net;
#[cfg(test)]
mod node;
#[cfg(test)]
mod publishing;
#[cfg(test)]
mod reading;
#[cfg(test)]
mod routing;
#[cfg(test)]
mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use everwire_client::{Client, ClientConfig};
use everwire_core::{Clock, Random, RunId, SessionName, Timestamp};
use tokio::time::Instant;

use net::Net;

/// Splitmix64 from a seed: the same seed, the same run.
pub(crate) struct Seeded(AtomicU64);

impl Seeded {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// True once in `times`.
    pub(crate) fn once_in(&self, times: u64) -> bool {
        self.next().is_multiple_of(times)
    }
}

impl Random for Seeded {
    fn next(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Tokio's clock, which these tests pause.
struct TestClock(Instant);

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(0).plus(self.0.elapsed())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Runs a test in paused time.
fn paused<F: Future>(test: F) -> F::Output {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(test)
}

fn config(net: &Arc<Net>, addrs: &[&str], seed: u64) -> ClientConfig {
    let addrs = addrs.iter().map(|addr| (*addr).to_owned()).collect();
    let clock = Arc::new(TestClock(Instant::now()));
    let random = Arc::new(Seeded::new(seed));
    let mut config = ClientConfig::new(addrs, "token".to_owned(), clock, random);
    config.connector = Some(Arc::<Net>::clone(net));
    config
}

fn client(net: &Arc<Net>, addrs: &[&str], seed: u64) -> Client {
    Client::new(config(net, addrs, seed)).expect("good addresses")
}

fn session() -> SessionName {
    SessionName::parse("s1").expect("a name")
}

fn run_id() -> RunId {
    RunId::parse("r1").expect("a name")
}
