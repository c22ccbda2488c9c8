//! Storage nodes and edges as processes of their own, each of which can come and go alone.
//!
//! Nodes are counted from 0, in the order of their names: `n0` is the lowest. A cluster that is
//! dropped by a failing test keeps its logs and says where they are.

mod failure;
mod node;
mod status;

use std::path::{Path, PathBuf};
use std::time::Duration;

use everwire_client::Client;
use everwire_core::{Namespace, SessionName, ShardId, limits};
use everwire_proto::token::Signer;
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use tempfile::TempDir;

pub use node::Node;
pub use status::{Leaders, shard_of};

use crate::client::clients;
use crate::direct::Direct;
use crate::network::Network;
use crate::process::{Server, Starting, fixed_addr, folder};
use crate::tokens;

/// What a cluster is made of.
#[derive(Default)]
pub struct Plan {
    /// Environment of every node: configuration by keys.
    pub env: Vec<(String, String)>,
    /// More flags of every node.
    pub flags: Vec<String>,
    /// A network of its own, with an address for each node; otherwise loopback.
    pub network: Option<Network>,
    /// Where data directories are, if not in the cluster's own folder: one for each node.
    pub disks: Vec<PathBuf>,
}

/// Keys, tokens, nodes, and what it takes to start edges.
pub struct Cluster {
    folder: TempDir,
    plan: Plan,
    /// The nodes, by number.
    pub nodes: Vec<Node>,
}

impl Cluster {
    /// So many nodes, formed and ready. One node needs no seeds and no peers.
    pub async fn start(nodes: usize) -> Self {
        Self::start_with(nodes, Plan::default()).await
    }

    /// The same by a plan.
    pub async fn start_with(nodes: usize, plan: Plan) -> Self {
        let mut cluster = Self::planned(nodes, plan);
        cluster.start_all().await;
        cluster
    }

    /// Keys and addresses, and nothing that runs yet.
    pub fn planned(nodes: usize, plan: Plan) -> Self {
        let folder = folder();
        let (private, public) = Signer::generate();
        std::fs::write(folder.path().join("auth.key"), private).expect("a writable folder");
        std::fs::write(folder.path().join("auth.key.pub"), public).expect("a writable folder");
        let token = tokens::edge(folder.path());
        std::fs::write(folder.path().join("edge.token"), token).expect("a writable folder");
        let mut cluster = Self {
            folder,
            plan,
            nodes: Vec::new(),
        };
        cluster.nodes = (0..nodes).map(|number| cluster.new_node(number)).collect();
        let seeds = cluster.seeds();
        for node in &mut cluster.nodes {
            node.seeds.clone_from(&seeds);
            node.expect = nodes;
        }
        cluster
    }

    fn new_node(&self, number: usize) -> Node {
        let data = self.plan.disks.get(number).cloned();
        let data = data.unwrap_or_else(|| self.path(&format!("n{number}-data")));
        let mut node = Node::new(number, data, self.path(&format!("n{number}")));
        node.auth_key = self.path("auth.key.pub");
        node.flags.clone_from(&self.plan.flags);
        node.env.clone_from(&self.plan.env);
        match &self.plan.network {
            Some(network) => node.live_at(network.host(number)),
            None => node.on_loopback(),
        }
        node
    }

    /// Another node, for a cluster that has its seeds already; it is not started.
    pub fn add_node(&mut self) -> usize {
        let number = self.nodes.len();
        let mut node = self.new_node(number);
        let first = self.nodes.first().expect("a cluster has a node");
        node.seeds.clone_from(&first.seeds);
        node.expect = first.expect;
        self.nodes.push(node);
        number
    }

