//! Readers of what is not there: unknown sessions, cursors of another history or above the tail,
//! pages of other origins.

use everwire_core::grant::Capability;
use everwire_proto::v1;
use everwire_testkit::lines::upgrade;
use everwire_testkit::{Http, Lines, grpc, tokens as mint};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use v1::attach_client::AttachClient;
use v1::publish_client::PublishClient;
use v1::runs_client::RunsClient;
use v1::sessions_client::SessionsClient;
use v1::signals_client::SignalsClient;

use crate::{House, app};

/// What a Follow is told first.
async fn follow(house: &House, token: &str, request: v1::FollowRequest) -> v1::Attached {
    let mut client = AttachClient::new(house.channel.clone());
    let stream = client.follow(grpc::with(token, request)).await;
    let mut stream = stream.expect("a stream").into_inner();
    let first = stream.message().await.expect("an answer").expect("one");
    let Some(v1::follow_response::Message::Attached(attached)) = first.message else {
        panic!("the first message is attached: {first:?}");
    };
    attached
}

#[tokio::test]
async fn an_unknown_session_is_not_made_by_asking_for_it() {
    let mut house = House::start().await;
    let token = mint::without(house.data(), "eve", &[Capability::Create]);
    let mut socket = Lines::open(&house.server.http, &token).await;
    for create in [false, true] {
        let attach = json!({"t": "attach", "id": "a", "session": "nowhere", "create": create});
        let answer = socket.ask("a", &attach.to_string()).await;
        // Without the right to create, asking for it is no crime and makes nothing.
        assert!(
            answer["answer"] == "not_found" || answer["code"] == "DENIED",
            "{answer}"
        );
    }
    let event = json!({"kind": "app", "body": {"name": "x"}});
    let publish = json!({"t": "publish", "id": "p", "session": "nowhere", "event": event});
    assert_eq!(
        socket.ask("p", &publish.to_string()).await["code"],
        "UNKNOWN_SESSION"
    );
    let signal = json!({
        "t": "signal", "id": "c", "session": "nowhere", "signal": "cancel", "run": "r", "key": "k",
    });
    assert_eq!(
        socket.ask("c", &signal.to_string()).await["code"],
        "UNKNOWN_SESSION"
    );

    let http = house.http(&token);
    let expected = (404, "UNKNOWN_SESSION".to_owned());
    let path = "/v1/sessions/nowhere/events";
    assert_eq!(http.get(path, &[]).await.refusal(), expected);
    assert_eq!(
        http.post(path, &[], &event.to_string()).await.refusal(),
        expected
    );

    house.unharmed().await;
}

#[tokio::test]
async fn nor_is_it_made_by_a_call() {
    let mut house = House::start().await;
    let token = mint::without(house.data(), "eve", &[Capability::Create]);
    let session = || "nowhere".to_owned();
    let request = v1::FollowRequest {
        session: session(),
        create: true,
        ..v1::FollowRequest::default()
    };
    let attached = follow(&house, &token, request).await;
    assert_eq!(attached.answer(), v1::AttachAnswer::NotFound);
    let channel = &house.channel;
    let read = v1::ReadRequest {
        session: session(),
        ..v1::ReadRequest::default()
    };
    let show = v1::ShowRequest { session: session() };
    let post = v1::PostRequest {
        session: session(),
        draft: Some(app("x")),
        key: String::new(),
    };
    let start = v1::StartRequest {
        session: session(),
        run: "r".to_owned(),
        ..v1::StartRequest::default()
    };
    let cancel = v1::CancelRequest {
        session: session(),
        run: "r".to_owned(),
        key: "k".to_owned(),
        ..v1::CancelRequest::default()
    };
    let codes = [
        grpc::code(
            AttachClient::new(channel.clone())
                .read(grpc::with(&token, read))
                .await,
        ),
        grpc::code(
            SessionsClient::new(channel.clone())
                .show(grpc::with(&token, show))
                .await,
        ),
        grpc::code(
            PublishClient::new(channel.clone())
                .post(grpc::with(&token, post))
                .await,
        ),
        grpc::code(
            RunsClient::new(channel.clone())
                .start(grpc::with(&token, start))
                .await,
        ),
        grpc::code(
            SignalsClient::new(channel.clone())
                .cancel(grpc::with(&token, cancel))
                .await,
        ),
    ];
    assert_eq!(codes, ["UNKNOWN_SESSION"; 5]);
    house.unharmed().await;
}

