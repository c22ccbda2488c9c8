//! What the leader of a shard does unasked: it raises the rules when every member knows newer
//! ones, lets the replicas note what they have computed, and lets timers fire. All of it goes
//! through the log, so a leader that was replaced meanwhile does no harm.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::command::{Batch, Control};
use everwire_core::limits::{AUDIT_ENTRIES, AUDIT_EVERY, FIRES_PER_ENTRY};
use everwire_core::{Clock, NodeId};
use everwire_rules::may_raise;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::apply::Applier;
use crate::raft::types::{Proposal, Raft, Reply};

/// How often a leader looks whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long it waits for what it proposed. After that it looks again, whatever came of it.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);

/// The duties of one shard, done while this node leads it.
pub(crate) struct Duties {
    pub(crate) raft: Raft,
    pub(crate) applier: Arc<Applier>,
    pub(crate) clock: Arc<dyn Clock>,
    /// The cluster's timeline.
    pub(crate) timeline: u32,
}

impl Duties {
    /// Runs until it is dropped, or the group stops.
    pub(crate) async fn run(self) {
        let mut audited = Instant::now();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let Some(members) = self.members_if_leading() else {
                self.applier.timers().close();
                continue;
            };
            let mut control: Vec<_> = self.raise(&members).into_iter().collect();
            if self.audit_is_due(audited) {
                audited = Instant::now();
                control.push(Control::Audit);
            }
            control.extend(self.fires().await);
            if !control.is_empty() && !self.propose(control).await {
                return;
            }
        }
    }

    /// The timers that have come. Whoever takes office reads them from the disk first.
    async fn fires(&self) -> impl Iterator<Item = Control> + use<> {
        let (timers, now) = (self.applier.timers(), self.clock.now());
        if let Some(until) = timers.look_ahead(now) {
            let (store, shard) = (self.applier.store().clone(), self.applier.group());
            let read = tokio::task::spawn_blocking(move || store.timers(shard, until));
            match read.await {
                Ok(Ok(found)) => timers.found(found),
                Ok(Err(error)) => tracing::error!(shard, %error, "timers cannot be read"),
                Err(error) => tracing::error!(shard, %error, "reading timers panicked"),
            }
        }
        let due = timers.take_due(now, FIRES_PER_ENTRY);
        due.into_iter().map(Control::Fire)
    }

    /// A shard that did not change since its last audit needs none.
    fn audit_is_due(&self, audited: Instant) -> bool {
        let changed = self.applier.audits().unaudited();
        changed >= AUDIT_ENTRIES || (changed > 0 && audited.elapsed() >= AUDIT_EVERY)
    }

    /// Voters and learners, while this node leads.
    fn members_if_leading(&self) -> Option<Vec<NodeId>> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leads = metrics.current_leader == Some(metrics.id);
        let membership = metrics.membership_config.membership();
        leads.then(|| membership.nodes().map(|(node, _)| NodeId(*node)).collect())
    }

    fn raise(&self, members: &[NodeId]) -> Option<Control> {
        let support = self.applier.support();
        let known: Vec<_> = members.iter().map(|node| support.of(*node)).collect();
        let version = may_raise(self.applier.rules_version(), &known)?;
        let shard = self.applier.group();
        tracing::info!(shard, version, "every member knows newer rules");
        Some(Control::RaiseRules { version })
    }

    /// Waits until the entry is applied here or lost. `false` when the group has stopped.
    async fn propose(&self, control: Vec<Control>) -> bool {
        let batch = Batch {
            stamp: self.clock.now(),
            rules_version: self.applier.rules_version(),
            timeline: self.timeline,
            control,
            commands: Vec::new(),
        };
        let proposal = Proposal(everwire_proto::storage::encode_batch(&batch));
        let (heard, applied) = oneshot::channel();
        let reply = Reply::new(move |_result| {
            let _ = heard.send(());
        });
        if let Err(error) = self.raft.client_write_ff(proposal, Some(reply)).await {
            tracing::info!(shard = self.applier.group(), %error, "the group stopped");
            return false;
        }
        // Applied, discarded or late: the next look sees what it has become.
        let _ = tokio::time::timeout(APPLIED_WITHIN, applied).await;
        true
    }
}
