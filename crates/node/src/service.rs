//! The gRPC services: each reads its request into words of `core`, asks whether the caller may,
//! hands it to the shard and writes the answer. This is the last place where bytes are
//! untrusted.

pub(crate) mod attach;
pub(crate) mod cluster;
pub(crate) mod publish;
mod publish_stream;
pub(crate) mod runs;
pub(crate) mod sessions;
pub(crate) mod signals;
mod standing;

use everwire_core::{Key, Refusal, SessionName};
use everwire_proto::field;

/// Answers a unary call: finds the caller, calls the method of the same name with the bare
/// request, and turns a refusal into a status.
macro_rules! answer {
    ($self:ident . $method:ident ($request:ident)) => {{
        let caller = crate::identity::of(&$request);
        let answer = match caller {
            Ok(caller) => Self::$method($self, &caller, $request.into_inner()).await,
            Err(refusal) => Err(refusal),
        };
        answer
            .map(tonic::Response::new)
            .map_err(|refusal| $self.context.refuse(&refusal))
    }};
}
use answer;

/// The session that a request names.
fn session(text: &str) -> Result<SessionName, Refusal> {
    field::name("session", text)
}

/// The key of a request that may do without.
fn optional_key(text: &str) -> Result<Option<Key>, Refusal> {
    field::optional_name("key", text)
}
