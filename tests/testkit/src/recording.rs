//! Recorded answers of real models: their chunks, and the text that they say.
//!
//! The text is read off the provider's own chunks here, apart from the adapters of the client, so
//! that tests can hold one against the other.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use everwire_core::event::PartKind;
use everwire_core::{Body, MessageId, PartId};
use serde_json::Value;

/// One recorded answer.
pub struct Recording {
    /// Its file.
    pub path: PathBuf,
    /// The file's name, for messages.
    pub name: String,
    /// The provider's chunks, one a line.
    pub chunks: Vec<Bytes>,
    /// The text that a person reads, as the provider's chunks say it.
    pub text: String,
}

impl Recording {
    /// Reads a file.
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).expect("a recording is UTF-8");
        let chunks: Vec<_> = text
            .lines()
            .map(|line| Bytes::copy_from_slice(line.as_bytes()))
            .collect();
        let said: String = chunks.iter().map(|chunk| said(chunk)).collect();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        assert!(!said.is_empty(), "{name} has text");
        Self {
            path: path.to_owned(),
            name: name.into_owned(),
            chunks,
            text: said,
        }
    }

    /// All of [`crate::recordings`].
    pub fn all() -> Vec<Self> {
        let paths = crate::recordings();
        paths.iter().map(|path| Self::read(path)).collect()
    }
}

/// The text in one chunk, whoever sent it.
fn said(chunk: &[u8]) -> String {
    let chunk: Value = serde_json::from_slice(chunk).expect("a chunk is JSON");
    let text = |pointer: &str| chunk.pointer(pointer).and_then(Value::as_str);
    let said = if chunk.get("choices").is_some() {
        text("/choices/0/delta/content")
    } else if text("/type") == Some("response.output_text.delta") {
        text("/delta")
    } else if matches!(text("/delta/type"), Some("text_delta" | "text")) {
        text("/delta/text")
    } else {
        None
    };
    said.unwrap_or_default().to_owned()
}

/// The text parts of drafts or events, in the order of their start: what a person reads.
pub fn assembled<'a>(bodies: impl IntoIterator<Item = &'a Body>) -> String {
    let mut parts: Vec<(&MessageId, &PartId, String)> = Vec::new();
    for body in bodies {
        match body {
            Body::PartStart {
                message,
                part,
                kind: PartKind::Text,
                ..
            } => parts.push((message, part, String::new())),
            Body::PartDelta {
                message,
                part,
                text,
                ..
            } => {
                let mine =
                    |open: &&mut (&MessageId, &PartId, String)| open.0 == message && open.1 == part;
                if let Some((_, _, whole)) = parts.iter_mut().find(mine) {
                    whole.push_str(text);
                }
            },
            _ => {},
        }
    }
    parts.into_iter().map(|(_, _, whole)| whole).collect()
}