    fn seeds(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.peer.clone()).collect()
    }

    /// Where the keys are: the folder for [`crate::tokens`].
    pub fn keys(&self) -> &Path {
        self.folder.path()
    }

    /// A path in the cluster's folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The network that the nodes live in, if it is one of their own.
    pub fn network(&self) -> &Network {
        let network = self.plan.network.as_ref();
        network.expect("a plan with a network")
    }

    /// A node by its number.
    pub fn node(&self, number: usize) -> &Node {
        let node = self.nodes.get(number);
        node.unwrap_or_else(|| panic!("there is no node {number}"))
    }

    /// The same, to change it.
    pub fn node_mut(&mut self, number: usize) -> &mut Node {
        let node = self.nodes.get_mut(number);
        node.unwrap_or_else(|| panic!("there is no node {number}"))
    }

    /// Where a node serves gRPC, again after every restart.
    pub fn grpc(&self, number: usize) -> &str {
        &self.node(number).grpc
    }

    /// The gRPC addresses of all nodes.
    pub fn addrs(&self) -> Vec<String> {
        self.nodes.iter().map(|node| node.grpc.clone()).collect()
    }

    /// Starts every node that is down, all at once, and waits until all are ready: a cluster that
    /// is not formed yet needs them all for that.
    pub async fn start_all(&mut self) {
        let starting: Vec<_> = self.nodes.iter_mut().filter(|node| !node.runs()).collect();
        join_all(starting.into_iter().map(Node::start)).await;
    }

    /// Starts one node, at its addresses and on its data, and waits until it is ready.
    pub async fn start_node(&mut self, number: usize) {
        self.node_mut(number).start().await;
    }

    /// SIGKILL.
    pub async fn kill(&mut self, number: usize) {
        self.node_mut(number).take().kill().await;
    }

    /// SIGKILL for all of them, before any of them could notice.
    pub async fn kill_all(&mut self) {
        for node in &self.nodes {
            node.signal(Signal::SIGKILL);
        }
        for node in &mut self.nodes {
            node.take().kill().await;
        }
    }

    /// SIGTERM; the exit code.
    pub async fn stop(&mut self, number: usize) -> Option<i32> {
        self.node_mut(number).take().stop().await
    }

    /// SIGSTOP: it is there, and does nothing.
    pub fn pause(&mut self, number: usize) {
        self.node_mut(number).pause();
    }

    /// SIGCONT.
    pub fn resume(&mut self, number: usize) {
        self.node_mut(number).resume();
    }

    /// Starts an edge at `addr` before all nodes; port 0 picks one.
    pub async fn edge(&self, addr: &str) -> Server {
        self.edge_with(addr, &[]).await
    }

    /// The same with environment of its own.
    pub async fn edge_with(&self, addr: &str, env: &[(&str, &str)]) -> Server {
        self.edge_starting(addr, env).ready().await
    }

    /// Two edges at addresses of their own, to which they come back.
    pub async fn edges(&self) -> [Server; 2] {
        let (first, second) = (fixed_addr(), fixed_addr());
        [self.edge(&first).await, self.edge(&second).await]
    }

    fn edge_starting(&self, addr: &str, env: &[(&str, &str)]) -> Starting {
        let (token, key) = (self.path("edge.token"), self.path("auth.key.pub"));
        let nodes = self.addrs().join(",");
        let args = [
            "edge",
            "--http",
            addr,
            "--admin",
            "127.0.0.1:0",
            "--nodes",
            &nodes,
            "--token-file",
            text(&token),
            "--auth-key",
            text(&key),
        ];
        Starting::spawn(&self.path("edge"), &args, env)
    }

    /// A client of all nodes.
    pub fn client(&self, token: &str) -> Client {
        clients(self.addrs(), token)
    }

    /// One node, asked directly.
    pub fn direct(&self, number: usize, token: &str, within: Duration) -> Direct {
        Direct::new(self.grpc(number), token, within)
    }

    /// A token that may see and run the cluster.
    pub fn operator(&self) -> String {
        tokens::of_namespace(self.keys(), "dev", "operator")
    }

    /// A session of each shard, named `prefix-…`, in the order of the shards.
    pub fn session_of_each_shard(prefix: &str) -> Vec<SessionName> {
        let shards = (0..limits::SHARDS_DEFAULT).map(ShardId);
        shards.map(|shard| session_on(shard, prefix)).collect()
    }

    /// Waits until a condition holds; asks every 100 ms. Fails with `what` after `within`.
    pub async fn until<F: Future<Output = bool>>(
        what: &str,
        within: Duration,
        mut holds: impl FnMut() -> F,
    ) {
        let until = tokio::time::Instant::now() + within;
        while !holds().await {
            let late = tokio::time::Instant::now() >= until;
            assert!(!late, "not within {within:?}: {what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A name of namespace `dev` that falls on a shard.
pub fn session_on(shard: ShardId, prefix: &str) -> SessionName {
    nth_session_on(shard, prefix, 0)
}

/// The same, the n-th such name, counted from 0.
pub fn nth_session_on(shard: ShardId, prefix: &str, n: usize) -> SessionName {
    let names = (0_u64..)
        .map(|number| SessionName::parse(&format!("{prefix}-{number}")).expect("a good name"));
    let mut here = names.filter(|name| shard_of(name) == shard);
    here.nth(n).expect("there is no end of names")
}

/// The namespace of every test's sessions.
fn namespace() -> Namespace {
    Namespace::parse("dev").expect("a good name")
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
