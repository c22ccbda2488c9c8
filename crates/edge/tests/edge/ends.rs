//! Architecture invariant 1: however a connection ends, no signal comes of it.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::event::Body;
use everwire_core::{Cancel, Draft, InputId, Key, RunId};
use everwire_proto::frame::{ClientFrame, ServerFrame, Subprotocol};
use everwire_proto::signal::Pressed;
use futures_util::future::join_all;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::nodes::{Nodes, session};
use crate::support::{Bed, Client, SOON};

async fn event_stream(bed: &Bed, name: &str) -> TcpStream {
    let token = bed.token();
    let mut stream = TcpStream::connect(bed.edge.http_addr()).await.unwrap();
    let request = format!(
        "GET /v1/sessions/{name}/events HTTP/1.1\r\nhost: e\r\nauthorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 15];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    stream
}

#[tokio::test]
async fn no_end_of_a_connection_is_a_signal() {
    let bed = Bed::new();
    bed.nodes.make("s");
    bed.nodes.append_many("s", 10);
    for subprotocol in Subprotocol::ALL {
        // Dropped without a goodbye.
        let mut client = bed.join(subprotocol).await;
        client.resume("s", None).await;
        drop(client);
        // A goodbye.
        let mut client = bed.join(subprotocol).await;
        client.resume("s", None).await;
        client.socket.close(None).await.unwrap();
        while client.message().await.is_ok() {}
        // A reset, with a frame half sent.
        let mut client = bed.join(subprotocol).await;
        client.resume("s", None).await;
        let stream = client.socket.get_mut();
        stream.write_all(&[0x81, 0xfe, 0x01]).await.unwrap();
        stream.set_zero_linger().unwrap();
        drop(client);
    }
    drop(event_stream(&bed, "s").await);
    let stream = event_stream(&bed, "s").await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    bed.until("attachments", 0).await;
    bed.until("connections", 0).await;
    bed.until("streams", 0).await;
    assert_eq!(bed.nodes.written(), []);
}

#[tokio::test]
async fn an_edge_that_stops_or_dies_signals_nothing() {
    for polite in [true, false] {
        let nodes = Nodes::new();
        let bed = Bed::with(Arc::clone(&nodes), |config| {
            config.drain_window = Duration::from_millis(100);
        });
        nodes.make("s");
        let mut client = bed.json().await;
        client.resume("s", None).await;
        let stream = event_stream(&bed, "s").await;
        if polite {
            bed.edge.shutdown().await;
        } else {
            drop(bed);
        }
        while client.message().await.is_ok() {}
        drop(stream);
        assert_eq!(nodes.written(), []);
    }
}

#[tokio::test]
async fn what_was_asked_before_the_end_is_carried_out() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let held = bed.nodes.inputs.acquire_many(1_000).await.unwrap();
    let mut client = bed.json().await;
    let input = ClientFrame::Publish {
        session: session("s"),
        draft: Draft::new(Body::Input {
            input: InputId::parse("i").unwrap(),
            text: "hello".into(),
            data: None,
        }),
        key: Some(Key::parse("k").unwrap()),
    };
    let stop = ClientFrame::Signal {
        session: session("s"),
        pressed: Pressed::Cancel(Cancel::run(RunId::parse("r").unwrap())),
        key: Key::parse("k2").unwrap(),
    };
    client.say("1", &input).await;
    client.say("2", &stop).await;
    client.say("3", &ClientFrame::Ping).await;
    assert_eq!(client.frame().await.0, "3", "both were read");
    drop(client);
    bed.until("sockets", 0).await;
    assert_eq!(bed.nodes.written(), []);
    drop(held);
    let done = async {
        while bed.nodes.written().len() < 2 {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, done).await.unwrap();
    assert_eq!(bed.nodes.signals(), 1);
}

#[tokio::test]
async fn a_stopping_edge_tells_its_clients_to_move_then_says_bye() {
    let bed = Bed::with(Nodes::new(), |config| {
        config.drain_window = Duration::from_secs(2);
    });
    bed.nodes.make("s");
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = bed.json().await;
        let reader = client.resume("s", None).await;
        clients.push((client, reader));
    }
    let stream = event_stream(&bed, "s").await;
    let addr = bed.edge.http_addr();
    let ready = bed.edge.ready_probe();
    assert!(ready());
    let nodes = Arc::clone(&bed.nodes);
    let stopping = tokio::spawn(bed.edge.shutdown());
    let tellings = clients.iter_mut().map(|(client, _)| async {
        let (_, frame) = client.frame().await;
        assert!(
            matches!(frame, ServerFrame::Moving { within_ms: 1_000 }),
            "{frame:?}"
        );
        Instant::now()
    });
    let mut told = join_all(tellings).await;
    told.sort();
    assert!(!ready());
    assert!(
        *told.last().unwrap() - told[0] > Duration::from_millis(300),
        "they are spread"
    );
    // Whoever still comes is told to go elsewhere, in a way that a browser can read.
    let stream_of_late = TcpStream::connect(addr).await.unwrap();
    let mut late = Client::over(stream_of_late, Subprotocol::Json).await;
    assert_eq!(late.bye().await, ("DRAINING", 4030));
    nodes.append_many("s", 1);
    for (client, reader) in &mut clients {
        client.read_to(reader, 1).await;
        assert_eq!(client.bye().await, ("DRAINING", 4030));
    }
    let mut rest = String::new();
    let mut stream = stream;
    timeout(SOON, stream.read_to_string(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(
        rest.contains("event: bye") && rest.contains("DRAINING"),
        "{rest}"
    );
    timeout(SOON, stopping).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stopping_edge_waits_no_longer_than_its_few_clients_need() {
    let bed = Bed::with(Nodes::new(), |config| {
        config.drain_window = Duration::from_secs(3_600);
    });
    bed.nodes.make("s");
    let mut client = bed.json().await;
    client.resume("s", None).await;
    let begin = Instant::now();
    let stopping = tokio::spawn(bed.edge.shutdown());
    let (_, frame) = client.frame().await;
    assert!(
        matches!(frame, ServerFrame::Moving { within_ms: 1_000 }),
        "{frame:?}"
    );
    drop(client);
    timeout(SOON, stopping).await.unwrap().unwrap();
    assert!(begin.elapsed() < SOON);
}
