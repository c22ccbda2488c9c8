//! The plain model: a second reading of `docs/protocol/rules.md`, with nothing in common with the
//! code. It keeps the log of each session as a flat list, the keys that were used and the epochs
//! that were closed, and finds every answer by looking through those lists. Slow and simple.

use everwire_core::event::{Body, Draft, MessageStatus, RunStamp};
use everwire_core::row::RunState;
use everwire_core::{
    Author, Code, Command, Details, Event, InputId, Key, MessageId, Offset, Op, Outcome, PartId,
    ParticipantId, Refusal, RunEpoch, RunId, Seq, SessionEpoch, SessionNo, Timestamp,
};

const DAY_MS: u64 = 24 * 3_600 * 1_000;

mod decide;

/// All sessions that ever were.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) sessions: Vec<Session>,
    time: u64,
}

pub(crate) struct Session {
    name: String,
    /// How many of this name were there before, plus one. Names of the tests have slots of
    /// their own, so this is the slot's counter.
    number: u64,
    deleted: bool,
    pub(crate) log: Vec<Event>,
    keys: Vec<UsedKey>,
    closed: Vec<(RunId, RunEpoch)>,
    /// First and last seq of each batch.
    batches: Vec<(RunId, RunEpoch, u64, u64)>,
}

struct UsedKey {
    author: ParticipantId,
    key: Key,
    purpose: Purpose,
    time: u64,
    offset: Offset,
    granted: Option<RunEpoch>,
}

#[derive(Clone, Debug, PartialEq)]
enum Purpose {
    Start(RunId, Option<InputId>),
    Claim(RunId),
    Post(u128),
    Cancel(RunId, u128),
}

type Answer = Result<Outcome, Refusal>;

fn refuse<T>(code: Code, details: Details) -> Result<T, Refusal> {
    Err(Refusal::with(code, "", details))
}

fn bare<T>(code: Code) -> Result<T, Refusal> {
    refuse(code, Details::default())
}

fn wrong_state(epoch: RunEpoch) -> Details {
    Details {
        state: Some("running"),
        next_epoch: Some(RunEpoch(epoch.0 + 1)),
        ..Details::default()
    }
}

impl Model {
    /// Answers a command, with an empty message in refusals.
    pub(crate) fn apply(&mut self, stamp: u64, command: &Command) -> Outcome {
        self.time = self.time.max(stamp);
        self.decide(command).unwrap_or_else(Outcome::Refused)
    }

    /// The session of this name as it is now.
    pub(crate) fn living(&mut self, name: &str) -> Option<&mut Session> {
        let mut all = self.sessions.iter_mut();
        all.find(|session| session.name == name && !session.deleted)
    }

    fn make(&mut self, name: &str) {
        let before = self.sessions.iter().filter(|session| session.name == name);
        let number = before.count() as u64 + 1;
        self.sessions.push(Session {
            name: name.to_owned(),
            number,
            deleted: false,
            log: Vec::new(),
            keys: Vec::new(),
            closed: Vec::new(),
            batches: Vec::new(),
        });
    }

