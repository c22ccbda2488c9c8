//! gRPC as any client in any language has it: a channel, a token in the metadata, a status.

use std::time::Duration;

use everwire_core::Refusal;
use everwire_proto::refusal::from_status;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// A channel to `addr` (`127.0.0.1:port`), in the clear.
pub async fn channel(addr: &str) -> Channel {
    let endpoint = Endpoint::try_from(format!("http://{addr}")).expect("a good address");
    let endpoint = endpoint.connect_timeout(Duration::from_secs(10));
    endpoint.connect().await.expect("the node listens")
}

/// A request with this token.
pub fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().expect("a token is ASCII");
    request.metadata_mut().insert("authorization", value);
    request.set_timeout(Duration::from_secs(30));
    request
}

/// The refusal of a call: every one must carry `everwire.v1.Error` in its details.
pub fn refusal<T>(answer: Result<T, Status>) -> Refusal {
    match answer {
        Ok(_) => panic!("the call was not refused"),
        Err(status) => {
            assert!(!status.details().is_empty(), "no details: {status:?}");
            from_status(&status)
        },
    }
}

/// The code of a refused call.
pub fn code<T>(answer: Result<T, Status>) -> &'static str {
    refusal(answer).code.as_str()
}
