//! What an edge counts. Names begin with `everwire_edge_`.

use everwire_core::Code;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The label of a refusal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Refused {
    code: CodeLabel,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct CodeLabel(Code);

impl EncodeLabelValue for CodeLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.as_str().encode(encoder)
    }
}

/// What one connection adds to a gauge; taken back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    gauge: Gauge,
    now: usize,
}

impl Share {
    /// Nothing yet.
    pub(crate) fn of(gauge: &Gauge) -> Self {
        Self {
            gauge: gauge.clone(),
            now: 0,
        }
    }

    /// It is so much now.
    pub(crate) fn set(&mut self, now: usize) {
        if now == self.now {
            return;
        }
        let wide = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.gauge.inc_by(wide(now) - wide(self.now));
        self.now = now;
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What is counted. Clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    /// Connections of all kinds.
    pub(crate) connections: Gauge,
    /// Connections that were turned away because there were too many.
    pub(crate) turned_away: Counter,
    /// Open WebSockets.
    pub(crate) sockets: Gauge,
    /// Open event streams.
    pub(crate) streams: Gauge,
    /// Readers in rooms.
    pub(crate) attachments: Gauge,
    /// Open rooms: shared subscriptions at the nodes.
    pub(crate) rooms: Gauge,
    /// Bytes that wait for the peers of WebSockets.
    pub(crate) outbox: Gauge,
    /// Clients that were told to move.
    pub(crate) moving: Counter,
    /// Times that a room lost its subscription at the nodes and asked for it anew.
    pub(crate) upstream_lost: Counter,
    /// Frames with events that were encoded for all readers of a form.
    pub(crate) encoded: Counter,
    /// Messages sent to sockets.
    pub(crate) frames: Counter,
    /// Their payload bytes.
    pub(crate) bytes: Counter,
    /// Pages that were read for readers who were behind.
    pub(crate) catch_ups: Counter,
    /// Sockets that were closed because they took no bytes.
    pub(crate) slow: Counter,
    /// Sockets that were closed because they had been silent.
    pub(crate) lost: Counter,
    refused: Family<Refused, Counter>,
}

impl Metrics {
    /// Counts a refusal that a client was told.
    pub(crate) fn refused(&self, code: Code) {
        let label = Refused {
            code: CodeLabel(code),
        };
        self.refused.get_or_create(&label).inc();
    }

    /// Adds everything to a registry.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("everwire_edge");
        let gauges = [
            ("connections", "Connections of all kinds", &self.connections),
            ("sockets", "Open WebSockets", &self.sockets),
            ("streams", "Open event streams", &self.streams),
            ("attachments", "Readers in rooms", &self.attachments),
            ("rooms", "Open rooms", &self.rooms),
            (
                "outbox_bytes",
                "Bytes that wait for the peers of WebSockets",
                &self.outbox,
            ),
        ];
        for (name, help, gauge) in gauges {
            registry.register(name, help, gauge.clone());
        }
        let counters = [
            ("turned_away", "Connections turned away", &self.turned_away),
            ("moving", "Clients told to move", &self.moving),
            (
                "upstream_reconnects",
                "Subscriptions at the nodes that were lost and asked for anew",
                &self.upstream_lost,
            ),
            ("encoded", "Shared frames encoded", &self.encoded),
            ("frames", "Messages sent to sockets", &self.frames),
            ("frame_bytes", "Payload bytes sent to sockets", &self.bytes),
            (
                "catch_ups",
                "Pages read for readers who were behind",
                &self.catch_ups,
            ),
            (
                "slow_readers",
                "Sockets closed because they took no bytes",
                &self.slow,
            ),
            (
                "lost",
                "Sockets closed because they were silent",
                &self.lost,
            ),
        ];
        for (name, help, counter) in counters {
            registry.register(name, help, counter.clone());
        }
        let help = "Refusals told to clients, by code";
        registry.register("refused", help, self.refused.clone());
    }
}
