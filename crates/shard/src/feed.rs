//! Committed events on their way to live readers of one shard: a bounded ring per session,
//! for sessions that somebody reads.
//!
//! The apply thread pushes; readers take. A reader that lags behind its ring is told so and
//! reads the disk instead: nothing here waits for a reader, and no gap can be taken from a ring.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use everwire_core::limits::{FEED_BYTES_MAX, FEED_TOTAL_BYTES_MAX};
use everwire_core::row::SessionKey;
use everwire_core::{Code, Details, Event, Offset, Refusal, RunId};
use tokio::sync::Notify;

use crate::run_watch::{RunWatch, RunWatches};

/// Bytes that an event weighs in memory besides its payload.
const ENVELOPE: usize = 256;

/// What an event weighs in a ring and in a delivery, bytes.
pub(crate) fn weight(event: &Event) -> usize {
    event.payload_bytes() + ENVELOPE
}

/// Bytes in all rings of a node.
#[derive(Default)]
pub(crate) struct Budget(AtomicUsize);

impl Budget {
    /// How many there are.
    pub(crate) fn bytes(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn is_exceeded(&self) -> bool {
        self.0.load(Ordering::Relaxed) > FEED_TOTAL_BYTES_MAX
    }
}

/// The rings of one shard.
pub(crate) struct Feed {
    state: Mutex<State>,
    budget: Arc<Budget>,
    /// Who waits for the end of a run.
    runs: Arc<RunWatches>,
}

#[derive(Default)]
struct State {
    /// Sessions that somebody reads. Invariant: each ring here has a reader.
    rings: HashMap<SessionKey, Arc<Ring>>,
    /// Why nobody may join; set while the shard is not served.
    closed: Option<Refusal>,
}

/// The newest events of one session.
struct Ring {
    state: Mutex<RingState>,
    changed: Arc<Notify>,
    budget: Arc<Budget>,
}

#[derive(Default)]
struct RingState {
    /// Dense offsets, the last one before `next`.
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// The offset after the last event pushed; `None` before the first push.
    next: Option<Offset>,
    /// Why nothing follows.
    ended: Option<Refusal>,
    /// Readers by the offset that they want next: events below the first are not kept.
    readers: BTreeMap<Offset, u32>,
}

/// What a reader finds in its ring.
pub(crate) enum Taken {
    /// Events from the wanted offset on, dense.
    Events(Vec<Arc<Event>>),
    /// Nothing new.
    Nothing,
    /// The wanted offset is not in the ring any more: read the disk.
    Behind,
    /// Nothing will follow.
    Ended(Refusal),
}

impl Feed {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self {
            state: Mutex::default(),
            budget,
            runs: Arc::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic happens under this lock")
    }

    /// Joins a session's readers. Whatever is committed from now on is in the ring or reported
    /// as [`Taken::Behind`]; what was committed before is on disk.
    pub(crate) fn join(self: &Arc<Self>, session: SessionKey) -> Result<Reader, Refusal> {
        let mut state = self.lock();
        if let Some(refusal) = &state.closed {
            return Err(refusal.clone());
        }
        let ring = state.rings.entry(session).or_insert_with(|| {
            Arc::new(Ring {
                state: Mutex::default(),
                changed: Arc::default(),
                budget: self.budget.clone(),
            })
        });
        let wanted = Offset::ZERO;
        ring.lock().enter(wanted);
        Ok(Reader {
            feed: self.clone(),
            session,
            ring: ring.clone(),
            wanted,
        })
    }

    /// Watches a run for its end or a new writer, from now on, until the readers end.
    pub(crate) fn watch(&self, session: SessionKey, run: RunId) -> Result<RunWatch, Refusal> {
        let state = self.lock();
        match &state.closed {
            Some(refusal) => Err(refusal.clone()),
            // Still under the lock: who closes ends what is watched here.
            None => Ok(self.runs.watch(session, run)),
        }
    }

    /// Hands committed events to their sessions' readers. Call it after they are on disk.
    pub(crate) fn publish(&self, events: &[(SessionKey, Arc<Event>)]) {
        self.runs.touched(events);
        if self.lock().rings.is_empty() {
            return;
        }
        for run in events.chunk_by(|left, right| left.0 == right.0) {
            let ring = run
                .first()
                .and_then(|(session, _)| self.lock().rings.get(session).cloned());
            if let Some(ring) = ring {
                ring.push(run.iter().map(|(_, event)| event));
            }
        }
    }

    /// Ends a session's readers and watchers: it was deleted.
    pub(crate) fn erased(&self, session: SessionKey) {
        self.runs.erased(session);
        let ring = self.lock().rings.remove(&session);
        if let Some(ring) = ring {
            ring.end_as_gone();
        }
    }

    /// Ends all readers and watchers, and lets nobody join.
    pub(crate) fn close(&self, refusal: &Refusal) {
        self.lock().closed = Some(refusal.clone());
        self.end(refusal);
    }