    fn decide(&mut self, command: &Command) -> Answer {
        let time = self.time;
        let name = command.session.as_str();
        check_shape(&command.op)?;
        if let Op::DeleteSession = command.op {
            let session = self.living(name);
            let existed = session.map(|session| session.deleted = true).is_some();
            return Ok(Outcome::SessionDeleted { existed });
        }
        let makes = matches!(
            command.op,
            Op::CreateSession | Op::StartRun { .. } | Op::Post { .. }
        );
        let created = self.living(name).is_none();
        if let (Some(meant), Some(session)) = (command.session_epoch, self.living(name))
            && meant != session.epoch()
        {
            let details = Details {
                session_epoch: Some(session.epoch()),
                earliest: Some(Offset::ZERO.next()),
                tail: Some(session.tail()),
                ..Details::default()
            };
            return Err(Refusal::with(Code::Gone, "", details));
        }
        if created {
            if !makes || !command.may_create || command.session_epoch.is_some() {
                return bare(Code::UnknownSession);
            }
            self.make(name);
        }
        let session = self.living(name).expect("it was just made");
        let by = &command.actor;
        match &command.op {
            Op::CreateSession => Ok(Outcome::SessionReady {
                session_epoch: session.epoch(),
                tail: session.tail(),
                created,
            }),
            Op::DeleteSession => unreachable!("answered above"),
            // Nothing here freezes a session; `frozen` shows what is frozen.
            Op::Unfreeze => Ok(Outcome::SessionUnfrozen {
                session_epoch: session.epoch(),
                frozen: false,
            }),
            Op::StartRun { run, input, key } => {
                session.start(time, by, run, input.as_ref(), key.as_ref())
            },
            Op::ClaimRun { run, key } => session.claim(time, by, run, key.as_ref()),
            Op::Publish {
                run,
                run_epoch,
                first_seq,
                drafts,
            } => session.publish(time, by, run, *run_epoch, first_seq.0, drafts),
            Op::Post {
                draft,
                key,
                body_hash,
            } => session.post(time, by, draft, key.as_ref(), *body_hash),
            Op::Cancel {
                run,
                key,
                body_hash,
            } => session.cancel(time, by, run, key, *body_hash),
        }
    }
}

fn check_shape(op: &Op) -> Result<(), Refusal> {
    let fine = match op {
        Op::Publish {
            run_epoch,
            first_seq,
            drafts,
            ..
        } => {
            let is_end =
                |draft: &Draft| matches!(draft.body, Body::RunCompleted | Body::RunFailed { .. });
            let ends = drafts.iter().filter(|draft| is_end(draft)).count();
            let kinds = drafts.iter().all(|draft| {
                let kind = draft.body.kind().as_str();
                let status_fits = match draft.body {
                    Body::MessageEnd { status, .. } => status == MessageStatus::Complete,
                    _ => true,
                };
                let may = ["message.", "part.", "app", "run.completed", "run.failed"];
                status_fits && may.iter().any(|prefix| kind.starts_with(prefix))
            });
            let ends_last = ends == 0 || (ends == 1 && drafts.last().is_some_and(is_end));
            run_epoch.0 > 0 && first_seq.0 > 0 && !drafts.is_empty() && kinds && ends_last
        },
        Op::Post { draft, key, .. } => match draft.body {
            Body::Input { .. } => key.is_some(),
            Body::App { .. } => true,
            _ => false,
        },
        _ => true,
    };
    if fine { Ok(()) } else { bare(Code::Malformed) }
}

/// What the log says of a run.
struct Seen {
    writer: ParticipantId,
    epoch: RunEpoch,
    /// State and the offset of its end.
    end: Option<(RunState, Offset)>,
}

impl Session {
    fn epoch(&self) -> SessionEpoch {
        SessionEpoch {
            timeline: 1,
            session_no: SessionNo(self.number),
        }
    }

    fn tail(&self) -> Offset {
        self.log.last().map_or(Offset::ZERO, |event| event.offset)
    }

    fn of_run<'a>(&'a self, run: &'a RunId) -> impl Iterator<Item = &'a Event> {
        self.log
            .iter()
            .filter(move |event| event.run.as_ref().is_some_and(|stamp| stamp.run == *run))
    }

    fn seen(&self, run: &RunId) -> Option<Seen> {
        let mut seen: Option<Seen> = None;
        for event in self.of_run(run) {
            let stamp = event.run.as_ref().expect("filtered");
            match &event.body {
                Body::RunStarted { .. } | Body::RunClaimed => {
                    seen = Some(Seen {
                        writer: event.author.participant.clone(),
                        epoch: stamp.run_epoch,
                        end: None,
                    });
                },
                Body::RunCompleted => {
                    seen.as_mut()?.end = Some((RunState::Completed, event.offset));
                },
                Body::RunFailed { .. } => {
                    seen.as_mut()?.end = Some((RunState::Failed, event.offset));
                },
                Body::RunCancelled { cancel_offset } => {
                    seen.as_mut()?.end = Some((RunState::Cancelled, *cancel_offset));
                },
                _ => {},
            }
        }
        seen
    }

