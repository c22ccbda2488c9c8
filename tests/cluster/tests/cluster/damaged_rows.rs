//! A byte that changed on one node's disk, in rows that were written long ago: found, replaced
//! from the others, and never shown to anybody.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use everwire_cluster_tests::{Load, alone, replicas};
use everwire_core::{Event, SessionName};
use everwire_proto::storage::encode_event;
use everwire_testkit::{Cluster, tokens};
use tokio::time::Instant;

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN};

/// Rows are found damaged, and are good again, within this.
const HEALED_WITHIN: Duration = Duration::from_secs(90);
/// How often a node is looked at.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// The files of rows and events below a data directory, the largest first.
fn tables(data: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![data.join("events")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "sst") {
                found.push(path);
            }
        }
    }
    found.sort_by_key(|path| std::cmp::Reverse(path.metadata().map_or(0, |meta| meta.len())));
    found
}

/// A file in which a byte was changed.
struct Damaged {
    path: PathBuf,
    inode: u64,
}

impl Damaged {
    /// Changes one byte a quarter into a file: among rows, not in the index at its end.
    fn by_a_byte(path: &Path) -> Self {
        let mut bytes = std::fs::read(path).expect("a file");
        let at = bytes.len() / 4;
        let byte = bytes.get_mut(at).expect("it is not empty");
        *byte ^= 0x10;
        std::fs::write(path, bytes).expect("it can be written");
        let inode = path.metadata().expect("a file").ino();
        let path = path.to_path_buf();
        Self { path, inode }
    }

    /// Whether the node still has it among its rows: not removed, and not set aside.
    fn is_there(&self) -> bool {
        let found = self.path.metadata();
        found.is_ok_and(|found| found.ino() == self.inode)
    }
}

/// A session as one node shows it; waits until it shows some of it.
async fn shown_by(cluster: &Cluster, number: usize, session: &SessionName) -> Vec<Event> {
    let token = tokens::agent(cluster.keys(), "bot");
    let until = Instant::now() + HEALED_WITHIN;
    loop {
        let node = cluster.direct(number, &token, Duration::from_secs(5));
        match node.read_all(session).await {
            Ok(log) if !log.is_empty() => return log,
            Ok(_) => {},
            Err(refusal) => assert!(Instant::now() < until, "{session}: {refusal}"),
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_byte_in_one_replica_is_healed_and_shown_to_nobody() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(3).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let load = Load::everywhere(&cluster).await;
    load.goes_on(1_500).await;
    let damaged = 1;
    assert_eq!(cluster.stop(damaged).await, Some(0));
    let tables = tables(&cluster.node(damaged).data);
    let table = tables.first().expect("what was acked lies somewhere");
    let table = Damaged::by_a_byte(table);
    // It looks at once; and it flushes often, so that a compaction comes soon.
    let flags = ["--scrub-every", "1", "--flush-every", "3"];
    let flags = flags.map(str::to_owned);
    cluster.node_mut(damaged).flags.extend(flags);
    cluster.start_node(damaged).await;
    let id = cluster.id_of(damaged).await;

    // That very node, asked for everything: it may refuse, and must not show what is damaged.
    for session in load.sessions() {
        let shown = shown_by(&cluster, damaged, session).await;
        let tail = shown.last().expect("events").offset;
        let good = replicas::log_of(&cluster, 0, session, tail).await;
        for (shown, good) in shown.iter().zip(&good) {
            assert_eq!(encode_event(shown), encode_event(good), "{session}");
        }
    }
    // It is found, whoever asks for it; and what holds it goes, so that it is not met again.
    let until = Instant::now() + HEALED_WITHIN;
    while !cluster.node(damaged).logged().contains("rebuilt") || table.is_there() {
        let found = cluster.node(damaged).logged().contains("rebuilt");
        assert!(Instant::now() < until, "found: {found}, and still there");
        tokio::time::sleep(ASK_EVERY).await;
    }
    load.goes_on_everywhere(Instant::now(), 3, GOES_ON_WITHIN)
        .await;
    cluster.wait_balanced(HEALED_WITHIN).await;
    assert_eq!(cluster.id_of(damaged).await, id, "log and vote were good");
    load.check(&cluster, 1_500).await;
    assert!(!cluster.node_mut(damaged).has_ended(), "the process lives");
}
