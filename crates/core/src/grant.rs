//! Who may do what: the claims of a verified token, and the one place that decides.
//!
//! Deny by default. Verifying the signature is `proto::token`'s business; this is pure.

use std::collections::BTreeSet;

use crate::clock::Timestamp;
use crate::code::{Code, Refusal};
use crate::event::{Author, ParticipantKind};
use crate::ids::{Namespace, ParticipantId, SessionName};

/// A right that a token gives on sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Capability {
    /// Make a session.
    Create,
    /// Read a session, live.
    Subscribe,
    /// Send inputs and application events.
    Publish,
    /// Start and claim runs, and write them.
    Run,
    /// Be offered queued runs.
    Serve,
    /// Send `cancel`.
    SignalCancel,
    /// Send `steer`.
    SignalSteer,
    /// Send `interrupt` (needs cancel and publish as well).
    SignalInterrupt,
    /// Send `pause`.
    SignalPause,
    /// Send `resume`.
    SignalResume,
    /// Send `approve`.
    SignalApprove,
    /// Send `deny` (needs approve as well).
    SignalDeny,
    /// Send `handoff`.
    SignalHandoff,
    /// Say and see who is there.
    Presence,
    /// Read from before the moment of attaching.
    History,
    /// Redact messages.
    Redact,
    /// Delete sessions, set retention.
    Admin,
    /// See and run the cluster.
    Operate,
    /// Edges only: hold shared subscriptions for others.
    Relay,
}

impl Capability {
    /// Every capability, in the order of the docs.
    pub const ALL: [Self; 19] = [
        Self::Create,
        Self::Subscribe,
        Self::Publish,
        Self::Run,
        Self::Serve,
        Self::SignalCancel,
        Self::SignalSteer,
        Self::SignalInterrupt,
        Self::SignalPause,
        Self::SignalResume,
        Self::SignalApprove,
        Self::SignalDeny,
        Self::SignalHandoff,
        Self::Presence,
        Self::History,
        Self::Redact,
        Self::Admin,
        Self::Operate,
        Self::Relay,
    ];

    /// The word in a token.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Subscribe => "subscribe",
            Self::Publish => "publish",
            Self::Run => "run",
            Self::Serve => "serve",
            Self::SignalCancel => "signal:cancel",
            Self::SignalSteer => "signal:steer",
            Self::SignalInterrupt => "signal:interrupt",
            Self::SignalPause => "signal:pause",
            Self::SignalResume => "signal:resume",
            Self::SignalApprove => "signal:approve",
            Self::SignalDeny => "signal:deny",
            Self::SignalHandoff => "signal:handoff",
            Self::Presence => "presence",
            Self::History => "history",
            Self::Redact => "redact",
            Self::Admin => "admin",
            Self::Operate => "operate",
            Self::Relay => "relay",
        }
    }

    /// The capability with this word.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|capability| capability.as_str() == text)
    }
}

/// Which sessions a rule is about: an exact name, a prefix ending in `*`, or `*`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pattern(String);

impl Pattern {
    /// Checks that a `*` stands only at the end and the rest could be a name's beginning.
    pub fn parse(text: &str) -> Result<Self, Refusal> {
        let stem = text.strip_suffix('*').unwrap_or(text);
        let is_stem = stem.is_empty() || SessionName::parse(stem).is_ok();
        if text.is_empty() || !is_stem {
            let message = "a session pattern is a name, a prefix ending in *, or *";
            return Err(Refusal::new(Code::Malformed, message));
        }
        Ok(Self(text.to_owned()))
    }

    /// The pattern as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it covers a session.
    pub fn covers(&self, session: &SessionName) -> bool {
        match self.0.strip_suffix('*') {
            Some(stem) => session.as_str().starts_with(stem),
            None => session.as_str() == self.0,
        }
    }
}

/// The claims of a verified token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claims {
    /// The tenant. For an edge with `relay` and namespace `*`, see [`Claims::for_namespace`].
    pub namespace: Option<Namespace>,
    /// Who it is.
    pub participant: ParticipantId,
    /// What kind of participant.
    pub kind: ParticipantKind,
    /// What it may do, per session pattern.
    pub allow: Vec<(Pattern, BTreeSet<Capability>)>,
    /// When it ends.
    pub expires: Timestamp,
}

impl Claims {
    /// Decides whether this token allows `capability` on `session` at `now`.
    /// The only place that does; gRPC and edge both ask here.
    pub fn allows(
        &self,
        capability: Capability,
        session: &SessionName,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        self.check_time(now)?;
        if self.has(capability, session) {
            return Ok(());
        }
        let message = format!("the token does not allow {} here", capability.as_str());
        Err(Refusal::new(Code::Denied, message))
    }

