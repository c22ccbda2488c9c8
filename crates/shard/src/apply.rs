//! What committed entries do: decode, apply by the rules, write, feed, answer. On threads of
//! their own, because all of it may wait for the disk (engine trap 15).
//!
//! An entry that cannot be applied ends the process; none is ever skipped (RULES 2). If it is the
//! rows that cannot be read, and another node has them, it ends only the replica, which is rebuilt
//! (RULES 35).

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use everwire_core::Outcome;
use everwire_core::ids::META_GROUP;
use everwire_core::limits::ROW_CACHE_BYTES_MAX;
use everwire_core::{Code, Refusal};
use everwire_rules::{ApplyError, Changes, RULES_VERSION, ShardState, Txn};
use everwire_store::{Applied, ApplyWrite, LogPosition, SnapshotReader, Store, StoreError};
use openraft::EntryPayload;
use openraft::storage::ApplyResponder;
use tokio::sync::{mpsc, oneshot};

use crate::audit::{Asks, Audits, Tally};
use crate::damage::{Damages, Why};
use crate::feed::Feed;
use crate::group::Shared;
use crate::leases::Leases;
use crate::raft::codec;
use crate::raft::types::{Entry, Outcomes, StoredMembership, TypeConfig};
use crate::rows::{CachedView, RowCache};
use crate::set::{OnFatal, OpenError, group_name};
use crate::support::{Support, unknown_rules};
use crate::timers::Timers;
use crate::wait::on_disk;

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
    /// Held by whoever applies or installs, from its first read to the end of its write.
    turn: Mutex<()>,
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
    leases: Leases,
    damages: Arc<Damages>,
    /// Set when rows could not be read: nothing is applied any more, and the replica is rebuilt.
    wounded: AtomicBool,
    on_fatal: OnFatal,
}

/// Why entries were not applied.
#[derive(Debug)]
enum Failed {
    /// The process must end.
    Fatal(String),
    /// The rows are not what they should be.
    Damaged(String),
    /// The disk was full until the node stopped; nothing was written.
    Stopped(String),
}

impl From<String> for Failed {
    fn from(reason: String) -> Self {
        Self::Fatal(reason)
    }
}

