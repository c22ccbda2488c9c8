//! What the golden files hold of commands and events.

pub(crate) mod rules_3;

use std::time::Duration;

use bytes::Bytes;
use everwire_core::clock::Timestamp;
use everwire_core::command::{Batch, Command, Control, Expire, Fire, Op, StartRun};
use everwire_core::event::{
    Author, Body, Data, Draft, MessageStatus, PartKind, ParticipantKind, Role, StepStatus,
};
use everwire_core::position::{Offset, RunEpoch, Seq};
use everwire_core::row::{RunState, SessionKey, TimerKind};
use everwire_core::{Cancel, Guard, InputRef, Lease, ParticipantId, SessionNo, Slot, Target};
use everwire_proto::hash::{body_hash, cancel_hash};

pub(crate) fn offset(number: u64) -> Offset {
    Offset::new(number).unwrap()
}

pub(crate) fn participant() -> ParticipantId {
    "auth0|ann@example.com".parse().unwrap()
}

pub(crate) fn bodies() -> Vec<Body> {
    let json = Some(Data::Json("{\"q\": [1, \"é\"]}".into()));
    let binary = Some(Data::Binary(Bytes::from_static(&[0, 255, 7])));
    let (message, part) = ("m1".parse().unwrap(), "p1".parse().unwrap());
    vec![
        Body::RunStarted {
            input: Some(InputRef::of_anybody("i1".parse().unwrap())),
            parent: None,
            meta: None,
        },
        Body::RunClaimed,
        Body::RunCompleted,
        Body::RunFailed {
            reason: "out of tokens".into(),
        },
        Body::RunCancelled {
            cancel_offset: offset(41),
        },
        Body::MessageStart {
            message,
            role: Role::Assistant,
        },
        Body::MessageEnd {
            message: "m1".parse().unwrap(),
            status: MessageStatus::Cancelled,
        },
        Body::PartStart {
            message: "m1".parse().unwrap(),
            part,
            kind: PartKind::ToolCall,
            name: Some("search".into()),
            data: json.clone(),
        },
        Body::PartDelta {
            message: "m1".parse().unwrap(),
            part: "p1".parse().unwrap(),
            position: 300,
            text: "Hellö".into(),
        },
        Body::PartEnd {
            message: "m1".parse().unwrap(),
            part: "p1".parse().unwrap(),
            data: binary.clone(),
        },
        Body::Input {
            input: "i1".parse().unwrap(),
            text: "what is new?".into(),
            data: json,
        },
        Body::SignalCancel {
            target: Target::Run("r1".parse().unwrap()),
            grace_ms: None,
        },
        Body::App {
            name: "cart.changed".into(),
            data: binary,
        },
    ]
}

/// Bodies that came with the second rules, by the names of their files.
pub(crate) fn later_bodies() -> Vec<(&'static str, Body)> {
    let json = || Some(Data::Json("{\"tokens\": 300}".into()));
    let cancel = |target| Body::SignalCancel {
        target,
        grace_ms: Some(2_000),
    };
    vec![
        (
            "run-started-child",
            Body::RunStarted {
                input: Some(input()),
                parent: Some("r0".parse().unwrap()),
                meta: json(),
            },
        ),
        ("run-orphaned", Body::RunOrphaned),
        ("run-epilogue", Body::RunEpilogue { data: json() }),
        (
            "step-start",
            Body::StepStart {
                step: "s1".parse().unwrap(),
                attempt: 2,
                name: Some("search".into()),
            },
        ),
        (
            "step-end",
            Body::StepEnd {
                step: "s1".parse().unwrap(),
                status: StepStatus::Failed,
                reason: Some("no answer".into()),
            },
        ),
        (
            "signal-cancel-subtree",
            cancel(Target::Subtree("r1".parse().unwrap())),
        ),
        ("signal-cancel-input", cancel(Target::Input(input()))),
        ("signal-cancel-session", cancel(Target::Session)),
        (
            "signal-observed",
            Body::SignalObserved {
                signal_offset: offset(41),
            },
        ),
    ]
}

fn input() -> InputRef {
    InputRef {
        input: "i1".parse().unwrap(),
        author: Some(participant()),
    }
}

