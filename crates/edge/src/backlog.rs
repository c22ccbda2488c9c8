//! The recent events of one session in memory, as chunks that are encoded once.
//!
//! Comes in: what the upstream delivers, densely. Goes out: the chunk that holds an offset.
//! Never: a hole. A chunk begins where the one before ended, or the room has a bug.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use everwire_core::limits::{EDGE_FRAME_OUT_BYTES_MAX, ROOM_BACKLOG_BYTES_MAX};
use everwire_core::{Event, Offset};
use everwire_proto::frame::Covered;

use crate::encode::{About, Encoding, Form, Viewer, encode};

/// What an event weighs beside its payload: names, times, the struct itself.
const ENVELOPE_BYTES: usize = 256;

fn weight(event: &Event) -> usize {
    event.payload_bytes() + ENVELOPE_BYTES
}

/// A dense stretch of events that travels as one frame.
#[derive(Debug)]
pub(crate) struct Chunk {
    range: Covered,
    events: Vec<Event>,
    bytes: usize,
    /// Some of its events are not for everybody.
    has_hidden: bool,
    /// Public and full; in each JSON, proto, SSE.
    frames: [[OnceLock<Bytes>; 3]; 2],
}

impl Chunk {
    fn new(range: Covered, events: Vec<Event>) -> Arc<Self> {
        Arc::new(Self {
            range,
            bytes: ENVELOPE_BYTES + events.iter().map(weight).sum::<usize>(),
            has_hidden: events.iter().any(|event| !Viewer::Public.sees(event)),
            events,
            frames: Default::default(),
        })
    }

    /// The first offset that it covers.
    pub(crate) fn from(&self) -> Offset {
        self.range.from
    }

    /// The last offset that it covers.
    pub(crate) fn to(&self) -> Offset {
        self.range.to
    }

    /// The shared frame, and how many bytes were encoded for it just now: zero for everybody but
    /// the first reader of a form.
    pub(crate) fn shared(&self, about: About<'_>, form: Form) -> (Bytes, usize) {
        let mut encoded = 0;
        let frame = self.cell(form).get_or_init(|| {
            let frame = encode(about, form, self.range, &self.events);
            encoded = frame.len();
            frame
        });
        (frame.clone(), encoded)
    }

    /// A frame for one reader who stands inside the chunk: only what it has not seen.
    pub(crate) fn since(&self, about: About<'_>, form: Form, next: Offset) -> Bytes {
        let seen = self.events.partition_point(|event| event.offset < next);
        let range = Covered {
            from: next,
            ..self.range
        };
        encode(
            about,
            form,
            range,
            self.events.get(seen..).unwrap_or_default(),
        )
    }

    fn cell(&self, form: Form) -> &OnceLock<Bytes> {
        let [public, full] = &self.frames;
        // Where nothing is hidden the classes see the same, so they share the bytes.
        let class = match form.viewer {
            Viewer::Full if self.has_hidden => full,
            Viewer::Full | Viewer::Public => public,
        };
        let [json, proto, sse] = class;
        match form.encoding {
            Encoding::Json => json,
            Encoding::Proto => proto,
            Encoding::Sse => sse,
        }
    }
}

/// Where an offset lies.
#[derive(Debug)]
pub(crate) enum Found {
    /// In this chunk.
    Hit(Arc<Chunk>),
    /// Before everything that is kept.
    Behind,
    /// After everything that has come.
    Ahead,
}

/// What all rooms of an edge hold together. When it is used up, a room that takes more keeps less.
#[derive(Debug)]
pub(crate) struct Memory {
    used: AtomicUsize,
    max: usize,
}

impl Memory {
    /// Room for so many bytes.
    pub(crate) fn new(max: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            max,
        })
    }

    /// What one room may hold now.
    fn share(&self) -> usize {
        if self.used.load(Ordering::Relaxed) > self.max {
            ROOM_BACKLOG_BYTES_MAX / 16
        } else {
            ROOM_BACKLOG_BYTES_MAX
        }
    }
}

