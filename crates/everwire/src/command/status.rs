//! `everwire status`: the cluster as an operator sees it.

use std::time::Duration;

use clap::Args;
use everwire_client::{ClusterStatus, NodeInfo, NodeMeters, ShardInfo};
use serde_json::{Value, json};

use super::Connection;
use crate::output::{Failure, line};

/// `everwire status`.
#[derive(Args, Clone, Debug)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    connection: Connection,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(crate) async fn run(args: &StatusArgs) -> Result<(), Failure> {
    let status = args.connection.client()?.cluster_status().await?;
    if args.json {
        return line(&object(&status).to_string());
    }
    line(&format!(
        "cluster {}  version {}  metadata rules {}",
        status.cluster,
        status.version,
        of_rules(status.metadata_rules)
    ))?;
    for node in &status.nodes {
        line(&of_node(node, status.shards.len()))?;
    }
    for shard in &status.shards {
        line(&of_shard(shard))?;
    }
    Ok(())
}

fn object(status: &ClusterStatus) -> Value {
    let nodes: Vec<_> = status.nodes.iter().map(node_object).collect();
    let shards: Vec<_> = status.shards.iter().map(shard_object).collect();
    json!({
        "cluster": status.cluster,
        "version": status.version,
        "nodes": nodes,
        "shards": shards,
        "metadata_rules": status.metadata_rules,
    })
}

/// What a node is to the metadata group.
fn metadata(node: &NodeInfo) -> Option<&'static str> {
    match (node.metadata_leader, node.metadata_voter) {
        (true, _) => Some("leader"),
        (false, true) => Some("voter"),
        (false, false) => None,
    }
}

fn node_object(node: &NodeInfo) -> Value {
    let us = |took: Duration| u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let meters = node.meters.as_ref().map(|meters| {
        json!({
            "disk_total": meters.disk_total,
            "disk_available": meters.disk_available,
            "elections": meters.elections,
            "queued_bytes": meters.queued_bytes,
            "syncs": meters.syncs,
            "sync_p50_us": us(meters.sync_p50),
            "sync_p99_us": us(meters.sync_p99),
        })
    });
    json!({
        "id": node.id.0,
        "addr": node.addr,
        "alive": node.alive,
        "name": node.name,
        "leaving": node.leaving,
        "leads": node.leads,
        "holds": node.holds,
        "metadata": metadata(node),
        "meters": meters,
        "rules": node.rules,
    })
}

fn shard_object(shard: &ShardInfo) -> Value {
    let followers = shard.followers.iter();
    let followers: Vec<_> = followers
        .map(|(node, lag)| json!({"node": node.0, "lag": lag}))
        .collect();
    json!({
        "id": shard.id.0,
        "leader": shard.leader.map(|node| node.0),
        "replicas": shard.replicas.iter().map(|node| node.0).collect::<Vec<_>>(),
        "term": shard.term,
        "applied": shard.applied,
        "committed": shard.committed,
        "lag": shard.lag(),
        "followers": followers,
        "rules": shard.rules,
    })
}

/// What is spoken or known, in text.
fn of_rules(rules: Option<u32>) -> String {
    rules.map_or_else(|| "?".to_owned(), |rules| rules.to_string())
}

fn of_node(node: &NodeInfo, shards: usize) -> String {
    let alive = if node.alive { "alive" } else { "silent" };
    let leaving = if node.leaving { "  leaving" } else { "" };
    let metadata = metadata(node).unwrap_or("no part");
    let meters = node.meters.as_ref().map(of_meters).unwrap_or_default();
    format!(
        "node {}  {}  {}  {alive}{leaving}  leads {} and holds {} of {shards}  metadata \
         {metadata}  knows rules {}{meters}",
        node.id,
        node.addr,
        node.name,
        node.leads,
        node.holds,
        of_rules(node.rules)
    )
}

