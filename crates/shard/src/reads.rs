//! Reads of the disk on behalf of clients: on blocking threads, a bounded number at a time.

use std::sync::Arc;

use everwire_core::event::SuspendReason;
use everwire_core::limits::{BATCH_EVENTS_MAX, DISK_READERS_MAX, READ_BYTES_MAX};
use everwire_core::row::{
    EpochRow, Frozen, HeadRow, Row, RowKey, RowRange, RunRow, RunState, SessionKey,
};
use everwire_core::{
    Code, Event, InputRef, Namespace, NodeId, Offset, ParticipantId, Refusal, RunEpoch, RunId, Seq,
    SessionEpoch, SessionName, ShardId, Slot, StepId, Timestamp,
};
use everwire_store::{Store, StoreError};
use tokio::sync::Semaphore;

use crate::damage::Damages;
use crate::wait::on_disk;

/// One page of committed events, dense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The session's history.
    pub session_epoch: SessionEpoch,
    /// The events; empty at the end of the session.
    pub events: Vec<Arc<Event>>,
    /// The last committed offset.
    pub tail: Offset,
}

/// A session as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its shard.
    pub shard: ShardId,
    /// The shard's leader, if one is known.
    pub leader: Option<NodeId>,
    /// Its history.
    pub session_epoch: SessionEpoch,
    /// The last offset.
    pub tail: Offset,
    /// Events up to here are gone.
    pub trimmed: Offset,
    /// Bytes of payload in the log.
    pub bytes: u64,
    /// When it was made.
    pub created: Timestamp,
    /// The time of its last event.
    pub last_time: Timestamp,
    /// Live subscriptions on this node.
    pub attachments: u32,
    /// Its live runs.
    pub open_runs: Vec<RunId>,
    /// Set while it takes no command.
    pub frozen: Option<Frozen>,
}

/// A run as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunInfo {
    /// The session's history.
    pub session_epoch: SessionEpoch,
    /// The run.
    pub run: RunId,
    /// Where it stands in its life.
    pub state: RunState,
    /// The epoch that may write.
    pub run_epoch: RunEpoch,
    /// Whoever was granted it.
    pub writer: ParticipantId,
    /// The input that it answers.
    pub input: Option<InputRef>,
    /// The run that it works for.
    pub parent: Option<RunId>,
    /// While it is suspended: why.
    pub suspended: Option<SuspendReason>,
    /// The step that it is in.
    pub step: Option<StepId>,
    /// For how long its writer may be silent, milliseconds; 0 where none was granted.
    pub lease_ms: u32,
    /// The epoch under which its epilogue may be written, if it was stopped gracefully.
    pub epilogue: Option<RunEpoch>,
    /// Where `run.started` stands.
    pub started: Offset,
    /// Where it ended; `None` while it is live.
    pub ended: Option<Offset>,
    /// The last committed seq of `run_epoch`.
    pub last_seq: Seq,
    /// Its offset.
    pub last_offset: Offset,
}

/// A session in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name.
    pub session: SessionName,
    /// Its shard.
    pub shard: ShardId,
    /// The last offset.
    pub tail: Offset,
    /// The time of its last event.
    pub last_time: Timestamp,
}

/// What a session is called.
#[derive(Clone, Debug)]
pub(crate) struct SessionRef {
    pub(crate) namespace: Namespace,
    pub(crate) session: SessionName,
}

/// The store, read from outside the apply threads.
#[derive(Clone)]
pub(crate) struct Reads {
    store: Arc<dyn Store>,
    slots: Arc<Semaphore>,
    damages: Arc<Damages>,
}

impl Reads {
    pub(crate) fn new(store: Arc<dyn Store>, damages: Arc<Damages>) -> Self {
        Self {
            store,
            damages,
            slots: Arc::new(Semaphore::new(DISK_READERS_MAX)),
        }
    }

    /// The damage that reads have met.
    pub(crate) fn damages(&self) -> &Damages {
        &self.damages
    }

