//! From a model provider's stream to drafts: typed parts that people see, and every chunk kept
//! byte for byte beside them as `raw`.
//!
//! Pure: chunks in, drafts out; sending is [`crate::Publisher`]'s business. A chunk that the
//! adapter does not understand still travels, as an `app` event named `chunk`, so that nothing of
//! the provider's stream is lost.

mod anthropic;
mod google;
mod openai_chat;
mod openai_responses;
mod parts;

use bytes::Bytes;
use everwire_core::{Draft, MessageId};
use serde_json::Value;

use crate::message::RunWriter;
use parts::Parts;

/// Which wire format a provider speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Chat completion chunks: OpenAI, Groq, DeepSeek and many others.
    OpenAiChat,
    /// OpenAI Responses events.
    OpenAiResponses,
    /// Anthropic Messages events.
    Anthropic,
    /// Google Interactions events.
    Google,
}

impl Format {
    /// Every format.
    pub const ALL: [Self; 4] = [
        Self::OpenAiChat,
        Self::OpenAiResponses,
        Self::Anthropic,
        Self::Google,
    ];

    /// The word in `raw.format`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::OpenAiChat => "openai-chat",
            Self::OpenAiResponses => "openai-responses",
            Self::Anthropic => "anthropic",
            Self::Google => "google",
        }
    }

    /// The format with this word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.as_str() == text)
    }

    /// Which format a stream's first chunk is of.
    pub fn detect(first_chunk: &[u8]) -> Option<Self> {
        let chunk: Value = serde_json::from_slice(first_chunk).ok()?;
        if chunk.get("choices").is_some() {
            return Some(Self::OpenAiChat);
        }
        if chunk.get("event_type").is_some() {
            return Some(Self::Google);
        }
        let kind = chunk.get("type")?.as_str()?;
        Some(if kind.starts_with("response.") {
            Self::OpenAiResponses
        } else {
            Self::Anthropic
        })
    }
}

/// How a provider's stream ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// The provider said that it is complete.
    Complete,
    /// The provider reported an error; at most 256 bytes.
    Failed(String),
    /// The stream broke off: no end was seen.
    Cut,
}

/// Turns the chunks of one response into drafts of one run.
///
/// ```
/// use everwire_client::adapter::{Adapter, End, Format};
/// use everwire_core::MessageId;
///
/// let mut adapter = Adapter::new(Format::OpenAiChat, MessageId::parse("m1").unwrap());
/// let chunk = br#"{"choices":[{"index":0,"delta":{"content":"Hi"},"finish_reason":"stop"}]}"#;
/// let drafts = adapter.chunk(bytes::Bytes::from_static(chunk));
/// assert_eq!(drafts.len(), 3); // message.start, part.start, part.delta
/// let (closing, end) = adapter.finish();
/// assert_eq!((closing.len(), end), (1, End::Complete)); // message.end closes its part
/// ```
pub struct Adapter {
    format: Format,
    parts: Parts,
}

impl Adapter {
    /// An adapter that writes message `message`; it must be new in its session.
    pub fn new(format: Format, message: MessageId) -> Self {
        Self {
            format,
            parts: Parts::new(message),
        }
    }

    /// Drafts for one chunk: at least one, and exactly one of them carries the chunk as `raw`,
    /// unless it is too large for that ([`RunWriter::with_raw`]).
    pub fn chunk(&mut self, bytes: Bytes) -> Vec<Draft> {
        if let Ok(chunk) = serde_json::from_slice::<Value>(&bytes) {
            match self.format {
                Format::OpenAiChat => openai_chat::chunk(&mut self.parts, &chunk),
                Format::OpenAiResponses => openai_responses::chunk(&mut self.parts, &chunk),
                Format::Anthropic => anthropic::chunk(&mut self.parts, &chunk),
                Format::Google => google::chunk(&mut self.parts, &chunk),
            }
        }
        RunWriter::with_raw(self.parts.take(), self.format.as_str(), bytes)
    }

    /// What closes the message, and how the stream ended. Call it when no more chunks come.
    pub fn finish(mut self) -> (Vec<Draft>, End) {
        self.parts.close_message();
        (self.parts.take(), self.parts.end())
    }
}

/// A string field of a chunk.
fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

/// An index field of a chunk; providers count from 0.
fn index(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}
