//! The three promises, by name: each with a model's pace, the disturbance in the middle, real
//! processes, and every event held against the log.

use std::process::Output;
use std::time::Duration;

use everwire_client::Client;
use everwire_core::command::SignalOutcome;
use everwire_core::event::MessageStatus;
use everwire_core::row::RunState;
use everwire_core::{Body, Code, Event, Key, Kind as EventKind, Offset, RunEpoch, RunId, Seq};
use everwire_promises::agent::{place_of, word};
use everwire_promises::log::{is_delta, text_of};
use everwire_promises::process::{Process, recording, said};
use everwire_promises::scene::input;
use everwire_promises::{Agent, Follower, Kind, Leave, Scene};
use everwire_testkit::process::{folder, json_lines};
use everwire_testkit::{Proxy, Server, Tab};

/// Deltas of a run, at least.
const DELTAS: usize = 240;
/// Where the disturbance happens.
const HALF: usize = 120;
/// A model's pace, deltas a second.
const PACE: u32 = 80;

/// Promise 1: a reader that is cut off, in any encoding, comes back with its cursor and has the
/// whole, each event once, while the agent went on.
#[tokio::test(flavor = "multi_thread")]
async fn resilient_delivery_reconnect_resumes_exactly() {
    let data = folder();
    let server = Server::dev(data.path()).await;
    let scene = Scene::new(data.path(), &server.grpc, "resilient").await;
    let network = Proxy::new(&server.http).await;
    let cut_off = network.addr.to_string();

    let mut json = scene.follow(Kind::Json, &cut_off).await;
    let mut proto = scene.follow(Kind::Proto, &cut_off).await;
    let stays = scene.follow(Kind::Json, &server.http).await;
    let mut agent = Agent::start(&scene.agent, &scene.session, "r1", PACE).await;

    // Cut by the network, with something under way; away for a quarter of the run.
    for (cut_at, back_at) in [(HALF - 40, HALF), (HALF + 40, HALF + 60)] {
        agent.reached(cut_at).await;
        for reader in [&mut json, &mut proto] {
            reader.read_to(place_of(cut_at - 20)).await;
        }
        network.reset();
        assert_eq!(json.read_to_end().await, None, "no close frame came");
        assert_eq!(proto.read_to_end().await, None, "no close frame came");
        agent.reached(back_at).await;
        json.come_back(&cut_off).await;
        proto.come_back(&cut_off).await;
    }
    // And once by the reader itself.
    json.leave(Leave::Reset).await;
    proto.leave(Leave::Goodbye).await;
    agent.reached(HALF + 90).await;
    json.come_back(&server.http).await;
    proto.come_back(&server.http).await;

    let written = agent.complete(DELTAS).await;
    assert!(written.deltas >= DELTAS);
    let log = scene
        .assert_undisturbed(&[&written], vec![json, proto, stays])
        .await;
    let whole: String = (0..written.deltas).map(word).collect();
    assert_eq!(text_of(&log.events, &written.run), whole);
}

/// Promise 2: a second surface that joins half-way has everything, and what a person says in one
/// appears in each once, at the same place.
#[tokio::test(flavor = "multi_thread")]
async fn continuity_second_surface_joins_in_the_middle() {
    let data = folder();
    let server = Server::dev(data.path()).await;
    let scene = Scene::new(data.path(), &server.grpc, "continuity").await;
    let mut first = scene.follow(Kind::Json, &server.http).await;
    let mut agent = Agent::start(&scene.agent, &scene.session, "r1", PACE).await;

    agent.reached(HALF).await;
    first.read_to(place_of(HALF - 20)).await;
    let mut joined = Vec::new();
    for kind in Kind::ALL {
        let mut second = scene.follow(kind, &server.http).await;
        // All of it, not only what comes from now on.
        second.read_to(place_of(HALF - 20)).await;
        joined.push(second);
    }

    let (draft, key) = input("i1", "and what about Monday? ÄÖÜ 😀");
    let said = first.as_tab().publish(draft.clone(), Some(key.clone()));
    let (offset, duplicate) = said.await.expect("taken");
    assert!(!duplicate);
    // Pressed twice, or sent again by a client that missed its ack.
    let again = first.as_tab().publish(draft.clone(), Some(key)).await;
    assert_eq!(again.expect("taken"), (offset, true));

    let enough = DELTAS.max(agent.sent() + HALF);
    let written = agent.complete(enough).await;
    let mut tabs = vec![first];
    tabs.extend(joined);
    let end = written.ended.as_ref().expect("completed").offset;
    for tab in &mut tabs {
        tab.read_to(end).await;
    }
    let log = scene.assert_undisturbed(&[&written], tabs).await;
    // Every surface has the bytes of the log, so what the log holds is what they saw.
    let inputs: Vec<_> = of_kind(&log.events, EventKind::Input).collect();
    assert_eq!(inputs.len(), 1);
    assert_eq!((inputs[0].offset, &inputs[0].body), (offset, &draft.body));
    assert_eq!(inputs[0].author.participant.as_str(), "ann");
    let (before, after): (Vec<_>, Vec<_>) = log
        .events
        .iter()
        .filter(|event| is_delta(event))
        .partition(|event| event.offset < offset);
    assert!(before.len() >= HALF - 20 && after.len() >= 50, "half-way");
}

