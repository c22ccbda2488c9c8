//! Runs that wait: by their own word, for an approval or for a person, or because somebody paused
//! them. They hold no lease while they do, and lose none: nobody takes them from their writer.

use everwire_core::command::SignalOutcome;
use everwire_core::event::{Body, Draft, SuspendReason};
use everwire_core::row::{Row, RowKey, RunRow, RunState, TimerKind};
use everwire_core::{Cancel, Code, Details, Offset, Refusal, RunId, Target};

use super::cancel::{self, Aim};
use super::draft::Page;
use super::lookup::Session;
use super::seal::server_stamp;
use super::signal::Decided;
use super::{Stop, publish};

/// Commits a pause, and makes the runs wait that it hits.
pub(super) fn pause(session: &mut Session<'_, '_>, target: Target) -> Result<Decided, Stop> {
    let may_wait = |run: &RunRow| matches!(run.state, RunState::Running | RunState::Orphaned);
    let hit = match hit(session, &target, may_wait, "the run waits already")? {
        Hit::Runs(runs) => runs,
        Hit::Nothing(outcome) => return Ok(Decided::Over(outcome)),
    };
    session.count_people()?;
    let offset = announce(session, &target, |target| Body::SignalPause { target })?;
    for (id, mut run) in hit {
        lose_no_more(session, &mut run);
        let body = Body::RunSuspended {
            reason: SuspendReason::Paused,
            note: None,
        };
        session.append(Some(server_stamp(&id, &run)), Draft::new(body));
        run.state = RunState::Suspended;
        run.suspended = Some(SuspendReason::Paused);
        let key = session.run_key(&id);
        session.step.put(key, Row::Run(run));
    }
    Ok(Decided::At(offset))
}

/// Commits the end of a pause, and lets the runs go on that it hits. A run that is named need not
/// have been paused: a person may answer for what it waits for, but for an approval.
pub(super) fn resume(session: &mut Session<'_, '_>, target: Target) -> Result<Decided, Stop> {
    let is_named = matches!(target, Target::Run(_));
    let may_go_on = |run: &RunRow| match run.suspended {
        Some(SuspendReason::Paused) => true,
        Some(SuspendReason::Input | SuspendReason::Auth) => is_named,
        Some(SuspendReason::Approval) | None => false,
    };
    let refusal = "the run does not wait, or waits for an approval";
    let hit = match hit(session, &target, may_go_on, refusal)? {
        Hit::Runs(runs) => runs,
        Hit::Nothing(outcome) => return Ok(Decided::Over(outcome)),
    };
    session.count_people()?;
    let offset = announce(session, &target, |target| Body::SignalResume { target })?;
    for (id, run) in hit {
        go_on(session, &id, run);
    }
    Ok(Decided::At(offset))
}

/// What a signal comes to.
enum Hit {
    /// These runs, perhaps none; in the order of their start.
    Runs(Vec<(RunId, RunRow)>),
    /// Nothing is to be done.
    Nothing(SignalOutcome),
}

fn hit(
    session: &mut Session<'_, '_>,
    target: &Target,
    meant: impl Fn(&RunRow) -> bool,
    refusal: &str,
) -> Result<Hit, Stop> {
    let mut runs = match cancel::aim(session, &Cancel::of(target.clone()))? {
        Aim::Hit(runs) => runs,
        Aim::Over(outcome) => return Ok(Hit::Nothing(outcome)),
        Aim::Bury(..) => {
            let message = "an input can be neither paused nor resumed";
            return Err(Refusal::new(Code::Malformed, message).into());
        },
    };
    if let (Target::Run(_), [(_, run)]) = (target, &runs[..])
        && !meant(run)
    {
        let details = Details {
            state: Some(run.state.as_str()),
            ..Details::default()
        };
        return Err(Refusal::with(Code::WrongState, refusal, details).into());
    }
    runs.retain(|(_, run)| meant(run));
    Ok(Hit::Runs(runs))
}

fn announce(
    session: &mut Session<'_, '_>,
    target: &Target,
    body: impl FnOnce(Target) -> Body,
) -> Result<Offset, Stop> {
    let stamp = cancel::stamp_of(session, target)?;
    Ok(session.append(stamp, Draft::new(body(target.clone()))))
}

/// A run without a writer that waits is not given up meanwhile.
fn lose_no_more(session: &mut Session<'_, '_>, run: &mut RunRow) {
    if let Some(lost_at) = run.lost_at.take() {
        let timer = RowKey::Timer(session.key, lost_at, TimerKind::OrphanLimit);
        session.step.remove(timer);
    }
}

/// Lets a run go on that waits: its writer has one full lease from here.
pub(super) fn go_on(session: &mut Session<'_, '_>, id: &RunId, mut run: RunRow) {
    session.append(Some(server_stamp(id, &run)), Draft::new(Body::RunResumed));
    run.state = RunState::Running;
    run.suspended = None;
    let key = session.run_key(id);
    session.step.put(key, Row::Run(run));
}

/// Whether somebody else than its writer made the run wait.
pub(super) fn is_paused(run: &RunRow) -> bool {
    run.suspended == Some(SuspendReason::Paused)
}

/// What its writer sends of a run that somebody paused.
pub(super) fn check_not_paused(run: &RunRow) -> Result<(), Refusal> {
    if is_paused(run) {
        let message = "the run is paused: claim it to go on once it is resumed";
        return Err(publish::claim_first(run, message));
    }
    Ok(())
}

impl Page<'_> {
    /// A run that waits by its own word goes on by its own word, and says nothing before.
    pub(super) fn check_awake(&self, body: &Body) -> Result<(), Refusal> {
        match (self.run.state, body) {
            (RunState::Suspended, Body::RunResumed) => Ok(()),
            (RunState::Suspended, _) => {
                Err(self.refuse("the run waits: the next that it says is that it goes on"))
            },
            _ => Ok(()),
        }
    }

    /// The writer says that its run waits.
    pub(super) fn suspend(&mut self, reason: SuspendReason) -> Result<(), Refusal> {
        if reason == SuspendReason::Approval && self.run.open_approvals.is_empty() {
            return Err(self.refuse("the run waits for an approval, and has asked for none"));
        }
        self.run.state = RunState::Suspended;
        self.run.suspended = Some(reason);
        self.changed = true;
        Ok(())
    }

    /// The writer says that its run waits no more.
    pub(super) fn resume(&mut self) -> Result<(), Refusal> {
        if self.run.state != RunState::Suspended {
            return Err(self.refuse("the run does not wait"));
        }
        self.run.state = RunState::Running;
        self.run.suspended = None;
        self.changed = true;
        Ok(())
    }
}
