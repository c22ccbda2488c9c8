//! The way to a session: straight to its leader by the map, around nodes that died, stand still
//! or do not know better; and nothing lost or doubled on the way.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use everwire_client::{Client, Publisher, SubscribeOptions, SubscriberEvent};
use everwire_core::grant::Claims;
use everwire_core::limits::SUPERSEDED_GRACE;
use everwire_core::{
    Body, Code, Details, Draft, Namespace, ParticipantId, ParticipantKind, Refusal, ShardId, Slot,
    Timestamp,
};
use everwire_proto::token::{Signer, allow};
use everwire_proto::v1;
use tokio::time::{Instant, sleep};

use crate::net::{Net, net};
use crate::node::{self, Fault, Node, Reader};
use crate::{config, paused, run_id, session};

const SHARDS: u32 = 2;
const ADDRS: [&str; 3] = ["n1:1", "n2:1", "n3:1"];

/// A token whose tenant a client can read.
fn token() -> String {
    let claims = Claims {
        namespace: Some(Namespace::parse("acme").unwrap()),
        participant: ParticipantId::parse("agent").unwrap(),
        kind: ParticipantKind::Agent,
        allow: vec![allow("*", ["run", "publish"]).unwrap()],
        expires: Timestamp(u64::from(u32::MAX) * 1000),
    };
    let signer = Signer::new(b"a secret of the tests, long enough for HS256").unwrap();
    signer.mint(&claims, Timestamp(0)).unwrap()
}

/// The session's shard.
fn shard() -> ShardId {
    let namespace = Namespace::parse("acme").unwrap();
    ShardId::holding(Slot::of(&namespace, &session()), SHARDS)
}

/// Three nodes that have one session in common. Any of them takes any call, until it is told to
/// refuse.
struct World {
    net: Arc<Net>,
    nodes: [Arc<Node>; 3],
}

impl World {
    fn new() -> Self {
        let net = net();
        let first = node::start(&net, ADDRS[0], 1);
        let second = node::start_beside(&first, ADDRS[1], 2);
        let third = node::start_beside(&first, ADDRS[2], 3);
        let world = Self {
            net,
            nodes: [first, second, third],
        };
        world.tell(&[1, 2, 3], 2, 5);
        world
    }

    fn client(&self, addrs: &[&str], seed: u64) -> Client {
        let mut config = config(&self.net, addrs, seed);
        config.token = Arc::new(token());
        Client::new(config).unwrap()
    }

    /// A client that begins at this node and knows the map.
    async fn client_at(&self, number: usize) -> Client {
        let client = self.client(&[ADDRS[number - 1]], 1);
        client
            .read(&session(), None, everwire_core::Offset::ZERO, 1, None)
            .await
            .unwrap();
        sleep(Duration::from_millis(10)).await;
        assert_eq!(self.node(number).watches.load(Ordering::Relaxed), 1);
        client
    }

    fn node(&self, number: usize) -> &Arc<Node> {
        &self.nodes[number - 1]
    }

    /// These nodes know who leads the session's shard. Node 3 leads the other one, so that a
    /// client that takes the wrong shard is found out.
    fn tell(&self, knowing: &[usize], leader: u64, term: u64) {
        let shards = (0..SHARDS).map(|id| {
            let ours = id == shard().0;
            v1::MapShard {
                id,
                leader: if ours { leader } else { 3 },
                term: if ours { term } else { 1 },
                replicas: vec![1, 2, 3],
            }
        });
        let nodes = ADDRS.iter().zip(1..).map(|(addr, id)| v1::MapNode {
            id,
            addr: (*addr).to_owned(),
            alive: true,
        });
        let map = v1::Map {
            version: 1,
            cluster: "c".to_owned(),
            nodes: nodes.collect(),
            shards: shards.collect(),
        };
        for number in knowing {
            self.node(*number).map.send_replace(Some(map.clone()));
        }
    }

    /// What each node does with writes: nothing, or this refusal.
    fn refuse(&self, number: usize, refusal: Option<Refusal>) {
        *self.node(number).refuses.lock().unwrap() = refusal;
    }

    fn writes(&self) -> [u64; 3] {
        [1, 2, 3].map(|number| self.node(number).writes.load(Ordering::Relaxed))
    }

