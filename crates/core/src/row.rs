//! The replicated state of sessions, as rows: what is written in the batch of its events.
//!
//! `rules` reads and changes rows, `proto` encodes their values, `store` lays out their keys.
//! No row holds text of a conversation; only events do.

use crate::clock::Timestamp;
use crate::control::InputRef;
use crate::event::{
    ApprovalOutcome, Author, MessageStatus, PartKind, Role, StepStatus, SuspendReason, Verdict,
};
use crate::ids::{
    ActionHash, ApprovalId, InputId, Key, MessageId, Namespace, PartId, ParticipantId, RunId,
    SessionName, SessionNo, Slot, StepId,
};
use crate::position::{Offset, RunEpoch, Seq};

/// A session's place in the key space: all its rows and events share this prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionKey {
    /// The slot of its name.
    pub slot: Slot,
    /// Its number in that slot.
    pub session_no: SessionNo,
}

/// The key of a row.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowKey {
    /// Name → number. Removed at once by a delete.
    Name(Slot, Namespace, SessionName),
    /// The slot's counter of session numbers; never goes back.
    Counter(Slot),
    /// The session's head.
    Head(SessionKey),
    /// A run.
    Run(SessionKey, RunId),
    /// What one writer of a run has committed.
    Epoch(SessionKey, RunId, RunEpoch),
    /// Where a batch of a run stands; `n` is the batch's number modulo 256.
    Batch(SessionKey, RunId, RunEpoch, u8),
    /// A step of a run.
    Step(SessionKey, RunId, StepId),
    /// A message.
    Message(SessionKey, MessageId),
    /// A part of a message.
    Part(SessionKey, MessageId, PartId),
    /// An input.
    Input(SessionKey, ParticipantId, InputId),
    /// A client key, scoped to its author.
    Key(SessionKey, ParticipantId, Key),
    /// Index: client keys by age, for their removal.
    KeyAge(SessionKey, Timestamp, ParticipantId, Key),
    /// Index: live runs, by slot first so that a shard can be split.
    LiveRun(SessionKey, RunId),
    /// A stop of an input that no run answers yet.
    Tombstone(SessionKey, ParticipantId, InputId),
    /// A deadline of a session.
    Timer(SessionKey, Timestamp, TimerKind),
    /// A request for an approval.
    Approval(SessionKey, ApprovalId),
}

impl RowKey {
    /// The session whose row it is; names and counters belong to their slot.
    pub fn session(&self) -> Option<SessionKey> {
        match self {
            Self::Name(..) | Self::Counter(_) => None,
            Self::Head(session)
            | Self::Run(session, ..)
            | Self::Epoch(session, ..)
            | Self::Batch(session, ..)
            | Self::Step(session, ..)
            | Self::Message(session, ..)
            | Self::Part(session, ..)
            | Self::Input(session, ..)
            | Self::Key(session, ..)
            | Self::KeyAge(session, ..)
            | Self::LiveRun(session, ..)
            | Self::Tombstone(session, ..)
            | Self::Timer(session, ..)
            | Self::Approval(session, ..) => Some(*session),
        }
    }

    /// The slot under which it lies.
    pub fn slot(&self) -> Slot {
        match self {
            Self::Name(slot, ..) | Self::Counter(slot) => *slot,
            key => key.session().expect("every other row is a session's").slot,
        }
    }
}

/// What a deadline is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerKind {
    /// Client keys that count as absent are to be removed.
    StaleKeys,
    /// A run has been without a writer for too long.
    OrphanLimit,
    /// Nobody has answered a request for an approval.
    Approval,
}

impl TimerKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::StaleKeys, Self::OrphanLimit, Self::Approval];

    /// Its number on disk: for ever.
    pub fn number(self) -> u8 {
        match self {
            Self::StaleKeys => 1,
            Self::OrphanLimit => 2,
            Self::Approval => 3,
        }
    }

    /// The kind with this number.
    pub fn of_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// Ranges of rows that the rules scan, in key order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RowRange {
    /// [`RowKey::KeyAge`] of one session, the oldest first.
    KeyAges(SessionKey),
    /// [`RowKey::LiveRun`] of one session.
    LiveRuns(SessionKey),
    /// [`RowKey::Tombstone`] of one session.
    Tombstones(SessionKey),
}

impl RowRange {
    /// The session whose rows they are.
    pub fn session(self) -> SessionKey {
        match self {
            Self::KeyAges(session) | Self::LiveRuns(session) | Self::Tombstones(session) => session,
        }
    }

    /// Whether a row is one of these.
    pub fn holds(self, key: &RowKey) -> bool {
        match (self, key) {
            (Self::KeyAges(session), RowKey::KeyAge(of, ..))
            | (Self::LiveRuns(session), RowKey::LiveRun(of, _))
            | (Self::Tombstones(session), RowKey::Tombstone(of, ..)) => session == *of,
            _ => false,
        }
    }

