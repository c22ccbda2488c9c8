//! The state machine of sessions: runs, fences, dedupe, client keys, attach.
//!
//! [`txn`] is the door: it reads rows through a view, applies batches and collects what changed.
//! [`resolve`] answers where a reader may start. All is pure; `docs/protocol/rules.md` holds the
//! same as tables.

mod approval;
mod cancel;
mod create;
mod dedupe;
mod draft;
mod freeze;
mod guard;
mod keys;
mod lease;
mod lookup;
mod overlay;
#[cfg(feature = "test-poison")]
pub mod poison;
mod post;
mod publish;
pub mod resolve;
mod run;
mod seal;
mod signal;
mod suspend;
mod timer;
mod tombstone;
pub mod txn;

pub use guard::catches_panics;

use everwire_core::{Op, Outcome, Refusal};

use lookup::Caller;
use overlay::Step;
use txn::ViewError;

/// Why a command went no further: an answer for its sender, or the end of this replica.
#[derive(Debug)]
enum Stop {
    Refused(Refusal),
    View(ViewError),
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<ViewError> for Stop {
    fn from(error: ViewError) -> Self {
        Self::View(error)
    }
}

/// Decides one command. What `step` holds afterwards is kept if the answer is `Ok`, and
/// dropped if it is not, or if it panics.
fn decide(step: &mut Step<'_>, caller: Caller, op: Op) -> Result<Outcome, Stop> {
    #[cfg(feature = "test-poison")]
    let poison = poison::is_poison(&op);
    let outcome = decide_op(step, caller, op);
    // Behind a good decision, so that there are changes to be dropped.
    #[cfg(feature = "test-poison")]
    assert!(!poison || outcome.is_err(), "poison, as a test asked for");
    outcome
}

fn decide_op(step: &mut Step<'_>, caller: Caller, op: Op) -> Result<Outcome, Stop> {
    match op {
        Op::CreateSession => create::create(step, caller),
        Op::DeleteSession => create::delete(step, &caller),
        Op::Unfreeze => freeze::unfreeze(step, caller),
        Op::StartRun(start) => run::start(step, caller, start),
        Op::ClaimRun { run, lease, key } => run::claim(step, caller, &run, lease, key),
        Op::Heartbeat {
            run,
            run_epoch,
            observed_through,
        } => lease::heartbeat(step, caller, &run, run_epoch, observed_through),
        Op::Publish {
            run,
            run_epoch,
            first_seq,
            drafts,
        } => {
            let batch = publish::Output {
                run,
                run_epoch,
                first_seq,
                drafts,
            };
            publish::publish(step, caller, batch)
        },
        Op::Post {
            draft,
            key,
            body_hash,
        } => post::post(step, caller, draft, key, body_hash),
        Op::Cancel {
            cancel,
            key,
            body_hash,
        } => cancel::cancel(step, caller, cancel, key, body_hash),
        Op::Signal {
            signal,
            key,
            body_hash,
        } => signal::signal(step, caller, signal, key, body_hash),
    }
}
