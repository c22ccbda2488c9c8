//! A run's output: one batch, atomic apart from the head that was committed before.
//!
//! The order of checks is the one of `docs/protocol/rules.md`: shape, session, run, writer,
//! dedupe, epoch, fence, gap, then the state of messages and parts draft by draft.

use everwire_core::command::{Appended, Published};
use everwire_core::event::{ApprovalOutcome, Body, Draft, MessageStatus, RunStamp, SuspendReason};
use everwire_core::limits::BATCH_EVENTS_MAX;
use everwire_core::row::{BatchRow, EpochRow, Row, RowKey, RunRow, RunState};
use everwire_core::{Code, Details, Offset, Outcome, Refusal, RunEpoch, RunId, Seq};

use super::dedupe::{self, Memory};
use super::draft::Page;
use super::lookup::{Caller, Session};
use super::overlay::Step;
use super::seal::End;
use super::{Stop, run, suspend};

/// What a publish asks for.
pub(super) struct Output {
    pub(super) run: RunId,
    pub(super) run_epoch: RunEpoch,
    pub(super) first_seq: Seq,
    pub(super) drafts: Vec<Draft>,
}

/// Appends a run's output.
pub(super) fn publish(
    step: &mut Step<'_>,
    caller: Caller,
    mut output: Output,
) -> Result<Outcome, Stop> {
    let last_seq = check_shape(&output)?;
    let mut session = Session::existing(step, caller)?;
    let run = session.run(&output.run)?.ok_or_else(run::unknown)?;
    let epoch_key = RowKey::Epoch(session.key, output.run.clone(), output.run_epoch);
    let epoch = session.step.epoch(&epoch_key)?;
    check_writer(&session, &run, epoch.as_ref())?;

    let committed = epoch.as_ref().map_or(Seq::ZERO, |epoch| epoch.last_seq);
    let duplicate = match &epoch {
        Some(epoch) if committed >= output.first_seq => {
            let memory = Memory {
                run: &output.run,
                run_epoch: output.run_epoch,
                epoch,
            };
            let through = committed.min(last_seq);
            Some(memory.place(&mut session, output.first_seq, through)?)
        },
        Some(_) | None => None,
    };
    let session_epoch = session.epoch();
    if committed >= last_seq {
        return Ok(Outcome::Published(Published {
            session_epoch,
            duplicate,
            appended: None,
        }));
    }
    let epoch = check_epoch(&session, &output, &run, epoch.as_ref())?;
    if let Err(refusal) = suspend::check_not_paused(&run) {
        let key = session.run_key(&output.run);
        return close_epoch(step, key, refusal);
    }
    if duplicate.is_none() && output.first_seq != committed.next() {
        return Err(gap(committed.next()).into());
    }
    let known = committed.next().0.saturating_sub(output.first_seq.0);
    let known = usize::try_from(known).unwrap_or(usize::MAX);
    output.drafts.drain(..known.min(output.drafts.len()));
    output.first_seq = committed.next();

    let run_key = session.run_key(&output.run);
    match append(session, output, run, epoch) {
        Ok(appended) => Ok(Outcome::Published(Published {
            session_epoch,
            duplicate,
            appended: Some(appended),
        })),
        // A refusal by state ends the epoch's stream: what is in flight behind it must not be
        // taken as if it followed. The one change that a refusal makes.
        Err(Stop::Refused(refusal)) if refusal.code == Code::WrongState => {
            close_epoch(step, run_key, refusal)
        },
        Err(stop) => Err(stop),
    }
}

/// Answers a refusal after which only a higher epoch may write.
fn close_epoch(step: &mut Step<'_>, run_key: RowKey, refusal: Refusal) -> Result<Outcome, Stop> {
    step.discard();
    let mut run = step.run(&run_key)?.ok_or_else(run::unknown)?;
    run.epoch_closed = true;
    step.put(run_key, Row::Run(run));
    Ok(Outcome::Refused(refusal))
}

