//! The newest entries of a group's log, decoded: apply finds what was just appended here, so
//! that a commit touches no disk twice.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Mutex;

use openraft::EntryPayload;
use openraft::entry::RaftEntry;

use super::types::Entry;

/// Appended entries until they are applied, at most [`BYTES_MAX`].
#[derive(Default)]
pub(crate) struct Tail(Mutex<Inner>);

/// Holds what may be in flight, so that it only overflows on a follower that lags in applying;
/// that one reads the store.
const BYTES_MAX: usize = 4 << 20;

#[derive(Default)]
struct Inner {
    /// Invariant: indexes are contiguous.
    entries: VecDeque<Entry>,
    bytes: usize,
}

fn weight(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Normal(proposal) => proposal.0.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    };
    payload + size_of::<Entry>()
}

impl Inner {
    fn pop_front(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= weight(&entry);
        }
    }

    fn pop_back(&mut self) {
        if let Some(entry) = self.entries.pop_back() {
            self.bytes -= weight(&entry);
        }
    }
}

impl Tail {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.0.lock().expect("no panic happens under this lock")
    }

    /// Takes an entry that was appended.
    pub(crate) fn push(&self, entry: Entry) {
        let mut inner = self.lock();
        let next = inner.entries.back().map(|last| last.index() + 1);
        if next.is_some_and(|next| next != entry.index()) {
            *inner = Inner::default();
        }
        inner.bytes += weight(&entry);
        inner.entries.push_back(entry);
        while inner.bytes > BYTES_MAX {
            inner.pop_front();
        }
    }

    /// Forgets entries above `index`; all of them for `None`.
    pub(crate) fn truncate_after(&self, index: Option<u64>) {
        let mut inner = self.lock();
        while inner
            .entries
            .back()
            .is_some_and(|last| index.is_none_or(|index| last.index() > index))
        {
            inner.pop_back();
        }
    }

    /// Forgets entries up to `index`.
    pub(crate) fn release(&self, index: u64) {
        let mut inner = self.lock();
        while inner
            .entries
            .front()
            .is_some_and(|first| first.index() <= index)
        {
            inner.pop_front();
        }
    }

    /// The entries of a range, if all of them are here.
    pub(crate) fn range(&self, range: &Range<u64>) -> Option<Vec<Entry>> {
        let inner = self.lock();
        let first = inner.entries.front()?.index();
        let skip = usize::try_from(range.start.checked_sub(first)?).ok()?;
        let count = usize::try_from(range.end.checked_sub(range.start)?).ok()?;
        let entries: Vec<_> = inner
            .entries
            .iter()
            .skip(skip)
            .take(count)
            .cloned()
            .collect();
        (entries.len() == count).then_some(entries)
    }
}

#[cfg(test)]
mod tests {
    use super::super::codec::log_id;
    use super::super::types::Proposal;
    use super::*;
    use bytes::Bytes;
    use everwire_store::LogPosition;

    fn entry(index: u64, bytes: usize) -> Entry {
        let id = log_id(LogPosition {
            term: 1,
            node: 0,
            index,
        });
        Entry::new_normal(id, Proposal(Bytes::from(vec![0; bytes])))
    }

    fn indexes(tail: &Tail, range: Range<u64>) -> Option<Vec<u64>> {
        let entries = tail.range(&range)?;
        Some(entries.iter().map(RaftEntry::index).collect())
    }

    #[test]
    fn ranges_are_answered_whole_or_not_at_all() {
        let tail = Tail::default();
        assert_eq!(indexes(&tail, 1..2), None);
        for index in 5..9 {
            tail.push(entry(index, 10));
        }
        assert_eq!(indexes(&tail, 5..9), Some(vec![5, 6, 7, 8]));
        assert_eq!(indexes(&tail, 6..7), Some(vec![6]));
        assert_eq!(indexes(&tail, 4..6), None);
        assert_eq!(indexes(&tail, 8..10), None);
        tail.release(5);
        assert_eq!(indexes(&tail, 5..6), None);
        tail.truncate_after(Some(7));
        assert_eq!(indexes(&tail, 6..8), Some(vec![6, 7]));
        assert_eq!(indexes(&tail, 6..9), None);
        tail.push(entry(20, 10));
        assert_eq!(indexes(&tail, 6..8), None, "a jump starts anew");
        tail.truncate_after(None);
        assert_eq!(tail.lock().bytes, 0);
    }

    #[test]
    fn bytes_are_bounded() {
        let tail = Tail::default();
        for index in 0..20 {
            tail.push(entry(index, 1 << 20));
        }
        assert!(tail.lock().bytes <= BYTES_MAX);
        assert!(indexes(&tail, 19..20).is_some());
    }
}
