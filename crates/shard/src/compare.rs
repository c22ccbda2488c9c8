//! Holds what this node's replicas computed against what the others say (RULES 4).
//!
//! Each node judges for itself, by the newest audit that decides something: in the minority it
//! rebuilds its replica; where nobody has a majority, it refuses writes. Shards and the metadata
//! group alike; what is different there says `crate::apply::topology`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use everwire_core::ids::META_GROUP;
use everwire_core::limits::{DEAD_AFTER, REPORT_EVERY};
use everwire_core::{Code, NodeId, Refusal};
use openraft::async_runtime::WatchReceiver;

use crate::apply::Applier;
use crate::audit::{Verdict, verdict};
use crate::damage::Why;
use crate::group::Shard;
use crate::host::Host;
use crate::raft::types::Raft;
use crate::rebuild;

/// Audits of this replica that are held against the others'.
const COMPARED: usize = 16;

/// Compares all groups again and again, until it is dropped.
pub(crate) async fn run(host: Arc<Host>) {
    loop {
        tokio::select! {
            () = host.stop.cancelled() => return,
            () = tokio::time::sleep(REPORT_EVERY) => {},
        }
        for shard in host.hosted() {
            if shard.is_in_service() {
                act(&host, &shard);
            }
        }
        if act_on_metadata(&host).await {
            return;
        }
    }
}

/// What members have said of one group.
#[derive(Debug, Default)]
struct Said {
    voters: BTreeSet<NodeId>,
    /// By the index of the audit; whoever is missing has said nothing of it.
    hashes: BTreeMap<u64, BTreeMap<NodeId, Option<u128>>>,
    /// Up to where those have applied who may still say something.
    applied: BTreeMap<NodeId, u64>,
}

impl Said {
    /// The newest audit that decides something.
    fn judge(&self) -> Option<(u64, Verdict)> {
        let newest = self.hashes.iter().rev();
        let mut judged = newest.map(|(index, told)| (*index, verdict(told, &self.voters)));
        judged.find(|(index, judged)| match judged {
            Verdict::Unknown => false,
            // A third may still turn two that differ into a majority and a minority.
            Verdict::NoMajority => !self.may_still_tell(*index),
            Verdict::Agree | Verdict::Minority(_) => true,
        })
    }

    fn may_still_tell(&self, index: u64) -> bool {
        let told = self.hashes.get(&index);
        self.voters.iter().any(|voter| {
            let silent = told.is_none_or(|told| !told.contains_key(voter));
            silent && self.applied.get(voter).is_some_and(|at| *at < index)
        })
    }
}

/// Collects what is known of a group.
fn collect(host: &Host, group: u32, raft: &Raft, applier: &Applier) -> Said {
    let me = host.identity.node;
    let mut said = Said::default();
    let members: Vec<NodeId> = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        said.voters = membership.voter_ids().map(NodeId).collect();
        membership.nodes().map(|(node, _)| NodeId(*node)).collect()
    };
    let applied = applier.standing().position;
    let applied = applied.map_or(0, |position| position.index);
    said.applied.insert(me, applied);
    for (index, hash) in applier.audits().newest(COMPARED) {
        said.hashes.entry(index).or_default().insert(me, Some(hash));
    }
    for node in members.into_iter().filter(|node| *node != me) {
        let report = host.report_of(node).unwrap_or_default();
        let mut replicas = report.replicas.into_iter();
        let replica = replicas.find(|replica| replica.group == group);
        if host.is_alive(node, DEAD_AFTER) {
            let applied = replica.as_ref().map_or(0, |replica| replica.applied);
            said.applied.insert(node, applied);
        }
        for audit in replica.unwrap_or_default().audits {
            let Ok(hash) = <[u8; 16]>::try_from(&audit.hash[..]) else {
                continue;
            };
            let told = said.hashes.entry(audit.index).or_default();
            told.insert(node, Some(u128::from_be_bytes(hash)));
        }
    }
    said
}

