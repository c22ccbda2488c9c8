//! Every recording of a real model through the cluster, all at once, each in a session of its own
//! whose leader is killed in the middle: byte for byte, in two tabs on two edges that are there
//! all the time and in a third that joins after the kill.

use std::time::Duration;

use everwire_client::adapter::{Adapter, Format};
use everwire_client::{Client, Publisher};
use everwire_cluster_tests::load::agent;
use everwire_cluster_tests::reading::{Arrival, Read, longest_gap};
use everwire_cluster_tests::{Reading, alone, replicas};
use everwire_core::{MessageId, Offset, RunId, SessionName, ShardId};
use everwire_promises::log::assert_is;
use everwire_promises::{History, Kind};
use everwire_testkit::cluster::nth_session_on;
use everwire_testkit::machine::Quiet;
use everwire_testkit::{Cluster, Recording, say, tokens};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::times::{BALANCED_WITHIN, hold};

/// Every recording is written in so many steps, all of them side by side.
const STEPS: usize = 160;
/// Time from one step to the next.
const STEP: Duration = Duration::from_millis(50);
/// The leader is killed when each tab has seen so much of its stream, in percent.
const KILL_FROM: u64 = 35;
/// Nobody writes further than that before the kill, in percent: on a machine on which some are
/// slow, the others wait.
const KILL_TO: usize = 65;
/// Longest time without a delivery when the leader is killed.
const GAP_MAX: Duration = Duration::from_secs(2);
/// Longest time otherwise, but for one in a hundred, beyond the time between two steps that have
/// something to say.
const GAP_P99_MAX: Duration = Duration::from_millis(100);

/// One recording on its way.
struct Stream {
    recording: Recording,
    session: SessionName,
    /// Events that it makes.
    events: u64,
    tabs: Vec<Reading>,
    writing: JoinHandle<()>,
}

fn run() -> RunId {
    RunId::parse("r1").expect("a good name")
}

fn adapter(recording: &Recording) -> Adapter {
    let first = recording.chunks.first().expect("a recording has chunks");
    let format = Format::detect(first).expect("a known format");
    Adapter::new(format, MessageId::parse("r1.m").expect("a good name"))
}

/// How many events a recording becomes, with the start and the end of its run.
fn events_of(recording: &Recording) -> u64 {
    let mut adapter = adapter(recording);
    let chunks = recording.chunks.iter().cloned();
    let drafts: usize = chunks.map(|chunk| adapter.chunk(chunk).len()).sum();
    (drafts + adapter.finish().0.len() + 2) as u64
}

/// Writes a recording as far as the step says, to its end.
async fn write(
    publisher: Publisher,
    recording: (Vec<bytes::Bytes>, Adapter),
    mut step: watch::Receiver<usize>,
) {
    let (chunks, mut adapter) = recording;
    let mut written = 0;
    while written < chunks.len() {
        let due = |step: &usize| *step * chunks.len() / STEPS > written;
        let step = *step.wait_for(due).await.expect("the steps go to the end");
        for chunk in &chunks[written..step * chunks.len() / STEPS] {
            let drafts = adapter.chunk(chunk.clone());
            publisher.send(drafts).await.expect("nobody stops this run");
        }
        written = step * chunks.len() / STEPS;
    }
    let (drafts, _) = adapter.finish();
    publisher.send(drafts).await.expect("nobody stops this run");
    publisher.complete().await.expect("acked in the end");
}

/// All recordings, in sessions whose shards one node leads.
struct Streams {
    all: Vec<Stream>,
    step: watch::Sender<usize>,
    person: String,
    edges: [String; 2],
}

impl Streams {
    async fn open(cluster: &Cluster, led: &[ShardId], edges: [String; 2]) -> Self {
        let person = tokens::user(cluster.keys(), "ann");
        let step = watch::Sender::new(0);
        let mut all = Vec::new();
        for (number, recording) in Recording::all().into_iter().enumerate() {
            let shard = led[number % led.len()];
            let session = nth_session_on(shard, "stream", number / led.len());
            let client: Client = agent(cluster);
            client.create_session(&session).await.expect("made");
            let [one, two] = edges.clone();
            let tabs = vec![
                Reading::at(&[one.clone(), two.clone()], Kind::Json, &person, &session).await,
                Reading::at(&[two, one], Kind::Proto, &person, &session).await,
            ];
            let publisher = client.start_run(&session, run(), None).await;
            let publisher = publisher.expect("the run starts");
            let written = (recording.chunks.clone(), adapter(&recording));
            let writing = tokio::spawn(write(publisher, written, step.subscribe()));
            all.push(Stream {
                events: events_of(&recording),
                recording,
                session,
                tabs,
                writing,
            });
        }
        Self {
            all,
            step,
            person,
            edges,
        }
    }

