//! `session`, `publish`, `tail`, `cancel`: what a script sends and what it gets.

use std::process::Stdio;
use std::time::Duration;

use everwire_core::grant::Capability;
use everwire_testkit::process::{command, json_lines};
use everwire_testkit::{run, run_with_input, tokens};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

use crate::{Dev, assert_refused, fields, object, stdout, words};

/// The events of a session, as `tail --json` prints them.
async fn events(dev: &Dev, session: &str) -> Vec<Value> {
    json_lines(&dev.done(&["tail", session, "--json"]).await)
}

fn column(events: &[Value], name: &str) -> Vec<Value> {
    events.iter().map(|event| event[name].clone()).collect()
}

#[tokio::test]
async fn sessions_are_made_listed_shown_and_removed() {
    let dev = Dev::start().await;
    let made = object(&dev.done(&["session", "create", "chat-1", "--json"]).await);
    assert_eq!(
        fields(&made),
        ["created", "session", "session_epoch", "tail"]
    );
    assert_eq!((&made["created"], &made["tail"]), (&json!(true), &json!(0)));
    let again = object(&dev.done(&["session", "create", "chat-1", "--json"]).await);
    assert_eq!(again["created"], false);
    assert_eq!(again["session_epoch"], made["session_epoch"]);
    dev.done(&["session", "create", "chat-2"]).await;
    dev.done(&["session", "create", "other"]).await;
    dev.piped(&["publish", "chat-2", "--run", "r1", "--keep-open"], "hi\n")
        .await;

    let mut listed = json_lines(&dev.done(&["session", "list", "chat-", "--json"]).await);
    listed.sort_by_key(|line| line["session"].to_string());
    assert_eq!(column(&listed, "session"), ["chat-1", "chat-2"]);
    assert_eq!(column(&listed, "tail"), [0, 4]);
    assert!(
        listed
            .iter()
            .all(|line| fields(line) == ["last", "session", "shard", "tail"])
    );
    let all = stdout(&dev.done(&["session", "list"]).await);
    assert_eq!(all.lines().count(), 3, "{all}");

    let shown = object(&dev.done(&["session", "show", "chat-2", "--json"]).await);
    for (field, value) in [
        ("session", json!("chat-2")),
        ("leader", json!(dev.server.grpc)),
        ("tail", json!(4)),
        ("trimmed", json!(0)),
        ("attachments", json!(0)),
        ("open_runs", json!(["r1"])),
    ] {
        assert_eq!(shown[field], value, "{field}");
    }
    assert!(
        shown["bytes"].as_u64() > Some(0) && shown["shard"].is_u64(),
        "{shown}"
    );

    let deleted = object(&dev.done(&["session", "delete", "chat-1", "--json"]).await);
    assert_eq!(deleted, json!({"session": "chat-1", "deleted": true}));
    assert_refused(
        &dev.run(&["session", "delete", "chat-1"]).await,
        6,
        "UNKNOWN_SESSION",
    );
    let remade = object(&dev.done(&["session", "create", "chat-1", "--json"]).await);
    assert_ne!(remade["session_epoch"], made["session_epoch"]);
}

#[tokio::test]
async fn plain_lines_are_text_deltas_of_a_run_of_their_own() {
    let dev = Dev::start().await;
    let acked = json_lines(
        &dev.piped(&["publish", "s", "--json"], "Hello\n\n{brace\n")
            .await,
    );
    assert!(
        acked
            .iter()
            .all(|line| fields(line) == ["duplicate", "offset", "seq"])
    );
    // Two events open the message and its part; the run stands before them.
    assert_eq!(column(&acked, "seq"), [3, 4, 5]);
    assert_eq!(column(&acked, "offset"), [4, 5, 6]);
    assert_eq!(column(&acked, "duplicate"), [false; 3]);
    let events = events(&dev, "s").await;
    let kinds = [
        "run.started",
        "message.start",
        "part.start",
        "part.delta",
        "part.delta",
        "part.delta",
        "message.end",
        "run.completed",
    ];
    assert_eq!(column(&events, "kind"), kinds);
    let deltas: Vec<_> = events
        .iter()
        .filter(|event| event["kind"] == "part.delta")
        .collect();
    let text: String = deltas
        .iter()
        .filter_map(|event| event["body"]["text"].as_str())
        .collect();
    assert_eq!(text, "Hello{brace", "a line's text, without its end");
    assert_eq!(deltas[2]["body"]["position"], 5);
    assert_eq!(events[6]["body"]["status"], "complete");
    let run = &events[0]["run"];
    assert!(events.iter().all(|event| event["run"] == *run), "one run");
    dev.piped(&["publish", "s"], "again\n").await;
    let later = self::events(&dev, "s").await;
    assert_ne!(later[8]["run"], *run, "a run of its own each time");
}