fn act(host: &Host, shard: &Shard) {
    let said = collect(host, shard.id.0, &shard.raft, &shard.applier);
    let Some((index, judged)) = said.judge() else {
        return;
    };
    let refused = match judged {
        Verdict::Minority(wrong) if wrong.contains(&host.identity.node) => {
            let why = Why::Diverged { index, wrong };
            host.shared.damages.report(shard.id.0, why);
            return;
        },
        Verdict::NoMajority => true,
        Verdict::Agree | Verdict::Minority(_) => false,
        Verdict::Unknown => return,
    };
    let refusal = refused.then(|| {
        let message = "the shard's replicas differ and no majority agrees: it takes no writes \
                       until an operator has looked at it";
        Refusal::new(Code::Frozen, message)
    });
    if shard.lanes.refuse(refusal) {
        let shard = shard.id;
        if refused {
            tracing::error!(%shard, index, "replicas differ, and no majority agrees: writes are refused");
        } else {
            tracing::info!(%shard, index, "a majority agrees again: writes are taken");
        }
    }
}

/// The same for the metadata group. `true`: this node's replica is wrong, and its process ends.
async fn act_on_metadata(host: &Host) -> bool {
    let meta = &host.meta;
    let said = collect(host, META_GROUP, &meta.raft, &meta.applier);
    let Some((index, judged)) = said.judge() else {
        return false;
    };
    let disputed = match judged {
        Verdict::Minority(wrong) if wrong.contains(&host.identity.node) => {
            rebuild::metadata_anew(host, index, &wrong).await;
            return true;
        },
        Verdict::NoMajority => true,
        Verdict::Agree | Verdict::Minority(_) => false,
        Verdict::Unknown => return false,
    };
    if meta.dispute(disputed) {
        if disputed {
            tracing::error!(
                index,
                "replicas of the metadata group differ, and no majority agrees: the topology \
                 takes no changes"
            );
        } else {
            tracing::info!(index, "a majority agrees again: the topology takes changes");
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(hashes: &[(u64, &[(u64, u128)])], applied: &[(u64, u64)]) -> Said {
        let told = |told: &[(u64, u128)]| {
            let told = told.iter();
            told.map(|(node, hash)| (NodeId(*node), Some(*hash)))
                .collect()
        };
        Said {
            voters: (1..=3).map(NodeId).collect(),
            hashes: hashes.iter().map(|(at, of)| (*at, told(of))).collect(),
            applied: applied
                .iter()
                .map(|(node, at)| (NodeId(*node), *at))
                .collect(),
        }
    }

    #[test]
    fn the_newest_audit_that_decides_counts() {
        let wrong = |ids: &[u64]| Verdict::Minority(ids.iter().copied().map(NodeId).collect());
        let level = &[(1, 20), (2, 20), (3, 20)];
        let lagging = &[(1, 20), (2, 20), (3, 9)];
        let dead = &[(1, 20), (2, 20)];
        for (hashes, applied, expected) in [
            (&[][..], &level[..], None),
            (&[(9, &[(1, 7)][..])], level, None),
            (&[(9, &[(1, 7), (2, 7)])], level, Some((9, Verdict::Agree))),
            // One that lags may still decide between two that differ; one that is dead or has
            // forgotten cannot.
            (&[(19, &[(1, 7), (2, 8)])], lagging, None),
            (
                &[(19, &[(1, 7), (2, 8)])],
                level,
                Some((19, Verdict::NoMajority)),
            ),
            (
                &[(19, &[(1, 7), (2, 8)])],
                dead,
                Some((19, Verdict::NoMajority)),
            ),
            (
                &[(9, &[(1, 7), (2, 8), (3, 7)]), (19, &[(1, 9)])],
                lagging,
                Some((9, wrong(&[2]))),
            ),
            (
                &[
                    (9, &[(1, 7), (2, 8), (3, 6)]),
                    (19, &[(1, 9), (2, 9), (3, 9)]),
                ],
                level,
                Some((19, Verdict::Agree)),
            ),
        ] {
            assert_eq!(said(hashes, applied).judge(), expected, "{hashes:?}");
        }
    }
}
