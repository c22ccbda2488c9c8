//! What each frame of a client does.

use std::sync::Arc;

use bytes::Bytes;
use everwire_core::{Code, Cursor, Refusal, SessionName};
use everwire_proto::frame::{BadFrame, ClientFrame, ServerFrame, decode_client};
use everwire_proto::token::Bearer;

use super::{BAD_FRAMES_MAX, End, Socket};
use crate::attach::AttachRequest;
use crate::identity::Identity;
use crate::lanes::{Ask, Request, check_pending};
use crate::shared::millis;

impl Socket {
    /// A frame of the client.
    pub(super) fn message(&mut self, bytes: &Bytes) -> Result<(), End> {
        let (id, frame) = match decode_client(self.subprotocol, bytes) {
            Ok(read) => read,
            Err(bad) => return self.bad(bad),
        };
        self.bad_in_a_row = 0;
        let Some(identity) = &self.identity else {
            return self.first(&id, frame);
        };
        match frame {
            ClientFrame::Auth { .. } => {
                let message = "the socket is authenticated; a new token comes with refresh";
                self.refuse(&id, None, Refusal::new(Code::Malformed, message));
            },
            ClientFrame::Refresh { token } => self.refresh(&id, token),
            ClientFrame::Ping => self.tell(&id, &ServerFrame::Pong),
            ClientFrame::Attach {
                session,
                cursor,
                create,
            } => {
                let create = create.then(|| identity.token.clone());
                if let Err(refusal) = self.attach(&id, &session, cursor, create) {
                    self.refuse(&id, Some(session), refusal);
                }
            },
            ClientFrame::Detach { session } => self.detach(&session),
            ClientFrame::Publish {
                session,
                draft,
                key,
            } => self.ask(id, session, Ask::Post { draft, key }, bytes.len()),
            ClientFrame::Signal {
                session,
                pressed,
                key,
            } => {
                let key = Some(key);
                self.ask(id, session, Ask::Signal { pressed, key }, bytes.len());
            },
        }
        Ok(())
    }

    fn bad(&mut self, bad: BadFrame) -> Result<(), End> {
        self.bad_in_a_row += 1;
        if self.identity.is_none() || self.bad_in_a_row >= BAD_FRAMES_MAX {
            return Err(End::Bye(bad.refusal));
        }
        self.refuse(&bad.id, None, bad.refusal);
        Ok(())
    }

    /// The first frame authenticates, or there is no second one.
    fn first(&mut self, id: &str, frame: ClientFrame) -> Result<(), End> {
        let ClientFrame::Auth { token } = frame else {
            let message = "the first frame must be auth";
            return Err(End::Bye(Refusal::new(Code::Unauthenticated, message)));
        };
        let identity = self.edge.identify(token).map_err(End::Bye)?;
        self.edge.check_heard().map_err(End::Bye)?;
        self.welcome(id, identity);
        Ok(())
    }

    fn welcome(&mut self, id: &str, identity: Identity) {
        let timings = &self.edge.timings;
        let token_expires = identity.expires();
        let welcome = ServerFrame::Welcome {
            participant: identity.claims().participant.clone(),
            edge: self.edge.name.clone(),
            heartbeat_ms: millis(timings.heartbeat_every),
            lost_after_ms: millis(timings.lost_after),
            token_expires,
        };
        let now = self.edge.clock.now();
        self.timers.authenticated(token_expires, now);
        self.identity = Some(identity);
        self.tell(id, &welcome);
    }

    /// A new token for the same participant. What it no longer allows ends now.
    fn refresh(&mut self, id: &str, token: Bearer) {
        let renewed = self.edge.identify(token).and_then(|renewed| {
            if let Some(identity) = &self.identity {
                identity.may_become(&renewed)?;
            }
            Ok(renewed)
        });
        match renewed {
            Ok(renewed) => self.welcome(id, renewed),
            Err(refusal) => return self.refuse(id, None, refusal),
        }
        for session in self.board.sessions() {
            if let Err(refusal) = self.may_still_read(&session) {
                let asked = self.board.detach(&session);
                self.refuse(&asked.unwrap_or_default(), Some(session), refusal);
            }
        }
    }

    /// Whether the token at hand allows to read a session.
    pub(super) fn may_still_read(&self, session: &SessionName) -> Result<(), Refusal> {
        let now = self.edge.clock.now();
        match &self.identity {
            Some(identity) => identity.may_read(session, now).map(|_| ()),
            None => Err(Refusal::new(Code::Unauthenticated, "there is no token")),
        }
    }

    fn attach(
        &mut self,
        id: &str,
        session: &SessionName,
        cursor: Option<Cursor>,
        create: Option<Bearer>,
    ) -> Result<(), Refusal> {
        let Some(identity) = &self.identity else {
            return Err(Refusal::new(Code::Unauthenticated, "there is no token"));
        };
        let key = identity.may_read(session, self.edge.clock.now())?;
        check_pending(self.board.pending() + self.lanes.pending())?;
        // An attach of an attached session begins anew, from the new cursor.
        self.detach(session);
        let request = AttachRequest {
            key,
            cursor,
            create,
            wake: Arc::clone(self.place.wake()),
            slot: self.board.place()?,
        };
        self.board.attach(id.to_owned(), request);
        Ok(())
    }

    fn detach(&mut self, session: &SessionName) {
        if let Some(asked) = self.board.detach(session) {
            let message = "it was detached, or attached anew, before it was attached";
            let refusal = Refusal::new(Code::WrongState, message);
            self.refuse(&asked, Some(session.clone()), refusal);
        }
    }

    fn ask(&mut self, id: String, session: SessionName, ask: Ask, bytes: usize) {
        let Some(identity) = &self.identity else {
            return;
        };
        let request = Request {
            id: id.clone(),
            session: session.clone(),
            ask,
            bytes,
        };
        let taken = check_pending(self.board.pending() + self.lanes.pending())
            .and_then(|()| self.lanes.push(request, &identity.token));
        if let Err(refusal) = taken {
            self.refuse(&id, Some(session), refusal);
        }
    }

    /// Tells the client that its token ends soon.
    pub(super) fn tell_expiring(&mut self) {
        if let Some(identity) = &self.identity {
            let token_expires = identity.expires();
            self.tell("", &ServerFrame::Expiring { token_expires });
        }
    }
}
