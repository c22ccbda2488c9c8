//! The agent: writes runs with the Rust client, one to its end, one until somebody stops it.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::grant::Capability;
use everwire_core::{ParticipantKind, SessionName};
use everwire_promises::{Agent, Written};

use crate::cluster::{client, token};
use crate::net::Net;
use crate::sky::Sky;

/// The run that is written to its end.
pub const WHOLE: &str = "whole";
/// The run that is stopped.
pub const STOPPED: &str = "stopped";
/// The agent's machine.
pub const AGENT: &str = "agent";
/// Deltas of the whole run, at least.
const DELTAS: usize = 300;
/// Deltas a second, of each run.
const PACE: u32 = 25;

/// What the agent was told.
#[derive(Default)]
pub struct Told {
    /// It has begun.
    pub begun: bool,
    /// What became of its runs, as they end.
    pub written: Vec<Written>,
}

/// What the agent does.
pub fn run(
    sky: &Sky,
    net: &Net,
    seed: u64,
    session: &SessionName,
    told: &Arc<Mutex<Told>>,
) -> impl Future<Output = ()> + Send + use<> {
    let rights = [
        Capability::Create,
        Capability::Subscribe,
        Capability::Publish,
        Capability::Run,
        Capability::History,
    ];
    let (sky, net, session) = (sky.clone(), net.clone(), session.clone());
    let told = Arc::clone(told);
    async move {
        let token = token("bot", ParticipantKind::Agent, &rights);
        let client = client(&sky, &net, seed, AGENT, token);
        while let Err(refusal) = client.create_session(&session).await {
            sky.note(format_args!("{AGENT} has no session yet: {refusal}"));
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let stopped = Agent::start(&client, &session, STOPPED, PACE).await;
        let whole = Agent::start(&client, &session, WHOLE, PACE).await;
        told.lock().expect("nobody panics here").begun = true;
        sky.note(format_args!("{AGENT} writes"));
        let (ended, other) = tokio::join!(stopped.ended(), whole.complete(DELTAS));
        for written in [ended, other] {
            let acked = written.acked.len();
            match &written.ended {
                Ok(ack) => sky.note(format_args!(
                    "{AGENT} run {} acked {acked}, complete at {}",
                    written.run, ack.offset
                )),
                Err(refusal) => sky.note(format_args!(
                    "{AGENT} run {} acked {acked}, then {refusal}",
                    written.run
                )),
            }
            told.lock()
                .expect("nobody panics here")
                .written
                .push(written);
        }
    }
}
