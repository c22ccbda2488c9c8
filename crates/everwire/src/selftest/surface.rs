//! A surface: one WebSocket at an edge that follows one session, as a browser's tab would.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::command::SignalOutcome;
use everwire_core::{Cancel, Code, Cursor, Draft, Event, Key, Offset, Refusal, RunId, SessionName};
use everwire_proto::frame::{
    AttachAnswer, ClientFrame, ServerFrame, Subprotocol, decode_server, encode_client,
};
use everwire_proto::signal::Pressed;
use everwire_proto::token::Bearer;
use futures_util::{SinkExt, StreamExt};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{
    Connector, MaybeTlsStream, WebSocketStream, connect_async_tls_with_config,
};

use crate::output::Failure;

/// Longest wait for any single answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A tab at an edge.
pub(super) struct Surface {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    session: SessionName,
    /// Every event seen, by offset.
    pub(super) seen: BTreeMap<Offset, Event>,
    cursor: Cursor,
    /// Answers to requests that came while events were awaited.
    answers: Vec<(String, ServerFrame)>,
    next_id: u64,
}

/// What trusts the authorities of a PEM file and nobody else.
pub(super) fn trusting(ca_pem: &[u8]) -> Result<Connector, Failure> {
    let unusable =
        |error: &dyn std::fmt::Display| Failure::usage(format!("--ca cannot be used: {error}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem) {
        let certificate = certificate.map_err(|error| unusable(&error))?;
        roots.add(certificate).map_err(|error| unusable(&error))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Connector::Rustls(Arc::new(config)))
}

impl Surface {
    /// Connects, authenticates and attaches; `seen` is what an earlier surface had.
    pub(super) async fn attach(
        (edge, trust): (&str, Option<Connector>),
        token: &str,
        session: &SessionName,
        cursor: Option<Cursor>,
    ) -> Result<Self, Failure> {
        let url = format!(
            "{}/v1/ws",
            edge.trim_end_matches('/').replacen("http", "ws", 1)
        );
        let mut request = url
            .into_client_request()
            .map_err(|error| unreachable(&error))?;
        let subprotocol = HeaderValue::from_static("everwire.v1.json");
        request
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, subprotocol);
        let (socket, _) = connect_async_tls_with_config(request, None, true, trust)
            .await
            .map_err(|error| unreachable(&error))?;
        let start = Cursor {
            session_epoch: None,
            offset: Offset::ZERO,
        };
        let mut surface = Self {
            socket,
            session: session.clone(),
            seen: BTreeMap::new(),
            cursor: cursor.unwrap_or(start),
            answers: Vec::new(),
            next_id: 0,
        };
        surface
            .send(
                "",
                &ClientFrame::Auth {
                    token: Bearer::new(token),
                },
            )
            .await?;
        let attach = ClientFrame::Attach {
            session: session.clone(),
            cursor,
            create: true,
        };
        match surface.request(attach).await? {
            ServerFrame::Attached {
                answer:
                    AttachAnswer::Resumed {
                        session_epoch,
                        from,
                        ..
                    },
                ..
            } => {
                let offset = from.previous();
                surface.cursor = Cursor {
                    session_epoch: Some(session_epoch),
                    offset,
                };
                Ok(surface)
            },
            other => Err(unexpected("attach", &other)),
        }
    }

    /// The last event seen.
    pub(super) fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// Reads until `done` says so, within `within`.
    pub(super) async fn read_until(
        &mut self,
        within: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Result<(), Failure> {
        let reading = async {
            while !done(self) {
                let (id, frame) = self.frame().await?;
                self.answers.push((id, frame));
            }
            Ok(())
        };
        timeout(within, reading)
            .await
            .unwrap_or_else(|_late| Err(Failure::failed("the edge sent nothing more in time")))
    }

    /// Publishes an input and answers its offset.
    pub(super) async fn publish(&mut self, draft: Draft, key: Key) -> Result<Offset, Failure> {
        let session = self.session.clone();
        let publish = ClientFrame::Publish {
            session,
            draft,
            key: Some(key),
        };
        match self.request(publish).await? {
            ServerFrame::Ack { offset, .. } => Ok(offset),
            other => Err(unexpected("publish", &other)),
        }
    }

    /// Presses Stop.
    pub(super) async fn cancel(&mut self, run: &RunId, key: Key) -> Result<SignalOutcome, Failure> {
        let stop = ClientFrame::Signal {
            session: self.session.clone(),
            pressed: Pressed::Cancel(Cancel::run(run.clone())),
            key,
        };
        match self.request(stop).await? {
            ServerFrame::Outcome { outcome, .. } => Ok(outcome),
            other => Err(unexpected("cancel", &other)),
        }
    }

    async fn request(&mut self, frame: ClientFrame) -> Result<ServerFrame, Failure> {
        self.next_id += 1;
        let id = self.next_id.to_string();
        self.send(&id, &frame).await?;
        let answered = |surface: &Self| surface.answers.iter().any(|(other, _)| *other == id);
        self.read_until(ANSWER_WITHIN, answered).await?;
        let at = self.answers.iter().position(|(other, _)| *other == id);
        Ok(self
            .answers
            .swap_remove(at.expect("read until it was there"))
            .1)
    }

    async fn send(&mut self, id: &str, frame: &ClientFrame) -> Result<(), Failure> {
        let bytes = encode_client(Subprotocol::Json, id, frame);
        let text = Utf8Bytes::try_from(bytes)
            .map_err(|error| Failure::failed(format!("a frame is not text: {error}")))?;
        self.socket
            .send(Message::Text(text))
            .await
            .map_err(|error| unreachable(&error))
    }

    /// The next frame that answers a request; events are taken on the way.
    async fn frame(&mut self) -> Result<(String, ServerFrame), Failure> {
        let message = match self.socket.next().await {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(unreachable(&error)),
            None => return Err(Failure::failed("the edge closed the connection")),
        };
        let Message::Text(text) = message else {
            return Ok((String::new(), ServerFrame::Pong));
        };
        let Some((id, frame)) = decode_server(Subprotocol::Json, text.as_bytes())? else {
            return Ok((String::new(), ServerFrame::Pong));
        };
        match &frame {
            ServerFrame::Events { range, events, .. } => {
                if range.from != self.cursor.offset.next() {
                    let at = self.cursor.offset;
                    return Err(Failure::failed(format!(
                        "a gap: {at} and then {}",
                        range.from
                    )));
                }
                self.cursor.offset = range.to;
                self.seen
                    .extend(events.iter().map(|event| (event.offset, event.clone())));
            },
            ServerFrame::Bye { refusal } | ServerFrame::Error { refusal, .. } => {
                return Err(refusal.clone().into());
            },
            _ => {},
        }
        Ok((id, frame))
    }
}

fn unreachable(error: &tokio_tungstenite::tungstenite::Error) -> Failure {
    // Overloaded is the code of what cannot be reached right now: exit code 5.
    Refusal::new(
        Code::Overloaded,
        format!("the edge cannot be reached: {error}"),
    )
    .into()
}

fn unexpected(what: &str, frame: &ServerFrame) -> Failure {
    Failure::failed(format!(
        "the answer to {what} is not what it should be: {frame:?}"
    ))
}
