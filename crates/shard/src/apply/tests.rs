//! Tests of applying: poison, merging, caching, snapshots.

use super::*;

use std::collections::BTreeMap;

use bytes::Bytes;
use everwire_core::command::{Batch, Control, Op, StartRun};
use everwire_core::event::{Body, Draft, Role};
use everwire_core::row::{Row, RowKey, SessionKey};
use everwire_core::{
    Author, Cancel, Command, Key, MessageId, Namespace, NodeId, ParticipantId, ParticipantKind,
    RunEpoch, RunId, Seq, SessionName, SessionNo, Slot, Timestamp,
};
use everwire_store::sim::{SimDisk, SimStore};
use everwire_store::{Identity, OpenOptions};
use openraft::entry::RaftEntry;
use proptest::prelude::*;

use crate::raft::types::Proposal;

/// Rules that no build knows yet.
const NEXT: u32 = RULES_VERSION + 1;

type Reasons = Arc<Mutex<Vec<String>>>;

fn applier() -> (Arc<Applier>, Reasons) {
    caching(ROW_CACHE_BYTES_MAX)
}

fn caching(bytes: usize) -> (Arc<Applier>, Reasons) {
    let reasons = Reasons::default();
    let heard = reasons.clone();
    let on_fatal: OnFatal = Arc::new(move |reason| heard.lock().unwrap().push(reason.to_owned()));
    let identity = Identity {
        shards: 1,
        ..Identity::new("test", NodeId(1))
    };
    let options = OpenOptions::create(identity, on_fatal.clone());
    let store = SimStore::open(&SimDisk::new(), options).unwrap();
    let feed = Arc::new(Feed::new(Arc::default()));
    let applier = Applier::with_cache(0, store, feed, on_fatal, bytes).unwrap();
    (Arc::new(applier), reasons)
}

/// An applier of a build that knows the rules up to `supported`.
fn knowing(supported: u32) -> (Arc<Applier>, Reasons) {
    let (mut applier, reasons) = caching(ROW_CACHE_BYTES_MAX);
    let ours = Arc::get_mut(&mut applier).unwrap();
    ours.support = Arc::new(Support::new(NodeId(1), supported));
    (applier, reasons)
}

fn entry(index: u64, bytes: Bytes) -> Committed {
    let id = codec::log_id(LogPosition {
        term: 1,
        node: 0,
        index,
    });
    (Entry::new_normal(id, Proposal(bytes)), None)
}

fn command(session: &str, op: Op) -> Command {
    Command {
        namespace: Namespace::parse("n").unwrap(),
        session: SessionName::parse(session).unwrap(),
        actor: Author {
            participant: ParticipantId::parse("bot").unwrap(),
            kind: ParticipantKind::Agent,
        },
        may_create: true,
        session_epoch: None,
        op,
    }
}

fn batch(rules_version: u32) -> Bytes {
    let command = command("s", Op::CreateSession);
    everwire_proto::storage::encode_batch(&Batch {
        stamp: Timestamp(7),
        rules_version,
        timeline: 1,
        control: Vec::new(),
        commands: vec![command],
    })
}

/// Everything that the store has of the group.
fn dump(applier: &Applier) -> (Option<Applied>, Vec<Bytes>) {
    let mut reader = applier.store().snapshot(0).unwrap();
    let applied = reader.applied().cloned();
    let mut chunks = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        chunks.push(chunk);
    }
    (applied, chunks)
}

/// RULES 2: an entry that is not understood stops the replica; it is never skipped.
#[tokio::test]
async fn an_entry_that_cannot_be_applied_ends_the_process() {
    for poison in [
        batch(99),
        batch(0),
        Bytes::from_static(b"\x01\xff?"),
        Bytes::new(),
    ] {
        let (applier, reasons) = applier();
        let threads = ApplyThreads::start(1, 1).unwrap();
        let good = vec![entry(0, batch(1))];
        threads.apply(&applier, good).await.unwrap();
        assert_eq!(applier.standing().state.time, Timestamp(7));
        let bad = vec![entry(1, batch(1)), entry(2, poison), entry(3, batch(1))];
        threads.apply(&applier, bad).await.unwrap_err();
        assert_eq!(reasons.lock().unwrap().len(), 1, "{reasons:?}");
        let applied = applier.store().applied(0).unwrap().unwrap();
        assert_eq!(applied.position.index, 0, "a part of it was applied");
    }
}

