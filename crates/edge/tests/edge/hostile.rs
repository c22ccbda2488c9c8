//! Peers that are slow, silent, broken or hostile: each is its own connection's business.

use std::time::Duration;

use bytes::Bytes;
use everwire_core::{Cancel, Code, Key, RunId};
use everwire_proto::frame::{ClientFrame, ServerFrame, Subprotocol};
use everwire_proto::signal::Pressed;
use everwire_proto::token::Bearer;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;

use crate::nodes::{Nodes, app, session};
use crate::support::{Bed, Client, SOON};

/// A socket whose kernel takes little for a client that does not read.
async fn narrow(bed: &Bed) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 << 10).unwrap();
    socket.connect(bed.edge.http_addr()).await.unwrap()
}

async fn narrow_client(bed: &Bed) -> Client {
    let mut client = Client::over(narrow(bed).await, Subprotocol::Json).await;
    client.auth(&bed.token()).await;
    client
}

fn big() -> String {
    "x".repeat(64 << 10)
}

async fn still_serves(bed: &Bed) {
    bed.nodes.make("other");
    bed.nodes.append_many("other", 1);
    let mut client = bed.json().await;
    let mut reader = client.resume("other", None).await;
    client.read_to(&mut reader, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_costs_little_catches_up_and_nobody_notices() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let mut slow = narrow_client(&bed).await;
    let mut behind = slow.resume("s", None).await;
    let mut quick = bed.json().await;
    let mut reader = quick.resume("s", None).await;
    let before = bed.metric("frame_bytes");
    for number in 1..=200 {
        bed.nodes.append("s", [app(&big())]);
        quick.read_to(&mut reader, number).await;
    }
    let sent = bed.metric("frame_bytes") - before;
    let history = 200 * (64 << 10);
    assert!(sent > history, "one reader has everything");
    assert!(
        sent < history + (3 << 20),
        "{sent}: the other one is held back"
    );
    assert!(bed.metric("outbox_bytes") > 0);
    slow.read_to(&mut behind, 200).await;
    assert_eq!(behind.texts.len(), 200);
    assert!(bed.metric("catch_ups") >= 10, "it came from the log");
    assert_eq!(bed.metric("slow_readers"), 0);
    bed.nodes.append("s", [app("live")]);
    slow.read_to(&mut behind, 201).await;
    bed.until("outbox_bytes", 0).await;
}

#[tokio::test]
async fn a_reader_that_takes_nothing_is_closed_with_a_code_that_says_come_back() {
    let bed = Bed::timed(|timings| {
        timings.slow_after = Duration::from_millis(300);
        timings.close_within = SOON;
    });
    bed.nodes.make("s");
    bed.nodes.append("s", (0..100).map(|_| app(&big())));
    let mut client = narrow_client(&bed).await;
    client.ask_attach("a", "s", None).await;
    bed.until("attachments", 1).await;
    bed.until("attachments", 0).await;
    let close = loop {
        if let Err(close) = client.message().await {
            break close.expect("a close frame");
        }
    };
    assert_eq!(u16::from(close.code), Code::SlowReader.close_code());
    assert_eq!(bed.metric("slow_readers"), 1);
}

#[tokio::test]
async fn a_reader_that_takes_a_little_is_slow_but_not_closed() {
    let bed = Bed::timed(|timings| {
        timings.slow_after = Duration::from_millis(1_500);
        timings.lost_after = Duration::from_secs(60);
        timings.heartbeat_every = Duration::from_secs(60);
    });
    bed.nodes.make("s");
    bed.nodes.append("s", (0..50).map(|_| app(&big())));
    let mut client = narrow_client(&bed).await;
    client.ask_attach("a", "s", None).await;
    let stream = client.socket.get_mut();
    let mut taken = vec![0; 16 << 10];
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        sleep(Duration::from_millis(100)).await;
        assert!(stream.read(&mut taken).await.unwrap() > 0);
    }
    assert_eq!(bed.metric("sockets"), 1);
    assert_eq!(bed.metric("slow_readers"), 0);
}

#[tokio::test]
async fn a_silent_peer_is_noticed_though_its_socket_is_open() {
    let bed = Bed::timed(|timings| {
        timings.heartbeat_every = Duration::from_millis(300);
        timings.lost_after = Duration::from_millis(1_500);
    });
    bed.nodes.make("s");
    let mut client = bed.json().await;
    client.resume("s", None).await;
    // Nobody reads, so nobody answers pings.
    bed.until("lost", 1).await;
    bed.until("attachments", 0).await;
}

