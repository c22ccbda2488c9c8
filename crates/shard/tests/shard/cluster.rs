//! A few nodes on simulated disks, and a network in memory whose cables can be cut.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::limits::SCRUB_EVERY;
use everwire_core::{Command, Cursor, Event, NodeId, Offset, Outcome, Refusal, ShardId};
use everwire_shard::{
    Answer, Dial, Disk, Identity, Io, Kept, OpenError, OpenOptions, Peers, RULES_VERSION,
    ShardHandle, ShardSet, ShardSetConfig, Store, StoreError,
};
use everwire_store::sim::{SimDisk, SimStore};
use futures_util::future::{BoxFuture, FutureExt, join_all};
use futures_util::stream::StreamExt;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::*;

/// How long anything may take on a machine with a lot to do.
const PATIENCE: Duration = Duration::from_secs(90);

type Plug = mpsc::Sender<io::Result<Box<dyn Io>>>;

/// Connections between nodes. A clone is the same network.
#[derive(Clone, Default)]
struct Net(Arc<Mutex<Cables>>);

#[derive(Default)]
struct Cables {
    listeners: HashMap<String, Plug>,
    laid: Vec<(String, String, AbortHandle)>,
}

impl Net {
    /// Listens at an address, in the place of whoever did before.
    fn listen(&self, addr: &str) -> ReceiverStream<io::Result<Box<dyn Io>>> {
        let (plug, incoming) = mpsc::channel(64);
        let mut cables = self.0.lock().unwrap();
        cables.listeners.insert(addr.to_owned(), plug);
        ReceiverStream::new(incoming)
    }

    /// The node at an address is gone, and everything on its cables.
    fn cut(&self, addr: &str) {
        let mut cables = self.0.lock().unwrap();
        cables.listeners.remove(addr);
        cables.laid.retain(|(from, to, cable)| {
            let cut = from == addr || to == addr;
            if cut {
                cable.abort();
            }
            !cut
        });
    }

    async fn connect(self, from: String, to: String) -> io::Result<Box<dyn Io>> {
        let plug = self.0.lock().unwrap().listeners.get(&to).cloned();
        let plug = plug.ok_or(io::ErrorKind::ConnectionRefused)?;
        let (near, mut left) = tokio::io::duplex(1 << 16);
        let (mut right, far) = tokio::io::duplex(1 << 16);
        let cable = tokio::spawn(async move {
            // However it ends, both ends see it.
            let _ = tokio::io::copy_bidirectional(&mut left, &mut right).await;
        });
        let far: Box<dyn Io> = Box::new(far);
        let plugged = plug.send(Ok(far)).await;
        plugged.map_err(|_gone| io::ErrorKind::ConnectionRefused)?;
        let mut cables = self.0.lock().unwrap();
        cables.laid.push((from, to, cable.abort_handle()));
        drop(cables);
        let near: Box<dyn Io> = Box::new(near);
        Ok(near)
    }
}

/// A node's end of the network.
struct Socket {
    net: Net,
    addr: String,
}

impl Dial for Socket {
    fn dial(&self, addr: String) -> BoxFuture<'static, io::Result<Box<dyn Io>>> {
        self.net.clone().connect(self.addr.clone(), addr).boxed()
    }
}

type Reasons = Arc<Mutex<Vec<String>>>;

/// A node's disk as its shards open it.
struct NodeDisk {
    disk: SimDisk,
    fatal: Reasons,
    /// With the real store's threads.
    threads: bool,
}

impl NodeDisk {
    fn options(&self) -> OpenOptions {
        let reasons = self.fatal.clone();
        OpenOptions::new(Arc::new(move |reason| {
            reasons.lock().unwrap().push(reason.to_owned());
        }))
    }
}

impl Disk for NodeDisk {
    fn identity(&self) -> Result<Option<Identity>, StoreError> {
        self.disk.peek_identity()
    }

    fn open(&self, identity: Identity) -> Result<Arc<dyn Store>, StoreError> {
        let mut options = self.options();
        options.create = Some(identity);
        match self.threads {
            true => SimStore::open_threaded(&self.disk, options),
            false => SimStore::open(&self.disk, options),
        }
    }

    fn retire(&self) -> Result<(), StoreError> {
        self.disk.retire().map(drop)
    }
}

struct Node {
    addr: String,
    disk: SimDisk,
    fatal: Reasons,
    /// The newest rules that it knows, from its next start on.
    rules: u32,
    set: Option<ShardSet>,
}

