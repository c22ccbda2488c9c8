//! A room: one session on this edge. Its recent events, and whom to wake.
//!
//! Comes in: what the upstream says ([`crate::follow`]) and readers who enter and leave. Goes
//! out: frames to whoever asks from an offset, and wakes. Never: a push of bytes. A reader that
//! takes nothing costs its room nothing; what it missed it finds in the log.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use everwire_core::code::Details;
use everwire_core::{Code, Cursor, Event, Offset, Refusal, SessionEpoch};
use everwire_proto::frame::Covered;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::backlog::{Backlog, Found, Memory};
use crate::encode::{About, Form, encode_alive};
use crate::metrics::Metrics;
use crate::upstream::RoomKey;
use crate::wake::{Wake, locked};

/// A session on this edge.
#[derive(Debug)]
pub(crate) struct Room {
    key: RoomKey,
    state: Mutex<State>,
    /// Rings when the room is no longer opening.
    opened: Notify,
    /// How long the memory is good without an upstream.
    memory_valid: Duration,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    backlog: Backlog,
    /// The last committed offset that the upstream told.
    tail: Offset,
    /// Counts signs of life, so that each reader passes each on once.
    alive: u64,
    leader_seen: Duration,
    /// Since when there is no upstream, and why.
    lost: Option<(Instant, Refusal)>,
    members: HashMap<u64, (Arc<Wake>, u8)>,
    next_member: u64,
    empty_since: Instant,
}

#[derive(Clone, Debug)]
enum Phase {
    Opening,
    Live(SessionEpoch),
    Closed(Closing),
}

/// Why a room closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    /// There is no such session.
    NotFound,
    /// Readers are told this.
    Refused(Refusal),
}

impl Closing {
    /// What somebody is told who was reading.
    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Self::NotFound => Refusal::new(Code::UnknownSession, "the session is gone"),
            Self::Refused(refusal) => refusal,
        }
    }
}

/// Where a reader starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Start {
    /// The session's history.
    pub(crate) session_epoch: SessionEpoch,
    /// The first offset that will be delivered.
    pub(crate) from: Offset,
    /// The last committed offset.
    pub(crate) tail: Offset,
}

/// What a room answers to a reader who stands at an offset.
#[derive(Debug)]
pub(crate) enum Pull {
    /// A frame, and the first and last offset that it covers.
    Frame(Bytes, Offset, Offset),
    /// It is not in memory: read the log.
    Behind,
    /// Nothing is there yet; a sign of life that this reader has not passed on.
    Alive(Bytes, u64),
    /// Nothing is there yet; the reader will be woken.
    Wait,
    /// The room is closed.
    Over(Refusal),
}

impl Room {
    /// A room that is not open yet.
    pub(crate) fn new(
        key: RoomKey,
        memory: Arc<Memory>,
        memory_valid: Duration,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        metrics.rooms.inc();
        let state = State {
            phase: Phase::Opening,
            backlog: Backlog::new(Offset::ZERO.next(), memory),
            tail: Offset::ZERO,
            alive: 0,
            leader_seen: Duration::ZERO,
            lost: None,
            members: HashMap::new(),
            next_member: 0,
            empty_since: Instant::now(),
        };
        Arc::new(Self {
            key,
            state: Mutex::new(state),
            opened: Notify::new(),
            memory_valid,
            metrics,
        })
    }

    /// Which session it is.
    pub(crate) fn key(&self) -> &RoomKey {
        &self.key
    }

    // === readers ===

    /// Takes a seat: `wake` is marked at `slot` when there is something. `None` if it is closed.
    pub(crate) fn enter(self: &Arc<Self>, wake: &Arc<Wake>, slot: u8) -> Option<Seat> {
        let mut state = locked(&self.state);
        if matches!(state.phase, Phase::Closed(_)) {
            return None;
        }
        let id = state.next_member;
        state.next_member += 1;
        state.members.insert(id, (Arc::clone(wake), slot));
        self.metrics.attachments.inc();
        Some(Seat {
            room: Arc::clone(self),
            id,
        })
    }

