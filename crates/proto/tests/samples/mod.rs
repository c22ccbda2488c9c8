//! What the golden files hold of commands and events.

use bytes::Bytes;
use everwire_core::clock::Timestamp;
use everwire_core::command::{Batch, Command, Control, Fire, Op};
use everwire_core::event::{
    Author, Body, Data, Draft, MessageStatus, PartKind, ParticipantKind, Role,
};
use everwire_core::position::{Offset, RunEpoch, Seq};
use everwire_core::row::{SessionKey, TimerKind};
use everwire_core::{ParticipantId, SessionNo, Slot};
use everwire_proto::event::{body_hash, signal_hash};

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
            input: Some("i1".parse().unwrap()),
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
            run: "r1".parse().unwrap(),
        },
        Body::App {
            name: "cart.changed".into(),
            data: binary,
        },
    ]
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
        Op::StartRun {
            run: run(),
            input: Some("i1".parse().unwrap()),
            key: Some(key()),
        },
        Op::ClaimRun {
            run: run(),
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
            run: run(),
            key: key(),
            body_hash: signal_hash(&run()),
        },
    ];
    let command = |op| Command {
        namespace: "acme".parse().unwrap(),
        session: "chat-1".parse().unwrap(),
        actor: author(),
        may_create: true,
        session_epoch: None,
        op,
    };
    Batch {
        stamp: Timestamp(1_700_000_000_042),
        rules_version: 1,
        timeline: 1,
        control: Vec::new(),
        commands: ops.into_iter().map(command).collect(),
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
    ]
}
