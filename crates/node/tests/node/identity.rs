//! Tokens, and what they allow.

use std::time::Duration;

use everwire_core::{Clock, Code, ParticipantKind, Refusal};
use everwire_proto::v1;

use crate::support::{
    EVERYTHING, SECRET, Somebody, SystemClock, agent_token, app, bare, claims, code, mint, node,
    refused, token,
};

async fn status(caller: &Somebody) -> Result<v1::StatusResponse, Refusal> {
    let request = caller.ask(v1::StatusRequest {});
    bare(caller.cluster().status(request).await)
}

/// A token without a signature whose header says so, with the claims of a good one.
fn unsigned() -> String {
    let good = agent_token("agent");
    let payload = good.split('.').nth(1).unwrap();
    // {"alg":"none","typ":"JWT"}
    format!("eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0.{payload}.")
}

#[tokio::test]
async fn a_token_that_is_not_good_opens_nothing() {
    let node = node().await;
    let agent = node.agent().await;
    agent.create("s").await.unwrap();
    let mut expired = claims("agent", ParticipantKind::Agent, "*", EVERYTHING);
    expired.expires = everwire_core::Timestamp(1_000);
    let forged = mint(
        &claims("agent", ParticipantKind::Agent, "*", EVERYTHING),
        b"another secret, as long as the real one is",
    );
    let mut other_payload = agent_token("agent");
    let dot = other_payload.find('.').unwrap();
    other_payload.replace_range(dot + 1..dot + 2, "f");
    let bad = [
        ("", Code::Unauthenticated),
        ("junk", Code::Unauthenticated),
        (unsigned().as_str(), Code::Unauthenticated),
        (forged.as_str(), Code::Unauthenticated),
        (other_payload.as_str(), Code::Unauthenticated),
        (mint(&expired, SECRET).as_str(), Code::TokenExpired),
    ]
    .map(|(token, code)| (agent.with_token(token), code));
    for (caller, expected) in &bad {
        assert_eq!(code(caller.create("s").await), *expected);
        assert_eq!(code(caller.read("s").await), *expected);
        assert_eq!(code(caller.start("s", "r").await), *expected);
        assert_eq!(code(caller.post("s", app("x"), "").await), *expected);
        assert_eq!(
            code(caller.cancel("s", "r", "k").await),
            *expected,
            "no outcome"
        );
        assert_eq!(caller.unopened().await.err().unwrap().code, *expected);
        let asked = v1::FollowRequest {
            session: "s".to_owned(),
            ..v1::FollowRequest::default()
        };
        assert_eq!(caller.follow(asked).await.err().unwrap().code, *expected);
    }
    // The connection is the same one all along, and serves on.
    assert!(agent.read("s").await.is_ok());
    node.stop().await;
}

#[tokio::test]
async fn a_header_without_bearer_is_no_token() {
    let node = node().await;
    let agent = node.agent().await;
    for header in ["", "Bearer", "Bearer ", "Basic YTpi"] {
        let mut request = tonic::Request::new(v1::CreateRequest {
            session: "s".to_owned(),
        });
        let header = header.parse().unwrap();
        request.metadata_mut().insert("authorization", header);
        let status = agent.sessions().create(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert_eq!(refused(&status).code, Code::Unauthenticated);
    }
    node.stop().await;
}

#[tokio::test]
async fn each_call_needs_its_capability() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let with = |words: &str| agent.with_token(token("bob", ParticipantKind::Agent, "*", words));
    let without = |word: &str| {
        let words: Vec<_> = EVERYTHING.split(',').filter(|one| *one != word).collect();
        with(&words.join(","))
    };
    assert_eq!(code(without("create").create("s").await), Code::Denied);
    assert_eq!(code(without("subscribe").read("s").await), Code::Denied);
    let asked = v1::FollowRequest {
        session: "s".to_owned(),
        ..v1::FollowRequest::default()
    };
    let denied = without("subscribe").follow(asked).await.err().unwrap();
    assert_eq!(denied.code, Code::Denied);
    assert_eq!(
        code(without("publish").post("s", app("x"), "").await),
        Code::Denied
    );
    assert_eq!(code(without("run").start("s", "r2").await), Code::Denied);
    assert_eq!(code(without("run").claim("s", "r").await), Code::Denied);
    let denied = without("run").open("s", "r", 1).await.err().unwrap();
    assert_eq!(denied.code, Code::Denied);
    let delete = v1::DeleteRequest {
        session: "s".to_owned(),
    };
    let caller = without("admin");
    let denied = caller.sessions().delete(caller.ask(delete)).await;
    assert_eq!(code(bare(denied)), Code::Denied);
    assert_eq!(code(status(&with(EVERYTHING)).await), Code::Denied);
    let shards = status(&with("operate")).await.unwrap().shards;
    assert_eq!(shards.len(), 2);

    // Either right shows a run.
    for (words, expected) in [
        ("run", None),
        ("subscribe", None),
        ("publish", Some(Code::Denied)),
    ] {
        let caller = with(words);
        let request = caller.ask(v1::GetRequest {
            session: "s".to_owned(),
            run: "r".to_owned(),
        });
        let answer = bare(caller.runs().get(request).await);
        assert_eq!(answer.err().map(|refusal| refusal.code), expected);
    }
    node.stop().await;
}

