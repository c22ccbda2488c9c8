//! The plain model: a second reading of `docs/protocol/rules.md`, with nothing in common with the
//! code. It keeps the log of each session as a flat list, the keys that were used and the epochs
//! that were closed, and finds every answer by looking through those lists. Slow and simple.

use everwire_core::command::{Control, StartRun};
use everwire_core::event::{Body, Draft, MessageStatus, RunStamp};
use everwire_core::row::RunState;
use everwire_core::{
    Author, Cancel, Code, Command, Details, Event, InputRef, Key, MessageId, Offset, Op, Outcome,
    PartId, ParticipantId, Refusal, RunEpoch, RunId, Seq, SessionEpoch, SessionNo, StepId,
    Timestamp,
};

const DAY_MS: u64 = 24 * 3_600 * 1_000;
/// How long a run may be without a writer, and how long a stop waits for its input.
const TEN_MINUTES_MS: u64 = 600 * 1_000;

mod decide;
mod stop;

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
    /// When each orphan is given up.
    lost_at: Vec<(RunId, u64)>,
    /// Inputs that were stopped before a run answered them.
    buried: Vec<Buried>,
    /// Runs that were stopped gracefully, and until when they may have an epilogue.
    graces: Vec<(RunId, u64)>,
}

/// An input that was stopped before a run answered it.
struct Buried {
    input: InputRef,
    by: Author,
    offset: Offset,
    until: u64,
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
    Start(StartRun),
    Claim(RunId),
    Post(u128),
    Cancel(Cancel),
}

type Answer = Result<Outcome, Refusal>;

fn refuse<T>(code: Code, details: Details) -> Result<T, Refusal> {
    Err(Refusal::with(code, "", details))
}

fn bare<T>(code: Code) -> Result<T, Refusal> {
    refuse(code, Details::default())
}

fn wrong_state(state: RunState, epoch: RunEpoch) -> Details {
    Details {
        state: Some(state.as_str()),
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
            lost_at: Vec::new(),
            buried: Vec::new(),
            graces: Vec::new(),
        });
    }

    /// What a leader asks unasked.
    pub(crate) fn control(&mut self, stamp: u64, control: &Control) {
        self.time = self.time.max(stamp);
        let time = self.time;
        let living = self.sessions.iter_mut().filter(|session| !session.deleted);
        match control {
            Control::Expire(expire) => {
                let number = expire.session.session_no.0;
                for session in living.filter(|session| session.number == number) {
                    if expire.session.slot == session.slot() {
                        session.expire(time, expire);
                    }
                }
            },
            Control::Fire(fire) => {
                let number = fire.session.session_no.0;
                for session in living.filter(|session| session.number == number) {
                    if fire.session.slot == session.slot() {
                        session.lose(time, fire.due.0);
                    }
                }
            },
            Control::RaiseRules { .. } | Control::Audit => {},
        }
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
            Op::CreateSession | Op::StartRun(_) | Op::Post { .. }
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
        let answer = session.answer(time, command, created);
        if created && answer.is_err() {
            // A refused command leaves nothing, not even the session that it would have made.
            self.sessions.pop();
        }
        answer
    }
}

impl Session {
    fn answer(&mut self, time: u64, command: &Command, created: bool) -> Answer {
        let (session, by) = (self, &command.actor);
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
            Op::StartRun(start) => session.start(time, by, start),
            Op::ClaimRun { run, key, .. } => session.claim(time, by, run, key.as_ref()),
            Op::Heartbeat {
                run,
                run_epoch,
                observed_through,
            } => session.heartbeat(time, by, run, *run_epoch, *observed_through),
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
            Op::Cancel { cancel, key, .. } => session.cancel(time, by, cancel, key),
            // `tests/waiting.rs` has runs that wait, and approvals.
            Op::Signal { .. } => unreachable!("no play has other signals than stops"),
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
                let may = [
                    "step.",
                    "message.",
                    "part.",
                    "app",
                    "run.completed",
                    "run.failed",
                    "run.epilogue",
                ];
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
    started: Offset,
    input: Option<InputRef>,
    parent: Option<RunId>,
    orphaned: bool,
    /// State and the offset of its end.
    end: Option<(RunState, Offset)>,
}

impl Seen {
    fn state(&self) -> RunState {
        match self.end {
            Some((state, _)) => state,
            None if self.orphaned => RunState::Orphaned,
            None => RunState::Running,
        }
    }
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
                Body::RunStarted { input, parent, .. } => {
                    seen = Some(Seen {
                        writer: event.author.participant.clone(),
                        epoch: stamp.run_epoch,
                        started: event.offset,
                        input: input.clone(),
                        parent: parent.clone(),
                        orphaned: false,
                        end: None,
                    });
                },
                Body::RunClaimed => {
                    let seen = seen.as_mut()?;
                    seen.writer = event.author.participant.clone();
                    seen.epoch = stamp.run_epoch;
                    seen.orphaned = false;
                },
                Body::RunOrphaned => seen.as_mut()?.orphaned = true,
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

