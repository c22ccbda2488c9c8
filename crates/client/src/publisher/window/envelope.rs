//! What a draft weighs besides its payload.

use everwire_core::Draft;
use everwire_core::event::Body;

/// Room for the fields of a draft that are not payload, besides its names.
pub(super) const ENVELOPE_BYTES: usize = 64;

/// What a draft weighs besides its payload when it is encoded; never too little.
pub(super) fn envelope_bytes(draft: &Draft) -> usize {
    let names = match &draft.body {
        Body::MessageStart { message, .. } | Body::MessageEnd { message, .. } => {
            message.as_str().len()
        },
        Body::PartStart { message, part, .. }
        | Body::PartDelta { message, part, .. }
        | Body::PartEnd { message, part, .. } => message.as_str().len() + part.as_str().len(),
        Body::StepStart { step, .. } | Body::StepEnd { step, .. } => step.as_str().len(),
        Body::Input { input, .. } => input.as_str().len(),
        Body::ApprovalRequested(request) => {
            let approvers = request.approvers.iter().map(|one| one.as_str().len() + 4);
            let names = request.approval.as_str().len() + request.action_hash.as_str().len();
            names + approvers.sum::<usize>()
        },
        Body::ApprovalResolved { approval, .. } => approval.as_str().len(),
        // No writer sends the others; the server refuses them.
        Body::RunStarted { .. }
        | Body::RunClaimed
        | Body::RunOrphaned
        | Body::RunSuspended { .. }
        | Body::RunResumed
        | Body::RunCompleted
        | Body::RunFailed { .. }
        | Body::RunCancelled { .. }
        | Body::RunEpilogue { .. }
        | Body::SignalCancel { .. }
        | Body::SignalPause { .. }
        | Body::SignalResume { .. }
        | Body::SignalObserved { .. }
        | Body::App { .. } => 0,
    };
    let parent = draft
        .parent
        .as_ref()
        .map_or(0, |parent| parent.as_str().len());
    let raw = draft.raw.as_ref().map_or(0, |raw| raw.format.len());
    ENVELOPE_BYTES + names + parent + raw + draft.format.len()
}
