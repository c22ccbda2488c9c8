//! Any words of `core` that the rules could make, for property tests.
#![expect(clippy::unwrap_used, reason = "a helper's panic fails its test")]

use std::fmt::Debug;
use std::str::FromStr;

use bytes::Bytes;
use everwire_core::clock::Timestamp;
use everwire_core::event::{
    Author, Body, Codec, Data, Draft, Event, MessageStatus, PartKind, ParticipantKind, Raw, Role,
    RunStamp, StepStatus, Visibility,
};
use everwire_core::ids::ParticipantId;
use everwire_core::position::{Cursor, Offset, RunEpoch, Seq, SessionEpoch};
use everwire_core::row::RunState;
use everwire_core::{Cancel, Code, Details, Guard, InputRef, Refusal, SessionNo, Target};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

pub(crate) mod commands;
pub(crate) mod frames;
pub(crate) mod signals;
pub(crate) mod topology;

/// The last millisecond that RFC 3339 can write.
const TIME_MS_MAX: u64 = everwire_proto::field::TIME_MS_MAX;

pub(crate) fn name<T: FromStr<Err: Debug> + Debug>() -> impl Strategy<Value = T> {
    "[A-Za-z0-9._:~-]{1,12}".prop_map(|text| text.parse().unwrap())
}

pub(crate) fn participant() -> impl Strategy<Value = ParticipantId> {
    "[!-~]{1,12}".prop_map(|text| text.parse().unwrap())
}

pub(crate) fn offset() -> impl Strategy<Value = Offset> {
    prop_oneof![0..100_u64, 0..=Offset::MAX.get()].prop_map(|number| Offset::new(number).unwrap())
}

pub(crate) fn seq() -> impl Strategy<Value = Seq> {
    (1..=Offset::MAX.get()).prop_map(Seq)
}

pub(crate) fn run_epoch() -> impl Strategy<Value = RunEpoch> {
    (1..=u32::MAX).prop_map(RunEpoch)
}

pub(crate) fn session_epoch() -> impl Strategy<Value = SessionEpoch> {
    any::<(u32, u64)>().prop_map(|(timeline, number)| SessionEpoch {
        timeline,
        session_no: SessionNo(number),
    })
}

pub(crate) fn time() -> impl Strategy<Value = Timestamp> {
    (0..=TIME_MS_MAX).prop_map(Timestamp)
}

pub(crate) fn cursor() -> impl Strategy<Value = Cursor> {
    (option::of(session_epoch()), offset()).prop_map(|(session_epoch, offset)| Cursor {
        session_epoch,
        offset,
    })
}

pub(crate) fn bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..40).prop_map(Bytes::from)
}

fn json() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        Just("null".to_owned()),
        any::<i64>().prop_map(|number| number.to_string()),
        any::<String>().prop_map(|text| serde_json::to_string(&text).unwrap()),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|list| format!("[{}]", list.join(",\n "))),
            inner.prop_map(|value| format!("{{\"a\" : {value}}}")),
        ]
    })
}

fn data() -> impl Strategy<Value = Option<Data>> {
    option::of(prop_oneof![
        json().prop_map(Data::Json),
        bytes().prop_map(Data::Binary),
    ])
}

pub(crate) fn role() -> impl Strategy<Value = Role> {
    select(vec![Role::Assistant, Role::User, Role::Tool, Role::System])
}

pub(crate) fn step_status() -> impl Strategy<Value = StepStatus> {
    select(StepStatus::ALL.to_vec())
}

pub(crate) fn message_status() -> impl Strategy<Value = MessageStatus> {
    use MessageStatus::{Cancelled, Complete, Incomplete};
    select(vec![Complete, Cancelled, Incomplete])
}

pub(crate) fn part_kind() -> impl Strategy<Value = PartKind> {
    select(PartKind::ALL.to_vec())
}

/// A body; `positions` says where deltas stand, `attempts` which attempt a step is at, and
/// `stamped` whether the server has said when an approval expires.
fn body(
    stamped: bool,
    positions: impl Strategy<Value = u64> + 'static,
    attempts: impl Strategy<Value = u32> + 'static,
) -> impl Strategy<Value = Body> {
    let part = || (name(), name());
    prop_oneof![
        (option::of(input_ref()), option::of(name()), data()).prop_map(|(input, parent, meta)| {
            Body::RunStarted {
                input,
                parent,
                meta,
            }
        }),
        Just(Body::RunOrphaned),
        data().prop_map(|data| Body::RunEpilogue { data }),
        (name(), attempts, any::<Option<String>>()).prop_map(|(step, attempt, name)| {
            Body::StepStart {
                step,
                attempt,
                name,
            }
        }),
        (name(), step_status(), any::<Option<String>>()).prop_map(|(step, status, reason)| {
            Body::StepEnd {
                step,
                status,
                reason,
            }
        }),
        offset().prop_map(|signal_offset| Body::SignalObserved { signal_offset }),
        Just(Body::RunClaimed),
        Just(Body::RunCompleted),
        any::<String>().prop_map(|reason| Body::RunFailed { reason }),
        offset().prop_map(|cancel_offset| Body::RunCancelled { cancel_offset }),
        (name(), role()).prop_map(|(message, role)| Body::MessageStart { message, role }),
        (name(), message_status())
            .prop_map(|(message, status)| Body::MessageEnd { message, status }),
        (part(), part_kind(), any::<Option<String>>(), data()).prop_map(
            |((message, part), kind, name, data)| Body::PartStart {
                message,
                part,
                kind,
                name,
                data
            }
        ),
        (part(), positions, any::<String>()).prop_map(|((message, part), position, text)| {
            Body::PartDelta {
                message,
                part,
                position,
                text,
            }
        }),
        (part(), data()).prop_map(|((message, part), data)| Body::PartEnd {
            message,
            part,
            data
        }),
        input(),
        (target(), option::of(grace()))
            .prop_map(|(target, grace_ms)| Body::SignalCancel { target, grace_ms }),
        app(),
        signals::body(stamped),
    ]
}

