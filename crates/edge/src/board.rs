//! The attachments of one socket: up to 256 sessions, served in turn.
//!
//! Comes in: attaches, detaches, marks of rooms, pages that were read. Goes out: the next bytes,
//! when the socket has room for them. At most one page is read or held at a time, so that
//! a socket with 256 sessions that are all far behind costs one page.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use everwire_client::BoxFuture;
use everwire_core::code::Details;
use everwire_core::limits::ATTACHMENTS_PER_SOCKET_MAX;
use everwire_core::{Code, Refusal, SessionName};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::attach::{AttachRequest, Attachment, attach};
use crate::encode::Form;
use crate::hub::Hub;
use crate::member::{Fetched, Member, Step};
use crate::wake::SlotSet;

/// What happened to an attachment.
pub(crate) enum Posting {
    /// An attach was decided. It has an attachment behind it only if it resumed.
    Attached {
        /// The client's name for the request.
        id: String,
        /// The session.
        session: SessionName,
        /// The answer.
        result: Result<everwire_proto::frame::AttachAnswer, Refusal>,
    },
    /// Something can be sent, or an attachment must be looked at.
    Ready,
}

/// What the board has for the socket.
pub(crate) enum Next {
    /// Bytes for the socket.
    Send(Bytes),
    /// An attachment is over; the client must be told.
    Over(SessionName, Refusal),
    /// Nothing for now.
    Nothing,
}

struct Slot {
    session: SessionName,
    /// Tells this attachment from an earlier one at the same place.
    number: u64,
    /// The id of the attach that is not decided yet.
    asked: Option<String>,
    member: Option<Box<Member>>,
}

struct Decided {
    slot: u8,
    number: u64,
    result: Result<Attachment, Refusal>,
}

struct Page {
    slot: u8,
    number: u64,
    result: Result<Fetched, Refusal>,
}

/// The attachments of one socket.
pub(crate) struct Board {
    hub: Arc<Hub>,
    slots: Vec<Option<Slot>>,
    /// Attachments that may have something.
    ready: SlotSet,
    /// Whose turn it is.
    turn: u8,
    next_number: u64,
    attaching: FuturesUnordered<BoxFuture<'static, Decided>>,
    reading: Option<BoxFuture<'static, Page>>,
    /// A page that was read, until the socket has room.
    page: Option<Page>,
}

