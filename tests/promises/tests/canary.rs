//! No token and no payload ever stands in a log, at no level, on no path, refusals included. A
//! distinctive word travels as text, data and raw bytes; then all logs are searched for it.

#![expect(clippy::indexing_slicing, reason = "what is not there fails the test")]

use std::path::Path;
use std::process::Stdio;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use everwire_proto::v1;
use everwire_testkit::process::{command, dev_token, folder};
use everwire_testkit::{Http, Lines, Server, grpc, tokens};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio_tungstenite::tungstenite::Message;
use v1::draft::Body;
use v1::publish_client::PublishClient;
use v1::runs_client::RunsClient;

/// Found nowhere else, in no case and no encoding that is checked below.
const CANARY: &str = "Zebrafinch-7f3a9c21";

/// Tokens that went into the server, good and bad, and what the commands said on stderr.
struct Trail {
    tokens: Vec<String>,
    said: String,
}

fn app(data: &str) -> Value {
    json!({"kind": "app", "body": {"name": "note", "data": {"text": data}}})
}

fn input(id: &str) -> Value {
    json!({"kind": "input", "body": {"input": id, "text": format!("please {CANARY}")}})
}

/// Everything over a socket that takes or refuses a payload or a token.
async fn over_websocket(http: &str, token: &str, bad: &[String]) {
    let mut socket = Lines::open(http, token).await;
    let attach = json!({"t": "attach", "id": "a", "session": "s", "create": true});
    assert_eq!(
        socket.ask("a", &attach.to_string()).await["answer"],
        "resumed"
    );
    let publish = |id: &str, key: &str, event: Value| {
        json!({"t": "publish", "id": id, "session": "s", "key": key, "event": event}).to_string()
    };
    let raw = BASE64_STANDARD.encode(format!("{{\"delta\":\"{CANARY}\"}}"));
    let with_raw = json!({
        "kind": "app",
        "body": {"name": "n", "data_base64": raw, "raw": {"format": "test", "bytes": raw}},
    });
    for (id, key, event, answer) in [
        ("1", "k1", app(CANARY), "ack"),
        ("2", "k2", input("i1"), "ack"),
        ("3", "k3", with_raw, "ack"),
        ("4", "k2", input("i2"), "error"),
        (
            "5",
            "k5",
            json!({"kind": CANARY, "body": {"text": CANARY}}),
            "error",
        ),
        (
            "6",
            "k6",
            json!({"kind": "input", "body": {"input": CANARY.repeat(20), "text": "x"}}),
            "error",
        ),
        (
            "7",
            "k7",
            json!({"kind": "input", "body": {"input": "i7", "text": CANARY.repeat(4000)}}),
            "error",
        ),
    ] {
        let said = socket.ask(id, &publish(id, key, event)).await;
        assert_eq!(said["t"], answer, "{id}: {said}");
    }
    for line in [
        format!("{{\"t\":\"publish\",\"text\":\"{CANARY}"),
        format!("{{\"t\":\"{CANARY}\"}}"),
        CANARY.to_owned(),
    ] {
        socket.send(&line).await;
        assert_eq!(socket.line_of("error").await["code"], "MALFORMED");
    }
    for (number, token) in bad.iter().enumerate() {
        let id = format!("r{number}");
        let refresh = json!({"t": "refresh", "id": id, "token": token});
        assert_eq!(socket.ask(&id, &refresh.to_string()).await["t"], "error");
        let mut stranger = Lines::connect(http).await;
        stranger
            .send(&json!({"t": "auth", "token": token}).to_string())
            .await;
        assert_ne!(stranger.bye().await.0, "");
    }
    socket.message(Message::text(CANARY.repeat(20_000))).await;
    assert_eq!(socket.bye().await.0, "TOO_LARGE");
    let mut other = Lines::open(http, token).await;
    other.message(Message::binary(CANARY)).await;
    assert_eq!(other.bye().await.0, "MALFORMED");
}

