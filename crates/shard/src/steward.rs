//! What a node does unasked: holds what the topology gives it, and, where it leads, brings its
//! groups to what the topology wants: members first, then the leadership.
//!
//! One step at a time per group: learner, then voter in the place of the old one. Whoever leads
//! takes it; whoever leads next goes on, because a step is read off the group and the topology
//! alone.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use everwire_core::ids::META_GROUP;
use everwire_core::limits::{
    ATTEMPT_WITHIN, BALANCE_AFTER, CLOCK_OFF_MAX, DEAD_AFTER, HAND_OVER_WITHIN, REPORT_EVERY,
};
use everwire_core::topology::{Change, MemberState, Topology};
use everwire_core::{Code, NodeId, Refusal, ShardId};
use everwire_proto::internal_v1 as wire;
use everwire_proto::storage;
use everwire_rules::topology::{Members, Observed};
use futures_util::future::join_all;
use openraft::ChangeMembers;
use openraft::async_runtime::WatchReceiver;
use tokio::task::JoinSet;

use crate::formation::{self, Wish};
use crate::group::{Running, Shard};
use crate::host::Host;
use crate::peer::{Line, change_refusal, keep_greeting, refusal_from};
use crate::raft::types::Peer;
use crate::set::OpenError;
use crate::{compare, purge, rebuild, scrub};

/// How often a node looks what there is to do.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Entries that a learner may lack to become a voter, and a voter to get the leadership.
const LEVEL_WITHIN: u64 = 200;
/// Replicas that the others of the cluster voters are made of.
const REPLICATION: u32 = 3;

/// Starts the duties. In a cluster of one, returns when the topology is there and all is held.
pub(crate) async fn start(host: &Arc<Host>, wish: Option<Wish>) -> Result<JoinSet<()>, OpenError> {
    let mut duties = JoinSet::new();
    match wish {
        Some(wish) => {
            duties.spawn(join_formation(host.clone(), wish));
        },
        None => {
            let raft = host.meta.raft.raft();
            let alone = crate::group::lead_alone(&raft, host.identity.node).await;
            alone.map_err(|reason| OpenError::Meta { reason })?;
            host.meta.leadership.update(&raft);
            form(host).await;
        },
    }
    hold(host).await?;
    duties.spawn(holding(host.clone()));
    duties.spawn(asking(host.clone()));
    duties.spawn(keep_greeting(host.clone()));
    duties.spawn(leading(host.clone()));
    duties.spawn(purge::run(host.clone()));
    duties.spawn(rebuild::run(host.clone()));
    duties.spawn(compare::run(host.clone()));
    duties.spawn(scrub::run(host.clone()));
    Ok(duties)
}

/// Gets the metadata group made, if this node stopped in the middle of it.
async fn join_formation(host: Arc<Host>, wish: Wish) {
    loop {
        let raft = host.meta.raft.raft();
        match raft.is_initialized().await {
            Ok(false) => {},
            Ok(true) | Err(_) => return,
        }
        match formation::go_on(&host.door, &wish, &host.identity).await {
            Ok(Some(found)) => {
                let voters = formation::voters(&found);
                let made = crate::group::initialize(&raft, host.identity.node, voters).await;
                if let Err(reason) = made {
                    tracing::warn!(%reason, "the metadata group was not made");
                }
            },
            Ok(None) => {},
            Err(refusal) => {
                (host.shared.on_fatal)(&refusal.to_string());
                return;
            },
        }
        tokio::select! {
            () = host.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {},
        }
    }
}

/// Makes the cluster, if this node leads the metadata group and it is not made yet.
async fn form(host: &Host) {
    if host.meta.topology().is_formed() || !host.meta.leadership.leads() {
        return;
    }
    let Some(formation) = &host.formation else {
        return;
    };
    let nodes = match storage::members_from(formation.nodes.clone()) {
        Ok(nodes) => nodes,
        Err(error) => {
            tracing::error!(%error, "the formation cannot be read");
            return;
        },
    };
    let change = Change::Form {
        nodes,
        shards: formation.shards,
        replication: REPLICATION,
    };
    if let Err(refusal) = host.meta.change(change).await {
        tracing::warn!(%refusal, "the cluster is not made yet");
    }
}

