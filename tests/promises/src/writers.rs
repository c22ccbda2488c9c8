//! Writers that push as fast as they are let, across any number of crashes, and remember what
//! they were told.
//!
//! What a run says is a function of its name and the seq, so nothing but the acks is kept, and a
//! check knows every byte.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use everwire_client::{AckRange, Client, Publisher};
use everwire_core::event::{PartKind, Role};
use everwire_core::{
    Body, Draft, InputId, Key, MessageId, Offset, PartId, RunEpoch, RunId, Seq, SessionName,
};
use everwire_proto::json::draft_to_json;
use serde_json::Value;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::history::Acked;
use crate::process::Process;

/// Largest batch that a writer sends at once, events.
const BATCH_MAX: u64 = 48;
/// Events of one run that are under way at most: enough that a kill always falls among them.
const IN_FLIGHT_MAX: u64 = 64;
/// How long one input is tried: longer than a server is away.
const INPUT_WITHIN: Duration = Duration::from_secs(60);

/// What the n-th event of a run says.
pub fn draft(run: &RunId, seq: Seq) -> Draft {
    let message = MessageId::parse(&format!("{run}.m")).expect("a good name");
    let part = PartId::parse("p").expect("a good name");
    let body = match seq.0 {
        1 => {
            let role = Role::Assistant;
            Body::MessageStart { message, role }
        },
        2 => Body::PartStart {
            message,
            part,
            kind: PartKind::Text,
            name: None,
            data: None,
        },
        number => {
            let filler = usize::try_from(number * 7919 % 150).expect("small");
            let text = format!("{run}/{number} {}", "ö".repeat(filler));
            Body::PartDelta {
                message,
                part,
                position: 0,
                text,
            }
        },
    };
    let draft = Draft::new(body);
    if seq.0.is_multiple_of(5) {
        return draft.with_raw("test", format!("{{\"n\":{}}}", seq.0));
    }
    draft
}

/// What writers do right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Pause,
    Write,
    End,
}

/// What one writer was told.
#[derive(Clone)]
struct Told {
    session: SessionName,
    run: RunId,
    ranges: Arc<Mutex<Vec<AckRange>>>,
    /// When each of them came.
    times: Arc<Mutex<Vec<Instant>>>,
    /// Of all writers together.
    total: Arc<watch::Sender<u64>>,
}

/// An input that was taken.
#[derive(Clone, Debug)]
pub struct Said {
    /// Where.
    pub offset: Offset,
    /// What was said.
    pub draft: Draft,
}

/// Some runs and a person, all at once.
pub struct Writers {
    told: Vec<Told>,
    /// Inputs that were taken, in the order in which they were said.
    said: Arc<Mutex<Vec<Said>>>,
    order: watch::Sender<Order>,
    acked: Arc<watch::Sender<u64>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Default for Writers {
    fn default() -> Self {
        Self {
            told: Vec::new(),
            said: Arc::default(),
            order: watch::Sender::new(Order::Pause),
            acked: Arc::new(watch::Sender::new(0)),
            tasks: Vec::new(),
        }
    }
}

impl Writers {
    /// Adds a run that is written by a client in this process, as fast as it is let.
    pub async fn add_client(&mut self, client: &Client, session: &SessionName, run: &str) {
        self.add(client, session, run, None).await;
    }

    /// Adds a run that is written at a model's pace, an event at a time: the time between two
    /// acks says how long its session stood still.
    pub async fn add_paced(
        &mut self,
        client: &Client,
        session: &SessionName,
        run: &str,
        per_second: u32,
    ) {
        let every = Duration::from_secs(1) / per_second;
        self.add(client, session, run, Some(every)).await;
    }

    async fn add(
        &mut self,
        client: &Client,
        session: &SessionName,
        run: &str,
        every: Option<Duration>,
    ) {
        let run = RunId::parse(run).expect("a good name");
        let publisher = client.start_run(session, run.clone(), None).await;
        let publisher = publisher.unwrap_or_else(|refusal| panic!("{session}/{run}: {refusal}"));
        let told = self.remember(session, run);
        let (mut acks, order) = (publisher.acks(), self.order.subscribe());
        let told_of = told.clone();
        self.tasks.push(tokio::spawn(async move {
            while let Some(range) = acks.next().await {
                told_of.note(range);
            }
        }));
        self.tasks.push(tokio::spawn(async move {
            match every {
                None => write(publisher, told, order).await,
                Some(every) => write_paced(publisher, told, order, every).await,
            }
        }));
    }

