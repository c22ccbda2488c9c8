//! Tokens that are not good enough: expired, forged, unsigned, of another tenant, without the
//! right that a call needs.

use std::collections::BTreeSet;

use everwire_core::ParticipantKind;
use everwire_core::grant::Capability;
use everwire_proto::v1;
use everwire_testkit::{Lines, grpc, root, tokens as mint};
use serde_json::json;
use tonic::Status;
use v1::attach_client::AttachClient;
use v1::cluster_client::ClusterClient;
use v1::publish_client::PublishClient;
use v1::runs_client::RunsClient;
use v1::sessions_client::SessionsClient;
use v1::signals_client::SignalsClient;

use crate::streams::opened;
use crate::{House, app};

type Answers = Vec<(&'static str, &'static str)>;

/// Every call of the API on a session, with the code that it is answered.
async fn every_call(house: &House, token: &str, session: &str) -> Answers {
    let mut answers = calls_on_sessions(house, token, session.to_owned()).await;
    answers.extend(calls_on_runs(house, token, session.to_owned()).await);
    let mut cluster = ClusterClient::new(house.channel.clone());
    let status = cluster
        .status(grpc::with(token, v1::StatusRequest {}))
        .await;
    answers.push(("Cluster.Status", said(status)));
    let watch = v1::WatchRequest {};
    let watched = cluster.watch(grpc::with(token, watch)).await;
    answers.push(("Cluster.Watch", said(watched)));
    let transfer = v1::TransferRequest { shard: 0, to: 0 };
    let transferred = cluster.transfer(grpc::with(token, transfer)).await;
    answers.push(("Cluster.Transfer", said(transferred)));
    // Nobody has this id: whoever may ask is told so.
    let replace = v1::ReplaceNodeRequest { node: 99 };
    let replaced = cluster.replace_node(grpc::with(token, replace)).await;
    answers.push(("Cluster.ReplaceNode", said(replaced)));
    answers
}

fn said<T>(answer: Result<T, Status>) -> &'static str {
    match answer {
        Ok(_) => "ok",
        refused => grpc::code(refused),
    }
}

async fn calls_on_sessions(house: &House, token: &str, session: String) -> Answers {
    let channel = || house.channel.clone();
    let (mut sessions, mut attach) = (SessionsClient::new(channel()), AttachClient::new(channel()));
    let mut publish = PublishClient::new(channel());
    let name = || session.clone();
    let create = v1::CreateRequest { session: name() };
    let show = v1::ShowRequest { session: name() };
    let follow = v1::FollowRequest {
        session: name(),
        ..v1::FollowRequest::default()
    };
    let read = v1::ReadRequest {
        session: name(),
        ..v1::ReadRequest::default()
    };
    let post = v1::PostRequest {
        session: name(),
        draft: Some(app("x")),
        key: "k".to_owned(),
    };
    let delete = v1::DeleteRequest { session: name() };
    let unfreeze = v1::UnfreezeRequest { session: name() };
    let list = v1::ListRequest::default();
    vec![
        (
            "Sessions.Create",
            said(sessions.create(grpc::with(token, create)).await),
        ),
        (
            "Sessions.Show",
            said(sessions.show(grpc::with(token, show)).await),
        ),
        (
            "Sessions.List",
            said(sessions.list(grpc::with(token, list)).await),
        ),
        (
            "Attach.Follow",
            said(attach.follow(grpc::with(token, follow)).await),
        ),
        (
            "Attach.Read",
            said(attach.read(grpc::with(token, read)).await),
        ),
        (
            "Publish.Post",
            said(publish.post(grpc::with(token, post)).await),
        ),
        (
            "Sessions.Unfreeze",
            said(sessions.unfreeze(grpc::with(token, unfreeze)).await),
        ),
        (
            "Sessions.Delete",
            said(sessions.delete(grpc::with(token, delete)).await),
        ),
    ]
}