/// Follows the topology: addresses, and the groups that this node is to hold.
async fn holding(host: Arc<Host>) {
    let mut topology = host.meta.watch();
    loop {
        if let Err(error) = hold(&host).await {
            (host.shared.on_fatal)(&error.to_string());
            return;
        }
        tokio::select! {
            () = host.stop.cancelled() => return,
            changed = topology.changed() => if changed.is_err() {
                return;
            },
            () = tokio::time::sleep(LOOK_EVERY * 4) => {},
        }
    }
}

async fn hold(host: &Arc<Host>) -> Result<(), OpenError> {
    let topology = host.meta.topology();
    let me = host.identity.node;
    for (id, member) in &topology.nodes {
        match member.state {
            MemberState::Removed => host.shared.links.forget(id.0),
            MemberState::Active | MemberState::Leaving => {
                host.shared.links.place(id.0, &member.peer, &member.addr);
            },
        }
    }
    let wanted = (0..).map(ShardId).zip(&topology.shards);
    let mut missing = Vec::new();
    for (id, placement) in wanted {
        let held = host.holds(id);
        let mine = placement.replicas.contains(&me);
        if mine && !held {
            let initial = placement.initial.contains(&me);
            let voters = initial.then(|| peers_of(&topology, &placement.initial));
            missing.push((id, voters));
        } else if held && !mine && is_out(host, id) && !host.shared.damages.is_reported(id.0) {
            tracing::info!(shard = %id, "the shard is held elsewhere now");
            host.unhost(id).await;
        }
    }
    let opened = join_all(
        missing
            .into_iter()
            .map(|(id, voters)| host.host(id, voters)),
    )
    .await;
    opened.into_iter().collect()
}

fn peers_of(topology: &Topology, nodes: &[NodeId]) -> BTreeMap<u64, Peer> {
    let peers = nodes.iter().filter_map(|node| {
        let member = topology.nodes.get(node)?;
        let peer = Peer {
            addr: member.addr.clone(),
            peer: member.peer.clone(),
        };
        Some((node.0, peer))
    });
    peers.collect()
}

/// Whether those who hold a shard say that this node does not belong to it any more.
fn is_out(host: &Host, id: ShardId) -> bool {
    let me = host.identity.node;
    let topology = host.meta.topology();
    let replicas = topology
        .placement(id)
        .map(|placement| placement.replicas.clone());
    let reports = replicas.unwrap_or_default().into_iter();
    let mut said = reports
        .filter_map(|node| host.report_of(node))
        .flat_map(|report| report.replicas)
        .filter(|replica| replica.group == id.0 && replica.leader != 0);
    said.any(|replica| {
        !replica.voters.is_empty()
            && !replica.voters.contains(&me.0)
            && !replica.learners.contains(&me.0)
    })
}

/// Asks the others how their replicas stand, again and again.
async fn asking(host: Arc<Host>) {
    loop {
        host.door.note_recent();
        let nodes = host.shared.links.known().into_iter();
        let others = nodes.filter(|node| *node != host.identity.node.0);
        join_all(others.map(|node| ask(&host, node))).await;
        tokio::select! {
            () = host.stop.cancelled() => return,
            () = tokio::time::sleep(REPORT_EVERY) => {},
        }
    }
}

async fn ask(host: &Host, node: u64) {
    let Some(mut client) = host.shared.links.client(node, Line::Beat) else {
        return;
    };
    let version = host.meta.topology().version;
    let asked = client.report(wire::ReportRequest { version });
    match tokio::time::timeout(REPORT_EVERY * 2, asked).await {
        Ok(Ok(response)) => {
            let report = response.into_inner();
            host.shared.links.heard(node);
            host.shared.support.report(NodeId(node), report.rules);
            host.put_report(NodeId(node), report);
        },
        Ok(Err(status)) => {
            host.shared.support.forget(NodeId(node));
            tracing::debug!(node, reason = status.message(), "a node gave no report");
        },
        Err(_elapsed) => host.shared.support.forget(NodeId(node)),
    }
}

