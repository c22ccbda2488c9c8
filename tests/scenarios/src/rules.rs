//! The subject without a server: the pure rules on rows in memory, with a time of its own.

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};

use everwire_core::command::{Batch, Command, Control, Expire, StartRun};
use everwire_core::event::{Body, Data};
use everwire_core::row::{HeadRow, Row, RowKey, RowRange, SessionKey};
use everwire_core::{
    Cancel, Code, Cursor, Event, Key, Lease, Namespace, Offset, Op, Outcome, Refusal, RunEpoch,
    RunId, Seq, SessionEpoch, Signal, Slot, Timestamp,
};
use everwire_rules::resolve::{self, Readable};
use everwire_rules::{Changes, RULES_VERSION, ShardState, Txn, View, ViewError};

use crate::answer::Answer;
use crate::leader::Leader;
use crate::runner::{Need, Subject};
use crate::step::{Action, Step};

/// Midnight of some day, so that a file can count hours from the start of one.
const START: Timestamp = Timestamp(1_700_006_400_000);

const TIMELINE: u32 = 1;

/// The first rules that know leases.
const RULES_WITH_LEASES: u32 = 2;

/// A shard in memory and the tabs that look at it.
pub struct Rules {
    rows: Rows,
    logs: BTreeMap<SessionKey, Vec<Event>>,
    state: ShardState,
    now: Timestamp,
    leader: Leader,
    namespace: Namespace,
    tabs: BTreeMap<String, Tab>,
}

/// A reader: the session that it was attached to and the last offset that it was given.
struct Tab {
    key: SessionKey,
    seen: Offset,
}

#[derive(Default)]
pub(crate) struct Rows(pub(crate) BTreeMap<RowKey, Row>);

impl View for Rows {
    fn get(&self, key: &RowKey) -> Result<Option<Row>, ViewError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, range: RowRange, limit: usize) -> Result<Vec<RowKey>, ViewError> {
        let keys = self.0.range(range.lowest()..).map(|(key, _)| key);
        let inside = keys.take_while(|key| range.holds(key));
        Ok(inside.take(limit).cloned().collect())
    }
}

impl Default for Rules {
    fn default() -> Self {
        everwire_rules::poison::arm();
        Self {
            rows: Rows::default(),
            logs: BTreeMap::new(),
            state: ShardState {
                rules_version: RULES_VERSION,
                ..ShardState::default()
            },
            now: START,
            leader: Leader::default(),
            namespace: Namespace::parse("dev").expect("a namespace"),
            tabs: BTreeMap::new(),
        }
    }
}

impl Subject for Rules {
    fn offers(&self, _: Need) -> bool {
        true
    }

    fn perform(&mut self, step: &Step) -> impl Future<Output = Answer> {
        std::future::ready(self.answer(step))
    }
}

impl Rules {
    fn answer(&mut self, step: &Step) -> Answer {
        match &step.action {
            Action::Attach { tab, cursor } => self.attach(step, tab, *cursor),
            Action::Read { tab } => self.read(tab),
            Action::Drop { tab } => {
                self.tabs.remove(tab);
                Answer::Done
            },
            Action::Log { from } => match self.find(step) {
                None => unknown_session(),
                Some((key, _)) => Answer::Events(self.events(key, *from)),
            },
            Action::Advance(time) => {
                let until = self.now.plus(*time);
                self.meet(until);
                self.now = until;
                Answer::Done
            },
            Action::Expire {
                run,
                run_epoch,
                last,
            } => self.expire(step, run, *run_epoch, *last),
            Action::Rules(version) => self.speak(*version),
            Action::Resolve {
                trimmed,
                applied,
                leader,
                cursor,
            } => {
                let readable = self.find(step).map(|(key, _)| Readable {
                    session_epoch: epoch(key),
                    trimmed: *trimmed,
                    applied_tail: *applied,
                    leader_tail: *leader,
                });
                answer(resolve::resolve(readable.as_ref(), *cursor))
            },
            Action::Create
            | Action::Delete
            | Action::Unfreeze
            | Action::Start { .. }
            | Action::Claim { .. }
            | Action::Heartbeat { .. }
            | Action::Publish { .. }
            | Action::Post { .. }
            | Action::Cancel { .. }
            | Action::Signal { .. } => self.command(step),
        }
    }

