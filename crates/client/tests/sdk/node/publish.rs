//! The publish service of the scripted node: commits well, answers badly.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::{Code, Details, Random, Refusal, RunEpoch, Seq};
use everwire_proto::refusal::to_status;
use everwire_proto::v1;
use everwire_proto::v1::publish_server::Publish;
use everwire_proto::v1::publish_stream_request::Message as Request;
use everwire_proto::v1::publish_stream_response::Message as Answer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status, Streaming};

use super::{Answers, EPOCH, Node, Reply, State, refused};

impl State {
    /// Dedupe, epoch, fence, gap; then the batch stands in the log.
    fn publish(
        &mut self,
        open: &v1::PublishOpen,
        batch: &v1::PublishBatch,
    ) -> Result<v1::PublishAck, Refusal> {
        let run = self
            .runs
            .get(&open.run)
            .ok_or_else(|| Refusal::new(Code::UnknownRun, "no such run"))?;
        let (epoch, mut last) = (run.epoch, run.places.len() as u64);
        let through = batch.first_seq + batch.drafts.len() as u64 - 1;
        let new = open.run_epoch == epoch && through > last;
        if let Some(fence) = self.fence.as_ref().filter(|_| new) {
            return Err(fence.clone());
        }
        if open.run_epoch != epoch {
            let details = Details {
                run_epoch: Some(RunEpoch(epoch)),
                ..Details::default()
            };
            return Err(Refusal::with(Code::StaleEpoch, "another writer", details));
        }
        if batch.first_seq > last + 1 {
            let details = Details {
                expected_seq: Some(Seq(last + 1)),
                ..Details::default()
            };
            return Err(Refusal::with(Code::SeqGap, "a gap", details));
        }
        let known = last;
        for (seq, draft) in (batch.first_seq..).zip(&batch.drafts) {
            if seq > last {
                let stamp = v1::RunStamp {
                    run: open.run.clone(),
                    run_epoch: epoch,
                    seq: Some(seq),
                };
                let offset = self.append(Some(stamp), draft.clone());
                self.runs
                    .get_mut(&open.run)
                    .unwrap()
                    .places
                    .insert(seq, offset);
                last = seq;
            }
        }
        Ok(self.ack(open, batch.first_seq, through, known))
    }

    fn ack(&self, open: &v1::PublishOpen, first: u64, through: u64, known: u64) -> v1::PublishAck {
        let places = &self.runs[&open.run].places;
        let mut ranges: Vec<v1::AckRange> = Vec::new();
        for seq in first..=through {
            let (offset, duplicate) = (places[&seq], seq <= known);
            match ranges.last_mut() {
                Some(range)
                    if range.duplicate == duplicate
                        && range.first_offset + (seq - range.first_seq) == offset =>
                {
                    range.last_seq = seq;
                },
                _ => ranges.push(v1::AckRange {
                    first_seq: seq,
                    last_seq: seq,
                    first_offset: offset,
                    duplicate,
                }),
            }
        }
        v1::PublishAck {
            through_seq: through,
            through_offset: places[&through],
            credit_bytes: 0,
            ranges,
        }
    }
}

fn payload(batch: &v1::PublishBatch) -> u32 {
    let drafts = batch.drafts.iter().map(|draft| {
        let draft = everwire_core::Draft::try_from(draft.clone()).expect("a good draft");
        u32::try_from(draft.payload_bytes()).expect("small")
    });
    drafts.sum()
}

/// One publish stream at this end.
struct Stretch {
    open: v1::PublishOpen,
    answers: mpsc::Sender<Result<v1::PublishStreamResponse, Status>>,
    /// Credit that the client has.
    credit: i64,
    /// Credit that is held back.
    owed: u32,
    /// Batches without an answer.
    unanswered: u64,
    /// An ack that was held back.
    held: Option<v1::PublishAck>,
}

impl Stretch {
    async fn say(&self, message: Answer) {
        let _gone = self
            .answers
            .send(Ok(v1::PublishStreamResponse {
                message: Some(message),
            }))
            .await;
    }

    async fn ack(&mut self, mut ack: v1::PublishAck, hold_credit: bool) {
        if let Some(held) = self.held.take() {
            ack.ranges.splice(0..0, held.ranges);
        }
        if !hold_credit {
            ack.credit_bytes = std::mem::take(&mut self.owed);
            self.credit += i64::from(ack.credit_bytes);
        }
        self.unanswered = 0;
        self.say(Answer::Ack(ack)).await;
    }

    async fn refuse(&mut self, first_seq: u64, refusal: &Refusal) {
        if let Some(held) = self.held.take() {
            self.ack(held, true).await;
        }
        let credit_bytes = std::mem::take(&mut self.owed);
        self.credit += i64::from(credit_bytes);
        self.unanswered = self.unanswered.saturating_sub(1);
        let error = Some(v1::Error::from(refusal));
        self.say(Answer::Refused(v1::PublishRefused {
            first_seq,
            error,
            credit_bytes,
        }))
        .await;
    }
}

