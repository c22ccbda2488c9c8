//! Plain HTTP: publish, signals, tickets, and what every answer has in common.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::routing::{get, post};
use everwire_core::limits::EDGE_FRAME_IN_BYTES_MAX;
use everwire_core::{Code, Key, Refusal, RunId, SessionName};
use everwire_proto::event::check_posted;
use everwire_proto::frame::{ServerFrame, Subprotocol, encode_server};
use everwire_proto::json::{
    any_cancel_from_json, cancel_from_json, draft_from_json, refusal_to_json, signal_from_json,
};
use everwire_proto::signal::Pressed;
use everwire_proto::token::{Bearer, from_header};
use futures_util::StreamExt;
use tokio::time::timeout;

use crate::identity::Identity;
use crate::lanes::Ask;
use crate::shared::{Shared, millis};
use crate::{sse, upgrade};

const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// What a browser's page may send, and for how long it may remember that.
const ALLOW_HEADERS: &str = "authorization, content-type, idempotency-key, last-event-id";
const ALLOW_METHODS: &str = "GET, POST";
const ALLOW_FOR_SECONDS: &str = "600";

/// Everything that this edge serves.
pub(crate) fn router(edge: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/ws", get(upgrade::open))
        .route(
            "/v1/sessions/{session}/events",
            get(sse::open).post(publish),
        )
        .route("/v1/sessions/{session}/runs/{run}/cancel", post(cancel_run))
        .route("/v1/sessions/{session}/cancel", post(cancel))
        .route("/v1/sessions/{session}/signal", post(signal))
        .route("/v1/tickets", post(ticket))
        .fallback(nothing_here)
        .method_not_allowed_fallback(not_this_way)
        .layer(from_fn_with_state(Arc::clone(&edge), guard))
        .with_state(edge)
}

/// Lets in whom the list of origins lets in, and says to browsers what they may do.
async fn guard(State(edge): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let admitted = origin.as_ref().is_none_or(|origin| {
        let text = origin.to_str();
        text.is_ok_and(|text| edge.origins.admit(text))
    });
    let asks_first = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
    let mut response = if !admitted {
        let message = "pages of this origin may not come";
        refused(&edge, &Refusal::new(Code::Denied, message))
    } else if asks_first {
        preflight()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    let fixed = [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::VARY, "origin"),
    ];
    for (name, value) in fixed {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if let (true, Some(origin)) = (admitted, origin) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    response
}

fn preflight() -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let fixed = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, ALLOW_METHODS),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, ALLOW_HEADERS),
        (header::ACCESS_CONTROL_MAX_AGE, ALLOW_FOR_SECONDS),
    ];
    for (name, value) in fixed {
        let value = HeaderValue::from_static(value);
        response.headers_mut().insert(name, value);
    }
    response
}

async fn nothing_here(State(edge): State<Arc<Shared>>) -> Response {
    let refusal = Refusal::new(Code::Malformed, "there is nothing at this path");
    with_status(refused(&edge, &refusal), StatusCode::NOT_FOUND)
}

async fn not_this_way(State(edge): State<Arc<Shared>>) -> Response {
    let refusal = Refusal::new(Code::Malformed, "this path takes another method");
    with_status(refused(&edge, &refusal), StatusCode::METHOD_NOT_ALLOWED)
}

fn with_status(mut response: Response, status: StatusCode) -> Response {
    *response.status_mut() = status;
    response
}

