//! The life of runs, and the stop.

use everwire_core::{Code, ParticipantKind};
use everwire_proto::v1;
use v1::publish_stream_request::Message as In;
use v1::publish_stream_response::Message as Out;

use crate::support::{
    Somebody, agent_token, app, bare, code, completed, message_start, node, open, part_start, token,
};

async fn get(caller: &Somebody, run: &str) -> Result<v1::GetResponse, everwire_core::Refusal> {
    let request = caller.ask(v1::GetRequest {
        session: "s".to_owned(),
        run: run.to_owned(),
    });
    bare(caller.runs().get(request).await)
}

#[tokio::test]
async fn a_cancel_fences_the_run_at_its_offset() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(1, &[message_start(), part_start()]).await;
    writer.acked_through(2).await;
    let words = "subscribe,publish,signal:cancel";
    let ann = agent.with_token(token("ann", ParticipantKind::User, "s", words));

    let stop = ann.cancel("s", "r", "k").await.unwrap();
    assert_eq!((stop.outcome.as_str(), stop.offset), ("applied", Some(4)));
    // The writer is silent, and hears of it all the same.
    let told = writer.refusal(0).await;
    assert_eq!(told.code, Code::RunFenced);
    assert_eq!(told.details.cancel_offset.unwrap().get(), 4);
    let again = ann.cancel("s", "r", "k").await.unwrap();
    assert_eq!((again.offset, again.duplicate), (Some(4), true));
    let late = ann.cancel("s", "r", "k2").await.unwrap();
    assert_eq!(late.outcome, "already_terminal");
    assert_eq!(
        (late.offset, late.state.as_deref()),
        (Some(4), Some("cancelled"))
    );
    let unknown = ann.cancel("s", "r9", "k3").await.unwrap();
    assert_eq!(
        (unknown.outcome.as_str(), unknown.offset),
        ("unknown_run", None)
    );
    let reused = ann.cancel("s", "r9", "k").await;
    assert_eq!(code(reused), Code::KeyReused);

    writer.batch(3, &[app("late")]).await;
    let refusal = writer.refusal(3).await;
    assert_eq!(refusal.code, Code::RunFenced);
    assert_eq!(refusal.details.cancel_offset.unwrap().get(), 4);
    assert_eq!(code(agent.start("s", "r").await), Code::RunFenced);
    assert_eq!(code(agent.claim("s", "r").await), Code::RunFenced);
    // The message was sealed by the server: 4 signal, 5 run.cancelled, 6 message.end.
    assert_eq!(agent.read("s").await.unwrap().events.unwrap().to, 6);
    assert_eq!(get(&agent, "r").await.unwrap().state, "cancelled");
    node.stop().await;
}

#[tokio::test]
async fn a_stream_that_opens_after_the_stop_is_told_and_may_resend() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut before = agent.open("s", "r", 1).await.unwrap();
    before.batch(1, &[app("committed")]).await;
    before.acked_through(1).await;
    drop(before);
    agent.cancel("s", "r", "k").await.unwrap();
    let mut after = agent.unopened().await.unwrap();
    after.send(In::Open(open("s", "r", 1))).await;
    let Ok(Some(Out::Opened(opened))) = after.next().await else {
        panic!("it opens");
    };
    assert_eq!(opened.over.unwrap().code, "RUN_FENCED");
    after.batch(1, &[app("committed")]).await;
    let ack = after.ack().await;
    assert!(ack.ranges[0].duplicate && ack.ranges[0].first_offset == 2);
    node.stop().await;
}

#[tokio::test]
async fn a_stop_needs_its_capability_and_says_denied() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let bob = agent.with_token(token(
        "bob",
        ParticipantKind::User,
        "*",
        "subscribe,publish",
    ));
    for session in ["s", "no-such-session"] {
        let outcome = bob.cancel(session, "r", "k").await.unwrap();
        assert_eq!(outcome.outcome, "denied");
        assert_eq!(
            outcome.session_epoch, "",
            "nothing is told about the session"
        );
    }
    assert_eq!(code(agent.cancel("s", "r", "").await), Code::Malformed);
    assert_eq!(
        code(agent.cancel("none", "r", "k").await),
        Code::UnknownSession
    );
    assert_eq!(get(&agent, "r").await.unwrap().state, "running");
    assert_eq!(agent.read("s").await.unwrap().events.unwrap().to, 1);
    node.stop().await;
}

#[tokio::test]
async fn a_claim_makes_the_old_writer_stale() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut old = agent.open("s", "r", 1).await.unwrap();
    old.batch(1, &[app("one")]).await;
    old.acked_through(1).await;
    assert_eq!(code(agent.start("s", "r").await), Code::AlreadyClaimed);
    let claimed = agent.claim("s", "r").await.unwrap();
    assert_eq!((claimed.run_epoch, claimed.offset), (2, 3));
    let told = old.refusal(0).await;
    assert_eq!(told.code, Code::StaleEpoch);
    old.batch(2, &[app("two")]).await;
    let refusal = old.refusal(2).await;
    assert_eq!(refusal.code, Code::StaleEpoch);
    assert_eq!(refusal.details.run_epoch.unwrap().0, 2);
    assert_eq!(refusal.details.last_seq.unwrap().0, 1);
    assert_eq!(refusal.details.last_offset.unwrap().get(), 2);

    let other = agent.with_token(agent_token("other"));
    let foreign = other.claim("s", "r").await.unwrap_err();
    assert_eq!(foreign.code, Code::AlreadyClaimed);
    assert_eq!(foreign.details.by.unwrap().as_str(), "agent");
    assert_eq!(
        code(other.append(("s", "r", 2), 1, &[app("x")]).await),
        Code::Denied
    );
    agent.append(("s", "r", 2), 1, &[app("two")]).await.unwrap();
    let info = get(&agent, "r").await.unwrap();
    assert_eq!((info.run_epoch, info.last_seq, info.last_offset), (2, 1, 4));
    assert_eq!(info.writer, "agent");
    node.stop().await;
}

#[tokio::test]
async fn an_ended_run_takes_nothing_more() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    agent
        .append(("s", "r", 1), 1, &[completed()])
        .await
        .unwrap();
    let refusal = agent
        .append(("s", "r", 1), 2, &[app("late")])
        .await
        .unwrap_err();
    assert_eq!(refusal.code, Code::RunEnded);
    assert_eq!(refusal.details.state, Some("completed"));
    assert_eq!(refusal.details.offset.unwrap().get(), 2);
    let info = get(&agent, "r").await.unwrap();
    assert_eq!((info.state.as_str(), info.ended), ("completed", Some(2)));
    assert_eq!(code(get(&agent, "r9").await), Code::UnknownRun);
    node.stop().await;
}

#[tokio::test]
async fn a_start_with_a_key_can_be_repeated() {
    let node = node().await;
    let agent = node.agent().await;
    let request = || {
        agent.ask(v1::StartRequest {
            session: "s".to_owned(),
            run: "r".to_owned(),
            input: "i".to_owned(),
            key: "k".to_owned(),
            ..v1::StartRequest::default()
        })
    };
    let first = bare(agent.runs().start(request()).await).unwrap();
    let again = bare(agent.runs().start(request()).await).unwrap();
    assert!(!first.duplicate && again.duplicate);
    assert_eq!((again.run_epoch, again.offset), (1, first.offset));
    assert_eq!(get(&agent, "r").await.unwrap().input, "i");
    node.stop().await;
}
