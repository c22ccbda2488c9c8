//! Random sequences of commands that are worth applying: what an intent means is decided while it
//! is played, so that most writers write where they may and some of them miss narrowly.

use everwire_core::command::{Batch, Control, Expire, Fire, StartRun};
use everwire_core::event::{Body, MessageStatus};
use everwire_core::row::{Row, RowKey, RunState, TimerKind};
use everwire_core::{
    Cancel, Command, Guard, InputRef, MessageId, Offset, Op, Outcome, PartId, RunId, Slot, StepId,
    Target,
};

use crate::intent::{Beat, Intent, Piece, Publish, Start, Stop};
use crate::model::Model;
use crate::world::{
    World, app, batch, cancel, cancel_of, claim, command, controlling, delta, expire, heartbeat,
    input, message_end, message_start, name, part_end, part_start, post, publish, step_end,
    step_start,
};

const RUNS: [&str; 9] = ["r1", "r2", "r3", "r4", "r5", "r6", "r7", "r8", "r9"];
const PEOPLE: [&str; 4] = ["bot", "bot", "bot2", "ann"];
const KEYS: [&str; 5] = ["k1", "k2", "k3", "k4", "k5"];
const SESSIONS: [&str; 5] = ["s", "s", "s", "s", "t"];

fn pick<T>(all: &[T], number: u8) -> Option<&T> {
    all.get(usize::from(number).checked_rem(all.len())?)
}

fn always<T: Copy>(all: &[T], number: u8) -> T {
    *pick(all, number).expect("a list of the tests")
}

fn key_of(key: Option<u8>) -> Option<&'static str> {
    key.map(|key| always(&KEYS, key))
}

/// A sequence while it is played against both.
#[derive(Default)]
pub(crate) struct Play {
    pub(crate) world: World,
    pub(crate) model: Model,
    pub(crate) sent: Vec<(u64, Sent)>,
    pub(crate) outcomes: Vec<Outcome>,
    now: u64,
    messages: u64,
}

/// What a run has open, as a batch is made for it.
#[derive(Default)]
struct Page {
    step: Option<StepId>,
    messages: Vec<MessageId>,
    parts: Vec<(MessageId, PartId)>,
}

impl Page {
    /// Mostly the step that is open again, if one is; else another.
    fn begin_step(&mut self, number: u8) -> StepId {
        let other = name(&format!("s{}", number % 3));
        let next = match self.step.take() {
            // What began in the attempt before is gone; what began before it is left alone.
            Some(open) => {
                self.messages.clear();
                self.parts.clear();
                if number.is_multiple_of(16) {
                    other
                } else {
                    open
                }
            },
            None => other,
        };
        self.step = Some(next.clone());
        next
    }

    /// The step that is open; sometimes one that is not.
    fn end_step(&mut self, number: u8) -> Option<StepId> {
        let open = self.step.take();
        if open.is_none() && !number.is_multiple_of(16) {
            return None;
        }
        self.messages.clear();
        self.parts.clear();
        Some(open.unwrap_or_else(|| name("s1")))
    }
}

/// What went into the log.
#[derive(Clone, Debug)]
pub(crate) enum Sent {
    Command(Box<Command>),
    Control(Control),
}

impl Sent {
    /// The entry that carries it.
    pub(crate) fn batch(&self, ms: u64) -> Batch {
        match self {
            Self::Command(command) => batch(ms, vec![(**command).clone()]),
            Self::Control(control) => controlling(ms, control.clone()),
        }
    }

    /// The slot of the session that it is about.
    pub(crate) fn slot(&self) -> Slot {
        match self {
            Self::Command(command) => Slot::of(&command.namespace, &command.session),
            Self::Control(Control::Expire(Expire { session, .. }))
            | Self::Control(Control::Fire(Fire { session, .. })) => session.slot,
            Self::Control(Control::RaiseRules { .. } | Control::Audit) => {
                unreachable!("no sequence holds one")
            },
        }
    }
}

