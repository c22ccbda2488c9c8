//! Real models' answers, through and out on every surface: chunks byte for byte, text as the
//! provider wrote it; and the live pipe, whose request upstream ends with its run.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use everwire_core::command::SignalOutcome;
use everwire_core::{Body, Key, Kind as EventKind, Offset, RunId};
use everwire_promises::log::{assert_is, text_of};
use everwire_promises::process::{Process, recording, said};
use everwire_promises::upstream::{Plan, Upstream};
use everwire_promises::{Follower, Kind, Log, Scene};
use everwire_testkit::process::{folder, json_lines};
use everwire_testkit::{Recording, Server, Sse};
use serde_json::Value;

/// Longest wait for a request upstream to end after its run was stopped.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread")]
async fn recorded_streams_come_out_as_they_went_in() {
    let data = folder();
    let server = Server::dev(data.path()).await;
    let recordings = Recording::all();
    assert!(!recordings.is_empty());
    for (number, recording) in recordings.iter().enumerate() {
        let name = format!("stream-{number}");
        let scene = Scene::new(data.path(), &server.grpc, &name).await;
        let mut surfaces = scene.follow_each(&server.http).await;
        surfaces.push(Follower::grpc(&scene.agent, &scene.session));

        let path = recording.path.to_string_lossy();
        let args = [
            "agent", "replay", &name, "--from", &path, "--rate", "2000", "--run", "r1", "--json",
        ];
        let process = Process::start(&server.grpc, &scene.agent_token, &args);
        let output = process.end().await;
        let (code, stderr) = said(&output);
        assert_eq!(code, Some(0), "{}: {stderr}", recording.name);

        // Every surface has the log's bytes; so the log is held against the file.
        let log = scene.assert_undisturbed(&[], surfaces).await;
        assert_is(&log.events, &run(), recording);
        assert_says(&scene, &server.http, recording, log.tail()).await;
        let ended = serde_json::json!({
            "run": "r1", "ended": "completed", "offset": log.tail().get(),
        });
        assert_eq!(json_lines(&output), [ended], "{}", recording.name);
    }
}

/// The same, by nothing of ours: JSON and base64 as a page in any language would read them.
async fn assert_says(scene: &Scene, http: &str, recording: &Recording, tail: Offset) {
    let mut stream = Sse::open(http, &scene.person, &scene.session, None).await;
    stream.read_to(tail).await;
    let mut chunks = Vec::new();
    for data in stream.data.values() {
        let event: Value = serde_json::from_str(data).expect("JSON");
        if let Some(raw) = event.pointer("/body/raw/bytes").and_then(Value::as_str) {
            chunks.push(Bytes::from(BASE64.decode(raw).expect("base64")));
        }
    }
    assert_eq!(chunks, recording.chunks, "{}", recording.name);
}

/// The one run of these sessions.
fn run() -> RunId {
    RunId::parse("r1").expect("a good name")
}

/// A session at a server of its own, and a pipe from a provider into it.
struct Piped {
    _data: tempfile::TempDir,
    server: Server,
    scene: Scene,
    upstream: Upstream,
    said: Recording,
}

impl Piped {
    /// `plan` is given the chunks of a short recording.
    async fn new(plan: impl FnOnce(Vec<Bytes>) -> Plan) -> Self {
        let data = folder();
        let server = Server::dev(data.path()).await;
        let scene = Scene::new(data.path(), &server.grpc, "piped").await;
        let said = Recording::read(&recording(data.path(), 40));
        let plan = plan(said.chunks.clone());
        let upstream = Upstream::start(plan, Duration::from_millis(10)).await;
        Self {
            _data: data,
            server,
            scene,
            upstream,
            said,
        }
    }

    fn pipe(&self, more: &[&str]) -> Process {
        let url = &self.upstream.url;
        let mut args = vec!["agent", "pipe", "piped", "--url", url, "--run", "r1"];
        args.extend(["--json"]);
        args.extend(more);
        Process::start(&self.server.grpc, &self.scene.agent_token, &args)
    }

