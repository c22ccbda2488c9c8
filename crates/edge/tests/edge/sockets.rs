//! What one socket can do.

use std::sync::atomic::Ordering;
use std::time::Duration;

use everwire_core::command::SignalOutcome;
use everwire_core::event::ParticipantKind;
use everwire_core::event::{Body, Visibility};
use everwire_core::grant::Claims;
use everwire_core::{Cancel, Code, Draft, Event, InputId, Key, RunId};
use everwire_proto::frame::{AttachAnswer, ClientFrame, ServerFrame, Subprotocol};
use everwire_proto::signal::Pressed;

use crate::nodes::{Nodes, Written, app, session};
use crate::support::{Bed, Client, Reader};

fn input(id: &str) -> ClientFrame {
    ClientFrame::Publish {
        session: session("s"),
        draft: Draft::new(Body::Input {
            input: InputId::parse(id).unwrap(),
            text: "hello".into(),
            data: None,
        }),
        key: Some(Key::parse(id).unwrap()),
    }
}

fn app_event() -> ClientFrame {
    ClientFrame::Publish {
        session: session("s"),
        draft: Draft::new(Body::App {
            name: "n".into(),
            data: None,
        }),
        key: None,
    }
}

fn cancel(run: &str) -> ClientFrame {
    ClientFrame::Signal {
        session: session("s"),
        pressed: Pressed::Cancel(Cancel::run(RunId::parse(run).unwrap())),
        key: Key::parse("k").unwrap(),
    }
}

#[tokio::test]
async fn both_subprotocols_read_the_same_events() {
    let bed = Bed::new();
    bed.nodes.make("s");
    bed.nodes.append_many("s", 3);
    let mut all = Vec::new();
    for subprotocol in Subprotocol::ALL {
        let mut client = bed.join(subprotocol).await;
        let mut reader = client.resume("s", None).await;
        assert_eq!(reader.next, 1);
        client.read_to(&mut reader, 3).await;
        bed.nodes.append("s", [app("live")]);
        client.read_to(&mut reader, bed.nodes.tail("s")).await;
        all.push(reader.texts);
    }
    assert_eq!(all[0][..], all[1][..4]);
    assert_eq!(all[1].len(), 5);
}

