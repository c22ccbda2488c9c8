//! What a leader does unasked, for the subject without a server: it remembers when the writer of
//! each run was heard last, and asks for what comes due while time goes by.

use std::collections::BTreeMap;
use std::time::Duration;

use everwire_core::command::{Control, Expire, Fire};
use everwire_core::limits::LEASE_DEFAULT;
use everwire_core::row::{Row, RowKey, RunRow, RunState, SessionKey};
use everwire_core::{Offset, RunId, Timestamp};

use crate::rules::Rows;

/// The memory of a leader.
#[derive(Default)]
pub(crate) struct Leader {
    heard: BTreeMap<(SessionKey, RunId), Timestamp>,
}

impl Leader {
    /// The writer of a run has shown a sign of life.
    pub(crate) fn heard(&mut self, session: SessionKey, run: RunId, at: Timestamp) {
        self.heard.insert((session, run), at);
    }

    /// The shard speaks rules that know leases: each running run has a full one from now.
    pub(crate) fn take_office(&mut self, rows: &Rows, now: Timestamp) {
        let runs = rows.0.keys().filter_map(|key| match key {
            RowKey::LiveRun(session, run) => Some((*session, run.clone())),
            _ => None,
        });
        self.heard = runs.map(|run| (run, now)).collect();
    }

    /// What comes first of all that is due by then, and when.
    pub(crate) fn first_due(&self, rows: &Rows, by: Timestamp) -> Option<(Timestamp, Control)> {
        let all = rows.0.iter();
        let all = all.filter(|(key, _)| key.session().is_some_and(|of| !is_frozen(rows, of)));
        let due = all.filter_map(|(key, row)| match (key, row) {
            (RowKey::Timer(session, due, kind), Row::Timer(timer)) => {
                let fire = Fire {
                    session: *session,
                    due: *due,
                    kind: *kind,
                    guard: timer.guard,
                };
                Some((*due, Control::Fire(fire)))
            },
            (RowKey::LiveRun(session, run), Row::Index) => self.lease(rows, *session, run),
            _ => None,
        });
        let due = due.filter(|(due, _)| *due <= by);
        due.min_by_key(|(due, _)| *due)
    }

    /// When the lease of a run ends, and what to ask for then.
    fn lease(&self, rows: &Rows, session: SessionKey, run: &RunId) -> Option<(Timestamp, Control)> {
        let row = match rows.0.get(&RowKey::Run(session, run.clone()))? {
            Row::Run(row) if row.state == RunState::Running => row,
            _ => return None,
        };
        let epoch = RowKey::Epoch(session, run.clone(), row.run_epoch);
        let last_offset = match rows.0.get(&epoch) {
            Some(Row::Epoch(epoch)) => epoch.last_offset,
            _ => Offset::ZERO,
        };
        let heard = self.heard.get(&(session, run.clone()))?;
        let expire = Expire {
            session,
            run: run.clone(),
            run_epoch: row.run_epoch,
            last_offset,
        };
        Some((heard.plus(length(row)), Control::Expire(expire)))
    }
}

fn length(run: &RunRow) -> Duration {
    match run.lease_ms {
        // Granted by rules that knew none.
        0 => LEASE_DEFAULT,
        ms => Duration::from_millis(ms.into()),
    }
}

/// A frozen session is asked for nothing until it goes on.
fn is_frozen(rows: &Rows, session: SessionKey) -> bool {
    match rows.0.get(&RowKey::Head(session)) {
        Some(Row::Head(head)) => head.frozen.is_some(),
        _ => true,
    }
}
