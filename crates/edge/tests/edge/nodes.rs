//! The nodes, faked: sessions in memory behind the edge's own trait, with faults to order.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_client::{BoxFuture, Created, Page, Posted, Signalled, SubscriberEvent};
use everwire_core::clock::Random;
use everwire_core::code::Details;
use everwire_core::command::SignalOutcome;
use everwire_core::event::{Author, Body, Codec, Data, ParticipantKind, Visibility};
use everwire_core::{
    Clock, Code, Cursor, Draft, Event, Key, Namespace, Offset, ParticipantId, Refusal, RunId,
    SessionEpoch, SessionName, SessionNo, Timestamp,
};
use everwire_edge::{RoomKey, Subscription, Upstream};
use everwire_proto::signal::Pressed;
use everwire_proto::token::Bearer;
use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, sleep};

/// Where the clocks of the tests start.
const EPOCH: u64 = 1_800_000_000_000;

/// Wall clock and monotonic clock, both tokio's.
pub(crate) struct TestClock(Instant);

impl TestClock {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Instant::now()))
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(EPOCH).plus(self.0.elapsed())
    }

    fn elapsed(&self) -> Duration {
        self.0.elapsed()
    }
}

/// Numbers that count: unique, and the same in every run.
#[derive(Default)]
pub(crate) struct Counting(AtomicU64);

impl Random for Counting {
    fn next(&self) -> u64 {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
    }
}

pub(crate) fn offset(number: u64) -> Offset {
    Offset::new(number).unwrap()
}

pub(crate) fn session(name: &str) -> SessionName {
    SessionName::parse(name).unwrap()
}

/// An application event, before it has a place.
pub(crate) fn app(text: &str) -> Event {
    Event {
        offset: Offset::ZERO,
        time: Timestamp(EPOCH),
        run: None,
        author: Author {
            participant: ParticipantId::parse("agent").unwrap(),
            kind: ParticipantKind::Agent,
        },
        parent: None,
        visibility: Visibility::All,
        format: String::new(),
        codec: Codec::Plain,
        body: Body::App {
            name: "n".into(),
            data: Some(Data::Json(format!("\"{text}\""))),
        },
        raw: None,
    }
}

#[derive(Clone)]
struct Log {
    epoch: SessionEpoch,
    /// Events up to here are gone.
    trimmed: u64,
    events: Vec<Event>,
}

impl Log {
    fn tail(&self) -> u64 {
        self.trimmed + self.events.len() as u64
    }

    fn since(&self, from: u64, limit: usize) -> Vec<Event> {
        let skip = usize::try_from(from - self.trimmed - 1).unwrap();
        let mut bytes = 0;
        let fits = |event: &&Event| {
            let first = bytes == 0;
            bytes += event.payload_bytes();
            first || bytes <= 256 << 10
        };
        let events = self.events.iter().skip(skip).take(limit);
        events.take_while(fits).cloned().collect()
    }
}

/// What was written, by whom: the token's last part stands for it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Written {
    Post(String, SessionName, Option<Key>, Box<Draft>),
    Cancel(String, SessionName, RunId),
    Create(SessionName),
}

/// The nodes.
pub(crate) struct Nodes {
    logs: Mutex<HashMap<RoomKey, Log>>,
    next_no: AtomicU64,
    changed: Notify,
    /// What people had written, in the order in which it came.
    pub(crate) written: Mutex<Vec<Written>>,
    /// Calls of `read`.
    pub(crate) reads: AtomicUsize,
    /// Subscriptions that were opened.
    pub(crate) subscribed: AtomicUsize,
    /// Subscriptions that live.
    pub(crate) live: Arc<AtomicUsize>,
    /// No subscription hears anything, and reads fail.
    down: AtomicBool,
    /// Since when.
    down_since: Mutex<Instant>,
    /// Permits for writes; a test that wants them held takes them.
    pub(crate) inputs: Semaphore,
    /// Permits for application events.
    pub(crate) apps: Semaphore,
    /// How often a subscription says that it lives.
    pub(crate) alive_every: Duration,
}

