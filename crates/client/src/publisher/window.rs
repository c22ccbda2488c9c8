//! What of a run was taken, sent and acked: pure bookkeeping, no network.
//!
//! ```text
//! acked ≤ … unacked (batches, the first `sent` of them sent on this stream) … ≤ queue (drafts)
//! ```
//! A batch keeps its bounds for ever, however often it is sent. So the un-acked ones that were
//! committed unheard are at most [`BATCHES_REMEMBERED`], and the server knows each one's place.

mod envelope;

use std::collections::VecDeque;

use everwire_core::event::Body;
use everwire_core::limits::{
    ACKS_PENDING_MAX, BATCH_BYTES_MAX, BATCH_EVENTS_MAX, BATCHES_REMEMBERED,
    GRPC_MESSAGE_BYTES_MAX, RUN_CREDIT_BYTES,
};
use everwire_core::{Code, Draft, Offset, Refusal, Seq};
use everwire_proto::v1;

use crate::answers::{Ack, AckRange};
use crate::call::{Failure, Next};
use envelope::envelope_bytes;

/// Encoded drafts of one batch, envelopes included: below what a decoder takes.
const BATCH_ENCODED_MAX: usize = GRPC_MESSAGE_BYTES_MAX - (16 << 10);

/// See the module.
pub(super) struct Window {
    /// The seq of the next draft that is taken.
    next_seq: Seq,
    /// Taken, in no batch yet; `queue_bytes` is their payload.
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    /// Batches in order; leave at the front when acked. `unacked_bytes` is their payload.
    unacked: VecDeque<Batch>,
    unacked_bytes: usize,
    /// How many of `unacked`, from the front, were sent on this stream.
    sent: usize,
    /// Last seqs of the batches on this stream that have no answer yet, in order.
    flight: VecDeque<Seq>,
    /// Payload that may still be sent on this stream; below zero when overdrawn.
    credit: i64,
    /// What the stream was opened with: the bound of everything taken and not acked.
    granted: usize,
    /// A batch was refused: nothing is sent until all sent ones are answered, then from the
    /// front again.
    going_back: bool,
    /// A batch was refused since the last progress on this stream: answers may be late ones.
    doubt: bool,
    /// Gaps since the last progress: the first is gone back from at once.
    gaps: u32,
    acked: Ack,
    /// For whoever reads acks; `None` while nobody does. The newest reader is served.
    acks: Option<VecDeque<AckRange>>,
    reader: u64,
    /// The node said that the run is over: it ends here once all that was sent is answered.
    told: Option<Refusal>,
    refused: Option<Refusal>,
}

struct Queued {
    draft: v1::Draft,
    payload: usize,
    encoded: usize,
    /// Ends the run: must be the last of its batch.
    ends_run: bool,
}

struct Batch {
    wire: v1::PublishBatch,
    last_seq: Seq,
    payload: usize,
}

/// What follows from a refused batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Send again from the front, without a pause or after one.
    GoBack { pause: bool },
    /// Open the stream anew.
    Reconnect,
    /// The run takes no more from this writer; it is noted.
    Over,
}

impl Window {
    pub(super) fn new(from_seq: Seq) -> Self {
        let from_seq = from_seq.max(Seq::FIRST);
        Self {
            next_seq: from_seq,
            queue: VecDeque::new(),
            queue_bytes: 0,
            unacked: VecDeque::new(),
            unacked_bytes: 0,
            sent: 0,
            flight: VecDeque::new(),
            credit: 0,
            granted: usize::try_from(RUN_CREDIT_BYTES).unwrap_or(usize::MAX),
            going_back: false,
            doubt: false,
            gaps: 0,
            acked: Ack {
                seq: Seq(from_seq.0 - 1),
                offset: Offset::ZERO,
            },
            acks: None,
            reader: 0,
            told: None,
            refused: None,
        }
    }

    // === For those who send ===

