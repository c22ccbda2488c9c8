//! A shard in memory: sorted rows behind the view, logs beside them, and short ways to write
//! commands down.

use std::collections::BTreeMap;

use everwire_core::command::Batch;
use everwire_core::event::{Body, Draft, MessageStatus, PartKind, Role};
use everwire_core::row::{Row, RowKey, RowRange, SessionKey};
use everwire_core::{
    Author, Command, Event, Key, MessageId, Op, Outcome, PartId, ParticipantId, ParticipantKind,
    Refusal, RunEpoch, RunId, Seq, Timestamp,
};
use everwire_rules::{Changes, RULES_VERSION, ShardState, Txn, View, ViewError};

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct World {
    pub(crate) rows: BTreeMap<RowKey, Row>,
    pub(crate) logs: BTreeMap<SessionKey, Vec<Event>>,
    pub(crate) state: ShardState,
}

impl View for World {
    fn get(&self, key: &RowKey) -> Result<Option<Row>, ViewError> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan(&self, range: RowRange, limit: usize) -> Result<Vec<RowKey>, ViewError> {
        let (session, first) = match range {
            RowRange::KeyAges(session) => {
                let (author, key) = (name("!"), name("-"));
                (session, RowKey::KeyAge(session, Timestamp(0), author, key))
            },
            RowRange::LiveRuns(session) => (session, RowKey::LiveRun(session, name("-"))),
        };
        let same_kind =
            |key: &RowKey| std::mem::discriminant(key) == std::mem::discriminant(&first);
        let keys = self.rows.range(first.clone()..).map(|(key, _)| key);
        let inside = keys.take_while(|key| same_kind(key) && owner(key) == Some(session));
        Ok(inside.take(limit).cloned().collect())
    }
}

impl World {
    /// Applies batches in one transaction and keeps what changed.
    pub(crate) fn apply(&mut self, batches: Vec<Batch>) -> Vec<Outcome> {
        let mut txn = Txn::new(self, self.state);
        let mut outcomes = Vec::new();
        for batch in batches {
            outcomes.extend(txn.apply(batch).expect("the world can be read"));
        }
        let changes = txn.finish();
        self.keep(changes);
        outcomes
    }

    fn keep(&mut self, changes: Changes) {
        for (key, row) in changes.rows {
            match row {
                Some(row) => self.rows.insert(key, row),
                None => self.rows.remove(&key),
            };
        }
        for (session, event) in changes.events {
            self.logs.entry(session).or_default().push(event);
        }
        for session in changes.erased {
            self.logs.remove(&session);
            self.rows.retain(|key, _| owner(key) != Some(session));
        }
        self.state = changes.state;
    }

    /// Applies one command at a time of its own.
    pub(crate) fn at(&mut self, ms: u64, command: Command) -> Outcome {
        self.apply(vec![batch(ms, vec![command])]).remove(0)
    }

    /// Applies one command at the time of the last one.
    pub(crate) fn run(&mut self, command: Command) -> Outcome {
        self.at(0, command)
    }

