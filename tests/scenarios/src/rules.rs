//! The subject without a server: the pure rules on rows in memory, with a time of its own.

use std::collections::BTreeMap;
use std::future::Future;
use std::hash::{DefaultHasher, Hash, Hasher};

use everwire_core::command::{Batch, Command};
use everwire_core::row::{HeadRow, Row, RowKey, RowRange, SessionKey};
use everwire_core::{
    Code, Cursor, Event, Key, Namespace, Offset, Op, Outcome, ParticipantId, Refusal, RunId, Seq,
    SessionEpoch, Slot, Timestamp,
};
use everwire_rules::resolve::{self, Readable};
use everwire_rules::{Changes, RULES_VERSION, ShardState, Txn, View, ViewError};

use crate::answer::Answer;
use crate::runner::{Need, Subject};
use crate::step::{Action, Step};

/// Midnight of some day, so that a file can count hours from the start of one.
const START: Timestamp = Timestamp(1_700_006_400_000);

const TIMELINE: u32 = 1;

/// A shard in memory and the tabs that look at it.
pub struct Rules {
    rows: Rows,
    logs: BTreeMap<SessionKey, Vec<Event>>,
    state: ShardState,
    now: Timestamp,
    namespace: Namespace,
    tabs: BTreeMap<String, Tab>,
}

/// A reader: the session that it was attached to and the last offset that it was given.
struct Tab {
    key: SessionKey,
    seen: Offset,
}

#[derive(Default)]
struct Rows(BTreeMap<RowKey, Row>);

impl View for Rows {
    fn get(&self, key: &RowKey) -> Result<Option<Row>, ViewError> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, range: RowRange, limit: usize) -> Result<Vec<RowKey>, ViewError> {
        let (session, first) = match range {
            RowRange::KeyAges(session) => {
                let author = ParticipantId::parse("!").expect("the lowest participant");
                let key = Key::parse("-").expect("the lowest name");
                (session, RowKey::KeyAge(session, Timestamp(0), author, key))
            },
            RowRange::LiveRuns(session) => {
                let run = RunId::parse("-").expect("the lowest name");
                (session, RowKey::LiveRun(session, run))
            },
        };
        let inside = |key: &&RowKey| match key {
            RowKey::KeyAge(of, ..) => matches!(range, RowRange::KeyAges(_)) && *of == session,
            RowKey::LiveRun(of, _) => matches!(range, RowRange::LiveRuns(_)) && *of == session,
            _ => false,
        };
        let keys = self.0.range(first..).map(|(key, _)| key);
        Ok(keys.take_while(inside).take(limit).cloned().collect())
    }
}

impl Default for Rules {
    fn default() -> Self {
        everwire_rules::poison::arm();
        Self {
            rows: Rows::default(),
            logs: BTreeMap::new(),
            state: ShardState::default(),
            now: START,
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
                self.now = self.now.plus(*time);
                Answer::Done
            },
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
            | Action::Publish { .. }
            | Action::Post { .. }
            | Action::Cancel { .. } => self.command(step),
        }
    }

    fn command(&mut self, step: &Step) -> Answer {
        let (op, first_seq) = op(&step.action);
        let command = Command {
            namespace: self.namespace.clone(),
            session: step.session.clone(),
            actor: step.by.clone(),
            may_create: step.may_create,
            session_epoch: step.session_epoch,
            op,
        };
        let batch = Batch {
            stamp: self.now,
            rules_version: RULES_VERSION,
            timeline: TIMELINE,
            control: Vec::new(),
            commands: vec![command],
        };
        let mut txn = Txn::new(&self.rows, self.state);
        let outcomes = txn.apply(batch).expect("rows in memory can be read");
        let changes = txn.finish();
        self.keep(changes);
        let outcome: Vec<Outcome> = outcomes;
        let outcome = outcome
            .into_iter()
            .next()
            .expect("one command, one outcome");
        Answer::of(outcome, first_seq)
    }

    fn keep(&mut self, changes: Changes) {
        for (key, row) in changes.rows {
            match row {
                Some(row) => self.rows.0.insert(key, row),
                None => self.rows.0.remove(&key),
            };
        }
        for (session, event) in changes.events {
            self.logs.entry(session).or_default().push(event);
        }
        for session in changes.erased {
            self.logs.remove(&session);
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

/// What the command of a step asks of the rules, and its first seq.
fn op(action: &Action) -> (Op, Seq) {
    let op = match action.clone() {
        Action::Delete => Op::DeleteSession,
        Action::Unfreeze => Op::Unfreeze,
        Action::Start { run, input, key } => Op::StartRun { run, input, key },
        Action::Claim { run, key } => Op::ClaimRun { run, key },
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
            return (op, first_seq);
        },
        Action::Post { draft, key, source } => Op::Post {
            draft,
            key,
            body_hash: hash(&source),
        },
        Action::Cancel { run, key } => {
            let body_hash = hash(run.as_str());
            Op::Cancel {
                run,
                key,
                body_hash,
            }
        },
        Action::Create
        | Action::Attach { .. }
        | Action::Read { .. }
        | Action::Drop { .. }
        | Action::Log { .. }
        | Action::Advance(_)
        | Action::Resolve { .. } => Op::CreateSession,
    };
    (op, Seq::ZERO)
}

/// Stands for the proposer's hash of a body; only equality matters here.
fn hash(text: &str) -> u128 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    u128::from(hasher.finish())
}