/// Checks what needs no state. Answers the last seq.
fn check_shape(output: &Output) -> Result<Seq, Refusal> {
    let malformed = |message: &str| Refusal::new(Code::Malformed, message);
    let Some((last, before)) = output.drafts.split_last() else {
        return Err(malformed("a batch holds at least one event"));
    };
    if output.drafts.len() > BATCH_EVENTS_MAX {
        return Err(malformed("a batch holds at most 4096 events"));
    }
    if output.first_seq == Seq::ZERO || output.run_epoch.0 == 0 {
        return Err(malformed("seqs and run epochs count from 1"));
    }
    let more = u64::try_from(before.len()).unwrap_or(u64::MAX);
    let last_seq = output.first_seq.0.checked_add(more);
    // The seq after the last one must exist too.
    let last_seq = last_seq.filter(|seq| *seq < u64::MAX);
    let last_seq = last_seq.ok_or_else(|| malformed("the seq is too large"))?;
    for draft in before {
        if matches!(draft.body, Body::RunCompleted | Body::RunFailed { .. }) {
            return Err(malformed("the end of a run must be the last of its batch"));
        }
        check_kind(draft)?;
    }
    check_kind(last)?;
    Ok(Seq(last_seq))
}

/// Checks that a writer may send this kind.
fn check_kind(draft: &Draft) -> Result<(), Refusal> {
    match &draft.body {
        Body::MessageEnd { status, .. } if *status != MessageStatus::Complete => {
            let message = "a writer can only end a message as complete";
            Err(Refusal::new(Code::Malformed, message))
        },
        Body::RunSuspended { reason, .. } if *reason == SuspendReason::Paused => {
            let message = "a writer cannot pause its run: it waits for something";
            Err(Refusal::new(Code::Malformed, message))
        },
        Body::ApprovalResolved {
            outcome, on_expiry, ..
        } if *outcome != ApprovalOutcome::Withdrawn || on_expiry.is_some() => {
            let message = "a writer can only withdraw what it has asked for";
            Err(Refusal::new(Code::Malformed, message))
        },
        Body::RunSuspended { .. }
        | Body::RunResumed
        | Body::ApprovalRequested(_)
        | Body::ApprovalResolved { .. }
        | Body::StepStart { .. }
        | Body::StepEnd { .. }
        | Body::MessageStart { .. }
        | Body::MessageEnd { .. }
        | Body::PartStart { .. }
        | Body::PartDelta { .. }
        | Body::PartEnd { .. }
        | Body::App { .. }
        | Body::RunEpilogue { .. }
        | Body::RunCompleted
        | Body::RunFailed { .. } => Ok(()),
        Body::RunStarted { .. }
        | Body::RunClaimed
        | Body::RunOrphaned
        | Body::RunCancelled { .. }
        | Body::Input { .. }
        | Body::SignalCancel { .. }
        | Body::SignalPause { .. }
        | Body::SignalResume { .. }
        | Body::SignalObserved { .. } => {
            let message = format!("a writer cannot send {}", draft.body.kind().as_str());
            Err(Refusal::new(Code::Malformed, message))
        },
    }
}

/// Only the participant that was granted an epoch is told anything about it.
pub(super) fn check_writer(
    session: &Session<'_, '_>,
    run: &RunRow,
    epoch: Option<&EpochRow>,
) -> Result<(), Refusal> {
    let writer = epoch.map_or(&run.writer, |epoch| &epoch.writer);
    if *writer == session.actor.participant {
        return Ok(());
    }
    let message = format!("the run belongs to {writer}");
    Err(Refusal::new(Code::Denied, message))
}

/// Stale epoch, then fence, end, lost lease and closed epoch. Answers the epoch that may write.
fn check_epoch(
    session: &Session<'_, '_>,
    output: &Output,
    run: &RunRow,
    epoch: Option<&EpochRow>,
) -> Result<EpochRow, Refusal> {
    let epoch = check_current(output.run_epoch, run, epoch)?;
    if is_epilogue(output.run_epoch, run) {
        check_epilogue(session, output, run)?;
        return Ok(epoch.clone());
    }
    if let Some(refusal) = run::refuse_terminal(run) {
        return Err(refusal);
    }
    check_held(run)?;
    if run.epoch_closed {
        let message = "this run epoch was ended by a refusal: claim the run to go on";
        return Err(claim_first(run, message));
    }
    Ok(epoch.clone())
}

