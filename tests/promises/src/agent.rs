//! An agent at a model's pace: a run of the Rust client, that says what it was told.

use std::time::Duration;

use everwire_client::{Ack, AckRange, Acks, Client, Publisher, RunWriter, StartRun};
use everwire_core::{Draft, Lease, Offset, Refusal, RunEpoch, RunId, Seq, SessionName};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::history::Acked;

/// Longest wait for an agent to come anywhere.
const WITHIN: Duration = Duration::from_secs(90);

/// A run that is being written.
pub struct Agent {
    /// The run.
    pub run: RunId,
    /// Deltas sent so far.
    sent: watch::Receiver<usize>,
    /// After so many deltas the run is completed.
    until: watch::Sender<usize>,
    writing: JoinHandle<Written>,
}

/// What an agent was told about its run.
#[derive(Debug)]
pub struct Written {
    /// The run.
    pub run: RunId,
    /// Everything that was acked, in the order of the seqs.
    pub acked: Vec<Acked>,
    /// Deltas sent.
    pub deltas: usize,
    /// How it ended: its last ack, or the refusal that stopped it.
    pub ended: Result<Ack, Refusal>,
}

impl Agent {
    /// Starts a run and writes `per_second` deltas a second, until told to complete it.
    pub async fn start(client: &Client, session: &SessionName, run: &str, per_second: u32) -> Self {
        Self::start_with(client, session, run, per_second, None).await
    }

    /// The same, with a lease that outlives the silences of the test: once the node has raised its
    /// rules to those that know leases.
    pub async fn start_with(
        client: &Client,
        session: &SessionName,
        run: &str,
        per_second: u32,
        lease: Option<Lease>,
    ) -> Self {
        let run = RunId::parse(run).expect("a good name");
        let start = StartRun {
            lease,
            ..StartRun::new(run.clone())
        };
        let publisher = client.start(session, start).await.expect("it starts");
        let (progress, sent) = watch::channel(0);
        let (until, told) = watch::channel(usize::MAX);
        let pause = Duration::from_secs(1) / per_second;
        let writing = tokio::spawn(write(publisher, pause, progress, told));
        Self {
            run,
            sent,
            until,
            writing,
        }
    }

    /// Waits until so many deltas were sent.
    pub async fn reached(&mut self, deltas: usize) {
        let reached = timeout(WITHIN, self.sent.wait_for(|sent| *sent >= deltas)).await;
        if reached.expect("the agent gets there in time").is_err() {
            let written = (&mut self.writing).await.expect("no panic");
            panic!("{} ended before: {:?}", self.run, written.ended);
        }
    }

    /// Deltas sent so far.
    pub fn sent(&self) -> usize {
        *self.sent.borrow()
    }

    /// Completes the run after at least so many deltas, and tells what was acked.
    pub async fn complete(self, at_least: usize) -> Written {
        self.until.send_replace(at_least);
        self.ended().await
    }

    /// Waits until the run has ended, by whomever.
    pub async fn ended(self) -> Written {
        let written = timeout(WITHIN, self.writing).await;
        written.expect("the run ends in time").expect("no panic")
    }
}

/// A word with more than ASCII in it, told apart by its number.
pub fn word(number: usize) -> String {
    format!("wört-{number} ")
}

async fn write(
    publisher: Publisher,
    pause: Duration,
    progress: watch::Sender<usize>,
    told: watch::Receiver<usize>,
) -> Written {
    let (run, run_epoch) = (publisher.run().clone(), publisher.run_epoch());
    let acks = tokio::spawn(collect(publisher.acks()));
    let mut sent = Vec::new();
    let ended = output(publisher, pause, &progress, &told, &mut sent).await;
    let ranges = acks.await.expect("no panic");
    Written {
        acked: acked(&run, run_epoch, &sent, &ranges),
        run,
        deltas: *progress.borrow(),
        ended,
    }
}

/// Writes until told to complete or refused. `sent` holds the draft of every seq, from 1 on.
async fn output(
    publisher: Publisher,
    pause: Duration,
    progress: &watch::Sender<usize>,
    told: &watch::Receiver<usize>,
    sent: &mut Vec<Draft>,
) -> Result<Ack, Refusal> {
    let mut writer = RunWriter::new(publisher.run(), publisher.run_epoch());
    let mut ticks = interval(pause);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let refused = publisher.refused();
    tokio::pin!(refused);
    let mut number = 0;
    while number < *told.borrow() {
        tokio::select! {
            refusal = &mut refused => return Err(refusal),
            _ = ticks.tick() => {},
        }
        let text = word(number);
        let chunk = format!("{{\"chunk\":{number}}}");
        let drafts = RunWriter::with_raw(writer.text(&text), "test", chunk);
        sent.extend(drafts.iter().cloned());
        publisher.send(drafts).await?;
        number += 1;
        progress.send_replace(number);
    }
    let closing = writer.end();
    sent.extend(closing.iter().cloned());
    publisher.send(closing).await?;
    sent.push(Draft::new(everwire_core::Body::RunCompleted));
    publisher.complete().await
}

/// All acks until there will be no more.
pub async fn collect(mut acks: Acks) -> Vec<AckRange> {
    let mut ranges = Vec::new();
    while let Some(range) = acks.next().await {
        ranges.push(range);
    }
    ranges
}

/// Acked ranges, event by event. `sent` holds the draft of every seq, from 1 on.
pub fn acked(run: &RunId, run_epoch: RunEpoch, sent: &[Draft], ranges: &[AckRange]) -> Vec<Acked> {
    let mut all = Vec::new();
    for range in ranges {
        for ahead in 0..=range.last_seq.0 - range.first_seq.0 {
            let seq = Seq(range.first_seq.0 + ahead);
            let index = usize::try_from(seq.0 - 1).expect("as many as were sent");
            let draft = sent.get(index);
            let draft = draft.unwrap_or_else(|| panic!("{run}: {seq} was acked, not sent"));
            all.push(Acked {
                run: run.clone(),
                run_epoch,
                seq,
                offset: range.first_offset.plus(ahead),
                draft: draft.clone(),
            });
        }
    }
    all
}

/// Where an agent's n-th delta stands, counted from 0, when nobody else writes: behind the
/// starts of run, message and part.
pub fn place_of(delta: usize) -> Offset {
    Offset::new(delta as u64 + 4).expect("few")
}
