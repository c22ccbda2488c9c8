//! Deadlines: rows that stand until what they wait for happens, or until they fire (RULES 5).

use everwire_core::command::Fire;
use everwire_core::row::{Row, RowKey, TimerKind};

use super::keys;
use super::overlay::Step;
use super::txn::ViewError;

/// Does what a deadline is for, if it stands as it is named and has come. Says nothing else: the
/// leader that proposed it may have been late, or not the only one.
pub(super) fn fire(step: &mut Step<'_>, fire: Fire) -> Result<(), ViewError> {
    let key = RowKey::Timer(fire.session, fire.due, fire.kind);
    let Some(timer) = step.timer(&key)? else {
        return Ok(());
    };
    if timer.guard != fire.guard || fire.due > step.time {
        return Ok(());
    }
    let head_key = RowKey::Head(fire.session);
    let head = step.head(&head_key)?;
    let mut head = head.ok_or_else(|| ViewError(format!("no head for {key:?}")))?;
    // A frozen session keeps its deadlines; they are met when it goes on.
    if head.frozen.is_some() {
        return Ok(());
    }
    step.remove(key);
    match fire.kind {
        TimerKind::StaleKeys => keys::sweep(step, fire.session, &mut head, timer.guard)?,
    }
    step.put(head_key, Row::Head(head));
    Ok(())
}
