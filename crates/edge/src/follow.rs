//! The one task of a room: follows the session at the nodes and feeds the room.
//!
//! A room follows from near the tail, not from its readers' cursors: whoever is further behind
//! reads the log in pages until it meets the room. So one reader of a long history never makes
//! the others wait for it.

use std::sync::Arc;

use everwire_client::SubscriberEvent;
use everwire_core::{Code, Cursor, Offset, Refusal};
use everwire_proto::frame::Covered;
use tokio::time::{Instant, sleep_until};

use crate::hub::Hub;
use crate::room::{Closing, Room, gone};
use crate::upstream::{Subscription, not_the_readers_fault};

/// How far before the tail a room begins: what readers who come back soon have missed.
const PREFILL_EVENTS: u64 = 1_024;

/// Opens the room, follows its session, closes the room.
pub(crate) async fn run(hub: Arc<Hub>, room: Arc<Room>, hint: Option<Offset>) {
    let session = &room.key().session;
    let closing = match open(&hub, &room, hint).await {
        Ok(subscription) => {
            tracing::debug!(%session, "a room opens");
            follow(&hub, &room, subscription).await
        },
        Err(closing) => closing,
    };
    tracing::debug!(%session, ?closing, "a room closes");
    room.close(closing);
    hub.forget(&room);
}

async fn open(
    hub: &Hub,
    room: &Room,
    hint: Option<Offset>,
) -> Result<Box<dyn Subscription>, Closing> {
    let read = hub.upstream.read(room.key(), None, Offset::ZERO, 1).await;
    let page = match read.map_err(not_the_readers_fault) {
        Ok(page) => page,
        Err(refusal) if refusal.code == Code::UnknownSession => return Err(Closing::NotFound),
        Err(refusal) => return Err(Closing::Refused(refusal)),
    };
    let before_earliest = page.from.previous();
    let near_tail = Offset::new(page.tail.get().saturating_sub(PREFILL_EVENTS));
    let start = before_earliest.max(near_tail.unwrap_or_default());
    let offset = match hint {
        // The first reader has seen more: nothing older is needed yet.
        Some(hint) => hint.clamp(start, page.tail.max(start)),
        None => start,
    };
    let cursor = Cursor {
        session_epoch: Some(page.session_epoch),
        offset,
    };
    Ok(hub.upstream.subscribe(room.key(), Some(cursor)))
}

async fn follow(hub: &Hub, room: &Arc<Room>, mut subscription: Box<dyn Subscription>) -> Closing {
    let timings = &hub.timings;
    let look_every = timings.room_idle.min(timings.upstream_lost_after) / 4;
    let mut look = Instant::now() + look_every;
    loop {
        let event = tokio::select! {
            event = subscription.next() => event,
            () = sleep_until(look) => {
                if hub.forget_if_empty(room) {
                    return Closing::NotFound;
                }
                if room.lost_for().is_some_and(|long| long > timings.upstream_lost_after) {
                    let message = "the edge has not reached the session's node for a while";
                    return Closing::Refused(Refusal::new(Code::Stale, message));
                }
                look = Instant::now() + look_every;
                continue;
            },
        };
        if matches!(event, SubscriberEvent::Disconnected { .. }) {
            hub.metrics.upstream_lost.inc();
        }
        if let Err(closing) = heard(room, event) {
            return closing;
        }
    }
}

fn heard(room: &Room, event: SubscriberEvent) -> Result<(), Closing> {
    match event {
        SubscriberEvent::Attached {
            session_epoch,
            from,
            tail,
        } => room.attached(session_epoch, from, tail),
        SubscriberEvent::Events {
            from,
            to,
            tail,
            events,
        } => {
            let delivery = Covered {
                from,
                to,
                tail,
                // It has just come through the log.
                leader_seen_ms: 0,
            };
            room.push(delivery, events)
        },
        SubscriberEvent::Alive { tail, leader_seen } => {
            room.alive(tail, leader_seen);
            Ok(())
        },
        SubscriberEvent::Disconnected { refusal } => {
            room.lost(not_the_readers_fault(refusal));
            Ok(())
        },
        SubscriberEvent::Gone {
            session_epoch,
            earliest,
            tail,
        } => Err(match session_epoch.or_else(|| room.session_epoch()) {
            Some(session_epoch) => Closing::Refused(gone(session_epoch, Some(earliest), tail)),
            None => Closing::NotFound,
        }),
        SubscriberEvent::NotFound => Err(Closing::NotFound),
        SubscriberEvent::Ended(refusal) => Err(Closing::Refused(not_the_readers_fault(refusal))),
    }
}
