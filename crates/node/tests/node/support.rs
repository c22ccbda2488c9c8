//! A node in a folder of its own, tokens for it, raw clients, short ways to say things.

use std::fmt::Debug;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use everwire_core::event::{Body, Data, Draft, MessageStatus, PartKind, Role};
use everwire_core::grant::Claims;
use everwire_core::{
    Clock, Code, Namespace, ParticipantId, ParticipantKind, Random, Refusal, Timestamp,
};
use everwire_node::{Kept, Node, NodeConfig, NodeError};
use everwire_proto::refusal::{from_error, from_status};
use everwire_proto::token::{Signer, allow};
use everwire_proto::v1;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use v1::attach_client::AttachClient;
use v1::cluster_client::ClusterClient;
use v1::follow_response::Message as Followed;
use v1::publish_client::PublishClient;
use v1::publish_stream_request::Message as In;
use v1::publish_stream_response::Message as Out;
use v1::runs_client::RunsClient;
use v1::sessions_client::SessionsClient;
use v1::signals_client::SignalsClient;

/// The secret of the tests' tokens.
pub(crate) const SECRET: &[u8] = b"a secret of the tests, long enough for HS256";
/// Nothing in these tests takes longer, unless it says so.
pub(crate) const SOON: Duration = Duration::from_secs(90);

/// The machine's clocks.
pub(crate) struct SystemClock(tokio::time::Instant);

impl SystemClock {
    pub(crate) fn new() -> Self {
        Self(tokio::time::Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        #[expect(clippy::disallowed_methods, reason = "the tests own the real clock")]
        let now = std::time::SystemTime::now();
        let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
        Timestamp(u64::try_from(since.as_millis()).unwrap())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// A counter is random enough to mint a cluster's id.
struct Counting(AtomicU64);

impl Random for Counting {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

/// A node and its folder.
pub(crate) struct TestNode {
    pub(crate) node: Node,
    pub(crate) dir: TempDir,
    pub(crate) addr: SocketAddr,
}

/// The configuration of a node on any loopback port.
pub(crate) fn config(data: &Path) -> NodeConfig {
    NodeConfig {
        peers: None,
        kept: Kept::default(),
        flush_every: everwire_core::limits::FLUSH_EVERY,
        scrub_every: everwire_core::limits::SCRUB_EVERY,
        data: data.to_owned(),
        cluster: None,
        grpc: "127.0.0.1:0".parse().unwrap(),
        listener: None,
        advertise: None,
        auth_key: SECRET.to_vec(),
        tls: None,
        insecure: false,
        shards: 2,
        clock: Arc::new(SystemClock::new()),
        random: Arc::new(Counting(AtomicU64::new(7))),
        on_fatal: Arc::new(|reason| panic!("fatal: {reason}")),
        rules: everwire_node::RULES_VERSION,
        version: "test".to_owned(),
    }
}

/// A node on an empty folder.
pub(crate) async fn node() -> TestNode {
    node_in(tempfile::tempdir().unwrap()).await.unwrap()
}

/// A node on what a folder holds.
pub(crate) async fn node_in(dir: TempDir) -> Result<TestNode, NodeError> {
    let node = Node::start(config(dir.path())).await?;
    node.wait_ready().await;
    let addr = node.grpc_addr();
    Ok(TestNode { node, dir, addr })
}

impl TestNode {
    /// A connection of its own.
    pub(crate) async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.addr))
            .unwrap()
            .connect()
            .await
            .unwrap()
    }

    /// Somebody with a token, on a connection of its own.
    pub(crate) async fn somebody(&self, token: String) -> Somebody {
        Somebody {
            channel: self.channel().await,
            token,
        }
    }

    /// An agent that may do anything but run the cluster.
    pub(crate) async fn agent(&self) -> Somebody {
        self.somebody(agent_token("agent")).await
    }

    /// Stops the node and gives its folder back.
    pub(crate) async fn stop(self) -> TempDir {
        self.node.shutdown().await;
        self.dir
    }
}

/// Capabilities of an agent that does everything.
pub(crate) const EVERYTHING: &str = "create,subscribe,publish,run,signal:cancel,history,admin";

/// A token of namespace `acme` with capabilities on one pattern.
pub(crate) fn token(
    participant: &str,
    kind: ParticipantKind,
    pattern: &str,
    words: &str,
) -> String {
    mint(&claims(participant, kind, pattern, words), SECRET)
}

/// A token that may do everything but run the cluster.
pub(crate) fn agent_token(participant: &str) -> String {
    token(participant, ParticipantKind::Agent, "*", EVERYTHING)
}

/// Claims of namespace `acme`, good for an hour.
pub(crate) fn claims(
    participant: &str,
    kind: ParticipantKind,
    pattern: &str,
    words: &str,
) -> Claims {
    let words = words.split(',').filter(|word| !word.is_empty());
    Claims {
        namespace: Some(Namespace::parse("acme").unwrap()),
        participant: ParticipantId::parse(participant).unwrap(),
        kind,
        allow: vec![allow(pattern, words).unwrap()],
        expires: SystemClock::new().now().plus(Duration::from_secs(3600)),
    }
}

/// The claims as a token, signed with a secret.
pub(crate) fn mint(claims: &Claims, secret: &[u8]) -> String {
    let now = SystemClock::new().now();
    Signer::new(secret).unwrap().mint(claims, now).unwrap()
}

/// An edge's token: it relays every namespace.
pub(crate) fn edge_token() -> String {
    let claims = Claims {
        namespace: None,
        ..claims("edge-1", ParticipantKind::Edge, "*", "relay")
    };
    mint(&claims, SECRET)
}

/// A token and a connection.
#[derive(Clone)]
pub(crate) struct Somebody {
    pub(crate) channel: Channel,
    pub(crate) token: String,
}

impl Somebody {
    /// A request with the token in its metadata.
    pub(crate) fn ask<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if !self.token.is_empty() {
            let header = format!("Bearer {}", self.token).parse().unwrap();
            request.metadata_mut().insert("authorization", header);
        }
        request
    }

