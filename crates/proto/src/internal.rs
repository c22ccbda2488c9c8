//! What nodes say to each other about commands: commands and their outcomes as messages of
//! `everwire.internal.v1`.
//!
//! Comes in: words of `core`, or what another node of the cluster sent. Goes out: the other, and
//! nothing is lost on the way. Never: whether a command may be done; that was decided where it
//! came in.

use everwire_core::command::{Appended, Command, Duplicate, Outcome, Published, SignalOutcome};
use everwire_core::position::{Offset, RunEpoch, Seq, SessionEpoch};
use everwire_core::row::RunState;
use everwire_core::{Code, Lease, Refusal};

use crate::internal_v1 as peer;
use crate::internal_v1::outcome::Outcome as PeerOutcome;
use crate::storage::{self, StorageError};
use crate::{field, refusal, storage_v1, v1};

/// A command for the leader of its shard: as it stands in the log.
pub fn command_to(command: &Command) -> storage_v1::Command {
    storage::command::command_to(command)
}

/// Reads what [`command_to`] made. MALFORMED when no node writes that.
pub fn command_from(command: storage_v1::Command) -> Result<Command, Refusal> {
    storage::command::command_from(command).map_err(|error| {
        let code = match error {
            StorageError::Newer { .. } => Code::UnsupportedVersion,
            StorageError::Damaged { .. } => Code::Malformed,
        };
        Refusal::new(code, format!("a forwarded command: {error}"))
    })
}

/// What a command was answered.
pub fn outcome_to(outcome: &Outcome) -> peer::Outcome {
    let outcome = match outcome {
        Outcome::SessionReady {
            session_epoch,
            tail,
            created,
        } => PeerOutcome::SessionReady(peer::SessionReady {
            session_epoch: session_epoch.to_string(),
            tail: tail.get(),
            created: *created,
        }),
        Outcome::SessionDeleted { existed } => PeerOutcome::SessionDeleted(*existed),
        Outcome::SessionUnfrozen {
            session_epoch,
            frozen,
        } => PeerOutcome::SessionUnfrozen(peer::SessionUnfrozen {
            session_epoch: session_epoch.to_string(),
            frozen: *frozen,
        }),
        Outcome::RunGranted {
            session_epoch,
            run_epoch,
            offset,
            lease,
            duplicate,
        } => PeerOutcome::Granted(peer::Granted {
            session_epoch: session_epoch.to_string(),
            run_epoch: run_epoch.0,
            offset: offset.get(),
            duplicate: *duplicate,
            lease_ms: lease.map_or(0, Lease::ms),
        }),
        Outcome::Renewed {
            session_epoch,
            state,
            observed,
        } => PeerOutcome::Renewed(peer::Renewed {
            session_epoch: session_epoch.to_string(),
            state: state.as_str().to_owned(),
            observed: observed.map(Offset::get),
        }),
        Outcome::Published(published) => PeerOutcome::Published(published_to(published)),
        Outcome::Posted {
            session_epoch,
            offset,
            duplicate,
        } => PeerOutcome::Posted(peer::Posted {
            session_epoch: session_epoch.to_string(),
            offset: offset.get(),
            duplicate: *duplicate,
        }),
        Outcome::Signalled {
            session_epoch,
            outcome,
            duplicate,
        } => PeerOutcome::Cancelled(cancelled_to(*session_epoch, outcome, *duplicate)),
        Outcome::Refused(refused) => PeerOutcome::Refused(v1::Error::from(refused)),
    };
    peer::Outcome {
        outcome: Some(outcome),
    }
}

/// Reads what [`outcome_to`] made. What cannot be read is INTERNAL, not MALFORMED: the caller's
/// command was good, and it may be repeated.
pub fn outcome_from(outcome: peer::Outcome) -> Result<Outcome, Refusal> {
    let outcome = outcome
        .outcome
        .ok_or_else(|| Refusal::new(Code::Internal, "a forwarded command got no answer"))?;
    read(outcome).map_err(|refused| {
        let message = format!("the answer to a forwarded command: {}", refused.message);
        Refusal::new(Code::Internal, message)
    })
}

