//! The metadata group's state machine: one topology, kept whole in its applied row.
//!
//! What protects the state of shards protects this one as far as it has the same:
//!
//! | protection | here |
//! |---|---|
//! | rules are raised when every member knows newer ones (RULES 2) | the same; every node of the cluster is a member, and no shard speaks newer ones than this group |
//! | whoever meets rules or a kind of change that it does not know stops | the same |
//! | a mistake of ours in a decision (RULES 3) | refuses the change as INTERNAL, the topology stays as it was; there is nothing to freeze |
//! | audits (RULES 4) | the same entries; the hash is of the whole state at that entry, and not of the way to it, because the state is one small value |
//! | a minority rebuilds | its rows are replaced by another node's and its process begins anew, because all tasks of a node go by what the topology says (`crate::rebuild`) |
//! | no two equal hashes | changes of the topology are refused as FROZEN; shards go on as they are placed |
//! | damaged rows (RULES 35) | fetched anew before anything else of the node runs (`crate::entrance`) |
//! | timers, readers, lanes | there are none |

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use everwire_core::topology::{Change, Topology};
use everwire_core::{Code, NodeId, Refusal};
use everwire_proto::storage;
use everwire_rules::topology;
use everwire_store::{Applied, ApplyWrite, StoreError};
use openraft::EntryPayload;
use tokio::sync::watch;

use super::{Applier, Committed, Standing};
use crate::audit::Tally;
use crate::raft::codec;
use crate::raft::types::{LogId, Outcomes, StoredMembership};
use crate::support::unknown_rules;

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Changed {
    /// The topology's version with it.
    pub(crate) version: u64,
    /// The node that a join was given.
    pub(crate) node: Option<NodeId>,
}

/// The topology as this node has applied it.
pub(crate) struct TopologyMachine {
    current: watch::Sender<Arc<Topology>>,
}

impl TopologyMachine {
    /// From the applied row; empty bytes are a cluster that is not formed.
    pub(crate) fn read(state: &[u8]) -> Result<Self, StoreError> {
        let current = watch::Sender::new(Arc::new(decode(state)?));
        Ok(Self { current })
    }

    /// The topology now, and each that follows.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Topology>> {
        self.current.subscribe()
    }

    /// Begins to apply some entries.
    pub(crate) fn begin(&self) -> Topology {
        Topology::clone(&self.current.borrow())
    }

    /// Those entries are written.
    pub(crate) fn publish(&self, topology: Topology) {
        self.current.send_if_modified(|current| {
            let changed = **current != topology;
            if changed {
                *current = Arc::new(topology);
            }
            changed
        });
    }

    /// An install has replaced the state.
    pub(crate) fn replace(&self, state: &[u8]) -> Result<(), StoreError> {
        self.publish(decode(state)?);
        Ok(())
    }
}

fn decode(state: &[u8]) -> Result<Topology, StoreError> {
    if state.is_empty() {
        return Ok(Topology::default());
    }
    storage::decode_topology(state).map_err(StoreError::from)
}

/// As the applied row keeps it.
pub(crate) fn encode(topology: &Topology) -> Bytes {
    if topology.is_formed() {
        storage::encode_topology(topology)
    } else {
        Bytes::new()
    }
}

/// The metadata group's entries while they are applied: what a write is made of.
struct Step {
    topology: Topology,
    standing: Standing,
    tally: Tally,
    /// The newest rules that this node knows.
    known: u32,
}

impl Step {
    /// One entry that is a change. An error ends the process; nothing is skipped (RULES 2).
    fn change(&mut self, at: &LogId, change: &[u8]) -> Result<Result<Changed, Refusal>, String> {
        let entry = || format!("entry {at}");
        self.check(self.standing.state.rules_version, entry)?;
        let change = storage::decode_change(change);
        let change = change.map_err(|error| format!("{} cannot be read: {error}", entry()))?;
        let audits = matches!(change, Change::Audit);
        let changed = match change {
            Change::RaiseRules { version } => {
                self.check(version, entry)?;
                let state = &mut self.standing.state;
                state.rules_version = state.rules_version.max(version);
                Ok(self.unchanged())
            },
            Change::Audit => Ok(self.unchanged()),
            change => apply(&mut self.topology, change),
        };
        let rules = self.standing.state.rules_version;
        let state = encode(&self.topology);
        self.tally.take_state(at.index(), audits, &state, rules);
        Ok(changed)
    }

    fn check(&self, version: u32, entry: impl Fn() -> String) -> Result<(), String> {
        if (1..=self.known).contains(&version) {
            return Ok(());
        }
        Err(unknown_rules(&entry(), version, self.known))
    }

    fn unchanged(&self) -> Changed {
        Changed {
            version: self.topology.version,
            node: None,
        }
    }
}

impl Applier {
    /// Applies entries of the metadata group, whose rows are one: its topology.
    pub(super) fn apply_changes(
        &self,
        machine: &TopologyMachine,
        entries: Vec<Committed>,
    ) -> Result<(), String> {
        let mut step = Step {
            topology: machine.begin(),
            standing: self.standing(),
            tally: Tally::default(),
            known: self.support.supported(),
        };
        let mut answers = Vec::with_capacity(entries.len());
        for (entry, responder) in entries {
            let at = entry.log_id;
            step.standing.position = Some(codec::position(&at));
            let outcome = match entry.payload {
                EntryPayload::Blank => Outcomes::default(),
                EntryPayload::Membership(membership) => {
                    step.standing.membership = StoredMembership::new(Some(at), membership);
                    Outcomes::default()
                },
                EntryPayload::Normal(change) => Outcomes::Topology(step.change(&at, &change.0)?),
            };
            answers.push((responder, outcome));
        }
        let Step {
            topology,
            standing,
            tally,
            ..
        } = step;
        let Some(last) = standing.position else {
            return Ok(());
        };
        let write = ApplyWrite {
            rows: BTreeMap::new(),
            events: Vec::new(),
            erased: Vec::new(),
            applied: Applied {
                state: encode(&topology),
                ..standing.applied(last)
            },
        };
        let written = self.store.write(self.group, write);
        written.map_err(|error| format!("the topology cannot be written: {error}"))?;
        self.support.metadata_speaks(standing.state.rules_version);
        *self.lock_standing() = standing;
        machine.publish(topology);
        self.audits.keep(tally);
        for (responder, outcome) in answers {
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }
}

/// Applies one change. A panic inside refuses it and leaves the topology as it was (RULES 3).
fn apply(topology: &mut Topology, change: Change) -> Result<Changed, Refusal> {
    let mut next = topology.clone();
    let changed = catch_unwind(AssertUnwindSafe(|| topology::apply(&mut next, change)));
    match changed {
        Ok(Ok(applied)) => {
            *topology = next;
            Ok(Changed {
                version: topology.version,
                node: applied.node,
            })
        },
        Ok(Err(refusal)) => Err(refusal),
        Err(_panic) => {
            tracing::error!("a change of the topology panicked and was refused");
            Err(Refusal::new(
                Code::Internal,
                "the change could not be applied",
            ))
        },
    }
}
