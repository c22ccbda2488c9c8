//! The message that a response becomes: which parts are open, and what opens and closes them.

use std::collections::BTreeSet;

use everwire_core::event::{Data, MessageStatus, PartKind, Role};
use everwire_core::limits::{EVENT_BYTES_MAX, LABEL_BYTES_MAX, OPEN_PARTS_MAX};
use everwire_core::{Body, Draft, MessageId, PartId};
use serde_json::Value;

use super::End;
use crate::message::cut;

/// Collects drafts of one message. Part names are made by the adapters from numbers, so they are
/// always good names.
pub(super) struct Parts {
    message: MessageId,
    started: bool,
    ended: bool,
    seen: BTreeSet<PartId>,
    open: BTreeSet<PartId>,
    drafts: Vec<Draft>,
    end: End,
}

impl Parts {
    pub(super) fn new(message: MessageId) -> Self {
        Self {
            message,
            started: false,
            ended: false,
            seen: BTreeSet::new(),
            open: BTreeSet::new(),
            drafts: Vec::new(),
            end: End::Cut,
        }
    }

    /// The drafts since the last call.
    pub(super) fn take(&mut self) -> Vec<Draft> {
        std::mem::take(&mut self.drafts)
    }

    /// How the stream ended.
    pub(super) fn end(&self) -> End {
        self.end.clone()
    }

    /// The provider says that the response is complete.
    pub(super) fn complete(&mut self) {
        if self.end == End::Cut {
            self.end = End::Complete;
        }
    }

    /// The provider says that the response failed.
    pub(super) fn fail(&mut self, reason: &str) {
        self.end = End::Failed(cut(reason, LABEL_BYTES_MAX).0.to_owned());
    }

    /// Opens a part. Opening one that was opened before does nothing: a part is written once.
    pub(super) fn open(
        &mut self,
        name: &str,
        kind: PartKind,
        label: Option<&str>,
        data: Option<Data>,
    ) {
        let Some(part) = part_id(name) else { return };
        if self.ended || !self.seen.insert(part.clone()) {
            return;
        }
        if !self.started {
            self.started = true;
            let role = Role::Assistant;
            self.push(Body::MessageStart {
                message: self.message.clone(),
                role,
            });
        }
        self.make_room();
        self.open.insert(part.clone());
        let name = label.map(|label| cut(label, LABEL_BYTES_MAX).0.to_owned());
        self.push(Body::PartStart {
            message: self.message.clone(),
            part,
            kind,
            name,
            data,
        });
    }

    /// Adds text to a part, opening it if need be. Text above the bound of an event is spread
    /// over several deltas.
    pub(super) fn delta(&mut self, name: &str, kind: PartKind, text: &str) {
        if text.is_empty() {
            return;
        }
        self.open(name, kind, None, None);
        let Some(part) = part_id(name).filter(|part| self.open.contains(part)) else {
            return;
        };
        let mut rest = text;
        while !rest.is_empty() {
            let (head, tail) = cut(rest, EVENT_BYTES_MAX / 2);
            rest = tail;
            let (message, text) = (self.message.clone(), head.to_owned());
            self.push(Body::PartDelta {
                message,
                part: part.clone(),
                position: 0,
                text,
            });
        }
    }

    /// Closes a part if it is open.
    pub(super) fn close(&mut self, name: &str) {
        let Some(part) = part_id(name) else { return };
        if self.open.remove(&part) {
            self.push(Body::PartEnd {
                message: self.message.clone(),
                part,
                data: None,
            });
        }
    }

    /// Closes the message, and its parts with it.
    pub(super) fn close_message(&mut self) {
        if self.started && !self.ended {
            self.ended = true;
            self.open.clear();
            let status = MessageStatus::Complete;
            self.push(Body::MessageEnd {
                message: self.message.clone(),
                status,
            });
        }
    }

    /// A provider that never closes its parts must not run into the bound of open parts.
    fn make_room(&mut self) {
        while self.open.len() >= OPEN_PARTS_MAX as usize {
            let Some(part) = self.open.pop_first() else {
                return;
            };
            self.push(Body::PartEnd {
                message: self.message.clone(),
                part,
                data: None,
            });
        }
    }

    fn push(&mut self, body: Body) {
        self.drafts.push(Draft::new(body));
    }
}

fn part_id(name: &str) -> Option<PartId> {
    PartId::parse(name).ok()
}

/// A JSON value as a part's data, if it fits beside other payload.
pub(super) fn data(value: &Value) -> Option<Data> {
    let text = value.to_string();
    (text.len() <= EVENT_BYTES_MAX / 4).then_some(Data::Json(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_is_spread_and_whole() {
        let mut parts = Parts::new(MessageId::parse("m").unwrap());
        let long = "é".repeat(EVENT_BYTES_MAX);
        parts.delta("t", PartKind::Text, &long);
        let mut whole = String::new();
        for draft in parts.take() {
            assert_eq!(draft.check_shape(), Ok(()));
            if let Body::PartDelta { text, .. } = draft.body {
                whole.push_str(&text);
            }
        }
        assert_eq!(whole, long);
    }
}
