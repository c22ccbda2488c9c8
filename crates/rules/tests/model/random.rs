//! Random sequences of commands that are worth applying: what a sequence means is decided while
//! it is played, so that most writers write where they may and some of them miss narrowly.

use everwire_core::event::{Body, MessageStatus};
use everwire_core::{Command, MessageId, Op, Outcome, PartId, RunId};
use proptest::prelude::*;

use crate::model::Model;
use crate::world::{
    World, app, cancel, claim, command, delta, input, message_end, message_start, name, part_end,
    part_start, post, publish, start,
};

const RUNS: [&str; 6] = ["r1", "r2", "r3", "r4", "r5", "r6"];
const PEOPLE: [&str; 4] = ["bot", "bot", "bot2", "ann"];
const KEYS: [&str; 5] = ["k1", "k2", "k3", "k4", "k5"];
const SESSIONS: [&str; 5] = ["s", "s", "s", "s", "t"];

/// What a sequence wants at one place; numbers are picked from what is there then.
#[derive(Clone, Debug)]
pub(crate) enum Intent {
    Create(u8),
    Delete,
    Unfreeze,
    Start {
        by: u8,
        run: u8,
        key: Option<u8>,
    },
    Claim {
        by: Option<u8>,
        run: u8,
        key: Option<u8>,
    },
    Publish {
        by: Option<u8>,
        run: u8,
        epoch: i8,
        seq: i8,
        pieces: Vec<Piece>,
    },
    Input {
        by: u8,
        id: u8,
        key: Option<u8>,
    },
    App {
        by: u8,
        key: Option<u8>,
        hash: u8,
    },
    Cancel {
        by: u8,
        run: u8,
        key: u8,
    },
    /// Sends a former command again, as it was.
    Again(u8),
    Advance(u64),
}

/// A draft of a batch.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Message,
    UsedMessage(u8),
    EndMessage(u8),
    Part(u8),
    UsedPart(u8),
    EndPart(u8),
    Delta(u8, String),
    Astray,
    App,
    Complete,
    Fail,
    Illegal,
}

fn piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        3 => Just(Piece::Message),
        1 => any::<u8>().prop_map(Piece::EndMessage),
        4 => any::<u8>().prop_map(Piece::Part),
        3 => any::<u8>().prop_map(Piece::EndPart),
        16 => (any::<u8>(), "[a-c\u{e9}\u{1f600}]{0,4}").prop_map(|(part, text)| Piece::Delta(part, text)),
        2 => Just(Piece::App),
    ]
}

/// What spoils a batch, or ends its run.
fn odd_piece() -> impl Strategy<Value = Piece> {
    prop_oneof![
        2 => any::<u8>().prop_map(Piece::UsedMessage),
        2 => any::<u8>().prop_map(Piece::UsedPart),
        2 => Just(Piece::Astray),
        1 => Just(Piece::Illegal),
        3 => Just(Piece::Complete),
        3 => Just(Piece::Fail),
    ]
}

fn maybe_key() -> impl Strategy<Value = Option<u8>> {
    prop::option::of(any::<u8>())
}

fn publish_intent() -> impl Strategy<Value = Intent> {
    let by = prop_oneof![12 => Just(None), 1 => any::<u8>().prop_map(Some)];
    let epoch = prop_oneof![12 => Just(0i8), 1 => Just(-1), 1 => Just(1)];
    let seq = prop_oneof![10 => Just(0i8), 3 => -6i8..0, 1 => 1i8..3];
    let odd = prop::option::weighted(0.15, (odd_piece(), prop::bool::weighted(0.8)));
    let pieces = (prop::collection::vec(piece(), 1..6), odd).prop_map(|(mut pieces, odd)| {
        match odd {
            Some((odd, true)) => pieces.push(odd),
            Some((odd, false)) => pieces.insert(0, odd),
            None => {},
        }
        pieces
    });
    (by, any::<u8>(), epoch, seq, pieces).prop_map(|(by, run, epoch, seq, pieces)| {
        Intent::Publish {
            by,
            run,
            epoch,
            seq,
            pieces,
        }
    })
}

fn intent() -> impl Strategy<Value = Intent> {
    let by = any::<u8>;
    prop_oneof![
        2 => by().prop_map(Intent::Create),
        1 => Just(Intent::Delete),
        1 => Just(Intent::Unfreeze),
        8 => (by(), by(), maybe_key()).prop_map(|(by, run, key)| Intent::Start { by, run, key }),
        4 => (prop::option::weighted(0.2, by()), by(), maybe_key())
            .prop_map(|(by, run, key)| Intent::Claim { by, run, key }),
        90 => publish_intent(),
        4 => (by(), by(), prop::option::weighted(0.9, by())).prop_map(|(by, id, key)| Intent::Input { by, id, key }),
        3 => (by(), maybe_key(), by()).prop_map(|(by, key, hash)| Intent::App { by, key, hash }),
        3 => (by(), by(), by()).prop_map(|(by, run, key)| Intent::Cancel { by, run, key }),
        10 => by().prop_map(Intent::Again),
        4 => prop_oneof![4 => 0..5_000u64, 1 => 80_000_000..90_000_000u64].prop_map(Intent::Advance),
    ]
}

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
    pub(crate) sent: Vec<(u64, Command)>,
    pub(crate) outcomes: Vec<Outcome>,
    now: u64,
    messages: u64,
}

