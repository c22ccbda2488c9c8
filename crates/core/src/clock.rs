//! Time and randomness as values that are passed in, so that a simulation can own both.

use std::fmt;
use std::time::Duration;

/// Wall-clock time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// This time plus a duration, in whole milliseconds; saturates.
    pub fn plus(self, duration: Duration) -> Self {
        let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(ms))
    }

    /// How long after `earlier` this is; zero if it is not after it.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}ms", self.0)
    }
}

/// The two clocks of a process.
pub trait Clock: Send + Sync + 'static {
    /// Wall-clock time. It may jump; only a leader stamps commands with it.
    fn now(&self) -> Timestamp;

    /// Time since some fixed moment of this process; never goes back. Leases count in it.
    fn elapsed(&self) -> Duration;
}

/// A source of random numbers: for jitter and for minted ids, never inside the rules.
pub trait Random: Send + Sync + 'static {
    /// The next 64 random bits.
    fn next(&self) -> u64;
}
