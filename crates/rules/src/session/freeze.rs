//! Sessions that take nothing: one command on them met a mistake of ours (RULES 3).

use everwire_core::row::{Frozen, Row, RowKey, SessionKey};
use everwire_core::{Code, Outcome, Refusal};

use super::Stop;
use super::lookup::{Caller, Session, unknown_session};
use super::overlay::Step;
use super::txn::ViewError;

/// What every command on a frozen session is answered, the one that froze it included.
pub(super) fn refusal() -> Refusal {
    let message = "a command met a mistake of ours: the session is frozen until an operator looks";
    Refusal::new(Code::Frozen, message)
}

/// Freezes a session whose command or deadline panicked, so that nothing is built on what the
/// rules do not understand. One that is frozen already keeps the blame where it is.
pub(super) fn freeze(
    step: &mut Step<'_>,
    session: SessionKey,
    command: &str,
) -> Result<(), ViewError> {
    let (key, time) = (RowKey::Head(session), step.time);
    let head = step.head(&key)?;
    let mut head = head.ok_or_else(|| ViewError(format!("no head for {session:?}")))?;
    let command = command.to_owned();
    head.frozen.get_or_insert(Frozen { time, command });
    step.put(key, Row::Head(head));
    Ok(())
}

/// Lets the session take commands again; idempotent.
pub(super) fn unfreeze(step: &mut Step<'_>, caller: Caller) -> Result<Outcome, Stop> {
    let Some(mut session) = Session::even_frozen(step, caller)? else {
        return Err(unknown_session().into());
    };
    let frozen = session.head.frozen.take().is_some();
    let session_epoch = session.epoch();
    if frozen {
        session.save();
    }
    Ok(Outcome::SessionUnfrozen {
        session_epoch,
        frozen,
    })
}
