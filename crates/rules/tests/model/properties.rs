//! Random sequences: the rules answer as the plain model does, keep their invariants, and do not
//! care how batches are cut into transactions.

use std::collections::BTreeMap;

use everwire_core::event::{Body, MessageStatus};
use everwire_core::row::{Row, RowKey, RunState, SessionKey, TimerKind};
use everwire_core::{Event, Kind, MessageId, Outcome, PartId, RunEpoch, RunId};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{RngAlgorithm, TestRng, TestRunner};

use crate::intent::{Intent, sequences};
use crate::random::{Play, Sent};
use crate::world::World;

fn played(sequence: &[(Intent, u8)]) -> Play {
    let mut play = Play::default();
    for (intent, session) in sequence {
        if let Some((expected, given)) = play.play(intent, *session) {
            let (_, sent) = play.sent.last().expect("it was just sent");
            assert_eq!(given, expected, "to {sent:#?}");
        }
    }
    play
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_rules_answer_as_the_model_does(sequence in sequences(100)) {
        let play = played(&sequence);
        // Same logs too, of all sessions that live.
        let modelled: Vec<_> = play.model.living_logs().collect();
        let mut given: Vec<_> = play.world.logs.values().map(Vec::as_slice).collect();
        for log in modelled {
            if !log.is_empty() {
                let place = given.iter().position(|other| *other == log);
                prop_assert!(place.is_some(), "no such log: {log:#?}");
                given.remove(place.unwrap());
            }
        }
        prop_assert!(given.is_empty(), "more logs than modelled: {given:#?}");
    }

    #[test]
    fn the_invariants_hold(sequence in sequences(100)) {
        let play = played(&sequence);
        for log in play.world.logs.values() {
            check_offsets(log);
            check_runs(log);
            check_seqs(log);
            check_texts(log);
        }
        check_rows(&play.world);
        for session in &play.model.sessions {
            let texts = texts(&session.log);
            for ((message, part), text) in texts {
                prop_assert_eq!(text, session.text_of(&message, &part));
            }
        }
    }

    #[test]
    fn how_batches_are_cut_into_transactions_changes_nothing(
        sequence in sequences(100),
        cuts in prop::collection::vec((any::<bool>(), any::<bool>()), 101),
    ) {
        let play = played(&sequence);
        let mut other = World::default();
        let mut outcomes = Vec::new();
        // The first flag joins a command with the one before into one batch, which only commands
        // of one time can be; the second joins a batch with the one before into one transaction.
        let mut transaction = Vec::new();
        for ((time, sent), (same_batch, same_transaction)) in play.sent.iter().zip(cuts.iter().cycle()) {
            if let (Some(last), Sent::Command(command), true) = (transaction.last_mut(), sent, same_batch)
                && last_time(last) == *time
            {
                last.commands.push((**command).clone());
                continue;
            }
            if !same_transaction {
                outcomes.extend(other.apply(std::mem::take(&mut transaction)));
            }
            transaction.push(sent.batch(*time));
        }
        outcomes.extend(other.apply(transaction));
        for outcome in &mut outcomes {
            if let Outcome::Refused(refusal) = outcome {
                refusal.message.clear();
            }
        }
        prop_assert_eq!(outcomes, play.outcomes);
        prop_assert_eq!(other, play.world);
    }
}

/// A property over sequences that reach nothing would prove nothing.
#[test]
fn the_sequences_reach_every_answer() {
    let mut runner = TestRunner::new_with_rng(
        ProptestConfig::default(),
        TestRng::deterministic_rng(RngAlgorithm::ChaCha),
    );
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..200 {
        let sequence = sequences(100).new_tree(&mut runner).unwrap().current();
        let play = played(&sequence);
        for outcome in play.outcomes {
            *seen.entry(kind(&outcome)).or_default() += 1;
        }
        for event in play.world.logs.into_values().flatten() {
            let step = match event.body {
                Body::StepStart { attempt: 1, .. } => "step",
                Body::StepStart { .. } => "step-again",
                Body::StepEnd { .. } => "step-end",
                _ => continue,
            };
            *seen.entry(step.to_owned()).or_default() += 1;
        }
    }
    for (least, kinds) in [
        (100, "granted posted committed duplicate"),
        (
            50,
            "ready STALE_EPOCH WRONG_STATE MALFORMED UNKNOWN_SESSION UNKNOWN_RUN",
        ),
        (
            30,
            "half applied RUN_FENCED RUN_ENDED SEQ_GAP ALREADY_CLAIMED KEY_REUSED DENIED",
        ),
        (
            8,
            "created deleted absent inexact granted-duplicate posted-duplicate unknown_run",
        ),
        (3, "already_terminal applied-duplicate observed renewed"),
        (8, "step step-again step-end"),
        (3, "PARENT_FENCED"),
    ] {
        for kind in kinds.split(' ') {
            let count = seen.get(kind).copied().unwrap_or(0);
            assert!(count >= least, "{kind}: {count} of {seen:?}");
        }
    }
}

