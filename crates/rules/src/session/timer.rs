//! Deadlines: rows that stand until what they wait for happens, or until they fire (RULES 5).

use everwire_core::Timestamp;
use everwire_core::command::Fire;
use everwire_core::row::{Row, RowKey, SessionKey, TimerKind, TimerRow};

use super::overlay::Step;
use super::txn::ViewError;
use super::{approval, keys, lease};

/// Sets a deadline at `due`, or at the next free moment: of one kind a session has one at a time.
pub(super) fn set(
    step: &mut Step<'_>,
    session: SessionKey,
    kind: TimerKind,
    mut due: Timestamp,
    row: TimerRow,
) -> Result<Timestamp, ViewError> {
    loop {
        let key = RowKey::Timer(session, due, kind);
        if step.timer(&key)?.is_none() {
            step.put(key, Row::Timer(row));
            return Ok(due);
        }
        due = Timestamp(due.0.saturating_add(1));
    }
}

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
    match (fire.kind, timer.run) {
        (TimerKind::StaleKeys, _) => {
            keys::sweep(step, fire.session, &mut head, timer.guard)?;
            step.put(head_key, Row::Head(head));
            Ok(())
        },
        (TimerKind::OrphanLimit, Some(run)) => lease::give_up(step, fire.session, head, run),
        (TimerKind::OrphanLimit, None) => {
            Err(ViewError("a deadline of a run names none".to_owned()))
        },
        (TimerKind::Approval, _) => {
            let named = timer.approval;
            let named = named.ok_or_else(|| ViewError("a deadline of no approval".to_owned()))?;
            approval::expire(step, fire.session, head, &named)
        },
    }
}
