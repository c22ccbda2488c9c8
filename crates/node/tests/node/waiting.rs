//! Runs that wait, and approvals, at a node's door.

use everwire_core::event::{Body, Draft, SuspendReason, Verdict};
use everwire_core::{Code, ParticipantKind, Refusal, Request, Timestamp};
use everwire_proto::v1;

use crate::support::{Somebody, app, bare, code, node, token};

const MAY: &str = "subscribe,signal:pause,signal:resume,signal:approve,signal:deny";

async fn pause(who: &Somebody, run: &str, key: &str) -> Result<v1::SignalResponse, Refusal> {
    let request = who.ask(v1::PauseRequest {
        session: "s".to_owned(),
        run: run.to_owned(),
        key: key.to_owned(),
        ..v1::PauseRequest::default()
    });
    bare(who.signals().pause(request).await)
}

async fn resume(who: &Somebody, run: &str, key: &str) -> Result<v1::SignalResponse, Refusal> {
    let request = who.ask(v1::ResumeRequest {
        session: "s".to_owned(),
        run: run.to_owned(),
        key: key.to_owned(),
        ..v1::ResumeRequest::default()
    });
    bare(who.signals().resume(request).await)
}

fn answer(approval: &str, hash: &str, key: &str) -> v1::AnswerRequest {
    v1::AnswerRequest {
        session: "s".to_owned(),
        approval: approval.to_owned(),
        action_hash: hash.to_owned(),
        note: String::new(),
        key: key.to_owned(),
    }
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

    let without = nobody.ask(answer("a", "h", "k"));
    let without = bare(nobody.signals().approve(without).await).unwrap();
    assert_eq!((without.outcome.as_str(), without.offset), ("denied", None));
    let foreign = bob.ask(answer("a", "h", "k"));
    assert_eq!(
        code(bare(bob.signals().approve(foreign).await)),
        Code::Denied
    );
    let unknown = ann.ask(answer("b", "h", "k"));
    assert_eq!(
        code(bare(ann.signals().deny(unknown).await)),
        Code::UnknownApproval
    );
    let other = ann.ask(answer("a", "g", "k"));
    assert_eq!(
        code(bare(ann.signals().approve(other).await)),
        Code::WrongState
    );
    let shapeless = ann.ask(answer("a", "", "k"));
    assert_eq!(
        code(bare(ann.signals().approve(shapeless).await)),
        Code::Malformed
    );
    let yes = ann.ask(answer("a", "h", "k"));
    let yes = bare(ann.signals().approve(yes).await).unwrap();
    assert_eq!((yes.outcome.as_str(), yes.offset), ("applied", Some(4)));
    assert_eq!(get(&agent, "r").await.state, "running");
    let late = ann.ask(answer("a", "h", "k2"));
    let late = bare(ann.signals().deny(late).await).unwrap_err();
    assert_eq!(late.code, Code::AlreadyResolved);
    assert_eq!(late.details.by.unwrap().as_str(), "ann");
}