fn kind(outcome: &Outcome) -> String {
    let mut kind = match outcome {
        Outcome::SessionReady { created: true, .. } => "created",
        Outcome::SessionReady { created: false, .. } => "ready",
        Outcome::SessionDeleted { existed: true } => "deleted",
        Outcome::SessionDeleted { existed: false } => "absent",
        Outcome::SessionUnfrozen { .. } => "unfrozen",
        Outcome::RunGranted { .. } => "granted",
        Outcome::Published(published) => match (published.duplicate, published.appended) {
            (None, _) => "committed",
            (Some(_), Some(_)) => "half",
            (Some(duplicate), None) if duplicate.exact => "duplicate",
            (Some(_), None) => "inexact",
        },
        Outcome::Posted { .. } => "posted",
        Outcome::Renewed {
            observed: Some(_), ..
        } => "observed",
        Outcome::Renewed { observed: None, .. } => "renewed",
        Outcome::Signalled { outcome, .. } => outcome.as_str(),
        Outcome::Refused(refusal) => refusal.code.as_str(),
    }
    .to_owned();
    if let Outcome::RunGranted {
        duplicate: true, ..
    }
    | Outcome::Posted {
        duplicate: true, ..
    }
    | Outcome::Signalled {
        duplicate: true, ..
    } = outcome
    {
        kind.push_str("-duplicate");
    }
    kind
}

fn last_time(batch: &everwire_core::command::Batch) -> u64 {
    batch.stamp.0
}

/// Offsets are dense from 1; times never go back.
fn check_offsets(log: &[Event]) {
    for (expected, event) in (1..).zip(log) {
        assert_eq!(event.offset.get(), expected);
    }
    assert!(log.is_sorted_by_key(|event| event.time));
}

/// The open messages of a run.
#[derive(Default)]
struct OpenMessages {
    messages: Vec<MessageId>,
    /// How many of them began before the step that the run is in.
    outside: Option<usize>,
}

impl OpenMessages {
    fn take(&mut self, event: &Event) {
        match &event.body {
            Body::StepStart { .. } | Body::StepEnd { .. } => {
                // What began in an attempt ends with it.
                let count = self.messages.len();
                self.messages.truncate(self.outside.unwrap_or(count));
                let begins = matches!(event.body, Body::StepStart { .. });
                self.outside = begins.then_some(self.messages.len());
            },
            Body::MessageStart { message, .. } => self.messages.push(message.clone()),
            Body::MessageEnd { message, .. } => {
                let place = self.messages.iter().position(|other| other == message);
                let place = place.unwrap_or_else(|| panic!("ended twice: {event:?}"));
                self.messages.remove(place);
                if let Some(outside) = self.outside.as_mut().filter(|outside| place < **outside) {
                    *outside -= 1;
                }
            },
            _ => {},
        }
    }
}

