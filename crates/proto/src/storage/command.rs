//! Batches of commands: what a shard's log carries.

use everwire_core::clock::Timestamp;
use everwire_core::command::{Batch, Command, Control, Fire, Op};
use everwire_core::event::Draft;
use everwire_core::ids::{SessionNo, Slot};
use everwire_core::position::{RunEpoch, Seq};
use everwire_core::row::{SessionKey, TimerKind};

use super::{StorageError, damaged};
use crate::event::{Source, draft_from, text};
use crate::field;
use crate::storage_v1 as disk;
use crate::storage_v1::command::Op as DiskOp;
use crate::storage_v1::control::Kind as DiskControl;
use crate::v1;

pub(super) fn batch_to(batch: &Batch) -> disk::Batch {
    disk::Batch {
        stamp_ms: batch.stamp.0,
        rules_version: batch.rules_version,
        commands: batch.commands.iter().map(command_to).collect(),
        timeline: batch.timeline,
        control: batch.control.iter().copied().map(control_to).collect(),
    }
}

pub(super) fn batch_from(batch: disk::Batch) -> Result<Batch, StorageError> {
    let control = batch.control.into_iter().map(control_from);
    let commands = batch.commands.into_iter().map(command_from);
    Ok(Batch {
        stamp: Timestamp(batch.stamp_ms),
        rules_version: batch.rules_version,
        timeline: batch.timeline,
        control: control.collect::<Result<_, _>>()?,
        commands: commands.collect::<Result<_, _>>()?,
    })
}

fn control_to(control: Control) -> disk::Control {
    let kind = match control {
        Control::RaiseRules { version } => DiskControl::RaiseRules(disk::RaiseRules { version }),
        Control::Fire(fire) => DiskControl::Fire(disk::Fire {
            slot: fire.session.slot.get().into(),
            session_no: fire.session.session_no.0,
            due_ms: fire.due.0,
            kind: fire.kind.number().into(),
            guard: fire.guard,
        }),
        Control::Audit => DiskControl::Audit(disk::Audit {}),
    };
    disk::Control { kind: Some(kind) }
}

/// A kind that this build does not know is read as none, and ends the replica: it never skips.
fn control_from(control: disk::Control) -> Result<Control, StorageError> {
    match control.kind {
        Some(DiskControl::RaiseRules(disk::RaiseRules { version })) => {
            Ok(Control::RaiseRules { version })
        },
        Some(DiskControl::Audit(disk::Audit {})) => Ok(Control::Audit),
        Some(DiskControl::Fire(fire)) => fire_from(fire).map(Control::Fire),
        None => Err(damaged("a control of no kind that is known")),
    }
}

fn fire_from(fire: disk::Fire) -> Result<Fire, StorageError> {
    let slot = u16::try_from(fire.slot).ok().and_then(Slot::new);
    let kind = u8::try_from(fire.kind).ok();
    let kind = kind.and_then(TimerKind::of_number);
    Ok(Fire {
        session: SessionKey {
            slot: slot.ok_or_else(|| damaged("a timer of no slot"))?,
            session_no: SessionNo(fire.session_no),
        },
        due: Timestamp(fire.due_ms),
        kind: kind.ok_or_else(|| damaged("a timer of no kind that is known"))?,
        guard: fire.guard,
    })
}

pub(crate) fn command_to(command: &Command) -> disk::Command {
    disk::Command {
        namespace: command.namespace.to_string(),
        session: command.session.to_string(),
        actor: Some((&command.actor).into()),
        may_create: command.may_create,
        session_epoch: text(command.session_epoch.as_ref()),
        op: Some(op_to(&command.op)),
    }
}

pub(crate) fn command_from(command: disk::Command) -> Result<Command, StorageError> {
    let actor = command
        .actor
        .ok_or_else(|| damaged("a command without actor"))?;
    let op = command.op.ok_or_else(|| damaged("a command without op"))?;
    Ok(Command {
        namespace: field::name("namespace", &command.namespace)?,
        session: field::name("session", &command.session)?,
        actor: actor.try_into()?,
        may_create: command.may_create,
        session_epoch: field::session_epoch("session_epoch", &command.session_epoch)?,
        op: op_from(op)?,
    })
}

