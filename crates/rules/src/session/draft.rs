//! One draft laid on the messages and parts of its run: what it opens, grows or ends.
//!
//! Whether a message is open and this run's own is in the run row, so that a delta reads and
//! writes one small part row and nothing else.

use everwire_core::event::{Body, MessageStatus, PartKind, StepStatus};
use everwire_core::limits::{OPEN_MESSAGES_MAX, OPEN_PARTS_MAX, STEPS_PER_RUN_MAX};
use everwire_core::row::{MessageRow, PartRow, Row, RowKey, RunRow, StepRow};
use everwire_core::{Code, Details, MessageId, Offset, PartId, Refusal, RunId, StepId};

use super::Stop;
use super::lookup::Session;
use super::run::too_many;
use super::txn::ViewError;

/// A run while a batch of its writer is laid down.
pub(super) struct Page<'a> {
    pub(super) id: &'a RunId,
    pub(super) run: RunRow,
    /// Whether the run row differs from the stored one.
    pub(super) changed: bool,
}

impl Page<'_> {
    /// Applies one draft to messages and parts; stamps the position of a delta.
    pub(super) fn lay(
        &mut self,
        session: &mut Session<'_, '_>,
        body: &mut Body,
    ) -> Result<(), Stop> {
        self.check_awake(body)?;
        match body {
            Body::RunSuspended { reason, .. } => Ok(self.suspend(*reason)?),
            Body::RunResumed => Ok(self.resume()?),
            Body::ApprovalRequested(request) => self.request(session, request),
            Body::ApprovalResolved { approval, .. } => self.withdraw(session, approval),
            Body::StepStart { step, attempt, .. } => {
                *attempt = self.start_step(session, step)?;
                Ok(())
            },
            Body::StepEnd { step, status, .. } => self.end_step(session, step, *status),
            Body::MessageStart { message, role } => {
                let row = MessageRow {
                    run: self.id.clone(),
                    role: *role,
                    started: session.head.tail.next(),
                    status: None,
                    open_parts: Vec::new(),
                };
                self.start_message(session, message, row)
            },
            Body::MessageEnd { message, .. } => self.end_message(session, message),
            Body::PartStart {
                message,
                part,
                kind,
                ..
            } => self.start_part(session, message, part, *kind),
            Body::PartDelta {
                message,
                part,
                position,
                text,
            } => {
                self.check_open(message)?;
                let row_key = RowKey::Part(session.key, message.clone(), part.clone());
                let row = session.step.part_mut(&row_key)?.filter(|row| row.open);
                let row = row.ok_or_else(|| self.refuse("the part is not open"))?;
                *position = row.bytes;
                let bytes = u64::try_from(text.len()).unwrap_or(u64::MAX);
                row.bytes = row.bytes.saturating_add(bytes);
                row.deltas = row.deltas.saturating_add(1);
                Ok(())
            },
            Body::PartEnd { message, part, .. } => self.end_part(session, message, part),
            Body::RunEpilogue { .. } if self.run.epilogue.is_none() => {
                let message = "only a run that was stopped gracefully has an epilogue";
                Err(self.refuse(message).into())
            },
            Body::RunCompleted
            | Body::RunFailed { .. }
            | Body::RunEpilogue { .. }
            | Body::App { .. }
            | Body::RunStarted { .. }
            | Body::RunClaimed
            | Body::RunOrphaned
            | Body::RunCancelled { .. }
            | Body::Input { .. }
            | Body::SignalCancel { .. }
            | Body::SignalPause { .. }
            | Body::SignalResume { .. }
            | Body::SignalObserved { .. } => Ok(()),
        }
    }

    /// Begins the next attempt at a step. One that is open is superseded by it, and needs no end.
    fn start_step(&mut self, session: &mut Session<'_, '_>, step: &StepId) -> Result<u32, Stop> {
        if let Some(open) = &self.run.open_step
            && open != step
        {
            let message = "another step of the run is open: steps do not nest";
            return Err(self.refuse(message).into());
        }
        let row_key = RowKey::Step(session.key, self.id.clone(), step.clone());
        let before = session.step.step_of_run(&row_key)?;
        let attempt = match before {
            Some(before) => {
                if self.run.open_step.is_some() {
                    self.close_since(session, before.started, MessageStatus::Incomplete)?;
                }
                let attempt = before.attempt.checked_add(1);
                attempt.ok_or_else(|| too_many("the step has too many attempts", u32::MAX))?
            },
            None if self.run.steps >= STEPS_PER_RUN_MAX => {
                return Err(too_many("the run has too many steps", STEPS_PER_RUN_MAX).into());
            },
            None => {
                self.run.steps += 1;
                1
            },
        };
        let row = StepRow {
            attempt,
            started: session.head.tail.next(),
            status: None,
        };
        session.step.put(row_key, Row::Step(row));
        self.run.open_step = Some(step.clone());
        self.changed = true;
        Ok(attempt)
    }

    /// Ends the open messages that began in an attempt at a step, which began there.
    fn close_since(
        &mut self,
        session: &mut Session<'_, '_>,
        began: Offset,
        status: MessageStatus,
    ) -> Result<(), Stop> {
        for message in self.run.open_messages.clone() {
            let (_, row) = self.open_message(session, &message)?;
            if row.started > began {
                self.close_message(session, &message, status)?;
            }
        }
        Ok(())
    }

    fn end_step(
        &mut self,
        session: &mut Session<'_, '_>,
        step: &StepId,
        status: StepStatus,
    ) -> Result<(), Stop> {
        if self.run.open_step.as_ref() != Some(step) {
            return Err(self.refuse("the run has no open step of this id").into());
        }
        let row_key = RowKey::Step(session.key, self.id.clone(), step.clone());
        let row = session.step.step_of_run(&row_key)?;
        let mut row =
            row.ok_or_else(|| ViewError(format!("no row for {row_key:?}, which is open")))?;
        let messages = match status {
            StepStatus::Complete => MessageStatus::Complete,
            StepStatus::Failed => MessageStatus::Incomplete,
        };
        self.close_since(session, row.started, messages)?;
        row.status = Some(status);
        session.step.put(row_key, Row::Step(row));
        self.run.open_step = None;
        self.changed = true;
        Ok(())
    }

    fn start_message(
        &mut self,
        session: &mut Session<'_, '_>,
        message: &MessageId,
        row: MessageRow,
    ) -> Result<(), Stop> {
        let row_key = RowKey::Message(session.key, message.clone());
        if session.step.message(&row_key)?.is_some() {
            return Err(self.refuse("the message id is used already").into());
        }
        let open = u32::try_from(self.run.open_messages.len()).unwrap_or(u32::MAX);
        if open >= OPEN_MESSAGES_MAX {
            return Err(too_many("the run has too many open messages", OPEN_MESSAGES_MAX).into());
        }
        session.step.put(row_key, Row::Message(row));
        self.run.open_messages.push(message.clone());
        self.changed = true;
        Ok(())
    }

    fn end_message(
        &mut self,
        session: &mut Session<'_, '_>,
        message: &MessageId,
    ) -> Result<(), Stop> {
        self.check_open(message)?;
        self.close_message(session, message, MessageStatus::Complete)
    }

    fn close_message(
        &mut self,
        session: &mut Session<'_, '_>,
        message: &MessageId,
        status: MessageStatus,
    ) -> Result<(), Stop> {
        let (row_key, mut row) = self.open_message(session, message)?;
        for part in std::mem::take(&mut row.open_parts) {
            let part_key = RowKey::Part(session.key, message.clone(), part);
            if let Some(part) = session.step.part_mut(&part_key)? {
                part.open = false;
            }
            self.run.open_parts = self.run.open_parts.saturating_sub(1);
        }
        row.status = Some(status);
        session.step.put(row_key, Row::Message(row));
        self.run.open_messages.retain(|open| open != message);
        self.changed = true;
        Ok(())
    }

    fn start_part(
        &mut self,
        session: &mut Session<'_, '_>,
        message: &MessageId,
        part: &PartId,
        kind: PartKind,
    ) -> Result<(), Stop> {
        self.check_open(message)?;
        let part_key = RowKey::Part(session.key, message.clone(), part.clone());
        if session.step.part(&part_key)?.is_some() {
            return Err(self.refuse("the part id is used already").into());
        }
        if self.run.open_parts >= OPEN_PARTS_MAX {
            return Err(too_many("the run has too many open parts", OPEN_PARTS_MAX).into());
        }
        let (row_key, mut row) = self.open_message(session, message)?;
        row.open_parts.push(part.clone());
        session.step.put(row_key, Row::Message(row));
        let row = PartRow {
            kind,
            open: true,
            bytes: 0,
            deltas: 0,
        };
        session.step.put(part_key, Row::Part(row));
        self.run.open_parts += 1;
        self.changed = true;
        Ok(())
    }

    fn end_part(
        &mut self,
        session: &mut Session<'_, '_>,
        message: &MessageId,
        part: &PartId,
    ) -> Result<(), Stop> {
        self.check_open(message)?;
        let part_key = RowKey::Part(session.key, message.clone(), part.clone());
        let open = session.step.part_mut(&part_key)?.filter(|row| row.open);
        let open = open.ok_or_else(|| self.refuse("the part is not open"))?;
        open.open = false;
        let (row_key, mut row) = self.open_message(session, message)?;
        row.open_parts.retain(|open| open != part);
        session.step.put(row_key, Row::Message(row));
        self.run.open_parts = self.run.open_parts.saturating_sub(1);
        self.changed = true;
        Ok(())
    }

    fn check_open(&self, message: &MessageId) -> Result<(), Refusal> {
        if self.run.open_messages.contains(message) {
            return Ok(());
        }
        Err(self.refuse("the run has no open message of this id"))
    }

    /// The row of a message that the run row calls open.
    fn open_message(
        &self,
        session: &mut Session<'_, '_>,
        message: &MessageId,
    ) -> Result<(RowKey, MessageRow), Stop> {
        let row_key = RowKey::Message(session.key, message.clone());
        let row = session.step.message(&row_key)?;
        let row = row.ok_or_else(|| ViewError(format!("no row for {row_key:?}, which is open")))?;
        Ok((row_key, row))
    }

    /// A refusal by state: it ends the epoch's stream.
    pub(super) fn refuse(&self, message: &str) -> Refusal {
        let details = Details {
            state: Some(self.run.state.as_str()),
            next_epoch: Some(self.run.run_epoch.next()),
            ..Details::default()
        };
        Refusal::with(Code::WrongState, message, details)
    }
}