    /// Waits until the room is open, or closed for a reason.
    pub(crate) async fn opened(&self) -> Result<(), Closing> {
        loop {
            let bell = self.opened.notified();
            tokio::pin!(bell);
            bell.as_mut().enable();
            match &locked(&self.state).phase {
                Phase::Opening => {},
                Phase::Live(_) => return Ok(()),
                Phase::Closed(closing) => return Err(closing.clone()),
            }
            bell.await;
        }
    }

    /// Signs of life so far.
    pub(crate) fn alive_count(&self) -> u64 {
        locked(&self.state).alive
    }

    /// Why there is no upstream at this moment.
    pub(crate) fn trouble(&self) -> Option<Refusal> {
        let state = locked(&self.state);
        state.lost.as_ref().map(|(_, refusal)| refusal.clone())
    }

    /// The session's history, once the room is open.
    pub(crate) fn session_epoch(&self) -> Option<SessionEpoch> {
        match locked(&self.state).phase {
            Phase::Live(session_epoch) => Some(session_epoch),
            Phase::Opening | Phase::Closed(_) => None,
        }
    }

    /// Where a reader with this cursor starts, if memory covers it; else the nodes must say.
    pub(crate) fn resolve(&self, cursor: Option<Cursor>) -> Option<Start> {
        let state = locked(&self.state);
        let Phase::Live(session_epoch) = state.phase else {
            return None;
        };
        let first = state.backlog.first();
        let from = match cursor {
            // Offset 1 is the earliest event for sure; what a later one is, the nodes know.
            None if first == Offset::ZERO.next() => first,
            Some(cursor) if cursor.session_epoch.is_none_or(|one| one == session_epoch) => {
                // Above the last event that came it may still be right: the nodes know.
                if cursor.offset >= state.backlog.next() {
                    return None;
                }
                cursor.offset.next()
            },
            Some(_) | None => return None,
        };
        let covered = from >= first && !self.is_stale(&state);
        covered.then_some(Start {
            session_epoch,
            from,
            tail: state.tail,
        })
    }

    /// What comes at `next` for a reader of this form, who passed on the signs of life up to
    /// `alive`.
    pub(crate) fn pull(&self, next: Offset, form: Form, alive: u64) -> Pull {
        let state = locked(&self.state);
        let session_epoch = match &state.phase {
            Phase::Live(session_epoch) => *session_epoch,
            Phase::Opening => return Pull::Wait,
            Phase::Closed(closing) => return Pull::Over(closing.clone().refusal()),
        };
        let about = About {
            session: &self.key.session,
            session_epoch,
        };
        let chunk = match state.backlog.find(next) {
            Found::Hit(chunk) if !self.is_stale(&state) => chunk,
            Found::Hit(_) | Found::Behind => return Pull::Behind,
            Found::Ahead if state.alive == alive => return Pull::Wait,
            Found::Ahead => {
                let range = Covered {
                    from: next,
                    to: next.previous(),
                    tail: state.tail.max(next.previous()),
                    leader_seen_ms: u32::try_from(state.leader_seen.as_millis())
                        .unwrap_or(u32::MAX),
                };
                return Pull::Alive(encode_alive(about, form, range), state.alive);
            },
        };
        // Encoding is work: not under the lock. The cell sees to it that it is done once.
        drop(state);
        if chunk.from() < next {
            return Pull::Frame(chunk.since(about, form, next), next, chunk.to());
        }
        let (frame, encoded) = chunk.shared(about, form);
        if encoded > 0 {
            self.metrics.encoded.inc();
            locked(&self.state).backlog.charge(&chunk, encoded);
        }
        Pull::Frame(frame, chunk.from(), chunk.to())
    }

    fn is_stale(&self, state: &State) -> bool {
        let lost = state.lost.as_ref();
        lost.is_some_and(|(since, _)| since.elapsed() > self.memory_valid)
    }

    // === the upstream ===

