//! Runs that wait, and approvals, at a node's door.

use everwire_core::event::{Body, Draft, SuspendReason, Verdict};
use everwire_core::{Code, ParticipantKind, Refusal, Request, Timestamp};
use everwire_proto::v1;
use v1::signal_request::Signal as Call;

use crate::support::{Somebody, app, bare, code, node, token};

const MAY: &str = "subscribe,signal:pause,signal:resume,signal:approve,signal:deny";

async fn press(who: &Somebody, signal: Call, key: &str) -> Result<v1::SignalResponse, Refusal> {
    let request = who.ask(v1::SignalRequest {
        session: "s".to_owned(),
        key: key.to_owned(),
        signal: Some(signal),
    });
    bare(who.signals().signal(request).await)
}

fn aim(run: &str) -> v1::SignalAim {
    v1::SignalAim {
        target: Some(v1::signal_aim::Target::Run(run.to_owned())),
    }
}

async fn pause(who: &Somebody, run: &str, key: &str) -> Result<v1::SignalResponse, Refusal> {
    press(who, Call::Pause(aim(run)), key).await
}

async fn resume(who: &Somebody, run: &str, key: &str) -> Result<v1::SignalResponse, Refusal> {
    press(who, Call::Resume(aim(run)), key).await
}

fn answer(approval: &str, hash: &str) -> v1::Answer {
    v1::Answer {
        approval: approval.to_owned(),
        action_hash: hash.to_owned(),
        note: String::new(),
    }
}

async fn approve(who: &Somebody, id: &str, hash: &str) -> Result<v1::SignalResponse, Refusal> {
    press(who, Call::Approve(answer(id, hash)), "k").await
}

async fn deny(who: &Somebody, id: &str, key: &str) -> Result<v1::SignalResponse, Refusal> {
    press(who, Call::Deny(answer(id, "h")), key).await
}

async fn get(who: &Somebody, run: &str) -> v1::GetResponse {
    let request = who.ask(v1::GetRequest {
        session: "s".to_owned(),
        run: run.to_owned(),
    });
    bare(who.runs().get(request).await).unwrap()
}

fn request(approval: &str, approver: &str) -> Draft {
    Draft::new(Body::ApprovalRequested(Request {
        approval: approval.parse().unwrap(),
        action: "Do it".to_owned(),
        action_hash: "h".parse().unwrap(),
        approvers: vec![approver.parse().unwrap()],
        within_ms: 0,
        deadline: Timestamp(0),
        on_expiry: Verdict::Deny,
        data: None,
    }))
}

#[tokio::test]
async fn a_pause_is_told_to_a_silent_writer_and_its_end_lets_it_claim() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let step = Body::StepStart {
        step: "one".parse().unwrap(),
        attempt: 0,
        name: None,
    };
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(1, &[Draft::new(step)]).await;
    writer.acked_through(1).await;
    let ann = agent.with_token(token("ann", ParticipantKind::User, "s", MAY));

    let paused = pause(&ann, "r", "k1").await.unwrap();
    assert_eq!(
        (paused.outcome.as_str(), paused.offset),
        ("applied", Some(3))
    );
    let told = writer.refusal(0).await;
    assert_eq!(
        (told.code, told.details.state),
        (Code::WrongState, Some("suspended"))
    );
    let stands = get(&agent, "r").await;
    let stands = (
        stands.state.as_str(),
        stands.suspended.as_str(),
        stands.step.as_str(),
    );
    assert_eq!(stands, ("suspended", "paused", "one"));
    let beat = agent.ask(v1::HeartbeatRequest {
        session: "s".to_owned(),
        run: "r".to_owned(),
        run_epoch: 1,
        ..v1::HeartbeatRequest::default()
    });
    let renewed = bare(agent.runs().heartbeat(beat).await).unwrap();
    assert_eq!(renewed.state, "suspended");
    writer.batch(2, &[app("late")]).await;
    assert_eq!(writer.refusal(2).await.code, Code::WrongState);

    let again = pause(&ann, "r", "k1").await.unwrap();
    assert_eq!((again.offset, again.duplicate), (Some(3), true));
    assert_eq!(code(pause(&ann, "r", "k2").await), Code::WrongState);
    assert_eq!(
        resume(&ann, "r9", "k3").await.unwrap().outcome,
        "unknown_run"
    );
    let resumed = resume(&ann, "r", "k4").await.unwrap();
    assert_eq!(
        (resumed.outcome.as_str(), resumed.offset),
        ("applied", Some(5))
    );
    let claimed = agent.claim("s", "r").await.unwrap();
    assert_eq!(claimed.run_epoch, 2);
    agent.append(("s", "r", 2), 1, &[app("on")]).await.unwrap();
}

#[tokio::test]
async fn an_approval_is_given_by_whom_it_is_kept_to_and_by_nobody_else() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let waits = Body::RunSuspended {
        reason: SuspendReason::Approval,
        note: None,
    };
    let drafts = [request("a", "ann"), Draft::new(waits)];
    agent.append(("s", "r", 1), 1, &drafts).await.unwrap();
    let ann = agent.with_token(token("ann", ParticipantKind::User, "s", MAY));
    let bob = agent.with_token(token("bob", ParticipantKind::User, "s", MAY));
    let nobody = agent.with_token(token("ann", ParticipantKind::User, "s", "subscribe"));

    let without = approve(&nobody, "a", "h").await.unwrap();
    assert_eq!((without.outcome.as_str(), without.offset), ("denied", None));
    assert_eq!(code(approve(&bob, "a", "h").await), Code::Denied);
    assert_eq!(code(deny(&ann, "b", "k").await), Code::UnknownApproval);
    assert_eq!(code(approve(&ann, "a", "g").await), Code::WrongState);
    assert_eq!(code(approve(&ann, "a", "").await), Code::Malformed);
    let yes = approve(&ann, "a", "h").await.unwrap();
    assert_eq!((yes.outcome.as_str(), yes.offset), ("applied", Some(4)));
    assert_eq!(get(&agent, "r").await.state, "running");
    let late = deny(&ann, "a", "k2").await.unwrap_err();
    assert_eq!(late.code, Code::AlreadyResolved);
    assert_eq!(late.details.by.unwrap().as_str(), "ann");
}
