//! The metadata group of this node: the topology, and changes to it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use everwire_core::ids::META_GROUP;
use everwire_core::limits::ATTEMPT_WITHIN;
use everwire_core::topology::{Change, MemberState, Topology};
use everwire_core::{Code, NodeId, Refusal};
use everwire_proto::internal_v1 as wire;
use everwire_proto::storage;
use everwire_store::Identity;
use openraft::errors::{ClientWriteError, RaftError};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::apply::{Applier, Changed};
use crate::duties::Duties;
use crate::feed::Feed;
use crate::formation::About;
use crate::group::{Running, Shared, initialize, start_raft};
use crate::leadership::{self, Leadership};
use crate::peer::{Line, Links, change_refusal, refusal_from};
use crate::proposer::not_leader;
use crate::raft::machine::MarkerBound;
use crate::raft::types::{Outcomes, Peer, Proposal};
use crate::set::OpenError;

/// The metadata group.
pub(crate) struct Meta {
    pub(crate) raft: Running,
    pub(crate) leadership: Arc<Leadership>,
    pub(crate) identity: Identity,
    pub(crate) marker: Arc<MarkerBound>,
    pub(crate) applier: Arc<Applier>,
    /// Set while its replicas differ and no majority agrees: it takes no changes.
    disputed: AtomicBool,
    topology: watch::Receiver<Arc<Topology>>,
    links: Arc<Links>,
}

impl Meta {
    /// Opens the group; makes it out of `voters` if its log is empty and they are given.
    pub(crate) async fn open(
        shared: &Shared,
        voters: Option<BTreeMap<u64, Peer>>,
        stop: CancellationToken,
    ) -> Result<(Arc<Self>, JoinSet<()>), OpenError> {
        let identity = shared.store.identity().clone();
        let feed = Arc::new(Feed::new(shared.budget.clone()));
        let applier = Applier::open(META_GROUP, shared, feed.clone()).await?;
        let marker = Arc::new(MarkerBound::default());
        let topology = applier
            .topology()
            .expect("the metadata group has one")
            .watch();
        let raft = start_raft(META_GROUP, shared, &applier, marker.clone()).await?;
        let leadership = Arc::new(Leadership::new(
            META_GROUP,
            identity.node,
            shared.links.clone(),
            shared.counts.clone(),
        ));
        leadership.update(&raft);
        if let Some(voters) = voters {
            let made = initialize(&raft, identity.node, voters).await;
            made.map_err(|reason| OpenError::Meta { reason })?;
        }
        let mut tasks = JoinSet::new();
        let (watched, following) = (raft.raft(), leadership.clone());
        let watched = leadership::watch(watched, following, feed, applier.clone(), stop);
        tasks.spawn(watched);
        let duties = Duties {
            raft: raft.raft(),
            applier: applier.clone(),
            clock: shared.clock.clone(),
            timeline: identity.timeline,
        };
        tasks.spawn(duties.run());
        let meta = Arc::new(Self {
            raft,
            leadership,
            identity,
            marker,
            applier,
            disputed: AtomicBool::new(false),
            topology,
            links: shared.links.clone(),
        });
        Ok((meta, tasks))
    }

    /// The topology as this node has applied it.
    pub(crate) fn topology(&self) -> Arc<Topology> {
        self.topology.borrow().clone()
    }

