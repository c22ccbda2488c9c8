//! The edge before faked nodes: real sockets, both subprotocols, and everything that a hostile
//! or unlucky peer may do.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test that is surprised fails, and says where"
)]

mod attaching;
mod ends;
mod hostile;
mod http;
mod nodes;
mod random;
mod sockets;
mod support;
mod tls;
mod tokens;
