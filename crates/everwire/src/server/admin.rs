//! The admin port of every server: is it alive, is it ready, what does it measure.
//!
//! Never anything that changes something, and never a token: it is for probes and scrapers.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::output::Failure;

/// Answers whether the server can take work.
pub(crate) type ReadyProbe = Arc<dyn Fn() -> bool + Send + Sync>;

/// What there is to tell once the server has started.
struct Admin {
    registry: Registry,
    ready: ReadyProbe,
}

/// Empty until the server has started.
type Started = Arc<OnceLock<Admin>>;

/// An admin port. From its binding on it says that the process is alive, and not ready: a start
/// takes as long as a log is long, or until other nodes are there, and whoever probes must not
/// take that for death.
pub(crate) struct AdminPort {
    addr: SocketAddr,
    started: Started,
}

impl AdminPort {
    /// Binds it and answers until `stop`.
    pub(crate) async fn bind(addr: SocketAddr, stop: CancellationToken) -> Result<Self, Failure> {
        let listener = TcpListener::bind(addr).await;
        let listener = listener
            .map_err(|error| Failure::failed(format!("cannot listen on {addr}: {error}")))?;
        let addr = listener.local_addr()?;
        let started = Started::default();
        let router = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(Arc::clone(&started));
        tokio::spawn(async move {
            let served = axum::serve(listener, router);
            let served = served.with_graceful_shutdown(async move { stop.cancelled().await });
            if let Err(error) = served.await {
                tracing::error!(%error, "the admin port stopped");
            }
        });
        Ok(Self { addr, started })
    }

    /// Where it is.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The server has started: from now on its own probe and measures are told.
    pub(crate) fn started(self, registry: Registry, ready: ReadyProbe) {
        // It is given away here, so nobody can have been before.
        let _ = self.started.set(Admin { registry, ready });
    }
}

/// Alive: the runtime still turns. Says nothing of quorum or peers, so that a probe never kills
/// a node for somebody else's fault.
async fn livez() -> &'static str {
    tokio::time::sleep(Duration::ZERO).await;
    "ok\n"
}

async fn readyz(State(started): State<Started>) -> impl IntoResponse {
    tokio::task::yield_now().await;
    if started.get().is_some_and(|admin| (admin.ready)()) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn metrics(State(started): State<Started>) -> impl IntoResponse {
    tokio::task::yield_now().await;
    let plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    let Some(admin) = started.get() else {
        let text = "the server is starting\n".to_owned();
        return (StatusCode::SERVICE_UNAVAILABLE, plain, text);
    };
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &admin.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        },
        Err(error) => {
            let text = format!("metrics cannot be written: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, plain, text)
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    async fn status(addr: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().to_owned()
    }

    /// A node that waits for others, or replays a long log, must not be killed by its probes.
    #[tokio::test]
    async fn a_server_that_starts_is_alive_and_not_ready() {
        let stop = CancellationToken::new();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let port = AdminPort::bind(any, stop.clone()).await.ok().unwrap();
        let addr = port.addr();
        assert_eq!(status(addr, "/livez").await, "200");
        assert_eq!(status(addr, "/readyz").await, "503");
        assert_eq!(status(addr, "/metrics").await, "503");
        port.started(Registry::default(), Arc::new(|| true));
        for path in ["/livez", "/readyz", "/metrics"] {
            assert_eq!(status(addr, path).await, "200", "{path}");
        }
        stop.cancel();
    }
}
