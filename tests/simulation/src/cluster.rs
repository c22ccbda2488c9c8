//! What the machines of the world do: nodes on simulated disks, an edge, and who they are.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use everwire_client::{Client, ClientConfig};
use everwire_core::grant::{Capability, Claims, Pattern};
use everwire_core::{Namespace, ParticipantId, ParticipantKind};
use everwire_edge::{Edge, EdgeConfig};
use everwire_node::{
    Disk, Identity, Kept, Node, NodeConfig, OpenOptions, Peers, Place, Store, StoreError,
};
use everwire_proto::token::{Signer, Verifier};
use everwire_store::sim::{SimDisk, SimStore};

use crate::dice::Dice;
use crate::net::Net;
use crate::sky::{BEGINNING, Sky};

/// Nodes of the cluster.
pub const NODES: [&str; 3] = ["n1", "n2", "n3"];
/// The edge's machine.
pub const EDGE: &str = "edge";
/// Where the edge serves.
pub const EDGE_ADDR: &str = "edge:7410";
/// Shards of the cluster: few, for every one of them costs heartbeats.
const SHARDS: u32 = 2;
const KEY: &[u8] = b"a secret that the whole simulated world knows";
/// Un-flushed apply that starts a flush: little, so that flushes happen at all.
const FLUSH_BYTES: u64 = 64 << 10;

/// Where a node serves gRPC.
pub fn grpc_addr(node: &str) -> String {
    format!("{node}:7400")
}

fn peer_addr(node: &str) -> String {
    format!("{node}:7401")
}

/// What is not used of an address: the network in here knows names only.
fn no_addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 1))
}

/// A token that outlives the simulation.
pub fn token(participant: &str, kind: ParticipantKind, rights: &[Capability]) -> String {
    let rights: BTreeSet<Capability> = rights.iter().copied().collect();
    let pattern = Pattern::parse("*").expect("a good pattern");
    let namespace = Namespace::parse("dev").expect("a good name");
    let claims = Claims {
        namespace: (kind != ParticipantKind::Edge).then_some(namespace),
        participant: ParticipantId::parse(participant).expect("a good name"),
        kind,
        allow: vec![(pattern, rights)],
        expires: BEGINNING.plus(Duration::from_secs(86_400)),
    };
    let signer = Signer::new(KEY).expect("a good key");
    signer.mint(&claims, BEGINNING).expect("good claims")
}

/// A node's disk, and how fast it is.
pub struct NodeDisk {
    /// Its machine.
    pub machine: String,
    /// What survives.
    pub disk: SimDisk,
    sky: Sky,
    dice: Dice,
    /// The store of whoever runs on it now.
    store: Arc<Mutex<Option<Weak<dyn Store>>>>,
    /// What the node said when it ended itself.
    fatal: Arc<Mutex<Option<String>>>,
    busy_until: u64,
    flush_at: u64,
    syncs: u64,
}

impl NodeDisk {
    /// An empty disk.
    pub fn new(machine: &str, sky: &Sky, seed: u64) -> Self {
        let disk = SimDisk::new();
        disk.never_wait();
        Self {
            machine: machine.to_owned(),
            disk,
            sky: sky.clone(),
            dice: Dice::new(seed, &format!("disk {machine}")),
            store: Arc::default(),
            fatal: Arc::default(),
            busy_until: 0,
            flush_at: 0,
            syncs: 0,
        }
    }

    /// The open store, if there is one.
    pub fn store(&self) -> Option<Arc<dyn Store>> {
        let store = self.store.lock().expect("nobody panics here");
        store.as_ref().and_then(Weak::upgrade)
    }

    /// Why the node ended itself, if it did.
    pub fn take_fatal(&self) -> Option<String> {
        self.fatal.lock().expect("nobody panics here").take()
    }

    /// A moment of the disk: what waits is synced when it is its turn, all of it at once.
    pub fn turn(&mut self) {
        let Some(store) = self.store() else { return };
        let now = self.sky.now();
        if now >= self.busy_until {
            self.disk.release();
            self.disk.hold();
            let syncs = self.disk.syncs();
            if syncs != self.syncs {
                self.syncs = syncs;
                self.sky
                    .hum(format_args!("disk {} sync {syncs}", self.machine));
                self.busy_until = now + self.sync_takes();
            }
        }
        if now >= self.flush_at {
            self.flush_at = now + self.dice.pick(500..4_000);
            let flushed = store.flush().is_ok();
            self.sky
                .hum(format_args!("disk {} flush {flushed}", self.machine));
        }
    }

    fn sync_takes(&self) -> u64 {
        match self.dice.pick(0..100) {
            0..=94 => self.dice.pick(1..6),
            95..=98 => self.dice.pick(6..40),
            _ => self.dice.pick(40..300),
        }
    }

    /// The power goes: of what was not synced, some head survives as the seed says; nothing if
    /// the drive lied.
    pub fn power_off(&mut self, lied: bool) {
        use everwire_core::Random as _;
        match lied {
            true => self.disk.crash(),
            false => self.disk.crash_keeping(self.dice.next()),
        }
        *self.store.lock().expect("nobody panics here") = None;
    }
}

/// A disk as a node opens it.
struct Opened {
    disk: SimDisk,
    store: Arc<Mutex<Option<Weak<dyn Store>>>>,
    fatal: Arc<Mutex<Option<String>>>,
}

