//! A node's shards on a simulated disk, and people and agents to use them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::command::{Op, Published, StartRun};
use everwire_core::event::{Body, Data, Draft};
use everwire_core::limits::SCRUB_EVERY;
use everwire_core::{
    Author, Cancel, Clock, Command, Cursor, Event, InputId, Key, Namespace, NodeId, Offset,
    Outcome, ParticipantId, ParticipantKind, Random, Refusal, RunEpoch, RunId, Seq, SessionName,
    Timestamp,
};
use everwire_shard::{
    Answer, AttachRequest, Attached, Delivery, Identity, Kept, OpenError, OpenOptions, Pending,
    ShardHandle, ShardSet, ShardSetConfig, Subscription,
};
use everwire_store::sim::{SimDisk, SimStore};

/// A clock that stands until it is set.
pub(crate) struct TestClock(AtomicU64);

impl TestClock {
    pub(crate) fn at(ms: u64) -> Self {
        Self(AtomicU64::new(ms))
    }

    pub(crate) fn set(&self, ms: u64) {
        self.0.store(ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }
}

/// Numbers that count up.
#[derive(Default)]
pub(crate) struct TestRandom(AtomicU64);

impl From<u64> for TestRandom {
    fn from(first: u64) -> Self {
        Self(AtomicU64::new(first))
    }
}

impl Random for TestRandom {
    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }
}

/// A node: its disk survives crashes, its shards do not.
pub(crate) struct World {
    pub(crate) disk: SimDisk,
    pub(crate) clock: Arc<TestClock>,
    pub(crate) fatal: Arc<Mutex<Vec<String>>>,
    shards: u32,
    set: Option<ShardSet>,
}

impl World {
    /// A new node with `shards` shards.
    pub(crate) async fn new(shards: u32) -> Self {
        let mut world = Self::on(SimDisk::new(), shards);
        world.open().await;
        world
    }

    /// A node that is not started, on a disk.
    pub(crate) fn on(disk: SimDisk, shards: u32) -> Self {
        Self {
            disk,
            clock: Arc::new(TestClock(AtomicU64::new(1_000_000))),
            fatal: Arc::default(),
            shards,
            set: None,
        }
    }

    pub(crate) fn config(&self) -> ShardSetConfig {
        let fatal = self.fatal.clone();
        ShardSetConfig {
            addr: "127.0.0.1:7400".to_owned(),
            clock: self.clock.clone(),
            on_fatal: Arc::new(move |reason| fatal.lock().unwrap().push(reason.to_owned())),
            random: Arc::new(TestRandom::default()),
            peers: None,
            cluster: None,
            shards: self.shards,
            kept: Kept::default(),
            scrub_every: SCRUB_EVERY,
            rules: everwire_shard::RULES_VERSION,
        }
    }

    pub(crate) fn options(&self) -> OpenOptions {
        let identity = Identity {
            shards: self.shards,
            ..Identity::new("test", NodeId(1))
        };
        let mut options = OpenOptions::create(identity, self.config().on_fatal);
        options.flush_on_close = false;
        options
    }

    /// Opens the disk again.
    pub(crate) async fn open(&mut self) {
        self.set = Some(self.try_open().await.unwrap());
    }

    /// The same, if the node starts.
    pub(crate) async fn try_open(&self) -> Result<ShardSet, OpenError> {
        let store = SimStore::open(&self.disk, self.options())?;
        ShardSet::open(store, self.config()).await
    }

    /// Pulls the plug and starts again. What the dead process said does not count.
    pub(crate) async fn crash(&mut self) {
        self.disk.crash();
        self.restart().await;
    }

    /// The same, but some head of what was not synced survives, as a kernel may have it.
    pub(crate) async fn crash_keeping(&mut self, seed: u64) {
        self.disk.crash_keeping(seed);
        self.restart().await;
    }

    async fn restart(&mut self) {
        drop(self.set.take());
        self.fatal = Arc::default();
        self.open().await;
    }

    pub(crate) fn set(&self) -> &ShardSet {
        self.set.as_ref().expect("the node is open")
    }

    pub(crate) fn shard(&self, session: &str) -> ShardHandle {
        self.set().shard(&namespace(), &name(session))
    }

    /// Nothing happened that ends the process.
    pub(crate) fn assert_alive(&self) {
        let fatal = self.fatal.lock().unwrap();
        assert!(fatal.is_empty(), "{fatal:?}");
    }
}

pub(crate) fn namespace() -> Namespace {
    Namespace::parse("acme").unwrap()
}

pub(crate) fn name(session: &str) -> SessionName {
    SessionName::parse(session).unwrap()
}

pub(crate) fn run_id(run: &str) -> RunId {
    RunId::parse(run).unwrap()
}

pub(crate) fn at(offset: u64) -> Offset {
    Offset::new(offset).unwrap()
}

