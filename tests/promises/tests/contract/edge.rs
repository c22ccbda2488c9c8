//! HTTP on the edge: publish, cancel, event streams, tickets, subprotocols, error bodies.

use everwire_core::grant::Capability;
use everwire_testkit::http::Message;
use everwire_testkit::lines::upgrade;
use everwire_testkit::{Http, Lines, tokens};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};

use crate::{Dev, fields};

const EVENTS: &str = "/v1/sessions/s/events";

fn http(dev: &Dev) -> Http {
    Http::new(&dev.server.http).with_token(&dev.token)
}

fn app(name: &str) -> String {
    json!({"kind": "app", "body": {"name": name}}).to_string()
}

fn input(id: &str, text: &str) -> String {
    json!({"kind": "input", "body": {"input": id, "text": text}}).to_string()
}

#[tokio::test]
async fn publish_answers_the_ack_and_keeps_keys() {
    let dev = Dev::start().await;
    let http = http(&dev);
    let first = http.post(EVENTS, &[], &app("x")).await;
    assert_eq!(first.status, 200);
    assert_eq!(first.header("content-type"), "application/json");
    let ack = first.json();
    assert_eq!(
        fields(&ack),
        ["duplicate", "offset", "session", "session_epoch", "t"]
    );
    assert_eq!(
        (&ack["t"], &ack["offset"], &ack["duplicate"]),
        (&json!("ack"), &json!(1), &json!(false))
    );
    let key = [("idempotency-key", "k1")];
    let without_key = http.post(EVENTS, &[], &input("i1", "hello")).await;
    assert_eq!(without_key.refusal(), (400, "MALFORMED".into()));
    for duplicate in [false, true] {
        let taken = http.post(EVENTS, &key, &input("i1", "hello")).await.json();
        assert_eq!(
            (&taken["offset"], &taken["duplicate"]),
            (&json!(2), &json!(duplicate))
        );
    }
    let reused = http.post(EVENTS, &key, &input("i2", "other")).await;
    assert_eq!(reused.refusal(), (422, "KEY_REUSED".into()));
    assert_eq!(reused.json()["details"], json!({"offset": 2}));
    assert_eq!(reused.json()["advice"], "stop");
    let bad_key = http
        .post(EVENTS, &[("idempotency-key", "a b")], &app("x"))
        .await;
    assert_eq!(bad_key.refusal(), (400, "MALFORMED".into()));
}

#[tokio::test]
async fn cancel_answers_the_outcome() {
    let dev = Dev::start().await;
    let http = http(&dev);
    let path = "/v1/sessions/s/runs/r1/cancel";
    assert_eq!(
        http.post(path, &[], "").await.refusal(),
        (404, "UNKNOWN_SESSION".into())
    );
    http.post(EVENTS, &[], &app("x")).await;
    let unknown = http.post(path, &[], "").await;
    assert_eq!(
        (unknown.status, &unknown.json()["outcome"]),
        (200, &json!("unknown_run"))
    );
    dev.piped(&["publish", "s", "--run", "r1", "--keep-open"], "x\n")
        .await;
    let may_not = tokens::without(dev.data(), "eve", &[Capability::SignalCancel]);
    let denied = http.with_token(&may_not).post(path, &[], "").await;
    assert_eq!(
        (denied.status, &denied.json()["outcome"]),
        (200, &json!("denied"))
    );
    let key = [("idempotency-key", "stop-1")];
    let applied = http.post(path, &key, "").await.json();
    let names = [
        "duplicate",
        "offset",
        "outcome",
        "session",
        "session_epoch",
        "t",
    ];
    assert_eq!(fields(&applied), names);
    assert_eq!(
        (&applied["t"], &applied["outcome"]),
        (&json!("outcome"), &json!("applied"))
    );
    let again = http.post(path, &key, "").await.json();
    assert_eq!(
        (&again["offset"], &again["duplicate"]),
        (&applied["offset"], &json!(true))
    );
    let later = http.post(path, &[], "").await.json();
    assert_eq!(
        (&later["outcome"], &later["state"]),
        (&json!("already_terminal"), &json!("cancelled"))
    );
}