pub(crate) fn input_ref() -> impl Strategy<Value = InputRef> {
    (name(), option::of(participant())).prop_map(|(input, author)| InputRef { input, author })
}

fn target() -> impl Strategy<Value = Target> {
    prop_oneof![
        name().prop_map(Target::Run),
        name().prop_map(Target::Subtree),
        input_ref().prop_map(Target::Input),
        Just(Target::Session),
    ]
}

fn grace() -> impl Strategy<Value = u32> {
    1..=30_000_u32
}

/// Any cancel of the right shape.
pub(crate) fn cancel() -> impl Strategy<Value = Cancel> {
    let guard = (option::of(run_state()), option::of(offset()));
    (target(), option::of(grace()), guard).prop_map(|(target, grace_ms, (state, as_of))| {
        let state = state.filter(|_| target.run().is_some());
        let as_of = as_of.filter(|_| !matches!(target, Target::Input(_)));
        Cancel {
            target,
            grace_ms,
            guard: Guard { state, as_of },
        }
    })
}

fn input() -> impl Strategy<Value = Body> {
    (name(), any::<String>(), data()).prop_map(|(input, text, data)| Body::Input {
        input,
        text,
        data,
    })
}

fn app() -> impl Strategy<Value = Body> {
    (any::<String>(), data()).prop_map(|(name, data)| Body::App { name, data })
}

fn raw() -> impl Strategy<Value = Option<Raw>> {
    let raw = (any::<String>(), bytes());
    option::of(raw.prop_map(|(format, bytes)| Raw { format, bytes }))
}

fn visibility() -> impl Strategy<Value = Visibility> {
    select(Visibility::ALL.to_vec())
}

fn codec() -> impl Strategy<Value = Codec> {
    select(vec![Codec::Plain, Codec::Sealed, Codec::Opaque])
}

fn draft_of(body: impl Strategy<Value = Body>) -> impl Strategy<Value = Draft> {
    let envelope = (option::of(name()), visibility(), any::<String>(), codec());
    let draft = (envelope, body, raw());
    let draft = draft.prop_map(|((parent, visibility, format, codec), body, raw)| Draft {
        parent,
        visibility,
        format,
        codec,
        body,
        raw,
    });
    draft.prop_filter("labels are bounded", |draft| draft.check_shape().is_ok())
}

pub(crate) fn draft() -> impl Strategy<Value = Draft> {
    draft_of(body(false, Just(0), Just(0)))
}

/// An input or an `app` event.
pub(crate) fn posted() -> impl Strategy<Value = Draft> {
    draft_of(prop_oneof![input(), app()])
}

pub(crate) fn author() -> impl Strategy<Value = Author> {
    use ParticipantKind::{Agent, Edge, Operator, User};
    let kind = select(vec![User, Agent, Operator, Edge]);
    (participant(), kind).prop_map(|(participant, kind)| Author { participant, kind })
}

fn stamp() -> impl Strategy<Value = Option<RunStamp>> {
    let stamp = (name(), run_epoch(), option::of(seq()));
    option::of(stamp.prop_map(|(run, run_epoch, seq)| RunStamp {
        run,
        run_epoch,
        seq,
    }))
}

pub(crate) fn event() -> impl Strategy<Value = Event> {
    let draft = draft_of(body(true, 0..=Offset::MAX.get(), any::<u32>()));
    let event = (offset(), time(), stamp(), author(), draft);
    event.prop_map(|(offset, time, run, author, draft)| Event {
        offset,
        time,
        run,
        author,
        parent: draft.parent,
        visibility: draft.visibility,
        format: draft.format,
        codec: draft.codec,
        body: draft.body,
        raw: draft.raw,
    })
}

pub(crate) fn run_state() -> impl Strategy<Value = RunState> {
    select(RunState::ALL.to_vec())
}

pub(crate) fn refusal() -> impl Strategy<Value = Refusal> {
    let epochs = (option::of(run_epoch()), option::of(run_epoch()));
    let seqs = (option::of(seq()), option::of(seq()));
    let place = || option::of(offset());
    let offsets = (place(), place(), place(), place(), place());
    let names = (option::of(run_state()), option::of(participant()));
    let rest = (
        option::of(session_epoch()),
        any::<Option<u64>>(),
        any::<Option<String>>(),
        any::<Option<u64>>(),
        any::<Option<u64>>(),
    );
    let details = (epochs, seqs, offsets, names, rest);
    let details = details.prop_map(|(epochs, seqs, offsets, names, rest)| Details {
        cancel_offset: offsets.0,
        next_epoch: epochs.0,
        run_epoch: epochs.1,
        expected_seq: seqs.0,
        last_seq: seqs.1,
        last_offset: offsets.1,
        state: names.0.map(RunState::as_str),
        offset: offsets.2,
        by: names.1,
        earliest: offsets.3,
        tail: offsets.4,
        session_epoch: rest.0,
        limit: rest.1,
        leader: rest.2,
        term: rest.3,
        map_version: rest.4,
    });
    let refusal = (select(Code::ALL), any::<String>(), details);
    refusal.prop_map(|(code, message, details)| Refusal::with(code, message, details))
}
