//! A shard in memory: sorted rows behind the view, logs beside them, and short ways to write
//! commands down.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use everwire_core::command::{Batch, Control, Expire, StartRun};
use everwire_core::event::{Body, Draft, MessageStatus, PartKind, Role, StepStatus};
use everwire_core::row::{Row, RowKey, RowRange, SessionKey};
use everwire_core::{
    Author, Cancel, Command, Event, Key, MessageId, Offset, Op, Outcome, PartId, ParticipantId,
    ParticipantKind, Refusal, RunEpoch, RunId, Seq, Timestamp,
};
use everwire_rules::{Changes, RULES_VERSION, ShardState, Txn, View, ViewError};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct World {
    pub(crate) rows: BTreeMap<RowKey, Row>,
    pub(crate) logs: BTreeMap<SessionKey, Vec<Event>>,
    pub(crate) state: ShardState,
}

/// Empty, and speaks the newest rules.
impl Default for World {
    fn default() -> Self {
        Self {
            rows: BTreeMap::new(),
            logs: BTreeMap::new(),
            state: ShardState {
                rules_version: RULES_VERSION,
                ..ShardState::default()
            },
        }
    }
}

impl View for World {
    fn get(&self, key: &RowKey) -> Result<Option<Row>, ViewError> {
        Ok(self.rows.get(key).cloned())
    }

    fn scan(&self, range: RowRange, limit: usize) -> Result<Vec<RowKey>, ViewError> {
        let keys = self.rows.range(range.lowest()..).map(|(key, _)| key);
        let inside = keys.take_while(|key| range.holds(key));
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

    pub(crate) fn keep(&mut self, changes: Changes) {
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
            self.rows.retain(|key, _| key.session() != Some(session));
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

pub(crate) fn batch(ms: u64, commands: Vec<Command>) -> Batch {
    Batch {
        stamp: Timestamp(ms),
        rules_version: RULES_VERSION,
        timeline: 1,
        control: Vec::new(),
        commands,
    }
}

/// An entry in which the leader itself asks for something.
pub(crate) fn controlling(ms: u64, control: Control) -> Batch {
    Batch {
        control: vec![control],
        ..batch(ms, Vec::new())
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
    let start = StartRun {
        key: key.map(name::<Key>),
        ..StartRun::new(name(run))
    };
    command(participant, Op::StartRun(start))
}

pub(crate) fn claim(participant: &str, run: &str, key: Option<&str>) -> Command {
    let op = Op::ClaimRun {
        run: name(run),
        lease: None,
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
    cancel_of(participant, Cancel::run(name(run)), key)
}

/// A cancel; the hash of its body stands for it.
pub(crate) fn cancel_of(participant: &str, cancel: Cancel, key: &str) -> Command {
    let mut hasher = DefaultHasher::new();
    format!("{cancel:?}").hash(&mut hasher);
    let op = Op::Cancel {
        cancel,
        key: name(key),
        body_hash: u128::from(hasher.finish()),
    };
    command(participant, op)
}

pub(crate) fn heartbeat(
    participant: &str,
    run: &str,
    epoch: u32,
    observed_through: Option<u64>,
) -> Command {
    let op = Op::Heartbeat {
        run: name(run),
        run_epoch: RunEpoch(epoch),
        observed_through: observed_through.and_then(Offset::new),
    };
    command(participant, op)
}

/// What a leader says of a run whose lease has ended, if it is as these say.
pub(crate) fn expire(session: SessionKey, run: &str, epoch: u32, last_offset: u64) -> Control {
    Control::Expire(Expire {
        session,
        run: name(run),
        run_epoch: RunEpoch(epoch),
        last_offset: Offset::new(last_offset).expect("small"),
    })
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

pub(crate) fn step_start(step: &str) -> Body {
    Body::StepStart {
        step: name(step),
        attempt: 0,
        name: None,
    }
}

pub(crate) fn step_end(step: &str, is_good: bool) -> Body {
    let status = match is_good {
        true => StepStatus::Complete,
        false => StepStatus::Failed,
    };
    Body::StepEnd {
        step: name(step),
        status,
        reason: None,
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