impl Play {
    /// The commands that were sent.
    pub(crate) fn commands(&self) -> impl Iterator<Item = &Command> {
        self.sent.iter().filter_map(|(_, sent)| match sent {
            Sent::Command(command) => Some(&**command),
            Sent::Control(_) => None,
        })
    }

    /// Plays one intent. Answers what both said, if it led to a command.
    pub(crate) fn play(&mut self, intent: &Intent, session: u8) -> Option<(Outcome, Outcome)> {
        let session = always(&SESSIONS, session);
        for control in self.controls(intent, session) {
            self.sent.push((self.now, Sent::Control(control.clone())));
            self.model.control(self.now, &control);
            let outcomes = self.world.apply(vec![controlling(self.now, control)]);
            assert_eq!(outcomes, []);
        }
        let mut command = self.command(intent, session)?;
        if !matches!(intent, Intent::Again(_)) {
            command.session = name(session);
        }
        self.sent
            .push((self.now, Sent::Command(Box::new(command.clone()))));
        let expected = self.model.apply(self.now, &command);
        let mut given = self.world.at(self.now, command);
        if let Outcome::Refused(refusal) = &mut given {
            refusal.message.clear();
        }
        self.outcomes.push(given.clone());
        Some((expected, given))
    }

    fn command(&mut self, intent: &Intent, session: &str) -> Option<Command> {
        let person = |by: u8| always(&PEOPLE, by);
        Some(match intent {
            Intent::Create(by) => {
                let mut create = command(person(*by), Op::CreateSession);
                create.may_create = by % 3 != 0;
                create
            },
            Intent::Delete => command("ann", Op::DeleteSession),
            Intent::Unfreeze => command("ann", Op::Unfreeze),
            Intent::Start(start) => self.start(session, start),
            Intent::Claim { by, run, key } => {
                let run = self.likely_run(session, *run);
                let hint = self.hint(session, run);
                let writer = hint.map_or_else(|| "bot".to_owned(), |hint| hint.0);
                let by = by.map_or(writer, |by| person(by).to_owned());
                claim(&by, run, key_of(*key))
            },
            Intent::Publish(publish) => self.publish(session, publish),
            Intent::Input { by, id, key } => {
                let body = input(&format!("i{}", id % 6), "hi");
                post(person(*by), body, key_of(*key), u128::from(id % 6))
            },
            Intent::App { by, key, hash } => {
                post(person(*by), app("x"), key_of(*key), u128::from(hash % 8))
            },
            Intent::Cancel { by, run, key } => {
                let run = self.likely_run(session, *run);
                cancel(person(*by), run, always(&KEYS, *key))
            },
            Intent::Stop(stop) => self.stop(session, stop),
            Intent::Heartbeat(beat) => self.heartbeat(session, beat)?,
            Intent::Epilogue { run, seq } => {
                let run = always(&RUNS, *run);
                let (writer, epoch, next) = self.hint(session, run)?;
                let seq = next.saturating_add_signed(i64::from(*seq)).max(1);
                publish(
                    &writer,
                    run,
                    epoch,
                    seq,
                    vec![Body::RunEpilogue { data: None }],
                )
            },
            Intent::Expire { .. } | Intent::Fire => return None,
            Intent::Again(number) => match &pick(&self.sent, *number)?.1 {
                Sent::Command(command) => (**command).clone(),
                Sent::Control(_) => return None,
            },
            Intent::Advance(ms) => {
                self.now += ms;
                return None;
            },
        })
    }

    fn start(&mut self, session: &str, start: &Start) -> Command {
        let input = start.input.map(|number| InputRef {
            input: name(&format!("i{}", number % 3)),
            author: (!number.is_multiple_of(4)).then(|| name(always(&PEOPLE, number / 8))),
        });
        let parent = start.parent;
        let asked = StartRun {
            input,
            parent: parent.map(|parent| name(self.likely_run(session, parent))),
            key: key_of(start.key).map(name),
            ..StartRun::new(name(always(&RUNS, start.run)))
        };
        command(always(&PEOPLE, start.by), Op::StartRun(asked))
    }

