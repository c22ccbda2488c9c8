//! Requests for an approval: a run asks in its output, the first valid answer that is committed
//! wins, and silence until the deadline is told as such, never as a person's denial.

use everwire_core::event::{ApprovalOutcome, Body, Draft};
use everwire_core::event::{SuspendReason, Verdict};
use everwire_core::limits::OPEN_APPROVALS_MAX;
use everwire_core::row::{
    ApprovalRow, HeadRow, Resolved, Row, RowKey, RunRow, RunState, SessionKey, TimerKind, TimerRow,
};
use everwire_core::{
    Answer, ApprovalId, Code, Details, Offset, ParticipantId, Refusal, Request, RunId,
};

use super::draft::Page;
use super::lookup::Session;
use super::overlay::Step;
use super::run::too_many;
use super::seal::server_stamp;
use super::signal::Decided;
use super::txn::ViewError;
use super::{Stop, suspend, timer};

impl Page<'_> {
    /// The writer asks for an approval; the server stamps when it expires.
    pub(super) fn request(
        &mut self,
        session: &mut Session<'_, '_>,
        request: &mut Request,
    ) -> Result<(), Stop> {
        let row_key = RowKey::Approval(session.key, request.approval.clone());
        if session.step.approval(&row_key)?.is_some() {
            return Err(self.refuse("the approval id is used already").into());
        }
        if session.head.open_approvals >= OPEN_APPROVALS_MAX {
            let message = "the session waits for too many approvals";
            return Err(too_many(message, OPEN_APPROVALS_MAX).into());
        }
        request.within_ms = Request::waits_ms(request.within_ms);
        let deadline = session.step.time.0.saturating_add(request.within_ms.into());
        request.deadline = everwire_core::Timestamp(deadline);
        let timer = TimerRow {
            guard: session.head.tail.next().get(),
            run: Some(self.id.clone()),
            approval: Some(request.approval.clone()),
        };
        let kind = TimerKind::Approval;
        let due = timer::set(session.step, session.key, kind, request.deadline, timer)?;
        let row = ApprovalRow {
            run: self.id.clone(),
            action_hash: request.action_hash.clone(),
            approvers: request.approvers.clone(),
            deadline: request.deadline,
            due: Some(due),
            on_expiry: request.on_expiry,
            resolved: None,
        };
        session.step.put(row_key, Row::Approval(row));
        session.head.open_approvals += 1;
        self.run.open_approvals.push(request.approval.clone());
        self.changed = true;
        Ok(())
    }

    /// The writer takes its request back.
    pub(super) fn withdraw(
        &mut self,
        session: &mut Session<'_, '_>,
        approval: &ApprovalId,
    ) -> Result<(), Stop> {
        if !self.run.open_approvals.contains(approval) {
            let message = "the run waits for no approval of this id";
            return Err(self.refuse(message).into());
        }
        let row = open_row(session, approval)?;
        let resolved = Resolved {
            outcome: ApprovalOutcome::Withdrawn,
            offset: session.head.tail.next(),
            by: session.actor.participant.clone(),
        };
        close(session, &mut self.run, approval, row, resolved);
        self.changed = true;
        Ok(())
    }
}

fn open_row(
    session: &mut Session<'_, '_>,
    approval: &ApprovalId,
) -> Result<ApprovalRow, ViewError> {
    let row_key = RowKey::Approval(session.key, approval.clone());
    let row = session.step.approval(&row_key)?;
    row.ok_or_else(|| ViewError(format!("no row for {row_key:?}, which is open")))
}

/// Takes a request off those that are open. The caller writes the run.
fn close(
    session: &mut Session<'_, '_>,
    run: &mut RunRow,
    approval: &ApprovalId,
    mut row: ApprovalRow,
    resolved: Resolved,
) {
    if let Some(due) = row.due.take() {
        let timer = RowKey::Timer(session.key, due, TimerKind::Approval);
        session.step.remove(timer);
    }
    row.resolved = Some(resolved);
    let row_key = RowKey::Approval(session.key, approval.clone());
    session.step.put(row_key, Row::Approval(row));
    session.head.open_approvals = session.head.open_approvals.saturating_sub(1);
    run.open_approvals.retain(|open| open != approval);
}

/// What is appended when a request is resolved by another than its writer.
struct Resolution {
    outcome: ApprovalOutcome,
    note: Option<String>,
    on_expiry: Option<Verdict>,
}