fn op_to(op: &Op) -> DiskOp {
    match op {
        Op::CreateSession => DiskOp::CreateSession(disk::CreateSession {}),
        Op::DeleteSession => DiskOp::DeleteSession(disk::DeleteSession {}),
        Op::Unfreeze => DiskOp::Unfreeze(disk::Unfreeze {}),
        Op::StartRun { run, input, key } => DiskOp::StartRun(disk::StartRun {
            run: run.to_string(),
            input: text(input.as_ref()),
            key: text(key.as_ref()),
        }),
        Op::ClaimRun { run, key } => DiskOp::ClaimRun(disk::ClaimRun {
            run: run.to_string(),
            key: text(key.as_ref()),
        }),
        Op::Publish {
            run,
            run_epoch,
            first_seq,
            drafts,
        } => DiskOp::Publish(disk::Publish {
            run: run.to_string(),
            run_epoch: run_epoch.0,
            first_seq: first_seq.0,
            drafts: drafts.iter().map(v1::Draft::from).collect(),
        }),
        Op::Post {
            draft,
            key,
            body_hash,
        } => DiskOp::Post(disk::Post {
            draft: Some(draft.into()),
            key: text(key.as_ref()),
            body_hash: hash_to(*body_hash),
        }),
        Op::Cancel {
            run,
            key,
            body_hash,
        } => DiskOp::Cancel(disk::Cancel {
            run: run.to_string(),
            key: key.to_string(),
            body_hash: hash_to(*body_hash),
        }),
    }
}

fn op_from(op: DiskOp) -> Result<Op, StorageError> {
    Ok(match op {
        DiskOp::CreateSession(disk::CreateSession {}) => Op::CreateSession,
        DiskOp::DeleteSession(disk::DeleteSession {}) => Op::DeleteSession,
        DiskOp::Unfreeze(disk::Unfreeze {}) => Op::Unfreeze,
        DiskOp::StartRun(op) => Op::StartRun {
            run: field::name("run", &op.run)?,
            input: field::optional_name("input", &op.input)?,
            key: field::optional_name("key", &op.key)?,
        },
        DiskOp::ClaimRun(op) => Op::ClaimRun {
            run: field::name("run", &op.run)?,
            key: field::optional_name("key", &op.key)?,
        },
        DiskOp::Publish(op) => Op::Publish {
            run: field::name("run", &op.run)?,
            run_epoch: RunEpoch(op.run_epoch),
            first_seq: Seq(op.first_seq),
            drafts: op.drafts.into_iter().map(draft).collect::<Result<_, _>>()?,
        },
        DiskOp::Post(op) => Op::Post {
            draft: draft(op.draft.ok_or_else(|| damaged("a post without draft"))?)?,
            key: field::optional_name("key", &op.key)?,
            body_hash: hash_from(&op.body_hash)?,
        },
        DiskOp::Cancel(op) => Op::Cancel {
            run: field::name("run", &op.run)?,
            key: field::name("key", &op.key)?,
            body_hash: hash_from(&op.body_hash)?,
        },
    })
}

/// The shape was checked before the command was proposed; a later version may have other
/// bounds, and must still apply what is in the log.
fn draft(draft: v1::Draft) -> Result<Draft, StorageError> {
    Ok(draft_from(draft, Source::Disk)?)
}

pub(super) fn hash_to(hash: u128) -> bytes::Bytes {
    bytes::Bytes::copy_from_slice(&hash.to_be_bytes())
}

pub(super) fn hash_from(bytes: &[u8]) -> Result<u128, StorageError> {
    let bytes = bytes
        .try_into()
        .map_err(|_length| damaged("a hash of other than 16 bytes"))?;
    Ok(u128::from_be_bytes(bytes))
}
