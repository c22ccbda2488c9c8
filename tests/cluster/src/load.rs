//! Writers and readers on every shard, from before something happens until after it; and at the
//! end everything held against everything.

use std::time::Duration;

use everwire_client::Client;
use everwire_core::{Offset, SessionName};
use everwire_promises::{History, Kind, Reader, Writers};
use everwire_testkit::{Cluster, Server, tokens};
use tokio::time::Instant;

use crate::reading::{Read, Reading};
use crate::replicas;

/// Events a second in each session, unless said otherwise.
const PACE: u32 = 10;
/// Longest wait for acks that are due.
const ACKS_WITHIN: Duration = Duration::from_secs(60);

/// What a load is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The sessions.
    pub sessions: Vec<SessionName>,
    /// Edges at which each session has readers, in turn; none without edges.
    pub edges: Vec<String>,
    /// Events a second in each session.
    pub pace: u32,
}

impl Plan {
    /// A session on each shard.
    pub fn everywhere() -> Self {
        Self {
            sessions: Cluster::session_of_each_shard("load"),
            edges: Vec::new(),
            pace: PACE,
        }
    }

    /// The same with readers at edges.
    pub fn at(edges: &[&str]) -> Self {
        let edges = edges.iter().map(|edge| (*edge).to_owned());
        Self {
            edges: edges.collect(),
            ..Self::everywhere()
        }
    }
}

/// A session under load.
struct Stream {
    session: SessionName,
    readings: Vec<Reading>,
}

/// A writer on each session, and its readers.
pub struct Load {
    streams: Vec<Stream>,
    writers: Writers,
}

/// What a load came to.
#[derive(Clone, Copy, Debug, Default)]
pub struct Total {
    /// Events acked.
    pub acked: usize,
    /// Events in the logs.
    pub logged: usize,
    /// How often readers went elsewhere.
    pub moves: usize,
}

impl Load {
    /// A session on each shard, written and read over gRPC.
    pub async fn everywhere(cluster: &Cluster) -> Self {
        Self::start(cluster, &Plan::everywhere()).await
    }

    /// The same with readers at edges, besides.
    pub async fn at(cluster: &Cluster, edges: &[Server]) -> Self {
        let edges: Vec<_> = edges.iter().map(|edge| edge.http.as_str()).collect();
        Self::start(cluster, &Plan::at(&edges)).await
    }

    /// Makes the sessions, opens all readers and starts to write.
    pub async fn start(cluster: &Cluster, plan: &Plan) -> Self {
        let agent = tokens::agent(cluster.keys(), "bot");
        let person = tokens::user(cluster.keys(), "ann");
        let (mut writers, mut streams) = (Writers::default(), Vec::new());
        for (number, session) in plan.sessions.iter().enumerate() {
            // Each agent and each reader is a process of its own: its own connections.
            let client = cluster.client(&agent);
            client.create_session(session).await.expect("made");
            writers.add_paced(&client, session, "r1", plan.pace).await;
            let mut readings = vec![Reading::grpc(&cluster.client(&person), session)];
            if !plan.edges.is_empty() {
                let kind = Kind::ALL.into_iter().cycle().nth(number);
                let kind = kind.expect("it has no end");
                let mut edges = plan.edges.clone();
                edges.rotate_left(number % plan.edges.len());
                readings.push(Reading::at(&edges, kind, &person, session).await);
            }
            streams.push(Stream {
                session: session.clone(),
                readings,
            });
        }
        writers.go();
        Self { streams, writers }
    }

    /// Events acked so far.
    pub fn acked(&self) -> u64 {
        self.writers.acked()
    }

    /// Waits until so many more events were acked, somewhere.
    pub async fn goes_on(&self, more: u64) {
        let due = self.writers.acked() + more;
        self.writers.reached(due, ACKS_WITHIN).await;
    }

    /// Waits until every session got so many acks after `since`; not longer than `within`.
    pub async fn goes_on_everywhere(&self, since: Instant, acks: usize, within: Duration) {
        let until = Instant::now() + within;
        loop {
            let stands = |session: &&SessionName| self.writers.acks_since(session, since) < acks;
            let standing: Vec<_> = self.sessions().filter(stands).collect();
            if standing.is_empty() {
                return;
            }
            let late = Instant::now() >= until;
            assert!(!late, "not within {within:?}: {standing:?} stand still");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The longest time since then in which a session's writer was told nothing.
    pub fn stall(&self, session: &SessionName, since: Instant) -> Duration {
        self.writers.stall(session, since)
    }

    /// The sessions.
    pub fn sessions(&self) -> impl Iterator<Item = &SessionName> {
        self.streams.iter().map(|stream| &stream.session)
    }

    /// Ends the writers, lets every reader come to the end, and holds acks, the log of every
    /// node that is up, and what each reader was given against each other. Fails if fewer events
    /// than `at_least` were acked: a run that did nothing proves nothing.
    pub async fn check(mut self, cluster: &Cluster, at_least: usize) -> Total {
        self.writers.end().await;
        let mut total = Total::default();
        for stream in self.streams {
            let (session, writers) = (stream.session, &self.writers);
            let acked = writers.acked_in(&session, Offset::ZERO);
            let last = acked.iter().map(|ack| ack.offset).max();
            let last = last.unwrap_or(Offset::ZERO);
            let log = replicas::same_on_all(cluster, &session, last).await;
            let tail = log.last().map_or(Offset::ZERO, |last| last.offset);
            let mut readers: Vec<Reader> = Vec::new();
            for reading in stream.readings {
                let Read { reader, moves, .. } = reading.end(tail).await;
                readers.push(reader);
                total.moves += moves;
            }
            let history = History {
                log: &log,
                acked: &acked,
                readers: &readers,
            };
            history.assert_sound(&session);
            total.acked += acked.len();
            total.logged += log.len();
        }
        let acked = total.acked;
        assert!(
            acked >= at_least,
            "{acked} events acked, {at_least} were due"
        );
        total
    }
}

/// A client for an agent of this cluster.
pub fn agent(cluster: &Cluster) -> Client {
    cluster.client(&tokens::agent(cluster.keys(), "bot"))
}
