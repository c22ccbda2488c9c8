//! The opposite of the promises: nothing that happens to connections is a signal.
//!
//! Whatever breaks, the run goes on, the log holds no signal, and each reader has exactly what it
//! missed.

use std::time::Duration;

use everwire_core::{Code, Lease, Offset};
use everwire_promises::agent::place_of;
use everwire_promises::scene::at;
use everwire_promises::{Agent, Follower, Kind, Leave, Scene};
use everwire_testkit::process::{fixed_addr, folder};
use everwire_testkit::{Cluster, Http, Proxy, Server, client};

/// Deltas of a run, at least.
const DELTAS: usize = 240;
/// A model's pace, deltas a second.
const PACE: u32 = 80;
/// An edge notices a silent client after 25 s; the network is stalled for longer.
const STALLED: Duration = Duration::from_secs(28);

async fn leave_all(readers: &mut [Follower], how: Leave) {
    for reader in readers {
        reader.leave(how).await;
    }
}

async fn come_back_all(readers: &mut [Follower], http: &str) {
    for reader in readers {
        reader.come_back(http).await;
    }
}

async fn read_all_to(readers: &mut [Follower], delta: usize) {
    for reader in readers {
        reader.read_to(place_of(delta)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_every_tab_stops_nothing() {
    let data = folder();
    let server = Server::dev(data.path()).await;
    let scene = Scene::new(data.path(), &server.grpc, "closing").await;
    let mut readers = scene.follow_each(&server.http).await;
    readers.extend(scene.follow_each(&server.http).await);
    let mut agent = Agent::start(&scene.agent, &scene.session, "r1", PACE).await;

    agent.reached(60).await;
    read_all_to(&mut readers, 40).await;
    leave_all(&mut readers, Leave::Goodbye).await;
    // Nobody is left, for a while.
    agent.reached(140).await;
    until_open(&server.admin, [0, 0]).await;
    come_back_all(&mut readers, &server.http).await;
    read_all_to(&mut readers, 140).await;
    leave_all(&mut readers, Leave::Goodbye).await;

    // Some come back only after the end.
    let written = agent.complete(DELTAS).await;
    come_back_all(&mut readers, &server.http).await;
    scene.assert_undisturbed(&[&written], readers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tcp_reset_stops_nothing() {
    let data = folder();
    let server = Server::dev(data.path()).await;
    let scene = Scene::new(data.path(), &server.grpc, "reset").await;
    let people = Proxy::new(&server.http).await;
    let network = people.addr.to_string();
    let mut readers = scene.follow_each(&network).await;
    // The agent's own connection is reset with them.
    let agents = Proxy::new(&server.grpc).await;
    let connection = client(&agents.addr.to_string(), &scene.agent_token);
    let grpc = Follower::grpc(&connection, &scene.session);
    let mut agent = Agent::start(&connection, &scene.session, "r1", PACE).await;

    for round in 1..=4 {
        agent.reached(round * 40).await;
        read_all_to(&mut readers, round * 40 - 20).await;
        people.reset();
        agents.reset();
        for reader in &mut readers {
            reader.read_to_end().await;
        }
        agent.reached(round * 40 + 20).await;
        come_back_all(&mut readers, &network).await;
    }
    let written = agent.complete(DELTAS).await;
    readers.push(grpc);
    scene.assert_undisturbed(&[&written], readers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_stream_that_drops_goes_on_at_its_last_event_id() {
    let data = folder();
    let server = Server::dev(data.path()).await;
    let scene = Scene::new(data.path(), &server.grpc, "stream").await;
    let mut stream = scene.follow(Kind::Sse, &server.http).await;
    let mut agent = Agent::start(&scene.agent, &scene.session, "r1", PACE).await;
    for drop_at in [60, 100, 140, 180] {
        stream.read_to(place_of(drop_at)).await;
        stream.leave(Leave::Reset).await;
        agent.reached(drop_at + 20).await;
        stream.come_back(&server.http).await;
    }
    let written = agent.complete(DELTAS).await;
    scene.assert_undisturbed(&[&written], vec![stream]).await;
}

/// One edge is stopped as for an upgrade, its successor is killed, and comes back at its place.
#[tokio::test(flavor = "multi_thread")]
async fn an_edge_restart_stops_nothing() {
    let mut cluster = Cluster::start(1).await;
    let scene = Scene::new(cluster.keys(), cluster.grpc(0), "edges").await;
    let (first, second) = (fixed_addr(), fixed_addr());
    let old = cluster.edge(&first).await;
    let mut readers = scene.follow_each(&first).await;
    let mut agent = Agent::start(&scene.agent, &scene.session, "r1", PACE).await;

    agent.reached(60).await;
    read_all_to(&mut readers, 40).await;
    let new = cluster.edge(&second).await;
    let stopping = tokio::spawn(old.stop());
    for reader in &mut readers {
        let code = reader.read_to_end().await;
        assert!(reader.seen_to() >= place_of(40), "what was under way came");
        if reader.kind() != Some(Kind::Sse) {
            assert_eq!(code, Some(Code::Draining.close_code()), "it is told why");
        }
        reader.come_back(&second).await;
    }
    assert_eq!(stopping.await.expect("no panic"), Some(0), "it stops well");

    agent.reached(160).await;
    read_all_to(&mut readers, 150).await;
    new.kill().await;
    for reader in &mut readers {
        assert_eq!(reader.read_to_end().await, None, "killed: no goodbye");
    }
    agent.reached(180).await;
    let again = cluster.edge(&second).await;
    come_back_all(&mut readers, &second).await;

    let written = agent.complete(DELTAS).await;
    scene.assert_undisturbed(&[&written], readers).await;
    drop(again);
    assert_eq!(cluster.stop(0).await, Some(0));
}

/// A tab that is told to move has the time to go elsewhere before its edge closes: it is never
/// without a connection.
#[tokio::test(flavor = "multi_thread")]
async fn tabs_move_before_their_edge_closes() {
    let cluster = Cluster::start(1).await;
    let scene = Scene::new(cluster.keys(), cluster.grpc(0), "moving").await;
    let old = cluster.edge("127.0.0.1:0").await;
    let new = cluster.edge("127.0.0.1:0").await;
    let mut stays = Vec::new();
    for kind in [Kind::Json, Kind::Proto] {
        stays.push(scene.follow(kind, &old.http).await);
    }
    let mut agent = Agent::start(&scene.agent, &scene.session, "r1", PACE).await;
    agent.reached(40).await;
    let stopping = tokio::spawn(old.stop());
    for reader in &mut stays {
        let tab = reader.as_tab();
        tab.read_until(|tab| tab.told_to_move).await;
        // Still served, until the tab itself has gone.
        let now = tab.cursor.offset;
        tab.read_to(now.plus(5)).await;
        reader.leave(Leave::Goodbye).await;
        reader.come_back(&new.http).await;
    }
    assert_eq!(stopping.await.expect("no panic"), Some(0));
    let written = agent.complete(DELTAS).await;
    scene.assert_undisturbed(&[&written], stays).await;
}

/// The node goes away under a publisher and its readers, killed and stopped: the publisher goes
/// on by itself, and the tabs keep their sockets.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_restart_under_a_publisher_loses_and_doubles_nothing() {
    let mut cluster = Cluster::start(1).await;
    let scene = Scene::new(cluster.keys(), cluster.grpc(0), "node").await;
    let edge = cluster.edge("127.0.0.1:0").await;
    let mut readers = scene.follow_each(&edge.http).await;
    let grpc = Follower::grpc(&scene.agent, &scene.session);
    let mut agent = Agent::start(&scene.agent, &scene.session, "r1", PACE).await;

    agent.reached(60).await;
    cluster.kill(0).await;
    agent.reached(90).await;
    cluster.start_node(0).await;
    // On the same sockets.
    read_all_to(&mut readers, 110).await;
    assert_eq!(cluster.stop(0).await, Some(0));
    agent.reached(140).await;
    cluster.start_node(0).await;
    read_all_to(&mut readers, 160).await;

    let written = agent.complete(DELTAS).await;
    readers.push(grpc);
    scene.assert_undisturbed(&[&written], readers).await;
}

/// A short stall is waited out on the same socket; a long one ends the connections without a
/// word from anybody. A frozen page that reads nothing is taken for gone in the same time.
#[tokio::test(flavor = "multi_thread")]
async fn a_stalled_network_is_noticed_and_stops_nothing() {
    let data = folder();
    let server = Server::dev(data.path()).await;
    let scene = Scene::new(data.path(), &server.grpc, "stalled").await;
    let people = Proxy::new(&server.http).await;
    let network = people.addr.to_string();
    let agents = Proxy::new(&server.grpc).await;
    let in_tunnel = client(&agents.addr.to_string(), &scene.agent_token);

    let mut readers = scene.follow_each(&network).await;
    let grpc = Follower::grpc(&in_tunnel, &scene.session);
    let mut frozen = scene.follow(Kind::Json, &server.http).await;
    let mut stays = scene.follow(Kind::Proto, &server.http).await;
    // One run from outside the tunnel and one from inside, in the same session. The one inside
    // will be silent for longer than the default lease.
    let mut outside = Agent::start(&scene.agent, &scene.session, "r1", PACE / 2).await;
    let lease = Lease::new(2 * STALLED).ok();
    let mut inside = Agent::start_with(&in_tunnel, &scene.session, "r2", PACE / 2, lease).await;

    inside.reached(40).await;
    people.stall();
    agents.stall();
    tokio::time::sleep(Duration::from_secs(2)).await;
    people.heal();
    agents.heal();
    // Nothing was closed: the same sockets go on, and the publisher has what it sent meanwhile.
    inside.reached(100).await;
    for reader in &mut readers {
        reader.read_to(at(200)).await;
    }
    until_open(&server.admin, [4, 1]).await;

    people.stall();
    agents.stall();
    let long = async {
        tokio::time::sleep(STALLED).await;
        // Two tabs in the tunnel and the frozen one are gone; the one that reads is not. Nobody
        // can tell that an event stream is stalled while the kernel takes its bytes.
        until_open(&server.admin, [1, 1]).await;
        outside.reached(outside.sent() + 40).await;
        outside.sent()
    };
    // A reader that lives reads, and answers the edge's pings with that.
    let meanwhile = tokio::select! {
        sent = long => sent,
        () = stays.read_to(Offset::MAX) => panic!("it has no end"),
    };
    assert!(meanwhile >= 300, "{meanwhile}: the run outside went on");
    people.heal();
    agents.heal();
    frozen.read_to_end().await;
    frozen.come_back(&server.http).await;
    for reader in &mut readers {
        // Nobody pings an event stream: it holds what the kernel held, and goes on.
        if reader.kind() != Some(Kind::Sse) {
            reader.read_to_end().await;
            reader.come_back(&network).await;
        }
    }

    let (outside, inside) = tokio::join!(outside.complete(DELTAS), inside.complete(DELTAS));
    readers.extend([grpc, frozen, stays]);
    scene
        .assert_undisturbed(&[&outside, &inside], readers)
        .await;
}

/// Waits until the edge has so many WebSockets and event streams open; not for long.
async fn until_open(admin: &str, expected: [u64; 2]) {
    for _ in 0..100 {
        if sockets(admin).await == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(sockets(admin).await, expected, "sockets and streams");
}

/// Open WebSockets and event streams, as the admin port counts them.
async fn sockets(admin: &str) -> [u64; 2] {
    let metrics = Http::new(admin).get("/metrics", &[]).await.text;
    ["everwire_edge_sockets", "everwire_edge_streams"].map(|name| {
        let mut lines = metrics.lines().filter_map(|line| line.split_once(' '));
        let value = lines.find(|(metric, _)| *metric == name);
        let (_, value) = value.unwrap_or_else(|| panic!("no {name} in {metrics}"));
        value.trim().parse().expect("a number")
    })
}