impl Node {
    async fn serve(
        self: Arc<Self>,
        mut requests: Streaming<v1::PublishStreamRequest>,
        answers: mpsc::Sender<Result<v1::PublishStreamResponse, Status>>,
    ) {
        let Ok(Some(v1::PublishStreamRequest {
            message: Some(Request::Open(open)),
        })) = requests.message().await
        else {
            return;
        };
        let granted = self.state().credit;
        let mut stream = Stretch {
            open,
            answers,
            credit: i64::from(granted),
            owed: 0,
            unanswered: 0,
            held: None,
        };
        let over = self.state().fence.as_ref().map(v1::Error::from);
        stream
            .say(Answer::Opened(v1::PublishOpened {
                session_epoch: EPOCH.into(),
                credit_bytes: granted,
                over,
            }))
            .await;
        loop {
            let message = tokio::select! {
                message = requests.message() => message,
                () = self.stopped.notified() => {
                    let fence = self.state().fence.clone();
                    stream.refuse(0, &fence.unwrap()).await;
                    continue;
                },
            };
            let batch = match message {
                Ok(Some(v1::PublishStreamRequest {
                    message: Some(Request::Batch(batch)),
                })) => batch,
                Ok(Some(v1::PublishStreamRequest {
                    message: Some(Request::Heartbeat(_)),
                })) => {
                    self.state().beats += 1;
                    continue;
                },
                _ => return,
            };
            let bytes = payload(&batch);
            self.state().batches += 1;
            if stream.credit <= 0 && stream.unanswered > 0 {
                self.state()
                    .wrong
                    .push(format!("overdrawn: {} bytes", stream.credit));
            }
            stream.credit -= i64::from(bytes);
            stream.owed += bytes;
            stream.unanswered += 1;
            if stream.unanswered > 256 {
                self.state()
                    .wrong
                    .push("more than 256 batches are not acked".into());
            }
            if !self.answer(&mut stream, &batch).await {
                return;
            }
        }
    }

    /// Answers one batch, well or in one of many other ways; false ends the stream.
    async fn answer(&self, stream: &mut Stretch, batch: &v1::PublishBatch) -> bool {
        let loses_answer = std::mem::take(&mut self.trouble.lock().unwrap().loses_answer);
        let way = if loses_answer {
            4
        } else if self.goes_wrong() {
            self.random.next() % 9
        } else {
            u64::MAX
        };
        match way {
            // Lost before the commit: with the connection, or refused for a while.
            0 => {
                self.net.cut(&self.addr);
                return false;
            },
            1 | 2 => {
                let code = if way == 1 {
                    Code::Overloaded
                } else {
                    Code::Quota
                };
                stream
                    .refuse(batch.first_seq, &Refusal::new(code, "scripted"))
                    .await;
                return true;
            },
            3 => {
                let refusal = Refusal::new(Code::Draining, "scripted");
                let _gone = stream.answers.send(Err(to_status(&refusal))).await;
                return false;
            },
            _ => {},
        }
        if self.random.once_in(3) {
            self.append_foreign(1);
        }
        let committed = self.state().publish(&stream.open, batch);
        self.changed.notify_waiters();
        let ack = match committed {
            Ok(ack) => ack,
            Err(refusal) => {
                stream.refuse(batch.first_seq, &refusal).await;
                return true;
            },
        };
        match way {
            // Committed, but the answer is lost.
            4 => {
                self.net.cut(&self.addr);
                return false;
            },
            5 => return false,
            // The answer comes with the next one.
            6 => match &mut stream.held {
                Some(held) => held.ranges.extend(ack.ranges),
                None => stream.held = Some(ack),
            },
            // The answer comes twice.
            7 => {
                stream.ack(ack.clone(), true).await;
                stream.ack(ack, false).await;
            },
            8 => {
                tokio::time::sleep(Duration::from_millis(700)).await;
                stream.ack(ack, true).await;
            },
            _ => stream.ack(ack, false).await,
        }
        true
    }
}

#[tonic::async_trait]
impl Publish for Node {
    type StreamStream = Answers<v1::PublishStreamResponse>;

    async fn stream(
        &self,
        request: tonic::Request<Streaming<v1::PublishStreamRequest>>,
    ) -> Reply<Self::StreamStream> {
        self.admit(&request)?;
        self.write().await?;
        self.state().streams += 1;
        let (answers, ready) = mpsc::channel(1024);
        tokio::spawn(self.shared().serve(request.into_inner(), answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(ready))))
    }

    async fn post(&self, request: tonic::Request<v1::PostRequest>) -> Reply<v1::PostResponse> {
        self.admit(&request)?;
        self.write().await?;
        self.before()?;
        let request = request.into_inner();
        let known = self.state().keys.get(&request.key).copied();
        let offset = match known {
            Some(offset) => offset,
            None => {
                let mut state = self.state();
                let offset = state.append(None, request.draft.expect("a draft"));
                state.keys.insert(request.key, offset);
                offset
            },
        };
        self.changed.notify_waiters();
        let duplicate = known.is_some();
        self.after(v1::PostResponse {
            session_epoch: EPOCH.into(),
            offset,
            duplicate,
        })
    }

    async fn append(&self, _: tonic::Request<v1::AppendRequest>) -> Reply<v1::AppendResponse> {
        Err(refused(Code::Malformed))
    }
}
