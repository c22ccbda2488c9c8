//! The output of one run, under one epoch: sent without waiting, resent until acked.
//!
//! Comes in: drafts. Goes out: the same drafts, in the session exactly once and in order, or the
//! refusal that ended it. A task per publisher holds the stream; the handle shares its window.
//! Never: completing or cancelling a run because a connection or this handle went away.

mod stream;
mod window;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use everwire_core::event::Body;
use everwire_core::limits::LABEL_BYTES_MAX;
use everwire_core::{Draft, Refusal, RunEpoch, RunId, Seq, SessionName};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::answers::{Ack, AckRange, RunGrant};
use crate::call::Caller;
use crate::message::cut;
use window::Window;

/// What a publisher writes, and by which right.
pub(crate) struct Target {
    pub(crate) session: SessionName,
    pub(crate) run: RunId,
    pub(crate) run_epoch: RunEpoch,
    pub(crate) grant: Option<RunGrant>,
}

/// Writes one run. Dropping it stops sending, with whatever is not acked yet in doubt; it never
/// completes or cancels the run. Call [`Publisher::flush`] first to be sure.
///
/// ```no_run
/// use everwire_client::{Client, RunWriter};
/// use everwire_core::{Refusal, RunId, SessionName};
///
/// async fn answer(client: Client, words: Vec<String>) -> Result<(), Refusal> {
///     let session = SessionName::parse("demo")?;
///     let publisher = client.start_run(&session, RunId::parse("r1")?, None).await?;
///     let mut writer = RunWriter::new(publisher.run(), publisher.run_epoch());
///     for word in words {
///         publisher.send(writer.text(&word)).await?;
///     }
///     publisher.send(writer.end()).await?;
///     publisher.complete().await?;
///     Ok(())
/// }
/// ```
pub struct Publisher {
    shared: Arc<Shared>,
    /// Those who wait for room come in turn.
    turn: tokio::sync::Mutex<()>,
}

/// What the handle, its task and the reader of acks share.
struct Shared {
    target: Target,
    window: Mutex<Window>,
    /// The task has something to do: drafts were taken.
    work: Notify,
    /// The window moved: acks, refusals, the end. For senders, flushers and readers of acks.
    moved: Notify,
    refused: watch::Sender<Option<Refusal>>,
    /// The handle is gone: the task ends.
    stop: CancellationToken,
}

impl Shared {
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nothing more goes out.
    fn end(&self, refusal: &Refusal) {
        let Target {
            session,
            run,
            run_epoch,
            ..
        } = &self.target;
        info!(%session, %run, %run_epoch, %refusal, "the run takes no more output");
        self.window().end(refusal.clone());
        self.refused.send_replace(Some(refusal.clone()));
        self.moved.notify_waiters();
    }

    /// Waits until `check` has an answer; asks it again whenever the window moved.
    async fn until<T>(&self, mut check: impl FnMut(&mut Window) -> Option<T>) -> T {
        loop {
            let moved = self.moved.notified();
            let answer = check(&mut self.window());
            if let Some(answer) = answer {
                return answer;
            }
            moved.await;
        }
    }
}

