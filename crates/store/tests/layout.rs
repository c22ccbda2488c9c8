//! Keys and record headers on disk are pinned for ever: golden bytes, order, round trips.
//!
//! `EVERWIRE_REGENERATE=1` writes golden files that do not exist yet; it never changes a line
//! that does: what was written once must be read for ever.
#![expect(clippy::unwrap_used, reason = "a test: its panics are its answers")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use bytes::Bytes;
use everwire_core::clock::Timestamp;
use everwire_core::ids::{
    ApprovalId, InputId, Key as ClientKey, MessageId, Namespace, NodeId, PartId, ParticipantId,
    RunId, SessionName, SessionNo, Slot, StepId,
};
use everwire_core::position::{Offset, RunEpoch};
use everwire_core::row::{RowKey, RowRange, SessionKey, TimerKind};
use everwire_proto::storage;
use everwire_store::layout::{
    Family, Key, LogFamily, LogKey, events_range, kind, names_range, row_range, session_range,
    slots_range,
};
use everwire_store::testing::{event, head};
use everwire_store::{StoreError, record};
use proptest::prelude::*;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Compares with `tests/golden/<name>`, line by line: `label hex`.
fn golden(name: &str, lines: &[(&str, Vec<u8>)]) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let made: String = lines
        .iter()
        .map(|(label, bytes)| format!("{label} {}\n", hex(bytes)))
        .collect();
    if !path.exists() && std::env::var_os("EVERWIRE_REGENERATE").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    for (kept, made) in kept.lines().zip(made.lines()) {
        assert_eq!(kept, made, "{name}");
    }
    assert_eq!(kept.lines().count(), made.lines().count(), "{name}");
}

fn here() -> SessionKey {
    SessionKey {
        slot: Slot::new(0x0abc).unwrap(),
        session_no: SessionNo(0x0102_0304),
    }
}

fn one_of_each() -> Vec<(&'static str, Key)> {
    let run = RunId::parse("run-1").unwrap();
    let message = MessageId::parse("m").unwrap();
    let ann = ParticipantId::parse("ann@x").unwrap();
    let key = ClientKey::parse("k").unwrap();
    let epoch = RunEpoch(2);
    let time = Timestamp(0x1122_3344_5566);
    let namespace = Namespace::parse("acme").unwrap();
    let name = SessionName::parse("chat:1").unwrap();
    let rows = vec![
        ("name", RowKey::Name(here().slot, namespace, name)),
        ("counter", RowKey::Counter(here().slot)),
        ("head", RowKey::Head(here())),
        ("run", RowKey::Run(here(), run.clone())),
        ("epoch", RowKey::Epoch(here(), run.clone(), epoch)),
        ("batch", RowKey::Batch(here(), run.clone(), epoch, 0xfe)),
        ("message", RowKey::Message(here(), message.clone())),
        (
            "part",
            RowKey::Part(here(), message, PartId::parse("p").unwrap()),
        ),
        (
            "input",
            RowKey::Input(here(), ann.clone(), InputId::parse("i").unwrap()),
        ),
        ("key", RowKey::Key(here(), ann.clone(), key.clone())),
        ("key_age", RowKey::KeyAge(here(), time, ann, key)),
        ("live_run", RowKey::LiveRun(here(), run)),
        ("timer", RowKey::Timer(here(), time, TimerKind::StaleKeys)),
    ];
    rows.into_iter()
        .map(|(label, key)| (label, Key::Row(key)))
        .chain([
            ("event", Key::Event(here(), Offset::new(0x0708).unwrap())),
            ("applied", Key::Applied(15)),
        ])
        .collect()
}

/// Keys that came with the second rules.
fn later_keys() -> Vec<(&'static str, Key)> {
    let ann = ParticipantId::parse("ann@x").unwrap();
    let input = InputId::parse("i").unwrap();
    let time = Timestamp(0x1122_3344_5566);
    let (run, step) = (RunId::parse("r").unwrap(), StepId::parse("s").unwrap());
    vec![
        ("tombstone", Key::Row(RowKey::Tombstone(here(), ann, input))),
        ("step", Key::Row(RowKey::Step(here(), run, step))),
        (
            "timer_orphan",
            Key::Row(RowKey::Timer(here(), time, TimerKind::OrphanLimit)),
        ),
    ]
}

fn log_keys() -> Vec<(&'static str, LogKey)> {
    let (group, index) = (3, 0x0102_0304_0506);
    vec![
        ("log_entry", LogKey::Entry { group, index }),
        ("meta_batch", LogKey::Batch),
        ("meta_purged", LogKey::Purged(group)),
        ("meta_installing", LogKey::Installing(group)),
        ("meta_peer", LogKey::Peer(NodeId(0x0708))),
    ]
}