/// Promise 3: Stop in one tab stops the agent's process at one place, which both tabs see; nobody
/// reconnects, and the next run shows on the same sockets.
#[tokio::test(flavor = "multi_thread")]
async fn live_control_stop_from_the_second_tab() {
    let data = folder();
    let server = Server::dev(data.path()).await;
    let scene = Scene::new(data.path(), &server.grpc, "control").await;
    let mut first = scene.follow(Kind::Json, &server.http).await;
    let mut second = scene.follow(Kind::Proto, &server.http).await;

    // Longer than the test waits: only a stop ends it in time.
    let file = recording(data.path(), 10_000);
    let replay = replay(&server, &scene, &file.to_string_lossy());
    second.read_to(place_of(2 * HALF)).await;
    let pressed = tokio::time::Instant::now();
    let (run, key) = (RunId::parse("r1").unwrap(), Key::parse("stop-1").unwrap());
    let outcome = second.as_tab().cancel(&run, key.clone()).await;
    let Ok(SignalOutcome::Applied { offset: cancel }) = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(second.as_tab().cancel(&run, key).await, outcome, "a repeat");
    let output = replay.ends_by_itself().await;
    assert!(pressed.elapsed() < Duration::from_secs(5), "it stopped now");
    assert_refused_at(&output, cancel);

    // Both see the same last word, the signal at C, and what the server makes of it.
    let sealed = cancel.plus(2);
    for tab in [&mut first, &mut second] {
        tab.read_to(sealed).await;
        assert_stopped(tab, &run, cancel);
    }
    let both = [&mut first, &mut second].map(|tab| text_of(tab.as_tab().seen.values(), &run));
    assert_eq!(both[0], both[1]);
    let words: String = (0..10_000).map(word).collect();
    assert!(words.starts_with(&both[0]) && both[0].len() > words.len() / 100);

    // Somebody else presses too: the answer is the state, not a second stop.
    let late = Key::parse("stop-2").unwrap();
    let terminal = SignalOutcome::AlreadyTerminal {
        state: RunState::Cancelled,
        offset: cancel,
    };
    assert_eq!(first.as_tab().cancel(&run, late).await, Ok(terminal));
    assert_fenced(&scene.agent, &scene, &run, cancel).await;

    let next = next_run(&server, &scene, &mut first, &mut second).await;
    let log = scene.assert_sound(&[], vec![first, second]).await;
    assert_eq!(of_kind(&log.events, EventKind::SignalCancel).count(), 2);
    assert!(text_of(&log.events, &next).starts_with("line 0"));
    assert_eq!(text_of(&log.events, &run), both[0]);
}

