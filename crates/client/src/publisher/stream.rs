//! The task of a publisher: keeps one publish stream open and moves the window over it.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::limits::{
    ANSWER_LATE_AFTER, ATTEMPT_WITHIN, HEARTBEAT_LOST_AFTER, LEASE_DEFAULT,
};
use everwire_core::{Code, Refusal, Seq};
use everwire_proto::field;
use everwire_proto::refusal::from_error;
use everwire_proto::v1;
use everwire_proto::v1::publish_client::PublishClient;
use everwire_proto::v1::publish_stream_request::Message as Request;
use everwire_proto::v1::publish_stream_response::Message as Response;
use everwire_proto::v1::runs_client::RunsClient;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::debug;

use super::window::Verdict;
use super::{Shared, Target};
use crate::answers::Ack;
use crate::backoff::Backoff;
use crate::call::{Caller, Failure, Next, SecondToken, with_token};
use crate::connection::Lane;
use crate::route::{Aim, Pace, Route};
use crate::wire;

/// Batches between the window and the connection; the window has its own bound in bytes.
const REQUESTS_READY_MAX: usize = 2;
/// A stream that lived for so long was a good one: the next pause is short again.
const GOOD_AFTER: Duration = Duration::from_secs(5);
/// Signs of life in one lease: two may be lost.
const BEATS_PER_LEASE: u32 = 3;

/// Runs until the run is over for this writer or its handle is dropped.
pub(super) async fn run(shared: Arc<Shared>, caller: Caller) {
    let stop = shared.stop.clone();
    let grant = shared.target.grant;
    let lease = grant.map_or(LEASE_DEFAULT, |grant| grant.lease.unwrap_or(LEASE_DEFAULT));
    let driver = Driver {
        beat_every: lease / BEATS_PER_LEASE,
        session_epoch: grant.map(|grant| grant.session_epoch.to_string()),
        route: Route::new(
            &caller.connections,
            Aim::Writes(shared.target.session.clone()),
        ),
        backoff: Backoff::new(Arc::clone(&caller.random)),
        second: SecondToken::default(),
        shared,
        caller,
    };
    stop.run_until_cancelled(driver.run()).await;
}

struct Driver {
    shared: Arc<Shared>,
    /// A writer that has sent nothing for so long says that it lives.
    beat_every: Duration,
    /// The history that is written: as granted, else as first opened.
    session_epoch: Option<String>,
    caller: Caller,
    route: Route,
    backoff: Backoff,
    second: SecondToken,
}

/// A stream that was opened.
struct Open {
    requests: mpsc::Sender<v1::PublishStreamRequest>,
    responses: Streaming<v1::PublishStreamResponse>,
}

/// What a response asks of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flow {
    On,
    Pause,
    Over,
}

impl Driver {
    async fn run(mut self) {
        while let Err(failure) = self.stream().await {
            if let Some(refusal) = self.after(failure).await {
                self.shared.end(&refusal);
                break;
            }
        }
        self.observed();
    }

    /// Tells the session that its stop was seen here. Goes on when the handle is dropped, which
    /// is what many writers do at once.
    fn observed(self) {
        let window = self.shared.window();
        let stopped = window.refused().and_then(|refusal| match refusal.code {
            Code::RunFenced => refusal.details.cancel_offset,
            _ => None,
        });
        drop(window);
        let Some(cancel_offset) = stopped else { return };
        let target = &self.shared.target;
        let request = v1::HeartbeatRequest {
            session: target.session.to_string(),
            run: target.run.to_string(),
            run_epoch: target.run_epoch.0,
            observed_through: Some(cancel_offset.get()),
            session_epoch: self.session_epoch.clone().unwrap_or_default(),
        };
        let aim = Aim::Writes(target.session.clone());
        let caller = self.caller.clone();
        tokio::spawn(async move {
            let call =
                |channel, request| async move { RunsClient::new(channel).heartbeat(request).await };
            let told = caller.unary(Lane::Data, aim, request, call).await;
            if let Err(refusal) = told {
                // Another writer of this run has told it, or nobody listens any more.
                debug!(%refusal, "that a stop was seen was not noted");
            }
        });
    }

