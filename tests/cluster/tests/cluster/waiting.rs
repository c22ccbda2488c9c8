//! Runs that wait while their leader dies: none loses its writer, each request for an approval has
//! one answer on every replica, and the deadline of one that nobody answers is met.

use std::time::Duration;

use everwire_client::{Client, Publisher, StartRun};
use everwire_cluster_tests::{alone, replicas};
use everwire_core::command::SignalOutcome;
use everwire_core::event::{ApprovalOutcome, Body, Draft, Event, SuspendReason, Verdict};
use everwire_core::row::RunState;
use everwire_core::{
    Answer, Code, Lease, Offset, Refusal, Request, RunId, SessionName, Target, Timestamp,
};
use everwire_testkit::{Cluster, say, tokens};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::times::BALANCED_WITHIN;

/// The lease of every run here.
const LEASE: Duration = Duration::from_secs(5);
/// How long the request waits that nobody answers: less than a lease, more than an election.
const SILENCE_MS: u32 = 4_000;
/// So many leases long the paused runs wait.
const LEASES: u32 = 3;
/// Longest wait for what must come.
const WITHIN: Duration = Duration::from_secs(60);

fn id<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str) -> T {
    name.parse().expect("a good name")
}

async fn started(client: &Client, session: &SessionName, run: &str) -> Publisher {
    let start = StartRun {
        lease: Lease::new(LEASE).ok(),
        ..StartRun::new(id(run))
    };
    client.start(session, start).await.expect("it starts")
}

/// Asks, and waits for the answer without a lease; its process is gone then.
async fn asks(client: &Client, session: &SessionName, run: &str, within_ms: u32) {
    let publisher = started(client, session, run).await;
    let request = Body::ApprovalRequested(Request {
        approval: id(run),
        action: "Do it".to_owned(),
        action_hash: id("h"),
        approvers: Vec::new(),
        within_ms,
        deadline: Timestamp(0),
        on_expiry: Verdict::Deny,
        data: None,
    });
    let waits = Body::RunSuspended {
        reason: SuspendReason::Approval,
        note: None,
    };
    let drafts = [request, waits].map(Draft::new).to_vec();
    publisher.send(drafts).await.expect("taken");
    publisher.flush().await.expect("acked");
}

/// Waits until a run is in a state.
async fn becomes(client: &Client, session: &SessionName, run: &str, state: RunState) {
    let run: RunId = id(run);
    let waiting = async {
        loop {
            let info = client.run(session, &run).await;
            if info.is_ok_and(|info| info.state == state) {
                return;
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = timeout(WITHIN, waiting).await;
    waited.unwrap_or_else(|_| panic!("{session}: {run} is never {}", state.as_str()));
}

/// Two answer at once, each by way of its own client: one wins, and the other is told who.
async fn race(session: &SessionName, yes: &Client, no: &Client) -> Verdict {
    let answer = |verdict| Answer {
        approval: id("asked"),
        verdict,
        action_hash: id("h"),
        note: None,
    };
    let (yes, no) = tokio::join!(
        yes.answer(session, answer(Verdict::Approve), None),
        no.answer(session, answer(Verdict::Deny), None),
    );
    let won = |answer: &Result<everwire_client::Signalled, Refusal>| match answer {
        Ok(signalled) => {
            let applied = matches!(signalled.outcome, SignalOutcome::Applied { .. });
            assert!(applied, "{session}: {signalled:?}");
            true
        },
        Err(refusal) => {
            assert_eq!(refusal.code, Code::AlreadyResolved, "{session}: {refusal}");
            assert!(refusal.details.by.is_some());
            false
        },
    };
    match (won(&yes), won(&no)) {
        (true, false) => Verdict::Approve,
        (false, true) => Verdict::Deny,
        both => panic!("{session}: winners {both:?}"),
    }
}

/// What became of each request, by the log: once each.
fn outcome_of(events: &[Event], run: &str) -> ApprovalOutcome {
    let mut outcomes = events.iter().filter_map(|event| match &event.body {
        Body::ApprovalResolved {
            approval, outcome, ..
        } if approval.as_str() == run => Some(*outcome),
        _ => None,
    });
    let outcome = outcomes.next().expect("it was resolved");
    assert_eq!(outcomes.next(), None, "{run}: a second winner");
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_outlives_its_leader_and_is_answered_once() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let bot = cluster.client(&tokens::agent(cluster.keys(), "bot"));
    let ann = cluster.client(&tokens::decider(cluster.keys(), "ann"));
    let bob = cluster.client(&tokens::decider(cluster.keys(), "bob"));
    let sessions = Cluster::session_of_each_shard("waiting");
    let mut paused = Vec::new();
    for session in &sessions {
        let publisher = started(&bot, session, "paused").await;
        let target = Target::Run(id("paused"));
        let outcome = ann.pause(session, target, None).await.expect("pressed");
        assert!(matches!(outcome.outcome, SignalOutcome::Applied { .. }));
        // It hears of it though it says nothing.
        let told = timeout(WITHIN, publisher.refused()).await.expect("told");
        assert!(everwire_client::is_paused(&told), "{told}");
        paused.push(publisher);
    }
    let asking = sessions.iter().map(async |session| {
        asks(&bot, session, "asked", 600_000).await;
        asks(&bot, session, "unheard", SILENCE_MS).await;
    });
    join_all(asking).await;
    let killed = Instant::now();
    cluster.kill(1).await;
    let races = sessions.iter().map(|session| race(session, &ann, &bob));
    let winners = join_all(races).await;
    // Resumed by the answer, or by the deadline, and then lost by a writer that is not there.
    for run in ["asked", "unheard"] {
        let lost = sessions
            .iter()
            .map(|session| becomes(&bot, session, run, RunState::Orphaned));
        join_all(lost).await;
        say(&format!(
            "{run}: orphaned everywhere {:?} after the kill",
            killed.elapsed()
        ));
    }
    sleep_until(killed + LEASE * LEASES).await;
    cluster.start_node(1).await;
    for ((session, publisher), winner) in sessions.iter().zip(&paused).zip(winners) {
        let info = bot.run(session, &id("paused")).await.expect("served");
        assert_eq!(info.state, RunState::Suspended, "{session}");
        assert_eq!(info.suspended, Some(SuspendReason::Paused));
        let target = Target::Run(id("paused"));
        bob.resume(session, target, None).await.expect("pressed");
        let goes_on = bot.go_on(publisher).await.expect("its writer claims it");
        let last = goes_on.complete().await.expect("completed").offset;
        let events = replicas::same_on_all(&cluster, session, last).await;
        assert_eq!(outcome_of(&events, "unheard"), ApprovalOutcome::Expired);
        let expected = match winner {
            Verdict::Approve => ApprovalOutcome::Approved,
            Verdict::Deny => ApprovalOutcome::Denied,
        };
        assert_eq!(outcome_of(&events, "asked"), expected, "{session}");
        let dense = events.iter().map(|event| event.offset.get());
        assert!(dense.eq(1..=events.len() as u64), "{session}: a hole");
        assert!(events.iter().any(|event| event.offset > Offset::ZERO));
    }
}
