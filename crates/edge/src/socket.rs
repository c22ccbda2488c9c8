//! One WebSocket: a single task that hears, answers and sends.
//!
//! Answers and signs of life go ahead of events; events are fetched from rooms only when the
//! socket has room for them, so nothing piles up for a reader that is slow. The end of a socket
//! gives its seats back and does nothing else: what was asked before is carried out, and a signal
//! can only come from a frame that was read (architecture invariant 1).

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use everwire_core::{Code, Refusal, SessionName};
use everwire_proto::frame::{ServerFrame, Subprotocol, encode_server};
use tokio::time::{Instant, sleep_until};

use crate::board::{Board, Next, Posting};
use crate::encode::{Form, Viewer};
use crate::identity::Identity;
use crate::lanes::{Answer, Lanes};
use crate::metrics::Share;
use crate::shared::{Shared, SocketPlace};
use crate::timers::{Due, Timers};
use crate::wire::{Heard, Wire};

mod frames;

/// Answers that wait for one socket. Above it nothing more is read from it.
const CONTROL_BYTES_MAX: usize = 64 << 10;

/// Frames in a row that could not be read, before the socket is closed.
const BAD_FRAMES_MAX: u32 = 10;

/// Why a socket ends.
#[derive(Debug)]
enum End {
    /// The peer left.
    Gone,
    /// The peer has been silent for too long.
    Lost,
    /// The edge ends it, and says why.
    Bye(Refusal),
}

enum Event {
    Heard(Heard),
    Woken,
    Answered(Answer),
    Happened(Posting),
    Timer,
}

/// One WebSocket.
pub(crate) struct Socket {
    edge: Arc<Shared>,
    wire: Wire,
    subprotocol: Subprotocol,
    place: SocketPlace,
    identity: Option<Identity>,
    /// Frames that go ahead of events.
    control: VecDeque<Bytes>,
    control_bytes: usize,
    board: Board,
    lanes: Lanes,
    timers: Timers,
    bad_in_a_row: u32,
    /// What waits here, of all that waits on this edge.
    outbox: Share,
}

impl Socket {
    /// A socket after its handshake.
    pub(crate) fn new(edge: Arc<Shared>, wire: Wire, subprotocol: Subprotocol) -> Self {
        let timings = edge.timings;
        let lanes = Lanes::new(Arc::clone(&edge.hub.upstream), timings.request_within);
        Self {
            place: edge.enter(),
            board: Board::new(Arc::clone(&edge.hub)),
            outbox: Share::of(&edge.metrics.outbox),
            edge,
            wire,
            subprotocol,
            identity: None,
            control: VecDeque::new(),
            control_bytes: 0,
            lanes,
            timers: Timers::new(timings, Instant::now()),
            bad_in_a_row: 0,
        }
    }

    /// Serves the socket until it ends. Boxed, and its end apart: what is moved into a future
    /// counts again in it, and an idle socket must be small.
    pub(crate) async fn run(mut self: Box<Self>) {
        let end = self.serve().await;
        Box::pin(self.end(end)).await;
    }

    async fn serve(&mut self) -> End {
        let timer = sleep_until(self.look_again());
        tokio::pin!(timer);
        loop {
            self.fill();
            self.outbox.set(self.control_bytes + self.wire.waiting());
            let look = self.look_again();
            if look < timer.deadline() || timer.is_elapsed() {
                timer.as_mut().reset(look);
            }
            let form = self.form();
            let may_read = self.control_bytes < CONTROL_BYTES_MAX;
            let event = tokio::select! {
                heard = self.wire.heard(may_read) => Event::Heard(heard),
                () = self.place.wake().woken() => Event::Woken,
                answer = self.lanes.answered() => Event::Answered(answer),
                posting = self.board.happened(form) => Event::Happened(posting),
                () = timer.as_mut() => Event::Timer,
            };
            let handled = match event {
                Event::Heard(heard) => self.heard(heard),
                Event::Woken => self.woken(),
                Event::Answered(answer) => self.answered(answer),
                Event::Happened(posting) => self.happened(posting),
                Event::Timer => self.timer(),
            };
            if let Err(end) = handled {
                return end;
            }
        }
    }

    /// Gives the socket what it has room for: answers first, then events of each session in turn.
    fn fill(&mut self) {
        while self.wire.has_room() {
            let bytes = match self.control.pop_front() {
                Some(bytes) => {
                    self.control_bytes -= bytes.len();
                    bytes
                },
                None => match self.board.next() {
                    Next::Send(bytes) => bytes,
                    Next::Over(session, refusal) => {
                        self.refuse("", Some(session), refusal);
                        continue;
                    },
                    Next::Nothing => return,
                },
            };
            self.edge.metrics.frames.inc();
            let length = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            self.edge.metrics.bytes.inc_by(length);
            self.wire.say(bytes);
        }
    }

