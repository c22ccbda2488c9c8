//! Commands for shards that another node leads: one ordered stream per node and lane.
//!
//! The order of the calls is the order on the stream and in the leader's lane. When a stream
//! breaks, what it carried was taken or not: the caller repeats under the same seq or key.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use everwire_core::command::Lane;
use everwire_core::limits::{FORWARD_BYTES_MAX, FORWARD_OPEN_WITHIN, FORWARDS_WAITING_MAX};
use everwire_core::{Code, Command, Outcome, Refusal, ShardId};
use everwire_proto::internal_v1 as wire;
use everwire_proto::{internal, refusal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::links::{Line, Links};
use crate::lanes::{Answer, Pending};

/// The forwarded commands of this node.
pub(crate) struct Forwards {
    links: Arc<Links>,
    ways: Mutex<BTreeMap<(u64, Lane), Way>>,
}

/// One stream.
#[derive(Clone)]
struct Way {
    requests: mpsc::Sender<wire::SubmitRequest>,
    waiting: Arc<Waiting>,
}

/// What was sent and not answered.
#[derive(Default)]
struct Waiting {
    answers: Mutex<State>,
    bytes: AtomicUsize,
}

#[derive(Default)]
struct State {
    next: u64,
    answers: HashMap<u64, (Answer, usize)>,
    closed: bool,
}

/// Said of whatever was on its way when the leader was lost.
fn lost() -> Refusal {
    let message = "the leader was lost before the outcome was known";
    Refusal::new(Code::NotLeader, message)
}

impl Waiting {
    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(
            &mut self
                .answers
                .lock()
                .expect("no panic happens under this lock"),
        )
    }

    fn answer(&self, id: u64, outcome: Result<Outcome, Refusal>) {
        if let Some((answer, bytes)) = self.with(|state| state.answers.remove(&id)) {
            self.bytes.fetch_sub(bytes, Ordering::SeqCst);
            // Whoever asked may have left.
            let _ = answer.send(outcome);
        }
    }

    /// The stream is over.
    fn close(&self) {
        let left = self.with(|state| {
            state.closed = true;
            std::mem::take(&mut state.answers)
        });
        for (answer, bytes) in left.into_values() {
            self.bytes.fetch_sub(bytes, Ordering::SeqCst);
            let _ = answer.send(Err(lost()));
        }
    }
}

impl Forwards {
    pub(crate) fn new(links: Arc<Links>) -> Self {
        Self {
            links,
            ways: Mutex::default(),
        }
    }

    /// Sends a command to a node that leads its shard. OVERLOADED when too much is on its way.
    pub(crate) fn submit(
        &self,
        node: u64,
        shard: ShardId,
        command: &Command,
    ) -> Result<Pending, Refusal> {
        let (lane, bytes) = (command.op.lane(), command.op.weight_bytes());
        let command = internal::command_to(command);
        // Held while sending: the order of the calls is the order on the stream.
        let mut ways = self.ways.lock().expect("no panic happens under this lock");
        let way = match ways.get(&(node, lane)) {
            Some(way) if !way.requests.is_closed() => way.clone(),
            _ => {
                let way = self.open(node);
                ways.insert((node, lane), way.clone());
                way
            },
        };
        let full = || {
            let message = "too much is on its way to the session's leader";
            Refusal::new(Code::Overloaded, message)
        };
        if way.waiting.bytes.load(Ordering::SeqCst) + bytes > FORWARD_BYTES_MAX {
            return Err(full());
        }
        let place = way.requests.try_reserve().map_err(|error| match error {
            mpsc::error::TrySendError::Full(()) => full(),
            mpsc::error::TrySendError::Closed(()) => lost(),
        })?;
        let (answer, pending) = Pending::new();
        let id = way.waiting.with(|state| {
            if state.closed {
                return None;
            }
            state.next += 1;
            state.answers.insert(state.next, (answer, bytes));
            Some(state.next)
        });
        let id = id.ok_or_else(lost)?;
        way.waiting.bytes.fetch_add(bytes, Ordering::SeqCst);
        place.send(wire::SubmitRequest {
            id,
            shard: shard.0,
            command: Some(command),
        });
        Ok(pending)
    }

    /// Bytes of what was sent and not answered: people's, agents'.
    pub(crate) fn waiting_bytes(&self) -> (usize, usize) {
        let ways = self.ways.lock().expect("no panic happens under this lock");
        let of = |lane: Lane| {
            let ways = ways.iter().filter(|((_, way), _)| *way == lane);
            ways.map(|(_, way)| way.waiting.bytes.load(Ordering::SeqCst))
                .sum()
        };
        (of(Lane::People), of(Lane::Agents))
    }

    fn open(&self, node: u64) -> Way {
        let (requests, receiver) = mpsc::channel(FORWARDS_WAITING_MAX);
        let waiting = Arc::<Waiting>::default();
        tokio::spawn(carry(
            node,
            self.links.clone(),
            ReceiverStream::new(receiver),
            waiting.clone(),
        ));
        Way { requests, waiting }
    }
}

/// Carries one stream until it breaks.
async fn carry(
    node: u64,
    links: Arc<Links>,
    requests: ReceiverStream<wire::SubmitRequest>,
    waiting: Arc<Waiting>,
) {
    use wire::submit_response::Answer;
    if let Some(mut client) = links.client(node, Line::Forward) {
        let opened = tokio::time::timeout(FORWARD_OPEN_WITHIN, client.submit(requests)).await;
        if let Ok(Ok(response)) = opened {
            let mut answers = response.into_inner();
            while let Ok(Some(response)) = answers.message().await {
                links.heard(node);
                let outcome = match response.answer {
                    Some(Answer::Outcome(outcome)) => internal::outcome_from(outcome),
                    Some(Answer::Refusal(error)) => Err(refusal::from_error(error)),
                    None => Err(Refusal::new(Code::Internal, "an empty answer")),
                };
                waiting.answer(response.id, outcome);
            }
        }
    }
    waiting.close();
}
