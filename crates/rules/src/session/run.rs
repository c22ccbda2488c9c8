//! Starting and claiming runs: who may write, under which epoch.

use everwire_core::command::StartRun;
use everwire_core::event::{Body, Draft};
use everwire_core::limits::{LIVE_RUNS_MAX, RUN_DEPTH_MAX};
use everwire_core::row::{EpochRow, Row, RowKey, RunRow, RunState};
use everwire_core::{Code, Details, Key, Lease, Offset, Outcome, Refusal, RunEpoch, RunId, Seq};

use super::keys::Purpose;
use super::lookup::{Caller, Session};
use super::overlay::Step;
use super::seal::server_stamp;
use super::{Stop, cancel, lease};

/// Begins a run and grants epoch 1.
pub(super) fn start(step: &mut Step<'_>, caller: Caller, start: StartRun) -> Result<Outcome, Stop> {
    let (mut session, _) = Session::ensured(step, caller)?;
    let purpose = Purpose::Start(&start);
    if let Some(again) = recalled(&mut session, start.key.as_ref(), &purpose)? {
        return Ok(again);
    }
    let id = &start.run;
    if let Some(run) = session.run(id)? {
        return Err(refuse_terminal(&run)
            .unwrap_or_else(|| held(&run, &session))
            .into());
    }
    if session.head.live_runs >= LIVE_RUNS_MAX {
        let message = "the session has too many live runs";
        return Err(too_many(message, LIVE_RUNS_MAX).into());
    }
    let depth = match &start.parent {
        Some(parent) => depth_below(&mut session, parent)?,
        None => 0,
    };
    let stopped = match &start.input {
        Some(input) => session.stopped_before(input)?,
        None => None,
    };
    let writer = session.actor.participant.clone();
    let run = RunRow {
        input: start.input.clone(),
        parent: start.parent.clone(),
        depth,
        lease_ms: lease::granted_ms(session.step, start.lease),
        ..RunRow::started(writer, session.head.tail.next())
    };
    session.head.live_runs += 1;
    let index = RowKey::LiveRun(session.key, id.clone());
    session.step.put(index, Row::Index);
    note_answer(&mut session, &start)?;
    let body = Body::RunStarted {
        input: start.input.clone(),
        parent: start.parent.clone(),
        meta: start.meta.clone(),
    };
    let born = run.clone();
    let granted = grant(&mut session, id, run, body, start.key.clone(), &purpose)?;
    if let Some(stopped) = stopped {
        cancel::stillborn(&mut session, id.clone(), born, stopped)?;
    }
    session.save();
    Ok(granted)
}

/// How many runs stand above a child of this one. Only a live run has children: a stop of its
/// subtree has none left to miss.
fn depth_below(session: &mut Session<'_, '_>, parent: &RunId) -> Result<u32, Stop> {
    let row = session.run(parent)?;
    let row = row.ok_or_else(|| {
        let message = "the session has no run of the parent's id";
        Refusal::new(Code::UnknownRun, message)
    })?;
    match row.state {
        RunState::Running | RunState::Suspended | RunState::Orphaned => {},
        RunState::Cancelled => {
            let details = Details {
                cancel_offset: row.ended,
                ..Details::default()
            };
            let message = "the parent run was cancelled";
            return Err(Refusal::with(Code::ParentFenced, message, details).into());
        },
        RunState::Completed | RunState::Failed => {
            let details = Details {
                state: Some(row.state.as_str()),
                ..Details::default()
            };
            let message = "the parent run has ended";
            return Err(Refusal::with(Code::WrongState, message, details).into());
        },
    }
    let depth = row.depth + 1;
    if depth >= RUN_DEPTH_MAX {
        let details = Details {
            limit: Some(u64::from(RUN_DEPTH_MAX)),
            ..Details::default()
        };
        let message = "the run would stand too deep below its root";
        return Err(Refusal::with(Code::TooLarge, message, details).into());
    }
    Ok(depth)
}

/// Notes at an input which run answers it.
fn note_answer(session: &mut Session<'_, '_>, start: &StartRun) -> Result<(), Stop> {
    let Some(input) = &start.input else {
        return Ok(());
    };
    let Some(author) = &input.author else {
        return Ok(());
    };
    let key = RowKey::Input(session.key, author.clone(), input.input.clone());
    if let Some(mut row) = session.step.input(&key)? {
        row.run = Some(start.run.clone());
        session.step.put(key, Row::Input(row));
    }
    Ok(())
}

