//! A reader without a socket: the event stream of one session, read as `EventSource` would.

use std::collections::BTreeMap;

use everwire_core::{Cursor, Event, Offset, SessionName};
use everwire_proto::json::event_from_json;

use crate::http::{EventStream, Http, Message};
use crate::tab::READ_WITHIN;

/// An open event stream, and what it gave.
pub struct Sse {
    stream: EventStream,
    /// Every event seen, by offset.
    pub seen: BTreeMap<Offset, Event>,
    /// The `data` of each as it came.
    pub data: BTreeMap<Offset, String>,
    /// The last `id` seen; what a browser sends as `Last-Event-ID`.
    pub cursor: Option<Cursor>,
}

impl Sse {
    /// Opens the stream of a session that is there, after the event that was seen last.
    pub async fn open(
        addr: &str,
        token: &str,
        session: &SessionName,
        cursor: Option<Cursor>,
    ) -> Self {
        let opened = Self::try_open(addr, token, session, cursor).await;
        opened.unwrap_or_else(|why| panic!("{addr}: {why}"))
    }

    /// The same where the edge may be away, or about to go: the error says what happened.
    pub async fn try_open(
        addr: &str,
        token: &str,
        session: &SessionName,
        cursor: Option<Cursor>,
    ) -> Result<Self, String> {
        let last = cursor.map(|cursor| cursor.to_string());
        let header = last.as_ref().map(|id| ("last-event-id", id.as_str()));
        let path = format!("/v1/sessions/{session}/events");
        let http = Http::new(addr).with_token(token);
        let stream = http.try_stream(&path, header.as_slice()).await?;
        Ok(Self {
            stream: stream.map_err(|reply| format!("{reply:?}"))?,
            seen: BTreeMap::new(),
            data: BTreeMap::new(),
            cursor,
        })
    }

    /// Takes in the next message; `false` when the stream has ended. Nothing is lost when it is
    /// given up.
    pub async fn step(&mut self) -> bool {
        let message = self.stream.next().await;
        if let Some(message) = &message {
            self.take(message);
        }
        message.is_some()
    }

    /// Reads until the offset was seen; fails when the stream ends before, or when that takes
    /// longer than [`READ_WITHIN`].
    pub async fn read_to(&mut self, offset: Offset) {
        let reading = async {
            while self.seen_to() < offset {
                let message = self.stream.next().await;
                let message =
                    message.unwrap_or_else(|| panic!("the stream ended at {}", self.seen_to()));
                self.take(&message);
            }
        };
        let read = tokio::time::timeout(READ_WITHIN, reading).await;
        read.unwrap_or_else(|_| panic!("{offset} did not come, only {}", self.seen_to()));
    }

    /// Reads until the edge ends the stream or the connection breaks.
    pub async fn read_to_end(&mut self) {
        while let Some(message) = self.stream.next().await {
            self.take(&message);
        }
    }

    /// The last offset seen.
    pub fn seen_to(&self) -> Offset {
        self.cursor.map_or(Offset::ZERO, |cursor| cursor.offset)
    }

    fn take(&mut self, message: &Message) {
        // `bye` and `gone` carry no id: they are about the stream.
        if message.id.is_empty() {
            assert!(
                matches!(message.event.as_str(), "bye" | "gone"),
                "{message:?}"
            );
            return;
        }
        let event = event_from_json(message.data.as_bytes()).expect("a good event");
        let cursor: Cursor = message.id.parse().expect("an id is a cursor");
        assert!(cursor.session_epoch.is_some(), "an id names its history");
        assert_eq!(cursor.offset, event.offset, "the id is the place");
        assert_eq!(message.event, event.kind().as_str(), "the name is the kind");
        assert_eq!(event.offset, self.seen_to().next(), "a gap or an overlap");
        self.cursor = Some(cursor);
        self.data.insert(event.offset, message.data.clone());
        self.seen.insert(event.offset, event);
    }
}
