//! Frames that are none: malformed, oversized, of the wrong kind, at the wrong time.

use everwire_testkit::Lines;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;

use crate::House;

/// Frames that are refused by `MALFORMED`, each with an id if that could be read.
fn malformed() -> Vec<String> {
    let deep = format!("{}{}", "[".repeat(101), "]".repeat(101));
    let publish = |event: Value| json!({"t": "publish", "id": "x", "session": "s", "event": event});
    let mut lines = vec![
        String::new(),
        "{".to_owned(),
        "[]".to_owned(),
        "nonsense".to_owned(),
        format!("{deep}{deep}"),
        format!(
            r#"{{"t":"publish","id":"x","session":"s","event":{{"kind":"app","body":{{"name":"n","data":{deep}}}}}}}"#
        ),
    ];
    let values = [
        json!({"id": "x"}),
        json!({"t": "fly", "id": "x"}),
        json!({"t": 7, "id": "x"}),
        json!({"t": "attach", "id": "x"}),
        json!({"t": "attach", "id": "x", "session": 7}),
        json!({"t": "attach", "id": "x", "session": "a b"}),
        json!({"t": "attach", "id": "x", "session": "x".repeat(129)}),
        json!({"t": "attach", "id": "x", "session": "s", "form": "assembled"}),
        json!({"t": "attach", "id": "x", "session": "s", "cursor": "1-1.1"}),
        json!({"t": "attach", "id": "x", "session": "s", "cursor": {"offset": -1}}),
        json!({"t": "attach", "id": "x", "session": "s", "cursor": {"offset": 9_007_199_254_740_992_u64}}),
        json!({"t": "attach", "id": "x", "session": "s", "cursor": {"session_epoch": "x", "offset": 1}}),
        json!({"t": "attach", "id": "x".repeat(257), "session": "s"}),
        json!({"t": "attach", "id": "x", "session": "s", "create": "yes"}),
        json!({"t": "signal", "id": "x", "session": "s", "run": "r", "key": "k", "signal": "steer"}),
        json!({"t": "signal", "id": "x", "session": "s", "run": "r", "signal": "cancel"}),
        json!({"t": "presence", "id": "x", "session": "s"}),
        json!({"t": "welcome", "id": "x"}),
        json!({"t": "auth", "id": "x", "token": "again"}),
        publish(json!({"kind": "app"})),
        publish(json!({"kind": "run.started", "body": {}})),
        publish(json!({"kind": "message.start", "body": {"message": "m", "role": "assistant"}})),
        publish(json!({"kind": "signal.cancel", "body": {"run": "r"}})),
        publish(json!({"kind": "input", "body": {"input": "i", "text": "no key"}})),
        publish(json!({"kind": "app", "body": {"name": "n", "data_base64": "!"}})),
        publish(json!({"kind": "app", "codec": "zip", "body": {"name": "n"}})),
    ];
    lines.extend(values.iter().map(Value::to_string));
    lines
}

