//! One session of the race: an agent that starts one run after the other, and a person who stops
//! each.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use everwire_client::{Client, Publisher};
use everwire_cluster_tests::load::agent;
use everwire_core::command::SignalOutcome;
use everwire_core::event::Body;
use everwire_core::{Code, Draft, Key, Offset, RunId, Seq, SessionName, ShardId};
use everwire_promises::Acked;
use everwire_promises::writers::draft;
use everwire_proto::frame::Subprotocol;
use everwire_testkit::cluster::session_on;
use everwire_testkit::{Cluster, Tab, tokens};
use tokio::time::{Instant, sleep, sleep_until};

/// A run writes so many events at once, and so often.
const BURST: u64 = 6;
const BURST_EVERY: Duration = Duration::from_millis(8);
/// A person presses so long after the run began, milliseconds.
const PRESSED_AFTER_MS: std::ops::Range<u64> = 5..250;
/// A run that nobody stops in time ends by itself after so many events.
const EVENTS_MAX: u64 = 2_000;
/// One run in so many is short, and may be over when it is stopped.
const SHORT_EACH: u64 = 25;
/// A refused stop is pressed again, under its key.
const PRESSED_AGAIN_AFTER: Duration = Duration::from_millis(20);
/// But not for longer than this.
const PRESSED_WITHIN: Duration = Duration::from_secs(30);

/// A session, its agent, and the person's tab.
pub(super) struct Lane {
    number: u32,
    pub(super) session: SessionName,
    agent: Client,
    tab: Tab,
    dice: u64,
}

/// One stop.
pub(super) struct Stop {
    pub(super) run: RunId,
    pub(super) pressed: Instant,
    pub(super) answered: Instant,
    pub(super) outcome: SignalOutcome,
    /// What its agent was told is durable.
    pub(super) acked: Vec<Acked>,
}

/// What a lane has been through.
pub(super) struct Ran {
    pub(super) session: SessionName,
    pub(super) stops: Vec<Stop>,
    /// Where its last stop stands.
    pub(super) last: Offset,
}

impl Lane {
    /// The person's tab is at `edge`.
    pub(super) async fn open(cluster: &Cluster, number: u32, edge: &str) -> Self {
        let session = session_on(ShardId(number), "race");
        let agent = agent(cluster);
        agent.create_session(&session).await.expect("made");
        let person = tokens::user(cluster.keys(), "ann");
        let mut tab = Tab::open(edge, &person, Subprotocol::Json).await;
        tab.attach(&session, None, false).await.expect("attached");
        Self {
            number,
            session,
            agent,
            tab,
            dice: 0x9E37_79B9_7F4A_7C15 ^ u64::from(number + 1),
        }
    }

    /// Any number below `bound`: the same in each run of the test, for the instants are not.
    fn any(&mut self, bound: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % bound
    }

    /// Runs and stops until none are left.
    pub(super) async fn run(mut self, left: &AtomicU32) -> Ran {
        let (mut stops, mut last) = (Vec::new(), Offset::ZERO);
        let one_less = |left: u32| left.checked_sub(1);
        for number in 0_u32.. {
            let taken = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
            if taken.is_err() {
                break;
            }
            let stop = self.one(number).await;
            match stop.outcome {
                SignalOutcome::Applied { offset }
                | SignalOutcome::AlreadyTerminal { offset, .. } => last = last.max(offset),
                ref other => panic!("{}: {other:?}", stop.run),
            }
            stops.push(stop);
        }
        Ran {
            session: self.session,
            stops,
            last,
        }
    }

    async fn one(&mut self, number: u32) -> Stop {
        let run = RunId::parse(&format!("r{}-{number}", self.number)).expect("a good name");
        let is_short = self.any(SHORT_EACH) == 0;
        let events = if is_short {
            1 + self.any(100)
        } else {
            EVENTS_MAX
        };
        let after = PRESSED_AFTER_MS.start + self.any(PRESSED_AFTER_MS.end);
        let publisher = self.agent.start_run(&self.session, run.clone(), None).await;
        let publisher = publisher.expect("the client goes on until it starts");
        let due = Instant::now() + Duration::from_millis(after);
        let pressing = press(&mut self.tab, &run, due);
        let (acked, (pressed, answered, outcome)) =
            tokio::join!(write(publisher, &run, events), pressing);
        Stop {
            run,
            pressed,
            answered,
            outcome,
            acked,
        }
    }
}

/// Reads along until it is time, and presses.
async fn press(tab: &mut Tab, run: &RunId, due: Instant) -> (Instant, Instant, SignalOutcome) {
    loop {
        tokio::select! {
            () = sleep_until(due) => break,
            stepped = tab.step() => stepped.expect("the edge lives"),
        }
    }
    let pressed = Instant::now();
    loop {
        let key = Key::parse(&format!("stop-{run}")).expect("a good key");
        match tab.cancel(run, key).await {
            Ok(outcome) => return (pressed, Instant::now(), outcome),
            Err(refusal) => {
                let nobody_leads = matches!(
                    refusal.code,
                    Code::NotLeader | Code::NoQuorum | Code::Overloaded | Code::Draining
                );
                assert!(nobody_leads, "{run}: {refusal}");
                assert!(pressed.elapsed() < PRESSED_WITHIN, "{run}: {refusal}");
                sleep(PRESSED_AGAIN_AFTER).await;
            },
        }
    }
}

/// Writes until the run is stopped or all is said: what was acked.
async fn write(publisher: Publisher, run: &RunId, events: u64) -> Vec<Acked> {
    let mut acks = publisher.acks();
    let run_epoch = publisher.run_epoch();
    let reading = async {
        let mut acked = Vec::new();
        while let Some(range) = acks.next().await {
            for seq in range.first_seq.0..=range.last_seq.0 {
                let offset = range.first_offset.get() + seq - range.first_seq.0;
                acked.push(Acked {
                    run: run.clone(),
                    run_epoch,
                    seq: Seq(seq),
                    offset: Offset::new(offset).expect("a good offset"),
                    draft: said(run, seq, events),
                });
            }
        }
        acked
    };
    let writing = async {
        let mut next = 1;
        while next <= events + 1 {
            let last = (next + BURST - 1).min(events + 1);
            let drafts = (next..=last).map(|seq| said(run, seq, events));
            if let Err(refusal) = publisher.send(drafts.collect()).await {
                assert_eq!(refusal.code, Code::RunFenced, "{run}: {refusal}");
                return publisher;
            }
            next = last + 1;
            sleep(BURST_EVERY).await;
        }
        // It ends by itself, or is stopped before its end is acked.
        if let Err(refusal) = publisher.flush().await {
            assert_eq!(refusal.code, Code::RunFenced, "{run}: {refusal}");
        }
        publisher
    };
    let writing = async {
        // Whoever reads acks learns by this that there will be no more.
        drop(writing.await);
    };
    tokio::join!(reading, writing).0
}

/// What the n-th event of a run says; the last is its end.
fn said(run: &RunId, seq: u64, events: u64) -> Draft {
    if seq == events + 1 {
        return Draft::new(Body::RunCompleted);
    }
    draft(run, Seq(seq))
}
