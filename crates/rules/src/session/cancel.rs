//! A stop: committed at C, it ends its target's live runs there. The log refuses every later
//! output of them.

use everwire_core::command::SignalOutcome;
use everwire_core::control::{Guard, InputRef};
use everwire_core::event::{Body, Draft, RunStamp};
use everwire_core::row::{EpilogueRow, EpochRow, Row, RowKey, RunRow, RunState, TombstoneRow};
use everwire_core::{
    Cancel, Code, Details, InputId, Key, Offset, Outcome, ParticipantId, Refusal, RunId, Seq,
    Target,
};

use super::Stop;
use super::keys::Purpose;
use super::lookup::{Caller, Session};
use super::overlay::Step;
use super::seal::{End, server_stamp};
use super::txn::ViewError;

/// What a signal to runs comes to.
pub(super) enum Aim {
    /// These runs end, perhaps none; in the order of their start.
    Hit(Vec<(RunId, RunRow)>),
    /// Nothing runs for this input yet: what starts for it is born cancelled.
    Bury(ParticipantId, InputId),
    /// Nothing is to be done.
    Over(SignalOutcome),
}

/// Cancels what the target means at this moment.
pub(super) fn cancel(
    step: &mut Step<'_>,
    caller: Caller,
    cancel: Cancel,
    key: Key,
    body_hash: u128,
) -> Result<Outcome, Stop> {
    let mut session = Session::existing(step, caller)?;
    let session_epoch = session.epoch();
    let answer = |outcome, duplicate| Outcome::Signalled {
        session_epoch,
        outcome,
        duplicate,
    };
    let purpose = Purpose::Cancel(&cancel.target, body_hash);
    if let Some(row) = session.recall(&key, &purpose)? {
        let offset = row.offset;
        return Ok(answer(SignalOutcome::Applied { offset }, true));
    }
    let aim = match aim(&mut session, &cancel)? {
        Aim::Over(outcome) => return Ok(answer(outcome, false)),
        aim => aim,
    };
    session.count_people()?;
    if let Aim::Bury(author, input) = &aim {
        session.room_for_tombstone(author, input)?;
    }
    let offset = announce(&mut session, &cancel)?;
    session.remember(key, &purpose, offset, None)?;
    match aim {
        Aim::Hit(runs) => {
            for (id, run) in runs {
                stop(&mut session, id, run, offset, cancel.grace_ms)?;
            }
        },
        Aim::Bury(author, input) => session.bury(author, input, offset),
        Aim::Over(_) => {},
    }
    session.save();
    Ok(answer(SignalOutcome::Applied { offset }, false))
}

/// Finds what the target means at this moment.
pub(super) fn aim(session: &mut Session<'_, '_>, cancel: &Cancel) -> Result<Aim, Stop> {
    match &cancel.target {
        Target::Run(id) => aim_at_run(session, id, &cancel.guard),
        Target::Subtree(root) => aim_at_subtree(session, root, &cancel.guard),
        Target::Input(input) => aim_at_input(session, input, &cancel.guard),
        Target::Session => Ok(Aim::Hit(live(session, &cancel.guard)?)),
    }
}

/// The live runs that had started by then.
fn live(session: &mut Session<'_, '_>, guard: &Guard) -> Result<Vec<(RunId, RunRow)>, Stop> {
    let mut live = session.live_runs()?;
    live.retain(|(_, run)| guard.as_of.is_none_or(|seen| run.started <= seen));
    Ok(live)
}

fn aim_at_run(session: &mut Session<'_, '_>, id: &RunId, guard: &Guard) -> Result<Aim, Stop> {
    let Some(run) = session.run(id)? else {
        return Ok(Aim::Over(SignalOutcome::UnknownRun));
    };
    if run.state.is_terminal() {
        return Ok(Aim::Over(over(&run)));
    }
    expect(&run, guard)?;
    Ok(Aim::Hit(vec![(id.clone(), run)]))
}

/// The root and whatever works for it, down to the last: each lives in this session, and none is
/// its own ancestor, because a parent is there before its child.
fn aim_at_subtree(session: &mut Session<'_, '_>, root: &RunId, guard: &Guard) -> Result<Aim, Stop> {
    let Some(row) = session.run(root)? else {
        return Ok(Aim::Over(SignalOutcome::UnknownRun));
    };
    expect(&row, guard)?;
    let mut hit = Vec::new();
    for (id, run) in live(session, guard)? {
        if id == *root || works_for(session, &run, root)? {
            hit.push((id, run));
        }
    }
    if hit.is_empty() && row.state.is_terminal() {
        return Ok(Aim::Over(over(&row)));
    }
    Ok(Aim::Hit(hit))
}

/// Whether a run stands somewhere below another.
fn works_for(session: &mut Session<'_, '_>, run: &RunRow, root: &RunId) -> Result<bool, Stop> {
    let mut above = run.parent.clone();
    while let Some(id) = above {
        if id == *root {
            return Ok(true);
        }
        let row = session.run(&id)?;
        let row = row.ok_or_else(|| ViewError(format!("no row for {id}, which has children")))?;
        above = row.parent;
    }
    Ok(false)
}

