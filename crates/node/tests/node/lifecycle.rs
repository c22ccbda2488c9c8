//! Start, restart, stop; what probes and tools see.

use std::time::Duration;

use everwire_core::{Code, ParticipantKind};
use everwire_node::{Node, NodeError, Tls};
use everwire_proto::refusal::from_status;
use everwire_proto::v1;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1 as reflection;

use crate::support::{
    Somebody, agent_token, app, bare, code, completed, config, input, node, node_in, soon, token,
};

fn follow(session: &str) -> v1::FollowRequest {
    v1::FollowRequest {
        session: session.to_owned(),
        ..v1::FollowRequest::default()
    }
}

#[tokio::test]
async fn a_restart_keeps_everything() {
    let first = node().await;
    let agent = first.agent().await;
    let started = agent.start("s", "r").await.unwrap();
    agent
        .append(("s", "r", 1), 1, &[app("a"), app("b")])
        .await
        .unwrap();
    agent.post("s", input("i", "hello"), "k").await.unwrap();
    agent.start("s", "stopped").await.unwrap();
    agent.cancel("s", "stopped", "k2").await.unwrap();
    let before = agent.read("s").await.unwrap();

    let second = node_in(first.stop().await).await.unwrap();
    let agent = second.agent().await;
    assert_eq!(agent.read("s").await.unwrap(), before);
    assert_eq!(
        agent.create("s").await.unwrap().session_epoch,
        started.session_epoch
    );
    let again = agent.post("s", input("i", "hello"), "k").await.unwrap();
    assert!(again.duplicate, "keys are remembered");
    let again = agent.append(("s", "r", 1), 1, &[app("a"), app("b")]).await;
    assert!(again.unwrap().ranges[0].duplicate, "seqs are remembered");
    assert_eq!(
        code(agent.append(("s", "stopped", 1), 1, &[app("x")]).await),
        Code::RunFenced
    );
    agent
        .append(("s", "r", 1), 3, &[completed()])
        .await
        .unwrap();
    second.stop().await;
}

#[tokio::test]
async fn a_stop_ends_streams_with_draining_and_loses_nothing() {
    let first = node().await;
    let agent = first.agent().await;
    agent.start("s", "r").await.unwrap();
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    let mut reader = agent.follow(follow("s")).await.unwrap();
    reader.attached().await;
    writer.batch(1, &[app("a")]).await;
    writer.acked_through(1).await;
    assert!(first.node.ready());

    let stopping = tokio::spawn(first.stop());
    assert_eq!(reader.ended().await.code, Code::Draining);
    assert_eq!(code(writer.next().await), Code::Draining);
    let dir = soon(stopping).await.unwrap();
    let second = node_in(dir).await.unwrap();
    let agent = second.agent().await;
    assert_eq!(agent.read("s").await.unwrap().events.unwrap().tail, 2);
    second.stop().await;
}

#[tokio::test]
async fn a_stalled_peer_does_not_hold_a_stop_up() {
    let node = node().await;
    let mut health = HealthClient::new(node.channel().await);
    let request = HealthCheckRequest::default();
    // A health watcher never leaves by itself.
    let mut watch = health.watch(request).await.unwrap().into_inner();
    let first = watch.message().await.unwrap().unwrap();
    assert_eq!(first.status(), ServingStatus::Serving);
    let stopping = tokio::spawn(node.stop());
    let next = soon(watch.message()).await.unwrap().unwrap();
    assert_eq!(next.status(), ServingStatus::NotServing);
    soon(stopping).await.unwrap();
}

