//! Admission: two bounded queues in front of a shard's log, people before agents.
//!
//! Commands keep their order within a lane, which is the order of the calls. A full lane
//! refuses; it never grows and never waits (engine trap 17).

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard};
use std::task::{Context, Poll};

use everwire_core::command::Lane;
use everwire_core::limits::{ENTRY_BYTES_MAX, SHARD_AGENT_BYTES_MAX, SHARD_PEOPLE_BYTES_MAX};
use everwire_core::{Code, Command, Details, Outcome, Refusal};
use tokio::sync::{Notify, oneshot};

/// Where a command's outcome goes.
pub(crate) type Answer = oneshot::Sender<Result<Outcome, Refusal>>;

/// A command on its way. Resolves when it is committed and applied here, or was refused.
///
/// `Err` says why the answer is not known here: NOT_LEADER and DRAINING from before the log
/// mean that it was not taken; INTERNAL (and NOT_LEADER after a change of leader) mean that it
/// may have been: repeat it under the same seq or key.
/// Dropping this forgets the answer, not the command: it goes its way all the same.
#[must_use = "the outcome tells whether the command was taken"]
#[derive(Debug)]
pub struct Pending {
    answer: oneshot::Receiver<Result<Outcome, Refusal>>,
}

impl Pending {
    /// A command's future, and where its outcome goes.
    pub(crate) fn new() -> (Answer, Self) {
        let (sender, answer) = oneshot::channel();
        (sender, Self { answer })
    }
}

impl Future for Pending {
    type Output = Result<Outcome, Refusal>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(context);
        answer.map(|answer| {
            answer.unwrap_or_else(|_closed| {
                let message = "the shard stopped before the outcome was known";
                Err(Refusal::new(Code::Internal, message))
            })
        })
    }
}

struct Queued {
    command: Command,
    bytes: usize,
    answer: Answer,
}

#[derive(Default)]
struct Queue {
    commands: VecDeque<Queued>,
    bytes: usize,
}

/// The two lanes of one shard.
#[derive(Default)]
pub(crate) struct Lanes {
    state: Mutex<State>,
    ready: Notify,
}

#[derive(Default)]
struct State {
    people: Queue,
    agents: Queue,
    /// Why nothing more is admitted; what is queued still goes.
    closed: Option<Refusal>,
    /// Why nothing is admitted for now.
    refused: Option<Refusal>,
}

/// Commands that go into one log entry, and where their outcomes go, in the same order.
pub(crate) struct Load {
    pub(crate) commands: Vec<Command>,
    pub(crate) answers: Vec<Answer>,
}

fn bytes_max(lane: Lane) -> usize {
    match lane {
        Lane::People => SHARD_PEOPLE_BYTES_MAX,
        Lane::Agents => SHARD_AGENT_BYTES_MAX,
    }
}

impl State {
    fn queue(&mut self, lane: Lane) -> &mut Queue {
        match lane {
            Lane::People => &mut self.people,
            Lane::Agents => &mut self.agents,
        }
    }

    fn is_empty(&self) -> bool {
        self.people.commands.is_empty() && self.agents.commands.is_empty()
    }
}

