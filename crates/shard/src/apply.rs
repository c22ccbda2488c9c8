//! What committed entries do: decode, apply by the rules, write, feed, answer. On threads of
//! their own, because all of it may wait for the disk (engine trap 15).
//!
//! An entry that cannot be applied ends the process; none is ever skipped (RULES 2).

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard};

use everwire_core::Outcome;
use everwire_core::ids::META_GROUP;
use everwire_core::limits::ROW_CACHE_BYTES_MAX;
use everwire_core::{Code, Refusal};
use everwire_rules::{Changes, RULES_VERSION, ShardState, Txn};
use everwire_store::{Applied, ApplyWrite, LogPosition, SnapshotReader, Store, StoreError};
use openraft::EntryPayload;
use openraft::storage::ApplyResponder;
use tokio::sync::{mpsc, oneshot};

use crate::audit::{Asks, Audits, Tally};
use crate::feed::Feed;
use crate::group::Shared;
use crate::raft::codec;
use crate::raft::types::{Entry, Outcomes, StoredMembership, TypeConfig};
use crate::rows::{CachedView, RowCache};
use crate::set::{OnFatal, OpenError};
use crate::support::Support;
use crate::timers::Timers;

mod topology;

pub(crate) use topology::Changed;
use topology::TopologyMachine;

/// A committed entry and whoever waits for its outcomes.
pub(crate) type Committed = (Entry, Option<ApplyResponder<TypeConfig>>);

/// Where a group's applied state stands. The same as the store's applied row, decoded.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    /// The last applied entry.
    pub(crate) position: Option<LogPosition>,
    /// The last membership.
    pub(crate) membership: StoredMembership,
    /// What the rules carry besides rows.
    pub(crate) state: ShardState,
    /// What everything applied so far folds to.
    pub(crate) audit_hash: u128,
}

impl Standing {
    fn read(applied: Option<Applied>) -> Result<Self, std::io::Error> {
        let Some(applied) = applied else {
            return Ok(Self::default());
        };
        Ok(Self {
            position: Some(applied.position),
            membership: codec::membership(&applied.membership, applied.membership_position)?,
            state: ShardState {
                time: applied.time,
                rules_version: applied.rules_version,
            },
            audit_hash: applied.audit_hash,
        })
    }

    fn applied(&self, position: LogPosition) -> Applied {
        Applied {
            position,
            membership: codec::membership_bytes(&self.membership),
            membership_position: self.membership.log_id().as_ref().map(codec::position),
            time: self.state.time,
            rules_version: self.state.rules_version,
            state: bytes::Bytes::new(),
            audit_hash: self.audit_hash,
        }
    }
}

/// One group's state machine: everything that applying reads and writes.
pub(crate) struct Applier {
    group: u32,
    store: Arc<dyn Store>,
    feed: Arc<Feed>,
    /// Locked by whoever applies or installs, one at a time; never across an await.
    rows: Mutex<RowCache>,
    /// Locked for moments.
    standing: Mutex<Standing>,
    /// Which rules this node and its peers know.
    support: Arc<Support>,
    audits: Audits,
    /// What the metadata group applies instead of the rules of sessions.
    topology: Option<TopologyMachine>,
    timers: Timers,
    on_fatal: OnFatal,
}

impl Applier {
    /// Reads where the group stands.
    pub(crate) async fn open(
        group: u32,
        shared: &Shared,
        feed: Arc<Feed>,
    ) -> Result<Arc<Self>, OpenError> {
        let (store, on_fatal) = (shared.store.clone(), shared.on_fatal.clone());
        let support = shared.support.clone();
        let open = move || {
            let opened = Self::with_cache(group, store, feed, on_fatal, ROW_CACHE_BYTES_MAX);
            let mut opened = opened?;
            opened.support = support;
            if group == META_GROUP {
                let applied = opened.store.applied(group)?;
                let state = applied.map(|applied| applied.state).unwrap_or_default();
                opened.topology = Some(TopologyMachine::read(&state)?);
            }
            Ok::<_, StoreError>(opened)
        };
        let opened = tokio::task::spawn_blocking(open).await;
        let opened = opened.map_err(|error| OpenError::group(group, error))?;
        Ok(Arc::new(opened?))
    }

    /// What the metadata group applies; `None` for a shard.
    pub(crate) fn topology(&self) -> Option<&TopologyMachine> {
        self.topology.as_ref()
    }

    pub(crate) fn with_cache(
        group: u32,
        store: Arc<dyn Store>,
        feed: Arc<Feed>,
        on_fatal: OnFatal,
        cache_bytes: usize,
    ) -> Result<Self, StoreError> {
        let standing = Standing::read(store.applied(group)?);
        let standing = standing.map_err(|error| StoreError::Damaged {
            what: format!("the applied row of group {group}: {error}"),
        })?;
        let support = Arc::new(Support::new(store.identity().node, RULES_VERSION));
        Ok(Self {
            topology: None,
            group,
            store,
            feed,
            support,
            audits: Audits::default(),
            timers: Timers::default(),
            rows: Mutex::new(RowCache::new(cache_bytes)),
            standing: Mutex::new(standing),
            on_fatal,
        })
    }