    fn heard(&mut self, heard: Heard) -> Result<(), End> {
        match heard {
            Heard::Room | Heard::Blocked => return Ok(()),
            Heard::Gone => return Err(End::Gone),
            Heard::Sound | Heard::Message(_) => self.timers.heard(Instant::now()),
            Heard::OtherKind | Heard::TooLarge | Heard::Unreadable(_) => {},
        }
        let refusal = match heard {
            Heard::Message(bytes) => return self.message(&bytes),
            Heard::TooLarge => Refusal::new(Code::TooLarge, "the frame is above the bound"),
            Heard::OtherKind => Refusal::new(
                Code::Malformed,
                "the frame is of the other kind than the subprotocol's",
            ),
            Heard::Unreadable(why) => Refusal::new(Code::Malformed, why),
            Heard::Room | Heard::Blocked | Heard::Gone | Heard::Sound => return Ok(()),
        };
        Err(End::Bye(refusal))
    }

    fn woken(&mut self) -> Result<(), End> {
        let (slots, orders) = self.place.wake().take();
        self.board.mark(slots);
        if orders.bye {
            let message = "this edge stops; connect to another";
            return Err(End::Bye(Refusal::new(Code::Draining, message)));
        }
        if let Some(within_ms) = orders.moving_ms {
            self.tell("", &ServerFrame::Moving { within_ms });
        }
        Ok(())
    }

    fn answered(&mut self, answer: Answer) -> Result<(), End> {
        if let Some(identity) = &self.identity {
            self.lanes.start(&identity.token);
        }
        match answer.result {
            Ok(frame) => self.tell(&answer.id, &frame),
            Err(refusal) => self.refuse(&answer.id, Some(answer.session), refusal),
        }
        Ok(())
    }

    fn happened(&mut self, posting: Posting) -> Result<(), End> {
        let Posting::Attached {
            id,
            session,
            result,
        } = posting
        else {
            return Ok(());
        };
        match result.and_then(|answer| self.may_still_read(&session).map(|()| answer)) {
            Ok(answer) => self.tell(&id, &ServerFrame::Attached { session, answer }),
            Err(refusal) => {
                self.board.detach(&session);
                self.refuse(&id, Some(session), refusal);
            },
        }
        Ok(())
    }

    fn timer(&mut self) -> Result<(), End> {
        let wall = self.edge.clock.now();
        let blocked = self.wire.blocked_since();
        while let Some(due) = self.timers.due(Instant::now(), wall, blocked) {
            match due {
                Due::Ping => self.wire.ping(),
                Due::Expiring => self.tell_expiring(),
                Due::Lost => return Err(End::Lost),
                Due::Slow => {
                    let message = "the connection took no bytes for too long";
                    return Err(End::Bye(Refusal::new(Code::SlowReader, message)));
                },
                Due::AuthLate => {
                    let message = "nobody authenticated in time";
                    return Err(End::Bye(Refusal::new(Code::Unauthenticated, message)));
                },
                Due::Expired => {
                    let message = "the token has expired";
                    return Err(End::Bye(Refusal::new(Code::TokenExpired, message)));
                },
            }
        }
        Ok(())
    }

    fn look_again(&self) -> Instant {
        let blocked = self.wire.blocked_since();
        self.timers
            .next(Instant::now(), self.edge.clock.now(), blocked)
    }

    fn form(&self) -> Form {
        let viewer = self.identity.as_ref().map(Identity::viewer);
        Form {
            encoding: self.subprotocol.into(),
            viewer: viewer.unwrap_or(Viewer::Public),
        }
    }

    /// Sends a frame ahead of events.
    fn tell(&mut self, id: &str, frame: &ServerFrame) {
        let bytes = encode_server(self.subprotocol, id, frame);
        self.control_bytes += bytes.len();
        self.control.push_back(bytes);
    }

    /// Refuses a request, or ends an attachment; the socket lives.
    fn refuse(&mut self, id: &str, session: Option<SessionName>, refusal: Refusal) {
        self.edge.metrics.refused(refusal.code);
        self.tell(id, &ServerFrame::Error { session, refusal });
    }

    /// Ends the socket: seats go back first, then the last words.
    async fn end(self: Box<Self>, end: End) {
        let Self {
            edge,
            wire,
            subprotocol,
            place,
            identity,
            control,
            board,
            lanes,
            ..
        } = *self;
        drop(board);
        if let (true, Some(identity)) = (lanes.pending() > 0, identity) {
            edge.finish(lanes, identity.token, wire.place());
        }
        let within = edge.timings.close_within;
        match end {
            End::Gone => wire.answer_goodbye(within).await,
            End::Lost => {
                edge.metrics.lost.inc();
                tracing::debug!("a socket was silent for too long");
            },
            End::Bye(refusal) => {
                edge.metrics.refused(refusal.code);
                if refusal.code == Code::SlowReader {
                    edge.metrics.slow.inc();
                }
                tracing::debug!(code = %refusal.code, "a socket is closed");
                let code = refusal.code;
                let mut last: Vec<Bytes> = control.into();
                let bye = ServerFrame::Bye { refusal };
                last.push(encode_server(subprotocol, "", &bye));
                wire.goodbye(last, code.close_code(), code.as_str(), within)
                    .await;
            },
        }
        drop(place);
    }
}
