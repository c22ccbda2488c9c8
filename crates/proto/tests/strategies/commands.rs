//! Any batch, any outcome and any row.

use everwire_core::Lease;
use everwire_core::clock::Timestamp;
use everwire_core::command::{
    Appended, Batch, Command, Control, Duplicate, Expire, Fire, Op, Outcome, Published,
    SignalOutcome, StartRun,
};
use everwire_core::ids::{Namespace, SessionNo, Slot};
use everwire_core::position::{RunEpoch, Seq};
use everwire_core::row::{
    BatchRow, EpilogueRow, EpochRow, Frozen, HeadRow, InputRow, KeyRow, MessageRow, NameRow,
    PartRow, Row, RunRow, SessionKey, StepRow, TimerKind, TimerRow, TombstoneRow,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::signals::{approval, reason, signal};
use super::{
    author, cancel, data, draft, input_ref, message_status, name, offset, part_kind, participant,
    refusal, role, run_epoch, run_state, session_epoch, step_status,
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
        start().prop_map(Op::StartRun),
        (name(), lease(), option::of(name())).prop_map(|(run, lease, key)| Op::ClaimRun {
            run,
            lease,
            key
        }),
        (name(), run_epoch(), option::of(offset())).prop_map(
            |(run, run_epoch, observed_through)| Op::Heartbeat {
                run,
                run_epoch,
                observed_through
            }
        ),
        publish.prop_map(|(run, epoch, seq, drafts)| Op::Publish {
            run,
            run_epoch: RunEpoch(epoch),
            first_seq: Seq(seq),
            drafts
        }),
        (signal(), name(), any::<u128>()).prop_map(|(signal, key, body_hash)| Op::Signal {
            signal,
            key,
            body_hash
        }),
        (draft(), option::of(name()), any::<u128>()).prop_map(|(draft, key, body_hash)| {
            Op::Post {
                draft,
                key,
                body_hash,
            }
        }),
        (cancel(), name(), any::<u128>()).prop_map(|(cancel, key, body_hash)| Op::Cancel {
            cancel,
            key,
            body_hash
        }),
    ]
}

fn lease() -> impl Strategy<Value = Option<Lease>> {
    option::of((5_000..=3_600_000_u32).prop_map(|ms| Lease::stored(ms).unwrap()))
}

fn start() -> impl Strategy<Value = StartRun> {
    let names = (
        option::of(input_ref()),
        option::of(name()),
        option::of(name()),
    );
    (name(), names, lease(), data()).prop_map(|(run, (input, parent, key), lease, meta)| StartRun {
        run,
        input,
        parent,
        lease,
        meta,
        key,
    })
}

fn session_key() -> impl Strategy<Value = SessionKey> {
    (0..4096u16, any::<u64>()).prop_map(|(slot, number)| SessionKey {
        slot: Slot::new(slot).unwrap(),
        session_no: SessionNo(number),
    })
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
        (
            session_key(),
            select(TimerKind::ALL.to_vec()),
            any::<(u64, u64)>()
        )
            .prop_map(|(session, kind, (due, guard))| {
                Control::Fire(Fire {
                    session,
                    due: Timestamp(due),
                    kind,
                    guard,
                })
            }),
        (session_key(), name(), run_epoch(), offset()).prop_map(
            |(session, run, run_epoch, last_offset)| {
                Control::Expire(Expire {
                    session,
                    run,
                    run_epoch,
                    last_offset,
                })
            }
        ),
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

fn cancel_outcome() -> impl Strategy<Value = SignalOutcome> {
    prop_oneof![
        offset().prop_map(|offset| SignalOutcome::Applied { offset }),
        (run_state(), offset())
            .prop_map(|(state, offset)| SignalOutcome::AlreadyTerminal { state, offset }),
        Just(SignalOutcome::Denied),
        Just(SignalOutcome::UnknownRun),
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
        (epoch(), run_epoch(), offset(), lease(), any::<bool>()).prop_map(
            |(session_epoch, run_epoch, offset, lease, duplicate)| Outcome::RunGranted {
                session_epoch,
                run_epoch,
                offset,
                lease,
                duplicate,
            }
        ),
        (epoch(), run_state(), option::of(offset())).prop_map(
            |(session_epoch, state, observed)| Outcome::Renewed {
                session_epoch,
                state,
                observed,
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
            |(session_epoch, outcome, duplicate)| Outcome::Signalled {
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
    let rest = (option::of(frozen), option::of(due), any::<u32>());
    let head = (offset(), offset(), numbers, rest);
    head.prop_map(
        |(tail, trimmed, numbers, (frozen, keys_due, open_approvals))| HeadRow {
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
            open_approvals,
        },
    )
}

fn run() -> impl Strategy<Value = RunRow> {
    let names = (participant(), option::of(input_ref()), vec(name(), 0..4));
    let places = (offset(), option::of(offset()), option::of(offset()));
    let rest = (run_state(), run_epoch(), any::<bool>(), any::<u32>());
    let later = (
        option::of(name()),
        any::<(u32, u32, u32)>(),
        option::of(name()),
    );
    let times = (
        option::of(any::<u64>()),
        option::of((run_epoch(), any::<u64>())),
        option::of(reason()),
        vec(name(), 0..4),
    );
    (names, places, rest, later, times).prop_map(|(names, places, rest, later, times)| RunRow {
        state: rest.0,
        run_epoch: rest.1,
        input: names.1,
        parent: later.0,
        depth: later.1.0,
        lease_ms: later.1.1,
        lost_at: times.0.map(Timestamp),
        unobserved: places.2,
        epilogue: times.1.map(|(run_epoch, until)| EpilogueRow {
            run_epoch,
            until: Timestamp(until),
        }),
        ended: places.1,
        epoch_closed: rest.2,
        open_messages: names.2,
        open_parts: rest.3,
        open_step: later.2,
        steps: later.1.2,
        suspended: times.2,
        open_approvals: times.3,
        ..RunRow::started(names.0, places.0)
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
        (any::<u32>(), offset(), option::of(step_status())).prop_map(
            |(attempt, started, status)| Row::Step(StepRow {
                attempt,
                started,
                status,
            })
        ),
        (part_kind(), any::<(bool, u64, u64)>()).prop_map(|(kind, (open, bytes, deltas))| {
            Row::Part(PartRow {
                kind,
                open,
                bytes,
                deltas,
            })
        }),
        (offset(), option::of(name()))
            .prop_map(|(offset, run)| Row::Input(InputRow { offset, run })),
        (offset(), author(), any::<u64>()).prop_map(|(cancel_offset, by, until)| {
            Row::Tombstone(TombstoneRow {
                cancel_offset,
                by,
                until: Timestamp(until),
            })
        }),
        key.prop_map(|((body_hash, time), offset, run_epoch)| Row::Key(KeyRow {
            body_hash,
            offset,
            run_epoch,
            time: Timestamp(time)
        })),
        (any::<u64>(), option::of(name()), option::of(name())).prop_map(
            |(guard, run, approval)| Row::Timer(TimerRow {
                guard,
                run,
                approval
            })
        ),
        approval().prop_map(Row::Approval),
        Just(Row::Index),
    ]
}
