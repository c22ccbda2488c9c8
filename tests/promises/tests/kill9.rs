//! Fifty times kill -9 and start again on the same directory and ports, under writers at full
//! speed: whatever was acked is there, where it was said to be, to the byte.

use std::path::Path;
use std::time::Duration;

use everwire_client::Client;
use everwire_core::command::SignalOutcome;
use everwire_core::row::RunState;
use everwire_core::{Body, Code, Event, Offset, RunEpoch, RunId, Seq, SessionName};
use everwire_promises::process::said;
use everwire_promises::writers::{Said, draft};
use everwire_promises::{Follower, History, Log, Reader, Writers, history};
use everwire_proto::storage;
use everwire_testkit::client::{client, random};
use everwire_testkit::process::{command, dev_token, fixed_addr, folder};
use everwire_testkit::{Server, run, tokens};
use tempfile::TempDir;
use tokio::time::Instant;

/// Kills of a server that was ready.
const KILLS: u64 = 50;
/// Acked events between two kills, at least.
const ACKED: u64 = 1_000;
/// Every so many kills the next start is killed too, before it is ready.
const ALSO_IN_RECOVERY: u64 = 5;
/// Every so many kills the server is also stopped once as it should be: then it flushes, and
/// forgets the log below.
const STOP_TOO: u64 = 10;
/// Every so many kills everything is read again from the first event on.
const ALL_AGAIN: u64 = 25;
/// Otherwise so many events of each session are read again: those of the last rounds.
const AGAIN: u64 = 1_200;
/// Longest wait for the acks of a round.
const WITHIN: Duration = Duration::from_secs(30);

/// One server, that comes back at the same place.
struct Place {
    grpc: String,
    http: String,
    admin: String,
}

impl Place {
    fn new() -> Self {
        Self {
            grpc: fixed_addr(),
            http: fixed_addr(),
            admin: fixed_addr(),
        }
    }

    fn flags(&self) -> [&str; 6] {
        let (grpc, http, admin) = (&self.grpc, &self.http, &self.admin);
        ["--grpc", grpc, "--http", http, "--admin", admin]
    }

    async fn start(&self, data: &Path) -> Server {
        Server::dev_with(data, &self.flags()).await
    }

    /// Starts it and kills it a moment later, wherever it is then.
    async fn crash_soon(&self, data: &Path, after: Duration) {
        let data = data.to_str().expect("a UTF-8 path");
        let mut child = command(&["dev", "--data", data])
            .args(self.flags())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("it starts");
        tokio::time::sleep(after).await;
        child.kill().await.expect("it ran");
    }
}

/// A session, and what was read of it so far.
struct Book {
    session: SessionName,
    log: Vec<Event>,
}

impl Book {
    async fn new(client: &Client, session: &str) -> Self {
        let session = SessionName::parse(session).expect("a good name");
        client.create_session(&session).await.expect("made");
        let log = Vec::new();
        Self { session, log }
    }

    /// Reads on, beginning `again` events before the end of what was read before: those must be
    /// as they were. Then every ack of that stretch is looked up.
    async fn check(&mut self, client: &Client, writers: &Writers, again: u64) {
        let known = self.log.len() as u64;
        let keep = usize::try_from(known.saturating_sub(again)).expect("small");
        let from = Offset::new(keep as u64 + 1).expect("small");
        // First the acks, then the log: what is acked meanwhile is for the next time.
        let acked = writers.acked_in(&self.session, from);
        let read = Log::read_from(client, &self.session, from).await.events;
        let before = self.log.get(keep..).unwrap_or_default();
        assert!(
            read.len() >= before.len(),
            "{}: a tail is lost",
            self.session
        );
        let same = before.iter().zip(&read).find(|(one, two)| one != two);
        assert_eq!(same, None, "{}: an event has changed", self.session);
        self.log.truncate(keep);
        self.log.extend(read);
        assert_eq!(self.tail().get(), self.log.len() as u64, "{}", self.session);
        let fresh = self.log.get(keep..).unwrap_or_default();
        history::assert_none(&self.session, &history::acks(fresh, &acked));
    }

    fn tail(&self) -> Offset {
        self.log.last().map_or(Offset::ZERO, |last| last.offset)
    }

