//! A node's way in: its peer listener is open, its disk is not; then its place, then its disk.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::Random;
use everwire_core::ids::META_GROUP;
use everwire_proto::internal_v1 as wire;
use everwire_store::{Identity, Store, StoreError};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::formation::{self, About, Wish};
use crate::meters::one_more;
use crate::peer::{self, Door, Greeted, Links, Peers, Phase};
use crate::rebuild;
use crate::set::{Disk, OpenError, ShardSetConfig};
use crate::wait::{Unfinished, on_disk, where_it_waits};

/// How often a disk that is to be closed is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How soon the metadata group's rows are asked for again.
const MEND_EVERY: Duration = Duration::from_millis(250);

/// What is wrong with the metadata group's rows, if they must be fetched anew.
fn damage(store: &dyn Store) -> Result<Option<String>, StoreError> {
    let applied = match store.applied(META_GROUP) {
        Ok(applied) => applied.map(|applied| applied.position.index),
        Err(StoreError::DamagedRows { what, .. }) => return Ok(Some(what)),
        Err(error) => return Err(error),
    };
    let purged = store.log_state(META_GROUP)?.purged;
    let purged = purged.map(|purged| purged.index);
    Ok((purged > applied)
        .then(|| format!("the log is purged up to {purged:?}, the rows stand at {applied:?} only")))
}

/// Work on a disk that is about to be opened, or was just closed.
pub(crate) async fn opening<T: Send + 'static>(
    waits: bool,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, OpenError> {
    Ok(where_it_waits(waits, work).await.map_err(panicked)??)
}

/// The same on a disk that is open.
async fn reading<T: Send + 'static>(
    store: &Arc<dyn Store>,
    work: impl FnOnce(&Arc<dyn Store>) -> Result<T, StoreError> + Send + 'static,
) -> Result<T, OpenError> {
    Ok(on_disk(store, work).await.map_err(panicked)??)
}

fn panicked(error: Unfinished) -> OpenError {
    OpenError::Panicked(error.to_string())
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
            let door = Arc::new(Door::new(
                about,
                links.clone(),
                config.clock.clone(),
                config.rules,
            ));
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
        let door = Arc::new(Door::new(
            about,
            links.clone(),
            config.clock.clone(),
            config.rules,
        ));
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
        let waits = disk.waits();
        let opened = {
            let (disk, identity) = (disk.clone(), identity.clone());
            where_it_waits(waits, move || disk.open(identity)).await
        };
        let reason = match opened.map_err(panicked)? {
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
        opening(waits, move || disk.retire()).await?;
        one_more(&self.door.counts.put_aside);
        Ok(None)
    }

    /// Closes the disk again: whoever was just given something of it finishes first.
    async fn close(&self, store: Arc<dyn Store>) -> Result<(), OpenError> {
        self.door.set_phase(Phase::Opening);
        self.door.set_store(None);
        while Arc::strong_count(&store) > 1 {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        opening(store.waits(), move || {
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
        let Some(wish) = &self.wish else {
            return Ok(Greeted::Welcome);
        };
        self.mend_metadata(identity, store).await?;
        let read =
            |store: &Arc<dyn Store>| Ok((store.applied(META_GROUP)?, store.log_state(META_GROUP)?));
        let (applied, log) = reading(store, read).await?;
        let state = applied.map(|applied| applied.state).unwrap_or_default();
        if state.is_empty() && log.last.is_none() {
            // It has promised nothing yet: it was in the middle of coming in.
            return Ok(Greeted::Welcome);
        }
        // Killed before its first flush it has the topology in its log only, and asks its seeds.
        let topology = (!state.is_empty())
            .then(|| everwire_proto::storage::decode_topology(&state))
            .transpose()
            .map_err(StoreError::from)?;
        // Its peers ask the same of this node, at the same time perhaps.
        self.door.set_store(Some(store.clone()));
        let told = peer::greet_all(&self.door, wish, store, topology.as_ref()).await;
        told.map_err(OpenError::Refused)
    }

    /// Fetches the metadata group's rows from another node if they are damaged: without them this
    /// node knows nobody but its seeds. Waits for as long as nobody gives them.
    async fn mend_metadata(
        &self,
        identity: &Identity,
        store: &Arc<dyn Store>,
    ) -> Result<(), OpenError> {
        let damaged = reading(store, |store| damage(&**store)).await?;
        let (Some(what), Some(wish)) = (damaged, &self.wish) else {
            return Ok(());
        };
        tracing::error!(
            what,
            "the metadata group is damaged: it is fetched from another node"
        );
        let mut told = 0_u32;
        loop {
            let answers = formation::discover(&self.door, &wish.seeds).await;
            let mut nodes = Vec::new();
            for (seed, answer) in answers {
                if answer.cluster == identity.cluster && answer.node != identity.node.0 {
                    self.links.found(answer.node, &seed, &answer.addr);
                    nodes.push(answer.node);
                }
            }
            match rebuild::metadata(&self.links, store, &nodes).await? {
                Ok(index) => {
                    tracing::info!(index, "the metadata group is rebuilt");
                    return Ok(());
                },
                Err(reason) if told.is_multiple_of(40) => {
                    tracing::info!(reason, "the metadata group is not rebuilt yet");
                },
                Err(_same) => {},
            }
            told += 1;
            tokio::time::sleep(MEND_EVERY).await;
        }
    }

    /// The place of a node with an empty disk.
    pub(crate) async fn find_place(
        &self,
        cluster: Option<String>,
        shards: u32,
        random: &Arc<dyn Random>,
    ) -> Result<(Identity, Option<wire::Formation>), OpenError> {
        self.door.set_phase(Phase::Empty);
        match &self.wish {
            Some(wish) => formation::find_place(&self.door, wish, random)
                .await
                .map_err(OpenError::Refused),
            None => {
                let cluster = cluster.unwrap_or_else(|| formation::mint(&**random));
                let formed = formation::alone(&self.door.about, cluster, shards);
                let identity = formation::identity_in(&formed, &self.door.about);
                Ok((identity.expect("a node forms with itself"), Some(formed)))
            },
        }
    }
}
