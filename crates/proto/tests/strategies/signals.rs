//! Any signal, and whatever belongs to approvals.

use everwire_core::clock::Timestamp;
use everwire_core::event::{ApprovalOutcome, Body, SuspendReason, Verdict};
use everwire_core::row::{ApprovalRow, Resolved};
use everwire_core::{Answer, Request, Signal, Target};
use everwire_proto::signal::Pressed;
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use super::{cancel, data, name, offset, participant, time};

pub(crate) fn reason() -> impl Strategy<Value = SuspendReason> {
    select(SuspendReason::ALL)
}

fn verdict() -> impl Strategy<Value = Verdict> {
    select(Verdict::ALL)
}

fn outcome() -> impl Strategy<Value = ApprovalOutcome> {
    select(ApprovalOutcome::ALL)
}

fn aim() -> impl Strategy<Value = Target> {
    prop_oneof![
        name().prop_map(Target::Run),
        name().prop_map(Target::Subtree),
        Just(Target::Session),
    ]
}

/// Any of the right shape.
pub(crate) fn signal() -> impl Strategy<Value = Signal> {
    let note = option::of("[a-zé ]{1,20}");
    let answer = (name(), verdict(), name(), note);
    prop_oneof![
        aim().prop_map(Signal::Pause),
        aim().prop_map(Signal::Resume),
        answer.prop_map(|(approval, verdict, action_hash, note)| {
            Signal::Answer(Answer {
                approval,
                verdict,
                action_hash,
                note,
            })
        }),
    ]
}

pub(crate) fn pressed() -> impl Strategy<Value = Pressed> {
    prop_oneof![
        cancel().prop_map(Pressed::Cancel),
        signal().prop_map(Pressed::Signal),
    ]
}

/// Bodies of these; `stamped` says whether the server has stamped them.
pub(crate) fn body(stamped: bool) -> impl Strategy<Value = Body> {
    let note = || any::<Option<String>>();
    let deadline = time().prop_map(move |time| if stamped { time } else { Timestamp(0) });
    let names = (name(), any::<String>(), name(), vec(participant(), 0..4));
    let request = (names, 1_000..=100_000_u32, deadline, verdict(), data());
    prop_oneof![
        (reason(), note()).prop_map(|(reason, note)| Body::RunSuspended { reason, note }),
        Just(Body::RunResumed),
        aim().prop_map(|target| Body::SignalPause { target }),
        aim().prop_map(|target| Body::SignalResume { target }),
        request.prop_map(|(names, within_ms, deadline, on_expiry, data)| {
            Body::ApprovalRequested(Request {
                approval: names.0,
                action: names.1,
                action_hash: names.2,
                approvers: names.3,
                within_ms,
                deadline,
                on_expiry,
                data,
            })
        }),
        (name(), outcome(), note(), option::of(verdict())).prop_map(
            |(approval, outcome, note, on_expiry)| Body::ApprovalResolved {
                approval,
                outcome,
                note,
                on_expiry,
            }
        ),
    ]
}

pub(crate) fn approval() -> impl Strategy<Value = ApprovalRow> {
    let resolved = (outcome(), offset(), participant());
    let resolved = resolved.prop_map(|(outcome, offset, by)| Resolved {
        outcome,
        offset,
        by,
    });
    let times = (any::<u64>(), option::of(any::<u64>()));
    let names = (name(), name(), vec(participant(), 0..4));
    let row = (names, times, verdict(), option::of(resolved));
    row.prop_map(|(names, times, on_expiry, resolved)| ApprovalRow {
        run: names.0,
        action_hash: names.1,
        approvers: names.2,
        deadline: Timestamp(times.0),
        due: times.1.map(Timestamp),
        on_expiry,
        resolved,
    })
}
