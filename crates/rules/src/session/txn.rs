//! The transaction: batches of commands over a read view, collected into one set of changes.

use std::collections::BTreeMap;

use everwire_core::command::{Batch, Control, Expire, Fire};
use everwire_core::row::{Row, RowKey, RowRange, SessionKey};
use everwire_core::{Code, Command, Event, Outcome, Refusal, Timestamp};

use super::lookup::Caller;
use super::overlay::{BatchTrace, Moment, Overlay, Step};
use super::{self as session, Stop, freeze, guard, lease, timer};

/// The newest rules that this build knows.
pub const RULES_VERSION: u32 = 3;

/// The version that a shard may be raised to, if any: the newest that every one of its voters
/// and learners has said that it knows. `None` stands for a member that has said nothing, and
/// then nothing is raised.
pub fn may_raise(current: u32, supported_of_members: &[Option<u32>]) -> Option<u32> {
    let known: Option<Vec<u32>> = supported_of_members.iter().copied().collect();
    let lowest = known?.into_iter().min()?;
    (lowest > current).then_some(lowest)
}

/// What applying may read: the shard's rows as they stood before this transaction.
pub trait View {
    /// The row under this key.
    fn get(&self, key: &RowKey) -> Result<Option<Row>, ViewError>;

    /// The first keys of a range, at most `limit`, in the order of [`RowKey`]: replicas that cut
    /// batches into transactions differently agree only if this order is the same everywhere.
    fn scan(&self, range: RowRange, limit: usize) -> Result<Vec<RowKey>, ViewError>;
}

/// A read failed, or a row was not what its key says. The process must end: skipping the
/// command would make this replica another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewError(pub String);

impl std::fmt::Display for ViewError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ViewError {}

/// What a shard carries besides rows; kept beside its applied index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardState {
    /// The time of its last command.
    pub time: Timestamp,
    /// The rules that it applies by.
    pub rules_version: u32,
}

impl Default for ShardState {
    /// A shard that has applied nothing.
    fn default() -> Self {
        Self {
            time: Timestamp(0),
            rules_version: 1,
        }
    }
}

/// Why a batch cannot be applied at all. Both end the replica; neither is ever skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApplyError {
    /// A read failed.
    View(ViewError),
    /// The batch or the shard needs rules that this build does not know.
    UnknownRules(u32),
}

impl From<ViewError> for ApplyError {
    fn from(error: ViewError) -> Self {
        Self::View(error)
    }
}

impl std::fmt::Display for ApplyError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::View(error) => write!(f, "a row cannot be read: {error}"),
            Self::UnknownRules(version) => {
                write!(f, "rules version {version} is not known to this build")
            },
        }
    }
}

impl std::error::Error for ApplyError {}

/// Batches being applied: what they have changed so far, over the view.
pub struct Txn<'v> {
    view: &'v dyn View,
    state: ShardState,
    supported: u32,
    overlay: Overlay,
    frozen: Vec<SessionKey>,
}

impl<'v> Txn<'v> {
    /// Starts from the shard's rows and state as they stand.
    pub fn new(view: &'v dyn View, state: ShardState) -> Self {
        Self::with_supported(view, state, RULES_VERSION)
    }

    /// The same by a replica that knows the rules up to `supported`: [`RULES_VERSION`], or
    /// another one where it is to be shown what an older or a newer build does.
    pub fn with_supported(view: &'v dyn View, state: ShardState, supported: u32) -> Self {
        Self {
            view,
            state,
            supported,
            overlay: Overlay::default(),
            frozen: Vec::new(),
        }
    }

    /// Where the shard stands after what was applied so far.
    pub fn state(&self) -> ShardState {
        self.state
    }

    /// Applies one batch; the outcomes are in the order of its commands. Takes the batch by
    /// value, because drafts become events without being copied. After an error the transaction
    /// is to be dropped.
    pub fn apply(&mut self, batch: Batch) -> Result<Vec<Outcome>, ApplyError> {
        self.overlay.batch = BatchTrace::default();
        self.known(batch.rules_version)?;
        self.known(self.state.rules_version)?;
        self.state.time = self.state.time.max(batch.stamp);
        for control in batch.control {
            self.control(batch.timeline, control)?;
        }
        let commands = batch.commands.into_iter();
        let outcomes = commands.map(|command| self.command(batch.timeline, command));
        outcomes.collect()
    }

    /// One command is kept or dropped as a whole. One whose decision panics is dropped, and its
    /// session is frozen.
    fn command(&mut self, timeline: u32, command: Command) -> Result<Outcome, ApplyError> {
        if command.op.rules_needed() > self.state.rules_version {
            return Ok(Outcome::Refused(too_new()));
        }
        let (caller, op) = Caller::of(command);
        let (meant, word) = (caller.clone(), op.word());
        let moment = self.moment(timeline);
        let mut step = Step::new(self.view, &mut self.overlay, moment);
        let decided = guard::decision(|| session::decide(&mut step, caller, op));
        match decided {
            Some(Ok(outcome)) => {
                step.commit();
                Ok(outcome)
            },
            Some(Err(Stop::Refused(refusal))) => Ok(Outcome::Refused(refusal)),
            Some(Err(Stop::View(error))) => Err(error.into()),
            None => {
                step.discard();
                self.freeze_of(timeline, &meant, word)
            },
        }
    }