fn tell(fatal: &Arc<Mutex<Option<String>>>) -> Arc<dyn Fn(&str) + Send + Sync> {
    let fatal = Arc::clone(fatal);
    Arc::new(move |reason| {
        let mut fatal = fatal.lock().expect("nobody panics here");
        fatal.get_or_insert_with(|| reason.to_owned());
    })
}

impl Disk for Opened {
    fn identity(&self) -> Result<Option<Identity>, StoreError> {
        self.disk.peek_identity()
    }

    fn open(&self, identity: Identity) -> Result<Arc<dyn Store>, StoreError> {
        let mut options = OpenOptions::new(tell(&self.fatal));
        options.create = Some(identity);
        options.flush_bytes = FLUSH_BYTES;
        let store = SimStore::open(&self.disk, options)?;
        // From here on nothing is durable before the disk has had its turn.
        self.disk.hold();
        *self.store.lock().expect("nobody panics here") = Some(Arc::downgrade(&store));
        Ok(store)
    }

    fn retire(&self) -> Result<(), StoreError> {
        self.disk.retire().map(drop)
    }

    fn waits(&self) -> bool {
        false
    }
}

/// Under half of the seeds nothing is kept for a node that is away: it comes back to a snapshot.
fn kept(seed: u64) -> Kept {
    if Dice::new(seed, "kept").chance(50) {
        Kept::default()
    } else {
        Kept {
            bytes: 0,
            time: Duration::ZERO,
        }
    }
}

/// What a storage node does.
pub fn node(
    disk: &NodeDisk,
    net: &Net,
    seed: u64,
    life: u64,
) -> impl Future<Output = ()> + Send + 'static {
    let (machine, sky) = (disk.machine.clone(), disk.sky.clone());
    let ahead = Duration::from_millis(disk.dice.pick(0..50));
    let on_fatal = tell(&disk.fatal);
    let config = NodeConfig {
        data: PathBuf::new(),
        cluster: None,
        grpc: no_addr(),
        listener: None,
        advertise: None,
        auth_key: KEY.to_vec(),
        tls: None,
        insecure: false,
        shards: SHARDS,
        peers: None,
        kept: kept(seed),
        flush_every: Duration::from_secs(1),
        scrub_every: Duration::from_secs(5),
        clock: sky.clock(ahead),
        random: Arc::new(Dice::new(seed, &format!("{machine} {life}"))),
        on_fatal,
        rules: everwire_node::RULES_VERSION,
        version: "simulation".to_owned(),
    };
    let peers = Peers {
        name: machine.clone(),
        addr: peer_addr(&machine),
        seeds: NODES.iter().map(|node| peer_addr(node)).collect(),
        expect: NODES.len(),
        incoming: net.listen(&machine, &peer_addr(&machine)).for_node(),
        tls: None,
        dial: Some(Arc::new(net.card(&machine))),
    };
    let place = Place {
        grpc_addr: no_addr(),
        addr: grpc_addr(&machine),
        incoming: net.listen(&machine, &grpc_addr(&machine)).for_node(),
        peer_addr: None,
        peers: Some(peers),
        disk: Arc::new(Opened {
            disk: disk.disk.clone(),
            store: Arc::clone(&disk.store),
            fatal: Arc::clone(&disk.fatal),
        }),
    };
    async move {
        let started = Node::start_in(config, place, std::future::pending()).await;
        let node = match started {
            Ok(node) => node.expect("nobody stops it"),
            Err(error) => {
                sky.note(format_args!("{machine} did not start: {error}"));
                return;
            },
        };
        sky.note(format_args!("{machine} serves"));
        loop {
            node.wait_ready().await;
            sky.note(format_args!("{machine} is ready"));
            while node.ready() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            sky.note(format_args!("{machine} is not ready"));
        }
    }
}

/// A client of the cluster on a machine.
pub fn client(sky: &Sky, net: &Net, seed: u64, machine: &str, token: String) -> Client {
    let nodes = NODES.iter().map(|node| grpc_addr(node)).collect();
    let random = Arc::new(Dice::new(seed, &format!("client {machine}")));
    let mut config = ClientConfig::new(nodes, token, sky.clock(Duration::ZERO), random);
    config.connector = Some(Arc::new(net.card(machine)));
    Client::new(config).expect("good addresses")
}

/// What an edge does.
pub fn edge(sky: &Sky, net: &Net, seed: u64, life: u64) -> impl Future<Output = ()> + use<> {
    let own = token("edge", ParticipantKind::Edge, &[Capability::Relay]);
    let (sky, net) = (sky.clone(), net.clone());
    let incoming = net.listen(EDGE, EDGE_ADDR).for_edge();
    async move {
        let client = client(&sky, &net, seed ^ life, EDGE, own.clone());
        let config = EdgeConfig::new(
            no_addr(),
            Vec::new(),
            own,
            Verifier::new(KEY).expect("a good key"),
            sky.clock(Duration::ZERO),
            Arc::new(Dice::new(seed, &format!("edge {life}"))),
        );
        let edge = Edge::start_in(config, Arc::new(client.clone()), incoming);
        let edge = edge.expect("an edge without sockets starts");
        sky.note(format_args!("{EDGE} serves"));
        client.find_nodes().await;
        sky.note(format_args!("{EDGE} has heard of a node"));
        std::future::pending::<()>().await;
        drop(edge);
    }
}
