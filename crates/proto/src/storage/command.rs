//! Batches of commands: what a shard's log carries.

use everwire_core::clock::Timestamp;
use everwire_core::command::{Batch, Command, Control, Expire, Fire, Op, StartRun};
use everwire_core::control::{Answer, Cancel, Guard, Lease, Signal, Target};
use everwire_core::event::Draft;
use everwire_core::ids::{SessionNo, Slot};
use everwire_core::position::{Offset, RunEpoch, Seq};
use everwire_core::row::{SessionKey, TimerKind};

use super::row::{signed, unsigned};
use super::{StorageError, damaged};
use crate::control::{input_from, input_ref, input_target, state};
use crate::event::{Source, data_from, data_to, draft_from, text};
use crate::field;
use crate::signal::{aim_from, aim_to};
use crate::storage_v1 as disk;
use crate::storage_v1::command::Op as DiskOp;
use crate::storage_v1::control::Kind as DiskControl;
use crate::storage_v1::signal::Signal as DiskSignal;
use crate::{v1, words};

pub(super) fn batch_to(batch: &Batch) -> disk::Batch {
    disk::Batch {
        stamp_ms: batch.stamp.0,
        rules_version: batch.rules_version,
        commands: batch.commands.iter().map(command_to).collect(),
        timeline: batch.timeline,
        control: batch.control.iter().map(control_to).collect(),
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

fn control_to(control: &Control) -> disk::Control {
    let kind = match control {
        Control::RaiseRules { version } => {
            DiskControl::RaiseRules(disk::RaiseRules { version: *version })
        },
        Control::Fire(fire) => DiskControl::Fire(disk::Fire {
            slot: fire.session.slot.get().into(),
            session_no: fire.session.session_no.0,
            due_ms: fire.due.0,
            kind: fire.kind.number().into(),
            guard: fire.guard,
        }),
        Control::Audit => DiskControl::Audit(disk::Audit {}),
        Control::Expire(expire) => DiskControl::Expire(disk::Expire {
            slot: expire.session.slot.get().into(),
            session_no: expire.session.session_no.0,
            run: expire.run.to_string(),
            run_epoch: expire.run_epoch.0,
            last_offset: expire.last_offset.get(),
        }),
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
        Some(DiskControl::Expire(expire)) => expire_from(&expire).map(Control::Expire),
        None => Err(damaged("a control of no kind that is known")),
    }
}

fn session_from(slot: u32, session_no: u64) -> Result<SessionKey, StorageError> {
    let slot = u16::try_from(slot).ok().and_then(Slot::new);
    Ok(SessionKey {
        slot: slot.ok_or_else(|| damaged("a session of no slot"))?,
        session_no: SessionNo(session_no),
    })
}

fn expire_from(expire: &disk::Expire) -> Result<Expire, StorageError> {
    Ok(Expire {
        session: session_from(expire.slot, expire.session_no)?,
        run: field::name("run", &expire.run)?,
        run_epoch: RunEpoch(expire.run_epoch),
        last_offset: field::offset("last_offset", expire.last_offset)?,
    })
}

fn fire_from(fire: disk::Fire) -> Result<Fire, StorageError> {
    let kind = u8::try_from(fire.kind).ok();
    let kind = kind.and_then(TimerKind::of_number);
    Ok(Fire {
        session: session_from(fire.slot, fire.session_no)?,
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
        Op::StartRun(start) => DiskOp::StartRun(start_to(start)),
        Op::ClaimRun { run, lease, key } => DiskOp::ClaimRun(disk::ClaimRun {
            run: run.to_string(),
            key: text(key.as_ref()),
            lease_ms: lease.map_or(0, Lease::ms),
        }),
        Op::Heartbeat {
            run,
            run_epoch,
            observed_through,
        } => DiskOp::Heartbeat(disk::Heartbeat {
            run: run.to_string(),
            run_epoch: run_epoch.0,
            observed_through: observed_through.map(Offset::get),
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
            cancel,
            key,
            body_hash,
        } => DiskOp::Cancel(disk::Cancel {
            target: Some(target_to(&cancel.target)),
            key: key.to_string(),
            body_hash: hash_to(*body_hash),
            graceful_ms: cancel.grace_ms.unwrap_or(0),
            expect: cancel
                .guard
                .state
                .map_or_else(String::new, |state| state.as_str().to_owned()),
            as_of: cancel.guard.as_of.map(Offset::get),
        }),
        Op::Signal {
            signal,
            key,
            body_hash,
        } => DiskOp::Signal(disk::Signal {
            signal: Some(signal_to(signal)),
            key: key.to_string(),
            body_hash: hash_to(*body_hash),
        }),
    }
}

fn signal_to(signal: &Signal) -> DiskSignal {
    match signal {
        Signal::Pause(target) => DiskSignal::Pause(aim_to(target)),
        Signal::Resume(target) => DiskSignal::Resume(aim_to(target)),
        Signal::Answer(answer) => DiskSignal::Answer(disk::Answer {
            approval: answer.approval.to_string(),
            verdict: unsigned(words::verdict_to(answer.verdict).into()),
            action_hash: answer.action_hash.to_string(),
            note: answer.note.clone(),
        }),
    }
}

/// A signal that this build does not know is read as none, and ends the replica.
fn signal_from(signal: Option<DiskSignal>) -> Result<Signal, StorageError> {
    Ok(match signal {
        Some(DiskSignal::Pause(aim)) => Signal::Pause(aim_from(aim)?),
        Some(DiskSignal::Resume(aim)) => Signal::Resume(aim_from(aim)?),
        Some(DiskSignal::Answer(answer)) => Signal::Answer(Answer {
            approval: field::name("approval", &answer.approval)?,
            verdict: words::verdict_from("verdict", signed(answer.verdict)?)?,
            action_hash: field::name("action_hash", &answer.action_hash)?,
            note: answer.note,
        }),
        None => return Err(damaged("a signal of no kind that is known")),
    })
}

fn start_to(start: &StartRun) -> disk::StartRun {
    let input = start.input.as_ref();
    disk::StartRun {
        run: start.run.to_string(),
        input: text(input.map(|input| &input.input)),
        input_by: text(input.and_then(|input| input.author.as_ref())),
        key: text(start.key.as_ref()),
        parent: text(start.parent.as_ref()),
        lease_ms: start.lease.map_or(0, Lease::ms),
        meta: data_to(start.meta.as_ref()),
    }
}

fn start_from(start: disk::StartRun) -> Result<StartRun, StorageError> {
    Ok(StartRun {
        run: field::name("run", &start.run)?,
        input: input_ref(&start.input, &start.input_by)?,
        parent: field::optional_name("parent", &start.parent)?,
        lease: Lease::stored(start.lease_ms),
        meta: data_from(start.meta, Source::Disk)?,
        key: field::optional_name("key", &start.key)?,
    })
}

fn target_to(target: &Target) -> disk::cancel::Target {
    use disk::cancel::Target as Disk;
    match target {
        Target::Run(run) => Disk::Run(run.to_string()),
        Target::Subtree(root) => Disk::Subtree(root.to_string()),
        Target::Input(input) => Disk::Input(input_target(input)),
        Target::Session => Disk::Session(v1::SessionTarget {}),
    }
}

fn cancel_from(op: &disk::Cancel) -> Result<Cancel, StorageError> {
    use disk::cancel::Target as Disk;
    let target = match &op.target {
        Some(Disk::Run(run)) => Target::Run(field::name("run", run)?),
        Some(Disk::Subtree(root)) => Target::Subtree(field::name("subtree", root)?),
        Some(Disk::Input(input)) => Target::Input(input_from(input)?),
        Some(Disk::Session(v1::SessionTarget {})) => Target::Session,
        None => return Err(damaged("a cancel of nothing that is known")),
    };
    let as_of = op.as_of.map(|as_of| field::offset("as_of", as_of));
    Ok(Cancel {
        target,
        grace_ms: (op.graceful_ms > 0).then_some(op.graceful_ms),
        guard: Guard {
            state: state("expect", &op.expect)?,
            as_of: as_of.transpose()?,
        },
    })
}

fn op_from(op: DiskOp) -> Result<Op, StorageError> {
    Ok(match op {
        DiskOp::CreateSession(disk::CreateSession {}) => Op::CreateSession,
        DiskOp::DeleteSession(disk::DeleteSession {}) => Op::DeleteSession,
        DiskOp::Unfreeze(disk::Unfreeze {}) => Op::Unfreeze,
        DiskOp::StartRun(op) => Op::StartRun(start_from(op)?),
        DiskOp::ClaimRun(op) => Op::ClaimRun {
            run: field::name("run", &op.run)?,
            lease: Lease::stored(op.lease_ms),
            key: field::optional_name("key", &op.key)?,
        },
        DiskOp::Heartbeat(op) => Op::Heartbeat {
            run: field::name("run", &op.run)?,
            run_epoch: RunEpoch(op.run_epoch),
            observed_through: op
                .observed_through
                .map(|through| field::offset("observed_through", through))
                .transpose()?,
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
        DiskOp::Signal(op) => Op::Signal {
            signal: signal_from(op.signal)?,
            key: field::name("key", &op.key)?,
            body_hash: hash_from(&op.body_hash)?,
        },
        DiskOp::Cancel(op) => Op::Cancel {
            cancel: cancel_from(&op)?,
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
