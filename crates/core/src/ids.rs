//! Names and numbers that identify things.
//!
//! Names come from outside and are checked once, here; after that the type is the proof.
//! Numbers are minted by the cluster and never reused.

use std::fmt;
use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64;

use crate::limits::{NAME_BYTES_MAX, NAMESPACE_BYTES_MAX, SLOTS};

/// Why a string is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no characters.
    #[error("a {0} must not be empty")]
    Empty(&'static str),
    /// The name is longer than its bound, in bytes.
    #[error("a {0} has at most {1} characters")]
    TooLong(&'static str, usize),
    /// The name holds a character outside its alphabet.
    #[error("a {0} may only hold {1}")]
    Alphabet(&'static str, &'static str),
}

fn check(
    text: &str,
    what: &'static str,
    max: usize,
    alphabet: &'static str,
    allowed: fn(u8) -> bool,
) -> Result<(), NameError> {
    if text.is_empty() {
        return Err(NameError::Empty(what));
    }
    if text.len() > max {
        return Err(NameError::TooLong(what, max));
    }
    if !text.bytes().all(allowed) {
        return Err(NameError::Alphabet(what, alphabet));
    }
    Ok(())
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b':' | b'~' | b'-')
}

fn is_namespace_byte(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-'
}

fn is_participant_byte(byte: u8) -> bool {
    byte.is_ascii_graphic()
}

const NAME_ALPHABET: &str = "A-Z a-z 0-9 . _ : ~ -";

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:expr, $alphabet:expr, $allowed:path) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(Arc<str>);

        impl $type {
            /// Checks `text` against the alphabet and the length bound of this kind of name.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                check(text, $what, $max, $alphabet, $allowed)?;
                Ok(Self(Arc::from(text)))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &*self.0)
            }
        }

        impl std::str::FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }
    };
}

name!(
    /// A tenant. It comes only from the caller's token, never from a request.
    Namespace, "namespace", NAMESPACE_BYTES_MAX, "a-z 0-9 -", is_namespace_byte
);
name!(
    /// The name of a session inside its namespace.
    SessionName, "session name", NAME_BYTES_MAX, NAME_ALPHABET, is_name_byte
);
name!(
    /// A run inside its session; chosen by the agent.
    RunId, "run id", NAME_BYTES_MAX, NAME_ALPHABET, is_name_byte
);
name!(
    /// An input inside its session; chosen by its author.
    InputId, "input id", NAME_BYTES_MAX, NAME_ALPHABET, is_name_byte
);
name!(
    /// A request for an approval inside its session; chosen by the agent.
    ApprovalId, "approval id", NAME_BYTES_MAX, NAME_ALPHABET, is_name_byte
);
name!(
    /// What an action comes to in a few characters, chosen by the agent: whoever approves says it
    /// again, and so cannot approve what he has not seen.
    ActionHash, "action hash", NAME_BYTES_MAX, NAME_ALPHABET, is_name_byte
);
name!(
    /// A client's idempotency key, scoped to its author and session.
    Key, "key", NAME_BYTES_MAX, NAME_ALPHABET, is_name_byte
);
name!(
    /// A message inside its session; chosen by the agent.
    MessageId, "message id", NAME_BYTES_MAX, NAME_ALPHABET, is_name_byte
);
name!(
    /// A part inside its message; chosen by the agent.
    PartId, "part id", NAME_BYTES_MAX, NAME_ALPHABET, is_name_byte
);
name!(
    /// A step inside its run; chosen by the agent.
    StepId, "step id", NAME_BYTES_MAX, NAME_ALPHABET, is_name_byte
);
name!(
    /// A verified identity; the `sub` of a token.
    ParticipantId, "participant", NAME_BYTES_MAX, "printable ASCII without spaces", is_participant_byte
);

