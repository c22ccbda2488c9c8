//! Who calls and which session they mean: the first steps of every command, and the session
//! that a command appends to.

use everwire_core::command::Command;
use everwire_core::event::{Draft, RunStamp};
use everwire_core::limits::LIVE_RUNS_MAX;
use everwire_core::row::{HeadRow, NameRow, Row, RowKey, RowRange, RunRow, SessionKey, TimerKind};
use everwire_core::{
    Author, Code, Details, Event, Namespace, Offset, Op, Refusal, RunId, SessionEpoch, SessionName,
    SessionNo, Slot,
};

use super::overlay::Step;
use super::txn::ViewError;
use super::{Stop, approval, freeze, seal};

/// A command without what it asks for.
#[derive(Clone)]
pub(super) struct Caller {
    namespace: Namespace,
    session: SessionName,
    actor: Author,
    may_create: bool,
    /// The history that is meant.
    session_epoch: Option<SessionEpoch>,
    pub(super) slot: Slot,
}

impl Caller {
    pub(super) fn of(command: Command) -> (Self, Op) {
        let caller = Self {
            slot: Slot::of(&command.namespace, &command.session),
            namespace: command.namespace,
            session: command.session,
            actor: command.actor,
            may_create: command.may_create,
            session_epoch: command.session_epoch,
        };
        (caller, command.op)
    }

    pub(super) fn name_key(&self) -> RowKey {
        RowKey::Name(self.slot, self.namespace.clone(), self.session.clone())
    }
}

pub(super) fn unknown_session() -> Refusal {
    Refusal::new(Code::UnknownSession, "there is no session of this name")
}

/// What was meant for a session that was deleted must not land in its successor.
fn another_history(now: SessionEpoch, head: &HeadRow) -> Refusal {
    let details = Details {
        session_epoch: Some(now),
        earliest: Some(head.trimmed.next()),
        tail: Some(head.tail),
        ..Details::default()
    };
    let message = "the session was deleted and made anew";
    Refusal::with(Code::Gone, message, details)
}

/// The session that a command works on, with its head in hand. Nothing of the head is written
/// before [`Session::save`].
pub(super) struct Session<'s, 't> {
    pub(super) step: &'s mut Step<'t>,
    pub(super) key: SessionKey,
    pub(super) head: HeadRow,
    pub(super) actor: Author,
}

impl<'s, 't> Session<'s, 't> {
    /// The session, which must be there.
    pub(super) fn existing(step: &'s mut Step<'t>, caller: Caller) -> Result<Self, Stop> {
        match Self::find(step, &caller)? {
            Some((key, head)) => Ok(Self::at(step, key, head, caller)),
            None => Err(unknown_session().into()),
        }
    }

    /// The session, made if it is not there and the token allowed that. The flag says whether
    /// it was made.
    pub(super) fn ensured(step: &'s mut Step<'t>, caller: Caller) -> Result<(Self, bool), Stop> {
        if let Some((key, head)) = Self::find(step, &caller)? {
            return Ok((Self::at(step, key, head, caller), false));
        }
        if caller.session_epoch.is_some() {
            let message = "the session that is meant was deleted";
            return Err(Refusal::new(Code::UnknownSession, message).into());
        }
        if !caller.may_create {
            let message = "there is no session of this name, and the token may not create it";
            return Err(Refusal::new(Code::UnknownSession, message).into());
        }
        let slot = caller.slot;
        let last = step.counter(&RowKey::Counter(slot))?.unwrap_or(0);
        let number = last
            .checked_add(1)
            .ok_or_else(|| ViewError(format!("the counter of slot {} is used up", slot.get())))?;
        let session_no = SessionNo(number);
        step.put(RowKey::Counter(slot), Row::Counter(number));
        step.put(caller.name_key(), Row::Name(NameRow { session_no }));
        let head = HeadRow {
            created: step.time,
            last_time: step.time,
            tail: Offset::ZERO,
            trimmed: Offset::ZERO,
            bytes: 0,
            live_runs: 0,
            day: 0,
            people_today: 0,
            frozen: None,
            keys_due: None,
            open_approvals: 0,
        };
        let key = SessionKey { slot, session_no };
        step.put(RowKey::Head(key), Row::Head(head.clone()));
        Ok((Self::at(step, key, head, caller), true))
    }

    /// The session, frozen or not, if there is one.
    pub(super) fn even_frozen(
        step: &'s mut Step<'t>,
        caller: Caller,
    ) -> Result<Option<Self>, Stop> {
        let found = Self::look_up(step, &caller)?;
        Ok(found.map(|(key, head)| Self::at(step, key, head, caller)))
    }

