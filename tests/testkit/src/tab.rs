//! A tab: one WebSocket at an edge, speaking frames, that can vanish in every way.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use everwire_core::command::SignalOutcome;
use everwire_core::{Cursor, Draft, Event, Key, Offset, Refusal, RunId, SessionName};
use everwire_proto::frame::{
    AttachAnswer, ClientFrame, ServerFrame, Subprotocol, decode_server, encode_client,
};
use everwire_proto::signal::Pressed;
use everwire_proto::token::Bearer;
use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::{HeaderValue, header};
use tokio_tungstenite::tungstenite::{Message, Utf8Bytes};
use tokio_tungstenite::{WebSocketStream, client_async};

/// Longest wait for any one frame.
pub const WITHIN: Duration = Duration::from_secs(30);
/// Longest wait for what a test waits for.
pub const READ_WITHIN: Duration = Duration::from_secs(90);

/// A tab that follows one session, and remembers what it saw. On TCP, or on whatever else
/// carries bytes.
pub struct Tab<S = TcpStream> {
    socket: WebSocketStream<S>,
    subprotocol: Subprotocol,
    /// The session.
    pub session: SessionName,
    /// Every event seen, by offset.
    pub seen: BTreeMap<Offset, Event>,
    /// The last place seen.
    pub cursor: Cursor,
    /// Ranges in the order in which they came.
    pub ranges: Vec<(Offset, Offset)>,
    /// The edge said that it stops soon.
    pub told_to_move: bool,
    /// Frames that answer requests and were not asked for yet.
    answers: VecDeque<(String, ServerFrame)>,
    requests: u64,
}

impl Tab {
    /// Connects to `addr` (`127.0.0.1:port`) and authenticates.
    pub async fn open(addr: &str, token: &str, subprotocol: Subprotocol) -> Self {
        let opened = Self::try_open(addr, token, subprotocol).await;
        opened.unwrap_or_else(|why| panic!("{addr}: {why}"))
    }

    /// The same where the edge may be away, or about to go: the error says what happened.
    pub async fn try_open(
        addr: &str,
        token: &str,
        subprotocol: Subprotocol,
    ) -> Result<Self, String> {
        let stream = TcpStream::connect(addr).await;
        let stream = stream.map_err(|error| format!("the edge does not listen: {error}"))?;
        Self::over(stream, addr, token, subprotocol).await
    }

    /// Opens and attaches in JSON, making the session if need be.
    pub async fn attached(
        addr: &str,
        token: &str,
        session: &SessionName,
        cursor: Option<Cursor>,
    ) -> Self {
        let mut tab = Self::open(addr, token, Subprotocol::Json).await;
        let answer = tab.attach(session, cursor, true).await.expect("attached");
        assert!(matches!(answer, AttachAnswer::Resumed { .. }), "{answer:?}");
        tab
    }