/// RULES 2: a raise is kept beside the applied index, and a replica that does not know the
/// version stops there.
#[test]
fn raised_rules_are_kept_and_stop_whoever_does_not_know_them() {
    let raise = everwire_proto::storage::encode_batch(&Batch {
        stamp: Timestamp(8),
        rules_version: 1,
        timeline: 1,
        control: vec![Control::RaiseRules { version: NEXT }],
        commands: Vec::new(),
    });
    let entries = || vec![entry(0, batch(1)), entry(1, raise.clone())];
    let (newer, _) = knowing(NEXT);
    newer.apply(entries()).unwrap();
    assert_eq!(newer.rules_version(), NEXT);
    let applied = newer.store().applied(0).unwrap().unwrap();
    assert_eq!(applied.rules_version, NEXT);
    newer.apply(vec![entry(2, batch(NEXT))]).unwrap();

    let (ours, _) = applier();
    ours.apply(entries()).unwrap_err();
    // What was raised stays out of reach of an older build that is given it: it takes none of it.
    let (to, _) = applier();
    let snapshot = newer.store().snapshot(0).unwrap();
    let refused = to.install(StoredMembership::default(), snapshot);
    let refused = refused.unwrap_err().to_string();
    let needs = format!("needs rules {NEXT}");
    assert!(refused.contains(&needs), "{refused}");
    assert_eq!(to.store().applied(0).unwrap(), None);
}

/// What several entries change in one transaction is what they change one by one.
#[tokio::test]
async fn merged_entries_apply_like_single_ones() {
    let threads = ApplyThreads::start(1, 1).unwrap();
    let entries = || (0..5).map(|index| entry(index, batch(1)));
    let (merged, _) = applier();
    threads.apply(&merged, entries().collect()).await.unwrap();
    let (single, _) = applier();
    for entry in entries() {
        threads.apply(&single, vec![entry]).await.unwrap();
    }
    assert_eq!(dump(&merged), dump(&single));
}

/// A snapshot carries rows, events and the place; readers of what it replaces are ended.
#[tokio::test]
async fn an_installed_snapshot_is_what_the_other_had_applied() {
    let threads = ApplyThreads::start(1, 1).unwrap();
    let (from, _) = applier();
    threads
        .apply(&from, vec![entry(4, batch(1))])
        .await
        .unwrap();
    let (to, reasons) = applier();
    let session = SessionKey {
        slot: Slot::new(1).unwrap(),
        session_no: SessionNo(1),
    };
    let reader = to.feed.join(session).unwrap();
    let snapshot = from.store().snapshot(0).unwrap();
    to.install(StoredMembership::default(), snapshot).unwrap();
    assert_eq!(
        reader.ended().map(|refusal| refusal.code),
        Some(Code::Stale)
    );
    assert!(to.feed.join(session).is_ok());
    assert_eq!(to.standing().position, from.standing().position);
    assert_eq!(to.standing().state, from.standing().state);
    threads.apply(&to, vec![entry(5, batch(1))]).await.unwrap();
    assert_eq!(reasons.lock().unwrap().len(), 0);
}

/// One of a few commands on a few names, so that they meet.
fn any_op() -> impl Strategy<Value = Op> {
    let run = (0..3u8).prop_map(|number| RunId::parse(&format!("run-{number}")).unwrap());
    let key = |number: u8| Key::parse(&format!("key-{number}")).unwrap();
    let draft = (0..4u8, any::<bool>()).prop_map(|(number, starts)| {
        let message = MessageId::parse(&format!("message-{number}")).unwrap();
        Draft::new(if starts {
            let role = Role::Assistant;
            Body::MessageStart { message, role }
        } else {
            let status = everwire_core::event::MessageStatus::Complete;
            Body::MessageEnd { message, status }
        })
    });
    let drafts = prop::collection::vec(draft, 1..4);
    prop_oneof![
        1 => Just(Op::CreateSession),
        1 => Just(Op::DeleteSession),
        4 => run.clone().prop_map(|run| Op::StartRun(StartRun::new(run))),
        2 => run.clone().prop_map(|run| Op::ClaimRun { run, lease: None, key: None }),
        10 => (run.clone(), 1..3u32, 1..8u64, drafts).prop_map(|(run, epoch, seq, drafts)| {
            Op::Publish {
                run,
                run_epoch: RunEpoch(epoch),
                first_seq: Seq(seq),
                drafts,
            }
        }),
        4 => (0..5u8).prop_map(move |number| Op::Post {
            draft: Draft::new(Body::App { name: "a".into(), data: None }),
            key: (number > 0).then(|| key(number)),
            body_hash: 1,
        }),
        2 => (run, 0..5u8).prop_map(move |(run, number)| Op::Cancel {
            cancel: Cancel::run(run),
            key: key(number),
            body_hash: 2,
        }),
    ]
}

/// One entry for each, a second after the other; every fifth is audited.
fn entries_of(ops: Vec<(u8, Op)>) -> Vec<Entry> {
    let entries = ops.into_iter().zip(0u64..).map(|((session, op), index)| {
        let batch = everwire_proto::storage::encode_batch(&Batch {
            stamp: Timestamp(index * 1_000),
            rules_version: 1,
            timeline: 1,
            control: vec![Control::Audit; usize::from(index % 5 == 4)],
            commands: vec![command(&format!("s{session}"), op)],
        });
        entry(index, batch).0
    });
    entries.collect()
}