    /// The same connection with another token.
    pub(crate) fn with_token(&self, token: impl Into<String>) -> Self {
        Self {
            channel: self.channel.clone(),
            token: token.into(),
        }
    }

    pub(crate) fn publish(&self) -> PublishClient<Channel> {
        PublishClient::new(self.channel.clone())
    }

    pub(crate) fn attach(&self) -> AttachClient<Channel> {
        AttachClient::new(self.channel.clone())
    }

    pub(crate) fn runs(&self) -> RunsClient<Channel> {
        RunsClient::new(self.channel.clone())
    }

    pub(crate) fn signals(&self) -> SignalsClient<Channel> {
        SignalsClient::new(self.channel.clone())
    }

    pub(crate) fn sessions(&self) -> SessionsClient<Channel> {
        SessionsClient::new(self.channel.clone())
    }

    pub(crate) fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    /// Makes a session.
    pub(crate) async fn create(&self, session: &str) -> Result<v1::CreateResponse, Refusal> {
        let session = session.to_owned();
        let request = self.ask(v1::CreateRequest { session });
        bare(self.sessions().create(request).await)
    }

    /// Starts a run, making its session.
    pub(crate) async fn start(
        &self,
        session: &str,
        run: &str,
    ) -> Result<v1::StartResponse, Refusal> {
        let request = self.ask(v1::StartRequest {
            session: session.to_owned(),
            run: run.to_owned(),
            ..v1::StartRequest::default()
        });
        bare(self.runs().start(request).await)
    }

    /// Takes a run over.
    pub(crate) async fn claim(
        &self,
        session: &str,
        run: &str,
    ) -> Result<v1::ClaimResponse, Refusal> {
        let request = self.ask(v1::ClaimRequest {
            session: session.to_owned(),
            run: run.to_owned(),
            key: String::new(),
            ..v1::ClaimRequest::default()
        });
        bare(self.runs().claim(request).await)
    }

    /// Cancels a run.
    pub(crate) async fn cancel(
        &self,
        session: &str,
        run: &str,
        key: &str,
    ) -> Result<v1::CancelResponse, Refusal> {
        let request = self.ask(v1::CancelRequest {
            session: session.to_owned(),
            run: run.to_owned(),
            key: key.to_owned(),
            ..v1::CancelRequest::default()
        });
        bare(self.signals().cancel(request).await)
    }