#[tokio::test]
async fn cursors_of_another_history_or_above_the_tail_are_gone() {
    let mut house = House::start().await;
    let token = house.all();
    let http = house.http(&token);
    let path = "/v1/sessions/s/events";
    let event = json!({"kind": "app", "body": {"name": "x"}}).to_string();
    let epoch = |ack: &Value| ack["session_epoch"].as_str().expect("text").to_owned();
    let mut old = String::new();
    for _ in 0..3 {
        old = epoch(&http.post(path, &[], &event).await.json());
    }
    let mut sessions = SessionsClient::new(house.channel.clone());
    let delete = v1::DeleteRequest {
        session: "s".to_owned(),
    };
    let deleted = sessions
        .delete(grpc::with(&token, delete))
        .await
        .expect("allowed");
    assert!(deleted.into_inner().existed);
    let now = epoch(&http.post(path, &[], &event).await.json());
    assert_ne!(old, now, "a session made anew is another one");

    let mut socket = Lines::open(&house.server.http, &token).await;
    for (session_epoch, offset) in [(&old, 1), (&old, 3), (&"9-9".to_owned(), 0), (&now, 2)] {
        let cursor = json!({"session_epoch": session_epoch, "offset": offset});
        let attach = json!({"t": "attach", "id": "a", "session": "s", "cursor": cursor});
        let answer = socket.ask("a", &attach.to_string()).await;
        let place = (&answer["answer"], &answer["from"], &answer["tail"]);
        assert_eq!(place, (&json!("gone"), &json!(1), &json!(1)), "{cursor}");
        assert_eq!(answer["session_epoch"], now.as_str());

        let id = format!("{session_epoch}.{offset}");
        let mut stream = http
            .stream(path, &[("last-event-id", &id)])
            .await
            .expect("a stream");
        assert_eq!(
            stream.next().await.expect("a message").event,
            "gone",
            "{id}"
        );

        let request = v1::FollowRequest {
            session: "s".to_owned(),
            cursor: Some(v1::Cursor {
                session_epoch: session_epoch.clone(),
                offset,
            }),
            ..v1::FollowRequest::default()
        };
        let attached = follow(&house, &token, request).await;
        assert_eq!(attached.answer(), v1::AttachAnswer::Gone, "{id}");
        assert_eq!((attached.session_epoch, attached.from), (now.clone(), 1));
    }
    let read = v1::ReadRequest {
        session: "s".to_owned(),
        session_epoch: old,
        from: 1,
        ..v1::ReadRequest::default()
    };
    let mut client = AttachClient::new(house.channel.clone());
    let gone = grpc::refusal(client.read(grpc::with(&token, read)).await);
    assert_eq!(gone.code.as_str(), "GONE");
    // Where it says to start, it goes on.
    let attach = json!({"t": "attach", "id": "b", "session": "s"}).to_string();
    assert_eq!(socket.ask("b", &attach).await["answer"], "resumed");
    assert_eq!(socket.line_of("events").await["to"], 1);
    house.unharmed().await;
}

const LISTED: &str = "https://app.example.com";

#[tokio::test]
async fn pages_of_other_origins_are_refused() {
    let mut house = House::start_with(&["--origin", LISTED]).await;
    let token = house.all();
    let addr = house.server.http.clone();
    let path = "/v1/sessions/calm/events";
    let http = Http::new(&addr).with_token(&token);
    for (origin, admitted) in [
        (LISTED, true),
        ("http://localhost:3000", true),
        ("http://127.0.0.1:8080", true),
        ("https://app.example.com.evil.example", false),
        ("http://app.example.com", false),
        ("https://evil.example", false),
        ("http://localhost.evil.example", false),
        ("null", false),
    ] {
        let mut request = upgrade(&addr);
        let value = HeaderValue::from_str(origin).expect("a header");
        request.headers_mut().insert("origin", value);
        let stream = TcpStream::connect(&addr).await.expect("it listens");
        match Lines::over(Box::new(stream), request).await {
            Ok(_) => assert!(admitted, "{origin}"),
            Err(Error::Http(refused)) => {
                assert!(!admitted, "{origin}");
                assert_eq!(refused.status(), 403);
                let body = refused.body().as_deref().unwrap_or_default();
                let body: Value = serde_json::from_slice(body).expect("JSON");
                assert_eq!(body["code"], "DENIED");
            },
            Err(error) => panic!("{origin}: {error}"),
        }
        let asks = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization"),
        ];
        let preflight = http.send(Method::OPTIONS, path, &asks, String::new()).await;
        let posted = json!({"kind": "app", "body": {"name": 7}}).to_string();
        let real = http.post(path, &[("origin", origin)], &posted).await;
        let allowed = if admitted { origin } else { "" };
        for answer in [&preflight, &real] {
            assert_eq!(answer.header("access-control-allow-origin"), allowed);
            assert_eq!(answer.header("access-control-allow-credentials"), "");
        }
        let statuses = if admitted { (204, 400) } else { (403, 403) };
        assert_eq!((preflight.status, real.status), statuses, "{origin}");
    }
    // A program that is no browser names no origin, and needs none.
    assert_eq!(http.get("/v1/tickets", &[]).await.status, 405);
    house.unharmed().await;
}