    async fn log(&self) -> Log {
        Log::read(&self.scene.agent, &self.scene.session).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_carries_a_live_response() {
    let mut piped = Piped::new(Plan::Whole).await;
    let mut tab = piped.scene.follow(Kind::Json, &piped.server.http).await;
    let request = piped.server.log.with_file_name("request.json");
    std::fs::write(&request, r#"{"model":"m","stream":true}"#).unwrap();
    let more = [
        "--body",
        request.to_str().unwrap(),
        "--header",
        "x-test: yes",
    ];
    piped.upstream.hold();
    let pipe = piped.pipe(&more);
    // It comes while the provider still speaks, not when it has ended.
    let half = piped.said.chunks.len() / 2;
    assert_eq!(piped.upstream.sent(half, SOON).await, half);
    // Of so many chunks come at least as many events.
    tab.read_to(Offset::new(half as u64).unwrap()).await;
    piped.upstream.go_on();
    let output = pipe.end().await;
    assert_eq!(output.status.code(), Some(0), "{:?}", said(&output));

    let log = piped.scene.assert_undisturbed(&[], vec![tab]).await;
    assert_is(&log.events, &run(), &piped.said);
    let asked = piped.upstream.seen().request.unwrap();
    assert!(asked.starts_with("POST /v1/chat/completions "), "{asked}");
    assert!(asked.ends_with(r#"{"model":"m","stream":true}"#), "{asked}");
    assert!(asked.contains("x-test: yes"), "{asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_ends_the_request_upstream() {
    let mut piped = Piped::new(Plan::Endless).await;
    let mut tab = piped.scene.follow(Kind::Json, &piped.server.http).await;
    let pipe = piped.pipe(&[]);
    tab.read_to(Offset::new(60).unwrap()).await;
    assert!(!piped.upstream.seen().left);
    let key = Key::parse("stop").unwrap();
    let outcome = tab.as_tab().cancel(&run(), key).await;
    let Ok(SignalOutcome::Applied { offset: cancel }) = outcome else {
        panic!("{outcome:?}");
    };
    piped.upstream.left(SOON).await;
    let output = pipe.ends_by_itself().await;
    assert_eq!(output.status.code(), Some(0), "{:?}", said(&output));
    let stopped = serde_json::json!({
        "run": "r1", "ended": "stopped", "offset": cancel.get(),
    });
    assert_eq!(json_lines(&output), [stopped]);
    piped.scene.assert_sound(&[], vec![tab]).await;
}

/// The opposite: a provider that breaks off fails its run, and nobody has stopped anything.
#[tokio::test(flavor = "multi_thread")]
async fn a_broken_provider_fails_the_run() {
    let piped = Piped::new(Plan::Breaks).await;
    let output = piped.pipe(&[]).end().await;
    // Whoever started the agent must not take half an answer for a whole one.
    assert_eq!(output.status.code(), Some(1), "{:?}", said(&output));
    let log = piped.log().await;
    let failed = log.events.iter().find_map(|event| match &event.body {
        Body::RunFailed { reason } => Some((event.offset, reason)),
        _ => None,
    });
    let (offset, reason) = failed.expect("the run failed");
    assert!(!reason.is_empty());
    let written = serde_json::json!({
        "run": "r1", "ended": "failed", "offset": offset.get(),
    });
    assert_eq!(json_lines(&output), [written]);
    assert_eq!(log.count(EventKind::SignalCancel), 0);
    // What was said before is all there; the open message was sealed by the server.
    assert_eq!(text_of(&log.events, &run()), piped.said.text);
    assert_eq!(log.events.last().unwrap().kind(), EventKind::MessageEnd);
}

/// A provider that refuses leaves no run behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_provider_that_refuses_starts_no_run() {
    let piped = Piped::new(|_| Plan::Refuses).await;
    let output = piped.pipe(&[]).end().await;
    let (code, stderr) = said(&output);
    assert_eq!(code, Some(1));
    assert!(stderr.contains("429"), "{stderr}");
    assert_eq!(piped.log().await.tail(), Offset::ZERO);
}
