//! Chat completion chunks: OpenAI, Groq, DeepSeek and many others.
//!
//! `choices[].delta` holds `content`, `reasoning_content` (or `reasoning`), `refusal` and
//! `tool_calls[]`; a `finish_reason` ends a choice; a last chunk may have no choices but `usage`.

use everwire_core::event::PartKind;
use serde_json::Value;

use super::parts::{Parts, data};
use super::{index, text};

pub(super) fn chunk(parts: &mut Parts, chunk: &Value) {
    if let Some(error) = chunk.get("error") {
        parts.fail(text(error, "message").unwrap_or("the provider reported an error"));
        return;
    }
    let choices = chunk.get("choices").and_then(Value::as_array);
    for choice in choices.into_iter().flatten() {
        if let Some(delta) = choice.get("delta") {
            self::delta(parts, index(choice, "index"), delta);
        }
        if choice
            .get("finish_reason")
            .is_some_and(|reason| !reason.is_null())
        {
            parts.complete();
        }
    }
}

fn delta(parts: &mut Parts, choice: u64, delta: &Value) {
    let reasoning = text(delta, "reasoning_content").or_else(|| text(delta, "reasoning"));
    parts.delta(
        &format!("reasoning{choice}"),
        PartKind::Reasoning,
        reasoning.unwrap_or_default(),
    );
    let said = text(delta, "content").unwrap_or_default();
    if !said.is_empty() {
        parts.close(&format!("reasoning{choice}"));
    }
    parts.delta(&format!("text{choice}"), PartKind::Text, said);
    let refusal = text(delta, "refusal").unwrap_or_default();
    parts.delta(&format!("refusal{choice}"), PartKind::Text, refusal);
    let calls = delta.get("tool_calls").and_then(Value::as_array);
    for call in calls.into_iter().flatten() {
        let name = format!("call{choice}.{}", index(call, "index"));
        let function = call.get("function");
        let label = function.and_then(|function| text(function, "name"));
        let id = call.get("id").filter(|id| id.is_string());
        let known = id.and_then(|id| data(&serde_json::json!({ "id": id })));
        parts.open(&name, PartKind::ToolCall, label, known);
        let arguments = function.and_then(|function| text(function, "arguments"));
        parts.delta(&name, PartKind::ToolCall, arguments.unwrap_or_default());
    }
}
