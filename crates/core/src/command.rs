//! What the replicated log carries, and what applying it answers.
//!
//! A command holds everything that its application needs: the actor's verified identity, what
//! the token allowed, hashes of bodies. `rules` reads only the shard's state and the command.

use crate::clock::Timestamp;
use crate::code::Refusal;
use crate::control::{Cancel, InputRef, Lease, Signal};
use crate::event::{Author, Body, Data, Draft};
use crate::ids::{Key, Namespace, RunId, SessionName};
use crate::position::{Offset, RunEpoch, Seq, SessionEpoch};
use crate::row::{RunState, SessionKey, TimerKind};

/// The two lanes in front of a shard's log; never reordered within. People first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Inputs and signals, in their connection's order.
    People,
    /// Output of runs, run lifecycle and application events.
    Agents,
}

/// What one log entry of a shard asks for: commands of many sessions, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// The leader's wall clock when it proposed. Command time is the later of this and the
    /// time of the shard's previous command.
    pub stamp: Timestamp,
    /// The rules that the commands need; a replica that does not know them stops.
    pub rules_version: u32,
    /// The cluster's timeline: half of every session epoch.
    pub timeline: u32,
    /// What the leader asks of the whole shard: done before the commands, in order.
    pub control: Vec<Control>,
    /// The commands; each has its own outcome.
    pub commands: Vec<Command>,
}

/// What a leader asks of its whole shard. Nobody's request: it has no actor, and no outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Control {
    /// The shard applies by these rules from here on, and never again by older ones. Proposed
    /// when every member has said that it knows them; a replica that does not know them stops.
    RaiseRules {
        /// The rules' version.
        version: u32,
    },
    /// A deadline has come, as the leader sees it. Does nothing unless the timer stands, with this
    /// guard, and is due by command time.
    Fire(Fire),
    /// Each replica remembers what it has computed up to the end of this entry, to be compared.
    Audit,
    /// A run's writer has shown no sign of life for its whole lease, as the leader's own clock
    /// has it. Does nothing if the writer, or anything else, has moved the run meanwhile.
    Expire(Expire),
}

impl Control {
    /// The oldest rules that know it.
    pub fn rules_needed(&self) -> u32 {
        match self {
            Self::RaiseRules { .. } | Self::Fire(_) | Self::Audit => 1,
            Self::Expire(_) => 2,
        }
    }
}

/// A run whose lease has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expire {
    /// Its session.
    pub session: SessionKey,
    /// The run.
    pub run: RunId,
    /// The epoch whose writer is silent.
    pub run_epoch: RunEpoch,
    /// The last offset that this epoch committed; [`Offset::ZERO`] before its first.
    pub last_offset: Offset,
}

/// A timer that is to fire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fire {
    /// Whose deadline it is.
    pub session: SessionKey,
    /// When it was to be.
    pub due: Timestamp,
    /// What it is about.
    pub kind: TimerKind,
    /// Which one of that session, moment and kind.
    pub guard: u64,
}

/// One command on one session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Command {
    /// The tenant, from the token.
    pub namespace: Namespace,
    /// The session.
    pub session: SessionName,
    /// The verified identity that becomes the events' author.
    pub actor: Author,
    /// The token allows to create this session if it does not exist.
    pub may_create: bool,
    /// The history that the caller means, if it said so: refused with GONE when the session has
    /// another one now. So what was meant for a deleted session never lands in its successor.
    pub session_epoch: Option<SessionEpoch>,
    /// What to do.
    pub op: Op,
}

/// What a command does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes the session if it is not there. Idempotent.
    CreateSession,
    /// Removes the session's name at once and its rows after it.
    DeleteSession,
    /// Lets a frozen session take commands again. Idempotent.
    Unfreeze,
    /// Begins a run; grants epoch 1.
    StartRun(StartRun),
    /// Takes a live run over; grants the next epoch.
    ClaimRun {
        /// The run.
        run: RunId,
        /// For how long the new writer may be silent.
        lease: Option<Lease>,
        /// Makes a repeated claim answer like the first.
        key: Option<Key>,
    },
    /// A sign of life of a run's writer, and how far it has read. The leader answers it from
    /// memory while nothing waits to be observed; only else it goes into the log.
    Heartbeat {
        /// The run.
        run: RunId,
        /// The writer's epoch.
        run_epoch: RunEpoch,
        /// The writer has seen all events up to here.
        observed_through: Option<Offset>,
    },
    /// Appends a run's output: messages, parts, `app` events, and its end.
    Publish {
        /// The run.
        run: RunId,
        /// The writer's epoch.
        run_epoch: RunEpoch,
        /// The seq of the first draft; the others follow densely.
        first_seq: Seq,
        /// 1 to [`crate::limits::BATCH_EVENTS_MAX`] drafts.
        drafts: Vec<Draft>,
    },
    /// Appends one input or one `app` event outside runs.
    Post {
        /// The input or `app` event.
        draft: Draft,
        /// Required for inputs; without one a retried `app` event may double.
        key: Option<Key>,
        /// Hash of the draft's encoding, made by the proposer: same key, other body is refused.
        body_hash: u128,
    },
    /// Stops a run, or more.
    Cancel {
        /// What, and how.
        cancel: Cancel,
        /// Required.
        key: Key,
        /// Hash of the signal's encoding.
        body_hash: u128,
    },
    /// Another signal than a stop.
    Signal {
        /// Which.
        signal: Signal,
        /// Required.
        key: Key,
        /// Hash of the signal's encoding.
        body_hash: u128,
    },
}

