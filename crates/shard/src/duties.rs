//! What the leader of a group does unasked: it raises the rules when every member knows newer
//! ones, lets the replicas note what they have computed, and, in a shard, lets timers fire and
//! silent writers lose their runs. All of
//! it goes through the log, so a leader that was replaced meanwhile does no harm.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::command::{Batch, Control};
use everwire_core::ids::META_GROUP;
use everwire_core::limits::{AUDIT_ENTRIES, AUDIT_EVERY, EXPIRES_PER_ENTRY, FIRES_PER_ENTRY};
use everwire_core::topology::Change;
use everwire_core::{Clock, NodeId};
use everwire_proto::storage;
use everwire_rules::may_raise;
use everwire_store::StoreError;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::apply::Applier;
use crate::raft::types::{Proposal, Raft, Reply};
use crate::reads;
use crate::set::group_name;
use crate::wait::on_disk;

/// How often a leader looks whether there is something to do. A run is orphaned within a second of
/// the end of its lease (RULES 8), and a look notes signs of life as well as their absence.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// The same while its group could speak newer rules.
const LOOK_SOON: Duration = Duration::from_millis(50);
/// How long it waits for what it proposed. After that it looks again, whatever came of it.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);

/// The duties of one group, done while this node leads it.
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
            // Until it speaks the newest rules that are known here, a shard refuses what they
            // brought: a new cluster should not have to for long.
            let behind = self.applier.rules_version() < self.applier.support().supported();
            let pause = if behind { LOOK_SOON } else { LOOK_EVERY };
            tokio::time::sleep(pause).await;
            let Some(members) = self.members_if_leading() else {
                self.applier.timers().close();
                self.applier.leases().close();
                continue;
            };
            let mut control: Vec<_> = self.raise(&members).into_iter().collect();
            if self.audit_is_due(audited) {
                audited = Instant::now();
                control.push(Control::Audit);
            }
            if self.applier.group() != META_GROUP {
                control.extend(self.fires().await);
                control.extend(self.expiries().await);
            }
            if !control.is_empty() && !self.propose(control).await {
                return;
            }
        }
    }

    /// The timers that have come. Whoever takes office reads them from the disk first.
    async fn fires(&self) -> impl Iterator<Item = Control> + use<> {
        let (timers, now) = (self.applier.timers(), self.clock.now());
        if let Some(until) = timers.look_ahead(now) {
            let shard = self.applier.group();
            let read = on_disk(self.applier.store(), move |store| {
                store.timers(shard, until)
            });
            match read.await {
                Ok(Ok(found)) => timers.found(found),
                Ok(Err(error)) => {
                    tracing::error!(shard, %error, "timers cannot be read");
                    self.applier.damages().note(&error);
                },
                Err(error) => tracing::error!(shard, %error, "reading timers panicked"),
            }
        }
        let due = timers.take_due(now, FIRES_PER_ENTRY);
        due.into_iter().map(Control::Fire)
    }

    /// The runs whose writers were silent for too long. Whoever takes office reads from the disk
    /// which runs there are.
    async fn expiries(&self) -> impl Iterator<Item = Control> + use<> {
        let leases = self.applier.leases();
        let spoken = self.applier.rules_version();
        if spoken >= 2 && leases.take_office() {
            let shard = self.applier.group();
            let read = on_disk(self.applier.store(), move |store| {
                let live = store.live_runs(shard)?.into_iter();
                let rows = live.map(|(session, run)| {
                    let found = reads::run(&**store, session, &run)?;
                    Ok(found.map(|(row, epoch)| (session, run, row, epoch)))
                });
                // A run whose session was deleted meanwhile is not there any more.
                rows.filter_map(Result::transpose)
                    .collect::<Result<Vec<_>, StoreError>>()
            });
            match read.await {
                Ok(Ok(found)) => leases.found(found, self.clock.elapsed()),
                Ok(Err(error)) => {
                    tracing::error!(shard, %error, "live runs cannot be read");
                    self.applier.damages().note(&error);
                    leases.close();
                },
                Err(error) => {
                    tracing::error!(shard, %error, "reading live runs panicked");
                    leases.close();
                },
            }
        }
        let ended = leases.ended(self.clock.elapsed(), EXPIRES_PER_ENTRY);
        ended.into_iter().map(Control::Expire)
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
        let (group, spoken) = (self.applier.group(), self.applier.rules_version());
        let mut version = may_raise(spoken, &known)?;
        if group != META_GROUP {
            version = version.min(support.metadata());
        }
        if version <= spoken {
            return None;
        }
        let group = group_name(group);
        tracing::info!(
            group,
            version,
            "every member knows newer rules: they are raised"
        );
        Some(Control::RaiseRules { version })
    }

    /// The entries that say so: one for a shard; the metadata group's hold one change each.
    fn entries(&self, control: Vec<Control>) -> Vec<Proposal> {
        if self.applier.group() == META_GROUP {
            let changes = control.into_iter().filter_map(|control| match control {
                Control::RaiseRules { version } => Some(Change::RaiseRules { version }),
                Control::Audit => Some(Change::Audit),
                // It has neither timers nor runs.
                Control::Fire(_) | Control::Expire(_) => None,
            });
            return changes
                .map(|change| Proposal(storage::encode_change(&change)))
                .collect();
        }
        let batch = Batch {
            stamp: self.clock.now(),
            rules_version: self.applier.rules_version(),
            timeline: self.timeline,
            control,
            commands: Vec::new(),
        };
        vec![Proposal(storage::encode_batch(&batch))]
    }

    /// Waits until it is applied here or lost. `false` when the group has stopped.
    async fn propose(&self, control: Vec<Control>) -> bool {
        for proposal in self.entries(control) {
            let (heard, applied) = oneshot::channel();
            let reply = Reply::new(move |_result| {
                let _ = heard.send(());
            });
            if let Err(error) = self.raft.client_write_ff(proposal, Some(reply)).await {
                tracing::info!(group = self.applier.group(), %error, "the group stopped");
                return false;
            }
            // Applied, discarded or late: the next look sees what it has become.
            let _ = tokio::time::timeout(APPLIED_WITHIN, applied).await;
        }
        true
    }
}
