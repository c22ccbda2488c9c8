//! The log's FIFO: operations of all groups wait here for the writer.
//!
//! One writer takes as much as one sync should carry. Votes and small operations may overtake
//! big ones of *other* groups (RULES 37), never of their own: of each group the writer takes a
//! head of what waits. Within one batch votes are written first, so a vote that stands behind a
//! log operation of its group waits for the next batch.
//!
//! Bound: none here. Raft's core may not wait in the middle of a step; `shard` admits by bytes
//! before it proposes.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::{Condvar, Mutex, MutexGuard};

use everwire_core::limits::SYNC_BYTES_MAX;

use crate::error::StoreError;
use crate::types::{Done, LogPosition, LogRecord, VoteRecord};

/// What an operation asks of the writer.
pub(crate) enum Work {
    /// Records to write.
    Append(Vec<LogRecord>),
    /// Indexes to remove one by one; may be empty.
    Truncate(Range<u64>),
    /// Forget everything up to here.
    Purge(LogPosition),
    /// Set or clear the group's install marker.
    Marker(bool),
    /// Save a vote.
    Vote(VoteRecord),
    /// Refused before it was queued; only its answer keeps its place.
    Refused(StoreError),
}

/// One operation.
pub(crate) struct Op {
    /// Whose.
    pub(crate) group: u32,
    /// What.
    pub(crate) work: Work,
    /// Its number; rises over all groups.
    pub(crate) seq: u64,
    /// Who waits; `None` for all but the last piece of a large append.
    pub(crate) done: Option<Done>,
    bytes: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Op>,
    last_seq: u64,
    /// The writer ends when nothing waits any more.
    closing: bool,
    /// Somebody drives the queue on its own thread.
    driven: bool,
    /// Nobody may take operations: a test holds the disk.
    held: bool,
}

/// See the module.
#[derive(Default)]
pub(crate) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
}

/// Most bytes that overtake in one sync, and the largest piece that an append is cut into: so a
/// piece and those that overtake it fit one sync.
pub(crate) const PIECE_BYTES: usize = SYNC_BYTES_MAX / 2;
/// An operation up to this size may overtake.
const SMALL_BYTES: usize = 16 << 10;
/// What an operation costs besides its payload: key, header, bookkeeping.
const OVERHEAD_BYTES: usize = 64;

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Queues an operation and tells its number. Call it under the lock of its group.
    pub(crate) fn push(&self, group: u32, work: Work, done: Option<Done>) -> u64 {
        let bytes = OVERHEAD_BYTES + work.bytes();
        let mut state = self.lock();
        state.last_seq += 1;
        let seq = state.last_seq;
        state.waiting.push_back(Op {
            group,
            work,
            seq,
            done,
            bytes,
        });
        self.ready.notify_one();
        seq
    }

    /// Bytes that wait.
    pub(crate) fn waiting_bytes(&self) -> usize {
        self.lock().waiting.iter().map(|op| op.bytes).sum()
    }

    /// Waits for the next batch; `None` when the queue is closing and empty.
    pub(crate) fn wait(&self) -> Option<Vec<Op>> {
        let idle = |state: &mut State| (state.waiting.is_empty() || state.held) && !state.closing;
        let state = self.lock();
        let mut state = self
            .ready
            .wait_while(state, idle)
            .expect("no holder of this lock panics");
        let picked = pick(&mut state.waiting);
        (!picked.is_empty()).then_some(picked)
    }

    /// The next batch for a caller that drives the queue itself. `None`: nothing waits, the queue
    /// is held, or somebody else drives it and will take what waits.
    pub(crate) fn drive(&self, mine: &mut bool) -> Option<Vec<Op>> {
        let mut state = self.lock();
        if (state.driven && !*mine) || state.held || state.waiting.is_empty() {
            if *mine {
                state.driven = false;
            }
            return None;
        }
        state.driven = true;
        *mine = true;
        Some(pick(&mut state.waiting))
    }

    /// Holds or releases the queue; for a test.
    pub(crate) fn hold(&self, held: bool) {
        self.lock().held = held;
        self.ready.notify_all();
    }

    /// Takes one batch of a held queue; for a test that steps. Not while somebody drives.
    pub(crate) fn step(&self) -> Option<Vec<Op>> {
        let mut state = self.lock();
        let picked = pick(&mut state.waiting);
        (!picked.is_empty()).then_some(picked)
    }

    /// Puts a batch back that was not written: in its place in the order.
    pub(crate) fn put_back(&self, mut ops: Vec<Op>) {
        let mut state = self.lock();
        ops.extend(std::mem::take(&mut state.waiting));
        ops.sort_by_key(|op| op.seq);
        state.waiting = ops.into();
    }

    /// Takes the votes that stand behind no other operation of their group.
    pub(crate) fn free_votes(&self) -> Vec<Op> {
        let mut state = self.lock();
        let mut held = BTreeSet::new();
        let (mut votes, mut left) = (Vec::new(), VecDeque::new());
        for op in std::mem::take(&mut state.waiting) {
            if matches!(op.work, Work::Vote(_)) && !held.contains(&op.group) {
                votes.push(op);
            } else {
                held.insert(op.group);
                left.push_back(op);
            }
        }
        state.waiting = left;
        votes
    }

    /// Lets the writer end once everything is written.
    pub(crate) fn close(&self) {
        self.lock().closing = true;
        self.ready.notify_all();
    }
}

