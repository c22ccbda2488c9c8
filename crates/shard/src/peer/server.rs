//! The peer listener: TLS, connections, the end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use everwire_core::limits::{PEER_LOST_AFTER, PEER_MESSAGE_BYTES_MAX, STREAMS_PER_CONNECTION_MAX};
use everwire_proto::internal_v1::peer_server::PeerServer;
use futures_util::stream::StreamExt;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};

use super::dial::{Incoming, Io, PeerTls};
use super::door::Door;
use super::service::Service;

/// Calls that were given up before this node looked at them.
const RESETS_PENDING_MAX: usize = 4096;

/// A peer's connection in the shape that tonic wants. It breaks at the end: whoever serves it
/// holds the store, and tonic lets connections live on.
struct PeerIo {
    io: Box<dyn Io>,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Connected for PeerIo {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for PeerIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl AsyncWrite for PeerIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Serves peers until `stop`; connections end with it.
pub(crate) fn serve(
    door: Arc<Door>,
    incoming: Incoming,
    tls: Option<&PeerTls>,
    stop: CancellationToken,
) -> Result<JoinHandle<()>, String> {
    let mut server = Server::builder()
        .tcp_nodelay(true)
        // A call that is given up is reset; a node that stood still for a moment finds many at
        // once. Peers are ours: that is no attack, and must not cost the connection.
        .http2_max_pending_accept_reset_streams(Some(RESETS_PENDING_MAX))
        // A reader of another node's is a call for as long as it reads.
        .max_concurrent_streams(Some(STREAMS_PER_CONNECTION_MAX))
        .http2_keepalive_interval(Some(PEER_LOST_AFTER))
        .http2_keepalive_timeout(Some(PEER_LOST_AFTER))
        .initial_stream_window_size(8 << 20)
        .initial_connection_window_size(16 << 20);
    if let Some(tls) = tls {
        let config = ServerTlsConfig::new()
            .identity(Identity::from_pem(&tls.cert_pem, &tls.key_pem))
            .client_ca_root(Certificate::from_pem(&tls.ca_pem));
        server = server
            .tls_config(config)
            .map_err(|error| error.to_string())?;
    }
    let service = PeerServer::new(Service(door))
        .max_decoding_message_size(PEER_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(PEER_MESSAGE_BYTES_MAX);
    let cut = stop.clone();
    let incoming = incoming.map(move |io| {
        let cut = Box::pin(cut.clone().cancelled_owned());
        io.map(|io| PeerIo { io, cut })
    });
    let serving = server.add_service(service).serve_with_incoming(incoming);
    Ok(tokio::spawn(async move {
        // Peers hold their connections for ever: nothing of theirs is worth waiting for.
        tokio::select! {
            served = serving => if let Err(error) = served {
                tracing::error!(%error, "the peer listener ended");
            },
            () = stop.cancelled() => {},
        }
    }))
}