    /// Applies one command that must be refused.
    pub(crate) fn refused(&mut self, command: Command) -> Refusal {
        match self.run(command) {
            Outcome::Refused(refusal) => refusal,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Applies one command that must be taken.
    pub(crate) fn taken(&mut self, command: Command) -> Outcome {
        match self.run(command) {
            Outcome::Refused(refusal) => panic!("refused: {refusal}"),
            outcome => outcome,
        }
    }

    /// The only log.
    pub(crate) fn log(&self) -> &[Event] {
        assert!(self.logs.len() <= 1, "several sessions");
        self.logs.values().next().map_or(&[], Vec::as_slice)
    }
}

/// The session of a row; `None` for rows of a slot.
pub(crate) fn owner(key: &RowKey) -> Option<SessionKey> {
    match key {
        RowKey::Name(..) | RowKey::Counter(_) => None,
        RowKey::Head(session)
        | RowKey::Run(session, ..)
        | RowKey::Epoch(session, ..)
        | RowKey::Batch(session, ..)
        | RowKey::Message(session, ..)
        | RowKey::Part(session, ..)
        | RowKey::Input(session, ..)
        | RowKey::Key(session, ..)
        | RowKey::KeyAge(session, ..)
        | RowKey::LiveRun(session, ..)
        | RowKey::Timer(session, ..) => Some(*session),
    }
}

pub(crate) fn batch(ms: u64, commands: Vec<Command>) -> Batch {
    Batch {
        stamp: Timestamp(ms),
        rules_version: RULES_VERSION,
        timeline: 1,
        control: Vec::new(),
        commands,
    }
}

/// Any name from text.
pub(crate) fn name<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
    text.parse().expect("a name")
}

pub(crate) fn author(participant: &str) -> Author {
    let kind = if participant.starts_with("bot") {
        ParticipantKind::Agent
    } else {
        ParticipantKind::User
    };
    Author {
        participant: name::<ParticipantId>(participant),
        kind,
    }
}

/// A command on session `s` by a participant that may create it.
pub(crate) fn command(participant: &str, op: Op) -> Command {
    Command {
        namespace: name("dev"),
        session: name("s"),
        actor: author(participant),
        may_create: true,
        session_epoch: None,
        op,
    }
}

pub(crate) fn start(participant: &str, run: &str, key: Option<&str>) -> Command {
    let op = Op::StartRun {
        run: name(run),
        input: None,
        key: key.map(name::<Key>),
    };
    command(participant, op)
}

pub(crate) fn claim(participant: &str, run: &str, key: Option<&str>) -> Command {
    let op = Op::ClaimRun {
        run: name(run),
        key: key.map(name::<Key>),
    };
    command(participant, op)
}

pub(crate) fn publish(
    participant: &str,
    run: &str,
    epoch: u32,
    seq: u64,
    bodies: Vec<Body>,
) -> Command {
    let op = Op::Publish {
        run: name::<RunId>(run),
        run_epoch: RunEpoch(epoch),
        first_seq: Seq(seq),
        drafts: bodies.into_iter().map(Draft::new).collect(),
    };
    command(participant, op)
}

pub(crate) fn post(participant: &str, body: Body, key: Option<&str>, body_hash: u128) -> Command {
    let op = Op::Post {
        draft: Draft::new(body),
        key: key.map(name::<Key>),
        body_hash,
    };
    command(participant, op)
}

pub(crate) fn cancel(participant: &str, run: &str, key: &str) -> Command {
    let op = Op::Cancel {
        run: name(run),
        key: name(key),
        body_hash: 9,
    };
    command(participant, op)
}

pub(crate) fn input(id: &str, text: &str) -> Body {
    Body::Input {
        input: name(id),
        text: text.to_owned(),
        data: None,
    }
}

pub(crate) fn app(text: &str) -> Body {
    Body::App {
        name: text.to_owned(),
        data: None,
    }
}

pub(crate) fn message_start(message: &str) -> Body {
    Body::MessageStart {
        message: name::<MessageId>(message),
        role: Role::Assistant,
    }
}

pub(crate) fn message_end(message: &str) -> Body {
    Body::MessageEnd {
        message: name(message),
        status: MessageStatus::Complete,
    }
}

pub(crate) fn part_start(message: &str, part: &str) -> Body {
    Body::PartStart {
        message: name(message),
        part: name::<PartId>(part),
        kind: PartKind::Text,
        name: None,
        data: None,
    }
}

pub(crate) fn delta(message: &str, part: &str, text: &str) -> Body {
    Body::PartDelta {
        message: name(message),
        part: name(part),
        position: 0,
        text: text.to_owned(),
    }
}

pub(crate) fn part_end(message: &str, part: &str) -> Body {
    Body::PartEnd {
        message: name(message),
        part: name(part),
        data: None,
    }
}
