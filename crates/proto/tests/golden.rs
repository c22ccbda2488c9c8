//! Bytes that some version wrote are read and written the same for ever.
//!
//! `golden/*.bin` holds one value of each kind. `EVERWIRE_REGENERATE=1` writes the files that
//! are missing and never touches one that is there: a change of the encoding needs a new format
//! byte, and the old files stay.
#![expect(clippy::unwrap_used, reason = "a helper's panic fails its test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use everwire_core::clock::Timestamp;
use everwire_core::event::{
    Body, Codec, Event, MessageStatus, PartKind, Raw, Role, RunStamp, StepStatus, Visibility,
};
use everwire_core::position::{RunEpoch, Seq};
use everwire_core::row::{
    BatchRow, EpilogueRow, EpochRow, Frozen, HeadRow, InputRow, KeyRow, MessageRow, NameRow,
    PartRow, Row, RunRow, RunState, StepRow, TimerRow, TombstoneRow,
};
use everwire_core::topology::{Change, Member, MemberState, Placement, Topology};
use everwire_core::{Cancel, InputRef, NodeId, SessionNo, ShardId};
use everwire_proto::hash::cancel_hash;
use everwire_proto::storage::{self, StorageError};
use everwire_proto::storage_v1 as disk;

mod samples;

use samples::{
    author, batch, bodies, controls, later_bodies, offset, participant, rules_2, rules_3, unfreeze,
};

fn event(body: Body) -> Event {
    Event {
        offset: offset(42),
        time: Timestamp(1_700_000_000_042),
        run: Some(RunStamp {
            run: "r1".parse().unwrap(),
            run_epoch: RunEpoch(2),
            seq: Some(Seq(17)),
        }),
        author: author(),
        parent: Some("m0".parse().unwrap()),
        visibility: Visibility::Operators,
        format: "everwire/1".into(),
        codec: Codec::Sealed,
        body,
        raw: Some(Raw {
            format: "openai-chat".into(),
            bytes: Bytes::from_static(b"{}"),
        }),
    }
}

fn rows() -> Vec<(&'static str, Row)> {
    vec![
        (
            "name",
            Row::Name(NameRow {
                session_no: SessionNo(300),
            }),
        ),
        ("counter", Row::Counter(u64::MAX)),
        ("head", Row::Head(head())),
        ("head-frozen", Row::Head(frozen_head())),
        ("run", Row::Run(run())),
        (
            "epoch",
            Row::Epoch(EpochRow {
                writer: participant(),
                granted: offset(3),
                last_seq: Seq(17),
                last_offset: offset(42),
                batches: 260,
            }),
        ),
        (
            "batch",
            Row::Batch(BatchRow {
                first_seq: Seq(9),
                last_seq: Seq(17),
                first_offset: offset(34),
            }),
        ),
        ("message", Row::Message(message())),
        (
            "part",
            Row::Part(PartRow {
                kind: PartKind::Reasoning,
                open: true,
                bytes: 300,
                deltas: 64,
            }),
        ),
        (
            "input",
            Row::Input(InputRow {
                offset: offset(2),
                run: None,
            }),
        ),
        (
            "key",
            Row::Key(KeyRow {
                body_hash: cancel_hash(&Cancel::run("r1".parse().unwrap())),
                offset: offset(41),
                run_epoch: Some(RunEpoch(2)),
                time: Timestamp(1_700_000_000_042),
            }),
        ),
        ("index", Row::Index),
        (
            "timer",
            Row::Timer(TimerRow {
                guard: 300,
                run: None,
                approval: None,
            }),
        ),
        ("head-keys", Row::Head(keyed_head())),
    ]
}

fn message() -> MessageRow {
    MessageRow {
        run: "r1".parse().unwrap(),
        role: Role::Tool,
        started: offset(5),
        status: Some(MessageStatus::Incomplete),
        open_parts: vec!["p1".parse().unwrap(), "p2".parse().unwrap()],
    }
}

