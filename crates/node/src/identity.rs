//! Who calls, and what the token lets it do.
//!
//! Comes in: a call's metadata. Goes out: a [`Caller`] with verified claims, or a refusal
//! before anything of the request is read. Never: a token or its text in a message or a log.
//! What a claim allows is decided in `core::grant`; here is only who asks for what.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::grant::{Capability, Claims};
use everwire_core::{
    Clock, Code, Command, Namespace, Op, ParticipantKind, Refusal, SessionName, Timestamp,
};
use everwire_proto::token::{self, Verifier};
use tonic::metadata::MetadataMap;
use tonic::service::Interceptor;
use tonic::{Request, Status};

use crate::context::Context;

/// How often a stream looks at the wall clock for its token's end: a clock that jumps is
/// noticed within this.
const LOOK_AT_CLOCK_EVERY: Duration = Duration::from_secs(30);

/// The claims of the token in a call's metadata `authorization: Bearer …`, or why there are none.
pub(crate) fn caller(
    metadata: &MetadataMap,
    verifier: &Verifier,
    now: Timestamp,
) -> Result<Claims, Refusal> {
    let header = metadata
        .get("authorization")
        .map(|value| value.to_str())
        .transpose()
        .ok()
        .ok_or_else(|| Refusal::new(Code::Unauthenticated, "the token is not ASCII"))?;
    verifier.verify(token::from_header(header)?, now)
}

/// The verified side of a call. Put into the request by [`Gate`], taken by every service.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    claims: Arc<Claims>,
}

impl Caller {
    /// The claims behind it.
    pub(crate) fn claims(&self) -> &Claims {
        &self.claims
    }

    /// The tenant in which this caller may do `capability` to `session`. An edge speaks for
    /// nobody, so it is refused whatever its token lists.
    pub(crate) fn writer(
        &self,
        capability: Capability,
        session: &SessionName,
        now: Timestamp,
    ) -> Result<Namespace, Refusal> {
        if self.claims.kind == ParticipantKind::Edge {
            let message = "an edge writes nothing of its own: send the caller's token";
            return Err(Refusal::new(Code::Denied, message));
        }
        self.claims.allows(capability, session, now)?;
        self.claims.for_namespace(None)
    }

    /// The tenant whose `session` this caller may read: its own with `subscribe`, or for an edge
    /// with `relay` the one that it names.
    pub(crate) fn reader(
        &self,
        session: &SessionName,
        asked: Option<&Namespace>,
        now: Timestamp,
    ) -> Result<Namespace, Refusal> {
        let capability = match self.claims.kind {
            ParticipantKind::Edge => Capability::Relay,
            // The server itself has no token.
            ParticipantKind::User
            | ParticipantKind::Agent
            | ParticipantKind::Operator
            | ParticipantKind::Server => Capability::Subscribe,
        };
        self.claims.allows(capability, session, now)?;
        self.claims.for_namespace(asked)
    }

    /// A command of this caller: its identity and its right to create are stamped here.
    pub(crate) fn command(&self, namespace: Namespace, session: SessionName, op: Op) -> Command {
        Command {
            may_create: self.claims.has(Capability::Create, &session),
            namespace,
            session,
            actor: self.claims.author(),
            session_epoch: None,
            op,
        }
    }

    /// Resolves when the token's time is over. Long streams end with what it says.
    pub(crate) fn expiry(
        &self,
        clock: Arc<dyn Clock>,
    ) -> impl Future<Output = Refusal> + Send + use<> {
        let claims = Arc::clone(&self.claims);
        async move {
            loop {
                let now = clock.now();
                if let Err(refusal) = claims.check_time(now) {
                    return refusal;
                }
                let left = claims.expires.since(now);
                tokio::time::sleep(left.min(LOOK_AT_CLOCK_EVERY)).await;
            }
        }
    }
}

/// Stands in front of every service but health and reflection: no token, no service.
#[derive(Clone)]
pub(crate) struct Gate {
    context: Arc<Context>,
}

impl Gate {
    /// The gate of a node.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

impl Interceptor for Gate {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let admitted = self.context.check_serving().and_then(|()| {
            caller(
                request.metadata(),
                &self.context.verifier,
                self.context.clock.now(),
            )
        });
        let claims = admitted.map_err(|refusal| self.context.refuse(&refusal))?;
        request.extensions_mut().insert(Caller {
            claims: Arc::new(claims),
        });
        Ok(request)
    }
}

/// The caller that [`Gate`] put into a request.
pub(crate) fn of<T>(request: &Request<T>) -> Result<Caller, Refusal> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| Refusal::new(Code::Internal, "the call came past the gate"))
}
