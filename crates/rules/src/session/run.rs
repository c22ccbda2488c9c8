//! Starting and claiming runs: who may write, under which epoch.

use everwire_core::event::{Body, Draft};
use everwire_core::limits::LIVE_RUNS_MAX;
use everwire_core::row::{EpochRow, KeyRow, Row, RowKey, RunRow, RunState};
use everwire_core::{
    Code, Details, InputId, Key, Offset, Outcome, Refusal, RunEpoch, RunId, Seq, SessionEpoch,
};

use super::Stop;
use super::keys::Purpose;
use super::lookup::{Caller, Session};
use super::overlay::Step;
use super::seal::server_stamp;

/// Begins a run and grants epoch 1.
pub(super) fn start(
    step: &mut Step<'_>,
    caller: Caller,
    id: RunId,
    input: Option<InputId>,
    key: Option<Key>,
) -> Result<Outcome, Stop> {
    let (mut session, _) = Session::ensured(step, caller)?;
    let purpose = Purpose::Start(&id, input.as_ref());
    if let Some(again) = recalled(&mut session, key.as_ref(), &purpose)? {
        return Ok(again);
    }
    if let Some(run) = session.run(&id)? {
        return Err(refuse_terminal(&run)
            .unwrap_or_else(|| held(&run, &session))
            .into());
    }
    if session.head.live_runs >= LIVE_RUNS_MAX {
        let message = "the session has too many live runs";
        return Err(too_many(message, LIVE_RUNS_MAX).into());
    }
    let run = RunRow {
        state: RunState::Running,
        run_epoch: RunEpoch::FIRST,
        writer: session.actor.participant.clone(),
        input: input.clone(),
        started: session.head.tail.next(),
        ended: None,
        epoch_closed: false,
        open_messages: Vec::new(),
        open_parts: 0,
    };
    session.head.live_runs += 1;
    let index = RowKey::LiveRun(session.key, id.clone());
    session.step.put(index, Row::Index);
    let body = Body::RunStarted {
        input: input.clone(),
    };
    grant(session, &id, run, body, key, &purpose)
}

/// Takes a live run over and grants the next epoch: only to the participant that holds it.
pub(super) fn claim(
    step: &mut Step<'_>,
    caller: Caller,
    id: &RunId,
    key: Option<Key>,
) -> Result<Outcome, Stop> {
    let mut session = Session::existing(step, caller)?;
    let purpose = Purpose::Claim(id);
    if let Some(again) = recalled(&mut session, key.as_ref(), &purpose)? {
        return Ok(again);
    }
    let mut run = session.run(id)?.ok_or_else(unknown)?;
    if let Some(refusal) = refuse_terminal(&run) {
        return Err(refusal.into());
    }
    if run.writer != session.actor.participant {
        return Err(held(&run, &session).into());
    }
    run.run_epoch = run.run_epoch.next();
    run.epoch_closed = false;
    grant(session, id, run, Body::RunClaimed, key, &purpose)
}

/// Commits a grant: its event, the run, the epoch's own row, the key.
fn grant(
    mut session: Session<'_, '_>,
    id: &RunId,
    run: RunRow,
    body: Body,
    key: Option<Key>,
    purpose: &Purpose<'_>,
) -> Result<Outcome, Stop> {
    let run_epoch = run.run_epoch;
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
    let session_epoch = session.epoch();
    session.save();
    Ok(Outcome::RunGranted {
        session_epoch,
        run_epoch,
        offset,
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
    let session_epoch = session.epoch();
    let row = session.recall(key, purpose)?;
    Ok(row.map(|row| granted_before(session_epoch, &row)))
}

fn granted_before(session_epoch: SessionEpoch, row: &KeyRow) -> Outcome {
    Outcome::RunGranted {
        session_epoch,
        // Rows of starts and claims always hold it.
        run_epoch: row.run_epoch.unwrap_or(RunEpoch::FIRST),
        offset: row.offset,
        duplicate: true,
    }
}

/// The refusal of a terminal run: `None` for a live one.
pub(super) fn refuse_terminal(run: &RunRow) -> Option<Refusal> {
    // Terminal rows always hold where they ended.
    let ended = run.ended.unwrap_or(Offset::ZERO);
    let next_epoch = Some(run.run_epoch.next());
    match run.state {
        RunState::Running => None,
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
        RunState::Running | RunState::Failed | RunState::Cancelled => "failed",
    }
}

/// The run is live and held: by somebody else, or by the caller, who should claim.
fn held(run: &RunRow, session: &Session<'_, '_>) -> Refusal {
    let message = if run.writer == session.actor.participant {
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
