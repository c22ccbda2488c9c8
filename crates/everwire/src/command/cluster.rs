//! `everwire cluster transfer` and `everwire node replace`: operations on a running cluster.

use clap::{Args, Subcommand};
use everwire_core::{NodeId, ShardId};
use serde_json::json;

use super::Connection;
use crate::output::{Failure, line};

/// `everwire cluster`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    command: ClusterCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum ClusterCommand {
    /// Hand the leadership of a shard to another of its replicas; needs the capability operate
    #[command(after_help = "Example:\n  everwire cluster transfer --shard 3 --to 2")]
    Transfer(Transfer),
}

#[derive(Args, Clone, Debug)]
struct Transfer {
    /// The shard
    #[arg(long, value_name = "N")]
    shard: u32,
    /// The node that is to lead; whichever is best if none is given
    #[arg(long, value_name = "NODE")]
    to: Option<u64>,
    #[command(flatten)]
    connection: Connection,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// `everwire node replace`.
#[derive(Subcommand, Clone, Debug)]
pub(crate) enum NodeCommand {
    /// Move everything that a node holds to the others, then let it go for ever; needs operate
    #[command(after_help = "Example:\n  everwire node replace --node 2")]
    Replace(Replace),
}

/// See [`NodeCommand`].
#[derive(Args, Clone, Debug)]
pub(crate) struct Replace {
    /// The node's id, as `everwire status` shows it
    #[arg(long, value_name = "NODE")]
    node: u64,
    #[command(flatten)]
    connection: Connection,
    /// One JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Runs `everwire cluster`.
pub(crate) async fn run(args: &ClusterArgs) -> Result<(), Failure> {
    let ClusterCommand::Transfer(args) = &args.command;
    let to = args.to.map(NodeId);
    let client = args.connection.client()?;
    let leader = client.transfer_leader(ShardId(args.shard), to).await?;
    if args.json {
        return line(&json!({"shard": args.shard, "leader": leader.0}).to_string());
    }
    line(&format!("shard {}  leader {leader}", args.shard))
}

/// Runs `everwire node replace`.
pub(crate) async fn run_node(command: &NodeCommand) -> Result<(), Failure> {
    let NodeCommand::Replace(args) = command;
    let version = args
        .connection
        .client()?
        .replace_node(NodeId(args.node))
        .await?;
    if args.json {
        return line(&json!({"node": args.node, "version": version}).to_string());
    }
    line(&format!(
        "node {} leaves with version {version} of the topology; `everwire status` shows it going",
        args.node
    ))
}
