//! The rows of a session's state.

use everwire_core::clock::Timestamp;
use everwire_core::ids::{ApprovalId, MessageId, PartId, ParticipantId, SessionNo};
use everwire_core::position::{Offset, RunEpoch, Seq};
use everwire_core::row::{
    ApprovalRow, BatchRow, EpilogueRow, EpochRow, Frozen, HeadRow, InputRow, KeyRow, MessageRow,
    NameRow, PartRow, Resolved, Row, RunRow, RunState, StepRow, TimerRow, TombstoneRow,
};

use super::command::{hash_from, hash_to};
use super::{StorageError, damaged};
use crate::control::input_ref;
use crate::event::text;
use crate::storage_v1 as disk;
use crate::storage_v1::row::Row as DiskRow;
use crate::{field, words};

pub(super) fn row_to(row: &Row) -> disk::Row {
    let row = match row {
        Row::Name(row) => DiskRow::Name(disk::NameRow {
            session_no: row.session_no.0,
        }),
        Row::Counter(last) => DiskRow::Counter(*last),
        Row::Head(row) => DiskRow::Head(head_to(row)),
        Row::Run(row) => DiskRow::Run(run_to(row)),
        Row::Epoch(row) => DiskRow::Epoch(disk::EpochRow {
            writer: row.writer.to_string(),
            granted: row.granted.get(),
            last_seq: row.last_seq.0,
            last_offset: row.last_offset.get(),
            batches: row.batches,
        }),
        Row::Batch(row) => DiskRow::Batch(disk::BatchRow {
            first_seq: row.first_seq.0,
            last_seq: row.last_seq.0,
            first_offset: row.first_offset.get(),
        }),
        Row::Step(row) => DiskRow::Step(step_to(*row)),
        Row::Message(row) => DiskRow::Message(message_to(row)),
        Row::Part(row) => DiskRow::Part(disk::PartRow {
            kind: unsigned(words::part_kind_to(row.kind).into()),
            open: row.open,
            bytes: row.bytes,
            deltas: row.deltas,
        }),
        Row::Input(row) => DiskRow::Input(disk::InputRow {
            offset: row.offset.get(),
            run: text(row.run.as_ref()),
        }),
        Row::Key(row) => DiskRow::Key(disk::KeyRow {
            body_hash: hash_to(row.body_hash),
            offset: row.offset.get(),
            run_epoch: row.run_epoch.map_or(0, |epoch| epoch.0),
            time_ms: row.time.0,
        }),
        Row::Tombstone(row) => DiskRow::Tombstone(disk::TombstoneRow {
            cancel_offset: row.cancel_offset.get(),
            by: Some((&row.by).into()),
            until_ms: row.until.0,
        }),
        Row::Timer(row) => DiskRow::Timer(disk::TimerRow {
            guard: row.guard,
            run: text(row.run.as_ref()),
            approval: text(row.approval.as_ref()),
        }),
        Row::Approval(row) => DiskRow::Approval(approval_to(row)),
        Row::Index => DiskRow::Index(disk::IndexRow {}),
    };
    disk::Row { row: Some(row) }
}

pub(super) fn row_from(row: disk::Row) -> Result<Row, StorageError> {
    Ok(
        match row.row.ok_or_else(|| damaged("a row without kind"))? {
            DiskRow::Name(row) => Row::Name(NameRow {
                session_no: SessionNo(row.session_no),
            }),
            DiskRow::Counter(last) => Row::Counter(last),
            DiskRow::Head(row) => Row::Head(head_from(&row)?),
            DiskRow::Run(row) => Row::Run(run_from(row)?),
            DiskRow::Epoch(row) => Row::Epoch(EpochRow {
                writer: field::name("writer", &row.writer)?,
                granted: field::offset("granted", row.granted)?,
                last_seq: Seq(row.last_seq),
                last_offset: field::offset("last_offset", row.last_offset)?,
                batches: row.batches,
            }),
            DiskRow::Batch(row) => Row::Batch(BatchRow {
                first_seq: Seq(row.first_seq),
                last_seq: Seq(row.last_seq),
                first_offset: field::offset("first_offset", row.first_offset)?,
            }),
            DiskRow::Step(row) => Row::Step(step_from(row)?),
            DiskRow::Message(row) => Row::Message(message_from(row)?),
            DiskRow::Part(row) => Row::Part(PartRow {
                kind: words::part_kind_from("kind", signed(row.kind)?)?,
                open: row.open,
                bytes: row.bytes,
                deltas: row.deltas,
            }),
            DiskRow::Input(row) => Row::Input(InputRow {
                offset: field::offset("offset", row.offset)?,
                run: field::optional_name("run", &row.run)?,
            }),
            DiskRow::Key(row) => Row::Key(KeyRow {
                body_hash: hash_from(&row.body_hash)?,
                offset: field::offset("offset", row.offset)?,
                run_epoch: (row.run_epoch != 0).then_some(RunEpoch(row.run_epoch)),
                time: Timestamp(row.time_ms),
            }),
            DiskRow::Tombstone(row) => Row::Tombstone(TombstoneRow {
                cancel_offset: field::offset("cancel_offset", row.cancel_offset)?,
                by: row
                    .by
                    .ok_or_else(|| damaged("a stop that nobody pressed"))?
                    .try_into()?,
                until: Timestamp(row.until_ms),
            }),
            DiskRow::Timer(row) => Row::Timer(TimerRow {
                guard: row.guard,
                run: field::optional_name("run", &row.run)?,
                approval: field::optional_name("approval", &row.approval)?,
            }),
            DiskRow::Approval(row) => Row::Approval(approval_from(&row)?),
            DiskRow::Index(disk::IndexRow {}) => Row::Index,
        },
    )
}

