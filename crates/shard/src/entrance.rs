//! A node's way in: its peer listener is open, its disk is not; then its place, then its disk.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::ids::META_GROUP;
use everwire_proto::internal_v1 as wire;
use everwire_store::{Identity, Store, StoreError};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::formation::{self, About, Wish};
use crate::peer::{self, Door, Greeted, Links, Peers, Phase};
use crate::set::{Disk, OpenError, ShardSetConfig};

/// How often a disk that is to be closed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Work that waits for the disk.
pub(crate) async fn on_disk<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, OpenError> {
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.map_err(|error| OpenError::Panicked(error.to_string()))??)
}

/// A node on its way in: its peer listener is open, its disk is not.
pub(crate) struct Entrance {
    pub(crate) door: Arc<Door>,
    pub(crate) links: Arc<Links>,
    /// `None` for a cluster of one.
    pub(crate) wish: Option<Wish>,
    pub(crate) server: Option<JoinHandle<()>>,
    /// Ends the peer listener, also if the node never comes in.
    pub(crate) stop: DropGuard,
}

impl Entrance {
    pub(crate) fn open(config: &ShardSetConfig, peers: Option<Peers>) -> Result<Self, OpenError> {
        let stop = CancellationToken::new();
        let mut about = About {
            name: "alone".to_owned(),
            addr: config.addr.clone(),
            // Nobody looks for it there.
            peer: config.addr.clone(),
            incarnation: config.random.next(),
        };
        let Some(peers) = peers else {
            let links = Arc::new(Links::new(None, None));
            let door = Arc::new(Door::new(about, links.clone(), config.clock.clone()));
            return Ok(Self {
                door,
                links,
                wish: None,
                server: None,
                stop: stop.drop_guard(),
            });
        };
        about.name = peers.name;
        about.peer = peers.addr;
        let links = Arc::new(Links::new(peers.tls.as_ref(), peers.dial));
        let door = Arc::new(Door::new(about, links.clone(), config.clock.clone()));
        let server = peer::serve(
            door.clone(),
            peers.incoming,
            peers.tls.as_ref(),
            stop.clone(),
        );
        let wish = Wish {
            seeds: peers.seeds,
            expect: peers.expect,
            cluster: config.cluster.clone(),
            shards: config.shards,
        };
        Ok(Self {
            door,
            links,
            wish: Some(wish),
            server: Some(server.map_err(OpenError::Peers)?),
            stop: stop.drop_guard(),
        })
    }

    /// Opens the disk of a node that belongs to a cluster. `None`: the disk forgot what it had
    /// promised, was put aside, and the node begins anew (RULES 31).
    pub(crate) async fn come_back(
        &self,
        disk: Arc<dyn Disk>,
        identity: Identity,
    ) -> Result<Option<Arc<dyn Store>>, OpenError> {
        let opening = {
            let (disk, identity) = (disk.clone(), identity.clone());
            tokio::task::spawn_blocking(move || disk.open(identity)).await
        };
        let opening = opening.map_err(|error| OpenError::Panicked(error.to_string()))?;
        let reason = match opening {
            Ok(store) if self.wish.is_none() => return Ok(Some(store)),
            Ok(store) => match self.greet(&identity, &store).await? {
                Greeted::Welcome => return Ok(Some(store)),
                Greeted::Regressed(node) => {
                    self.close(store).await?;
                    format!("node {node} had recorded more of it")
                },
            },
            Err(StoreError::Quarantine { why }) if self.wish.is_some() => why,
            Err(error) => return Err(error.into()),
        };
        tracing::error!(
            node = %identity.node, reason,
            "the disk forgot what this node had promised: it is put aside, the node begins anew"
        );
        on_disk(move || disk.retire()).await?;
        Ok(None)
    }

    /// Closes the disk again: whoever was just given something of it finishes first.
    async fn close(&self, store: Arc<dyn Store>) -> Result<(), OpenError> {
        self.door.set_phase(Phase::Opening);
        self.door.set_store(None);
        while Arc::strong_count(&store) > 1 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        on_disk(move || {
            drop(store);
            Ok(())
        })
        .await
    }

    /// Asks the other nodes whether they know more of this one than it knows itself. Without a
    /// majority that answers it could not do anything anyway.
    async fn greet(
        &self,
        identity: &Identity,
        store: &Arc<dyn Store>,
    ) -> Result<Greeted, OpenError> {
        self.links.introduce(&identity.cluster, identity.node.0);
        self.door.set_phase(Phase::Member {
            cluster: identity.cluster.clone(),
            node: identity.node,
            formation: None,
        });
        let reading = store.clone();
        let applied = on_disk(move || reading.applied(META_GROUP)).await?;
        let state = applied.map(|applied| applied.state).unwrap_or_default();
        if state.is_empty() {
            return Ok(Greeted::Welcome);
        }
        let topology = everwire_proto::storage::decode_topology(&state);
        let topology = topology.map_err(StoreError::from)?;
        // Its peers ask the same of this node, at the same time perhaps.
        self.door.set_store(Some(store.clone()));
        let told = peer::greet_all(&self.links, store, identity.node, &topology).await;
        told.map_err(OpenError::Refused)
    }

    /// The place of a node with an empty disk.
    pub(crate) async fn find_place(
        &self,
        config: &ShardSetConfig,
    ) -> Result<(Identity, Option<wire::Formation>), OpenError> {
        self.door.set_phase(Phase::Empty);
        match &self.wish {
            Some(wish) => formation::find_place(&self.door, wish, &config.random)
                .await
                .map_err(OpenError::Refused),
            None => {
                let cluster = config.cluster.clone();
                let cluster = cluster.unwrap_or_else(|| formation::mint(&*config.random));
                let formed = formation::alone(&self.door.about, cluster, config.shards);
                let identity = formation::identity_in(&formed, &self.door.about);
                Ok((identity.expect("a node forms with itself"), Some(formed)))
            },
        }
    }
}