    /// Adds a run that is written by a process: `everwire publish --json`.
    pub fn add_process(&mut self, addr: &str, token: &str, session: &SessionName, name: &str) {
        let run = RunId::parse(name).expect("a good name");
        let args = ["publish", session.as_str(), "--run", name];
        let args = [&args[..], &["--json", "--keep-open"]].concat();
        let mut process = Process::start(addr, token, &args);
        let mut lines = process.lines();
        let (told, order) = (self.remember(session, run), self.order.subscribe());
        let told_of = told.clone();
        self.tasks.push(tokio::spawn(async move {
            while let Some(line) = lines.next_line().await.expect("UTF-8") {
                told_of.note(printed(&line));
            }
        }));
        self.tasks.push(tokio::spawn(pipe(process, told, order)));
    }

    /// Adds a person who says so many sentences in each round; one after the other, each until
    /// it is taken.
    pub fn add_person(&mut self, client: &Client, session: &SessionName, a_round: u64) {
        let client = client.with_deadline(INPUT_WITHIN);
        let session = session.clone();
        let (said, mut order) = (Arc::clone(&self.said), self.order.subscribe());
        self.tasks.push(tokio::spawn(async move {
            let mut number = 0;
            while order.changed().await.is_ok() && *order.borrow() != Order::End {
                if *order.borrow_and_update() == Order::Pause {
                    continue;
                }
                for _ in 0..a_round {
                    number += 1;
                    let (draft, key) = sentence(number);
                    let posted = client.post(&session, draft.clone(), Some(key)).await;
                    let offset = posted.expect("taken in the end").offset;
                    lock(&said).push(Said { offset, draft });
                }
            }
        }));
    }

    /// Everybody writes.
    pub fn go(&self) {
        self.order.send_replace(Order::Write);
    }

    /// Nothing new is written; what is under way still comes.
    pub fn pause(&self) {
        self.order.send_replace(Order::Pause);
    }

    /// Events acked so far, all runs together.
    pub fn acked(&self) -> u64 {
        *self.acked.borrow()
    }

    /// Waits until so many events were acked.
    pub async fn reached(&self, acked: u64, within: Duration) {
        let mut total = self.acked.subscribe();
        let reached = tokio::time::timeout(within, total.wait_for(|total| *total >= acked)).await;
        let Ok(reached) = reached else {
            let each: Vec<_> = self.told.iter().map(Told::count).collect();
            panic!("{acked} acks were due, {} came: {each:?}", self.acked());
        };
        reached.expect("the sender is here");
    }

    /// What was acked so far in a session, from an offset on.
    pub fn acked_in(&self, session: &SessionName, from: Offset) -> Vec<Acked> {
        let mine = self.told.iter().filter(|told| told.session == *session);
        mine.flat_map(|told| told.acked(from)).collect()
    }

    /// How often a session's writers were told something since then.
    pub fn acks_since(&self, session: &SessionName, since: Instant) -> usize {
        let mine = self.told.iter().filter(|told| told.session == *session);
        let count = |told: &Told| {
            let times = lock(&told.times);
            times.iter().rev().take_while(|time| **time > since).count()
        };
        mine.map(count).sum()
    }

    /// The longest time since then in which a session's writers were told nothing; what they
    /// wait for right now counts.
    pub fn stall(&self, session: &SessionName, since: Instant) -> Duration {
        let mine = self.told.iter().filter(|told| told.session == *session);
        let mut times: Vec<_> = mine.flat_map(|told| lock(&told.times).clone()).collect();
        times.retain(|time| *time > since);
        times.sort();
        times.push(Instant::now());
        let mut last = since;
        let gaps = times
            .into_iter()
            .map(|time| time - std::mem::replace(&mut last, time));
        gaps.max().unwrap_or_default()
    }

    /// Inputs taken so far.
    pub fn said(&self) -> Vec<Said> {
        lock(&self.said).clone()
    }

    /// Ends all writers: what they sent is acked then.
    pub async fn end(&mut self) {
        self.order.send_replace(Order::End);
        for task in self.tasks.drain(..) {
            let ended = tokio::time::timeout(INPUT_WITHIN, task).await;
            ended.expect("a writer ends").expect("no panic");
        }
    }