    /// What was taken and is not acked, in order. Of a window that was refused none of it is
    /// committed: what had been sent was answered first.
    pub(super) fn left(&self) -> Vec<Draft> {
        let sent = self.unacked.iter().flat_map(|batch| &batch.wire.drafts);
        let waiting = self.queue.iter().map(|queued| &queued.draft);
        let drafts = sent.chain(waiting).cloned();
        // They are words of `core` that were written here.
        drafts.filter_map(|draft| draft.try_into().ok()).collect()
    }

    /// Whether drafts are taken now. Whatever is taken at once may overdraw the window.
    pub(super) fn has_room(&self) -> bool {
        let acks = self.acks.as_ref().map_or(0, VecDeque::len);
        self.queue_bytes + self.unacked_bytes < self.granted
            && self.queue.len() < BATCH_EVENTS_MAX
            && acks < ACKS_PENDING_MAX
    }

    /// Takes drafts; answers the seq of the last one taken so far.
    pub(super) fn take(&mut self, drafts: &[Draft]) -> Seq {
        for draft in drafts {
            let payload = draft.payload_bytes();
            self.queue.push_back(Queued {
                draft: v1::Draft::from(draft),
                payload,
                encoded: payload + envelope_bytes(draft),
                ends_run: matches!(draft.body, Body::RunCompleted | Body::RunFailed { .. }),
            });
            self.queue_bytes += payload;
            self.next_seq = self.next_seq.next();
        }
        self.last_taken()
    }

    pub(super) fn last_taken(&self) -> Seq {
        Seq(self.next_seq.0 - 1)
    }

    pub(super) fn acked(&self) -> Ack {
        self.acked
    }

    pub(super) fn refused(&self) -> Option<&Refusal> {
        self.refused.as_ref()
    }

    /// From now on stretches are kept for a new reader, instead of an earlier one.
    pub(super) fn keep_acks(&mut self) -> u64 {
        self.acks = Some(VecDeque::new());
        self.reader += 1;
        self.reader
    }

    /// A reader left.
    pub(super) fn drop_acks(&mut self, reader: u64) {
        if self.reader == reader {
            self.acks = None;
        }
    }

    /// The next stretch for this reader, if there is one; `None` when it is not served any more.
    pub(super) fn next_ack(&mut self, reader: u64) -> Option<Option<AckRange>> {
        let acks = self.acks.as_mut().filter(|_| self.reader == reader)?;
        Some(acks.pop_front())
    }

    // === For the stream ===

    /// A stream is open: everything un-acked is sent on it, from the front.
    pub(super) fn opened(&mut self, credit_bytes: u32) {
        self.sent = 0;
        self.flight.clear();
        self.going_back = false;
        self.doubt = false;
        self.told = None;
        self.credit = i64::from(credit_bytes);
        self.granted = usize::try_from(credit_bytes).unwrap_or(usize::MAX).max(1);
    }

    /// The node says that the run takes nothing new.
    pub(super) fn tell_over(&mut self, refusal: Refusal) {
        self.told = Some(refusal);
    }

    /// Why nothing more goes out on this stream, if the node said so and nothing is in doubt:
    /// what was sent before may have been committed, and is sent again to learn that.
    pub(super) fn take_over(&mut self) -> Option<Refusal> {
        if !self.unacked.is_empty() {
            return None;
        }
        self.told.take()
    }

    /// Whether answers are due.
    pub(super) fn waits_for_answers(&self) -> bool {
        !self.flight.is_empty()
    }

    /// Whether a batch may be sent now. The credit may be overdrawn by one batch, so one may
    /// always be under way.
    pub(super) fn may_send(&self) -> bool {
        let credit = self.credit > 0 || self.flight.is_empty();
        let again = self.sent < self.unacked.len();
        let remembered = usize::try_from(BATCHES_REMEMBERED).unwrap_or(usize::MAX);
        let new = !self.queue.is_empty() && self.unacked.len() < remembered;
        self.refused.is_none() && !self.going_back && credit && (again || new)
    }