/// Some nodes, by number from 0; their ids begin with 1.
pub(crate) struct Cluster {
    net: Net,
    shards: u32,
    starts: AtomicU64,
    nodes: Vec<Node>,
    /// Stores have the real one's threads, and wait where that waits.
    threads: bool,
    /// From the next start of each node on.
    pub(crate) scrub_every: Duration,
}

impl Cluster {
    /// A new cluster of `count` nodes with `shards` shards, all of them led.
    pub(crate) async fn new(count: usize, shards: u32) -> Self {
        Self::knowing(&vec![RULES_VERSION; count], shards).await
    }

    /// The same on stores with the real one's threads: only these wait for room.
    pub(crate) async fn with_threads(count: usize, shards: u32) -> Self {
        Self::made(&vec![RULES_VERSION; count], shards, true).await
    }

    /// The same of nodes that know these rules.
    pub(crate) async fn knowing(rules: &[u32], shards: u32) -> Self {
        Self::made(rules, shards, false).await
    }

    async fn made(rules: &[u32], shards: u32, threads: bool) -> Self {
        let nodes = rules.iter().enumerate().map(|(number, rules)| Node {
            addr: format!("n{number}:7401"),
            disk: SimDisk::new(),
            fatal: Arc::default(),
            rules: *rules,
            set: None,
        });
        let mut cluster = Self {
            net: Net::default(),
            shards,
            starts: AtomicU64::new(0),
            nodes: nodes.collect(),
            threads,
            scrub_every: SCRUB_EVERY,
        };
        cluster.start_all().await;
        cluster.wait_ready().await;
        cluster
    }

    /// No two starts draw the same: what comes back with an empty disk is somebody else.
    fn next_seed(&self) -> u64 {
        1 + self.starts.fetch_add(1, Ordering::SeqCst) * 1_000_000
    }

    async fn start_set(&self, node: usize) -> ShardSet {
        self.try_start_set(node).await.unwrap()
    }

    async fn try_start_set(&self, node: usize) -> Result<ShardSet, OpenError> {
        let started = self.start_unless(node, std::future::pending()).await;
        started.map(|set| set.expect("nobody stops it"))
    }

    async fn start_unless(
        &self,
        node: usize,
        stop: impl Future<Output = ()>,
    ) -> Result<Option<ShardSet>, OpenError> {
        let Node {
            addr,
            disk,
            fatal,
            rules,
            ..
        } = &self.nodes[node];
        let reasons = fatal.clone();
        let peers = Peers {
            name: format!("n{node}"),
            addr: addr.clone(),
            seeds: self.nodes.iter().map(|node| node.addr.clone()).collect(),
            expect: self.nodes.len(),
            incoming: self.net.listen(addr).boxed(),
            tls: None,
            dial: Some(Arc::new(Socket {
                net: self.net.clone(),
                addr: addr.clone(),
            })),
        };
        let config = ShardSetConfig {
            addr: format!("n{node}:7400"),
            clock: Arc::new(TestClock::at(1_000_000)),
            on_fatal: Arc::new(move |reason| reasons.lock().unwrap().push(reason.to_owned())),
            random: Arc::new(TestRandom::from(self.next_seed())),
            peers: Some(peers),
            cluster: None,
            shards: self.shards,
            kept: Kept::default(),
            scrub_every: self.scrub_every,
            rules: *rules,
        };
        let disk = NodeDisk {
            disk: disk.clone(),
            fatal: fatal.clone(),
            threads: self.threads,
        };
        ShardSet::start(Arc::new(disk), config, stop).await
    }

    /// Starts a node that was stopped and cannot go on; says why.
    pub(crate) async fn refused(&self, node: usize) -> OpenError {
        let started = self.try_start_set(node).await;
        let refused = started.err().expect("it cannot start");
        assert!(self.is_free(node), "its process may end");
        self.net.cut(&self.nodes[node].addr);
        refused
    }

    /// Starts a node that was stopped, and gives it up after a while.
    pub(crate) async fn given_up(&self, node: usize, after: Duration) {
        let started = self.start_unless(node, tokio::time::sleep(after)).await;
        assert!(started.unwrap().is_none(), "it waits");
        assert!(self.is_free(node), "its process may end");
        self.net.cut(&self.nodes[node].addr);
    }