fn head_to(row: &HeadRow) -> disk::HeadRow {
    disk::HeadRow {
        created_ms: row.created.0,
        last_ms: row.last_time.0,
        tail: row.tail.get(),
        trimmed: row.trimmed.get(),
        bytes: row.bytes,
        live_runs: row.live_runs,
        day: row.day,
        people_today: row.people_today,
        frozen: row.frozen.as_ref().map(|frozen| disk::Frozen {
            time_ms: frozen.time.0,
            command: frozen.command.clone(),
        }),
        keys_due_ms: row.keys_due.map(|due| due.0),
        open_approvals: row.open_approvals,
    }
}

fn head_from(row: &disk::HeadRow) -> Result<HeadRow, StorageError> {
    Ok(HeadRow {
        created: Timestamp(row.created_ms),
        last_time: Timestamp(row.last_ms),
        tail: field::offset("tail", row.tail)?,
        trimmed: field::offset("trimmed", row.trimmed)?,
        bytes: row.bytes,
        live_runs: row.live_runs,
        day: row.day,
        people_today: row.people_today,
        frozen: row.frozen.as_ref().map(|frozen| Frozen {
            time: Timestamp(frozen.time_ms),
            command: frozen.command.clone(),
        }),
        keys_due: row.keys_due_ms.map(Timestamp),
        open_approvals: row.open_approvals,
    })
}

fn run_to(row: &RunRow) -> disk::RunRow {
    let state = match row.state {
        RunState::Running => disk::RunState::Running,
        RunState::Suspended => disk::RunState::Suspended,
        RunState::Orphaned => disk::RunState::Orphaned,
        RunState::Completed => disk::RunState::Completed,
        RunState::Failed => disk::RunState::Failed,
        RunState::Cancelled => disk::RunState::Cancelled,
    };
    disk::RunRow {
        state: state.into(),
        run_epoch: row.run_epoch.0,
        writer: row.writer.to_string(),
        input: text(row.input.as_ref().map(|input| &input.input)),
        input_by: text(row.input.as_ref().and_then(|input| input.author.as_ref())),
        parent: text(row.parent.as_ref()),
        depth: row.depth,
        lease_ms: row.lease_ms,
        lost_at_ms: row.lost_at.map(|at| at.0),
        unobserved: row.unobserved.map(Offset::get),
        epilogue: row.epilogue.map(|epilogue| disk::EpilogueRow {
            run_epoch: epilogue.run_epoch.0,
            until_ms: epilogue.until.0,
        }),
        started: row.started.get(),
        ended: row.ended.map(Offset::get),
        epoch_closed: row.epoch_closed,
        open_messages: row.open_messages.iter().map(ToString::to_string).collect(),
        open_parts: row.open_parts,
        open_step: text(row.open_step.as_ref()),
        steps: row.steps,
        suspended: row.suspended.map_or(0, |reason| {
            unsigned(words::suspend_reason_to(reason).into())
        }),
        open_approvals: row.open_approvals.iter().map(ToString::to_string).collect(),
    }
}

