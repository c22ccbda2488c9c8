//! A node in fifty rules: enough of a session to hold the SDK to its promises, and a script of
//! everything that can go wrong between a commit and its answer.

mod attach;
mod cluster;
mod publish;
mod runs;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use everwire_core::{Code, Refusal};
use everwire_proto::refusal::to_status;
use everwire_proto::v1;
use everwire_proto::v1::attach_server::AttachServer;
use everwire_proto::v1::cluster_server::ClusterServer;
use everwire_proto::v1::publish_server::PublishServer;
use everwire_proto::v1::runs_server::RunsServer;
use everwire_proto::v1::signals_server::SignalsServer;
use futures_util::Stream;
use tokio::sync::{Notify, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Response, Status};

use crate::Seeded;
use crate::net::Net;

pub(crate) const EPOCH: &str = "1-17";
type Reply<T> = Result<Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What one subscription does, in the order in which subscriptions come; then all are good.
#[derive(Clone, Debug)]
pub(crate) enum Reader {
    /// Delivers this many events well, then …
    After(u64, Fault),
    /// Answers `gone`.
    Gone,
    /// Answers `not_found`.
    NotFound,
    /// Refuses the call.
    Refuse(Code),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// … the connection is cut.
    Cut,
    /// … one is left out.
    Hole,
    /// … the last ones come again, then it goes on.
    Again,
    /// … it falls silent, socket open.
    Silence,
    /// … the stream ends with a code.
    End(Code),
}

pub(crate) struct State {
    pub(crate) log: Vec<v1::Event>,
    pub(crate) runs: BTreeMap<String, Run>,
    pub(crate) keys: BTreeMap<String, u64>,
    pub(crate) readers: VecDeque<Reader>,
    /// Tokens that came, in order.
    pub(crate) tokens: Vec<String>,
    /// Tokens that are taken; empty takes all.
    pub(crate) good_tokens: Vec<String>,
    /// Refusals for the next unary calls, each given after the work was done.
    pub(crate) refuse_after: VecDeque<Refusal>,
    /// Refusals for the next unary calls, each given before.
    pub(crate) refuse_before: VecDeque<Refusal>,
    /// Requests of subscriptions.
    pub(crate) follows: Vec<v1::FollowRequest>,
    /// What a client did against the protocol.
    pub(crate) wrong: Vec<String>,
    /// The credit that is granted.
    pub(crate) credit: u32,
    /// Refuses every batch of the run from now on.
    pub(crate) fence: Option<Refusal>,
    pub(crate) streams: u64,
    pub(crate) batches: u64,
    /// The lease that is granted; 0 for none.
    pub(crate) lease_ms: u32,
    /// Signs of life on publish streams.
    pub(crate) beats: u64,
    /// What writers said that they have seen.
    pub(crate) observed: Vec<u64>,
}

#[derive(Default)]
pub(crate) struct Run {
    pub(crate) epoch: u32,
    /// Offset of each committed seq of the current epoch.
    pub(crate) places: BTreeMap<u64, u64>,
}

/// How often things go wrong: once in so many batches; `None` never.
#[derive(Clone, Copy, Default)]
pub(crate) struct Trouble {
    pub(crate) once_in: Option<u64>,
    /// The next batch is committed, but its answer is lost with the connection.
    pub(crate) loses_answer: bool,
}

pub(crate) struct Node {
    pub(crate) addr: String,
    pub(crate) net: Arc<Net>,
    pub(crate) random: Seeded,
    pub(crate) trouble: Mutex<Trouble>,
    pub(crate) changed: Arc<Notify>,
    /// Streams tell their silent writers that the run is fenced.
    pub(crate) stopped: Notify,
    /// The map that it tells; `None` until it knows one, and then `watch` is not known here.
    pub(crate) map: watch::Sender<Option<v1::Map>>,
    /// Streams of maps that were opened.
    pub(crate) watches: AtomicU64,
    /// What every write is refused with, before anything is done.
    pub(crate) refuses: Mutex<Option<Refusal>>,
    /// It keeps writes without an answer.
    pub(crate) holds: AtomicBool,
    /// Writes that came: single calls and publish streams.
    pub(crate) writes: AtomicU64,
    me: Weak<Self>,
    state: Arc<Mutex<State>>,
}

/// Starts a node at an address of the network.
pub(crate) fn start(net: &Arc<Net>, addr: &str, seed: u64) -> Arc<Node> {
    start_with(
        net,
        addr,
        seed,
        Arc::new(Mutex::new(empty())),
        Arc::default(),
    )
}

