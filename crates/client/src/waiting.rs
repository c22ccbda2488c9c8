//! Runs that wait: for a person who paused them, or for an approval that they have asked for.

use std::time::Duration;

use everwire_core::event::{ApprovalOutcome, Body, Verdict};
use everwire_core::row::RunState;
use everwire_core::{
    ApprovalId, Code, Cursor, Event, Offset, ParticipantId, Refusal, RunId, SessionName,
};

use crate::client::Client;
use crate::publisher::Publisher;
use crate::subscriber::{SubscribeOptions, SubscriberEvent};

/// How often a run that waits is looked at: it is a person that it waits for.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// What became of a request for an approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// What.
    pub outcome: ApprovalOutcome,
    /// Where that stands.
    pub offset: Offset,
    /// Who answered; `everwire` when nobody did in time.
    pub by: ParticipantId,
    /// What whoever answered had to say.
    pub note: Option<String>,
    /// What silence stands for, when nobody answered in time.
    pub on_expiry: Option<Verdict>,
}

impl Resolution {
    /// Whether it may be done: somebody said yes, or silence stands for a yes.
    pub fn allows(&self) -> bool {
        match self.outcome {
            ApprovalOutcome::Approved => true,
            ApprovalOutcome::Expired => self.on_expiry == Some(Verdict::Approve),
            ApprovalOutcome::Denied | ApprovalOutcome::Withdrawn => false,
        }
    }

    fn of(event: &Event, wanted: &ApprovalId) -> Option<Self> {
        match &event.body {
            Body::ApprovalResolved {
                approval,
                outcome,
                note,
                on_expiry,
            } if approval == wanted => Some(Self {
                outcome: *outcome,
                offset: event.offset,
                by: event.author.participant.clone(),
                note: note.clone(),
                on_expiry: *on_expiry,
            }),
            _ => None,
        }
    }
}

impl Client {
    /// Waits until a run waits no more, and answers where it stands: running, orphaned or ended.
    /// A writer whose run was paused claims it then; see [`Client::go_on`].
    pub async fn until_resumed(
        &self,
        session: &SessionName,
        run: &RunId,
    ) -> Result<RunState, Refusal> {
        loop {
            let state = self.run(session, run).await?.state;
            if state != RunState::Suspended {
                return Ok(state);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Goes on with a run that was paused: waits until somebody resumes it, claims it, and sends
    /// first what was not taken of the writer before. RUN_FENCED or RUN_ENDED if it ends instead.
    ///
    /// ```no_run
    /// use everwire_client::{Client, Publisher, is_paused};
    /// use everwire_core::{Draft, Refusal};
    ///
    /// async fn say(client: &Client, publisher: Publisher, drafts: Vec<Draft>) -> Result<Publisher, Refusal> {
    ///     match publisher.send(drafts.clone()).await {
    ///         Ok(_) => Ok(publisher),
    ///         Err(refusal) if is_paused(&refusal) => {
    ///             let publisher = client.go_on(&publisher).await?;
    ///             publisher.send(drafts).await?;
    ///             Ok(publisher)
    ///         },
    ///         Err(refusal) => Err(refusal),
    ///     }
    /// }
    /// ```
    pub async fn go_on(&self, paused: &Publisher) -> Result<Publisher, Refusal> {
        let (session, run) = (paused.session().clone(), paused.run().clone());
        self.until_resumed(&session, &run).await?;
        let publisher = self.claim_run(&session, run).await?;
        let left = paused.left();
        if !left.is_empty() {
            publisher.send(left).await?;
        }
        Ok(publisher)
    }

    /// Waits for the end of a request for an approval that stands at `asked_at`. The token must
    /// allow to subscribe.
    pub async fn resolution(
        &self,
        session: &SessionName,
        approval: &ApprovalId,
        asked_at: Offset,
    ) -> Result<Resolution, Refusal> {
        let options = SubscribeOptions {
            cursor: Some(Cursor {
                session_epoch: None,
                offset: asked_at,
            }),
            ..SubscribeOptions::default()
        };
        let mut subscriber = self.subscribe(session, options);
        loop {
            match subscriber.next().await {
                SubscriberEvent::Events { events, .. } => {
                    let mut found = events.iter();
                    let found = found.find_map(|event| Resolution::of(event, approval));
                    if let Some(resolution) = found {
                        return Ok(resolution);
                    }
                },
                SubscriberEvent::Attached { .. }
                | SubscriberEvent::Alive { .. }
                | SubscriberEvent::Disconnected { .. } => {},
                SubscriberEvent::Gone { .. } => {
                    return Err(Refusal::new(Code::Gone, "the session was deleted"));
                },
                SubscriberEvent::NotFound => {
                    let message = "there is no such session";
                    return Err(Refusal::new(Code::UnknownSession, message));
                },
                SubscriberEvent::Ended(refusal) => return Err(refusal),
            }
        }
    }
}

/// Whether a writer was refused because somebody paused its run, or because it said itself that
/// it waits.
pub fn is_paused(refusal: &Refusal) -> bool {
    let suspended = Some(RunState::Suspended.as_str());
    refusal.code == Code::WrongState && refusal.details.state == suspended
}
