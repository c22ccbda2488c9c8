//! From an agent's output to drafts: which message and part are open, and what opens and closes
//! them.
//!
//! Comes in: text, reasoning, pieces of tool calls, as a model gives them. Goes out: drafts in
//! the order in which they must be sent. Never: a call, a clock, a provider's format.

use std::collections::VecDeque;
use std::fmt::Write as _;

use bytes::Bytes;
use everwire_core::event::{Data, MessageStatus, PartKind, Role, StepStatus};
use everwire_core::limits::{EVENT_BYTES_MAX, LABEL_BYTES_MAX, NAME_BYTES_MAX, OPEN_PARTS_MAX};
use everwire_core::{Body, Draft, MessageId, PartId, RunEpoch, RunId, StepId};

/// Longest text of one delta, bytes; longer ones are cut between characters.
const DELTA_BYTES_MAX: usize = 64 << 10;
/// The `app` event that carries a provider's chunk alone.
const CHUNK: &str = "chunk";
/// Room for a dot and a number behind a message id's stem, twice.
const SUFFIX_BYTES: usize = 32;

/// Turns text, reasoning and tool parts into drafts. Pure: it sends nothing, so every draft that
/// it gives must be sent, in that order.
pub struct RunWriter {
    /// What its message ids begin with: the run and its epoch.
    stem: String,
    messages: u64,
    open: Option<OpenMessage>,
}

struct OpenMessage {
    id: MessageId,
    parts: u64,
    /// Open parts, in order of their start.
    open: VecDeque<OpenPart>,
}

struct OpenPart {
    id: PartId,
    kind: PartKind,
    /// A tool call's id; `None` for text and reasoning.
    call: Option<String>,
}

impl RunWriter {
    /// A writer of one run and epoch; its message ids are made from both.
    pub fn new(run: &RunId, run_epoch: RunEpoch) -> Self {
        let run = run.as_str();
        let mut stem = run.to_owned();
        if run.len() > NAME_BYTES_MAX - SUFFIX_BYTES {
            // Cut, but still different for different runs.
            stem.truncate(NAME_BYTES_MAX - SUFFIX_BYTES - 17);
            let _infallible = write!(stem, "~{:016x}", fnv64(run.as_bytes()));
        }
        let _infallible = write!(stem, ".{run_epoch}");
        Self {
            stem,
            messages: 0,
            open: None,
        }
    }

    /// Ends the open message, if any, and begins one of this role.
    pub fn begin(&mut self, role: Role) -> Vec<Draft> {
        let mut drafts = self.end();
        self.open_message(role, &mut drafts);
        drafts
    }

    /// Begins an attempt at a step, which is tried again by beginning it again: what the attempt
    /// before it wrote does not count any more. Ends the open message, if any. Steps do not nest.
    ///
    /// ```
    /// # use everwire_client::RunWriter;
    /// # use everwire_core::{RunEpoch, RunId, StepId, event::StepStatus};
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let mut writer = RunWriter::new(&RunId::parse("r1")?, RunEpoch::FIRST);
    /// let search = StepId::parse("search")?;
    /// let mut drafts = writer.begin_step(&search, Some("Searching"));
    /// drafts.extend(writer.text("I found"));
    /// // The tool failed in the middle of it.
    /// drafts.extend(writer.begin_step(&search, Some("Searching again")));
    /// drafts.extend(writer.text("I found it."));
    /// drafts.extend(writer.end_step(&search, StepStatus::Complete, None));
    /// # assert_eq!(drafts.len(), 11);
    /// # Ok(())
    /// # }
    /// ```
    pub fn begin_step(&mut self, step: &StepId, name: Option<&str>) -> Vec<Draft> {
        let mut drafts = self.end();
        drafts.push(Draft::new(Body::StepStart {
            step: step.clone(),
            attempt: 0,
            name: name.map(label),
        }));
        drafts
    }

    /// Ends the open attempt at a step. The open message ends with it: as complete, or, when the
    /// attempt failed, as incomplete.
    pub fn end_step(
        &mut self,
        step: &StepId,
        status: StepStatus,
        reason: Option<&str>,
    ) -> Vec<Draft> {
        self.open = None;
        vec![Draft::new(Body::StepEnd {
            step: step.clone(),
            status,
            reason: reason.map(label),
        })]
    }

    /// Text for a person. Begins a message of the assistant if none is open.
    pub fn text(&mut self, text: &str) -> Vec<Draft> {
        self.stream(PartKind::Text, text)
    }

