//! What a node's shards and its disk tell, read when somebody scrapes.
//!
//! As many series as the cluster has shards and nodes; nothing here grows with sessions.

use std::fmt;
use std::sync::Weak;

use everwire_shard::{Meters, ShardStatus, SpaceLevel, Times};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::context::Context;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ShardLabel {
    shard: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PeerLabel {
    peer: u64,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LaneLabel {
    lane: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct LineLabel {
    line: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PartLabel {
    part: &'static str,
}

/// The shards of a node, for as long as there is one.
pub(super) struct Shards {
    pub(super) context: Weak<Context>,
}

impl fmt::Debug for Shards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shards")
    }
}

impl Collector for Shards {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let Some(context) = self.context.upgrade() else {
            return Ok(());
        };
        let shards = context.shards.shards();
        let shards: Vec<_> = shards
            .iter()
            .map(|shard| Seen {
                status: shard.status(),
                lag: shard.followers().iter().map(|(_, lag)| *lag).max(),
                held: shard.is_held(),
            })
            .collect();
        let mut page = Page { encoder };
        let node = context.node;
        let leads = |seen: &Seen| seen.status.leader == Some(node);
        of_shards(&mut page, &shards, &leads)?;
        let meters = context.shards.meters();
        of_groups(&mut page, &meters)?;
        of_rules(&mut page, &meters)?;
        let calls = context.shards.peer_calls().into_iter();
        let calls = calls.map(|(line, calls)| (LineLabel { line }, calls));
        page.counters(
            "peer_calls",
            "Calls to other nodes that were begun, by what their connection carries",
            calls,
        )?;
        of_queues(&mut page, &meters, &shards)?;
        of_disk(&mut page, &meters)
    }
}

/// One shard at the moment of the scrape.
struct Seen {
    status: ShardStatus,
    /// The follower that is behind most.
    lag: Option<u64>,
    held: bool,
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn of_shards(
    page: &mut Page<'_>,
    shards: &[Seen],
    leads: &dyn Fn(&Seen) -> bool,
) -> Result<(), fmt::Error> {
    type Value<'v> = (&'static str, &'static str, &'v dyn Fn(&ShardStatus) -> u64);
    let families: [Value<'_>; 6] = [
        (
            "shard_applied",
            "Raft index that this node has applied",
            &|status| status.applied,
        ),
        (
            "shard_committed",
            "Raft index that is known to be committed",
            &|status| status.committed,
        ),
        ("shard_term", "Raft term", &|status| status.term),
        (
            "shard_rules",
            "Rules that the shard speaks; 0 while nobody has said so",
            &|status| u64::from(status.rules),
        ),
        (
            "shard_people_bytes",
            "Bytes that wait for the log in the people's lane",
            &|status| wide(status.people_bytes),
        ),
        (
            "shard_agent_bytes",
            "Bytes that wait for the log in the agents' lane",
            &|status| wide(status.agent_bytes),
        ),
    ];
    let label = |seen: &Seen| ShardLabel {
        shard: seen.status.id.0,
    };
    for (name, help, value) in families {
        let values = shards.iter().map(|seen| (label(seen), value(&seen.status)));
        page.gauges(name, help, values)?;
    }
    let led = shards
        .iter()
        .map(|seen| (label(seen), u64::from(leads(seen))));
    page.gauges("shard_leads", "1 if this node leads the shard", led)?;
    let lags = shards.iter().filter(|seen| leads(seen));
    let lags = lags.filter_map(|seen| Some((label(seen), seen.lag?)));
    page.gauges(
        "shard_lag",
        "Entries that the last follower of a shard that this node leads is behind",
        lags,
    )?;
    let count =
        |fits: &dyn Fn(&Seen) -> bool| wide(shards.iter().filter(|seen| fits(seen)).count());
    page.gauge("leads", "Shards that this node leads", count(leads))?;
    page.gauge(
        "holds",
        "Shards that this node holds",
        count(&|seen| seen.held),
    )?;
    page.gauge(
        "leaderless",
        "Shards held here without a leader",
        count(&|seen| seen.held && seen.status.leader.is_none()),
    )
}

fn of_rules(page: &mut Page<'_>, meters: &Meters) -> Result<(), fmt::Error> {
    page.gauge(
        "rules_known",
        "Newest rules that this node's build knows",
        u64::from(meters.rules_known),
    )?;
    page.gauge(
        "metadata_rules",
        "Rules that the metadata group speaks",
        u64::from(meters.metadata_rules),
    )
}

fn of_groups(page: &mut Page<'_>, meters: &Meters) -> Result<(), fmt::Error> {
    let counters = [
        (
            "elections",
            "Terms that began in groups of this node, planned hand-overs among them",
            meters.elections,
        ),
        (
            "hand_overs",
            "Leaderships that this node gave to another as planned",
            meters.hand_overs,
        ),
        (
            "snapshots_sent",
            "Snapshots that other nodes took from this one",
            meters.snapshots_sent,
        ),
        (
            "snapshots_installed",
            "Snapshots that this node took from others",
            meters.snapshots_installed,
        ),
        (
            "shards_rebuilt",
            "Damaged or diverged replicas that were made anew",
            meters.rebuilt,
        ),
        (
            "quarantines",
            "Data directories put aside because they had forgotten what was promised",
            meters.put_aside,
        ),
    ];
    for (name, help, value) in counters {
        page.counter(name, help, value)?;
    }
    page.gauge(
        "shards_rebuilding",
        "Replicas that cannot be trusted and wait for their rebuild",
        meters.rebuilding,
    )?;
    let leads = u64::from(meters.leads_metadata);
    page.gauge(
        "metadata_leads",
        "1 if this node leads the metadata group",
        leads,
    )?;
    let label = |peer: &everwire_shard::PeerMeters| PeerLabel { peer: peer.node.0 };
    let peers = meters.peers.iter();
    let alive = peers.map(|peer| (label(peer), u64::from(peer.alive)));
    page.gauges("peer_alive", "1 if the other node was heard lately", alive)?;
    let lags = meters.peers.iter().map(|peer| (label(peer), peer.lag));
    page.gauges(
        "peer_lag",
        "Entries that the other node is behind, in the worst shard that this one leads",
        lags,
    )?;
    let ahead = meters.clock_ahead_ms.unwrap_or_default();
    let seconds = std::time::Duration::from_millis(ahead.unsigned_abs()).as_secs_f64();
    let signed = seconds.copysign(if ahead < 0 { -1.0 } else { 1.0 });
    page.float(
        "clock_ahead_seconds",
        "How far the peers' clocks are ahead of this node's, by their median",
        signed,
    )
}

fn of_queues(page: &mut Page<'_>, meters: &Meters, shards: &[Seen]) -> Result<(), fmt::Error> {
    let lane = |lane| LaneLabel { lane };
    let sum = |bytes: &dyn Fn(&ShardStatus) -> usize| {
        let lanes = shards.iter().map(|seen| wide(bytes(&seen.status)));
        lanes.sum::<u64>()
    };
    let lanes = [
        (lane("people"), sum(&|status| status.people_bytes)),
        (lane("agents"), sum(&|status| status.agent_bytes)),
    ];
    page.gauges(
        "queue_bytes",
        "Bytes of commands that wait for the log, all shards together",
        lanes.into_iter(),
    )?;
    let (people, agents) = meters.forward_bytes;
    let forwards = [(lane("people"), people), (lane("agents"), agents)];
    page.gauges(
        "forward_bytes",
        "Bytes of commands on their way to leaders elsewhere, not answered yet",
        forwards.into_iter(),
    )?;
    page.gauge(
        "append_bytes",
        "Bytes of log entries sent to other nodes, not answered yet",
        meters.append_bytes,
    )?;
    page.gauge(
        "log_queue_bytes",
        "Bytes that wait for the log's writer",
        meters.store.waiting_bytes,
    )
}

fn of_disk(page: &mut Page<'_>, meters: &Meters) -> Result<(), fmt::Error> {
    let store = &meters.store;
    page.histogram(
        "log_sync_seconds",
        "Synced writes of the log, one for all shards",
        &store.syncs,
    )?;
    page.counter("log_sync_bytes", "Bytes of those writes", store.sync_bytes)?;
    page.histogram("flush_seconds", "Flushes of the event DB", &store.flushes)?;
    page.gauge(
        "unflushed_bytes",
        "Bytes applied since the last flush began",
        store.unflushed_bytes,
    )?;
    let space = &meters.space;
    page.gauge("disk_bytes", "Bytes of the file system", space.total)?;
    page.gauge(
        "disk_available_bytes",
        "Bytes that are left of it for data",
        space.available,
    )?;
    let refuses = match space.level {
        SpaceLevel::Plenty => 0,
        SpaceLevel::AgentsRefused => 1,
        SpaceLevel::PeopleRefused => 2,
    };
    page.gauge(
        "disk_refuses",
        "0: the disk has room; 1: agents are refused; 2: people too",
        refuses,
    )?;
    let part = |part| PartLabel { part };
    let (used, budget) = store.memory;
    let feeds = wide(everwire_core::limits::FEED_TOTAL_BYTES_MAX);
    let now = [(part("store"), used), (part("feeds"), meters.feed_bytes)];
    page.gauges(
        "memory_bytes",
        "Bytes of memory in caches and write buffers (store) and for live readers (feeds)",
        now.into_iter(),
    )?;
    let budgets = [(part("store"), budget), (part("feeds"), feeds)];
    page.gauges(
        "memory_budget_bytes",
        "The bounds of those",
        budgets.into_iter(),
    )
}

/// What is written for a scraper.
struct Page<'e> {
    encoder: DescriptorEncoder<'e>,
}