    fn remember(&mut self, session: &SessionName, run: RunId) -> Told {
        let told = Told {
            session: session.clone(),
            run,
            ranges: Arc::default(),
            times: Arc::default(),
            total: Arc::clone(&self.acked),
        };
        self.told.push(told.clone());
        told
    }
}

impl Told {
    fn count(&self) -> u64 {
        lock(&self.ranges)
            .last()
            .map_or(0, |range| range.last_seq.0)
    }

    /// Takes an ack down. Each seq is acked once, in order.
    fn note(&self, range: AckRange) {
        let mut ranges = lock(&self.ranges);
        let last = ranges.last().map_or(Seq::ZERO, |last| last.last_seq);
        assert_eq!(
            range.first_seq,
            last.next(),
            "acks come in order, each once"
        );
        let count = range.last_seq.0 - range.first_seq.0 + 1;
        ranges.push(range);
        lock(&self.times).push(Instant::now());
        drop(ranges);
        self.total.send_modify(|total| *total += count);
    }

    /// Waits for room for the next seq, and for the order to write it; `false` at the end.
    async fn may_send(&self, next: Seq, order: &mut watch::Receiver<Order>) -> bool {
        let mut total = self.total.subscribe();
        let room = total.wait_for(|_| self.count() + IN_FLIGHT_MAX >= next.0);
        drop(room.await);
        let order = order.wait_for(|order| *order != Order::Pause).await;
        order.is_ok_and(|order| *order == Order::Write)
    }

    fn acked(&self, from: Offset) -> Vec<Acked> {
        let mut acked = Vec::new();
        for range in lock(&self.ranges).iter() {
            for ahead in 0..=range.last_seq.0 - range.first_seq.0 {
                let offset = range.first_offset.plus(ahead);
                let seq = Seq(range.first_seq.0 + ahead);
                if offset >= from {
                    acked.push(Acked {
                        run: self.run.clone(),
                        run_epoch: RunEpoch::FIRST,
                        seq,
                        offset,
                        draft: draft(&self.run, seq),
                    });
                }
            }
        }
        acked
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A line that `everwire publish --json` printed.
fn printed(line: &str) -> AckRange {
    let value: Value = serde_json::from_str(line).expect("an ack is JSON");
    let number = |field: &str| value.get(field).and_then(Value::as_u64);
    let seq = Seq(number("seq").expect("a seq"));
    AckRange {
        first_seq: seq,
        last_seq: seq,
        first_offset: number("offset").and_then(Offset::new).expect("an offset"),
        duplicate: value.get("duplicate") == Some(&Value::Bool(true)),
    }
}

/// Writes in batches of all sizes; at the end waits for the last ack.
async fn write(publisher: Publisher, told: Told, mut order: watch::Receiver<Order>) {
    let mut next = Seq::FIRST;
    while told.may_send(next, &mut order).await {
        let size = next.0 * 31 % BATCH_MAX + 1;
        let batch = (next.0..next.0 + size).map(|seq| draft(&told.run, Seq(seq)));
        let sent = publisher.send(batch.collect()).await;
        let last = Seq(next.0 + size - 1);
        assert_eq!(sent.expect("nobody stops this run"), last);
        next = last.next();
    }
    publisher.flush().await.expect("acked in the end");
}

/// Writes an event at a time, at a pace; at the end waits for the last ack.
async fn write_paced(
    publisher: Publisher,
    told: Told,
    mut order: watch::Receiver<Order>,
    every: Duration,
) {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut next = Seq::FIRST;
    while told.may_send(next, &mut order).await {
        ticks.tick().await;
        let sent = publisher.send(vec![draft(&told.run, next)]).await;
        assert_eq!(sent.expect("nobody stops this run"), next);
        next = next.next();
    }
    publisher.flush().await.expect("acked in the end");
}

/// The same through a pipe, a line for each event.
async fn pipe(mut process: Process, told: Told, mut order: watch::Receiver<Order>) {
    let mut next = Seq::FIRST;
    while told.may_send(next, &mut order).await {
        let line = format!("{}\n", draft_to_json(&draft(&told.run, next)));
        assert!(process.write(&line).await, "it reads");
        next = next.next();
    }
    let output = process.end().await;
    assert!(output.status.success(), "{output:?}");
}

fn sentence(number: u64) -> (Draft, Key) {
    let body = Body::Input {
        input: InputId::parse(&format!("i{number}")).expect("a good name"),
        text: format!("sentence {number}"),
        data: None,
    };
    let key = Key::parse(&format!("key-{number}")).expect("a good name");
    (Draft::new(body), key)
}
