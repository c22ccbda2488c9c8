//! The stop race: people press Stop at random instants, at an edge that is not their agent's,
//! while the run writes, its outboxes are loaded, one surface is slow and leaders change. What a
//! stop was answered is what everybody sees: not one event of the run after its offset, on any
//! replica or surface, and before it exactly what the agent was acked.

mod lane;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use everwire_cluster_tests::{Reading, alone, reading, replicas};
use everwire_core::command::SignalOutcome;
use everwire_core::{Event, Offset, ShardId};
use everwire_promises::{History, Kind};
use everwire_testkit::cluster::session_on;
use everwire_testkit::machine::Quiet;
use everwire_testkit::{Cluster, Proxy, say, tokens};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use crate::times::{BALANCED_WITHIN, hold};
use lane::{Lane, Stop};

/// Stops, unless `EVERWIRE_STOPS` says otherwise.
const STOPS: u32 = 240;
/// Sessions in which they happen at the same time, each on another shard.
const LANES: u32 = 6;
/// From a press until every surface but the slow one has the stop, 99 in 100.
const STOPPED_P99_MAX: Duration = Duration::from_millis(50);
/// Leaders change so often: handed over, and each fourth time by a kill.
const DISTURBED_EVERY: Duration = Duration::from_millis(1_500);
const KILL_EACH: u32 = 4;
/// A killed node is away for so long.
const AWAY_FOR: Duration = Duration::from_secs(1);
/// What a change of leaders may still disturb when it is over.
const AFTERMATH: Duration = Duration::from_millis(500);
/// The slow surface takes nothing for so long, and then for a moment what has come.
const ASLEEP_FOR: Duration = Duration::from_millis(400);
const AWAKE_FOR: Duration = Duration::from_millis(40);

fn stops() -> u32 {
    let asked = std::env::var("EVERWIRE_STOPS").ok();
    asked.map_or(STOPS, |asked| {
        asked.parse().expect("EVERWIRE_STOPS is a number")
    })
}

/// A change of leaders: of one shard, or of all that a node led.
struct Disturbance {
    shard: Option<ShardId>,
    from: Instant,
    to: Instant,
}

/// Changes leaders until there is no more to stop.
async fn disturb(cluster: &mut Cluster, over: &AtomicBool) -> Vec<Disturbance> {
    let operator = cluster.client(&cluster.operator());
    let mut disturbances = Vec::new();
    for number in 0_u32.. {
        sleep(DISTURBED_EVERY).await;
        if over.load(Ordering::SeqCst) {
            break;
        }
        let from = Instant::now();
        let shard = ShardId(number % LANES);
        if number % KILL_EACH == 1 {
            let victim = cluster.leader_of(&session_on(shard, "race")).await;
            cluster.kill(victim).await;
            sleep(AWAY_FOR).await;
            cluster.start_node(victim).await;
            cluster.wait_balanced(BALANCED_WITHIN).await;
        } else {
            // It may be on its way to somebody else already.
            let _ = operator.transfer_leader(shard, None).await;
        }
        disturbances.push(Disturbance {
            shard: (number % KILL_EACH != 1).then_some(shard),
            from,
            to: Instant::now(),
        });
    }
    disturbances
}

/// The surfaces of one session.
struct Surfaces {
    /// At both edges, in every way that an edge serves.
    awake: Vec<Reading>,
    slow: Reading,
    proxy: Arc<Proxy>,
}

impl Surfaces {
    async fn of(lane: &Lane, edges: &[String; 2], person: &str) -> Self {
        let [one, two] = edges.clone();
        let session = &lane.session;
        let both = [vec![one.clone(), two.clone()], vec![two, one.clone()]];
        let mut awake = Vec::new();
        for (kind, edges) in Kind::ALL.into_iter().zip(both.iter().cycle()) {
            awake.push(Reading::at(edges, kind, person, session).await);
        }
        let proxy = Arc::new(Proxy::new(&one).await);
        let slow = [proxy.addr.to_string()];
        let slow = Reading::at(&slow, Kind::Json, person, session).await;
        tokio::spawn(doze(Arc::downgrade(&proxy)));
        Self { awake, slow, proxy }
    }
}

/// Holds the bytes of a surface most of the time.
async fn doze(proxy: std::sync::Weak<Proxy>) {
    loop {
        let Some(awake) = proxy.upgrade() else {
            return;
        };
        awake.stall();
        drop(awake);
        sleep(ASLEEP_FOR).await;
        let Some(asleep) = proxy.upgrade() else {
            return;
        };
        asleep.heal();
        drop(asleep);
        sleep(AWAKE_FOR).await;
    }
}

/// When a surface had a stop.
fn had(arrivals: &[reading::Arrival], at: Offset) -> Instant {
    let first = arrivals.partition_point(|arrival| arrival.to < at);
    arrivals[first].at
}

/// What is left of a run on a surface, and in a log: how many events its writer wrote, all of
/// them before the stop.
fn written(log: &[Event], stop: &Stop) -> usize {
    let mine = log.iter().filter(|event| {
        let stamp = event.run.as_ref();
        stamp.is_some_and(|stamp| stamp.run == stop.run && stamp.seq.is_some())
    });
    let offsets: Vec<_> = mine.map(|event| event.offset).collect();
    if let SignalOutcome::Applied { offset } = stop.outcome {
        let late = offsets.iter().filter(|written| **written > offset);
        assert_eq!(late.count(), 0, "{}: written after its stop", stop.run);
    }
    offsets.len()
}

