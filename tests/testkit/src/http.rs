//! Plain HTTP against an edge or an admin port: requests, answers, event streams.

use std::collections::VecDeque;
use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Client, Method, RequestBuilder};
use serde_json::Value;

/// Longest wait for an answer, or for the next message of a stream: longer than a server that
/// was killed takes to come back on a machine with other things to do.
const WITHIN: Duration = Duration::from_secs(60);

/// A client of one address.
#[derive(Clone)]
pub struct Http {
    client: Client,
    base: String,
    token: Option<String>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub text: String,
}

impl Reply {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("{:?} is no JSON: {error}", self.text))
    }

    /// Status and code of a refusal, whose body must have the documented fields.
    pub fn refusal(&self) -> (u16, String) {
        let body = self.json();
        let field = |name: &str| body.get(name).and_then(Value::as_str);
        let said = field("message").zip(field("advice"));
        assert!(said.is_some(), "no message or advice: {body}");
        assert!(body.get("details").is_some_and(Value::is_object), "{body}");
        let code = field("code").unwrap_or_else(|| panic!("no code: {body}"));
        (self.status, code.to_owned())
    }

    /// A header as text; empty if it is not there.
    pub fn header(&self, name: &str) -> String {
        let value = self.headers.get(name).and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    }
}

impl Http {
    /// Speaks to `addr` (`127.0.0.1:port`) in the clear, without a token.
    pub fn new(addr: &str) -> Self {
        Self::build(format!("http://{addr}"), Client::builder())
    }

    /// Speaks TLS to `addr` and trusts only this authority.
    pub fn tls(addr: &str, ca_pem: &str) -> Self {
        let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes()).expect("a certificate");
        Self::build(
            format!("https://{addr}"),
            Client::builder().tls_certs_only([ca]),
        )
    }

    fn build(base: String, builder: reqwest::ClientBuilder) -> Self {
        // A second installation is refused; the first one serves as well.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = builder.no_proxy().build().expect("a client");
        Self {
            client,
            base,
            token: None,
        }
    }

    /// The same, with a token in every request.
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..self.clone()
        }
    }

    /// `GET`.
    pub async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.send(Method::GET, path, headers, String::new()).await
    }

    /// `POST`.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &str) -> Reply {
        self.send(Method::POST, path, headers, body.to_owned())
            .await
    }

    /// Any request.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: String,
    ) -> Reply {
        let request = self.request(method, path, headers).body(body);
        let answer = tokio::time::timeout(WITHIN, request.send()).await;
        read(answer.expect("an answer in time").expect("an answer")).await
    }

    /// Opens an event stream, or gets the refusal.
    pub async fn stream(&self, path: &str, headers: &[(&str, &str)]) -> Result<EventStream, Reply> {
        match self.try_stream(path, headers).await {
            Ok(answer) => answer,
            Err(why) => panic!("{why}"),
        }
    }

    /// The same where the server may be away: the outer error says so.
    pub async fn try_stream(
        &self,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Result<Result<EventStream, Reply>, String> {
        let request = self.request(Method::GET, path, headers);
        let answer = tokio::time::timeout(WITHIN, request.send()).await;
        let answer = answer.expect("an answer in time");
        let answer = answer.map_err(|error| format!("no answer: {error}"))?;
        if answer.status() != 200 {
            return Ok(Err(read(answer).await));
        }
        let kind = answer.headers().get("content-type").cloned();
        assert_eq!(kind.expect("a content type"), "text/event-stream");
        Ok(Ok(EventStream {
            answer,
            bytes: Vec::new(),
            ready: VecDeque::new(),
        }))
    }

    fn request(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> RequestBuilder {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
    }
}

async fn read(answer: reqwest::Response) -> Reply {
    Reply {
        status: answer.status().as_u16(),
        headers: answer.headers().clone(),
        text: answer.text().await.expect("a whole body"),
    }
}

/// What `EventSource` would make of a response: messages, and nothing of comments.
pub struct EventStream {
    answer: reqwest::Response,
    bytes: Vec<u8>,
    ready: VecDeque<Message>,
}

/// One message of an event stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// `id:`, empty if there is none.
    pub id: String,
    /// `event:`, empty if there is none.
    pub event: String,
    /// All `data:` lines.
    pub data: String,
}

impl Message {
    /// The data as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data)
            .unwrap_or_else(|error| panic!("{:?} is no JSON: {error}", self.data))
    }
}

impl EventStream {
    /// The next message; `None` when the stream is over or broken.
    pub async fn next(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.ready.pop_front() {
                return Some(message);
            }
            let piece = tokio::time::timeout(WITHIN, self.answer.chunk()).await;
            let piece = piece.expect("a message in time").ok().flatten()?;
            self.take(&piece);
        }
    }

    fn take(&mut self, piece: &[u8]) {
        self.bytes.extend_from_slice(piece);
        // A message ends with an empty line; what comes after the last one waits for its rest.
        let end = |bytes: &[u8]| bytes.windows(2).position(|two| two == b"\n\n");
        while let Some(end) = end(&self.bytes) {
            let block: Vec<u8> = self.bytes.drain(..end + 2).collect();
            let block = String::from_utf8(block).expect("an event stream is UTF-8");
            self.ready.extend(parse(&block));
        }
    }
}

fn parse(block: &str) -> Option<Message> {
    let mut message = Message::default();
    let mut data = Vec::new();
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => value.clone_into(&mut message.id),
            "event" => value.clone_into(&mut message.event),
            "data" => data.push(value),
            _ => {},
        }
    }
    message.data = data.join("\n");
    (!data.is_empty()).then_some(message)
}