/// What an audit covers is everything before it, on whichever replica and in whichever writes;
/// a replica that computed something else says so from then on.
#[test]
fn audits_agree_until_a_replica_computes_something_else() {
    let op = |number: u128| Op::Post {
        draft: Draft::new(Body::App {
            name: "a".into(),
            data: None,
        }),
        key: None,
        body_hash: number,
    };
    let entries = || entries_of((0..20).map(|number| (0, op(number))).collect());
    let some = |from, count| {
        let entries = entries().into_iter().skip(from).take(count);
        entries.map(|entry| (entry, None)).collect::<Vec<_>>()
    };
    let (one, _) = applier();
    let (other, _) = applier();
    one.apply(some(0, 10)).unwrap();
    for index in 0..10 {
        other.apply(some(index, 1)).unwrap();
    }
    assert_eq!(one.audits().latest().map(|(index, _)| index), Some(9));
    for index in 0..10 {
        let hash = one.audits().hash_at(index);
        assert_eq!(hash.is_some(), index % 5 == 4);
        assert_eq!(hash, other.audits().hash_at(index));
    }
    assert_eq!(one.audits().unaudited(), 0);
    // One of them takes a row for another than it is.
    let (namespace, name) = ("n".parse().unwrap(), "s0".parse().unwrap());
    let key = RowKey::Head(SessionKey {
        slot: Slot::of(&namespace, &name),
        session_no: SessionNo(1),
    });
    let mut row = other.store().row(&key).unwrap();
    let Some(Row::Head(head)) = &mut row else {
        panic!("no head: {row:?}")
    };
    head.bytes += 1;
    let wrong = BTreeMap::from([(key, row)]);
    other.rows.lock().unwrap().absorb(&wrong, &[]);
    one.apply(some(10, 3)).unwrap();
    other.apply(some(10, 3)).unwrap();
    assert_eq!(one.audits().unaudited(), 3);
    one.apply(some(13, 7)).unwrap();
    other.apply(some(13, 7)).unwrap();
    assert_ne!(one.audits().hash_at(14), other.audits().hash_at(14));
    assert_ne!(one.audits().hash_at(19), other.audits().hash_at(19));
    // Rebuilt from the other, it knows nothing of the past and agrees from here on.
    let snapshot = one.store().snapshot(0).unwrap();
    other
        .install(StoredMembership::default(), snapshot)
        .unwrap();
    assert_eq!(other.audits().hash_at(19), None);
    assert_eq!(other.standing().audit_hash, one.standing().audit_hash);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// With a cache or without, merged into transactions in whatever way: the same rows and
    /// events, byte for byte.
    #[test]
    fn caching_and_merging_change_nothing(
        ops in prop::collection::vec((0..2u8, any_op()), 1..120),
        cuts in prop::collection::vec(1..12usize, 1..40),
        cache_bytes in prop_oneof![Just(2_000usize), Just(20_000), Just(ROW_CACHE_BYTES_MAX)],
    ) {
        let entries = entries_of(ops);
        let (plain, _) = caching(0);
        for entry in entries.clone() {
            plain.apply(vec![(entry, None)]).unwrap();
        }
        prop_assert_ne!(plain.standing().audit_hash, 0);
        let (cached, _) = caching(cache_bytes);
        let mut rest = entries.into_iter().map(|entry| (entry, None)).peekable();
        for cut in cuts.into_iter().cycle() {
            if rest.peek().is_none() {
                break;
            }
            cached.apply(rest.by_ref().take(cut).collect()).unwrap();
        }
        prop_assert_eq!(dump(&plain), dump(&cached));
    }

    /// A replica that was given a snapshot anywhere on the way, and goes on from there, has the
    /// same rows, events and hash; so has one that was restarted there.
    #[test]
    fn a_snapshot_and_a_restart_change_nothing(
        ops in prop::collection::vec((0..2u8, any_op()), 2..60),
        place in 0..60usize,
    ) {
        let entries = entries_of(ops);
        let place = place % entries.len();
        let (whole, _) = caching(ROW_CACHE_BYTES_MAX);
        let (joining, _) = caching(ROW_CACHE_BYTES_MAX);
        for entry in entries.iter().take(place + 1) {
            whole.apply(vec![(entry.clone(), None)]).unwrap();
        }
        let snapshot = whole.store().snapshot(0).unwrap();
        joining.install(StoredMembership::default(), snapshot).unwrap();
        let (store, feed) = (whole.store().clone(), whole.feed.clone());
        let quiet: OnFatal = Arc::new(|_: &str| {});
        let restarted = Applier::with_cache(0, store, feed, quiet, 1 << 20).unwrap();
        for entry in entries.iter().skip(place + 1) {
            joining.apply(vec![(entry.clone(), None)]).unwrap();
            restarted.apply(vec![(entry.clone(), None)]).unwrap();
        }
        prop_assert_eq!(dump(&restarted), dump(&joining));
    }
}
