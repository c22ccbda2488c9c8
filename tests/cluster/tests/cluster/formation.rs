//! How a cluster comes to be, and who does not belong to it: the lowest node without its disk, a
//! node of another cluster, a certificate of a stranger.

use std::path::{Path, PathBuf};
use std::time::Duration;

use everwire_cluster_tests::load::agent;
use everwire_cluster_tests::{Load, alone};
use everwire_core::ShardId;
use everwire_testkit::Cluster;
use everwire_testkit::cluster::session_on;
use futures_util::future::join_all;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::times::BALANCED_WITHIN;

/// So long a node is watched that must not become ready.
const WATCHED: Duration = Duration::from_secs(3);
/// So often a node is refused.
const REFUSALS: u32 = 5;

/// Nobody forms a cluster before all that are expected are there; then there is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_forms_when_the_last_node_comes() {
    let _alone = alone().await;
    let mut cluster = Cluster::planned(3, everwire_testkit::Plan::default());
    let mut early = [cluster.node(1).starting(), cluster.node(2).starting()];
    for node in &mut early {
        assert!(node.waits(WATCHED / 2).await, "two of three form nothing");
    }
    let last = cluster.node(0).starting();
    let [one, two] = early;
    let (zero, one, two) = tokio::join!(last.ready(), one.ready(), two.ready());
    for (number, server) in [zero, one, two].into_iter().enumerate() {
        cluster.node_mut(number).started(server);
    }
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let load = Load::everywhere(&cluster).await;
    load.goes_on(200).await;
    load.check(&cluster, 200).await;
}

/// The lowest name forms clusters; without its disk it must not form a second one, neither beside
/// the others nor alone.
#[tokio::test(flavor = "multi_thread")]
async fn the_lowest_node_without_its_disk_joins_and_forms_nothing() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let before = cluster.status().await;
    let old = cluster.id_of(0).await;
    let load = Load::everywhere(&cluster).await;
    load.goes_on(300).await;

    cluster.kill(0).await;
    std::fs::remove_dir_all(&cluster.node(0).data).unwrap();
    cluster.start_node(0).await;
    let new = cluster.id_of(0).await;
    assert!(new > old, "{new}: ids are never given twice, it was {old}");
    assert_eq!(
        cluster.status().await.cluster,
        before.cluster,
        "the same cluster"
    );
    cluster.wait_balanced(Duration::from_secs(120)).await;
    load.goes_on(100).await;
    load.check(&cluster, 400).await;
}

/// All are down, and the lowest comes first and with an empty disk: it waits.
#[tokio::test(flavor = "multi_thread")]
async fn the_lowest_node_alone_and_without_its_disk_waits() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let id = cluster.status().await.cluster;
    let session = session_on(ShardId(3), "kept");
    agent(&cluster)
        .create_session(&session)
        .await
        .expect("made");
    cluster.kill_all().await;
    std::fs::remove_dir_all(&cluster.node(0).data).unwrap();

    let mut first = cluster.node(0).starting();
    assert!(
        first.waits(WATCHED).await,
        "it cannot know what was, so it waits"
    );
    let others = cluster.nodes.iter_mut().skip(1);
    join_all(others.map(everwire_testkit::cluster::Node::start)).await;
    let first = first.ready().await;
    cluster.node_mut(0).started(first);
    assert_eq!(cluster.status().await.cluster, id, "the same cluster");
    let info = agent(&cluster).show_session(&session).await;
    info.expect("what was acked is there");
}