#[tokio::test]
async fn without_create_a_missing_session_stays_missing() {
    let node = node().await;
    let agent = node.agent().await;
    let words = "subscribe,publish,run,signal:cancel";
    let bob = agent.with_token(token("bob", ParticipantKind::Agent, "*", words));
    assert_eq!(code(bob.start("s", "r").await), Code::UnknownSession);
    assert_eq!(
        code(bob.post("s", app("x"), "").await),
        Code::UnknownSession
    );
    assert_eq!(
        code(bob.append(("s", "r", 1), 1, &[app("x")]).await),
        Code::UnknownSession
    );
    assert_eq!(code(bob.claim("s", "r").await), Code::UnknownSession);
    assert_eq!(code(bob.read("s").await), Code::UnknownSession);
    node.stop().await;
}

#[tokio::test]
async fn whoever_may_not_read_a_name_is_not_told_whether_it_exists() {
    let node = node().await;
    let agent = node.agent().await;
    agent.create("there").await.unwrap();
    let eve = agent.with_token(token("eve", ParticipantKind::User, "own-*", EVERYTHING));
    for session in ["there", "not-there"] {
        assert_eq!(code(eve.read(session).await), Code::Denied);
        assert_eq!(code(eve.post(session, app("x"), "").await), Code::Denied);
        assert_eq!(code(eve.start(session, "r").await), Code::Denied);
        assert_eq!(code(eve.create(session).await), Code::Denied);
        assert_eq!(
            eve.cancel(session, "r", "k").await.unwrap().outcome,
            "denied"
        );
    }
    assert!(eve.create("own-1").await.unwrap().created);
    node.stop().await;
}

#[tokio::test]
async fn one_tenant_never_meets_another() {
    let node = node().await;
    let agent = node.agent().await;
    agent.post("s", app("ours"), "").await.unwrap();
    let mut foreign = claims("agent", ParticipantKind::Agent, "*", EVERYTHING);
    foreign.namespace = Some("other".parse().unwrap());
    let foreign = agent.with_token(mint(&foreign, SECRET));
    assert_eq!(code(foreign.read("s").await), Code::UnknownSession);
    assert!(
        foreign.create("s").await.unwrap().created,
        "a session of its own"
    );
    assert_eq!(foreign.read("s").await.unwrap().events.unwrap().tail, 0);
    assert_eq!(agent.read("s").await.unwrap().events.unwrap().tail, 1);
    let request = foreign.ask(v1::ReadRequest {
        session: "s".to_owned(),
        namespace: "acme".to_owned(),
        ..v1::ReadRequest::default()
    });
    assert_eq!(
        code(bare(foreign.attach().read(request).await)),
        Code::Denied
    );
    node.stop().await;
}

#[tokio::test]
async fn a_stream_ends_with_its_token_and_the_run_does_not() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut brief = claims("agent", ParticipantKind::Agent, "*", EVERYTHING);
    brief.expires = SystemClock::new().now().plus(Duration::from_secs(3));
    let brief = agent.with_token(mint(&brief, SECRET));
    let mut writer = brief.open("s", "r", 1).await.unwrap();
    let mut reader = brief
        .follow(v1::FollowRequest {
            session: "s".to_owned(),
            ..v1::FollowRequest::default()
        })
        .await
        .unwrap();
    reader.attached().await;
    writer.batch(1, &[app("in time")]).await;
    assert_eq!(writer.acked_through(1).await.through_offset, 2);

    assert_eq!(reader.ended().await.code, Code::TokenExpired);
    assert_eq!(code(writer.next().await), Code::TokenExpired);
    assert_eq!(
        code(brief.cancel("s", "r", "k").await),
        Code::TokenExpired,
        "a stop needs a good token"
    );
    // The run is as it was; a new token goes on.
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(2, &[app("on")]).await;
    assert_eq!(writer.acked_through(2).await.through_offset, 3);
    node.stop().await;
}
