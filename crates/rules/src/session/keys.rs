//! Client keys: the same key with the same body answers as the first time did, for 24 h of
//! command time. Rows of their own, scoped to author and session.

use everwire_core::command::StartRun;
use everwire_core::event::Data;
use everwire_core::limits::{KEY_TTL, STALE_KEYS_EVERY, STALE_KEYS_PER_FIRE};
use everwire_core::row::{HeadRow, KeyRow, Row, RowKey, RowRange, SessionKey, TimerKind, TimerRow};
use everwire_core::{
    Code, Details, Key, Lease, Offset, Refusal, RunEpoch, RunId, Target, Timestamp,
};

use super::Stop;
use super::lookup::Session;
use super::overlay::Step;
use super::txn::ViewError;

/// What a key stands for. One digest over the kind of command and its body, so that a key used
/// for a cancel cannot answer for an input. Digests are stored: the tags and the order of the
/// parts never change.
pub(super) enum Purpose<'a> {
    Start(&'a StartRun),
    Claim(&'a RunId, Option<Lease>),
    /// The proposer's hash of the draft.
    Post(u128),
    /// The proposer's hash of the signal.
    Cancel(&'a Target, u128),
    /// The same of another signal than a stop.
    Signal(u128),
}

impl Purpose<'_> {
    fn digest(&self) -> u128 {
        match self {
            Self::Start(start) => of_start(start),
            Self::Claim(run, None) => fnv(b'c', &[run.as_str().as_bytes()]),
            Self::Claim(run, Some(lease)) => {
                fnv(b'C', &[run.as_str().as_bytes(), &lease.ms().to_be_bytes()])
            },
            Self::Post(hash) => fnv(b'p', &[&hash.to_be_bytes()]),
            Self::Cancel(Target::Run(run), hash) => {
                fnv(b'x', &[run.as_str().as_bytes(), &hash.to_be_bytes()])
            },
            // The proposer's hash holds the target.
            Self::Cancel(Target::Subtree(_) | Target::Input(_) | Target::Session, hash) => {
                fnv(b'X', &[&hash.to_be_bytes()])
            },
            Self::Signal(hash) => fnv(b'g', &[&hash.to_be_bytes()]),
        }
    }
}

/// What the first rules knew has the digest that they gave it.
fn of_start(start: &StartRun) -> u128 {
    let run = start.run.as_str().as_bytes();
    let input = start.input.as_ref();
    let author = input.and_then(|input| input.author.as_ref());
    let input = input.map(|input| input.input.as_str().as_bytes());
    let is_plain =
        author.is_none() && start.parent.is_none() && start.lease.is_none() && start.meta.is_none();
    if is_plain {
        return match input {
            None => fnv(b's', &[run]),
            Some(input) => fnv(b's', &[run, input]),
        };
    }
    let lease = start.lease.map_or(0, Lease::ms).to_be_bytes();
    let (tag, meta) = match &start.meta {
        None => (b"-", &[][..]),
        Some(Data::Json(text)) => (b"j", text.as_bytes()),
        Some(Data::Binary(bytes)) => (b"b", &bytes[..]),
    };
    let author = author.map_or(&[][..], |author| author.as_str().as_bytes());
    let parent = start.parent.as_ref();
    let parent = parent.map_or(&[][..], |parent| parent.as_str().as_bytes());
    let input = input.unwrap_or_default();
    fnv(b'S', &[run, input, author, parent, &lease, tag, meta])
}

/// FNV-1a, 128 bits, over the tag and the parts, each with its length in front. Not against an
/// attacker: a key belongs to one author, who could only fool himself.
fn fnv(tag: u8, parts: &[&[u8]]) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let step = |hash: u128, byte: &u8| (hash ^ u128::from(*byte)).wrapping_mul(PRIME);
    let mut hash = step(BASIS, &tag);
    for part in parts {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX).to_be_bytes();
        hash = length.iter().chain(part.iter()).fold(hash, step);
    }
    hash
}

fn is_stale(now: Timestamp, then: Timestamp) -> bool {
    now.since(then) > KEY_TTL
}

impl Session<'_, '_> {
    fn key_key(&self, key: &Key) -> RowKey {
        RowKey::Key(self.key, self.actor.participant.clone(), key.clone())
    }

    /// What the key stood for: `None` if it is new or older than 24 h, a refusal if it stood
    /// for another body.
    pub(super) fn recall(
        &mut self,
        key: &Key,
        purpose: &Purpose<'_>,
    ) -> Result<Option<KeyRow>, Stop> {
        let row_key = self.key_key(key);
        let Some(row) = self.step.key(&row_key)? else {
            return Ok(None);
        };
        if is_stale(self.step.time, row.time) {
            return Ok(None);
        }
        if row.body_hash != purpose.digest() {
            return Err(reused(row.offset, "the key was used for another body").into());
        }
        Ok(Some(row))
    }

    /// Remembers what a key stands for from now on.
    pub(super) fn remember(
        &mut self,
        key: Key,
        purpose: &Purpose<'_>,
        offset: Offset,
        run_epoch: Option<RunEpoch>,
    ) -> Result<(), Stop> {
        let time = self.step.time;
        if self.head.keys_due.is_none() {
            self.head.keys_due = Some(set_timer(self.step, self.key, stale_at(time), 0));
        }
        let row_key = self.key_key(&key);
        // A stale key that is used again loses its old place in the index, or the removal of
        // that would take the new row with it.
        if let Some(old) = self.step.key(&row_key)? {
            self.step.remove(self.age_key(old.time, key.clone()));
        }
        let row = KeyRow {
            body_hash: purpose.digest(),
            offset,
            run_epoch,
            time,
        };
        self.step.put(row_key, Row::Key(row));
        self.step.put(self.age_key(time, key), Row::Index);
        Ok(())
    }