    fn freeze_of(
        &mut self,
        timeline: u32,
        caller: &Caller,
        word: &str,
    ) -> Result<Outcome, ApplyError> {
        let moment = self.moment(timeline);
        let mut step = Step::new(self.view, &mut self.overlay, moment);
        let Some(name) = step.name(&caller.name_key())? else {
            // There is nothing to freeze.
            let message = "a command met a mistake of ours; it left nothing";
            return Ok(Outcome::Refused(Refusal::new(Code::Internal, message)));
        };
        let session = SessionKey {
            slot: caller.slot,
            session_no: name.session_no,
        };
        self.freeze(timeline, session, word)?;
        Ok(Outcome::Refused(freeze::refusal()))
    }

    fn freeze(&mut self, timeline: u32, session: SessionKey, word: &str) -> Result<(), ApplyError> {
        let moment = self.moment(timeline);
        let mut step = Step::new(self.view, &mut self.overlay, moment);
        freeze::freeze(&mut step, session, word)?;
        step.commit();
        self.frozen.push(session);
        Ok(())
    }

    fn fire(&mut self, timeline: u32, fire: Fire) -> Result<(), ApplyError> {
        let session = fire.session;
        self.unasked(timeline, session, "timer", |step| timer::fire(step, fire))
    }

    fn expire(&mut self, timeline: u32, expire: &Expire) -> Result<(), ApplyError> {
        let session = expire.session;
        self.unasked(timeline, session, "lease", |step| {
            lease::expire(step, expire)
        })
    }

    /// What the leader asks of one session; a panic in it freezes that session.
    fn unasked(
        &mut self,
        timeline: u32,
        session: SessionKey,
        word: &str,
        decide: impl FnOnce(&mut Step<'_>) -> Result<(), ViewError>,
    ) -> Result<(), ApplyError> {
        // The view still holds what this transaction has deleted.
        if self.overlay.erased.contains(&session) {
            return Ok(());
        }
        let moment = self.moment(timeline);
        let mut step = Step::new(self.view, &mut self.overlay, moment);
        match guard::decision(|| decide(&mut step)) {
            Some(decided) => {
                decided?;
                step.commit();
                Ok(())
            },
            None => {
                step.discard();
                self.freeze(timeline, session, word)
            },
        }
    }

    fn moment(&self, timeline: u32) -> Moment {
        Moment {
            time: self.state.time,
            timeline,
            rules: self.state.rules_version,
        }
    }

    /// What the last batch alone changed: the same however batches are cut into transactions.
    pub fn last_batch(&self) -> BatchChanges<'_> {
        BatchChanges {
            rows: self.overlay.batch_rows().collect(),
            events: self.overlay.batch_events(),
            erased: self.overlay.batch_erased(),
            state: self.state,
        }
    }

    fn known(&self, version: u32) -> Result<(), ApplyError> {
        if (1..=self.supported).contains(&version) {
            Ok(())
        } else {
            Err(ApplyError::UnknownRules(version))
        }
    }

    fn control(&mut self, timeline: u32, control: Control) -> Result<(), ApplyError> {
        // No leader says what its shard does not speak; if one did, all replicas would agree.
        if control.rules_needed() > self.state.rules_version {
            return Ok(());
        }
        match control {
            Control::RaiseRules { version } => {
                self.known(version)?;
                self.state.rules_version = self.state.rules_version.max(version);
            },
            Control::Fire(fire) => self.fire(timeline, fire)?,
            Control::Expire(expire) => self.expire(timeline, &expire)?,
            // Changes nothing: whoever applies the entry remembers its hash.
            Control::Audit => {},
        }
        Ok(())
    }

    /// What all batches changed.
    pub fn finish(self) -> Changes {
        let rows = self.overlay.rows.into_iter();
        let changed = rows.filter(|(_, loaded)| loaded.changed);
        Changes {
            rows: changed.map(|(key, loaded)| (key, loaded.row)).collect(),
            events: self.overlay.events,
            erased: self.overlay.erased,
            frozen: self.frozen,
            state: self.state,
        }
    }
}

/// A command that the shard's rules do not know yet.
fn too_new() -> Refusal {
    let message = "the shard speaks older rules: not every node of it runs a newer release yet";
    Refusal::new(Code::UnsupportedVersion, message)
}

/// What a transaction changed. Written in one go, or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Rows to write, or to remove where the value is `None`. Holds none of an erased session.
    pub rows: BTreeMap<RowKey, Option<Row>>,
    /// New events in the order of the log; within a session their offsets are dense. Holds none
    /// of an erased session.
    pub events: Vec<(SessionKey, Event)>,
    /// Sessions that were deleted: all their rows and events may go, now or later. Their
    /// numbers never come back.
    pub erased: Vec<SessionKey>,
    /// Sessions that were frozen: somebody should look.
    pub frozen: Vec<SessionKey>,
    /// The shard's state after the last batch.
    pub state: ShardState,
}

/// What one batch changed, while its transaction is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BatchChanges<'t> {
    /// Rows that it wrote, or removed where the value is `None`, as it left them; in key order.
    /// None of a session that it deleted.
    pub rows: Vec<(&'t RowKey, Option<&'t Row>)>,
    /// Its events in the order of the log; none of a session that it deleted.
    pub events: &'t [(SessionKey, Event)],
    /// Sessions that it deleted.
    pub erased: &'t [SessionKey],
    /// The shard's state after it.
    pub state: ShardState,
}
