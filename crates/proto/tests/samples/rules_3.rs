//! What came with the third rules: runs that wait, and approvals.

use everwire_core::event::{ApprovalOutcome, Body, Data, SuspendReason, Verdict};
use everwire_core::row::{ApprovalRow, HeadRow, Resolved, Row, RunRow, RunState, TimerRow};
use everwire_core::{Answer, Op, Request, Signal, Target, Timestamp};

use super::{Batch, batch, command, offset, participant};

pub(crate) fn bodies() -> Vec<(&'static str, Body)> {
    let run = || Target::Run("r1".parse().unwrap());
    vec![
        (
            "run-suspended",
            Body::RunSuspended {
                reason: SuspendReason::Auth,
                note: Some("Sign in".to_owned()),
            },
        ),
        ("run-resumed", Body::RunResumed),
        ("signal-pause", Body::SignalPause { target: run() }),
        (
            "signal-pause-subtree",
            Body::SignalPause {
                target: Target::Subtree("r1".parse().unwrap()),
            },
        ),
        (
            "signal-resume",
            Body::SignalResume {
                target: Target::Session,
            },
        ),
        (
            "approval-requested",
            Body::ApprovalRequested(Request {
                approval: "a1".parse().unwrap(),
                action: "Delete 3 files".to_owned(),
                action_hash: "9f2c".parse().unwrap(),
                approvers: vec![participant(), "ann".parse().unwrap()],
                within_ms: 60_000,
                deadline: Timestamp(1_700_000_060_042),
                on_expiry: Verdict::Deny,
                data: Some(Data::Json("{}".to_owned())),
            }),
        ),
        (
            "approval-resolved",
            Body::ApprovalResolved {
                approval: "a1".parse().unwrap(),
                outcome: ApprovalOutcome::Approved,
                note: Some("Fine".to_owned()),
                on_expiry: None,
            },
        ),
        (
            "approval-expired",
            Body::ApprovalResolved {
                approval: "a1".parse().unwrap(),
                outcome: ApprovalOutcome::Expired,
                note: None,
                on_expiry: Some(Verdict::Approve),
            },
        ),
    ]
}

/// `head` and `run` are as the first rules knew them.
pub(crate) fn rows(head: HeadRow, run: RunRow) -> Vec<(&'static str, Row)> {
    let open = ApprovalRow {
        run: "r1".parse().unwrap(),
        action_hash: "9f2c".parse().unwrap(),
        approvers: vec![participant()],
        deadline: Timestamp(1_700_000_060_042),
        due: Some(Timestamp(1_700_000_060_043)),
        on_expiry: Verdict::Deny,
        resolved: None,
    };
    let resolved = ApprovalRow {
        due: None,
        resolved: Some(Resolved {
            outcome: ApprovalOutcome::Denied,
            offset: offset(41),
            by: participant(),
        }),
        ..open.clone()
    };
    vec![
        (
            "head-approvals",
            Row::Head(HeadRow {
                open_approvals: 3,
                ..head
            }),
        ),
        (
            "run-suspended",
            Row::Run(RunRow {
                state: RunState::Suspended,
                suspended: Some(SuspendReason::Approval),
                open_approvals: vec!["a1".parse().unwrap(), "a2".parse().unwrap()],
                ..run
            }),
        ),
        (
            "timer-of-approval",
            Row::Timer(TimerRow {
                guard: 300,
                run: Some("r1".parse().unwrap()),
                approval: Some("a1".parse().unwrap()),
            }),
        ),
        ("approval", Row::Approval(open)),
        ("approval-resolved", Row::Approval(resolved)),
    ]
}

/// Commands that came with them.
pub(crate) fn commands() -> Batch {
    let answer = |verdict, note: Option<&str>| {
        Signal::Answer(Answer {
            approval: "a1".parse().unwrap(),
            verdict,
            action_hash: "9f2c".parse().unwrap(),
            note: note.map(str::to_owned),
        })
    };
    let signals = [
        Signal::Pause(Target::Run("r1".parse().unwrap())),
        Signal::Resume(Target::Session),
        Signal::Pause(Target::Subtree("r1".parse().unwrap())),
        answer(Verdict::Approve, None),
        answer(Verdict::Deny, Some("No")),
    ];
    let signals = signals.into_iter().map(|signal| Op::Signal {
        signal,
        key: "k1".parse().unwrap(),
        body_hash: 7,
    });
    Batch {
        rules_version: 3,
        commands: signals.map(command).collect(),
        ..batch()
    }
}
