//! A disk that a node tries to start on, and that is closed again if it does not.

use std::sync::{Arc, Mutex, TryLockError};
use std::time::Duration;

use everwire_store::{Closing, Identity, Store, StoreError};
use tokio::time::Instant;

use crate::set::Disk;

/// How long a node that did not start waits for the last that holds its disk, and how often it
/// looks.
const CLOSED_WITHIN: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// Remembers what was opened. RocksDB does not survive a process that ends around its open
/// databases, so a start that is refused, or given up, ends only when they are closed.
pub(crate) struct Trial {
    disk: Arc<dyn Disk>,
    /// Held for as long as an opening lasts.
    last: Mutex<Option<Closing>>,
}

impl Trial {
    pub(crate) fn new(disk: Arc<dyn Disk>) -> Self {
        Self {
            disk,
            last: Mutex::new(None),
        }
    }

    fn is_closed(&self) -> bool {
        match self.last.try_lock() {
            Ok(last) => last.as_ref().is_none_or(Closing::is_done),
            Err(TryLockError::WouldBlock) => false,
            // Whoever opened it panicked, and holds nothing any more.
            Err(TryLockError::Poisoned(last)) => {
                last.get_ref().as_ref().is_none_or(Closing::is_done)
            },
        }
    }

    /// Waits until nothing of it is open. Whoever held it has let go of it, but tasks and answers
    /// on their way may hold it a moment longer.
    pub(crate) async fn closed(&self) {
        let until = Instant::now() + CLOSED_WITHIN;
        while !self.is_closed() {
            if Instant::now() >= until {
                tracing::warn!("something still holds the disk; it is closed when that ends");
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

impl Disk for Trial {
    fn identity(&self) -> Result<Option<Identity>, StoreError> {
        self.disk.identity()
    }

    fn open(&self, identity: Identity) -> Result<Arc<dyn Store>, StoreError> {
        let mut last = self.last.lock().map_err(|poisoned| {
            StoreError::Io(format!(
                "an earlier opening of the disk panicked: {poisoned}"
            ))
        })?;
        let store = self.disk.open(identity)?;
        *last = Some(store.closing());
        Ok(store)
    }

    fn retire(&self) -> Result<(), StoreError> {
        self.disk.retire()
    }

    fn waits(&self) -> bool {
        self.disk.waits()
    }
}