    /// How much of its stream the slowest and the fastest tab has seen, in percent.
    fn seen(&self) -> (u64, u64) {
        let seen = self.all.iter().flat_map(|stream| {
            let tabs = stream.tabs.iter();
            tabs.map(|tab| tab.seen_to().get() * 100 / stream.events)
        });
        let seen: Vec<_> = seen.collect();
        let (least, most) = (seen.iter().min(), seen.iter().max());
        (*least.expect("tabs"), *most.expect("tabs"))
    }

    /// A third tab for each.
    fn join(&mut self) {
        let [one, two] = &self.edges;
        for stream in &mut self.all {
            let edges = [two.clone(), one.clone()];
            let third = Reading::joins(&edges, Kind::Json, &self.person, &stream.session);
            stream.tabs.push(third);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_recording_survives_the_kill_of_its_leader_byte_for_byte() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    let edges = cluster.edges().await;
    let leaders = cluster.wait_balanced(BALANCED_WITHIN).await;
    let victim = 2;
    let led = leaders.led_by(victim);
    let edges_at = [edges[0].http.clone(), edges[1].http.clone()];
    let mut streams = Streams::open(&cluster, &led, edges_at).await;
    let quiet = Quiet::watch();
    let begun = Instant::now();
    let mut killed = None;
    let mut ticks = interval(STEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut step = 0;
    while step < STEPS {
        ticks.tick().await;
        if killed.is_some() || step * 100 < KILL_TO * STEPS {
            step += 1;
            streams.step.send_replace(step);
        }
        let (least, most) = streams.seen();
        if killed.is_none() && least >= KILL_FROM {
            assert!(
                (30..=70).contains(&least) && most <= 70,
                "{least} to {most} %"
            );
            killed = Some(Instant::now());
            cluster.kill(victim).await;
            streams.join();
        }
    }
    let killed = killed.expect("in the middle");
    cluster.start_node(victim).await;
    check(&cluster, streams, Times { begun, killed }, &quiet).await;
}

struct Times {
    begun: Instant,
    killed: Instant,
}

async fn check(cluster: &Cluster, streams: Streams, times: Times, quiet: &Quiet) {
    let (mut at_the_kill, mut otherwise) = (Vec::new(), Vec::new());
    for stream in streams.all {
        stream.writing.await.expect("written to its end");
        let at_least = Offset::new(stream.events).expect("few");
        let log = replicas::same_on_all(cluster, &stream.session, at_least).await;
        assert_is(&log, &run(), &stream.recording);
        let tail = log.last().expect("events").offset;
        assert_eq!(tail, at_least, "{}", stream.recording.name);
        let mut readers = Vec::new();
        let steps = stream.recording.chunks.len().clamp(1, STEPS);
        let pause = STEP * u32::try_from(STEPS / steps).expect("few");
        for (number, tab) in stream.tabs.into_iter().enumerate() {
            let Read {
                reader, arrivals, ..
            } = tab.end(tail).await;
            readers.push(reader);
            // The third has come late.
            if number < 2 {
                at_the_kill.push(gap_at(&arrivals, &times));
                otherwise.extend(gaps(&arrivals, &times, pause));
            }
        }
        let history = History {
            log: &log,
            acked: &[],
            readers: &readers,
        };
        history.assert_sound(&stream.session);
    }
    hold(
        "largest gap of a stream at the kill of its leader",
        at_the_kill,
        GAP_MAX,
        quiet,
    );
    otherwise.sort();
    let p99 = otherwise[otherwise.len() * 99 / 100];
    say(&format!(
        "gaps between deliveries: {} in all",
        otherwise.len()
    ));
    hold(
        "99 % of the other gaps are within",
        vec![p99],
        GAP_P99_MAX,
        quiet,
    );
}

/// The longest gap around the kill.
fn gap_at(arrivals: &[Arrival], times: &Times) -> Duration {
    let last = arrivals.last().expect("it saw something").at;
    let from = times.killed.max(times.begun);
    longest_gap(arrivals, from, last.min(from + 3 * GAP_MAX))
}

/// The gaps that have nothing to do with the kill, beyond the pause between two steps.
fn gaps(arrivals: &[Arrival], times: &Times, pause: Duration) -> Vec<Duration> {
    let pairs = arrivals.iter().zip(arrivals.iter().skip(1));
    let away = times.killed..times.killed + 2 * GAP_MAX;
    let pairs = pairs.filter(|(one, two)| !away.contains(&one.at) && !away.contains(&two.at));
    let pairs = pairs.filter(|(one, two)| (one.at < times.killed) == (two.at < times.killed));
    pairs
        .map(|(one, two)| (two.at - one.at).saturating_sub(pause))
        .collect()
}