    /// A key that sorts before all of these, and behind every other that does.
    pub fn lowest(self) -> RowKey {
        // The lowest character of each alphabet, alone.
        let somebody = || ParticipantId::parse("!").expect("a participant");
        match self {
            Self::KeyAges(session) => {
                let key = Key::parse("-").expect("a key");
                RowKey::KeyAge(session, Timestamp(0), somebody(), key)
            },
            Self::LiveRuns(session) => RowKey::LiveRun(session, RunId::parse("-").expect("a run")),
            Self::Tombstones(session) => {
                let input = InputId::parse("-").expect("an input");
                RowKey::Tombstone(session, somebody(), input)
            },
        }
    }
}

/// The value of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Row {
    /// See [`RowKey::Name`].
    Name(NameRow),
    /// See [`RowKey::Counter`]: the last number given.
    Counter(u64),
    /// See [`RowKey::Head`].
    Head(HeadRow),
    /// See [`RowKey::Run`].
    Run(RunRow),
    /// See [`RowKey::Epoch`].
    Epoch(EpochRow),
    /// See [`RowKey::Batch`].
    Batch(BatchRow),
    /// See [`RowKey::Step`].
    Step(StepRow),
    /// See [`RowKey::Message`].
    Message(MessageRow),
    /// See [`RowKey::Part`].
    Part(PartRow),
    /// See [`RowKey::Input`].
    Input(InputRow),
    /// See [`RowKey::Key`].
    Key(KeyRow),
    /// See [`RowKey::Tombstone`].
    Tombstone(TombstoneRow),
    /// See [`RowKey::Timer`].
    Timer(TimerRow),
    /// See [`RowKey::Approval`].
    Approval(ApprovalRow),
    /// See [`RowKey::KeyAge`] and [`RowKey::LiveRun`]: the key says it all.
    Index,
}

/// Name → number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NameRow {
    /// The session behind the name.
    pub session_no: SessionNo,
}

/// The head of a session. Invariant: `trimmed ≤ tail`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeadRow {
    /// When it was made.
    pub created: Timestamp,
    /// The time of its last event.
    pub last_time: Timestamp,
    /// The last offset.
    pub tail: Offset,
    /// Events up to here are gone.
    pub trimmed: Offset,
    /// Bytes of payload in the log.
    pub bytes: u64,
    /// Runs that are live.
    pub live_runs: u32,
    /// The day of command time that `people_today` counts, in days since 1970.
    pub day: u32,
    /// Inputs and signals committed on that day.
    pub people_today: u32,
    /// Set while the session takes nothing.
    pub frozen: Option<Frozen>,
    /// When its stale client keys are removed; `None` while it has no keys.
    pub keys_due: Option<Timestamp>,
    /// Requests for approvals that wait for their answer.
    pub open_approvals: u32,
}

/// A deadline that stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimerRow {
    /// Tells it from others of its session, kind and moment, before and after it: what fires
    /// must name the one that stands.
    pub guard: u64,
    /// The run that it is about, where the kind is about one.
    pub run: Option<RunId>,
    /// The request for an approval that it is about, where the kind is about one.
    pub approval: Option<ApprovalId>,
}

/// A session that takes no command until an operator has looked at it: the rules met a mistake
/// of their own in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frozen {
    /// Command time of the command that it was frozen by.
    pub time: Timestamp,
    /// What that command asked for: [`Op::word`](crate::command::Op::word).
    pub command: String,
}

/// Where a run stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RunState {
    /// Its writer may write.
    Running,
    /// It waits: its writer holds no lease, and loses none.
    Suspended,
    /// Its writer was silent for its whole lease: anybody may claim it.
    Orphaned,
    /// Ended well.
    Completed,
    /// Ended badly.
    Failed,
    /// Cancelled.
    Cancelled,
}

impl RunState {
    /// Every state.
    pub const ALL: [Self; 6] = [
        Self::Running,
        Self::Suspended,
        Self::Orphaned,
        Self::Completed,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Whether the state is final.
    pub fn is_terminal(self) -> bool {
        match self {
            Self::Running | Self::Suspended | Self::Orphaned => false,
            Self::Completed | Self::Failed | Self::Cancelled => true,
        }
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Suspended => "suspended",
            Self::Orphaned => "orphaned",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state with this word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }
}

/// A run. Lives as long as its session, so that a repeated end gets its first answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunRow {
    /// Where it stands.
    pub state: RunState,
    /// The epoch that may write.
    pub run_epoch: RunEpoch,
    /// Whoever was granted it.
    pub writer: ParticipantId,
    /// The input that it answers.
    pub input: Option<InputRef>,
    /// The run that it works for.
    pub parent: Option<RunId>,
    /// How many runs stand above it.
    pub depth: u32,
    /// For how long its writer may be silent, milliseconds; 0 where the rules that granted it knew
    /// no leases.
    pub lease_ms: u32,
    /// While it is orphaned: when it is given up.
    pub lost_at: Option<Timestamp>,
    /// The signal that its writer has not been seen to have seen.
    pub unobserved: Option<Offset>,
    /// What its writer may still append although it was cancelled.
    pub epilogue: Option<EpilogueRow>,
    /// Where `run.started` stands.
    pub started: Offset,
    /// Where it ended (the signal, for a cancel); `None` while it is live.
    pub ended: Option<Offset>,
    /// The epoch's stream was ended by a refusal: only a higher epoch may write.
    pub epoch_closed: bool,
    /// Its open messages, in order of their start.
    pub open_messages: Vec<MessageId>,
    /// Its open parts, over all messages.
    pub open_parts: u32,
    /// The step that it is in.
    pub open_step: Option<StepId>,
    /// Steps that it has begun, each counted once.
    pub steps: u32,
    /// Why it waits; there exactly while it is suspended.
    pub suspended: Option<SuspendReason>,
    /// Its requests for approvals that wait for their answer, in order.
    pub open_approvals: Vec<ApprovalId>,
}

