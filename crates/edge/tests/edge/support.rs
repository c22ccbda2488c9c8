//! An edge for a test, its tokens, and clients of its sockets and paths.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use everwire_core::event::ParticipantKind;
use everwire_core::grant::{Capability, Claims, Pattern};
use everwire_core::{Clock, Namespace, ParticipantId, Timestamp};
use everwire_edge::{Edge, EdgeConfig, Timings};
use everwire_proto::frame::{ClientFrame, ServerFrame, Subprotocol, decode_server, encode_client};
use everwire_proto::token::{Bearer, Signer, Verifier};
use futures_util::{SinkExt, StreamExt};
use prometheus_client::registry::Registry;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::nodes::{Counting, Handle, Nodes, TestClock};

pub(crate) const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

/// Nothing in these tests takes longer, unless it hangs.
pub(crate) const SOON: Duration = Duration::from_secs(10);

pub(crate) const READ: [Capability; 1] = [Capability::Subscribe];
pub(crate) const ALL: [Capability; 4] = [
    Capability::Subscribe,
    Capability::Publish,
    Capability::Create,
    Capability::SignalCancel,
];

/// An edge before faked nodes.
pub(crate) struct Bed {
    pub(crate) edge: Edge,
    pub(crate) nodes: Arc<Nodes>,
    pub(crate) clock: Arc<TestClock>,
    registry: Registry,
}

impl Bed {
    pub(crate) fn new() -> Self {
        Self::with(Nodes::new(), |_| {})
    }

    pub(crate) fn timed(change: impl FnOnce(&mut Timings)) -> Self {
        Self::with(Nodes::new(), |config| change(&mut config.timings))
    }

    pub(crate) fn with(nodes: Arc<Nodes>, change: impl FnOnce(&mut EdgeConfig)) -> Self {
        let clock = TestClock::new();
        let verifier = Verifier::new(SECRET).unwrap();
        let random = Arc::new(Counting::default());
        let http = "127.0.0.1:0".parse().unwrap();
        let mut config = EdgeConfig::new(
            http,
            Vec::new(),
            String::new(),
            verifier,
            clock.clone(),
            random,
        );
        config.timings.close_within = Duration::from_secs(1);
        change(&mut config);
        let edge = Edge::start_with(config, Arc::new(Handle(Arc::clone(&nodes)))).unwrap();
        let mut registry = Registry::default();
        edge.register_metrics(&mut registry);
        Self {
            edge,
            nodes,
            clock,
            registry,
        }
    }

    /// The value of one metric, `everwire_edge_` left out.
    pub(crate) fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let is_it = |line: &&str| {
            let line = line.strip_prefix("everwire_edge_");
            line.is_some_and(|line| {
                line.starts_with(&format!("{name} ")) || line.starts_with(&format!("{name}_total "))
            })
        };
        let line = text.lines().find(is_it).expect("the metric is there");
        line.rsplit(' ').next().unwrap().parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub(crate) async fn until(&self, name: &str, value: u64) {
        let reached = async {
            while self.metric(name) != value {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if timeout(SOON, reached).await.is_err() {
            panic!("{name} is {}, not {value}", self.metric(name));
        }
    }

    pub(crate) fn claims(&self, participant: &str) -> Claims {
        let pattern = Pattern::parse("*").unwrap();
        Claims {
            namespace: Some(Namespace::parse("acme").unwrap()),
            participant: ParticipantId::parse(participant).unwrap(),
            kind: ParticipantKind::User,
            allow: vec![(pattern, BTreeSet::from(ALL))],
            expires: self.clock.now().plus(Duration::from_secs(3_600)),
        }
    }

    pub(crate) fn mint(&self, claims: &Claims) -> String {
        let signer = Signer::new(SECRET).unwrap();
        signer.mint(claims, self.clock.now()).unwrap()
    }

    /// A token for everything.
    pub(crate) fn token(&self) -> String {
        self.mint(&self.claims("ann"))
    }

    /// A token that ends at a time, rounded down to whole seconds.
    pub(crate) fn token_until(&self, expires: Timestamp) -> String {
        let claims = Claims {
            expires,
            ..self.claims("ann")
        };
        self.mint(&claims)
    }

    /// A socket after its welcome.
    pub(crate) async fn join(&self, subprotocol: Subprotocol) -> Client {
        let mut client = Client::connect(self, subprotocol).await;
        let token = self.token();
        client.auth(&token).await;
        client
    }

    /// A JSON socket after its welcome.
    pub(crate) async fn json(&self) -> Client {
        self.join(Subprotocol::Json).await
    }

    /// One HTTP request, by hand: the status, the head and the body.
    pub(crate) async fn http(&self, request: &str) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.edge.http_addr()).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = Vec::new();
        timeout(SOON, stream.read_to_end(&mut text))
            .await
            .expect("an answer")
            .unwrap();
        let text = String::from_utf8(text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").expect("a head");
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_owned(), body.to_owned())
    }

    /// A POST with a token; more header lines end in `\r\n`.
    pub(crate) async fn post(&self, path: &str, headers: &str, body: &str) -> (u16, Value) {
        let token = self.token();
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: edge\r\nconnection: close\r\n\
             authorization: Bearer {token}\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
        let (status, _, body) = self.http(&request).await;
        (status, serde_json::from_str(&body).unwrap())
    }
}

/// A client of one socket.
pub(crate) struct Client<S = TcpStream> {
    pub(crate) socket: WebSocketStream<S>,
    pub(crate) subprotocol: Subprotocol,
}