#[test]
fn keys_are_pinned_for_ever() {
    let mut lines: Vec<_> = one_of_each()
        .into_iter()
        .map(|(label, key)| (label, key.encode()))
        .collect();
    lines.extend(log_keys().into_iter().map(|(l, key)| (l, key.encode())));
    golden("keys.txt", &lines);
    let later = later_keys().into_iter();
    let later: Vec<_> = later.map(|(label, key)| (label, key.encode())).collect();
    golden("keys-2.txt", &later);
    let approval = ApprovalId::parse("a").unwrap();
    let time = Timestamp(0x1122_3344_5566);
    let third = [
        RowKey::Approval(here(), approval),
        RowKey::Timer(here(), time, TimerKind::Approval),
    ];
    let third = third.map(|key| Key::Row(key).encode());
    let [approval, timer] = third;
    golden(
        "keys-3.txt",
        &[("approval", approval), ("timer_approval", timer)],
    );
}

#[test]
fn tags_and_families_are_pinned_for_ever() {
    assert_eq!(
        [
            kind::COUNTER,
            kind::HEAD,
            kind::RUN,
            kind::EPOCH,
            kind::BATCH,
            kind::MESSAGE,
            kind::PART,
            kind::INPUT,
            kind::KEY,
            kind::KEY_AGE,
            kind::TOMBSTONE,
            kind::LIVE_RUN,
            kind::TIMER,
            kind::EVENT,
        ],
        [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 0x20, 0x21, 0x40]
    );
    let families = Family::ALL.map(|family| (family.number(), family.name()));
    let expected = [
        (1, "events"),
        (2, "rows"),
        (3, "names"),
        (4, "index"),
        (5, "applied"),
    ];
    assert_eq!(families, expected);
    assert_eq!(LogFamily::ALL.map(LogFamily::name), ["log", "meta"]);
}

#[test]
fn values_are_pinned_for_ever() {
    let key = Key::Row(RowKey::Head(here())).encode();
    let row = record::seal(&key, &storage::encode_row(&head(7)));
    let at = Key::Event(here(), Offset::new(3).unwrap()).encode();
    let event = record::seal(&at, &storage::encode_event(&event(3, 4)));
    let empty = record::seal(b"k", b"");
    golden(
        "values.txt",
        &[("head", row), ("event", event), ("empty", empty)],
    );
}

#[test]
fn keys_read_back_in_their_own_family_only() {
    for (label, key) in one_of_each() {
        let bytes = key.encode();
        assert_eq!(
            Key::decode(key.family(), &bytes),
            Ok(key.clone()),
            "{label}"
        );
        for family in Family::ALL.into_iter().filter(|f| *f != key.family()) {
            assert_ne!(Key::decode(family, &bytes), Ok(key.clone()), "{label}");
        }
        let short = &bytes[..bytes.len() - 1];
        assert_ne!(Key::decode(key.family(), short), Ok(key), "{label}");
    }
    for (label, key) in log_keys() {
        let mut bytes = key.encode();
        assert_eq!(LogKey::decode(key.family(), &bytes), Ok(key), "{label}");
        bytes.push(0);
        assert!(LogKey::decode(key.family(), &bytes).is_err(), "{label}");
    }
}

#[test]
fn a_record_is_bound_to_its_key_and_every_bit() {
    let value = record::seal(b"key", b"payload");
    assert_eq!(record::unseal("it", b"key", &value).unwrap(), b"payload");
    assert!(record::unseal("it", b"kez", &value).is_err());
    assert!(record::unseal("it", b"key", b"").is_err());
    for place in 0..value.len() {
        for bit in 0..8 {
            let mut bad = value.clone();
            bad[place] ^= 1 << bit;
            assert!(record::unseal("it", b"key", &bad).is_err(), "{place}.{bit}");
        }
    }
    let mut newer = value;
    *newer.first_mut().unwrap() = 2;
    let answer = record::unseal("it", b"key", &newer);
    assert_eq!(answer, Err(StoreError::Newer { found: 2, known: 1 }));
}

// === Properties ===

fn session() -> impl Strategy<Value = SessionKey> {
    let number = prop_oneof![1..4_u64, 250..260_u64, any::<u64>()];
    (prop_oneof![0..3_u16, 254..258_u16, Just(4095)], number).prop_map(|(slot, number)| {
        SessionKey {
            slot: Slot::new(slot).unwrap(),
            session_no: SessionNo(number.max(1)),
        }
    })
}

