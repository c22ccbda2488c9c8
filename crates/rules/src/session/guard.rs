//! Where a panic is caught: around the decision of one command, and nowhere else (RULES 3).
//!
//! A poison command is in the log of every replica; if it killed them, it would kill them for
//! ever. The decision is a function of rows and command, so it panics on all replicas alike, and
//! what follows from a panic may be committed. Reading a row is not such a function: a panic in
//! there is this replica's own, and it ends as one.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::txn::ViewError;

thread_local! {
    static CATCHES: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread would be caught by the rules right now. A process that ends at
/// every panic asks this in its panic hook.
pub fn catches_panics() -> bool {
    CATCHES.get()
}

/// Sets the flag, and sets it back however the scope is left.
struct Scope(bool);

impl Scope {
    fn enter(catches: bool) -> Self {
        Self(CATCHES.replace(catches))
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        CATCHES.set(self.0);
    }
}

/// Runs a decision. `None`: it panicked.
pub(super) fn decision<T>(decide: impl FnOnce() -> T) -> Option<T> {
    let _scope = Scope::enter(true);
    catch_unwind(AssertUnwindSafe(decide)).ok()
}

/// Runs a read inside a decision. Its panic is not the decision's: where no panic hook ends the
/// process, it ends the replica as a read that failed.
pub(super) fn read<T>(read: impl FnOnce() -> Result<T, ViewError>) -> Result<T, ViewError> {
    let _scope = Scope::enter(false);
    let panicked = |_panic| Err(ViewError("reading a row panicked".to_owned()));
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(panicked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_decision_catches() {
        assert!(!catches_panics());
        let inside = decision(|| {
            let failed: Result<(), _> = read(|| {
                assert!(!catches_panics());
                panic!("the disk is gone")
            });
            assert_eq!(failed, Err(ViewError("reading a row panicked".to_owned())));
            catches_panics()
        });
        assert_eq!(inside, Some(true));
        assert_eq!(decision(|| panic!("a mistake")), None::<()>);
        assert!(!catches_panics());
    }
}
