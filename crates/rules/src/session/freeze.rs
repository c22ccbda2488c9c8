//! Sessions that take nothing: one command on them met a mistake of ours (RULES 3).

use everwire_core::row::{Frozen, SessionKey};
use everwire_core::{Code, Outcome, Refusal};

use super::Stop;
use super::lookup::{Caller, Session, unknown_session};
use super::overlay::Step;

/// What every command on a frozen session is answered, the one that froze it included.
pub(super) fn refusal() -> Refusal {
    let message = "a command met a mistake of ours: the session is frozen until an operator looks";
    Refusal::new(Code::Frozen, message)
}

/// Freezes the session of a command whose decision panicked, so that nothing is built on what
/// the rules do not understand. Without a session there is nothing to freeze, and `None`.
pub(super) fn freeze(
    step: &mut Step<'_>,
    caller: Caller,
    command: &str,
) -> Result<Option<SessionKey>, Stop> {
    let time = step.time;
    let Some(mut session) = Session::even_frozen(step, caller)? else {
        return Ok(None);
    };
    // A command that froze it keeps the blame: what comes after it is refused before it is
    // decided.
    let frozen = session.head.frozen.take();
    session.head.frozen = Some(frozen.unwrap_or_else(|| Frozen {
        time,
        command: command.to_owned(),
    }));
    let key = session.key;
    session.save();
    Ok(Some(key))
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