fn of_meters(meters: &NodeMeters) -> String {
    let disk = match meters.disk_total {
        0 => "unknown".to_owned(),
        total => format!(
            "{} MiB free of {} MiB",
            meters.disk_available >> 20,
            total >> 20
        ),
    };
    let syncs = match meters.syncs {
        0 => "none".to_owned(),
        count => format!(
            "{count} in a minute, p50 {:.1?}, p99 {:.1?}",
            meters.sync_p50, meters.sync_p99
        ),
    };
    format!(
        "  elections {}  queued {} B  syncs {syncs}  disk {disk}",
        meters.elections, meters.queued_bytes
    )
}

fn of_shard(shard: &ShardInfo) -> String {
    let leader = shard.leader.map(|node| node.to_string());
    let leader = leader.unwrap_or_else(|| "none".to_owned());
    let replicas = shard.replicas.iter().map(ToString::to_string);
    let replicas = replicas.collect::<Vec<_>>().join(",");
    let lags = shard.followers.iter();
    let lags = lags.map(|(node, lag)| format!("{node}:{lag}"));
    let lags = match lags.collect::<Vec<_>>().join(",") {
        none if none.is_empty() => String::new(),
        lags => format!("  lag {lags}"),
    };
    format!(
        "shard {:>4}  leader {leader}  replicas {replicas}  term {}  committed {}  applied {}  rules \
         {}{lags}",
        shard.id.0,
        shard.term,
        shard.committed,
        shard.applied,
        of_rules(shard.rules)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use everwire_core::{NodeId, ShardId};

    fn node() -> NodeInfo {
        NodeInfo {
            id: NodeId(2),
            addr: "10.0.0.2:7400".to_owned(),
            alive: true,
            name: "n2".to_owned(),
            leaving: false,
            leads: 5,
            holds: 16,
            metadata_leader: false,
            metadata_voter: true,
            meters: Some(NodeMeters {
                disk_total: 10 << 30,
                disk_available: 4 << 30,
                elections: 7,
                queued_bytes: 123,
                syncs: 40,
                sync_p50: Duration::from_micros(300),
                sync_p99: Duration::from_micros(2_500),
            }),
            rules: Some(2),
        }
    }

    #[test]
    fn a_node_is_told_with_its_meters_and_without() {
        let mut node = node();
        let text = of_node(&node, 16);
        assert_eq!(
            text,
            "node 2  10.0.0.2:7400  n2  alive  leads 5 and holds 16 of 16  metadata voter  knows \
             rules 2  elections 7  queued 123 B  syncs 40 in a minute, p50 300.0µs, p99 2.5ms  \
             disk 4096 MiB free of 10240 MiB"
        );
        assert_eq!(node_object(&node)["meters"]["sync_p99_us"], 2_500);
        assert_eq!(node_object(&node)["metadata"], "voter");
        assert_eq!(node_object(&node)["rules"], 2);
        (node.alive, node.leaving, node.meters) = (false, true, None);
        node.rules = None;
        let text = of_node(&node, 16);
        let end = "silent  leaving  leads 5 and holds 16 of 16  metadata voter  knows rules ?";
        assert!(text.ends_with(end), "{text}");
        assert_eq!(node_object(&node)["meters"], Value::Null);
    }

    #[test]
    fn a_shard_is_told_with_whoever_is_behind() {
        let mut shard = ShardInfo {
            id: ShardId(3),
            leader: Some(NodeId(1)),
            replicas: vec![NodeId(1), NodeId(2), NodeId(3)],
            term: 4,
            applied: 99,
            committed: 100,
            followers: vec![(NodeId(2), 0), (NodeId(3), 17)],
            rules: Some(1),
        };
        assert_eq!(
            of_shard(&shard),
            "shard    3  leader 1  replicas 1,2,3  term 4  committed 100  applied 99  rules 1  lag \
             2:0,3:17"
        );
        assert_eq!(shard_object(&shard)["lag"], 17);
        (shard.leader, shard.followers) = (None, Vec::new());
        assert!(of_shard(&shard).contains("leader none"));
        assert_eq!(shard_object(&shard)["lag"], Value::Null);
    }
}
