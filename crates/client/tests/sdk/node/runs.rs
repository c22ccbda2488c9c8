//! The services of runs and signals of the scripted node.

use everwire_core::{Code, Details, Offset, Refusal};
use everwire_proto::v1;
use everwire_proto::v1::runs_server::Runs;
use everwire_proto::v1::signals_server::Signals;

use super::{EPOCH, Node, Reply, Run, app, refused};

#[tonic::async_trait]
impl Runs for Node {
    async fn start(&self, request: tonic::Request<v1::StartRequest>) -> Reply<v1::StartResponse> {
        self.admit(&request)?;
        self.write().await?;
        self.before()?;
        let request = request.into_inner();
        let key = format!("start {}", request.key);
        let (offset, duplicate) = {
            let mut state = self.state();
            match state.keys.get(&key).copied() {
                Some(offset) => (offset, true),
                None if state.runs.contains_key(&request.run) => {
                    return Err(refused(Code::AlreadyClaimed));
                },
                None => {
                    let draft = v1::Draft {
                        body: Some(app("run.started")),
                        ..Default::default()
                    };
                    let offset = state.append(None, draft);
                    state.keys.insert(key, offset);
                    state.runs.insert(
                        request.run,
                        Run {
                            epoch: 1,
                            ..Run::default()
                        },
                    );
                    (offset, false)
                },
            }
        };
        let lease_ms = self.state().lease_ms;
        self.after(v1::StartResponse {
            session_epoch: EPOCH.into(),
            run_epoch: 1,
            offset,
            duplicate,
            lease_ms,
        })
    }

    async fn claim(&self, request: tonic::Request<v1::ClaimRequest>) -> Reply<v1::ClaimResponse> {
        self.admit(&request)?;
        self.before()?;
        let mut state = self.state();
        let offset = state.tail();
        let run = state
            .runs
            .get_mut(&request.get_ref().run)
            .ok_or_else(|| refused(Code::UnknownRun))?;
        run.epoch += 1;
        run.places.clear();
        let run_epoch = run.epoch;
        drop(state);
        let lease_ms = self.state().lease_ms;
        self.after(v1::ClaimResponse {
            session_epoch: EPOCH.into(),
            run_epoch,
            offset,
            duplicate: false,
            lease_ms,
        })
    }

    async fn heartbeat(
        &self,
        request: tonic::Request<v1::HeartbeatRequest>,
    ) -> Reply<v1::HeartbeatResponse> {
        self.admit(&request)?;
        let request = request.into_inner();
        let observed = request.observed_through;
        self.state().observed.extend(observed);
        Ok(tonic::Response::new(v1::HeartbeatResponse {
            state: "cancelled".into(),
            observed,
        }))
    }

    async fn get(&self, request: tonic::Request<v1::GetRequest>) -> Reply<v1::GetResponse> {
        self.admit(&request)?;
        self.before()?;
        let state = self.state();
        let name = &request.get_ref().run;
        let run = state
            .runs
            .get(name)
            .ok_or_else(|| refused(Code::UnknownRun))?;
        let fence = state.fence.as_ref();
        let ended = fence.and_then(|fence| fence.details.cancel_offset);
        Ok(tonic::Response::new(v1::GetResponse {
            run: name.clone(),
            state: if fence.is_some() {
                "cancelled"
            } else {
                "running"
            }
            .into(),
            run_epoch: run.epoch,
            writer: "agent".into(),
            started: 1,
            ended: ended.map(Offset::get),
            ..v1::GetResponse::default()
        }))
    }
}

#[tonic::async_trait]
impl Signals for Node {
    async fn cancel(
        &self,
        request: tonic::Request<v1::CancelRequest>,
    ) -> Reply<v1::CancelResponse> {
        self.admit(&request)?;
        self.write().await?;
        self.before()?;
        let (known, offset) = {
            let mut state = self.state();
            let tail = state.tail();
            let known = state.keys.contains_key(&request.get_ref().key);
            (
                known,
                *state
                    .keys
                    .entry(request.into_inner().key)
                    .or_insert(tail + 1),
            )
        };
        if !known {
            self.append_foreign(1);
            let details = Details {
                cancel_offset: Offset::new(offset),
                ..Details::default()
            };
            self.state().fence = Some(Refusal::with(Code::RunFenced, "cancelled", details));
        }
        self.after(v1::CancelResponse {
            session_epoch: EPOCH.into(),
            outcome: "applied".into(),
            offset: Some(offset),
            state: None,
            duplicate: known,
        })
    }

    async fn signal(
        &self,
        request: tonic::Request<v1::SignalRequest>,
    ) -> Reply<v1::SignalResponse> {
        self.admit(&request)?;
        self.write().await?;
        self.before()?;
        self.after(v1::SignalResponse {
            session_epoch: EPOCH.into(),
            outcome: "applied".into(),
            offset: Some(7),
            state: None,
            duplicate: false,
        })
    }
}
