//! OpenAI Responses events: `response.created` … `response.completed`, about items in the
//! response's `output`, told apart by `output_index`.

use everwire_core::event::PartKind;
use serde_json::Value;

use super::parts::{Parts, data};
use super::{index, text};

pub(super) fn chunk(parts: &mut Parts, event: &Value) {
    let kind = text(event, "type").unwrap_or_default();
    let item = index(event, "output_index");
    let said = text(event, "delta").unwrap_or_default();
    let call = format!("call{item}");
    let content = format!("text{item}.{}", index(event, "content_index"));
    let thought = format!("reasoning{item}.{}", index(event, "summary_index"));
    match kind {
        "response.output_item.added" => item_added(parts, &call, event),
        "response.output_item.done" => item_done(parts, item, event),
        "response.output_text.delta" | "response.refusal.delta" => {
            parts.delta(&content, PartKind::Text, said);
        },
        "response.content_part.done" => parts.close(&content),
        "response.reasoning_summary_text.delta" | "response.reasoning_text.delta" => {
            parts.delta(&thought, PartKind::Reasoning, said);
        },
        "response.reasoning_summary_part.done" | "response.reasoning_text.done" => {
            parts.close(&thought);
        },
        "response.completed" | "response.incomplete" => parts.complete(),
        "response.failed" | "error" => parts.fail(&reason(event)),
        // Arguments of function and MCP calls, code of the interpreter, input of custom tools.
        _ if kind.ends_with(".delta") && kind.contains("_call") => {
            parts.delta(&call, PartKind::ToolCall, said);
        },
        _ => {},
    }
}

/// Items whose type ends in `_call` are tools at work: function_call, web_search_call, ….
fn item_added(parts: &mut Parts, call: &str, event: &Value) {
    let Some(item) = event.get("item") else {
        return;
    };
    let kind = text(item, "type").unwrap_or_default();
    if kind.ends_with("_call") {
        let known = data(&serde_json::json!({ "id": item.get("id"), "type": kind }));
        parts.open(
            call,
            PartKind::ToolCall,
            text(item, "name").or(Some(kind)),
            known,
        );
    }
}

fn item_done(parts: &mut Parts, number: u64, event: &Value) {
    parts.close(&format!("call{number}"));
    let output = event.get("item").and_then(|item| item.get("output"));
    if let Some(output) = output.filter(|output| !output.is_null()) {
        let result = format!("result{number}");
        parts.open(&result, PartKind::ToolResult, None, data(output));
        parts.close(&result);
    }
}

fn reason(event: &Value) -> String {
    let inside = event.get("response").unwrap_or(event);
    let error = inside.get("error").unwrap_or(inside);
    text(error, "message")
        .unwrap_or("the provider reported an error")
        .to_owned()
}
