//! Whether replicas have computed the same (RULES 4).
//!
//! Checksums find bytes that changed on a disk; they do not find a replica that computed
//! something else. So every entry folds what it changed into a hash that is kept beside the
//! applied index, and now and then the replicas' hashes of one entry are compared. Here is the
//! fold, what a replica remembers, and what follows from a comparison.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use everwire_core::NodeId;
use everwire_core::command::{Batch, Control};
use everwire_core::limits::AUDITS_REMEMBERED;
use everwire_proto::storage::{encode_event, encode_row};
use everwire_rules::BatchChanges;
use everwire_store::layout::Key;
use xxhash_rust::xxh3::Xxh3;

/// What stands in front of each thing that is folded. On every replica the same, for ever.
const EVENT: u8 = 1;
const WRITTEN: u8 = 2;
const REMOVED: u8 = 3;
const ERASED: u8 = 4;
const STATE: u8 = 5;

/// Folds what one entry changed into the hash of everything before it: the encoded keys and
/// values as they go to the disk, each with its length in front. An entry at a time, whatever
/// the writes: replicas cut the log into writes differently.
fn fold(before: u128, changes: &BatchChanges<'_>) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&before.to_be_bytes());
    hasher.update(&changes.state.time.0.to_be_bytes());
    hasher.update(&changes.state.rules_version.to_be_bytes());
    let mut field = |tag: u8, parts: &[&[u8]]| {
        hasher.update(&[tag]);
        for part in parts {
            let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
            hasher.update(&length.to_be_bytes());
            hasher.update(part);
        }
    };
    for (session, event) in changes.events {
        let key = Key::Event(*session, event.offset).encode();
        field(EVENT, &[&key, &encode_event(event)]);
    }
    for (key, row) in &changes.rows {
        let key = Key::Row((*key).clone()).encode();
        match row {
            Some(row) => field(WRITTEN, &[&key, &encode_row(row)]),
            None => field(REMOVED, &[&key]),
        }
    }
    for session in changes.erased {
        let slot = session.slot.get().to_be_bytes();
        field(ERASED, &[&slot, &session.session_no.0.to_be_bytes()]);
    }
    hasher.digest128()
}

/// What the metadata group holds after an entry: its topology as it goes to the disk, and the
/// rules that it speaks. The whole of it, so that a replica which was put right is right again.
fn hash_of_state(state: &[u8], rules_version: u32) -> u128 {
    let mut hasher = Xxh3::new();
    hasher.update(&[STATE]);
    hasher.update(&rules_version.to_be_bytes());
    hasher.update(state);
    hasher.digest128()
}

/// The hash of a group while entries are applied, and what is to be remembered once they are
/// written.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    hash: u128,
    /// Entries since the last audit that asked for something else than an audit.
    changed: u64,
    /// Whether one of the entries was an audit.
    audited: Vec<(u64, u128)>,
}

/// Whether an entry is an audit, and whether it is anything else.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asks {
    audit: bool,
    more: bool,
}

impl Asks {
    pub(crate) fn of(batch: &Batch) -> Self {
        let audits = batch.control.iter();
        let audits = audits.filter(|control| matches!(control, Control::Audit));
        let audits = audits.count();
        Self {
            audit: audits > 0,
            more: batch.control.len() > audits || !batch.commands.is_empty(),
        }
    }
}

impl Tally {
    pub(crate) fn new(hash: u128) -> Self {
        Self {
            hash,
            changed: 0,
            audited: Vec::new(),
        }
    }

    pub(crate) fn hash(&self) -> u128 {
        self.hash
    }

    /// Takes what the entry at `index` changed.
    pub(crate) fn take(&mut self, index: u64, asks: Asks, changes: &BatchChanges<'_>) {
        self.hash = fold(self.hash, changes);
        self.changed += u64::from(asks.more);
        if asks.audit {
            self.changed = 0;
            self.audited.push((index, self.hash));
        }
    }

    /// The same for the metadata group: what it holds after the entry at `index`.
    pub(crate) fn take_state(&mut self, index: u64, audits: bool, state: &[u8], rules: u32) {
        if audits {
            self.changed = 0;
            self.audited.push((index, hash_of_state(state, rules)));
        } else {
            self.changed += 1;
        }
    }
}

/// What a replica of one shard remembers of its audits. In memory: after a restart or an
/// install it may know nothing of an audit, and says so.
#[derive(Debug, Default)]
pub struct Audits {
    state: Mutex<Remembered>,
}