/// How long each stop took to be everywhere, unless leaders changed meanwhile.
struct Measured {
    stopped: Vec<Duration>,
    answered: Vec<Duration>,
    disturbed: Vec<Duration>,
    slow: Vec<Duration>,
}

#[tokio::test(flavor = "multi_thread")]
async fn a_committed_stop_is_final_on_every_surface() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    let edges = cluster.edges().await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let at = [edges[0].http.clone(), edges[1].http.clone()];
    let person = tokens::user(cluster.keys(), "ann");
    let (mut lanes, mut surfaces) = (Vec::new(), Vec::new());
    for number in 0..LANES {
        let lane = Lane::open(&cluster, number, &at[1]).await;
        surfaces.push(Surfaces::of(&lane, &at, &person).await);
        lanes.push(lane);
    }
    let quiet = Quiet::watch();
    let (left, over) = (AtomicU32::new(stops()), AtomicBool::new(false));
    let racing = async {
        let ran = join_all(lanes.into_iter().map(|lane| lane.run(&left))).await;
        over.store(true, Ordering::SeqCst);
        ran
    };
    let (ran, disturbances) = tokio::join!(racing, disturb(&mut cluster, &over));
    let mut measured = Measured {
        stopped: Vec::new(),
        answered: Vec::new(),
        disturbed: Vec::new(),
        slow: Vec::new(),
    };
    let (mut all, mut hit) = (0, 0);
    for (ran, surfaces) in ran.into_iter().zip(surfaces) {
        all += ran.stops.len();
        hit += check(&cluster, ran, surfaces, &disturbances, &mut measured).await;
    }
    say(&format!(
        "{all} stops, {hit} of them hit a run that was writing, {} changes of leaders",
        disturbances.len()
    ));
    assert!(all >= stops() as usize);
    assert!(hit * 10 >= all * 9, "only {hit} of {all} hit a run");
    assert!(!disturbances.is_empty(), "leaders were to change");
    tell(measured, all, &quiet);
}

/// Holds one session's stops, log and surfaces against each other; how many stops hit.
async fn check(
    cluster: &Cluster,
    ran: lane::Ran,
    surfaces: Surfaces,
    disturbances: &[Disturbance],
    measured: &mut Measured,
) -> usize {
    surfaces.proxy.heal();
    let log = replicas::same_on_all(cluster, &ran.session, ran.last).await;
    let tail = log.last().expect("events").offset;
    let (mut readers, mut arrivals) = (Vec::new(), Vec::new());
    let all = surfaces.awake.into_iter().chain([surfaces.slow]);
    for reading in all {
        let read = reading.end(tail).await;
        readers.push(read.reader);
        arrivals.push(read.arrivals);
    }
    let slow = arrivals.pop().expect("the slow one");
    let acked: Vec<_> = ran
        .stops
        .iter()
        .flat_map(|stop| stop.acked.clone())
        .collect();
    let history = History {
        log: &log,
        acked: &acked,
        readers: &readers,
    };
    history.assert_sound(&ran.session);
    let shard = everwire_testkit::cluster::shard_of(&ran.session);
    let mut hit = 0;
    for stop in &ran.stops {
        let (written, acked) = (written(&log, stop), stop.acked.len());
        assert_eq!(written, acked, "{}: the agent knows what stands", stop.run);
        let SignalOutcome::Applied { offset } = stop.outcome else {
            continue;
        };
        hit += 1;
        let seen = arrivals.iter().map(|arrivals| had(arrivals, offset));
        let seen = seen.max().expect("surfaces");
        let took = seen.saturating_duration_since(stop.pressed);
        let until = seen.max(stop.answered);
        let is_disturbed = disturbances.iter().any(|disturbance| {
            disturbance.shard.is_none_or(|other| other == shard)
                && disturbance.from <= until
                && stop.pressed <= disturbance.to + AFTERMATH
        });
        if is_disturbed {
            measured.disturbed.push(took);
            continue;
        }
        measured.stopped.push(took);
        measured.answered.push(stop.answered - stop.pressed);
        measured
            .slow
            .push(had(&slow, offset).saturating_duration_since(stop.pressed));
    }
    hit
}

/// Says how long it took, and holds it against what is promised.
fn tell(mut measured: Measured, all: usize, quiet: &Quiet) {
    let undisturbed = measured.stopped.len();
    assert!(
        undisturbed * 5 >= all,
        "{undisturbed} stops were undisturbed"
    );
    for (what, times) in [
        ("press to the answer", &mut measured.answered),
        (
            "press to every surface but the slow one",
            &mut measured.stopped,
        ),
        ("press to the slow surface", &mut measured.slow),
        (
            "press to every surface, leaders changing",
            &mut measured.disturbed,
        ),
    ] {
        times.sort();
        if let Some(worst) = times.last() {
            let at = |percent: usize| times[(times.len() - 1) * percent / 100];
            say(&format!(
                "{what}: {} stops, p50 {:.1?}, p90 {:.1?}, p99 {:.1?}, worst {worst:.1?}",
                times.len(),
                at(50),
                at(90),
                at(99),
            ));
        }
    }
    let p99 = measured.stopped[(undisturbed - 1) * 99 / 100];
    hold(
        "99 % of the stops are everywhere within",
        vec![p99],
        STOPPED_P99_MAX,
        quiet,
    );
}
