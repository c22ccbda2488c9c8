//! How long to wait before the next attempt: exponential, capped, with full jitter.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::Random;
use everwire_core::limits::{BACKOFF_MAX, BACKOFF_MIN};

/// Pauses between attempts. Full jitter: anything from nothing to the bound, so that clients
/// that lost the same node do not come back in step.
pub(crate) struct Backoff {
    random: Arc<dyn Random>,
    step: u32,
}

impl Backoff {
    pub(crate) fn new(random: Arc<dyn Random>) -> Self {
        Self { random, step: 0 }
    }

    /// Something went well: the next pause is short again.
    pub(crate) fn reset(&mut self) {
        self.step = 0;
    }

    /// The next pause.
    pub(crate) fn pause(&mut self) -> Duration {
        let bound = bound(self.step);
        self.step = self.step.saturating_add(1);
        let bound = u64::try_from(bound.as_micros()).unwrap_or(u64::MAX - 1);
        Duration::from_micros(self.random.next() % (bound + 1))
    }
}

/// The longest pause after so many others.
pub(crate) fn bound(step: u32) -> Duration {
    BACKOFF_MIN
        .saturating_mul(1 << step.min(16))
        .min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// The largest remainder for a bound: the pause is the bound itself.
    struct Most(AtomicU64);

    impl Random for Most {
        fn next(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[test]
    fn pauses_grow_to_the_cap_and_fall_back_after_success() {
        let most = Arc::new(Most(AtomicU64::new(0)));
        let random: Arc<dyn Random> = Arc::<Most>::clone(&most);
        let mut backoff = Backoff::new(random);
        let mut bound = BACKOFF_MIN;
        for _ in 0..40 {
            let micros = u64::try_from(bound.as_micros()).unwrap();
            most.0.store(micros, Ordering::Relaxed);
            assert_eq!(backoff.pause(), bound);
            bound = (bound * 2).min(BACKOFF_MAX);
        }
        assert_eq!(bound, BACKOFF_MAX);
        backoff.reset();
        most.0.store(u64::MAX, Ordering::Relaxed);
        assert!(backoff.pause() <= BACKOFF_MIN);
    }
}