/// The offsets of messages, whose ids, names and data must agree.
fn offset(message: &Message, epoch: &str) -> u64 {
    let event = message.json();
    let offset = event
        .get("offset")
        .and_then(Value::as_u64)
        .expect("an offset");
    assert_eq!(message.id, format!("{epoch}.{offset}"));
    let kind = event.get("kind").and_then(Value::as_str);
    assert_eq!(Some(message.event.as_str()), kind);
    offset
}

#[tokio::test]
async fn event_streams_start_after_the_last_event_seen() {
    let dev = Dev::start().await;
    let http = http(&dev);
    assert_eq!(
        http.stream(EVENTS, &[])
            .await
            .err()
            .expect("no session")
            .refusal(),
        (404, "UNKNOWN_SESSION".into())
    );
    let mut epoch = String::new();
    for name in ["a", "b", "c"] {
        let ack = http.post(EVENTS, &[], &app(name)).await.json();
        ack["session_epoch"]
            .as_str()
            .expect("text")
            .clone_into(&mut epoch);
    }
    let (seen, bare) = (format!("{epoch}.2"), "1".to_owned());
    let last = [("last-event-id", seen.as_str())];
    let query = format!("{EVENTS}?from={seen}");
    let bare = format!("{EVENTS}?from={bare}");
    for (path, headers, expected) in [
        (EVENTS, &[][..], 1),
        (EVENTS, &last[..], 3),
        (&query, &[][..], 3),
        (&bare, &[][..], 2),
        // What a browser sends when it comes back beats what its page asked for at first.
        (&bare, &last[..], 3),
        ("/v1/sessions/s/events?form=raw", &[][..], 1),
    ] {
        let mut stream = http.stream(path, headers).await.expect("a stream");
        for expected in expected..=3 {
            let message = stream.next().await.expect("a message");
            assert_eq!(offset(&message, &epoch), expected, "{path} {headers:?}");
        }
    }
    let mut live = http
        .stream(EVENTS, &[("last-event-id", &format!("{epoch}.3"))])
        .await
        .expect("a stream");
    http.post(EVENTS, &[], &app("d")).await;
    let message = live.next().await.expect("a message");
    assert_eq!(offset(&message, &epoch), 4);
    assert_eq!(message.json()["body"]["name"], "d");
    for (path, code) in [
        ("/v1/sessions/s/events?from=x", "MALFORMED"),
        ("/v1/sessions/s/events?form=assembled", "MALFORMED"),
        ("/v1/sessions/a%20b/events", "MALFORMED"),
    ] {
        let refused = http.stream(path, &[]).await.err().expect(path);
        assert_eq!(refused.refusal(), (400, code.into()), "{path}");
    }
}

#[tokio::test]
async fn a_cursor_of_another_history_is_told_gone() {
    let dev = Dev::start().await;
    let http = http(&dev);
    let ack = http.post(EVENTS, &[], &app("a")).await.json();
    let old = format!("{}.1", ack["session_epoch"].as_str().expect("text"));
    dev.done(&["session", "delete", "s"]).await;
    let ack = http.post(EVENTS, &[], &app("b")).await.json();
    let now = ack["session_epoch"].as_str().expect("text").to_owned();
    for cursor in [old, format!("{now}.7")] {
        let headers = [("last-event-id", cursor.as_str())];
        let mut stream = http.stream(EVENTS, &headers).await.expect("a stream");
        let gone = stream.next().await.expect("a message");
        assert_eq!(gone.event, "gone");
        let attached = gone.json();
        assert_eq!(
            (&attached["answer"], &attached["from"]),
            (&json!("gone"), &json!(1))
        );
        assert_eq!(attached["session_epoch"], now.as_str());
        assert_eq!(stream.next().await, None, "the stream is over");
    }
}