impl Work {
    fn bytes(&self) -> usize {
        match self {
            Self::Append(records) => records
                .iter()
                .map(|record| record.bytes.len() + OVERHEAD_BYTES)
                .sum(),
            Self::Truncate(range) => {
                let count = usize::try_from(range.end.saturating_sub(range.start));
                count.unwrap_or(usize::MAX / OVERHEAD_BYTES) * 16
            },
            Self::Purge(_) | Self::Marker(_) | Self::Vote(_) | Self::Refused(_) => 0,
        }
    }
}

/// Takes the next batch off the queue, in queue order.
fn pick(waiting: &mut VecDeque<Op>) -> Vec<Op> {
    let all: usize = waiting.iter().map(|op| op.bytes).sum();
    if all <= SYNC_BYTES_MAX && !vote_behind_log(waiting) {
        return waiting.drain(..).collect();
    }
    let chosen = choose(waiting);
    let mut picked = Vec::new();
    let mut left = VecDeque::new();
    for (op, chosen) in waiting.drain(..).zip(chosen) {
        if chosen {
            picked.push(op);
        } else {
            left.push_back(op);
        }
    }
    *waiting = left;
    picked
}

fn vote_behind_log(waiting: &VecDeque<Op>) -> bool {
    let mut wrote = BTreeSet::new();
    waiting.iter().any(|op| match op.work {
        Work::Vote(_) => wrote.contains(&op.group),
        _ => {
            wrote.insert(op.group);
            false
        },
    })
}

/// Which operations go into the next batch: first the small ones that stand at the head of their
/// group, up to half a sync; then the rest in order. The oldest operation always goes.
fn choose(waiting: &VecDeque<Op>) -> Vec<bool> {
    let mut chosen = vec![false; waiting.len()];
    let mut wrote = BTreeSet::new();
    let mut bytes = 0;
    for small_only in [true, false] {
        let budget = if small_only {
            PIECE_BYTES
        } else {
            SYNC_BYTES_MAX
        };
        let mut held = BTreeSet::new();
        for (at, (op, chosen)) in waiting.iter().zip(&mut chosen).enumerate() {
            if *chosen {
                continue;
            }
            let is_vote = matches!(op.work, Work::Vote(_));
            let fits = bytes + op.bytes <= budget || (at == 0 && !small_only);
            let blocked = held.contains(&op.group)
                || (small_only && op.bytes > SMALL_BYTES)
                || (is_vote && wrote.contains(&op.group))
                || !fits;
            if blocked {
                held.insert(op.group);
                continue;
            }
            *chosen = true;
            bytes += op.bytes;
            if !is_vote {
                wrote.insert(op.group);
            }
        }
    }
    chosen
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn append(group: u32, bytes: usize) -> (u32, Work) {
        let record = LogRecord {
            position: LogPosition::default(),
            bytes: Bytes::from(vec![0; bytes]),
        };
        (group, Work::Append(vec![record]))
    }

    fn vote(group: u32) -> (u32, Work) {
        (group, Work::Vote(VoteRecord::default()))
    }

    fn batches(ops: Vec<(u32, Work)>) -> Vec<Vec<Op>> {
        let queue = Queue::default();
        for (group, work) in ops {
            queue.push(group, work, None);
        }
        std::iter::from_fn(|| queue.step()).collect()
    }

    fn seqs(batches: &[Vec<Op>]) -> Vec<Vec<u64>> {
        batches
            .iter()
            .map(|batch| batch.iter().map(|op| op.seq).collect())
            .collect()
    }

    #[test]
    fn what_fits_goes_in_one_batch() {
        let got = batches(vec![vote(1), append(1, 10), append(2, 10)]);
        assert_eq!(seqs(&got), [[1, 2, 3]]);
    }

    #[test]
    fn a_vote_overtakes_other_groups_but_not_its_own() {
        let big = PIECE_BYTES;
        let ops = vec![
            append(1, big),
            append(1, big),
            append(1, big),
            vote(1),
            vote(2),
        ];
        let got = batches(ops);
        assert_eq!(seqs(&got)[0], [1, 5]);
        assert_eq!(seqs(&got).concat(), [1, 5, 2, 3, 4]);
    }

    #[test]
    fn a_vote_waits_for_the_log_operations_before_it() {
        let got = batches(vec![append(1, 10), vote(1), append(1, 10), append(2, 1)]);
        assert_eq!(seqs(&got), [vec![1, 4], vec![2, 3]]);
    }

    proptest! {
        #[test]
        fn groups_keep_their_order_and_nothing_is_lost(
            ops in proptest::collection::vec((0..4u32, 0..6usize), 1..60)
        ) {
            let sizes = [0, 10, SMALL_BYTES, PIECE_BYTES, SYNC_BYTES_MAX * 2];
            let made = ops.iter().map(|(group, what)| match sizes.get(*what) {
                Some(size) => append(*group, *size),
                None => vote(*group),
            });
            let got = batches(made.collect());
            let mut last = [0; 4];
            let mut count = 0;
            for batch in &got {
                let mut wrote = BTreeSet::new();
                let bytes: usize = batch.iter().map(|op| op.bytes).sum();
                prop_assert!(bytes <= SYNC_BYTES_MAX || batch.len() == 1 || batch[0].bytes > PIECE_BYTES);
                for op in batch {
                    prop_assert!(last[op.group as usize] < op.seq);
                    last[op.group as usize] = op.seq;
                    count += 1;
                    if matches!(op.work, Work::Vote(_)) {
                        prop_assert!(!wrote.contains(&op.group));
                    } else {
                        wrote.insert(op.group);
                    }
                }
            }
            prop_assert_eq!(count, ops.len());
        }
    }
}