    /// Whether the run has started and not ended.
    pub(crate) fn is_live(&self, run: &RunId) -> bool {
        self.seen(run).is_some_and(|seen| seen.end.is_none())
    }

    /// The epoch of a run's writer, and what it may write next.
    pub(crate) fn hint(&self, run: &RunId) -> Option<(ParticipantId, RunEpoch, u64)> {
        let seen = self.seen(run)?;
        let last = self.last_seq(run, seen.epoch).0;
        Some((seen.writer, seen.epoch, last + 1))
    }

    /// Open messages of a run, in the order of their start.
    pub(crate) fn open_messages(&self, run: &RunId) -> Vec<MessageId> {
        let mut open = Vec::new();
        for event in self.of_run(run) {
            match &event.body {
                Body::MessageStart { message, .. } => open.push(message.clone()),
                Body::MessageEnd { message, .. } => open.retain(|other| other != message),
                _ => {},
            }
        }
        open
    }

    /// Open parts of a run.
    pub(crate) fn open_parts(&self, run: &RunId) -> Vec<(MessageId, PartId)> {
        let mut open: Vec<(MessageId, PartId)> = Vec::new();
        for event in self.of_run(run) {
            match &event.body {
                Body::PartStart { message, part, .. } => open.push((message.clone(), part.clone())),
                Body::PartEnd { message, part, .. } => {
                    open.retain(|other| (&other.0, &other.1) != (message, part));
                },
                Body::MessageEnd { message, .. } => open.retain(|other| other.0 != *message),
                _ => {},
            }
        }
        open
    }

    fn last_seq(&self, run: &RunId, epoch: RunEpoch) -> (u64, Offset) {
        let of_epoch = self.of_run(run).filter_map(|event| {
            let stamp = event.run.as_ref()?;
            (stamp.run_epoch == epoch).then_some((stamp.seq?.0, event.offset))
        });
        of_epoch.last().unwrap_or((0, Offset::ZERO))
    }

    fn add(
        &mut self,
        time: u64,
        by: &Author,
        run: Option<(&RunId, RunEpoch, Option<u64>)>,
        draft: Draft,
    ) -> Offset {
        let offset = Offset::new(self.log.len() as u64 + 1).expect("small");
        let run = run.map(|(run, run_epoch, seq)| RunStamp {
            run: run.clone(),
            run_epoch,
            seq: seq.map(Seq),
        });
        self.log.push(Event {
            offset,
            time: Timestamp(time),
            run,
            author: by.clone(),
            parent: draft.parent,
            visibility: draft.visibility,
            format: draft.format,
            codec: draft.codec,
            body: draft.body,
            raw: draft.raw,
        });
        offset
    }

    fn recall(
        &self,
        time: u64,
        by: &Author,
        key: Option<&Key>,
        purpose: &Purpose,
    ) -> Result<Option<&UsedKey>, Refusal> {
        let used = self.keys.iter().rev().find(|used| {
            used.author == by.participant && Some(&used.key) == key && time - used.time <= DAY_MS
        });
        match used {
            Some(used) if used.purpose != *purpose => refuse(
                Code::KeyReused,
                Details {
                    offset: Some(used.offset),
                    ..Details::default()
                },
            ),
            other => Ok(other),
        }
    }

    fn keep_key(
        &mut self,
        time: u64,
        by: &Author,
        key: Option<&Key>,
        purpose: Purpose,
        offset: Offset,
        granted: Option<RunEpoch>,
    ) {
        if let Some(key) = key {
            self.keys.push(UsedKey {
                author: by.participant.clone(),
                key: key.clone(),
                purpose,
                time,
                offset,
                granted,
            });
        }
    }
}

impl Model {
    /// The logs of all sessions that live.
    pub(crate) fn living_logs(&self) -> impl Iterator<Item = &[Event]> {
        let living = self.sessions.iter().filter(|session| !session.deleted);
        living.map(|session| session.log.as_slice())
    }
}