impl Lanes {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens under this lock")
    }

    /// Queues a command behind those of its lane. OVERLOADED when the lane is full.
    pub(crate) fn admit(&self, command: Command) -> Result<Pending, Refusal> {
        let lane = command.op.lane();
        let bytes = command.op.weight_bytes();
        let max = bytes_max(lane);
        let mut state = self.lock();
        if let Some(refusal) = state.closed.as_ref().or(state.refused.as_ref()) {
            return Err(refusal.clone());
        }
        let queue = state.queue(lane);
        if queue.bytes + bytes > max {
            let details = Details {
                limit: Some(max as u64),
                ..Details::default()
            };
            let message = "the shard has no room for this right now";
            return Err(Refusal::with(Code::Overloaded, message, details));
        }
        let (answer, pending) = Pending::new();
        queue.bytes += bytes;
        queue.commands.push_back(Queued {
            command,
            bytes,
            answer,
        });
        drop(state);
        self.ready.notify_one();
        Ok(pending)
    }

    /// Bytes that wait, people's and agents'.
    pub(crate) fn queued_bytes(&self) -> (usize, usize) {
        let state = self.lock();
        (state.people.bytes, state.agents.bytes)
    }

    /// Admits nothing until told otherwise; what is queued still goes. Says whether this is new.
    pub(crate) fn refuse(&self, refusal: Option<Refusal>) -> bool {
        let mut state = self.lock();
        let changed = state.refused.is_some() != refusal.is_some();
        state.refused = refusal;
        changed
    }

    /// Admits nothing more; what is queued still goes.
    pub(crate) fn close(&self, refusal: Refusal) {
        self.lock().closed = Some(refusal);
        self.ready.notify_one();
    }

    /// Admits nothing more and forgets what is queued: the group has stopped. The commands'
    /// futures say so.
    pub(crate) fn abandon(&self) {
        let mut state = self.lock();
        let message = "the shard has stopped";
        state
            .closed
            .get_or_insert_with(|| Refusal::new(Code::Draining, message));
        let queued = (
            std::mem::take(&mut state.people),
            std::mem::take(&mut state.agents),
        );
        drop(state);
        drop(queued);
    }

    /// Waits until there is something to take. `false` when nothing will come any more. One
    /// caller at a time.
    pub(crate) async fn ready(&self) -> bool {
        loop {
            {
                let state = self.lock();
                if !state.is_empty() {
                    return true;
                }
                if state.closed.is_some() {
                    return false;
                }
            }
            self.ready.notified().await;
        }
    }

    /// Takes what fits one log entry: people first, then agents; at least one command if any.
    pub(crate) fn take(&self) -> Load {
        let mut state = self.lock();
        let mut load = Load {
            commands: Vec::new(),
            answers: Vec::new(),
        };
        let mut bytes = 0;
        for lane in [Lane::People, Lane::Agents] {
            let queue = state.queue(lane);
            while let Some(next) = queue.commands.front() {
                if bytes + next.bytes > ENTRY_BYTES_MAX && !load.commands.is_empty() {
                    return load;
                }
                let Some(next) = queue.commands.pop_front() else {
                    break;
                };
                bytes += next.bytes;
                queue.bytes -= next.bytes;
                load.commands.push(next.command);
                load.answers.push(next.answer);
            }
        }
        load
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use everwire_core::command::Op;
    use everwire_core::event::{Body, Data, Draft};
    use everwire_core::{
        Author, Cancel, InputId, Key, Namespace, ParticipantId, ParticipantKind, RunId, SessionName,
    };

    fn command(op: Op) -> Command {
        Command {
            namespace: Namespace::parse("n").unwrap(),
            session: SessionName::parse("s").unwrap(),
            actor: Author {
                participant: ParticipantId::parse("ann").unwrap(),
                kind: ParticipantKind::User,
            },
            may_create: true,
            session_epoch: None,
            op,
        }
    }

    fn app(bytes: usize) -> Command {
        let body = Body::App {
            name: String::new(),
            data: Some(Data::Binary(Bytes::from(vec![0; bytes]))),
        };
        command(Op::Post {
            draft: Draft::new(body),
            key: None,
            body_hash: 0,
        })
    }

    fn input(text: &str) -> Command {
        let body = Body::Input {
            input: InputId::parse("i").unwrap(),
            text: text.to_owned(),
            data: None,
        };
        command(Op::Post {
            draft: Draft::new(body),
            key: Key::parse("k").ok(),
            body_hash: 0,
        })
    }

    fn cancel() -> Command {
        command(Op::Cancel {
            cancel: Cancel::run(RunId::parse("r").unwrap()),
            key: Key::parse("k").unwrap(),
            body_hash: 0,
        })
    }

    #[test]
    fn people_overtake_agents_and_keep_their_order() {
        let lanes = Lanes::default();
        let mut pending = Vec::new();
        for command in [app(1), app(2), input("a question"), cancel()] {
            pending.push(lanes.admit(command).unwrap());
        }
        let load = lanes.take();
        assert_eq!(
            load.commands,
            [input("a question"), cancel(), app(1), app(2)]
        );
        assert!(lanes.lock().is_empty());
    }

    #[test]
    fn a_full_lane_refuses_and_the_other_does_not() {
        let lanes = Lanes::default();
        let mut pending = Vec::new();
        let refusal = loop {
            match lanes.admit(app(200 << 10)) {
                Ok(queued) => pending.push(queued),
                Err(refusal) => break refusal,
            }
        };
        assert_eq!(refusal.code, Code::Overloaded);
        let bytes = lanes.lock().agents.bytes;
        assert!(bytes <= SHARD_AGENT_BYTES_MAX, "{bytes}");
        assert!(bytes > SHARD_AGENT_BYTES_MAX - (256 << 10), "{bytes}");
        lanes.admit(input("still here")).map(drop).unwrap();
        while !lanes.lock().is_empty() {
            let load = lanes.take();
            let weight = load
                .commands
                .iter()
                .map(|command| command.op.weight_bytes());
            assert!(weight.sum::<usize>() <= ENTRY_BYTES_MAX);
        }
        assert_eq!(lanes.lock().agents.bytes, 0);
        lanes.admit(app(1)).map(drop).unwrap();
    }

    #[tokio::test]
    async fn a_closed_lane_goes_empty_and_says_so() {
        let lanes = Lanes::default();
        let pending = lanes.admit(app(1)).unwrap();
        lanes.close(Refusal::new(Code::Draining, "bye"));
        assert_eq!(lanes.admit(app(1)).unwrap_err().code, Code::Draining);
        assert!(lanes.ready().await);
        drop(lanes.take());
        assert!(!lanes.ready().await);
        assert_eq!(pending.await.unwrap_err().code, Code::Internal);
    }
}