/// The chunks of a room. Invariant: they are dense, and the last one ends before `next`.
#[derive(Debug)]
pub(crate) struct Backlog {
    chunks: VecDeque<Arc<Chunk>>,
    /// The offset that must come next.
    next: Offset,
    /// Bytes of events and of the frames made from them; counted in `memory` too.
    bytes: usize,
    memory: Arc<Memory>,
}

impl Backlog {
    /// An empty backlog in front of `next`.
    pub(crate) fn new(next: Offset, memory: Arc<Memory>) -> Self {
        Self {
            chunks: VecDeque::new(),
            next,
            bytes: 0,
            memory,
        }
    }

    /// The offset that must come next.
    pub(crate) fn next(&self) -> Offset {
        self.next
    }

    /// The first offset that can be answered from memory.
    pub(crate) fn first(&self) -> Offset {
        self.chunks.front().map_or(self.next, |chunk| chunk.from())
    }

    /// Takes a delivery that begins at [`Self::next`], cut into frames; forgets the oldest
    /// chunks above the bound, but never the newest one.
    pub(crate) fn push(&mut self, delivery: Covered, events: Vec<Event>) {
        assert_eq!(delivery.from, self.next, "a delivery follows the last one");
        assert!(delivery.from <= delivery.to, "a delivery covers something");
        for chunk in cut(delivery, events) {
            self.add(chunk.bytes);
            self.chunks.push_back(chunk);
        }
        self.next = delivery.to.next();
        let share = self.memory.share();
        while self.bytes > share && self.chunks.len() > 1 {
            if let Some(oldest) = self.chunks.pop_front() {
                self.sub(oldest.bytes + encoded(&oldest));
            }
        }
    }

    fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.memory.used.fetch_add(bytes, Ordering::Relaxed);
    }

    fn sub(&mut self, bytes: usize) {
        // A frame that is being encoded at this moment is counted out before it is counted in.
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.memory.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Counts a frame that was made for a chunk, if the chunk is still here.
    pub(crate) fn charge(&mut self, chunk: &Chunk, bytes: usize) {
        if chunk.from() >= self.first() {
            self.add(bytes);
        }
    }

    /// Where an offset lies.
    pub(crate) fn find(&self, offset: Offset) -> Found {
        if offset >= self.next {
            return Found::Ahead;
        }
        let place = self.chunks.partition_point(|chunk| chunk.to() < offset);
        match self.chunks.get(place) {
            Some(chunk) if chunk.from() <= offset => Found::Hit(Arc::clone(chunk)),
            _ => Found::Behind,
        }
    }

    /// Forgets everything; `next` must come next.
    pub(crate) fn restart(&mut self, next: Offset) {
        *self = Self::new(next, Arc::clone(&self.memory));
    }

    /// Bytes that are held.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.sub(self.bytes);
    }
}

fn encoded(chunk: &Chunk) -> usize {
    let cells = chunk.frames.iter().flatten();
    cells.filter_map(OnceLock::get).map(Bytes::len).sum()
}