    /// Every input that was taken stands at its place, and none stands twice.
    fn check_said(&self, said: &[Said]) {
        let inputs = self.log.iter().filter_map(|event| match &event.body {
            Body::Input { input, .. } => Some((event.offset, input)),
            _ => None,
        });
        let mut names: Vec<_> = inputs.map(|(_, input)| input).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count, "an input stands twice");
        for said in said {
            let index = usize::try_from(said.offset.get() - 1).expect("small");
            let event = self.log.get(index).expect("not above the tail");
            assert_eq!(event.body, said.draft.body, "{}", said.offset);
        }
    }
}

/// A run that was cancelled, and where.
struct Stopped {
    run: RunId,
    last_seq: Seq,
    offset: Offset,
}

impl Stopped {
    async fn new(agent: &Client, ann: &Client, session: &SessionName, number: u64) -> Self {
        let run = RunId::parse(&format!("stopped-{number}")).expect("a good name");
        let publisher = agent.start_run(session, run.clone(), None).await;
        let publisher = publisher.expect("started");
        let drafts = (1..=5).map(|seq| draft(&run, Seq(seq))).collect();
        let last_seq = publisher.send(drafts).await.expect("taken");
        publisher.flush().await.expect("acked");
        let cancelled = ann.cancel(session, &run, None).await.expect("decided");
        match cancelled.outcome {
            SignalOutcome::Applied { offset } => Self {
                run,
                last_seq,
                offset,
            },
            other => panic!("{other:?}"),
        }
    }

    /// It is still stopped there, for everybody.
    async fn check(&self, client: &Client, session: &SessionName) {
        let info = client.run(session, &self.run).await.expect("it is known");
        assert_eq!(info.state, RunState::Cancelled);
        assert_eq!(info.ended, Some(self.offset));
        assert_eq!(info.last_seq, self.last_seq);
        let next = self.last_seq.next();
        let late = client.publisher(session, self.run.clone(), RunEpoch::FIRST, next);
        let refusal = late.complete().await.expect_err("the run is fenced");
        assert_eq!(refusal.code, Code::RunFenced);
        assert_eq!(refusal.details.cancel_offset, Some(self.offset));
    }
}

/// Everything that the kills happen under.
struct Siege {
    data: TempDir,
    place: Place,
    agent: Client,
    ann: Client,
    books: [Book; 2],
    writers: Writers,
    /// One of each kind, on the first session.
    readers: Vec<Follower>,
    restarts: Vec<Duration>,
    /// Fewest acked events between two kills.
    fewest: u64,
}

impl Siege {
    async fn new() -> (Self, Server) {
        let (data, place) = (folder(), Place::new());
        let server = place.start(data.path()).await;
        let token = tokens::agent(data.path(), "bot");
        let person = tokens::user(data.path(), "ann");
        let (agent, ann) = (client(&place.grpc, &token), client(&place.grpc, &person));
        let books = [Book::new(&agent, "a").await, Book::new(&agent, "b").await];
        let [a, b] = &books;
        let mut writers = Writers::default();
        writers.add_client(&agent, &a.session, "r1").await;
        writers.add_client(&agent, &a.session, "r2").await;
        let other = client(&place.grpc, &token);
        writers.add_client(&other, &b.session, "r3").await;
        writers.add_process(&place.grpc, &token, &b.session, "r4");
        writers.add_person(&ann, &b.session, 5);
        let readers = Follower::each(&place.http, &person, &a.session).await;
        let siege = Self {
            data,
            place,
            agent,
            ann,
            books,
            writers,
            readers,
            restarts: Vec::new(),
            fewest: u64::MAX,
        };
        (siege, server)
    }

