//! The same on the real disk.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use everwire_shard::{ShardSet, Store, StoreError};
use everwire_store::Closing;
use everwire_store::rocks::RocksStore;

use crate::support::*;

/// Opens the directory; a set that was only dropped takes a moment to let go of it.
async fn open(dir: &Path, world: &World) -> Arc<dyn Store> {
    for _ in 0..1_000 {
        match RocksStore::open(dir, world.options()) {
            Ok(store) => return store,
            Err(StoreError::Locked { .. }) => {
                tokio::time::sleep(Duration::from_millis(10)).await;
            },
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the directory stays locked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rocksdb_keeps_what_was_acked_over_restarts_and_purges() {
    let dir = tempfile::TempDir::new().unwrap();
    // Only for its clock and options.
    let world = World::new(2).await;
    let (mut expected, mut last) = (0, None);
    for lap in 0..3 {
        let store = match lap {
            // After a shutdown the directory is free at once.
            2 => RocksStore::open(dir.path(), world.options()).unwrap(),
            _ => open(dir.path(), &world).await,
        };
        let set = ShardSet::open(store, world.config()).await.unwrap();
        last = Some(set.closing());
        let shard = set.shard(&namespace(), &name("s")).clone();
        let mut live = if expected > 0 {
            Some(subscribe(&shard, "s").await)
        } else {
            None
        };
        let pending: Vec<_> = (0..200)
            .map(|_| shard.submit(app("s", &lap.to_string())))
            .collect();
        for pending in pending {
            expected += 1;
            assert_eq!(posted(pending).await, at(expected));
        }
        if lap == 1 {
            set.purge_logs().await.unwrap();
        }
        if let Some(live) = &mut live {
            assert_eq!(read_to(live, expected).await.len() as u64, expected);
        }
        drop((live, shard));
        // The first time nothing is flushed: the log alone has it.
        if lap > 0 {
            set.shutdown().await;
        }
    }
    // RocksDB does not survive the end of the process half closed.
    while !last.as_ref().is_some_and(Closing::is_done) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    world.assert_alive();
}
