//! openraft's own storage suite on both stores, with the purge bound lifted; and a test of ours
//! that shows the bound. The suite does not test durability: the store's own suite does.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::NodeId;
use everwire_store::rocks::RocksStore;
use everwire_store::sim::{SimDisk, SimStore};
use everwire_store::{Closing, Identity, OnFatal, OpenOptions, Store};
use openraft::StorageError;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;

use super::codec;
use super::log::Log;
use super::machine::Machine;
use super::types::{Entry, LogId, TypeConfig};
use crate::apply::{Applier, ApplyThreads};
use crate::feed::Feed;

const GROUP: u32 = 3;

fn options(on_fatal: OnFatal) -> OpenOptions {
    OpenOptions::create(Identity::new("suite", NodeId(1)), on_fatal)
}

fn deadly() -> OnFatal {
    Arc::new(|reason| panic!("fatal: {reason}"))
}

fn adapters(store: Arc<dyn Store>, bound: bool) -> (Log, Machine) {
    if !bound {
        store.set_purge_bound(GROUP, None);
    }
    let feed = Arc::new(Feed::new(Arc::default()));
    let applier = Applier::with_cache(GROUP, store.clone(), feed, deadly(), 1 << 20).unwrap();
    let threads = ApplyThreads::start(1, 1).unwrap();
    let (alive, _) = tokio::sync::mpsc::channel(1);
    let machine = Machine::new(Arc::new(applier), threads, Arc::default(), alive.clone());
    (Log::new(GROUP, store, alive), machine)
}

struct Sim;

impl StoreBuilder<TypeConfig, Log, Machine> for Sim {
    async fn build(&self) -> Result<((), Log, Machine), StorageError<TypeConfig>> {
        let store = SimStore::open(&SimDisk::new(), options(deadly())).unwrap();
        let (log, machine) = adapters(store, false);
        Ok(((), log, machine))
    }
}

/// Its stores, one a test of the suite: RocksDB does not survive the end of the process half
/// closed.
#[derive(Clone, Default)]
struct Rocks(Arc<Mutex<Vec<Closing>>>);

impl StoreBuilder<TypeConfig, Log, Machine, TempDir> for Rocks {
    async fn build(&self) -> Result<(TempDir, Log, Machine), StorageError<TypeConfig>> {
        let dir = TempDir::new().unwrap();
        let store = RocksStore::open(dir.path(), options(deadly())).unwrap();
        self.0.lock().unwrap().push(store.closing());
        let (log, machine) = adapters(store, false);
        Ok((dir, log, machine))
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes_on_the_simulated_store() {
    Suite::test_all(Sim).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_suite_passes_on_rocksdb() {
    let rocks = Rocks::default();
    Suite::test_all(rocks.clone()).await.unwrap();
    while !rocks.0.lock().unwrap().iter().all(Closing::is_done) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn id(index: u64) -> LogId {
    codec::log_id(everwire_store::LogPosition {
        term: 1,
        node: 0,
        index,
    })
}

async fn append(log: &mut Log, index: u64) -> Result<(), io::Error> {
    use openraft::type_config::TypeConfigExt;
    let (tx, rx) = TypeConfig::oneshot();
    let entry = Entry::new_blank(id(index));
    log.append([entry], IOFlushed::signal(tx)).await?;
    rx.await.unwrap()
}

/// RULES 33: a purge above what is durably applied is refused, and ends the process.
#[tokio::test]
async fn a_purge_above_durably_applied_is_fatal() {
    let fatal: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = fatal.clone();
    let on_fatal: OnFatal = Arc::new(move |reason| heard.lock().unwrap().push(reason.to_owned()));
    let store = SimStore::open(&SimDisk::new(), options(on_fatal)).unwrap();
    let (mut log, machine) = adapters(store.clone(), true);
    for index in 0..10 {
        append(&mut log, index).await.unwrap();
    }
    apply(machine, 0..=7).await;
    tokio::task::spawn_blocking(move || store.flush())
        .await
        .unwrap()
        .unwrap();
    log.purge(id(7)).await.unwrap();
    assert_eq!(fatal.lock().unwrap().len(), 0);
    log.purge(id(8)).await.unwrap_err();
    assert_eq!(fatal.lock().unwrap().len(), 1);
}

async fn apply(mut machine: Machine, indexes: std::ops::RangeInclusive<u64>) {
    use openraft::storage::RaftStateMachine;
    let entries = indexes.map(|index| Ok((Entry::new_blank(id(index)), None)));
    let entries = futures_util::stream::iter(entries);
    machine.apply(entries).await.unwrap();
}
