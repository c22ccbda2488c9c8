//! Connections that begin and never go on, floods of bad ones, and what they cost.

use std::time::Duration;

use bytes::{Buf, BufMut};
use everwire_proto::v1;
use everwire_testkit::{Lines, grpc, tokens as mint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_tungstenite::tungstenite::Message;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};
use v1::publish_client::PublishClient;

use crate::{House, app, heavy};

/// How long a newcomer may take to say who it is, and how late that may be noticed.
const NEWCOMER: Duration = Duration::from_secs(10 + 10);
/// How long a known peer may be silent, and how late that may be noticed.
const SILENT: Duration = Duration::from_secs(25 + 15);

/// Says something, then reads until the other side hangs up.
async fn half(addr: String, bytes: &'static [u8]) {
    let mut socket = TcpStream::connect(&addr).await.expect("it listens");
    socket.write_all(bytes).await.expect("taken");
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(
        !answer.contains(" 101 ") && !answer.contains(" 200 "),
        "{answer}"
    );
}

/// One byte of a request now and then.
async fn slow_loris(addr: String) {
    let mut socket = TcpStream::connect(&addr).await.expect("it listens");
    let request = b"GET /v1/ws HTTP/1.1\r\nhost: 127.0.0.1\r\nx-padding: ";
    for byte in request.iter().chain(std::iter::repeat_n(&b'x', 1000)) {
        sleep(Duration::from_millis(300)).await;
        let mut answer = [0; 1024];
        let heard = timeout(Duration::ZERO, socket.read(&mut answer)).await;
        let is_over = matches!(heard, Ok(Ok(0) | Err(_)));
        if is_over || socket.write_all(&[*byte]).await.is_err() {
            return;
        }
    }
}

/// A WebSocket that says these bytes after its handshake, known or not, and nothing more.
async fn half_socket(addr: String, token: Option<String>, bytes: Vec<u8>) {
    let mut socket = match token {
        Some(token) => Lines::open(&addr, &token).await,
        None => Lines::connect(&addr).await,
    };
    socket.raw().write_all(&bytes).await.expect("taken");
    socket.raw().flush().await.expect("taken");
    // Somebody who is half-open answers no pings: nothing is read, but for the end.
    let mut end = [0; 4096];
    while !matches!(socket.raw().read(&mut end).await, Ok(0) | Err(_)) {}
}

/// The first bytes of a text frame of 100 KiB.
fn begun(bytes: usize) -> Vec<u8> {
    let mut frame = vec![0x81, 0xff];
    frame.extend((100_u64 << 10).to_be_bytes());
    frame.extend([0; 4]);
    frame.extend(std::iter::repeat_n(b'x', bytes));
    frame
}

#[tokio::test]
async fn half_open_connections_are_closed_in_time_and_disturb_nobody() {
    let mut house = House::start().await;
    let (http, rpc) = (house.server.http.clone(), house.server.grpc.clone());
    let token = mint::user(house.data(), "eve");
    // A fragment whose last one never comes.
    let fragment = vec![0x01, 0x82, 0, 0, 0, 0, b'{', b'}'];
    let request = b"POST /v1/tickets HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\nhalf";
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00";
    let mut abuse = JoinSet::new();
    let started = Instant::now();
    macro_rules! abuse {
        ($what:literal, $within:expr, $future:expr) => {{
            let future = $future;
            abuse.spawn(async move {
                future.await;
                ($what, $within, started.elapsed())
            });
        }};
    }
    abuse!("HTTP, silent", NEWCOMER, half(http.clone(), b""));
    abuse!(
        "HTTP, half a handshake",
        NEWCOMER,
        half(http.clone(), b"GET /v1/ws HTTP/1.1\r\nhost: x\r\nupg")
    );
    abuse!("HTTP, half a body", SILENT, half(http.clone(), request));
    abuse!("HTTP, byte by byte", NEWCOMER, slow_loris(http.clone()));
    abuse!("gRPC, silent", NEWCOMER, half(rpc.clone(), b""));
    abuse!(
        "gRPC, half a preface",
        NEWCOMER,
        half(rpc.clone(), b"PRI * HTTP/2.0\r\n")
    );
    abuse!("gRPC, no call", NEWCOMER, half(rpc.clone(), preface));
    abuse!(
        "socket, silent",
        NEWCOMER,
        half_socket(http.clone(), None, Vec::new())
    );
    abuse!(
        "socket, half a frame",
        NEWCOMER,
        half_socket(http.clone(), None, begun(10))
    );
    abuse!(
        "socket, half a message",
        NEWCOMER,
        half_socket(http.clone(), None, fragment.clone())
    );
    let known = |bytes| half_socket(http.clone(), Some(token.clone()), bytes);
    abuse!("known, half a frame", SILENT, known(begun(50 << 10)));
    abuse!("known, half a message", SILENT, known(fragment));
    abuse!("known, silent", SILENT, known(Vec::new()));

    while !abuse.is_empty() {
        tokio::select! {
            over = abuse.join_next() => {
                let (what, within, took) = over.expect("not empty").expect("no panic");
                assert!(took <= within, "{what} was closed after {took:?}");
            },
            () = sleep(Duration::from_millis(500)) => house.unharmed().await,
        }
        assert!(started.elapsed() < SILENT * 2, "{} stay open", abuse.len());
    }
    house.unharmed().await;
}

