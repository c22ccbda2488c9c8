//! The deadlines of a shard that its leader has in view (RULES 5). The rows are the truth; this
//! is the leader's memory of those that come soon. What it forgets, or has twice, does no harm:
//! a timer fires only if its row stands.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use everwire_core::Timestamp;
use everwire_core::command::Fire;
use everwire_core::limits::TIMERS_AHEAD;
use everwire_core::row::{Row, RowKey, SessionKey, TimerKind, TimerRow};

/// Nothing while this node does not lead the shard.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    ahead: Mutex<Option<Ahead>>,
}

/// Timers that are due up to some moment.
#[derive(Debug, Default)]
struct Ahead {
    until: Timestamp,
    /// By the moment; the value is the guard.
    due: BTreeMap<(Timestamp, SessionKey, TimerKind), u64>,
}

impl Timers {
    fn lock(&self) -> MutexGuard<'_, Option<Ahead>> {
        self.ahead.lock().expect("no panic happens under this lock")
    }

    /// From here on what is applied is followed. Says up to which moment the disk must be read
    /// once more, if it must: a leader in office reads it again before its view ends.
    pub(crate) fn look_ahead(&self, now: Timestamp) -> Option<Timestamp> {
        let mut ahead = self.lock();
        let enough = now.plus(TIMERS_AHEAD / 2);
        if ahead.as_ref().is_some_and(|ahead| ahead.until >= enough) {
            return None;
        }
        let until = now.plus(TIMERS_AHEAD);
        ahead.get_or_insert_default().until = until;
        Some(until)
    }

    /// This node does not lead any more.
    pub(crate) fn close(&self) {
        *self.lock() = None;
    }

    /// Takes what the disk had. What was applied since is newer.
    pub(crate) fn found(&self, timers: Vec<Fire>) {
        if let Some(ahead) = &mut *self.lock() {
            for timer in timers {
                let key = (timer.due, timer.session, timer.kind);
                ahead.due.entry(key).or_insert(timer.guard);
            }
        }
    }

    /// Follows what is applied.
    pub(crate) fn applied(&self, rows: &BTreeMap<RowKey, Option<Row>>) {
        let mut ahead = self.lock();
        let Some(ahead) = &mut *ahead else {
            return;
        };
        for (key, row) in rows {
            let RowKey::Timer(session, due, kind) = key else {
                continue;
            };
            let key = (*due, *session, *kind);
            match row {
                Some(Row::Timer(TimerRow { guard, .. })) if *due <= ahead.until => {
                    ahead.due.insert(key, *guard);
                },
                _ => {
                    ahead.due.remove(&key);
                },
            }
        }
    }

    /// Takes the timers that have come, the oldest first, at most `limit`. Each is given once;
    /// one that does not fire after all is found again on the disk.
    pub(crate) fn take_due(&self, now: Timestamp, limit: usize) -> Vec<Fire> {
        let mut ahead = self.lock();
        let Some(ahead) = &mut *ahead else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        while taken.len() < limit
            && let Some(first) = ahead.due.first_entry()
            && first.key().0 <= now
        {
            let ((due, session, kind), guard) = first.remove_entry();
            taken.push(Fire {
                session,
                due,
                kind,
                guard,
            });
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everwire_core::{SessionNo, Slot};

    fn timer(number: u64, due: u64, guard: u64) -> Fire {
        Fire {
            session: SessionKey {
                slot: Slot::new(7).unwrap(),
                session_no: SessionNo(number),
            },
            due: Timestamp(due),
            kind: TimerKind::StaleKeys,
            guard,
        }
    }

    fn applied(timers: &Timers, timer: Fire, stands: bool) {
        let key = RowKey::Timer(timer.session, timer.due, timer.kind);
        let row = Row::Timer(TimerRow {
            guard: timer.guard,
            run: None,
            approval: None,
        });
        timers.applied(&BTreeMap::from([(key, stands.then_some(row))]));
    }

    #[test]
    fn a_leader_gives_each_timer_once_when_it_has_come() {
        let timers = Timers::default();
        applied(&timers, timer(1, 5, 0), true);
        assert_eq!(timers.take_due(Timestamp(9), 9), [], "it does not lead");
        let until = timers.look_ahead(Timestamp(0)).unwrap();
        assert_eq!(timers.look_ahead(Timestamp(1)), None);
        timers.found(vec![timer(1, 5, 0), timer(2, 3, 0), timer(3, 8, 0)]);
        // Applied while the disk was read, or after it.
        applied(&timers, timer(2, 3, 1), true);
        timers.found(vec![timer(2, 3, 0)]);
        applied(&timers, timer(3, 8, 0), false);
        applied(&timers, timer(4, until.0 + 1, 0), true);
        assert_eq!(timers.take_due(Timestamp(2), 9), []);
        assert_eq!(timers.take_due(Timestamp(9), 1), [timer(2, 3, 1)]);
        assert_eq!(timers.take_due(Timestamp(9), 9), [timer(1, 5, 0)]);
        assert_eq!(
            timers.take_due(Timestamp(u64::MAX), 9),
            [],
            "beyond the view"
        );
        // The view moves on, and what it did not hold is on the disk.
        assert!(timers.look_ahead(Timestamp(until.0)).unwrap() > until);
        timers.close();
        timers.found(vec![timer(1, 5, 0)]);
        assert_eq!(timers.take_due(Timestamp(9), 9), []);
    }
}
