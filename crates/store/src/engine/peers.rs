//! What we had recorded of other nodes, against which they are held when they come back
//! (RULES 30).
//!
//! Kept in memory; what changed is written with the next batch of the log, in its sync. A crash
//! may lose the newest: a record is a lower bound, so one that is too low accuses nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard};

use everwire_core::ids::NodeId;
use everwire_proto::{storage, storage_v1};

use crate::disk::{Batch, Disk};
use crate::error::StoreError;
use crate::layout::{self, LogFamily, LogKey};
use crate::record;
use crate::types::{Identity, PeerRecord};
use crate::watermark::{votes_from, votes_to};

/// See the module.
#[derive(Default)]
pub(crate) struct Peers(Mutex<State>);

#[derive(Default)]
struct State {
    records: BTreeMap<NodeId, PeerRecord>,
    /// Changed since they were written.
    changed: BTreeSet<NodeId>,
}

impl Peers {
    /// Reads all records. The log DB is open.
    pub(crate) fn load(disk: &impl Disk) -> Result<Self, StoreError> {
        let mut records = BTreeMap::new();
        let range = layout::peers_range();
        disk.log_scan(LogFamily::Meta, &range, &mut |key, value| {
            if let LogKey::Peer(node) = LogKey::decode(LogFamily::Meta, key)? {
                let payload = record::unseal("a record of a peer", key, value)?;
                let message = storage::decode_watermark(payload).map_err(StoreError::from)?;
                let record = PeerRecord {
                    batch: message.batch,
                    votes: votes_from(message.votes),
                };
                records.insert(node, record);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Self(Mutex::new(State {
            records,
            changed: BTreeSet::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// See [`crate::Store::peer_record`].
    pub(crate) fn get(&self, node: NodeId) -> Option<PeerRecord> {
        self.lock().records.get(&node).cloned()
    }

    /// See [`crate::Store::note_peer`].
    pub(crate) fn note(&self, node: NodeId, record: PeerRecord) {
        let mut state = self.lock();
        if state.records.get(&node) != Some(&record) {
            state.records.insert(node, record);
            state.changed.insert(node);
        }
    }

    /// Adds what changed to a batch of the log. Answers whose records these are.
    pub(crate) fn add(
        &self,
        identity: &Identity,
        batch: &mut impl Batch<LogFamily>,
    ) -> BTreeSet<NodeId> {
        let mut state = self.lock();
        let changed = std::mem::take(&mut state.changed);
        for node in &changed {
            let Some(record) = state.records.get(node) else {
                continue;
            };
            let key = LogKey::Peer(*node).encode();
            let payload = storage::encode_watermark(&storage_v1::Watermark {
                cluster: identity.cluster.clone(),
                node: node.0,
                batch: record.batch,
                votes: votes_to(&record.votes),
            });
            batch.put(LogFamily::Meta, &key, &record::seal(&key, &payload));
        }
        changed
    }

    /// The batch was not written: these go with the next one.
    pub(crate) fn put_back(&self, nodes: BTreeSet<NodeId>) {
        self.lock().changed.extend(nodes);
    }
}

/// Whether a node that now shows `now` went backwards since `recorded`: it lost synced batches,
/// or forgot a vote. Then it must not vote, lead or ack under its id any more.
pub fn regressed(recorded: &PeerRecord, now: &PeerRecord) -> bool {
    now.batch < recorded.batch
        || recorded.votes.iter().any(|(group, was)| {
            now.votes.get(group).is_none_or(|is| {
                // In one term a node votes once; only a leader that a majority chose may take
                // the place of the one it voted for.
                let same = is.node == was.node && is.committed >= was.committed;
                let settled = is.committed && !was.committed;
                is.term < was.term || (is.term == was.term && !same && !settled)
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::VoteRecord;

    fn record(batch: u64, votes: &[(u32, u64, u64, bool)]) -> PeerRecord {
        let vote = |&(group, term, node, committed): &(u32, u64, u64, bool)| {
            let vote = VoteRecord {
                term,
                node,
                committed,
            };
            (group, vote)
        };
        PeerRecord {
            batch,
            votes: votes.iter().map(vote).collect(),
        }
    }

    #[test]
    fn going_forward_is_no_regression() {
        let was = record(7, &[(0, 3, 1, false), (1, 5, 2, true)]);
        for now in [
            was.clone(),
            record(8, &[(0, 3, 1, true), (1, 5, 2, true), (2, 1, 1, false)]),
            record(7, &[(0, 4, 9, false), (1, 6, 1, false)]),
            // Another became leader of the term that it voted in.
            record(7, &[(0, 3, 2, true), (1, 5, 2, true)]),
        ] {
            assert!(!regressed(&was, &now), "{now:?}");
        }
        assert!(!regressed(&PeerRecord::default(), &was));
    }

    #[test]
    fn a_lost_batch_or_vote_is_a_regression() {
        let was = record(7, &[(0, 3, 1, false), (1, 5, 2, true)]);
        for now in [
            record(6, &[(0, 9, 1, true), (1, 9, 2, true)]),
            record(9, &[(0, 3, 1, false)]),
            record(9, &[(0, 2, 1, true), (1, 5, 2, true)]),
            record(9, &[(0, 3, 2, false), (1, 5, 2, true)]),
            record(9, &[(0, 3, 1, false), (1, 5, 2, false)]),
            record(9, &[(0, 3, 1, false), (1, 5, 3, true)]),
            PeerRecord::default(),
        ] {
            assert!(regressed(&was, &now), "{now:?}");
        }
    }
}