#[derive(Debug, Default)]
struct Remembered {
    /// The newest audits, by the index of their entry, and this replica's hash there.
    audits: VecDeque<(u64, u128)>,
    /// Entries behind the last audit that asked for something else.
    changed: u64,
}

impl Audits {
    fn lock(&self) -> MutexGuard<'_, Remembered> {
        self.state.lock().expect("no panic happens under this lock")
    }

    /// This replica's hash at the audit in the entry `index`, if it is remembered.
    pub fn hash_at(&self, index: u64) -> Option<u128> {
        let state = self.lock();
        let mut audits = state.audits.iter();
        let found = audits.find(|(at, _)| *at == index);
        found.map(|(_, hash)| *hash)
    }

    /// The newest audit that this replica has applied: its entry's index, and the hash.
    pub fn latest(&self) -> Option<(u64, u128)> {
        self.lock().audits.back().copied()
    }

    /// The newest audits that this replica has applied, at most `count` of them, oldest first.
    pub(crate) fn newest(&self, count: usize) -> Vec<(u64, u128)> {
        let state = self.lock();
        let skipped = state.audits.len().saturating_sub(count);
        state.audits.iter().skip(skipped).copied().collect()
    }

    /// Entries that no audit covers yet.
    pub fn unaudited(&self) -> u64 {
        self.lock().changed
    }

    /// Keeps what entries had to tell, now that they are written.
    pub(crate) fn keep(&self, tally: Tally) {
        let mut state = self.lock();
        if !tally.audited.is_empty() {
            state.changed = 0;
        }
        state.changed += tally.changed;
        state.audits.extend(tally.audited);
        let over = state.audits.len().saturating_sub(AUDITS_REMEMBERED);
        state.audits.drain(..over);
    }

    /// Forgets everything: the shard's rows were replaced by another replica's.
    pub(crate) fn forget(&self) {
        *self.lock() = Remembered::default();
    }
}

/// What a comparison says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Whoever could tell has computed the same.
    Agree,
    /// A majority of the voters has computed the same, and these something else: they rebuild
    /// from the majority. A leader among them hands over first, or the others would copy it.
    Minority(BTreeSet<NodeId>),
    /// Replicas differ, and no majority stands against one of them. Nobody can say who is right,
    /// so nobody rebuilds: the shard refuses writes and raises an alarm.
    NoMajority,
    /// Too few could tell. Nothing follows; the next audit comes.
    Unknown,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Agree => f.write_str("all agree"),
            Self::Minority(nodes) => write!(f, "{nodes:?} computed something else"),
            Self::NoMajority => f.write_str("replicas differ, and no majority agrees"),
            Self::Unknown => f.write_str("too few replicas can tell"),
        }
    }
}

