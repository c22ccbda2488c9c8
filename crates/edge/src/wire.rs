//! One WebSocket as messages: what was heard, and room for what is to be said.
//!
//! Buffers are small. A long message goes out in fragments, each given to the socket when the one
//! before has left, so that a reader costs one fragment of copied bytes; the message itself is
//! shared. Pings and the close go between fragments.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use everwire_core::limits::EDGE_FRAME_IN_BYTES_MAX;
use everwire_proto::frame::Subprotocol;
use futures_util::{Sink, Stream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{Error, ProtocolError};
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{CloseCode, Data, OpCode};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};

use crate::conn::{Conn, Place};

/// What a socket reads at once. tungstenite's default of 128 KiB is allocated for every idle
/// socket.
const READ_BYTES: usize = 4 << 10;

/// Bytes that are copied for a socket before they must have left it.
const PIECE_BYTES: usize = 8 << 10;

/// What tungstenite may hold: a piece that did not leave, one more, pings and the close.
const WRITE_BYTES_MAX: usize = 4 * PIECE_BYTES;

/// What a closing socket still reads, so that its last frames are not lost to a reset.
const LINGER_BYTES_MAX: usize = 1 << 20;

/// What happened on the wire.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A message of the subprotocol's kind.
    Message(Bytes),
    /// A message of the other kind: text on the binary subprotocol, or the reverse.
    OtherKind,
    /// A ping or a pong: the peer lives.
    Sound,
    /// Everything that was said has left: there is room.
    Room,
    /// The peer takes nothing just now.
    Blocked,
    /// The peer said goodbye, or the connection broke.
    Gone,
    /// A message above the bound.
    TooLarge,
    /// Not WebSocket, or text that is not UTF-8.
    Unreadable(&'static str),
}

/// One WebSocket.
pub(crate) struct Wire {
    socket: WebSocketStream<Conn>,
    kind: Data,
    /// What is left of a message that has begun to go out.
    rest: Option<Bytes>,
    /// Bytes given to the socket that have not been seen to leave.
    unsent: usize,
    /// The owner knows that the peer takes nothing.
    told_blocked: bool,
}

impl Wire {
    /// Takes over a connection after its handshake; `read` are bytes that came with it.
    pub(crate) async fn new(mut conn: Conn, read: Bytes, subprotocol: Subprotocol) -> Self {
        conn.is_watched();
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(PIECE_BYTES)
            .max_write_buffer_size(WRITE_BYTES_MAX)
            .max_message_size(Some(EDGE_FRAME_IN_BYTES_MAX))
            .max_frame_size(Some(EDGE_FRAME_IN_BYTES_MAX));
        // Copied, for `read` is a corner of HTTP's own buffer, which would stay with the socket.
        let read = read.to_vec();
        let socket = WebSocketStream::from_partially_read(conn, read, Role::Server, Some(config));
        Self {
            socket: socket.await,
            kind: match subprotocol {
                Subprotocol::Json => Data::Text,
                Subprotocol::Proto => Data::Binary,
            },
            rest: None,
            unsent: 0,
            told_blocked: false,
        }
    }

    /// The connection's place, for whatever of it goes on when it has ended.
    pub(crate) fn place(&self) -> Place {
        self.socket.get_ref().place()
    }

    /// Whether [`Self::say`] may be called.
    pub(crate) fn has_room(&self) -> bool {
        self.rest.is_none() && self.unsent < PIECE_BYTES
    }

    /// Bytes that have been said and not been seen to leave.
    pub(crate) fn waiting(&self) -> usize {
        self.unsent + self.rest.as_ref().map_or(0, Bytes::len)
    }

    /// Since when the peer has taken nothing, though something waits for it.
    pub(crate) fn blocked_since(&self) -> Option<Instant> {
        self.socket.get_ref().blocked_since()
    }

    /// Sends a message. Only when there is room: there is no queue here.
    pub(crate) fn say(&mut self, message: Bytes) {
        debug_assert!(self.has_room(), "there is no queue here");
        self.piece(message, self.kind);
    }

    /// Sends a ping, even between the fragments of a message.
    pub(crate) fn ping(&mut self) {
        self.give(Message::Ping(Bytes::new()), 2);
    }

    /// What happens next on the wire. Messages are read only if `read`. Cancel-safe.
    pub(crate) async fn heard(&mut self, read: bool) -> Heard {
        poll_fn(|cx| self.poll_heard(cx, read)).await
    }

