//! The right of a run's writer to be silent for a while, and what follows when it was for longer.
//!
//! How long somebody was silent is a matter of the leader's own clock and memory (RULES 6, 8):
//! what goes into the log is only that a lease has ended, and only if nothing has moved since.

use everwire_core::command::Expire;
use everwire_core::event::{Body, Draft};
use everwire_core::limits::ORPHAN_LIMIT;
use everwire_core::row::{HeadRow, Row, RowKey, RunRow, RunState, SessionKey, TimerKind, TimerRow};
use everwire_core::{Code, Lease, Offset, Outcome, Refusal, RunEpoch, RunId};

use super::lookup::{Caller, Session};
use super::overlay::Step;
use super::seal::{End, server_stamp};
use super::txn::ViewError;
use super::{Stop, publish, run, timer};

/// Why a run has failed whose writer never came back.
pub(super) const LOST: &str = "lost";

/// The lease that a grant writes down; 0 where the shard's rules know none.
pub(super) fn granted_ms(step: &Step<'_>, asked: Option<Lease>) -> u32 {
    if step.rules < 2 {
        return 0;
    }
    asked.unwrap_or(Lease::DEFAULT).ms()
}

/// A sign of life, and how far the writer has read: tells that it has seen a stop.
pub(super) fn heartbeat(
    step: &mut Step<'_>,
    caller: Caller,
    id: &RunId,
    run_epoch: RunEpoch,
    observed_through: Option<Offset>,
) -> Result<Outcome, Stop> {
    let mut session = Session::existing(step, caller)?;
    let mut row = session.run(id)?.ok_or_else(run::unknown)?;
    let epoch_key = RowKey::Epoch(session.key, id.clone(), run_epoch);
    let epoch = session.step.epoch(&epoch_key)?;
    publish::check_writer(&session, &row, epoch.as_ref())?;
    if observed_through.is_some_and(|through| through > session.head.tail) {
        let message = "nobody has seen what is not there yet";
        return Err(Refusal::new(Code::Malformed, message).into());
    }
    publish::check_current(run_epoch, &row, epoch.as_ref())?;
    let session_epoch = session.epoch();
    if let (Some(signal_offset), Some(through)) = (row.unobserved, observed_through)
        && through >= signal_offset
    {
        let stamp = server_stamp(id, &row);
        let body = Body::SignalObserved { signal_offset };
        let offset = session.append(Some(stamp), Draft::new(body));
        row.unobserved = None;
        let state = row.state;
        let key = session.run_key(id);
        session.step.put(key, Row::Run(row));
        session.save();
        return Ok(Outcome::Renewed {
            session_epoch,
            state,
            observed: Some(offset),
        });
    }
    if let Some(refusal) = run::refuse_terminal(&row) {
        return Err(refusal.into());
    }
    publish::check_held(&row)?;
    Ok(Outcome::Renewed {
        session_epoch,
        state: row.state,
        observed: None,
    })
}

/// The leader has seen no sign of life for a whole lease: the run is orphaned, if that is still
/// what the leader saw.
pub(super) fn expire(step: &mut Step<'_>, expire: &Expire) -> Result<(), ViewError> {
    let head = step.head(&RowKey::Head(expire.session))?;
    // A frozen session keeps its leases; they are met when it goes on.
    let Some(head) = head.filter(|head| head.frozen.is_none()) else {
        return Ok(());
    };
    let run_key = RowKey::Run(expire.session, expire.run.clone());
    let Some(mut run) = step.run(&run_key)? else {
        return Ok(());
    };
    let epoch_key = RowKey::Epoch(expire.session, expire.run.clone(), expire.run_epoch);
    let last_offset = step.epoch(&epoch_key)?.map(|epoch| epoch.last_offset);
    let moved = run.state != RunState::Running
        || run.run_epoch != expire.run_epoch
        || last_offset != Some(expire.last_offset);
    if moved {
        return Ok(());
    }
    let mut session = Session::of_server(step, expire.session, head);
    let stamp = server_stamp(&expire.run, &run);
    let offset = session.append(Some(stamp), Draft::new(Body::RunOrphaned));
    let due = session.step.time.plus(ORPHAN_LIMIT);
    let timer = TimerRow {
        guard: offset.get(),
        run: Some(expire.run.clone()),
        approval: None,
    };
    let kind = TimerKind::OrphanLimit;
    run.lost_at = Some(timer::set(session.step, session.key, kind, due, timer)?);
    run.state = RunState::Orphaned;
    session.step.put(run_key, Row::Run(run));
    session.save();
    Ok(())
}

/// Nobody has claimed an orphaned run for too long: it has failed. Its timer is gone already.
pub(super) fn give_up(
    step: &mut Step<'_>,
    session: SessionKey,
    head: HeadRow,
    id: RunId,
) -> Result<(), ViewError> {
    let row = step.run(&RowKey::Run(session, id.clone()))?;
    let row = row.filter(|row| row.state == RunState::Orphaned);
    let mut row = row.ok_or_else(|| ViewError(format!("{id} has a deadline, and no orphan")))?;
    row.lost_at = None;
    let mut session = Session::of_server(step, session, head);
    let body = Body::RunFailed {
        reason: LOST.to_owned(),
    };
    let at = session.append(Some(server_stamp(&id, &row)), Draft::new(body));
    let state = RunState::Failed;
    session.end_run(id, row, End { state, at })?;
    session.save();
    Ok(())
}

/// What a claim takes over: an orphan has a writer again. One that waits goes on waiting.
pub(super) fn adopt(session: &mut Session<'_, '_>, row: &mut RunRow) {
    if row.state == RunState::Orphaned {
        row.state = RunState::Running;
    }
    if let Some(lost_at) = row.lost_at.take() {
        let timer = RowKey::Timer(session.key, lost_at, TimerKind::OrphanLimit);
        session.step.remove(timer);
    }
}