    /// Lets writers write, kills the server among it, starts it anew and looks at everything.
    async fn round(&mut self, server: Server, kill: u64) -> Server {
        let stopped = Stopped::new(&self.agent, &self.ann, &self.books[1].session, kill).await;
        let before = self.writers.acked();
        self.writers.go();
        let due = before + ACKED + random() % 200;
        self.writers.reached(due, WITHIN).await;
        self.fewest = self.fewest.min(self.writers.acked() - before);
        server.kill().await;
        self.writers.pause();
        for reader in &mut self.readers {
            reader.read_to_end().await;
        }
        if kill.is_multiple_of(ALSO_IN_RECOVERY) {
            let after = Duration::from_millis(random() % 400);
            self.place.crash_soon(self.data.path(), after).await;
        }
        let down = Instant::now();
        let mut server = self.place.start(self.data.path()).await;
        self.restarts.push(down.elapsed());

        let all = kill.is_multiple_of(ALL_AGAIN);
        self.check(if all { u64::MAX } else { AGAIN }).await;
        if kill.is_multiple_of(STOP_TOO) {
            assert_eq!(server.stop().await, Some(0));
            server = self.place.start(self.data.path()).await;
        }
        stopped.check(&self.agent, &self.books[1].session).await;
        // Nobody was ever shown an event that is gone now: every cursor is good.
        for reader in &mut self.readers {
            reader.come_back(&self.place.http).await;
        }
        server
    }

    async fn check(&mut self, again: u64) {
        let said = self.writers.said();
        for book in &mut self.books {
            book.check(&self.agent, &self.writers, again).await;
        }
        self.books[1].check_said(&said);
    }

    /// Ends the writers and holds everything against everything.
    async fn end(mut self) -> String {
        self.writers.end().await;
        self.check(u64::MAX).await;
        let mut readers = Vec::new();
        for mut reader in self.readers.drain(..) {
            reader.read_to(self.books[0].tail()).await;
            readers.push(reader.into_reader());
        }
        let readers: [&[Reader]; 2] = [&readers, &[]];
        for (book, readers) in self.books.iter().zip(readers) {
            let acked = self.writers.acked_in(&book.session, Offset::ZERO);
            let history = History {
                log: &book.log,
                acked: &acked,
                readers,
            };
            history.assert_sound(&book.session);
        }
        let kills = u32::try_from(self.restarts.len()).expect("few");
        format!(
            "{kills} kills: {} events acked, at least {} between two, {} inputs; {} events in \
             the log; a start took {:?}, the longest {:?}",
            self.writers.acked(),
            self.fewest,
            self.writers.said().len(),
            self.books.iter().map(|book| book.log.len()).sum::<usize>(),
            self.restarts.iter().sum::<Duration>() / kills,
            self.restarts.iter().max().expect("some"),
        )
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_kills_lose_nothing_that_was_acked() {
    let began = Instant::now();
    let (mut siege, mut server) = Siege::new().await;
    for kill in 1..=KILLS {
        server = siege.round(server, kill).await;
    }
    let totals = siege.end().await;
    eprintln!("{totals}; {:?} in all", began.elapsed());
}

/// A server that must not start: exit code 1, nothing on stdout, and the first word on stderr.
async fn refused(args: &[&str]) -> String {
    let output = run("127.0.0.1:1", "", args).await;
    let (code, stderr) = said(&output);
    assert_eq!(code, Some(1), "{stderr}");
    assert_eq!(output.stdout, b"", "it was never ready");
    stderr
}

/// A directory in which something was acked, by a server that has stopped.
async fn used_directory() -> TempDir {
    let data = folder();
    let server = Server::dev(data.path()).await;
    let agent = client(&server.grpc, &tokens::agent(data.path(), "bot"));
    let book = Book::new(&agent, "kept").await;
    Stopped::new(&agent, &person_at(&server, &data), &book.session, 1).await;
    server.stop().await;
    data
}

/// What was acked there is still there.
async fn assert_kept(data: &TempDir) {
    let server = Server::dev(data.path()).await;
    let agent = client(&server.grpc, &tokens::agent(data.path(), "bot"));
    let kept = SessionName::parse("kept").expect("a good name");
    let log = Log::read(&agent, &kept).await;
    // Behind it may stand that the agent has seen its stop.
    let mut kinds = log.events.iter().rev().map(Event::kind);
    let last = kinds.find(|kind| *kind != everwire_core::Kind::SignalObserved);
    assert_eq!(last, Some(everwire_core::Kind::MessageEnd));
    server.stop().await;
}

fn person_at(server: &Server, data: &TempDir) -> Client {
    client(&server.grpc, &tokens::user(data.path(), "ann"))
}

/// CRC-32C, bit by bit: apart from the one that the store uses.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            let low = crc & 1;
            crc = (crc >> 1) ^ (0x82f6_3b78 * low);
        }
    }
    !crc
}

