//! A network inside the process: pipes between clients and nodes that can be cut and frozen.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex};

use everwire_client::{BoxFuture, Connector, Io};
use http::Uri;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

/// Bytes under way in one direction.
const PIPE_BYTES: usize = 64 << 10;

#[derive(Default)]
pub(crate) struct Net {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    nodes: BTreeMap<String, mpsc::Sender<io::Result<DuplexStream>>>,
    links: Vec<Link>,
    /// Addresses whose processes stand still: connections are made, and no byte moves.
    stopped: BTreeSet<String>,
}

struct Link {
    node: String,
    task: AbortHandle,
    frozen: watch::Sender<bool>,
}

impl Net {
    /// The connections that will be made to this address.
    pub(crate) fn listen(&self, addr: &str) -> mpsc::Receiver<io::Result<DuplexStream>> {
        let (sender, receiver) = mpsc::channel(64);
        self.state
            .lock()
            .unwrap()
            .nodes
            .insert(addr.to_owned(), sender);
        receiver
    }

    /// Cuts every connection to this address; new ones are taken.
    pub(crate) fn cut(&self, addr: &str) {
        self.state.lock().unwrap().links.retain(|link| {
            if link.node == addr {
                link.task.abort();
            }
            link.node != addr
        });
    }

    /// From now on connections to this address are refused.
    pub(crate) fn close(&self, addr: &str) {
        self.state.lock().unwrap().nodes.remove(addr);
        self.cut(addr);
    }

    /// Freezes the `nth` connection that was made, or lets it go on: open, but no byte moves.
    pub(crate) fn freeze(&self, nth: usize, frozen: bool) {
        self.state.lock().unwrap().links[nth]
            .frozen
            .send_replace(frozen);
    }

    /// Stops the process at this address, or lets it go on.
    pub(crate) fn stop(&self, addr: &str, stopped: bool) {
        let mut state = self.state.lock().unwrap();
        if stopped {
            state.stopped.insert(addr.to_owned());
        } else {
            state.stopped.remove(addr);
        }
        for link in state.links.iter().filter(|link| link.node == addr) {
            link.frozen.send_replace(stopped);
        }
    }

    /// How many connections were made and not cut.
    pub(crate) fn links(&self) -> usize {
        self.state.lock().unwrap().links.len()
    }

    fn dial(&self, addr: &str) -> io::Result<Box<dyn Io>> {
        let mut state = self.state.lock().unwrap();
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let node = state.nodes.get(addr).ok_or_else(refused)?;
        let (client, here) = duplex(PIPE_BYTES);
        let (there, server) = duplex(PIPE_BYTES);
        node.try_send(Ok(server)).ok().ok_or_else(refused)?;
        let frozen = watch::Sender::new(state.stopped.contains(addr));
        let (up, down) = (frozen.subscribe(), frozen.subscribe());
        let task = tokio::spawn(async move {
            let ((here_in, here_out), (there_in, there_out)) = (split(here), split(there));
            tokio::join!(copy(here_in, there_out, up), copy(there_in, here_out, down));
        });
        state.links.push(Link {
            node: addr.to_owned(),
            task: task.abort_handle(),
            frozen,
        });
        Ok(Box::new(client))
    }
}

async fn copy(
    mut from: ReadHalf<DuplexStream>,
    mut to: WriteHalf<DuplexStream>,
    mut frozen: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let count = from.read(&mut buffer).await.unwrap_or(0);
        if frozen.wait_for(|frozen| !frozen).await.is_err() {
            return;
        }
        if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
            let _closed = to.shutdown().await;
            return;
        }
    }
}

impl Connector for Net {
    fn connect(&self, uri: Uri) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        let addr = uri.authority().map(ToString::to_string).unwrap_or_default();
        let dialled = self.dial(&addr);
        Box::pin(async move { dialled })
    }
}

/// A fresh network.
pub(crate) fn net() -> Arc<Net> {
    Arc::default()
}
