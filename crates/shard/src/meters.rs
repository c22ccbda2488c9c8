//! What a node counts of its groups, for whoever watches over it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use everwire_core::NodeId;
use everwire_store::Times;
use tokio::time::Instant;

/// How far back "of late" reaches.
const RECENT: Duration = Duration::from_secs(60);
/// What was counted is noted this often, to tell later what came since.
const NOTED_EVERY: Duration = Duration::from_secs(5);

/// Counted while the node runs; it begins at zero with the process.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) elections: AtomicU64,
    pub(crate) hand_overs: AtomicU64,
    pub(crate) snapshots_sent: AtomicU64,
    pub(crate) snapshots_installed: AtomicU64,
    pub(crate) put_aside: AtomicU64,
    /// Now, not in all: see [`UnderWay`].
    pub(crate) append_bytes: AtomicU64,
}

/// One more of something.
pub(crate) fn one_more(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Messages of log entries that were sent on one stream and not answered, oldest first. Their
/// bytes are part of [`Counts::append_bytes`] for as long as this lives.
pub(crate) struct UnderWay {
    counts: Arc<Counts>,
    /// The size of each. Bounded by what openraft sends ahead.
    sent: Mutex<VecDeque<u64>>,
}

impl UnderWay {
    pub(crate) fn new(counts: Arc<Counts>) -> Self {
        let sent = Mutex::default();
        Self { counts, sent }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<u64>> {
        self.sent.lock().expect("no panic happens under this lock")
    }

    /// A message of so many bytes goes out.
    pub(crate) fn sent(&self, bytes: usize) {
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        let mut sent = self.lock();
        self.counts.append_bytes.fetch_add(bytes, Ordering::Relaxed);
        sent.push_back(bytes);
    }

    /// The oldest one is answered.
    pub(crate) fn answered(&self) {
        let bytes = self.lock().pop_front().unwrap_or_default();
        self.counts.append_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Whether an answer is owed.
    pub(crate) fn is_any(&self) -> bool {
        !self.lock().is_empty()
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let left = self.lock().drain(..).sum();
        self.counts.append_bytes.fetch_sub(left, Ordering::Relaxed);
    }
}

/// How long the syncs of the last minute took.
#[derive(Debug, Default)]
pub(crate) struct Recent {
    noted: VecDeque<(Instant, Times)>,
}

impl Recent {
    /// Call it every now and then.
    pub(crate) fn note(&mut self, now: Instant, syncs: Times) {
        let last = self.noted.back();
        if last.is_some_and(|(at, _)| now.duration_since(*at) < NOTED_EVERY) {
            return;
        }
        self.noted.push_back((now, syncs));
        // The oldest one that is kept is a minute old, or all there is.
        let is_old = |noted: Option<&(Instant, Times)>| {
            noted.is_some_and(|(at, _)| now.duration_since(*at) >= RECENT)
        };
        while is_old(self.noted.get(1)) {
            self.noted.pop_front();
        }
    }

    /// What came since about a minute ago; everything, while this node is younger.
    pub(crate) fn since(&self, now: Instant, syncs: &Times) -> Times {
        let oldest = self.noted.front();
        let oldest = oldest.filter(|(at, _)| now.duration_since(*at) >= RECENT);
        oldest.map_or(*syncs, |(_, before)| syncs.since(before))
    }
}

/// What a node tells of its groups at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meters {
    /// Terms that began in groups of this node since it started: elections, won or not, and
    /// planned hand-overs.
    pub elections: u64,
    /// Leaderships that this node handed to another, as planned.
    pub hand_overs: u64,
    /// Snapshots that other nodes took from this one.
    pub snapshots_sent: u64,
    /// Snapshots that this node took from others.
    pub snapshots_installed: u64,
    /// Replicas that were damaged or had diverged, and were rebuilt.
    pub rebuilt: u64,
    /// Replicas that wait for their rebuild.
    pub rebuilding: u64,
    /// Data directories that were put aside because they had forgotten what was promised.
    pub put_aside: u64,
    /// Bytes of commands on their way to leaders elsewhere and not answered: people's, agents'.
    pub forward_bytes: (u64, u64),
    /// Bytes of log entries that were sent to other nodes and not answered.
    pub append_bytes: u64,
    /// Bytes of committed events that are kept for live readers.
    pub feed_bytes: u64,
    /// The other nodes of the cluster.
    pub peers: Vec<PeerMeters>,
    /// How far the peers' clocks are ahead of this node's, milliseconds; `None`: nobody told.
    pub clock_ahead_ms: Option<i64>,
    /// Whether this node leads the metadata group.
    pub leads_metadata: bool,
    /// The newest rules that this node knows.
    pub rules_known: u32,
    /// The rules that the metadata group speaks.
    pub metadata_rules: u32,
    /// How full the disk is.
    pub space: everwire_store::Space,
    /// What the store counts.
    pub store: everwire_store::Meters,
}

/// What a node knows of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerMeters {
    /// Which.
    pub node: NodeId,
    /// Whether it was heard lately.
    pub alive: bool,
    /// How far it is behind in those shards that this node leads, at worst, in entries.
    pub lag: u64,
}

/// What a node said of itself last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeReport {
    /// Bytes of its disk, and those left; 0 when it does not know.
    pub disk: (u64, u64),
    /// See [`Meters::elections`].
    pub elections: u64,
    /// Bytes of commands that wait there.
    pub queued_bytes: u64,
    /// Synced writes of its log in the last minute.
    pub syncs: u64,
    /// Half of them took no longer, and all but a hundredth.
    pub sync_took: (Duration, Duration),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_counted_until_it_is_answered_or_given_up() {
        let counts = Arc::<Counts>::default();
        let now = || counts.append_bytes.load(Ordering::Relaxed);
        let first = UnderWay::new(counts.clone());
        let second = UnderWay::new(counts.clone());
        first.sent(10);
        first.sent(20);
        second.sent(5);
        assert_eq!(now(), 35);
        first.answered();
        assert_eq!(now(), 25);
        second.answered();
        // An answer that nobody asked for.
        second.answered();
        assert_eq!((now(), first.is_any(), second.is_any()), (20, true, false));
        drop(first);
        assert_eq!(now(), 0);
    }

    #[test]
    fn only_the_last_minute_counts() {
        let mut recent = Recent::default();
        let start = Instant::now();
        for second in 0..200 {
            recent.note(start + Duration::from_secs(second), Times::default());
        }
        let now = start + Duration::from_secs(199);
        let ages: Vec<_> = recent.noted.iter().map(|(at, _)| now - *at).collect();
        assert!(
            ages[0] >= RECENT && ages[0] < RECENT + 2 * NOTED_EVERY,
            "{ages:?}"
        );
        assert!(ages.len() <= 15, "{}", ages.len());
    }
}