#[tokio::test]
async fn a_ticket_opens_one_stream_and_no_more() {
    let dev = Dev::start().await;
    let http = http(&dev);
    http.post(EVENTS, &[], &app("a")).await;
    let ticket = http.post("/v1/tickets", &[], "").await;
    assert_eq!(fields(&ticket.json()), ["expires_in_ms", "ticket"]);
    assert_eq!(ticket.json()["expires_in_ms"], 30_000);
    let ticket = ticket.json()["ticket"].as_str().expect("text").to_owned();
    let nobody = Http::new(&dev.server.http);
    let path = format!("{EVENTS}?ticket={ticket}");
    let mut stream = nobody.stream(&path, &[]).await.expect("a stream");
    assert_eq!(stream.next().await.expect("a message").event, "app");
    for path in [path, format!("{EVENTS}?ticket=guessed"), EVENTS.to_owned()] {
        let refused = nobody.stream(&path, &[]).await.err().expect("refused");
        assert_eq!(refused.refusal(), (401, "UNAUTHENTICATED".into()));
        assert_eq!(refused.header("www-authenticate"), "Bearer");
    }
    let refused = nobody.post("/v1/tickets", &[], "").await;
    assert_eq!(refused.refusal(), (401, "UNAUTHENTICATED".into()));
    // A ticket is for reading only.
    let ticket = http.post("/v1/tickets", &[], "").await.json();
    let path = format!(
        "{EVENTS}?ticket={}",
        ticket["ticket"].as_str().expect("text")
    );
    let refused = nobody.post(&path, &[], &app("x")).await;
    assert_eq!(refused.refusal(), (401, "UNAUTHENTICATED".into()));
}

#[tokio::test]
async fn both_subprotocols_are_chosen_and_others_refused() {
    let dev = Dev::start().await;
    let ask = async |names: Option<&str>| {
        let mut request = upgrade(&dev.server.http);
        request.headers_mut().remove(header::SEC_WEBSOCKET_PROTOCOL);
        if let Some(names) = names {
            let names = HeaderValue::from_str(names).expect("a header");
            request
                .headers_mut()
                .insert(header::SEC_WEBSOCKET_PROTOCOL, names);
        }
        let stream = TcpStream::connect(&dev.server.http)
            .await
            .expect("it listens");
        let answer = tokio_tungstenite::client_async(request, stream).await;
        answer.map(|(_, response)| {
            response
                .headers()
                .get(header::SEC_WEBSOCKET_PROTOCOL)
                .cloned()
        })
    };
    for (names, chosen) in [
        ("everwire.v1.json", "everwire.v1.json"),
        ("everwire.v1.proto", "everwire.v1.proto"),
        ("chat, everwire.v1.proto", "everwire.v1.proto"),
    ] {
        let answer = ask(Some(names)).await.expect("upgraded");
        assert_eq!(answer.expect("a subprotocol"), chosen);
    }
    assert_eq!(ask(None).await.expect("JSON is the default"), None);
    let Err(Error::Http(refused)) = ask(Some("everwire.v9.json")).await else {
        panic!("an unknown subprotocol was taken");
    };
    assert_eq!(refused.status(), 501);
    let body: Value =
        serde_json::from_slice(refused.body().as_deref().unwrap_or_default()).expect("JSON");
    assert_eq!(body["code"], "UNSUPPORTED_VERSION");
    // Plain text of the default.
    let mut lines = Lines::open(&dev.server.http, &dev.token).await;
    assert_eq!(
        lines.ask("1", r#"{"t":"ping","id":"1"}"#).await["t"],
        "pong"
    );
}

#[tokio::test]
async fn other_paths_and_methods_are_refused_in_our_words() {
    let dev = Dev::start().await;
    let http = http(&dev);
    assert_eq!(
        http.get("/", &[]).await.refusal(),
        (404, "MALFORMED".into())
    );
    assert_eq!(
        http.get("/v1/tickets", &[]).await.refusal(),
        (405, "MALFORMED".into())
    );
    let delete = http.send(Method::DELETE, EVENTS, &[], String::new()).await;
    assert_eq!(delete.refusal(), (405, "MALFORMED".into()));
    assert_eq!(
        http.get("/v1/ws", &[]).await.refusal(),
        (400, "MALFORMED".into())
    );
    // The admin port and the edge are apart: neither serves the other's paths.
    assert_eq!(http.get("/metrics", &[]).await.status, 404);
    let admin = Http::new(&dev.server.admin).with_token(&dev.token);
    assert_eq!(admin.post("/v1/tickets", &[], "").await.status, 404);
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(admin.get(path, &[]).await.status, 200, "{path}");
    }
}