impl Board {
    /// No attachments.
    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self {
            hub,
            slots: Vec::new(),
            ready: SlotSet::default(),
            turn: 0,
            next_number: 0,
            attaching: FuturesUnordered::new(),
            reading: None,
            page: None,
        }
    }

    /// Attaches that are not decided yet.
    pub(crate) fn pending(&self) -> usize {
        self.attaching.len()
    }

    /// The sessions that are attached or about to be.
    pub(crate) fn sessions(&self) -> Vec<SessionName> {
        let taken = self.slots.iter().flatten();
        taken.map(|slot| slot.session.clone()).collect()
    }

    /// Marks attachments that may have something.
    pub(crate) fn mark(&mut self, slots: SlotSet) {
        self.ready.merge(slots);
    }

    /// Finds a free place for a session; its earlier attachment must be gone.
    pub(crate) fn place(&mut self) -> Result<u8, Refusal> {
        let free = self.slots.iter().position(Option::is_none);
        let place = free.unwrap_or(self.slots.len());
        match u8::try_from(place) {
            Ok(slot) if place < ATTACHMENTS_PER_SOCKET_MAX => Ok(slot),
            _ => {
                let details = Details {
                    limit: u64::try_from(ATTACHMENTS_PER_SOCKET_MAX).ok(),
                    ..Details::default()
                };
                let message = "too many sessions are attached on this socket";
                Err(Refusal::with(Code::TooManyPending, message, details))
            },
        }
    }

    /// Begins an attach at the place that its request names.
    pub(crate) fn attach(&mut self, id: String, request: AttachRequest) {
        let (slot, number) = (request.slot, self.next_number);
        self.next_number += 1;
        let taken = Slot {
            session: request.key.session.clone(),
            number,
            asked: Some(id),
            member: None,
        };
        let place = usize::from(slot);
        if place >= self.slots.len() {
            self.slots.resize_with(place + 1, || None);
        }
        if let Some(free) = self.slots.get_mut(place) {
            *free = Some(taken);
        }
        let hub = Arc::clone(&self.hub);
        self.attaching.push(Box::pin(async move {
            Decided {
                slot,
                number,
                result: attach(hub, request).await,
            }
        }));
    }

    /// Ends the attachment of a session. Answers the id of an attach that was not decided yet.
    pub(crate) fn detach(&mut self, session: &SessionName) -> Option<String> {
        let is_it = |slot: &Option<Slot>| slot.as_ref().is_some_and(|one| one.session == *session);
        let place = self.slots.iter().position(is_it)?;
        self.slots.get_mut(place)?.take()?.asked
    }

    /// What happens next; waits for ever when nothing is under way. Cancel-safe.
    pub(crate) async fn happened(&mut self, form: Form) -> Posting {
        poll_fn(|cx| self.poll_happened(cx, form)).await
    }

    fn poll_happened(&mut self, cx: &mut Context<'_>, form: Form) -> Poll<Posting> {
        if let Some(reading) = &mut self.reading
            && let Poll::Ready(page) = reading.as_mut().poll(cx)
        {
            self.reading = None;
            self.page = Some(page);
            return Poll::Ready(Posting::Ready);
        }
        if self.attaching.is_empty() {
            return Poll::Pending;
        }
        let Poll::Ready(Some(decided)) = self.attaching.poll_next_unpin(cx) else {
            return Poll::Pending;
        };
        Poll::Ready(self.decide(decided, form))
    }

    fn decide(&mut self, decided: Decided, form: Form) -> Posting {
        let place = self.slots.get_mut(usize::from(decided.slot));
        // If the place is another attachment's by now, the seat goes with `decided`.
        let Some(taken) = place.filter(|slot| is(slot.as_ref(), decided.number)) else {
            return Posting::Ready;
        };
        let Some(slot) = taken else {
            return Posting::Ready;
        };
        let id = slot.asked.take().unwrap_or_default();
        let session = slot.session.clone();
        let result = decided.result.map(|attachment| {
            let answer = attachment.answer();
            if let Attachment::Resumed(seat, start) = attachment {
                slot.member = Some(Box::new(Member::new(seat, start, form)));
                self.ready.insert(decided.slot);
            }
            answer
        });
        if slot.member.is_none() {
            *taken = None;
        }
        Posting::Attached {
            id,
            session,
            result,
        }
    }

    /// The next bytes. To be called only when the socket has room for them.
    pub(crate) fn next(&mut self) -> Next {
        if let Some(next) = self.next_of_page() {
            return next;
        }
        while let Some(place) = self.ready.next_from(self.turn) {
            self.turn = place.wrapping_add(1);
            let slot = self.slots.get_mut(usize::from(place));
            let Some(member) = slot.and_then(|slot| slot.as_mut()?.member.as_mut()) else {
                self.ready.remove(place);
                continue;
            };
            // One page at a time: whoever needs another one asks again when it is through.
            match member.step(self.reading.is_none()) {
                Step::Send(bytes) => return Next::Send(bytes),
                Step::Wait => self.ready.remove(place),
                Step::Fetch(fetch) => {
                    self.ready.remove(place);
                    let number = self.number_at(place);
                    let hub = Arc::clone(&self.hub);
                    self.reading = Some(Box::pin(async move {
                        Page {
                            slot: place,
                            number,
                            result: fetch.run(hub).await,
                        }
                    }));
                },
                Step::Over(refusal) => {
                    if let Some(next) = self.end(place, refusal) {
                        return next;
                    }
                },
            }
        }
        Next::Nothing
    }

    fn next_of_page(&mut self) -> Option<Next> {
        let page = self.page.take()?;
        // Others may have waited for their turn to read.
        self.mark_all();
        let slot = self.slots.get_mut(usize::from(page.slot));
        let slot = slot.filter(|slot| is(slot.as_ref(), page.number))?;
        let member = slot.as_mut()?.member.as_mut()?;
        match page.result {
            Ok(fetched) => {
                member.fetched(&fetched);
                Some(Next::Send(fetched.bytes))
            },
            Err(refusal) => self.end(page.slot, refusal),
        }
    }

    fn mark_all(&mut self) {
        for (place, slot) in self.slots.iter().enumerate() {
            if let (Some(_), Ok(place)) = (slot, u8::try_from(place)) {
                self.ready.insert(place);
            }
        }
    }

    fn number_at(&self, place: u8) -> u64 {
        let slot = self.slots.get(usize::from(place)).and_then(Option::as_ref);
        slot.map_or(u64::MAX, |slot| slot.number)
    }

    fn end(&mut self, place: u8, refusal: Refusal) -> Option<Next> {
        self.ready.remove(place);
        let slot = self.slots.get_mut(usize::from(place))?.take()?;
        Some(Next::Over(slot.session, refusal))
    }
}

fn is(slot: Option<&Slot>, number: u64) -> bool {
    slot.is_some_and(|slot| slot.number == number)
}
