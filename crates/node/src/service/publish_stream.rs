//! One pipelined publish stream: batches in, acks and refusals out, in their order.
//!
//! A batch is answered from the log, never from memory. The stream holds a bounded window:
//! bytes of payload by the credit that the client knows, envelopes and batches by not reading
//! on. Its end, whatever the reason, changes nothing in the session: what was submitted is
//! committed all the same, and nothing else happens.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use everwire_core::command::Published;
use everwire_core::limits::{
    AUTH_WITHIN, BATCHES_REMEMBERED, CONNECTION_CREDIT_BYTES, RUN_CREDIT_BYTES,
    STREAM_WEIGHT_BYTES_MAX,
};
use everwire_core::{Code, Command, Details, Outcome, Refusal};
use everwire_proto::{event, v1};
use everwire_shard::{Pending, SessionInfo};
use futures_util::FutureExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::{Status, Streaming};
use v1::publish_stream_request::Message as In;
use v1::publish_stream_response::Message as Out;

use crate::answer::translated;
use crate::context::{Context, drained};
use crate::identity::Caller;
use crate::metrics::Counted;
use crate::service::publish::{Target, appended, ranges};
use crate::service::standing::Standing;

/// Most ranges in one ack: what is ready is merged up to here.
const RANGES_PER_ACK: usize = 64;

/// One open stream. Everything that it holds goes with it.
pub(super) struct PublishStream {
    context: Arc<Context>,
    caller: Caller,
    inbound: Streaming<v1::PublishStreamRequest>,
    /// Credit that all streams of the connection share.
    connection: Arc<Semaphore>,
    /// Resolves when the node drains or the token's time is over.
    over: Pin<Box<dyn Future<Output = Refusal> + Send>>,
    /// The run, once it is opened.
    target: Option<Target>,
    /// Tells when the run has left its writer, once it is opened.
    standing: Option<Standing>,
    /// A batch that was read and waits for the connection's credit.
    waiting: Option<Waiting>,
    /// Signs of life: the one that is under way, and the one that came since.
    beat: Beat,
    /// Batches without an answer, the oldest first.
    under_way: VecDeque<Slot>,
    /// Payload bytes under way: what the client's credit has been used for.
    bytes: usize,
    /// Weight of what is under way, envelopes included.
    weight: usize,
    /// Why nothing more is read; answered after everything under way.
    end: Option<End>,
    _counted: Counted,
}

/// One sign of life at a time, and of those behind it only the last: they tell the same.
#[derive(Default)]
struct Beat {
    under_way: Option<Pending>,
    next: Option<Command>,
}

enum End {
    /// The client closed its half.
    Closed,
    /// The stream cannot go on.
    Refused(Refusal),
}

struct Waiting {
    batch: Result<Command, Refusal>,
    cost: Cost,
    credit: Pin<Box<dyn Future<Output = Option<OwnedSemaphorePermit>> + Send>>,
}

/// What a batch takes while it is under way.
#[derive(Clone, Copy)]
struct Cost {
    first_seq: u64,
    bytes: usize,
    weight: usize,
}

struct Slot {
    cost: Cost,
    submitted: Instant,
    answer: Answer,
    /// The connection's credit, given back when the slot goes.
    _credit: Option<OwnedSemaphorePermit>,
}

enum Answer {
    Pending(Pending),
    Refused(Refusal),
}

/// What happened next.
enum Step {
    Answered(Result<Published, Refusal>),
    Over(Refusal),
    Credited(Option<OwnedSemaphorePermit>),
    Lost(Result<Refusal, Refusal>),
    Beaten(Result<Outcome, Refusal>),
    Read(Result<Option<v1::PublishStreamRequest>, Status>),
}

impl PublishStream {
    /// A stream that waits for its opening message.
    pub(super) fn new(
        context: &Arc<Context>,
        caller: Caller,
        inbound: Streaming<v1::PublishStreamRequest>,
        connection: Arc<Semaphore>,
    ) -> Self {
        let expiry = caller.expiry(Arc::clone(&context.clock));
        let draining = context.draining.clone();
        let over = async move {
            tokio::select! {
                refusal = expiry => refusal,
                () = draining.cancelled() => drained(),
            }
        };
        Self {
            context: Arc::clone(context),
            caller,
            inbound,
            connection,
            over: Box::pin(over),
            target: None,
            standing: None,
            waiting: None,
            beat: Beat::default(),
            under_way: VecDeque::new(),
            bytes: 0,
            weight: 0,
            end: None,
            _counted: context.metrics.publish_stream(),
        }
    }

