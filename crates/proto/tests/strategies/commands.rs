//! Any batch, any outcome and any row.

use everwire_core::clock::Timestamp;
use everwire_core::command::{
    Appended, Batch, CancelOutcome, Command, Control, Duplicate, Fire, Op, Outcome, Published,
};
use everwire_core::ids::{Namespace, SessionNo, Slot};
use everwire_core::position::{RunEpoch, Seq};
use everwire_core::row::{
    BatchRow, EpochRow, Frozen, HeadRow, InputRow, KeyRow, MessageRow, NameRow, PartRow, Row,
    RunRow, SessionKey, TimerKind, TimerRow,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

use super::{
    author, draft, message_status, name, offset, part_kind, participant, refusal, role, run_epoch,
    run_state, session_epoch,
};

fn namespace() -> impl Strategy<Value = Namespace> {
    "[a-z0-9-]{1,12}".prop_map(|text| text.parse().unwrap())
}

fn op() -> impl Strategy<Value = Op> {
    let publish = (name(), any::<u32>(), any::<u64>(), vec(draft(), 0..4));
    prop_oneof![
        Just(Op::CreateSession),
        Just(Op::DeleteSession),
        Just(Op::Unfreeze),
        (name(), option::of(name()), option::of(name()))
            .prop_map(|(run, input, key)| Op::StartRun { run, input, key }),
        (name(), option::of(name())).prop_map(|(run, key)| Op::ClaimRun { run, key }),
        publish.prop_map(|(run, epoch, seq, drafts)| Op::Publish {
            run,
            run_epoch: RunEpoch(epoch),
            first_seq: Seq(seq),
            drafts
        }),
        (draft(), option::of(name()), any::<u128>()).prop_map(|(draft, key, body_hash)| {
            Op::Post {
                draft,
                key,
                body_hash,
            }
        }),
        (name(), name(), any::<u128>()).prop_map(|(run, key, body_hash)| Op::Cancel {
            run,
            key,
            body_hash
        }),
    ]
}

pub(crate) fn command() -> impl Strategy<Value = Command> {
    let meant = option::of(session_epoch());
    let command = (namespace(), name(), author(), any::<bool>(), meant, op());
    command.prop_map(
        |(namespace, session, actor, may_create, session_epoch, op)| Command {
            namespace,
            session,
            actor,
            may_create,
            session_epoch,
            op,
        },
    )
}

fn control() -> impl Strategy<Value = Control> {
    prop_oneof![
        any::<u32>().prop_map(|version| Control::RaiseRules { version }),
        Just(Control::Audit),
        (0..4096u16, any::<(u64, u64, u64)>()).prop_map(|(slot, (number, due, guard))| {
            Control::Fire(Fire {
                session: SessionKey {
                    slot: Slot::new(slot).unwrap(),
                    session_no: SessionNo(number),
                },
                due: Timestamp(due),
                kind: TimerKind::StaleKeys,
                guard,
            })
        }),
    ]
}

pub(crate) fn batch() -> impl Strategy<Value = Batch> {
    let numbers = any::<(u64, u32, u32)>();
    let control = vec(control(), 0..3);
    (numbers, control, vec(command(), 0..4)).prop_map(|(numbers, control, commands)| {
        let (stamp, rules_version, timeline) = numbers;
        Batch {
            stamp: Timestamp(stamp),
            rules_version,
            timeline,
            control,
            commands,
        }
    })
}

fn published() -> impl Strategy<Value = Published> {
    let duplicate = (any::<u64>(), offset(), any::<bool>());
    let duplicate = duplicate.prop_map(|(seq, through_offset, exact)| Duplicate {
        through_seq: Seq(seq),
        through_offset,
        exact,
    });
    let appended = (any::<(u64, u64)>(), offset(), offset());
    let appended = appended.prop_map(|((first, last), first_offset, last_offset)| Appended {
        first_seq: Seq(first),
        last_seq: Seq(last),
        first_offset,
        last_offset,
    });
    let parts = (option::of(duplicate), option::of(appended));
    (session_epoch(), parts).prop_map(|(session_epoch, (duplicate, appended))| Published {
        session_epoch,
        duplicate,
        appended,
    })
}

fn cancel_outcome() -> impl Strategy<Value = CancelOutcome> {
    prop_oneof![
        offset().prop_map(|offset| CancelOutcome::Applied { offset }),
        (run_state(), offset())
            .prop_map(|(state, offset)| CancelOutcome::AlreadyTerminal { state, offset }),
        Just(CancelOutcome::Denied),
        Just(CancelOutcome::UnknownRun),
    ]
}

/// One strategy for each kind of outcome.
pub(crate) fn outcome() -> impl Strategy<Value = Outcome> {
    let epoch = session_epoch;
    prop_oneof![
        (epoch(), offset(), any::<bool>()).prop_map(|(session_epoch, tail, created)| {
            Outcome::SessionReady {
                session_epoch,
                tail,
                created,
            }
        }),
        any::<bool>().prop_map(|existed| Outcome::SessionDeleted { existed }),
        (epoch(), any::<bool>()).prop_map(|(session_epoch, frozen)| Outcome::SessionUnfrozen {
            session_epoch,
            frozen,
        }),
        (epoch(), run_epoch(), offset(), any::<bool>()).prop_map(
            |(session_epoch, run_epoch, offset, duplicate)| Outcome::RunGranted {
                session_epoch,
                run_epoch,
                offset,
                duplicate,
            }
        ),
        published().prop_map(Outcome::Published),
        (epoch(), offset(), any::<bool>()).prop_map(|(session_epoch, offset, duplicate)| {
            Outcome::Posted {
                session_epoch,
                offset,
                duplicate,
            }
        }),
        (epoch(), cancel_outcome(), any::<bool>()).prop_map(
            |(session_epoch, outcome, duplicate)| Outcome::Cancelled {
                session_epoch,
                outcome,
                duplicate,
            }
        ),
        refusal().prop_map(Outcome::Refused),
    ]
}

fn head() -> impl Strategy<Value = HeadRow> {
    let numbers = any::<(u64, u64, u64, u32, u32, u32)>();
    let frozen = (any::<u64>(), "[a-z]{1,8}").prop_map(|(time, command)| Frozen {
        time: Timestamp(time),
        command,
    });
    let due = any::<u64>().prop_map(Timestamp);
    let rest = (option::of(frozen), option::of(due));
    let head = (offset(), offset(), numbers, rest);
    head.prop_map(|(tail, trimmed, numbers, (frozen, keys_due))| HeadRow {
        created: Timestamp(numbers.0),
        last_time: Timestamp(numbers.1),
        tail,
        trimmed,
        bytes: numbers.2,
        live_runs: numbers.3,
        day: numbers.4,
        people_today: numbers.5,
        frozen,
        keys_due,
    })
}

fn run() -> impl Strategy<Value = RunRow> {
    let names = (participant(), option::of(name()), vec(name(), 0..4));
    let places = (offset(), option::of(offset()));
    let rest = (run_state(), run_epoch(), any::<bool>(), any::<u32>());
    (names, places, rest).prop_map(|(names, places, rest)| RunRow {
        state: rest.0,
        run_epoch: rest.1,
        writer: names.0,
        input: names.1,
        started: places.0,
        ended: places.1,
        epoch_closed: rest.2,
        open_messages: names.2,
        open_parts: rest.3,
    })
}

fn epoch() -> impl Strategy<Value = EpochRow> {
    let row = (participant(), offset(), offset(), any::<(u64, u64)>());
    row.prop_map(|(writer, granted, last_offset, numbers)| EpochRow {
        writer,
        granted,
        last_seq: Seq(numbers.0),
        last_offset,
        batches: numbers.1,
    })
}

fn message() -> impl Strategy<Value = MessageRow> {
    let parts = vec(name(), 0..4);
    let row = (
        name(),
        role(),
        offset(),
        option::of(message_status()),
        parts,
    );
    row.prop_map(|(run, role, started, status, open_parts)| MessageRow {
        run,
        role,
        started,
        status,
        open_parts,
    })
}

/// One strategy for each kind of row.
pub(crate) fn row() -> impl Strategy<Value = Row> {
    let batch = (any::<(u64, u64)>(), offset());
    let key = (any::<(u128, u64)>(), offset(), option::of(run_epoch()));
    prop_oneof![
        any::<u64>().prop_map(|number| Row::Name(NameRow {
            session_no: SessionNo(number)
        })),
        any::<u64>().prop_map(Row::Counter),
        head().prop_map(Row::Head),
        run().prop_map(Row::Run),
        epoch().prop_map(Row::Epoch),
        batch.prop_map(|((first, last), first_offset)| Row::Batch(BatchRow {
            first_seq: Seq(first),
            last_seq: Seq(last),
            first_offset
        })),
        message().prop_map(Row::Message),
        (part_kind(), any::<(bool, u64, u64)>()).prop_map(|(kind, (open, bytes, deltas))| {
            Row::Part(PartRow {
                kind,
                open,
                bytes,
                deltas,
            })
        }),
        offset().prop_map(|offset| Row::Input(InputRow { offset })),
        key.prop_map(|((body_hash, time), offset, run_epoch)| Row::Key(KeyRow {
            body_hash,
            offset,
            run_epoch,
            time: Timestamp(time)
        })),
        any::<u64>().prop_map(|guard| Row::Timer(TimerRow { guard })),
        Just(Row::Index),
    ]
}
