//! A command that makes the rules panic, so that a test can see what follows. Only in builds with
//! the feature `test-poison`, and there only in a process that was armed: no release has it.

use std::sync::atomic::{AtomicBool, Ordering};

use everwire_core::Op;
use everwire_core::event::{Body, Draft};

/// The name of the `app` event that is poison.
pub const NAME: &str = "everwire.test.poison";

static ARMED: AtomicBool = AtomicBool::new(false);

/// From here on this process's rules panic at poison. All replicas of a shard must be armed
/// before it is sent, or they differ.
pub fn arm() {
    ARMED.store(true, Ordering::SeqCst);
}

pub(super) fn is_poison(op: &Op) -> bool {
    let named = |draft: &Draft| matches!(&draft.body, Body::App { name, .. } if name == NAME);
    let poison = match op {
        Op::Publish { drafts, .. } => drafts.iter().any(named),
        Op::Post { draft, .. } => named(draft),
        _ => false,
    };
    poison && ARMED.load(Ordering::SeqCst)
}