    pub(crate) fn group(&self) -> u32 {
        self.group
    }

    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    pub(crate) fn standing(&self) -> Standing {
        self.lock_standing().clone()
    }

    /// The rules that the group's state speaks: what its leader stamps.
    pub(crate) fn rules_version(&self) -> u32 {
        self.lock_standing().state.rules_version
    }

    /// Which rules this node and its peers know.
    pub(crate) fn support(&self) -> &Support {
        &self.support
    }

    /// What is remembered of this replica's audits.
    pub(crate) fn audits(&self) -> &Audits {
        &self.audits
    }

    /// The deadlines that this node has in view while it leads.
    pub(crate) fn timers(&self) -> &Timers {
        &self.timers
    }

    fn lock_standing(&self) -> MutexGuard<'_, Standing> {
        let guard = self.standing.lock();
        guard.expect("a panic while applying ends the process")
    }

    /// Ends the process with a reason.
    pub(crate) fn fatal(&self, reason: &str) {
        (self.on_fatal)(&format!("shard {}: {reason}", self.group));
    }

    /// Applies entries in one transaction and one write. An error was fatal.
    fn apply(&self, entries: Vec<Committed>) -> Result<(), String> {
        if let Some(machine) = &self.topology {
            return self.apply_changes(machine, entries);
        }
        let mut standing = self.standing();
        let mut rows = self.rows.lock().map_err(|error| error.to_string())?;
        let mut answers = Vec::with_capacity(entries.len());
        let mut tally = Tally::new(standing.audit_hash);
        let mut last = None;
        let changes = {
            let view = CachedView::new(&*self.store, &mut rows);
            let mut txn = Txn::with_supported(&view, standing.state, self.support.supported());
            for (entry, responder) in entries {
                last = Some(codec::position(&entry.log_id));
                let outcomes = apply_entry(&mut txn, &mut standing, &mut tally, entry)?;
                answers.push((responder, outcomes));
            }
            txn.finish()
        };
        let Some(last) = last else {
            return Ok(());
        };
        rows.absorb(&changes.rows, &changes.erased);
        drop(rows);
        standing.position = Some(last);
        standing.state = changes.state;
        standing.audit_hash = tally.hash();
        let frozen = changes.frozen.clone();
        self.timers.applied(&changes.rows);
        self.write(changes, standing.applied(last))?;
        *self.lock_standing() = standing;
        for session in frozen {
            let (slot, session_no) = (session.slot.get(), session.session_no.0);
            tracing::error!(shard = self.group, slot, session_no, "a session was frozen");
        }
        self.audits.keep(tally);
        for (responder, outcomes) in answers {
            if let Some(responder) = responder {
                responder.send(Outcomes::Sessions(outcomes));
            }
        }
        Ok(())
    }

    /// The same for the metadata group, whose rows are one: its topology.
    fn apply_changes(
        &self,
        machine: &TopologyMachine,
        entries: Vec<Committed>,
    ) -> Result<(), String> {
        let mut standing = self.standing();
        let mut current = machine.begin();
        let mut answers = Vec::with_capacity(entries.len());
        for (entry, responder) in entries {
            let at = entry.log_id;
            standing.position = Some(codec::position(&at));
            let outcome = match entry.payload {
                EntryPayload::Blank => Outcomes::default(),
                EntryPayload::Membership(membership) => {
                    standing.membership = StoredMembership::new(Some(at), membership);
                    Outcomes::default()
                },
                EntryPayload::Normal(change) => {
                    let changed = topology::apply(&mut current, &change.0);
                    let unread = |error| format!("entry {at} cannot be read: {error}");
                    Outcomes::Topology(changed.map_err(unread)?)
                },
            };
            answers.push((responder, outcome));
        }
        let Some(last) = standing.position else {
            return Ok(());
        };
        let write = ApplyWrite {
            rows: BTreeMap::new(),
            events: Vec::new(),
            erased: Vec::new(),
            applied: Applied {
                state: topology::encode(&current),
                ..standing.applied(last)
            },
        };
        let written = self.store.write(self.group, write);
        written.map_err(|error| format!("the topology cannot be written: {error}"))?;
        *self.lock_standing() = standing;
        machine.publish(current);
        for (responder, outcome) in answers {
            if let Some(responder) = responder {
                responder.send(outcome);
            }
        }
        Ok(())
    }

    /// Writes what changed, then feeds it to live readers.
    fn write(&self, changes: Changes, applied: Applied) -> Result<(), String> {
        let events = changes.events.into_iter();
        let events: Vec<_> = events
            .map(|(session, event)| (session, Arc::new(event)))
            .collect();
        let write = ApplyWrite {
            rows: changes.rows,
            events: events.clone(),
            erased: changes.erased.clone(),
            applied,
        };
        let written = self.store.write(self.group, write);
        written.map_err(|error| format!("applied rows cannot be written: {error}"))?;
        self.feed.publish(&events);
        for session in &changes.erased {
            self.feed.erased(*session);
        }
        Ok(())
    }

    /// Replaces the group's rows and events by a snapshot. Returns when it is durable; nobody
    /// reads the group meanwhile. Waits for the disk.
    pub(crate) fn install(
        &self,
        membership: StoredMembership,
        mut reader: Box<dyn SnapshotReader>,
    ) -> Result<(), StoreError> {
        let mut rows = self
            .rows
            .lock()
            .map_err(|error| StoreError::Io(error.to_string()))?;
        let applied = reader
            .applied()
            .cloned()
            .ok_or_else(|| StoreError::Damaged {
                what: "a snapshot without an applied row".to_owned(),
            })?;
        let message = "the shard is being rebuilt from a snapshot";
        self.feed.close(&Refusal::new(Code::Stale, message));
        let mut install = self.store.install(self.group)?;
        while let Some(chunk) = reader.next_chunk()? {
            install.chunk(chunk)?;
        }
        let mut standing = Standing {
            position: Some(applied.position),
            membership,
            state: ShardState {
                time: applied.time,
                rules_version: applied.rules_version,
            },
            audit_hash: applied.audit_hash,
        };
        install.finish(Applied {
            state: applied.state.clone(),
            ..standing.applied(applied.position)
        })?;
        if let Some(machine) = &self.topology {
            machine.replace(&applied.state)?;
        }
        rows.clear();
        self.audits.forget();
        std::mem::swap(&mut *self.lock_standing(), &mut standing);
        self.feed.open();
        Ok(())
    }
}