impl Nodes {
    pub(crate) fn new() -> Arc<Self> {
        Self::with_alive(Duration::from_secs(10))
    }

    pub(crate) fn with_alive(alive_every: Duration) -> Arc<Self> {
        Arc::new(Self {
            logs: Mutex::default(),
            next_no: AtomicU64::new(1),
            changed: Notify::new(),
            written: Mutex::default(),
            reads: AtomicUsize::new(0),
            subscribed: AtomicUsize::new(0),
            live: Arc::default(),
            down: AtomicBool::new(false),
            down_since: Mutex::new(Instant::now()),
            inputs: Semaphore::new(1_000),
            apps: Semaphore::new(1_000),
            alive_every,
        })
    }

    fn key(name: &str) -> RoomKey {
        RoomKey {
            namespace: Namespace::parse("acme").unwrap(),
            session: session(name),
        }
    }

    /// Makes a session of tenant `acme`.
    pub(crate) fn make(&self, name: &str) -> SessionEpoch {
        self.make_key(Self::key(name))
    }

    fn make_key(&self, key: RoomKey) -> SessionEpoch {
        let epoch = SessionEpoch {
            timeline: 1,
            session_no: SessionNo(self.next_no.fetch_add(1, Ordering::Relaxed)),
        };
        let log = Log {
            epoch,
            trimmed: 0,
            events: Vec::new(),
        };
        let mut logs = self.logs.lock().unwrap();
        logs.entry(key).or_insert(log).epoch
    }

    /// Appends events.
    pub(crate) fn append(&self, name: &str, events: impl IntoIterator<Item = Event>) {
        {
            let mut logs = self.logs.lock().unwrap();
            let log = logs.get_mut(&Self::key(name)).expect("the session is made");
            for mut event in events {
                event.offset = offset(log.tail() + 1);
                log.events.push(event);
            }
        }
        self.changed.notify_waiters();
    }

    /// Appends so many small events.
    pub(crate) fn append_many(&self, name: &str, count: usize) {
        self.append(name, (0..count).map(|number| app(&number.to_string())));
    }

    /// Trims a session's head.
    pub(crate) fn trim(&self, name: &str, upto: u64) {
        let mut logs = self.logs.lock().unwrap();
        let log = logs.get_mut(&Self::key(name)).unwrap();
        let gone = usize::try_from(upto - log.trimmed).unwrap();
        log.events.drain(..gone);
        log.trimmed = upto;
    }

    /// Removes a session.
    pub(crate) fn delete(&self, name: &str) {
        self.logs.lock().unwrap().remove(&Self::key(name));
        self.changed.notify_waiters();
    }