    fn command(&mut self, step: &Step) -> Answer {
        let (op, first_seq) = match op(&step.action) {
            Ok(op) => op,
            Err(refusal) => return Answer::Refused(refusal),
        };
        let command = Command {
            namespace: self.namespace.clone(),
            session: step.session.clone(),
            actor: step.by.clone(),
            may_create: step.may_create,
            session_epoch: step.session_epoch,
            op,
        };
        let outcomes = self.apply(Vec::new(), vec![command]);
        let outcome = outcomes.into_iter().next();
        let outcome = outcome.expect("one command, one outcome");
        self.notice(step, &outcome);
        Answer::of(outcome, first_seq)
    }

    fn apply(&mut self, control: Vec<Control>, commands: Vec<Command>) -> Vec<Outcome> {
        let batch = Batch {
            stamp: self.now,
            rules_version: self.state.rules_version,
            timeline: TIMELINE,
            control,
            commands,
        };
        let mut txn = Txn::new(&self.rows, self.state);
        let outcomes = txn.apply(batch).expect("rows in memory can be read");
        let changes = txn.finish();
        self.keep(changes);
        outcomes
    }

    /// What a leader takes from an answer: the writer lives, or a session goes on.
    fn notice(&mut self, step: &Step, outcome: &Outcome) {
        let lives = match outcome {
            Outcome::RunGranted { duplicate, .. } => !duplicate,
            Outcome::Published(published) => published.appended.is_some(),
            Outcome::Renewed { .. } => true,
            Outcome::SessionUnfrozen { .. } => {
                self.meet(self.now);
                false
            },
            _ => false,
        };
        let run = match &step.action {
            Action::Start { run, .. }
            | Action::Claim { run, .. }
            | Action::Heartbeat { run, .. }
            | Action::Publish { run, .. } => run,
            _ => return,
        };
        let key = self.find(step).map(|(key, _)| key);
        let leases = self.state.rules_version >= RULES_WITH_LEASES;
        if let (true, true, Some(key)) = (lives, leases, key) {
            self.leader.heard(key, run.clone(), self.now);
        }
    }

    /// Time goes by until then, and the leader asks for what comes due, in order.
    fn meet(&mut self, until: Timestamp) {
        while let Some((due, control)) = self.leader.first_due(&self.rows, until) {
            self.now = self.now.max(due);
            self.apply(vec![control], Vec::new());
        }
    }

    fn expire(&mut self, step: &Step, run: &RunId, run_epoch: RunEpoch, last: Offset) -> Answer {
        let Some((session, head)) = self.find(step) else {
            return unknown_session();
        };
        let next = head.tail.next();
        let expire = Expire {
            session,
            run: run.clone(),
            run_epoch,
            last_offset: last,
        };
        self.apply(vec![Control::Expire(expire)], Vec::new());
        Answer::Events(self.events(session, next))
    }

    /// A shard that has applied nothing may begin with older rules; later they are only raised.
    fn speak(&mut self, version: u32) -> Answer {
        if self.rows.0.is_empty() {
            self.state.rules_version = version;
            return Answer::Done;
        }
        let before = self.state.rules_version;
        self.apply(vec![Control::RaiseRules { version }], Vec::new());
        if before < RULES_WITH_LEASES && self.state.rules_version >= RULES_WITH_LEASES {
            self.leader.take_office(&self.rows, self.now);
        }
        Answer::Done
    }

    fn keep(&mut self, changes: Changes) {
        for (key, row) in changes.rows {
            match row {
                Some(row) => self.rows.0.insert(key, row),
                None => self.rows.0.remove(&key),
            };
        }
        for (session, event) in changes.events {
            // Whoever waited no more is heard of, as far as its lease goes.
            if let (Body::RunResumed, Some(stamp)) = (&event.body, &event.run) {
                self.leader.heard(session, stamp.run.clone(), self.now);
            }
            self.logs.entry(session).or_default().push(event);
        }
        for session in changes.erased {
            self.logs.remove(&session);
            let rows = &mut self.rows.0;
            rows.retain(|key, _| key.session() != Some(session));
        }
        self.state = changes.state;
    }

    fn find(&self, step: &Step) -> Option<(SessionKey, &HeadRow)> {
        let slot = Slot::of(&self.namespace, &step.session);
        let name = RowKey::Name(slot, self.namespace.clone(), step.session.clone());
        let Some(Row::Name(name)) = self.rows.0.get(&name) else {
            return None;
        };
        let key = SessionKey {
            slot,
            session_no: name.session_no,
        };
        match self.rows.0.get(&RowKey::Head(key)) {
            Some(Row::Head(head)) => Some((key, head)),
            _ => None,
        }
    }