    /// Decides whether this token allows a capability that is not about one session.
    pub fn allows_anywhere(&self, capability: Capability, now: Timestamp) -> Result<(), Refusal> {
        self.check_time(now)?;
        let allowed = self.allow.iter().any(|(pattern, capabilities)| {
            pattern.as_str() == "*" && capabilities.contains(&capability)
        });
        if allowed {
            return Ok(());
        }
        let message = format!(
            "the token does not allow {} on all sessions",
            capability.as_str()
        );
        Err(Refusal::new(Code::Denied, message))
    }

    /// Whether a right stands in the token, its time aside.
    pub fn has(&self, capability: Capability, session: &SessionName) -> bool {
        self.allow.iter().any(|(pattern, capabilities)| {
            capabilities.contains(&capability) && pattern.covers(session)
        })
    }

    /// Refuses a token whose time is over.
    pub fn check_time(&self, now: Timestamp) -> Result<(), Refusal> {
        if now >= self.expires {
            return Err(Refusal::new(Code::TokenExpired, "the token has expired"));
        }
        Ok(())
    }

    /// The tenant that a call of this token is about. A token of one tenant names no other; an
    /// edge's token has none of its own and must name one.
    pub fn for_namespace(&self, asked: Option<&Namespace>) -> Result<Namespace, Refusal> {
        match (&self.namespace, asked) {
            (Some(own), None) => Ok(own.clone()),
            (Some(own), Some(asked)) if own == asked => Ok(own.clone()),
            (None, Some(asked)) if self.kind == ParticipantKind::Edge => Ok(asked.clone()),
            (None, None) if self.kind == ParticipantKind::Edge => Err(Refusal::new(
                Code::Malformed,
                "an edge must say for which namespace it asks",
            )),
            _ => Err(Refusal::new(
                Code::Denied,
                "the token is for another namespace",
            )),
        }
    }

    /// The author that the server stamps on what this token writes.
    pub fn author(&self) -> Author {
        Author {
            participant: self.participant.clone(),
            kind: self.kind,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(allow: &[(&str, &[Capability])]) -> Claims {
        Claims {
            namespace: Some(Namespace::parse("acme").unwrap()),
            participant: ParticipantId::parse("ann").unwrap(),
            kind: ParticipantKind::User,
            allow: allow
                .iter()
                .map(|(pattern, caps)| {
                    (
                        Pattern::parse(pattern).unwrap(),
                        caps.iter().copied().collect(),
                    )
                })
                .collect(),
            expires: Timestamp(1_000),
        }
    }

    fn session(name: &str) -> SessionName {
        SessionName::parse(name).unwrap()
    }

    #[test]
    fn nothing_is_allowed_that_is_not_written() {
        let claims = claims(&[
            ("chat-*", &[Capability::Subscribe]),
            ("own", &[Capability::Admin]),
        ]);
        let now = Timestamp(999);
        let code = |capability, name| {
            claims
                .allows(capability, &session(name), now)
                .err()
                .map(|refusal| refusal.code)
        };
        assert_eq!(code(Capability::Subscribe, "chat-1"), None);
        assert_eq!(code(Capability::Publish, "chat-1"), Some(Code::Denied));
        assert_eq!(code(Capability::Subscribe, "own"), Some(Code::Denied));
        assert_eq!(code(Capability::Admin, "own"), None);
        assert_eq!(code(Capability::Admin, "owner"), Some(Code::Denied));
        assert!(claims.allows_anywhere(Capability::Subscribe, now).is_err());
    }

    #[test]
    fn a_token_ends_at_its_time() {
        let claims = claims(&[("*", &[Capability::Subscribe])]);
        let at = |now| claims.allows(Capability::Subscribe, &session("a"), Timestamp(now));
        assert!(at(999).is_ok());
        assert_eq!(at(1_000).unwrap_err().code, Code::TokenExpired);
    }

    #[test]
    fn a_tenant_cannot_name_another() {
        let own = claims(&[]);
        let other = Namespace::parse("other").unwrap();
        assert_eq!(
            own.for_namespace(Some(&other)).unwrap_err().code,
            Code::Denied
        );
        assert_eq!(own.for_namespace(None).unwrap().as_str(), "acme");
        let no_edge = Claims {
            namespace: None,
            ..own
        };
        assert!(no_edge.for_namespace(Some(&other)).is_err());
        let edge = Claims {
            kind: ParticipantKind::Edge,
            ..no_edge
        };
        assert_eq!(edge.for_namespace(Some(&other)).unwrap(), other);
        assert_eq!(edge.for_namespace(None).unwrap_err().code, Code::Malformed);
    }

    #[test]
    fn patterns_hold_one_star_at_the_end() {
        for good in ["*", "a*", "a.b", "chat-*"] {
            assert!(Pattern::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "**", "*a", "a*b", "a b"] {
            assert!(Pattern::parse(bad).is_err(), "{bad}");
        }
    }
}
