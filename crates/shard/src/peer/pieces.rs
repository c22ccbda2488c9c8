//! Snapshots as they travel between nodes: a head, chunks, the number of chunks. Pushed by a
//! leader to a follower that is behind the log, or fetched by a replica that is rebuilt.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use everwire_core::limits::{APPEND_BYTES_MAX, SNAPSHOT_PIECE_WITHIN};
use everwire_core::{Code, Refusal};
use everwire_proto::internal_v1 as wire;
use everwire_proto::internal_v1::snapshot_piece::Piece;
use everwire_proto::storage_v1 as disk;
use everwire_store::{Applied, SnapshotReader, Store, StoreError};
use openraft::async_runtime::WatchReceiver;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::door::{Door, GroupEntry};
use super::links::{Line, Links};
use crate::damage::Damages;
use crate::group::read_index;
use crate::meters::{Counts, one_more};
use crate::wait::{on_disk, where_it_waits};

/// Pieces of a snapshot that wait for the connection.
pub(super) const PIECES_WAITING_MAX: usize = 2;
/// How long a leader may take to prove itself and to begin.
const OPEN_WITHIN: Duration = Duration::from_secs(15);

/// Work that waits for the disk, where it may wait.
async fn spooling<T: Send + 'static>(
    store: &Arc<dyn Store>,
    work: impl FnOnce(&Arc<dyn Store>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, Status> {
    let done = on_disk(store, work).await;
    let done = done.map_err(|error| Status::internal(error.to_string()))?;
    done.map_err(|error| Status::unavailable(error.to_string()))
}

/// A snapshot on its way to another node.
pub(super) struct Sending<P> {
    /// Whether the reader waits for a device.
    pub(super) waits: bool,
    pub(super) group: u32,
    pub(super) vote: Option<disk::Vote>,
    pub(super) damages: Arc<Damages>,
    /// Where the pieces go, and what they are wrapped in.
    pub(super) pieces: mpsc::Sender<P>,
    pub(super) wrap: fn(wire::SnapshotPiece) -> P,
    /// Hears how many chunks went.
    pub(super) moved: Arc<AtomicU64>,
}

impl<P: Send + 'static> Sending<P> {
    /// Sends all pieces: reads where it may wait for the disk, and waits for the connection.
    /// Run it in a task of its own: the reader must come to its end where it may wait, too.
    pub(super) async fn run(self, reader: Box<dyn SnapshotReader>) -> Result<(), String> {
        let mut reader = Some(reader);
        let sent = self.send(&mut reader).await;
        // Lets go of the disk, which waits for it. Whoever counts hears of it from `sent`.
        let _ = where_it_waits(self.waits, move || drop(reader)).await;
        sent
    }

    async fn send(&self, reader: &mut Option<Box<dyn SnapshotReader>>) -> Result<(), String> {
        let applied = reader.as_ref().and_then(|reader| reader.applied());
        let applied = applied.ok_or("an empty snapshot")?.to_bytes();
        self.give(Piece::Open(wire::SnapshotOpen {
            group: self.group,
            vote: self.vote,
            applied: applied.map_err(|error| error.to_string())?,
        }))
        .await?;
        let mut chunks = 0;
        while let Some(chunk) = self.next_chunk(reader).await? {
            self.give(Piece::Chunk(chunk)).await?;
            chunks += 1;
            self.moved.store(chunks, Ordering::SeqCst);
        }
        self.give(Piece::End(chunks)).await
    }

    async fn next_chunk(
        &self,
        reader: &mut Option<Box<dyn SnapshotReader>>,
    ) -> Result<Option<Bytes>, String> {
        let mut taken = reader.take().ok_or("the snapshot was lost")?;
        let read = where_it_waits(self.waits, move || (taken.next_chunk(), taken)).await;
        let (chunk, taken) = read.map_err(|error| error.to_string())?;
        *reader = Some(taken);
        chunk.map_err(|error| {
            self.damages.note(&error);
            error.to_string()
        })
    }

    async fn give(&self, piece: Piece) -> Result<(), String> {
        let piece = (self.wrap)(wire::SnapshotPiece { piece: Some(piece) });
        let sent = self.pieces.send(piece).await;
        sent.map_err(|_closed| "the other node took no more".to_owned())
    }
}

fn broken() -> Status {
    Status::invalid_argument("the snapshot broke off")
}

/// The next piece, which comes in time or not at all.
async fn next(pieces: &mut Streaming<wire::SnapshotPiece>) -> Result<Piece, Status> {
    let late = |_elapsed| Status::deadline_exceeded("the snapshot does not move");
    let piece = tokio::time::timeout(SNAPSHOT_PIECE_WITHIN, pieces.message()).await;
    let piece = piece.map_err(late)??;
    piece.and_then(|piece| piece.piece).ok_or_else(broken)
}

/// The head: which group, whose vote, and what the data stand for.
pub(super) async fn open(
    pieces: &mut Streaming<wire::SnapshotPiece>,
) -> Result<(u32, Option<disk::Vote>, Applied), Status> {
    let Piece::Open(open) = next(pieces).await? else {
        return Err(broken());
    };
    let applied = Applied::from_bytes(&open.applied);
    let applied = applied.map_err(|error| Status::invalid_argument(error.to_string()))?;
    Ok((open.group, open.vote, applied))
}

