//! What the store counts of itself: how long its syncs take, and what waits for them.
//!
//! Plain numbers, taken at any time from any thread. Whoever shows them decides on names.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets with an upper bound; one more holds what took longer.
const BOUNDED: usize = 16;
/// The upper bound of the first bucket, microseconds; each next bound is twice as high. An idle
/// sync of a good disk falls into the first ones, a stalled disk into the last.
const FIRST_US: u64 = 64;

/// How often something happened, by how long it took, and how long all of it took together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    counts: [u64; BOUNDED + 1],
    sum: Duration,
}

fn bound(at: usize) -> Duration {
    let shift = u32::try_from(at).unwrap_or(u32::MAX);
    Duration::from_micros(FIRST_US.checked_shl(shift).unwrap_or(u64::MAX))
}

impl Times {
    /// How often.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long all of it took.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Each bucket's upper bound and how much fell into it alone; the last one has no bound.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        let counts = self.counts.iter().enumerate();
        counts.map(|(at, count)| ((at < BOUNDED).then(|| bound(at)), *count))
    }

    /// What came after `earlier`, which was taken of the same counts.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts;
        for (count, before) in counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(before);
        }
        let sum = self.sum.saturating_sub(earlier.sum);
        Self { counts, sum }
    }

    /// The time that `share` of a thousand stayed below, as near as the buckets tell; `None` when
    /// nothing happened. What fell beyond the last bound counts as that bound.
    pub fn quantile(&self, share: u32) -> Option<Duration> {
        let count = self.count();
        let wanted = count.saturating_mul(u64::from(share)).div_ceil(1000).max(1);
        let mut below = 0;
        for (at, here) in self.counts.iter().enumerate() {
            if below + here < wanted {
                below += here;
                continue;
            }
            let low = at.checked_sub(1).map_or(Duration::ZERO, bound);
            let width = bound(at.min(BOUNDED - 1)).saturating_sub(low);
            let width = u64::try_from(width.as_nanos()).unwrap_or(u64::MAX);
            let inside = width / here.max(&1) * (wanted - below);
            return Some(low + Duration::from_nanos(inside));
        }
        None
    }
}

/// The same while it is being counted.
#[derive(Default)]
pub(crate) struct Timer {
    counts: [AtomicU64; BOUNDED + 1],
    sum_ns: AtomicU64,
}

impl Timer {
    /// It happened once more, and took so long.
    pub(crate) fn note(&self, took: Duration) {
        let at = (0..BOUNDED).find(|at| took <= bound(*at));
        if let Some(count) = self.counts.get(at.unwrap_or(BOUNDED)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.sum_ns.fetch_add(ns, Ordering::Relaxed);
    }

    /// The counts of this moment.
    pub(crate) fn now(&self) -> Times {
        let mut times = Times {
            sum: Duration::from_nanos(self.sum_ns.load(Ordering::Relaxed)),
            ..Times::default()
        };
        for (to, from) in times.counts.iter_mut().zip(&self.counts) {
            *to = from.load(Ordering::Relaxed);
        }
        times
    }
}

/// What a store tells of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meters {
    /// Synced writes of the log: one for whatever all groups had ready. Without a clock
    /// ([`crate::OpenOptions::clock`]) they all count as immediate.
    pub syncs: Times,
    /// Bytes that those writes held.
    pub sync_bytes: u64,
    /// Bytes that wait for the log's writer.
    pub waiting_bytes: u64,
    /// Flushes of the event DB.
    pub flushes: Times,
    /// Bytes applied since the last flush began.
    pub unflushed_bytes: u64,
    /// Memory of caches and write buffers: what is used, and the budget for it. 0 on a simulated
    /// disk.
    pub memory: (u64, u64),
}

/// What the engine counts while it works.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) syncs: Timer,
    pub(crate) sync_bytes: AtomicU64,
    pub(crate) flushes: Timer,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    #[test]
    fn each_time_falls_into_the_first_bucket_that_holds_it() {
        let timer = Timer::default();
        for took in [0, 1, 64, 65, 128, 129, 2_097_152, 2_097_153, 60_000_000] {
            timer.note(us(took));
        }
        let times = timer.now();
        assert_eq!(times.count(), 9);
        assert_eq!(times.sum(), us(64_194_692));
        let buckets: Vec<_> = times.buckets().collect();
        assert_eq!(buckets.len(), 17);
        assert_eq!(buckets[0], (Some(us(64)), 3));
        assert_eq!(buckets[1], (Some(us(128)), 2));
        assert_eq!(buckets[2], (Some(us(256)), 1));
        assert_eq!(buckets[15], (Some(us(2_097_152)), 1));
        assert_eq!(buckets[16], (None, 2));
    }

    #[test]
    fn quantiles_lie_in_their_buckets() {
        let timer = Timer::default();
        assert_eq!(timer.now().quantile(500), None);
        for _ in 0..98 {
            timer.note(us(300));
        }
        timer.note(us(5_000));
        timer.note(us(60_000_000));
        let times = timer.now();
        let within = |share, low, high| {
            let found = times.quantile(share).unwrap();
            assert!(us(low) < found && found <= us(high), "{share}: {found:?}");
        };
        within(1, 256, 512);
        within(500, 256, 512);
        within(980, 256, 512);
        within(990, 4_096, 8_192);
        assert_eq!(times.quantile(1000), Some(us(2_097_152)));
    }

    #[test]
    fn what_came_since_is_told_alone() {
        let timer = Timer::default();
        timer.note(us(100));
        let before = timer.now();
        assert_eq!(timer.now().since(&before), Times::default());
        timer.note(us(1_000));
        let since = timer.now().since(&before);
        assert_eq!((since.count(), since.sum()), (1, us(1_000)));
        assert!(since.quantile(500) > Some(us(512)));
    }
}