    /// The followers, who cannot commit anything while nobody leads.
    fn leaderless(&self, followers: &[usize]) {
        for number in followers {
            self.refuse(*number, Some(Refusal::new(Code::NoQuorum, "no leader")));
        }
    }

    /// `number` is elected, and all but `but` know it.
    fn elected(&self, number: u64, term: u64, knowing: &[usize]) {
        for node in knowing {
            self.refuse(*node, None);
        }
        self.tell(knowing, number, term);
    }
}

fn app(name: usize) -> Draft {
    Draft::new(Body::App {
        name: name.to_string(),
        data: None,
    })
}

fn not_leader(hint: &str, term: u64) -> Refusal {
    let details = Details {
        leader: Some(hint.to_owned()),
        term: Some(term),
        map_version: Some(1),
        ..Details::default()
    };
    Refusal::with(Code::NotLeader, "not here", details)
}

async fn post(client: &Client) {
    client.post(&session(), app(0), None).await.unwrap();
}

#[test]
fn writes_go_straight_to_the_leader_and_follow_it() {
    paused(async {
        let world = World::new();
        let client = world.client_at(1).await;
        post(&client).await;
        assert_eq!(world.writes(), [0, 1, 0]);
        world.tell(&[1, 2, 3], 3, 6);
        sleep(Duration::from_millis(1)).await;
        post(&client).await;
        assert_eq!(world.writes(), [0, 1, 1]);
        // Nobody leads for the moment: whoever is asked passes it on.
        world.tell(&[1, 2, 3], 0, 7);
        sleep(Duration::from_millis(1)).await;
        post(&client).await;
        assert_eq!(world.writes(), [1, 1, 1]);
    });
}

#[test]
fn a_token_that_tells_no_tenant_still_finds_its_way() {
    paused(async {
        let world = World::new();
        let client = world.client_at(1).await.with_token("opaque".to_owned());
        post(&client).await;
        assert_eq!(world.writes(), [1, 0, 0]);
    });
}

