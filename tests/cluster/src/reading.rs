//! A reader as a person has it: a tab or a stream that is open all the time, and when its edge
//! ends or dies, goes on at another with its cursor.

use std::time::Duration;

use everwire_client::Client;
use everwire_core::{Offset, SessionName};
use everwire_promises::{Follower, Kind, Reader};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Longest wait for an edge that takes a reader in.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// Pause between two attempts.
const PAUSE: Duration = Duration::from_millis(100);

/// Something arrived.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// When.
    pub at: Instant,
    /// The last offset that was seen then.
    pub to: Offset,
}

/// A reader at work.
pub struct Reading {
    seen: watch::Receiver<Offset>,
    stop: watch::Sender<bool>,
    task: JoinHandle<Read>,
}

/// What a reader was given.
pub struct Read {
    /// For the checker.
    pub reader: Reader,
    /// When what came.
    pub arrivals: Vec<Arrival>,
    /// How often it had to go elsewhere.
    pub moves: usize,
}

impl Reading {
    /// A reader at the first of these edges, that goes to the next one whenever it must.
    pub async fn at(edges: &[String], kind: Kind, token: &str, session: &SessionName) -> Self {
        let mut follower = Follower::away(kind, token, session);
        come_back(&mut follower, edges, 0).await;
        Self::begin(follower, edges.to_vec())
    }

    /// The same, but nobody waits for it to be let in.
    pub fn joins(edges: &[String], kind: Kind, token: &str, session: &SessionName) -> Self {
        let (mut follower, edges) = (Follower::away(kind, token, session), edges.to_vec());
        let (see, seen) = watch::channel(Offset::ZERO);
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(async move {
            come_back(&mut follower, &edges, 0).await;
            go_on(follower, edges, see, stopped).await
        });
        Self { seen, stop, task }
    }

    /// A reader over gRPC.
    pub fn grpc(client: &Client, session: &SessionName) -> Self {
        Self::begin(Follower::grpc(client, session), Vec::new())
    }

    fn begin(follower: Follower, edges: Vec<String>) -> Self {
        let (see, seen) = watch::channel(follower.seen_to());
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(go_on(follower, edges, see, stopped));
        Self { seen, stop, task }
    }

    /// The last offset seen.
    pub fn seen_to(&self) -> Offset {
        *self.seen.borrow()
    }

    /// Waits until the offset was seen.
    pub async fn reached(&mut self, offset: Offset, within: Duration) {
        let reached = timeout(within, self.seen.wait_for(|seen| *seen >= offset)).await;
        let reached = reached.is_ok_and(|reached| reached.is_ok());
        if !reached {
            let seen = self.seen_to();
            panic!("a reader was to see {offset} within {within:?}, it is at {seen}");
        }
    }

    /// Waits until the offset was seen, and leaves.
    pub async fn end(mut self, offset: Offset) -> Read {
        self.reached(offset, BACK_WITHIN).await;
        self.stop.send_replace(true);
        self.task.await.expect("no panic")
    }
}

async fn go_on(
    mut follower: Follower,
    edges: Vec<String>,
    see: watch::Sender<Offset>,
    mut stopped: watch::Receiver<bool>,
) -> Read {
    let (mut arrivals, mut moves) = (Vec::new(), 0);
    loop {
        let stepped = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped) => break,
            stepped = follower.step() => stepped,
        };
        let to = follower.seen_to();
        if to > *see.borrow() {
            let at = Instant::now();
            arrivals.push(Arrival { at, to });
            see.send_replace(to);
        }
        if stepped.is_err() || follower.told_to_move() {
            follower.leave(everwire_promises::Leave::Goodbye).await;
            moves += 1;
            come_back(&mut follower, &edges, moves).await;
        }
    }
    let reader = follower.into_reader();
    Read {
        reader,
        arrivals,
        moves,
    }
}

/// Tries one edge after the other, the next one first.
async fn come_back(follower: &mut Follower, edges: &[String], from: usize) {
    let until = Instant::now() + BACK_WITHIN;
    for edge in edges.iter().cycle().skip(from % edges.len()) {
        let Err(why) = follower.try_come_back(edge).await else {
            return;
        };
        let late = Instant::now() >= until;
        assert!(!late, "no edge takes the reader in: {edge}: {why}");
        sleep(PAUSE).await;
    }
}

/// The longest time between two arrivals that followed each other in this span; from its begin
/// and to its end too.
pub fn longest_gap(arrivals: &[Arrival], from: Instant, to: Instant) -> Duration {
    let mut last = from;
    let inside = arrivals.iter().map(|arrival| arrival.at);
    let inside = inside.filter(|at| (from..=to).contains(at));
    let gaps = inside
        .chain([to])
        .map(|at| at - std::mem::replace(&mut last, at));
    gaps.max().unwrap_or_default()
}