async fn calls_on_runs(house: &House, token: &str, session: String) -> Answers {
    let channel = || house.channel.clone();
    let (mut runs, mut publish) = (RunsClient::new(channel()), PublishClient::new(channel()));
    let mut signals = SignalsClient::new(channel());
    let place = || (session.clone(), "r".to_owned(), "k".to_owned());
    let (session, run, key) = place();
    let start = v1::StartRequest {
        session,
        run,
        key,
        ..v1::StartRequest::default()
    };
    let (session, run, key) = place();
    let claim = v1::ClaimRequest {
        session,
        run,
        key,
        ..v1::ClaimRequest::default()
    };
    let (session, run, _) = place();
    let get = v1::GetRequest { session, run };
    let (session, run, key) = place();
    let cancel = v1::CancelRequest {
        session,
        run,
        key,
        ..v1::CancelRequest::default()
    };
    let (session, run, _) = place();
    let append = v1::AppendRequest {
        session,
        run,
        run_epoch: 1,
        batch: Some(v1::PublishBatch {
            first_seq: 1,
            drafts: vec![app("x")],
        }),
        session_epoch: String::new(),
    };
    let (name, run, _) = place();
    vec![
        (
            "Runs.Start",
            said(runs.start(grpc::with(token, start)).await),
        ),
        (
            "Runs.Claim",
            said(runs.claim(grpc::with(token, claim)).await),
        ),
        ("Runs.Heartbeat", heartbeat(house, token, &name).await),
        ("Runs.Get", said(runs.get(grpc::with(token, get)).await)),
        (
            "Publish.Append",
            said(publish.append(grpc::with(token, append)).await),
        ),
        (
            "Publish.Stream",
            opened(house, token, (&name, &run, 1)).await,
        ),
        (
            "Signals.Cancel",
            said(signals.cancel(grpc::with(token, cancel)).await),
        ),
        ("Signals.Signal", paused(house, token, &name).await),
    ]
}

async fn paused(house: &House, token: &str, session: &str) -> &'static str {
    let target = Some(v1::signal_aim::Target::Run("r".to_owned()));
    let pause = v1::signal_request::Signal::Pause(v1::SignalAim { target });
    let request = v1::SignalRequest {
        session: session.to_owned(),
        key: "pause".to_owned(),
        signal: Some(pause),
    };
    let mut signals = SignalsClient::new(house.channel.clone());
    said(signals.signal(grpc::with(token, request)).await)
}

async fn heartbeat(house: &House, token: &str, session: &str) -> &'static str {
    let request = v1::HeartbeatRequest {
        session: session.to_owned(),
        run: "r".to_owned(),
        run_epoch: 1,
        ..v1::HeartbeatRequest::default()
    };
    let mut runs = RunsClient::new(house.channel.clone());
    said(runs.heartbeat(grpc::with(token, request)).await)
}

