//! How fast a cluster of real processes acks and delivers: three nodes and an edge of one build on
//! loopback, writers and readers in this process, all on one machine.
//!
//! Three loads, one after the other, on sessions of every shard:
//!
//! - `single`: one event in the whole cluster at a time; the next one goes when it was acked.
//! - `paced`: every session writes 50 events a second, as models do.
//! - `pipelined`: every session writes as fast as its window lets it.
//!
//! The time to the ack is measured at the writer, the time to the delivery at a WebSocket of the
//! edge; one clock for all. An ack is an ack: fsynced at a majority and applied. Nothing of the
//! cluster is switched off or tuned for this.

#![expect(
    clippy::expect_used,
    reason = "a measurement that cannot go on says why and ends"
)]

mod load;
mod machine;
mod reading;
mod report;
mod times;

use std::time::Duration;

use everwire_core::SessionName;
use everwire_testkit::metrics::Metrics;
use everwire_testkit::{Cluster, Server, cluster, say};
use futures_util::future::join_all;
use tokio::time::Instant;

pub use load::Pace;
pub use report::{Floor, Phase, Report};
pub use times::Percentiles;

use crate::load::Writer;
use crate::machine::{Machine, Used};
use crate::reading::Readers;

/// Longest wait for leaders to be where they belong.
const BALANCED_WITHIN: Duration = Duration::from_secs(60);
/// Leaders are where they belong when no term began for so long: they move after 2 s.
const SETTLED_FOR: Duration = Duration::from_secs(5);
/// Longest wait for a load to come to something at all.
const ENOUGH_WITHIN: Duration = Duration::from_secs(60);

/// How much is measured.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// How long each load lasts, its warm-up not included.
    pub each: Duration,
    /// How long it runs before that.
    pub warm_up: Duration,
    /// Wait until every node leads its share: otherwise the leaders stay where they are.
    pub balanced: bool,
    /// This load alone; `None`: each of them.
    pub only: Option<Pace>,
    /// Each load lasts until so many events were acked and delivered, if it takes longer.
    pub least: usize,
}

impl Plan {
    /// What `make bench` measures; well below a minute.
    pub fn whole() -> Self {
        Self {
            each: Duration::from_secs(10),
            warm_up: Duration::from_secs(2),
            balanced: true,
            only: None,
            least: 100,
        }
    }

    /// Enough to see that everything still works; the figures mean nothing.
    pub fn smoke() -> Self {
        Self {
            each: Duration::from_millis(500),
            warm_up: Duration::ZERO,
            balanced: false,
            only: None,
            least: 1,
        }
    }
}

/// The servers under measurement.
struct Bench {
    cluster: Cluster,
    edge: Server,
    plan: Plan,
}

/// What the servers counted at one moment.
struct Counted {
    nodes: Vec<Metrics>,
    nodes_cpu: Used,
    edge_cpu: Used,
    own_cpu: Used,
}

/// Measures all of it.
pub async fn measure(plan: Plan) -> Report {
    let machine = Machine::watch().await;
    // What the tests want to read in a log is a load of its own.
    let quietly = vec![("EVERWIRE_LOG_LEVEL".to_owned(), "warn".to_owned())];
    let env: Vec<_> = quietly
        .iter()
        .map(|(k, v)| (k.as_str(), v.as_str()))
        .collect();
    let planned = cluster::Plan {
        env: quietly.clone(),
        ..cluster::Plan::default()
    };
    say("three nodes and an edge start");
    let cluster = Cluster::start_with(3, planned).await;
    let edge = cluster.edge_with("127.0.0.1:0", &env).await;
    let bench = Bench {
        cluster,
        edge,
        plan,
    };
    if plan.balanced {
        bench.cluster.wait_balanced(BALANCED_WITHIN).await;
    }
    let before = bench.settled().await;
    let mut phases = Vec::new();
    let wanted = |pace: &Pace| plan.only.is_none_or(|only| only == *pace);
    for pace in Pace::ALL.into_iter().filter(wanted) {
        phases.push(bench.run(pace).await);
    }
    let elections = bench.elections().await - before;
    Report::new(machine, phases, elections)
}

impl Bench {
    /// One load on a session of every shard.
    async fn run(&self, pace: Pace) -> Phase {
        say(&format!("the {} load", pace.name()));
        let sessions = Cluster::session_of_each_shard(pace.name());
        let starting = sessions.iter();
        let starting = starting.map(|session| Writer::start(&self.cluster, session, pace));
        let writers = join_all(starting).await;
        // The fastest load is measured alone: whoever reads takes the time of whoever writes.
        let readers = match pace {
            Pace::Single | Pace::PerSecond(_) => self.read(&sessions).await,
            Pace::Pipelined => Readers::none(),
        };
        let load = load::run(&writers, pace);
        let measured = async {
            tokio::time::sleep(self.plan.warm_up).await;
            let before = self.count().await;
            let window = times::Window::from_now();
            for writer in &writers {
                writer.measure_from(window);
            }
            readers.measure_from(window);
            tokio::time::sleep(self.plan.each).await;
            let least = self.plan.least;
            let enough = || {
                let acked = writers.iter().map(Writer::acked).sum::<usize>() >= least;
                acked && (pace == Pace::Pipelined || readers.count() >= least)
            };
            Cluster::until("enough events", ENOUGH_WITHIN, || {
                std::future::ready(enough())
            })
            .await;
            let took = window.elapsed();
            let acks = writers.iter().map(Writer::take_acks).collect::<Vec<_>>();
            (before, self.count().await, took, acks)
        };
        let (before, after, took, acks) = tokio::select! {
            measured = measured => measured,
            never = load => match never {},
        };
        let delivered = readers.end().await;
        Phase::new(pace, took, acks, delivered, &before, &after)
    }

    async fn read(&self, sessions: &[SessionName]) -> Readers {
        Readers::attach(&self.edge, &self.cluster, sessions).await
    }

    /// Waits until no leadership moves any more; answers the elections so far.
    async fn settled(&self) -> u64 {
        let mut before = self.elections().await;
        if !self.plan.balanced {
            return before;
        }
        let until = Instant::now() + BALANCED_WITHIN;
        loop {
            tokio::time::sleep(SETTLED_FOR).await;
            let now = self.elections().await;
            if now == before || Instant::now() >= until {
                return now;
            }
            before = now;
        }
    }

    async fn elections(&self) -> u64 {
        let mut sum = 0.0;
        for node in &self.cluster.nodes {
            let metrics = Metrics::read(&node.admin).await;
            sum += metrics.sum("everwire_node_elections_total");
        }
        machine::whole(sum)
    }

    async fn count(&self) -> Counted {
        let mut nodes = Vec::new();
        let mut nodes_cpu = Used::default();
        for node in &self.cluster.nodes {
            nodes.push(Metrics::read(&node.admin).await);
            nodes_cpu += Used::of(node.pid());
        }
        Counted {
            nodes,
            nodes_cpu,
            edge_cpu: Used::of(self.edge.pid()),
            own_cpu: Used::of(nix::unistd::Pid::this()),
        }
    }
}
