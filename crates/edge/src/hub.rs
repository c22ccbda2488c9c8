//! The hub: which rooms are open on this edge.
//!
//! Comes in: readers who look for a session. Goes out: a seat in its one room. A room that
//! nobody has been in for a while is closed, and its upstream with it.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::sync::{Arc, Mutex};

use everwire_core::Offset;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backlog::Memory;
use crate::config::Timings;
use crate::follow;
use crate::metrics::Metrics;
use crate::room::{Room, Seat};
use crate::upstream::{RoomKey, Upstream};
use crate::wake::{Wake, locked};

/// Locks of the hub: enough that attaching sockets of other sessions seldom meet.
const LOCKS: usize = 64;

/// Catch-up pages that are being read at once, over all connections. More wait in turn: a storm
/// of returning readers must not become a storm on the nodes.
const CATCH_UPS_AT_ONCE: usize = 64;

type Rooms = HashMap<RoomKey, Arc<Room>>;

/// The rooms of an edge.
pub(crate) struct Hub {
    rooms: Vec<Mutex<Rooms>>,
    hasher: RandomState,
    /// The nodes.
    pub(crate) upstream: Arc<dyn Upstream>,
    /// Permits for [`CATCH_UPS_AT_ONCE`].
    pub(crate) catch_ups: Semaphore,
    /// What all rooms hold together.
    memory: Arc<Memory>,
    /// How long things take.
    pub(crate) timings: Timings,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Hub {
    /// An empty hub. Its rooms end with `stop`.
    pub(crate) fn new(
        upstream: Arc<dyn Upstream>,
        memory: Arc<Memory>,
        timings: Timings,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self {
            rooms: (0..LOCKS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            upstream,
            catch_ups: Semaphore::new(CATCH_UPS_AT_ONCE),
            memory,
            timings,
            metrics,
            stop,
            tasks,
        })
    }

    /// A seat in the session's room, which is opened if it is not there; `hint` is what its first
    /// reader has seen, so that the room begins with what it needs.
    pub(crate) fn join(
        self: &Arc<Self>,
        key: &RoomKey,
        wake: &Arc<Wake>,
        slot: u8,
        hint: Option<Offset>,
    ) -> Seat {
        let mut rooms = locked(self.lock_of(key));
        loop {
            if let Some(seat) = rooms.get(key).and_then(|room| room.enter(wake, slot)) {
                return seat;
            }
            let memory_valid = self.timings.memory_valid;
            let (memory, metrics) = (Arc::clone(&self.memory), Arc::clone(&self.metrics));
            let room = Room::new(key.clone(), memory, memory_valid, metrics);
            rooms.insert(key.clone(), Arc::clone(&room));
            let hub = Arc::clone(self);
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                stop.run_until_cancelled(follow::run(hub, room, hint)).await;
            });
        }
    }

    /// Forgets a room that is closed.
    pub(crate) fn forget(&self, room: &Arc<Room>) {
        let mut rooms = locked(self.lock_of(room.key()));
        let is_this = rooms
            .get(room.key())
            .is_some_and(|known| Arc::ptr_eq(known, room));
        if is_this {
            rooms.remove(room.key());
        }
    }

    /// Closes and forgets a room that has been empty for long. Says whether it did. The lock
    /// keeps anybody from entering in between.
    pub(crate) fn forget_if_empty(&self, room: &Arc<Room>) -> bool {
        let mut rooms = locked(self.lock_of(room.key()));
        if !room.close_if_empty(self.timings.room_idle) {
            return false;
        }
        rooms.remove(room.key());
        true
    }

    fn lock_of(&self, key: &RoomKey) -> &Mutex<Rooms> {
        let hash = usize::try_from(self.hasher.hash_one(key) & 0xffff).unwrap_or_default();
        self.rooms
            .get(hash % LOCKS)
            .expect("there are LOCKS locks and the remainder is below")
    }
}
