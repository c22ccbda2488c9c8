//! Seeded numbers. Every part of the world has dice of its own, so that one more throw in one
//! part does not change what befalls the others.

use std::sync::atomic::{AtomicU64, Ordering};

use everwire_core::Random;

/// A source of seeded numbers (splitmix64).
#[derive(Debug)]
pub struct Dice(AtomicU64);

impl Dice {
    /// The dice of the part `name` under a seed.
    pub fn new(seed: u64, name: &str) -> Self {
        let mut state = seed;
        for byte in name.bytes() {
            state = mix(state ^ u64::from(byte)).wrapping_add(seed);
        }
        Self(AtomicU64::new(state))
    }

    /// A number from `range`, its end not counted.
    pub fn pick(&self, range: std::ops::Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start).max(1)
    }

    /// True in `percent` of all throws.
    pub fn chance(&self, percent: u64) -> bool {
        self.pick(0..100) < percent
    }
}

impl Random for Dice {
    fn next(&self) -> u64 {
        let state = self.0.load(Ordering::Relaxed);
        let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.0.store(state, Ordering::Relaxed);
        mix(state)
    }
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
