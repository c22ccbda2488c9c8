//! The log of a session as gRPC tells it: what every surface is held against.

use everwire_client::Client;
use everwire_core::event::PartKind;
use everwire_core::{Body, Event, Kind, Offset, RunId, SessionEpoch, SessionName};
use everwire_testkit::recording::{Recording, assembled};

/// Committed events, from the first on unless said otherwise.
#[derive(Clone, Debug)]
pub struct Log {
    /// Which history it is.
    pub session_epoch: SessionEpoch,
    /// The events, in order.
    pub events: Vec<Event>,
}

impl Log {
    /// Reads a session to its tail.
    pub async fn read(client: &Client, session: &SessionName) -> Self {
        Self::read_from(client, session, Offset::ZERO.next()).await
    }

    /// Reads a session from an offset to its tail, page by page.
    pub async fn read_from(client: &Client, session: &SessionName, from: Offset) -> Self {
        let mut events = Vec::new();
        let mut next = from;
        loop {
            let page = client.read(session, None, next, 0, None).await;
            let page = page.unwrap_or_else(|refusal| panic!("{session} cannot be read: {refusal}"));
            events.extend(page.events);
            if page.to >= page.tail {
                let session_epoch = page.session_epoch;
                return Self {
                    session_epoch,
                    events,
                };
            }
            assert!(page.to >= next, "a page moves on");
            next = page.to.next();
        }
    }

    /// The last offset.
    pub fn tail(&self) -> Offset {
        self.events.last().map_or(Offset::ZERO, |last| last.offset)
    }

    /// How many events of a kind there are.
    pub fn count(&self, kind: Kind) -> usize {
        let of_kind = self.events.iter().filter(|event| event.kind() == kind);
        of_kind.count()
    }

    /// Fails if anybody stopped anything, or a run ended in any other way than well.
    pub fn assert_undisturbed(&self) {
        for kind in [
            Kind::SignalCancel,
            Kind::RunCancelled,
            Kind::RunFailed,
            Kind::RunOrphaned,
        ] {
            assert_eq!(self.count(kind), 0, "{}", kind.as_str());
        }
        assert_eq!(self.count(Kind::RunStarted), self.count(Kind::RunCompleted));
        assert_eq!(self.count(Kind::RunClaimed), 0, "nobody took a run over");
    }
}

/// What a person reads of one run.
pub fn text_of<'a>(events: impl IntoIterator<Item = &'a Event>, run: &RunId) -> String {
    let mine = events.into_iter().filter(|event| {
        let stamp = event.run.as_ref();
        stamp.is_some_and(|stamp| stamp.run == *run)
    });
    assembled(mine.map(|event| &event.body))
}

/// Whether an event is a delta of text.
pub fn is_delta(event: &Event) -> bool {
    matches!(event.body, Body::PartDelta { .. })
}

/// Whether an event opens a part of text.
pub fn opens_text(event: &Event) -> bool {
    let kind = match &event.body {
        Body::PartStart { kind, .. } => Some(*kind),
        _ => None,
    };
    kind == Some(PartKind::Text)
}

/// The chunks of a recording, in their order and to the byte, and the provider's text.
pub fn assert_is(events: &[Event], run: &RunId, recording: &Recording) {
    let name = &recording.name;
    let raw = events.iter().filter_map(|event| event.raw.as_ref());
    let raw: Vec<_> = raw.map(|raw| &raw.bytes).collect();
    assert_eq!(raw.len(), recording.chunks.len(), "{name}");
    for (number, (raw, chunk)) in raw.iter().zip(&recording.chunks).enumerate() {
        assert_eq!(*raw, chunk, "{name}: chunk {number}");
    }
    assert_eq!(text_of(events, run), recording.text, "{name}");
}