    /// Runs a read when it is its turn. If the future is dropped, the read may still run; it
    /// changes nothing. Damaged rows are STALE here and whole elsewhere: this replica will be
    /// rebuilt.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        let slot = self.slots.clone().acquire_owned().await;
        let result = on_disk(&self.store, move |store| {
            let result = read(&**store);
            drop(slot);
            result
        });
        match result.await {
            Ok(result) => result.map_err(|error| self.damages.refusal(&error)),
            Err(error) => {
                tracing::error!(%error, "a read failed");
                Err(Refusal::new(Code::Internal, "the disk could not be read"))
            },
        }
    }
}

/// Damage of the rows that hold a slot.
pub(crate) fn damaged(store: &dyn Store, slot: Slot, what: String) -> StoreError {
    let group = ShardId::holding(slot, store.identity().shards).0;
    StoreError::DamagedRows { group, what }
}

fn mismatch(store: &dyn Store, slot: Slot, key: &RowKey) -> StoreError {
    damaged(
        store,
        slot,
        format!("a row that is not what its key says: {key:?}"),
    )
}

/// The session that has a name now.
pub(crate) fn named(
    store: &dyn Store,
    name: &SessionRef,
) -> Result<Option<SessionKey>, StoreError> {
    let slot = Slot::of(&name.namespace, &name.session);
    let key = RowKey::Name(slot, name.namespace.clone(), name.session.clone());
    match store.row(&key)? {
        None => Ok(None),
        Some(Row::Name(row)) => Ok(Some(SessionKey {
            slot,
            session_no: row.session_no,
        })),
        Some(_) => Err(mismatch(store, slot, &key)),
    }
}

/// A session's head; `None` when it was deleted.
pub(crate) fn head(store: &dyn Store, session: SessionKey) -> Result<Option<HeadRow>, StoreError> {
    let key = RowKey::Head(session);
    match store.row(&key)? {
        None => Ok(None),
        Some(Row::Head(head)) => Ok(Some(head)),
        Some(_) => Err(mismatch(store, session.slot, &key)),
    }
}

/// A run and what its current epoch has committed.
pub(crate) fn run(
    store: &dyn Store,
    session: SessionKey,
    id: &RunId,
) -> Result<Option<(RunRow, EpochRow)>, StoreError> {
    let key = RowKey::Run(session, id.clone());
    let run = match store.row(&key)? {
        None => return Ok(None),
        Some(Row::Run(run)) => run,
        Some(_) => return Err(mismatch(store, session.slot, &key)),
    };
    let key = RowKey::Epoch(session, id.clone(), run.run_epoch);
    match store.row(&key)? {
        Some(Row::Epoch(epoch)) => Ok(Some((run, epoch))),
        // Deleted between the two reads; an epoch alone never goes.
        None if head(store, session)?.is_none() => Ok(None),
        None | Some(_) => Err(mismatch(store, session.slot, &key)),
    }
}

