//! Every refusal as data: one list of codes, each with the advice what to do next.
//!
//! gRPC status, WebSocket close codes, SDK behaviour, command exit codes and the page
//! `docs/protocol/codes.md` are derived from this table.

use std::fmt;

use crate::ids::ParticipantId;
use crate::position::{Offset, RunEpoch, Seq, SessionEpoch};

/// What a client should do after a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Advice {
    /// The same request, here, after a pause with jitter.
    Retry,
    /// The same request, at another node or edge.
    RetryElsewhere,
    /// Attach again with the cursor at hand (or where `details` say).
    Reattach,
    /// Get a new token, then the same request.
    Reauthenticate,
    /// Do not repeat it: the answer would be the same.
    Stop,
}

impl Advice {
    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::RetryElsewhere => "retry_elsewhere",
            Self::Reattach => "reattach",
            Self::Reauthenticate => "reauthenticate",
            Self::Stop => "stop",
        }
    }

    /// Every advice, in the order of the docs.
    pub const ALL: [Self; 5] = [
        Self::Retry,
        Self::RetryElsewhere,
        Self::Reattach,
        Self::Reauthenticate,
        Self::Stop,
    ];
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident $text:literal $advice:ident $close:literal $http:literal $exit:literal
        $meaning:literal;)*) => {
        /// Why something was refused. The text of a code never changes; new ones may be added.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// Every code, in the order of the docs.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The text on the wire and in logs.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            /// What the client should do, unless the refusal itself says otherwise.
            pub fn advice(self) -> Advice {
                match self { $(Self::$variant => Advice::$advice,)* }
            }

            /// The WebSocket close code when a connection ends for this reason: 4000-4999.
            pub fn close_code(self) -> u16 {
                match self { $(Self::$variant => $close,)* }
            }

            /// The HTTP status of an answer with this code.
            pub fn http_status(self) -> u16 {
                match self { $(Self::$variant => $http,)* }
            }

            /// What a command exits with when this is its end: 1 failed, 2 usage, 3 refused by a
            /// rule, 4 not authorised, 5 unreachable, 6 not found.
            pub fn exit_code(self) -> u8 {
                match self { $(Self::$variant => $exit,)* }
            }

            /// One sentence for the docs: when this code is given.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }

            /// The code with this text.
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

codes! {
    Unauthenticated "UNAUTHENTICATED" Reauthenticate 4001 401 4 "There is no token, or it does not verify.";
    TokenExpired "TOKEN_EXPIRED" Reauthenticate 4002 401 4 "The token's time is over.";
    TokenRevoked "TOKEN_REVOKED" Stop 4003 401 4 "The token or its participant was revoked.";
    Denied "DENIED" Stop 4004 403 4 "The token does not allow this.";
    UnknownSession "UNKNOWN_SESSION" Stop 4005 404 6 "There is no session of this name, and the caller may not or did not ask to create it.";
    UnknownRun "UNKNOWN_RUN" Stop 4006 404 6 "The session has no run of this id.";
    RunFenced "RUN_FENCED" Stop 4007 409 3 "The run was cancelled: nothing of it can be written after `cancel_offset`.";
    RunEnded "RUN_ENDED" Stop 4008 409 3 "The run has completed or failed; it takes no more output.";
    StaleEpoch "STALE_EPOCH" Stop 4009 409 3 "Another writer holds the run under a newer run_epoch; `last_seq` is what was committed of yours.";
    SeqGap "SEQ_GAP" Retry 4010 409 3 "The seq is not the next one: go back to `expected_seq`.";
    AlreadyClaimed "ALREADY_CLAIMED" Stop 4011 409 3 "Somebody else holds the run.";
    ParentFenced "PARENT_FENCED" Stop 4012 409 3 "The parent run was cancelled; a child cannot start.";
    FloorHeld "FLOOR_HELD" Stop 4013 409 3 "A human has the floor.";
    WrongState "WRONG_STATE" Stop 4014 409 3 "The run, message or part is not in a state that allows this.";
    AlreadyResolved "ALREADY_RESOLVED" Stop 4015 409 3 "Somebody answered first.";
    Expired "EXPIRED" Stop 4016 409 3 "The deadline has passed.";
    KeyReused "KEY_REUSED" Stop 4017 422 3 "The same key was used for another body.";
    Gone "GONE" Reattach 4018 410 3 "The cursor belongs to another history or lies below what is kept; start where `details` say.";
    TooLarge "TOO_LARGE" Stop 4019 413 3 "A frame, event or batch is above its bound.";
    Malformed "MALFORMED" Stop 4020 400 2 "The request cannot be read, or a field is outside its shape.";
    UnsupportedVersion "UNSUPPORTED_VERSION" Stop 4021 501 1 "The protocol or data version is not known here.";
    TooManyPending "TOO_MANY_PENDING" Retry 4022 429 3 "Too many things of this kind wait already.";
    Quota "QUOTA" Retry 4023 429 3 "A quota of the namespace or session is used up.";
    Overloaded "OVERLOADED" Retry 4024 503 5 "The server has no room for this right now.";
    DiskFull "DISK_FULL" Retry 4025 507 1 "The disk has no room; readers go on.";
    NotLeader "NOT_LEADER" RetryElsewhere 4026 503 5 "This node does not lead the session's shard.";
    WrongCluster "WRONG_CLUSTER" Stop 4027 421 1 "The peer or the data belong to another cluster.";
    NoQuorum "NO_QUORUM" Retry 4028 503 5 "The shard has no majority right now.";
    Stale "STALE" RetryElsewhere 4029 503 5 "This replica has heard no leader for a while, or is being rebuilt from another.";
    Draining "DRAINING" RetryElsewhere 4030 503 5 "This server is about to stop; move on.";
    SlowReader "SLOW_READER" Reattach 4031 503 5 "The connection took no bytes for too long; nothing is lost, come back with the cursor.";
    Frozen "FROZEN" Stop 4032 409 3 "The session is frozen until an operator looks at it; or its whole shard is, because replicas differ and no majority agrees.";
    UnknownApproval "UNKNOWN_APPROVAL" Stop 4034 404 6 "The session has no request for an approval of this id.";
    Internal "INTERNAL" Retry 4033 500 1 "Our mistake. It is in the log of the server.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Facts that a client needs to go on. Each field is set only by the codes that its line names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// RUN_FENCED: the offset at which the cancel was committed.
    pub cancel_offset: Option<Offset>,
    /// RUN_FENCED, RUN_ENDED, WRONG_STATE, FLOOR_HELD: the refused epoch's stream is over;
    /// whatever may still be written starts here at seq 1.
    pub next_epoch: Option<RunEpoch>,
    /// STALE_EPOCH: the epoch that holds the run now.
    pub run_epoch: Option<RunEpoch>,
    /// SEQ_GAP: the seq to go back to.
    pub expected_seq: Option<Seq>,
    /// STALE_EPOCH: the last committed seq of the caller's own epoch.
    pub last_seq: Option<Seq>,
    /// STALE_EPOCH: the offset of `last_seq`.
    pub last_offset: Option<Offset>,
    /// RUN_ENDED, WRONG_STATE: the state that the run is in. ALREADY_RESOLVED: what became of the
    /// request.
    pub state: Option<&'static str>,
    /// RUN_ENDED: where the run ended. KEY_REUSED: where the key was used first.
    pub offset: Option<Offset>,
    /// ALREADY_CLAIMED, ALREADY_RESOLVED: who was first.
    pub by: Option<ParticipantId>,
    /// GONE: the first offset that can still be read.
    pub earliest: Option<Offset>,
    /// GONE: the last committed offset.
    pub tail: Option<Offset>,
    /// GONE: the history that the session has now.
    pub session_epoch: Option<SessionEpoch>,
    /// TOO_LARGE, TOO_MANY_PENDING, QUOTA: the bound.
    pub limit: Option<u64>,
    /// NOT_LEADER: the address to try instead.
    pub leader: Option<String>,
    /// NOT_LEADER: the term in which `leader` leads. A hint of a lower one is old news.
    pub term: Option<u64>,
    /// NOT_LEADER: the version of the topology that the hint was read from.
    pub map_version: Option<u64>,
}

/// A refusal: code, sentence, facts. The only error that crosses a crate's door to a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Refusal {
    /// Why, from the fixed list.
    pub code: Code,
    /// What happened, in one lower-case sentence without a full stop; never holds a payload
    /// or a token.
    pub message: String,
    /// What the client needs to go on.
    pub details: Box<Details>,
}

impl Refusal {
    /// A refusal without details.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: Box::default(),
        }
    }

    /// A refusal with details.
    pub fn with(code: Code, message: impl Into<String>, details: Details) -> Self {
        Self {
            code,
            message: message.into(),
            details: Box::new(details),
        }
    }

    /// What to do next.
    pub fn advice(&self) -> Advice {
        self.code.advice()
    }
}

/// Shape errors of names and positions are all MALFORMED.
macro_rules! malformed_from {
    ($($error:ty),*) => {$(
        impl From<$error> for Refusal {
            fn from(error: $error) -> Self {
                Self::new(Code::Malformed, error.to_string())
            }
        }
    )*};
}

malformed_from!(crate::ids::NameError, crate::position::PositionError);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_parse_back_and_close_codes_are_distinct() {
        let mut seen = BTreeSet::new();
        for code in Code::ALL {
            assert_eq!(Code::parse(code.as_str()), Some(*code));
            assert!((4000..5000).contains(&code.close_code()));
            assert!(seen.insert(code.close_code()), "{code}");
            assert!((400..600).contains(&code.http_status()), "{code}");
            assert!((1..=6).contains(&code.exit_code()), "{code}");
        }
        assert_eq!(Code::parse("NOPE"), None);
    }
}
