//! How a room tells a connection that something waits for it: a bit, never bytes.
//!
//! Comes in: marks from rooms and orders from the drain, on any thread. Goes out: to the one
//! task of the connection. Never: a queue. A thousand marks of one room are one bit.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// Locks a mutex whose holders cannot leave it half-changed: a panic of another holder is that
/// holder's own end.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A set of the places 0 to 255 of one connection's attachments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SlotSet {
    low: u128,
    high: u128,
}

impl SlotSet {
    /// Adds a place.
    pub(crate) fn insert(&mut self, slot: u8) {
        *self.half(slot) |= bit(slot);
    }

    /// Takes a place out.
    pub(crate) fn remove(&mut self, slot: u8) {
        *self.half(slot) &= !bit(slot);
    }

    /// Adds all places of another set.
    pub(crate) fn merge(&mut self, other: Self) {
        self.low |= other.low;
        self.high |= other.high;
    }

    /// The first place at or after `slot`, going around: who is served next.
    pub(crate) fn next_from(&self, slot: u8) -> Option<u8> {
        let mut at_or_after = *self;
        if slot >= 128 {
            at_or_after.low = 0;
            at_or_after.high &= u128::MAX << (slot - 128);
        } else {
            at_or_after.low &= u128::MAX << slot;
        }
        at_or_after.first().or_else(|| self.first())
    }

    fn first(&self) -> Option<u8> {
        let (half, base) = match (self.low, self.high) {
            (0, 0) => return None,
            (0, high) => (high, 128),
            (low, _) => (low, 0),
        };
        u8::try_from(half.trailing_zeros())
            .ok()
            .map(|place| base + place)
    }

    fn half(&mut self, slot: u8) -> &mut u128 {
        if slot < 128 {
            &mut self.low
        } else {
            &mut self.high
        }
    }
}

fn bit(slot: u8) -> u128 {
    1 << (slot & 127)
}

/// What the draining edge tells a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Tell the client to move within so many milliseconds.
    pub(crate) moving_ms: Option<u32>,
    /// Say bye.
    pub(crate) bye: bool,
}

/// What waits for a connection, and the bell.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    waiting: Mutex<(SlotSet, Orders)>,
    bell: Notify,
}

impl Wake {
    /// The attachment at this place has something to look at.
    pub(crate) fn mark(&self, slot: u8) {
        locked(&self.waiting).0.insert(slot);
        self.bell.notify_one();
    }

    /// Tells the client to connect elsewhere soon.
    pub(crate) fn order_moving(&self, within_ms: u32) {
        locked(&self.waiting).1.moving_ms = Some(within_ms);
        self.bell.notify_one();
    }

    /// Ends the connection.
    pub(crate) fn order_bye(&self) {
        locked(&self.waiting).1.bye = true;
        self.bell.notify_one();
    }

    /// Takes what has gathered.
    pub(crate) fn take(&self) -> (SlotSet, Orders) {
        std::mem::take(&mut *locked(&self.waiting))
    }

    /// Waits for the bell. One task at a time. Cancel-safe: a bell that rang is kept.
    pub(crate) async fn woken(&self) {
        self.bell.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_served_in_turn() {
        let mut set = SlotSet::default();
        for slot in [0, 5, 127, 128, 200, 255] {
            set.insert(slot);
        }
        let mut served = Vec::new();
        let mut turn = 6;
        for _ in 0..6 {
            let slot = set.next_from(turn).unwrap();
            served.push(slot);
            turn = slot.wrapping_add(1);
        }
        assert_eq!(served, [127, 128, 200, 255, 0, 5]);
        for slot in served {
            set.remove(slot);
        }
        assert_eq!(set.next_from(9), None);
    }

    #[tokio::test]
    async fn marks_before_the_wait_are_not_lost() {
        let wake = Wake::default();
        wake.mark(3);
        wake.mark(3);
        wake.order_moving(7);
        wake.woken().await;
        let (set, orders) = wake.take();
        assert_eq!(set.next_from(0), Some(3));
        assert_eq!(orders.moving_ms, Some(7));
        assert_eq!(wake.take(), (SlotSet::default(), Orders::default()));
    }
}