impl Publisher {
    pub(crate) fn spawn(caller: Caller, target: Target, from_seq: Seq) -> Self {
        let shared = Arc::new(Shared {
            target,
            window: Mutex::new(Window::new(from_seq)),
            work: Notify::new(),
            moved: Notify::new(),
            refused: watch::Sender::new(None),
            stop: CancellationToken::new(),
        });
        tokio::spawn(stream::run(Arc::clone(&shared), caller));
        Self {
            shared,
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// The session.
    pub fn session(&self) -> &SessionName {
        &self.shared.target.session
    }

    /// The run.
    pub fn run(&self) -> &RunId {
        &self.shared.target.run
    }

    /// The epoch that it writes under.
    pub fn run_epoch(&self) -> RunEpoch {
        self.shared.target.run_epoch
    }

    /// What the start or the claim answered; `None` for [`crate::Client::publisher`].
    pub fn grant(&self) -> Option<RunGrant> {
        self.shared.target.grant
    }

    /// Takes drafts to be sent and answers the seq of the last. Waits for room only, never for
    /// acks. All of them are taken or none: cancel-safe. A draft outside its shape is refused
    /// here and ends nothing; any other refusal is the one that ended the run for this writer.
    pub async fn send(&self, drafts: Vec<Draft>) -> Result<Seq, Refusal> {
        for draft in &drafts {
            draft.check_shape()?;
        }
        let _turn = self.turn.lock().await;
        let taken = self.shared.until(|window| match window.refused() {
            Some(refusal) => Some(Err(refusal.clone())),
            None => window.has_room().then(|| Ok(window.take(&drafts))),
        });
        let seq = taken.await?;
        self.shared.work.notify_one();
        Ok(seq)
    }

    /// Waits until everything sent so far is acked.
    pub async fn flush(&self) -> Result<Ack, Refusal> {
        let target = self.shared.window().last_taken();
        let acked = self.shared.until(|window| {
            if window.acked().seq >= target {
                return Some(Ok(window.acked()));
            }
            window.refused().map(|refusal| Err(refusal.clone()))
        });
        acked.await
    }

    /// What was taken and is not acked, in order. Once the run was refused to this writer none of
    /// it is committed: whoever goes on with the run sends it under the next epoch.
    pub fn left(&self) -> Vec<Draft> {
        self.shared.window().left()
    }

    /// Where output comes to stand, as it is acked: each seq once, in order. One reader at a
    /// time: a second call ends the first. A reader that stops reading stops the sender in the
    /// end, so drop it when it is not wanted any more.
    pub fn acks(&self) -> Acks {
        let reader = self.shared.window().keep_acks();
        self.shared.moved.notify_waiters();
        Acks {
            shared: Arc::clone(&self.shared),
            reader,
        }
    }

    /// Resolves when the run takes no more output from this writer: cancelled, ended, claimed
    /// by another. The stop signal of an agent: the node tells it at once, whether something is
    /// being sent or not. Can be taken to another task; never resolves when the publisher is
    /// dropped or completes first.
    pub fn refused(&self) -> impl Future<Output = Refusal> + Send + Sync + use<> {
        let mut refused = self.shared.refused.subscribe();
        async move {
            let refusal = match refused.wait_for(Option::is_some).await {
                Ok(refusal) => (*refusal).clone(),
                Err(_closed) => None,
            };
            match refusal {
                Some(refusal) => refusal,
                None => std::future::pending().await,
            }
        }
    }

    /// Completes the run: sends `run.completed` and waits for its ack.
    pub async fn complete(self) -> Result<Ack, Refusal> {
        self.send(vec![Draft::new(Body::RunCompleted)]).await?;
        self.flush().await
    }

    /// Fails the run: sends `run.failed` and waits for its ack. The reason is cut at 256 bytes.
    pub async fn fail(self, reason: &str) -> Result<Ack, Refusal> {
        let reason = cut(reason, LABEL_BYTES_MAX).0.to_owned();
        self.send(vec![Draft::new(Body::RunFailed { reason })])
            .await?;
        self.flush().await
    }
}

impl Drop for Publisher {
    fn drop(&mut self) {
        // Whoever reads acks learns that there will be no more.
        self.shared.stop.cancel();
        self.shared.moved.notify_waiters();
    }
}

/// Acked stretches of a run, in order.
pub struct Acks {
    shared: Arc<Shared>,
    /// Which of the readers this is: the newest is served.
    reader: u64,
}

impl Acks {
    /// The next stretch; `None` when there will be no more: the publisher is gone or was
    /// refused, or another reader took over. Cancel-safe.
    pub async fn next(&mut self) -> Option<AckRange> {
        let (shared, reader) = (&self.shared, self.reader);
        let next = shared.until(|window| match window.next_ack(reader) {
            Some(Some(range)) => Some(Some(range)),
            Some(None) => {
                let over = window.refused().is_some() || shared.stop.is_cancelled();
                over.then_some(None)
            },
            None => Some(None),
        });
        let next = next.await;
        // There may be room again for a sender that had outrun this reader.
        shared.moved.notify_waiters();
        next
    }
}

impl Drop for Acks {
    fn drop(&mut self) {
        self.shared.window().drop_acks(self.reader);
        self.shared.moved.notify_waiters();
    }
}