    /// Posts an input or an `app` event.
    pub(crate) async fn post(
        &self,
        session: &str,
        draft: Draft,
        key: &str,
    ) -> Result<v1::PostResponse, Refusal> {
        let request = self.ask(v1::PostRequest {
            session: session.to_owned(),
            draft: Some((&draft).into()),
            key: key.to_owned(),
        });
        bare(self.publish().post(request).await)
    }

    /// Appends one batch to epoch `run_epoch` of a run.
    pub(crate) async fn append(
        &self,
        (session, run, run_epoch): (&str, &str, u32),
        first_seq: u64,
        drafts: &[Draft],
    ) -> Result<v1::AppendResponse, Refusal> {
        let request = self.ask(v1::AppendRequest {
            session: session.to_owned(),
            run: run.to_owned(),
            run_epoch,
            batch: Some(batch(first_seq, drafts)),
            session_epoch: String::new(),
        });
        bare(self.publish().append(request).await)
    }

    /// Reads the session from its beginning.
    pub(crate) async fn read(&self, session: &str) -> Result<v1::ReadResponse, Refusal> {
        let request = self.ask(v1::ReadRequest {
            session: session.to_owned(),
            ..v1::ReadRequest::default()
        });
        bare(self.attach().read(request).await)
    }

    /// Follows a session.
    pub(crate) async fn follow(&self, asked: v1::FollowRequest) -> Result<Follower, Refusal> {
        let stream = bare(self.attach().follow(self.ask(asked)).await)?;
        Ok(Follower { stream })
    }

    /// Opens a publish stream and takes `opened`.
    pub(crate) async fn open(
        &self,
        session: &str,
        run: &str,
        run_epoch: u32,
    ) -> Result<Writer, Refusal> {
        let mut writer = self.unopened().await?;
        writer.send(In::Open(open(session, run, run_epoch))).await;
        match writer.next().await? {
            Some(Out::Opened(_)) => Ok(writer),
            other => panic!("{other:?}"),
        }
    }

    /// A publish stream on which nothing was said yet.
    pub(crate) async fn unopened(&self) -> Result<Writer, Refusal> {
        let (to, from) = mpsc::channel(1024);
        let request = self.ask(ReceiverStream::new(from));
        let stream = bare(self.publish().stream(request).await)?;
        Ok(Writer {
            to: Some(to),
            stream,
        })
    }
}

/// One side of a publish stream.
pub(crate) struct Writer {
    pub(crate) to: Option<mpsc::Sender<v1::PublishStreamRequest>>,
    pub(crate) stream: Streaming<v1::PublishStreamResponse>,
}

impl Writer {
    pub(crate) async fn send(&mut self, message: In) {
        let message = v1::PublishStreamRequest {
            message: Some(message),
        };
        // A stream that the node ended takes nothing more; its end says why.
        let _ = self.to.as_ref().unwrap().send(message).await;
    }

    pub(crate) async fn batch(&mut self, first_seq: u64, drafts: &[Draft]) {
        self.send(In::Batch(batch(first_seq, drafts))).await;
    }

    /// The next answer; `None` at a good end.
    pub(crate) async fn next(&mut self) -> Result<Option<Out>, Refusal> {
        let message = soon(self.stream.message()).await;
        let message = message.map_err(|status| refused(&status))?;
        Ok(message.map(|message| message.message.unwrap()))
    }

    /// The next answer, which is an ack.
    pub(crate) async fn ack(&mut self) -> v1::PublishAck {
        match self.next().await {
            Ok(Some(Out::Ack(ack))) => ack,
            other => panic!("{other:?}"),
        }
    }

    /// Acks until `seq` is covered, merged.
    pub(crate) async fn acked_through(&mut self, seq: u64) -> v1::PublishAck {
        let mut all = self.ack().await;
        while all.through_seq < seq {
            let ack = self.ack().await;
            assert!(ack.through_seq > all.through_seq, "acks are cumulative");
            all.through_seq = ack.through_seq;
            all.through_offset = ack.through_offset;
            all.credit_bytes += ack.credit_bytes;
            all.ranges.extend(ack.ranges);
        }
        all
    }

    /// The next answer, which is a refusal of the batch that began at `first_seq`.
    pub(crate) async fn refusal(&mut self, first_seq: u64) -> Refusal {
        match self.next().await {
            Ok(Some(Out::Refused(refused))) => {
                assert_eq!(refused.first_seq, first_seq);
                from_error(refused.error.unwrap())
            },
            other => panic!("{other:?}"),
        }
    }

