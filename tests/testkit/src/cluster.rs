//! A storage node and an edge as processes of their own, each of which can come and go alone.

use std::path::{Path, PathBuf};

use everwire_proto::token::Signer;
use tempfile::TempDir;

use crate::process::{Server, fixed_addr, folder};
use crate::tokens;

/// Keys, a data directory and a node. Edges come on request.
pub struct Cluster {
    folder: TempDir,
    /// Where the node serves, again after every restart.
    pub grpc: String,
    /// The node; `None` while it is down.
    pub node: Option<Server>,
}

impl Cluster {
    /// Makes keys and starts the node.
    pub async fn start() -> Self {
        let folder = folder();
        let (private, public) = Signer::generate();
        std::fs::write(folder.path().join("auth.key"), private).expect("a writable folder");
        std::fs::write(folder.path().join("auth.key.pub"), public).expect("a writable folder");
        let token = tokens::edge(folder.path());
        std::fs::write(folder.path().join("edge.token"), token).expect("a writable folder");
        let mut cluster = Self {
            folder,
            grpc: fixed_addr(),
            node: None,
        };
        cluster.start_node().await;
        cluster
    }

    /// Where the keys are: the folder for [`crate::tokens`].
    pub fn keys(&self) -> &Path {
        self.folder.path()
    }

    /// Starts the node, at its address and on its data.
    pub async fn start_node(&mut self) {
        let (data, key) = (self.path("data"), self.path("auth.key.pub"));
        let args = [
            "node",
            "--data",
            text(&data),
            "--grpc",
            &self.grpc,
            "--admin",
            "127.0.0.1:0",
            "--auth-key",
            text(&key),
        ];
        self.node = Some(Server::start(&self.path("node"), &args).await);
    }

    /// Starts an edge at `addr`; port 0 picks one.
    pub async fn edge(&self, addr: &str) -> Server {
        let (token, key) = (self.path("edge.token"), self.path("auth.key.pub"));
        let args = [
            "edge",
            "--http",
            addr,
            "--admin",
            "127.0.0.1:0",
            "--nodes",
            &self.grpc,
            "--token-file",
            text(&token),
            "--auth-key",
            text(&key),
        ];
        Server::start(&self.path("edge"), &args).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a UTF-8 path")
}
