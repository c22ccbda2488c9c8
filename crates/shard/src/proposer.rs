//! The way of commands into a group's log: whatever is ready becomes one entry, stamped by the
//! leader; a few entries are in flight; nobody waits on a timer.

use std::sync::Arc;

use everwire_core::command::Batch;
use everwire_core::limits::ENTRIES_IN_FLIGHT_MAX;
use everwire_core::{Clock, Code, Details, Refusal};
use openraft::errors::{ClientWriteError, ForwardToLeader};
use openraft::raft::ClientWriteResult;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::apply::Applier;
use crate::duties::Duties;
use crate::lanes::{Answer, Lanes};
use crate::raft::types::{Outcomes, Proposal, Raft, Reply, TypeConfig};

/// Proposes one shard's commands.
pub(crate) struct Proposer {
    pub(crate) raft: Raft,
    pub(crate) lanes: Arc<Lanes>,
    pub(crate) applier: Arc<Applier>,
    pub(crate) clock: Arc<dyn Clock>,
    /// The cluster's timeline.
    pub(crate) timeline: u32,
}

/// The refusal that names the leader, as far as it is known.
pub(crate) fn not_leader(forward: ForwardToLeader<TypeConfig>) -> Refusal {
    let details = Details {
        leader: forward.leader_node.map(|peer| peer.addr),
        ..Details::default()
    };
    let message = "this node does not lead the session's shard";
    Refusal::with(Code::NotLeader, message, details)
}

/// Maps what became of an entry to its commands.
fn answer(answers: Vec<Answer>, result: ClientWriteResult<TypeConfig>) {
    let refusal = match result {
        Ok(response) => {
            let outcomes = match response.data {
                Outcomes::Sessions(outcomes) => outcomes,
                Outcomes::Topology(_) => Vec::new(),
            };
            if outcomes.len() == answers.len() {
                for (answer, outcome) in answers.into_iter().zip(outcomes) {
                    // Whoever asked may have left.
                    let _ = answer.send(Ok(outcome));
                }
                return;
            }
            let (asked, got) = (answers.len(), outcomes.len());
            tracing::error!(asked, got, "an entry's outcomes do not match its commands");
            Refusal::new(Code::Internal, "the outcome got lost")
        },
        Err(
            ClientWriteError::ForwardToLeader(forward)
            | ClientWriteError::LogEntryDiscarded(forward),
        ) => not_leader(forward),
        Err(
            error @ (ClientWriteError::ChangeMembershipError(_)
            | ClientWriteError::PreconditionFailed(_)),
        ) => {
            tracing::error!(%error, "a batch was refused as something that it is not");
            Refusal::new(Code::Internal, "the log refused the entry")
        },
    };
    for answer in answers {
        let _ = answer.send(Err(refusal.clone()));
    }
}

/// However a proposer ends, nobody waits for it.
impl Drop for Proposer {
    fn drop(&mut self) {
        self.lanes.abandon();
    }
}

impl Proposer {
    /// What this node does unasked while it leads; it ends with the proposer.
    fn duties(&self) -> Duties {
        Duties {
            raft: self.raft.clone(),
            applier: self.applier.clone(),
            clock: self.clock.clone(),
            timeline: self.timeline,
        }
    }

    /// Runs until the lanes are closed and empty and nothing is in flight, or the group stops.
    pub(crate) async fn run(self) {
        let mut duties = JoinSet::new();
        duties.spawn(self.duties().run());
        let slots = Arc::new(Semaphore::new(ENTRIES_IN_FLIGHT_MAX));
        while self.lanes.ready().await {
            // The slot comes first: what arrives while the pipeline is full shares an entry.
            let Ok(slot) = slots.clone().acquire_owned().await else {
                break;
            };
            let load = self.lanes.take();
            let batch = Batch {
                stamp: self.clock.now(),
                rules_version: self.applier.rules_version(),
                timeline: self.timeline,
                control: Vec::new(),
                commands: load.commands,
            };
            let proposal = Proposal(everwire_proto::storage::encode_batch(&batch));
            let answers = load.answers;
            // Dropped unheard if the group stops: the commands' futures say so.
            let reply = Reply::new(move |result| {
                drop(slot);
                answer(answers, result);
            });
            if let Err(error) = self.raft.client_write_ff(proposal, Some(reply)).await {
                tracing::info!(shard = self.applier.group(), %error, "the group stopped");
                return;
            }
        }
        let all = u32::try_from(ENTRIES_IN_FLIGHT_MAX).expect("a small number");
        // Closed never: waits for the replies of what is in flight.
        drop(slots.acquire_many(all).await);
    }
}