    /// The next batch to send, if [`Window::may_send`].
    pub(super) fn next_batch(&mut self) -> Option<v1::PublishBatch> {
        if !self.may_send() {
            return None;
        }
        if self.sent == self.unacked.len() {
            let batch = self.coalesce();
            self.unacked_bytes += batch.payload;
            self.unacked.push_back(batch);
        }
        let batch = self.unacked.get(self.sent)?;
        self.sent += 1;
        self.flight.push_back(batch.last_seq);
        self.credit -= i64::try_from(batch.payload).unwrap_or(i64::MAX);
        Some(batch.wire.clone())
    }

    /// One batch of what is ready, as much as fits.
    fn coalesce(&mut self) -> Batch {
        let waiting = u64::try_from(self.queue.len()).unwrap_or(u64::MAX);
        let first_seq = self.next_seq.0.saturating_sub(waiting);
        let (mut payload, mut encoded) = (0, 0);
        let mut drafts = Vec::new();
        while let Some(next) = self.queue.front() {
            let fits = payload + next.payload <= BATCH_BYTES_MAX
                && encoded + next.encoded <= BATCH_ENCODED_MAX
                && drafts.len() < BATCH_EVENTS_MAX;
            if !fits && !drafts.is_empty() {
                break;
            }
            let Some(next) = self.queue.pop_front() else {
                break;
            };
            payload += next.payload;
            encoded += next.encoded;
            drafts.push(next.draft);
            if next.ends_run {
                break;
            }
        }
        self.queue_bytes -= payload;
        let count = u64::try_from(drafts.len()).unwrap_or(u64::MAX);
        Batch {
            wire: v1::PublishBatch { first_seq, drafts },
            last_seq: Seq(first_seq + count - 1),
            payload,
        }
    }

    /// A cumulative ack; answers whether it brought anything new.
    pub(super) fn ack(&mut self, through: Ack, credit_bytes: u32, ranges: &[AckRange]) -> bool {
        self.credit = self.credit.saturating_add(i64::from(credit_bytes));
        let skips = |range: &AckRange| range.first_seq > self.acked.seq.next();
        if self.doubt && !self.going_back && ranges.first().is_some_and(skips) {
            // Said before the refused batch was sent again; its own answer is still to come.
            return false;
        }
        while self.flight.front().is_some_and(|last| *last <= through.seq) {
            self.flight.pop_front();
        }
        // Behind a refused batch an ack can only mean that the refused one had been committed
        // before, unheard. Where it stands was not said: it is sent again to learn that.
        let progress = !self.going_back && self.advance(through, ranges);
        self.settle();
        progress
    }

    fn advance(&mut self, through: Ack, ranges: &[AckRange]) -> bool {
        // Nothing that was not sent can be acked: an old duplicate's answer may say more.
        let sent = self
            .unacked
            .back()
            .map_or(self.acked.seq, |batch| batch.last_seq);
        let seq = through.seq.min(sent);
        if seq <= self.acked.seq {
            return false;
        }
        for range in ranges {
            self.keep_range(*range);
        }
        let covers = |range: &&AckRange| range.first_seq <= seq && seq <= range.last_seq;
        let offset = ranges.iter().find(covers).map_or(through.offset, |range| {
            range.first_offset.plus(seq.0 - range.first_seq.0)
        });
        self.acked = Ack { seq, offset };
        self.doubt = false;
        self.gaps = 0;
        while self
            .unacked
            .front()
            .is_some_and(|batch| batch.last_seq <= seq)
        {
            let Some(batch) = self.unacked.pop_front() else {
                break;
            };
            self.unacked_bytes -= batch.payload;
            self.sent = self.sent.saturating_sub(1);
        }
        true
    }

    /// Keeps what of a stretch is new for the reader of acks: each seq is told once.
    fn keep_range(&mut self, mut range: AckRange) {
        let Some(acks) = &mut self.acks else { return };
        let told = acks
            .back()
            .map_or(self.acked.seq, |last| last.last_seq.max(self.acked.seq));
        if range.last_seq <= told {
            return;
        }
        if range.first_seq <= told {
            let known = told.0 + 1 - range.first_seq.0;
            range.first_seq = told.next();
            range.first_offset = range.first_offset.plus(known);
        }
        match acks.back_mut() {
            Some(last) if follows(last, &range) => last.last_seq = range.last_seq,
            _ => acks.push_back(range),
        }
    }