/// The next run, of another process, shows on the sockets that are open; a stop from the first
/// tab ends it too, while it waits for its next line.
async fn next_run(
    server: &Server,
    scene: &Scene,
    first: &mut Follower,
    second: &mut Follower,
) -> RunId {
    let (draft, key) = input("i2", "go on");
    let asked = first.as_tab().publish(draft, Some(key)).await;
    asked.expect("taken");
    let session = scene.session.as_str();
    let args = ["publish", session, "--run", "r2", "--follow-stop", "--json"];
    let mut publish = Process::start(&server.grpc, &scene.agent_token, &args);
    for line in 0..100 {
        assert!(publish.write(&format!("line {line}\n")).await, "it reads");
        tokio::time::sleep(Duration::from_secs(1) / PACE).await;
    }
    // message.start, part.start, the lines. Whatever else stands there is not its own:
    // the run before it may tell only now that it has seen its stop.
    let run = RunId::parse("r2").expect("a good name");
    for tab in [&mut *first, &mut *second] {
        tab.as_tab()
            .read_until(|tab| written_by(tab, &run) == 2 + 100)
            .await;
    }
    let key = Key::parse("stop-3").expect("a good name");
    let outcome = first.as_tab().cancel(&run, key).await;
    let Ok(SignalOutcome::Applied { offset: cancel }) = outcome else {
        panic!("{outcome:?}");
    };
    let output = publish.ends_by_itself().await;
    let (code, stderr) = said(&output);
    assert_eq!(code, Some(i32::from(Code::RunFenced.exit_code())));
    assert!(stderr.starts_with("RUN_FENCED"), "{stderr}");
    assert_eq!(json_lines(&output).len(), 100, "every line was acked");
    for tab in [first, second] {
        tab.read_to(cancel.plus(2)).await;
        assert_stopped(tab, &run, cancel);
        assert_eq!(written_by(tab.as_tab(), &run), 2 + 100, "nothing more");
    }
    run
}

/// How many events of a run's writer a tab has seen.
fn written_by(tab: &Tab, run: &RunId) -> usize {
    let stamps = tab.seen.values().filter_map(|event| event.run.as_ref());
    let mine = stamps.filter(|stamp| stamp.run == *run && stamp.seq.is_some());
    mine.count()
}

fn replay(server: &Server, scene: &Scene, file: &str) -> Process {
    let session = scene.session.as_str();
    let pace = PACE.to_string();
    let args = [
        "agent", "replay", session, "--from", file, "--run", "r1", "--rate", &pace, "--json",
    ];
    Process::start(&server.grpc, &scene.agent_token, &args)
}

/// The agent's process was refused at the cancel, and took that for a normal end.
fn assert_refused_at(output: &Output, cancel: Offset) {
    let (code, stderr) = said(output);
    assert_eq!(code, Some(0), "{stderr}");
    let expected = serde_json::json!({
        "run": "r1", "ended": "stopped", "offset": cancel.get(),
    });
    assert_eq!(json_lines(output), [expected]);
}

/// What a tab saw of a stop: no output behind the signal, and the open message sealed.
fn assert_stopped(tab: &mut Follower, run: &RunId, cancel: Offset) {
    let seen = &tab.as_tab().seen;
    let body = |offset: Offset| &seen[&offset].body;
    assert_eq!(
        *body(cancel),
        Body::SignalCancel {
            target: everwire_core::Target::Run(run.clone()),
            grace_ms: None
        }
    );
    let run_cancelled = Body::RunCancelled {
        cancel_offset: cancel,
    };
    assert_eq!(*body(cancel.next()), run_cancelled);
    let sealed = body(cancel.plus(2));
    assert!(
        matches!(
            sealed,
            Body::MessageEnd {
                status: MessageStatus::Cancelled,
                ..
            }
        ),
        "{sealed:?}"
    );
    let behind = seen.range(cancel..).map(|(_, event)| event);
    assert_eq!(behind.filter(|event| is_delta(event)).count(), 0);
    let author = &seen[&cancel].author.participant;
    assert_eq!(author.as_str(), "ann", "the presser, not the agent");
}

/// Whoever writes on under the old epoch is refused at C, whatever it sends.
async fn assert_fenced(agent: &Client, scene: &Scene, run: &RunId, cancel: Offset) {
    let info = agent.run(&scene.session, run).await.expect("it is there");
    assert_eq!(info.state, RunState::Cancelled);
    let next = Seq(info.last_seq.0 + 1);
    let late = agent.publisher(&scene.session, run.clone(), RunEpoch::FIRST, next);
    let refusal = late.complete().await.expect_err("the run is fenced");
    assert_eq!(refusal.code, Code::RunFenced);
    assert_eq!(refusal.details.cancel_offset, Some(cancel));
}

fn of_kind(events: &[Event], kind: EventKind) -> impl Iterator<Item = &Event> {
    events.iter().filter(move |event| event.kind() == kind)
}
