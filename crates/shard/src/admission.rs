//! The way of a command into its shard, at the node that leads it: what goes to the lanes, what the
//! leader answers from memory, and what it must not say yet.

use std::sync::Arc;

use everwire_core::{Code, Command, Op, Outcome, Refusal, SessionEpoch};

use crate::group::Shard;
use crate::lanes::Pending;
use crate::reads::{self, SessionRef};

impl Shard {
    /// Queues a command if this node leads. NOT_LEADER, OVERLOADED, DRAINING, and
    /// UNSUPPORTED_VERSION for what the shard's rules do not know yet.
    pub(crate) fn admit(self: &Arc<Self>, command: Command) -> Result<Pending, Refusal> {
        if !self.leadership.leads() {
            return Err(self.leadership.not_leader());
        }
        if command.op.rules_needed() > self.applier.rules_version() {
            let message =
                "the shard speaks older rules: not every node of it runs a newer release yet";
            return Err(Refusal::new(Code::UnsupportedVersion, message));
        }
        match command.op {
            Op::Heartbeat { .. } => Ok(self.heartbeat(command)),
            _ => self.lanes.admit(command),
        }
    }

    /// Takes a sign of life: from memory if that is all it is, else through the log.
    fn heartbeat(self: &Arc<Self>, command: Command) -> Pending {
        let (answer, pending) = Pending::new();
        let shard = Arc::clone(self);
        tokio::spawn(async move {
            let outcome = match shard.renewed(&command).await {
                Some(outcome) => Ok(outcome),
                None => match shard.lanes.admit(command) {
                    Ok(decided) => decided.await,
                    Err(refusal) => Err(refusal),
                },
            };
            // Whoever asked may have left.
            let _ = answer.send(outcome);
        });
        pending
    }

    /// The outcome of a sign of life, if it comes from a run's writer and tells nothing else.
    async fn renewed(&self, command: &Command) -> Option<Outcome> {
        let Op::Heartbeat { run, run_epoch, .. } = &command.op else {
            return None;
        };
        let name = SessionRef {
            namespace: command.namespace.clone(),
            session: command.session.clone(),
        };
        let named = self.reads.run(move |store| reads::named(store, &name));
        let session = named.await.ok()??;
        let session_epoch = SessionEpoch {
            timeline: self.timeline,
            session_no: session.session_no,
        };
        let another = |meant| meant != session_epoch;
        if command.session_epoch.is_some_and(another) {
            return None;
        }
        let leases = self.applier.leases();
        let state = leases.renew(session, run, *run_epoch, &command.actor.participant)?;
        Some(Outcome::Renewed {
            session_epoch,
            state,
            observed: None,
        })
    }
}