/// Appends how a request ended, and lets its run go on if that was all that it waited for.
fn resolve(
    session: &mut Session<'_, '_>,
    approval: &ApprovalId,
    row: ApprovalRow,
    resolution: Resolution,
) -> Result<Offset, Stop> {
    let id = row.run.clone();
    let run = session.run(&id)?;
    let mut run = run.ok_or_else(|| ViewError(format!("no row for {id}, which asks")))?;
    let outcome = resolution.outcome;
    let body = Body::ApprovalResolved {
        approval: approval.clone(),
        outcome,
        note: resolution.note,
        on_expiry: resolution.on_expiry,
    };
    let offset = session.append(Some(server_stamp(&id, &run)), Draft::new(body));
    let resolved = Resolved {
        outcome,
        offset,
        by: session.actor.participant.clone(),
    };
    close(session, &mut run, approval, row, resolved);
    let waits = run.state == RunState::Suspended && run.suspended == Some(SuspendReason::Approval);
    if waits && run.open_approvals.is_empty() {
        suspend::go_on(session, &id, run);
    } else {
        let key = session.run_key(&id);
        session.step.put(key, Row::Run(run));
    }
    Ok(offset)
}

/// Decides somebody's answer.
pub(super) fn answer(session: &mut Session<'_, '_>, given: Answer) -> Result<Decided, Stop> {
    let row_key = RowKey::Approval(session.key, given.approval.clone());
    let row = session.step.approval(&row_key)?.ok_or_else(|| {
        let message = "the session has no request for an approval of this id";
        Refusal::new(Code::UnknownApproval, message)
    })?;
    check_approver(&row, &session.actor.participant)?;
    if let Some(resolved) = &row.resolved {
        return Err(too_late(resolved).into());
    }
    if row.action_hash != given.action_hash {
        let message = "the approval is for another action than the one that was seen";
        return Err(Refusal::new(Code::WrongState, message).into());
    }
    if session.step.time >= row.deadline {
        let offset = expire_now(session, &given.approval, row)?;
        return Ok(Decided::TooLate(expired(offset)));
    }
    session.count_people()?;
    let resolution = Resolution {
        outcome: match given.verdict {
            Verdict::Approve => ApprovalOutcome::Approved,
            Verdict::Deny => ApprovalOutcome::Denied,
        },
        note: given.note,
        on_expiry: None,
    };
    let offset = resolve(session, &given.approval, row, resolution)?;
    Ok(Decided::At(offset))
}

fn check_approver(row: &ApprovalRow, who: &ParticipantId) -> Result<(), Refusal> {
    if row.approvers.is_empty() || row.approvers.contains(who) {
        return Ok(());
    }
    let message = "the approval is kept to others";
    Err(Refusal::new(Code::Denied, message))
}

fn too_late(resolved: &Resolved) -> Refusal {
    if resolved.outcome == ApprovalOutcome::Expired {
        return expired(resolved.offset);
    }
    let details = Details {
        state: Some(resolved.outcome.as_str()),
        by: Some(resolved.by.clone()),
        offset: Some(resolved.offset),
        ..Details::default()
    };
    let message = format!("the approval was {} before", resolved.outcome.as_str());
    Refusal::with(Code::AlreadyResolved, message, details)
}

fn expired(offset: Offset) -> Refusal {
    let details = Details {
        offset: Some(offset),
        ..Details::default()
    };
    let message = "nobody answered in time";
    Refusal::with(Code::Expired, message, details)
}

/// Nobody has answered in time: that is the server's word, whoever comes too late.
fn expire_now(
    session: &mut Session<'_, '_>,
    approval: &ApprovalId,
    row: ApprovalRow,
) -> Result<Offset, Stop> {
    let asker = std::mem::replace(&mut session.actor, everwire_core::Author::server());
    let resolution = Resolution {
        outcome: ApprovalOutcome::Expired,
        note: None,
        on_expiry: Some(row.on_expiry),
    };
    let offset = resolve(session, approval, row, resolution)?;
    session.actor = asker;
    Ok(offset)
}

/// The deadline of a request has come. Its timer is gone already.
pub(super) fn expire(
    step: &mut Step<'_>,
    session: SessionKey,
    head: HeadRow,
    approval: &ApprovalId,
) -> Result<(), ViewError> {
    let mut session = Session::of_server(step, session, head);
    let row = open_row(&mut session, approval)?;
    match expire_now(&mut session, approval, row) {
        Ok(_) => {
            session.save();
            Ok(())
        },
        Err(Stop::View(error)) => Err(error),
        Err(Stop::Refused(refusal)) => Err(ViewError(refusal.to_string())),
    }
}

/// Nobody asks any more for what an ended run has asked for.
pub(super) fn withdraw_all(
    session: &mut Session<'_, '_>,
    id: &RunId,
    run: &mut RunRow,
) -> Result<(), ViewError> {
    for approval in run.open_approvals.clone() {
        let row = open_row(session, &approval)?;
        let outcome = ApprovalOutcome::Withdrawn;
        let body = Body::ApprovalResolved {
            approval: approval.clone(),
            outcome,
            note: None,
            on_expiry: None,
        };
        let offset = session.append(Some(server_stamp(id, run)), Draft::new(body));
        let resolved = Resolved {
            outcome,
            offset,
            by: session.actor.participant.clone(),
        };
        close(session, run, &approval, row, resolved);
    }
    Ok(())
}