fn named(name: &str) -> String {
    format!("everwire_node_{name}")
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

impl Page<'_> {
    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (L, u64)>,
    ) -> Result<(), fmt::Error> {
        let name = named(name);
        let mut family = self
            .encoder
            .encode_descriptor(&name, help, None, MetricType::Gauge)?;
        for (label, value) in values {
            let gauge = ConstGauge::new(signed(value));
            gauge.encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }

    fn gauge(&mut self, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
        let name = named(name);
        let metric = self
            .encoder
            .encode_descriptor(&name, help, None, MetricType::Gauge)?;
        ConstGauge::new(signed(value)).encode(metric)
    }

    fn float(&mut self, name: &str, help: &str, value: f64) -> Result<(), fmt::Error> {
        let name = named(name);
        let metric = self
            .encoder
            .encode_descriptor(&name, help, None, MetricType::Gauge)?;
        ConstGauge::new(value).encode(metric)
    }

    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        values: impl Iterator<Item = (L, u64)>,
    ) -> Result<(), fmt::Error> {
        let name = named(name);
        let mut family = self
            .encoder
            .encode_descriptor(&name, help, None, MetricType::Counter)?;
        for (label, value) in values {
            ConstCounter::new(value).encode(family.encode_family(&label)?)?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> Result<(), fmt::Error> {
        let name = named(name);
        let metric = self
            .encoder
            .encode_descriptor(&name, help, None, MetricType::Counter)?;
        ConstCounter::new(value).encode(metric)
    }

    fn histogram(&mut self, name: &str, help: &str, times: &Times) -> Result<(), fmt::Error> {
        let name = named(name);
        let mut metric =
            self.encoder
                .encode_descriptor(&name, help, None, MetricType::Histogram)?;
        let bound = |bound: Option<std::time::Duration>| {
            bound.map_or(f64::INFINITY, |bound| bound.as_secs_f64())
        };
        let buckets = times.buckets();
        let buckets: Vec<_> = buckets
            .map(|(upper, count)| (bound(upper), count))
            .collect();
        let sum = times.sum().as_secs_f64();
        metric.encode_histogram::<PartLabel>(sum, times.count(), &buckets, None)
    }
}
