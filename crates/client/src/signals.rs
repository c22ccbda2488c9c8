//! Signals: stops, pauses, approvals. Each is a call of its own, made again under the same key
//! until it is answered.

use everwire_core::command::SignalOutcome;
use everwire_core::control::{Answer, Signal};
use everwire_core::{Cancel, Code, Key, Refusal, RunId, SessionName, Target};
use everwire_proto::control::HoldsCancel;
use everwire_proto::signal::request_of;
use everwire_proto::v1;
use everwire_proto::v1::signals_client::SignalsClient;

use crate::answers::Signalled;
use crate::client::Client;
use crate::connection::Lane;
use crate::route::Aim;
use crate::wire;

impl Client {
    /// Stops a run, at once. Being denied and an unknown run are outcomes like the others.
    pub async fn cancel(
        &self,
        session: &SessionName,
        run: &RunId,
        key: Option<Key>,
    ) -> Result<Signalled, Refusal> {
        self.stop(session, &Cancel::run(run.clone()), key).await
    }

    /// Stops a run, all that work for it, whatever answers an input, or the whole session; at
    /// once or leaving time for an epilogue; perhaps only if the run is as expected.
    ///
    /// ```no_run
    /// use everwire_client::{Cancel, Client, Target};
    /// use everwire_core::{Refusal, RunId, SessionName};
    ///
    /// async fn stop_all(client: Client, session: SessionName) -> Result<(), Refusal> {
    ///     let root = RunId::parse("plan")?;
    ///     let stop = Cancel {
    ///         grace_ms: Some(2_000),
    ///         ..Cancel::of(Target::Subtree(root))
    ///     };
    ///     let stopped = client.stop(&session, &stop, None).await?;
    ///     println!("{}", stopped.outcome.as_str());
    ///     Ok(())
    /// }
    /// ```
    pub async fn stop(
        &self,
        session: &SessionName,
        cancel: &Cancel,
        key: Option<Key>,
    ) -> Result<Signalled, Refusal> {
        cancel.check_shape()?;
        let mut request = v1::CancelRequest {
            session: session.to_string(),
            key: key.unwrap_or_else(|| self.caller.mint_key()).to_string(),
            ..v1::CancelRequest::default()
        };
        request.put_cancel(cancel);
        let call =
            |channel, request| async move { SignalsClient::new(channel).cancel(request).await };
        let aim = Aim::Writes(session.clone());
        let answer = self.caller.unary(Lane::People, aim, request, call).await;
        decided(answer.map(|answer| v1::SignalResponse {
            session_epoch: answer.session_epoch,
            outcome: answer.outcome,
            offset: answer.offset,
            state: answer.state,
            duplicate: answer.duplicate,
        }))
    }

    /// Makes runs wait: what their writers send is refused until they are resumed, and no lease
    /// of theirs ends meanwhile. Being denied, an unknown run and one that has ended are outcomes.
    ///
    /// ```no_run
    /// use everwire_client::{Client, Target};
    /// use everwire_core::{Refusal, RunId, SessionName};
    ///
    /// async fn wait(client: Client, session: SessionName) -> Result<(), Refusal> {
    ///     let run = Target::Run(RunId::parse("r1")?);
    ///     client.pause(&session, run.clone(), None).await?;
    ///     client.resume(&session, run, None).await?;
    ///     Ok(())
    /// }
    /// ```
    pub async fn pause(
        &self,
        session: &SessionName,
        target: Target,
        key: Option<Key>,
    ) -> Result<Signalled, Refusal> {
        self.signal(session, &Signal::Pause(target), key).await
    }

    /// Lets runs go on that were paused; a run that is named also when it waits for something
    /// that a person is to say or to give.
    pub async fn resume(
        &self,
        session: &SessionName,
        target: Target,
        key: Option<Key>,
    ) -> Result<Signalled, Refusal> {
        self.signal(session, &Signal::Resume(target), key).await
    }

    /// Answers a request for an approval. The first answer that is committed wins: whoever comes
    /// later is told ALREADY_RESOLVED, or EXPIRED. UNKNOWN_APPROVAL; DENIED for whoever is not
    /// asked; WRONG_STATE if the action is another than the one that was seen.
    ///
    /// ```no_run
    /// use everwire_client::Client;
    /// use everwire_core::event::{Body, Verdict};
    /// use everwire_core::{Answer, Event, Refusal, SessionName};
    ///
    /// async fn approve(client: Client, session: SessionName, asked: &Event) -> Result<(), Refusal> {
    ///     if let Body::ApprovalRequested(request) = &asked.body {
    ///         let answer = Answer {
    ///             approval: request.approval.clone(),
    ///             verdict: Verdict::Approve,
    ///             action_hash: request.action_hash.clone(),
    ///             note: None,
    ///         };
    ///         client.answer(&session, answer, None).await?;
    ///     }
    ///     Ok(())
    /// }
    /// ```
    pub async fn answer(
        &self,
        session: &SessionName,
        answer: Answer,
        key: Option<Key>,
    ) -> Result<Signalled, Refusal> {
        self.signal(session, &Signal::Answer(answer), key).await
    }

    /// Any signal that is no stop.
    pub async fn signal(
        &self,
        session: &SessionName,
        signal: &Signal,
        key: Option<Key>,
    ) -> Result<Signalled, Refusal> {
        signal.check_shape()?;
        let key = key.unwrap_or_else(|| self.caller.mint_key());
        let request = request_of(session, signal, &key);
        let call =
            |channel, request| async move { SignalsClient::new(channel).signal(request).await };
        let aim = Aim::Writes(session.clone());
        let answer = self.caller.unary(Lane::People, aim, request, call).await;
        // Whoever is not asked is told so, and it is no outcome: somebody else may answer.
        match signal {
            Signal::Answer(_) => wire::signalled(&answer?),
            Signal::Pause(_) | Signal::Resume(_) => decided(answer),
        }
    }
}

/// Being denied and an unknown run are outcomes like the others.
fn decided(answer: Result<v1::SignalResponse, Refusal>) -> Result<Signalled, Refusal> {
    let decided = |outcome| Signalled {
        outcome,
        session_epoch: None,
        duplicate: false,
    };
    match answer {
        Ok(answer) => wire::signalled(&answer),
        Err(refusal) if refusal.code == Code::Denied => Ok(decided(SignalOutcome::Denied)),
        Err(refusal) if refusal.code == Code::UnknownRun => Ok(decided(SignalOutcome::UnknownRun)),
        Err(refusal) => Err(refusal),
    }
}