/// One of the 4,096 hash slots. The slot of a name is fixed for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot of a session: the low 12 bits of XXH3-64 over `namespace ‖ 0x00 ‖ name`.
    /// Pinned by a test; changing it would lose every stored session.
    pub fn of(namespace: &Namespace, session: &SessionName) -> Self {
        let mut bytes = Vec::with_capacity(namespace.as_str().len() + 1 + session.as_str().len());
        bytes.extend_from_slice(namespace.as_str().as_bytes());
        bytes.push(0);
        bytes.extend_from_slice(session.as_str().as_bytes());
        let low = xxh3_64(&bytes) & u64::from(SLOTS - 1);
        Self(u16::try_from(low).expect("the mask leaves 12 bits"))
    }

    /// A slot from its number; `None` at 4,096 and above.
    pub fn new(number: u16) -> Option<Self> {
        (number < SLOTS).then_some(Self(number))
    }

    /// The slot's number, 0 to 4,095.
    pub fn get(self) -> u16 {
        self.0
    }
}

/// A shard: one Raft group holding a contiguous range of slots. Shards count from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u32);

impl ShardId {
    /// The shard that holds `slot` when the cluster has `shards` of them (1 to 4,096).
    pub fn holding(slot: Slot, shards: u32) -> Self {
        assert!((1..=u32::from(SLOTS)).contains(&shards), "shards {shards}");
        Self(u32::from(slot.get()) * shards / u32::from(SLOTS))
    }

    /// The first slot of this shard and the first slot after it, when there are `shards`.
    pub fn slots(self, shards: u32) -> std::ops::Range<u16> {
        let bound = |shard: u32| {
            let slot = (shard * u32::from(SLOTS)).div_ceil(shards);
            u16::try_from(slot).expect("a shard number below the count gives at most 4,096")
        };
        bound(self.0)..bound(self.0 + 1)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The group number of the metadata group: no shard ever has it, and it holds no slots.
pub const META_GROUP: u32 = u32::MAX;

/// A storage node. Ids are never reused, not even for the same machine with a wiped disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number behind a session's name, from a counter of its slot that never goes back.
/// A deleted session's number is not given again, so its rows cannot be mistaken for newer ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionNo(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(namespace: &str, session: &str) -> u16 {
        let namespace = Namespace::parse(namespace).unwrap();
        let session = SessionName::parse(session).unwrap();
        Slot::of(&namespace, &session).get()
    }

    #[test]
    fn slots_are_pinned_for_ever() {
        assert_eq!(slot("dev", "demo"), GOLDEN[0]);
        assert_eq!(slot("acme", "chat-1"), GOLDEN[1]);
        assert_eq!(slot("a", "b"), GOLDEN[2]);
    }

    /// Checked against another implementation of XXH3 (PyPI xxhash).
    const GOLDEN: [u16; 3] = [2132, 3889, 849];

    #[test]
    fn every_slot_has_one_shard_and_ranges_are_contiguous() {
        for shards in [1, 3, 16, 100, 4096] {
            let mut next = 0;
            for shard in (0..shards).map(ShardId) {
                let range = shard.slots(shards);
                assert_eq!(range.start, next);
                for number in range.clone() {
                    let slot = Slot::new(number).unwrap();
                    assert_eq!(ShardId::holding(slot, shards), shard);
                }
                next = range.end;
            }
            assert_eq!(next, SLOTS);
        }
    }

    #[test]
    fn names_keep_their_alphabet() {
        assert!(SessionName::parse("a.b_c:d~e-1").is_ok());
        assert!(SessionName::parse("").is_err());
        assert!(SessionName::parse("a/b").is_err());
        assert!(SessionName::parse("ü").is_err());
        assert!(SessionName::parse(&"x".repeat(128)).is_ok());
        assert!(SessionName::parse(&"x".repeat(129)).is_err());
        assert!(Namespace::parse("Acme").is_err());
        assert!(ParticipantId::parse("auth0|ann@example.com").is_ok());
        assert!(ParticipantId::parse("ann smith").is_err());
    }
}
