//! openraft's log storage on the store's FIFO.
//!
//! Appends return at once and are called back after the synced write, in order; a vote is
//! synced before it is granted; one FIFO for both (engine traps 1 and 2). Whatever waits for
//! the disk runs where it may wait (`wait`).

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, Range, RangeBounds};
use std::sync::Arc;

use everwire_core::limits::APPEND_BYTES_MAX;
use everwire_store::{Done, LogRecord, Store, StoreError};
use futures_util::FutureExt;
use futures_util::stream::{self, Stream, StreamExt};
use openraft::OptionalSend;
use openraft::alias::LeaderIdOf;
use openraft::entry::RaftEntry;
use openraft::errors::LeaderChanged;
use openraft::storage::{
    IOFlushed, LeaderBoundedStreamError, LogState, RaftLogReader, RaftLogStorage,
};
use tokio::sync::oneshot;

use super::codec;
use super::machine::Alive;
use super::tail::Tail;
use super::types::{Entry, LogId, TypeConfig, Vote};
use crate::wait::on_disk;

/// The log and vote of one group. A clone reads the same log.
#[derive(Clone)]
pub(crate) struct Log {
    group: u32,
    store: Arc<dyn Store>,
    tail: Arc<Tail>,
    _alive: Alive,
}

/// What the store said, as openraft hears it.
pub(crate) fn io_error(error: StoreError) -> io::Error {
    io::Error::other(error.to_string())
}

