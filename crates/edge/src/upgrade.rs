//! `GET /v1/ws`: from an HTTP request to a WebSocket.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use everwire_core::{Code, Refusal};
use everwire_proto::frame::Subprotocol;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::conn::Conn;
use crate::http::answered;
use crate::shared::Shared;
use crate::socket::Socket;
use crate::wire::Wire;

const WEBSOCKET_VERSION: &str = "13";

/// `GET /v1/ws`.
pub(crate) async fn open(State(edge): State<Arc<Shared>>, mut request: Request) -> Response {
    let upgrade = request.extensions_mut().remove::<OnUpgrade>();
    let agreed = agree(request.headers()).and_then(|agreed| match upgrade {
        Some(upgrade) => Ok((agreed, upgrade)),
        None => Err(malformed("the connection cannot become a WebSocket")),
    });
    answered(
        &edge,
        agreed.map(|(agreed, upgrade)| {
            edge.spawn(serve(Arc::clone(&edge), upgrade, agreed.subprotocol));
            agreed.response
        }),
    )
}

async fn serve(edge: Arc<Shared>, upgrade: OnUpgrade, subprotocol: Subprotocol) {
    let Ok(upgraded) = upgrade.await else {
        return;
    };
    let Ok(parts) = upgraded.downcast::<TokioIo<Conn>>() else {
        tracing::error!("a WebSocket came over a connection that is not ours");
        return;
    };
    let opening = Wire::new(parts.io.into_inner(), parts.read_buf, subprotocol);
    let wire = Box::pin(opening).await;
    Box::new(Socket::new(edge, wire, subprotocol)).run().await;
}

struct Agreed {
    subprotocol: Subprotocol,
    response: Response,
}

/// What RFC 6455, section 4.2 asks of a server.
fn agree(headers: &HeaderMap) -> Result<Agreed, Refusal> {
    let is_upgrade = lists(headers, &header::CONNECTION, "upgrade")
        && lists(headers, &header::UPGRADE, "websocket");
    if !is_upgrade {
        return Err(malformed("this path takes WebSocket handshakes only"));
    }
    let version = headers.get(header::SEC_WEBSOCKET_VERSION);
    if version.is_none_or(|version| version.as_bytes() != WEBSOCKET_VERSION.as_bytes()) {
        let message = "the WebSocket version is 13";
        return Err(Refusal::new(Code::UnsupportedVersion, message));
    }
    let Some(key) = headers.get(header::SEC_WEBSOCKET_KEY) else {
        return Err(malformed("the handshake has no key"));
    };
    let (subprotocol, named) = choose(headers)?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accept = derive_accept_key(key.as_bytes());
    if let Ok(accept) = HeaderValue::try_from(accept) {
        answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    if named {
        let name = HeaderValue::from_static(subprotocol.as_str());
        answer.insert(header::SEC_WEBSOCKET_PROTOCOL, name);
    }
    Ok(Agreed {
        subprotocol,
        response,
    })
}

/// The first subprotocol of the client's that is known here, and whether it named any.
fn choose(headers: &HeaderMap) -> Result<(Subprotocol, bool), Refusal> {
    let mut named = false;
    for word in words(headers, &header::SEC_WEBSOCKET_PROTOCOL) {
        named = true;
        if let Some(subprotocol) = Subprotocol::parse(word) {
            return Ok((subprotocol, true));
        }
    }
    if named {
        let message = "the subprotocols are everwire.v1.json and everwire.v1.proto";
        return Err(Refusal::new(Code::UnsupportedVersion, message));
    }
    Ok((Subprotocol::Json, false))
}

fn lists(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    words(headers, name).any(|one| one.eq_ignore_ascii_case(word))
}

/// The words of a header that lists some, over all its lines.
fn words<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(',').map(str::trim))
}

fn malformed(message: &str) -> Refusal {
    Refusal::new(Code::Malformed, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, F: Future>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    /// With its read buffer of 4 KiB and its seat, an idle socket must stay below 12 KB.
    #[test]
    fn the_task_of_an_idle_socket_is_small() {
        let bytes = size(serve) + size_of::<Socket>();
        assert!(bytes <= 2 << 10, "{bytes} bytes");
    }
}