    fn publish(&mut self, session: &str, wanted: &Publish) -> Command {
        let run = self.likely_run(session, wanted.run);
        let (writer, at, next) = self
            .hint(session, run)
            .unwrap_or_else(|| ("bot".to_owned(), 1, 1));
        let by = wanted
            .by
            .map_or(writer, |by| always(&PEOPLE, by).to_owned());
        let bodies = self.bodies(session, &name(run), &wanted.pieces);
        let epoch = at.saturating_add_signed(i32::from(wanted.epoch));
        let seq = next.saturating_add_signed(i64::from(wanted.seq)).max(1);
        publish(&by, run, epoch, seq, bodies)
    }

    fn heartbeat(&mut self, session: &str, beat: &Beat) -> Option<Command> {
        let run = match beat.run % 2 {
            0 => self.likely_run(session, beat.run),
            _ => always(&RUNS, beat.run),
        };
        let (writer, at, _) = self.hint(session, run)?;
        let by = beat.by.map_or(writer, |by| always(&PEOPLE, by).to_owned());
        let tail = self.model.living(session)?.log.len() as u64;
        let behind = beat.behind;
        let through = behind.map(|behind| tail.saturating_add_signed(-i64::from(behind)));
        let epoch = at.saturating_add_signed(i32::from(beat.epoch));
        Some(heartbeat(&by, run, epoch, through))
    }

    fn stop(&mut self, session: &str, stop: &Stop) -> Command {
        let target = match stop.target % 8 {
            0..=2 => Target::Subtree(name(self.likely_run(session, stop.run))),
            3..=5 => Target::Input(InputRef {
                input: name(&format!("i{}", stop.input % 3)),
                author: (!stop.input.is_multiple_of(4))
                    .then(|| name(always(&PEOPLE, stop.input / 8))),
            }),
            6 => Target::Session,
            _ => Target::Run(name(self.likely_run(session, stop.run))),
        };
        let state = stop.expect.and_then(|state| pick(&RunState::ALL, state));
        let guard = Guard {
            state: state.copied().filter(|_| target.run().is_some()),
            as_of: stop
                .as_of
                .filter(|_| !matches!(target, Target::Input(_)))
                .and_then(|of| Offset::new(u64::from(of) / 4)),
        };
        let cancel = Cancel {
            target,
            grace_ms: stop.graceful.then_some(2_000),
            guard,
        };
        cancel_of(always(&PEOPLE, stop.by), cancel, always(&KEYS, stop.key))
    }

    /// What a leader would say unasked.
    fn controls(&mut self, intent: &Intent, session: &str) -> Vec<Control> {
        match intent {
            Intent::Expire { run, late } => {
                let run = self.likely_run(session, *run);
                let Some((_, epoch, next)) = self.hint(session, run) else {
                    return Vec::new();
                };
                let rows = self.world.rows.iter();
                let last = rows.filter_map(|(key, row)| match (key, row) {
                    (RowKey::Epoch(of, id, run_epoch), Row::Epoch(row))
                        if id.as_str() == run && run_epoch.0 == epoch =>
                    {
                        Some((*of, row.last_seq.0 + 1, row.last_offset.get()))
                    },
                    _ => None,
                });
                // The same name in several sessions: the one that is meant stands like this.
                let last = last.filter(|(_, seq, _)| *seq == next);
                let last: Vec<_> = last.collect();
                let expired = last.iter();
                let expired = expired.map(|(of, _, last)| {
                    expire(*of, run, epoch, last.saturating_sub(u64::from(*late)))
                });
                expired.collect()
            },
            Intent::Fire => {
                let rows = self.world.rows.iter();
                let due = rows.filter_map(|(key, row)| match (key, row) {
                    (RowKey::Timer(of, due, TimerKind::OrphanLimit), Row::Timer(row)) => {
                        Some(Control::Fire(Fire {
                            session: *of,
                            due: *due,
                            kind: TimerKind::OrphanLimit,
                            guard: row.guard,
                        }))
                    },
                    _ => None,
                });
                due.collect()
            },
            _ => Vec::new(),
        }
    }

