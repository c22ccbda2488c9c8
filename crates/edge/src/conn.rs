//! One TCP connection, in the clear or in TLS, that knows whether its peer takes what is written.
//!
//! Progress is seen at the bottom, in bytes that the kernel took: a peer that reads slowly makes
//! progress, a peer that reads nothing makes none, whatever is buffered above.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use everwire_client::Io;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, Sleep, sleep};
use tokio_rustls::server::TlsStream;

use crate::metrics::Metrics;

/// The bottom: TCP, or what a simulation has in its place.
pub(crate) struct Tcp {
    stream: Box<dyn Io>,
    /// Since when the kernel has taken nothing, though something waits.
    blocked: Option<Instant>,
    /// Ends the connection by itself after so long a block; `None` when somebody else watches.
    give_up_after: Option<Duration>,
    giving_up: Option<Pin<Box<Sleep>>>,
}

impl Tcp {
    /// A fresh connection that gives up on a peer who takes nothing for so long.
    pub(crate) fn new(stream: Box<dyn Io>, give_up_after: Duration) -> Self {
        Self {
            stream,
            blocked: None,
            give_up_after: Some(give_up_after),
            giving_up: None,
        }
    }

    fn written(&mut self, cx: &mut Context<'_>, poll: &Poll<io::Result<usize>>) -> bool {
        if poll.is_ready() {
            self.blocked = None;
            self.giving_up = None;
            return false;
        }
        self.blocked.get_or_insert_with(Instant::now);
        let Some(after) = self.give_up_after else {
            return false;
        };
        let timer = self.giving_up.get_or_insert_with(|| Box::pin(sleep(after)));
        timer.as_mut().poll(cx).is_ready()
    }
}

impl AsyncRead for Tcp {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tcp {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        if self.written(cx, &poll) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        poll
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        if self.written(cx, &poll) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        poll
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// In the clear or in TLS.
pub(crate) enum Transport {
    /// In the clear.
    Plain(Tcp),
    /// In TLS; boxed, because its state is large and idle sockets in the clear are many.
    Tls(Box<TlsStream<Tcp>>),
}

/// A place among an edge's connections; free again when its last holder drops it.
pub(crate) type Place = Arc<OwnedSemaphorePermit>;

/// One of the edge's connections. It holds its place among the connections until it is dropped.
pub(crate) struct Conn {
    transport: Transport,
    metrics: Arc<Metrics>,
    place: Place,
}

impl Conn {
    /// A connection that takes a place.
    pub(crate) fn new(
        transport: Transport,
        place: OwnedSemaphorePermit,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.connections.inc();
        Self {
            transport,
            metrics,
            place: Arc::new(place),
        }
    }

    /// Its place, for whatever of it goes on when it has ended.
    pub(crate) fn place(&self) -> Place {
        Arc::clone(&self.place)
    }

    /// Since when the peer has taken nothing, though something waits for it.
    pub(crate) fn blocked_since(&self) -> Option<Instant> {
        match &self.transport {
            Transport::Plain(tcp) => tcp.blocked,
            Transport::Tls(tls) => tls.get_ref().0.blocked,
        }
    }

    /// From now on somebody else watches [`Self::blocked_since`] and closes with a reason.
    pub(crate) fn is_watched(&mut self) {
        let tcp = match &mut self.transport {
            Transport::Plain(tcp) => tcp,
            Transport::Tls(tls) => tls.get_mut().0,
        };
        tcp.give_up_after = None;
        tcp.giving_up = None;
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Conn")
    }
}

/// Calls the same method of whatever is below.
macro_rules! below {
    ($self:ident, $method:ident ( $($argument:expr),* )) => {
        match &mut $self.get_mut().transport {
            Transport::Plain(tcp) => Pin::new(tcp).$method($($argument),*),
            Transport::Tls(tls) => Pin::new(tls).$method($($argument),*),
        }
    };
}

impl AsyncRead for Conn {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        below!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        below!(self, poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        below!(self, poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        match &self.transport {
            Transport::Plain(tcp) => tcp.is_write_vectored(),
            Transport::Tls(tls) => tls.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        below!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        below!(self, poll_shutdown(cx))
    }
}