fn author(participant: &str, kind: ParticipantKind) -> Author {
    Author {
        participant: ParticipantId::parse(participant).unwrap(),
        kind,
    }
}

pub(crate) fn command(session: &str, op: Op) -> Command {
    let actor = match &op {
        Op::Cancel { .. } => author("ann", ParticipantKind::User),
        _ => author("bot", ParticipantKind::Agent),
    };
    Command {
        namespace: namespace(),
        session: name(session),
        actor,
        may_create: true,
        session_epoch: None,
        op,
    }
}

/// An `app` draft with a text.
pub(crate) fn app_draft(text: &str) -> Draft {
    Draft::new(Body::App {
        name: "note".to_owned(),
        data: Some(Data::Json(text.to_owned())),
    })
}

/// An `app` event outside runs.
pub(crate) fn app(session: &str, text: &str) -> Command {
    command(
        session,
        Op::Post {
            draft: app_draft(text),
            key: None,
            body_hash: 0,
        },
    )
}

/// An input, which travels in the people's lane.
pub(crate) fn input(session: &str, id: &str) -> Command {
    let body = Body::Input {
        input: InputId::parse(id).unwrap(),
        text: "hello".to_owned(),
        data: None,
    };
    command(
        session,
        Op::Post {
            draft: Draft::new(body),
            key: Some(Key::parse(id).unwrap()),
            body_hash: 1,
        },
    )
}

pub(crate) fn cancel(session: &str, run: &str) -> Command {
    command(
        session,
        Op::Cancel {
            cancel: Cancel::run(run_id(run)),
            key: Key::parse(&format!("stop-{run}")).unwrap(),
            body_hash: 2,
        },
    )
}

pub(crate) fn start(session: &str, run: &str) -> Command {
    command(session, Op::StartRun(StartRun::new(run_id(run))))
}

pub(crate) fn publish(session: &str, run: &str, first_seq: u64, texts: &[String]) -> Command {
    command(
        session,
        Op::Publish {
            run: run_id(run),
            run_epoch: RunEpoch::FIRST,
            first_seq: Seq(first_seq),
            drafts: texts.iter().map(|text| app_draft(text)).collect(),
        },
    )
}

/// Where a post was committed.
pub(crate) async fn posted(pending: Result<Pending, Refusal>) -> Offset {
    match pending.unwrap().await.unwrap() {
        Outcome::Posted { offset, .. } => offset,
        other => panic!("{other:?}"),
    }
}

/// What became of a publish batch: what was taken, or why it was not.
pub(crate) fn published(outcome: Outcome) -> Result<Published, Refusal> {
    match outcome {
        Outcome::Published(published) => Ok(published),
        Outcome::Refused(refusal) => Err(refusal),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn attach(
    shard: &ShardHandle,
    session: &str,
    cursor: Option<Cursor>,
) -> Result<Attached, Refusal> {
    let request = AttachRequest {
        namespace: namespace(),
        session: name(session),
        cursor,
        at_least: None,
    };
    shard.attach(request).await
}

/// A subscription from the earliest event.
pub(crate) async fn subscribe(shard: &ShardHandle, session: &str) -> Subscription {
    let attached = attach(shard, session, None).await.unwrap();
    assert!(
        matches!(attached.answer, Answer::Resumed { .. }),
        "{attached:?}"
    );
    attached.subscription.unwrap()
}

/// The next events of a subscription; signs of life are passed over.
pub(crate) async fn next_events(
    subscription: &mut Subscription,
) -> Result<Vec<Arc<Event>>, Refusal> {
    loop {
        match subscription.next().await {
            Delivery::Events {
                from,
                to,
                tail,
                events,
            } => {
                assert_eq!(events.first().map(|event| event.offset), Some(from));
                assert_eq!(events.last().map(|event| event.offset), Some(to));
                assert!(to <= tail, "{to} {tail}");
                return Ok(events);
            },
            Delivery::Alive { .. } => {},
            Delivery::Ended(refusal) => return Err(refusal),
        }
    }
}

/// Reads up to and with offset `to`; panics on a hole.
pub(crate) async fn read_to(subscription: &mut Subscription, to: u64) -> Vec<Arc<Event>> {
    let mut all: Vec<Arc<Event>> = Vec::new();
    let first = subscription.position().get();
    while subscription.position().get() <= to {
        let events = next_events(subscription).await.unwrap();
        all.extend(events);
    }
    for (index, event) in all.iter().enumerate() {
        assert_eq!(event.offset.get(), first + index as u64, "a hole");
    }
    all
}

/// The text of an `app` event.
pub(crate) fn text(event: &Event) -> &str {
    match &event.body {
        Body::App {
            data: Some(Data::Json(text)),
            ..
        } => text,
        other => panic!("{other:?}"),
    }
}