    fn find(step: &mut Step<'_>, caller: &Caller) -> Result<Option<(SessionKey, HeadRow)>, Stop> {
        let found = Self::look_up(step, caller)?;
        if let Some((_, head)) = &found
            && head.frozen.is_some()
        {
            return Err(freeze::refusal().into());
        }
        Ok(found)
    }

    fn look_up(
        step: &mut Step<'_>,
        caller: &Caller,
    ) -> Result<Option<(SessionKey, HeadRow)>, Stop> {
        let Some(name) = step.name(&caller.name_key())? else {
            return Ok(None);
        };
        let key = SessionKey {
            slot: caller.slot,
            session_no: name.session_no,
        };
        let head = step.head(&RowKey::Head(key))?;
        let head =
            head.ok_or_else(|| ViewError(format!("no head for {key:?}, which has a name")))?;
        let now = SessionEpoch {
            timeline: step.timeline,
            session_no: key.session_no,
        };
        if caller.session_epoch.is_some_and(|meant| meant != now) {
            return Err(another_history(now, &head).into());
        }
        Ok(Some((key, head)))
    }

    fn at(step: &'s mut Step<'t>, key: SessionKey, head: HeadRow, caller: Caller) -> Self {
        let actor = caller.actor;
        Self {
            step,
            key,
            head,
            actor,
        }
    }

    pub(super) fn epoch(&self) -> SessionEpoch {
        SessionEpoch {
            timeline: self.step.timeline,
            session_no: self.key.session_no,
        }
    }

    pub(super) fn run_key(&self, run: &RunId) -> RowKey {
        RowKey::Run(self.key, run.clone())
    }

    /// The run, if there is one.
    pub(super) fn run(&mut self, run: &RunId) -> Result<Option<RunRow>, Stop> {
        let key = self.run_key(run);
        Ok(self.step.run(&key)?)
    }

    /// The session's live runs, by the order of their start. Sees what earlier commands did.
    pub(super) fn live_runs(&mut self) -> Result<Vec<(RunId, RunRow)>, Stop> {
        let limit = usize::try_from(LIVE_RUNS_MAX).unwrap_or(usize::MAX);
        let mut live = Vec::new();
        for key in self.step.scan(RowRange::LiveRuns(self.key), limit)? {
            let RowKey::LiveRun(_, id) = key else {
                return Err(ViewError(format!("{key:?} in a scan of live runs")).into());
            };
            let row = self.run(&id)?;
            let row = row.ok_or_else(|| ViewError(format!("no row for {id}, which is live")))?;
            live.push((id, row));
        }
        live.sort_by_key(|(_, row)| row.started);
        Ok(live)
    }

    /// Appends an event with the next offset.
    pub(super) fn append(&mut self, stamp: Option<RunStamp>, draft: Draft) -> Offset {
        let offset = self.head.tail.next();
        let bytes = u64::try_from(draft.payload_bytes()).unwrap_or(u64::MAX);
        self.head.tail = offset;
        self.head.last_time = self.step.time;
        self.head.bytes = self.head.bytes.saturating_add(bytes);
        let event = Event {
            offset,
            time: self.step.time,
            run: stamp,
            author: self.actor.clone(),
            parent: draft.parent,
            visibility: draft.visibility,
            format: draft.format,
            codec: draft.codec,
            body: draft.body,
            raw: draft.raw,
        };
        self.step.emit(self.key, event);
        offset
    }

    /// A session in which the server itself does something.
    pub(super) fn of_server(step: &'s mut Step<'t>, key: SessionKey, head: HeadRow) -> Self {
        let actor = Author::server();
        Self {
            step,
            key,
            head,
            actor,
        }
    }

    /// Ends a live run: withdraws what it asks for, seals its open messages, takes it from the live ones, writes its row.
    pub(super) fn end_run(
        &mut self,
        id: RunId,
        mut run: RunRow,
        end: seal::End,
    ) -> Result<(), ViewError> {
        if let Some(lost_at) = run.lost_at.take() {
            let timer = RowKey::Timer(self.key, lost_at, TimerKind::OrphanLimit);
            self.step.remove(timer);
        }
        approval::withdraw_all(self, &id, &mut run)?;
        let run = seal::end(self, &id, run, end)?;
        self.head.live_runs = self.head.live_runs.saturating_sub(1);
        self.step.remove(RowKey::LiveRun(self.key, id.clone()));
        self.step.put(self.run_key(&id), Row::Run(run));
        Ok(())
    }

    /// Writes the head.
    pub(super) fn save(self) {
        self.step.put(RowKey::Head(self.key), Row::Head(self.head));
    }
}
