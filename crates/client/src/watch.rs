//! The one background task of a client: keeps the map of the cluster at hand.
//!
//! It watches at one node, and at another when that one ends the stream, breaks or is doubted.
//! Without it everything still works: any node takes any call.

use std::sync::{Arc, Weak};
use std::time::Duration;

use everwire_core::limits::{ATTEMPT_WITHIN, WATCH_AGAIN_AFTER, WATCH_PAUSE_MAX};
use everwire_proto::v1;
use everwire_proto::v1::cluster_client::ClusterClient;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::Streaming;
use tracing::debug;

use crate::address::Address;
use crate::backoff::Backoff;
use crate::call::{Failure, Next, with_token};
use crate::connection::{Connections, Lane};

/// Why a watch ended.
enum End {
    /// Somebody doubts the node: ask another.
    Doubted,
    Failed(Failure),
    /// The client is gone.
    Over,
}

/// Watches until the client is gone. Holds it only while something is handed over.
pub(crate) async fn run(
    client: Weak<Connections>,
    lane: Lane,
    mut doubted: watch::Receiver<Option<Address>>,
) {
    let Some(random) = client.upgrade().map(|client| Arc::clone(&client.random)) else {
        return;
    };
    let mut backoff = Backoff::new(random);
    let mut not: Option<Address> = None;
    loop {
        let Some(address) = client.upgrade().map(|client| client.watch_at(not.as_ref())) else {
            return;
        };
        let mut maps = 0;
        let end = stream(&client, &address, lane, &mut doubted, &mut maps).await;
        if let Some(client) = client.upgrade() {
            client.unwatched();
        }
        if maps > 0 {
            backoff.reset();
        }
        let pause = match end {
            End::Over => return,
            End::Doubted if maps > 0 => Duration::ZERO,
            End::Doubted => backoff.pause().min(WATCH_PAUSE_MAX),
            End::Failed(failure) => {
                debug!(%address, refusal = %failure.refusal, "the map is not watched any more");
                match failure.next() {
                    Next::Stop => WATCH_AGAIN_AFTER,
                    // After a good watch the next node is asked at once.
                    Next::Elsewhere if maps > 0 => Duration::ZERO,
                    Next::Elsewhere | Next::Here | Next::Reauthenticate | Next::Reattach => {
                        backoff.pause().min(WATCH_PAUSE_MAX)
                    },
                }
            },
        };
        not = Some(address);
        tokio::time::sleep(pause).await;
    }
}

/// One stream of maps, from its opening to its end.
async fn stream(
    client: &Weak<Connections>,
    address: &Address,
    lane: Lane,
    doubted: &mut watch::Receiver<Option<Address>>,
    maps: &mut u64,
) -> End {
    // Doubts of before do not count: they may have led here.
    doubted.mark_unchanged();
    let mut stream = match open(client, address, lane).await {
        Ok(Some(stream)) => stream,
        Ok(None) => return End::Over,
        Err(failure) => return End::Failed(failure),
    };
    loop {
        let message = tokio::select! {
            message = stream.message() => message,
            changed = doubted.changed() => match changed {
                Err(_gone) => return End::Over,
                Ok(()) if doubted.borrow_and_update().as_ref() == Some(address) => {
                    return End::Doubted;
                },
                Ok(()) => continue,
            },
        };
        let Some(client) = client.upgrade() else {
            return End::Over;
        };
        match message {
            Ok(Some(map)) => {
                *maps += 1;
                client.answered(address);
                client.take(map);
            },
            Ok(None) => return End::Failed(Failure::transport("the stream of maps ended")),
            Err(status) => return End::Failed(Failure::status(&status)),
        }
    }
}

/// Opens a stream; `None` when the client is gone.
async fn open(
    client: &Weak<Connections>,
    address: &Address,
    lane: Lane,
) -> Result<Option<Streaming<v1::Map>>, Failure> {
    let (token, channel) = match client.upgrade() {
        Some(client) => {
            let channel = client.channel(address, lane).map_err(Failure::refused)?;
            (Arc::clone(&client.token), channel)
        },
        None => return Ok(None),
    };
    let opening = async {
        let token = token.token().await.map_err(Failure::refused)?;
        let request = with_token(v1::WatchRequest {}, &token).map_err(Failure::refused)?;
        let answer = ClusterClient::new(channel).watch(request).await;
        Ok(answer
            .map_err(|status| Failure::status(&status))?
            .into_inner())
    };
    let silent = |_elapsed| Failure::transport("no answer to the watch");
    let opened: Result<_, Failure> = timeout(ATTEMPT_WITHIN, opening).await.map_err(silent)?;
    opened.map(Some)
}