pub(crate) fn author() -> Author {
    Author {
        participant: participant(),
        kind: ParticipantKind::Agent,
    }
}

pub(crate) fn batch() -> Batch {
    let draft = Draft::new(bodies().remove(10));
    let body_hash = body_hash(&draft);
    let key = || "k1".parse().unwrap();
    let run = || "r1".parse().unwrap();
    let ops = [
        Op::CreateSession,
        Op::DeleteSession,
        Op::StartRun(StartRun {
            input: Some(InputRef::of_anybody("i1".parse().unwrap())),
            key: Some(key()),
            ..StartRun::new(run())
        }),
        Op::ClaimRun {
            run: run(),
            lease: None,
            key: None,
        },
        Op::Publish {
            run: run(),
            run_epoch: RunEpoch(2),
            first_seq: Seq(9),
            drafts: bodies().into_iter().map(Draft::new).collect(),
        },
        Op::Post {
            draft,
            key: Some(key()),
            body_hash,
        },
        Op::Cancel {
            cancel: Cancel::run(run()),
            key: key(),
            body_hash: cancel_hash(&Cancel::run(run())),
        },
    ];
    Batch {
        stamp: Timestamp(1_700_000_000_042),
        rules_version: 1,
        timeline: 1,
        control: Vec::new(),
        commands: ops.into_iter().map(command).collect(),
    }
}

fn command(op: Op) -> Command {
    Command {
        namespace: "acme".parse().unwrap(),
        session: "chat-1".parse().unwrap(),
        actor: author(),
        may_create: true,
        session_epoch: None,
        op,
    }
}

/// Commands that came with the second rules.
pub(crate) fn rules_2() -> Batch {
    let run = || "r1".parse().unwrap();
    let lease = || Lease::new(Duration::from_secs(20)).ok();
    let cancel = |target| Op::Cancel {
        cancel: Cancel {
            target,
            grace_ms: Some(2_000),
            guard: Guard {
                state: Some(RunState::Orphaned),
                as_of: Some(offset(40)),
            },
        },
        key: "k1".parse().unwrap(),
        body_hash: 7,
    };
    let ops = [
        Op::StartRun(StartRun {
            input: Some(input()),
            parent: Some("r0".parse().unwrap()),
            lease: lease(),
            meta: Some(Data::Json("{}".to_owned())),
            ..StartRun::new(run())
        }),
        Op::ClaimRun {
            run: run(),
            lease: lease(),
            key: None,
        },
        Op::Heartbeat {
            run: run(),
            run_epoch: RunEpoch(2),
            observed_through: Some(offset(42)),
        },
        cancel(Target::Subtree(run())),
        cancel(Target::Input(input())),
        cancel(Target::Session),
    ];
    Batch {
        rules_version: 2,
        commands: ops.into_iter().map(command).collect(),
        ..batch()
    }
}

/// A command that came after the golden batch was pinned.
pub(crate) fn unfreeze() -> Batch {
    let mut batch = batch();
    batch.commands.truncate(1);
    for command in &mut batch.commands {
        command.op = Op::Unfreeze;
    }
    batch
}

/// One batch for each thing that a leader asks of its shard.
pub(crate) fn controls() -> Vec<(&'static str, Batch)> {
    let of = |control| Batch {
        control: vec![control],
        commands: Vec::new(),
        ..batch()
    };
    vec![
        (
            "control-raise-rules",
            of(Control::RaiseRules { version: 300 }),
        ),
        ("control-audit", of(Control::Audit)),
        (
            "control-fire",
            of(Control::Fire(Fire {
                session: SessionKey {
                    slot: Slot::new(0x0abc).unwrap(),
                    session_no: SessionNo(300),
                },
                due: Timestamp(1_700_086_400_043),
                kind: TimerKind::StaleKeys,
                guard: 300,
            })),
        ),
        (
            "control-expire",
            of(Control::Expire(Expire {
                session: SessionKey {
                    slot: Slot::new(0x0abc).unwrap(),
                    session_no: SessionNo(300),
                },
                run: "r1".parse().unwrap(),
                run_epoch: RunEpoch(2),
                last_offset: offset(42),
            })),
        ),
    ]
}