#[tokio::test]
async fn lines_before_a_bad_one_are_committed_and_told() {
    let dev = Dev::start().await;
    for (run, bad) in [("r1", &b"\xff\xfe"[..]), ("r2", br#"{"kind":"secret"}"#)] {
        let input = [b"one\ntwo\n", bad, b"\nthree\n"].concat();
        let publish = ["publish", "s", "--run", run, "--json"];
        let output = run_with_input(&dev.server.grpc, &dev.token, &publish, &input).await;
        assert!(!output.status.success());
        let acked = json_lines(&output);
        assert_eq!(column(&acked, "seq"), [3, 4], "{output:?}");
    }
    let shown = object(&dev.done(&["session", "show", "s", "--json"]).await);
    assert_eq!(shown["open_runs"], json!(["r1", "r2"]));
}

#[tokio::test]
async fn objects_are_events_and_inputs_go_outside_the_run() {
    let dev = Dev::start().await;
    let lines = [
        r#"{"kind":"message.start","body":{"message":"m1","role":"assistant"}}"#,
        r#"{"kind":"input","key":"k1","body":{"input":"i1","text":"a question"}}"#,
        r#"{"kind":"part.start","body":{"message":"m1","part":"p","part_kind":"tool_call","name":"search","data":{"q":1}}}"#,
        r#"{"kind":"app","body":{"name":"theme","data":{"dark":true}}}"#,
        r#"{"kind":"message.end","body":{"message":"m1"}}"#,
        r#"{"kind":"app","body":{"name":"theme"}}"#,
    ];
    let publish = ["publish", "s", "--run", "r1", "--json"];
    let acked = json_lines(&dev.piped(&publish, &lines.join("\n")).await);
    let (inside, outside): (Vec<_>, Vec<_>) = acked.iter().partition(|line| line["seq"].is_u64());
    let seqs: Vec<_> = inside.iter().map(|line| line["seq"].clone()).collect();
    assert_eq!(seqs, [1, 2, 3]);
    assert_eq!(outside.len(), 3);
    assert!(
        outside
            .iter()
            .all(|line| fields(line) == ["duplicate", "offset"])
    );
    let events = events(&dev, "s").await;
    let find = |kind: &str| {
        events
            .iter()
            .find(|event| event["kind"] == kind)
            .expect(kind)
    };
    assert_eq!(
        find("input")["body"],
        json!({"input": "i1", "text": "a question"})
    );
    assert_eq!(find("input").get("run"), None);
    assert_eq!(
        find("app")["body"],
        json!({"name": "theme", "data": {"dark": true}})
    );
    assert_eq!(find("part.start")["body"]["data"], json!({"q": 1}));
    // The same key again is the same place; another body under it is refused.
    let again = json_lines(&dev.piped(&["publish", "s", "--json"], lines[1]).await);
    assert_eq!(
        again,
        [json!({"offset": find("input")["offset"], "duplicate": true})]
    );
    let other = lines[1].replace("a question", "another");
    let output = run_with_input(&dev.server.grpc, &dev.token, &["publish", "s"], &other).await;
    assert_refused(&output, 3, "KEY_REUSED");
    // What looks like an event and is none.
    let output = run_with_input(
        &dev.server.grpc,
        &dev.token,
        &["publish", "s"],
        r#"{"kind":"x"}"#,
    )
    .await;
    assert_refused(&output, 2, "MALFORMED");
}

#[tokio::test]
async fn a_run_goes_on_where_it_stood() {
    let dev = Dev::start().await;
    let open = ["publish", "s", "--run", "r1", "--keep-open", "--json"];
    let acked = json_lines(&dev.piped(&open, "one\ntwo\n").await);
    assert_eq!(column(&acked, "seq"), [3, 4]);
    let resume = words("publish s --run r1 --run-epoch 1 --from-seq 3 --json");
    let resumed = json_lines(&dev.piped(&resume, "one\ntwo\nthree\n").await);
    assert_eq!(column(&resumed, "seq"), [3, 4, 5]);
    assert_eq!(column(&resumed, "duplicate"), [true, true, false]);
    assert_eq!(column(&resumed, "offset"), [4, 5, 6]);
    let events = events(&dev, "s").await;
    let tail: Vec<_> = column(&events, "kind").split_off(5);
    assert_eq!(tail, ["part.delta", "message.end", "run.completed"]);
    assert_eq!(events[6]["body"]["status"], "complete");
    // All of it again, to the end: nothing is written twice, and the place is the old one.
    let again = json_lines(&dev.piped(&resume, "one\ntwo\nthree\n").await);
    assert_eq!(column(&again, "duplicate"), [true; 3]);
    assert_eq!(self::events(&dev, "s").await.len(), events.len());
}

#[tokio::test]
async fn a_run_of_events_goes_on_where_it_stood() {
    let dev = Dev::start().await;
    let line = |text: &str| format!("{}\n", json!({"kind": "app", "body": {"name": text}}));
    let start = json!({"kind": "message.start", "body": {"message": "mine", "role": "assistant"}});
    let part = json!({"kind": "part.start", "body": {"message": "mine", "part": "p", "part_kind": "text"}});
    let delta = |text: &str| json!({"kind": "part.delta", "body": {"message": "mine", "part": "p", "text": text}});
    let open = ["publish", "s", "--run", "r1", "--keep-open", "--json"];
    dev.piped(&open, &format!("{start}\n{part}\n{}\n", delta("a")))
        .await;
    let resume = words("publish s --run r1 --run-epoch 1 --from-seq 4 --json");
    let end = json!({"kind": "message.end", "body": {"message": "mine"}});
    let input = format!("{}\n{}{end}\n", delta("b"), line("note"));
    let resumed = json_lines(&dev.piped(&resume, &input).await);
    assert_eq!(resumed.len(), 3);
    let events = events(&dev, "s").await;
    let last = events.last().expect("events");
    assert_eq!(last["kind"], "run.completed", "{last}");
}

#[tokio::test]
async fn a_run_started_again_is_claimed_and_a_foreign_one_is_not() {
    let dev = Dev::start().await;
    let open = ["publish", "s", "--run", "r1", "--keep-open"];
    dev.piped(&open, "one\n").await;
    dev.piped(&open, "two\n").await;
    let events = events(&dev, "s").await;
    let claimed = events.iter().find(|event| event["kind"] == "run.claimed");
    assert_eq!(claimed.expect("a claim")["run_epoch"], 2);
    let bot = tokens::agent(dev.data(), "bot");
    let foreign = run_with_input(&dev.server.grpc, &bot, &open, "three\n").await;
    assert_refused(&foreign, 3, "ALREADY_CLAIMED");
    // The first writer is told that another one took over.
    let resume = words("publish s --run r1 --run-epoch 1 --from-seq 4");
    let stale = run_with_input(&dev.server.grpc, &dev.token, &resume, "late\n").await;
    assert_refused(&stale, 3, "STALE_EPOCH");
}

#[tokio::test]
async fn follow_stop_ends_at_the_stop_and_not_at_the_next_line() {
    let dev = Dev::start().await;
    let mut agent = command(&["publish", "s", "--run", "r1", "--follow-stop", "--json"])
        .env("EVERWIRE_ADDR", &dev.server.grpc)
        .env("EVERWIRE_TOKEN", &dev.token)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = agent.stdin.take().expect("piped");
    stdin.write_all(b"one\n").await.expect("it reads");
    let mut acks = BufReader::new(agent.stdout.take().expect("piped")).lines();
    let ack = acks.next_line().await.expect("readable").expect("an ack");
    assert!(ack.contains("\"seq\":3"), "{ack}");
    let cancel = ["cancel", "s", "--run", "r1", "--json"];
    let stopped = object(&dev.done(&cancel).await);
    assert_eq!(stopped, json!({"outcome": "applied", "offset": 5}));
    // Its stdin stays open: the stop alone ends it.
    let ended = tokio::time::timeout(Duration::from_secs(5), agent.wait_with_output()).await;
    let output = ended.expect("it ends at once").expect("it ran");
    assert_refused(&output, 3, "RUN_FENCED");
    drop(stdin);
    let mut kinds = column(&events(&dev, "s").await, "kind").split_off(4);
    // Whether its last word, that it has seen the stop, came out before it ended.
    kinds.truncate(kinds.len() - usize::from(kinds.last().is_some_and(is_observed)));
    assert_eq!(kinds, ["signal.cancel", "run.cancelled", "message.end"]);
}

#[tokio::test]
async fn cancels_have_four_outcomes_and_their_exit_codes() {
    let dev = Dev::start().await;
    dev.piped(&["publish", "s", "--run", "live", "--keep-open"], "x\n")
        .await;
    dev.piped(&["publish", "s", "--run", "over"], "x\n").await;
    let cancel = |run: &'static str| ["cancel", "s", "--json", "--run", run];
    let over = object(&dev.done(&cancel("over")).await);
    let ended = over["offset"].clone();
    let expected = json!({"outcome": "already_terminal", "state": "completed", "offset": ended});
    assert_eq!(over, expected);
    let unknown = dev.run(&cancel("nobody")).await;
    assert_eq!(unknown.status.code(), Some(6));
    assert_eq!(object(&unknown), json!({"outcome": "unknown_run"}));
    let may_not = tokens::without(dev.data(), "ann", &[Capability::SignalCancel]);
    let denied = run(&dev.server.grpc, &may_not, &cancel("live")).await;
    assert_eq!(denied.status.code(), Some(4));
    assert_eq!(object(&denied), json!({"outcome": "denied"}));
    let keyed = ["cancel", "s", "--json", "--run", "live", "--key", "k1"];
    let applied = object(&dev.done(&keyed).await);
    assert_eq!(applied["outcome"], "applied");
    assert_eq!(
        object(&dev.done(&keyed).await),
        applied,
        "the key keeps the answer"
    );
    let later = object(&dev.done(&cancel("live")).await);
    assert_eq!(
        (&later["outcome"], &later["state"]),
        (&json!("already_terminal"), &json!("cancelled"))
    );
    assert_refused(
        &dev.run(&["cancel", "nowhere", "--run", "r"]).await,
        6,
        "UNKNOWN_SESSION",
    );
}

#[tokio::test]
async fn tail_starts_after_the_last_event_seen_and_follows() {
    let dev = Dev::start().await;
    let app = |name: &str| format!("{}\n", json!({"kind": "app", "body": {"name": name}}));
    dev.piped(&["publish", "s"], &(app("a") + &app("b") + &app("c")))
        .await;
    let made = object(&dev.done(&["session", "show", "s", "--json"]).await);
    let epoch = made["session_epoch"].as_str().expect("text").to_owned();
    let names = |events: &[Value]| -> Vec<String> {
        let names = events.iter().map(|event| event["body"]["name"].as_str());
        names
            .map(|name| name.unwrap_or_default().to_owned())
            .collect()
    };
    let cursor = format!("{epoch}.2");
    for (from, expected) in [("0", 3), ("1", 2), ("3", 0), (cursor.as_str(), 1)] {
        let tail = json_lines(&dev.done(&["tail", "s", "--json", "--from", from]).await);
        assert_eq!(tail.len(), expected, "{from}");
    }
    let text = stdout(&dev.done(&["tail", "s"]).await);
    assert_eq!(text.lines().count(), 3, "{text}");
    for from in ["4", "9-9.1"] {
        assert_refused(&dev.run(&["tail", "s", "--from", from]).await, 3, "GONE");
    }
    assert_refused(&dev.run(&["tail", "s", "--from", "x"]).await, 2, "USAGE");

    let mut follower = command(&["tail", "s", "--from", "2", "--follow", "--json"])
        .env("EVERWIRE_ADDR", &dev.server.grpc)
        .env("EVERWIRE_TOKEN", &dev.token)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut lines = BufReader::new(follower.stdout.take().expect("piped")).lines();
    dev.piped(&["publish", "s"], &app("d")).await;
    let mut seen = Vec::new();
    for _ in 0..2 {
        let line = tokio::time::timeout(Duration::from_secs(20), lines.next_line()).await;
        let line = line.expect("in time").expect("readable").expect("a line");
        seen.push(serde_json::from_str(&line).expect("JSON"));
    }
    assert_eq!(names(&seen), ["c", "d"]);
    assert!(
        follower.try_wait().expect("it runs").is_none(),
        "it follows on"
    );
    follower.kill().await.expect("it ran");
}

#[tokio::test]
async fn agents_replay_recordings_and_tell_how_they_ended() {
    let dev = Dev::start().await;
    let sample = everwire_testkit::root().join("demo/sample.openai-chat.jsonl");
    let from = sample.to_str().expect("UTF-8");
    let replay = [
        "agent", "replay", "s", "--from", from, "--rate", "5000", "--run", "r1", "--json",
    ];
    let told = object(&dev.done(&replay).await);
    let tail = object(&dev.done(&["session", "show", "s", "--json"]).await)["tail"].clone();
    assert_eq!(
        told,
        json!({"run": "r1", "ended": "completed", "offset": tail})
    );
    let events = events(&dev, "s").await;
    let chunks = std::fs::read_to_string(&sample).expect("our own sample");
    let raw = events
        .iter()
        .filter(|event| event["body"]["raw"].is_object());
    assert_eq!(
        raw.count(),
        chunks.lines().count(),
        "each chunk travels as raw"
    );

    let slow = [
        "agent", "replay", "s", "--from", from, "--rate", "20", "--run", "r2", "--json",
    ];
    let agent = run(&dev.server.grpc, &dev.token, &slow);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(700)).await;
        object(&dev.done(&["cancel", "s", "--run", "r2", "--json"]).await)
    };
    let (agent, stop) = tokio::join!(agent, stop);
    assert_eq!(stop["outcome"], "applied");
    // Being stopped is no failure of the agent.
    assert_eq!(agent.status.code(), Some(0));
    let told = object(&agent);
    assert_eq!(
        told,
        json!({"run": "r2", "ended": "stopped", "offset": stop["offset"]})
    );
}

#[tokio::test]
async fn a_response_on_stdin_becomes_a_run() {
    let dev = Dev::start().await;
    let chunk = |delta: Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        let chunk = json!({"object": "chat.completion.chunk", "choices": [choice]});
        format!("data: {chunk}\n\n")
    };
    let response = [
        chunk(json!({"role": "assistant", "content": "Hel"}), Value::Null),
        chunk(json!({"content": "lo"}), Value::Null),
        chunk(json!({}), json!("stop")),
        "data: [DONE]\n\n".to_owned(),
    ];
    let pipe = ["agent", "pipe", "s", "--run", "r1", "--json"];
    let told = object(&dev.piped(&pipe, &response.concat()).await);
    assert_eq!(
        (&told["run"], &told["ended"]),
        (&json!("r1"), &json!("completed"))
    );
    let events = events(&dev, "s").await;
    let texts = events.iter().filter(|event| event["kind"] == "part.delta");
    let text: String = texts
        .filter_map(|event| event["body"]["text"].as_str())
        .collect();
    assert_eq!(text, "Hello");
    assert_eq!(events.last().expect("events")["kind"], "run.completed");
}

fn is_observed(kind: &Value) -> bool {
    kind == "signal.observed"
}
