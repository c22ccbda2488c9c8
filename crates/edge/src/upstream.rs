//! What an edge needs of the nodes, as a trait: [`Client`] in life, a fake in tests.
//!
//! Shared reading goes with the edge's own token and names the namespace; whatever a person
//! writes goes with that person's token, which the node checks again.

use std::time::Duration;

use everwire_client::{
    BoxFuture, Client, Created, Page, Posted, Signalled, SubscribeOptions, Subscriber,
    SubscriberEvent,
};
use everwire_core::{
    Code, Cursor, Draft, Key, Namespace, Offset, Refusal, SessionEpoch, SessionName,
};
use everwire_proto::signal::Pressed;
use everwire_proto::token::Bearer;

/// Which session, of which tenant. The namespace comes from a verified token.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RoomKey {
    /// The tenant.
    pub namespace: Namespace,
    /// The session.
    pub session: SessionName,
}

/// The nodes, as an edge sees them.
pub trait Upstream: Send + Sync + 'static {
    /// How long ago any node was heard of; `None` before the first answer.
    fn heard_ago(&self) -> Option<Duration>;

    /// Follows a session with the edge's own token.
    fn subscribe(&self, key: &RoomKey, cursor: Option<Cursor>) -> Box<dyn Subscription>;

    /// One page of committed events, with the edge's own token; `limit` 0 means as many as fit.
    fn read<'a>(
        &'a self,
        key: &'a RoomKey,
        session_epoch: Option<SessionEpoch>,
        from: Offset,
        limit: u32,
    ) -> BoxFuture<'a, Result<Page, Refusal>>;

    /// Makes a session, if its caller may.
    fn create<'a>(
        &'a self,
        token: &'a Bearer,
        session: &'a SessionName,
    ) -> BoxFuture<'a, Result<Created, Refusal>>;

    /// Sends an input or an application event of its caller.
    fn post<'a>(
        &'a self,
        token: &'a Bearer,
        session: &'a SessionName,
        draft: Draft,
        key: Option<Key>,
    ) -> BoxFuture<'a, Result<Posted, Refusal>>;

    /// Sends a signal of its caller.
    fn signal<'a>(
        &'a self,
        token: &'a Bearer,
        session: &'a SessionName,
        pressed: &'a Pressed,
        key: Option<Key>,
    ) -> BoxFuture<'a, Result<Signalled, Refusal>>;
}

/// A session that is being followed. Dropping it ends the reading and nothing else.
pub trait Subscription: Send {
    /// What comes next. Cancel-safe.
    fn next(&mut self) -> BoxFuture<'_, SubscriberEvent>;
}

impl Subscription for Subscriber {
    fn next(&mut self) -> BoxFuture<'_, SubscriberEvent> {
        Box::pin(Self::next(self))
    }
}

impl Upstream for Client {
    fn heard_ago(&self) -> Option<Duration> {
        Self::heard_ago(self)
    }

    fn subscribe(&self, key: &RoomKey, cursor: Option<Cursor>) -> Box<dyn Subscription> {
        let options = SubscribeOptions {
            cursor,
            namespace: Some(key.namespace.clone()),
            ..SubscribeOptions::default()
        };
        Box::new(Self::subscribe(self, &key.session, options))
    }

    fn read<'a>(
        &'a self,
        key: &'a RoomKey,
        session_epoch: Option<SessionEpoch>,
        from: Offset,
        limit: u32,
    ) -> BoxFuture<'a, Result<Page, Refusal>> {
        let namespace = Some(key.namespace.clone());
        Box::pin(Self::read(
            self,
            &key.session,
            session_epoch,
            from,
            limit,
            namespace,
        ))
    }

    fn create<'a>(
        &'a self,
        token: &'a Bearer,
        session: &'a SessionName,
    ) -> BoxFuture<'a, Result<Created, Refusal>> {
        Box::pin(async move { caller(self, token).create_session(session).await })
    }

    fn post<'a>(
        &'a self,
        token: &'a Bearer,
        session: &'a SessionName,
        draft: Draft,
        key: Option<Key>,
    ) -> BoxFuture<'a, Result<Posted, Refusal>> {
        Box::pin(async move { caller(self, token).post(session, draft, key).await })
    }

    fn signal<'a>(
        &'a self,
        token: &'a Bearer,
        session: &'a SessionName,
        pressed: &'a Pressed,
        key: Option<Key>,
    ) -> BoxFuture<'a, Result<Signalled, Refusal>> {
        Box::pin(async move {
            let client = caller(self, token);
            match pressed {
                Pressed::Cancel(cancel) => client.stop(session, cancel, key).await,
                Pressed::Signal(signal) => client.signal(session, signal, key).await,
            }
        })
    }
}

fn caller(client: &Client, token: &Bearer) -> Client {
    client.with_token(token.as_str().to_owned())
}

/// A refusal of the edge's own token is the edge's trouble: its readers did nothing wrong and
/// must not be told to stop or to get another token.
pub(crate) fn not_the_readers_fault(refusal: Refusal) -> Refusal {
    match refusal.code {
        Code::Unauthenticated | Code::TokenExpired | Code::TokenRevoked | Code::Denied => {
            tracing::error!(code = %refusal.code, "a node refused the edge's own token");
            Refusal::new(Code::Internal, "the edge may not read from its nodes")
        },
        _ => refusal,
    }
}
