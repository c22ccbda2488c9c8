//! Times of single events, and what they come to.

use std::time::Duration;

use tokio::time::Instant;

/// The time from which on events count.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Window {
    from: Instant,
}

impl Window {
    /// What is sent from now on counts.
    pub(crate) fn from_now() -> Self {
        Self {
            from: Instant::now(),
        }
    }

    /// Whether something that was sent then counts.
    pub(crate) fn holds(self, sent: Instant) -> bool {
        sent >= self.from
    }

    /// How long it is open.
    pub(crate) fn elapsed(self) -> Duration {
        self.from.elapsed()
    }
}

/// Of all times exactly: no buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    /// How many there were.
    pub count: usize,
    /// Half of them took no longer.
    pub p50: Duration,
    /// All but a hundredth took no longer.
    pub p99: Duration,
    /// None took longer.
    pub worst: Duration,
}

impl Percentiles {
    /// `None` when there are no times.
    pub fn of(mut times: Vec<Duration>) -> Option<Self> {
        times.sort_unstable();
        let count = times.len();
        let at = |share: usize| {
            let rank = (count * share).div_ceil(1000).max(1);
            times.get(rank - 1).copied()
        };
        Some(Self {
            count,
            p50: at(500)?,
            p99: at(990)?,
            worst: at(1000)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        assert_eq!(Percentiles::of(Vec::new()), None);
        let ms = Duration::from_millis;
        let one = Percentiles::of(vec![ms(7)]).unwrap();
        assert_eq!((one.p50, one.p99, one.worst), (ms(7), ms(7), ms(7)));
        let many = Percentiles::of((1..=1000).rev().map(ms).collect()).unwrap();
        assert_eq!((many.p50, many.p99), (ms(500), ms(990)));
        assert_eq!((many.count, many.worst), (1000, ms(1000)));
    }
}
