//! The end of a run as the server writes it: open messages are ended by the state machine
//! itself, so a dead agent leaves no spinner.

use everwire_core::event::{Body, Draft, MessageStatus, RunStamp};
use everwire_core::row::{Row, RowKey, RunRow, RunState};
use everwire_core::{Offset, RunId};

use super::lookup::Session;
use super::txn::ViewError;

/// How and where a run ended.
pub(super) struct End {
    pub(super) state: RunState,
    /// The offset of its terminal event; for a cancel, that of the signal.
    pub(super) at: Offset,
}

/// The stamp of an event of a run that its writer did not send.
pub(super) fn server_stamp(id: &RunId, run: &RunRow) -> RunStamp {
    RunStamp {
        run: id.clone(),
        run_epoch: run.run_epoch,
        seq: None,
    }
}

/// Appends `message.end` for each open message, in the order of their start, and answers the
/// run as it is from now on.
pub(super) fn end(
    session: &mut Session<'_, '_>,
    id: &RunId,
    mut run: RunRow,
    end: End,
) -> Result<RunRow, ViewError> {
    let status = match end.state {
        RunState::Cancelled => MessageStatus::Cancelled,
        RunState::Running
        | RunState::Suspended
        | RunState::Orphaned
        | RunState::Completed
        | RunState::Failed => MessageStatus::Incomplete,
    };
    let stamp = server_stamp(id, &run);
    for message in std::mem::take(&mut run.open_messages) {
        let row_key = RowKey::Message(session.key, message.clone());
        let row = session.step.message(&row_key)?;
        let mut row =
            row.ok_or_else(|| ViewError(format!("no row for {row_key:?}, which is open")))?;
        for part in std::mem::take(&mut row.open_parts) {
            let part_key = RowKey::Part(session.key, message.clone(), part);
            if let Some(part) = session.step.part_mut(&part_key)? {
                part.open = false;
            }
        }
        row.status = Some(status);
        session.step.put(row_key, Row::Message(row));
        let body = Body::MessageEnd { message, status };
        session.append(Some(stamp.clone()), Draft::new(body));
    }
    run.open_parts = 0;
    // A step in whose middle the run ended has ended as its run has: that says it all.
    run.open_step = None;
    run.suspended = None;
    run.state = end.state;
    run.ended = Some(end.at);
    Ok(run)
}