#[tokio::test]
async fn health_and_reflection_need_no_token() {
    let node = node().await;
    let mut health = HealthClient::new(node.channel().await);
    for service in ["", "everwire.v1.Publish", "everwire.v1.Signals"] {
        let request = HealthCheckRequest {
            service: service.to_owned(),
        };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    // Nobody is known here, so little is read.
    let request = HealthCheckRequest {
        service: "x".repeat(8 << 10),
    };
    let refused = health.check(request).await.unwrap_err();
    assert_eq!(from_status(&refused).code, Code::TooLarge);
    let mut client =
        reflection::server_reflection_client::ServerReflectionClient::new(node.channel().await);
    let request = reflection::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            reflection::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut answers = client
        .server_reflection_info(tokio_stream::iter([request]))
        .await
        .unwrap()
        .into_inner();
    let answer = soon(answers.message()).await.unwrap().unwrap();
    let Some(reflection::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        answer.message_response
    else {
        panic!("a list of services");
    };
    let names: Vec<_> = list
        .service
        .into_iter()
        .map(|service| service.name)
        .collect();
    for service in [
        "Publish", "Attach", "Signals", "Sessions", "Runs", "Cluster",
    ] {
        assert!(
            names.contains(&format!("everwire.v1.{service}")),
            "{names:?}"
        );
    }
    assert!(names.contains(&"grpc.health.v1.Health".to_owned()));
    drop(answers);
    node.stop().await;
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let node = node().await;
    let agent = node.agent().await;
    agent.start("s", "r").await.unwrap();
    agent.append(("s", "r", 1), 1, &[app("a")]).await.unwrap();
    code(agent.append(("s", "r", 1), 9, &[app("gap")]).await);
    let mut reader = agent.follow(follow("s")).await.unwrap();
    reader.attached().await;
    let mut registry = Registry::default();
    node.node.register_metrics(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    for line in [
        "everwire_node_publish_events_total 1",
        "everwire_node_publish_bytes_total 1",
        "everwire_node_refusals_total{code=\"SEQ_GAP\"} 1",
        "everwire_node_follow_streams 1",
        "everwire_node_connections 1",
        "everwire_node_shard_people_bytes{shard=\"0\"} 0",
        "everwire_node_shard_agent_bytes{shard=\"0\"} 0",
        "everwire_node_shard_leads{shard=\"0\"} 1",
        "everwire_node_shard_leads{shard=\"1\"} 1",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    assert!(text.contains("everwire_node_commit_seconds_bucket"));
    node.stop().await;
}

#[tokio::test]
async fn the_status_names_the_cluster_and_every_shard() {
    let node = node().await;
    let agent = node.agent().await;
    let operator = token("op", ParticipantKind::Operator, "*", "operate");
    let operator = agent.with_token(operator);
    let request = operator.ask(v1::StatusRequest {});
    let status = bare(operator.cluster().status(request).await).unwrap();
    assert!(!status.cluster.is_empty());
    assert_eq!(status.version, "test");
    assert_eq!(status.nodes.len(), 1);
    assert_eq!(status.nodes[0].addr, node.addr.to_string());
    for (number, shard) in (0..).zip(&status.shards) {
        assert_eq!(shard.id, number);
        assert_eq!(shard.leader, status.nodes[0].id);
        assert_eq!(shard.replicas, [status.nodes[0].id]);
        assert!(shard.applied >= 1 && shard.applied <= shard.committed);
    }
    node.stop().await;
}

#[tokio::test]
async fn the_map_is_told_to_any_token_until_the_node_stops() {
    let node = node().await;
    let agent = node.agent().await;
    let nobody = agent.with_token("");
    let refused = nobody
        .cluster()
        .watch(nobody.ask(v1::WatchRequest {}))
        .await;
    assert_eq!(code(bare(refused)), Code::Unauthenticated);

    // A token that opens one session only; addresses are told to it too.
    let guest = agent.with_token(token("guest", ParticipantKind::User, "x", "subscribe"));
    let request = guest.ask(v1::WatchRequest {});
    let mut maps = bare(guest.cluster().watch(request).await).unwrap();
    let map = soon(maps.message()).await.unwrap().unwrap();
    assert_eq!(map.version, 1);
    assert!(!map.cluster.is_empty());
    assert_eq!(map.nodes.len(), 1);
    assert_eq!(map.nodes[0].addr, node.addr.to_string());
    assert!(map.nodes[0].alive);
    for (number, shard) in (0..).zip(&map.shards) {
        assert_eq!(shard.id, number);
        assert_eq!(shard.leader, map.nodes[0].id);
        assert_eq!(shard.replicas, [map.nodes[0].id]);
        assert!(shard.term > 0);
    }
    assert_eq!(map.shards.len(), 2);

    let stopping = tokio::spawn(node.stop());
    let ended = soon(maps.message()).await.unwrap_err();
    assert_eq!(from_status(&ended).code, Code::Draining);
    soon(stopping).await.unwrap();
}

#[tokio::test]
async fn off_loopback_needs_tls_or_insecure() {
    let dir = tempfile::tempdir().unwrap();
    let mut asked = config(dir.path());
    asked.grpc = "0.0.0.0:0".parse().unwrap();
    let refused = Node::start(asked).await.err().unwrap();
    assert!(matches!(refused, NodeError::InTheClear(_)), "{refused}");
    assert!(
        dir.path().read_dir().unwrap().next().is_none(),
        "nothing was written"
    );
    let mut asked = config(dir.path());
    asked.auth_key = b"short".to_vec();
    let refused = Node::start(asked).await.err().unwrap();
    assert!(matches!(refused, NodeError::AuthKey(_)), "{refused}");
    let mut asked = config(dir.path());
    asked.tls = Some(Tls {
        cert_pem: b"no certificate".to_vec(),
        key_pem: b"no key".to_vec(),
    });
    let refused = Node::start(asked).await.err().unwrap();
    assert!(matches!(refused, NodeError::Tls(_)), "{refused}");
}

#[tokio::test]
async fn tls_serves_the_same() {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut asked = config(dir.path());
    asked.tls = Some(Tls {
        cert_pem: made.cert.pem().into_bytes(),
        key_pem: made.signing_key.serialize_pem().into_bytes(),
    });
    let node = Node::start(asked).await.unwrap();
    let port = node.grpc_addr().port();
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(made.cert.pem()))
        .domain_name("localhost");
    let channel = Endpoint::from_shared(format!("https://127.0.0.1:{port}"))
        .unwrap()
        .tls_config(tls)
        .unwrap()
        .connect()
        .await
        .unwrap();
    let agent = Somebody {
        channel,
        token: agent_token("agent"),
    };
    agent.start("s", "r").await.unwrap();
    let mut writer = agent.open("s", "r", 1).await.unwrap();
    writer.batch(1, &[app("a")]).await;
    assert_eq!(writer.acked_through(1).await.through_offset, 2);
    // In the clear there is nothing to be had.
    let clear = Endpoint::from_shared(format!("http://127.0.0.1:{port}"))
        .unwrap()
        .connect_timeout(Duration::from_secs(2))
        .connect_lazy();
    let clear = Somebody {
        channel: clear,
        token: agent_token("agent"),
    };
    let request = clear.ask(v1::CreateRequest {
        session: "s".to_owned(),
    });
    assert!(soon(clear.sessions().create(request)).await.is_err());
    drop((clear, agent, writer));
    node.shutdown().await;
}

#[tokio::test]
async fn a_socket_that_is_bound_already_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let mut asked = config(dir.path());
    asked.listener = Some(listener);
    let node = Node::start(asked).await.unwrap();
    assert_eq!(node.grpc_addr(), addr);
    node.shutdown().await;
}

#[tokio::test]
async fn a_folder_serves_one_node_at_a_time() {
    let first = node().await;
    let refused = Node::start(config(first.dir.path())).await.err().unwrap();
    assert_eq!(refused.code(), None, "{refused}");
    assert!(matches!(refused, NodeError::Open(_)), "{refused}");
    assert!(first.agent().await.create("s").await.is_ok());
    first.stop().await;
}
