//! The conversation of `docs/protocol/edge.md`, line by line, with a live edge: what the page
//! shows is what a client sends and gets.

use everwire_testkit::{Lines, Server, process, root, tokens};
use serde_json::{Value, json};

/// One thing that the client says and all that the edge answers to it.
struct Turn {
    said: String,
    answers: Vec<Value>,
}

/// The turns of the page, with its placeholders but `…` filled in.
fn turns(page: &str, token: &str, session: &str) -> Vec<Turn> {
    let (_, block) = page
        .split_once("```conversation\n")
        .expect("a conversation");
    let (block, _) = block.split_once("```").expect("it ends");
    let mut turns: Vec<Turn> = Vec::new();
    for line in block.lines() {
        let line = line.replace("$TOKEN", token).replace("$SESSION", session);
        if let Some(said) = line.strip_prefix("> ") {
            turns.push(Turn {
                said: said.to_owned(),
                answers: Vec::new(),
            });
        } else {
            let answer = line.strip_prefix("< ").expect("said by either side");
            let answer = serde_json::from_str(answer).expect("an answer is JSON");
            let turn = turns.last_mut().expect("the client speaks first");
            turn.answers.push(answer);
        }
    }
    turns
}

/// Whether a frame is what the page says, field by field; `…` is any text.
fn fits(page: &Value, frame: &Value) -> bool {
    match (page, frame) {
        (Value::String(any), Value::String(_)) if any == "…" => true,
        (Value::Object(page), Value::Object(frame)) => {
            let same =
                |(name, value): (&String, _)| frame.get(name).is_some_and(|it| fits(value, it));
            page.len() == frame.len() && page.iter().all(same)
        },
        (Value::Array(page), Value::Array(frame)) => {
            let mut pairs = page.iter().zip(frame);
            page.len() == frame.len() && pairs.all(|(page, frame)| fits(page, frame))
        },
        _ => page == frame,
    }
}

/// An `events` frame without events: it may come at any time.
fn is_sign_of_life(frame: &Value) -> bool {
    frame["t"] == "events" && frame["events"].as_array().is_some_and(Vec::is_empty)
}

#[tokio::test]
async fn the_conversation_of_the_page_is_what_an_edge_says() {
    let folder = process::folder();
    let server = Server::dev(folder.path()).await;
    let page = std::fs::read_to_string(root().join("docs/protocol/edge.md")).expect("the page");
    let token = tokens::user(folder.path(), "ann");
    let turns = turns(&page, &token, "chat-1");
    let frames: usize = turns.iter().map(|turn| turn.answers.len()).sum();
    assert!(turns.len() >= 7 && frames >= 8, "{frames} frames");

    let mut socket = Lines::connect(&server.http).await;
    for turn in turns {
        socket.send(&turn.said).await;
        // An ack and the frame with its event may come in either order.
        let mut open = turn.answers;
        while !open.is_empty() {
            let frame = socket.line().await;
            if is_sign_of_life(&frame) {
                continue;
            }
            let Some(place) = open.iter().position(|page| fits(page, &frame)) else {
                panic!("after {}\n got {frame}\n the page: {open:?}", turn.said);
            };
            open.remove(place);
        }
    }
    drop(socket);
    assert_eq!(server.stop().await, Some(0));
}

#[test]
fn another_frame_does_not_fit() {
    let page: Value = json!({"t": "ack", "epoch": "…", "events": [{"offset": 1}]});
    let fitting = json!({"t": "ack", "epoch": "1-1", "events": [{"offset": 1}]});
    assert!(fits(&page, &fitting));
    for other in [
        json!({"t": "ack", "epoch": "1-1", "events": [{"offset": 2}]}),
        json!({"t": "ack", "epoch": "1-1", "events": []}),
        json!({"t": "ack", "epoch": 1, "events": [{"offset": 1}]}),
        json!({"t": "ack", "events": [{"offset": 1}]}),
        json!({"t": "ack", "epoch": "1-1", "events": [{"offset": 1}], "more": null}),
    ] {
        assert!(!fits(&page, &other), "{other}");
    }
}