    /// The next message to the client; `None` once the stream is over.
    pub(super) async fn next(&mut self) -> Option<Result<v1::PublishStreamResponse, Status>> {
        if self.target.is_none() && self.end.is_none() {
            return Some(self.open().await.map_err(|refusal| self.stop(refusal)));
        }
        loop {
            if self.under_way.is_empty() && self.waiting.is_none() {
                match self.end.take() {
                    Some(End::Closed) => return None,
                    Some(End::Refused(refusal)) => return Some(Err(self.stop(refusal))),
                    None => {},
                }
            }
            match self.step().await {
                Step::Answered(answer) => return Some(Ok(self.answer(answer))),
                Step::Over(refusal) => self.end = Some(End::Refused(refusal)),
                Step::Credited(permit) => self.submit(permit),
                Step::Lost(Ok(refusal)) => return Some(Ok(self.stopped(&refusal))),
                Step::Lost(Err(refusal)) => self.end = Some(End::Refused(refusal)),
                Step::Beaten(outcome) => {
                    if let Some(refusal) = self.beaten(outcome) {
                        return Some(Ok(self.stopped(&refusal)));
                    }
                },
                Step::Read(Ok(Some(request))) => {
                    if let Err(refusal) = self.take(request) {
                        self.end = Some(End::Refused(refusal));
                    }
                },
                Step::Read(Ok(None)) => self.end = Some(End::Closed),
                Step::Read(Err(status)) => {
                    self.end = Some(match translated(&status) {
                        Some(refusal) => End::Refused(refusal),
                        None => End::Closed,
                    });
                },
            }
        }
    }

    /// The end of the stream with a status.
    fn stop(&mut self, refusal: Refusal) -> Status {
        self.end = Some(End::Closed);
        self.context.refuse(&refusal)
    }

    async fn open(&mut self) -> Result<v1::PublishStreamResponse, Refusal> {
        let first = tokio::select! {
            biased;
            refusal = &mut self.over => return Err(refusal),
            first = tokio::time::timeout(AUTH_WITHIN, self.inbound.message()) => first,
        };
        let malformed = |what: &str| Err(Refusal::new(Code::Malformed, what));
        let open = match first {
            Ok(Ok(Some(v1::PublishStreamRequest {
                message: Some(In::Open(open)),
            }))) => open,
            Ok(Ok(_)) => return malformed("the first message of a stream opens it"),
            Ok(Err(status)) => {
                return Err(translated(&status).unwrap_or_else(|| {
                    Refusal::new(Code::Malformed, "the stream broke before it was open")
                }));
            },
            Err(_) => return malformed("the stream was not opened in time"),
        };
        let place = (
            open.session.as_str(),
            open.run.as_str(),
            open.run_epoch,
            open.session_epoch.as_str(),
        );
        let mut target = Target::of(&self.context, &self.caller, place)?;
        let shard = self.context.shard(&target.namespace, &target.session);
        let info = shard.show(&target.namespace, &target.session).await?;
        // From here on everything is for this history, whoever deletes and makes what.
        let meant = target.session_epoch.get_or_insert(info.session_epoch);
        if *meant != info.session_epoch {
            return Err(another_history(&info));
        }
        let (standing, over) = Standing::open(&self.context, &target).await?;
        self.standing = Some(standing);
        tracing::debug!(
            session = %target.session,
            run = open.run,
            run_epoch = open.run_epoch,
            shard = %shard.id(),
            "publish stream opened"
        );
        self.target = Some(target);
        Ok(response(Out::Opened(v1::PublishOpened {
            session_epoch: info.session_epoch.to_string(),
            credit_bytes: RUN_CREDIT_BYTES,
            over: over.as_ref().map(Into::into),
        })))
    }

    /// Tells a silent writer that its run is over. The stream goes on, for what it may resend.
    fn stopped(&self, refusal: &Refusal) -> v1::PublishStreamResponse {
        self.context.note(refusal);
        self.log(&format_args!("{}", refusal.code), 0);
        response(Out::Refused(v1::PublishRefused {
            first_seq: 0,
            error: Some(refusal.into()),
            credit_bytes: 0,
        }))
    }

