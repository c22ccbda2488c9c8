//! The sockets of a node: accepted within a bound, watched until their first call, cut at the
//! end.
//!
//! Comes in: a bound listener, or a network of somebody's own. Goes out: connections that carry their share of credit. Never:
//! anything that reads what a client said.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Task, Poll};
use std::time::Duration;

use everwire_core::limits::{AUTH_WITHIN, CONNECTION_CREDIT_BYTES, NODE_CONNECTIONS_MAX};
use everwire_shard::{Incoming, Io};
use futures_util::{Stream, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::context::Context;
use crate::metrics::Counted;

/// After a failed accept (no file descriptors left), how long until the next.
const ACCEPT_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What a service may know about the connection of a call.
#[derive(Clone)]
pub(crate) struct ConnectionInfo {
    credit: Arc<Semaphore>,
    used: Arc<AtomicBool>,
}

impl ConnectionInfo {
    fn new() -> Self {
        let bytes = usize::try_from(CONNECTION_CREDIT_BYTES).expect("32 bits fit");
        Self {
            credit: Arc::new(Semaphore::new(bytes)),
            used: Arc::new(AtomicBool::new(false)),
        }
    }

    /// Bytes that all publish streams of the connection share.
    pub(crate) fn credit(&self) -> Arc<Semaphore> {
        Arc::clone(&self.credit)
    }

    /// Notes that a call came: the peer speaks our language.
    pub(crate) fn mark_used(&self) {
        self.used.store(true, Ordering::Relaxed);
    }
}

/// One accepted socket.
pub(crate) struct Connection {
    io: Box<dyn Io>,
    info: ConnectionInfo,
    /// Resolves when the node cuts what is left.
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// How long the peer has for its first call, TLS included; gone once it came.
    first_call: Option<Pin<Box<Sleep>>>,
    _room: OwnedSemaphorePermit,
    _counted: Counted,
}

/// What a bound listener accepts.
pub(crate) fn accepted(listener: TcpListener) -> Incoming {
    let accepted = TcpListenerStream::new(listener).map(|accepted| {
        let stream = accepted?;
        // Small messages must not wait for the peer's ack of the one before. Without it they do,
        // unless the peer is gone already, which is seen at once.
        let _ = stream.set_nodelay(true);
        Ok(Box::new(stream) as Box<dyn Io>)
    });
    accepted.boxed()
}

/// Accepts until it is dropped. Never fails: what goes wrong with one socket is that socket's.
pub(crate) fn incoming(
    sockets: Incoming,
    context: Arc<Context>,
    cut: CancellationToken,
) -> impl Stream<Item = Result<Connection, Infallible>> {
    let room = Arc::new(Semaphore::new(NODE_CONNECTIONS_MAX));
    futures_util::stream::unfold((sockets, room), move |(mut sockets, room)| {
        let (context, cut) = (Arc::clone(&context), cut.clone());
        async move {
            let connection = accept(&mut sockets, &room, &context, cut).await?;
            Some((Ok(connection), (sockets, room)))
        }
    })
}

async fn accept(
    sockets: &mut Incoming,
    room: &Arc<Semaphore>,
    context: &Context,
    cut: CancellationToken,
) -> Option<Connection> {
    loop {
        let accepted = sockets.next().await?;
        let io = match accepted {
            Ok(io) => io,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_AGAIN_AFTER).await;
                continue;
            },
        };
        let Ok(permit) = Arc::clone(room).try_acquire_owned() else {
            context.metrics.connection_refused();
            tracing::warn!(
                limit = NODE_CONNECTIONS_MAX,
                "no room for one more connection"
            );
            continue;
        };
        return Some(Connection {
            io,
            info: ConnectionInfo::new(),
            cut: Box::pin(cut.cancelled_owned()),
            first_call: Some(Box::pin(tokio::time::sleep(AUTH_WITHIN))),
            _room: permit,
            _counted: context.metrics.connection(),
        });
    }
}

impl Connection {
    /// Why the socket is not read any further, if it is not.
    fn over(&mut self, task: &mut Task<'_>) -> Option<io::Error> {
        if self.cut.as_mut().poll(task).is_ready() {
            return Some(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                "the node has stopped",
            ));
        }
        if self.info.used.load(Ordering::Relaxed) {
            self.first_call = None;
        }
        let late = self
            .first_call
            .as_mut()
            .is_some_and(|first_call| first_call.as_mut().poll(task).is_ready());
        late.then(|| io::Error::new(io::ErrorKind::TimedOut, "the peer never made a call"))
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Some(error) = self.over(task) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.io).poll_read(task, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(task, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(task)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, task: &mut Task<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(task)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        task: &mut Task<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(task, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
