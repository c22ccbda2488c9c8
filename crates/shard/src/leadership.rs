//! Who leads a group, as this node knows it; and what follows when nobody does.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use everwire_core::limits::STALE_AFTER;
use everwire_core::{Code, Details, NodeId, Refusal};
use openraft::async_runtime::{Instant as _, WatchReceiver};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::apply::Applier;
use crate::feed::Feed;
use crate::meters::{Counts, one_more};
use crate::peer::Links;
use crate::raft::types::Raft;

/// Who leads one group.
pub(crate) struct Leadership {
    group: u32,
    node: u64,
    links: Arc<Links>,
    counts: Arc<Counts>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    leader: Option<u64>,
    term: u64,
    /// Nothing was heard of the group's Raft yet: the terms so far were before this start.
    is_new: bool,
    /// This node is the only voter: it always hears itself.
    alone: bool,
    /// Since when this leader leads.
    since: Instant,
    /// The last moment at which the leader was heard, or a majority heard it.
    seen: Instant,
}

impl Leadership {
    /// Nobody leads yet.
    pub(crate) fn new(group: u32, node: NodeId, links: Arc<Links>, counts: Arc<Counts>) -> Self {
        let now = Instant::now();
        Self {
            group,
            node: node.0,
            links,
            counts,
            state: Mutex::new(State {
                leader: None,
                term: 0,
                is_new: true,
                alone: false,
                since: now,
                seen: now,
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens under this lock")
    }

    /// The leader, if one is known. This node does not count itself when no majority has heard
    /// it for a while: there may be another one by now.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let state = self.lock();
        let cut_off =
            state.leader == Some(self.node) && !state.alone && state.seen.elapsed() >= STALE_AFTER;
        state.leader.filter(|_| !cut_off).map(NodeId)
    }

    /// Whether this node leads.
    pub(crate) fn leads(&self) -> bool {
        self.lock().leader == Some(self.node)
    }

    /// This node gave the leadership to another, as planned.
    pub(crate) fn handed_over(&self) {
        one_more(&self.counts.hand_overs);
    }

    /// How long this node has led; `None` if it does not.
    pub(crate) fn leads_for(&self) -> Option<Duration> {
        let state = self.lock();
        (state.leader == Some(self.node)).then(|| state.since.elapsed())
    }

    /// What a caller is told who should ask the leader.
    pub(crate) fn not_leader(&self) -> Refusal {
        let state = self.lock();
        let details = Details {
            leader: state
                .leader
                .and_then(|leader| self.links.client_addr(leader)),
            term: Some(state.term),
            ..Details::default()
        };
        let message = "this node does not lead the session's shard";
        Refusal::with(Code::NotLeader, message, details)
    }

    /// The leader spoke just now.
    pub(crate) fn heard(&self, node: NodeId) {
        let mut state = self.lock();
        if state.leader == Some(node.0) {
            state.seen = Instant::now();
        }
    }

    /// How long ago a leader was heard; on the leader itself, how long ago a majority heard it.
    pub(crate) fn leader_seen(&self) -> Duration {
        let state = self.lock();
        if state.alone && state.leader == Some(self.node) {
            return Duration::ZERO;
        }
        state.seen.elapsed()
    }

    /// Takes what the group's Raft says now.
    pub(crate) fn update(&self, raft: &Raft) {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader;
        let membership = metrics.membership_config.membership();
        let alone = membership.voter_ids().eq([self.node]);
        let mut state = self.lock();
        if leader == Some(self.node) {
            let acked = metrics.last_quorum_acked.map(|at| at.elapsed());
            let at = acked.and_then(|age| Instant::now().checked_sub(age));
            state.seen = at.map_or(state.seen, |at| at.max(state.seen));
        }
        if (leader, metrics.current_term) != (state.leader, state.term) {
            let (group, node, term) = (self.group, self.node, metrics.current_term);
            tracing::info!(group, node, leader, term, "leadership changed");
            state.since = Instant::now();
            if leader.is_some() {
                state.seen = state.since;
            }
        }
        if !state.is_new {
            let began = metrics.current_term.saturating_sub(state.term);
            self.counts.elections.fetch_add(began, Ordering::Relaxed);
        }
        state.is_new = false;
        state.leader = leader;
        state.alone = alone;
        state.term = metrics.current_term;
    }
}

/// Follows a group's leadership until `stop`. Ends subscriptions with STALE while no leader is
/// heard; ends the process when the group's Raft has stopped by itself, unless damage stopped it.
pub(crate) async fn watch(
    raft: Raft,
    leadership: Arc<Leadership>,
    feed: Arc<Feed>,
    applier: Arc<Applier>,
    stop: CancellationToken,
) {
    let mut metrics = raft.server_metrics();
    loop {
        leadership.update(&raft);
        if leadership.leader_seen() >= STALE_AFTER {
            let message = "this replica has heard no leader for a while";
            feed.end(&Refusal::new(Code::Stale, message));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = metrics.changed() => if changed.is_err() {
                // Damaged rows ended it: the replica is rebuilt.
                if !stop.is_cancelled() && !applier.is_wounded() {
                    let state = raft.metrics().borrow_watched().running_state.clone();
                    applier.fatal(&format!("its Raft stopped: {state:?}"));
                }
                return;
            },
            () = tokio::time::sleep(STALE_AFTER / 4) => {},
        }
    }
}