/// Rows that came with the second rules.
fn later_rows() -> Vec<(&'static str, Row)> {
    vec![
        (
            "input-answered",
            Row::Input(InputRow {
                offset: offset(2),
                run: Some("r1".parse().unwrap()),
            }),
        ),
        ("run-child", Row::Run(child_run())),
        (
            "run-in-a-step",
            Row::Run(RunRow {
                open_step: Some("s1".parse().unwrap()),
                steps: 3,
                ..run()
            }),
        ),
        (
            "step",
            Row::Step(StepRow {
                attempt: 2,
                started: offset(7),
                status: Some(StepStatus::Failed),
            }),
        ),
        (
            "tombstone",
            Row::Tombstone(TombstoneRow {
                cancel_offset: offset(41),
                by: author(),
                until: Timestamp(1_700_000_600_042),
            }),
        ),
        (
            "timer-of-run",
            Row::Timer(TimerRow {
                guard: 300,
                run: Some("r1".parse().unwrap()),
                approval: None,
            }),
        ),
    ]
}

fn head() -> HeadRow {
    HeadRow {
        created: Timestamp(1_700_000_000_000),
        last_time: Timestamp(1_700_000_000_042),
        tail: offset(42),
        trimmed: offset(1),
        bytes: 4_096,
        live_runs: 2,
        day: 19_675,
        people_today: 3,
        frozen: None,
        keys_due: None,
        open_approvals: 0,
    }
}

fn frozen_head() -> HeadRow {
    HeadRow {
        frozen: Some(Frozen {
            time: Timestamp(1_700_000_000_050),
            command: "publish".to_owned(),
        }),
        ..head()
    }
}

fn keyed_head() -> HeadRow {
    HeadRow {
        keys_due: Some(Timestamp(1_700_086_400_043)),
        ..head()
    }
}

fn run() -> RunRow {
    RunRow {
        state: RunState::Cancelled,
        run_epoch: RunEpoch(2),
        input: Some(InputRef::of_anybody("i1".parse().unwrap())),
        ended: Some(offset(41)),
        epoch_closed: true,
        open_messages: vec!["m1".parse().unwrap()],
        open_parts: 1,
        ..RunRow::started(participant(), offset(3))
    }
}

/// Whatever the second rules write of a run.
fn child_run() -> RunRow {
    RunRow {
        state: RunState::Orphaned,
        input: Some(InputRef {
            input: "i1".parse().unwrap(),
            author: Some(participant()),
        }),
        parent: Some("r0".parse().unwrap()),
        depth: 3,
        lease_ms: 20_000,
        lost_at: Some(Timestamp(1_700_000_600_042)),
        unobserved: Some(offset(41)),
        epilogue: Some(EpilogueRow {
            run_epoch: RunEpoch(3),
            until: Timestamp(1_700_000_002_042),
        }),
        ..RunRow::started(participant(), offset(3))
    }
}

fn position() -> disk::LogPosition {
    disk::LogPosition {
        term: 3,
        node: 2,
        index: 1_000,
    }
}

fn membership() -> disk::Membership {
    let member = |node| disk::Member {
        node,
        addr: format!("127.0.0.1:740{node}"),
        peer: String::new(),
    };
    disk::Membership {
        configs: vec![
            disk::NodeSet { nodes: vec![1, 2] },
            disk::NodeSet { nodes: vec![2, 3] },
        ],
        members: vec![member(1), member(2), member(3)],
    }
}

fn vote() -> disk::Vote {
    disk::Vote {
        term: 3,
        node: 2,
        committed: true,
    }
}

fn applied() -> disk::Applied {
    disk::Applied {
        position: Some(position()),
        membership: Some(membership()),
        membership_position: Some(disk::LogPosition {
            index: 900,
            ..position()
        }),
        time_ms: 1_700_000_000_042,
        rules_version: 1,
        state: Bytes::new(),
        audit_hash: Bytes::new(),
    }
}

/// What a shard has applied that has something to compare.
fn applied_shard() -> disk::Applied {
    disk::Applied {
        audit_hash: Bytes::from_static(b"sixteen bytes ok"),
        ..applied()
    }
}

/// What a group without slots has applied: its state stands in it.
fn applied_state() -> disk::Applied {
    disk::Applied {
        state: Bytes::from_static(b"topology"),
        ..applied()
    }
}

fn log_entry(payload: disk::log_entry::Payload) -> Vec<u8> {
    let entry = disk::LogEntry {
        position: Some(position()),
        payload: Some(payload),
    };
    storage::encode_log_entry(&entry).into()
}