/// A page of committed events: at most `limit` (0: as many as fit the page).
pub(crate) fn events(
    store: &dyn Store,
    session: SessionKey,
    from: Offset,
    limit: usize,
) -> Result<Vec<Arc<Event>>, StoreError> {
    let limit = match limit {
        0 => BATCH_EVENTS_MAX,
        limit => limit.min(BATCH_EVENTS_MAX),
    };
    let events = match store.events(session, from, READ_BYTES_MAX, limit) {
        Ok(events) => events,
        // Deleted while it was read.
        Err(_) if head(store, session)?.is_none() => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(events.into_iter().map(Arc::new).collect())
}

/// The live runs of a session, in the order of their ids.
pub(crate) fn live_runs(store: &dyn Store, session: SessionKey) -> Result<Vec<RunId>, StoreError> {
    let max = usize::try_from(everwire_core::limits::LIVE_RUNS_MAX).expect("a small number");
    let keys = store.scan(RowRange::LiveRuns(session), max)?.into_iter();
    let run = |key| match key {
        RowKey::LiveRun(_, run) => Ok(run),
        key => Err(mismatch(store, session.slot, &key)),
    };
    keys.map(run).collect()
}

/// Sessions of a namespace in a shard's slots, each with its head. Fewer than `limit` only at
/// the end.
pub(crate) fn list(
    store: &dyn Store,
    slots: std::ops::Range<u16>,
    namespace: &Namespace,
    prefix: &str,
    after: Option<SessionName>,
    limit: usize,
) -> Result<Vec<(SessionName, HeadRow)>, StoreError> {
    let mut after = after.map(|name| (Slot::of(namespace, &name), namespace.clone(), name));
    let mut listed = Vec::new();
    loop {
        let missing = limit.saturating_sub(listed.len());
        let names = store.names(slots.clone(), after.take(), namespace, prefix, missing)?;
        let is_last = names.len() < missing;
        for (slot, name, row) in names {
            after = Some((slot, namespace.clone(), name.clone()));
            let key = SessionKey {
                slot,
                session_no: row.session_no,
            };
            // Deleted between the two reads: not there any more.
            if let Some(head) = head(store, key)? {
                listed.push((name, head));
            }
        }
        if is_last || listed.len() >= limit {
            return Ok(listed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use everwire_core::SessionNo;
    use everwire_core::row::NameRow;
    use everwire_store::sim::{SimDisk, SimStore};
    use everwire_store::{Applied, ApplyWrite, Identity, LogPosition, OpenOptions};

    use super::*;

    /// A delete between the reads of names and heads must not look like the end of the list.
    #[test]
    fn names_without_heads_do_not_end_a_list() {
        let namespace = Namespace::parse("acme").unwrap();
        let mut rows = BTreeMap::new();
        for number in 1..=20 {
            let name = SessionName::parse(&format!("s{number}")).unwrap();
            let slot = Slot::of(&namespace, &name);
            let session_no = SessionNo(number);
            let key = RowKey::Name(slot, namespace.clone(), name);
            rows.insert(key, Some(Row::Name(NameRow { session_no })));
            if number % 4 == 0 {
                let head = HeadRow {
                    created: Timestamp(0),
                    last_time: Timestamp(0),
                    tail: Offset::ZERO,
                    trimmed: Offset::ZERO,
                    bytes: 0,
                    live_runs: 0,
                    day: 0,
                    people_today: 0,
                    frozen: None,
                    keys_due: None,
                    open_approvals: 0,
                };
                let key = RowKey::Head(SessionKey { slot, session_no });
                rows.insert(key, Some(Row::Head(head)));
            }
        }
        let identity = Identity {
            shards: 1,
            ..Identity::new("test", NodeId(1))
        };
        let fatal = Arc::new(|reason: &str| panic!("{reason}"));
        let options = OpenOptions::create(identity, fatal);
        let store = SimStore::open(&SimDisk::new(), options).unwrap();
        let applied = Applied {
            position: LogPosition::default(),
            membership: bytes::Bytes::new(),
            membership_position: None,
            time: Timestamp(0),
            rules_version: 1,
            state: bytes::Bytes::new(),
            audit_hash: 0,
        };
        let write = ApplyWrite {
            rows,
            events: Vec::new(),
            erased: Vec::new(),
            applied,
        };
        store.write(0, write).unwrap();

        let mut found = Vec::new();
        loop {
            let after = found.last().cloned();
            let page = list(&*store, 0..4096, &namespace, "s", after, 2).unwrap();
            let is_last = page.len() < 2;
            found.extend(page.into_iter().map(|(name, _)| name));
            if is_last {
                break;
            }
        }
        found.sort();
        let found: Vec<_> = found.iter().map(SessionName::as_str).collect();
        assert_eq!(found, ["s12", "s16", "s20", "s4", "s8"]);
    }
}
