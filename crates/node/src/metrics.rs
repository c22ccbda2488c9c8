//! What a node counts. Labels are codes and shard numbers: never names, which have no bound.

mod collect;

use std::sync::Weak;
use std::time::Duration;

use everwire_core::Code;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::context::Context;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CodeLabel {
    code: &'static str,
}

/// The counters of one node.
pub(crate) struct Metrics {
    publish_events: Counter,
    publish_bytes: Counter,
    publish_acks: Counter,
    refusals: Family<CodeLabel, Counter>,
    commit_seconds: Histogram,
    connections: Gauge,
    connections_refused: Counter,
    follow_streams: Gauge,
    watch_streams: Gauge,
    publish_streams: Gauge,
    delivered_events: Counter,
}

impl Metrics {
    /// All at zero.
    pub(crate) fn new() -> Self {
        Self {
            publish_events: Counter::default(),
            publish_bytes: Counter::default(),
            publish_acks: Counter::default(),
            refusals: Family::default(),
            // 0.25 ms to 8 s: an idle commit is one fsync, a killed leader costs two seconds.
            commit_seconds: Histogram::new(exponential_buckets(0.000_25, 2.0, 16)),
            connections: Gauge::default(),
            connections_refused: Counter::default(),
            follow_streams: Gauge::default(),
            watch_streams: Gauge::default(),
            publish_streams: Gauge::default(),
            delivered_events: Counter::default(),
        }
    }

    /// Output of runs, inputs and application events that were committed.
    pub(crate) fn published(&self, events: u64, bytes: usize) {
        self.publish_events.inc_by(events);
        self.publish_bytes.inc_by(wide(bytes));
    }

    /// An ack was sent on a publish stream.
    pub(crate) fn acked(&self) {
        self.publish_acks.inc();
    }

    /// Something was refused.
    pub(crate) fn refused(&self, code: Code) {
        let label = CodeLabel {
            code: code.as_str(),
        };
        self.refusals.get_or_create(&label).inc();
    }

    /// A command was committed and applied this long after it was submitted.
    pub(crate) fn committed(&self, after: Duration) {
        self.commit_seconds.observe(after.as_secs_f64());
    }

    /// Events went out to a reader.
    pub(crate) fn delivered(&self, events: usize) {
        self.delivered_events.inc_by(wide(events));
    }

    /// A connection that found no room.
    pub(crate) fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// Counts a connection until the value is dropped.
    pub(crate) fn connection(&self) -> Counted {
        Counted::new(&self.connections)
    }

    /// Counts a follow stream until the value is dropped.
    pub(crate) fn follow_stream(&self) -> Counted {
        Counted::new(&self.follow_streams)
    }

    /// Counts a stream of maps until the value is dropped.
    pub(crate) fn watch_stream(&self) -> Counted {
        Counted::new(&self.watch_streams)
    }

    /// Counts a publish stream until the value is dropped.
    pub(crate) fn publish_stream(&self) -> Counted {
        Counted::new(&self.publish_streams)
    }

    /// Adds everything to a registry, and the shards of `context` as they stand at each scrape.
    pub(crate) fn register(&self, registry: &mut Registry, context: Weak<Context>) {
        let node = registry.sub_registry_with_prefix("everwire_node");
        let mut counter = |name: &str, help: &str, counter: &Counter| {
            node.register(name, help, counter.clone());
        };
        counter(
            "publish_events",
            "Events committed for callers of this node",
            &self.publish_events,
        );
        counter(
            "publish_bytes",
            "Payload bytes of those events",
            &self.publish_bytes,
        );
        counter(
            "publish_acks",
            "Acks sent on publish streams",
            &self.publish_acks,
        );
        counter(
            "connections_refused",
            "Connections closed because there was no room",
            &self.connections_refused,
        );
        counter(
            "delivered_events",
            "Events sent to readers",
            &self.delivered_events,
        );
        node.register(
            "refusals",
            "Refusals by code, in calls and streams",
            self.refusals.clone(),
        );
        node.register(
            "commit_seconds",
            "From submitting a command to its outcome",
            self.commit_seconds.clone(),
        );
        let mut gauge = |name: &str, help: &str, gauge: &Gauge| {
            node.register(name, help, gauge.clone());
        };
        gauge("connections", "Open connections", &self.connections);
        gauge(
            "follow_streams",
            "Open follow streams",
            &self.follow_streams,
        );
        gauge("watch_streams", "Open streams of maps", &self.watch_streams);
        gauge(
            "publish_streams",
            "Open publish streams",
            &self.publish_streams,
        );
        registry.register_collector(Box::new(collect::Shards { context }));
    }
}

fn wide(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

/// One more in a gauge for as long as this value lives.
pub(crate) struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}