    /// A batch was refused, or, without one, the stream as such.
    pub(super) fn refuse(
        &mut self,
        first_seq: Seq,
        refusal: Refusal,
        credit_bytes: u32,
    ) -> Verdict {
        self.credit = self.credit.saturating_add(i64::from(credit_bytes));
        while self.flight.front().is_some_and(|last| *last < first_seq) {
            self.flight.pop_front();
        }
        self.flight.pop_front();
        let next = Failure::refused(refusal.clone()).next();
        let over = match next {
            // GONE: the session was deleted; what was granted there is void.
            Next::Stop | Next::Reattach => true,
            Next::Here => self.hopeless(&refusal),
            Next::Elsewhere | Next::Reauthenticate => false,
        };
        if over {
            self.end(refusal);
            return Verdict::Over;
        }
        if next != Next::Here {
            return Verdict::Reconnect;
        }
        // What was sent behind it is refused as a gap; only the first refusal asks for a pause.
        let first = !std::mem::replace(&mut self.going_back, true);
        let pause = first && (refusal.code != Code::SeqGap || self.gaps > 0);
        if first && refusal.code == Code::SeqGap {
            self.gaps += 1;
        }
        self.doubt = true;
        self.settle();
        Verdict::GoBack { pause }
    }

    /// Refusals that asking again cannot heal, although their code says to.
    fn hopeless(&self, refusal: &Refusal) -> bool {
        match refusal.code {
            // The server wants what was acked or never was ours: nothing here can fill it.
            Code::SeqGap => {
                let expected = refusal.details.expected_seq;
                expected.is_some_and(|expected| expected <= self.acked.seq)
            },
            // Only this run can close its open parts, and what would do it stands behind.
            Code::TooManyPending => true,
            _ => false,
        }
    }

    /// Nothing more goes out.
    pub(super) fn end(&mut self, refusal: Refusal) {
        let details = &refusal.details;
        if let (Some(seq), Some(offset)) = (details.last_seq, details.last_offset) {
            // STALE_EPOCH says how far this writer came.
            self.advance(Ack { seq, offset }, &[]);
        }
        self.refused.get_or_insert(refusal);
    }

    /// All sent batches are answered: go on from the front.
    fn settle(&mut self) {
        if self.going_back && self.flight.is_empty() {
            self.going_back = false;
            self.sent = 0;
        }
    }
}

fn follows(last: &AckRange, range: &AckRange) -> bool {
    let length = last.last_seq.0 - last.first_seq.0 + 1;
    range.first_seq == last.last_seq.next()
        && range.first_offset.get() == last.first_offset.get() + length
        && range.duplicate == last.duplicate
}

#[cfg(test)]
mod tests {
    use super::envelope::ENVELOPE_BYTES;
    use super::*;

    fn draft(bytes: usize) -> Draft {
        let name = "x".repeat(bytes);
        Draft::new(Body::App { name, data: None })
    }

    /// A window with this many batches of one draft under way.
    fn sent(batches: usize) -> Window {
        let mut window = Window::new(Seq::FIRST);
        window.opened(1 << 20);
        let _reader = window.keep_acks();
        for _ in 0..batches {
            window.take(&[draft(10)]);
            assert!(window.next_batch().is_some());
        }
        window
    }

    fn ack(window: &mut Window, seq: u64, offset: u64) -> bool {
        let offset = Offset::new(offset).unwrap();
        let range = AckRange {
            first_seq: Seq(seq),
            last_seq: Seq(seq),
            first_offset: offset,
            duplicate: false,
        };
        window.ack(
            Ack {
                seq: Seq(seq),
                offset,
            },
            10,
            &[range],
        )
    }

    fn told(window: &mut Window) -> Vec<u64> {
        let next = || window.next_ack(1).flatten();
        std::iter::from_fn(next)
            .flat_map(|range| range.first_seq.0..=range.last_seq.0)
            .collect()
    }

