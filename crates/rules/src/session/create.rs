//! Making and deleting sessions. Neither leaves an event: a session's first event has offset 1,
//! and a deleted one has none.

use everwire_core::Outcome;
use everwire_core::row::SessionKey;

use super::Stop;
use super::lookup::{Caller, Session};
use super::overlay::Step;

/// Makes the session if it is not there; idempotent.
pub(super) fn create(step: &mut Step<'_>, caller: Caller) -> Result<Outcome, Stop> {
    let (session, created) = Session::ensured(step, caller)?;
    Ok(Outcome::SessionReady {
        session_epoch: session.epoch(),
        tail: session.head.tail,
        created,
    })
}

/// Frees the name at once. The rows under the old number are erased by whoever writes the
/// changes; nothing reads them again, because the counter of the slot never goes back.
pub(super) fn delete(step: &mut Step<'_>, caller: &Caller) -> Result<Outcome, Stop> {
    let name_key = caller.name_key();
    let Some(name) = step.name(&name_key)? else {
        return Ok(Outcome::SessionDeleted { existed: false });
    };
    step.remove(name_key);
    step.erase(SessionKey {
        slot: caller.slot,
        session_no: name.session_no,
    });
    Ok(Outcome::SessionDeleted { existed: true })
}
