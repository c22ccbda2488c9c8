//! Heartbeats: what all groups have to say to one node goes in one message (RULES 36).
//!
//! openraft beats per group on a tick of each group's own. A beat goes at once, because a read may
//! wait for it, unless a message went less than [`BEATS_HELD`] ago: then all wait for that moment
//! together. So the messages to a node are bounded whatever the number of its groups.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::Clock;
use everwire_core::limits::{BEAT_WITHIN, BEATS_HELD};
use everwire_proto::internal_v1 as wire;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::links::{Line, Links};

/// How long beats wait for each other when nobody hears them anyway.
const BEATS_HELD_AWAY: Duration = Duration::from_millis(100);
/// Beats that wait for one node; each group has one under way.
const WAITING_MAX: usize = 8192;

type Answer = oneshot::Sender<wire::AppendResponse>;

struct Beat {
    request: wire::AppendRequest,
    answer: Answer,
}

/// The way of heartbeats to all nodes.
pub(crate) struct Beats {
    links: Arc<Links>,
    clock: Arc<dyn Clock>,
    queues: Mutex<BTreeMap<u64, mpsc::Sender<Beat>>>,
}

impl Beats {
    pub(crate) fn new(links: Arc<Links>, clock: Arc<dyn Clock>) -> Self {
        Self {
            links,
            clock,
            queues: Mutex::default(),
        }
    }

    /// Sends a beat with the next message to a node. `None`: no answer in time.
    pub(crate) async fn beat(
        &self,
        node: u64,
        request: wire::AppendRequest,
    ) -> Option<wire::AppendResponse> {
        let (answer, answered) = oneshot::channel();
        self.queue(node).try_send(Beat { request, answer }).ok()?;
        let answered = tokio::time::timeout(BEATS_HELD + BEAT_WITHIN, answered).await;
        answered.ok()?.ok()
    }

    fn queue(&self, node: u64) -> mpsc::Sender<Beat> {
        let mut queues = self
            .queues
            .lock()
            .expect("no panic happens under this lock");
        if let Some(queue) = queues.get(&node).filter(|queue| !queue.is_closed()) {
            return queue.clone();
        }
        let (queue, beats) = mpsc::channel(WAITING_MAX);
        tokio::spawn(carry(node, self.links.clone(), self.clock.clone(), beats));
        queues.insert(node, queue.clone());
        queue
    }
}

/// Collects and sends until nobody beats any more.
async fn carry(
    node: u64,
    links: Arc<Links>,
    clock: Arc<dyn Clock>,
    mut beats: mpsc::Receiver<Beat>,
) {
    let mut free_at = Instant::now();
    while let Some(first) = beats.recv().await {
        tokio::time::sleep_until(free_at).await;
        let silent = links.silent_for(node);
        let away = silent.is_none_or(|silent| silent > BEAT_WITHIN * 4);
        free_at = Instant::now() + if away { BEATS_HELD_AWAY } else { BEATS_HELD };
        let mut together = vec![first];
        while let Ok(next) = beats.try_recv() {
            together.push(next);
        }
        let (links, clock, now) = (links.clone(), clock.clone(), clock.now());
        // A node that keeps silent must not hold up the next message to it.
        tokio::spawn(async move {
            let (requests, answers): (Vec<_>, Vec<_>) = together
                .into_iter()
                .map(|beat| (beat.request, beat.answer))
                .unzip();
            let Some(mut client) = links.client(node, Line::Beat) else {
                return;
            };
            let message = wire::BeatRequest {
                beats: requests,
                time_ms: now.0,
            };
            let sent = tokio::time::timeout(BEAT_WITHIN, client.beat(message)).await;
            if let Ok(Ok(response)) = sent {
                let response = response.into_inner();
                links.heard(node);
                // Between the two looks at our clock, somewhere in the middle.
                let middle = u64::midpoint(now.0, clock.now().0);
                let ahead = i128::from(response.time_ms) - i128::from(middle);
                links.note_clock(node, i64::try_from(ahead).unwrap_or(i64::MAX));
                for (answer, told) in answers.into_iter().zip(response.answers) {
                    // The group stopped meanwhile.
                    let _ = answer.send(told);
                }
            }
        });
    }
}