/// An answer of JSON.
pub(crate) fn json(status: StatusCode, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    let value = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// The answer to a request that is refused.
pub(crate) fn refused(edge: &Shared, refusal: &Refusal) -> Response {
    edge.metrics.refused(refusal.code);
    let status = StatusCode::from_u16(refusal.code.http_status())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = json(status, refusal_to_json(refusal));
    if status == StatusCode::UNAUTHORIZED {
        let value = HeaderValue::from_static("Bearer");
        response
            .headers_mut()
            .insert(header::WWW_AUTHENTICATE, value);
    }
    response
}

/// The answer to a request.
pub(crate) fn answered(edge: &Shared, result: Result<Response, Refusal>) -> Response {
    result.unwrap_or_else(|refusal| refused(edge, &refusal))
}

/// The caller that a request's `Authorization` names.
pub(crate) fn caller(edge: &Shared, headers: &HeaderMap) -> Result<Identity, Refusal> {
    let value = headers.get(header::AUTHORIZATION);
    let text = value.map(|value| value.to_str().unwrap_or_default());
    edge.identify(Bearer::new(from_header(text)?))
}

fn key(headers: &HeaderMap) -> Result<Option<Key>, Refusal> {
    let Some(value) = headers.get(IDEMPOTENCY_KEY) else {
        return Ok(None);
    };
    Ok(Some(Key::parse(value.to_str().unwrap_or_default())?))
}

/// The text of a path's parameters.
pub(crate) fn path<T>(path: Result<Path<T>, PathRejection>) -> Result<T, Refusal> {
    match path {
        Ok(Path(parameters)) => Ok(parameters),
        Err(_) => Err(Refusal::new(Code::Malformed, "the path is not UTF-8")),
    }
}

/// A request to write: who asks, of which session, under which key.
struct Written {
    identity: Identity,
    session: SessionName,
    key: Option<Key>,
}

impl Written {
    /// Nothing of the body is read for somebody who is not known.
    fn of(edge: &Shared, session: &str, headers: &HeaderMap) -> Result<Self, Refusal> {
        Ok(Self {
            identity: caller(edge, headers)?,
            session: SessionName::parse(session)?,
            key: key(headers)?,
        })
    }

    async fn send(self, edge: &Shared, ask: Ask) -> Result<Response, Refusal> {
        let within = edge.timings.request_within;
        let (upstream, token) = (&*edge.hub.upstream, &self.identity.token);
        let frame = ask.run(upstream, token, &self.session, within).await?;
        Ok(frame_as_json(&frame))
    }

    async fn press(self, edge: &Shared, pressed: Pressed) -> Result<Response, Refusal> {
        let key = self.key.clone();
        self.send(edge, Ask::Signal { pressed, key }).await
    }
}

async fn publish(
    State(edge): State<Arc<Shared>>,
    session: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let work = async {
        let written = Written::of(&edge, &path(session)?, &headers)?;
        let draft = draft_from_json(&read(&edge, body).await?)?;
        let key = written.key.clone();
        check_posted(&draft, key.as_ref())?;
        written.send(&edge, Ask::Post { draft, key }).await
    };
    answered(&edge, work.await)
}

async fn cancel_run(
    State(edge): State<Arc<Shared>>,
    names: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let work = async {
        let (session, run) = path(names)?;
        let written = Written::of(&edge, &session, &headers)?;
        let cancel = cancel_from_json(RunId::parse(&run)?, &read(&edge, body).await?)?;
        written.press(&edge, Pressed::Cancel(cancel)).await
    };
    answered(&edge, work.await)
}

async fn cancel(
    State(edge): State<Arc<Shared>>,
    session: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let work = async {
        let written = Written::of(&edge, &path(session)?, &headers)?;
        let cancel = any_cancel_from_json(&read(&edge, body).await?)?;
        written.press(&edge, Pressed::Cancel(cancel)).await
    };
    answered(&edge, work.await)
}

async fn signal(
    State(edge): State<Arc<Shared>>,
    session: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let work = async {
        let mut written = Written::of(&edge, &path(session)?, &headers)?;
        let (pressed, key) = signal_from_json(&read(&edge, body).await?)?;
        written.key = written.key.or(key);
        written.press(&edge, pressed).await
    };
    answered(&edge, work.await)
}

async fn ticket(State(edge): State<Arc<Shared>>, headers: HeaderMap) -> Response {
    let ttl = edge.timings.ticket_ttl;
    let minted = caller(&edge, &headers)
        .and_then(|identity| edge.tickets.mint(identity, &*edge.random, ttl))
        .map(|ticket| {
            let expires = millis(ttl);
            let body = format!("{{\"ticket\":\"{ticket}\",\"expires_in_ms\":{expires}}}");
            json(StatusCode::OK, body)
        });
    answered(&edge, minted)
}

fn frame_as_json(frame: &ServerFrame) -> Response {
    let body = encode_server(Subprotocol::Json, "", frame);
    json(StatusCode::OK, Body::from(body))
}

/// A request's body, within the bounds of a frame.
async fn read(edge: &Shared, body: Body) -> Result<Vec<u8>, Refusal> {
    let reading = async {
        let mut bytes = Vec::new();
        let mut stream = body.into_data_stream();
        while let Some(piece) = stream.next().await {
            let Ok(piece) = piece else {
                return Err(Refusal::new(Code::Malformed, "the body broke off"));
            };
            if bytes.len() + piece.len() > EDGE_FRAME_IN_BYTES_MAX {
                return Err(Refusal::new(Code::TooLarge, "the body is above the bound"));
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    };
    match timeout(edge.timings.request_within, reading).await {
        Ok(read) => read,
        Err(_) => Err(Refusal::new(
            Code::Malformed,
            "the body did not come in time",
        )),
    }
}