    /// From its next start on a node knows these rules.
    pub(crate) fn knows(&mut self, node: usize, rules: u32) {
        self.nodes[node].rules = rules;
    }

    /// Why a node's process would have ended.
    pub(crate) fn fatal(&self, node: usize) -> Vec<String> {
        self.nodes[node].fatal.lock().unwrap().clone()
    }

    /// Starts a node that was stopped; returns when it takes part.
    pub(crate) async fn start(&mut self, node: usize) {
        let set = self.start_set(node).await;
        self.nodes[node].set = Some(set);
    }

    /// Stops a node in good order; what it has applied is on its disk then.
    pub(crate) async fn stop(&mut self, node: usize) {
        let stopped = self.nodes[node].set.take().expect("it runs");
        stopped.shutdown().await;
        drop(stopped);
        // By itself, while its peers still hold their connections.
        self.wait_closed(node).await;
        self.net.cut(&self.nodes[node].addr);
    }

    /// Whoever still holds the store of a node that has ended lets go of it in a moment.
    async fn wait_closed(&self, node: usize) {
        eventually("the disk is free", async || {
            self.is_free(node).then_some(())
        })
        .await;
    }

    /// Whether nothing of a node's disk is open.
    fn is_free(&self, node: usize) -> bool {
        let Node { disk, .. } = &self.nodes[node];
        let options = OpenOptions::new(Arc::new(|_reason: &str| {}));
        SimStore::open(disk, options).is_ok()
    }

    /// The plug is pulled: what was not synced is gone.
    pub(crate) async fn crash(&mut self, node: usize) {
        self.net.cut(&self.nodes[node].addr);
        self.nodes[node].disk.crash();
        // What its remains say of the dead disk is no sign of a fault.
        self.nodes[node].fatal = Arc::default();
        let remains = self.nodes[node].set.take().expect("it runs");
        remains.shutdown().await;
    }

    /// Starts all nodes, which are stopped, at addresses where nobody knows them.
    pub(crate) async fn start_all_elsewhere(&mut self) {
        for node in &mut self.nodes {
            node.addr = format!("moved-{}", node.addr);
        }
        self.start_all().await;
    }

    /// Starts all nodes, which are stopped.
    pub(crate) async fn start_all(&mut self) {
        let count = self.nodes.len();
        let started = join_all((0..count).map(|node| self.start_set(node))).await;
        for (node, set) in self.nodes.iter_mut().zip(started) {
            node.set = Some(set);
        }
    }

    /// One more node, not started yet.
    pub(crate) fn add(&mut self) -> usize {
        let number = self.nodes.len();
        self.nodes.push(Node {
            addr: format!("n{number}:7401"),
            disk: SimDisk::new(),
            fatal: Arc::default(),
            rules: RULES_VERSION,
            set: None,
        });
        number
    }

    /// A node that is stopped loses its disk.
    pub(crate) fn wipe(&mut self, node: usize) {
        self.nodes[node].disk = SimDisk::new();
    }

    /// A node's disk, to be damaged while the node is stopped.
    pub(crate) fn disk(&self, node: usize) -> &SimDisk {
        &self.nodes[node].disk
    }

    /// The store of a node that is stopped.
    pub(crate) fn store(&self, node: usize) -> Arc<dyn Store> {
        let Node { disk, fatal, .. } = &self.nodes[node];
        let disk = NodeDisk {
            disk: disk.clone(),
            fatal: fatal.clone(),
            threads: false,
        };
        SimStore::open(&disk.disk, disk.options()).unwrap()
    }

    pub(crate) fn set(&self, node: usize) -> &ShardSet {
        self.nodes[node].set.as_ref().expect("the node runs")
    }