    /// Vanishes with a TCP reset.
    pub fn reset(self) {
        let _ = self.socket.get_ref().set_zero_linger();
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Tab<S> {
    /// Authenticates on a connection to `addr` that is open already.
    pub async fn over(
        stream: S,
        addr: &str,
        token: &str,
        subprotocol: Subprotocol,
    ) -> Result<Self, String> {
        let url = format!("ws://{addr}/v1/ws");
        let mut request = url.into_client_request().expect("a good address");
        let name = HeaderValue::from_static(match subprotocol {
            Subprotocol::Json => "everwire.v1.json",
            Subprotocol::Proto => "everwire.v1.proto",
        });
        request
            .headers_mut()
            .insert(header::SEC_WEBSOCKET_PROTOCOL, name);
        let upgraded = client_async(request, stream).await;
        let (socket, _) = upgraded.map_err(|error| format!("no upgrade: {error}"))?;
        let mut tab = Self {
            socket,
            subprotocol,
            session: SessionName::parse("none").expect("a good name"),
            seen: BTreeMap::new(),
            cursor: Cursor {
                session_epoch: None,
                offset: Offset::ZERO,
            },
            ranges: Vec::new(),
            told_to_move: false,
            answers: VecDeque::new(),
            requests: 0,
        };
        let token = Bearer::new(token);
        match tab.try_request(ClientFrame::Auth { token }).await? {
            ServerFrame::Welcome { .. } => Ok(tab),
            other => Err(format!("{other:?}")),
        }
    }

    /// Attaches; the answer, or the refusal.
    pub async fn attach(
        &mut self,
        session: &SessionName,
        cursor: Option<Cursor>,
        create: bool,
    ) -> Result<AttachAnswer, Refusal> {
        let attach = self.attach_frame(session, cursor, create);
        let answer = self.request(attach).await;
        self.attached_as(answer)
    }

    /// The same where the edge may be about to go: the error says what happened, or which
    /// refusal came.
    pub async fn try_attach(
        &mut self,
        session: &SessionName,
        cursor: Option<Cursor>,
    ) -> Result<AttachAnswer, String> {
        let attach = self.attach_frame(session, cursor, false);
        let answer = self.try_request(attach).await?;
        self.attached_as(answer)
            .map_err(|refusal| refusal.to_string())
    }

    fn attach_frame(
        &mut self,
        session: &SessionName,
        cursor: Option<Cursor>,
        create: bool,
    ) -> ClientFrame {
        self.session = session.clone();
        ClientFrame::Attach {
            session: session.clone(),
            cursor,
            create,
        }
    }

    fn attached_as(&mut self, answer: ServerFrame) -> Result<AttachAnswer, Refusal> {
        match answer {
            ServerFrame::Attached { answer, .. } => {
                if let AttachAnswer::Resumed {
                    session_epoch,
                    from,
                    ..
                } = answer
                {
                    let offset = from.previous();
                    self.cursor = Cursor {
                        session_epoch: Some(session_epoch),
                        offset,
                    };
                }
                Ok(answer)
            },
            ServerFrame::Error { refusal, .. } => Err(refusal),
            other => panic!("attach was answered with {other:?}"),
        }
    }

    /// Publishes; the offset and whether it was a duplicate, or the refusal.
    pub async fn publish(
        &mut self,
        draft: Draft,
        key: Option<Key>,
    ) -> Result<(Offset, bool), Refusal> {
        let session = self.session.clone();
        match self
            .request(ClientFrame::Publish {
                session,
                draft,
                key,
            })
            .await
        {
            ServerFrame::Ack {
                offset, duplicate, ..
            } => Ok((offset, duplicate)),
            ServerFrame::Error { refusal, .. } => Err(refusal),
            other => panic!("publish was answered with {other:?}"),
        }
    }

    /// Presses Stop; the outcome, or the refusal.
    pub async fn cancel(&mut self, run: &RunId, key: Key) -> Result<SignalOutcome, Refusal> {
        let (session, run) = (self.session.clone(), run.clone());
        let pressed = Pressed::Cancel(everwire_core::Cancel::run(run));
        self.press(session, pressed, key).await
    }

    /// Presses anything; the outcome, or the refusal.
    pub async fn press(
        &mut self,
        session: SessionName,
        pressed: Pressed,
        key: Key,
    ) -> Result<SignalOutcome, Refusal> {
        let frame = ClientFrame::Signal {
            session,
            pressed,
            key,
        };
        match self.request(frame).await {
            ServerFrame::Outcome { outcome, .. } => Ok(outcome),
            ServerFrame::Error { refusal, .. } => Err(refusal),
            other => panic!("a signal was answered with {other:?}"),
        }
    }

    /// Reads until `done`; fails when nothing comes for [`WITHIN`], or too little for
    /// [`READ_WITHIN`]: signs of life alone keep nobody waiting.
    pub async fn read_until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let reading = async {
            while !done(self) {
                let answer = self.frame().await;
                self.answers.extend(answer);
            }
        };
        let read = tokio::time::timeout(READ_WITHIN, reading).await;
        read.unwrap_or_else(|_| panic!("still waiting, at {}", self.cursor));
    }

    /// Reads until the offset was seen.
    pub async fn read_to(&mut self, offset: Offset) {
        self.read_until(|tab| tab.cursor.offset >= offset).await;
    }

    /// Sends any frame.
    pub async fn send(&mut self, id: &str, frame: &ClientFrame) {
        let message = self.message(id, frame);
        self.send_message(message).await;
    }

    fn message(&self, id: &str, frame: &ClientFrame) -> Message {
        let bytes = encode_client(self.subprotocol, id, frame);
        match self.subprotocol {
            Subprotocol::Json => Message::Text(Utf8Bytes::try_from(bytes).expect("JSON is text")),
            Subprotocol::Proto => Message::Binary(bytes),
        }
    }

    /// Sends anything at all.
    pub async fn send_message(&mut self, message: Message) {
        self.socket.send(message).await.expect("the edge takes it");
    }

    /// The next frame that is no events frame, with its id.
    pub async fn answer_frame(&mut self) -> (String, ServerFrame) {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return answer;
            }
            let answer = self.frame().await;
            self.answers.extend(answer);
        }
    }

    /// The close code, after whatever frames come before it.
    pub async fn closed(&mut self) -> Option<u16> {
        loop {
            let message = tokio::time::timeout(WITHIN, self.socket.next()).await;
            match message.expect("the edge closes in time") {
                Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
                Some(Ok(_)) => {},
                Some(Err(_)) | None => return None,
            }
        }
    }

    /// Takes in what comes until the connection ends, however it does; the close code, if there
    /// was a close.
    pub async fn read_to_end(&mut self) -> Option<u16> {
        loop {
            match self.frame_or_end().await {
                Ok(answer) => self.answers.extend(answer),
                Err(end) => return end,
            }
        }
    }

    /// Says goodbye properly, as a closed tab does.
    pub async fn close(mut self) {
        let _ = self.socket.close(None).await;
    }

    async fn request(&mut self, frame: ClientFrame) -> ServerFrame {
        let answer = self.try_request(frame).await;
        answer.unwrap_or_else(|why| panic!("{why}"))
    }

    /// Sends a frame and waits for its answer; the error says what happened instead.
    pub async fn try_request(&mut self, frame: ClientFrame) -> Result<ServerFrame, String> {
        self.requests += 1;
        let id = format!("request-{}", self.requests);
        let message = self.message(&id, &frame);
        let sent = self.socket.send(message).await;
        sent.map_err(|error| format!("the edge takes nothing: {error}"))?;
        let reading = async {
            loop {
                match self.frame_or_end().await {
                    Ok(Some((other, frame))) if other == id => return Ok(frame),
                    Ok(other) => self.answers.extend(other),
                    Err(end) => return Err(format!("the edge closed: {end:?}")),
                }
            }
        };
        let answered = tokio::time::timeout(READ_WITHIN, reading).await;
        answered.unwrap_or_else(|_| panic!("no answer to {frame:?}"))
    }

    /// Takes in whatever comes next; the close code, if there is one, when the connection has
    /// ended. Nothing is lost when it is given up.
    pub async fn step(&mut self) -> Result<(), Option<u16>> {
        let answer = self.frame_or_end().await?;
        self.answers.extend(answer);
        Ok(())
    }

    /// Takes one message from the socket; events are taken in, answers are given back.
    async fn frame(&mut self) -> Option<(String, ServerFrame)> {
        let frame = self.frame_or_end().await;
        frame.unwrap_or_else(|end| panic!("the edge closed: {end:?}"))
    }

    /// The same; the close code when the connection has ended.
    async fn frame_or_end(&mut self) -> Result<Option<(String, ServerFrame)>, Option<u16>> {
        let message = tokio::time::timeout(WITHIN, self.socket.next()).await;
        let bytes = match message.expect("a frame in time") {
            Some(Ok(Message::Text(text))) => bytes::Bytes::from(text),
            Some(Ok(Message::Binary(bytes))) => bytes,
            Some(Ok(Message::Close(frame))) => return Err(frame.map(|frame| frame.code.into())),
            Some(Ok(_)) => return Ok(None),
            Some(Err(_)) | None => return Err(None),
        };
        Ok(self.take(&bytes))
    }

    fn take(&mut self, bytes: &[u8]) -> Option<(String, ServerFrame)> {
        let decoded = decode_server(self.subprotocol, bytes).expect("a good frame");
        let (id, frame) = decoded?;
        self.told_to_move |= matches!(frame, ServerFrame::Moving { .. });
        let ServerFrame::Events {
            session,
            range,
            events,
        } = frame
        else {
            return Some((id, frame));
        };
        if session != self.session {
            return None;
        }
        assert_eq!(range.from, self.cursor.offset.next(), "a gap or an overlap");
        self.cursor.offset = range.to;
        self.ranges.push((range.from, range.to));
        for event in events {
            assert!(
                (range.from..=range.to).contains(&event.offset),
                "outside its range"
            );
            let twice = self.seen.insert(event.offset, event);
            assert!(twice.is_none(), "{twice:?} came twice");
        }
        None
    }
}
