//! The gRPC server, layer by layer, and why each stands where it does.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::limits::{
    GRPC_CONNECTION_WINDOW_BYTES, GRPC_HEADER_BYTES_MAX, GRPC_MESSAGE_BYTES_MAX,
    GRPC_STREAM_WINDOW_BYTES, HEARTBEAT_EVERY, HEARTBEAT_LOST_AFTER, STREAMS_PER_CONNECTION_MAX,
};
use everwire_proto::FILE_DESCRIPTOR_SET;
use everwire_proto::v1::attach_server::AttachServer;
use everwire_proto::v1::cluster_server::ClusterServer;
use everwire_proto::v1::publish_server::PublishServer;
use everwire_proto::v1::runs_server::RunsServer;
use everwire_proto::v1::sessions_server::SessionsServer;
use everwire_proto::v1::signals_server::SignalsServer;
use everwire_shard::Incoming;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::server::NamedService;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tonic_health::server::{HealthReporter, HealthService};

use crate::answer::AnsweringLayer;
use crate::config::{NodeError, Tls};
use crate::connection;
use crate::context::Context;
use crate::identity::Gate;
use crate::service::attach::Attach;
use crate::service::cluster::Cluster;
use crate::service::publish::Publish;
use crate::service::runs::Runs;
use crate::service::sessions::Sessions;
use crate::service::signals::Signals;

/// Largest message of a probe or a tool, bytes: it is read from whoever comes, without a token.
const PROBE_BYTES_MAX: usize = 4 << 10;

/// The names under which health is told: the server as a whole, and each service.
const SERVICES: [&str; 7] = [
    "",
    PublishServer::<Publish>::NAME,
    AttachServer::<Attach>::NAME,
    SignalsServer::<Signals>::NAME,
    SessionsServer::<Sessions>::NAME,
    RunsServer::<Runs>::NAME,
    ClusterServer::<Cluster>::NAME,
];

/// TLS from a certificate chain and its key.
pub(crate) fn tls(pem: &Tls) -> Result<ServerTlsConfig, NodeError> {
    let identity = Identity::from_pem(&pem.cert_pem, &pem.key_pem);
    let config = ServerTlsConfig::new()
        .identity(identity)
        .timeout(everwire_core::limits::AUTH_WITHIN);
    // Builds an acceptor only to find out now whether the PEM can be read.
    Server::builder()
        .tls_config(config.clone())
        .map_err(|error| NodeError::Tls(source_text(&error)))?;
    Ok(config)
}

fn source_text(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), ToString::to_string)
}

/// Tells health under every name.
pub(crate) async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for name in SERVICES {
        health.set_service_status(name, status).await;
    }
}

/// Serves what comes in, in a task of its own. The task ends when the context drains and every
/// connection has ended, by itself or through `cut`.
pub(crate) fn serve(
    context: Arc<Context>,
    incoming: Incoming,
    tls: Option<ServerTlsConfig>,
    health: &HealthReporter,
    cut: CancellationToken,
) -> Result<JoinHandle<()>, NodeError> {
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server
            .tls_config(tls)
            .map_err(|error| NodeError::Tls(source_text(&error)))?;
    }
    let silence = HEARTBEAT_LOST_AFTER.saturating_sub(HEARTBEAT_EVERY);
    let mut server = server
        // A stalled peer is found by its silence, not only by a closed socket.
        .http2_keepalive_interval(Some(HEARTBEAT_EVERY))
        .http2_keepalive_timeout(Some(silence.max(Duration::from_secs(1))))
        // What a peer may send before anybody reads it, and how many calls it may hold open.
        .initial_stream_window_size(GRPC_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(GRPC_CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_header_list_size(GRPC_HEADER_BYTES_MAX)
        // Outermost of ours: also what the layers below refuse by themselves gets our details.
        .layer(AnsweringLayer::new(Arc::clone(&context)));

    // Health and reflection are for probes and tools: they need no token and tell no secret.
    let router = server
        .add_service(
            HealthServer::new(HealthService::from_health_reporter(health.clone()))
                .max_decoding_message_size(PROBE_BYTES_MAX),
        )
        .add_service(reflection()?.max_decoding_message_size(PROBE_BYTES_MAX));
    let gate = Gate::new(Arc::clone(&context));
    let draining = {
        let context = Arc::clone(&context);
        async move { context.draining.cancelled().await }
    };
    let incoming = connection::incoming(incoming, Arc::clone(&context), cut);
    let serving =
        services(router, &context, &gate).serve_with_incoming_shutdown(incoming, draining);
    Ok(tokio::spawn(log_end(serving)))
}

/// Our services, each behind the gate: a call without a good token is refused before a byte of
/// its body is read.
fn services<L>(
    router: tonic::transport::server::Router<L>,
    context: &Arc<Context>,
    gate: &Gate,
) -> tonic::transport::server::Router<L> {
    macro_rules! gated {
        ($server:ident, $service:ident) => {
            InterceptedService::new(
                $server::new($service::new(Arc::clone(context)))
                    .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX),
                gate.clone(),
            )
        };
    }
    router
        .add_service(gated!(PublishServer, Publish))
        .add_service(gated!(AttachServer, Attach))
        .add_service(gated!(SignalsServer, Signals))
        .add_service(gated!(SessionsServer, Sessions))
        .add_service(gated!(RunsServer, Runs))
        .add_service(gated!(ClusterServer, Cluster))
}

fn reflection() -> Result<
    tonic_reflection::server::v1::ServerReflectionServer<
        impl tonic_reflection::server::v1::ServerReflection,
    >,
    NodeError,
> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| NodeError::Reflection(error.to_string()))
}

async fn log_end(serving: impl Future<Output = Result<(), tonic::transport::Error>>) {
    if let Err(error) = serving.await {
        tracing::error!(error = source_text(&error), "the gRPC server ended");
    }
}