    fn attach(&mut self, step: &Step, tab: &str, cursor: Option<Cursor>) -> Answer {
        let found = self.find(step);
        let readable = found.map(|(key, head)| Readable {
            session_epoch: epoch(key),
            trimmed: head.trimmed,
            applied_tail: head.tail,
            leader_tail: head.tail,
        });
        let key = found.map(|(key, _)| key);
        let answered = resolve::resolve(readable.as_ref(), cursor);
        if let (resolve::Answer::Resumed { from, .. }, Some(key)) = (answered, key) {
            let seen = from.previous();
            self.tabs.insert(tab.to_owned(), Tab { key, seen });
        }
        answer(answered)
    }

    fn read(&mut self, tab: &str) -> Answer {
        let Some(Tab { key, seen }) = self.tabs.get(tab) else {
            let message = "no tab of this name is attached";
            return Answer::Refused(Refusal::new(Code::Malformed, message));
        };
        let events = self.events(*key, seen.next());
        if let (Some(tab), Some(last)) = (self.tabs.get_mut(tab), events.last()) {
            tab.seen = last.offset;
        }
        Answer::Events(events)
    }

    fn events(&self, key: SessionKey, from: Offset) -> Vec<Event> {
        let log = self.logs.get(&key).into_iter().flatten();
        log.filter(|event| event.offset >= from).cloned().collect()
    }
}

fn epoch(key: SessionKey) -> SessionEpoch {
    SessionEpoch {
        timeline: TIMELINE,
        session_no: key.session_no,
    }
}

fn unknown_session() -> Answer {
    let message = "there is no session of this name";
    Answer::Refused(Refusal::new(Code::UnknownSession, message))
}

fn answer(answer: resolve::Answer) -> Answer {
    match answer {
        resolve::Answer::NotFound => Answer::NotFound,
        resolve::Answer::Wait => Answer::Wait,
        resolve::Answer::Gone {
            session_epoch,
            earliest,
            tail,
            ..
        } => Answer::Gone {
            session_epoch,
            earliest,
            tail,
        },
        resolve::Answer::Resumed {
            session_epoch,
            from,
            tail,
        } => Answer::Resumed {
            session_epoch,
            from,
            tail,
        },
    }
}

/// What the command of a step asks of the rules, and its first seq. Refuses what a node's door
/// would: the rules rely on it.
fn op(action: &Action) -> Result<(Op, Seq), Refusal> {
    let op = match action.clone() {
        Action::Delete => Op::DeleteSession,
        Action::Unfreeze => Op::Unfreeze,
        Action::Start {
            run,
            parent,
            input,
            lease,
            meta,
            key,
        } => Op::StartRun(StartRun {
            run,
            input,
            parent,
            lease: lease.map(Lease::new).transpose()?,
            meta: meta.map(Data::Json),
            key,
        }),
        Action::Claim { run, lease, key } => Op::ClaimRun {
            run,
            lease: lease.map(Lease::new).transpose()?,
            key,
        },
        Action::Heartbeat {
            run,
            run_epoch,
            seen,
        } => Op::Heartbeat {
            run,
            run_epoch,
            observed_through: seen,
        },
        Action::Publish {
            run,
            run_epoch,
            first_seq,
            drafts,
        } => {
            let op = Op::Publish {
                run,
                run_epoch,
                first_seq,
                drafts,
            };
            return Ok((op, first_seq));
        },
        Action::Post { draft, key, source } => Op::Post {
            draft,
            key,
            body_hash: hash(&source),
        },
        Action::Cancel { cancel, key } => cancel_op(cancel, key)?,
        Action::Signal { signal, key } => signal_op(signal, key)?,
        Action::Create
        | Action::Attach { .. }
        | Action::Read { .. }
        | Action::Drop { .. }
        | Action::Log { .. }
        | Action::Advance(_)
        | Action::Expire { .. }
        | Action::Rules(_)
        | Action::Resolve { .. } => Op::CreateSession,
    };
    Ok((op, Seq::ZERO))
}

fn cancel_op(cancel: Cancel, key: Key) -> Result<Op, Refusal> {
    cancel.check_shape()?;
    Ok(Op::Cancel {
        body_hash: hash(&format!("{cancel:?}")),
        cancel,
        key,
    })
}

fn signal_op(signal: Signal, key: Key) -> Result<Op, Refusal> {
    signal.check_shape()?;
    Ok(Op::Signal {
        body_hash: hash(&format!("{signal:?}")),
        signal,
        key,
    })
}

/// Stands for the proposer's hash of a body; only equality matters here.
fn hash(text: &str) -> u128 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    u128::from(hasher.finish())
}