macro_rules! name {
    ($name:ident, $type:ident, $pattern:literal) => {
        fn $name() -> impl Strategy<Value = $type> {
            $pattern.prop_map(|text: String| $type::parse(&text).unwrap())
        }
    };
}

name!(run_id, RunId, "[-.A-Z_a-z~:0-9]{1,4}");
name!(message_id, MessageId, "[-.AZaz~]{1,3}");
name!(part_id, PartId, "[-.AZaz~]{1,3}");
name!(step_id, StepId, "[-.AZaz~]{1,3}");
name!(input_id, InputId, "[-.AZaz~]{1,3}");
name!(client_key, ClientKey, "[-.AZaz~]{1,3}");
name!(participant, ParticipantId, "[!-~]{1,3}");
name!(namespace, Namespace, "[-a-b0]{1,3}");
name!(session_name, SessionName, "[-.AZaz~]{1,3}");

fn key() -> impl Strategy<Value = Key> {
    let epoch = || prop_oneof![1..3_u32, any::<u32>()].prop_map(RunEpoch);
    let time = || prop_oneof![0..300_u64, any::<u64>()].prop_map(Timestamp);
    let offset = (0..=Offset::MAX.get()).prop_map(|n| Offset::new(n).unwrap());
    let row = prop_oneof![
        (session(), namespace(), session_name()).prop_map(|(s, n, m)| RowKey::Name(s.slot, n, m)),
        session().prop_map(|s| RowKey::Counter(s.slot)),
        session().prop_map(RowKey::Head),
        (session(), run_id()).prop_map(|(s, r)| RowKey::Run(s, r)),
        (session(), run_id(), epoch()).prop_map(|(s, r, e)| RowKey::Epoch(s, r, e)),
        (session(), run_id(), epoch(), any::<u8>())
            .prop_map(|(s, r, e, n)| RowKey::Batch(s, r, e, n)),
        (session(), message_id()).prop_map(|(s, m)| RowKey::Message(s, m)),
        (session(), message_id(), part_id()).prop_map(|(s, m, p)| RowKey::Part(s, m, p)),
        (session(), participant(), input_id()).prop_map(|(s, a, i)| RowKey::Input(s, a, i)),
        (session(), participant(), client_key()).prop_map(|(s, a, k)| RowKey::Key(s, a, k)),
        (session(), time(), participant(), client_key())
            .prop_map(|(s, t, a, k)| RowKey::KeyAge(s, t, a, k)),
        (session(), run_id()).prop_map(|(s, r)| RowKey::LiveRun(s, r)),
        (session(), participant(), input_id()).prop_map(|(s, a, i)| RowKey::Tombstone(s, a, i)),
        (session(), run_id(), step_id()).prop_map(|(s, r, i)| RowKey::Step(s, r, i)),
        (session(), time()).prop_map(|(s, t)| RowKey::Timer(s, t, TimerKind::StaleKeys)),
        (session(), time()).prop_map(|(s, t)| RowKey::Timer(s, t, TimerKind::OrphanLimit)),
        (session(), run_id())
            .prop_map(|(s, r)| { RowKey::Approval(s, ApprovalId::parse(r.as_str()).unwrap()) }),
    ];
    prop_oneof![
        12 => row.prop_map(Key::Row),
        2 => (session(), offset).prop_map(|(s, o)| Key::Event(s, o)),
        1 => any::<u32>().prop_map(Key::Applied),
    ]
}

/// Order as it is meant: slot, session, kind, then the fields of the row key.
fn meant(key: &Key) -> (Family, Option<(u16, u64)>, u8, Option<RowKey>, u64) {
    let of = |s: &SessionKey| Some((s.slot.get(), s.session_no.0));
    let family = key.family();
    match key {
        Key::Event(session, offset) => (family, of(session), kind::EVENT, None, offset.get()),
        Key::Applied(group) => (family, None, 0, None, u64::from(*group)),
        Key::Row(row) => {
            let (session, kind) = match row {
                RowKey::Name(slot, ..) => (Some((slot.get(), 0)), 0),
                RowKey::Counter(slot) => (Some((slot.get(), 0)), kind::COUNTER),
                RowKey::Head(s) => (of(s), kind::HEAD),
                RowKey::Run(s, ..) => (of(s), kind::RUN),
                RowKey::Epoch(s, ..) => (of(s), kind::EPOCH),
                RowKey::Batch(s, ..) => (of(s), kind::BATCH),
                RowKey::Message(s, ..) => (of(s), kind::MESSAGE),
                RowKey::Part(s, ..) => (of(s), kind::PART),
                RowKey::Input(s, ..) => (of(s), kind::INPUT),
                RowKey::Key(s, ..) => (of(s), kind::KEY),
                RowKey::KeyAge(s, ..) => (of(s), kind::KEY_AGE),
                RowKey::LiveRun(s, ..) => (of(s), kind::LIVE_RUN),
                RowKey::Tombstone(s, ..) => (of(s), kind::TOMBSTONE),
                RowKey::Step(s, ..) => (of(s), kind::STEP),
                RowKey::Approval(s, ..) => (of(s), kind::APPROVAL),
                RowKey::Timer(s, ..) => (of(s), kind::TIMER),
            };
            (family, session, kind, Some(row.clone()), 0)
        },
    }
}