/// Exactly one terminal event, nothing but sealing behind it; epochs in order; sealing complete.
fn check_runs(log: &[Event]) {
    let mut ended: BTreeMap<RunId, &Event> = BTreeMap::new();
    let mut epochs: BTreeMap<RunId, RunEpoch> = BTreeMap::new();
    let mut open: BTreeMap<RunId, OpenMessages> = BTreeMap::new();
    for event in log {
        let Some(stamp) = &event.run else { continue };
        let run = stamp.run.clone();
        if let Some(end) = ended.get(&run) {
            let status = match end.body {
                Body::RunCancelled { .. } => MessageStatus::Cancelled,
                _ => MessageStatus::Incomplete,
            };
            let is_cancelled = matches!(end.body, Body::RunCancelled { .. });
            match &event.body {
                Body::MessageEnd { status: of, .. } if *of == status => {
                    assert_eq!((stamp.seq, &event.author), (None, &end.author));
                },
                Body::RunEpilogue { .. } if is_cancelled => {
                    let next = epochs.get(&run).map(|epoch| epoch.next());
                    assert_eq!(Some(stamp.run_epoch), next);
                    continue;
                },
                Body::SignalObserved { .. } | Body::SignalCancel { .. } => {},
                _ => panic!("behind the end of its run: {event:?}"),
            }
        }
        match &event.body {
            Body::RunStarted { .. } => {
                assert_eq!(epochs.insert(run, stamp.run_epoch), None);
                assert_eq!(stamp.run_epoch, RunEpoch::FIRST);
            },
            Body::RunClaimed => {
                let before = epochs.insert(run, stamp.run_epoch);
                assert_eq!(before.map(RunEpoch::next), Some(stamp.run_epoch));
            },
            Body::RunCancelled { cancel_offset } => {
                let signal = log.iter().find(|event| event.offset == *cancel_offset);
                let signal = signal.filter(|signal| signal.offset < event.offset);
                let signal = signal.map(|signal| signal.kind());
                assert_eq!(signal, Some(Kind::SignalCancel));
                assert!(ended.insert(run, event).is_none(), "two ends");
            },
            Body::RunCompleted | Body::RunFailed { .. } => {
                assert!(ended.insert(run, event).is_none(), "two ends");
            },
            Body::StepStart { .. }
            | Body::StepEnd { .. }
            | Body::MessageStart { .. }
            | Body::MessageEnd { .. } => open.entry(run).or_default().take(event),
            _ => assert_eq!(
                epochs.get(&run),
                Some(&stamp.run_epoch),
                "an old epoch writes"
            ),
        }
    }
    for run in ended.keys() {
        assert!(
            open.get(run).is_none_or(|open| open.messages.is_empty()),
            "a spinner is left in {run}"
        );
    }
}

/// Seqs of one (run, epoch) are dense from 1.
fn check_seqs(log: &[Event]) {
    let mut last: BTreeMap<(RunId, RunEpoch), u64> = BTreeMap::new();
    for stamp in log.iter().filter_map(|event| event.run.as_ref()) {
        let Some(seq) = stamp.seq else { continue };
        let last = last
            .entry((stamp.run.clone(), stamp.run_epoch))
            .or_default();
        assert_eq!(seq.0, *last + 1);
        *last = seq.0;
    }
}

/// What a reader assembles by positions alone.
fn texts(log: &[Event]) -> BTreeMap<(MessageId, PartId), String> {
    let mut texts: BTreeMap<_, String> = BTreeMap::new();
    for event in log {
        if let Body::PartDelta {
            message,
            part,
            position,
            text,
        } = &event.body
        {
            let so_far = texts.entry((message.clone(), part.clone())).or_default();
            assert_eq!(so_far.len() as u64, *position, "{event:?}");
            so_far.push_str(text);
        }
    }
    texts
}

/// Deltas stand inside their part's start and end, the part inside its message's.
fn check_texts(log: &[Event]) {
    let _ = texts(log);
    let mut parts: BTreeMap<(MessageId, PartId), bool> = BTreeMap::new();
    for event in log {
        match &event.body {
            Body::PartStart { message, part, .. } => {
                assert_eq!(parts.insert((message.clone(), part.clone()), true), None);
            },
            Body::PartDelta { message, part, .. } => {
                assert_eq!(parts.get(&(message.clone(), part.clone())), Some(&true));
            },
            Body::PartEnd { message, part, .. } => {
                assert_eq!(
                    parts.insert((message.clone(), part.clone()), false),
                    Some(true)
                );
            },
            Body::MessageEnd { message, .. } => {
                for ((of, _), open) in &mut parts {
                    *open &= of != message;
                }
            },
            _ => {},
        }
    }
}