/// What a start asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartRun {
    /// The run.
    pub run: RunId,
    /// The input that it answers.
    pub input: Option<InputRef>,
    /// The live run that it works for.
    pub parent: Option<RunId>,
    /// For how long its writer may be silent.
    pub lease: Option<Lease>,
    /// What the application says about it; at most
    /// [`RUN_META_BYTES_MAX`](crate::limits::RUN_META_BYTES_MAX).
    pub meta: Option<Data>,
    /// Makes a repeated start answer like the first.
    pub key: Option<Key>,
}

impl StartRun {
    /// A root run that answers nothing, with the default lease.
    pub fn new(run: RunId) -> Self {
        Self {
            run,
            input: None,
            parent: None,
            lease: None,
            meta: None,
            key: None,
        }
    }

    /// Whether it says anything that the first rules did not know.
    fn is_plain(&self) -> bool {
        let author = self.input.as_ref().and_then(|input| input.author.as_ref());
        author.is_none() && self.parent.is_none() && self.lease.is_none() && self.meta.is_none()
    }
}

impl Op {
    /// The lane that the command waits in.
    pub fn lane(&self) -> Lane {
        match self {
            Self::Post { draft, .. } => match draft.body {
                Body::Input { .. } => Lane::People,
                _ => Lane::Agents,
            },
            Self::Cancel { .. } | Self::Signal { .. } => Lane::People,
            Self::CreateSession
            | Self::DeleteSession
            | Self::Unfreeze
            | Self::StartRun(_)
            | Self::ClaimRun { .. }
            | Self::Heartbeat { .. }
            | Self::Publish { .. } => Lane::Agents,
        }
    }

    /// The oldest rules that know the command as it is said. A leader proposes nothing that the
    /// rules of its shard do not know.
    pub fn rules_needed(&self) -> u32 {
        let second_if = |newer| if newer { 2 } else { 1 };
        match self {
            Self::CreateSession | Self::DeleteSession | Self::Unfreeze | Self::Post { .. } => 1,
            Self::StartRun(start) => second_if(!start.is_plain()),
            Self::ClaimRun { lease, .. } => second_if(lease.is_some()),
            Self::Heartbeat { .. } => 2,
            Self::Publish { drafts, .. } => {
                let needed = drafts.iter().map(|draft| rules_of_output(&draft.body));
                needed.max().unwrap_or(1)
            },
            Self::Cancel { cancel, .. } => match cancel.guard.state {
                Some(RunState::Suspended) => 3,
                _ => second_if(!cancel.is_plain()),
            },
            Self::Signal { .. } => 3,
        }
    }

    /// What is asked for, in a word: for people, where a session was frozen.
    pub fn word(&self) -> &'static str {
        match self {
            Self::CreateSession => "create",
            Self::DeleteSession => "delete",
            Self::Unfreeze => "unfreeze",
            Self::StartRun(_) => "start",
            Self::ClaimRun { .. } => "claim",
            Self::Heartbeat { .. } => "heartbeat",
            Self::Publish { .. } => "publish",
            Self::Post { .. } => "post",
            Self::Cancel { .. } => "cancel",
            Self::Signal { signal, .. } => signal.as_str(),
        }
    }

    /// Bytes that the command weighs in its queue and in a log entry: payload plus a flat
    /// allowance per draft for envelopes.
    pub fn weight_bytes(&self) -> usize {
        const ENVELOPE: usize = 128;
        match self {
            Self::Publish { drafts, .. } => {
                drafts
                    .iter()
                    .map(|draft| draft.payload_bytes() + ENVELOPE)
                    .sum::<usize>()
                    + ENVELOPE
            },
            Self::Post { draft, .. } => draft.payload_bytes() + 2 * ENVELOPE,
            Self::StartRun(start) => start.meta.as_ref().map_or(0, Data::len) + 2 * ENVELOPE,
            Self::CreateSession
            | Self::DeleteSession
            | Self::Unfreeze
            | Self::ClaimRun { .. }
            | Self::Heartbeat { .. }
            | Self::Cancel { .. }
            | Self::Signal { .. } => 2 * ENVELOPE,
        }
    }
}