#[tokio::test]
async fn json_is_the_default_and_answers_as_the_page_says() {
    let bed = Bed::new();
    let mut client = bed.json().await;
    client.text(r#"{"t":"ping","id":"6"}"#).await;
    let pong = client.message().await.unwrap();
    assert_eq!(&pong[..], br#"{"t":"pong","id":"6"}"#);
    let request = "GET /v1/ws HTTP/1.1\r\nhost: e\r\nconnection: keep-alive, Upgrade\r\n\
        upgrade: WebSocket\r\nsec-websocket-version: 13\r\n\
        sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let mut stream = tokio::net::TcpStream::connect(bed.edge.http_addr())
        .await
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes())
        .await
        .unwrap();
    let mut head = vec![0; 1024];
    let read = tokio::io::AsyncReadExt::read(&mut stream, &mut head)
        .await
        .unwrap();
    let head = String::from_utf8_lossy(&head[..read]).to_lowercase();
    assert!(head.starts_with("http/1.1 101"), "{head}");
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="));
    assert!(!head.contains("sec-websocket-protocol"));
}

#[tokio::test]
async fn one_socket_carries_many_sessions() {
    let bed = Bed::new();
    let mut client = bed.json().await;
    let names: Vec<String> = (0..40).map(|number| format!("s{number}")).collect();
    let mut readers = std::collections::HashMap::new();
    for name in &names {
        bed.nodes.make(name);
        client.resume(name, None).await;
        let reader = Reader {
            next: 1,
            ..Reader::default()
        };
        readers.insert(name.clone(), reader);
    }
    for round in 0..5 {
        for name in &names {
            bed.nodes.append(name, [app(&format!("{name}-{round}"))]);
        }
    }
    while readers.values().any(|reader| reader.next <= 5) {
        let (_, frame) = client.frame().await;
        let ServerFrame::Events { session, .. } = &frame else {
            panic!("{frame:?}");
        };
        readers.get_mut(session.as_str()).unwrap().take(&frame);
    }
    for (name, reader) in readers {
        let texts: Vec<_> = reader.texts.into_iter().map(|(_, text)| text).collect();
        let expected: Vec<_> = (0..5).map(|round| format!("\"{name}-{round}\"")).collect();
        assert_eq!(texts, expected);
    }
    assert_eq!(bed.metric("attachments"), 40);
}

#[tokio::test]
async fn the_257th_session_is_refused_and_the_socket_lives() {
    let bed = Bed::new();
    let mut client = bed.json().await;
    for number in 0..=256 {
        let name = format!("s{number}");
        bed.nodes.make(&name);
        let frame = client.attach(&name, None).await;
        match (number, frame) {
            (256, ServerFrame::Error { refusal, .. }) => {
                assert_eq!(refusal.code, Code::TooManyPending);
                assert_eq!(refusal.details.limit, Some(256));
            },
            (0..256, ServerFrame::Attached { .. }) => {},
            (_, frame) => panic!("{number}: {frame:?}"),
        }
    }
    let detach = ClientFrame::Detach {
        session: session("s7"),
    };
    client.say("", &detach).await;
    client.resume("s256", None).await;
}

#[tokio::test]
async fn an_event_is_encoded_once_for_all_readers_of_a_form() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let mut clients = Vec::new();
    for number in 0..30 {
        let mut client = bed.join(Subprotocol::ALL[number % 2]).await;
        let reader = client.resume("s", None).await;
        clients.push((client, reader));
    }
    bed.nodes.append_many("s", 1);
    for (client, reader) in &mut clients {
        client.read_to(reader, 1).await;
    }
    assert_eq!(bed.metric("encoded"), 2, "once in JSON, once in protobuf");
    assert_eq!(bed.nodes.subscribed.load(Ordering::SeqCst), 1);
    assert_eq!(bed.metric("catch_ups"), 0);
}

#[tokio::test]
async fn a_user_never_sees_what_is_for_operators() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let hidden = || Event {
        visibility: Visibility::Operators,
        ..app("hidden")
    };
    bed.nodes
        .append("s", [app("a"), hidden(), app("b"), hidden()]);
    let mut user = bed.json().await;
    let mut seen = user.resume("s", None).await;
    user.read_to(&mut seen, 4).await;
    let texts: Vec<_> = seen.texts.iter().map(|(at, _)| *at).collect();
    assert_eq!(
        texts,
        [1, 3],
        "ranges are dense, hidden events are left out"
    );
    let operator = Claims {
        kind: ParticipantKind::Operator,
        ..bed.claims("olga")
    };
    let mut client = Client::connect(&bed, Subprotocol::Json).await;
    client.auth(&bed.mint(&operator)).await;
    let mut seen = client.resume("s", None).await;
    client.read_to(&mut seen, 4).await;
    assert_eq!(seen.texts.len(), 4);
}

#[tokio::test]
async fn what_one_person_asks_is_done_in_order() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let mut client = bed.json().await;
    for number in 0..20 {
        client
            .say(&format!("p{number}"), &input(&format!("i{number}")))
            .await;
        client
            .say(&format!("c{number}"), &cancel(&format!("r{number}")))
            .await;
    }
    for number in 0..20 {
        let (id, ack) = client.frame().await;
        assert_eq!(id, format!("p{number}"));
        assert!(matches!(
            ack,
            ServerFrame::Ack {
                duplicate: false,
                ..
            }
        ));
        let (id, outcome) = client.frame().await;
        assert_eq!(id, format!("c{number}"));
        let ServerFrame::Outcome { outcome, .. } = outcome else {
            panic!("{outcome:?}");
        };
        assert_eq!(outcome, SignalOutcome::UnknownRun);
    }
    let token = bed.token();
    let signature = token.rsplit('.').next().unwrap();
    let written = bed.nodes.written();
    assert_eq!(written.len(), 40);
    for (number, pair) in written.chunks(2).enumerate() {
        let Written::Post(by, _, _, draft) = &pair[0] else {
            panic!("{pair:?}");
        };
        assert_eq!(by, signature, "with the person's own token");
        assert!(matches!(&draft.body, Body::Input { input, .. }
            if input.as_str() == format!("i{number}")));
        assert!(matches!(&pair[1], Written::Cancel(_, _, run)
            if run.as_str() == format!("r{number}")));
    }
}