/// Cuts a delivery so that each piece holds at most [`EDGE_FRAME_OUT_BYTES_MAX`] of events, or
/// one single larger event. The pieces cover the delivery densely.
fn cut(delivery: Covered, events: Vec<Event>) -> Vec<Arc<Chunk>> {
    let mut chunks = Vec::new();
    let mut piece = Vec::new();
    let mut bytes = 0;
    let mut from = delivery.from;
    for event in events {
        let more = weight(&event);
        if bytes + more > EDGE_FRAME_OUT_BYTES_MAX && !piece.is_empty() {
            let to = event.offset.previous();
            let range = Covered {
                from,
                to,
                ..delivery
            };
            chunks.push(Chunk::new(range, std::mem::take(&mut piece)));
            from = to.next();
            bytes = 0;
        }
        bytes += more;
        piece.push(event);
    }
    chunks.push(Chunk::new(Covered { from, ..delivery }, piece));
    chunks
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{app, covered, offset};
    use everwire_core::SessionName;
    use proptest::prelude::*;

    const FORM: Form = Form {
        encoding: Encoding::Json,
        viewer: Viewer::Public,
    };

    fn name() -> SessionName {
        SessionName::parse("s").unwrap()
    }

    fn about(name: &SessionName) -> About<'_> {
        About {
            session: name,
            session_epoch: "1-1".parse().unwrap(),
        }
    }

    #[test]
    fn a_chunk_is_encoded_once_for_each_form() {
        let mut backlog = Backlog::new(offset(1), Memory::new(usize::MAX));
        backlog.push(covered(1, 2), vec![app(1, 10), app(2, 10)]);
        let Found::Hit(chunk) = backlog.find(offset(2)) else {
            panic!("it is there");
        };
        let (first, encoded) = chunk.shared(about(&name()), FORM);
        assert_eq!(encoded, first.len());
        let (second, encoded) = chunk.shared(about(&name()), FORM);
        assert_eq!(encoded, 0);
        assert_eq!(first.as_ptr(), second.as_ptr());
        let full = Form {
            viewer: Viewer::Full,
            ..FORM
        };
        assert_eq!(
            chunk.shared(about(&name()), full).1,
            0,
            "nothing is hidden, so it is shared"
        );
    }

    #[test]
    fn frames_count_against_the_bound() {
        let mut backlog = Backlog::new(offset(1), Memory::new(usize::MAX));
        for number in 1..200 {
            let size = 16 << 10;
            backlog.push(covered(number, number), vec![app(number, size)]);
            let Found::Hit(chunk) = backlog.find(offset(number)) else {
                panic!("the newest is kept");
            };
            let (_, encoded) = chunk.shared(about(&name()), FORM);
            backlog.charge(&chunk, encoded);
            assert!(backlog.bytes() <= ROOM_BACKLOG_BYTES_MAX + 2 * chunk.bytes);
        }
        let kept: usize = backlog
            .chunks
            .iter()
            .map(|one| one.bytes + encoded(one))
            .sum();
        assert_eq!(kept, backlog.bytes());
    }

    #[test]
    fn rooms_keep_less_when_all_together_hold_too_much() {
        let memory = Memory::new(4 << 20);
        let mut rooms: Vec<_> = (0..20)
            .map(|_| Backlog::new(offset(1), Arc::clone(&memory)))
            .collect();
        for number in 1..200 {
            for room in &mut rooms {
                room.push(covered(number, number), vec![app(number, 16 << 10)]);
                assert!(matches!(room.find(offset(number)), Found::Hit(_)));
            }
        }
        let used = memory.used.load(Ordering::Relaxed);
        assert!(used < 5 << 20, "{used}");
        assert_eq!(used, rooms.iter().map(Backlog::bytes).sum::<usize>());
        for room in &mut rooms {
            room.restart(room.next());
        }
        assert_eq!(memory.used.load(Ordering::Relaxed), 0);
    }

    proptest! {
        #[test]
        fn pieces_cover_a_delivery_densely(
            sizes in prop::collection::vec(0_usize..EDGE_FRAME_OUT_BYTES_MAX, 1..20),
            hidden_after in 0_u64..5,
        ) {
            let events: Vec<Event> =
                sizes.iter().zip(3..).map(|(size, at)| app(at, *size)).collect();
            let last = 2 + events.len() as u64 + hidden_after;
            let chunks = cut(covered(1, last), events.clone());
            let mut next = offset(1);
            let mut all = Vec::new();
            for chunk in &chunks {
                prop_assert_eq!(chunk.from(), next);
                let bytes: usize = chunk.events.iter().map(weight).sum();
                prop_assert!(bytes <= EDGE_FRAME_OUT_BYTES_MAX || chunk.events.len() == 1);
                all.extend(chunk.events.iter().cloned());
                next = chunk.to().next();
            }
            prop_assert_eq!(next, offset(last + 1));
            prop_assert_eq!(all, events);
        }
    }
}
