//! Google Interactions events: `interaction.created`, steps told apart by `index`,
//! `interaction.completed`.

use everwire_core::event::PartKind;
use serde_json::Value;

use super::parts::{Parts, data};
use super::{index, text};

pub(super) fn chunk(parts: &mut Parts, event: &Value) {
    let step = format!("step{}", index(event, "index"));
    match text(event, "event_type").unwrap_or_default() {
        "step.start" => step_start(parts, &step, event),
        "step.delta" => step_delta(parts, &step, event),
        "step.stop" => parts.close(&step),
        "interaction.completed" => parts.complete(),
        "interaction.failed" | "error" => {
            let inside = event.get("interaction").unwrap_or(event);
            let message = inside.get("error").and_then(|error| text(error, "message"));
            parts.fail(message.unwrap_or("the provider reported an error"));
        },
        _ => {},
    }
}

fn step_start(parts: &mut Parts, name: &str, event: &Value) {
    let Some(step) = event.get("step") else {
        return;
    };
    let kind = text(step, "type").unwrap_or_default();
    match kind {
        "model_output" => parts.open(name, PartKind::Text, None, None),
        "thought" => parts.open(name, PartKind::Reasoning, None, None),
        _ if kind.ends_with("_call") => {
            let known = data(&serde_json::json!({ "id": step.get("id"), "type": kind }));
            parts.open(
                name,
                PartKind::ToolCall,
                text(step, "name").or(Some(kind)),
                known,
            );
        },
        // A result is known only with its delta; the part is opened then, with its content.
        _ if kind.ends_with("_result") => {},
        _ => parts.open(name, PartKind::Data, Some(kind), None),
    }
}

fn step_delta(parts: &mut Parts, name: &str, event: &Value) {
    let Some(delta) = event.get("delta") else {
        return;
    };
    let kind = text(delta, "type").unwrap_or_default();
    match kind {
        "text" => parts.delta(
            name,
            PartKind::Text,
            text(delta, "text").unwrap_or_default(),
        ),
        "thought_summary" => {
            let thought = delta
                .get("content")
                .and_then(|content| text(content, "text"));
            parts.delta(name, PartKind::Reasoning, thought.unwrap_or_default());
        },
        _ if kind.ends_with("_call") => {
            if let Some(arguments) = delta.get("arguments") {
                parts.delta(name, PartKind::ToolCall, &arguments.to_string());
            }
        },
        _ if kind.ends_with("_result") => {
            let result = delta.get("result").and_then(data);
            parts.open(name, PartKind::ToolResult, Some(kind), result);
        },
        // Signatures and annotations travel in `raw`.
        _ => {},
    }
}