    /// The model's reasoning. Begins a message of the assistant if none is open.
    pub fn reasoning(&mut self, text: &str) -> Vec<Draft> {
        self.stream(PartKind::Reasoning, text)
    }

    /// A piece of a tool call's arguments. The first piece of a `call` begins its part, with the
    /// tool's name; the part's data hold the call's id as `{"id": …}`.
    pub fn tool_call(&mut self, call: &str, name: Option<&str>, arguments: &str) -> Vec<Draft> {
        let mut drafts = Vec::new();
        let open = self.open_message(Role::Assistant, &mut drafts);
        open.end_parts(&mut drafts, |part| part.call.is_none());
        let known = |part: &&OpenPart| part.call.as_deref() == Some(call);
        let part = match open.open.iter().find(known) {
            Some(part) => part.id.clone(),
            None => {
                let data = Data::Json(format!("{{\"id\":{}}}", json_text(call)));
                let call = Some(call.to_owned());
                open.start_part(PartKind::ToolCall, call, name, Some(data), &mut drafts)
            },
        };
        deltas(&open.id, &part, arguments, &mut drafts);
        drafts
    }

    /// The arguments of a call are complete.
    pub fn tool_call_end(&mut self, call: &str) -> Vec<Draft> {
        let mut drafts = Vec::new();
        if let Some(open) = &mut self.open {
            open.end_parts(&mut drafts, |part| part.call.as_deref() == Some(call));
        }
        drafts
    }

    /// What a tool answered to a call, as a part of its own; its data at the start hold the call's
    /// id as `{"id": …}`. Begins a message of the role tool if none is open.
    pub fn tool_result(&mut self, call: &str, name: Option<&str>, data: Data) -> Vec<Draft> {
        let id = Data::Json(format!("{{\"id\":{}}}", json_text(call)));
        self.at_once(Role::Tool, PartKind::ToolResult, name, Some(id), Some(data))
    }

    /// A part that is known as a whole: data, or a file's URL and hash. Begins a message of the
    /// assistant if none is open.
    pub fn whole(&mut self, kind: PartKind, name: Option<&str>, data: Data) -> Vec<Draft> {
        self.at_once(Role::Assistant, kind, name, Some(data), None)
    }

    fn at_once(
        &mut self,
        role: Role,
        kind: PartKind,
        name: Option<&str>,
        first: Option<Data>,
        last: Option<Data>,
    ) -> Vec<Draft> {
        let mut drafts = Vec::new();
        let open = self.open_message(role, &mut drafts);
        open.end_parts(&mut drafts, |part| part.call.is_none());
        let part = open.start_part(kind, None, name, first, &mut drafts);
        open.open.retain(|open| open.id != part);
        drafts.push(Draft::new(Body::PartEnd {
            message: open.id.clone(),
            part,
            data: last,
        }));
        drafts
    }

    /// Ends the open message and its parts, if any.
    pub fn end(&mut self) -> Vec<Draft> {
        let mut drafts = Vec::new();
        if let Some(mut open) = self.open.take() {
            open.end_parts(&mut drafts, |_| true);
            drafts.push(Draft::new(Body::MessageEnd {
                message: open.id,
                status: MessageStatus::Complete,
            }));
        }
        drafts
    }

    /// Puts a provider's chunk beside the drafts that were made from it: on the last one, if it
    /// fits; else it becomes an `app` event `chunk` of its own, so that no chunk is lost. A chunk
    /// above the bound of an event cannot travel; `chunk.too_large` says so and gives its size.
    pub fn with_raw(mut drafts: Vec<Draft>, format: &str, bytes: impl Into<Bytes>) -> Vec<Draft> {
        let bytes = bytes.into();
        let last = match drafts.pop() {
            Some(last) if last.payload_bytes() + bytes.len() <= EVENT_BYTES_MAX => {
                drafts.push(last.with_raw(format, bytes));
                return drafts;
            },
            last => last,
        };
        let app = |name: &str, data| {
            let name = name.to_owned();
            Draft::new(Body::App { name, data })
        };
        let chunk = if bytes.len() + CHUNK.len() <= EVENT_BYTES_MAX {
            app(CHUNK, None).with_raw(format, bytes)
        } else {
            let size = Data::Json(format!("{{\"bytes\":{}}}", bytes.len()));
            app("chunk.too_large", Some(size))
        };
        // Nothing may follow the end of a run.
        let ends_run =
            |draft: &Draft| matches!(draft.body, Body::RunCompleted | Body::RunFailed { .. });
        match last {
            Some(last) if ends_run(&last) => drafts.extend([chunk, last]),
            Some(last) => drafts.extend([last, chunk]),
            None => drafts.push(chunk),
        }
        drafts
    }

