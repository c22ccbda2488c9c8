//! What every service of a node shares: the shards, the clock, the metrics, the end.

use std::sync::Arc;

use everwire_core::command::SignalOutcome;
use everwire_core::{
    Clock, Code, Command, Namespace, NodeId, Offset, Op, Outcome, Refusal, RunId, SessionName,
    Signal,
};
use everwire_proto::refusal::to_status;
use everwire_proto::token::Verifier;
use everwire_shard::{ShardHandle, ShardSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use crate::map::Maps;
use crate::metrics::Metrics;

/// What the services share. One per node, behind an [`Arc`]; holds no connection and no task.
pub(crate) struct Context {
    /// The shards of this node.
    pub(crate) shards: ShardSet,
    /// Wall clock, for tokens; monotonic, for nothing yet.
    pub(crate) clock: Arc<dyn Clock>,
    /// Verifies tokens.
    pub(crate) verifier: Verifier,
    /// The map that clients find their way by.
    pub(crate) maps: Maps,
    /// Counters.
    pub(crate) metrics: Metrics,
    /// Cancelled when the node begins to stop: streams end with DRAINING.
    pub(crate) draining: CancellationToken,
    /// The cluster's id.
    pub(crate) cluster: String,
    /// This node.
    pub(crate) node: NodeId,
    /// Version and commit of the program.
    pub(crate) version: String,
}

impl Context {
    /// The shard that holds a session.
    pub(crate) fn shard(&self, namespace: &Namespace, session: &SessionName) -> ShardHandle {
        self.shards.shard(namespace, session)
    }

    /// The address of a node, if it is known here.
    pub(crate) fn addr_of(&self, node: NodeId) -> Option<String> {
        let topology = self.shards.topology();
        let member = topology.nodes.get(&node);
        member.map(|member| member.addr.clone())
    }

    /// Submits a command and waits for its outcome; a refusal by the rules is an error too.
    pub(crate) async fn propose(&self, command: Command) -> Result<Outcome, Refusal> {
        let began = Instant::now();
        let shard = self.shard(&command.namespace, &command.session);
        let session = command.session.clone();
        let run = run_of(&command.op).cloned();
        let outcome = shard.propose(command).await;
        if outcome.is_ok() {
            self.metrics.committed(began.elapsed());
        }
        let answer = match outcome {
            Ok(Outcome::Refused(refusal)) | Err(refusal) => Err(refusal),
            Ok(taken) => Ok(taken),
        };
        let run = run.as_ref().map(RunId::as_str);
        match &answer {
            Ok(taken) => {
                let offset = offset_of(taken).map(Offset::get);
                tracing::debug!(%session, run, offset, shard = %shard.id(), "committed");
            },
            Err(refusal) => {
                let code = refusal.code;
                tracing::debug!(%session, run, %code, shard = %shard.id(), "not committed");
            },
        }
        answer
    }

    /// The refusal as a gRPC status; counted, and logged if it is our mistake.
    pub(crate) fn refuse(&self, refusal: &Refusal) -> Status {
        self.note(refusal);
        to_status(refusal)
    }

    /// Counts a refusal that a stream answers in its own way.
    pub(crate) fn note(&self, refusal: &Refusal) {
        self.metrics.refused(refusal.code);
        if refusal.code == Code::Internal {
            tracing::error!(code = %refusal.code, message = refusal.message, "our mistake");
        } else {
            tracing::debug!(code = %refusal.code, message = refusal.message, "refused");
        }
    }

    /// Refuses what comes after the node began to stop.
    pub(crate) fn check_serving(&self) -> Result<(), Refusal> {
        if self.draining.is_cancelled() {
            return Err(drained());
        }
        Ok(())
    }

    /// The refusal for an outcome that does not answer its command.
    pub(crate) fn unexpected(outcome: &Outcome) -> Refusal {
        tracing::error!(?outcome, "an outcome that does not answer its command");
        Refusal::new(Code::Internal, "the log gave an answer of another kind")
    }
}

/// What calls and streams are told when the node stops.
pub(crate) fn drained() -> Refusal {
    Refusal::new(Code::Draining, "this node is about to stop")
}

fn run_of(op: &Op) -> Option<&RunId> {
    match op {
        Op::StartRun(start) => Some(&start.run),
        Op::ClaimRun { run, .. } | Op::Heartbeat { run, .. } | Op::Publish { run, .. } => Some(run),
        Op::Cancel { cancel, .. } => cancel.target.run(),
        Op::Signal { signal, .. } => match signal {
            Signal::Pause(target) | Signal::Resume(target) => target.run(),
            Signal::Answer(_) => None,
        },
        Op::CreateSession | Op::DeleteSession | Op::Unfreeze | Op::Post { .. } => None,
    }
}

fn offset_of(outcome: &Outcome) -> Option<Offset> {
    match outcome {
        Outcome::RunGranted { offset, .. }
        | Outcome::Posted { offset, .. }
        | Outcome::Signalled {
            outcome:
                SignalOutcome::Applied { offset } | SignalOutcome::AlreadyTerminal { offset, .. },
            ..
        } => Some(*offset),
        Outcome::Published(published) => published.through().map(|(_, offset)| offset),
        Outcome::SessionReady { tail, .. } => Some(*tail),
        Outcome::Renewed { observed, .. } => *observed,
        Outcome::Signalled { .. }
        | Outcome::SessionDeleted { .. }
        | Outcome::SessionUnfrozen { .. }
        | Outcome::Refused(_) => None,
    }
}
