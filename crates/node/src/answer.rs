//! The outermost layer around all services: a bound on time, and our details on every refusal.
//!
//! Comes in: a call. Goes out: its answer; a status that the transport made by itself (a
//! message too large, bytes that are no message, a method that we do not have) gets the code
//! and the advice of `core::code`, so that a client finds them on every refusal.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use everwire_core::limits::{GRPC_MESSAGE_BYTES_MAX, REQUEST_WITHIN};
use everwire_core::{Code, Details, Refusal};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tower::Layer;

use crate::connection::ConnectionInfo;
use crate::context::Context;

/// Wraps a service in an [`Answering`].
#[derive(Clone)]
pub(crate) struct AnsweringLayer {
    context: Arc<Context>,
}

impl AnsweringLayer {
    /// The layer of a node.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }
}

impl<S> Layer<S> for AnsweringLayer {
    type Service = Answering<S>;

    fn layer(&self, inner: S) -> Answering<S> {
        Answering {
            inner,
            context: Arc::clone(&self.context),
        }
    }
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Answering<S> {
    inner: S,
    context: Arc<Context>,
}

impl<S> Service<http::Request<Body>> for Answering<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, task: &mut Task<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        if let Some(connection) = request.extensions().get::<ConnectionInfo>() {
            connection.mark_used();
        }
        let answer = self.inner.call(request);
        let context = Arc::clone(&self.context);
        Box::pin(async move {
            // A stream answers at once and then lives as long as it likes; this bounds requests
            // whose body never comes, and a shard that does not commit.
            let Ok(answer) = tokio::time::timeout(REQUEST_WITHIN, answer).await else {
                let refusal = Refusal::new(Code::Overloaded, "the call took too long");
                return Ok(context.refuse(&refusal).into_http());
            };
            let answer = answer?;
            let foreign = Status::from_header_map(answer.headers())
                .filter(|status| status.details().is_empty())
                .and_then(|status| translated(&status));
            match foreign {
                Some(refusal) => Ok(context.refuse(&refusal).into_http()),
                None => Ok(answer),
            }
        })
    }
}

/// What the transport refused by itself, in our words. `None` for what is not a refusal of the
/// bytes: an answer of the health service, a connection that broke.
pub(crate) fn translated(status: &Status) -> Option<Refusal> {
    match status.code() {
        tonic::Code::OutOfRange | tonic::Code::ResourceExhausted => {
            let details = Details {
                limit: u64::try_from(GRPC_MESSAGE_BYTES_MAX).ok(),
                ..Details::default()
            };
            let message = "the message is larger than a node reads";
            Some(Refusal::with(Code::TooLarge, message, details))
        },
        tonic::Code::Internal => {
            let message = "the bytes are not the message of this method";
            Some(Refusal::new(Code::Malformed, message))
        },
        tonic::Code::Unimplemented => {
            let message = "this node has no such method, or not this encoding";
            Some(Refusal::new(Code::UnsupportedVersion, message))
        },
        _ => None,
    }
}
