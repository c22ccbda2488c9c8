//! `Signals`: explicit control. A signal is made here, from a request that says so, and nowhere
//! else: no end of a connection leads into this module.

use std::sync::Arc;

use everwire_core::command::SignalOutcome;
use everwire_core::event::Verdict;
use everwire_core::grant::Capability;
use everwire_core::{Code, Op, Outcome, Refusal, SessionEpoch, SessionName, Signal};
use everwire_proto::control::HoldsCancel;
use everwire_proto::signal::signal_of;
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
        let op = Op::Cancel {
            body_hash: hash::cancel_hash(&cancel),
            cancel,
            key,
        };
        let right = Capability::SignalCancel;
        let answer = self.press(caller, right, session, op).await?;
        Ok(v1::CancelResponse {
            session_epoch: answer.session_epoch,
            outcome: answer.outcome,
            offset: answer.offset,
            state: answer.state,
            duplicate: answer.duplicate,
        })
    }

    async fn signal(
        &self,
        caller: &Caller,
        asked: v1::SignalRequest,
    ) -> Result<v1::SignalResponse, Refusal> {
        let session = session(&asked.session)?;
        let signal = signal_of(asked.signal)?;
        let key = field::name("key", &asked.key)?;
        let right = match &signal {
            Signal::Pause(_) => Capability::SignalPause,
            Signal::Resume(_) => Capability::SignalResume,
            Signal::Answer(answer) => match answer.verdict {
                Verdict::Approve => Capability::SignalApprove,
                Verdict::Deny => Capability::SignalDeny,
            },
        };
        let op = Op::Signal {
            body_hash: hash::signal_hash(&signal),
            signal,
            key,
        };
        self.press(caller, right, session, op).await
    }

    async fn press(
        &self,
        caller: &Caller,
        right: Capability,
        session: SessionName,
        op: Op,
    ) -> Result<v1::SignalResponse, Refusal> {
        let now = self.context.clock.now();
        let namespace = match caller.writer(right, &session, now) {
            Ok(namespace) => namespace,
            // One of the four outcomes, said to whoever pressed; never committed, and the same
            // whether or not there is such a session.
            Err(refusal) if refusal.code == Code::Denied => {
                self.context.note(&refusal);
                return Ok(response(None, &SignalOutcome::Denied, false));
            },
            Err(refusal) => return Err(refusal),
        };
        let command = caller.command(namespace, session, op);
        match self.context.propose(command).await? {
            Outcome::Signalled {
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
    outcome: &SignalOutcome,
    duplicate: bool,
) -> v1::SignalResponse {
    let (offset, state) = match outcome {
        SignalOutcome::Applied { offset } => (Some(*offset), None),
        SignalOutcome::AlreadyTerminal { state, offset } => (Some(*offset), Some(*state)),
        SignalOutcome::Denied | SignalOutcome::UnknownRun => (None, None),
    };
    v1::SignalResponse {
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

    async fn signal(
        &self,
        request: Request<v1::SignalRequest>,
    ) -> Result<Response<v1::SignalResponse>, Status> {
        answer!(self.signal(request))
    }
}