fn run_from(row: disk::RunRow) -> Result<RunRow, StorageError> {
    let state = match row.state() {
        disk::RunState::Running => RunState::Running,
        disk::RunState::Suspended => RunState::Suspended,
        disk::RunState::Orphaned => RunState::Orphaned,
        disk::RunState::Completed => RunState::Completed,
        disk::RunState::Failed => RunState::Failed,
        disk::RunState::Cancelled => RunState::Cancelled,
        disk::RunState::Unspecified => return Err(damaged("a run without state")),
    };
    let ended = row.ended.map(|ended| field::offset("ended", ended));
    let unobserved = row.unobserved;
    let unobserved = unobserved.map(|offset| field::offset("unobserved", offset));
    let open_messages = row.open_messages.iter();
    Ok(RunRow {
        state,
        run_epoch: RunEpoch(row.run_epoch),
        writer: field::name("writer", &row.writer)?,
        input: input_ref(&row.input, &row.input_by)?,
        parent: field::optional_name("parent", &row.parent)?,
        depth: row.depth,
        lease_ms: row.lease_ms,
        lost_at: row.lost_at_ms.map(Timestamp),
        unobserved: unobserved.transpose()?,
        epilogue: row.epilogue.map(|epilogue| EpilogueRow {
            run_epoch: RunEpoch(epilogue.run_epoch),
            until: Timestamp(epilogue.until_ms),
        }),
        started: field::offset("started", row.started)?,
        ended: ended.transpose()?,
        epoch_closed: row.epoch_closed,
        open_messages: open_messages
            .map(|message| field::name::<MessageId>("open_messages", message))
            .collect::<Result<_, _>>()?,
        open_parts: row.open_parts,
        open_step: field::optional_name("open_step", &row.open_step)?,
        steps: row.steps,
        suspended: match row.suspended {
            0 => None,
            number => Some(words::suspend_reason_from("suspended", signed(number)?)?),
        },
        open_approvals: row
            .open_approvals
            .iter()
            .map(|approval| field::name::<ApprovalId>("open_approvals", approval))
            .collect::<Result<_, _>>()?,
    })
}

fn approval_to(row: &ApprovalRow) -> disk::ApprovalRow {
    let resolved = row.resolved.as_ref();
    let outcome = resolved.map(|resolved| words::approval_outcome_to(resolved.outcome));
    disk::ApprovalRow {
        run: row.run.to_string(),
        action_hash: row.action_hash.to_string(),
        approvers: row.approvers.iter().map(ToString::to_string).collect(),
        deadline_ms: row.deadline.0,
        due_ms: row.due.map(|due| due.0),
        on_expiry: unsigned(words::verdict_to(row.on_expiry).into()),
        outcome: outcome.map_or(0, |outcome| unsigned(outcome.into())),
        resolved: resolved.map_or(0, |resolved| resolved.offset.get()),
        resolved_by: text(resolved.map(|resolved| &resolved.by)),
    }
}

fn approval_from(row: &disk::ApprovalRow) -> Result<ApprovalRow, StorageError> {
    let resolved = match row.outcome {
        0 => None,
        number => Some(Resolved {
            outcome: words::approval_outcome_from("outcome", signed(number)?)?,
            offset: field::offset("resolved", row.resolved)?,
            by: field::name("resolved_by", &row.resolved_by)?,
        }),
    };
    let approvers = row.approvers.iter();
    Ok(ApprovalRow {
        run: field::name("run", &row.run)?,
        action_hash: field::name("action_hash", &row.action_hash)?,
        approvers: approvers
            .map(|one| field::name::<ParticipantId>("approvers", one))
            .collect::<Result<_, _>>()?,
        deadline: Timestamp(row.deadline_ms),
        due: row.due_ms.map(Timestamp),
        on_expiry: words::verdict_from("on_expiry", signed(row.on_expiry)?)?,
        resolved,
    })
}

fn step_to(row: StepRow) -> disk::StepRow {
    let status = row.status.map(words::step_status_to);
    disk::StepRow {
        attempt: row.attempt,
        started: row.started.get(),
        status: status.map_or(0, |status| unsigned(status.into())),
    }
}

fn step_from(row: disk::StepRow) -> Result<StepRow, StorageError> {
    let status = match row.status {
        0 => None,
        number => Some(words::step_status_from("status", signed(number)?)?),
    };
    Ok(StepRow {
        attempt: row.attempt,
        started: field::offset("started", row.started)?,
        status,
    })
}

fn message_to(row: &MessageRow) -> disk::MessageRow {
    let status = row.status.map(words::message_status_to);
    disk::MessageRow {
        run: row.run.to_string(),
        role: unsigned(words::role_to(row.role).into()),
        started: row.started.get(),
        status: status.map_or(0, |status| unsigned(status.into())),
        open_parts: row.open_parts.iter().map(ToString::to_string).collect(),
    }
}

fn message_from(row: disk::MessageRow) -> Result<MessageRow, StorageError> {
    let status = match row.status {
        0 => None,
        number => Some(words::message_status_from("status", signed(number)?)?),
    };
    let open_parts = row.open_parts.iter();
    Ok(MessageRow {
        run: field::name("run", &row.run)?,
        role: words::role_from("role", signed(row.role)?)?,
        started: field::offset("started", row.started)?,
        status,
        open_parts: open_parts
            .map(|part| field::name::<PartId>("open_parts", part))
            .collect::<Result<_, _>>()?,
    })
}

/// Enum numbers are written as `uint32` here, so that the disk does not follow the wire's enum.
pub(super) fn unsigned(number: i32) -> u32 {
    number.unsigned_abs()
}

pub(super) fn signed(number: u32) -> Result<i32, StorageError> {
    i32::try_from(number).map_err(|_large| damaged("an enum number"))
}
