//! How many bytes stand in which part of a log, coarsely: enough to bound what is kept for a
//! follower that is away.
//!
//! Entries are weighed in stretches of about [`STRETCH_BYTES`]; inside a stretch they count as
//! equal. So what is told is off by a stretch at each end, whatever the log's length.

use std::collections::VecDeque;

/// A stretch ends when it holds so much, bytes.
const STRETCH_BYTES: u64 = 1 << 20;
/// Stretches kept; above it, pairs become one.
const STRETCHES_MAX: usize = 8 << 10;

/// What an entry weighs on disk besides its payload: key, header, term and node.
pub(crate) const ENTRY_BYTES: u64 = 33;

#[derive(Clone, Copy, Debug)]
struct Stretch {
    first: u64,
    /// The index behind its last entry.
    end: u64,
    bytes: u64,
}

/// See the module. Stretches are contiguous and in order.
#[derive(Default)]
pub(crate) struct Weights {
    stretches: VecDeque<Stretch>,
    total: u64,
}

/// The share of `bytes` that `part` of `whole` has.
fn share(bytes: u64, part: u64, whole: u64) -> u64 {
    let share = u128::from(bytes) * u128::from(part) / u128::from(whole.max(1));
    u64::try_from(share).unwrap_or(u64::MAX)
}

impl Weights {
    /// All bytes.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Entries `first..end` of unknown weights follow; together they have so many bytes.
    pub(crate) fn add_many(&mut self, first: u64, end: u64, bytes: u64) {
        let count = end.saturating_sub(first);
        let pieces = (bytes / STRETCH_BYTES + 1).min(count);
        let mut from = first;
        for piece in 1..=pieces {
            let to = first + share(count, piece, pieces);
            let stretch = Stretch {
                first: from,
                end: to,
                bytes: share(bytes, to - from, count),
            };
            self.total += stretch.bytes;
            self.stretches.push_back(stretch);
            from = to;
        }
        self.thin();
    }

    /// The next entry follows.
    pub(crate) fn add(&mut self, index: u64, bytes: usize) {
        let bytes = ENTRY_BYTES + u64::try_from(bytes).unwrap_or(u64::MAX / 2);
        self.total += bytes;
        match self.stretches.back_mut() {
            Some(last) if last.bytes < STRETCH_BYTES && last.end == index => {
                last.end += 1;
                last.bytes += bytes;
            },
            _ => {
                let end = index + 1;
                self.stretches.push_back(Stretch {
                    first: index,
                    end,
                    bytes,
                });
                self.thin();
            },
        }
    }

    /// Entries from `index` on are gone.
    pub(crate) fn truncate(&mut self, index: u64) {
        while let Some(mut last) = self.stretches.pop_back() {
            self.total -= last.bytes;
            if last.first < index {
                let end = index.min(last.end);
                last.bytes = share(last.bytes, end - last.first, last.end - last.first);
                last.end = end;
                self.total += last.bytes;
                self.stretches.push_back(last);
                return;
            }
        }
    }

    /// Entries up to `index` are gone.
    pub(crate) fn purge(&mut self, index: u64) {
        while let Some(mut first) = self.stretches.pop_front() {
            self.total -= first.bytes;
            if first.end > index + 1 {
                let from = first.first.max(index + 1);
                first.bytes = share(first.bytes, first.end - from, first.end - first.first);
                first.first = from;
                self.total += first.bytes;
                self.stretches.push_front(first);
                return;
            }
        }
    }

    /// The last index that must go so that at most `keep` bytes stay; `None`: nothing must.
    pub(crate) fn beyond(&self, keep: u64) -> Option<u64> {
        let mut over = self.total.checked_sub(keep).filter(|over| *over > 0)?;
        for stretch in &self.stretches {
            if over <= stretch.bytes {
                let count = stretch.end - stretch.first;
                // Rounded up: too little would stay too much.
                let gone = share(over, count, stretch.bytes) + 1;
                return Some(stretch.first + gone.min(count) - 1);
            }
            over -= stretch.bytes;
        }
        self.stretches.back().map(|last| last.end - 1)
    }

    /// Makes pairs one when there are too many.
    fn thin(&mut self) {
        if self.stretches.len() <= STRETCHES_MAX {
            return;
        }
        let mut all = std::mem::take(&mut self.stretches).into_iter();
        while let Some(mut one) = all.next() {
            if let Some(two) = all.next() {
                one.end = two.end;
                one.bytes += two.bytes;
            }
            self.stretches.push_back(one);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sum(weights: &Weights) -> u64 {
        weights.stretches.iter().map(|stretch| stretch.bytes).sum()
    }

    #[test]
    fn small_entries_are_weighed_together() {
        let mut weights = Weights::default();
        for index in 1..=1000 {
            weights.add(index, 100);
        }
        assert_eq!(weights.total(), 133_000);
        assert_eq!(weights.stretches.len(), 1);
        assert_eq!(weights.beyond(133_000), None);
        assert_eq!(weights.beyond(0), Some(1000));
        let half = weights.beyond(66_500).unwrap();
        assert!((499..=502).contains(&half), "{half}");
        weights.purge(half);
        assert!(weights.total() <= 66_500);
        weights.truncate(half + 1);
        assert_eq!(weights.total(), 0);
        assert_eq!(weights.beyond(0), None);
    }

    #[test]
    fn four_gigabytes_are_few_stretches() {
        let mut weights = Weights::default();
        weights.add_many(1, 4_000_000, 4 << 30);
        assert_eq!(weights.total() >> 20, 4095);
        for index in 4_000_000..4_040_000 {
            weights.add(index, 1 << 20);
        }
        assert!(weights.stretches.len() <= STRETCHES_MAX);
        let upto = weights.beyond(4 << 30).unwrap();
        weights.purge(upto);
        assert!(weights.total() <= 4 << 30 && weights.total() > 4 << 29);
    }

    proptest! {
        /// Whatever happens to a log: the sum is that of its parts, and close to the truth.
        #[test]
        fn the_sum_is_close(
            steps in proptest::collection::vec((0..10_u8, 0..60_u64, 0..300_000_usize), 1..200)
        ) {
            let mut weights = Weights::default();
            let mut log: VecDeque<(u64, u64)> = VecDeque::new();
            let mut next = 1;
            for (what, count, bytes) in steps {
                let first = log.front().map_or(next, |(index, _)| *index);
                match what {
                    0 => {
                        let from = next.saturating_sub(count).max(first);
                        weights.truncate(from);
                        log.retain(|(index, _)| *index < from);
                        next = from;
                    },
                    1 => {
                        let upto = (first + count).min(next) - 1;
                        weights.purge(upto);
                        log.retain(|(index, _)| *index > upto);
                    },
                    _ => {
                        weights.add(next, bytes);
                        log.push_back((next, ENTRY_BYTES + bytes as u64));
                        next += 1;
                    },
                }
                prop_assert_eq!(weights.total(), sum(&weights));
            }
            let truth: u64 = log.iter().map(|(_, bytes)| bytes).sum();
            let off = truth.abs_diff(weights.total());
            prop_assert!(off <= 200 * 2 * STRETCH_BYTES, "{truth} {}", weights.total());
            if let Some(upto) = weights.beyond(truth / 2) {
                weights.purge(upto);
                prop_assert!(weights.total() <= truth / 2 + 1);
            }
        }
    }
}
