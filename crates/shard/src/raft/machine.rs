//! openraft's state machine on `rules` and the store, and its snapshots (RULES 32, 33).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use everwire_core::limits::APPEND_BYTES_MAX;
use everwire_store::{SnapshotReader, Store, StoreError};
use futures_util::{FutureExt, Stream, StreamExt};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder, alias};

use super::codec;
use super::log::{blocking, io_error};
use super::types::{LogId, SnapshotMeta, StoredMembership, TypeConfig};
use crate::apply::{Applier, ApplyThreads, Committed};

/// Most entries in one transaction: bounds what one write holds besides its bytes.
const CHUNK_ENTRIES_MAX: usize = 256;

/// The state machine of one group.
pub(crate) struct Machine {
    applier: Arc<Applier>,
    threads: ApplyThreads,
    marker: Arc<MarkerBound>,
    _alive: Alive,
}

/// Held by whatever of a group uses the store: when all are dropped, the store may be closed.
pub(crate) type Alive = tokio::sync::mpsc::Sender<std::convert::Infallible>;

/// How far a marker snapshot must reach: the index that the purge wants to be covered.
/// Unless told otherwise, everything that is applied.
pub(crate) struct MarkerBound(AtomicU64);

impl Default for MarkerBound {
    fn default() -> Self {
        Self(AtomicU64::new(u64::MAX))
    }
}

impl MarkerBound {
    /// Asks the next marker to reach `index`.
    pub(crate) fn set(&self, index: u64) {
        self.0.store(index, Ordering::SeqCst);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

/// What a snapshot holds.
pub(crate) enum SnapshotData {
    /// Nothing: it only tells openraft up to where the event DB is durable, so that the log may
    /// be purged. It is never sent; a follower gets one of the other kind.
    Marker,
    /// Rows and events as they stood, read lazily from one snapshot of the store.
    Rows(Box<dyn SnapshotReader>),
}

impl Machine {
    pub(crate) fn new(
        applier: Arc<Applier>,
        threads: ApplyThreads,
        marker: Arc<MarkerBound>,
        alive: Alive,
    ) -> Self {
        Self {
            applier,
            threads,
            marker,
            _alive: alive,
        }
    }
}

/// The entries that are ready now, in a chunk of bounded size. `None` at the end.
async fn ready_chunk<S>(entries: &mut S) -> Result<Option<Vec<Committed>>, io::Error>
where
    S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin,
{
    let Some(first) = entries.next().await else {
        return Ok(None);
    };
    let mut chunk = vec![first?];
    let weight = |committed: &Committed| match &committed.0.payload {
        EntryPayload::Normal(proposal) => proposal.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    let mut bytes = chunk.iter().map(weight).sum::<usize>();
    while bytes < APPEND_BYTES_MAX && chunk.len() < CHUNK_ENTRIES_MAX {
        let Some(Some(next)) = entries.next().now_or_never() else {
            break;
        };
        let next = next?;
        bytes += weight(&next);
        chunk.push(next);
    }
    Ok(Some(chunk))
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Marker;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let standing = self.applier.standing();
        Ok((standing.position.map(codec::log_id), standing.membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> Result<(), io::Error>
    where
        S: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        loop {
            let chunk = ready_chunk(&mut entries).await;
            let chunk = chunk.inspect_err(|error| {
                self.applier
                    .fatal(&format!("committed entries cannot be read: {error}"));
            })?;
            let Some(chunk) = chunk else {
                return Ok(());
            };
            self.threads.apply(&self.applier, chunk).await?;
        }
    }

    async fn get_snapshot_builder(&mut self) -> Marker {
        let standing = self.applier.standing();
        Marker {
            applier: self.applier.clone(),
            applied: standing.position.map(codec::log_id),
            membership: standing.membership,
            bound: self.marker.get(),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let SnapshotData::Rows(reader) = snapshot else {
            return Err(io::Error::other(
                "a marker snapshot holds nothing to install",
            ));
        };
        let position = reader.applied().map(|applied| applied.position);
        if position.map(codec::log_id) != meta.last_log_id {
            let what = "a snapshot whose data stand elsewhere than its meta says";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        let (applier, membership) = (self.applier.clone(), meta.last_membership.clone());
        let install = move |_store: &Arc<dyn Store>| applier.install(membership, reader);
        let installed = blocking(self.applier.store(), install).await;
        installed.inspect_err(|error| {
            if !self.applier.is_wounded() {
                self.applier
                    .fatal(&format!("a snapshot cannot be installed: {error}"));
            }
        })
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> Result<Option<alias::SnapshotOf<TypeConfig, SnapshotData>>, io::Error> {
        let applier = self.applier.clone();
        let reader = blocking(self.applier.store(), move |store| {
            let read = store.snapshot(applier.group());
            read.inspect_err(|error| {
                if matches!(error, StoreError::DamagedRows { .. }) {
                    applier.wound(&error.to_string());
                }
            })
        });
        let reader = reader.await?;
        // Meta and data come from one snapshot of the store (RULES 32).
        let Some(applied) = reader.applied() else {
            return Ok(None);
        };
        let last_log_id = Some(codec::log_id(applied.position));
        let at = applied.membership_position;
        let last_membership = codec::membership(&applied.membership, at)?;
        Ok(Some(openraft::Snapshot {
            meta: SnapshotMeta {
                last_log_id,
                last_membership,
            },
            snapshot: SnapshotData::Rows(reader),
        }))
    }
}

/// Builds marker snapshots: makes what was applied durable and says so.
pub(crate) struct Marker {
    applier: Arc<Applier>,
    /// What was applied when this builder was made, in the order of applying.
    applied: Option<LogId>,
    membership: StoredMembership,
    /// See [`MarkerBound`].
    bound: u64,
}

impl RaftSnapshotBuilder<TypeConfig> for Marker {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(
        &mut self,
    ) -> Result<alias::SnapshotOf<TypeConfig, SnapshotData>, io::Error> {
        let covered = match self.covered() {
            Some(covered) => Some(covered),
            None => {
                blocking(self.applier.store(), |store| store.flush()).await?;
                self.applied
            },
        };
        self.check(covered.as_ref()).map_err(io_error)?;
        Ok(openraft::Snapshot {
            meta: SnapshotMeta {
                last_log_id: covered,
                last_membership: self.membership.clone(),
            },
            snapshot: SnapshotData::Marker,
        })
    }
}

impl Marker {
    fn durable(&self) -> Option<LogId> {
        let durable = self.applier.store().durable_applied(self.applier.group());
        durable.map(codec::log_id)
    }

    /// What is durable already, if that is far enough and the membership belongs to it.
    fn covered(&self) -> Option<LogId> {
        let durable = self.durable()?.min(self.applied?);
        let wanted = self.bound.min(self.applied.as_ref()?.index());
        let membership_at = self.membership.log_id().as_ref();
        let enough = durable.index() >= wanted && membership_at <= Some(&durable);
        enough.then_some(durable)
    }

    fn check(&self, covered: Option<&LogId>) -> Result<(), StoreError> {
        let durable = self.durable();
        if covered > durable.as_ref() {
            let what = format!("flushed to {durable:?}, expected {covered:?}");
            return Err(StoreError::Damaged { what });
        }
        Ok(())
    }
}
