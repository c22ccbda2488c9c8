//! All shards of one node: opened together, found by name, shut down together.

use std::convert::Infallible;
use std::sync::Arc;

use everwire_core::limits::{APPLY_THREADS_MAX, DRAIN_WITHIN};
use everwire_core::{Clock, Code, Namespace, Refusal, SessionName, ShardId, Slot};
use everwire_store::{Store, StoreError};
use futures_util::future::{join_all, try_join_all};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::ApplyThreads;
use crate::feed::Budget;
use crate::group::{Shard, Shared, Tasks};
use crate::handle::ShardHandle;
use crate::purge;
use crate::reads::Reads;

pub use everwire_store::OnFatal;

/// What the shards of a node need besides their disk, which says which node of which cluster
/// this is, and how many shards there are.
#[derive(Clone)]
pub struct ShardSetConfig {
    /// This node's address for clients, told to others through the groups' membership.
    pub addr: String,
    /// Wall clock for stamps.
    pub clock: Arc<dyn Clock>,
    /// Ends the process: called with the reason when going on could lose or invent data. It is
    /// expected not to return to a state in which this node still acks.
    pub on_fatal: OnFatal,
}

/// Why the shards of a node could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The disk said no.
    #[error("the store cannot be opened: {0}")]
    Store(#[from] StoreError),
    /// The threads that apply could not be started.
    #[error("the apply threads cannot be started: {0}")]
    Threads(std::io::Error),
    /// A Raft group did not start, or found no leader in time.
    #[error("shard {shard} did not start: {reason}")]
    Group {
        /// The shard.
        shard: ShardId,
        /// What happened.
        reason: String,
    },
}

impl OpenError {
    pub(crate) fn group(shard: ShardId, reason: impl std::fmt::Display) -> Self {
        Self::Group {
            shard,
            reason: reason.to_string(),
        }
    }

    /// The code to show for it.
    pub fn code(&self) -> Code {
        match self {
            Self::Store(StoreError::Newer { .. }) => Code::UnsupportedVersion,
            Self::Store(StoreError::WrongCluster { .. }) => Code::WrongCluster,
            Self::Store(_) | Self::Threads(_) | Self::Group { .. } => Code::Internal,
        }
    }
}

/// Opens a data directory on the real disk, or makes it if the options say what to write.
/// Waits for the disk.
#[cfg(feature = "rocks")]
pub fn open_store(
    dir: &std::path::Path,
    options: everwire_store::OpenOptions,
) -> Result<Arc<dyn Store>, OpenError> {
    Ok(everwire_store::rocks::RocksStore::open(dir, options)?)
}

/// The shards of one node.
pub struct ShardSet {
    shards: Vec<ShardHandle>,
    store: Arc<dyn Store>,
    stop: CancellationToken,
    /// Taken by the first shutdown.
    running: Mutex<Option<Running>>,
}

struct Running {
    tasks: Vec<Tasks>,
    purge: JoinSet<()>,
    /// Ends when nothing of openraft's uses the store any more.
    released: mpsc::Receiver<Infallible>,
}

impl ShardSet {
    /// Starts every group; makes groups of one voter on an empty disk. Returns when each has a
    /// leader and has applied all that was acked before the last stop, so that no read can go
    /// back in time. If the future is dropped, what was started is stopped.
    pub async fn open(store: Arc<dyn Store>, config: ShardSetConfig) -> Result<Self, OpenError> {
        let count = store.identity().shards;
        let groups = usize::try_from(count).expect("32 bits fit");
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = ApplyThreads::start(threads.min(APPLY_THREADS_MAX).min(groups), groups);
        let (alive, released) = mpsc::channel(1);
        let shared = Shared {
            store: store.clone(),
            addr: config.addr,
            clock: config.clock,
            on_fatal: config.on_fatal,
            threads: threads.map_err(OpenError::Threads)?,
            budget: Arc::<Budget>::default(),
            reads: Reads::new(store.clone()),
            stop: CancellationToken::new(),
            alive,
        };
        let opening = (0..count).map(|number| Shard::open(ShardId(number), &shared));
        let opened = try_join_all(opening).await?;
        let (shards, tasks): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        let mut purge = JoinSet::new();
        purge.spawn(purge::run(shards.clone(), shared.stop.clone()));
        Ok(Self {
            shards: shards.into_iter().map(ShardHandle::new).collect(),
            store,
            stop: shared.stop,
            running: Mutex::new(Some(Running {
                tasks,
                purge,
                released,
            })),
        })
    }

    /// The shard that holds a session.
    pub fn shard(&self, namespace: &Namespace, session: &SessionName) -> &ShardHandle {
        let count = u32::try_from(self.shards.len()).expect("at most 4,096 shards");
        let shard = ShardId::holding(Slot::of(namespace, session), count);
        self.shards
            .get(usize::try_from(shard.0).expect("32 bits fit"))
            .expect("a slot maps below the shard count")
    }

    /// Every shard, in the order of their ids.
    pub fn shards(&self) -> &[ShardHandle] {
        &self.shards
    }

    /// Flushes the event DB and purges every shard's log behind it, now instead of in a while.
    pub async fn purge_logs(&self) -> Result<(), Refusal> {
        let failed = |reason: String| {
            tracing::error!(%reason, "the logs were not purged");
            Refusal::new(Code::Internal, "the logs were not purged")
        };
        self.flush().await.map_err(failed)?;
        for handle in &self.shards {
            purge::purge(handle.shard()).await.map_err(failed)?;
        }
        Ok(())
    }

    async fn flush(&self) -> Result<(), String> {
        let store = self.store.clone();
        let flushed = tokio::task::spawn_blocking(move || store.flush()).await;
        let flushed = flushed.map_err(|error| error.to_string())?;
        flushed.map_err(|error| error.to_string())
    }

    /// Ends subscriptions with DRAINING, refuses new commands, waits for those admitted, stops
    /// every group and flushes, so that the next start is fast. Safe to call twice.
    pub async fn shutdown(&self) {
        let Some(mut running) = self.running.lock().await.take() else {
            return;
        };
        self.close();
        let proposers = running.tasks.iter_mut();
        let drained = join_all(proposers.map(|tasks| tasks.proposer.join_next()));
        if tokio::time::timeout(DRAIN_WITHIN, drained).await.is_err() {
            tracing::warn!("some admitted commands were not applied before the shutdown");
        }
        self.stop.cancel();
        for tasks in &mut running.tasks {
            tasks.watcher.join_next().await;
        }
        running.purge.join_next().await;
        join_all(self.shards.iter().map(|handle| handle.shard().raft.stop())).await;
        let released = tokio::time::timeout(DRAIN_WITHIN, running.released.recv());
        if released.await.is_err() {
            tracing::warn!("something still uses the store after the shutdown");
        }
        if let Err(reason) = self.flush().await {
            tracing::error!(%reason, "the last flush failed; the log still has everything");
        }
    }

    fn close(&self) {
        let refusal = Refusal::new(Code::Draining, "the node is about to stop");
        for handle in &self.shards {
            handle.shard().lanes.close(refusal.clone());
            handle.shard().feed.close(&refusal);
        }
    }
}

impl Drop for ShardSet {
    /// Like the end of the process: nothing is waited for. Whatever was acked is on disk.
    fn drop(&mut self) {
        if self.running.get_mut().is_none() {
            return;
        }
        self.stop.cancel();
        self.close();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        for handle in &self.shards {
            let shard = handle.shard().clone();
            runtime.spawn(async move { shard.raft.stop().await });
        }
    }
}