#[tokio::test]
async fn a_stop_does_not_wait_behind_application_events() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let held = bed.nodes.apps.acquire_many(1_000).await.unwrap();
    let mut client = bed.json().await;
    for _ in 0..5 {
        client.say("app", &app_event()).await;
    }
    client.say("stop", &cancel("r")).await;
    let (id, _) = client.frame().await;
    assert_eq!(id, "stop");
    drop(held);
    for _ in 0..5 {
        assert_eq!(client.frame().await.0, "app");
    }
}

#[tokio::test]
async fn more_than_64_waiting_requests_are_refused_and_nothing_is_lost() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let held = bed.nodes.inputs.acquire_many(1_000).await.unwrap();
    let mut client = bed.json().await;
    for number in 0..70 {
        client
            .say(&number.to_string(), &input(&format!("i{number}")))
            .await;
    }
    for number in 64..70 {
        let (id, frame) = client.frame().await;
        assert_eq!(id, number.to_string());
        let ServerFrame::Error { refusal, .. } = frame else {
            panic!("{frame:?}");
        };
        assert_eq!(refusal.code, Code::TooManyPending);
        assert_eq!(refusal.details.limit, Some(64));
    }
    drop(held);
    for number in 0..64 {
        assert_eq!(client.frame().await.0, number.to_string());
    }
    assert_eq!(bed.nodes.written().len(), 64);
}

#[tokio::test]
async fn a_second_attach_begins_anew_and_a_detach_ends_it() {
    let bed = Bed::new();
    bed.nodes.make("s");
    bed.nodes.append_many("s", 10);
    let mut client = bed.json().await;
    let mut reader = client.resume("s", None).await;
    client.read_to(&mut reader, 10).await;
    let mut reader = client.resume("s", Some("7")).await;
    assert_eq!(reader.next, 8);
    client.read_to(&mut reader, 10).await;
    assert_eq!(bed.metric("attachments"), 1);
    let detach = ClientFrame::Detach {
        session: session("s"),
    };
    client.say("", &detach).await;
    bed.until("attachments", 0).await;
    bed.nodes.append_many("s", 1);
    client.say("p", &ClientFrame::Ping).await;
    assert_eq!(client.frame().await, ("p".to_owned(), ServerFrame::Pong));
}

#[tokio::test]
async fn a_quiet_session_shows_signs_of_life() {
    let bed = Bed::with(Nodes::with_alive(Duration::from_millis(50)), |_| {});
    bed.nodes.make("s");
    bed.nodes.append_many("s", 2);
    let mut client = bed.json().await;
    let mut reader = client.resume("s", None).await;
    client.read_to(&mut reader, 2).await;
    for _ in 0..3 {
        let (_, frame) = client.heard().await;
        let ServerFrame::Events { range, events, .. } = frame else {
            panic!("{frame:?}");
        };
        assert_eq!(
            (range.from.get(), range.to.get(), range.tail.get()),
            (3, 2, 2)
        );
        assert_eq!(range.leader_seen_ms, 7);
        assert!(events.is_empty());
    }
}

#[tokio::test]
async fn tenants_do_not_meet() {
    let bed = Bed::new();
    bed.nodes.make("s");
    let other = Claims {
        namespace: Some("other".parse().unwrap()),
        ..bed.claims("ann")
    };
    let mut client = Client::connect(&bed, Subprotocol::Json).await;
    client.auth(&bed.mint(&other)).await;
    let answer = client.attach("s", None).await;
    let not_found = ServerFrame::Attached {
        session: session("s"),
        answer: AttachAnswer::NotFound,
    };
    assert_eq!(answer, not_found);
}