    /// The upstream is there (again): events come from `from` on. `Err` if it is another history,
    /// or does not go on where the last event stood.
    pub(crate) fn attached(
        &self,
        session_epoch: SessionEpoch,
        from: Offset,
        tail: Offset,
    ) -> Result<(), Closing> {
        let mut state = locked(&self.state);
        match state.phase {
            Phase::Opening => {
                state.phase = Phase::Live(session_epoch);
                state.backlog.restart(from);
            },
            Phase::Live(known) if known == session_epoch => check_next(&state, from)?,
            Phase::Live(_) | Phase::Closed(_) => {
                return Err(Closing::Refused(gone(session_epoch, None, tail)));
            },
        }
        state.tail = state.tail.max(tail);
        state.lost = None;
        wake_all(&state);
        drop(state);
        self.opened.notify_waiters();
        Ok(())
    }

    /// Committed events.
    pub(crate) fn push(&self, delivery: Covered, events: Vec<Event>) -> Result<(), Closing> {
        let mut state = locked(&self.state);
        check_next(&state, delivery.from)?;
        state.backlog.push(delivery, events);
        state.tail = state.tail.max(delivery.tail).max(delivery.to);
        state.lost = None;
        wake_all(&state);
        Ok(())
    }

    /// Nothing new, but the upstream lives.
    pub(crate) fn alive(&self, tail: Offset, leader_seen: Duration) {
        let mut state = locked(&self.state);
        state.tail = state.tail.max(tail);
        state.leader_seen = leader_seen;
        state.alive += 1;
        state.lost = None;
        wake_all(&state);
    }

    /// The upstream is away. Answers how long it has been.
    pub(crate) fn lost(&self, refusal: Refusal) {
        let mut state = locked(&self.state);
        let since = state
            .lost
            .as_ref()
            .map_or_else(Instant::now, |(since, _)| *since);
        state.lost = Some((since, refusal));
    }

    /// How long the upstream has been away.
    pub(crate) fn lost_for(&self) -> Option<Duration> {
        let state = locked(&self.state);
        state.lost.as_ref().map(|(since, _)| since.elapsed())
    }

    /// Ends the room: empties it and tells everybody who is in it.
    pub(crate) fn close(&self, closing: Closing) {
        let mut state = locked(&self.state);
        if matches!(state.phase, Phase::Closed(_)) {
            return;
        }
        state.phase = Phase::Closed(closing);
        let next = state.backlog.next();
        state.backlog.restart(next);
        wake_all(&state);
        drop(state);
        self.metrics.rooms.dec();
        self.opened.notify_waiters();
    }

    /// Ends the room if nobody has been in it for `idle`. Says whether it did.
    pub(crate) fn close_if_empty(&self, idle: Duration) -> bool {
        let state = locked(&self.state);
        let empty = state.members.is_empty() && state.empty_since.elapsed() >= idle;
        drop(state);
        if empty {
            let refusal = Refusal::new(Code::Overloaded, "the room was empty and is closed");
            self.close(Closing::Refused(refusal));
        }
        empty
    }

    fn leave(&self, id: u64) {
        let mut state = locked(&self.state);
        state.members.remove(&id);
        if state.members.is_empty() {
            state.empty_since = Instant::now();
        }
        drop(state);
        self.metrics.attachments.dec();
    }
}

fn wake_all(state: &State) {
    for (wake, slot) in state.members.values() {
        wake.mark(*slot);
    }
}

fn check_next(state: &State, from: Offset) -> Result<(), Closing> {
    let next = state.backlog.next();
    if from == next {
        return Ok(());
    }
    tracing::error!(%from, %next, "a delivery does not follow the last one");
    let refusal = Refusal::new(Code::Internal, "the edge lost its place in the session");
    Err(Closing::Refused(refusal))
}

/// The session has another history than the reader's.
pub(crate) fn gone(session_epoch: SessionEpoch, earliest: Option<Offset>, tail: Offset) -> Refusal {
    let details = Details {
        session_epoch: Some(session_epoch),
        earliest,
        tail: Some(tail),
        ..Details::default()
    };
    Refusal::with(Code::Gone, "the session has another history now", details)
}

/// A reader's place in a room. Dropping it is all that the end of a connection does to a
/// session: it holds a room and a number, and no way to write anything.
#[derive(Debug)]
pub(crate) struct Seat {
    room: Arc<Room>,
    id: u64,
}

impl Seat {
    /// The room.
    pub(crate) fn room(&self) -> &Arc<Room> {
        &self.room
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.room.leave(self.id);
    }
}