/// The same over HTTP, where proxies and frameworks like to log.
async fn over_http(addr: &str, token: &str, bad: &[String]) {
    let http = Http::new(addr).with_token(token);
    let path = "/v1/sessions/s/events";
    assert_eq!(
        http.post(path, &[], &app(CANARY).to_string()).await.status,
        200
    );
    for body in [
        CANARY.to_owned(),
        input("i9").to_string(),
        json!({"kind": "app", "body": {"name": CANARY.repeat(40)}}).to_string(),
        CANARY.repeat(20_000),
    ] {
        let refused = http.post(path, &[], &body).await;
        assert!((400..500).contains(&refused.status), "{}", refused.status);
    }
    for token in bad {
        let stranger = Http::new(addr).with_token(token);
        assert_eq!(
            stranger
                .post(path, &[], &app(CANARY).to_string())
                .await
                .status,
            401
        );
        assert_eq!(stranger.get(path, &[]).await.status, 401);
        // A token in a URL is not taken; it must not be logged for it either.
        let url = format!("{path}?token={token}&ticket={token}");
        assert_eq!(Http::new(addr).get(&url, &[]).await.status, 401);
    }
    let mut stream = http.stream(path, &[]).await.expect("a stream");
    assert!(
        stream
            .next()
            .await
            .expect("a message")
            .data
            .contains(CANARY)
    );
}

fn delta(text: &str) -> v1::Draft {
    let body = Body::PartDelta(v1::PartDelta {
        message: "m".to_owned(),
        part: "p".to_owned(),
        position: 0,
        text: text.to_owned(),
    });
    let raw = v1::Raw {
        format: "test".to_owned(),
        bytes: CANARY.as_bytes().to_vec().into(),
    };
    v1::Draft {
        body: Some(body),
        raw: Some(raw),
        ..v1::Draft::default()
    }
}

fn opening() -> Vec<v1::Draft> {
    let start = Body::MessageStart(v1::MessageStart {
        message: "m".to_owned(),
        role: v1::Role::Assistant.into(),
    });
    let data = v1::Data {
        data: Some(v1::data::Data::Json(format!("\"{CANARY}\""))),
    };
    let part = Body::PartStart(v1::PartStart {
        message: "m".to_owned(),
        part: "p".to_owned(),
        kind: v1::PartKind::Text.into(),
        name: None,
        data: Some(data),
    });
    let draft = |body| v1::Draft {
        body: Some(body),
        ..v1::Draft::default()
    };
    vec![draft(start), draft(part)]
}

/// Output of a run, taken and refused in every way that names a batch.
async fn over_grpc(addr: &str, token: &str, bad: &[String]) {
    let channel = grpc::channel(addr).await;
    let start = v1::StartRequest {
        session: "s".to_owned(),
        run: "r1".to_owned(),
        ..v1::StartRequest::default()
    };
    let mut runs = RunsClient::new(channel.clone());
    runs.start(grpc::with(token, start)).await.expect("granted");
    let append = |run_epoch, first_seq, drafts| v1::AppendRequest {
        session: "s".to_owned(),
        run: "r1".to_owned(),
        run_epoch,
        batch: Some(v1::PublishBatch { first_seq, drafts }),
        session_epoch: String::new(),
    };
    let mut publish = PublishClient::new(channel);
    let mut drafts = opening();
    drafts.push(delta(CANARY));
    let taken = publish
        .append(grpc::with(token, append(1, 1, drafts)))
        .await;
    assert_eq!(taken.expect("committed").into_inner().through_seq, 3);
    let fail = v1::Draft {
        body: Some(Body::RunFailed(v1::RunFailed {
            reason: CANARY.to_owned(),
        })),
        ..v1::Draft::default()
    };
    for (request, code) in [
        (append(1, 9, vec![delta(CANARY)]), "SEQ_GAP"),
        (append(7, 1, vec![delta(CANARY)]), "STALE_EPOCH"),
        (
            append(1, 4, vec![delta(&CANARY.repeat(14_000))]),
            "TOO_LARGE",
        ),
        (append(1, 4, vec![fail.clone(), delta(CANARY)]), "MALFORMED"),
        (append(1, 4, opening()), "WRONG_STATE"),
        (append(1, 4, vec![delta(CANARY)]), "WRONG_STATE"),
    ] {
        assert_eq!(
            grpc::code(publish.append(grpc::with(token, request)).await),
            code
        );
    }
    for token in bad.iter().filter(|token| token.is_ascii()) {
        let request = grpc::with(token, append(1, 4, vec![delta(CANARY)]));
        let code = grpc::code(publish.append(request).await);
        assert!(
            ["UNAUTHENTICATED", "TOKEN_EXPIRED"].contains(&code),
            "{code}"
        );
    }
}