    /// Closes this half.
    pub(crate) fn close(&mut self) {
        self.to = None;
    }
}

/// One reader.
pub(crate) struct Follower {
    stream: Streaming<v1::FollowResponse>,
}

impl Follower {
    /// The next message; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Followed> {
        let message = soon(self.stream.message()).await;
        Some(message.unwrap()?.message.unwrap())
    }

    /// The first message.
    pub(crate) async fn attached(&mut self) -> v1::Attached {
        match self.next().await {
            Some(Followed::Attached(attached)) => attached,
            other => panic!("{other:?}"),
        }
    }

    /// Events up to `to`, in ranges that follow densely from `from`.
    pub(crate) async fn events(&mut self, from: u64, to: u64) -> Vec<v1::Event> {
        let (mut next, mut all) = (from, Vec::new());
        while next <= to {
            match self.next().await {
                Some(Followed::Events(events)) => {
                    assert_eq!(events.from, next, "ranges follow densely");
                    next = events.to + 1;
                    all.extend(events.events);
                },
                other => panic!("{other:?}"),
            }
        }
        all
    }

    /// Why the node ended the stream; events before it are passed over.
    pub(crate) async fn ended(&mut self) -> Refusal {
        loop {
            match self.next().await {
                Some(Followed::Events(_)) => {},
                Some(Followed::Ended(error)) => {
                    assert_eq!(self.next().await, None);
                    return from_error(error);
                },
                other => panic!("{other:?}"),
            }
        }
    }
}

// === Short ways to say things ===

/// Waits, but not for ever.
pub(crate) async fn soon<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(SOON, future)
        .await
        .expect("it happens soon")
}

/// The message of an answer, or the refusal in its status.
pub(crate) fn bare<T>(answer: Result<tonic::Response<T>, Status>) -> Result<T, Refusal> {
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| refused(&status))
}

/// The refusal in a status; it carries our details, whatever made it.
pub(crate) fn refused(status: &Status) -> Refusal {
    assert!(!status.details().is_empty(), "no details: {status:?}");
    from_status(status)
}

/// The code of a refusal.
pub(crate) fn code<T: Debug>(answer: Result<T, Refusal>) -> Code {
    answer.expect_err("it is refused").code
}

pub(crate) fn open(session: &str, run: &str, run_epoch: u32) -> v1::PublishOpen {
    v1::PublishOpen {
        session: session.to_owned(),
        run: run.to_owned(),
        run_epoch,
        session_epoch: String::new(),
    }
}

pub(crate) fn batch(first_seq: u64, drafts: &[Draft]) -> v1::PublishBatch {
    v1::PublishBatch {
        first_seq,
        drafts: drafts.iter().map(Into::into).collect(),
    }
}

pub(crate) fn app(name: &str) -> Draft {
    Draft::new(Body::App {
        name: name.to_owned(),
        data: None,
    })
}

/// An `app` event of so many bytes of payload.
pub(crate) fn heavy(bytes: usize) -> Draft {
    Draft::new(Body::App {
        name: String::new(),
        data: Some(Data::Binary(vec![b'x'; bytes].into())),
    })
}

pub(crate) fn input(id: &str, text: &str) -> Draft {
    Draft::new(Body::Input {
        input: id.parse().unwrap(),
        text: text.to_owned(),
        data: None,
    })
}

pub(crate) fn message_start() -> Draft {
    Draft::new(Body::MessageStart {
        message: "m".parse().unwrap(),
        role: Role::Assistant,
    })
}

pub(crate) fn part_start() -> Draft {
    Draft::new(Body::PartStart {
        message: "m".parse().unwrap(),
        part: "p".parse().unwrap(),
        kind: PartKind::Text,
        name: None,
        data: None,
    })
}

pub(crate) fn delta(text: &str) -> Draft {
    Draft::new(Body::PartDelta {
        message: "m".parse().unwrap(),
        part: "p".parse().unwrap(),
        position: 0,
        text: text.to_owned(),
    })
}

pub(crate) fn message_end() -> Draft {
    Draft::new(Body::MessageEnd {
        message: "m".parse().unwrap(),
        status: MessageStatus::Complete,
    })
}

pub(crate) fn completed() -> Draft {
    Draft::new(Body::RunCompleted)
}
