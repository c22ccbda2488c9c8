//! The watermark: the only home of votes, and the witness of how far the log was synced.
//!
//! It lives outside RocksDB because it testifies against it: point-in-time recovery silently
//! drops what stands behind a bad record, and then the log's batch number is below ours.
//!
//! # Two slots
//!
//! ```text
//! byte 0        magic "EWWM"
//! byte 4        format of the slot: 1
//! bytes 5..13   generation u64 BE: counts writes; the higher valid slot counts
//! bytes 13..17  length of the payload, u32 BE
//! bytes 17..    payload: `storage.v1.Watermark` {cluster, node, batch, votes}
//! then          CRC-32C of all before, u32 BE
//! ```
//!
//! Slots stand [`SLOT_BYTES`] apart and are written in turn, each write synced, so a torn write
//! leaves the other one whole. A vote is written to *both* before it is granted: then damage to
//! either slot, at any time, cannot bring an older vote back. A batch number is written to one.
//! One bad slot is a write torn by a crash, or damage that costs nothing but the newest batch
//! number; two are a quarantine.

use std::collections::BTreeMap;

use everwire_proto::{storage, storage_v1};

use crate::error::StoreError;
use crate::types::{Identity, VoteRecord};

/// Bytes of one slot: room for the votes of 4,096 groups.
pub(crate) const SLOT_BYTES: usize = 256 << 10;
const MAGIC: &[u8; 4] = b"EWWM";
const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 17;

/// One of the two slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Side {
    /// At the start of the file.
    A,
    /// [`SLOT_BYTES`] behind it.
    B,
}

impl Side {
    /// Both.
    pub(crate) const BOTH: [Self; 2] = [Self::A, Self::B];

    /// The other one.
    pub(crate) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Where slots are kept; a write returns when it is synced.
pub(crate) trait Slots {
    /// Reads a slot, as much of it as there is; `None` when there is no watermark at all.
    fn read_slot(&self, side: Side) -> Result<Option<Vec<u8>>, StoreError>;
    /// Writes and syncs a slot.
    fn write_slot(&self, side: Side, bytes: &[u8]) -> Result<(), StoreError>;
}

/// What the watermark says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Watermark {
    /// Whose it is.
    cluster: String,
    node: u64,
    /// The last batch of the log writer that is known to be synced.
    batch: u64,
    /// The last vote of each group.
    votes: BTreeMap<u32, VoteRecord>,
    /// Counts writes.
    generation: u64,
    /// The slot that the next write overwrites: never the newest valid one.
    next: Side,
}

impl Watermark {
    /// That of a directory which never acked anything.
    pub(crate) fn fresh(identity: &Identity) -> Self {
        Self {
            cluster: identity.cluster.clone(),
            node: identity.node.0,
            batch: 0,
            votes: BTreeMap::new(),
            generation: 0,
            next: Side::A,
        }
    }

    /// Reads both slots and takes the newer valid one. `None` when there is no watermark.
    pub(crate) fn load(slots: &dyn Slots) -> Result<Option<Self>, StoreError> {
        let mut found: Option<Self> = None;
        let mut reasons = Vec::new();
        for side in Side::BOTH {
            let Some(bytes) = slots.read_slot(side)? else {
                continue;
            };
            match Self::decode(&bytes, side) {
                Ok(slot) => {
                    let newer = found
                        .as_ref()
                        .is_none_or(|f| f.generation < slot.generation);
                    if newer {
                        found = Some(slot);
                    }
                },
                Err(error @ StoreError::Newer { .. }) => return Err(error),
                Err(error) => reasons.push(error.to_string()),
            }
        }
        match found {
            Some(found) => {
                if let Some(reason) = reasons.first() {
                    tracing::warn!(%reason, "one slot of the watermark is bad; the other is good");
                }
                Ok(Some(found))
            },
            None if reasons.is_empty() => Ok(None),
            None => Err(StoreError::Quarantine {
                why: format!(
                    "both slots of the watermark are bad: {}",
                    reasons.join("; ")
                ),
            }),
        }
    }

    /// Checks that it belongs to this identity.
    pub(crate) fn check_owner(&self, identity: &Identity) -> Result<(), StoreError> {
        if self.cluster == identity.cluster && self.node == identity.node.0 {
            return Ok(());
        }
        Err(StoreError::Quarantine {
            why: format!(
                "the watermark belongs to node {} of cluster {}, the directory to node {} of {}",
                self.node, self.cluster, identity.node, identity.cluster
            ),
        })
    }

    /// The last batch known to be synced.
    pub(crate) fn batch(&self) -> u64 {
        self.batch
    }