/// The runs that answer an input; if none does yet, those that will.
fn aim_at_input(
    session: &mut Session<'_, '_>,
    input: &InputRef,
    guard: &Guard,
) -> Result<Aim, Stop> {
    let author = input.author.as_ref().unwrap_or(&session.actor.participant);
    let (author, id) = (author.clone(), input.input.clone());
    let meant = InputRef {
        input: id.clone(),
        author: Some(author.clone()),
    };
    let mut hit = live(session, guard)?;
    hit.retain(|(_, run)| run.input.as_ref().is_some_and(|of| of.may_be(&meant)));
    if !hit.is_empty() {
        return Ok(Aim::Hit(hit));
    }
    let row_key = RowKey::Input(session.key, author.clone(), id.clone());
    let last = session.step.input(&row_key)?.and_then(|row| row.run);
    if let Some(last) = last
        && let Some(run) = session.run(&last)?
        && run.state.is_terminal()
    {
        return Ok(Aim::Over(over(&run)));
    }
    Ok(Aim::Bury(author, id))
}

fn over(run: &RunRow) -> SignalOutcome {
    SignalOutcome::AlreadyTerminal {
        state: run.state,
        // Terminal rows always hold where they ended.
        offset: run.ended.unwrap_or(Offset::ZERO),
    }
}

/// Refuses a stop that comes too late to mean this run.
fn expect(run: &RunRow, guard: &Guard) -> Result<(), Refusal> {
    let refuse = |message: &str| {
        let details = Details {
            state: Some(run.state.as_str()),
            ..Details::default()
        };
        Err(Refusal::with(Code::WrongState, message, details))
    };
    if guard.state.is_some_and(|state| state != run.state) {
        return refuse("the run is in another state than was expected");
    }
    if guard.as_of.is_some_and(|seen| run.started > seen) {
        return refuse("the run started after what was seen");
    }
    Ok(())
}

/// The stamp of a signal: of the run that it names.
pub(super) fn stamp_of(
    session: &mut Session<'_, '_>,
    target: &Target,
) -> Result<Option<RunStamp>, Stop> {
    let Some(id) = target.run() else {
        return Ok(None);
    };
    let run = session.run(id)?;
    Ok(run.map(|run| server_stamp(id, &run)))
}

/// Commits the signal itself: C.
fn announce(session: &mut Session<'_, '_>, cancel: &Cancel) -> Result<Offset, Stop> {
    let stamp = stamp_of(session, &cancel.target)?;
    let mut target = cancel.target.clone();
    if let Target::Input(input) = &mut target {
        // Readers cannot know whose "own" was meant.
        let own = || session.actor.participant.clone();
        input.author.get_or_insert_with(own);
    }
    let signal = Body::SignalCancel {
        target,
        grace_ms: cancel.grace_ms,
    };
    Ok(session.append(stamp, Draft::new(signal)))
}

/// Ends one run at C.
fn stop(
    session: &mut Session<'_, '_>,
    id: RunId,
    mut run: RunRow,
    cancel_offset: Offset,
    grace_ms: Option<u32>,
) -> Result<(), Stop> {
    let stamp = server_stamp(&id, &run);
    let cancelled = Body::RunCancelled { cancel_offset };
    session.append(Some(stamp), Draft::new(cancelled));
    if session.step.rules >= 2 {
        run.unobserved = Some(cancel_offset);
    }
    if let Some(grace) = grace_ms {
        let until = session.step.time.0.saturating_add(u64::from(grace));
        grant_epilogue(session, &id, &mut run, cancel_offset, until);
    }
    let end = End {
        state: RunState::Cancelled,
        at: cancel_offset,
    };
    Ok(session.end_run(id, run, end)?)
}

/// What the writer may still append stands under an epoch of its own, which begins at seq 1: so
/// nothing that was under way before the stop can be taken for it.
fn grant_epilogue(
    session: &mut Session<'_, '_>,
    id: &RunId,
    run: &mut RunRow,
    granted: Offset,
    until: u64,
) {
    let run_epoch = run.run_epoch.next();
    run.epilogue = Some(EpilogueRow {
        run_epoch,
        until: everwire_core::Timestamp(until),
    });
    let epoch = EpochRow {
        writer: run.writer.clone(),
        granted,
        last_seq: Seq::ZERO,
        last_offset: Offset::ZERO,
        batches: 0,
    };
    let key = RowKey::Epoch(session.key, id.clone(), run_epoch);
    session.step.put(key, Row::Epoch(epoch));
}

/// The input that a new run answers was stopped before it began: it ends where it was stopped, by
/// whoever stopped it.
pub(super) fn stillborn(
    session: &mut Session<'_, '_>,
    id: RunId,
    run: RunRow,
    stopped: TombstoneRow,
) -> Result<(), Stop> {
    let starter = std::mem::replace(&mut session.actor, stopped.by);
    stop(session, id, run, stopped.cancel_offset, None)?;
    session.actor = starter;
    Ok(())
}