    fn poll_heard(&mut self, cx: &mut Context<'_>, read: bool) -> Poll<Heard> {
        if self.rest.is_some() || self.unsent > 0 {
            match self.poll_sent(cx) {
                Poll::Ready(Ok(())) => {
                    self.told_blocked = false;
                    return Poll::Ready(Heard::Room);
                },
                Poll::Ready(Err(_)) => return Poll::Ready(Heard::Gone),
                Poll::Pending => {
                    let blocked = self.blocked_since().is_some();
                    if blocked && !self.told_blocked {
                        self.told_blocked = true;
                        return Poll::Ready(Heard::Blocked);
                    }
                },
            }
        }
        if !read {
            return Poll::Pending;
        }
        Poll::Ready(match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
            Some(Ok(Message::Text(text))) if self.kind == Data::Text => Heard::Message(text.into()),
            Some(Ok(Message::Binary(bytes))) if self.kind == Data::Binary => Heard::Message(bytes),
            Some(Ok(Message::Text(_) | Message::Binary(_))) => Heard::OtherKind,
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => Heard::Sound,
            Some(Ok(Message::Close(_))) | None => Heard::Gone,
            Some(Err(error)) => broken(&error),
        })
    }

    /// Sends what was given, fragment after fragment.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        loop {
            ready!(Pin::new(&mut self.socket).poll_flush(cx))?;
            self.unsent = 0;
            match self.rest.take() {
                Some(rest) => self.piece(rest, Data::Continue),
                None => return Poll::Ready(Ok(())),
            }
        }
    }

    fn piece(&mut self, mut message: Bytes, kind: Data) {
        let piece = if message.len() > PIECE_BYTES {
            let piece = message.split_to(PIECE_BYTES);
            self.rest = Some(message);
            piece
        } else {
            message
        };
        let bytes = piece.len();
        let frame = Frame::message(piece, OpCode::Data(kind), self.rest.is_none());
        self.give(Message::Frame(frame), bytes);
    }

    /// Puts a message into the socket's buffer. An error shows again when it is flushed.
    fn give(&mut self, message: Message, bytes: usize) {
        let _ = Pin::new(&mut self.socket).start_send(message);
        self.unsent += bytes + 14;
    }

    /// The last words: messages as far as they can still be said, the close code, and an end that
    /// lets the peer read them. Takes at most `within`.
    pub(crate) async fn goodbye(
        mut self,
        last: Vec<Bytes>,
        code: u16,
        reason: &'static str,
        within: Duration,
    ) {
        let _ = timeout(within, async {
            if self.blocked_since().is_some() {
                // The message that is stuck is cut short; the close may stand inside it.
                self.rest = None;
            } else {
                poll_fn(|cx| self.poll_sent(cx)).await?;
                for message in last {
                    self.say(message);
                    poll_fn(|cx| self.poll_sent(cx)).await?;
                }
            }
            let close = CloseFrame {
                code: CloseCode::from(code),
                reason: Utf8Bytes::from_static(reason),
            };
            self.give(Message::Close(Some(close)), 0);
            poll_fn(|cx| Pin::new(&mut self.socket).poll_flush(cx)).await?;
            self.linger().await;
            Ok::<(), Error>(())
        })
        .await;
    }

    /// Answers the peer's own goodbye.
    pub(crate) async fn answer_goodbye(mut self, within: Duration) {
        let _ = timeout(within, async {
            let _ = poll_fn(|cx| Pin::new(&mut self.socket).poll_flush(cx)).await;
            self.linger().await;
        })
        .await;
    }

    /// Ends our side and reads on until the peer ends its own: data that nobody reads would turn
    /// the end into a reset, and a reset throws away what the peer has not read yet.
    async fn linger(&mut self) {
        let conn = self.socket.get_mut();
        if conn.shutdown().await.is_err() {
            return;
        }
        let mut scratch = vec![0; 1024];
        let mut left = LINGER_BYTES_MAX;
        while left > 0 {
            match conn.read(&mut scratch).await {
                Ok(0) | Err(_) => return,
                Ok(read) => left = left.saturating_sub(read),
            }
        }
    }
}

fn broken(error: &Error) -> Heard {
    match error {
        Error::Capacity(_) => Heard::TooLarge,
        Error::Utf8(_) => Heard::Unreadable("the text is not UTF-8"),
        // The peer went away without a goodbye.
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) | Error::Io(_) => Heard::Gone,
        Error::Protocol(_) => Heard::Unreadable("this is not WebSocket"),
        _ => Heard::Gone,
    }
}