fn files_of_a_node() -> Vec<(&'static str, Vec<u8>)> {
    let identity = disk::Identity {
        format_version: 1,
        cluster: "c-1".to_owned(),
        node: 2,
        timeline: 1,
        shards: 16,
    };
    let watermark = disk::Watermark {
        cluster: "c-1".to_owned(),
        node: 2,
        batch: 77,
        votes: vec![disk::GroupVote {
            group: 5,
            vote: Some(vote()),
        }],
    };
    let head = disk::SnapshotHead {
        applied: Some(applied()),
        group: 5,
    };
    let chunk = disk::SnapshotChunk {
        rows: vec![disk::SnapshotRow {
            family: 1,
            key: Bytes::from_static(b"key"),
            value: Bytes::from_static(b"value"),
        }],
    };
    vec![
        ("identity", storage::encode_identity(&identity).into()),
        ("watermark", storage::encode_watermark(&watermark).into()),
        ("snapshot-head", storage::encode_snapshot_head(&head).into()),
        (
            "snapshot-chunk",
            storage::encode_snapshot_chunk(&chunk).into(),
        ),
    ]
}

fn nodes() -> BTreeMap<NodeId, Member> {
    use MemberState::{Active, Leaving, Removed};
    let member = |(number, state)| {
        let member = Member {
            name: format!("node-{number}"),
            addr: format!("127.0.0.1:740{number}"),
            peer: format!("127.0.0.1:750{number}"),
            incarnation: u64::MAX - number,
            state,
        };
        (NodeId(number), member)
    };
    let nodes = [(1, Active), (2, Leaving), (300, Removed)];
    nodes.into_iter().map(member).collect()
}

fn topology() -> Topology {
    let placement = |replicas: [u64; 2]| Placement {
        replicas: replicas.map(NodeId).to_vec(),
        initial: vec![NodeId(300), NodeId(2)],
    };
    Topology {
        version: 300,
        replication: 3,
        nodes: nodes(),
        shards: vec![placement([1, 2]), placement([2, 1])],
        voters: vec![NodeId(1), NodeId(2)],
    }
}