/// Refuses an epoch that was never granted, or that a later one has passed.
pub(super) fn check_current<'e>(
    run_epoch: RunEpoch,
    run: &RunRow,
    epoch: Option<&'e EpochRow>,
) -> Result<&'e EpochRow, Refusal> {
    let details = Details {
        run_epoch: Some(run.run_epoch),
        last_seq: epoch.map(|epoch| epoch.last_seq),
        last_offset: epoch.map(|epoch| epoch.last_offset),
        ..Details::default()
    };
    let Some(epoch) = epoch else {
        let message = "this run epoch was never granted";
        return Err(Refusal::with(Code::StaleEpoch, message, details));
    };
    if run_epoch != run.run_epoch && !is_epilogue(run_epoch, run) {
        let message = "the run was claimed under a newer run epoch";
        return Err(Refusal::with(Code::StaleEpoch, message, details));
    }
    Ok(epoch)
}

/// Refuses a run whose writer has lost it to its own silence.
pub(super) fn check_held(run: &RunRow) -> Result<(), Refusal> {
    if run.state == RunState::Orphaned {
        let message = "the run's lease has ended: claim the run to go on";
        return Err(claim_first(run, message));
    }
    Ok(())
}

pub(super) fn claim_first(run: &RunRow, message: &str) -> Refusal {
    let details = Details {
        state: Some(run.state.as_str()),
        next_epoch: Some(run.run_epoch.next()),
        ..Details::default()
    };
    Refusal::with(Code::WrongState, message, details)
}

fn is_epilogue(run_epoch: RunEpoch, run: &RunRow) -> bool {
    run.epilogue
        .is_some_and(|epilogue| epilogue.run_epoch == run_epoch)
}

/// What may follow a graceful stop: an epilogue, for a while, and nothing else.
fn check_epilogue(session: &Session<'_, '_>, output: &Output, run: &RunRow) -> Result<(), Refusal> {
    let in_time = run
        .epilogue
        .is_some_and(|epilogue| session.step.time <= epilogue.until);
    let is_epilogue = |draft: &Draft| matches!(draft.body, Body::RunEpilogue { .. });
    if in_time && output.drafts.iter().all(is_epilogue) {
        return Ok(());
    }
    let details = Details {
        cancel_offset: run.ended,
        ..Details::default()
    };
    let message = if in_time {
        "the run was cancelled: only an epilogue may follow"
    } else {
        "the run was cancelled, and the time for its epilogue is over"
    };
    Err(Refusal::with(Code::RunFenced, message, details))
}

fn gap(expected: Seq) -> Refusal {
    let details = Details {
        expected_seq: Some(expected),
        ..Details::default()
    };
    let message = format!("the next seq of this run epoch is {expected}");
    Refusal::with(Code::SeqGap, message, details)
}

/// Lays the new drafts down and writes head, run, epoch and batch.
fn append(
    mut session: Session<'_, '_>,
    output: Output,
    run: RunRow,
    epoch: EpochRow,
) -> Result<Appended, Stop> {
    let first_seq = output.first_seq;
    let first_offset = session.head.tail.next();
    let mut page = Page {
        id: &output.run,
        run,
        changed: false,
    };
    let (mut seq, mut offset) = (Seq::ZERO, Offset::ZERO);
    let mut ends = None;
    let mut next = first_seq;
    for mut draft in output.drafts {
        page.lay(&mut session, &mut draft.body)?;
        ends = match draft.body {
            Body::RunCompleted => Some(RunState::Completed),
            Body::RunFailed { .. } => Some(RunState::Failed),
            _ => None,
        };
        seq = next;
        next = seq.next();
        let stamp = RunStamp {
            run: output.run.clone(),
            run_epoch: output.run_epoch,
            seq: Some(seq),
        };
        offset = session.append(Some(stamp), draft);
    }
    let Page { run, changed, .. } = page;
    let batch = BatchRow {
        first_seq,
        last_seq: seq,
        first_offset,
    };
    let id = output.run.clone();
    dedupe::remember(&mut session, id, output.run_epoch, epoch, batch, offset);
    if let Some(state) = ends {
        session.end_run(output.run, run, End { state, at: offset })?;
    } else if changed {
        let key = session.run_key(&output.run);
        session.step.put(key, Row::Run(run));
    }
    session.save();
    Ok(Appended {
        first_seq,
        last_seq: seq,
        first_offset,
        last_offset: offset,
    })
}