#[tokio::test]
async fn a_frozen_page_lives_because_its_browser_answers_pings() {
    let bed = Bed::timed(|timings| {
        timings.heartbeat_every = Duration::from_millis(200);
        timings.lost_after = Duration::from_millis(2_000);
    });
    let mut client = bed.json().await;
    let mut pings = 0;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        let next = timeout(Duration::from_secs(2), client.socket.next()).await;
        match next.expect("a ping").unwrap().unwrap() {
            Message::Ping(_) => pings += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(pings >= 8, "{pings}");
    assert_eq!(bed.metric("lost"), 0);
}

#[tokio::test]
async fn a_frame_above_the_bound_ends_its_socket_with_a_code() {
    let bed = Bed::new();
    for subprotocol in Subprotocol::ALL {
        let mut client = bed.join(subprotocol).await;
        let _ = client
            .socket
            .send(match subprotocol {
                Subprotocol::Json => Message::text("x".repeat((128 << 10) + 1)),
                Subprotocol::Proto => Message::binary(vec![0; (128 << 10) + 1]),
            })
            .await;
        assert_eq!(client.bye().await, ("TOO_LARGE", 4019));
    }
    still_serves(&bed).await;
}

#[tokio::test]
async fn a_frame_that_cannot_be_read_is_refused_and_the_socket_lives() {
    let bed = Bed::new();
    let mut client = bed.json().await;
    for (text, id) in [
        ("{", ""),
        ("[]", ""),
        ("{}", ""),
        (r#"{"t":"unheard","id":"1"}"#, "1"),
        (r#"{"t":"attach","id":"2"}"#, "2"),
        (r#"{"t":"attach","id":"3","session":"a b"}"#, "3"),
        (
            r#"{"t":"publish","id":"4","session":"s","event":{"kind":"input","body":{"input":"i","text":"t"}}}"#,
            "4",
        ),
        (
            r#"{"t":"signal","id":"5","session":"s","signal":"wave","run":"r","key":"k"}"#,
            "5",
        ),
    ] {
        client.text(text).await;
        let (answered, frame) = client.frame().await;
        let ServerFrame::Error { refusal, .. } = frame else {
            panic!("{text}: {frame:?}");
        };
        assert_eq!(refusal.code, Code::Malformed, "{text}");
        assert_eq!(answered, id, "{text}");
    }
    client.say("p", &ClientFrame::Ping).await;
    assert_eq!(client.frame().await.0, "p");
}

#[tokio::test]
async fn ten_bad_frames_in_a_row_end_the_socket() {
    for subprotocol in Subprotocol::ALL {
        let bed = Bed::new();
        let mut client = bed.join(subprotocol).await;
        let bad = Bytes::from_static("é".as_bytes());
        for _ in 0..9 {
            client.raw(bad.clone()).await;
        }
        client.say("p", &ClientFrame::Ping).await;
        for _ in 0..10 {
            client.raw(bad.clone()).await;
        }
        assert_eq!(client.bye().await, ("MALFORMED", 4020));
    }
}

#[tokio::test]
async fn the_other_kind_of_frame_ends_the_socket() {
    let bed = Bed::new();
    let mut client = bed.join(Subprotocol::Json).await;
    client.socket.send(Message::binary(vec![1])).await.unwrap();
    assert_eq!(client.bye().await, ("MALFORMED", 4020));
    let mut client = bed.join(Subprotocol::Proto).await;
    client.socket.send(Message::text("{}")).await.unwrap();
    assert_eq!(client.bye().await, ("MALFORMED", 4020));
}

#[tokio::test]
async fn text_that_is_not_utf8_and_bytes_that_are_not_websocket_end_the_socket() {
    let bed = Bed::new();
    // Masked with zeroes: a text frame of one byte that no UTF-8 begins with.
    let not_text: &[u8] = &[0x81, 0x81, 0, 0, 0, 0, 0xff];
    let not_masked: &[u8] = &[0x81, 0x01, b'x'];
    let not_known: &[u8] = &[0x83, 0x80, 0, 0, 0, 0];
    for bytes in [not_text, not_masked, not_known] {
        let mut client = bed.json().await;
        client.socket.get_mut().write_all(bytes).await.unwrap();
        assert_eq!(client.bye().await, ("MALFORMED", 4020), "{bytes:?}");
    }
    still_serves(&bed).await;
}

#[tokio::test]
async fn half_a_frame_is_waited_for_no_longer_than_a_silent_peer() {
    let bed = Bed::timed(|timings| {
        timings.heartbeat_every = Duration::from_millis(100);
        timings.lost_after = Duration::from_millis(300);
    });
    let mut client = bed.json().await;
    let half: &[u8] = &[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4, b'{'];
    client.socket.get_mut().write_all(half).await.unwrap();
    bed.until("lost", 1).await;
}

#[tokio::test]
async fn a_socket_that_does_not_authenticate_is_closed() {
    let bed = Bed::timed(|timings| timings.auth_within = Duration::from_millis(200));
    let mut client = Client::connect(&bed, Subprotocol::Json).await;
    assert_eq!(client.bye().await, ("UNAUTHENTICATED", 4001));
    bed.until("sockets", 0).await;
}

#[tokio::test]
async fn a_first_frame_that_is_no_auth_is_the_last() {
    let bed = Bed::new();
    let mut client = Client::connect(&bed, Subprotocol::Json).await;
    client.say("1", &ClientFrame::Ping).await;
    assert_eq!(client.bye().await, ("UNAUTHENTICATED", 4001));
    let mut client = Client::connect(&bed, Subprotocol::Json).await;
    client.text("{").await;
    assert_eq!(client.bye().await, ("MALFORMED", 4020));
    let mut client = Client::connect(&bed, Subprotocol::Json).await;
    let token = Bearer::new("not.a.token");
    client.say("", &ClientFrame::Auth { token }).await;
    assert_eq!(client.bye().await, ("UNAUTHENTICATED", 4001));
    bed.until("sockets", 0).await;
}

#[tokio::test]
async fn a_connection_that_asks_for_nothing_is_closed() {
    let bed = Bed::timed(|timings| timings.auth_within = Duration::from_millis(300));
    for said in ["", "GET /v1/ws HTT", "GET /v1/ws HTTP/1.1\r\nhost: e\r\n"] {
        let mut stream = TcpStream::connect(bed.edge.http_addr()).await.unwrap();
        stream.write_all(said.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let ended = timeout(SOON, stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "{said:?}");
    }
    bed.until("connections", 0).await;
}

#[tokio::test]
async fn one_connection_too_many_is_told_so() {
    let bed = Bed::with(Nodes::new(), |config| config.connections_max = 2);
    let _first = bed.json().await;
    let second = bed.json().await;
    let mut stream = TcpStream::connect(bed.edge.http_addr()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert!(answer.contains("OVERLOADED"), "{answer}");
    assert_eq!(bed.metric("turned_away"), 1);
    drop(second);
    bed.until("connections", 1).await;
    bed.json().await;
}

#[tokio::test]
async fn whoever_asks_and_leaves_keeps_its_place_until_it_is_answered() {
    let bed = Bed::with(Nodes::new(), |config| config.connections_max = 1);
    bed.nodes.make("s");
    let held = bed.nodes.inputs.acquire_many(1_000).await.unwrap();
    let mut client = bed.json().await;
    let stop = ClientFrame::Signal {
        session: session("s"),
        pressed: Pressed::Cancel(Cancel::run(RunId::parse("r").unwrap())),
        key: Key::parse("k").unwrap(),
    };
    client.say("1", &stop).await;
    client.say("2", &ClientFrame::Ping).await;
    assert_eq!(client.frame().await.0, "2", "the stop was read");
    drop(client);
    bed.until("connections", 0).await;
    let turned_away = || async {
        let mut stream = TcpStream::connect(bed.edge.http_addr()).await.unwrap();
        let mut answer = [0; 12];
        let read = timeout(Duration::from_millis(300), stream.read_exact(&mut answer)).await;
        read.is_ok() && answer == *b"HTTP/1.1 503"
    };
    assert!(turned_away().await, "its request is still in memory");
    drop(held);
    while turned_away().await {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(bed.nodes.signals(), 1);
}

#[tokio::test]
async fn pages_of_other_origins_are_refused() {
    let bed = Bed::with(Nodes::new(), |config| {
        config.origins = vec!["https://app.example.com".to_owned()];
    });
    let request = |origin: &str| {
        format!(
            "GET /v1/ws HTTP/1.1\r\nhost: e\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             origin: {origin}\r\n\r\n"
        )
    };
    for (origin, status) in [
        ("https://app.example.com", "101"),
        ("https://evil.example.com", "403"),
        ("http://localhost:8080", "403"),
        ("null", "403"),
    ] {
        let mut stream = TcpStream::connect(bed.edge.http_addr()).await.unwrap();
        stream.write_all(request(origin).as_bytes()).await.unwrap();
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.unwrap();
        let head = String::from_utf8_lossy(&head);
        assert_eq!(head, format!("HTTP/1.1 {status}"), "{origin}");
    }
}

#[tokio::test]
async fn a_handshake_that_is_none_is_refused() {
    let bed = Bed::new();
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\n";
    let key = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let version = "sec-websocket-version: 13\r\n";
    for (headers, code) in [
        (String::new(), "MALFORMED"),
        (format!("{upgrade}{version}"), "MALFORMED"),
        (format!("{upgrade}{key}"), "UNSUPPORTED_VERSION"),
        (
            format!("{upgrade}{key}{version}sec-websocket-protocol: mqtt, stomp\r\n"),
            "UNSUPPORTED_VERSION",
        ),
    ] {
        let close = if headers.is_empty() {
            "connection: close\r\n"
        } else {
            ""
        };
        let request = format!("GET /v1/ws HTTP/1.1\r\nhost: e\r\n{headers}{close}\r\n");
        let mut stream = TcpStream::connect(bed.edge.http_addr()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = String::new();
        timeout(SOON, stream.read_to_string(&mut answer))
            .await
            .unwrap()
            .unwrap();
        assert!(answer.contains(code), "{headers}: {answer}");
    }
}