    fn stream(&mut self, kind: PartKind, text: &str) -> Vec<Draft> {
        let mut drafts = Vec::new();
        if text.is_empty() {
            return drafts;
        }
        let open = self.open_message(Role::Assistant, &mut drafts);
        open.end_parts(&mut drafts, |part| part.call.is_none() && part.kind != kind);
        let known = |part: &&OpenPart| part.call.is_none() && part.kind == kind;
        let part = match open.open.iter().find(known) {
            Some(part) => part.id.clone(),
            None => open.start_part(kind, None, None, None, &mut drafts),
        };
        deltas(&open.id, &part, text, &mut drafts);
        drafts
    }

    /// The open message; begins one of this role if there is none.
    fn open_message(&mut self, role: Role, drafts: &mut Vec<Draft>) -> &mut OpenMessage {
        let (stem, messages) = (&self.stem, &mut self.messages);
        self.open.get_or_insert_with(|| {
            *messages += 1;
            let id = format!("{stem}.{messages}");
            let id = MessageId::parse(&id).expect("a run's id with room for dots and numbers");
            drafts.push(Draft::new(Body::MessageStart {
                message: id.clone(),
                role,
            }));
            OpenMessage {
                id,
                parts: 0,
                open: VecDeque::new(),
            }
        })
    }
}

impl OpenMessage {
    fn start_part(
        &mut self,
        kind: PartKind,
        call: Option<String>,
        name: Option<&str>,
        data: Option<Data>,
        drafts: &mut Vec<Draft>,
    ) -> PartId {
        let max = usize::try_from(OPEN_PARTS_MAX).unwrap_or(usize::MAX);
        if self.open.len() >= max
            && let Some(oldest) = self.open.pop_front()
        {
            drafts.push(end_part(&self.id, oldest.id));
        }
        self.parts += 1;
        let id = PartId::parse(&self.parts.to_string()).expect("digits");
        drafts.push(Draft::new(Body::PartStart {
            message: self.id.clone(),
            part: id.clone(),
            kind,
            name: name.map(label),
            data,
        }));
        self.open.push_back(OpenPart {
            id: id.clone(),
            kind,
            call,
        });
        id
    }

    fn end_parts(&mut self, drafts: &mut Vec<Draft>, which: impl Fn(&OpenPart) -> bool) {
        let message = &self.id;
        self.open.retain(|part| {
            let ends = which(part);
            if ends {
                drafts.push(end_part(message, part.id.clone()));
            }
            !ends
        });
    }
}

fn end_part(message: &MessageId, part: PartId) -> Draft {
    Draft::new(Body::PartEnd {
        message: message.clone(),
        part,
        data: None,
    })
}

fn deltas(message: &MessageId, part: &PartId, mut text: &str, drafts: &mut Vec<Draft>) {
    while !text.is_empty() {
        let (piece, rest) = cut(text, DELTA_BYTES_MAX);
        drafts.push(Draft::new(Body::PartDelta {
            message: message.clone(),
            part: part.clone(),
            position: 0,
            text: piece.to_owned(),
        }));
        text = rest;
    }
}

/// At most `max` bytes of a text, and the rest; never cuts a character.
pub(crate) fn cut(text: &str, max: usize) -> (&str, &str) {
    let boundary = (0..=max.min(text.len()))
        .rev()
        .find(|at| text.is_char_boundary(*at));
    text.split_at(boundary.unwrap_or(0))
}

/// A label within its bound.
fn label(text: &str) -> String {
    cut(text, LABEL_BYTES_MAX).0.to_owned()
}

