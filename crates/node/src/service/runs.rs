//! `Runs`: a run's beginning, its take-over, how it stands.

use std::sync::Arc;

use everwire_core::command::StartRun;
use everwire_core::event::Data;
use everwire_core::grant::Capability;
use everwire_core::limits::RUN_META_BYTES_MAX;
use everwire_core::{
    Code, Details, Lease, Offset, Op, Outcome, Refusal, RunEpoch, RunId, SessionEpoch,
};
use everwire_proto::{control, event, field, v1};
use tonic::{Request, Response, Status};

use crate::context::Context;
use crate::identity::Caller;
use crate::service::publish::Target;
use crate::service::{answer, optional_key, session};

/// See the module.
pub(crate) struct Runs {
    context: Arc<Context>,
}

/// What a start or a claim was granted.
struct Granted {
    session_epoch: SessionEpoch,
    run_epoch: RunEpoch,
    offset: Offset,
    lease: Option<Lease>,
    duplicate: bool,
}

/// What an application says about a run, within its bound.
fn meta(data: Option<v1::Data>) -> Result<Option<Data>, Refusal> {
    let data = event::data("meta", data)?;
    if data
        .as_ref()
        .is_some_and(|data| data.len() > RUN_META_BYTES_MAX)
    {
        let details = Details {
            limit: u64::try_from(RUN_META_BYTES_MAX).ok(),
            ..Details::default()
        };
        let message = "what is said about a run is too long";
        return Err(Refusal::with(Code::TooLarge, message, details));
    }
    Ok(data)
}

impl Runs {
    /// The service of a node.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn grant(&self, caller: &Caller, name: &str, op: Op) -> Result<Granted, Refusal> {
        let session = session(name)?;
        let now = self.context.clock.now();
        let namespace = caller.writer(Capability::Run, &session, now)?;
        let command = caller.command(namespace, session, op);
        match self.context.propose(command).await? {
            Outcome::RunGranted {
                session_epoch,
                run_epoch,
                offset,
                lease,
                duplicate,
            } => Ok(Granted {
                session_epoch,
                run_epoch,
                offset,
                lease,
                duplicate,
            }),
            other => Err(Context::unexpected(&other)),
        }
    }

    async fn start(
        &self,
        caller: &Caller,
        asked: v1::StartRequest,
    ) -> Result<v1::StartResponse, Refusal> {
        let op = Op::StartRun(StartRun {
            run: field::name("run", &asked.run)?,
            input: control::input_ref(&asked.input, &asked.input_by)?,
            parent: field::optional_name("parent", &asked.parent)?,
            lease: control::lease("lease_ms", asked.lease_ms)?,
            meta: meta(asked.meta)?,
            key: optional_key(&asked.key)?,
        });
        let granted = self.grant(caller, &asked.session, op).await?;
        Ok(v1::StartResponse {
            session_epoch: granted.session_epoch.to_string(),
            run_epoch: granted.run_epoch.0,
            offset: granted.offset.get(),
            duplicate: granted.duplicate,
            lease_ms: granted.lease.map_or(0, Lease::ms),
        })
    }

    async fn claim(
        &self,
        caller: &Caller,
        asked: v1::ClaimRequest,
    ) -> Result<v1::ClaimResponse, Refusal> {
        let op = Op::ClaimRun {
            run: field::name("run", &asked.run)?,
            lease: control::lease("lease_ms", asked.lease_ms)?,
            key: optional_key(&asked.key)?,
        };
        let granted = self.grant(caller, &asked.session, op).await?;
        Ok(v1::ClaimResponse {
            session_epoch: granted.session_epoch.to_string(),
            run_epoch: granted.run_epoch.0,
            offset: granted.offset.get(),
            duplicate: granted.duplicate,
            lease_ms: granted.lease.map_or(0, Lease::ms),
        })
    }

    async fn heartbeat(
        &self,
        caller: &Caller,
        asked: v1::HeartbeatRequest,
    ) -> Result<v1::HeartbeatResponse, Refusal> {
        let place = (
            asked.session.as_str(),
            asked.run.as_str(),
            asked.run_epoch,
            asked.session_epoch.as_str(),
        );
        let target = Target::of(&self.context, caller, place)?;
        let command = target.heartbeat(caller, asked.observed_through)?;
        match self.context.propose(command).await? {
            Outcome::Renewed {
                state, observed, ..
            } => Ok(v1::HeartbeatResponse {
                state: state.as_str().to_owned(),
                observed: observed.map(Offset::get),
            }),
            other => Err(Context::unexpected(&other)),
        }
    }

    async fn get(
        &self,
        caller: &Caller,
        asked: v1::GetRequest,
    ) -> Result<v1::GetResponse, Refusal> {
        let session = session(&asked.session)?;
        let run: RunId = field::name("run", &asked.run)?;
        let now = self.context.clock.now();
        // Whoever writes runs must find out where one stands, though it may not read the session.
        let namespace = caller
            .writer(Capability::Run, &session, now)
            .or_else(|_| caller.reader(&session, None, now))?;
        let shard = self.context.shard(&namespace, &session);
        let info = shard.run(&namespace, &session, &run).await?;
        Ok(v1::GetResponse {
            run: info.run.to_string(),
            state: info.state.as_str().to_owned(),
            run_epoch: info.run_epoch.0,
            writer: info.writer.to_string(),
            input: info
                .input
                .as_ref()
                .map(|input| input.input.to_string())
                .unwrap_or_default(),
            input_by: info
                .input
                .and_then(|input| input.author)
                .map(|author| author.to_string())
                .unwrap_or_default(),
            parent: info.parent.map(|run| run.to_string()).unwrap_or_default(),
            lease_ms: info.lease_ms,
            started: info.started.get(),
            ended: info.ended.map(Offset::get),
            last_seq: info.last_seq.0,
            last_offset: info.last_offset.get(),
            suspended: info
                .suspended
                .map_or_else(String::new, |reason| reason.as_str().to_owned()),
            step: info.step.map(|step| step.to_string()).unwrap_or_default(),
        })
    }
}

#[tonic::async_trait]
impl v1::runs_server::Runs for Runs {
    async fn start(
        &self,
        request: Request<v1::StartRequest>,
    ) -> Result<Response<v1::StartResponse>, Status> {
        answer!(self.start(request))
    }

    async fn claim(
        &self,
        request: Request<v1::ClaimRequest>,
    ) -> Result<Response<v1::ClaimResponse>, Status> {
        answer!(self.claim(request))
    }

    async fn heartbeat(
        &self,
        request: Request<v1::HeartbeatRequest>,
    ) -> Result<Response<v1::HeartbeatResponse>, Status> {
        answer!(self.heartbeat(request))
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        answer!(self.get(request))
    }
}