    /// Ends all readers and watchers; they may join again.
    pub(crate) fn end(&self, refusal: &Refusal) {
        self.runs.end();
        let rings = std::mem::take(&mut self.lock().rings);
        for ring in rings.values() {
            ring.end(refusal.clone());
        }
    }

    /// Lets readers join again.
    pub(crate) fn open(&self) {
        self.lock().closed = None;
    }

    /// How many readers a session has.
    pub(crate) fn readers(&self, session: SessionKey) -> u32 {
        let ring = self.lock().rings.get(&session).cloned();
        ring.map_or(0, |ring| ring.lock().readers.values().sum())
    }
}

impl Ring {
    fn lock(&self) -> MutexGuard<'_, RingState> {
        self.state.lock().expect("no panic happens under this lock")
    }

    fn push<'a>(&self, events: impl Iterator<Item = &'a Arc<Event>>) {
        let mut state = self.lock();
        for event in events {
            if state.next.is_some_and(|next| next != event.offset) {
                // A jump cannot happen while the shard is served; readers go to the disk.
                self.forget(&mut state);
            }
            let bytes = weight(event);
            state.bytes += bytes;
            self.budget.0.fetch_add(bytes, Ordering::Relaxed);
            state.events.push_back(event.clone());
            state.next = Some(event.offset.next());
        }
        while state.bytes > FEED_BYTES_MAX || (self.budget.is_exceeded() && state.bytes > 0) {
            self.pop(&mut state);
        }
        drop(state);
        self.changed.notify_waiters();
    }

    fn pop(&self, state: &mut RingState) {
        if let Some(event) = state.events.pop_front() {
            let bytes = weight(&event);
            state.bytes -= bytes;
            self.budget.0.fetch_sub(bytes, Ordering::Relaxed);
        }
    }

    fn forget(&self, state: &mut RingState) {
        while !state.events.is_empty() {
            self.pop(state);
        }
    }

    /// Drops what every reader has.
    fn trim(&self, state: &mut RingState) {
        let wanted = state.readers.keys().next().copied();
        while let (Some(first), Some(wanted)) = (state.events.front(), wanted)
            && first.offset < wanted
        {
            self.pop(state);
        }
    }

    fn end(&self, refusal: Refusal) {
        let mut state = self.lock();
        state.ended = Some(refusal);
        self.forget(&mut state);
        drop(state);
        self.changed.notify_waiters();
    }

    fn end_as_gone(&self) {
        let tail = self.lock().next.map(Offset::previous);
        let details = Details {
            tail,
            ..Details::default()
        };
        self.end(Refusal::with(
            Code::Gone,
            "the session was deleted",
            details,
        ));
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let bytes = self.state.get_mut().map_or(0, |state| state.bytes);
        self.budget.0.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl RingState {
    fn enter(&mut self, wanted: Offset) {
        *self.readers.entry(wanted).or_default() += 1;
    }

    fn leave(&mut self, wanted: Offset) {
        if let Some(count) = self.readers.get_mut(&wanted) {
            *count -= 1;
            if *count == 0 {
                self.readers.remove(&wanted);
            }
        }
    }
}

/// One reader's place at a ring. Leaves it when dropped.
pub(crate) struct Reader {
    feed: Arc<Feed>,
    session: SessionKey,
    ring: Arc<Ring>,
    wanted: Offset,
}

impl Reader {
    /// The session.
    pub(crate) fn session(&self) -> SessionKey {
        self.session
    }

    /// Notifies all waiters at each change. Enable the wait before looking into the ring.
    pub(crate) fn changed(&self) -> Arc<Notify> {
        self.ring.changed.clone()
    }

    /// Why nothing follows, if so.
    pub(crate) fn ended(&self) -> Option<Refusal> {
        self.ring.lock().ended.clone()
    }

    /// The last offset that went through the ring.
    pub(crate) fn tail(&self) -> Option<Offset> {
        self.ring.lock().next.map(Offset::previous)
    }

    /// Says which offset this reader wants next: nothing before it is kept for it.
    pub(crate) fn want(&mut self, wanted: Offset) {
        let mut state = self.ring.lock();
        state.leave(self.wanted);
        state.enter(wanted);
        self.ring.trim(&mut state);
        drop(state);
        self.wanted = wanted;
    }

    /// Takes the wanted events: at most `bytes_max`, or a single one.
    ///
    /// The caller has read the disk's end after joining, or took the event before.
    pub(crate) fn take(&mut self, bytes_max: usize) -> Taken {
        let state = self.ring.lock();
        if let Some(refusal) = &state.ended {
            return Taken::Ended(refusal.clone());
        }
        let Some(next) = state.next else {
            return Taken::Nothing;
        };
        if self.wanted >= next {
            return Taken::Nothing;
        }
        let Some(first) = state
            .events
            .front()
            .filter(|first| first.offset <= self.wanted)
        else {
            return Taken::Behind;
        };
        let skip = self.wanted.get() - first.offset.get();
        let skip = usize::try_from(skip).expect("a ring holds fewer than 2^32 events");
        let mut bytes = 0;
        let mut events: Vec<Arc<Event>> = Vec::new();
        for event in state.events.iter().skip(skip) {
            bytes += weight(event);
            if bytes > bytes_max && !events.is_empty() {
                break;
            }
            events.push(event.clone());
        }
        drop(state);
        if let Some(last) = events.last() {
            self.want(last.offset.next());
        }
        Taken::Events(events)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut shard = self.feed.lock();
        let mut state = self.ring.lock();
        state.leave(self.wanted);
        self.ring.trim(&mut state);
        let last = state.readers.is_empty();
        drop(state);
        let here = shard.rings.get(&self.session);
        if last && here.is_some_and(|ring| Arc::ptr_eq(ring, &self.ring)) {
            shard.rings.remove(&self.session);
        }
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Reader({:?} at {})", self.session, self.wanted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use everwire_core::event::{Body, Codec, Data, Visibility};
    use everwire_core::ids::{SessionNo, Slot};
    use everwire_core::{Author, ParticipantId, ParticipantKind, Timestamp};

    fn session() -> SessionKey {
        SessionKey {
            slot: Slot::new(7).unwrap(),
            session_no: SessionNo(1),
        }
    }

    fn event(offset: u64, bytes: usize) -> (SessionKey, Arc<Event>) {
        let event = Event {
            offset: Offset::new(offset).unwrap(),
            time: Timestamp(0),
            run: None,
            author: Author {
                participant: ParticipantId::parse("ann").unwrap(),
                kind: ParticipantKind::User,
            },
            parent: None,
            visibility: Visibility::All,
            format: String::new(),
            codec: Codec::Plain,
            body: Body::App {
                name: String::new(),
                data: Some(Data::Json("x".repeat(bytes))),
            },
            raw: None,
        };
        (session(), Arc::new(event))
    }

    fn offsets(taken: Taken) -> Vec<u64> {
        match taken {
            Taken::Events(events) => events.iter().map(|event| event.offset.get()).collect(),
            Taken::Nothing => vec![],
            Taken::Behind => vec![u64::MAX],
            Taken::Ended(refusal) => panic!("{refusal}"),
        }
    }

    fn at(offset: u64) -> Offset {
        Offset::new(offset).unwrap()
    }

    #[test]
    fn readers_take_each_event_once_and_nothing_is_kept_for_nobody() {
        let feed = Arc::new(Feed::new(Arc::default()));
        feed.publish(&[event(1, 1)]);
        let mut one = feed.join(session()).unwrap();
        let mut two = feed.join(session()).unwrap();
        one.want(at(2));
        two.want(at(2));
        assert!(offsets(one.take(1 << 20)).is_empty());
        feed.publish(&[event(2, 1), event(3, 1)]);
        assert_eq!(offsets(one.take(1 << 20)), [2, 3]);
        assert!(offsets(one.take(1 << 20)).is_empty());
        assert_eq!(offsets(two.take(1)), [2]);
        assert_eq!(offsets(two.take(1)), [3]);
        assert_eq!(feed.budget.0.load(Ordering::Relaxed), 0);
        assert_eq!(feed.readers(session()), 2);
        drop((one, two));
        assert_eq!(feed.lock().rings.len(), 0);
    }

    #[test]
    fn a_reader_below_the_ring_is_behind() {
        let feed = Arc::new(Feed::new(Arc::default()));
        let mut reader = feed.join(session()).unwrap();
        reader.want(at(1));
        let big = FEED_BYTES_MAX / 3;
        for offset in 1..=5 {
            feed.publish(&[event(offset, big)]);
        }
        assert!(matches!(reader.take(1), Taken::Behind));
        assert!(feed.budget.0.load(Ordering::Relaxed) <= FEED_BYTES_MAX);
        reader.want(at(5));
        assert_eq!(offsets(reader.take(1)), [5]);
        drop(reader);
        assert_eq!(feed.budget.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_jump_is_never_taken_as_the_next_event() {
        let feed = Arc::new(Feed::new(Arc::default()));
        let mut reader = feed.join(session()).unwrap();
        reader.want(at(1));
        feed.publish(&[event(1, 1)]);
        feed.publish(&[event(4, 1)]);
        assert!(matches!(reader.take(1), Taken::Behind));
    }

    #[test]
    fn the_end_reaches_every_reader_and_a_new_session_has_a_new_ring() {
        let feed = Arc::new(Feed::new(Arc::default()));
        let mut reader = feed.join(session()).unwrap();
        feed.erased(session());
        assert!(matches!(reader.take(1), Taken::Ended(refusal) if refusal.code == Code::Gone));
        let mut next = feed.join(session()).unwrap();
        assert!(matches!(next.take(1), Taken::Nothing));
        drop(reader);
        assert_eq!(feed.readers(session()), 1);
        feed.close(&Refusal::new(Code::Draining, "bye"));
        assert!(matches!(next.take(1), Taken::Ended(_)));
        assert_eq!(feed.join(session()).unwrap_err().code, Code::Draining);
    }
}
