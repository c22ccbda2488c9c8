//! A reader's place in one session: one loop, catch-up from disk ⇄ live from memory.
//!
//! ```text
//!            page of events                     ring has the next events
//!          ┌──────┐                                 ┌──────┐
//!          ▼      │     the disk has no more        ▼      │
//!      CatchUp{next} ────────────────────────▶ Live{next} ─┘
//!          ▲                                        │
//!          └────────────────────────────────────────┘
//!                    next has left the ring
//! ```
//!
//! The place is only `next`, the offset that is delivered next; each step delivers from `next`
//! on and moves it behind what it delivered. So a gap cannot be expressed, and a slow reader
//! costs nobody memory. The ring was joined before the disk was read, so that whatever the disk
//! did not have yet is in the ring, or the ring says that it has left it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::limits::{BATCH_EVENTS_MAX, HEARTBEAT_EVERY, READ_BYTES_MAX};
use everwire_core::row::SessionKey;
use everwire_core::{Code, Details, Event, Offset, Refusal, SessionEpoch};
use everwire_store::{Store, StoreError};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::far::FarSubscription;
use crate::feed::{Reader, Taken};
use crate::leadership::Leadership;
use crate::reads::{self, Reads};

/// What a subscription hands over.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// Committed events, dense: `from` is the offset after the previous delivery's `to`.
    Events {
        /// The first offset covered.
        from: Offset,
        /// The last offset covered.
        to: Offset,
        /// The last committed offset known here.
        tail: Offset,
        /// The events, in order.
        events: Vec<Arc<Event>>,
    },
    /// Nothing new for a while; at least every
    /// [`HEARTBEAT_EVERY`](everwire_core::limits::HEARTBEAT_EVERY).
    Alive {
        /// The offset that will be delivered next.
        next: Offset,
        /// The last committed offset known here.
        tail: Offset,
        /// How long ago this replica heard its leader; zero on the leader.
        leader_seen: Duration,
    },
    /// It is over: GONE when the session was deleted, DRAINING at shutdown, STALE without a
    /// leader, when this replica must be rebuilt or when another node's was lost, INTERNAL when
    /// the disk failed. Every later call says the same.
    Ended(Refusal),
}

/// What the disk had from some offset on.
enum OnDisk {
    Page { events: Vec<Event>, tail: Offset },
    Gone,
}

/// Where the next event comes from, in the order usually walked.
enum Place {
    /// The disk. Holds the read that is under way, so that a dropped `next` does not lose it.
    CatchUp(Option<JoinHandle<Result<OnDisk, Refusal>>>),
    /// The ring.
    Live,
    /// Nowhere.
    Ended(Refusal),
}

/// A reader's place in one session. Dropping it ends it; it has no effect on the session.
pub struct Subscription(Reading);

/// Where its events come from.
enum Reading {
    /// A replica of this node's.
    Here(Box<Here>),
    /// Another node's.
    There(Box<FarSubscription>),
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tail = match &self.0 {
            Reading::Here(here) => here.tail,
            Reading::There(there) => there.tail(),
        };
        f.debug_struct("Subscription")
            .field("session_epoch", &self.session_epoch())
            .field("next", &self.position())
            .field("tail", &tail)
            .finish_non_exhaustive()
    }
}

impl Subscription {
    pub(crate) fn here(here: Here) -> Self {
        Self(Reading::Here(Box::new(here)))
    }

    pub(crate) fn far(there: FarSubscription) -> Self {
        Self(Reading::There(Box::new(there)))
    }

    /// The history that is read.
    pub fn session_epoch(&self) -> SessionEpoch {
        match &self.0 {
            Reading::Here(here) => here.session_epoch,
            Reading::There(there) => there.session_epoch(),
        }
    }

    /// The offset that is delivered next.
    pub fn position(&self) -> Offset {
        match &self.0 {
            Reading::Here(here) => here.next,
            Reading::There(there) => there.position(),
        }
    }

    /// The next delivery. Cancel-safe: a dropped call loses nothing. At most
    /// [`READ_BYTES_MAX`](everwire_core::limits::READ_BYTES_MAX) of events, or one single event.
    pub async fn next(&mut self) -> Delivery {
        match &mut self.0 {
            Reading::Here(here) => here.next().await,
            Reading::There(there) => there.next().await,
        }
    }
}

/// A reader's place in a session that is read here.
pub(crate) struct Here {
    session_epoch: SessionEpoch,
    reader: Reader,
    reads: Reads,
    leadership: Arc<Leadership>,
    place: Place,
    next: Offset,
    tail: Offset,
    alive_at: Instant,
}

/// Reads a page from disk, and whether the session is still there.
fn read_page(store: &dyn Store, session: SessionKey, next: Offset) -> Result<OnDisk, StoreError> {
    let Some(head) = reads::head(store, session)? else {
        return Ok(OnDisk::Gone);
    };
    let events = store.events(session, next, READ_BYTES_MAX, BATCH_EVENTS_MAX);
    let events = match events {
        Ok(events) => events,
        // Deleted between the two reads.
        Err(_) if reads::head(store, session)?.is_none() => return Ok(OnDisk::Gone),
        Err(error) => return Err(error),
    };
    // Deleted between the two reads, too: one that is there has events up to its tail.
    if events.is_empty() && next <= head.tail && reads::head(store, session)?.is_none() {
        return Ok(OnDisk::Gone);
    }
    let last = events.last().map_or(Offset::ZERO, |last| last.offset);
    let tail = head.tail.max(last);
    Ok(OnDisk::Page { events, tail })
}

