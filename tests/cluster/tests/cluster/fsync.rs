//! fsync before ack, as the kernel saw it: a trace of the system calls of one node.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use everwire_cluster_tests::alone;
use everwire_cluster_tests::load::agent;
use everwire_core::event::Data;
use everwire_core::{Body, Draft, SessionName};
use everwire_testkit::Plan;
use everwire_testkit::{Cluster, say};
use tokio::time::Instant;

/// Events, one after the other, each sent when the one before was acked.
const EVENTS: u64 = 12;
/// So long each sync of a slow disk takes.
const SLOW: Duration = Duration::from_millis(60);
/// System calls that make bytes durable.
const SYNCS: &str = "fdatasync,fsync";
/// System calls that take bytes in, put bytes out, or make them durable.
const CALLS: &str = "trace=read,readv,recvfrom,recvmsg,write,writev,pwrite64,pwritev,sendto,\
                     sendmsg,fsync,fdatasync,sync_file_range,msync";

/// Calls that take bytes in.
const TAKES: [&str; 4] = ["read", "readv", "recvfrom", "recvmsg"];
/// Calls that write to a file.
const PUTS: [&str; 4] = ["write", "writev", "pwrite64", "pwritev"];

/// Whether there is a tracer that may trace; said loudly if not.
fn can_trace() -> bool {
    let probe = std::process::Command::new("strace")
        .args(["-D", "-f", "--seccomp-bpf", "-o", "/dev/null", "true"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let can = probe.is_ok_and(|status| status.success());
    if !can {
        say("SKIPPED: strace is not there, or may not trace");
    }
    can
}

/// What runs a node under a tracer that writes to `file`. The process that we signal is the node
/// itself: the tracer is its grandchild.
fn tracer(file: &Path, more: &[&str]) -> Vec<String> {
    let file = file.to_str().expect("a UTF-8 path");
    let words = ["strace", "-D", "-f", "--seccomp-bpf", "-o", file];
    let words = words.iter().chain(more);
    words.map(|word| (*word).to_owned()).collect()
}

/// The tracer of a node whose syncs take so long.
fn slow_disk(file: &Path) -> Vec<String> {
    let delay = format!("inject={SYNCS}:delay_exit={}", SLOW.as_micros());
    let trace = format!("trace={SYNCS}");
    tracer(file, &["-e", &trace, "-e", &delay])
}

/// A cluster of one whose node is traced.
async fn traced(tracer: Vec<String>) -> Cluster {
    let mut cluster = Cluster::planned(1, Plan::default());
    cluster.node_mut(0).wrapper = tracer;
    cluster.start_all().await;
    cluster
}

/// What nobody else writes.
fn mark(number: u64) -> String {
    format!("MARK-{number:04}-MARK")
}

fn marked(number: u64) -> Draft {
    let data = Data::Json(format!("{{\"mark\":\"{}\"}}", mark(number)));
    Draft::new(Body::App {
        name: "test".to_owned(),
        data: Some(data),
    })
}

/// Publishes one after the other; the shortest time from a publish to its ack.
async fn publish(cluster: &Cluster) -> Duration {
    let session = SessionName::parse("traced").expect("a good name");
    let client = agent(cluster);
    client.create_session(&session).await.expect("made");
    let mut shortest = Duration::MAX;
    for number in 1..=EVENTS {
        let sent = Instant::now();
        let posted = client.post(&session, marked(number), None).await;
        assert_eq!(posted.expect("acked").offset.get(), number);
        shortest = shortest.min(sent.elapsed());
    }
    shortest
}

/// In the order of the trace: the node is given an event; writes it to the log; a sync after
/// that write returns; and only then comes the next event, which its client sends when it has
/// the ack.
#[tokio::test(flavor = "multi_thread")]
async fn a_synced_write_lies_between_each_publish_and_its_ack() {
    let _alone = alone().await;
    if !can_trace() {
        return;
    }
    let trace = tempfile::NamedTempFile::new().unwrap();
    let tracer = tracer(trace.path(), &["-s", "4096", "-e", CALLS]);
    let mut cluster = traced(tracer).await;
    publish(&cluster).await;
    assert_eq!(cluster.stop(0).await, Some(0));
    let lines = std::fs::read(trace.path()).unwrap();
    let lines = String::from_utf8_lossy(&lines);
    let lines: Vec<_> = lines.lines().collect();
    for number in 1..EVENTS {
        let came = came_in(&lines, number);
        let next = came_in(&lines, number + 1);
        assert!(came < next, "{number}: {came} and {next}");
        let between = &lines[came..next];
        let written = between.iter().position(|line| puts_out(line, number));
        let written = written.unwrap_or_else(|| panic!("{number} was not written: {between:#?}"));
        let synced = between[written..].iter().any(|line| synced(line));
        assert!(synced, "{number} was acked unsynced: {between:#?}");
    }
}

/// Whether a line is about one of these calls, begun or resumed.
fn is_one_of(calls: &[&str], line: &str) -> bool {
    let mut calls = calls.iter();
    calls.any(|call| {
        line.contains(&format!(" {call}(")) || line.contains(&format!(" {call} resumed>"))
    })
}

/// The line in which an event came in. A call that had to wait is traced as resumed.
fn came_in(lines: &[&str], number: u64) -> usize {
    let came = |line: &&str| is_one_of(&TAKES, line) && line.contains(&mark(number));
    let at = lines.iter().position(came);
    at.unwrap_or_else(|| panic!("{number} did not come in"))
}

/// Writes an event to somewhere.
fn puts_out(line: &str, number: u64) -> bool {
    is_one_of(&PUTS, line) && line.contains(&mark(number))
}

/// A sync that returned, and well.
fn synced(line: &str) -> bool {
    let sync = line.contains("fdatasync") || line.contains("fsync");
    sync && line.trim_end().ends_with("= 0")
}

/// A disk whose syncs take long makes every ack wait for one: no ack comes from memory.
#[tokio::test(flavor = "multi_thread")]
async fn an_ack_waits_for_the_disk_however_slow_it_is() {
    let _alone = alone().await;
    if !can_trace() {
        return;
    }
    let trace = tempfile::NamedTempFile::new().unwrap();
    let mut cluster = traced(slow_disk(trace.path())).await;
    let shortest = publish(&cluster).await;
    assert_waited("one node", shortest);
    assert_eq!(cluster.stop(0).await, Some(0));
}

/// Of three disks two are slow, so that every majority holds one of them.
#[tokio::test(flavor = "multi_thread")]
async fn an_ack_waits_for_the_disks_of_a_majority() {
    let _alone = alone().await;
    if !can_trace() {
        return;
    }
    let traces = [(); 2].map(|()| tempfile::NamedTempFile::new().unwrap());
    let mut cluster = Cluster::planned(3, Plan::default());
    for (number, trace) in traces.iter().enumerate() {
        cluster.node_mut(number).wrapper = slow_disk(trace.path());
    }
    cluster.start_all().await;
    let shortest = publish(&cluster).await;
    assert_waited("three nodes", shortest);
}

fn assert_waited(whom: &str, shortest: Duration) {
    say(&format!(
        "{whom}: with syncs of {SLOW:?} the fastest ack took {shortest:.0?}"
    ));
    let waited = shortest >= SLOW;
    assert!(waited, "{shortest:?}: an ack did not wait for the disk");
}