    /// Cuts all subscriptions off, or brings them back.
    pub(crate) fn set_down(&self, down: bool) {
        *self.down_since.lock().unwrap() = Instant::now();
        self.down.store(down, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    pub(crate) fn tail(&self, name: &str) -> u64 {
        self.logs.lock().unwrap()[&Self::key(name)].tail()
    }

    pub(crate) fn written(&self) -> Vec<Written> {
        self.written.lock().unwrap().clone()
    }

    /// Signals that were written.
    pub(crate) fn signals(&self) -> usize {
        let is_signal = |one: &&Written| matches!(one, Written::Cancel(..));
        self.written().iter().filter(is_signal).count()
    }

    fn is_down(&self) -> bool {
        self.down.load(Ordering::SeqCst)
    }

    fn log(&self, key: &RoomKey) -> Option<Log> {
        self.logs.lock().unwrap().get(key).cloned()
    }
}

fn unknown() -> Refusal {
    Refusal::new(Code::UnknownSession, "there is no such session")
}

fn down() -> Refusal {
    Refusal::new(Code::Overloaded, "the node is away")
}

/// The part of a token that tells it from others, without being one.
fn bearer(token: &Bearer) -> String {
    token.as_str().rsplit('.').next().unwrap().to_owned()
}

struct Follow {
    nodes: Arc<Nodes>,
    key: RoomKey,
    cursor: Option<Cursor>,
    /// The epoch, and the last offset that was handed out.
    place: Option<(SessionEpoch, u64)>,
    told_down: bool,
}

impl Drop for Follow {
    fn drop(&mut self) {
        self.nodes.live.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Follow {
    /// What there is to say now.
    fn look(&mut self) -> Option<SubscriberEvent> {
        if self.nodes.is_down() {
            let first = !std::mem::replace(&mut self.told_down, true);
            return first.then(|| SubscriberEvent::Disconnected { refusal: down() });
        }
        let Some(log) = self.nodes.log(&self.key) else {
            return Some(match self.place {
                None => SubscriberEvent::NotFound,
                Some(_) => {
                    SubscriberEvent::Ended(Refusal::new(Code::Gone, "the session was deleted"))
                },
            });
        };
        let Some((epoch, seen)) = self.place else {
            return Some(self.attach(&log));
        };
        if epoch != log.epoch {
            return Some(SubscriberEvent::Gone {
                session_epoch: Some(log.epoch),
                earliest: offset(log.trimmed + 1),
                tail: offset(log.tail()),
            });
        }
        if std::mem::take(&mut self.told_down) {
            return Some(SubscriberEvent::Attached {
                session_epoch: epoch,
                from: offset(seen + 1),
                tail: offset(log.tail()),
            });
        }
        if seen == log.tail() {
            return None;
        }
        let events = log.since(seen + 1, 10_000);
        let to = events.last().unwrap().offset;
        self.place = Some((epoch, to.get()));
        Some(SubscriberEvent::Events {
            from: offset(seen + 1),
            to,
            tail: offset(log.tail()),
            events,
        })
    }

    fn attach(&mut self, log: &Log) -> SubscriberEvent {
        let tail = offset(log.tail());
        let from = match self.cursor {
            None => log.trimmed + 1,
            Some(cursor) => {
                let other = cursor.session_epoch.is_some_and(|epoch| epoch != log.epoch);
                let at = cursor.offset.get();
                if other || at < log.trimmed || at > log.tail() {
                    return SubscriberEvent::Gone {
                        session_epoch: Some(log.epoch),
                        earliest: offset(log.trimmed + 1),
                        tail,
                    };
                }
                at + 1
            },
        };
        self.place = Some((log.epoch, from - 1));
        self.told_down = false;
        SubscriberEvent::Attached {
            session_epoch: log.epoch,
            from: offset(from),
            tail,
        }
    }
}

impl Subscription for Follow {
    fn next(&mut self) -> BoxFuture<'_, SubscriberEvent> {
        Box::pin(async move {
            let nodes = Arc::clone(&self.nodes);
            loop {
                let changed = nodes.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if let Some(event) = self.look() {
                    return event;
                }
                tokio::select! {
                    () = changed => {},
                    () = sleep(nodes.alive_every), if !nodes.is_down() => {
                        return SubscriberEvent::Alive {
                            tail: offset(self.place.unwrap().1),
                            leader_seen: Duration::from_millis(7),
                        };
                    },
                }
            }
        })
    }
}

/// The nodes as the edge holds them.
pub(crate) struct Handle(pub(crate) Arc<Nodes>);

impl Upstream for Handle {
    fn heard_ago(&self) -> Option<Duration> {
        let down_for = self.0.down_since.lock().unwrap().elapsed();
        Some(if self.0.is_down() {
            down_for
        } else {
            Duration::ZERO
        })
    }

    fn subscribe(&self, key: &RoomKey, cursor: Option<Cursor>) -> Box<dyn Subscription> {
        self.0.subscribed.fetch_add(1, Ordering::SeqCst);
        self.0.live.fetch_add(1, Ordering::SeqCst);
        Box::new(Follow {
            nodes: Arc::clone(&self.0),
            key: key.clone(),
            cursor,
            place: None,
            told_down: false,
        })
    }

    fn read<'a>(
        &'a self,
        key: &'a RoomKey,
        session_epoch: Option<SessionEpoch>,
        from: Offset,
        limit: u32,
    ) -> BoxFuture<'a, Result<Page, Refusal>> {
        Box::pin(async move {
            self.0.reads.fetch_add(1, Ordering::SeqCst);
            // The client asks again until its deadline.
            for _ in 0..1_000 {
                if !self.0.is_down() {
                    break;
                }
                sleep(Duration::from_millis(5)).await;
            }
            if self.0.is_down() {
                return Err(down());
            }
            let log = self.0.log(key).ok_or_else(unknown)?;
            let earliest = log.trimmed + 1;
            let other = session_epoch.is_some_and(|epoch| epoch != log.epoch);
            if other || (from.get() > 1 && from.get() < earliest) {
                let details = Details {
                    session_epoch: Some(log.epoch),
                    earliest: Some(offset(earliest)),
                    tail: Some(offset(log.tail())),
                    ..Details::default()
                };
                return Err(Refusal::with(Code::Gone, "that is gone", details));
            }
            let from = from.get().max(earliest);
            let limit = if limit == 0 {
                usize::MAX
            } else {
                limit as usize
            };
            let events = log.since(from.min(log.tail() + 1), limit);
            Ok(Page {
                session_epoch: log.epoch,
                from: offset(from),
                to: offset(from - 1 + events.len() as u64),
                tail: offset(log.tail()),
                events,
            })
        })
    }

    fn create<'a>(
        &'a self,
        token: &'a Bearer,
        session: &'a SessionName,
    ) -> BoxFuture<'a, Result<Created, Refusal>> {
        Box::pin(async move {
            let _ = token;
            if session.as_str().starts_with("no-") {
                return Err(Refusal::new(Code::Denied, "no create"));
            }
            let written = Written::Create(session.clone());
            self.0.written.lock().unwrap().push(written);
            Ok(Created {
                session_epoch: self.0.make(session.as_str()),
                tail: Offset::ZERO,
                created: true,
            })
        })
    }

    fn post<'a>(
        &'a self,
        token: &'a Bearer,
        session: &'a SessionName,
        draft: Draft,
        key: Option<Key>,
    ) -> BoxFuture<'a, Result<Posted, Refusal>> {
        Box::pin(async move {
            let lane = match draft.body {
                Body::Input { .. } => &self.0.inputs,
                _ => &self.0.apps,
            };
            let _permit = lane.acquire().await.unwrap();
            let room = Nodes::key(session.as_str());
            let log = self.0.log(&room).ok_or_else(unknown)?;
            let event = Event {
                body: draft.body.clone(),
                ..app("")
            };
            let written = Written::Post(bearer(token), session.clone(), key, Box::new(draft));
            self.0.written.lock().unwrap().push(written);
            self.0.append(session.as_str(), [event]);
            Ok(Posted {
                session_epoch: log.epoch,
                offset: offset(self.0.tail(session.as_str())),
                duplicate: false,
            })
        })
    }

    fn signal<'a>(
        &'a self,
        token: &'a Bearer,
        session: &'a SessionName,
        pressed: &'a Pressed,
        _: Option<Key>,
    ) -> BoxFuture<'a, Result<Signalled, Refusal>> {
        Box::pin(async move {
            let _permit = self.0.inputs.acquire().await.unwrap();
            let log = self.0.log(&Nodes::key(session.as_str()));
            let Pressed::Cancel(cancel) = pressed else {
                panic!("these nodes know stops only")
            };
            let run = cancel.target.run().unwrap().clone();
            let written = Written::Cancel(bearer(token), session.clone(), run);
            self.0.written.lock().unwrap().push(written);
            Ok(Signalled {
                outcome: SignalOutcome::UnknownRun,
                session_epoch: log.map(|log| log.epoch),
                duplicate: false,
            })
        })
    }
}
