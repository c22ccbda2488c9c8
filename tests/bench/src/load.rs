//! Writers: one run in one session each, and how long their acks took.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use everwire_client::{AckRange, Publisher, RunWriter};
use everwire_core::{Draft, RunId, Seq, SessionName};
use everwire_testkit::{Cluster, tokens};
use futures_util::future::join_all;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::reading::stamped;
use crate::times::Window;

/// Text of one event, bytes: what a model says at once, or a little more.
const TEXT_BYTES: usize = 200;
/// Events that a pipelining writer hands over at once.
const BATCH: usize = 32;

/// How fast a load writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// One event in the whole cluster at a time.
    Single,
    /// So many events a second in each session.
    PerSecond(u32),
    /// As fast as the windows let it.
    Pipelined,
}

impl Pace {
    /// Each of them, in the order in which they are measured.
    pub const ALL: [Self; 3] = [Self::Single, Self::PerSecond(50), Self::Pipelined];

    /// A word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::PerSecond(_) => "paced",
            Self::Pipelined => "pipelined",
        }
    }
}

/// The writer of one session.
pub(crate) struct Writer {
    publisher: Publisher,
    state: Mutex<State>,
}

struct State {
    writer: RunWriter,
    /// When what is not acked yet was sent, by its last seq.
    sent: VecDeque<(Seq, Instant)>,
    /// What was acked so far.
    acked: Seq,
    window: Option<Window>,
    /// What is counted since then.
    acks: Acks,
}

/// What one writer was acked while it was measured.
#[derive(Debug, Default)]
pub(crate) struct Acks {
    /// Events whose ack came, whenever they were sent.
    pub(crate) events: u64,
    /// How long those took that were sent meanwhile.
    pub(crate) times: Vec<Duration>,
}

impl Writer {
    /// Begins a run; nothing is written yet.
    pub(crate) async fn start(cluster: &Cluster, session: &SessionName, pace: Pace) -> Self {
        let client = cluster.client(&tokens::agent(cluster.keys(), "bench"));
        let run = RunId::parse(pace.name()).expect("a good name");
        let publisher = client.start_run(session, run, None).await;
        let publisher = publisher.expect("a run begins");
        let writer = RunWriter::new(publisher.run(), publisher.run_epoch());
        let state = State {
            writer,
            sent: VecDeque::new(),
            acked: Seq::ZERO,
            window: None,
            acks: Acks::default(),
        };
        Self {
            publisher,
            state: Mutex::new(state),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on times count.
    pub(crate) fn measure_from(&self, window: Window) {
        self.state().window = Some(window);
    }

    /// Events that were counted so far.
    pub(crate) fn acked(&self) -> usize {
        self.state().acks.times.len()
    }

    /// What was counted so far; nothing is after that.
    pub(crate) fn take_acks(&self) -> Acks {
        let mut state = self.state();
        state.window = None;
        std::mem::take(&mut state.acks)
    }

    fn drafts(&self, count: usize) -> Vec<Draft> {
        let mut state = self.state();
        let filler = "x".repeat(TEXT_BYTES);
        let drafts = (0..count).flat_map(|_| {
            let text = stamped(Instant::now(), &filler);
            state.writer.text(&text)
        });
        drafts.collect()
    }

    /// Sends so many events at once.
    async fn send(&self, count: usize) {
        let drafts = self.drafts(count);
        let now = Instant::now();
        let seq = self.publisher.send(drafts).await;
        let seq = seq.expect("the run goes on");
        self.state().sent.push_back((seq, now));
    }

    /// Takes acks as they come.
    async fn take(&self) {
        let mut acks = self.publisher.acks();
        while let Some(range) = acks.next().await {
            self.state().note(range, Instant::now());
        }
    }
}

impl State {
    fn note(&mut self, range: AckRange, now: Instant) {
        while let Some((last, sent)) = self.sent.front().copied() {
            if last > range.last_seq {
                break;
            }
            self.sent.pop_front();
            let events = last.0 - self.acked.0;
            self.acked = last;
            let Some(window) = self.window else { continue };
            self.acks.events += events;
            if window.holds(sent) {
                let took = now.duration_since(sent);
                self.acks.times.extend((0..events).map(|_| took));
            }
        }
    }
}

/// Writes until it is dropped.
pub(crate) async fn run(writers: &[Writer], pace: Pace) -> Infallible {
    let acks = join_all(writers.iter().map(Writer::take));
    let sending = async {
        match pace {
            Pace::Single => one_by_one(writers).await,
            Pace::PerSecond(rate) => {
                let period = Duration::from_secs(1) / rate;
                let share = period / u32::try_from(writers.len()).expect("a few");
                // Not all at the same moment.
                let writers = (0..).zip(writers);
                let paced = writers.map(|(at, writer)| paced(writer, share * at, period));
                join_all(paced).await;
            },
            Pace::Pipelined => {
                join_all(writers.iter().map(pipelined)).await;
            },
        }
    };
    tokio::join!(acks, sending);
    std::future::pending().await
}

async fn one_by_one(writers: &[Writer]) {
    for writer in writers.iter().cycle() {
        writer.send(1).await;
        let acked = writer.publisher.flush().await;
        acked.expect("the run goes on");
    }
}

async fn paced(writer: &Writer, after: Duration, period: Duration) {
    let mut ticks = interval_at(Instant::now() + after, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    loop {
        ticks.tick().await;
        writer.send(1).await;
    }
}

async fn pipelined(writer: &Writer) {
    loop {
        writer.send(BATCH).await;
    }
}