/// Starts a node that has its session in common with another.
pub(crate) fn start_beside(other: &Arc<Node>, addr: &str, seed: u64) -> Arc<Node> {
    let (state, changed) = (Arc::clone(&other.state), Arc::clone(&other.changed));
    start_with(&other.net, addr, seed, state, changed)
}

fn empty() -> State {
    State {
        log: Vec::new(),
        runs: BTreeMap::new(),
        keys: BTreeMap::new(),
        readers: VecDeque::new(),
        tokens: Vec::new(),
        good_tokens: Vec::new(),
        refuse_after: VecDeque::new(),
        refuse_before: VecDeque::new(),
        follows: Vec::new(),
        wrong: Vec::new(),
        credit: 256 << 10,
        fence: None,
        streams: 0,
        lease_ms: 0,
        beats: 0,
        observed: Vec::new(),
        batches: 0,
    }
}

fn start_with(
    net: &Arc<Net>,
    addr: &str,
    seed: u64,
    state: Arc<Mutex<State>>,
    changed: Arc<Notify>,
) -> Arc<Node> {
    let node = Arc::new_cyclic(|me| Node {
        me: Weak::clone(me),
        addr: addr.to_owned(),
        net: Arc::clone(net),
        random: Seeded::new(seed),
        trouble: Mutex::default(),
        changed,
        stopped: Notify::new(),
        map: watch::Sender::new(None),
        watches: AtomicU64::new(0),
        refuses: Mutex::default(),
        holds: AtomicBool::new(false),
        writes: AtomicU64::new(0),
        state,
    });
    let server = tonic::transport::Server::builder()
        .add_service(PublishServer::from_arc(Arc::clone(&node)))
        .add_service(AttachServer::from_arc(Arc::clone(&node)))
        .add_service(RunsServer::from_arc(Arc::clone(&node)))
        .add_service(SignalsServer::from_arc(Arc::clone(&node)))
        .add_service(ClusterServer::from_arc(Arc::clone(&node)));
    tokio::spawn(server.serve_with_incoming(ReceiverStream::new(net.listen(addr))));
    node
}

impl Node {
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn shared(&self) -> Arc<Self> {
        self.me.upgrade().expect("a served node lives")
    }

    /// The log gets events that are no business of the run.
    pub(crate) fn append_foreign(&self, count: usize) {
        for _ in 0..count {
            self.state().append(
                None,
                v1::Draft {
                    body: Some(app("foreign")),
                    ..Default::default()
                },
            );
        }
        self.changed.notify_waiters();
    }

    /// The next batch goes wrong.
    fn goes_wrong(&self) -> bool {
        let trouble = *self.trouble.lock().unwrap();
        trouble
            .once_in
            .is_some_and(|times| self.random.once_in(times))
    }

    fn admit<T>(&self, request: &tonic::Request<T>) -> Result<(), Status> {
        let header = request
            .metadata()
            .get("authorization")
            .expect("every call carries a token");
        let token = header
            .to_str()
            .unwrap()
            .strip_prefix("Bearer ")
            .unwrap()
            .to_owned();
        let mut state = self.state();
        let good = state.good_tokens.is_empty() || state.good_tokens.contains(&token);
        state.tokens.push(token);
        if good {
            Ok(())
        } else {
            Err(refused(Code::TokenExpired))
        }
    }

    /// A write came.
    async fn write(&self) -> Result<(), Status> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        if self.holds.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let refused = self.refuses.lock().unwrap();
        refused
            .as_ref()
            .map_or(Ok(()), |refusal| Err(to_status(refusal)))
    }

    fn before(&self) -> Result<(), Status> {
        self.state()
            .refuse_before
            .pop_front()
            .map_or(Ok(()), |refusal| Err(to_status(&refusal)))
    }

    fn after<T>(&self, answer: T) -> Reply<T> {
        let refusal = self.state().refuse_after.pop_front();
        refusal.map_or(Ok(Response::new(answer)), |refusal| {
            Err(to_status(&refusal))
        })
    }
}

impl State {
    pub(crate) fn tail(&self) -> u64 {
        self.log.len() as u64
    }

    pub(crate) fn append(&mut self, run: Option<v1::RunStamp>, draft: v1::Draft) -> u64 {
        let author = v1::Author {
            participant: "agent".into(),
            kind: v1::ParticipantKind::Agent.into(),
        };
        let offset = self.tail() + 1;
        self.log.push(v1::Event {
            offset,
            time_ms: offset,
            run,
            author: Some(author),
            draft: Some(draft),
        });
        offset
    }
}

pub(crate) fn refused(code: Code) -> Status {
    to_status(&Refusal::new(code, "scripted"))
}

pub(crate) fn app(name: &str) -> v1::draft::Body {
    v1::draft::Body::App(v1::App {
        name: name.into(),
        data: None,
    })
}
