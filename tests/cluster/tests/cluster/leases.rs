//! Leases while their leader dies: whoever lives keeps the run, whoever is dead loses it in time,
//! and another agent goes on with it.

use std::time::Duration;

use everwire_client::{Client, Publisher, StartRun};
use everwire_cluster_tests::alone;
use everwire_core::event::{Body, Draft};
use everwire_core::row::RunState;
use everwire_core::{Code, Lease, Offset, RunEpoch, RunId, Seq, SessionName};
use everwire_testkit::machine::Quiet;
use everwire_testkit::{Cluster, tokens};
use tokio::time::{Instant, sleep, sleep_until};

use crate::times::{BALANCED_WITHIN, hold};

/// The lease of every run here.
const LEASE: Duration = Duration::from_secs(5);
/// A dead writer loses its run within its lease and a second of the last sign of life, or of the
/// last change of leader; and an election takes up to two.
const ORPHANED_WITHIN: Duration = Duration::from_secs(8);
/// Longest wait for what is measured.
const WITHIN: Duration = Duration::from_secs(60);
/// So many leases long the living ones say nothing but that they live.
const LEASES: u32 = 4;

fn run(name: &str) -> RunId {
    RunId::parse(name).expect("a good name")
}

fn says(text: &str) -> Vec<Draft> {
    let name = text.to_owned();
    vec![Draft::new(Body::App { name, data: None })]
}

/// A session with a run whose writer lives and one whose writer is gone.
struct Scene {
    session: SessionName,
    living: Publisher,
}

async fn started(client: &Client, session: &SessionName, name: &str) -> Publisher {
    let start = StartRun {
        lease: Lease::new(LEASE).ok(),
        ..StartRun::new(run(name))
    };
    client.start(session, start).await.expect("it starts")
}

impl Scene {
    async fn new(cluster: &Cluster, session: SessionName) -> Self {
        let client = cluster.client(&tokens::agent(cluster.keys(), "bot"));
        let living = started(&client, &session, "living").await;
        let dead = started(&client, &session, "dead").await;
        dead.send(says("last words")).await.expect("taken");
        dead.flush().await.expect("acked");
        drop(dead);
        Self { session, living }
    }

    /// How long after `since` the dead writer's run is an orphan.
    async fn orphaned(&self, client: &Client, since: Instant) -> Duration {
        loop {
            let info = client.run(&self.session, &run("dead")).await;
            if info.is_ok_and(|info| info.state == RunState::Orphaned) {
                return since.elapsed();
            }
            assert!(since.elapsed() < WITHIN, "{}: never orphaned", self.session);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Another agent takes the run over, and the old writer is told when it is back.
    async fn taken_over(&self, old: &Client, other: &Client) {
        let claimed = other.claim_run(&self.session, run("dead")).await;
        let claimed = claimed.expect("anybody may claim an orphan");
        assert_eq!(claimed.run_epoch(), RunEpoch(2));
        claimed.send(says("and on")).await.expect("taken");
        claimed.complete().await.expect("completed");
        let late = old.publisher(&self.session, run("dead"), RunEpoch(1), Seq(2));
        late.send(says("too late")).await.expect("room");
        let refused = late.refused().await;
        let codes = [Code::StaleEpoch, Code::RunEnded];
        assert!(codes.contains(&refused.code), "{refused}");
    }

    /// The log has one orphan, its claim, and nothing of the living run but what it did.
    async fn check(self, client: &Client) {
        self.living.send(says("still here")).await.expect("taken");
        self.living.complete().await.expect("it never lost its run");
        let page = client
            .read(&self.session, None, Offset::ZERO, 0, None)
            .await
            .expect("read");
        let kinds: Vec<_> = page
            .events
            .iter()
            .map(|event| event.kind().as_str())
            .collect();
        let expected = [
            "run.started",
            "run.started",
            "app",
            "run.orphaned",
            "run.claimed",
            "app",
            "run.completed",
            "app",
            "run.completed",
        ];
        assert_eq!(kinds, expected, "{}", self.session);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_living_keep_their_runs_and_the_dead_lose_them_though_the_leader_dies() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    let leaders = cluster.wait_balanced(BALANCED_WITHIN).await;
    let victim = 1;
    let quiet = Quiet::watch();
    let client = cluster.client(&tokens::agent(cluster.keys(), "bot"));
    let other = cluster.client(&tokens::agent(cluster.keys(), "bot2"));
    let mut scenes = Vec::new();
    for session in Cluster::session_of_each_shard("leased") {
        scenes.push(Scene::new(&cluster, session).await);
    }
    assert!(!leaders.led_by(victim).is_empty());
    let killed = Instant::now();
    cluster.kill(victim).await;
    let waits = scenes.iter().map(|scene| scene.orphaned(&client, killed));
    let times = futures_util::future::join_all(waits).await;
    hold(
        "a dead writer's run orphaned after its leader died",
        times,
        ORPHANED_WITHIN,
        &quiet,
    );
    sleep_until(killed + LEASE * LEASES).await;
    for scene in &scenes {
        let living = client.run(&scene.session, &run("living")).await;
        let living = living.expect("served");
        assert_eq!(living.state, RunState::Running, "{}", scene.session);
        scene.taken_over(&client, &other).await;
    }
    for scene in scenes {
        scene.check(&client).await;
    }
}