    /// Mostly a live run, sometimes any.
    fn likely_run(&mut self, session: &str, number: u8) -> &'static str {
        let any = always(&RUNS, number);
        let Some(session) = self.model.living(session) else {
            return any;
        };
        let live = RUNS.iter().filter(|run| session.is_live(&name(run)));
        let live: Vec<_> = live.copied().collect();
        match number % 8 {
            0 => any,
            _ => pick(&live, number / 8).copied().unwrap_or(any),
        }
    }

    fn hint(&mut self, session: &str, run: &str) -> Option<(String, u32, u64)> {
        let session = self.model.living(session)?;
        let (writer, epoch, next) = session.hint(&name(run))?;
        Some((writer.as_str().to_owned(), epoch.0, next))
    }

    /// Drafts that mostly fit what the run has open when they come.
    fn bodies(&mut self, session: &str, run: &RunId, pieces: &[Piece]) -> Vec<Body> {
        let mut page = match self.model.living(session) {
            Some(session) => Page {
                step: session.open_step(run),
                messages: session.open_messages(run),
                parts: session.open_parts(run),
            },
            None => Page::default(),
        };
        let mut bodies = Vec::new();
        for piece in pieces {
            let body = self.body(piece, &mut page);
            bodies.extend(body);
        }
        bodies
    }

    fn body(&mut self, piece: &Piece, page: &mut Page) -> Option<Body> {
        Some(match piece {
            Piece::Step(number) => step_start(page.begin_step(*number).as_str()),
            Piece::EndStep(number) => {
                step_end(page.end_step(*number)?.as_str(), !number.is_multiple_of(3))
            },
            Piece::Message => {
                self.messages += 1;
                let message = format!("m{}", self.messages);
                page.messages.push(name(&message));
                message_start(&message)
            },
            Piece::UsedMessage(number) => message_start(&format!("m{}", number % 9)),
            Piece::EndMessage(number) => {
                let message = pick(&page.messages, *number)?.clone();
                page.messages.retain(|other| *other != message);
                page.parts.retain(|part| part.0 != message);
                message_end(message.as_str())
            },
            Piece::Part(number) => {
                if page.messages.is_empty() {
                    return self.body(&Piece::Message, page);
                }
                let message = pick(&page.messages, *number)?.clone();
                let part = format!("p{number}");
                page.parts.push((message.clone(), name(&part)));
                part_start(message.as_str(), &part)
            },
            Piece::UsedPart(number) => {
                let (message, part) = pick(&page.parts, *number)?;
                part_start(message.as_str(), part.as_str())
            },
            Piece::EndPart(number) => {
                let (message, part) = pick(&page.parts, *number)?.clone();
                page.parts
                    .retain(|other| (&other.0, &other.1) != (&message, &part));
                part_end(message.as_str(), part.as_str())
            },
            Piece::Delta(number, text) => {
                if page.parts.is_empty() {
                    return self.body(&Piece::Part(*number), page);
                }
                let (message, part) = pick(&page.parts, *number)?;
                delta(message.as_str(), part.as_str(), text)
            },
            Piece::Astray => delta("m1", "p1", "astray"),
            Piece::App => app("x"),
            Piece::Complete => Body::RunCompleted,
            Piece::Fail => Body::RunFailed {
                reason: "lost".to_owned(),
            },
            Piece::Illegal => Body::MessageEnd {
                message: name("m1"),
                status: MessageStatus::Cancelled,
            },
        })
    }
}