/// Compares what members of a shard have said about one audit; `None` is a member that does not
/// know, and so is one that is missing. Learners are judged like voters, and do not count for
/// the majority.
pub fn verdict(reports: &BTreeMap<NodeId, Option<u128>>, voters: &BTreeSet<NodeId>) -> Verdict {
    let told = reports.iter();
    let told: Vec<(NodeId, u128)> = told
        .filter_map(|(node, hash)| Some((*node, (*hash)?)))
        .collect();
    let Some((_, first)) = told.first() else {
        return Verdict::Unknown;
    };
    if told.iter().all(|(_, hash)| hash == first) {
        let compared = told.len() > 1 || voters.len() == 1;
        return if compared {
            Verdict::Agree
        } else {
            Verdict::Unknown
        };
    }
    let mut votes: BTreeMap<u128, usize> = BTreeMap::new();
    for (_, hash) in told.iter().filter(|(node, _)| voters.contains(node)) {
        *votes.entry(*hash).or_default() += 1;
    }
    let agreed = votes
        .into_iter()
        .find(|(_, count)| 2 * count > voters.len());
    // A lone voter is its own majority, and no two hashes are equal.
    match agreed {
        Some((right, count)) if count > 1 => {
            let others = told.into_iter().filter(|(_, hash)| *hash != right);
            Verdict::Minority(others.map(|(node, _)| node).collect())
        },
        _ => Verdict::NoMajority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everwire_core::event::{Codec, Visibility};
    use everwire_core::row::{Row, RowKey, SessionKey};
    use everwire_core::{
        Author, Body, Event, Offset, ParticipantId, ParticipantKind, SessionNo, Slot, Timestamp,
    };
    use everwire_rules::ShardState;

    fn nodes(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// Node 1 says the first hash, and so on; 0 stands for "unknown".
    fn judged(voters: u64, hashes: &[u128]) -> Verdict {
        let said = |hash: u128| (hash != 0).then_some(hash);
        let reports = (1..).map(NodeId).zip(hashes.iter().copied().map(said));
        let voters: Vec<_> = (1..=voters).collect();
        verdict(&reports.collect(), &nodes(&voters))
    }

    #[test]
    fn the_minority_rebuilds_and_nobody_without_a_majority() {
        let minority = |ids: &[u64]| Verdict::Minority(nodes(ids));
        for (voters, hashes, expected) in [
            (3, &[7, 7, 7][..], Verdict::Agree),
            (3, &[7, 7, 0], Verdict::Agree),
            (3, &[7, 7], Verdict::Agree),
            (3, &[7, 0, 0], Verdict::Unknown),
            (3, &[0, 0, 0], Verdict::Unknown),
            (3, &[], Verdict::Unknown),
            (3, &[7, 8, 7], minority(&[2])),
            // The leader, whichever it is, is judged like any other.
            (3, &[8, 7, 7], minority(&[1])),
            (3, &[7, 8, 9], Verdict::NoMajority),
            (3, &[7, 8, 0], Verdict::NoMajority),
            (2, &[7, 8], Verdict::NoMajority),
            (2, &[7, 7], Verdict::Agree),
            (5, &[7, 7, 8, 8, 8], minority(&[1, 2])),
            (5, &[7, 7, 8, 9, 7], minority(&[3, 4])),
            (5, &[7, 7, 8, 8, 9], Verdict::NoMajority),
            // Two of five are no majority, though they are equal.
            (5, &[7, 7, 8, 0, 0], Verdict::NoMajority),
            // Learners are judged, and do not judge.
            (3, &[7, 7, 7, 8], minority(&[4])),
            (3, &[7, 8, 0, 8, 8], Verdict::NoMajority),
            (3, &[7, 7, 0, 8, 8], minority(&[4, 5])),
            // Alone it agrees with itself; with a learner there are two, and none is right.
            (1, &[7], Verdict::Agree),
            (1, &[7, 8], Verdict::NoMajority),
            (1, &[7, 7], Verdict::Agree),
        ] {
            assert_eq!(judged(voters, hashes), expected, "{voters} {hashes:?}");
        }
    }

    /// Replicas of two releases compare their hashes, so it is pinned like an encoding. Never
    /// change the number: a fold of another kind needs rules of another version.
    #[test]
    fn the_fold_is_pinned() {
        let session = SessionKey {
            slot: Slot::new(7).unwrap(),
            session_no: SessionNo(9),
        };
        let event = Event {
            offset: Offset::new(1).unwrap(),
            time: Timestamp(5),
            run: None,
            author: Author {
                participant: ParticipantId::parse("ann").unwrap(),
                kind: ParticipantKind::User,
            },
            parent: None,
            visibility: Visibility::All,
            format: String::new(),
            codec: Codec::Plain,
            body: Body::RunClaimed,
            raw: None,
        };
        let (counter, head) = (RowKey::Counter(session.slot), RowKey::Head(session));
        let changes = BatchChanges {
            rows: vec![(&counter, Some(&Row::Counter(9))), (&head, None)],
            events: &[(session, event)],
            erased: &[session],
            state: ShardState {
                time: Timestamp(5),
                rules_version: 1,
            },
        };
        assert_eq!(fold(1, &changes), PINNED);
        assert_ne!(fold(2, &changes), PINNED);
    }

    const PINNED: u128 = 99_967_987_299_670_871_848_714_795_209_822_700_141;

    #[test]
    fn the_newest_audits_are_remembered() {
        let audits = Audits::default();
        assert_eq!((audits.latest(), audits.unaudited()), (None, 0));
        let kept = u64::try_from(AUDITS_REMEMBERED).unwrap();
        for index in 0..=kept {
            let mut tally = Tally::new(0);
            tally.changed = 2;
            tally.audited.push((index, u128::from(index) + 1));
            audits.keep(tally);
        }
        assert_eq!(audits.hash_at(0), None);
        assert_eq!(audits.hash_at(1), Some(2));
        assert_eq!(audits.latest(), Some((kept, u128::from(kept) + 1)));
        assert_eq!(audits.unaudited(), 2);
        audits.forget();
        assert_eq!((audits.hash_at(1), audits.latest()), (None, None));
        assert_eq!(audits.unaudited(), 0);
    }
}
