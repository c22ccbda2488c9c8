//! The map of the cluster as this node knows it: who serves where, and who leads what.
//!
//! Clients and edges route by it. It is a hint and never a right: a call that went to the wrong
//! node is sent on or refused, whatever the map said.

use std::sync::{Arc, Weak};
use std::time::Duration;

use everwire_core::topology::MemberState;
use everwire_proto::v1;
use tokio::sync::watch;

use crate::context::Context;

/// How often the node looks whether its map changed. Whoever waits for a new leader waits this
/// much longer at most; a look costs a few words per shard.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The latest map, for any number of readers.
pub(crate) struct Maps {
    latest: watch::Sender<Option<Arc<v1::Map>>>,
}

/// One reader of the maps.
pub(crate) struct MapReader {
    latest: watch::Receiver<Option<Arc<v1::Map>>>,
}

impl Maps {
    /// No map yet.
    pub(crate) fn new() -> Self {
        Self {
            latest: watch::Sender::new(None),
        }
    }

    /// Whoever reads is told, if it is another map than the last.
    pub(crate) fn put(&self, map: v1::Map) {
        self.latest.send_if_modified(|latest| {
            let other = latest.as_deref() != Some(&map);
            if other {
                *latest = Some(Arc::new(map));
            }
            other
        });
    }

    /// A reader that begins with the map of this moment.
    pub(crate) fn reader(&self) -> MapReader {
        let mut latest = self.latest.subscribe();
        latest.mark_changed();
        MapReader { latest }
    }
}

impl MapReader {
    /// The map now, then whenever it changed; never ends. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Arc<v1::Map> {
        loop {
            if self.latest.changed().await.is_err() {
                // The node is gone, and with it whoever would be told.
                return std::future::pending().await;
            }
            if let Some(map) = self.latest.borrow_and_update().as_ref() {
                return Arc::clone(map);
            }
        }
    }
}

/// Keeps the map as the shards stand, for as long as the node lives and does not drain.
pub(crate) async fn refresh(context: Weak<Context>) {
    loop {
        // Held for one look only: the node's end waits for nobody.
        match context.upgrade() {
            Some(context) if !context.draining.is_cancelled() => {
                context.maps.put(map_of(&context));
            },
            Some(_) | None => return,
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// The map of this moment.
fn map_of(context: &Context) -> v1::Map {
    let topology = context.shards.topology();
    let living = topology
        .nodes
        .iter()
        .filter(|(_, member)| member.state != MemberState::Removed);
    let nodes = living.map(|(id, member)| v1::MapNode {
        id: id.0,
        addr: member.addr.clone(),
        alive: context.shards.is_alive(*id),
    });
    let shards = context.shards.shards();
    let shards = shards.iter().map(|shard| {
        let status = shard.status();
        v1::MapShard {
            id: status.id.0,
            leader: status.leader.map_or(0, |node| node.0),
            term: status.term,
            replicas: status.replicas.iter().map(|node| node.0).collect(),
        }
    });
    v1::Map {
        version: topology.version,
        cluster: context.cluster.clone(),
        nodes: nodes.collect(),
        shards: shards.collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(version: u64) -> v1::Map {
        v1::Map {
            version,
            ..v1::Map::default()
        }
    }

    #[tokio::test]
    async fn a_reader_gets_the_map_now_and_then_only_what_changed() {
        let maps = Maps::new();
        let mut early = maps.reader();
        maps.put(version(1));
        assert_eq!(early.next().await.version, 1);
        maps.put(version(1));
        let mut late = maps.reader();
        assert_eq!(late.next().await.version, 1);
        maps.put(version(2));
        maps.put(version(3));
        assert_eq!(early.next().await.version, 3);
        assert_eq!(late.next().await.version, 3);
        assert!(!late.latest.has_changed().unwrap());
    }
}