fn changes() -> [(&'static str, Change); 9] {
    let node = NodeId(2);
    let (addr, peer) = ("127.0.0.1:7409".to_owned(), "127.0.0.1:7509".to_owned());
    [
        (
            "form",
            Change::Form {
                nodes: nodes(),
                shards: 16,
                replication: 3,
            },
        ),
        (
            "join",
            Change::Join {
                name: "node-2".to_owned(),
                addr: addr.clone(),
                peer: peer.clone(),
                incarnation: 77,
            },
        ),
        ("move", Change::Move { node, addr, peer }),
        ("retire", Change::Retire { node }),
        ("remove", Change::Remove { node }),
        (
            "place",
            Change::Place {
                shard: ShardId(15),
                replicas: vec![NodeId(300), NodeId(1)],
            },
        ),
        (
            "voters",
            Change::Voters {
                nodes: vec![NodeId(1), NodeId(300)],
            },
        ),
        ("raise-rules", Change::RaiseRules { version: 2 }),
        ("audit", Change::Audit),
    ]
}

/// One value of each kind, encoded by this version.
fn values() -> BTreeMap<String, Vec<u8>> {
    use disk::log_entry::Payload;
    let mut values: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for body in bodies() {
        let name = format!("event-{}", body.kind().as_str().replace('.', "-"));
        values.insert(name, storage::encode_event(&event(body)));
    }
    for (name, body) in later_bodies().into_iter().chain(rules_3::bodies()) {
        values.insert(format!("event-{name}"), storage::encode_event(&event(body)));
    }
    for (name, row) in rows()
        .into_iter()
        .chain(later_rows())
        .chain(rules_3::rows(head(), run()))
    {
        values.insert(format!("row-{name}"), storage::encode_row(&row));
    }
    let rules_2 = storage::encode_batch(&rules_2());
    values.insert("batch-rules-2".to_owned(), rules_2.into());
    let rules_3 = storage::encode_batch(&rules_3::commands());
    values.insert("batch-rules-3".to_owned(), rules_3.into());
    let unfreeze = storage::encode_batch(&unfreeze());
    values.insert("batch-unfreeze".to_owned(), unfreeze.into());
    for (name, batch) in controls() {
        values.insert(name.to_owned(), storage::encode_batch(&batch).into());
    }
    for (name, change) in changes() {
        values.insert(
            format!("change-{name}"),
            storage::encode_change(&change).into(),
        );
    }
    let batch = storage::encode_batch(&batch());
    let entries = [
        ("entry-batch", Payload::Batch(batch.clone())),
        ("entry-membership", Payload::Membership(membership())),
        ("entry-blank", Payload::Blank(disk::Blank {})),
    ];
    for (name, payload) in entries {
        values.insert(name.to_owned(), log_entry(payload));
    }
    let others = [
        ("batch", batch.into()),
        ("applied", storage::encode_applied(&applied()).into()),
        (
            "applied-shard",
            storage::encode_applied(&applied_shard()).into(),
        ),
        (
            "applied-state",
            storage::encode_applied(&applied_state()).into(),
        ),
        (
            "membership",
            storage::encode_membership(&membership()).into(),
        ),
        ("position", storage::encode_log_position(&position()).into()),
        ("vote", storage::encode_vote(&vote()).into()),
        ("topology", storage::encode_topology(&topology()).into()),
    ];
    for (name, value) in others.into_iter().chain(files_of_a_node()) {
        values.insert(name.to_owned(), value);
    }
    values
}

/// Reads a value by its file's name and writes it again.
fn rewrite(name: &str, bytes: &[u8]) -> Result<Vec<u8>, StorageError> {
    let (kind, _) = name.split_once('-').unwrap_or((name, ""));
    Ok(match kind {
        "event" => storage::encode_event(&storage::decode_event(bytes)?),
        "row" => storage::encode_row(&storage::decode_row(bytes)?),
        "entry" => storage::encode_log_entry(&storage::decode_log_entry(bytes)?).into(),
        "topology" => storage::encode_topology(&storage::decode_topology(bytes)?).into(),
        "change" => storage::encode_change(&storage::decode_change(bytes)?).into(),
        "batch" | "control" => storage::encode_batch(&storage::decode_batch(bytes)?).into(),
        "applied" => storage::encode_applied(&storage::decode_applied(bytes)?).into(),
        "membership" => storage::encode_membership(&storage::decode_membership(bytes)?).into(),
        "position" => storage::encode_log_position(&storage::decode_log_position(bytes)?).into(),
        "vote" => storage::encode_vote(&storage::decode_vote(bytes)?).into(),
        "identity" => storage::encode_identity(&storage::decode_identity(bytes)?).into(),
        "watermark" => storage::encode_watermark(&storage::decode_watermark(bytes)?).into(),
        "snapshot" if name == "snapshot-head" => {
            storage::encode_snapshot_head(&storage::decode_snapshot_head(bytes)?).into()
        },
        "snapshot" => {
            storage::encode_snapshot_chunk(&storage::decode_snapshot_chunk(bytes)?).into()
        },
        _ => panic!("no reader for {name}"),
    })
}

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The golden files by name, after the missing ones have been written if that was asked for.
fn golden() -> BTreeMap<String, Vec<u8>> {
    if std::env::var_os("EVERWIRE_REGENERATE").is_some() {
        for (name, value) in values() {
            let path = folder().join(format!("{name}.bin"));
            if !path.exists() {
                fs::write(&path, &value).unwrap();
            }
        }
    }
    let files = fs::read_dir(folder()).unwrap();
    let files = files.map(|file| {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name, fs::read(&path).unwrap())
    });
    files.collect()
}

#[test]
fn this_version_writes_the_golden_bytes() {
    let golden = golden();
    for (name, value) in values() {
        let file = golden.get(&name);
        assert!(
            file == Some(&value),
            "{name}: the encoding of what stands on disks has changed, or the file is missing: \
             {file:?}, {value:?}"
        );
    }
}

#[test]
fn every_golden_file_is_read_and_written_the_same() {
    for (name, bytes) in golden() {
        assert_eq!(rewrite(&name, &bytes), Ok(bytes), "{name}");
    }
}
