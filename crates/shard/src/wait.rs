//! Where work that waits for the disk runs: on a thread that may wait, or, where the disk never
//! waits, in the place where it is asked for. A simulation has one thread by that, and one order
//! in which things happen; in life the question is all that it costs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use everwire_store::Store;

/// The work panicked, or its runtime ended.
#[derive(Debug, thiserror::Error)]
#[error("work on the disk did not end well: {0}")]
pub(crate) struct Unfinished(String);

/// Runs work on a store. If the future is dropped, it may still run.
pub(crate) async fn on_disk<T: Send + 'static>(
    store: &Arc<dyn Store>,
    work: impl FnOnce(&Arc<dyn Store>) -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let (waits, store) = (store.waits(), store.clone());
    where_it_waits(waits, move || work(&store)).await
}

/// The same where the disk has no store yet, or no more.
pub(crate) async fn where_it_waits<T: Send + 'static>(
    waits: bool,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    if waits {
        let done = tokio::task::spawn_blocking(work).await;
        return done.map_err(|error| Unfinished(error.to_string()));
    }
    // As on a thread of its own: a panic is told to whoever waits.
    catch_unwind(AssertUnwindSafe(work)).map_err(|_panic| Unfinished("it panicked".to_owned()))
}