/// The duties of a leader, group by group.
async fn leading(host: Arc<Host>) {
    loop {
        tokio::select! {
            () = host.stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {},
        }
        if host.door.is_draining() {
            continue;
        }
        if leads_nothing(&host) {
            hand_over_all(&host).await;
            continue;
        }
        form(&host).await;
        let topology = host.meta.topology();
        if !topology.is_formed() {
            continue;
        }
        if let Err(refusal) = host.meta.correct(&host.about).await {
            tracing::debug!(%refusal, "the cluster does not know this node's address yet");
        }
        plan(&host, &topology).await;
        if host.meta.leadership.leads() {
            // Whoever does not vote follows: without the topology a node knows nothing to do.
            let there = topology.nodes.iter();
            let there = there.filter(|(_, member)| member.state != MemberState::Removed);
            let followers: Vec<NodeId> = there.map(|(node, _)| *node).collect();
            let raft = &host.meta.raft;
            let settled = settle(&host, raft, &topology, &topology.voters, &followers).await;
            log_step(META_GROUP, settled);
        }
        let shards = (0..).map(ShardId).zip(&topology.shards);
        let led = shards.filter_map(|(id, placement)| {
            let shard = host.local(id).filter(|shard| shard.leadership.leads())?;
            Some((shard, placement))
        });
        let (host, topology) = (&host, &topology);
        let steps = led.map(|(shard, placement)| async move {
            match settle(host, &shard.raft, topology, &placement.replicas, &[]).await {
                Ok(true) => balance(host, &shard, &placement.replicas).await,
                other => log_step(shard.id.0, other),
            }
        });
        // A group that has no majority just now must not hold up the others.
        join_all(steps).await;
    }
}

/// Whether this node's clock is so far off its peers' that it should stamp no entry (RULES 6).
fn leads_nothing(host: &Host) -> bool {
    let ahead = host.shared.links.clock_ahead();
    let limit = i64::try_from(CLOCK_OFF_MAX.as_millis()).unwrap_or(i64::MAX);
    let off = ahead.is_some_and(|ahead| ahead.abs() > limit);
    if off {
        tracing::error!(
            ?ahead,
            "this node's clock is off its peers': it leads nothing"
        );
    }
    host.door.set_clock_off(off);
    off
}

fn log_step(group: u32, step: Result<bool, String>) {
    if let Err(reason) = step {
        tracing::info!(group, %reason, "a change of members did not go through yet");
    }
}

/// Proposes the next change of the topology, if this node leads the metadata group.
async fn plan(host: &Host, topology: &Topology) {
    if !host.meta.leadership.leads() || host.meta.is_disputed() {
        return;
    }
    let nodes = topology.nodes.keys().copied();
    let alive = nodes
        .filter(|node| host.is_alive(*node, DEAD_AFTER))
        .collect();
    let (shards, metadata) = observed(host, &alive);
    let seen = Observed {
        alive,
        shards,
        metadata,
    };
    let Some(change) = everwire_rules::topology::plan(topology, &seen) else {
        return;
    };
    tracing::info!(?change, "changes the topology");
    if let Err(refusal) = host.meta.change(change).await {
        tracing::warn!(%refusal, "the topology was not changed");
    }
}

