//! A WebSocket at an edge as raw lines: what a stranger's client would send, good or bad.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Request, header};
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

/// Longest wait for any one line.
const WITHIN: Duration = Duration::from_secs(45);

/// Bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A socket that speaks `everwire.v1.json` line by line.
pub struct Lines {
    socket: WebSocketStream<Box<dyn Io>>,
}

/// What the edge said.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    /// A frame.
    Line(Value),
    /// A close frame with its code.
    Closed(u16),
    /// The connection is gone without a close frame.
    Gone,
}

/// The upgrade request of an edge at `addr`.
pub fn upgrade(addr: &str) -> Request<()> {
    let request = format!("ws://{addr}/v1/ws").into_client_request();
    let mut request = request.expect("a good address");
    let name = HeaderValue::from_static("everwire.v1.json");
    request
        .headers_mut()
        .insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    request
}

impl Lines {
    /// Connects in the clear; nobody is authenticated yet.
    pub async fn connect(addr: &str) -> Self {
        let stream = TcpStream::connect(addr).await.expect("the edge listens");
        let upgraded = Self::over(Box::new(stream), upgrade(addr)).await;
        upgraded.expect("the edge upgrades")
    }

    /// Upgrades any connection; the error is the edge's answer.
    pub async fn over(stream: Box<dyn Io>, request: Request<()>) -> Result<Self, Error> {
        let (socket, _) = client_async(request, stream).await?;
        Ok(Self { socket })
    }

    /// Connects and authenticates.
    pub async fn open(addr: &str, token: &str) -> Self {
        let mut lines = Self::connect(addr).await;
        lines.authenticate(token).await;
        lines
    }

    /// Sends `auth` and expects `welcome`.
    pub async fn authenticate(&mut self, token: &str) {
        self.send(&format!(r#"{{"t":"auth","token":"{token}"}}"#))
            .await;
        let welcome = self.line().await;
        assert_eq!(welcome.get("t"), Some(&Value::from("welcome")), "{welcome}");
    }

    /// Sends a text frame.
    pub async fn send(&mut self, text: &str) {
        self.message(Message::text(text)).await;
    }

    /// Sends anything; an edge that has hung up in the meantime is found out by reading.
    pub async fn message(&mut self, message: Message) {
        let _ = self.socket.send(message).await;
    }

    /// The bytes below, to break the protocol by hand.
    pub fn raw(&mut self) -> &mut Box<dyn Io> {
        self.socket.get_mut()
    }

    /// The next thing that the edge says, pings aside.
    pub async fn said(&mut self) -> Said {
        loop {
            let message = tokio::time::timeout(WITHIN, self.socket.next()).await;
            match message.expect("the edge says something in time") {
                Some(Ok(Message::Text(text))) => {
                    let line = serde_json::from_str(&text);
                    return Said::Line(line.expect("the edge writes JSON"));
                },
                Some(Ok(Message::Close(frame))) => {
                    return frame.map_or(Said::Gone, |frame| Said::Closed(frame.code.into()));
                },
                Some(Ok(_)) => {},
                Some(Err(_)) | None => return Said::Gone,
            }
        }
    }

    /// The next frame; fails if the edge closes.
    pub async fn line(&mut self) -> Value {
        match self.said().await {
            Said::Line(line) => line,
            over => panic!("the edge ended the conversation: {over:?}"),
        }
    }

    /// The next frame of this type; those before it are dropped.
    pub async fn line_of(&mut self, kind: &str) -> Value {
        loop {
            let line = self.line().await;
            if line.get("t").and_then(Value::as_str) == Some(kind) {
                return line;
            }
        }
    }

    /// Sends a request and gets its answer, found by `id`, which the text must carry.
    pub async fn ask(&mut self, id: &str, text: &str) -> Value {
        self.send(text).await;
        loop {
            let line = self.line().await;
            if line.get("id").and_then(Value::as_str) == Some(id) {
                return line;
            }
        }
    }

    /// The code of `bye` and the close code, after whatever frames come before.
    pub async fn bye(&mut self) -> (String, Option<u16>) {
        let mut code = String::new();
        loop {
            match self.said().await {
                Said::Line(line) if line.get("t").and_then(Value::as_str) == Some("bye") => {
                    let said = line.get("code").and_then(Value::as_str);
                    code = said.expect("a bye has a code").to_owned();
                },
                Said::Line(_) => {},
                Said::Closed(close) => return (code, Some(close)),
                Said::Gone => return (code, None),
            }
        }
    }
}