    /// Every run that was started and has not ended, in the order of their start.
    fn live(&self) -> Vec<RunId> {
        let started = self.log.iter().filter_map(|event| match &event.body {
            Body::RunStarted { .. } => Some(event.run.as_ref()?.run.clone()),
            _ => None,
        });
        started.filter(|run| self.is_live(run)).collect()
    }

    fn slot(&self) -> everwire_core::Slot {
        let (namespace, name) = (crate::world::name("dev"), crate::world::name(&self.name));
        everwire_core::Slot::of(&namespace, &name)
    }

    /// Who was granted an epoch.
    fn granted_to(&self, run: &RunId, epoch: RunEpoch) -> Option<ParticipantId> {
        let granted = self.of_run(run).find(|event| {
            let of = event.run.as_ref().map(|stamp| stamp.run_epoch);
            let grants = matches!(event.body, Body::RunStarted { .. } | Body::RunClaimed);
            grants && of == Some(epoch)
        });
        let granted = granted.map(|event| event.author.participant.clone());
        granted.or_else(|| {
            let seen = self.seen(run)?;
            let has_grace = self.graces.iter().any(|(of, _)| of == run);
            (has_grace && epoch.0 == seen.epoch.0 + 1).then_some(seen.writer)
        })
    }

    /// The epoch of a run's writer, and what it may write next.
    pub(crate) fn hint(&self, run: &RunId) -> Option<(ParticipantId, RunEpoch, u64)> {
        let seen = self.seen(run)?;
        let has_grace = self.graces.iter().any(|(of, _)| of == run);
        let epoch = RunEpoch(seen.epoch.0 + u32::from(has_grace));
        let last = self.last_seq(run, epoch).0;
        Some((seen.writer, epoch, last + 1))
    }

    /// Open messages of a run, in the order of their start.
    pub(crate) fn open_messages(&self, run: &RunId) -> Vec<MessageId> {
        let mut open: Vec<(MessageId, Offset)> = Vec::new();
        let mut step = Offset::new(u64::from(u32::MAX)).expect("behind all that happens here");
        for event in self.of_run(run) {
            match &event.body {
                Body::MessageStart { message, .. } => open.push((message.clone(), event.offset)),
                Body::MessageEnd { message, .. } => open.retain(|other| other.0 != *message),
                Body::StepStart { .. } => {
                    open.retain(|other| other.1 < step);
                    step = event.offset;
                },
                Body::StepEnd { .. } => {
                    open.retain(|other| other.1 < step);
                    step = Offset::new(u64::from(u32::MAX)).expect("as above");
                },
                _ => {},
            }
        }
        open.into_iter().map(|(message, _)| message).collect()
    }

    /// The step that a run is in.
    pub(crate) fn open_step(&self, run: &RunId) -> Option<StepId> {
        let steps = self.of_run(run).filter_map(|event| match &event.body {
            Body::StepStart { step, .. } => Some(Some(step.clone())),
            Body::StepEnd { .. } => Some(None),
            _ => None,
        });
        steps.last().flatten()
    }

    /// How often a step was begun.
    fn attempts(&self, run: &RunId, step: &StepId) -> u32 {
        let begun = self
            .of_run(run)
            .filter(|event| matches!(&event.body, Body::StepStart { step: of, .. } if of == step));
        u32::try_from(begun.count()).expect("a few")
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
                _ => {},
            }
        }
        let messages = self.open_messages(run);
        open.retain(|part| messages.contains(&part.0));
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
