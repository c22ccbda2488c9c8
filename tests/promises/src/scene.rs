//! A session with its people and agents: what every test of a promise begins and ends with.

use std::path::Path;

use everwire_client::Client;
use everwire_core::event::Data;
use everwire_core::{Body, Draft, InputId, Key, Offset, SessionName};
use everwire_testkit::{client, tokens};

use crate::follower::{Follower, Kind};
use crate::{History, Log, Reader, Written};

/// A session, an agent's client and a person's token.
pub struct Scene {
    /// The session; it is there.
    pub session: SessionName,
    /// The agent's client.
    pub agent: Client,
    /// The agent's token, for processes.
    pub agent_token: String,
    /// A person's token.
    pub person: String,
}

impl Scene {
    /// Makes the session at `grpc`; `keys` is the folder with the server's keys.
    pub async fn new(keys: &Path, grpc: &str, session: &str) -> Self {
        let agent_token = tokens::agent(keys, "bot");
        let session = SessionName::parse(session).expect("a good name");
        let agent = client(grpc, &agent_token);
        let created = agent.create_session(&session).await;
        assert!(created.expect("the node answers").created, "a new session");
        Self {
            session,
            agent,
            agent_token,
            person: tokens::user(keys, "ann"),
        }
    }

    /// A person's reader at an edge, from the first event on.
    pub async fn follow(&self, kind: Kind, http: &str) -> Follower {
        Follower::attach(kind, http, &self.person, &self.session).await
    }

    /// One reader of every kind at an edge.
    pub async fn follow_each(&self, http: &str) -> Vec<Follower> {
        Follower::each(http, &self.person, &self.session).await
    }

    /// Reads the log, lets every reader come to its end and holds everything against each other.
    pub async fn assert_sound(&self, written: &[&Written], followers: Vec<Follower>) -> Log {
        let log = Log::read(&self.agent, &self.session).await;
        let mut readers: Vec<Reader> = Vec::new();
        for mut follower in followers {
            follower.read_to(log.tail()).await;
            readers.push(follower.into_reader());
        }
        let acked = written.iter().flat_map(|run| run.acked.iter().cloned());
        let acked: Vec<_> = acked.collect();
        let history = History {
            log: &log.events,
            acked: &acked,
            readers: &readers,
        };
        history.assert_sound(&self.session);
        log
    }

    /// The same, and nobody stopped anything: every run was completed by its writer, who was told
    /// so for each of its events.
    pub async fn assert_undisturbed(&self, written: &[&Written], followers: Vec<Follower>) -> Log {
        let log = self.assert_sound(written, followers).await;
        log.assert_undisturbed();
        for run in written {
            let last = run.ended.as_ref().expect("completed");
            let acked = run.acked.last().expect("acked");
            assert_eq!((acked.seq, acked.offset), (last.seq, last.offset));
            let output = log.events.iter().filter(|event| {
                let stamp = event.run.as_ref().filter(|stamp| stamp.run == run.run);
                stamp.is_some_and(|stamp| stamp.seq.is_some())
            });
            assert_eq!(output.count(), run.acked.len(), "each was acked once");
        }
        log
    }
}

/// An input of a person.
pub fn input(id: &str, text: &str) -> (Draft, Key) {
    let body = Body::Input {
        input: InputId::parse(id).expect("a good name"),
        text: text.to_owned(),
        data: Some(Data::Json("{\"from\": \"a test\"}".to_owned())),
    };
    let key = Key::parse(&format!("key-{id}")).expect("a good name");
    (Draft::new(body), key)
}

/// An offset from a number.
pub fn at(offset: u64) -> Offset {
    Offset::new(offset).expect("small")
}