impl Client {
    pub(crate) async fn connect(bed: &Bed, subprotocol: Subprotocol) -> Self {
        let stream = TcpStream::connect(bed.edge.http_addr()).await.unwrap();
        Self::over(stream, subprotocol).await
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) async fn over(stream: S, subprotocol: Subprotocol) -> Self {
        let mut request = "ws://edge/v1/ws".into_client_request().unwrap();
        let name = subprotocol.as_str().parse().unwrap();
        request.headers_mut().insert("sec-websocket-protocol", name);
        let (socket, response) = client_async(request, stream).await.unwrap();
        let chosen = &response.headers()["sec-websocket-protocol"];
        assert_eq!(chosen, subprotocol.as_str());
        Self {
            socket,
            subprotocol,
        }
    }

    pub(crate) async fn say(&mut self, id: &str, frame: &ClientFrame) {
        let bytes = encode_client(self.subprotocol, id, frame);
        self.raw(bytes).await;
    }

    /// Sends bytes as the subprotocol's kind of message.
    pub(crate) async fn raw(&mut self, bytes: Bytes) {
        let message = match self.subprotocol {
            Subprotocol::Json => Message::Text(bytes.try_into().expect("JSON is text")),
            Subprotocol::Proto => Message::Binary(bytes),
        };
        self.socket.send(message).await.unwrap();
    }

    pub(crate) async fn text(&mut self, text: &str) {
        self.socket.send(Message::text(text)).await.unwrap();
    }

    /// The next message that is no ping or pong; `Err` with the close frame at the end.
    pub(crate) async fn message(&mut self) -> Result<Bytes, Option<CloseFrame>> {
        loop {
            let next = timeout(SOON, self.socket.next()).await;
            match next.expect("a frame comes soon") {
                Some(Ok(Message::Text(text))) => return Ok(text.into()),
                Some(Ok(Message::Binary(bytes))) => return Ok(bytes),
                Some(Ok(Message::Close(frame))) => return Err(frame),
                Some(Ok(_)) => {},
                None | Some(Err(Error::ConnectionClosed)) => return Err(None),
                Some(Err(_)) => return Err(None),
            }
        }
    }

    pub(crate) async fn heard(&mut self) -> (String, ServerFrame) {
        let bytes = self.message().await.expect("the socket is open");
        decode_server(self.subprotocol, &bytes)
            .expect("it reads")
            .expect("it is known")
    }

    /// The next frame that is no sign of life.
    pub(crate) async fn frame(&mut self) -> (String, ServerFrame) {
        loop {
            let (id, frame) = self.heard().await;
            match &frame {
                ServerFrame::Events { range, .. } if range.from > range.to => {},
                _ => return (id, frame),
            }
        }
    }

    /// The code of a bye, and the close code after it.
    pub(crate) async fn bye(&mut self) -> (&'static str, u16) {
        loop {
            let (_, frame) = self.heard().await;
            if let ServerFrame::Bye { refusal } = frame {
                let close = self.message().await.unwrap_err().expect("a close frame");
                return (refusal.code.as_str(), close.code.into());
            }
        }
    }

    pub(crate) async fn auth(&mut self, token: &str) -> ServerFrame {
        let token = Bearer::new(token);
        self.say("", &ClientFrame::Auth { token }).await;
        let (_, welcome) = self.frame().await;
        assert!(
            matches!(welcome, ServerFrame::Welcome { .. }),
            "{welcome:?}"
        );
        welcome
    }

    pub(crate) async fn ask_attach(&mut self, id: &str, name: &str, cursor: Option<&str>) {
        let attach = ClientFrame::Attach {
            session: crate::nodes::session(name),
            cursor: cursor.map(|text| text.parse().unwrap()),
            create: false,
        };
        self.say(id, &attach).await;
    }

    /// Attaches and takes the answer.
    pub(crate) async fn attach(&mut self, name: &str, cursor: Option<&str>) -> ServerFrame {
        self.ask_attach("a", name, cursor).await;
        loop {
            let (id, frame) = self.frame().await;
            if id == "a" {
                return frame;
            }
        }
    }

    /// Attaches where it will resume.
    pub(crate) async fn resume(&mut self, name: &str, cursor: Option<&str>) -> Reader {
        let frame = self.attach(name, cursor).await;
        let ServerFrame::Attached { answer, .. } = &frame else {
            panic!("not attached: {frame:?}");
        };
        match answer {
            everwire_proto::frame::AttachAnswer::Resumed { from, .. } => Reader {
                next: from.get(),
                texts: Vec::new(),
            },
            other => panic!("not resumed: {other:?}"),
        }
    }

    /// Reads on until an offset is covered.
    pub(crate) async fn read_to(&mut self, reader: &mut Reader, last: u64) {
        while reader.next <= last {
            let (_, frame) = self.frame().await;
            reader.take(&frame);
        }
    }
}

/// Checks that what comes is dense.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pub(crate) next: u64,
    /// The data of each application event, by its place.
    pub(crate) texts: Vec<(u64, String)>,
}

impl Reader {
    pub(crate) fn take(&mut self, frame: &ServerFrame) {
        let ServerFrame::Events { range, events, .. } = frame else {
            panic!("not events: {frame:?}");
        };
        assert_eq!(range.from.get(), self.next, "a gap, or something doubled");
        let mut at = range.from.get();
        for event in events {
            assert!(event.offset.get() >= at && event.offset <= range.to);
            at = event.offset.get() + 1;
            if let everwire_core::Body::App {
                data: Some(everwire_core::event::Data::Json(text)),
                ..
            } = &event.body
            {
                self.texts.push((event.offset.get(), text.clone()));
            }
        }
        self.next = range.to.get() + 1;
    }
}