/// Commands: what they print on stderr is somebody's log too.
async fn over_commands(server: &Server, token: &str, bad: &[String]) -> String {
    let mut said = String::new();
    let recording = format!("{{\"choices\":[{{\"delta\":{{\"content\":\"{CANARY}\"}}}}]}}\n");
    let folder = folder();
    let file = folder.path().join("recording.jsonl");
    std::fs::write(&file, recording).expect("a writable folder");
    let file = file.to_str().expect("UTF-8");
    let replay = [
        "agent",
        "replay",
        "s",
        "--format",
        "openai-chat",
        "--from",
        file,
    ];
    let unknown = format!("{{\"kind\":\"nothing\",\"body\":{{\"text\":\"{CANARY}\"}}}}\n");
    let text = format!("{CANARY}\n");
    for (args, input, token, exit) in [
        (&["publish", "s"][..], text.as_str(), token, 0),
        (&["publish", "s"], &unknown, token, 2),
        (&["publish", "s"], &text, &bad[0], 4),
        (&["publish", "s", "--run", "r1"], &text, &bad[1], 4),
        // The recording has no end, so its run fails, and its agent with it.
        (&replay, "", token, 1),
        (&replay, "", &bad[2], 4),
    ] {
        let mut child = command(args)
            .env("EVERWIRE_ADDR", &server.grpc)
            .env("EVERWIRE_TOKEN", token)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let mut stdin = child.stdin.take().expect("piped");
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await.expect("it ran");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(exit), "{args:?}: {text}");
        said.push_str(&text);
    }
    said
}

