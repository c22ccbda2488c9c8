//! The end of the process, decided once: after a failed write or sync nothing succeeds any more.

use std::sync::OnceLock;

use crate::error::StoreError;
use crate::types::OnFatal;

/// Remembers the first failure and tells the binary.
pub(crate) struct Fatal {
    on_fatal: OnFatal,
    first: OnceLock<StoreError>,
}

impl Fatal {
    /// Nothing has failed yet.
    pub(crate) fn new(on_fatal: OnFatal) -> Self {
        Self {
            on_fatal,
            first: OnceLock::new(),
        }
    }

    /// Notes a failed write or sync; never to be tried again. Answers the error to hand on.
    pub(crate) fn fail(&self, what: &str, error: &StoreError) -> StoreError {
        let message = format!("{what}: {error}");
        if self.first.set(StoreError::Io(message.clone())).is_ok() {
            self.tell(&message);
        }
        StoreError::Io(message)
    }

    /// Tells the binary of a mistake of ours that ends the process; the disk is whole.
    pub(crate) fn tell(&self, message: &str) {
        tracing::error!(message, "the store ends the process");
        (self.on_fatal)(message);
    }

    /// The first failure, as the answer to everything after it.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match self.first.get() {
            Some(error) => Err(error.clone()),
            None => Ok(()),
        }
    }
}