/// Runs what waits for the disk where it may wait.
pub(crate) async fn blocking<T: Send + 'static>(
    store: &Arc<dyn Store>,
    work: impl FnOnce(&Arc<dyn Store>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, io::Error> {
    match on_disk(store, work).await {
        Ok(result) => result.map_err(io_error),
        Err(error) => Err(io::Error::other(error.to_string())),
    }
}

/// A callback for the store and the place where its answer arrives.
fn done() -> (Done, impl Future<Output = Result<(), io::Error>>) {
    let (tx, rx) = oneshot::channel();
    let done: Done = Box::new(move |result| {
        // Nobody listens when the group stopped meanwhile.
        let _ = tx.send(result);
    });
    let answer = async {
        match rx.await {
            Ok(result) => result.map_err(io_error),
            Err(_closed) => Err(io::Error::other("the store stopped")),
        }
    };
    (done, answer)
}

fn indexes(range: &impl RangeBounds<u64>) -> Range<u64> {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    start..end
}

/// Decodes a page and checks that it has no hole and begins at `start`.
fn decode(records: &[LogRecord], start: u64) -> Result<Vec<Entry>, io::Error> {
    let mut entries = Vec::with_capacity(records.len());
    for (record, expected) in records.iter().zip(start..) {
        if record.position.index != expected {
            let found = record.position.index;
            let what = format!("a hole in the log: index {found}, expected {expected}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        entries.push(codec::entry(record)?);
    }
    Ok(entries)
}

/// The first index of a range that the log holds, or its end.
fn first_held(store: &dyn Store, group: u32, mut range: Range<u64>) -> Result<u64, StoreError> {
    if let Some(purged) = store.log_state(group)?.purged {
        range.start = range.start.max(purged.index + 1);
    }
    if range.is_empty() {
        return Ok(range.end);
    }
    let first = store.read_log(group, range.clone(), 1)?;
    Ok(first
        .first()
        .map_or(range.end, |first| first.position.index))
}

impl Log {
    pub(crate) fn new(group: u32, store: Arc<dyn Store>, alive: Alive) -> Self {
        Self {
            group,
            store,
            tail: Arc::default(),
            _alive: alive,
        }
    }

    /// The next entries of a range: at most [`APPEND_BYTES_MAX`], at least one if there is any.
    /// They begin where the range begins: one that begins below what is purged is an error, for
    /// replication would send a later start as the next entry (engine trap 4).
    async fn page(&self, range: Range<u64>) -> Result<Vec<Entry>, io::Error> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        if let Some(entries) = self.tail.range(&range) {
            return Ok(entries);
        }
        let (group, start) = (self.group, range.start);
        let (records, last) = blocking(&self.store, move |store| {
            let records = store.read_log(group, range, APPEND_BYTES_MAX)?;
            Ok((records, store.log_state(group)?.last))
        })
        .await?;
        // An empty page is the log's end, or something is wrong (engine trap 4).
        if records.is_empty() && last.is_some_and(|last| last.index >= start) {
            let what = format!("index {start} is missing from the log");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        decode(&records, start)
    }

    /// The entries of a range, page by page.
    fn pages(self, range: Range<u64>) -> impl Stream<Item = Result<Vec<Entry>, io::Error>> + Send {
        stream::try_unfold((self, range), |(log, range)| async move {
            let entries = log.page(range.clone()).await?;
            let Some(last) = entries.last() else {
                return Ok(None);
            };
            let rest = last.index() + 1..range.end;
            Ok(Some((entries, (log, rest))))
        })
    }

    async fn vote(&self) -> Result<Option<Vote>, io::Error> {
        let group = self.group;
        let record = blocking(&self.store, move |store| store.vote(group)).await?;
        Ok(record.map(codec::vote))
    }
}

impl RaftLogReader<TypeConfig> for Log {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let mut range = indexes(&range);
        let (group, asked) = (self.group, range.clone());
        // This call may find entries absent: those that are purged, or below the first one.
        let held = move |store: &Arc<dyn Store>| first_held(&**store, group, asked);
        let first = blocking(&self.store, held).await?;
        range.start = first.max(range.start);
        let mut pages = Box::pin(self.clone().pages(range));
        let mut entries = Vec::new();
        while let Some(page) = pages.next().await {
            entries.append(&mut page?);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        self.vote().await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, io::Error> {
        self.page(start..end).await
    }

    // Read by apply: committed entries, each once. What has been read leaves the tail.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let tail = self.tail.clone();
        let pages = Box::pin(self.clone().pages(indexes(&range)));
        pages.flat_map(move |page| {
            if let Some(last) = page.as_ref().ok().and_then(|page| page.last()) {
                tail.release(last.index());
            }
            let (entries, error) = match page {
                Ok(entries) => (entries, None),
                Err(error) => (Vec::new(), Some(Err(error))),
            };
            stream::iter(entries.into_iter().map(Ok).chain(error))
        })
    }

    // Read by replication: bounded pages, each fenced by the vote before and after it.
    async fn leader_bounded_stream<RB>(
        &mut self,
        leader: LeaderIdOf<TypeConfig>,
        range: RB,
    ) -> impl Stream<Item = Result<Entry, LeaderBoundedStreamError<TypeConfig>>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let log = self.clone();
        let still = move |vote: Option<Vote>| match vote {
            Some(vote) if vote.is_committed() && vote.leader_id() == &leader => Ok(()),
            other => Err(LeaderChanged::new(leader, other)),
        };
        let pages = stream::try_unfold(indexes(&range), move |range| {
            let log = log.clone();
            async move {
                still(log.vote().await?)?;
                let entries = log.page(range.clone()).await?;
                still(log.vote().await?)?;
                let Some(last) = entries.last() else {
                    return Ok::<_, LeaderBoundedStreamError<TypeConfig>>(None);
                };
                let rest = last.index() + 1..range.end;
                Ok(Some((entries, rest)))
            }
        });
        Box::pin(pages).flat_map(|page| {
            let (entries, error) = match page {
                Ok(entries) => (entries, None),
                Err(error) => (Vec::new(), Some(Err(error))),
            };
            stream::iter(entries.into_iter().map(Ok).chain(error))
        })
    }
}

impl RaftLogStorage<TypeConfig> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let group = self.group;
        let state = blocking(&self.store, move |store| store.log_state(group)).await?;
        Ok(LogState {
            last_purged_log_id: state.purged.map(codec::log_id),
            last_log_id: state.last.map(codec::log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, answer) = done();
        self.store
            .save_vote(self.group, codec::vote_record(vote), done);
        answer.await
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: IOFlushed<TypeConfig>,
    ) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        for entry in entries {
            records.push(codec::record(&entry));
            self.tail.push(entry);
        }
        if records.is_empty() {
            callback.io_completed(Ok(()));
            return Ok(());
        }
        let done: Done = Box::new(move |result| callback.io_completed(result.map_err(io_error)));
        self.store.append(self.group, records, done);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let index = last.map(|last| last.index());
        self.tail.truncate_after(index);
        let (done, answer) = done();
        self.store.truncate_after(self.group, index, done);
        answer.await
    }

    // Not awaited: it stands in the FIFO, and openraft's core would take nothing meanwhile, no
    // heartbeat either, for as long as a full disk lets the log wait. What fails ends the process.
    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.tail.release(upto.index());
        let (done, answer) = done();
        self.store.purge(self.group, codec::position(&upto), done);
        answer.now_or_never().unwrap_or(Ok(()))
    }
}
