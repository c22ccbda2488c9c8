//! Single calls: asked again until they are answered, as the advice of each refusal says.
//!
//! Every call that changes something carries a key or is idempotent by nature; that, and
//! nothing else, makes asking again safe.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::limits::ATTEMPT_WITHIN;
use everwire_core::{Advice, Code, Key, Random, Refusal};
use everwire_proto::refusal::from_status;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};
use tracing::debug;

use crate::backoff::Backoff;
use crate::config::TokenSource;
use crate::connection::{Connections, Lane};
use crate::route::{Aim, Pace, Route};

/// What a call needs besides its request. Clones share connections.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) connections: Arc<Connections>,
    pub(crate) token: Arc<dyn TokenSource>,
    pub(crate) random: Arc<dyn Random>,
    pub(crate) deadline: Duration,
}

/// An attempt that failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) refusal: Refusal,
    /// The connection failed, not the server: another address may do better.
    transport: bool,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Again, here.
    Here,
    /// Again, at another address.
    Elsewhere,
    /// Again, with a new token.
    Reauthenticate,
    /// Attach anew.
    Reattach,
    /// Nothing: it would be refused again.
    Stop,
}

impl Failure {
    /// A refusal that a server gave.
    pub(crate) fn refused(refusal: Refusal) -> Self {
        Self {
            refusal,
            transport: false,
        }
    }

    /// A connection that broke or kept silent.
    pub(crate) fn transport(message: impl Into<String>) -> Self {
        Self {
            refusal: Refusal::new(Code::Draining, message),
            transport: true,
        }
    }

    /// Somebody else leads by now than whoever this was sent to.
    pub(crate) fn superseded() -> Self {
        let message = "another node leads the session's shard by now";
        Self::refused(Refusal::new(Code::NotLeader, message))
    }

    /// From a gRPC status: one without our details was made on the way, not by a server.
    pub(crate) fn status(status: &Status) -> Self {
        let (mut refusal, transport) = (from_status(status), status.details().is_empty());
        if transport && refusal.code == Code::Internal {
            // A connection that breaks in the middle of an answer has no better gRPC status.
            refusal.code = Code::Draining;
        }
        Self { refusal, transport }
    }

    /// What to do, read off the advice.
    pub(crate) fn next(&self) -> Next {
        match self.refusal.advice() {
            Advice::Retry if self.transport => Next::Elsewhere,
            Advice::Retry => Next::Here,
            Advice::RetryElsewhere => Next::Elsewhere,
            Advice::Reauthenticate => Next::Reauthenticate,
            Advice::Reattach => Next::Reattach,
            Advice::Stop => Next::Stop,
        }
    }
}

/// The right to ask for one more token: once, until something went well.
#[derive(Default)]
pub(crate) struct SecondToken {
    used: Option<String>,
    asked: bool,
}

impl SecondToken {
    /// Notes the token of this attempt; refuses when it is the very one that was refused.
    pub(crate) fn note(&mut self, token: &str) -> bool {
        let same = self.asked && self.used.as_deref() == Some(token);
        self.used = Some(token.to_owned());
        !same
    }

    /// A token was refused: whether another may be asked for.
    pub(crate) fn refused(&mut self) -> bool {
        !std::mem::replace(&mut self.asked, true)
    }

    /// A token was taken.
    pub(crate) fn accepted(&mut self) {
        self.asked = false;
    }
}

impl Caller {
    /// A key that nobody else has.
    pub(crate) fn mint_key(&self) -> Key {
        let (high, low) = (self.random.next(), self.random.next());
        Key::parse(&format!("c{high:016x}{low:016x}")).expect("letters and digits, 33 of them")
    }

    /// Asks until there is an answer, a refusal for good, or no time left.
    pub(crate) async fn unary<M, R, F>(
        &self,
        lane: Lane,
        aim: Aim,
        message: M,
        call: impl Fn(Channel, Request<M>) -> F,
    ) -> Result<R, Refusal>
    where
        M: Clone,
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let until = Instant::now() + self.deadline;
        let mut route = Route::new(&self.connections, aim);
        let mut backoff = Backoff::new(Arc::clone(&self.random));
        let mut second = SecondToken::default();
        let mut last: Option<Refusal> = None;
        loop {
            let token = self.token.token().await?;
            if !second.note(&token)
                && let Some(refusal) = last
            {
                return Err(refusal);
            }
            let within = ATTEMPT_WITHIN.min(until.saturating_duration_since(Instant::now()));
            let mut request = with_token(message.clone(), &token)?;
            request.set_timeout(within);
            let address = route.choose(&self.connections, lane, &token);
            let attempt = call(self.connections.channel(address, lane)?, request);
            let attempt = tokio::time::timeout(within, attempt);
            let failure = tokio::select! {
                biased;
                answered = attempt => match answered {
                    Ok(Ok(response)) => {
                        route.answered(&self.connections);
                        return Ok(response.into_inner());
                    },
                    Ok(Err(status)) => Failure::status(&status),
                    Err(_elapsed) => {
                        Failure::transport(format!("{} gave no answer", route.address()))
                    },
                },
                () = route.in_vain(&self.connections) => Failure::superseded(),
            };
            debug!(address = %route.address(), refusal = %failure.refusal, "a call failed");
            let (mut pace, pause) = (route.failed(&self.connections, &failure), backoff.pause());
            match failure.next() {
                Next::Here | Next::Elsewhere => {},
                Next::Reauthenticate if second.refused() => pace = Pace::Now,
                Next::Reauthenticate | Next::Reattach | Next::Stop => return Err(failure.refusal),
            }
            let left = until.saturating_duration_since(Instant::now());
            let waiting = route.wait(&self.connections, pace, pause);
            if tokio::time::timeout(left, waiting).await.is_err() {
                return Err(failure.refusal);
            }
            last = Some(failure.refusal);
        }
    }
}

/// A request that carries the token.
pub(crate) fn with_token<M>(message: M, token: &str) -> Result<Request<M>, Refusal> {
    let value: Result<MetadataValue<Ascii>, _> = format!("Bearer {token}").parse();
    let bad = |_error| Refusal::new(Code::Unauthenticated, "the token cannot stand in a header");
    let mut value = value.map_err(bad)?;
    value.set_sensitive(true);
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", value);
    Ok(request)
}