/// Takes a live run over and grants the next epoch: to the participant that holds it at any time,
/// to anybody else once it is orphaned.
pub(super) fn claim(
    step: &mut Step<'_>,
    caller: Caller,
    id: &RunId,
    lease: Option<Lease>,
    key: Option<Key>,
) -> Result<Outcome, Stop> {
    let mut session = Session::existing(step, caller)?;
    let purpose = Purpose::Claim(id, lease);
    if let Some(again) = recalled(&mut session, key.as_ref(), &purpose)? {
        return Ok(again);
    }
    let mut run = session.run(id)?.ok_or_else(unknown)?;
    if let Some(refusal) = refuse_terminal(&run) {
        return Err(refusal.into());
    }
    let is_own = run.writer == session.actor.participant;
    if run.state != RunState::Orphaned && !is_own {
        return Err(held(&run, &session).into());
    }
    lease::adopt(&mut session, &mut run);
    run.writer = session.actor.participant.clone();
    run.lease_ms = lease::granted_ms(session.step, lease);
    run.run_epoch = run.run_epoch.next();
    run.epoch_closed = false;
    let granted = grant(&mut session, id, run, Body::RunClaimed, key, &purpose)?;
    session.save();
    Ok(granted)
}

/// Commits a grant: its event, the run, the epoch's own row, the key.
fn grant(
    session: &mut Session<'_, '_>,
    id: &RunId,
    run: RunRow,
    body: Body,
    key: Option<Key>,
    purpose: &Purpose<'_>,
) -> Result<Outcome, Stop> {
    let (run_epoch, lease_ms) = (run.run_epoch, run.lease_ms);
    let stamp = server_stamp(id, &run);
    let offset = session.append(Some(stamp), Draft::new(body));
    if let Some(key) = key {
        session.remember(key, purpose, offset, Some(run_epoch))?;
    }
    let epoch = EpochRow {
        writer: run.writer.clone(),
        granted: offset,
        last_seq: Seq::ZERO,
        last_offset: Offset::ZERO,
        batches: 0,
    };
    let epoch_key = RowKey::Epoch(session.key, id.clone(), run_epoch);
    session.step.put(epoch_key, Row::Epoch(epoch));
    let run_key = session.run_key(id);
    session.step.put(run_key, Row::Run(run));
    Ok(Outcome::RunGranted {
        session_epoch: session.epoch(),
        run_epoch,
        offset,
        lease: Lease::stored(lease_ms),
        duplicate: false,
    })
}

/// The answer that a key gave before, whatever the run is now.
fn recalled(
    session: &mut Session<'_, '_>,
    key: Option<&Key>,
    purpose: &Purpose<'_>,
) -> Result<Option<Outcome>, Stop> {
    let Some(key) = key else { return Ok(None) };
    let Some(row) = session.recall(key, purpose)? else {
        return Ok(None);
    };
    let run = match purpose {
        Purpose::Start(start) => session.run(&start.run)?,
        Purpose::Claim(run, _) => session.run(run)?,
        Purpose::Post(_) | Purpose::Cancel(..) | Purpose::Signal(_) => None,
    };
    Ok(Some(Outcome::RunGranted {
        session_epoch: session.epoch(),
        // Rows of starts and claims always hold it.
        run_epoch: row.run_epoch.unwrap_or(RunEpoch::FIRST),
        offset: row.offset,
        lease: run.and_then(|run| Lease::stored(run.lease_ms)),
        duplicate: true,
    }))
}

/// The refusal of a terminal run: `None` for a live one.
pub(super) fn refuse_terminal(run: &RunRow) -> Option<Refusal> {
    // Terminal rows always hold where they ended.
    let ended = run.ended.unwrap_or(Offset::ZERO);
    let next_epoch = Some(run.run_epoch.next());
    match run.state {
        RunState::Running | RunState::Suspended | RunState::Orphaned => None,
        RunState::Cancelled => {
            let details = Details {
                cancel_offset: Some(ended),
                next_epoch,
                ..Details::default()
            };
            let message = "the run was cancelled";
            Some(Refusal::with(Code::RunFenced, message, details))
        },
        RunState::Completed | RunState::Failed => {
            let details = Details {
                state: Some(run.state.as_str()),
                offset: Some(ended),
                next_epoch,
                ..Details::default()
            };
            let message = format!("the run has {}", past(run.state));
            Some(Refusal::with(Code::RunEnded, message, details))
        },
    }
}

fn past(state: RunState) -> &'static str {
    match state {
        RunState::Completed => "completed",
        RunState::Running
        | RunState::Suspended
        | RunState::Orphaned
        | RunState::Failed
        | RunState::Cancelled => "failed",
    }
}

/// The run is live and held: by somebody else, or by the caller, who should claim.
fn held(run: &RunRow, session: &Session<'_, '_>) -> Refusal {
    let message = if run.state == RunState::Orphaned {
        "the run has lost its writer: claim it to go on".to_owned()
    } else if run.writer == session.actor.participant {
        "the run is live and your own: claim it to go on".to_owned()
    } else {
        format!("the run is held by {}", run.writer)
    };
    let details = Details {
        by: Some(run.writer.clone()),
        ..Details::default()
    };
    Refusal::with(Code::AlreadyClaimed, message, details)
}

pub(super) fn unknown() -> Refusal {
    Refusal::new(Code::UnknownRun, "the session has no run of this id")
}

pub(super) fn too_many(message: &str, limit: u32) -> Refusal {
    let details = Details {
        limit: Some(u64::from(limit)),
        ..Details::default()
    };
    Refusal::with(Code::TooManyPending, message, details)
}