    #[test]
    fn a_refused_batch_that_was_there_already_is_still_told_its_place() {
        let mut window = sent(2);
        let refusal = Refusal::new(Code::Overloaded, "busy");
        let verdict = window.refuse(Seq(1), refusal, 10);
        assert_eq!(verdict, Verdict::GoBack { pause: true });
        assert!(!window.may_send(), "the second batch has no answer yet");
        // Its ack says that both are committed, and where the second stands; then says so again.
        assert!(!ack(&mut window, 2, 12));
        assert_eq!(window.next_batch().unwrap().first_seq, 1);
        assert!(!ack(&mut window, 2, 12));
        assert!(told(&mut window).is_empty());
        assert!(ack(&mut window, 1, 11));
        assert_eq!(window.next_batch().unwrap().first_seq, 2);
        assert!(ack(&mut window, 2, 12));
        assert_eq!(told(&mut window), [1, 2]);
    }

    #[test]
    fn only_the_first_refusal_of_a_round_asks_for_a_pause() {
        let mut window = sent(3);
        let details = everwire_core::Details {
            expected_seq: Some(Seq(1)),
            ..everwire_core::Details::default()
        };
        let gap = || Refusal::with(Code::SeqGap, "a gap", details.clone());
        let busy = Refusal::new(Code::Quota, "enough");
        assert_eq!(
            window.refuse(Seq(1), busy, 10),
            Verdict::GoBack { pause: true }
        );
        assert_eq!(
            window.refuse(Seq(2), gap(), 10),
            Verdict::GoBack { pause: false }
        );
        assert_eq!(
            window.refuse(Seq(3), gap(), 10),
            Verdict::GoBack { pause: false }
        );
        assert!(window.may_send(), "all are answered");
    }

    #[test]
    fn a_gap_is_gone_back_from_at_once_but_not_for_ever() {
        let mut window = sent(1);
        let details = everwire_core::Details {
            expected_seq: Some(Seq(1)),
            ..everwire_core::Details::default()
        };
        let gap = Refusal::with(Code::SeqGap, "a gap", details);
        for pause in [false, true, true] {
            assert_eq!(
                window.refuse(Seq(1), gap.clone(), 0),
                Verdict::GoBack { pause }
            );
            assert!(window.next_batch().is_some());
        }
    }

    #[test]
    fn batches_keep_every_bound_and_end_with_the_run() {
        let mut window = Window::new(Seq::FIRST);
        window.opened(1 << 20);
        let long = "n".repeat(128);
        let message = everwire_core::MessageId::parse(&long).unwrap();
        let part = everwire_core::PartId::parse(&long).unwrap();
        let small = Draft::new(Body::PartEnd {
            message,
            part,
            data: None,
        });
        window.take(&vec![small; 5000]);
        window.take(&[draft(10), Draft::new(Body::RunCompleted), draft(10)]);
        window.take(&[draft(200 << 10), draft(200 << 10)]);
        let mut counts = Vec::new();
        while let Some(batch) = window.next_batch() {
            counts.push(batch.drafts.len());
        }
        let fits = BATCH_ENCODED_MAX / (ENVELOPE_BYTES + 256);
        assert_eq!(counts, [fits, fits, fits, 5002 - 3 * fits, 2, 1]);
    }

    #[test]
    fn a_writer_whose_epoch_is_over_learns_how_far_it_came() {
        let mut window = sent(3);
        let details = everwire_core::Details {
            last_seq: Some(Seq(2)),
            last_offset: Offset::new(7),
            ..everwire_core::Details::default()
        };
        let stale = Refusal::with(Code::StaleEpoch, "another writer", details);
        assert_eq!(window.refuse(Seq(1), stale, 10), Verdict::Over);
        assert_eq!(window.acked().seq, Seq(2));
        assert_eq!(window.acked().offset.get(), 7);
    }

    #[test]
    fn a_bound_of_open_parts_is_no_reason_to_ask_for_ever() {
        let mut window = sent(1);
        let full = Refusal::new(Code::TooManyPending, "64 open parts");
        assert_eq!(window.refuse(Seq(1), full, 10), Verdict::Over);
    }
}
