//! The peer listener's socket, and what the shards are told about the other nodes.

use std::net::SocketAddr;

use everwire_shard::{Io, Peers};
use futures_util::stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;

use crate::config::{NodeError, PeerOptions};

/// Binds the listener. Refuses what could form two clusters, and plain text off loopback.
pub(crate) fn listen(
    options: PeerOptions,
    insecure: bool,
) -> Result<(SocketAddr, Peers), NodeError> {
    let (seeds, expect) = (options.seeds.len(), options.expect);
    if expect == 0 || expect > seeds || 2 * expect <= seeds {
        let message = format!(
            "bootstrap-expect is {expect} of {seeds} seeds: it must be more than half of them, \
             so that no two parts can form a cluster each"
        );
        return Err(NodeError::Seeds(message));
    }
    let addr = options.listen;
    let failed = |source| NodeError::Listen { addr, source };
    let listener = crate::listen(addr, None)?;
    let bound = listener.local_addr().map_err(failed)?;
    if options.tls.is_none() && !insecure && !bound.ip().is_loopback() {
        return Err(NodeError::InTheClear(bound));
    }
    let advertised = options.advertise.unwrap_or_else(|| bound.to_string());
    let incoming = TcpListenerStream::new(listener).map(|accepted| {
        let stream = accepted?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream) as Box<dyn Io>)
    });
    let peers = Peers {
        name: options.name.unwrap_or_else(|| advertised.clone()),
        addr: advertised,
        seeds: options.seeds,
        expect,
        incoming: incoming.boxed(),
        tls: options.tls,
        dial: None,
    };
    Ok((bound, peers))
}