fn read(outcome: PeerOutcome) -> Result<Outcome, Refusal> {
    Ok(match outcome {
        PeerOutcome::SessionReady(answer) => Outcome::SessionReady {
            session_epoch: session_epoch(&answer.session_epoch)?,
            tail: field::offset("tail", answer.tail)?,
            created: answer.created,
        },
        PeerOutcome::SessionDeleted(existed) => Outcome::SessionDeleted { existed },
        PeerOutcome::SessionUnfrozen(answer) => Outcome::SessionUnfrozen {
            session_epoch: session_epoch(&answer.session_epoch)?,
            frozen: answer.frozen,
        },
        PeerOutcome::Granted(answer) => Outcome::RunGranted {
            session_epoch: session_epoch(&answer.session_epoch)?,
            run_epoch: RunEpoch(answer.run_epoch),
            offset: offset(answer.offset)?,
            lease: Lease::stored(answer.lease_ms),
            duplicate: answer.duplicate,
        },
        PeerOutcome::Renewed(answer) => Outcome::Renewed {
            session_epoch: session_epoch(&answer.session_epoch)?,
            state: run_state(&answer.state)?,
            observed: answer.observed.map(offset).transpose()?,
        },
        PeerOutcome::Published(answer) => Outcome::Published(published_from(answer)?),
        PeerOutcome::Posted(answer) => Outcome::Posted {
            session_epoch: session_epoch(&answer.session_epoch)?,
            offset: offset(answer.offset)?,
            duplicate: answer.duplicate,
        },
        PeerOutcome::Cancelled(answer) => Outcome::Signalled {
            session_epoch: session_epoch(&answer.session_epoch)?,
            duplicate: answer.duplicate,
            outcome: cancel_outcome(&answer)?,
        },
        PeerOutcome::Refused(error) => Outcome::Refused(refusal::from_error(error)),
    })
}

fn published_to(published: &Published) -> peer::Published {
    peer::Published {
        session_epoch: published.session_epoch.to_string(),
        duplicate: published.duplicate.map(|part| peer::Duplicate {
            through_seq: part.through_seq.0,
            through_offset: part.through_offset.get(),
            exact: part.exact,
        }),
        appended: published.appended.map(|part| peer::Appended {
            first_seq: part.first_seq.0,
            last_seq: part.last_seq.0,
            first_offset: part.first_offset.get(),
            last_offset: part.last_offset.get(),
        }),
    }
}

fn published_from(answer: peer::Published) -> Result<Published, Refusal> {
    let duplicate = answer.duplicate.map(|part| {
        Ok::<_, Refusal>(Duplicate {
            through_seq: Seq(part.through_seq),
            through_offset: field::offset("through_offset", part.through_offset)?,
            exact: part.exact,
        })
    });
    let appended = answer.appended.map(|part| {
        Ok::<_, Refusal>(Appended {
            first_seq: Seq(part.first_seq),
            last_seq: Seq(part.last_seq),
            first_offset: field::offset("first_offset", part.first_offset)?,
            last_offset: field::offset("last_offset", part.last_offset)?,
        })
    });
    Ok(Published {
        session_epoch: session_epoch(&answer.session_epoch)?,
        duplicate: duplicate.transpose()?,
        appended: appended.transpose()?,
    })
}

fn cancelled_to(
    session_epoch: SessionEpoch,
    outcome: &SignalOutcome,
    duplicate: bool,
) -> peer::Cancelled {
    let (offset, state) = match outcome {
        SignalOutcome::Applied { offset } => (*offset, ""),
        SignalOutcome::AlreadyTerminal { state, offset } => (*offset, state.as_str()),
        SignalOutcome::Denied | SignalOutcome::UnknownRun => (Offset::ZERO, ""),
    };
    peer::Cancelled {
        session_epoch: session_epoch.to_string(),
        outcome: outcome.as_str().to_owned(),
        offset: offset.get(),
        state: state.to_owned(),
        duplicate,
    }
}

fn cancel_outcome(answer: &peer::Cancelled) -> Result<SignalOutcome, Refusal> {
    Ok(match answer.outcome.as_str() {
        "applied" => SignalOutcome::Applied {
            offset: offset(answer.offset)?,
        },
        "already_terminal" => SignalOutcome::AlreadyTerminal {
            state: run_state(&answer.state)?,
            offset: offset(answer.offset)?,
        },
        "denied" => SignalOutcome::Denied,
        "unknown_run" => SignalOutcome::UnknownRun,
        _ => {
            return Err(field::malformed(
                "outcome",
                "is not a word that is known here",
            ));
        },
    })
}

fn run_state(word: &str) -> Result<RunState, Refusal> {
    let state = RunState::parse(word);
    state.ok_or_else(|| field::malformed("state", "is not a word that is known here"))
}

fn session_epoch(text: &str) -> Result<SessionEpoch, Refusal> {
    field::name("session_epoch", text)
}

fn offset(number: u64) -> Result<Offset, Refusal> {
    field::offset("offset", number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_cannot_be_read_may_be_asked_for_again() {
        let cancelled = |outcome: &str, state: &str| {
            PeerOutcome::Cancelled(peer::Cancelled {
                session_epoch: "1-17".to_owned(),
                outcome: outcome.to_owned(),
                state: state.to_owned(),
                ..peer::Cancelled::default()
            })
        };
        let answers = [
            None,
            Some(PeerOutcome::Posted(peer::Posted::default())),
            Some(cancelled("postponed", "")),
            Some(cancelled("already_terminal", "dreaming")),
        ];
        for outcome in answers {
            let refused = outcome_from(peer::Outcome { outcome }).unwrap_err();
            assert_eq!(refused.code, Code::Internal);
        }
    }

    #[test]
    fn a_command_that_no_node_writes_is_refused() {
        let refused = command_from(storage_v1::Command::default()).unwrap_err();
        assert_eq!(refused.code, Code::Malformed);
    }
}