#[test]
fn a_client_behind_a_balancer_goes_nowhere_else() {
    paused(async {
        let world = World::new();
        let mut config = config(&world.net, &ADDRS[..1], 1);
        (config.token, config.direct) = (Arc::new(token()), false);
        let client = Client::new(config).unwrap();
        post(&client).await;
        sleep(Duration::from_secs(1)).await;
        // The balancer may find another node next time.
        *world.node(1).refuses.lock().unwrap() = Some(not_leader("n2:1", 5));
        let asking = tokio::spawn(async move { post(&client).await });
        sleep(Duration::from_secs(1)).await;
        world.refuse(1, None);
        asking.await.unwrap();
        assert_eq!(world.writes()[1..], [0, 0]);
        assert_eq!(world.node(1).watches.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn a_hint_of_a_lower_term_is_ignored() {
    paused(async {
        let world = World::new();
        let client = world.client_at(1).await;
        // It leads no more, and names one who led before it.
        world.refuse(2, Some(not_leader("n3:1", 4)));
        let begin = Instant::now();
        post(&client).await;
        assert_eq!(
            world.writes(),
            [1, 1, 0],
            "somebody who knows better was asked"
        );
        assert!(begin.elapsed() <= Duration::from_millis(10));
        // A hint of a higher term is followed, at once and by everybody.
        world.refuse(2, Some(not_leader("n3:1", 6)));
        sleep(Duration::from_secs(2)).await;
        let begin = Instant::now();
        post(&client).await;
        assert_eq!(world.writes(), [1, 2, 1]);
        post(&client).await;
        assert_eq!(world.writes(), [1, 2, 2]);
        assert!(begin.elapsed() <= Duration::from_millis(10));
        // Neither a late map of the old term nor a late hint brings the old one back.
        world.tell(&[1], 2, 5);
        sleep(Duration::from_millis(1)).await;
        world.refuse(3, Some(not_leader("n2:1", 5)));
        post(&client).await;
        assert_eq!(world.writes(), [2, 2, 3]);
    });
}

#[test]
fn two_nodes_that_point_at_each_other_are_not_asked_without_end() {
    paused(async {
        let world = World::new();
        let client = world
            .client_at(1)
            .await
            .with_deadline(Duration::from_secs(5));
        world.refuse(1, Some(not_leader("n2:1", 5)));
        world.refuse(2, Some(not_leader("n1:1", 5)));
        world.refuse(3, Some(not_leader("n2:1", 5)));
        let refusal = client.post(&session(), app(0), None).await.unwrap_err();
        assert_eq!(refusal.code, Code::NotLeader);
        let tries: u64 = world.writes().iter().sum();
        assert!((5..=200).contains(&tries), "{tries} attempts in 5 s");
    });
}

/// Writes one event every 10 ms until told to stop; answers when each was acked.
async fn write(publisher: Publisher, until: Instant) -> Vec<Instant> {
    let mut acks = publisher.acks();
    let acked = tokio::spawn(async move {
        let (mut times, mut next) = (Vec::new(), 1);
        while let Some(range) = acks.next().await {
            assert_eq!(range.first_seq.0, next, "each seq once, in order");
            next = range.last_seq.0 + 1;
            times.push(Instant::now());
        }
        times
    });
    let mut sent = 0;
    while Instant::now() < until {
        publisher.send(vec![app(sent)]).await.unwrap();
        sent += 1;
        sleep(Duration::from_millis(10)).await;
    }
    publisher.flush().await.unwrap();
    publisher.complete().await.unwrap();
    acked.await.unwrap()
}

/// The longest time without an ack.
fn longest_gap(times: &[Instant]) -> Duration {
    let gaps = times.windows(2).map(|pair| pair[1] - pair[0]);
    gaps.max().unwrap()
}

/// Every seq stands in the log once, in order.
fn check_log(world: &World) {
    let state = world.node(1).state();
    let seqs = state.log.iter().filter_map(|event| event.run.as_ref()?.seq);
    let seqs: Vec<_> = seqs.collect();
    let expected: Vec<_> = (1..=seqs.len() as u64).collect();
    assert_eq!(seqs, expected);
    assert_eq!(state.wrong, Vec::<String>::new());
}

#[test]
fn a_dead_leader_costs_a_writer_hardly_more_than_the_election() {
    paused(async {
        let mut worst = Duration::ZERO;
        for seed in 0..20 {
            let world = World::new();
            let client = world.client(&ADDRS, seed);
            let publisher = client.start_run(&session(), run_id(), None).await.unwrap();
            let writing = tokio::spawn(write(publisher, Instant::now() + Duration::from_secs(4)));
            sleep(Duration::from_millis(500)).await;
            world.leaderless(&[1, 3]);
            world.tell(&[1, 3], 0, 6);
            world.net.close(ADDRS[1]);
            sleep(Duration::from_millis(700)).await;
            world.elected(3, 6, &[1, 3]);
            let gap = longest_gap(&writing.await.unwrap());
            assert!(
                gap >= Duration::from_millis(690),
                "nobody could commit: {gap:?}"
            );
            worst = worst.max(gap);
            check_log(&world);
            assert!(world.writes()[2] >= 1, "the new leader is written to");
        }
        assert!(worst <= Duration::from_millis(730), "{worst:?}");
    });
}

/// A follower may hold a writer back until it knows a leader, and learn of it last. The attempts
/// that failed before say nothing of who is elected: it is gone to without another pause.
#[test]
fn a_writer_that_is_held_back_goes_to_whoever_is_elected_at_once() {
    paused(async {
        let mut worst = Duration::ZERO;
        for seed in 0..20 {
            let world = World::new();
            let client = world.client(&ADDRS, seed);
            let publisher = client.start_run(&session(), run_id(), None).await.unwrap();
            let writing = tokio::spawn(write(publisher, Instant::now() + Duration::from_secs(8)));
            sleep(Duration::from_millis(500)).await;
            world.leaderless(&[1, 3]);
            world.tell(&[1, 3], 0, 6);
            world.net.close(ADDRS[1]);
            sleep(Duration::from_millis(700)).await;
            world.refuse(1, None);
            world.node(1).holds.store(true, Ordering::Relaxed);
            sleep(Duration::from_millis(200)).await;
            world.elected(3, 6, &[3]);
            world.tell(&[1], 3, 6);
            worst = worst.max(longest_gap(&writing.await.unwrap()));
            check_log(&world);
        }
        // The election, and the time for answers that are under way.
        let bound = Duration::from_millis(900) + SUPERSEDED_GRACE;
        assert!(worst <= bound + Duration::from_millis(30), "{worst:?}");
    });
}

#[test]
fn a_leader_that_stands_still_is_left_for_the_one_who_is_elected() {
    paused(async {
        // The client watches the map at another node, or at the very one that is stopped.
        for begin_at in [1, 2] {
            let world = World::new();
            let client = world.client_at(begin_at).await;
            let publisher = client.start_run(&session(), run_id(), None).await.unwrap();
            let writing = tokio::spawn(write(publisher, Instant::now() + Duration::from_secs(6)));
            sleep(Duration::from_millis(500)).await;
            world.leaderless(&[1, 3]);
            world.net.stop(ADDRS[1], true);
            let calling = {
                let client = client.clone();
                tokio::spawn(async move {
                    let begin = Instant::now();
                    post(&client).await;
                    begin.elapsed()
                })
            };
            sleep(Duration::from_millis(700)).await;
            world.elected(3, 6, &[1, 3]);
            let gap = longest_gap(&writing.await.unwrap());
            let bound = Duration::from_millis(if begin_at == 1 { 1_000 } else { 2_000 });
            assert!(gap <= bound, "watching at {begin_at}: {gap:?}");
            let call = calling.await.unwrap();
            assert!(call <= bound, "a call, watching at {begin_at}: {call:?}");
            check_log(&world);
        }
    });
}

#[test]
fn a_follower_that_holds_what_it_was_sent_is_not_waited_for_when_the_leader_is_known() {
    paused(async {
        let world = World::new();
        let client = world.client_at(1).await;
        world.tell(&[1, 2, 3], 0, 6);
        sleep(Duration::from_millis(1)).await;
        let publisher = client.start_run(&session(), run_id(), None).await.unwrap();
        world.node(1).holds.store(true, Ordering::Relaxed);
        world.net.cut(ADDRS[0]);
        publisher.send(vec![app(1)]).await.unwrap();
        let calling = tokio::spawn(async move {
            post(&client).await;
            Instant::now()
        });
        sleep(Duration::from_millis(500)).await;
        for number in [2, 3] {
            world.node(number).holds.store(false, Ordering::Relaxed);
        }
        let elected = Instant::now();
        world.tell(&[1, 2, 3], 3, 6);
        publisher.flush().await.unwrap();
        assert!(
            elected.elapsed() <= Duration::from_millis(300),
            "{:?}",
            elected.elapsed()
        );
        let called = calling.await.unwrap() - elected;
        assert!(called <= Duration::from_secs(2), "{called:?}");
        drop(publisher);
        check_log(&world);
    });
}

#[test]
fn a_leader_that_moves_while_everybody_lives_stops_nobody() {
    paused(async {
        let world = World::new();
        let client = world.client_at(1).await;
        let publisher = client.start_run(&session(), run_id(), None).await.unwrap();
        let writing = tokio::spawn(write(publisher, Instant::now() + Duration::from_secs(3)));
        for (term, leader) in [(6, 3), (7, 1), (8, 2)] {
            sleep(Duration::from_millis(600)).await;
            world.tell(&[1, 2, 3], leader, term);
        }
        let gap = longest_gap(&writing.await.unwrap());
        assert!(gap <= Duration::from_millis(20), "{gap:?}");
        check_log(&world);
        let streams = world.node(1).state().streams;
        assert_eq!(streams, 4, "one at each leader");
    });
}

#[test]
fn the_map_is_watched_elsewhere_when_its_node_dies_and_not_at_all_without_a_client() {
    paused(async {
        let world = World::new();
        let client = world.client_at(1).await;
        world.net.close(ADDRS[0]);
        sleep(Duration::from_secs(1)).await;
        let watches = || {
            ADDRS.map(|addr| {
                (1..=3)
                    .map(|n| world.node(n))
                    .find(|n| n.addr == addr)
                    .unwrap()
                    .watches
                    .load(Ordering::Relaxed)
            })
        };
        assert_eq!(watches().iter().sum::<u64>(), 2);
        world.tell(&[2, 3], 3, 6);
        sleep(Duration::from_millis(10)).await;
        post(&client).await;
        assert_eq!(world.writes(), [0, 0, 1]);
        drop(client);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(watches().iter().sum::<u64>(), 2);
        assert_eq!(
            world.node(2).map.receiver_count() + world.node(3).map.receiver_count(),
            0
        );
    });
}

async fn next_events(subscriber: &mut everwire_client::Subscriber, next: &mut u64, tail: u64) {
    while *next <= tail {
        match subscriber.next().await {
            SubscriberEvent::Events { from, to, .. } => {
                assert_eq!(from.get(), *next);
                *next = to.get() + 1;
            },
            SubscriberEvent::Attached { from, .. } => assert_eq!(from.get(), *next),
            SubscriberEvent::Alive { .. } | SubscriberEvent::Disconnected { .. } => {},
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_reader_moves_on_at_once_and_goes_on_exactly() {
    paused(async {
        for end in [Code::Stale, Code::Draining] {
            let world = World::new();
            let client = world.client_at(1).await;
            let (mut next, begin) = (1, Instant::now());
            let mut subscriber = client.subscribe(&session(), SubscribeOptions::default());
            world.node(1).state().readers = [Reader::After(3, Fault::End(end))].into();
            world.node(1).append_foreign(10);
            next_events(&mut subscriber, &mut next, 10).await;
            assert!(begin.elapsed() <= Duration::from_millis(10), "{end}");

            // Its node is killed, then the next one stands still.
            let begin = Instant::now();
            world.net.close(ADDRS[1]);
            world.node(1).append_foreign(5);
            next_events(&mut subscriber, &mut next, 15).await;
            let killed = begin.elapsed();
            assert!(killed <= Duration::from_millis(20), "{killed:?}");
            let begin = Instant::now();
            world.net.stop(ADDRS[2], true);
            world.node(1).append_foreign(5);
            next_events(&mut subscriber, &mut next, 20).await;
            assert!(
                begin.elapsed() <= Duration::from_secs(3),
                "{:?}",
                begin.elapsed()
            );
        }
    });
}

#[test]
fn many_readers_of_a_dead_node_come_back_paced() {
    paused(async {
        const READERS: usize = 1_000;
        let world = World::new();
        let client = world.client_at(1).await;
        world.node(1).append_foreign(1);
        let readers: Vec<_> = (0..READERS)
            .map(|_| {
                let mut subscriber = client.subscribe(&session(), SubscribeOptions::default());
                tokio::spawn(async move {
                    let mut next = 1;
                    next_events(&mut subscriber, &mut next, 2).await;
                    Instant::now()
                })
            })
            .collect();
        sleep(Duration::from_secs(2)).await;
        world.net.close(ADDRS[0]);
        let killed = Instant::now();
        world.nodes.iter().for_each(|node| node.append_foreign(0));
        sleep(Duration::from_millis(1)).await;
        world.node(2).append_foreign(1);
        let mut back = Vec::new();
        for reader in readers {
            back.push(reader.await.unwrap() - killed);
        }
        let last = back.iter().max().unwrap();
        assert!(
            *last >= Duration::from_millis(490),
            "2,000 a second at most: {last:?}"
        );
        assert!(*last <= Duration::from_millis(700), "{last:?}");
    });
}

#[test]
fn calls_of_every_kind_go_around_a_dead_node() {
    paused(async {
        for dead in ADDRS {
            for seed in 0..4 {
                let world = World::new();
                world.net.close(dead);
                let begin = Instant::now();
                let client = world.client(&ADDRS, seed);
                client.cluster_status().await.unwrap();
                post(&client).await;
                let publisher = client.start_run(&session(), run_id(), None).await.unwrap();
                publisher.send(vec![app(1)]).await.unwrap();
                publisher.flush().await.unwrap();
                client.run(&session(), &run_id()).await.unwrap();
                client.cancel(&session(), &run_id(), None).await.unwrap();
                client
                    .read(&session(), None, everwire_core::Offset::ZERO, 1, None)
                    .await
                    .unwrap();
                assert!(
                    begin.elapsed() <= Duration::from_millis(100),
                    "{:?}",
                    begin.elapsed()
                );
            }
        }
    });
}
