//! Taking connections: TCP, TLS, HTTP/1.1, each within bounds that a hostile peer cannot stretch.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use everwire_client::Io;
use futures_util::stream::{BoxStream, StreamExt};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::{EdgeConfig, EdgeError, EdgeTls};
use crate::conn::{Conn, Tcp, Transport};
use crate::shared::Shared;

/// What the kernel may hold for a reader that takes nothing (it doubles the number). Its own
/// default grows to megabytes for each socket.
const KERNEL_SEND_BYTES: u32 = 128 << 10;

/// Connections that the kernel holds until they are taken.
const KERNEL_WAITING_MAX: u32 = 1024;

/// What hyper holds of a request's head.
const HEAD_BYTES_MAX: usize = 16 << 10;

const TURNED_AWAY: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
    connection: close\r\ncontent-length: 98\r\n\r\n\
    {\"code\":\"OVERLOADED\",\"message\":\"too many connections on this edge\",\"advice\":\"retry\",\"details\":{}}\n";

/// Connections as clients open them, from a network of somebody's own.
pub type Incoming = BoxStream<'static, io::Result<Box<dyn Io>>>;

/// Where connections come from.
enum Source {
    Tcp(TcpListener),
    Given(Incoming),
}

/// A connection that was just opened.
enum Opened {
    Tcp(TcpStream),
    Given(Box<dyn Io>),
}

impl Source {
    /// The next connection; pending for good when no more can come. Cancel-safe.
    async fn next(&mut self) -> io::Result<Opened> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                Ok(Opened::Tcp(stream))
            },
            Self::Given(incoming) => match incoming.next().await {
                Some(opened) => opened.map(Opened::Given),
                None => std::future::pending().await,
            },
        }
    }
}

/// Takes connections of one address.
pub(crate) struct Listener {
    source: Source,
    tls: Option<TlsAcceptor>,
    places: Arc<Semaphore>,
}

impl Listener {
    /// Binds the address. Off loopback it must be TLS, or said to be insecure.
    pub(crate) fn bind(config: &EdgeConfig) -> Result<Self, EdgeError> {
        let addr = config.http;
        if config.tls.is_none() && !config.insecure && !addr.ip().is_loopback() {
            return Err(EdgeError::InTheClear(addr));
        }
        let tls = config.tls.as_ref().map(acceptor).transpose()?;
        let listener = listen(addr).map_err(|source| EdgeError::Listen { addr, source })?;
        Ok(Self::new(config, Source::Tcp(listener), tls))
    }

    /// Takes what comes from a network of somebody's own.
    pub(crate) fn given(config: &EdgeConfig, incoming: Incoming) -> Result<Self, EdgeError> {
        let tls = config.tls.as_ref().map(acceptor).transpose()?;
        Ok(Self::new(config, Source::Given(incoming), tls))
    }

    fn new(config: &EdgeConfig, source: Source, tls: Option<TlsAcceptor>) -> Self {
        Self {
            source,
            tls,
            places: Arc::new(Semaphore::new(config.connections_max)),
        }
    }

    /// Where it listens, if it is a socket.
    pub(crate) fn addr(&self) -> io::Result<Option<SocketAddr>> {
        match &self.source {
            Source::Tcp(listener) => listener.local_addr().map(Some),
            Source::Given(_) => Ok(None),
        }
    }

    /// Takes connections until `stop`.
    pub(crate) async fn run(mut self, edge: Arc<Shared>, router: Router, stop: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                accepted = self.source.next() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok(opened) => self.take(opened, &edge, &router, &stop),
                Err(error) => {
                    // Most likely no file descriptor is free: the next one comes with a close.
                    tracing::warn!(%error, "a connection could not be taken");
                    sleep(Duration::from_millis(50)).await;
                },
            }
        }
    }

    fn take(&self, opened: Opened, edge: &Arc<Shared>, router: &Router, stop: &CancellationToken) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            edge.metrics.turned_away.inc();
            if let (Opened::Tcp(stream), None) = (opened, &self.tls) {
                turn_away(stream);
            }
            return;
        };
        let stream = match opened {
            Opened::Tcp(stream) => {
                tune(&stream, edge.timings.lost_after);
                Box::new(stream)
            },
            Opened::Given(stream) => stream,
        };
        let tcp = Tcp::new(stream, edge.timings.slow_after);
        let (tls, metrics) = (self.tls.clone(), Arc::clone(&edge.metrics));
        let within = edge.timings.auth_within;
        let (router, stop) = (router.clone(), stop.clone());
        edge.spawn(async move {
            let transport = match tls {
                None => Transport::Plain(tcp),
                Some(tls) => match timeout(within, tls.accept(tcp)).await {
                    Ok(Ok(stream)) => Transport::Tls(Box::new(stream)),
                    Ok(Err(_)) | Err(_) => return,
                },
            };
            serve(Conn::new(transport, place, metrics), within, router, stop).await;
        });
    }
}

/// Serves HTTP on one connection. An upgrade takes the connection away from here.
async fn serve(conn: Conn, within: Duration, router: Router, stop: CancellationToken) {
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(within)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(conn), TowerToHyperService::new(router))
        .with_upgrades();
    tokio::pin!(serving);
    tokio::select! {
        // Errors here are the peer's: it left, or was too slow.
        _ = serving.as_mut() => return,
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

fn listen(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket = if addr.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.set_reuseaddr(true)?;
    socket.set_send_buffer_size(KERNEL_SEND_BYTES)?;
    socket.bind(addr)?;
    socket.listen(KERNEL_WAITING_MAX)
}

/// What is lost without it is latency, and time until a vanished peer is noticed.
fn tune(stream: &TcpStream, lost_after: Duration) {
    let _ = stream.set_nodelay(true);
    // A peer that vanished acknowledges nothing. Sockets notice it by their pings; an event stream
    // cannot ask, and the kernel alone would take a quarter of an hour.
    #[cfg(target_os = "linux")]
    let _ = socket2::SockRef::from(stream).set_tcp_user_timeout(Some(2 * lost_after));
}

/// Says that the edge is full, if the kernel takes the few bytes at once.
fn turn_away(stream: TcpStream) {
    if let Ok(mut stream) = stream.into_std() {
        let _ = stream.write(TURNED_AWAY);
    }
}

fn acceptor(tls: &EdgeTls) -> Result<TlsAcceptor, EdgeError> {
    let wrong = |what: &dyn std::fmt::Display| EdgeError::Tls(what.to_string());
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&tls.cert_pem)
        .collect::<Result<_, _>>()
        .map_err(|error| wrong(&error))?;
    let key = PrivateKeyDer::from_pem_slice(&tls.key_pem).map_err(|error| wrong(&error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(&error))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|error| wrong(&error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_one_too_many_is_well_formed() {
        let text = std::str::from_utf8(TURNED_AWAY).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("content-length: {}", body.len())));
        assert!(serde_json::from_str::<serde_json::Value>(body).is_ok());
    }
}
