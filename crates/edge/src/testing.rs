//! What the tests of this crate share.

use everwire_core::event::{Author, Body, Codec, Data, ParticipantKind, Visibility};
use everwire_core::{Event, Offset, ParticipantId, Timestamp};
use everwire_proto::frame::Covered;

/// An offset.
pub(crate) fn offset(number: u64) -> Offset {
    Offset::new(number).unwrap()
}

/// A range, as a delivery of it.
pub(crate) fn covered(from: u64, to: u64) -> Covered {
    Covered {
        from: offset(from),
        to: offset(to),
        tail: offset(to),
        leader_seen_ms: 0,
    }
}

/// An application event with so many bytes of data.
pub(crate) fn app(at: u64, bytes: usize) -> Event {
    Event {
        offset: offset(at),
        time: Timestamp(at),
        run: None,
        author: Author {
            participant: ParticipantId::parse("ann").unwrap(),
            kind: ParticipantKind::User,
        },
        parent: None,
        visibility: Visibility::All,
        format: String::new(),
        codec: Codec::Plain,
        body: Body::App {
            name: "n".into(),
            data: Some(Data::Json(format!("\"{}\"", "x".repeat(bytes)))),
        },
        raw: None,
    }
}