/// Each group's members as its leader of the highest term knows them, and the metadata group's.
fn observed(host: &Host, alive: &BTreeSet<NodeId>) -> (BTreeMap<ShardId, Members>, Members) {
    let others = alive.iter().filter_map(|node| {
        let report = host.report_of(*node)?;
        Some((node.0, report.replicas))
    });
    let own = (host.identity.node.0, host.door.replicas());
    let mut newest: BTreeMap<u32, wire::ReplicaReport> = BTreeMap::new();
    for (node, replicas) in others.chain([own]) {
        for replica in replicas
            .into_iter()
            .filter(|replica| replica.leader == node)
        {
            let known = newest.get(&replica.group).map(|known| known.term);
            if known.is_none_or(|term| term <= replica.term) {
                newest.insert(replica.group, replica);
            }
        }
    }
    let metadata = newest.remove(&META_GROUP).map(|replica| {
        let mut members = members(replica);
        // All others only follow the topology: they are no step towards anything.
        let topology = host.meta.topology();
        members
            .learners
            .retain(|node| topology.voters.contains(node));
        members
    });
    let shards = newest.into_values();
    let shards = shards.map(|replica| (ShardId(replica.group), members(replica)));
    (shards.collect(), metadata.unwrap_or_default())
}

fn members(replica: wire::ReplicaReport) -> Members {
    Members {
        voters: replica.voters.into_iter().map(NodeId).collect(),
        learners: replica.learners.into_iter().map(NodeId).collect(),
    }
}

/// Takes the next step from a group's members to those that it should have. `Ok(true)`: it has
/// them.
async fn settle(
    host: &Host,
    raft: &Running,
    topology: &Topology,
    voters_wanted: &[NodeId],
    others_wanted: &[NodeId],
) -> Result<bool, String> {
    let wanted: BTreeSet<u64> = voters_wanted.iter().map(|node| node.0).collect();
    let others = others_wanted.iter().map(|node| node.0);
    let all_wanted: BTreeSet<u64> = others.chain(wanted.iter().copied()).collect();
    let (voters, learners, stage, lacks) = {
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or_default();
        let progress = metrics.replication.clone().unwrap_or_default();
        let lacks = progress.into_iter().map(|(node, matched)| {
            let matched = matched.map_or(0, |id| id.index());
            (node, last.saturating_sub(matched))
        });
        let voters: BTreeSet<u64> = membership.voter_ids().collect();
        let learners: BTreeSet<u64> = membership.learner_ids().collect();
        let joint = membership.get_joint_config().len() > 1;
        let under_way = metrics.membership_config != metrics.committed_membership_config;
        let stage = (joint, under_way);
        (voters, learners, stage, lacks.collect::<BTreeMap<_, _>>())
    };
    let (joint, under_way) = stage;
    if wanted.is_empty() || under_way {
        return Ok(false);
    }
    let unknown = all_wanted
        .iter()
        .find(|node| !voters.contains(*node) && !learners.contains(*node));
    let change = if joint {
        // The second half of a change was refused: nobody but us goes on with it.
        ChangeMembers::AddVoterIds(BTreeSet::new())
    } else if let Some(node) = unknown {
        let id = NodeId(*node);
        let peers = peers_of(topology, &[id]);
        ChangeMembers::AddNodes(peers)
    } else if voters != wanted {
        let level = |node| lacks.get(node).is_some_and(|lacks| *lacks <= LEVEL_WITHIN);
        if !wanted.difference(&voters).all(level) {
            return Ok(false);
        }
        if !wanted.contains(&host.identity.node.0) {
            let stay = wanted.intersection(&voters).copied().collect();
            return step_aside(host, raft, &stay).await;
        }
        // In one step: with the new one a voter beside the old one, which may be dead, three of
        // four would have to be quick all the time.
        ChangeMembers::ReplaceAllVoters(wanted)
    } else if let Some(node) = learners.difference(&all_wanted).next() {
        ChangeMembers::RemoveNodes(BTreeSet::from([*node]))
    } else {
        return Ok(true);
    };
    let changed = raft.change_membership(change, false);
    match tokio::time::timeout(ATTEMPT_WITHIN, changed).await {
        Ok(Ok(_written)) => Ok(false),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_elapsed) => Err("no majority has taken it in time".to_owned()),
    }
}