/// Takes the rest into a spool, to the end. A transfer that breaks off leaves nothing.
pub(super) async fn spool(
    store: Arc<dyn Store>,
    group: u32,
    applied: Applied,
    pieces: &mut Streaming<wire::SnapshotPiece>,
) -> Result<(Box<dyn SnapshotReader>, u64), Status> {
    let mut spool = spooling(&store, move |store| store.spool(group, applied)).await?;
    let mut chunks = 0_u64;
    loop {
        match next(pieces).await? {
            Piece::Chunk(chunk) if chunk.len() <= 2 * APPEND_BYTES_MAX => {
                let add = move |_store: &Arc<dyn Store>| spool.chunk(chunk).map(|()| spool);
                spool = spooling(&store, add).await?;
                chunks += 1;
            },
            Piece::End(count) if count == chunks => break,
            Piece::Open(_) | Piece::Chunk(_) | Piece::End(_) => return Err(broken()),
        }
    }
    let reader = spooling(&store, move |_store| spool.finish()).await?;
    Ok((reader, chunks))
}

// === Fetch ===

/// The rows of a group that this node leads, as they stand after everything that was committed
/// before the call. NOT_LEADER, NO_QUORUM, STALE.
pub(super) async fn prove_and_read(
    door: &Door,
    group: u32,
) -> Result<Box<dyn SnapshotReader>, Refusal> {
    let stale = |message: &str| Refusal::new(Code::Stale, message);
    let absent = || Refusal::new(Code::NotLeader, "this node does not hold the group");
    let entry = door.groups.get(group).ok_or_else(absent)?;
    let (Some(store), Some(damages)) = (door.store(), door.damages.get()) else {
        return Err(absent());
    };
    if damages.is_reported(group) {
        return Err(stale("this replica is to be rebuilt itself"));
    }
    apply_all(group, &entry).await?;
    let read = on_disk(&store, move |store| store.snapshot(group)).await;
    let failed = |error: &dyn std::fmt::Display| {
        tracing::error!(group, %error, "the rows cannot be read for another replica");
        stale("the rows cannot be read here")
    };
    let read = read.map_err(|error| failed(&error))?;
    read.map_err(|error| {
        damages.note(&error);
        failed(&error)
    })
}

/// Proves that this node leads, and waits until it has applied what that means.
async fn apply_all(group: u32, entry: &GroupEntry) -> Result<(), Refusal> {
    let index = read_index(group, &entry.raft).await?;
    let wait = entry.raft.wait(Some(OPEN_WITHIN));
    let applied = wait.applied_index_at_least(Some(index), "a read index");
    match applied.await {
        Ok(_metrics) => Ok(()),
        Err(error) => {
            let applied = entry.raft.metrics().borrow_watched().last_applied;
            tracing::info!(group, %error, ?applied, "nothing can be fetched yet");
            let message = "the leader has not applied its log yet";
            Err(Refusal::new(Code::Stale, message))
        },
    }
}

/// Sends what [`prove_and_read`] found.
pub(super) fn serve(
    waits: bool,
    group: u32,
    reader: Box<dyn SnapshotReader>,
    damages: Arc<Damages>,
    counts: Arc<Counts>,
) -> mpsc::Receiver<Result<wire::SnapshotPiece, Status>> {
    let (pieces, stream) = mpsc::channel(PIECES_WAITING_MAX);
    let sending = Sending {
        waits,
        group,
        vote: None,
        damages,
        pieces: pieces.clone(),
        wrap: Ok,
        moved: Arc::default(),
    };
    tokio::spawn(async move {
        match sending.run(reader).await {
            Ok(()) => one_more(&counts.snapshots_sent),
            Err(reason) => {
                tracing::info!(group, %reason, "a snapshot was not fetched to the end");
                // Nobody listens if it was the replica that left.
                let _ = pieces.send(Err(Status::unavailable(reason))).await;
            },
        }
    });
    stream
}

/// Fetches a group's rows from a node, if it leads the group. What it answers is whole, and
/// waits in a spool of `store`.
pub(crate) async fn fetch(
    links: &Links,
    store: &Arc<dyn Store>,
    group: u32,
    node: u64,
) -> Result<Box<dyn SnapshotReader>, String> {
    let told = |status: Status| status.message().to_owned();
    let client = links.client(node, Line::Bulk);
    let mut client = client.ok_or("nobody knows where it is")?;
    let asked = client.fetch(wire::FetchRequest { group });
    let asked = tokio::time::timeout(OPEN_WITHIN * 2, asked).await;
    let asked = asked.map_err(|_elapsed| "it gave no answer".to_owned())?;
    let mut pieces = asked.map_err(told)?.into_inner();
    let (found, _vote, applied) = open(&mut pieces).await.map_err(told)?;
    if found != group {
        return Err(format!("it sent the rows of group {found}"));
    }
    let taken = spool(store.clone(), group, applied, &mut pieces).await;
    let (reader, _chunks) = taken.map_err(told)?;
    Ok(reader)
}