/// Rows agree with each other and with the log.
fn check_rows(world: &World) {
    for (key, row) in &world.rows {
        match (key, row) {
            (RowKey::Head(session), Row::Head(head)) => {
                let log = world.logs.get(session).map_or(&[][..], Vec::as_slice);
                assert_eq!(head.tail.get(), log.len() as u64);
                let bytes: usize = log.iter().map(Event::payload_bytes).sum();
                assert_eq!(head.bytes, bytes as u64);
                assert_eq!(u64::from(head.live_runs), live_runs(world, *session));
            },
            (RowKey::Run(session, run), Row::Run(row)) => {
                let index = RowKey::LiveRun(*session, run.clone());
                assert_eq!(world.rows.contains_key(&index), !row.state.is_terminal());
                assert_eq!(row.ended.is_some(), row.state.is_terminal());
                assert_eq!(row.lost_at.is_some(), row.state == RunState::Orphaned);
                if let Some(due) = row.lost_at {
                    let timer = RowKey::Timer(*session, due, TimerKind::OrphanLimit);
                    let timer = world.rows.get(&timer);
                    let ours =
                        matches!(timer, Some(Row::Timer(of)) if of.run.as_ref() == Some(run));
                    assert!(ours, "an orphan without its deadline: {run}");
                }
                check_open(world, *session, run);
            },
            (RowKey::Timer(session, due, TimerKind::StaleKeys), Row::Timer(_)) => {
                let head = world.rows.get(&RowKey::Head(*session));
                let due = Some(*due);
                assert!(matches!(head, Some(Row::Head(head)) if head.keys_due == due));
            },
            (RowKey::Timer(session, due, TimerKind::OrphanLimit), Row::Timer(timer)) => {
                let run = timer.run.clone().expect("it is about one");
                let run = world.rows.get(&RowKey::Run(*session, run));
                let due = Some(*due);
                assert!(matches!(run, Some(Row::Run(run)) if run.lost_at == due));
            },
            (RowKey::KeyAge(session, time, by, name), Row::Index) => {
                let head = world.rows.get(&RowKey::Head(*session));
                assert!(matches!(head, Some(Row::Head(head)) if head.keys_due.is_some()));
                let key = RowKey::Key(*session, by.clone(), name.clone());
                let fresh =
                    matches!(world.rows.get(&key), Some(Row::Key(row)) if row.time == *time);
                assert!(fresh, "an age without its key: {name}");
            },
            _ => {},
        }
        if let Some(session) = key.session() {
            assert!(
                world.rows.contains_key(&RowKey::Head(session)),
                "an orphan: {key:?}"
            );
        }
    }
    let count = |what: fn(&RowKey) -> bool| world.rows.keys().filter(|key| what(key)).count();
    let keys = count(|key| matches!(key, RowKey::Key(..)));
    assert_eq!(keys, count(|key| matches!(key, RowKey::KeyAge(..))));
    let heads = count(|key| matches!(key, RowKey::Head(_)));
    assert_eq!(heads, count(|key| matches!(key, RowKey::Name(..))));
}

fn live_runs(world: &World, session: SessionKey) -> u64 {
    let rows = world.rows.iter();
    let live = rows.filter(|(key, row)| {
        key.session() == Some(session) && matches!(row, Row::Run(run) if !run.state.is_terminal())
    });
    live.count() as u64
}

/// The run row, the message rows and the part rows say the same about what is open.
fn check_open(world: &World, session: SessionKey, run: &RunId) {
    let Some(Row::Run(run_row)) = world.rows.get(&RowKey::Run(session, run.clone())) else {
        panic!("no row of {run}")
    };
    let mut parts = 0;
    for (key, row) in &world.rows {
        let (RowKey::Message(of, message), Row::Message(row)) = (key, row) else {
            continue;
        };
        if *of != session || row.run != *run {
            continue;
        }
        let open = row.status.is_none();
        assert_eq!(run_row.open_messages.contains(message), open, "{message}");
        for (key, part_row) in &world.rows {
            let (RowKey::Part(of, other, part), Row::Part(part_row)) = (key, part_row) else {
                continue;
            };
            if *of == session && other == message {
                assert_eq!(
                    row.open_parts.contains(part),
                    part_row.open,
                    "{message}/{part}"
                );
                assert!(open || !part_row.open, "{message}/{part}");
                parts += u32::from(part_row.open);
            }
        }
    }
    assert_eq!(run_row.open_parts, parts, "{run}");
}
