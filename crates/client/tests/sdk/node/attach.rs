//! The attach service of the scripted node: delivers well, up to the next fault.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::{Random, Refusal};
use everwire_proto::v1;
use everwire_proto::v1::attach_server::Attach;
use everwire_proto::v1::follow_response::Message as Follow;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use super::{Answers, EPOCH, Fault, Node, Reader, Reply, refused};

/// What a subscription has delivered, and what it will do.
struct Delivery {
    next: u64,
    left: u64,
    fault: Option<Fault>,
}

impl Node {
    async fn deliver(
        self: Arc<Self>,
        answers: mpsc::Sender<Result<v1::FollowResponse, Status>>,
        mut delivery: Delivery,
    ) {
        let say = async |message: Follow| {
            answers
                .send(Ok(v1::FollowResponse {
                    message: Some(message),
                }))
                .await
                .is_ok()
        };
        loop {
            let changed = self.changed.notified();
            let tail = self.state().tail();
            while delivery.next <= tail {
                if delivery.left == 0 {
                    match delivery.fault.take() {
                        Some(Fault::Cut) => return self.net.cut(&self.addr),
                        Some(Fault::Hole) => delivery.next += 1,
                        Some(Fault::Again) => {
                            delivery.next = delivery.next.saturating_sub(3).max(1);
                        },
                        Some(Fault::Silence) => return answers.closed().await,
                        Some(Fault::End(code)) => {
                            let error = v1::Error::from(&Refusal::new(code, "scripted"));
                            say(Follow::Ended(error)).await;
                            return;
                        },
                        None => {},
                    }
                }
                let events = self.page(&delivery);
                delivery.left = delivery.left.saturating_sub(events.events.len() as u64);
                delivery.next = events.to + 1;
                if !events.events.is_empty() && !say(Follow::Events(events)).await {
                    return;
                }
            }
            let alive = v1::Events {
                from: delivery.next,
                to: delivery.next - 1,
                tail,
                ..Default::default()
            };
            tokio::select! {
                () = changed => {},
                () = tokio::time::sleep(Duration::from_secs(10)) => {
                    if !say(Follow::Events(alive)).await {
                        return;
                    }
                },
                () = answers.closed() => return,
            }
        }
    }

    /// A few of the next events, up to the next fault.
    fn page(&self, delivery: &Delivery) -> v1::Events {
        let state = self.state();
        let mut count = 1 + self.random.next() % 7;
        if delivery.left > 0 {
            count = count.min(delivery.left);
        }
        let from = delivery.next;
        let to = (from + count - 1).min(state.tail());
        let events = state
            .log
            .iter()
            .filter(|event| (from..=to).contains(&event.offset))
            .cloned();
        v1::Events {
            from,
            to,
            tail: state.tail(),
            events: events.collect(),
            leader_seen_ms: 3,
        }
    }
}

#[tonic::async_trait]
impl Attach for Node {
    type FollowStream = Answers<v1::FollowResponse>;

    async fn follow(
        &self,
        request: tonic::Request<v1::FollowRequest>,
    ) -> Reply<Self::FollowStream> {
        self.admit(&request)?;
        let cursor = request
            .get_ref()
            .cursor
            .clone()
            .map_or(0, |cursor| cursor.offset);
        let (reader, tail) = {
            let mut state = self.state();
            state.follows.push(request.into_inner());
            (state.readers.pop_front(), state.tail())
        };
        let (left, fault, answer) = match reader {
            Some(Reader::Refuse(code)) => return Err(refused(code)),
            Some(Reader::Gone) => (0, None, v1::AttachAnswer::Gone),
            Some(Reader::NotFound) => (0, None, v1::AttachAnswer::NotFound),
            Some(Reader::After(left, fault)) => (left, Some(fault), v1::AttachAnswer::Resumed),
            None => (u64::MAX, None, v1::AttachAnswer::Resumed),
        };
        let (answers, ready) = mpsc::channel(4);
        let attached = v1::Attached {
            answer: answer.into(),
            session_epoch: EPOCH.into(),
            from: cursor + 1,
            tail,
        };
        let message = Some(Follow::Attached(attached));
        answers
            .send(Ok(v1::FollowResponse { message }))
            .await
            .expect("room for the first");
        if answer == v1::AttachAnswer::Resumed {
            let delivery = Delivery {
                next: cursor + 1,
                left,
                fault,
            };
            tokio::spawn(self.shared().deliver(answers, delivery));
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(ready))))
    }

    async fn read(&self, request: tonic::Request<v1::ReadRequest>) -> Reply<v1::ReadResponse> {
        self.admit(&request)?;
        self.before()?;
        let next = request.get_ref().from.max(1);
        let events = self.page(&Delivery {
            next,
            left: 3,
            fault: None,
        });
        Ok(Response::new(v1::ReadResponse {
            session_epoch: EPOCH.into(),
            events: Some(events),
        }))
    }
}