    /// A group's vote.
    pub(crate) fn vote(&self, group: u32) -> Option<VoteRecord> {
        self.votes.get(&group).copied()
    }

    /// All votes.
    pub(crate) fn votes(&self) -> &BTreeMap<u32, VoteRecord> {
        &self.votes
    }

    /// Whether nothing was ever granted or synced under it.
    pub(crate) fn is_pristine(&self) -> bool {
        self.batch == 0 && self.votes.is_empty()
    }

    /// Writes both slots as they stand: of a fresh directory.
    pub(crate) fn save(&mut self, slots: &dyn Slots) -> Result<(), StoreError> {
        self.write_next(slots)?;
        self.write_next(slots)
    }

    /// Saves votes, in both slots. On an error nothing may be granted any more.
    pub(crate) fn save_votes(
        &mut self,
        slots: &dyn Slots,
        votes: &[(u32, VoteRecord)],
        batch: u64,
    ) -> Result<(), StoreError> {
        self.votes.extend(votes.iter().copied());
        self.batch = batch;
        self.save(slots)
    }

    /// Notes that batch `batch` is synced, in one slot.
    pub(crate) fn save_batch(&mut self, slots: &dyn Slots, batch: u64) -> Result<(), StoreError> {
        self.batch = batch;
        self.write_next(slots)
    }

    fn write_next(&mut self, slots: &dyn Slots) -> Result<(), StoreError> {
        self.generation += 1;
        slots.write_slot(self.next, &self.encode()?)?;
        self.next = self.next.other();
        Ok(())
    }

    fn encode(&self) -> Result<Vec<u8>, StoreError> {
        let payload = storage::encode_watermark(&storage_v1::Watermark {
            cluster: self.cluster.clone(),
            node: self.node,
            batch: self.batch,
            votes: votes_to(&self.votes),
        });
        let length = match u32::try_from(payload.len()) {
            Ok(length) if HEADER_BYTES + payload.len() + 4 <= SLOT_BYTES => length,
            _ => {
                let why = format!("a watermark of {} bytes", payload.len());
                return Err(StoreError::Io(why));
            },
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len() + 4);
        bytes.extend_from_slice(MAGIC);
        bytes.push(FORMAT);
        bytes.extend_from_slice(&self.generation.to_be_bytes());
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&payload);
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        Ok(bytes)
    }

    fn decode(bytes: &[u8], side: Side) -> Result<Self, StoreError> {
        let damaged = |how: &str| StoreError::Damaged {
            what: format!("slot {side:?}: {how}"),
        };
        let (sealed, crc, format, generation) =
            split(bytes).ok_or_else(|| damaged("cut short or no watermark"))?;
        if crc32c::crc32c(sealed).to_be_bytes() != crc {
            return Err(damaged("the checksum differs"));
        }
        if format > FORMAT {
            return Err(StoreError::Newer {
                found: u32::from(format),
                known: u32::from(FORMAT),
            });
        }
        let payload = sealed.get(HEADER_BYTES..).unwrap_or_default();
        let message = storage::decode_watermark(payload).map_err(StoreError::from)?;
        Ok(Self {
            cluster: message.cluster,
            node: message.node,
            batch: message.batch,
            votes: votes_from(message.votes),
            generation,
            next: side.other(),
        })
    }
}

/// Votes as they are stored.
pub(crate) fn votes_to(votes: &BTreeMap<u32, VoteRecord>) -> Vec<storage_v1::GroupVote> {
    let vote = |(group, vote): (&u32, &VoteRecord)| storage_v1::GroupVote {
        group: *group,
        vote: Some(storage_v1::Vote {
            term: vote.term,
            node: vote.node,
            committed: vote.committed,
        }),
    };
    votes.iter().map(vote).collect()
}

/// Reads what [`votes_to`] made.
pub(crate) fn votes_from(votes: Vec<storage_v1::GroupVote>) -> BTreeMap<u32, VoteRecord> {
    let record = |vote: storage_v1::GroupVote| {
        let v = vote.vote.unwrap_or_default();
        let record = VoteRecord {
            term: v.term,
            node: v.node,
            committed: v.committed,
        };
        (vote.group, record)
    };
    votes.into_iter().map(record).collect()
}