    fn age_key(&self, time: Timestamp, key: Key) -> RowKey {
        RowKey::KeyAge(self.key, time, self.actor.participant.clone(), key)
    }
}

/// The first moment at which a key of then counts as absent.
fn stale_at(then: Timestamp) -> Timestamp {
    Timestamp(then.plus(KEY_TTL).0.saturating_add(1))
}

fn set_timer(step: &mut Step<'_>, session: SessionKey, due: Timestamp, guard: u64) -> Timestamp {
    let key = RowKey::Timer(session, due, TimerKind::StaleKeys);
    step.put(
        key,
        Row::Timer(TimerRow {
            guard,
            run: None,
            approval: None,
        }),
    );
    due
}

/// The deadline of a session's oldest keys has come: removes the stale ones, some at a time, and
/// sets the next deadline while there are keys. The caller has taken the old one away, and
/// writes the head.
pub(super) fn sweep(
    step: &mut Step<'_>,
    session: SessionKey,
    head: &mut HeadRow,
    guard: u64,
) -> Result<(), ViewError> {
    let time = step.time;
    let mut left = None;
    let oldest = step.scan(RowRange::KeyAges(session), STALE_KEYS_PER_FIRE + 1)?;
    for (number, key) in oldest.into_iter().enumerate() {
        let RowKey::KeyAge(_, then, author, name) = key else {
            return Err(ViewError(format!("{key:?} in a scan of key ages")));
        };
        if number == STALE_KEYS_PER_FIRE || !is_stale(time, then) {
            left = Some(then);
            break;
        }
        step.remove(RowKey::KeyAge(session, then, author.clone(), name.clone()));
        step.remove(RowKey::Key(session, author, name));
    }
    head.keys_due = left.map(|oldest| {
        let due = if is_stale(time, oldest) {
            time
        } else {
            stale_at(oldest).max(time.plus(STALE_KEYS_EVERY))
        };
        set_timer(step, session, due, guard + 1)
    });
    Ok(())
}

pub(super) fn reused(offset: Offset, message: &str) -> Refusal {
    let details = Details {
        offset: Some(offset),
        ..Details::default()
    };
    Refusal::with(Code::KeyReused, message, details)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use everwire_core::{InputId, InputRef, ParticipantId};

    use super::*;

    #[test]
    fn digests_are_pinned_because_they_are_stored() {
        let run = RunId::parse("r1").unwrap();
        let plain = StartRun::new(run.clone());
        let input = InputRef::of_anybody(InputId::parse("i1").unwrap());
        let answering = StartRun {
            input: Some(input),
            ..plain.clone()
        };
        let digests = [
            Purpose::Start(&plain).digest(),
            Purpose::Start(&answering).digest(),
            Purpose::Claim(&run, None).digest(),
            Purpose::Post(7).digest(),
            Purpose::Cancel(&Target::Run(run.clone()), 7).digest(),
        ];
        assert_eq!(digests, GOLDEN);
        let lease = Lease::new(Duration::from_secs(20)).unwrap();
        let child = StartRun {
            input: Some(InputRef {
                author: ParticipantId::parse("ann").ok(),
                input: InputId::parse("i1").unwrap(),
            }),
            parent: RunId::parse("r0").ok(),
            lease: Some(lease),
            meta: Some(Data::Json("{}".to_owned())),
            ..plain
        };
        let digests = [
            Purpose::Start(&child).digest(),
            Purpose::Claim(&run, Some(lease)).digest(),
            Purpose::Cancel(&Target::Session, 7).digest(),
        ];
        assert_eq!(digests, GOLDEN_2);
        assert_eq!(Purpose::Signal(7).digest(), GOLDEN_3);
    }

    /// Of the third rules; computed in the same way.
    const GOLDEN_3: u128 = 0xef3b_5713_6ea7_38a3_4d91_d494_7e82_090f;

    /// Of the second rules; computed in the same way.
    const GOLDEN_2: [u128; 3] = [
        0x7b0a_6ded_b602_009f_6b4c_4786_6c44_8fb6,
        0x8d40_89ac_3c77_f306_ca0c_a85a_db95_4023,
        0xdba0_2827_e5a8_2e5e_0786_a6a2_46dd_7116,
    ];

    /// Computed by an implementation of our own in Python (12 lines, from the FNV text).
    const GOLDEN: [u128; 5] = [
        0x8472_27f3_07af_2033_f568_9e2a_9237_0c81,
        0x3e7c_7cc8_f611_f3f3_005c_52e0_a2d7_bedd,
        0xdb03_5bcb_5b0b_dc26_d83f_0d4d_e806_3051,
        0x665f_31e4_3566_808e_91cf_0a09_6629_ed4e,
        0x7d82_6c92_0275_b6d9_a97c_6356_5e0a_4751,
    ];

    #[test]
    fn a_key_counts_for_24_hours_and_no_longer() {
        let then = Timestamp(1_000);
        let day = 24 * 3_600 * 1_000;
        assert!(!is_stale(Timestamp(1_000 + day), then));
        assert!(is_stale(Timestamp(1_001 + day), then));
    }
}
