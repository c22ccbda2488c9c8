//! Looks for bytes that changed on the disk under rows and events which nobody asks for (RULES
//! 35): slowly, shard by shard, again and again. What is found is rebuilt like all damage.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::ShardId;
use everwire_core::limits::{SCRUB_AFTER, SCRUB_BYTES, SCRUB_PAUSE};
use everwire_store::Store;
use tokio::time::Instant;

use crate::host::Host;
use crate::wait::on_disk;

/// The least pause between two rounds.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);

/// Reads everything that this node holds, once in [`Host::scrub_every`], until it is dropped.
pub(crate) async fn run(host: Arc<Host>) {
    let mut pause = host.scrub_every.min(SCRUB_AFTER);
    loop {
        if !waited(&host, pause).await {
            return;
        }
        let began = Instant::now();
        for shard in host.hosted() {
            if !one(&host, shard.id).await {
                return;
            }
        }
        tracing::debug!(took = ?began.elapsed(), "all rows and events were read");
        let rest = host.scrub_every.saturating_sub(began.elapsed());
        pause = rest.max(BETWEEN_ROUNDS);
    }
}

/// Reads one shard to its end, or to the first damage. False: the node stops.
async fn one(host: &Host, id: ShardId) -> bool {
    let mut at = None;
    loop {
        // Rebuilt, or moved away meanwhile: it is read in the next round.
        if host.local(id).is_none() || host.shared.damages.is_reported(id.0) {
            return true;
        }
        let read = move |store: &Arc<dyn Store>| store.verify(id.0, at, SCRUB_BYTES);
        let read = on_disk(&host.shared.store, read).await;
        at = match read {
            Ok(Ok(Some(next))) => Some(next),
            Ok(Ok(None)) => return true,
            Ok(Err(error)) => {
                if !host.shared.damages.note(&error) {
                    tracing::error!(shard = %id, %error, "what was read unasked cannot be trusted");
                }
                return true;
            },
            Err(error) => {
                tracing::error!(shard = %id, %error, "a shard was not read to its end");
                return true;
            },
        };
        if !waited(host, SCRUB_PAUSE).await {
            return false;
        }
    }
}

/// Waits for so long. False: the node stops.
async fn waited(host: &Host, pause: Duration) -> bool {
    tokio::select! {
        () = host.stop.cancelled() => false,
        () = tokio::time::sleep(pause) => true,
    }
}
