//! What was measured, for people and for programs.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use crate::load::{Acks, Pace};
use crate::machine::{Machine, whole};
use crate::times::Percentiles;
use crate::{Counted, Metrics};

/// What a quiet machine of two cores must reach, with everything of it on that machine.
#[derive(Clone, Copy, Debug)]
pub struct Floor;

impl Floor {
    /// Half of the acks of the single load come sooner.
    pub const ACK_P50: Duration = Duration::from_micros(1_200);
    /// The pipelined load is acked that fast, events a second.
    pub const ACKED_PER_SECOND: f64 = 30_000.0;
    /// Elections while it runs.
    pub const ELECTIONS: u64 = 0;
}

/// One load.
#[derive(Clone, Debug)]
pub struct Phase {
    /// Which.
    pub pace: Pace,
    /// Acked events a second, over all sessions.
    pub acked_per_second: f64,
    /// The same as the nodes count it: what they committed, acked here yet or not.
    pub committed_per_second: f64,
    /// From handing an event to the client to its ack.
    pub ack: Option<Percentiles>,
    /// From there to the socket of a reader at the edge; `None` where nobody read.
    pub delivered: Option<Percentiles>,
    /// Elections that all nodes together have seen meanwhile.
    pub elections: u64,
    /// Synced writes of the log a second, of one node.
    pub syncs_per_second: f64,
    /// How long one of those took, on average.
    pub sync_mean: Duration,
    /// Bytes that one of those held, on average.
    pub sync_bytes: u64,
    /// Processor time of the three nodes, the edge and this program, in cores.
    pub cores: [f64; 3],
}

impl Phase {
    pub(crate) fn new(
        pace: Pace,
        took: Duration,
        acks: Vec<Acks>,
        delivered: Vec<Duration>,
        before: &Counted,
        after: &Counted,
    ) -> Self {
        let events: u64 = acks.iter().map(|acks| acks.events).sum();
        let times = acks.into_iter().flat_map(|acks| acks.times).collect();
        let sum = |counted: &[Metrics], name: &str| -> f64 {
            counted.iter().map(|node| node.sum(name)).sum()
        };
        let grew = |name: &str| sum(&after.nodes, name) - sum(&before.nodes, name);
        let syncs = grew("everwire_node_log_sync_seconds_count");
        let each = |all: f64| if syncs > 0.0 { all / syncs } else { 0.0 };
        let nodes = after.nodes.len().max(1);
        let nodes = u32::try_from(nodes).map_or(1.0, f64::from);
        Self {
            pace,
            acked_per_second: per_second(events, took),
            committed_per_second: grew("everwire_node_publish_events_total") / took.as_secs_f64(),
            ack: Percentiles::of(times),
            delivered: Percentiles::of(delivered),
            elections: whole(grew("everwire_node_elections_total")),
            syncs_per_second: syncs / nodes / took.as_secs_f64(),
            sync_mean: Duration::from_secs_f64(each(grew("everwire_node_log_sync_seconds_sum"))),
            sync_bytes: whole(each(grew("everwire_node_log_sync_bytes_total"))),
            cores: [
                (after.nodes_cpu - before.nodes_cpu).share(took),
                (after.edge_cpu - before.edge_cpu).share(took),
                (after.own_cpu - before.own_cpu).share(took),
            ],
        }
    }

    fn row(&self) -> String {
        let of = |percentiles: Option<Percentiles>| {
            let text = |time: Duration| format!("{:.2}", time.as_secs_f64() * 1e3);
            percentiles.map_or_else(
                || [(); 3].map(|()| "-".to_owned()),
                |found| [found.p50, found.p99, found.worst].map(text),
            )
        };
        let [ack_p50, ack_p99, ack_worst] = of(self.ack);
        let [read_p50, read_p99, read_worst] = of(self.delivered);
        let [nodes, edge, own] = self.cores;
        format!(
            "{:<10} {:>9.0}  {ack_p50:>7} {ack_p99:>7} {ack_worst:>7}  {read_p50:>7} {read_p99:>7} \
             {read_worst:>7}  {:>6.0} {:>6.2} {:>7}  {nodes:>5.2} {edge:>5.2} {own:>5.2}",
            self.pace.name(),
            self.acked_per_second,
            self.syncs_per_second,
            self.sync_mean.as_secs_f64() * 1e3,
            self.sync_bytes,
        )
    }