/// The oldest rules that know such output of a run.
fn rules_of_output(body: &Body) -> u32 {
    match body {
        Body::RunEpilogue { .. } | Body::StepStart { .. } | Body::StepEnd { .. } => 2,
        Body::RunSuspended { .. }
        | Body::RunResumed
        | Body::ApprovalRequested(_)
        | Body::ApprovalResolved { .. } => 3,
        _ => 1,
    }
}

/// What applying a command answered; the same on every replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The session is there.
    SessionReady {
        /// Its history.
        session_epoch: SessionEpoch,
        /// Its last offset.
        tail: Offset,
        /// Whether this command made it.
        created: bool,
    },
    /// The session is gone, or was not there.
    SessionDeleted {
        /// Whether there was one.
        existed: bool,
    },
    /// The session takes commands.
    SessionUnfrozen {
        /// Its history.
        session_epoch: SessionEpoch,
        /// Whether it had been frozen.
        frozen: bool,
    },
    /// A start or a claim was granted.
    RunGranted {
        /// The session's history.
        session_epoch: SessionEpoch,
        /// The epoch to write under.
        run_epoch: RunEpoch,
        /// The offset of `run.started` or `run.claimed`.
        offset: Offset,
        /// For how long the writer may be silent; `None` where the shard's rules know no leases.
        lease: Option<Lease>,
        /// Whether this answers a repeated request.
        duplicate: bool,
    },
    /// A sign of life was taken.
    Renewed {
        /// The session's history.
        session_epoch: SessionEpoch,
        /// The state of the run: running, or cancelled when this told that the stop was seen.
        state: RunState,
        /// Where `signal.observed` stands, if this command committed it.
        observed: Option<Offset>,
    },
    /// Output was taken, in whole or in part.
    Published(Published),
    /// An input or application event was taken.
    Posted {
        /// The session's history.
        session_epoch: SessionEpoch,
        /// Its offset.
        offset: Offset,
        /// Whether this answers a repeated request.
        duplicate: bool,
    },
    /// A signal was decided.
    Signalled {
        /// The session's history.
        session_epoch: SessionEpoch,
        /// How.
        outcome: SignalOutcome,
        /// Whether this answers a repeated request.
        duplicate: bool,
    },
    /// Nothing was changed.
    Refused(Refusal),
}

/// The answer to a publish batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The session's history.
    pub session_epoch: SessionEpoch,
    /// The part of the batch that had been committed before, with its original place.
    pub duplicate: Option<Duplicate>,
    /// The part that was committed now.
    pub appended: Option<Appended>,
}

impl Published {
    /// The last seq and offset that are known to be committed: what a cumulative ack says.
    pub fn through(&self) -> Option<(Seq, Offset)> {
        match (&self.appended, &self.duplicate) {
            (Some(appended), _) => Some((appended.last_seq, appended.last_offset)),
            (None, Some(duplicate)) => Some((duplicate.through_seq, duplicate.through_offset)),
            (None, None) => None,
        }
    }
}

/// The head of a batch that was committed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Duplicate {
    /// The last seq of this batch that had been committed.
    pub through_seq: Seq,
    /// The offset of that seq, or, when the exact place is no longer remembered, of the run's
    /// last committed seq.
    pub through_offset: Offset,
    /// Whether offsets before `through_offset` follow densely, one per seq, as far back as
    /// this batch reaches.
    pub exact: bool,
}

/// The part of a batch that was committed now. Seqs and offsets run side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The first seq.
    pub first_seq: Seq,
    /// The last seq.
    pub last_seq: Seq,
    /// The offset of `first_seq`.
    pub first_offset: Offset,
    /// The offset of `last_seq`.
    pub last_offset: Offset,
}

/// The four outcomes of a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SignalOutcome {
    /// It is so. Of a run that was cancelled nothing is committed after this offset but its
    /// sealing.
    Applied {
        /// Where the signal, or the answer, stands.
        offset: Offset,
    },
    /// The run had ended before.
    AlreadyTerminal {
        /// How.
        state: RunState,
        /// Where its end stands.
        offset: Offset,
    },
    /// The token does not allow it. Decided before the log; never committed.
    Denied,
    /// There is no such run.
    UnknownRun,
}

impl SignalOutcome {
    /// The word on the wire.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Applied { .. } => "applied",
            Self::AlreadyTerminal { .. } => "already_terminal",
            Self::Denied => "denied",
            Self::UnknownRun => "unknown_run",
        }
    }
}
