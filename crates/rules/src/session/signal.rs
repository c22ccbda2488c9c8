//! Signals that end no run: one road from key to outcome for all of them.

use everwire_core::command::SignalOutcome;
use everwire_core::{Key, Offset, Outcome, Refusal, Signal};

use super::keys::Purpose;
use super::lookup::{Caller, Session};
use super::overlay::Step;
use super::{Stop, approval, suspend};

/// What a signal came to.
pub(super) enum Decided {
    /// It is committed there.
    At(Offset),
    /// Nothing was to be done.
    Over(SignalOutcome),
    /// It came too late: what is written says so, and the sender is told.
    TooLate(Refusal),
}

/// Decides a signal.
pub(super) fn signal(
    step: &mut Step<'_>,
    caller: Caller,
    signal: Signal,
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
    let purpose = Purpose::Signal(body_hash);
    if let Some(row) = session.recall(&key, &purpose)? {
        let offset = row.offset;
        return Ok(answer(SignalOutcome::Applied { offset }, true));
    }
    let decided = match signal {
        Signal::Pause(target) => suspend::pause(&mut session, target)?,
        Signal::Resume(target) => suspend::resume(&mut session, target)?,
        Signal::Answer(given) => approval::answer(&mut session, given)?,
    };
    match decided {
        Decided::At(offset) => {
            session.remember(key, &purpose, offset, None)?;
            session.save();
            Ok(answer(SignalOutcome::Applied { offset }, false))
        },
        Decided::Over(outcome) => Ok(answer(outcome, false)),
        Decided::TooLate(refusal) => {
            session.save();
            Ok(Outcome::Refused(refusal))
        },
    }
}
