//! `everwire status`: the cluster as an operator sees it.

use clap::Args;
use serde_json::json;

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
        let nodes: Vec<_> = status
            .nodes
            .iter()
            .map(|node| json!({"id": node.id.0, "addr": node.addr, "alive": node.alive}))
            .collect();
        let shards: Vec<_> = status
            .shards
            .iter()
            .map(|shard| {
                json!({
                    "id": shard.id.0,
                    "leader": shard.leader.map(|node| node.0),
                    "replicas": shard.replicas.iter().map(|node| node.0).collect::<Vec<_>>(),
                    "term": shard.term,
                    "applied": shard.applied,
                    "committed": shard.committed,
                })
            })
            .collect();
        let value = json!({
            "cluster": status.cluster,
            "version": status.version,
            "nodes": nodes,
            "shards": shards,
        });
        return line(&value.to_string());
    }
    line(&format!(
        "cluster {}  version {}",
        status.cluster, status.version
    ))?;
    for node in &status.nodes {
        let alive = if node.alive { "alive" } else { "silent" };
        line(&format!("node {}  {}  {alive}", node.id, node.addr))?;
    }
    for shard in &status.shards {
        let leader = shard
            .leader
            .map_or_else(|| "none".to_owned(), |node| node.to_string());
        line(&format!(
            "shard {:>4}  leader {leader}  term {}  committed {}  applied {}",
            shard.id.0, shard.term, shard.committed, shard.applied
        ))?;
    }
    Ok(())
}
