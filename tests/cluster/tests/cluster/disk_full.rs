//! A disk that fills: writers are told so, readers go on, and when there is room again everything
//! resumes by itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use everwire_cluster_tests::load::agent;
use everwire_cluster_tests::{Load, alone, replicas};
use everwire_core::{Code, Offset};
use everwire_promises::scene::input;
use everwire_testkit::{Cluster, Plan, say};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::times::{BALANCED_WITHIN, GOES_ON_WITHIN};

/// A small disk.
const SIZE: &str = "size=64m";
/// Pieces in which it is filled.
const PIECE: usize = 256 << 10;
/// A node looks at its disk at least so often, and some.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// A file system in memory; gone when dropped.
struct Disk {
    folder: TempDir,
}

impl Disk {
    /// `None`, said loudly, where that cannot be had.
    fn new() -> Option<Self> {
        let folder = everwire_testkit::process::folder();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", SIZE, "tmpfs"])
            .arg(folder.path())
            .output();
        if !mount.is_ok_and(|output| output.status.success()) {
            say("SKIPPED: no file system can be mounted");
            return None;
        }
        Some(Self { folder })
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn filler(&self) -> PathBuf {
        self.folder.path().join("somebody-elses-file")
    }

    /// Somebody else takes all the room that there is.
    fn fill(&self) {
        use std::io::Write as _;
        let mut file = std::fs::File::create(self.filler()).expect("room for a name");
        let piece = vec![7; PIECE];
        while file.write_all(&piece).is_ok() {}
    }

    fn free(&self) {
        std::fs::remove_file(self.filler()).expect("it was filled");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(self.folder.path());
    }
}

/// Also while a process that is being killed still has files there.
fn unmount(path: &Path) {
    let _ = Command::new("umount").arg("-l").arg(path).status();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_fills_refuses_writers_and_keeps_readers_and_resumes_by_itself() {
    let _alone = alone().await;
    let disks: Option<Vec<_>> = (0..3).map(|_| Disk::new()).collect();
    let Some(disks) = disks else { return };
    let plan = Plan {
        disks: disks.iter().map(Disk::data).collect(),
        ..Plan::default()
    };
    let mut cluster = Cluster::start_with(3, plan).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let load = Load::everywhere(&cluster).await;
    load.goes_on(300).await;
    let session = load.sessions().next().expect("some").clone();

    disks.iter().for_each(Disk::fill);
    let client = agent(&cluster).with_deadline(Duration::from_secs(2));
    let until = Instant::now() + NOTICED_WITHIN;
    let mut number = 0;
    loop {
        number += 1;
        let (draft, key) = input(&format!("full-{number}"), "is there room?");
        let posted = client.post(&session, draft, Some(key)).await;
        if posted.is_err_and(|refusal| refusal.code == Code::DiskFull) {
            break;
        }
        assert!(Instant::now() < until, "nobody says DISK_FULL");
    }
    // Whoever reads, reads.
    for node in cluster.acting() {
        let log = replicas::log_of(&cluster, node, &session, Offset::ZERO).await;
        assert!(!log.is_empty());
    }
    sleep(Duration::from_secs(2)).await;
    disks.iter().for_each(Disk::free);
    load.goes_on_everywhere(Instant::now(), 5, GOES_ON_WITHIN)
        .await;
    load.check(&cluster, 300).await;
    for node in 0..3 {
        assert!(!cluster.node_mut(node).has_ended(), "n{node} lives");
    }
    drop(cluster);
    drop(disks);
}