/// Cuts a slot into what is summed up, the sum, the format and the generation.
fn split(bytes: &[u8]) -> Option<(&[u8], [u8; 4], u8, u64)> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let ([format], rest) = rest.split_first_chunk::<1>()?;
    let (generation, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let crc = rest.get(length..)?.first_chunk::<4>()?;
    let sealed = bytes.get(..HEADER_BYTES.checked_add(length)?)?;
    Some((sealed, *crc, *format, u64::from_be_bytes(*generation)))
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use everwire_core::ids::NodeId;

    use super::*;

    /// Slots in memory; the write `fails_at` is cut after some bytes.
    #[derive(Default)]
    struct Memory {
        slots: RefCell<BTreeMap<Side, Vec<u8>>>,
        cut: RefCell<Option<usize>>,
    }

    impl Slots for Memory {
        fn read_slot(&self, side: Side) -> Result<Option<Vec<u8>>, StoreError> {
            Ok(self.slots.borrow().get(&side).cloned())
        }

        fn write_slot(&self, side: Side, bytes: &[u8]) -> Result<(), StoreError> {
            let mut slots = self.slots.borrow_mut();
            let slot = slots.entry(side).or_default();
            if let Some(cut) = self.cut.take() {
                let mut torn = bytes[..cut.min(bytes.len())].to_vec();
                torn.extend(slot.iter().skip(cut));
                *slot = torn;
                return Err(StoreError::Io("cut".into()));
            }
            *slot = bytes.to_vec();
            Ok(())
        }
    }

    fn identity() -> Identity {
        Identity::new("c", NodeId(5))
    }

    fn vote(term: u64) -> VoteRecord {
        VoteRecord {
            term,
            node: 5,
            committed: true,
        }
    }

    fn golden() -> Watermark {
        let mut watermark = Watermark::fresh(&identity());
        watermark.votes = BTreeMap::from([(0, vote(1)), (700, vote(1 << 40))]);
        watermark.batch = 77;
        watermark.generation = 12;
        watermark
    }

    #[test]
    fn a_slot_is_pinned_for_ever() {
        let hex: String = golden()
            .encode()
            .unwrap()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(
            hex,
            include_str!("../tests/golden/watermark.txt").trim_end()
        );
    }

    #[test]
    fn identity_is_pinned_for_ever() {
        let hex: String = identity()
            .file_bytes(1)
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(hex, include_str!("../tests/golden/identity.txt").trim_end());
    }

    /// Wherever a write is cut, what was saved before is still there, whole.
    #[test]
    fn a_torn_write_leaves_what_was_saved() {
        for cut in 0..120 {
            let slots = Memory::default();
            let mut watermark = Watermark::fresh(&identity());
            watermark.save(&slots).unwrap();
            watermark.save_votes(&slots, &[(3, vote(4))], 10).unwrap();
            watermark.save_batch(&slots, 11).unwrap();
            slots.cut.replace(Some(cut));
            let votes = [(3, vote(9))];
            let saved = watermark.save_votes(&slots, &votes, 12).is_ok();
            let found = Watermark::load(&slots).unwrap().unwrap();
            assert!(!saved);
            assert!(found.batch >= 11, "cut at {cut}");
            let whole = found.vote(3) == Some(vote(9)) && found.batch == 12;
            assert!(whole || found.vote(3) == Some(vote(4)), "cut at {cut}");
        }
    }

    /// After a vote is granted no damage to one slot brings an older one back.
    #[test]
    fn a_granted_vote_survives_the_loss_of_either_slot() {
        for lost in Side::BOTH {
            for later in 0..3 {
                let slots = Memory::default();
                let mut watermark = Watermark::fresh(&identity());
                watermark.save(&slots).unwrap();
                for term in 1..4 {
                    let votes = [(3, vote(term))];
                    watermark.save_votes(&slots, &votes, term).unwrap();
                    for batch in 0..later {
                        watermark.save_batch(&slots, 100 + batch).unwrap();
                    }
                }
                slots.slots.borrow_mut().get_mut(&lost).unwrap()[20] ^= 1;
                let found = Watermark::load(&slots).unwrap().unwrap();
                assert_eq!(found.vote(3), Some(vote(3)));
            }
        }
    }

    #[test]
    fn a_slot_has_room_for_every_group() {
        let mut watermark = golden();
        let most = |group| {
            let vote = VoteRecord {
                term: u64::MAX,
                node: u64::MAX,
                committed: true,
            };
            (group, vote)
        };
        watermark.votes = (0..4096).map(most).collect();
        assert!(watermark.encode().is_ok());
        watermark.votes = (0..20_000).map(most).collect();
        assert!(watermark.encode().is_err());
    }

    #[test]
    fn foreign_bytes_are_no_slot() {
        let good = golden().encode().unwrap();
        assert_eq!(Watermark::decode(&good, Side::A).unwrap().batch, 77);
        for place in 0..good.len() {
            let mut bad = good.clone();
            bad[place] ^= 0x40;
            assert!(Watermark::decode(&bad, Side::A).is_err(), "{place}");
            assert!(Watermark::decode(&good[..place], Side::A).is_err());
        }
        assert!(Watermark::decode(&[0; 4096], Side::A).is_err());
    }
}