impl Here {
    /// A subscription from `next` on. `reader` joined before `tail` was read.
    pub(crate) fn new(
        session_epoch: SessionEpoch,
        mut reader: Reader,
        reads: Reads,
        leadership: Arc<Leadership>,
        next: Offset,
        tail: Offset,
    ) -> Self {
        reader.want(next);
        // Nothing to catch up with: the ring has what follows, or says that it has not.
        let place = if next > tail {
            Place::Live
        } else {
            Place::CatchUp(None)
        };
        Self {
            session_epoch,
            reader,
            reads,
            leadership,
            place,
            next,
            tail,
            alive_at: Instant::now() + HEARTBEAT_EVERY,
        }
    }

    /// See [`Subscription::next`].
    async fn next(&mut self) -> Delivery {
        let delivery = loop {
            if let Some(delivery) = self.step().await {
                break delivery;
            }
        };
        self.alive_at = Instant::now() + HEARTBEAT_EVERY;
        delivery
    }

    /// One step of the loop; `None` when only the place changed.
    async fn step(&mut self) -> Option<Delivery> {
        if let Some(refusal) = self.reader.ended() {
            self.place = Place::Ended(refusal);
        }
        match &self.place {
            Place::CatchUp(_) => self.catch_up().await,
            Place::Live => self.live().await,
            Place::Ended(refusal) => Some(Delivery::Ended(refusal.clone())),
        }
    }

    async fn catch_up(&mut self) -> Option<Delivery> {
        let Place::CatchUp(under_way) = &mut self.place else {
            return None;
        };
        let read = under_way.get_or_insert_with(|| {
            let (reads, session, next) = (self.reads.clone(), self.reader.session(), self.next);
            tokio::spawn(async move {
                reads
                    .run(move |store| read_page(store, session, next))
                    .await
            })
        });
        let page = tokio::select! {
            page = read => page,
            () = tokio::time::sleep_until(self.alive_at) => return Some(self.alive()),
        };
        self.place = Place::CatchUp(None);
        let page = page.unwrap_or_else(|error| {
            tracing::error!(%error, "a read did not come back");
            Err(Refusal::new(Code::Internal, "the disk could not be read"))
        });
        match page {
            Ok(OnDisk::Page { events, tail }) => {
                self.tail = self.tail.max(tail);
                if events.is_empty() && self.next > tail {
                    self.place = Place::Live;
                    return None;
                }
                let events = events.into_iter().map(Arc::new).collect();
                let delivery = self.deliver(events);
                self.reader.want(self.next);
                Some(delivery)
            },
            Ok(OnDisk::Gone) => Some(self.end(self.gone())),
            Err(refusal) => Some(self.end(refusal)),
        }
    }

    async fn live(&mut self) -> Option<Delivery> {
        let taken = {
            let changed = self.reader.changed();
            let mut changed = std::pin::pin!(changed.notified());
            changed.as_mut().enable();
            match self.reader.take(READ_BYTES_MAX) {
                Taken::Nothing => {
                    tokio::select! {
                        () = changed => return None,
                        () = tokio::time::sleep_until(self.alive_at) => {},
                    }
                    return Some(self.alive());
                },
                taken => taken,
            }
        };
        match taken {
            Taken::Events(events) => Some(self.deliver(events)),
            Taken::Behind => {
                self.place = Place::CatchUp(None);
                None
            },
            Taken::Ended(refusal) => Some(self.end(refusal)),
            Taken::Nothing => None,
        }
    }

    /// Hands events over, if they are the next ones.
    fn deliver(&mut self, events: Vec<Arc<Event>>) -> Delivery {
        let from = self.next;
        let mut expected = from;
        for event in &events {
            if event.offset != expected {
                let found = event.offset;
                return self.hole(&format!("event {expected} is missing before {found}"));
            }
            expected = expected.next();
        }
        if events.is_empty() {
            return self.hole(&format!("event {from} is missing before {}", self.tail));
        }
        self.next = expected;
        let to = expected.previous();
        self.tail = self.known_tail().max(to);
        Delivery::Events {
            from,
            to,
            tail: self.tail,
            events,
        }
    }

    /// Nothing is delivered past a hole.
    fn hole(&mut self, what: &str) -> Delivery {
        let session = self.reader.session();
        let (slot, session_no) = (session.slot.get(), session.session_no.0);
        let what = format!("slot {slot} session {session_no}: {what}");
        tracing::error!(what, "a hole in a session");
        self.end(self.reads.damages().met(session, &what))
    }

    fn known_tail(&self) -> Offset {
        self.reader
            .tail()
            .map_or(self.tail, |tail| tail.max(self.tail))
    }

    fn alive(&mut self) -> Delivery {
        self.tail = self.known_tail();
        Delivery::Alive {
            next: self.next,
            tail: self.tail,
            leader_seen: self.leadership.leader_seen(),
        }
    }

    fn gone(&self) -> Refusal {
        let details = Details {
            tail: Some(self.tail),
            ..Details::default()
        };
        Refusal::with(Code::Gone, "the session was deleted", details)
    }

    fn end(&mut self, refusal: Refusal) -> Delivery {
        self.place = Place::Ended(refusal.clone());
        Delivery::Ended(refusal)
    }
}
