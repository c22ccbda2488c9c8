//! Who leads a shard, as this node knows it; and what follows when nobody does.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use everwire_core::limits::STALE_AFTER;
use everwire_core::{Code, Details, NodeId, Refusal, ShardId};
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::apply::Applier;
use crate::feed::Feed;
use crate::raft::types::Raft;

/// Who leads one shard.
#[derive(Debug)]
pub(crate) struct Leadership {
    shard: u32,
    node: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    leader: Option<u64>,
    addr: Option<String>,
    /// The last moment at which a leader was known.
    seen: Instant,
}

impl Leadership {
    /// Nobody leads yet.
    pub(crate) fn new(shard: ShardId, node: NodeId) -> Self {
        Self {
            shard: shard.0,
            node: node.0,
            state: Mutex::new(State {
                leader: None,
                addr: None,
                seen: Instant::now(),
            }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens under this lock")
    }

    /// The leader, if one is known.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.lock().leader.map(NodeId)
    }

    /// Refuses what only a leader may take, unless this node leads.
    pub(crate) fn check_leads(&self) -> Result<(), Refusal> {
        let state = self.lock();
        if state.leader == Some(self.node) {
            return Ok(());
        }
        let details = Details {
            leader: state.addr.clone(),
            ..Details::default()
        };
        let message = "this node does not lead the session's shard";
        Err(Refusal::with(Code::NotLeader, message, details))
    }

    /// How long ago a leader was heard; zero on the leader. With one voter there is no other
    /// case than "leads" and "nobody leads"; the peer transport adds the age of the last beat.
    pub(crate) fn leader_seen(&self) -> Duration {
        let state = self.lock();
        match state.leader {
            Some(_) => Duration::ZERO,
            None => state.seen.elapsed(),
        }
    }

    /// Takes what the group's Raft says now.
    pub(crate) fn update(&self, raft: &Raft) {
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader;
        let membership = metrics.membership_config.membership();
        let addr = leader.and_then(|leader| membership.get_node(&leader));
        let addr = addr.map(|peer| peer.addr.clone());
        let mut state = self.lock();
        if leader.is_some() || state.leader.is_some() {
            state.seen = Instant::now();
        }
        if leader != state.leader {
            let (shard, node) = (self.shard, self.node);
            tracing::info!(shard, node, leader, "leadership changed");
        }
        state.leader = leader;
        state.addr = addr;
    }
}

/// Follows a group's leadership until `stop`. Ends subscriptions with STALE while no leader is
/// known; ends the process when the group's Raft has stopped by itself.
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
        let recheck = STALE_AFTER / 4;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = metrics.changed() => if changed.is_err() {
                if !stop.is_cancelled() {
                    let state = raft.metrics().borrow_watched().running_state.clone();
                    applier.fatal(&format!("its Raft stopped: {state:?}"));
                }
                return;
            },
            () = tokio::time::sleep(recheck), if leadership.leader().is_none() => {},
        }
    }
}
