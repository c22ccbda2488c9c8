//! Bad input against a live server: each kind has its code, is its connection's own business,
//! takes bounded memory and harms nobody. A well-behaved tab is attached all the time.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "a helper of tests says what went wrong by failing the test"
)]

#[path = "bad_input/floods.rs"]
mod floods;
#[path = "bad_input/frames.rs"]
mod frames;
#[path = "bad_input/readers.rs"]
mod readers;
#[path = "bad_input/streams.rs"]
mod streams;
#[path = "bad_input/tokens.rs"]
mod tokens;
#[path = "bad_input/writers.rs"]
mod writers;

use std::path::Path;

use everwire_core::{Offset, SessionName};
use everwire_proto::v1;
use everwire_testkit::{Http, Server, Tab, grpc, process, tokens as mint};
use tempfile::TempDir;
use tonic::transport::Channel;
use v1::publish_client::PublishClient;

/// A server, and a tab that minds its own business in the session `calm`.
struct House {
    folder: TempDir,
    server: Server,
    channel: Channel,
    neighbour: Tab,
    /// Its last event.
    tail: Offset,
    writer: String,
}

impl House {
    async fn start() -> Self {
        Self::start_with(&[]).await
    }

    async fn start_with(flags: &[&str]) -> Self {
        let folder = process::folder();
        let server = Server::dev_with(folder.path(), flags).await;
        let token = mint::user(folder.path(), "neighbour");
        let calm = SessionName::parse("calm").expect("a good name");
        let neighbour = Tab::attached(&server.http, &token, &calm, None).await;
        let mut house = Self {
            channel: grpc::channel(&server.grpc).await,
            writer: mint::agent(folder.path(), "writer"),
            folder,
            server,
            neighbour,
            tail: Offset::ZERO,
        };
        house.unharmed().await;
        house
    }

    fn data(&self) -> &Path {
        self.folder.path()
    }

    fn http(&self, token: &str) -> Http {
        Http::new(&self.server.http).with_token(token)
    }

    /// A token with every right.
    fn all(&self) -> String {
        mint::without(self.data(), "eve", &[])
    }

    /// The neighbour gets its next event, at the next offset: nothing came between.
    async fn unharmed(&mut self) {
        let request = grpc::with(
            &self.writer,
            v1::PostRequest {
                session: "calm".to_owned(),
                draft: Some(app("tick")),
                key: String::new(),
            },
        );
        let mut publish = PublishClient::new(self.channel.clone());
        let posted = publish.post(request).await.expect("a good post is taken");
        self.tail = self.tail.next();
        assert_eq!(posted.into_inner().offset, self.tail.get());
        self.neighbour.read_to(self.tail).await;
        assert_eq!(self.neighbour.cursor.offset, self.tail);
    }
}

/// An application event.
fn app(name: &str) -> v1::Draft {
    draft(v1::draft::Body::App(v1::App {
        name: name.to_owned(),
        data: None,
    }))
}

/// An input.
fn input(id: &str, text: &str) -> v1::Draft {
    draft(v1::draft::Body::Input(v1::Input {
        input: id.to_owned(),
        text: text.to_owned(),
        data: None,
    }))
}

/// An event with a payload of so many bytes: the name of an `app` event counts.
fn heavy(bytes: usize) -> v1::Draft {
    let name = "heavy".to_owned();
    let json = format!("\"{}\"", "x".repeat(bytes - name.len() - 2));
    draft(v1::draft::Body::App(v1::App {
        name,
        data: Some(v1::Data {
            data: Some(v1::data::Data::Json(json)),
        }),
    }))
}

fn draft(body: v1::draft::Body) -> v1::Draft {
    v1::Draft {
        body: Some(body),
        ..v1::Draft::default()
    }
}
