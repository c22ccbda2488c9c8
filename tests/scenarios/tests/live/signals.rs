//! Signals that end no run, as a live server is asked for them.

use everwire_core::command::SignalOutcome;
use everwire_core::row::RunState;
use everwire_core::{Key, SessionName, Signal};
use everwire_proto::signal::request_of;
use everwire_proto::v1;
use everwire_scenarios::Answer;
use tonic::Status;
use v1::signals_client::SignalsClient;

use super::{Call, offset};

impl Call {
    pub(super) async fn signal(&self, signal: &Signal, key: &Key) -> Result<Answer, Status> {
        let session = SessionName::parse(&self.session).expect("a session's name");
        let request = self.with(request_of(&session, signal, key));
        let mut client = SignalsClient::new(self.channel.clone());
        let answer = client.signal(request).await?;
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
