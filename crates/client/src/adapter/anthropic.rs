//! Anthropic Messages events: `message_start`, blocks told apart by `index`, `message_stop`.

use everwire_core::event::PartKind;
use serde_json::Value;

use super::parts::{Parts, data};
use super::{index, text};

pub(super) fn chunk(parts: &mut Parts, event: &Value) {
    let block = format!("block{}", index(event, "index"));
    match text(event, "type").unwrap_or_default() {
        "content_block_start" => block_start(parts, &block, event),
        "content_block_delta" => block_delta(parts, &block, event),
        "content_block_stop" => parts.close(&block),
        "message_stop" => parts.complete(),
        "error" => {
            let message = event.get("error").and_then(|error| text(error, "message"));
            parts.fail(message.unwrap_or("the provider reported an error"));
        },
        _ => {},
    }
}

/// Blocks of unknown types become data parts named by their type: nothing is dropped.
fn block_start(parts: &mut Parts, name: &str, event: &Value) {
    let Some(block) = event.get("content_block") else {
        return;
    };
    let kind = text(block, "type").unwrap_or_default();
    match kind {
        "text" => {
            parts.open(name, PartKind::Text, None, None);
            parts.delta(
                name,
                PartKind::Text,
                text(block, "text").unwrap_or_default(),
            );
        },
        "thinking" | "redacted_thinking" => {
            parts.open(name, PartKind::Reasoning, None, None);
            let thought = text(block, "thinking").unwrap_or_default();
            parts.delta(name, PartKind::Reasoning, thought);
        },
        _ if kind.ends_with("tool_use") => {
            let known = data(&serde_json::json!({ "id": block.get("id"), "type": kind }));
            parts.open(name, PartKind::ToolCall, text(block, "name"), known);
        },
        _ if kind.ends_with("tool_result") => {
            let content = block.get("content").and_then(data);
            parts.open(name, PartKind::ToolResult, Some(kind), content);
        },
        _ => parts.open(name, PartKind::Data, Some(kind), None),
    }
}

fn block_delta(parts: &mut Parts, name: &str, event: &Value) {
    let Some(delta) = event.get("delta") else {
        return;
    };
    match text(delta, "type").unwrap_or_default() {
        "text_delta" => {
            parts.delta(
                name,
                PartKind::Text,
                text(delta, "text").unwrap_or_default(),
            );
        },
        "thinking_delta" => {
            let thought = text(delta, "thinking").unwrap_or_default();
            parts.delta(name, PartKind::Reasoning, thought);
        },
        "input_json_delta" => {
            let arguments = text(delta, "partial_json").unwrap_or_default();
            parts.delta(name, PartKind::ToolCall, arguments);
        },
        // Signatures and citations annotate; they travel in `raw`. Other deltas carry content.
        "signature_delta" | "citations_delta" => {},
        _ => parts.delta(
            name,
            PartKind::Data,
            text(delta, "content").unwrap_or_default(),
        ),
    }
}