fn session_of(key: &Key) -> Option<SessionKey> {
    let (family, session, ..) = meant(key);
    let (slot, number) = session?;
    let session = SessionKey {
        slot: Slot::new(slot)?,
        session_no: SessionNo(number),
    };
    (family != Family::Names && number != 0).then_some(session)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_key_reads_back(key in key()) {
        prop_assert_eq!(Key::decode(key.family(), &key.encode()), Ok(key));
    }

    /// The order of the bytes is the order of the fields, and within one kind that of [`RowKey`]:
    /// so a scan of the disk and a scan of the rules' own changes can be merged.
    #[test]
    fn bytes_keep_the_order_of_fields(a in key(), b in key()) {
        if a.family() == b.family() {
            prop_assert_eq!(a.encode().cmp(&b.encode()), meant(&a).cmp(&meant(&b)));
        }
    }

    #[test]
    fn ranges_hold_exactly_their_own(key in key(), session in session(), from in 0..500_u64) {
        let bytes = key.encode();
        let owner = session_of(&key);
        if !matches!(key.family(), Family::Names | Family::Applied) {
            prop_assert_eq!(session_range(session).contains(&bytes), owner == Some(session));
        }
        for (range, wanted) in [
            (RowRange::KeyAges(session), kind::KEY_AGE),
            (RowRange::LiveRuns(session), kind::LIVE_RUN),
            (RowRange::Tombstones(session), kind::TOMBSTONE),
        ] {
            let (family, range) = row_range(range);
            if key.family() == family {
                let inside = owner == Some(session) && meant(&key).2 == wanted;
                prop_assert_eq!(range.contains(&bytes), inside);
            }
        }
        if let Key::Event(of, offset) = &key {
            let from = Offset::new(from).unwrap();
            let inside = *of == session && *offset >= from;
            prop_assert_eq!(events_range(session, from).contains(&bytes), inside);
        }
    }

    #[test]
    fn a_shards_range_holds_its_slots(key in key(), start in 0..300_u16, len in 0..4096_u16) {
        let slots = start..(start + len).min(4096);
        if let Some((slot, _)) = meant(&key).1 {
            prop_assert_eq!(slots_range(slots.clone()).contains(&key.encode()), slots.contains(&slot));
        }
    }

    #[test]
    fn a_namespace_sees_its_own_names_only(
        key in (session(), namespace(), session_name()),
        asked in (session(), namespace(), "[-.AZaz~]{0,2}"),
    ) {
        let (session, space, name) = key;
        let (there, other, prefix) = asked;
        let bytes = Key::Row(RowKey::Name(session.slot, space.clone(), name.clone())).encode();
        let inside = session.slot == there.slot
            && space == other
            && name.as_str().starts_with(&prefix);
        prop_assert_eq!(names_range(there.slot, &other, &prefix).contains(&bytes), inside);
    }

    #[test]
    fn foreign_bytes_are_no_key_and_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        for family in Family::ALL {
            if let Ok(key) = Key::decode(family, &bytes) {
                prop_assert_eq!(key.encode(), bytes.clone());
            }
        }
        prop_assert!(record::unseal("it", &bytes, &Bytes::from(bytes.clone())).is_err());
    }
}

#[test]
fn every_kind_of_row_has_its_own_tag() {
    let mut tags = BTreeMap::new();
    let tombstone = later_keys().into_iter().take(1);
    for (label, key) in one_of_each().into_iter().chain(tombstone) {
        if let (_, Some((_, _)), tag, _, _) = meant(&key)
            && tag != 0
        {
            assert_eq!(tags.insert(tag, label), None);
        }
    }
    assert_eq!(tags.len(), 14);
}