    /// Waits for whatever comes first; answers before new work.
    async fn step(&mut self) -> Step {
        let may_read = self.may_read();
        let Self {
            over,
            standing,
            waiting,
            under_way,
            inbound,
            end,
            beat,
            ..
        } = self;
        let is_open = end.is_none();
        // What is under way has its own answers, and they come first.
        let is_idle = is_open && under_way.is_empty() && waiting.is_none();
        let lost = async {
            match standing {
                Some(standing) => standing.lost().await,
                None => std::future::pending().await,
            }
        };
        let beaten = async {
            match &mut beat.under_way {
                Some(pending) => pending.await,
                None => std::future::pending().await,
            }
        };
        let oldest = async {
            match under_way.front_mut() {
                Some(slot) => slot.answered().await,
                None => std::future::pending().await,
            }
        };
        let credited = async {
            match waiting {
                Some(waiting) => waiting.credit.as_mut().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            answer = oldest => Step::Answered(answer),
            refusal = over, if is_open => Step::Over(refusal),
            permit = credited => Step::Credited(permit),
            lost = lost, if is_idle => Step::Lost(lost),
            outcome = beaten => Step::Beaten(outcome),
            request = inbound.message(), if may_read => Step::Read(request),
        }
    }

    /// Whether the window has room for one more batch.
    fn may_read(&self) -> bool {
        let batches = u64::try_from(self.under_way.len()).unwrap_or(u64::MAX);
        self.end.is_none()
            && self.waiting.is_none()
            && batches < BATCHES_REMEMBERED
            && self.weight < STREAM_WEIGHT_BYTES_MAX
    }

    /// Takes one message after the first. `Err` ends the stream: the client broke the protocol,
    /// or its time is over. A batch that cannot be taken is answered in its turn instead.
    fn take(&mut self, request: v1::PublishStreamRequest) -> Result<(), Refusal> {
        let malformed = |what: &str| Err(Refusal::new(Code::Malformed, what));
        let batch = match request.message {
            Some(In::Batch(batch)) => batch,
            Some(In::Heartbeat(heartbeat)) => return self.beat(&heartbeat),
            Some(In::Open(_)) => return malformed("the stream is open already"),
            None => return malformed("a message is a batch, a heartbeat or an open"),
        };
        // The client may send while it has credit left, so it may overdraw by one batch. What
        // it knows to be under way is never less than what we count here.
        let credit = usize::try_from(RUN_CREDIT_BYTES).expect("32 bits fit");
        if self.bytes >= credit {
            return malformed("the stream's credit was overdrawn by more than one batch");
        }
        self.caller.claims().check_time(self.context.clock.now())?;
        let Some(target) = &self.target else {
            return malformed("the stream is not open");
        };
        let first_seq = batch.first_seq;
        let bytes: usize = batch.drafts.iter().map(event::payload_bytes).sum();
        let batch = target.command(&self.caller, batch);
        let weight = batch
            .as_ref()
            .map_or(0, |command| command.op.weight_bytes());
        let cost = Cost {
            first_seq,
            bytes,
            weight,
        };
        self.bytes += bytes;
        self.weight += weight;
        let credit = connection_credit(Arc::clone(&self.connection), weight);
        self.waiting = Some(Waiting {
            batch,
            cost,
            credit: Box::pin(credit),
        });
        Ok(())
    }

    /// Takes a sign of life. Batches are signs of life too, so it never waits for one, nor holds
    /// one up.
    fn beat(&mut self, heartbeat: &v1::PublishHeartbeat) -> Result<(), Refusal> {
        self.caller.claims().check_time(self.context.clock.now())?;
        let Some(target) = &self.target else {
            return Ok(());
        };
        let command = target.heartbeat(&self.caller, heartbeat.observed_through)?;
        self.beat.next = Some(command);
        if self.beat.under_way.is_none() {
            self.next_beat();
        }
        Ok(())
    }

    fn next_beat(&mut self) {
        let Some(command) = self.beat.next.take() else {
            return;
        };
        let shard = self.context.shard(&command.namespace, &command.session);
        // One that is not taken is lost, as on the way here: the next comes in time.
        self.beat.under_way = shard.submit(command).ok();
    }

    /// What a sign of life was answered. Only what ends the writer's right is told: what is
    /// wrong on the way here is none of its business.
    fn beaten(&mut self, outcome: Result<Outcome, Refusal>) -> Option<Refusal> {
        self.beat.under_way = None;
        self.next_beat();
        match outcome {
            Ok(Outcome::Refused(refusal)) => Some(refusal),
            Ok(_) | Err(_) => None,
        }
    }

    /// Hands the batch that was waiting to the shard, in the order in which it came.
    fn submit(&mut self, credit: Option<OwnedSemaphorePermit>) {
        let Some(Waiting { batch, cost, .. }) = self.waiting.take() else {
            return;
        };
        let answer = batch.and_then(|command| {
            let shard = self.context.shard(&command.namespace, &command.session);
            shard.submit(command)
        });
        self.under_way.push_back(Slot {
            cost,
            submitted: Instant::now(),
            answer: match answer {
                Ok(pending) => Answer::Pending(pending),
                Err(refusal) => Answer::Refused(refusal),
            },
            _credit: credit,
        });
    }

    /// The message for the oldest batch, which has its answer. Acks that are ready behind it
    /// travel in the same message: they are cumulative.
    fn answer(&mut self, answer: Result<Published, Refusal>) -> v1::PublishStreamResponse {
        let cost = self.finish();
        let published = match answer {
            Ok(published) => published,
            Err(refusal) => {
                self.context.note(&refusal);
                self.log(&format_args!("{}", refusal.code), cost.first_seq);
                return response(Out::Refused(v1::PublishRefused {
                    first_seq: cost.first_seq,
                    error: Some((&refusal).into()),
                    credit_bytes: wire(cost.bytes),
                }));
            },
        };
        let mut ack = v1::PublishAck::default();
        self.merge(&mut ack, cost, &published);
        while ack.ranges.len() < RANGES_PER_ACK {
            let Some(slot) = self.under_way.front_mut() else {
                break;
            };
            match slot.answered().now_or_never() {
                Some(Ok(published)) => {
                    let cost = self.finish();
                    self.merge(&mut ack, cost, &published);
                },
                Some(Err(refusal)) => {
                    slot.answer = Answer::Refused(refusal);
                    break;
                },
                None => break,
            }
        }
        self.context.metrics.acked();
        self.log(&"acked", ack.through_seq);
        response(Out::Ack(ack))
    }

    fn log(&self, answer: &dyn std::fmt::Display, seq: u64) {
        if let Some(target) = &self.target {
            let (session, run) = (&target.session, &target.run);
            tracing::trace!(%session, %run, seq, %answer, "answered a batch");
        }
    }

    /// Takes the oldest batch off the window.
    fn finish(&mut self) -> Cost {
        let slot = self.under_way.pop_front().expect("an answer has its slot");
        self.bytes -= slot.cost.bytes;
        self.weight -= slot.cost.weight;
        if matches!(slot.answer, Answer::Pending(_)) {
            self.context.metrics.committed(slot.submitted.elapsed());
        }
        slot.cost
    }

    fn merge(&self, ack: &mut v1::PublishAck, cost: Cost, published: &Published) {
        if let Some((seq, offset)) = published.through()
            && seq.0 >= ack.through_seq
        {
            ack.through_seq = seq.0;
            ack.through_offset = offset.get();
        }
        ack.credit_bytes = ack.credit_bytes.saturating_add(wire(cost.bytes));
        ack.ranges.extend(ranges(cost.first_seq, published));
        let events = appended(published);
        if events > 0 {
            self.context.metrics.published(events, cost.bytes);
        }
    }
}

impl Slot {
    /// Waits for the answer. Cancel-safe, and not called again after it answered.
    async fn answered(&mut self) -> Result<Published, Refusal> {
        match &mut self.answer {
            Answer::Refused(refusal) => Err(refusal.clone()),
            Answer::Pending(pending) => match pending.await? {
                Outcome::Published(published) => Ok(published),
                Outcome::Refused(refusal) => Err(refusal),
                other => Err(Context::unexpected(&other)),
            },
        }
    }
}

fn another_history(info: &SessionInfo) -> Refusal {
    let details = Details {
        session_epoch: Some(info.session_epoch),
        earliest: Some(info.trimmed.next()),
        tail: Some(info.tail),
        ..Details::default()
    };
    Refusal::with(Code::Gone, "the session was deleted and made anew", details)
}

/// Bytes of the connection's credit for a batch of this weight; `None` only when the node is
/// going down.
async fn connection_credit(
    connection: Arc<Semaphore>,
    weight: usize,
) -> Option<OwnedSemaphorePermit> {
    let bytes = u32::try_from(weight).unwrap_or(CONNECTION_CREDIT_BYTES);
    connection
        .acquire_many_owned(bytes.min(CONNECTION_CREDIT_BYTES))
        .await
        .ok()
}

fn wire(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

fn response(message: Out) -> v1::PublishStreamResponse {
    v1::PublishStreamResponse {
        message: Some(message),
    }
}
