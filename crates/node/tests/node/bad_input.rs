//! Bytes that nobody should send: each gets its code, and the connection and the node live on.

use everwire_core::Code;
use everwire_core::limits::GRPC_MESSAGE_BYTES_MAX;
use everwire_proto::v1;
use tonic::Status;
use tonic::client::Grpc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{Bytes, Service, http};
use v1::publish_stream_request::Message as In;

use crate::support::{Somebody, app, bare, code, heavy, node, refused, soon};

/// Sends bytes as they are, as if they were a message.
pub(crate) struct AsTheyAre;

impl Encoder for AsTheyAre {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, bytes: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put(buffer, bytes);
        Ok(())
    }
}

impl Decoder for AsTheyAre {
    type Item = ();
    type Error = Status;

    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        Ok(Some(()))
    }
}

impl Codec for AsTheyAre {
    type Encode = Bytes;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

async fn call(caller: &Somebody, path: &'static str, bytes: Vec<u8>) -> Status {
    let mut grpc = Grpc::new(caller.channel.clone());
    grpc.ready().await.unwrap();
    let request = caller.ask(Bytes::from(bytes));
    let path = PathAndQuery::from_static(path);
    grpc.unary(request, path, AsTheyAre).await.unwrap_err()
}

const UNARY: [&str; 11] = [
    "/everwire.v1.Publish/Post",
    "/everwire.v1.Publish/Append",
    "/everwire.v1.Attach/Read",
    "/everwire.v1.Sessions/Create",
    "/everwire.v1.Sessions/Show",
    "/everwire.v1.Sessions/List",
    "/everwire.v1.Sessions/Delete",
    "/everwire.v1.Runs/Start",
    "/everwire.v1.Runs/Claim",
    "/everwire.v1.Runs/Get",
    "/everwire.v1.Signals/Cancel",
];

#[tokio::test]
async fn bytes_that_are_no_message_are_malformed() {
    let node = node().await;
    let agent = node.agent().await;
    for path in UNARY {
        let status = call(&agent, path, vec![0xff; 40]).await;
        assert_eq!(status.code(), tonic::Code::InvalidArgument, "{path}");
        assert_eq!(refused(&status).code, Code::Malformed, "{path}");
    }
    assert!(agent.create("s").await.is_ok(), "the connection serves on");
    node.stop().await;
}

#[tokio::test]
async fn a_message_above_the_bound_is_too_large() {
    let node = node().await;
    let agent = node.agent().await;
    for path in UNARY {
        let status = call(&agent, path, vec![0; GRPC_MESSAGE_BYTES_MAX + 1]).await;
        let refusal = refused(&status);
        assert_eq!(refusal.code, Code::TooLarge, "{path}");
        let limit = u64::try_from(GRPC_MESSAGE_BYTES_MAX).unwrap();
        assert_eq!(refusal.details.limit, Some(limit));
    }
    // On a stream: what was taken before is acked, then the stream ends.
    agent.start("s", "r").await.unwrap();
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(1, &[app("x")]).await;
    writer.batch(2, &[heavy(GRPC_MESSAGE_BYTES_MAX)]).await;
    assert_eq!(writer.ack().await.through_seq, 1);
    assert_eq!(code(writer.next().await), Code::TooLarge);
    assert!(agent.read("s").await.is_ok(), "the connection serves on");
    node.stop().await;
}

#[tokio::test]
async fn a_method_that_is_not_there_is_an_unknown_version() {
    let node = node().await;
    let agent = node.agent().await;
    for path in ["/everwire.v1.Runs/Suspend", "/everwire.v2.Runs/Start"] {
        let refusal = refused(&call(&agent, path, Vec::new()).await);
        assert_eq!(refusal.code, Code::UnsupportedVersion, "{path}");
    }
    node.stop().await;
}

#[tokio::test]
async fn names_outside_their_alphabet_are_malformed_everywhere() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let long = "x".repeat(129);
    for bad in ["", "a/b", "a b", "ü", "a\0b", long.as_str()] {
        assert_eq!(code(agent.create(bad).await), Code::Malformed);
        assert_eq!(code(agent.read(bad).await), Code::Malformed);
        assert_eq!(code(agent.start(bad, "r").await), Code::Malformed);
        assert_eq!(code(agent.start("s", bad).await), Code::Malformed);
        assert_eq!(code(agent.claim("s", bad).await), Code::Malformed);
        assert_eq!(code(agent.cancel("s", bad, "k").await), Code::Malformed);
        assert_eq!(code(agent.cancel("s", "r", bad).await), Code::Malformed);
        assert_eq!(code(agent.cancel(bad, "r", "k").await), Code::Malformed);
        assert_eq!(code(agent.post(bad, app("x"), "").await), Code::Malformed);
        let stream = agent.open(bad, "r", 1).await.err().unwrap();
        assert_eq!(stream.code, Code::Malformed);
        let show = agent.ask(v1::ShowRequest {
            session: bad.to_owned(),
        });
        let show = bare(agent.sessions().show(show).await);
        assert_eq!(code(show), Code::Malformed);
    }
    assert_eq!(agent.read("s").await.unwrap().events.unwrap().tail, 1);
    node.stop().await;
}

#[tokio::test]
async fn messages_without_content_are_malformed() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut writer = agent.unopened().await.unwrap();
    let to = writer.to.clone().unwrap();
    to.send(v1::PublishStreamRequest { message: None })
        .await
        .unwrap();
    assert_eq!(code(writer.next().await), Code::Malformed);
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    let to = writer.to.clone().unwrap();
    to.send(v1::PublishStreamRequest { message: None })
        .await
        .unwrap();
    assert_eq!(code(writer.next().await), Code::Malformed);
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    let drafts = vec![v1::Draft::default()];
    let first_seq = 1;
    writer
        .send(In::Batch(v1::PublishBatch { first_seq, drafts }))
        .await;
    assert_eq!(writer.refusal(1).await.code, Code::Malformed);
    let append = agent.ask(v1::AppendRequest {
        session: "s".to_owned(),
        run: "r".to_owned(),
        run_epoch: 1,
        batch: None,
        session_epoch: String::new(),
    });
    assert_eq!(
        code(bare(agent.publish().append(append).await)),
        Code::Malformed
    );
    node.stop().await;
}

#[tokio::test]
async fn a_message_that_breaks_off_is_malformed() {
    let node = node().await;
    let agent = node.agent().await;
    // The head of the message promises 100 bytes.
    let mut channel = agent.channel.clone();
    let request = http::Request::post(format!("http://{}/everwire.v1.Sessions/Create", node.addr))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", format!("Bearer {}", agent.token))
        .body(tonic::body::Body::new("\0\0\0\0dabc".to_owned()))
        .unwrap();
    std::future::poll_fn(|task| channel.poll_ready(task))
        .await
        .unwrap();
    let answer = soon(channel.call(request)).await.unwrap();
    let status = Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(refused(&status).code, Code::Malformed);
    assert!(agent.create("s").await.is_ok(), "the connection serves on");
    node.stop().await;
}
