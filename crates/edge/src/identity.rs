//! Who speaks on a connection: a verified token, and when it ends.
//!
//! What a token allows is decided by `core::grant`; here it is only asked.

use everwire_core::event::ParticipantKind;
use everwire_core::grant::{Capability, Claims};
use everwire_core::{Clock, Code, Namespace, Refusal, SessionName, Timestamp};
use everwire_proto::token::{Bearer, Verifier};

use crate::encode::Viewer;
use crate::upstream::RoomKey;

/// A verified caller.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    namespace: Namespace,
    claims: Claims,
    /// The token itself: what this caller writes goes to the nodes with it.
    pub(crate) token: Bearer,
}

impl Identity {
    /// Verifies a token. An edge's token speaks for no one and opens nothing here.
    pub(crate) fn verify(
        verifier: &Verifier,
        clock: &dyn Clock,
        token: Bearer,
    ) -> Result<Self, Refusal> {
        let claims = verifier.verify(token.as_str(), clock.now())?;
        if claims.kind == ParticipantKind::Edge {
            let message = "an edge's token is for nodes, not for edges";
            return Err(Refusal::new(Code::Denied, message));
        }
        Ok(Self {
            namespace: claims.for_namespace(None)?,
            claims,
            token,
        })
    }

    /// What the token says.
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// Which events this caller sees.
    pub(crate) fn viewer(&self) -> Viewer {
        Viewer::of(self.claims.kind)
    }

    /// When the token ends.
    pub(crate) fn expires(&self) -> Timestamp {
        self.claims.expires
    }

    /// The session as this caller's tenant has it, if the caller may read it now.
    pub(crate) fn may_read(
        &self,
        session: &SessionName,
        now: Timestamp,
    ) -> Result<RoomKey, Refusal> {
        self.claims.allows(Capability::Subscribe, session, now)?;
        Ok(RoomKey {
            namespace: self.namespace.clone(),
            session: session.clone(),
        })
    }

    /// Whether another token may take this one's place on a socket.
    pub(crate) fn may_become(&self, other: &Self) -> Result<(), Refusal> {
        let same = self.namespace == other.namespace
            && self.claims.participant == other.claims.participant
            && self.claims.kind == other.claims.kind;
        if same {
            return Ok(());
        }
        let message = "the new token is for another namespace, participant or kind";
        Err(Refusal::new(Code::Denied, message))
    }
}
