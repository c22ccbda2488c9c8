//! Signals that end no run, as a live server is asked for them.

use everwire_core::command::SignalOutcome;
use everwire_core::event::Verdict;
use everwire_core::row::RunState;
use everwire_core::{Key, Signal, Target};
use everwire_proto::v1;
use everwire_scenarios::Answer;
use tonic::Status;
use v1::signals_client::SignalsClient;

use super::{Call, offset};

impl Call {
    pub(super) async fn signal(&self, signal: &Signal, key: &Key) -> Result<Answer, Status> {
        let (session, key) = (self.session.clone(), key.to_string());
        let mut client = SignalsClient::new(self.channel.clone());
        let aimed = |target: &Target| match target {
            Target::Run(run) => (run.to_string(), String::new(), false),
            Target::Subtree(root) => (String::new(), root.to_string(), false),
            Target::Session => (String::new(), String::new(), true),
            Target::Input(_) => Default::default(),
        };
        let answer = match signal {
            Signal::Pause(target) => {
                let (run, subtree, all) = aimed(target);
                let request = v1::PauseRequest {
                    session,
                    run,
                    subtree,
                    all,
                    key,
                };
                client.pause(self.with(request)).await?
            },
            Signal::Resume(target) => {
                let (run, subtree, all) = aimed(target);
                let request = v1::ResumeRequest {
                    session,
                    run,
                    subtree,
                    all,
                    key,
                };
                client.resume(self.with(request)).await?
            },
            Signal::Answer(answer) => {
                let request = v1::AnswerRequest {
                    session,
                    approval: answer.approval.to_string(),
                    action_hash: answer.action_hash.to_string(),
                    note: answer.note.clone().unwrap_or_default(),
                    key,
                };
                match answer.verdict {
                    Verdict::Approve => client.approve(self.with(request)).await?,
                    Verdict::Deny => client.deny(self.with(request)).await?,
                }
            },
        };
        signalled(answer.into_inner())
    }
}

pub(super) fn signalled(answer: v1::SignalResponse) -> Result<Answer, Status> {
    let missing = |what: &'static str| move || Status::internal(what);
    let at = answer.offset.map(offset).ok_or_else(missing("no offset"));
    let outcome = match answer.outcome.as_str() {
        "applied" => SignalOutcome::Applied { offset: at? },
        "already_terminal" => SignalOutcome::AlreadyTerminal {
            state: answer
                .state
                .as_deref()
                .and_then(RunState::parse)
                .ok_or_else(missing("no state"))?,
            offset: at?,
        },
        "denied" => SignalOutcome::Denied,
        "unknown_run" => SignalOutcome::UnknownRun,
        _ => return Err(Status::internal("an unknown outcome")),
    };
    Ok(Answer::Signalled {
        outcome,
        duplicate: answer.duplicate,
    })
}