impl RunRow {
    /// A root run that has just started, under its first epoch, with no lease.
    pub fn started(writer: ParticipantId, at: Offset) -> Self {
        Self {
            state: RunState::Running,
            run_epoch: RunEpoch::FIRST,
            writer,
            input: None,
            parent: None,
            depth: 0,
            lease_ms: 0,
            lost_at: None,
            unobserved: None,
            epilogue: None,
            started: at,
            ended: None,
            epoch_closed: false,
            open_messages: Vec::new(),
            open_parts: 0,
            open_step: None,
            steps: 0,
            suspended: None,
            open_approvals: Vec::new(),
        }
    }
}

/// The epilogue of a run that was cancelled gracefully.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpilogueRow {
    /// The epoch under which it is written.
    pub run_epoch: RunEpoch,
    /// The last moment at which it is taken.
    pub until: Timestamp,
}

/// What one writer of a run has committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochRow {
    /// Whoever was granted this epoch.
    pub writer: ParticipantId,
    /// Where the grant (`run.started`, `run.claimed`) stands.
    pub granted: Offset,
    /// The last committed seq.
    pub last_seq: Seq,
    /// Its offset; [`Offset::ZERO`] before the first.
    pub last_offset: Offset,
    /// Batches committed so far: the next one's row is this modulo 256.
    pub batches: u64,
}

/// Where one batch stands: seqs and offsets run side by side from the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchRow {
    /// Its first seq.
    pub first_seq: Seq,
    /// Its last seq.
    pub last_seq: Seq,
    /// The offset of its first seq.
    pub first_offset: Offset,
}

/// A step of a run, as its newest attempt stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepRow {
    /// Which attempt that is, from 1.
    pub attempt: u32,
    /// Where it began.
    pub started: Offset,
    /// How it ended; `None` while it is open, or when its run ended in the middle of it.
    pub status: Option<StepStatus>,
}

/// A message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageRow {
    /// The run that writes it.
    pub run: RunId,
    /// Who speaks.
    pub role: Role,
    /// Where it starts.
    pub started: Offset,
    /// How it ended; `None` while it is open.
    pub status: Option<MessageStatus>,
    /// Its open parts, in order of their start.
    pub open_parts: Vec<PartId>,
}

/// A part of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartRow {
    /// What it is.
    pub kind: PartKind,
    /// Whether it still takes deltas.
    pub open: bool,
    /// Bytes of text so far: the position of the next delta.
    pub bytes: u64,
    /// Deltas so far.
    pub deltas: u64,
}

/// An input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InputRow {
    /// Where it stands.
    pub offset: Offset,
    /// The run that was started last to answer it, as far as that said whose input it answers.
    pub run: Option<RunId>,
}

/// A stop of an input that no run answers yet: such a run is born cancelled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TombstoneRow {
    /// Where the signal stands.
    pub cancel_offset: Offset,
    /// Who pressed.
    pub by: Author,
    /// The last moment at which it counts.
    pub until: Timestamp,
}

/// A request for an approval. Lives as long as its session, so that who comes late is told who
/// was first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApprovalRow {
    /// The run that asks.
    pub run: RunId,
    /// What whoever answers must have seen.
    pub action_hash: ActionHash,
    /// Who may answer; empty: whoever has the right.
    pub approvers: Vec<ParticipantId>,
    /// From when on no answer is taken.
    pub deadline: Timestamp,
    /// Where its timer stands, while it is open: the deadline, or a moment later.
    pub due: Option<Timestamp>,
    /// What it stands for when nobody answers in time.
    pub on_expiry: Verdict,
    /// What became of it; `None` while it is open.
    pub resolved: Option<Resolved>,
}

/// What became of a request for an approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What.
    pub outcome: ApprovalOutcome,
    /// Where that stands.
    pub offset: Offset,
    /// By whom.
    pub by: ParticipantId,
}

/// A client key and what it stood for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRow {
    /// Hash of the body.
    pub body_hash: u128,
    /// Where the event stands.
    pub offset: Offset,
    /// The epoch that was granted, for starts and claims.
    pub run_epoch: Option<RunEpoch>,
    /// Command time; a key counts as absent after 24 h.
    pub time: Timestamp,
}
