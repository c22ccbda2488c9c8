//! A TCP proxy that can be cut: the network between a client and a server.

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Bytes on their way through the proxy, at most, each way.
const CHUNK: usize = 16 << 10;

/// What the network does right now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Weather {
    Fine,
    /// Bytes are held; the sockets stay open. As when a phone enters a tunnel.
    Stalled,
}

/// Forwards connections to one address until told otherwise.
pub struct Proxy {
    /// Where to connect.
    pub addr: SocketAddr,
    weather: Arc<watch::Sender<Weather>>,
    /// A new value ends the connections that were made before it.
    cut: Arc<watch::Sender<u64>>,
    accepting: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// A proxy in front of `upstream`.
    pub async fn new(upstream: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let weather = Arc::new(watch::Sender::new(Weather::Fine));
        let cut = Arc::new(watch::Sender::new(0));
        let upstream = upstream.to_owned();
        let (weather_of, cut_of) = (Arc::clone(&weather), Arc::clone(&cut));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let upstream = upstream.clone();
                let (weather, cut) = (weather_of.subscribe(), cut_of.subscribe());
                tokio::spawn(forward(client, upstream, weather, cut));
            }
        });
        Self {
            addr,
            weather,
            cut,
            accepting,
        }
    }

    /// Resets all connections, as a crashed host or a firewall would.
    pub fn reset(&self) {
        self.cut.send_modify(|cuts| *cuts += 1);
    }

    /// Holds all bytes, of old and new connections, while the sockets stay open.
    pub fn stall(&self) {
        self.weather.send_replace(Weather::Stalled);
    }

    /// Lets bytes flow again; none was lost.
    pub fn heal(&self) {
        self.weather.send_replace(Weather::Fine);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.reset();
    }
}

async fn forward(
    mut client: TcpStream,
    upstream: String,
    weather: watch::Receiver<Weather>,
    mut cut: watch::Receiver<u64>,
) {
    let connected = async {
        fine(&mut weather.clone()).await?;
        TcpStream::connect(&upstream).await.ok()
    };
    let server = tokio::select! {
        server = connected => server,
        _ = cut.changed() => None,
    };
    let Some(mut server) = server else {
        let _ = client.set_zero_linger();
        return;
    };
    let (from_client, to_client) = client.split();
    let (from_server, to_server) = server.split();
    let both = async {
        tokio::join!(
            pump(from_client, to_server, weather.clone()),
            pump(from_server, to_client, weather.clone()),
        )
    };
    tokio::select! {
        _ = both => {},
        // A reset, not a goodbye: the kernel drops what is under way.
        _ = cut.changed() => {
            for socket in [&client, &server] {
                let _ = socket.set_zero_linger();
            }
        },
    }
}

/// One direction, to its end. What was read is written, however long it was held in between.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut weather: watch::Receiver<Weather>,
) {
    let mut chunk = vec![0; CHUNK];
    while let Ok(read) = from.read(&mut chunk).await {
        // An end travels like bytes do: not before the network is back.
        if fine(&mut weather).await.is_none() || read == 0 {
            break;
        }
        let bytes = chunk.get(..read).unwrap_or_default();
        if to.write_all(bytes).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await;
}

/// Waits for good weather; `None` when the proxy is gone.
async fn fine(weather: &mut watch::Receiver<Weather>) -> Option<()> {
    let fine = weather.wait_for(|weather| *weather == Weather::Fine).await;
    fine.is_ok().then_some(())
}