impl Play {
    /// Plays one intent. Answers what both said, if it led to a command.
    pub(crate) fn play(&mut self, intent: &Intent, session: u8) -> Option<(Outcome, Outcome)> {
        let session = always(&SESSIONS, session);
        let mut command = self.command(intent, session)?;
        if !matches!(intent, Intent::Again(_)) {
            command.session = name(session);
        }
        self.sent.push((self.now, command.clone()));
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
        let any_run = |run: u8| always(&RUNS, run);
        Some(match intent {
            Intent::Create(by) => {
                let mut create = command(person(*by), Op::CreateSession);
                create.may_create = by % 3 != 0;
                create
            },
            Intent::Delete => command("ann", Op::DeleteSession),
            Intent::Unfreeze => command("ann", Op::Unfreeze),
            Intent::Start { by, run, key } => start(person(*by), any_run(*run), key_of(*key)),
            Intent::Claim { by, run, key } => {
                let run = self.likely_run(session, *run);
                let hint = self.hint(session, run);
                let writer = hint.map_or_else(|| "bot".to_owned(), |hint| hint.0);
                let by = by.map_or(writer, |by| person(by).to_owned());
                claim(&by, run, key_of(*key))
            },
            Intent::Publish {
                by,
                run,
                epoch,
                seq,
                pieces,
            } => {
                let run = self.likely_run(session, *run);
                let (writer, at, next) = self
                    .hint(session, run)
                    .unwrap_or_else(|| ("bot".to_owned(), 1, 1));
                let by = by.map_or(writer, |by| person(by).to_owned());
                let bodies = self.bodies(session, &name(run), pieces);
                let epoch = at.saturating_add_signed(i32::from(*epoch));
                let seq = next.saturating_add_signed(i64::from(*seq)).max(1);
                publish(&by, run, epoch, seq, bodies)
            },
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
            Intent::Again(number) => pick(&self.sent, *number)?.1.clone(),
            Intent::Advance(ms) => {
                self.now += ms;
                return None;
            },
        })
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
        let (mut messages, mut parts) = match self.model.living(session) {
            Some(session) => (session.open_messages(run), session.open_parts(run)),
            None => (Vec::new(), Vec::new()),
        };
        let mut bodies = Vec::new();
        for piece in pieces {
            let body = self.body(piece, &mut messages, &mut parts);
            bodies.extend(body);
        }
        bodies
    }

    fn body(
        &mut self,
        piece: &Piece,
        messages: &mut Vec<MessageId>,
        parts: &mut Vec<(MessageId, PartId)>,
    ) -> Option<Body> {
        Some(match piece {
            Piece::Message => {
                self.messages += 1;
                let message = format!("m{}", self.messages);
                messages.push(name(&message));
                message_start(&message)
            },
            Piece::UsedMessage(number) => message_start(&format!("m{}", number % 9)),
            Piece::EndMessage(number) => {
                let message = pick(messages, *number)?.clone();
                messages.retain(|other| *other != message);
                parts.retain(|part| part.0 != message);
                message_end(message.as_str())
            },
            Piece::Part(number) => {
                if messages.is_empty() {
                    return self.body(&Piece::Message, messages, parts);
                }
                let message = pick(messages, *number)?.clone();
                let part = format!("p{number}");
                parts.push((message.clone(), name(&part)));
                part_start(message.as_str(), &part)
            },
            Piece::UsedPart(number) => {
                let (message, part) = pick(parts, *number)?;
                part_start(message.as_str(), part.as_str())
            },
            Piece::EndPart(number) => {
                let (message, part) = pick(parts, *number)?.clone();
                parts.retain(|other| (&other.0, &other.1) != (&message, &part));
                part_end(message.as_str(), part.as_str())
            },
            Piece::Delta(number, text) => {
                if parts.is_empty() {
                    return self.body(&Piece::Part(*number), messages, parts);
                }
                let (message, part) = pick(parts, *number)?;
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

/// Intents, each with the session that it means. Mostly a run is there from the start.
pub(crate) fn sequences(length: usize) -> impl Strategy<Value = Vec<(Intent, u8)>> {
    let started = Intent::Start {
        by: 0,
        run: 0,
        key: None,
    };
    let any = prop::collection::vec((intent(), any::<u8>()), 1..length);
    (any, prop::bool::weighted(0.8)).prop_map(move |(mut sequence, begins)| {
        if begins {
            sequence.insert(0, (started.clone(), 0));
        }
        sequence
    })
}
