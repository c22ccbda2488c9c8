//! Events as bytes for a reader: which events it may see, in which writing.

use std::fmt::Write as _;

use bytes::Bytes;
use everwire_core::event::{ParticipantKind, Visibility};
use everwire_core::{Cursor, Event, Offset, SessionEpoch, SessionName};
use everwire_proto::frame::{self, Covered, Subprotocol};
use everwire_proto::json::event_to_json;

/// Which events a reader sees. Frames of one class are never handed to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Viewer {
    /// What everybody sees.
    Public,
    /// Also what is for operators and agents only.
    Full,
}

impl Viewer {
    /// The class of a participant.
    pub(crate) fn of(kind: ParticipantKind) -> Self {
        if Visibility::Operators.shown_to(kind) {
            Self::Full
        } else {
            Self::Public
        }
    }

    /// Whether this class sees an event.
    pub(crate) fn sees(self, event: &Event) -> bool {
        match self {
            Self::Full => true,
            Self::Public => event.visibility == Visibility::All,
        }
    }
}

/// How events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// Text frames.
    Json,
    /// Binary frames.
    Proto,
    /// Lines of an event stream.
    Sse,
}

impl From<Subprotocol> for Encoding {
    fn from(subprotocol: Subprotocol) -> Self {
        match subprotocol {
            Subprotocol::Json => Self::Json,
            Subprotocol::Proto => Self::Proto,
        }
    }
}

/// What a reader's frames look like: readers of one form share their bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    /// How events are written.
    pub(crate) encoding: Encoding,
    /// Which events are in.
    pub(crate) viewer: Viewer,
}

/// The session that frames are about.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About<'a> {
    /// Its name.
    pub(crate) session: &'a SessionName,
    /// Its history.
    pub(crate) session_epoch: SessionEpoch,
}

/// One frame: what it covers, and the events in it that the reader may see.
pub(crate) fn encode(about: About<'_>, form: Form, range: Covered, events: &[Event]) -> Bytes {
    let seen: Vec<&Event> = events.iter().filter(|one| form.viewer.sees(one)).collect();
    let subprotocol = match form.encoding {
        Encoding::Json => Subprotocol::Json,
        Encoding::Proto => Subprotocol::Proto,
        Encoding::Sse => return Bytes::from(sse(about.session_epoch, range.to, &seen)),
    };
    frame::encode_events(subprotocol, about.session, range, &seen)
}

/// A sign of life: a frame that covers nothing, at the place where the reader waits.
pub(crate) fn encode_alive(about: About<'_>, form: Form, range: Covered) -> Bytes {
    match form.encoding {
        Encoding::Json | Encoding::Proto => encode(about, form, range, &[]),
        Encoding::Sse => Bytes::from_static(b": alive\n\n"),
    }
}

/// Events of a stream: `id` is the cursor. Events at the end that this reader may not see still
/// move the cursor: an `id` alone does, and dispatches nothing.
fn sse(session_epoch: SessionEpoch, to: Offset, events: &[&Event]) -> String {
    let mut text = String::new();
    let cursor = |offset| Cursor {
        session_epoch: Some(session_epoch),
        offset,
    };
    for event in events {
        let kind = event.kind().as_str();
        let _ = write!(text, "id: {}\nevent: {kind}\n", cursor(event.offset));
        push_data(&mut text, &event_to_json(event));
    }
    let last = events.last().map_or(Offset::ZERO, |event| event.offset);
    if last < to {
        let _ = write!(text, "id: {}\n\n", cursor(to));
    }
    text
}

/// One event of a stream with a name of its own.
pub(crate) fn sse_event(name: &str, json: &str) -> String {
    let mut text = format!("event: {name}\n");
    push_data(&mut text, json);
    text
}

/// One `data:` line for each line: application data may hold line breaks between its tokens.
fn push_data(text: &mut String, json: &str) {
    for line in json.split(['\n', '\r']) {
        text.push_str("data: ");
        text.push_str(line);
        text.push('\n');
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_the_public() {
        assert_eq!(Viewer::of(ParticipantKind::User), Viewer::Public);
        assert_eq!(Viewer::of(ParticipantKind::Operator), Viewer::Full);
        assert_eq!(Viewer::of(ParticipantKind::Agent), Viewer::Full);
    }

    #[test]
    fn line_breaks_in_data_do_not_end_the_event() {
        let text = sse_event("app", "{\"a\":\r\n1}");
        assert_eq!(text, "event: app\ndata: {\"a\":\ndata: \ndata: 1}\n\n");
    }

    #[test]
    fn hidden_events_still_move_the_cursor() {
        let epoch = "1-17".parse().unwrap();
        let to = Offset::new(9).unwrap();
        assert_eq!(sse(epoch, to, &[]), "id: 1-17.9\n\n");
    }
}
