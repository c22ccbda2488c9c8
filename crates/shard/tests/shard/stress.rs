//! Agents, people and readers at once, with stops at random moments; then the history is
//! checked against what everybody was told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::command::SignalOutcome;
use everwire_core::event::Body;
use everwire_core::{Code, Event, Kind, Offset, Outcome, RunId};
use everwire_shard::{Delivery, ShardHandle, Subscription};

use crate::support::*;

/// A small generator, so that a failure can be run again.
#[derive(Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % sides
    }
}

/// What an agent was told: the offsets of its seqs, and where it was fenced.
struct Told {
    run: RunId,
    acked: Vec<(Offset, String)>,
    fenced_at: Option<Offset>,
}

/// Writes a run until it is stopped or has said enough.
async fn agent(shard: ShardHandle, session: String, run: String, mut dice: Dice) -> Told {
    let mut told = Told {
        run: run_id(&run),
        acked: Vec::new(),
        fenced_at: None,
    };
    shard.propose(start(&session, &run)).await.unwrap();
    let mut seq = 1;
    let mut in_flight = Vec::new();
    for _ in 0..60 {
        let texts: Vec<_> = (0..1 + dice.roll(4))
            .map(|number| format!("{run}/{}", seq + number))
            .collect();
        let pending = shard.submit(publish(&session, &run, seq, &texts)).unwrap();
        seq += texts.len() as u64;
        in_flight.push((pending, texts));
        if in_flight.len() >= 8 || dice.roll(3) == 0 {
            for (pending, texts) in in_flight.drain(..) {
                note(&mut told, pending.await.unwrap(), texts);
            }
            if told.fenced_at.is_some() {
                break;
            }
        }
    }
    for (pending, texts) in in_flight {
        note(&mut told, pending.await.unwrap(), texts);
    }
    told
}

fn note(told: &mut Told, outcome: Outcome, texts: Vec<String>) {
    match published(outcome) {
        Ok(published) => {
            assert!(told.fenced_at.is_none(), "an ack after a fence");
            let appended = published.appended.unwrap();
            for (index, text) in texts.into_iter().enumerate() {
                told.acked
                    .push((appended.first_offset.plus(index as u64), text));
            }
        },
        Err(refusal) => {
            assert_eq!(refusal.code, Code::RunFenced);
            told.fenced_at = refusal.details.cancel_offset;
        },
    }
}

/// Reads to the session's end, as slowly as the dice say, leaving calls half-way.
async fn reader(mut subscription: Subscription, mut dice: Dice) -> Vec<Arc<Event>> {
    let mut all: Vec<Arc<Event>> = Vec::new();
    loop {
        if dice.roll(10) == 0 {
            tokio::time::sleep(Duration::from_millis(dice.roll(20))).await;
        }
        let patience = Duration::from_micros(100 + dice.roll(5_000));
        let Ok(delivery) = tokio::time::timeout(patience, subscription.next()).await else {
            continue;
        };
        match delivery {
            Delivery::Events { from, events, .. } => {
                assert_eq!(from.get(), all.len() as u64 + 1, "a gap or a duplicate");
                all.extend(events);
                let last = all.last().unwrap();
                if matches!(&last.body, Body::App { name, .. } if name == "end") {
                    return all;
                }
            },
            Delivery::Alive { .. } => {},
            Delivery::Ended(refusal) => panic!("{refusal}"),
        }
    }
}

/// The end of a session: its readers leave.
fn end(session: &str) -> everwire_core::Command {
    let mut command = app(session, "end");
    if let everwire_core::command::Op::Post { draft, .. } = &mut command.op
        && let Body::App { name, .. } = &mut draft.body
    {
        "end".clone_into(name);
    }
    command
}

async fn stop_some(shard: ShardHandle, session: String, runs: Vec<String>, mut dice: Dice) -> u64 {
    let mut stopped = 0;
    for run in runs {
        tokio::time::sleep(Duration::from_millis(dice.roll(15))).await;
        if dice.roll(3) == 0 {
            continue;
        }
        let outcome = shard.propose(cancel(&session, &run)).await.unwrap();
        if let Outcome::Signalled {
            outcome: SignalOutcome::Applied { .. },
            ..
        } = outcome
        {
            stopped += 1;
        }
    }
    stopped
}

/// What must hold of one session, whatever happened.
fn check(history: &[Arc<Event>], told: &[Told]) {
    let mut cancelled: BTreeMap<RunId, Offset> = BTreeMap::new();
    for event in history {
        let Some(stamp) = &event.run else {
            continue;
        };
        if event.kind() == Kind::SignalCancel {
            cancelled.insert(stamp.run.clone(), event.offset);
        } else if stamp.seq.is_some() {
            let fence = cancelled.get(&stamp.run);
            assert_eq!(fence, None, "output at {} after the stop", event.offset);
        }
    }
    for told in told {
        for (offset, expected) in &told.acked {
            let index = usize::try_from(offset.get() - 1).unwrap();
            assert_eq!(text(&history[index]), expected, "acked at {offset}");
        }
        if let Some(offset) = told.fenced_at {
            assert_eq!(cancelled.get(&told.run), Some(&offset));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn everybody_sees_one_history_and_a_stop_is_final() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let mut dice = Dice(seed.unwrap_or(20_261_121));
    let world = World::new(2).await;
    let mut fenced = 0;
    for session in ["red", "green", "blue"] {
        let shard = world.shard(session);
        posted(shard.submit(app(session, "begin"))).await;
        let runs: Vec<_> = (0..4).map(|number| format!("run-{number}")).collect();
        let mut fork = || Dice(dice.roll(u64::MAX));
        let agents: Vec<_> = runs
            .iter()
            .map(|run| agent(shard.clone(), session.into(), run.clone(), fork()))
            .map(tokio::spawn)
            .collect();
        let mut readers = Vec::new();
        for _ in 0..3 {
            let subscription = subscribe(&shard, session).await;
            readers.push(tokio::spawn(reader(subscription, fork())));
        }
        let presser = tokio::spawn(stop_some(shard.clone(), session.into(), runs, fork()));
        let mut told = Vec::new();
        for agent in agents {
            told.push(agent.await.unwrap());
        }
        fenced += presser.await.unwrap();
        posted(shard.submit(end(session))).await;
        let mut histories = Vec::new();
        for reader in readers {
            histories.push(reader.await.unwrap());
        }
        let acks: usize = told.iter().map(|told| told.acked.len()).sum();
        assert!(acks > 20, "only {acks} acks");
        for history in &histories {
            check(history, &told);
            assert_eq!(history, &histories[0], "readers saw different histories");
        }
    }
    assert!(fenced > 0, "no run was stopped in time");
    world.assert_alive();
}