/// The same over HTTP and as a socket's first frame.
async fn every_door(house: &House, token: &str) -> BTreeSet<(u16, String)> {
    let http = house.http(token);
    let path = "/v1/sessions/calm/events";
    let event = json!({"kind": "app", "body": {"name": "x"}}).to_string();
    let cancel = "/v1/sessions/calm/runs/r/cancel";
    let (any, all) = ("/v1/sessions/calm/cancel", r#"{"all":true}"#);
    let signal = json!({"signal": "pause", "run": "r", "key": "k"}).to_string();
    BTreeSet::from([
        http.get(path, &[]).await.refusal(),
        http.post(path, &[], &event).await.refusal(),
        http.post(cancel, &[], "").await.refusal(),
        http.post(any, &[], all).await.refusal(),
        http.post("/v1/sessions/calm/signal", &[], &signal)
            .await
            .refusal(),
        http.post("/v1/tickets", &[], "").await.refusal(),
    ])
}

#[tokio::test]
async fn a_token_that_does_not_verify_opens_no_door() {
    let mut house = House::start().await;
    let good = house.all();
    let public = std::fs::read_to_string(house.data().join("auth.key.pub")).expect("dev's key");
    assert!(public.contains("PUBLIC KEY"));
    let unsigned = r#"{"alg":"none","typ":"JWT"}"#;
    let signature = [7_u8; 32];
    let mut cut = good.clone();
    cut.truncate(cut.len() - 4);
    for (what, token, code, close) in [
        (
            "expired",
            mint::expired(house.data(), "eve"),
            "TOKEN_EXPIRED",
            4002,
        ),
        ("forged", mint::forged("eve"), "UNAUTHENTICATED", 4001),
        (
            "none",
            mint::resigned(&good, unsigned, b""),
            "UNAUTHENTICATED",
            4001,
        ),
        (
            "None",
            mint::resigned(&good, r#"{"alg":"None"}"#, b""),
            "UNAUTHENTICATED",
            4001,
        ),
        (
            "another algorithm",
            mint::resigned(&good, r#"{"alg":"HS256"}"#, &signature),
            "UNAUTHENTICATED",
            4001,
        ),
        ("cut", cut, "UNAUTHENTICATED", 4001),
        ("two", format!("{good}.{good}"), "UNAUTHENTICATED", 4001),
        (
            "long",
            format!("{good}{}", "A".repeat(8 << 10)),
            "UNAUTHENTICATED",
            4001,
        ),
        ("no JWT", "nonsense".to_owned(), "UNAUTHENTICATED", 4001),
    ] {
        let expected = BTreeSet::from([(401, code.to_owned())]);
        assert_eq!(every_door(&house, &token).await, expected, "{what}");
        let mut socket = Lines::connect(&house.server.http).await;
        let auth = json!({"t": "auth", "token": token}).to_string();
        socket.send(&auth).await;
        assert_eq!(socket.bye().await, (code.to_owned(), Some(close)), "{what}");
        for (call, answer) in every_call(&house, &token, "calm").await {
            assert_eq!(answer, code, "{what}: {call}");
        }
        // On a socket that is open already it is refused, and the old one stays.
        let mut socket = Lines::open(&house.server.http, &good).await;
        let refresh = json!({"t": "refresh", "id": "r", "token": token}).to_string();
        assert_eq!(socket.ask("r", &refresh).await["code"], code, "{what}");
        let attach = json!({"t": "attach", "id": "a", "session": "calm"}).to_string();
        assert_eq!(socket.ask("a", &attach).await["answer"], "resumed");
    }
    house.unharmed().await;
}

/// The page's table: call → capability.
fn needed() -> Vec<(String, Option<Capability>)> {
    let page = std::fs::read_to_string(root().join("docs/protocol/grpc.md")).expect("the page");
    let (_, table) = page.split_once("### Capabilities").expect("a table");
    let (table, _) = table.split_once("\n\n`Runs.Start`").expect("it ends");
    let rows = table.lines().filter(|line| line.starts_with("| `"));
    rows.flat_map(|row| {
        let (_, row) = row.split_once("| ").expect("a cell");
        let (calls, right) = row.split_once(" | ").expect("two cells");
        let right = right.split('`').nth(1).and_then(Capability::parse);
        let right = right.filter(|_| !row.contains("| none"));
        let calls = calls.split('`').skip(1).step_by(2);
        calls.map(move |call| (call.to_owned(), right))
    })
    .collect()
}

#[tokio::test]
async fn every_call_needs_its_capability() {
    let mut house = House::start().await;
    let needed = needed();
    let every: BTreeSet<_> = needed.iter().map(|(call, _)| call.as_str()).collect();
    let rights: BTreeSet<_> = needed.iter().filter_map(|(_, right)| *right).collect();
    assert!(rights.len() >= 7, "{rights:?}");
    for (call, answer) in every_call(&house, &house.all(), "all").await {
        assert_ne!(answer, "DENIED", "{call} with every right");
    }
    for right in rights {
        let mut missing = vec![right];
        if right == Capability::Subscribe {
            // Whoever writes runs may ask for one.
            missing.push(Capability::Run);
        }
        let token = mint::without(house.data(), "eve", &missing);
        let session = format!("without-{}", right.as_str());
        let answers = every_call(&house, &token, &session).await;
        let asked: BTreeSet<_> = answers.iter().map(|(call, _)| *call).collect();
        assert_eq!(asked, every, "the page and this test name the same calls");
        for (call, answer) in answers {
            let needs = needed.iter().find(|(known, _)| known == call);
            let needs = needs.expect("checked above").1;
            let is_missing = needs.is_some_and(|needs| missing.contains(&needs));
            // Denied is one of the outcomes of a signal; and a run may be asked for by readers.
            let is_let_in =
                call.starts_with("Signals.") || (call, right) == ("Runs.Get", Capability::Run);
            let expected = is_missing && !is_let_in;
            assert_eq!(
                answer == "DENIED",
                expected,
                "{call} without {}: {answer}",
                right.as_str()
            );
        }
    }
    house.unharmed().await;
}

#[tokio::test]
async fn a_socket_needs_the_capability_of_each_frame() {
    let mut house = House::start().await;
    let nothing = mint::claims(
        "eve",
        ParticipantKind::User,
        &[("other", &mint::everything())],
    );
    let token = mint::mint(house.data(), &nothing);
    let mut socket = Lines::open(&house.server.http, &token).await;
    let ask = [
        json!({"t": "attach", "id": "x", "session": "calm"}),
        json!({"t": "attach", "id": "x", "session": "nowhere", "create": true}),
        json!({"t": "publish", "id": "x", "session": "calm", "event": {"kind": "app", "body": {"name": "x"}}}),
        json!({"t": "publish", "id": "x", "session": "calm", "key": "k", "event": {"kind": "input", "body": {"input": "i", "text": "x"}}}),
    ];
    for frame in ask {
        let error = socket.ask("x", &frame.to_string()).await;
        assert_eq!(
            (&error["t"], &error["code"]),
            (&json!("error"), &json!("DENIED")),
            "{frame}"
        );
    }
    let signal = json!({"t": "signal", "id": "x", "session": "calm", "signal": "cancel", "run": "r", "key": "k"});
    let outcome = socket.ask("x", &signal.to_string()).await;
    assert_eq!(outcome["outcome"], "denied");
    let http = house.http(&token);
    let path = "/v1/sessions/calm/events";
    assert_eq!(http.get(path, &[]).await.refusal(), (403, "DENIED".into()));
    let event = json!({"kind": "app", "body": {"name": "x"}}).to_string();
    assert_eq!(
        http.post(path, &[], &event).await.refusal(),
        (403, "DENIED".into())
    );
    house.unharmed().await;
}

#[tokio::test]
async fn another_tenant_sees_nothing_and_can_name_nothing() {
    let mut house = House::start().await;
    let token = mint::of_namespace(house.data(), "other", "eve");
    let mut sessions = SessionsClient::new(house.channel.clone());
    let listed = sessions
        .list(grpc::with(&token, v1::ListRequest::default()))
        .await;
    assert!(listed.expect("allowed").into_inner().sessions.is_empty());
    let show = || v1::ShowRequest {
        session: "calm".to_owned(),
    };
    let shown = sessions.show(grpc::with(&token, show())).await;
    assert_eq!(grpc::code(shown), "UNKNOWN_SESSION");
    let mut socket = Lines::open(&house.server.http, &token).await;
    let attach = json!({"t": "attach", "id": "a", "session": "calm"}).to_string();
    assert_eq!(socket.ask("a", &attach).await["answer"], "not_found");
    let http = house.http(&token);
    let missing = http.get("/v1/sessions/calm/events", &[]).await;
    assert_eq!(missing.refusal(), (404, "UNKNOWN_SESSION".into()));
    // Only an edge may name a tenant.
    let follow = v1::FollowRequest {
        session: "calm".to_owned(),
        namespace: "dev".to_owned(),
        ..v1::FollowRequest::default()
    };
    let mut client = AttachClient::new(house.channel.clone());
    assert_eq!(
        grpc::code(client.follow(grpc::with(&token, follow)).await),
        "DENIED"
    );
    let read = v1::ReadRequest {
        session: "calm".to_owned(),
        namespace: "dev".to_owned(),
        ..v1::ReadRequest::default()
    };
    assert_eq!(
        grpc::code(client.read(grpc::with(&token, read)).await),
        "DENIED"
    );
    // A session of the same name is another session.
    let event = json!({"kind": "app", "body": {"name": "theirs"}}).to_string();
    let posted = http
        .post("/v1/sessions/calm/events", &[], &event)
        .await
        .json();
    assert_eq!(posted["offset"], 1);
    let delete = v1::DeleteRequest {
        session: "calm".to_owned(),
    };
    let deleted = sessions.delete(grpc::with(&token, delete)).await;
    assert!(deleted.expect("their own").into_inner().existed);
    house.unharmed().await;
}

#[tokio::test]
async fn an_edges_token_speaks_for_nobody() {
    let mut house = House::start().await;
    let token = mint::edge(house.data());
    let mut socket = Lines::connect(&house.server.http).await;
    socket
        .send(&json!({"t": "auth", "token": token}).to_string())
        .await;
    assert_eq!(socket.bye().await, ("DENIED".to_owned(), Some(4004)));
    let denied = BTreeSet::from([(403, "DENIED".to_owned())]);
    assert_eq!(every_door(&house, &token).await, denied);
    for (call, answer) in every_call(&house, &token, "calm").await {
        match call {
            // It must say for which tenant, and may not ask for a list of anybody's.
            "Attach.Follow" | "Attach.Read" | "Sessions.Show" | "Sessions.List" | "Runs.Get" => {
                assert_eq!(answer, "MALFORMED", "{call}");
            },
            // A denied signal is an outcome.
            "Signals.Cancel" | "Signals.Signal" => assert_eq!(answer, "ok"),
            // An edge finds its way by the map like anybody else.
            "Cluster.Watch" => assert_eq!(answer, "ok"),
            _ => assert_eq!(answer, "DENIED", "{call}"),
        }
    }
    house.unharmed().await;
}

#[tokio::test]
async fn a_token_that_ends_ends_what_it_opened() {
    let mut house = House::start().await;
    let mut claims = mint::claims("eve", ParticipantKind::User, &[("*", &mint::everything())]);
    claims.expires.0 = mint::now().0 + 2_500;
    let token = mint::mint(house.data(), &claims);
    let mut socket = Lines::open(&house.server.http, &token).await;
    let attach = json!({"t": "attach", "id": "a", "session": "calm"}).to_string();
    assert_eq!(socket.ask("a", &attach).await["answer"], "resumed");
    let http = house.http(&token);
    let mut stream = http
        .stream("/v1/sessions/calm/events", &[])
        .await
        .expect("a stream");
    let follow = v1::FollowRequest {
        session: "calm".to_owned(),
        ..v1::FollowRequest::default()
    };
    let mut client = AttachClient::new(house.channel.clone());
    let follow = client.follow(grpc::with(&token, follow)).await;
    let mut follow = follow.expect("a stream").into_inner();

    assert_eq!(socket.line_of("expiring").await["t"], "expiring");
    assert_eq!(socket.bye().await, ("TOKEN_EXPIRED".to_owned(), Some(4002)));
    let bye = loop {
        let message = stream.next().await.expect("a message");
        if message.event == "bye" {
            break message.json();
        }
    };
    assert_eq!(
        (&bye["code"], &bye["advice"]),
        (&json!("TOKEN_EXPIRED"), &json!("reauthenticate"))
    );
    assert_eq!(stream.next().await, None);
    let ended = loop {
        let message = follow.message().await.expect("a message").expect("one");
        if let Some(v1::follow_response::Message::Ended(error)) = message.message {
            break error;
        }
    };
    assert_eq!(ended.code, "TOKEN_EXPIRED");
    assert_eq!(follow.message().await.expect("a good end"), None);
    house.unharmed().await;
}