    /// The same, and each that follows.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Topology>> {
        self.topology.clone()
    }

    pub(crate) fn is_removed(&self, node: NodeId) -> bool {
        let topology = self.topology.borrow();
        let member = topology.nodes.get(&node);
        member.is_some_and(|member| member.state == MemberState::Removed)
    }

    /// Changes the topology, here or at the leader.
    pub(crate) async fn change(&self, change: Change) -> Result<Changed, Refusal> {
        if self.leadership.leads() {
            return self.change_here(change).await;
        }
        let leader = self.leadership.leader();
        let leader = leader.ok_or_else(|| self.leadership.not_leader())?;
        let client = self.links.client(leader.0, Line::Beat);
        let mut client = client.ok_or_else(|| self.leadership.not_leader())?;
        let request = wire::ChangeRequest {
            change: Some(storage::change_to(&change)),
        };
        let asked = tokio::time::timeout(ATTEMPT_WITHIN, client.change(request)).await;
        let silent = |_elapsed| Refusal::new(Code::NotLeader, "the leader gave no answer");
        let response = asked.map_err(silent)?;
        let response = response
            .map_err(|status| change_refusal(&status))?
            .into_inner();
        refusal_from(response.refusal)?;
        Ok(Changed {
            version: response.version,
            node: (response.node != 0).then_some(NodeId(response.node)),
        })
    }

    /// Takes no changes while nobody can say which of its replicas is right. Says whether this is
    /// new.
    pub(crate) fn dispute(&self, disputed: bool) -> bool {
        self.disputed.swap(disputed, Ordering::SeqCst) != disputed
    }

    /// See [`Meta::dispute`].
    pub(crate) fn is_disputed(&self) -> bool {
        self.disputed.load(Ordering::SeqCst)
    }

    /// The same, if this node leads.
    pub(crate) async fn change_here(&self, change: Change) -> Result<Changed, Refusal> {
        if self.is_disputed() {
            let message = "the replicas of the metadata group differ and no majority agrees: the \
                           topology takes no changes until an operator has looked at it";
            return Err(Refusal::new(Code::Frozen, message));
        }
        if let Change::Join {
            name, incarnation, ..
        } = &change
        {
            self.check_join(name, *incarnation)?;
        }
        let proposal = Proposal(storage::encode_change(&change));
        let written = tokio::time::timeout(ATTEMPT_WITHIN, self.raft.client_write(proposal)).await;
        let late = |_elapsed| Refusal::new(Code::NoQuorum, "no majority has taken the change");
        match written.map_err(late)? {
            Ok(written) => match written.data {
                Outcomes::Topology(changed) => changed,
                Outcomes::Sessions(_) => {
                    Err(Refusal::new(Code::Internal, "an outcome of another kind"))
                },
            },
            Err(RaftError::APIError(
                ClientWriteError::ForwardToLeader(forward)
                | ClientWriteError::LogEntryDiscarded(forward),
            )) => Err(not_leader(forward)),
            Err(error) => {
                tracing::warn!(%error, "the topology could not be changed");
                Err(Refusal::new(Code::Internal, "the log refused the change"))
            },
        }
    }

    /// A name that a living node has cannot be taken over by another.
    fn check_join(&self, name: &str, incarnation: u64) -> Result<(), Refusal> {
        let topology = self.topology();
        let holder = topology.nodes.iter().find(|(_, member)| {
            member.name == name
                && member.incarnation != incarnation
                && member.state == MemberState::Active
        });
        let Some((node, _)) = holder else {
            return Ok(());
        };
        let alive = *node == self.identity.node
            || self.links.silent_for(node.0) < Some(Duration::from_secs(1))
                && self.links.silent_for(node.0).is_some();
        if alive {
            let message = format!("node {node} has the name {name} and is alive");
            return Err(Refusal::new(Code::WrongState, message));
        }
        Ok(())
    }

    /// Lets a node with an empty disk in.
    pub(crate) async fn join(
        &self,
        asked: wire::JoinRequest,
    ) -> Result<wire::JoinResponse, Refusal> {
        let identity = &self.identity;
        if !asked.cluster.is_empty() && asked.cluster != identity.cluster {
            let message = format!("this is cluster {}", identity.cluster);
            return Err(Refusal::new(Code::WrongCluster, message));
        }
        let change = Change::Join {
            name: asked.name,
            addr: asked.addr,
            peer: asked.peer,
            incarnation: asked.incarnation,
        };
        let changed = self.change(change).await?;
        let node = changed.node.map_or(0, |node| node.0);
        Ok(wire::JoinResponse {
            cluster: identity.cluster.clone(),
            node,
            timeline: identity.timeline,
            shards: identity.shards,
            topology: Some(storage::topology_to(&self.topology())),
            refusal: None,
        })
    }

    /// Tells the cluster where this node is now, if it does not know.
    pub(crate) async fn correct(&self, about: &About) -> Result<(), Refusal> {
        let node = self.identity.node;
        let topology = self.topology();
        let Some(known) = topology.nodes.get(&node) else {
            return Ok(());
        };
        if (&known.addr, &known.peer) == (&about.addr, &about.peer) {
            return Ok(());
        }
        let change = Change::Move {
            node,
            addr: about.addr.clone(),
            peer: about.peer.clone(),
        };
        self.change(change).await.map(|_changed| ())
    }
}
