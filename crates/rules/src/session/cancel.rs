//! A stop: committed at C, it ends the run there. The log refuses every later output of it.

use everwire_core::command::CancelOutcome;
use everwire_core::event::{Body, Draft};
use everwire_core::row::RunState;
use everwire_core::{Key, Offset, Outcome, RunId};

use super::Stop;
use super::keys::Purpose;
use super::lookup::{Caller, Session};
use super::overlay::Step;
use super::seal::{End, server_stamp};

/// Cancels a run, if it is live.
pub(super) fn cancel(
    step: &mut Step<'_>,
    caller: Caller,
    id: RunId,
    key: Key,
    body_hash: u128,
) -> Result<Outcome, Stop> {
    let mut session = Session::existing(step, caller)?;
    let session_epoch = session.epoch();
    let answer = |outcome, duplicate| Outcome::Cancelled {
        session_epoch,
        outcome,
        duplicate,
    };
    let purpose = Purpose::Cancel(&id, body_hash);
    if let Some(row) = session.recall(&key, &purpose)? {
        let offset = row.offset;
        return Ok(answer(CancelOutcome::Applied { offset }, true));
    }
    let Some(run) = session.run(&id)? else {
        return Ok(answer(CancelOutcome::UnknownRun, false));
    };
    if run.state.is_terminal() {
        let outcome = CancelOutcome::AlreadyTerminal {
            state: run.state,
            // Terminal rows always hold where they ended.
            offset: run.ended.unwrap_or(Offset::ZERO),
        };
        return Ok(answer(outcome, false));
    }
    session.count_people()?;
    let stamp = server_stamp(&id, &run);
    let signal = Body::SignalCancel { run: id.clone() };
    let offset = session.append(Some(stamp.clone()), Draft::new(signal));
    let cancelled = Body::RunCancelled {
        cancel_offset: offset,
    };
    session.append(Some(stamp), Draft::new(cancelled));
    session.remember(key, &purpose, offset, None)?;
    let end = End {
        state: RunState::Cancelled,
        at: offset,
    };
    session.end_run(id, run, end)?;
    session.save();
    Ok(answer(CancelOutcome::Applied { offset }, false))
}
