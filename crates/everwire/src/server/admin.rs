//! The admin port of every server: is it alive, is it ready, what does it measure.
//!
//! Never anything that changes something, and never a token: it is for probes and scrapers.

use std::net::SocketAddr;
use std::sync::Arc;
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

struct Admin {
    registry: Registry,
    ready: ReadyProbe,
}

/// A bound admin port that does not answer yet: an address to announce, before there is
/// something to probe.
pub(crate) struct AdminPort {
    listener: TcpListener,
    addr: SocketAddr,
}

impl AdminPort {
    /// Binds it.
    pub(crate) async fn bind(addr: SocketAddr) -> Result<Self, Failure> {
        let listener = TcpListener::bind(addr).await;
        let listener = listener
            .map_err(|error| Failure::failed(format!("cannot listen on {addr}: {error}")))?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr })
    }

    /// Where it is.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Answers until `stop`.
    pub(crate) fn serve(self, registry: Registry, ready: ReadyProbe, stop: CancellationToken) {
        let admin = Arc::new(Admin { registry, ready });
        let router = Router::new()
            .route("/livez", get(livez))
            .route("/readyz", get(readyz))
            .route("/metrics", get(metrics))
            .with_state(admin);
        tokio::spawn(async move {
            let served = axum::serve(self.listener, router);
            let served = served.with_graceful_shutdown(async move { stop.cancelled().await });
            if let Err(error) = served.await {
                tracing::error!(%error, "the admin port stopped");
            }
        });
    }
}

/// Alive: the runtime still turns. Says nothing of quorum or peers, so that a probe never kills
/// a node for somebody else's fault.
async fn livez() -> &'static str {
    tokio::time::sleep(Duration::ZERO).await;
    "ok\n"
}

async fn readyz(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    tokio::task::yield_now().await;
    if (admin.ready)() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

async fn metrics(State(admin): State<Arc<Admin>>) -> impl IntoResponse {
    tokio::task::yield_now().await;
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &admin.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
        },
        Err(error) => {
            let kind = "text/plain; charset=utf-8";
            let text = format!("metrics cannot be written: {error}\n");
            (
                StatusCode::INTERNAL_SERVER_ERROR,
                [(header::CONTENT_TYPE, kind)],
                text,
            )
        },
    }
}