/// A node of a cluster that was at these addresses before: it is refused, its data stay as they
/// are, and those who are right go on without it.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_a_foreign_cluster_is_refused() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let first = cluster.status().await.cluster;
    cluster.stop(2).await;
    cluster.kill(0).await;
    cluster.kill(1).await;
    // Away, not gone.
    let foreign = cluster.path("foreign");
    std::fs::rename(&cluster.node(2).data, &foreign).unwrap();
    for number in 0..2 {
        std::fs::remove_dir_all(&cluster.node(number).data).unwrap();
    }
    cluster.start_all().await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let second = cluster.status().await.cluster;
    assert_ne!(second, first, "empty disks form a new cluster");

    cluster.stop(2).await;
    let identity = std::fs::read(foreign.join("IDENTITY")).unwrap();
    let own = std::mem::replace(&mut cluster.node_mut(2).data, foreign.clone());
    // Each time it ends in good order, with its disk closed.
    for _ in 0..REFUSALS {
        let (code, said) = cluster.node(2).starting().refused().await;
        assert_eq!(code, Some(1));
        assert!(said.contains("WRONG_CLUSTER"), "{said}");
    }
    let kept = std::fs::read(foreign.join("IDENTITY")).unwrap();
    assert_eq!(kept, identity, "it is still what it was");
    let load = Load::everywhere(&cluster).await;
    load.goes_on(200).await;

    // With its own data it belongs again.
    cluster.node_mut(2).data = own;
    cluster.start_node(2).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    assert_eq!(cluster.status().await.cluster, second);
    load.check(&cluster, 200).await;
}

/// Who signs certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Flags of a node that trusts `trusted` and shows a certificate of this authority.
    fn flags(&self, folder: &Path, name: &str, host: &str, trusted: &Self) -> Vec<String> {
        let key = KeyPair::generate().expect("a key");
        let names = vec!["localhost".to_owned(), host.to_owned()];
        let params = CertificateParams::new(names).expect("good names");
        let cert = params.signed_by(&key, &self.issuer).expect("signed");
        let write = |ending: &str, text: &str| -> String {
            let path: PathBuf = folder.join(format!("{name}-{ending}"));
            std::fs::write(&path, text).expect("a writable folder");
            path.to_str().expect("a UTF-8 path").to_owned()
        };
        let files = [
            ("--peer-ca", write("ca.pem", &trusted.pem)),
            ("--peer-cert", write("cert.pem", &cert.pem())),
            ("--peer-key", write("key.pem", &key.serialize_pem())),
        ];
        files
            .into_iter()
            .flat_map(|(flag, file)| [flag.to_owned(), file])
            .collect()
    }
}

/// Nodes that trust one authority: a node whose certificate another one signed gets in nowhere,
/// empty or with its place's own data.
#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_certificate_opens_nothing() {
    let _alone = alone().await;
    let folder: TempDir = everwire_testkit::process::folder();
    let (ours, strangers) = (Authority::new(), Authority::new());
    let mut cluster = Cluster::planned(3, everwire_testkit::Plan::default());
    for number in 0..3 {
        let node = cluster.node_mut(number);
        let host = node.peer.split(':').next().expect("host:port").to_owned();
        node.flags = ours.flags(folder.path(), &node.name, &host, &ours);
    }
    let good = cluster.node(2).flags.clone();
    let host = cluster
        .node(2)
        .peer
        .split(':')
        .next()
        .expect("host:port")
        .to_owned();
    // It even trusts us; we do not trust it.
    cluster.node_mut(2).flags = strangers.flags(folder.path(), "stranger", &host, &ours);
    let mut all: Vec<_> = cluster.nodes.iter().map(|node| node.starting()).collect();
    for node in &mut all {
        assert!(
            node.waits(WATCHED / 2).await,
            "two and a stranger form nothing"
        );
    }
    let stranger = all.pop().expect("three");
    stranger.kill().await;
    cluster.node_mut(2).flags = good;
    all.push(cluster.node(2).starting());
    let servers = join_all(
        all.into_iter()
            .map(everwire_testkit::process::Starting::ready),
    )
    .await;
    for (number, server) in servers.into_iter().enumerate() {
        cluster.node_mut(number).started(server);
    }
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let load = Load::everywhere(&cluster).await;
    load.goes_on(200).await;

    // A member, with its data, that shows another certificate now.
    cluster.stop(2).await;
    let bad = strangers.flags(folder.path(), "stranger", &host, &ours);
    let good = std::mem::replace(&mut cluster.node_mut(2).flags, bad);
    let mut stranger = cluster.node(2).starting();
    assert!(stranger.waits(WATCHED).await, "nobody talks to it");
    stranger.kill().await;
    load.goes_on(100).await;
    cluster.node_mut(2).flags = good;
    cluster.start_node(2).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    load.check(&cluster, 300).await;
}
