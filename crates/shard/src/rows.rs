//! The rows that apply reads: the store's, through a cache bounded in bytes.
//!
//! Only a shard's apply thread reads and writes here, so that a cached row is always what the
//! store would answer (RULES 41: loads run on the apply thread, never on a runtime worker).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use everwire_core::row::{Row, RowKey, RowRange, SessionKey};
use everwire_rules::{View, ViewError};
use everwire_store::{Store, StoreError};

/// Rows by key, `None` for a row that is known to be absent. Two generations instead of a list
/// of uses: a hit moves a row to the young one; when that is full, the old one is forgotten.
pub(crate) struct RowCache {
    young: HashMap<RowKey, Option<Row>>,
    old: HashMap<RowKey, Option<Row>>,
    young_bytes: usize,
    generation_bytes_max: usize,
}

/// Roughly what a row weighs in memory: its fixed size and its texts.
fn weight(key: &RowKey, row: Option<&Row>) -> usize {
    let key_text = match key {
        RowKey::Name(_, namespace, name) => namespace.as_str().len() + name.as_str().len(),
        RowKey::Counter(_) | RowKey::Head(_) | RowKey::Timer(..) => 0,
        RowKey::Run(_, run) | RowKey::Epoch(_, run, _) | RowKey::Batch(_, run, ..) => {
            run.as_str().len()
        },
        RowKey::LiveRun(_, run) => run.as_str().len(),
        RowKey::Step(_, run, step) => run.as_str().len() + step.as_str().len(),
        RowKey::Message(_, message) => message.as_str().len(),
        RowKey::Part(_, message, part) => message.as_str().len() + part.as_str().len(),
        RowKey::Input(_, author, input) | RowKey::Tombstone(_, author, input) => {
            author.as_str().len() + input.as_str().len()
        },
        RowKey::Approval(_, approval) => approval.as_str().len(),
        RowKey::Key(_, author, key) | RowKey::KeyAge(_, _, author, key) => {
            author.as_str().len() + key.as_str().len()
        },
    };
    let row_text = match row {
        Some(Row::Run(run)) => run
            .open_messages
            .iter()
            .map(|message| message.as_str().len() + size_of_val(message))
            .chain(
                run.open_approvals
                    .iter()
                    .map(|open| open.as_str().len() + size_of_val(open)),
            )
            .sum(),
        Some(Row::Approval(row)) => row
            .approvers
            .iter()
            .map(|one| one.as_str().len() + size_of_val(one))
            .sum(),
        Some(Row::Message(message)) => message
            .open_parts
            .iter()
            .map(|part| part.as_str().len() + size_of_val(part))
            .sum(),
        _ => 0,
    };
    size_of::<(RowKey, Option<Row>)>() + key_text + row_text
}

impl RowCache {
    /// A cache of at most about `bytes_max`.
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            young_bytes: 0,
            generation_bytes_max: bytes_max / 2,
        }
    }

    fn get(&mut self, key: &RowKey) -> Option<Option<Row>> {
        if let Some(row) = self.young.get(key) {
            return Some(row.clone());
        }
        let (key, row) = self.old.remove_entry(key)?;
        self.put(key, row.clone());
        Some(row)
    }

    fn put(&mut self, key: RowKey, row: Option<Row>) {
        let bytes = weight(&key, row.as_ref());
        if bytes > self.generation_bytes_max {
            // Too heavy to keep; what was known about it is not true any more.
            if let Some(before) = self.young.remove(&key) {
                self.young_bytes -= weight(&key, before.as_ref());
            }
            self.old.remove(&key);
            return;
        }
        if self.young_bytes + bytes > self.generation_bytes_max {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        self.old.remove(&key);
        self.young_bytes += bytes;
        if let Some(before) = self.young.get(&key) {
            self.young_bytes -= weight(&key, before.as_ref());
        }
        self.young.insert(key, row);
    }

    /// Takes what was written: changed rows, and the sessions that are gone with all theirs.
    pub(crate) fn absorb(&mut self, rows: &BTreeMap<RowKey, Option<Row>>, erased: &[SessionKey]) {
        if !erased.is_empty() {
            let kept = |key: &RowKey, _row: &mut Option<Row>| {
                key.session()
                    .is_none_or(|session| !erased.contains(&session))
            };
            self.young.retain(kept);
            self.old.retain(kept);
            let young = self.young.iter();
            self.young_bytes = young.map(|(key, row)| weight(key, row.as_ref())).sum();
        }
        for (key, row) in rows {
            self.put(key.clone(), row.clone());
        }
    }

    /// Forgets everything: the rows were replaced as a whole.
    pub(crate) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
        self.young_bytes = 0;
    }
}

