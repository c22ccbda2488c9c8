//! A provider of models, small and local: an event stream over HTTP that ends, breaks off or
//! goes on for ever, and notices when its client goes away.

use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// How it answers.
#[derive(Clone, Debug)]
pub enum Plan {
    /// All chunks, `[DONE]`, the end.
    Whole(Vec<Bytes>),
    /// The chunks again and again.
    Endless(Vec<Bytes>),
    /// The chunks, then the connection breaks in the middle of an event.
    Breaks(Vec<Bytes>),
    /// An error instead of a stream.
    Refuses,
}

/// What it knows of its client.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The request, head and body, once it came.
    pub request: Option<String>,
    /// Chunks sent.
    pub sent: usize,
    /// The client went away before the answer was whole.
    pub left: bool,
}

/// A provider that answers one request at a time.
pub struct Upstream {
    /// Where to ask.
    pub url: String,
    seen: watch::Receiver<Seen>,
    /// Closed: it says no more than half.
    gate: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
}

impl Upstream {
    /// A provider that answers with the plan, a chunk every `pause`.
    pub async fn start(plan: Plan, pause: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("bound");
        let (tell, seen) = watch::channel(Seen::default());
        let (gate, open) = watch::channel(true);
        let serving = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                answer(socket, &plan, pause, &tell, open.clone()).await;
            }
        });
        Self {
            url: format!("http://{addr}/v1/chat/completions"),
            seen,
            gate,
            serving,
        }
    }

    /// From here on it stops in the middle of an answer.
    pub fn hold(&self) {
        self.gate.send_replace(false);
    }

    /// Waits until so many chunks are sent; the number that is.
    pub async fn sent(&mut self, chunks: usize, within: Duration) -> usize {
        let sent = self.seen.wait_for(|seen| seen.sent >= chunks);
        let seen = tokio::time::timeout(within, sent).await;
        seen.expect("it says so much").expect("it serves").sent
    }

    /// It says the rest.
    pub fn go_on(&self) {
        self.gate.send_replace(true);
    }

    /// What it knows of its client now.
    pub fn seen(&self) -> Seen {
        self.seen.borrow().clone()
    }

    /// Waits until it notices that its client has left.
    pub async fn left(&mut self, within: Duration) {
        let left = tokio::time::timeout(within, self.seen.wait_for(|seen| seen.left)).await;
        left.expect("the request upstream ends").expect("it serves");
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(
    mut socket: TcpStream,
    plan: &Plan,
    pause: Duration,
    tell: &watch::Sender<Seen>,
    mut open: watch::Receiver<bool>,
) {
    let request = request(&mut socket).await;
    tell.send_modify(|seen| seen.request = Some(request));
    if matches!(plan, Plan::Refuses) {
        let head = "HTTP/1.1 429 Too Many Requests\r\ncontent-length: 0\r\n\r\n";
        let _ = socket.write_all(head.as_bytes()).await;
        return;
    }
    let (mut from_client, mut to_client) = socket.split();
    let mut byte = [0];
    tokio::select! {
        () = send(&mut to_client, plan, pause, tell, &mut open) => {},
        // A client that has asked sends nothing more: whatever comes is its end.
        _ = from_client.read(&mut byte) => tell.send_modify(|seen| seen.left = true),
    }
    if matches!(plan, Plan::Breaks(_)) {
        let _ = socket.set_zero_linger();
    }
}

async fn send(
    to_client: &mut (impl AsyncWriteExt + Unpin),
    plan: &Plan,
    pause: Duration,
    tell: &watch::Sender<Seen>,
    open: &mut watch::Receiver<bool>,
) {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let mut alive = to_client.write_all(head.as_bytes()).await.is_ok();
    let (chunks, rounds) = match plan {
        Plan::Endless(chunks) => (chunks, usize::MAX),
        Plan::Whole(chunks) | Plan::Breaks(chunks) => (chunks, 1),
        Plan::Refuses => return,
    };
    for (number, chunk) in (0..rounds).flat_map(|_| chunks).enumerate() {
        if number == chunks.len() / 2 {
            let _ = open.wait_for(|open| *open).await;
        }
        if !alive {
            tell.send_modify(|seen| seen.left = true);
            return;
        }
        let text = String::from_utf8_lossy(chunk);
        alive = piece(to_client, &format!("data: {text}\n\n")).await;
        tell.send_modify(|seen| seen.sent += 1);
        tokio::time::sleep(pause).await;
    }
    match plan {
        Plan::Breaks(_) => {
            // Half an event, and no end of the body.
            piece(to_client, "data: {\"choi").await;
            tokio::time::sleep(pause).await;
        },
        _ => {
            piece(to_client, "data: [DONE]\n\n").await;
            let _ = to_client.write_all(b"0\r\n\r\n").await;
        },
    }
}

/// One chunk of a chunked body; `false` when the client is gone.
async fn piece(to_client: &mut (impl AsyncWriteExt + Unpin), text: &str) -> bool {
    let framed = format!("{:x}\r\n{text}\r\n", text.len());
    to_client.write_all(framed.as_bytes()).await.is_ok()
}

/// A request: its head, and as much body as the head says.
async fn request(socket: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let read = socket.read_buf(&mut bytes).await.expect("a request");
        let text = String::from_utf8_lossy(&bytes);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let lines = head.lines().filter_map(|line| line.split_once(':'));
            let mut length = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length = length
                .next()
                .and_then(|(_, value)| value.trim().parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return text.into_owned();
            }
        }
        assert!(read > 0, "a whole request");
    }
}