impl Applier {
    /// Reads where the group stands.
    pub(crate) async fn open(
        group: u32,
        shared: &Shared,
        feed: Arc<Feed>,
    ) -> Result<Arc<Self>, OpenError> {
        let on_fatal = shared.on_fatal.clone();
        let (support, damages) = (shared.support.clone(), shared.damages.clone());
        let open = move |store: &Arc<dyn Store>| {
            let store = store.clone();
            let opened = Self::with_cache(group, store, feed, on_fatal, ROW_CACHE_BYTES_MAX);
            let mut opened = opened?;
            opened.support = support;
            opened.damages = damages;
            if group == META_GROUP {
                let applied = opened.store.applied(group)?;
                let state = applied.map(|applied| applied.state).unwrap_or_default();
                opened.topology = Some(TopologyMachine::read(&state)?);
            }
            Ok::<_, StoreError>(opened)
        };
        let opened = on_disk(&shared.store, open).await;
        let opened = opened.map_err(|error| OpenError::group(group, error))??;
        let (version, known) = (opened.rules_version(), opened.support.supported());
        if version > known {
            return Err(OpenError::Rules {
                group,
                version,
                known,
            });
        }
        if group == META_GROUP {
            opened.support.metadata_speaks(version);
        }
        Ok(Arc::new(opened))
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
        let standing = standing.map_err(|error| StoreError::DamagedRows {
            group,
            what: format!("the applied row: {error}"),
        })?;
        let support = Arc::new(Support::new(store.identity().node, RULES_VERSION));
        let damages = Arc::new(Damages::new(store.identity()));
        Ok(Self {
            topology: None,
            group,
            damages,
            wounded: AtomicBool::new(false),
            store,
            feed,
            support,
            audits: Audits::default(),
            timers: Timers::default(),
            leases: Leases::default(),
            turn: Mutex::default(),
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

    /// How long the writers of runs have been silent, while this node leads.
    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    fn lock_standing(&self) -> MutexGuard<'_, Standing> {
        let guard = self.standing.lock();
        guard.expect("a panic while applying ends the process")
    }

    /// Ends the process with a reason.
    pub(crate) fn fatal(&self, reason: &str) {
        (self.on_fatal)(&format!("{}: {reason}", group_name(self.group)));
    }

    /// Where damage is reported.
    pub(crate) fn damages(&self) -> &Damages {
        &self.damages
    }

    /// The rows are damaged: nothing more is applied. They are rebuilt if another node has them;
    /// else the process ends.
    pub(crate) fn wound(&self, what: &str) {
        self.wounded.store(true, Ordering::SeqCst);
        if !self
            .damages
            .report(self.group, Why::Damaged(what.to_owned()))
        {
            self.fatal(&format!(
                "its rows are damaged, and no other node has them: {what}"
            ));
        }
    }

    /// Applies and installs nothing any more. Returns when nothing is under way. Waits for the
    /// disk.
    pub(crate) fn retire(&self) {
        self.wounded.store(true, Ordering::SeqCst);
        // Poisoned by a panic: nothing goes on either.
        drop(self.turn.lock());
    }

    /// Whether the rows are known to be damaged; the group's Raft ends then.
    pub(crate) fn is_wounded(&self) -> bool {
        self.wounded.load(Ordering::SeqCst)
    }

    /// Applies entries in one transaction and one write. An error ends the process or the replica.
    fn apply(&self, entries: Vec<Committed>) -> Result<(), Failed> {
        let _turn = self.turn.lock().map_err(|error| error.to_string())?;
        if self.is_wounded() {
            return Err(Failed::Damaged("its rows are damaged".to_owned()));
        }
        if let Some(machine) = &self.topology {
            return Ok(self.apply_changes(machine, entries)?);
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
                let known = self.support.supported();
                let outcomes = apply_entry(&mut txn, &mut standing, &mut tally, entry, known);
                let outcomes = outcomes.map_err(|failed| match failed {
                    Failed::Damaged(reason) if view.failed() => Failed::Fatal(reason),
                    failed => failed,
                })?;
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
        self.leases.applied(&changes.rows, &changes.erased);
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

    /// Writes what changed, then feeds it to live readers.
    fn write(&self, changes: Changes, applied: Applied) -> Result<(), Failed> {
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
        written.map_err(|error| {
            let reason = format!("applied rows cannot be written: {error}");
            match error {
                StoreError::Full { .. } => Failed::Stopped(reason),
                StoreError::DamagedRows { .. } => Failed::Damaged(reason),
                _ => Failed::Fatal(reason),
            }
        })?;
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
        let poisoned = |error: &dyn std::fmt::Display| StoreError::Io(error.to_string());
        let _turn = self.turn.lock().map_err(|error| poisoned(&error))?;
        if self.is_wounded() {
            return Err(StoreError::Io("the replica is being rebuilt".to_owned()));
        }
        let mut rows = self.rows.lock().map_err(|error| poisoned(&error))?;
        let applied = reader
            .applied()
            .cloned()
            .ok_or_else(|| StoreError::Damaged {
                what: "a snapshot without an applied row".to_owned(),
            })?;
        let known = self.support.supported();
        if applied.rules_version > known {
            let reason = unknown_rules("a snapshot", applied.rules_version, known);
            self.fatal(&reason);
            return Err(StoreError::Io(reason));
        }
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
            self.support.metadata_speaks(applied.rules_version);
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
    known: u32,
) -> Result<Vec<Outcome>, Failed> {
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
            let outcomes = txn.apply(batch).map_err(|error| match error {
                ApplyError::View(_) => {
                    Failed::Damaged(format!("entry {at} cannot be applied: {error}"))
                },
                ApplyError::UnknownRules(version) => {
                    Failed::Fatal(unknown_rules(&format!("entry {at}"), version, known))
                },
            })?;
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
        let result = result.unwrap_or_else(|_panic| Err("applying panicked".to_owned().into()));
        let result = result.map_err(|failed| match failed {
            Failed::Fatal(reason) => {
                applier.fatal(&reason);
                reason
            },
            Failed::Stopped(reason) => {
                tracing::warn!(group = applier.group, %reason, "applying ends with the node");
                reason
            },
            // Whoever retired it says why the process ends.
            Failed::Damaged(reason) if applier.group == META_GROUP && applier.is_wounded() => {
                reason
            },
            Failed::Damaged(reason) => {
                applier.wound(&reason);
                reason
            },
        });
        // Nobody listens when the group stopped meanwhile.
        let _ = done.send(result);
    }
}

/// The threads that apply. They end when the last clone of this is gone.
#[derive(Clone)]
pub(crate) struct ApplyThreads {
    /// One queue per thread. Each group has at most one job under way, so the queues are
    /// bounded by the groups and never refuse. Empty: whoever asks applies.
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

    /// No threads: for a store that never waits.
    pub(crate) fn none() -> Self {
        Self { queues: Vec::new() }
    }

    /// Applies entries on the group's thread and waits. If the future is dropped, they are
    /// applied all the same.
    pub(crate) async fn apply(
        &self,
        applier: &Arc<Applier>,
        entries: Vec<Committed>,
    ) -> Result<(), std::io::Error> {
        let group = usize::try_from(applier.group).expect("32 bits fit");
        let (done, result) = oneshot::channel();
        let job = Job {
            applier: applier.clone(),
            entries,
            done,
        };
        let gone = || std::io::Error::other("the apply thread is gone");
        match self.queues.get(group % self.queues.len().max(1)) {
            Some(queue) => queue.send(job).await.map_err(|_closed| gone())?,
            None => job.run(),
        }
        match result.await {
            Ok(result) => result.map_err(std::io::Error::other),
            Err(_closed) => Err(gone()),
        }
    }
}

#[cfg(test)]
mod tests;