    /// Decides what follows a failure; `Some` is the end.
    async fn after(&mut self, failure: Failure) -> Option<Refusal> {
        let Target { session, run, .. } = &self.shared.target;
        let address = self.route.address();
        debug!(%session, %run, %address, refusal = %failure.refusal, "a publish stream ended");
        let connections = &self.caller.connections;
        let mut pace = self.route.failed(connections, &failure);
        match failure.next() {
            Next::Here | Next::Elsewhere => {},
            Next::Reauthenticate if self.second.refused() => pace = Pace::Now,
            // The session was deleted; what was granted there is void.
            Next::Reattach | Next::Reauthenticate | Next::Stop => return Some(failure.refusal),
        }
        let pause = self.backoff.pause();
        self.route.wait(connections, pace, pause).await;
        None
    }

    /// One stream, from its opening to its end. `Ok` when the run is over and noted.
    async fn stream(&mut self) -> Result<(), Failure> {
        let opening = timeout(ATTEMPT_WITHIN, self.open());
        let silent = |_elapsed| Failure::transport("the publish stream was not opened in time");
        let mut open = opening.await.map_err(silent)??;
        self.second.accepted();
        self.shared.moved.notify_waiters();
        let since = Instant::now();
        let ended = self.pump(&mut open).await;
        if since.elapsed() >= GOOD_AFTER {
            self.backoff.reset();
            self.route.answered(&self.caller.connections);
        }
        ended
    }

    async fn open(&mut self) -> Result<Open, Failure> {
        let token = self.caller.token.token().await.map_err(Failure::refused)?;
        if !self.second.note(&token) {
            let message = "the token was refused, and there is no other";
            return Err(Failure::refused(Refusal::new(
                Code::Unauthenticated,
                message,
            )));
        }
        let connections = &self.caller.connections;
        let address = self.route.choose(connections, Lane::Data, &token);
        let channel = connections.channel(address, Lane::Data);
        let channel = channel.map_err(Failure::refused)?;
        let (requests, ready) = mpsc::channel(REQUESTS_READY_MAX);
        let target = &self.shared.target;
        let hello = Request::Open(v1::PublishOpen {
            session: target.session.to_string(),
            run: target.run.to_string(),
            run_epoch: target.run_epoch.0,
            session_epoch: self.session_epoch.clone().unwrap_or_default(),
        });
        let gone = |_error| Failure::transport("the publish stream ended before it began");
        requests.send(request(hello)).await.map_err(gone)?;
        let call = with_token(ReceiverStream::new(ready), &token).map_err(Failure::refused)?;
        let opening = async {
            let answer = PublishClient::new(channel).stream(call).await;
            let answer = answer.map_err(|status| Failure::status(&status))?;
            let mut responses = answer.into_inner();
            Ok((next(&mut responses).await?, responses))
        };
        let opened: Result<_, Failure> = tokio::select! {
            biased;
            opened = opening => opened,
            // Whoever holds it back waits for a leader that others know already.
            () = self.route.superseded(connections) => Err(Failure::superseded()),
        };
        let (first, responses) = opened?;
        match first {
            Response::Opened(opened) => {
                self.session_epoch.get_or_insert(opened.session_epoch);
                let mut window = self.shared.window();
                window.opened(opened.credit_bytes);
                if let Some(over) = opened.over {
                    window.tell_over(from_error(over));
                }
                drop(window);
                Ok(Open {
                    requests,
                    responses,
                })
            },
            Response::Refused(refused) => Err(Failure::refused(from_error(
                refused.error.unwrap_or_default(),
            ))),
            Response::Ack(_) => Err(Failure::transport("an ack came before the opening")),
        }
    }