/// A leader that is to leave its group lets another lead first.
async fn step_aside(host: &Host, raft: &Running, others: &BTreeSet<u64>) -> Result<bool, String> {
    let alive = |node: &&u64| host.is_alive(NodeId(**node), Duration::from_secs(1));
    let to = others.iter().find(alive);
    let to = to.ok_or("nobody is there to lead it instead")?;
    let asked = raft.trigger().transfer_leader(*to).await;
    asked.map_err(|error| error.to_string())?;
    Ok(false)
}

/// Hands a shard's leadership to the node that should have it, when that is level with this one.
async fn balance(host: &Host, shard: &Shard, replicas: &[NodeId]) {
    let me = host.identity.node;
    let steady = shard
        .leadership
        .leads_for()
        .is_some_and(|since| since >= BALANCE_AFTER);
    let fit = |node: &&NodeId| {
        let unfit = host.report_of(**node).is_none_or(|report| {
            let mut replicas = report.replicas.iter();
            report.draining
                || replicas.any(|replica| replica.group == shard.id.0 && replica.rebuilding)
        });
        let level = shard.lag_of(**node).is_some_and(|lag| lag <= LEVEL_WITHIN);
        **node == me || (!unfit && level && host.is_alive(**node, Duration::from_secs(1)))
    };
    let Some(preferred) = replicas.iter().find(fit).filter(|node| **node != me) else {
        return;
    };
    if !steady {
        return;
    }
    match shard.hand_over(Some(*preferred)).await {
        Ok(leader) => {
            tracing::info!(shard = %shard.id, %leader, "the leadership went where it belongs");
        },
        Err(refusal) => tracing::info!(shard = %shard.id, %refusal, "the leadership stays for now"),
    }
}

/// Hands over whatever this node leads, all at once.
pub(crate) async fn hand_over_all(host: &Host) {
    if host.meta.topology().nodes.len() < 2 {
        return;
    }
    let hosted = host.hosted();
    let led = hosted.iter().filter(|shard| shard.leadership.leads());
    let handed = led.map(|shard| async move {
        if let Err(refusal) = shard.hand_over(None).await {
            tracing::info!(shard = %shard.id, %refusal, "nobody took the leadership");
        }
    });
    let meta = async {
        if host.meta.leadership.leads() {
            let topology = host.meta.topology();
            let others = topology
                .voters
                .iter()
                .filter(|node| **node != host.identity.node);
            let wanted = others.map(|node| node.0).collect();
            if let Err(reason) = step_aside(host, &host.meta.raft, &wanted).await {
                tracing::info!(reason, "nobody took the lead of the metadata group");
            }
        }
    };
    tokio::join!(join_all(handed), meta);
}

/// Hands over the leadership of a shard, wherever it is now.
pub(crate) async fn transfer(
    host: &Host,
    id: ShardId,
    to: Option<NodeId>,
) -> Result<NodeId, Refusal> {
    if id.0 >= host.identity.shards {
        let message = format!("there are {} shards", host.identity.shards);
        return Err(Refusal::new(Code::Malformed, message));
    }
    let local = host.local(id).filter(|shard| shard.leadership.leads());
    if let Some(shard) = local {
        return shard.hand_over(to).await;
    }
    let nobody = || Refusal::new(Code::NotLeader, "nobody leads the shard now");
    let leader = host.leader_of(id).ok_or_else(nobody)?;
    let mut client = host
        .shared
        .links
        .client(leader.0, Line::Beat)
        .ok_or_else(nobody)?;
    let request = wire::HandOverRequest {
        group: id.0,
        to: to.map_or(0, |node| node.0),
    };
    let asked = tokio::time::timeout(HAND_OVER_WITHIN * 2, client.hand_over(request)).await;
    let response = asked.map_err(|_elapsed| nobody())?;
    let response = response
        .map_err(|status| change_refusal(&status))?
        .into_inner();
    refusal_from(response.refusal)?;
    Ok(NodeId(response.leader))
}