    fn running(&self) -> impl Iterator<Item = (usize, &ShardSet)> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(number, node)| Some((number, node.set.as_ref()?)))
    }

    /// A session's shard, as a node has it.
    pub(crate) fn shard(&self, node: usize, session: &str) -> ShardHandle {
        self.set(node).shard(&namespace(), &name(session))
    }

    /// Waits until every running node holds all that it should hold, and all of it is led.
    pub(crate) async fn wait_ready(&self) {
        eventually("all are ready", async || {
            let ready = self.running().all(|(_, set)| set.ready());
            ready.then_some(())
        })
        .await;
    }

    /// The node that leads a shard, as all that run agree.
    pub(crate) async fn leader(&self, shard: ShardId) -> usize {
        eventually("one leader", async || {
            let told = self
                .running()
                .map(|(_, set)| set.handle(shard).status().leader);
            let told: Vec<_> = told.collect();
            let first = *told.first()?;
            let agreed = told.iter().all(|leader| *leader == first);
            let leader = first.filter(|_| agreed)?;
            Some(number(leader))
        })
        .await
    }

    /// Where a shard's leadership belongs, once it is there: the first to be elected may be another.
    pub(crate) async fn home(&self, shard: ShardId) -> usize {
        let (_, set) = self.running().next().expect("a node runs");
        let topology = set.topology();
        let replicas = &topology.placement(shard).expect("a shard").replicas;
        let home = number(*replicas.first().expect("a replica"));
        self.wait_led_by(shard, home).await;
        home
    }

    /// Waits until a node leads a shard.
    pub(crate) async fn wait_led_by(&self, shard: ShardId, node: usize) {
        eventually("it leads", async || {
            let leader = self.set(node).handle(shard).status().leader;
            (leader.map(number) == Some(node)).then_some(())
        })
        .await;
    }

    /// Waits until all running nodes have applied the same of a shard.
    pub(crate) async fn wait_level(&self, shard: ShardId) {
        eventually("all have applied the same", async || {
            let told = self
                .running()
                .map(|(_, set)| set.handle(shard).status().applied);
            let told: Vec<_> = told.collect();
            told.windows(2).all(|pair| pair[0] == pair[1]).then_some(())
        })
        .await;
    }

    /// Has a command committed, asking a node again until it knows whom to ask. A repetition may
    /// commit it twice unless it carries a key.
    pub(crate) async fn propose(&self, node: usize, session: &str, command: Command) -> Outcome {
        eventually("it is committed", async || {
            let shard = self.shard(node, session);
            shard.propose(command.clone()).await.ok()
        })
        .await
    }

    /// Posts texts by way of a node.
    pub(crate) async fn post(&self, node: usize, session: &str, texts: std::ops::Range<u64>) {
        for text in texts {
            let input = input(session, &format!("i{text}"));
            let outcome = self.propose(node, session, input).await;
            assert!(matches!(outcome, Outcome::Posted { .. }), "{outcome:?}");
        }
    }

    /// Reads a session from the first event to offset `to` at one node.
    pub(crate) async fn read(
        &self,
        node: usize,
        session: &str,
        to: u64,
    ) -> Result<Vec<Arc<Event>>, Refusal> {
        let to = usize::try_from(to).unwrap();
        let mut reader = Wanderer::default();
        while reader.events.len() < to {
            reader.read_at(self, node, session).await?;
        }
        reader.events.truncate(to);
        Ok(reader.events)
    }

    /// Nothing happened that ends a process.
    pub(crate) fn assert_alive(&self) {
        for node in &self.nodes {
            let fatal = node.fatal.lock().unwrap();
            assert!(fatal.is_empty(), "{}: {fatal:?}", node.addr);
        }
    }
}

/// The node of an id.
pub(crate) fn number(node: NodeId) -> usize {
    usize::try_from(node.0).unwrap() - 1
}

/// A reader that goes from node to node and takes its cursor along.
#[derive(Default)]
pub(crate) struct Wanderer {
    pub(crate) events: Vec<Arc<Event>>,
    cursor: Option<Cursor>,
}

impl Wanderer {
    /// Takes one delivery at a node.
    pub(crate) async fn read_at(
        &mut self,
        cluster: &Cluster,
        node: usize,
        session: &str,
    ) -> Result<(), Refusal> {
        let shard = cluster.shard(node, session);
        let attached = attach(&shard, session, self.cursor).await?;
        let Answer::Resumed { session_epoch, .. } = attached.answer else {
            panic!("{:?} at {:?}", attached.answer, self.cursor);
        };
        let mut subscription = attached.subscription.expect("it was resumed");
        for event in next_events(&mut subscription).await? {
            let last = self.events.last().map_or(Offset::ZERO, |last| last.offset);
            assert_eq!(event.offset, last.next(), "a hole");
            self.cursor = Some(Cursor {
                session_epoch: Some(session_epoch),
                offset: event.offset,
            });
            self.events.push(event);
        }
        Ok(())
    }
}

/// Looks again and again until there is something.
pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let found = tokio::time::timeout(PATIENCE, looking).await;
    found.unwrap_or_else(|_late| panic!("not in time: {what}"))
}