    /// Sends what may be sent and takes what is answered.
    async fn pump(&mut self, open: &mut Open) -> Result<(), Failure> {
        let mut heard = Instant::now();
        let mut lived = heard;
        let mut paused: Option<Instant> = None;
        let requests = open.requests.clone();
        let (route, connections) = (self.route.clone(), Arc::clone(&self.caller.connections));
        let superseded = route.superseded(&connections);
        tokio::pin!(superseded);
        let mut doubted = false;
        loop {
            let over = self.shared.window().take_over();
            if let Some(refusal) = over {
                self.shared.end(&refusal);
                return Ok(());
            }
            let (ready, waiting) = {
                let window = self.shared.window();
                (window.may_send(), window.waits_for_answers())
            };
            let resume = paused.unwrap_or(heard);
            // Keepalive finds a dead connection; this finds a server that forgot to answer.
            let silence = heard + HEARTBEAT_LOST_AFTER;
            let late = heard + ANSWER_LATE_AFTER;
            tokio::select! {
                biased;
                response = next(&mut open.responses) => {
                    (heard, doubted) = (Instant::now(), false);
                    match self.take(response?)? {
                        Flow::On => {},
                        Flow::Pause => paused = Some(heard + self.backoff.pause()),
                        Flow::Over => return Ok(()),
                    }
                },
                () = sleep_until(resume), if paused.is_some() => paused = None,
                permit = requests.reserve(), if ready && paused.is_none() => {
                    let Ok(permit) = permit else { return self.last_word(open).await };
                    let batch = self.shared.window().next_batch();
                    if let Some(batch) = batch {
                        permit.send(request(Request::Batch(batch)));
                        lived = Instant::now();
                    }
                    if !waiting {
                        heard = Instant::now();
                    }
                },
                () = self.shared.work.notified() => {},
                () = superseded.as_mut() => return Err(Failure::superseded()),
                () = sleep_until(lived + self.beat_every) => {
                    lived = Instant::now();
                    // A stream that takes nothing more says why by itself.
                    let _ = requests.try_send(request(Request::Heartbeat(v1::PublishHeartbeat {
                        observed_through: None,
                    })));
                },
                () = sleep_until(late), if waiting && !doubted => {
                    connections.doubt(route.address());
                    doubted = true;
                },
                () = sleep_until(silence), if waiting => {
                    return Err(Failure::transport("the server gave no answer to a batch"));
                },
            }
        }
    }

    /// The server takes no more requests: why, it may have said already.
    async fn last_word(&mut self, open: &mut Open) -> Result<(), Failure> {
        let until = Instant::now() + ATTEMPT_WITHIN;
        loop {
            let broke = |_elapsed| Failure::transport("the publish stream broke");
            let response = timeout_at(until, next(&mut open.responses))
                .await
                .map_err(broke)??;
            if self.take(response)? == Flow::Over {
                return Ok(());
            }
        }
    }

    fn take(&mut self, response: Response) -> Result<Flow, Failure> {
        match response {
            Response::Opened(_) => Err(Failure::transport("the stream was opened twice")),
            Response::Ack(ack) => {
                self.acked(ack).map_err(Failure::refused)?;
                Ok(Flow::On)
            },
            Response::Refused(refused) => self.refused(refused),
        }
    }

    fn refused(&self, refused: v1::PublishRefused) -> Result<Flow, Failure> {
        let refusal = from_error(refused.error.unwrap_or_default());
        let Target { session, run, .. } = &self.shared.target;
        let first_seq = Seq(refused.first_seq);
        debug!(%session, %run, %first_seq, %refusal, "a batch was refused");
        if first_seq == Seq::ZERO {
            // No batch was: each one that is under way still gets its own answer.
            self.shared.window().tell_over(refusal);
            return Ok(Flow::On);
        }
        let credit = refused.credit_bytes;
        let verdict = self
            .shared
            .window()
            .refuse(first_seq, refusal.clone(), credit);
        match verdict {
            Verdict::Over => {
                self.shared.end(&refusal);
                Ok(Flow::Over)
            },
            Verdict::Reconnect => Err(Failure::refused(refusal)),
            Verdict::GoBack { pause } => Ok(if pause { Flow::Pause } else { Flow::On }),
        }
    }

    fn acked(&mut self, ack: v1::PublishAck) -> Result<(), Refusal> {
        let through = Ack {
            seq: Seq(ack.through_seq),
            offset: field::offset("through_offset", ack.through_offset)?,
        };
        let ranges: Result<Vec<_>, _> = ack.ranges.into_iter().map(wire::ack_range).collect();
        let ranges = ranges?;
        if self.shared.window().ack(through, ack.credit_bytes, &ranges) {
            self.backoff.reset();
            self.route.answered(&self.caller.connections);
        }
        self.shared.moved.notify_waiters();
        Ok(())
    }
}

fn request(message: Request) -> v1::PublishStreamRequest {
    v1::PublishStreamRequest {
        message: Some(message),
    }
}

/// The next response; the end of the stream without a word is a lost connection.
async fn next(responses: &mut Streaming<v1::PublishStreamResponse>) -> Result<Response, Failure> {
    match responses.message().await {
        Ok(Some(v1::PublishStreamResponse {
            message: Some(message),
        })) => Ok(message),
        Ok(Some(_)) => Err(Failure::transport("a response of an unknown kind")),
        Ok(None) => Err(Failure::transport("the publish stream ended")),
        Err(status) => Err(Failure::status(&status)),
    }
}