fn apply_entry(
    txn: &mut Txn<'_>,
    standing: &mut Standing,
    tally: &mut Tally,
    entry: Entry,
) -> Result<Vec<Outcome>, String> {
    let at = entry.log_id;
    match entry.payload {
        EntryPayload::Blank => Ok(Vec::new()),
        EntryPayload::Membership(membership) => {
            standing.membership = StoredMembership::new(Some(at), membership);
            Ok(Vec::new())
        },
        EntryPayload::Normal(proposal) => {
            let batch = everwire_proto::storage::decode_batch(&proposal.0);
            let batch = batch.map_err(|error| format!("entry {at} cannot be read: {error}"))?;
            let asks = Asks::of(&batch);
            let outcomes = txn
                .apply(batch)
                .map_err(|error| format!("entry {at} cannot be applied: {error}"))?;
            tally.take(at.index(), asks, &txn.last_batch());
            Ok(outcomes)
        },
    }
}

struct Job {
    applier: Arc<Applier>,
    entries: Vec<Committed>,
    done: oneshot::Sender<Result<(), String>>,
}

impl Job {
    fn run(self) {
        let Self {
            applier,
            entries,
            done,
        } = self;
        let result = catch_unwind(AssertUnwindSafe(|| applier.apply(entries)));
        let result = result.unwrap_or_else(|_panic| Err("applying panicked".to_owned()));
        if let Err(reason) = &result {
            applier.fatal(reason);
        }
        // Nobody listens when the group stopped meanwhile.
        let _ = done.send(result);
    }
}

/// The threads that apply. They end when the last clone of this is gone.
#[derive(Clone)]
pub(crate) struct ApplyThreads {
    /// One queue per thread. Each group has at most one job under way, so the queues are
    /// bounded by the groups and never refuse.
    queues: Vec<mpsc::Sender<Job>>,
}

impl ApplyThreads {
    /// Starts `threads` threads for `groups` groups.
    pub(crate) fn start(threads: usize, groups: usize) -> std::io::Result<Self> {
        let mut queues = Vec::with_capacity(threads);
        for number in 0..threads.max(1) {
            let (queue, mut jobs) = mpsc::channel::<Job>(groups.max(1));
            std::thread::Builder::new()
                .name(format!("apply-{number}"))
                .spawn(move || {
                    while let Some(job) = jobs.blocking_recv() {
                        job.run();
                    }
                })?;
            queues.push(queue);
        }
        Ok(Self { queues })
    }

    /// Applies entries on the group's thread and waits. If the future is dropped, they are
    /// applied all the same.
    pub(crate) async fn apply(
        &self,
        applier: &Arc<Applier>,
        entries: Vec<Committed>,
    ) -> Result<(), std::io::Error> {
        let group = usize::try_from(applier.group).expect("32 bits fit");
        let queue = self
            .queues
            .get(group % self.queues.len())
            .expect("a remainder is below the length");
        let (done, result) = oneshot::channel();
        let job = Job {
            applier: applier.clone(),
            entries,
            done,
        };
        let gone = || std::io::Error::other("the apply thread is gone");
        queue.send(job).await.map_err(|_closed| gone())?;
        match result.await {
            Ok(result) => result.map_err(std::io::Error::other),
            Err(_closed) => Err(gone()),
        }
    }
}

#[cfg(test)]
mod tests;