/// Runs everything against a server whose log is at the lowest level.
async fn everything(data: &Path, format: &str) -> Trail {
    let zero = "127.0.0.1:0";
    let path = data.to_str().expect("UTF-8");
    let args = [
        "dev", "--data", path, "--grpc", zero, "--http", zero, "--admin", zero,
    ];
    let env = [
        ("EVERWIRE_LOG_LEVEL", "trace"),
        ("EVERWIRE_LOG_FORMAT", format),
    ];
    let server = Server::start_in(data, &args, &env).await;
    let token = dev_token(data);
    let bad = vec![
        tokens::expired(data, "ann"),
        tokens::forged("ann"),
        tokens::resigned(&token, r#"{"alg":"none","typ":"JWT"}"#, b""),
        format!("{CANARY}.{CANARY}.{CANARY}"),
    ];
    over_websocket(&server.http, &token, &bad).await;
    over_http(&server.http, &token, &bad).await;
    over_grpc(&server.grpc, &token, &bad).await;
    let said = over_commands(&server, &token, &bad).await;
    // Recovery reads the log again; a crash and its start are paths as well.
    server.kill().await;
    let server = Server::start_in(data, &args, &env).await;
    let http = Http::new(&server.http).with_token(&token);
    let mut stream = http
        .stream("/v1/sessions/s/events", &[])
        .await
        .expect("a stream");
    assert!(
        stream
            .next()
            .await
            .expect("a message")
            .data
            .contains(CANARY)
    );
    drop(stream);
    assert_eq!(server.stop().await, Some(0));
    let mut tokens = bad;
    tokens.push(token);
    Trail { tokens, said }
}

/// What must not be found: the word as it is and as bytes are printed, tokens and their halves.
fn forbidden(tokens: &[String]) -> Vec<String> {
    let bytes: Vec<_> = CANARY.bytes().map(|byte| byte.to_string()).collect();
    let hex: String = CANARY.bytes().map(|byte| format!("{byte:02x}")).collect();
    let mut words = vec![
        CANARY.to_owned(),
        CANARY.to_lowercase(),
        bytes.join(", "),
        hex,
    ];
    // Base64 of a word depends on where in its block it begins.
    for lead in ["", "x", "xx"] {
        let encoded = BASE64_STANDARD.encode(format!("{lead}{CANARY}"));
        let middle = encoded.get(4..encoded.len() - 4);
        words.push(middle.expect("long enough").to_owned());
    }
    for token in tokens {
        let parts = token.split('.').filter(|part| part.len() > 60);
        words.extend(parts.map(str::to_owned));
        words.push(token.clone());
    }
    words
}

fn assert_clean(what: &str, log: &str, tokens: &[String]) {
    for word in forbidden(tokens) {
        if let Some(line) = log.lines().find(|line| line.contains(&word)) {
            panic!("{what}: {word:?} stands in {line:?}");
        }
    }
}

#[tokio::test]
async fn no_token_and_no_payload_is_logged_as_json() {
    let data = folder();
    let trail = everything(data.path(), "json").await;
    let log = std::fs::read_to_string(data.path().join("server.log")).expect("a log");
    assert_clean("the server", &log, &trail.tokens);
    assert_clean("the commands", &trail.said, &trail.tokens);

    // The log was there to be searched: it says who did what, down to the lowest level.
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line is JSON"))
        .collect();
    let has = |level: &str| lines.iter().any(|line| line["level"] == level);
    assert!(
        has("INFO") && has("DEBUG") && has("TRACE"),
        "{} lines",
        lines.len()
    );
    let fields = ["session", "run", "offset", "shard"];
    let is_whole = |line: &&Value| fields.iter().all(|field| !line[*field].is_null());
    let whole = lines.iter().filter(is_whole).count();
    assert!(
        whole >= 3,
        "{whole} lines name session, run, offset and shard"
    );
    // Below INFO nobody but us speaks: what others say there is not ours to vouch for.
    for line in &lines {
        let target = line["target"].as_str().unwrap_or_default();
        let is_low = line["level"] == "DEBUG" || line["level"] == "TRACE";
        assert!(!is_low || target.starts_with("everwire"), "{line}");
    }
}

#[tokio::test]
async fn no_token_and_no_payload_is_logged_for_people() {
    let data = folder();
    let trail = everything(data.path(), "human").await;
    let log = std::fs::read_to_string(data.path().join("server.log")).expect("a log");
    assert!(
        log.contains("TRACE") && log.contains("session=s"),
        "{} bytes",
        log.len()
    );
    assert_clean("the server", &log, &trail.tokens);
    assert_clean("the commands", &trail.said, &trail.tokens);
}

#[test]
fn the_search_finds_what_it_looks_for() {
    let token = format!("head.{}.tail", "claims".repeat(20));
    let printed = [
        format!("text={CANARY}"),
        format!(
            "raw={}",
            BASE64_STANDARD.encode(format!("{{\"a\":\"{CANARY}\"}}"))
        ),
        format!("{:?}", format!("a{CANARY}").as_bytes()),
        format!("{:?}", bytes::Bytes::from(CANARY)),
        format!("token={token}"),
        format!("claims={}", "claims".repeat(20)),
    ];
    for line in printed {
        let found = forbidden(std::slice::from_ref(&token))
            .iter()
            .any(|word| line.contains(word));
        assert!(found, "{line}");
    }
}