#[tokio::test]
async fn frames_that_cannot_be_read_are_refused_and_the_socket_lives() {
    let mut house = House::start().await;
    let mut socket = Lines::open(&house.server.http, &house.all()).await;
    for line in malformed() {
        socket.send(&line).await;
        let error = socket.line_of("error").await;
        assert_eq!(error["code"], "MALFORMED", "{line}: {error}");
        assert_eq!(error["advice"], "stop");
        if line.contains(r#""id":"x""#) {
            assert_eq!(error["id"], "x", "{line}: {error}");
        }
        let pong = socket.ask("p", r#"{"t":"ping","id":"p"}"#).await;
        assert_eq!(pong["t"], "pong");
    }
    // Nothing of it was done.
    let attach = json!({"t": "attach", "id": "1", "session": "s"}).to_string();
    assert_eq!(socket.ask("1", &attach).await["answer"], "not_found");
    house.unharmed().await;
}

#[tokio::test]
async fn payloads_above_their_bounds_are_too_large() {
    let mut house = House::start().await;
    let mut socket = Lines::open(&house.server.http, &house.all()).await;
    let text = "x".repeat((64 << 10) + 1);
    for event in [
        json!({"kind": "input", "body": {"input": "i", "text": text}}),
        json!({"kind": "app", "body": {"name": "x".repeat(257)}}),
    ] {
        let publish =
            json!({"t": "publish", "id": "1", "session": "s", "key": "k", "event": event});
        let error = socket.ask("1", &publish.to_string()).await;
        assert_eq!(error["t"], "error");
        assert_eq!(error["code"], "TOO_LARGE");
    }

    // A frame above its bound cannot be skipped: it ends the socket.
    let whole = Message::text("x".repeat((128 << 10) + 1));
    socket.message(whole).await;
    assert_eq!(socket.bye().await, ("TOO_LARGE".to_owned(), Some(4019)));
    // Its length is enough; nobody waits for a gigabyte.
    let mut socket = Lines::open(&house.server.http, &house.all()).await;
    let mut header = vec![0x81, 0xff];
    header.extend((1_u64 << 30).to_be_bytes());
    header.extend([1, 2, 3, 4]);
    let _ = socket.raw().write_all(&header).await;
    let _ = socket.raw().flush().await;
    assert_eq!(socket.bye().await, ("TOO_LARGE".to_owned(), Some(4019)));
    // Nor are small fragments of a large message collected.
    let mut socket = Lines::open(&house.server.http, &house.all()).await;
    for number in 0..40 {
        let opcode = if number == 0 { 0x01 } else { 0x00 };
        let mut fragment = vec![opcode, 0xfe];
        fragment.extend(4096_u16.to_be_bytes());
        fragment.extend([0; 4]);
        fragment.extend([b'x'; 4096]);
        let _ = socket.raw().write_all(&fragment).await;
    }
    let _ = socket.raw().flush().await;
    assert_eq!(socket.bye().await, ("TOO_LARGE".to_owned(), Some(4019)));

    let http = house.http(&house.all());
    let body = "x".repeat((128 << 10) + 1);
    let refused = http.post("/v1/sessions/s/events", &[], &body).await;
    assert_eq!(refused.refusal(), (413, "TOO_LARGE".into()));
    house.unharmed().await;
}

/// A frame by hand: first byte, whether masked, payload below 126 bytes.
fn frame(first: u8, masked: bool, payload: &[u8]) -> Vec<u8> {
    let length = u8::try_from(payload.len()).expect("short");
    let mut bytes = vec![first, length | if masked { 0x80 } else { 0 }];
    if masked {
        bytes.extend([0; 4]);
    }
    bytes.extend(payload);
    bytes
}

#[tokio::test]
async fn what_is_no_frame_of_the_protocol_ends_its_socket() {
    let mut house = House::start().await;
    let ping = br#"{"t":"ping"}"#;
    for (what, bytes) in [
        ("binary on the text subprotocol", frame(0x82, true, ping)),
        ("text that is not UTF-8", frame(0x81, true, b"\xff\xfe")),
        ("a client's frame without a mask", frame(0x81, false, ping)),
        ("a reserved opcode", frame(0x83, true, ping)),
        ("a reserved bit", frame(0xc1, true, ping)),
        ("a ping in two pieces", frame(0x09, true, b"")),
        ("a piece of nothing", frame(0x80, true, ping)),
        ("no WebSocket at all", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let mut socket = Lines::open(&house.server.http, &house.all()).await;
        let _ = socket.raw().write_all(&bytes).await;
        let _ = socket.raw().flush().await;
        let (code, close) = socket.bye().await;
        assert_eq!((code.as_str(), close), ("MALFORMED", Some(4020)), "{what}");
    }
    house.unharmed().await;
}

#[tokio::test]
async fn ten_bad_frames_in_a_row_end_the_socket() {
    let mut house = House::start().await;
    let mut socket = Lines::open(&house.server.http, &house.all()).await;
    for _ in 0..20 {
        socket.send("nonsense").await;
    }
    assert_eq!(socket.bye().await, ("MALFORMED".to_owned(), Some(4020)));
    house.unharmed().await;
}

#[tokio::test]
async fn the_first_frame_authenticates_or_is_the_last() {
    let mut house = House::start().await;
    for (first, code, close) in [
        (
            r#"{"t":"attach","session":"calm"}"#,
            "UNAUTHENTICATED",
            4001,
        ),
        (r#"{"t":"ping"}"#, "UNAUTHENTICATED", 4001),
        (r#"{"t":"auth"}"#, "MALFORMED", 4020),
        (r#"{"t":"auth","token":7}"#, "MALFORMED", 4020),
        ("nonsense", "MALFORMED", 4020),
    ] {
        let mut socket = Lines::connect(&house.server.http).await;
        socket.send(first).await;
        assert_eq!(
            socket.bye().await,
            (code.to_owned(), Some(close)),
            "{first}"
        );
    }
    house.unharmed().await;
}

#[tokio::test]
async fn requests_that_no_http_server_takes_get_no_event() {
    let mut house = House::start().await;
    for request in [
        &b"\x16\x03\x01\x02\x00\x01\x00"[..],
        b"GET /v1/ws HTTP/9.9\r\nhost: x\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"GET /v1/ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    ] {
        use tokio::io::AsyncReadExt;
        let mut socket = tokio::net::TcpStream::connect(&house.server.http)
            .await
            .expect("it listens");
        socket.write_all(request).await.expect("taken");
        socket.shutdown().await.expect("open");
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(
            !answer.contains(" 101 ") && !answer.contains(" 200 "),
            "{answer}"
        );
    }
    house.unharmed().await;
}