/// A string as JSON text.
fn json_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => out.extend(['\\', char]),
            control if control < ' ' => {
                let _infallible = write!(out, "\\u{:04x}", u32::from(control));
            },
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// FNV-1a: tells long run ids apart, nothing more.
fn fnv64(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer() -> RunWriter {
        RunWriter::new(&RunId::parse("r1").unwrap(), RunEpoch(2))
    }

    fn words(drafts: &[Draft]) -> Vec<String> {
        let word = |draft: &Draft| match &draft.body {
            Body::MessageStart { message, role } => format!("message {message} {}", role.as_str()),
            Body::MessageEnd { message, .. } => format!("end {message}"),
            Body::PartStart { part, kind, .. } => format!("part {part} {}", kind.as_str()),
            Body::PartDelta { part, text, .. } => format!("delta {part} {text}"),
            Body::PartEnd { part, .. } => format!("end part {part}"),
            other => format!("{:?}", other.kind()),
        };
        drafts.iter().map(word).collect()
    }

    #[test]
    fn messages_and_parts_open_and_close_as_output_comes() {
        let mut writer = writer();
        let mut drafts = writer.reasoning("hm");
        drafts.extend(writer.text("Hel"));
        drafts.extend(writer.text(""));
        drafts.extend(writer.text("lo"));
        drafts.extend(writer.tool_call("c\"1", Some("search"), "{\"q\":"));
        drafts.extend(writer.tool_call("c2", Some("open"), "{}"));
        drafts.extend(writer.tool_call("c\"1", None, "1}"));
        drafts.extend(writer.tool_call_end("c2"));
        drafts.extend(writer.tool_result("c2", None, Data::Json("7".into())));
        drafts.extend(writer.begin(Role::User));
        drafts.extend(writer.end());
        drafts.extend(writer.end());
        let expected = [
            "message r1.2.1 assistant",
            "part 1 reasoning",
            "delta 1 hm",
            "end part 1",
            "part 2 text",
            "delta 2 Hel",
            "delta 2 lo",
            "end part 2",
            "part 3 tool_call",
            "delta 3 {\"q\":",
            "part 4 tool_call",
            "delta 4 {}",
            "delta 3 1}",
            "end part 4",
            "part 5 tool_result",
            "end part 5",
            "end part 3",
            "end r1.2.1",
            "message r1.2.2 user",
            "end r1.2.2",
        ];
        assert_eq!(words(&drafts), expected);
        let call = drafts.iter().find_map(|draft| match &draft.body {
            Body::PartStart {
                data: Some(data), ..
            } => Some(data.clone()),
            _ => None,
        });
        assert_eq!(call, Some(Data::Json(r#"{"id":"c\"1"}"#.into())));
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let text = "ä".repeat(DELTA_BYTES_MAX);
        let drafts = writer().text(&text);
        let pieces: Vec<_> = drafts
            .iter()
            .filter_map(|draft| match &draft.body {
                Body::PartDelta { text, .. } => Some(text.as_str()),
                _ => None,
            })
            .collect();
        assert!(pieces.len() >= 2 && pieces.iter().all(|piece| piece.len() <= DELTA_BYTES_MAX));
        assert_eq!(pieces.concat(), text);
    }

    #[test]
    fn cuts_fall_between_characters() {
        assert_eq!(cut("aé", 2), ("a", "é"));
        assert_eq!(cut("aé", 3), ("aé", ""));
        assert_eq!(cut("", 3), ("", ""));
    }

    #[test]
    fn a_chunk_is_never_lost() {
        let drafts = RunWriter::with_raw(writer().text("a"), "openai-chat", "x");
        assert!(drafts.last().unwrap().raw.is_some() && drafts.len() == 3);
        let alone = RunWriter::with_raw(Vec::new(), "openai-chat", "x");
        assert_eq!(words(&alone), ["App"]);
        let big = vec![0; EVENT_BYTES_MAX - "chunk".len()];
        let beside = RunWriter::with_raw(writer().text("longer"), "openai-chat", big);
        assert_eq!(beside.len(), 4);
        assert!(beside.iter().all(|draft| draft.check_shape().is_ok()));
        let end = vec![Draft::new(Body::RunCompleted)];
        let larger = vec![0; EVENT_BYTES_MAX + 1];
        let told = RunWriter::with_raw(end, "openai-chat", larger);
        assert_eq!(words(&told), ["App", "RunCompleted"]);
        assert!(told.iter().all(|draft| draft.check_shape().is_ok()));
    }

    #[test]
    fn long_run_ids_still_make_message_ids_that_differ() {
        let id = |end: &str| {
            let run = RunId::parse(&format!("{}{end}", "x".repeat(126))).unwrap();
            let mut writer = RunWriter::new(&run, RunEpoch(u32::MAX));
            writer.messages = u64::MAX - 1;
            words(&writer.begin(Role::Assistant)).concat()
        };
        assert_ne!(id("a"), id("b"));
    }

    #[test]
    fn open_parts_stay_within_their_bound() {
        let mut writer = writer();
        for call in 0..200 {
            writer.tool_call(&call.to_string(), None, "x");
        }
        assert!(writer.open.unwrap().open.len() <= OPEN_PARTS_MAX as usize);
    }
}