    fn object(&self) -> Value {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let of = |percentiles: Option<Percentiles>| {
            percentiles.map(|found| {
                json!({
                    "count": found.count,
                    "p50_ms": ms(found.p50),
                    "p99_ms": ms(found.p99),
                    "worst_ms": ms(found.worst),
                })
            })
        };
        let [nodes, edge, own] = self.cores;
        json!({
            "load": self.pace.name(),
            "acked_per_second": self.acked_per_second,
            "committed_per_second": self.committed_per_second,
            "ack": of(self.ack),
            "delivered": of(self.delivered),
            "elections": self.elections,
            "node_syncs_per_second": self.syncs_per_second,
            "sync_mean_ms": ms(self.sync_mean),
            "sync_bytes": self.sync_bytes,
            "cores": {"nodes": nodes, "edge": edge, "load": own},
        })
    }
}

fn per_second(events: u64, took: Duration) -> f64 {
    u32::try_from(events).map_or(f64::MAX, f64::from) / took.as_secs_f64()
}

/// All loads, where and when.
pub struct Report {
    machine: Machine,
    quiet: String,
    /// The loads, in their order.
    pub phases: Vec<Phase>,
    /// Elections that all nodes together have seen since the first load began.
    pub elections: u64,
}

impl Report {
    pub(crate) fn new(machine: Machine, phases: Vec<Phase>, elections: u64) -> Self {
        let quiet = machine.quiet();
        Self {
            machine,
            quiet,
            phases,
            elections,
        }
    }

    /// One load.
    pub fn phase(&self, name: &str) -> Option<&Phase> {
        self.phases.iter().find(|phase| phase.pace.name() == name)
    }

    /// Each floor: what it is, what was measured, whether that is enough. What was not measured
    /// has none.
    fn floors(&self) -> Vec<(String, String, bool)> {
        let single = self.phase("single").and_then(|phase| phase.ack);
        let single = single.map(|ack| {
            (
                format!("ack p50 of the single load at most {:?}", Floor::ACK_P50),
                format!("{:.2?}", ack.p50),
                ack.p50 <= Floor::ACK_P50,
            )
        });
        let pipelined = self.phase("pipelined").map(|phase| {
            (
                format!("{} acked events/s pipelined", Floor::ACKED_PER_SECOND),
                format!("{:.0}", phase.acked_per_second),
                phase.acked_per_second >= Floor::ACKED_PER_SECOND,
            )
        });
        let elections = (
            format!("{} elections", Floor::ELECTIONS),
            self.elections.to_string(),
            self.elections == Floor::ELECTIONS,
        );
        let floors = single.into_iter().chain(pipelined);
        floors.chain([elections]).collect()
    }

    /// Whether every floor was reached.
    pub fn is_met(&self) -> bool {
        self.floors().iter().all(|(_, _, met)| *met)
    }

    /// For people.
    pub fn table(&self) -> String {
        let Machine {
            date,
            version,
            cores,
            optimised,
            ..
        } = &self.machine;
        let bare = self.machine.bare_sync;
        let bare = bare.map_or_else(
            || "not measured".to_owned(),
            |bare| format!("50% within {:.2?}, 99% within {:.2?}", bare.p50, bare.p99),
        );
        let build = if *optimised { "release" } else { "DEBUG" };
        let mut text = format!(
            "{date}  {version}  {build} build\n{cores}; {}\n\
             a bare sync of this disk beforehand: {bare}\n\
             three nodes, an edge and this load on loopback; every ack fsynced at a majority\n\n\
             load        acked/s   ack ms: 50%     99%   worst   read: 50%    99%   worst  \
             syncs/s  ms    bytes  cores: nodes edge load\n",
            self.quiet
        );
        for phase in &self.phases {
            text.push_str(&phase.row());
            text.push('\n');
        }
        text.push('\n');
        for (floor, measured, met) in self.floors() {
            let met = if met { "met   " } else { "MISSED" };
            // A string takes whatever it is given.
            let _ = writeln!(text, "{met}  {floor}: {measured}");
        }
        text
    }

    /// For programs.
    pub fn object(&self) -> Value {
        let floors = self.floors();
        let floors: Vec<_> = floors
            .iter()
            .map(|(floor, measured, met)| json!({"floor": floor, "measured": measured, "met": met}))
            .collect();
        json!({
            "date": self.machine.date,
            "version": self.machine.version,
            "optimised": self.machine.optimised,
            "machine": self.machine.cores,
            "bare_sync_p50_ms": self.machine.bare_sync.map(|bare| bare.p50.as_secs_f64() * 1e3),
            "quiet": self.quiet,
            "loads": self.phases.iter().map(Phase::object).collect::<Vec<_>>(),
            "elections": self.elections,
            "floors": floors,
        })
    }
}
