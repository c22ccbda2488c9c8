//! One reader of one session: where it stands, and what it gets next.
//!
//! One loop for short and long absences: from the room's memory if that holds `next`, else one
//! page of the log, until it meets the room. A gap cannot be expressed: a frame moves `next`
//! exactly behind itself, and whoever hands out another one has a bug that ends this reader.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use everwire_client::Page;
use everwire_core::{Code, Offset, Refusal, SessionEpoch};
use everwire_proto::frame::Covered;
use tokio::time::sleep;

use crate::encode::{About, Form, encode};
use crate::hub::Hub;
use crate::room::{Pull, Seat, Start, gone};
use crate::upstream::{RoomKey, not_the_readers_fault};

/// How often a page is asked for again that the node does not have yet, and after what pause.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);

/// A reader of a session.
#[derive(Debug)]
pub(crate) struct Member {
    seat: Seat,
    session_epoch: SessionEpoch,
    /// The next offset that it has not been given.
    next: Offset,
    form: Form,
    /// Signs of life that it has passed on.
    alive: u64,
    /// A page is being read for it.
    fetching: bool,
}

/// What a reader gets next.
#[derive(Debug)]
pub(crate) enum Step {
    /// These bytes.
    Send(Bytes),
    /// This page of the log, when it is read: hand it to [`Member::fetched`].
    Fetch(Fetch),
    /// Nothing now; its room will wake it.
    Wait,
    /// Nothing more.
    Over(Refusal),
}

impl Member {
    /// A reader who starts at a place.
    pub(crate) fn new(seat: Seat, start: Start, form: Form) -> Self {
        Self {
            // The attach itself was the last sign of life.
            alive: seat.room().alive_count(),
            seat,
            session_epoch: start.session_epoch,
            next: start.from,
            form,
            fetching: false,
        }
    }

    /// What comes next. A page of the log only if `may_fetch`; else it waits and must be asked
    /// again.
    pub(crate) fn step(&mut self, may_fetch: bool) -> Step {
        if self.fetching {
            return Step::Wait;
        }
        match self.seat.room().pull(self.next, self.form, self.alive) {
            Pull::Frame(bytes, from, to) => {
                assert_eq!(from, self.next, "a frame begins where the reader stands");
                self.next = to.next();
                Step::Send(bytes)
            },
            Pull::Alive(bytes, alive) => {
                self.alive = alive;
                Step::Send(bytes)
            },
            Pull::Behind if !may_fetch => Step::Wait,
            Pull::Behind => {
                self.fetching = true;
                Step::Fetch(Fetch {
                    key: self.seat.room().key().clone(),
                    session_epoch: self.session_epoch,
                    next: self.next,
                    form: self.form,
                })
            },
            Pull::Wait => Step::Wait,
            Pull::Over(refusal) => Step::Over(refusal),
        }
    }

    /// Takes the page that it was waiting for.
    pub(crate) fn fetched(&mut self, fetched: &Fetched) {
        assert!(self.fetching, "a page was asked for");
        assert_eq!(
            fetched.from, self.next,
            "a page begins where the reader stands"
        );
        self.fetching = false;
        self.next = fetched.to.next();
    }
}

/// A page to be read for one reader.
#[derive(Clone, Debug)]
pub(crate) struct Fetch {
    key: RoomKey,
    session_epoch: SessionEpoch,
    next: Offset,
    form: Form,
}

/// A page that was read and encoded for one reader.
#[derive(Debug)]
pub(crate) struct Fetched {
    from: Offset,
    to: Offset,
    /// The frame.
    pub(crate) bytes: Bytes,
}

impl Fetch {
    /// Reads the page.
    pub(crate) async fn run(self, hub: Arc<Hub>) -> Result<Fetched, Refusal> {
        let _permit = hub.catch_ups.acquire().await;
        hub.metrics.catch_ups.inc();
        let epoch = Some(self.session_epoch);
        for attempt in 0..ATTEMPTS {
            sleep(PAUSE * attempt.min(5)).await;
            let read = hub.upstream.read(&self.key, epoch, self.next, 0).await;
            let page = read.map_err(not_the_readers_fault)?;
            if page.session_epoch != self.session_epoch {
                return Err(gone(page.session_epoch, None, page.tail));
            }
            if page.to >= page.from {
                return self.encode(&page);
            }
            // The room has seen more than this replica has applied.
        }
        let message = "the log that was read lags behind";
        Err(Refusal::new(Code::Stale, message))
    }

    fn encode(&self, page: &Page) -> Result<Fetched, Refusal> {
        if page.from != self.next {
            tracing::error!(from = %page.from, next = %self.next, "a page does not follow");
            let message = "the edge lost its place in the session";
            return Err(Refusal::new(Code::Internal, message));
        }
        let about = About {
            session: &self.key.session,
            session_epoch: self.session_epoch,
        };
        let range = Covered {
            from: page.from,
            to: page.to,
            tail: page.tail,
            leader_seen_ms: 0,
        };
        Ok(Fetched {
            from: page.from,
            to: page.to,
            bytes: encode(about, self.form, range, &page.events),
        })
    }
}