/// The rows as one transaction reads them.
pub(crate) struct CachedView<'a> {
    store: &'a dyn Store,
    cache: RefCell<&'a mut RowCache>,
    /// The store failed, and not because of damaged rows.
    failed: Cell<bool>,
}

impl<'a> CachedView<'a> {
    pub(crate) fn new(store: &'a dyn Store, cache: &'a mut RowCache) -> Self {
        Self {
            store,
            cache: RefCell::new(cache),
            failed: Cell::new(false),
        }
    }

    /// Whether the disk failed: what could not be read then is not damage.
    pub(crate) fn failed(&self) -> bool {
        self.failed.get()
    }

    fn note(&self, error: &StoreError) -> ViewError {
        let damaged = matches!(error, StoreError::DamagedRows { .. });
        self.failed.set(self.failed.get() || !damaged);
        ViewError(error.to_string())
    }
}

impl View for CachedView<'_> {
    fn get(&self, key: &RowKey) -> Result<Option<Row>, ViewError> {
        if let Some(row) = self.cache.borrow_mut().get(key) {
            return Ok(row);
        }
        let row = self.store.row(key);
        let row = row.map_err(|error| self.note(&error))?;
        self.cache.borrow_mut().put(key.clone(), row.clone());
        Ok(row)
    }

    fn scan(&self, range: RowRange, limit: usize) -> Result<Vec<RowKey>, ViewError> {
        let keys = self.store.scan(range, limit);
        keys.map_err(|error| self.note(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everwire_core::ids::{SessionNo, Slot};
    use proptest::prelude::*;

    /// One step of a history: a row is written, read, or its session erased.
    #[derive(Clone, Debug)]
    enum Step {
        Write(u16, u64, Option<u64>),
        Read(u16, u64),
        Erase(u16),
        Clear,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0u16..4, 0u64..16, any::<Option<u64>>())
                .prop_map(|(slot, no, value)| Step::Write(slot, no, value)),
            6 => (0u16..4, 0u64..16).prop_map(|(slot, no)| Step::Read(slot, no)),
            1 => (0u16..4).prop_map(Step::Erase),
            1 => Just(Step::Clear),
        ];
        prop::collection::vec(step, 0..200)
    }

    fn key(slot: u16, no: u64) -> RowKey {
        RowKey::Head(SessionKey {
            slot: Slot::new(slot).unwrap(),
            session_no: SessionNo(no),
        })
    }

    proptest! {
        /// Cached rows are the rows of a plain map, in a cache too small for them.
        #[test]
        fn cached_rows_are_the_written_rows(steps in steps()) {
            let mut plain: BTreeMap<RowKey, Row> = BTreeMap::new();
            let bytes_max = 10 * size_of::<(RowKey, Option<Row>)>();
            let mut cache = RowCache::new(bytes_max);
            for step in steps {
                match step {
                    Step::Write(slot, no, value) => {
                        let row = value.map(Row::Counter);
                        match row.clone() {
                            Some(row) => plain.insert(key(slot, no), row),
                            None => plain.remove(&key(slot, no)),
                        };
                        cache.absorb(&BTreeMap::from([(key(slot, no), row)]), &[]);
                    },
                    Step::Read(slot, no) => {
                        let expected = plain.get(&key(slot, no)).cloned();
                        match cache.get(&key(slot, no)) {
                            Some(cached) => prop_assert_eq!(cached, expected),
                            None => cache.put(key(slot, no), expected),
                        }
                    },
                    Step::Erase(slot) => {
                        let gone: Vec<_> = (0..16).map(|no| key(slot, no).session().unwrap()).collect();
                        plain.retain(|key, _| !gone.contains(&key.session().unwrap()));
                        cache.absorb(&BTreeMap::new(), &gone);
                    },
                    Step::Clear => cache.clear(),
                }
                let young = cache.young.iter();
                let bytes: usize = young.map(|(key, row)| weight(key, row.as_ref())).sum();
                prop_assert_eq!(bytes, cache.young_bytes);
                prop_assert!(bytes <= bytes_max / 2);
            }
        }
    }
}