/// IDENTITY as a release would write it whose directories have this version.
fn identity_of(version: u32, old: &[u8]) -> Vec<u8> {
    let (header, payload) = old.split_at(5);
    let (format, stored) = header.split_at(1);
    let sum = |payload: &[u8]| crc32c(&[format, b"IDENTITY", payload].concat());
    assert_eq!(stored, sum(payload).to_be_bytes(), "as documented");
    let mut identity = storage::decode_identity(payload).expect("our own");
    identity.format_version = version;
    let payload = storage::encode_identity(&identity);
    [format, &sum(&payload).to_be_bytes(), &payload].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_a_newer_release_is_refused_and_left_alone() {
    let data = used_directory().await;
    let identity = data.path().join("IDENTITY");
    let old = std::fs::read(&identity).unwrap();
    std::fs::write(&identity, identity_of(2, &old)).unwrap();
    let dir = data.path().to_str().unwrap();
    let free = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let args = [&["dev", "--data", dir, "--admin", "127.0.0.1:0"], &free[..]].concat();
    for _ in 0..2 {
        let stderr = refused(&args).await;
        assert!(stderr.starts_with("UNSUPPORTED_VERSION: "), "{stderr}");
    }
    // With its old release it goes on.
    std::fs::write(&identity, &old).unwrap();
    assert_kept(&data).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_of_another_cluster_is_refused_and_left_alone() {
    let data = used_directory().await;
    let dir = data.path().to_str().unwrap();
    let key = data.path().join("auth.key.pub");
    let args = [
        "node",
        "--data",
        dir,
        "--grpc",
        "127.0.0.1:0",
        "--admin",
        "127.0.0.1:0",
        "--auth-key",
        key.to_str().unwrap(),
        "--cluster",
    ];
    let stderr = refused(&[&args[..], &["another"]].concat()).await;
    assert!(stderr.starts_with("WRONG_CLUSTER: "), "{stderr}");
    assert_kept(&data).await;

    // Of its own cluster it is taken; and an empty one gets the id that was given.
    let server = Server::dev(data.path()).await;
    let agent = client(&server.grpc, &dev_token(data.path()));
    let cluster = agent.cluster_status().await.expect("answered").cluster;
    server.stop().await;
    let own = [&args[..], &[&cluster]].concat();
    let node = Server::start(data.path(), &own).await;
    assert_eq!(node.stop().await, Some(0));
    let fresh = folder();
    let mut named = [&args[..], &["ours"]].concat();
    named[2] = fresh.path().to_str().unwrap();
    let node = Server::start(fresh.path(), &named).await;
    assert_eq!(node.stop().await, Some(0));
    let last = named.len() - 1;
    named[last] = "theirs";
    let stderr = refused(&named).await;
    assert!(stderr.starts_with("WRONG_CLUSTER: "), "{stderr}");

    // Somebody else's IDENTITY on our disk: neither cluster may have it.
    let (identity, other) = (data.path().join("IDENTITY"), fresh.path().join("IDENTITY"));
    let old = std::fs::read(&identity).unwrap();
    std::fs::copy(&other, &identity).unwrap();
    let stderr = refused(&[&args[..], &["ours"]].concat()).await;
    assert!(stderr.contains("watermark belongs to"), "{stderr}");
    std::fs::write(&identity, old).unwrap();
    assert_kept(&data).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_has_one_process_at_a_time() {
    let data = folder();
    let server = Server::dev(data.path()).await;
    let dir = data.path().to_str().unwrap();
    let free = ["--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let args = [&["dev", "--data", dir, "--admin", "127.0.0.1:0"], &free[..]].concat();
    let stderr = refused(&args).await;
    assert!(stderr.contains("in use by another process"), "{stderr}");
    // The first one does not notice: it takes and acks as before.
    let agent = client(&server.grpc, &tokens::agent(data.path(), "bot"));
    let book = Book::new(&agent, "kept").await;
    Stopped::new(&agent, &person_at(&server, &data), &book.session, 1).await;
    server.kill().await;
    assert_kept(&data).await;
}