/// Resident memory of the server, bytes.
fn resident(house: &House) -> u64 {
    let path = format!("/proc/{}/status", house.server.pid());
    let status = std::fs::read_to_string(path).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.expect("Linux tells").trim().trim_end_matches(" kB");
    kib.parse::<u64>().expect("a number") << 10
}

/// One bad connection; those that stay open are given back.
async fn bad_connection(house: &House, number: usize) -> Option<Box<dyn Send>> {
    let (http, rpc) = (&house.server.http, &house.server.grpc);
    match number % 6 {
        0 => {
            let mut socket = TcpStream::connect(http).await.expect("it listens");
            let _ = socket.write_all(&[0xff; 4096]).await;
            Some(Box::new(socket))
        },
        1 => {
            let mut socket = TcpStream::connect(rpc).await.expect("it listens");
            let _ = socket.write_all(&[0xff; 4096]).await;
            Some(Box::new(socket))
        },
        2 => {
            let mut socket = Lines::connect(http).await;
            socket
                .send(&format!(r#"{{"t":"auth","token":"{}"}}"#, "x".repeat(9000)))
                .await;
            assert_eq!(socket.bye().await.0, "UNAUTHENTICATED");
            None
        },
        3 => {
            let mut socket = Lines::connect(http).await;
            let _ = socket.raw().write_all(&begun(90 << 10)).await;
            let _ = socket.raw().flush().await;
            Some(Box::new(socket))
        },
        4 => {
            let mut socket = TcpStream::connect(http).await.expect("it listens");
            let _ = socket.write_all(b"GET /v1/ws HTTP/1.1\r\nx: ").await;
            let _ = socket.write_all(&[b'x'; 12 << 10]).await;
            Some(Box::new(socket))
        },
        _ => {
            let mut socket = Lines::open(http, &mint::user(house.data(), "eve")).await;
            for _ in 0..20 {
                socket.send("nonsense").await;
            }
            assert_eq!(socket.bye().await.0, "MALFORMED");
            None
        },
    }
}

/// Everything of it that is above a bound, once.
async fn oversized(house: &House, token: &str) {
    let mut socket = Lines::open(&house.server.http, token).await;
    socket.message(Message::text("x".repeat(1 << 20))).await;
    assert_eq!(socket.bye().await.0, "TOO_LARGE");
    let body = "x".repeat(1 << 20);
    let posted = house
        .http(token)
        .post("/v1/sessions/s/events", &[], &body)
        .await;
    assert_eq!(posted.refusal(), (413, "TOO_LARGE".into()));
    for bytes in [300 << 10, 1 << 20] {
        let request = v1::PostRequest {
            session: "s".to_owned(),
            draft: Some(heavy(bytes)),
            key: String::new(),
        };
        let mut publish = PublishClient::new(house.channel.clone());
        let refused = publish.post(grpc::with(token, request)).await;
        assert_eq!(grpc::code(refused), "TOO_LARGE");
    }
}

#[tokio::test]
async fn a_flood_of_bad_connections_takes_bounded_memory() {
    let mut house = House::start().await;
    let token = house.all();
    // What every server takes once, for the first of each kind.
    for number in 0..6 {
        drop(bad_connection(&house, number).await);
    }
    oversized(&house, &token).await;
    house.unharmed().await;
    let before = resident(&house);
    let mut open = Vec::new();
    for number in 0..200 {
        open.extend(bad_connection(&house, number).await);
        if number % 20 == 0 {
            house.unharmed().await;
        }
    }
    assert!(
        open.len() >= 120,
        "{} connections are open at once",
        open.len()
    );
    for number in 0..50 {
        oversized(&house, &token).await;
        if number % 10 == 0 {
            house.unharmed().await;
        }
    }
    let growth = resident(&house).saturating_sub(before);
    assert!(growth < 64 << 20, "{} KiB more than before", growth >> 10);
    drop(open);
    house.unharmed().await;
    assert_eq!(house.server.stop().await, Some(0));
}

/// Sends bytes as they are where a message is expected.
struct RawCodec;

impl Codec for RawCodec {
    type Encode = Vec<u8>;
    type Decode = Vec<u8>;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put_slice(&item);
        Ok(())
    }
}

impl Decoder for RawCodec {
    type Item = Vec<u8>;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Vec<u8>>, Status> {
        let length = buffer.remaining();
        Ok(Some(buffer.copy_to_bytes(length).to_vec()))
    }
}

async fn raw(house: &House, path: &'static str, bytes: &[u8]) -> &'static str {
    let mut client = tonic::client::Grpc::new(house.channel.clone());
    client.ready().await.expect("the channel is up");
    let request: Request<Vec<u8>> = grpc::with(&house.all(), bytes.to_vec());
    let path = path.parse().expect("a path");
    match client.unary(request, path, RawCodec).await {
        Ok(_) => "ok",
        refused => grpc::code(refused),
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_are_malformed() {
    let mut house = House::start().await;
    for (path, bytes, code) in [
        (
            "/everwire.v1.Sessions/Show",
            &b"\xff\xff\xff\xff"[..],
            "MALFORMED",
        ),
        // A string that is not UTF-8, a length beyond the end.
        (
            "/everwire.v1.Sessions/Show",
            b"\x0a\x02\xff\xfe",
            "MALFORMED",
        ),
        ("/everwire.v1.Sessions/Show", b"\x0a\x7fx", "MALFORMED"),
        // No field at all: the name is empty.
        ("/everwire.v1.Sessions/Show", b"", "MALFORMED"),
        ("/everwire.v1.Publish/Post", b"\x0a\x01s", "MALFORMED"),
        (
            "/everwire.v1.Runs/Start",
            b"\x0a\x01s\x12\x03a b",
            "MALFORMED",
        ),
        ("/everwire.v1.Sessions/Rename", b"", "UNSUPPORTED_VERSION"),
        ("/everwire.v2.Sessions/Show", b"", "UNSUPPORTED_VERSION"),
        // A field that is not known here is for somebody newer.
        (
            "/everwire.v1.Sessions/Show",
            b"\x0a\x04calm\xf8\x07\x01",
            "ok",
        ),
    ] {
        assert_eq!(raw(&house, path, bytes).await, code, "{path} {bytes:?}");
    }
    // Drafts without a body, of a kind that the server alone writes, with numbers of no word.
    let post = async |draft: v1::Draft| {
        let request = v1::PostRequest {
            session: "s".to_owned(),
            draft: Some(draft),
            key: "k".to_owned(),
        };
        let mut publish = PublishClient::new(house.channel.clone());
        grpc::code(publish.post(grpc::with(&house.all(), request)).await)
    };
    let with = |change: fn(&mut v1::Draft)| {
        let mut draft = app("x");
        change(&mut draft);
        draft
    };
    for draft in [
        v1::Draft::default(),
        crate::draft(v1::draft::Body::SignalCancel(v1::SignalCancel {
            target: Some(v1::signal_cancel::Target::Run("r".to_owned())),
            graceful_ms: 0,
        })),
        crate::draft(v1::draft::Body::RunStarted(v1::RunStarted::default())),
        crate::draft(v1::draft::Body::RunCompleted(v1::RunCompleted {})),
        with(|draft| draft.visibility = 99),
        with(|draft| draft.codec = 99),
        with(|draft| draft.parent = "a b".to_owned()),
        with(|draft| {
            if let Some(v1::draft::Body::App(app)) = &mut draft.body {
                app.data = Some(v1::Data {
                    data: Some(v1::data::Data::Json("{".to_owned())),
                });
            }
        }),
    ] {
        assert_eq!(post(draft.clone()).await, "MALFORMED", "{draft:?}");
    }
    let long = with(|draft| draft.format = "x".repeat(257));
    assert_eq!(post(long).await, "TOO_LARGE");
    house.unharmed().await;
}
