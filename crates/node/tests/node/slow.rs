//! What only time shows. All of it at once, in one test, because each part mostly waits.

use std::time::Duration;

use everwire_core::Code;
use everwire_core::limits::{AUTH_WITHIN, REQUEST_WITHIN};
use everwire_proto::v1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use v1::follow_response::Message as Followed;

use crate::bad_input::AsTheyAre;
use crate::support::{TestNode, app, code, node, refused, soon};

#[tokio::test]
async fn peers_that_say_nothing_are_bounded_in_time() {
    let node = node().await;
    tokio::join!(
        a_quiet_session_still_says_that_it_lives(&node),
        a_stream_that_is_never_opened_is_ended(&node),
        a_request_that_never_comes_is_answered(&node),
        a_connection_that_never_makes_a_call_is_closed(&node),
        a_connection_that_made_a_call_stays(&node),
    );
    node.stop().await;
}

async fn a_quiet_session_still_says_that_it_lives(node: &TestNode) {
    let agent = node.agent().await;
    agent.post("quiet", app("x"), "").await.unwrap();
    let follow = v1::FollowRequest {
        session: "quiet".to_owned(),
        ..v1::FollowRequest::default()
    };
    let mut reader = agent.follow(follow).await.unwrap();
    reader.attached().await;
    reader.events(1, 1).await;
    match reader.next().await {
        Some(Followed::Events(alive)) => {
            assert_eq!((alive.from, alive.to, alive.tail), (2, 1, 1));
            assert!(alive.events.is_empty());
        },
        other => panic!("{other:?}"),
    }
}

async fn a_stream_that_is_never_opened_is_ended(node: &TestNode) {
    let mut silent = node.agent().await.unopened().await.unwrap();
    assert_eq!(code(silent.next().await), Code::Malformed);
}

async fn a_request_that_never_comes_is_answered(node: &TestNode) {
    let agent = node.agent().await;
    let mut grpc = Grpc::new(agent.channel.clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/everwire.v1.Sessions/Create");
    let request = agent.ask(tokio_stream::pending());
    let began = Instant::now();
    let answer = soon(grpc.client_streaming(request, path, AsTheyAre)).await;
    assert_eq!(refused(&answer.unwrap_err()).code, Code::Overloaded);
    assert!(began.elapsed() >= REQUEST_WITHIN);
    assert!(agent.create("s").await.is_ok(), "the connection serves on");
}

async fn a_connection_that_never_makes_a_call_is_closed(node: &TestNode) {
    let mut mute = TcpStream::connect(node.addr).await.unwrap();
    let mut noisy = TcpStream::connect(node.addr).await.unwrap();
    noisy.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    for socket in [&mut noisy, &mut mute] {
        let mut bytes = Vec::new();
        // A reset is as good an end as an orderly one.
        let _ = soon(socket.read_to_end(&mut bytes)).await;
    }
}

async fn a_connection_that_made_a_call_stays(node: &TestNode) {
    let agent = node.agent().await;
    assert!(agent.create("stays").await.is_ok());
    tokio::time::sleep(AUTH_WITHIN + Duration::from_secs(1)).await;
    assert!(agent.create("stays").await.is_ok());
}
