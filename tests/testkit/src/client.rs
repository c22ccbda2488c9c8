//! A client of the test's own process: the machine's clock, good randomness.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use everwire_client::{Client, ClientConfig};
use everwire_core::{Clock, Random, Timestamp};

/// The machine's clocks.
struct TestClock {
    started: tokio::time::Instant,
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        crate::tokens::now()
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// Randomness of the operating system, as the standard library hands it out.
struct TestRandom;

impl Random for TestRandom {
    fn next(&self) -> u64 {
        random()
    }
}

/// 64 random bits.
pub fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// A client of one gRPC address.
pub fn client(addr: &str, token: &str) -> Client {
    clients(vec![addr.to_owned()], token)
}

/// A client of several gRPC addresses; it begins at any of them.
pub fn clients(addrs: Vec<String>, token: &str) -> Client {
    let clock = Arc::new(TestClock {
        started: tokio::time::Instant::now(),
    });
    let config = ClientConfig::new(addrs, token.to_owned(), clock, Arc::new(TestRandom));
    Client::new(config).expect("good addresses")
}
