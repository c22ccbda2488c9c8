//! `Signals`: explicit control. A signal is made here, from a request that says so, and nowhere
//! else: no end of a connection leads into this module.

use std::sync::Arc;

use everwire_core::command::CancelOutcome;
use everwire_core::grant::Capability;
use everwire_core::{Code, Op, Outcome, Refusal, SessionEpoch};
use everwire_proto::control::HoldsCancel;
use everwire_proto::{field, hash, v1};
use tonic::{Request, Response, Status};

use crate::context::Context;
use crate::identity::Caller;
use crate::service::{answer, session};

/// See the module.
pub(crate) struct Signals {
    context: Arc<Context>,
}

impl Signals {
    /// The service of a node.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn cancel(
        &self,
        caller: &Caller,
        asked: v1::CancelRequest,
    ) -> Result<v1::CancelResponse, Refusal> {
        let session = session(&asked.session)?;
        let cancel = asked.cancel()?;
        let key = field::name("key", &asked.key)?;
        let now = self.context.clock.now();
        let namespace = match caller.writer(Capability::SignalCancel, &session, now) {
            Ok(namespace) => namespace,
            // One of the four outcomes, said to whoever pressed; never committed, and the same
            // whether or not there is such a session.
            Err(refusal) if refusal.code == Code::Denied => {
                self.context.note(&refusal);
                return Ok(response(None, &CancelOutcome::Denied, false));
            },
            Err(refusal) => return Err(refusal),
        };
        let op = Op::Cancel {
            body_hash: hash::signal_hash(&cancel),
            cancel,
            key,
        };
        let command = caller.command(namespace, session, op);
        match self.context.propose(command).await? {
            Outcome::Cancelled {
                session_epoch,
                outcome,
                duplicate,
            } => Ok(response(Some(session_epoch), &outcome, duplicate)),
            other => Err(Context::unexpected(&other)),
        }
    }
}

fn response(
    session_epoch: Option<SessionEpoch>,
    outcome: &CancelOutcome,
    duplicate: bool,
) -> v1::CancelResponse {
    let (offset, state) = match outcome {
        CancelOutcome::Applied { offset } => (Some(*offset), None),
        CancelOutcome::AlreadyTerminal { state, offset } => (Some(*offset), Some(*state)),
        CancelOutcome::Denied | CancelOutcome::UnknownRun => (None, None),
    };
    v1::CancelResponse {
        session_epoch: session_epoch
            .map(|epoch| epoch.to_string())
            .unwrap_or_default(),
        outcome: outcome.as_str().to_owned(),
        offset: offset.map(everwire_core::Offset::get),
        state: state.map(|state| state.as_str().to_owned()),
        duplicate,
    }
}

#[tonic::async_trait]
impl v1::signals_server::Signals for Signals {
    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::CancelResponse>, Status> {
        answer!(self.cancel(request))
    }
}
