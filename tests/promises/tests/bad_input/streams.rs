//! Pipelined publish streams that are opened, fed or used in a wrong way.

use everwire_core::Refusal;
use everwire_proto::refusal::{from_error, from_status};
use everwire_proto::v1;
use everwire_testkit::{grpc, tokens as mint};
use tokio::sync::mpsc;
use tonic::{Status, Streaming};
use v1::publish_client::PublishClient;
use v1::publish_stream_request::Message as Say;
use v1::publish_stream_response::Message as Heard;
use v1::runs_client::RunsClient;

use crate::{House, app, heavy};

/// A stream, both its halves.
pub(crate) struct Pipe {
    say: mpsc::Sender<v1::PublishStreamRequest>,
    hear: Streaming<v1::PublishStreamResponse>,
}

impl Pipe {
    /// Calls the method; nothing is said yet.
    async fn new(house: &House, token: &str) -> Result<Self, Status> {
        let (say, said) = mpsc::channel(16);
        let requests = futures_util::stream::unfold(said, async |mut said| {
            let next = said.recv().await?;
            Some((next, said))
        });
        let mut request = grpc::with(token, requests);
        request.metadata_mut().remove("grpc-timeout");
        let mut client = PublishClient::new(house.channel.clone());
        let hear = client.stream(request).await?.into_inner();
        Ok(Self { say, hear })
    }

    async fn say(&self, message: Say) {
        let request = v1::PublishStreamRequest {
            message: Some(message),
        };
        // A stream that is over takes nothing; that is found out by hearing.
        let _ = self.say.send(request).await;
    }

    async fn open(&self, (session, run, run_epoch): (&str, &str, u32)) {
        self.say(Say::Open(v1::PublishOpen {
            session: session.to_owned(),
            run: run.to_owned(),
            run_epoch,
            session_epoch: String::new(),
        }))
        .await;
    }

    pub(crate) async fn batch(&self, first_seq: u64, drafts: Vec<v1::Draft>) {
        self.say(Say::Batch(v1::PublishBatch { first_seq, drafts }))
            .await;
    }

    async fn hear(&mut self) -> Result<Heard, Refusal> {
        let message = self.hear.message().await;
        let message = message.map_err(|status| from_status(&status))?;
        let message = message.expect("the stream is not over");
        Ok(message.message.expect("a message says something"))
    }

    /// The next answer, which must be the refusal of a batch.
    pub(crate) async fn refused(&mut self) -> Refusal {
        match self.hear().await {
            Ok(Heard::Refused(refused)) => from_error(refused.error.expect("a reason")),
            other => panic!("not refused: {other:?}"),
        }
    }

    async fn acked(&mut self) -> u64 {
        match self.hear().await {
            Ok(Heard::Ack(ack)) => ack.through_seq,
            other => panic!("not acked: {other:?}"),
        }
    }

    /// The status that ends the stream.
    async fn ended(&mut self) -> &'static str {
        match self.hear().await {
            Err(refusal) => refusal.code.as_str(),
            Ok(other) => panic!("not ended: {other:?}"),
        }
    }
}

/// How opening a stream is answered: `ok`, or its code.
pub(crate) async fn opened(house: &House, token: &str, place: (&str, &str, u32)) -> &'static str {
    let mut pipe = match Pipe::new(house, token).await {
        Ok(pipe) => pipe,
        Err(status) => return grpc::code(Err::<(), _>(status)),
    };
    pipe.open(place).await;
    match pipe.hear().await {
        Ok(Heard::Opened(_)) => "ok",
        Ok(other) => panic!("not opened: {other:?}"),
        Err(refusal) => refusal.code.as_str(),
    }
}

/// An open stream on a live run.
pub(crate) async fn ready(house: &House, token: &str, place: (&str, &str, u32)) -> Pipe {
    let mut pipe = Pipe::new(house, token).await.expect("a good token");
    pipe.open(place).await;
    let opened = pipe.hear().await;
    assert!(matches!(opened, Ok(Heard::Opened(_))), "{opened:?}");
    pipe
}

/// Starts a run.
pub(crate) async fn start(house: &House, token: &str, session: &str, run: &str) {
    let request = v1::StartRequest {
        session: session.to_owned(),
        run: run.to_owned(),
        ..v1::StartRequest::default()
    };
    let mut runs = RunsClient::new(house.channel.clone());
    let granted = runs.start(grpc::with(token, request)).await;
    assert_eq!(granted.expect("granted").into_inner().run_epoch, 1);
}

#[tokio::test]
async fn a_stream_begins_with_open_and_opens_once() {
    let mut house = House::start().await;
    let token = mint::agent(house.data(), "bot");
    start(&house, &token, "s", "r").await;
    let mut pipe = Pipe::new(&house, &token).await.expect("a good token");
    pipe.batch(1, vec![app("x")]).await;
    assert_eq!(pipe.ended().await, "MALFORMED");
    let mut pipe = Pipe::new(&house, &token).await.expect("a good token");
    let nothing = v1::PublishStreamRequest { message: None };
    pipe.say.send(nothing).await.expect("it reads");
    assert_eq!(pipe.ended().await, "MALFORMED");
    for (place, code) in [
        (("s", "r", 0), "MALFORMED"),
        (("a b", "r", 1), "MALFORMED"),
        (("s", "", 1), "MALFORMED"),
        (("nowhere", "r", 1), "UNKNOWN_SESSION"),
    ] {
        assert_eq!(opened(&house, &token, place).await, code, "{place:?}");
    }
    // What was sent before the mistake is committed and told.
    let mut pipe = ready(&house, &token, ("s", "r", 1)).await;
    pipe.batch(1, vec![app("x")]).await;
    pipe.open(("s", "r", 1)).await;
    assert_eq!(pipe.acked().await, 1);
    assert_eq!(pipe.ended().await, "MALFORMED");
    house.unharmed().await;
}

#[tokio::test]
async fn batches_of_a_wrong_shape_are_refused_in_their_turn() {
    let mut house = House::start().await;
    let token = mint::agent(house.data(), "bot");
    start(&house, &token, "s", "r").await;
    let mut pipe = ready(&house, &token, ("s", "r", 1)).await;
    for (first_seq, drafts, code) in [
        (1, vec![], "MALFORMED"),
        (0, vec![app("x")], "MALFORMED"),
        (1, vec![v1::Draft::default()], "MALFORMED"),
        (1, vec![crate::input("i", "not a run's")], "MALFORMED"),
        (1, vec![app("x"); 4097], "TOO_LARGE"),
        (1, vec![heavy((256 << 10) + 1)], "TOO_LARGE"),
        (1, vec![heavy(130 << 10), heavy(130 << 10)], "TOO_LARGE"),
    ] {
        let count = drafts.len();
        pipe.batch(first_seq, drafts).await;
        let refusal = pipe.refused().await;
        assert_eq!(refusal.code.as_str(), code, "{first_seq} {count}");
    }
    // The stream goes on as if nothing had happened; what is just within is taken.
    pipe.batch(1, vec![heavy(256 << 10)]).await;
    assert_eq!(pipe.acked().await, 1);
    pipe.batch(2, vec![app("x"); 4096]).await;
    assert_eq!(pipe.acked().await, 4097);
    // A message that no node reads ends its stream, and only its stream.
    pipe.batch(4098, vec![heavy(600 << 10)]).await;
    assert_eq!(pipe.ended().await, "TOO_LARGE");
    house.unharmed().await;
}

#[tokio::test]
async fn credit_is_overdrawn_by_one_batch_and_no_more() {
    let mut house = House::start().await;
    let token = mint::agent(house.data(), "bot");
    start(&house, &token, "s", "r").await;
    let mut pipe = ready(&house, &token, ("s", "r", 1)).await;
    // A flood that never waits for an ack: refused as a whole, or read no faster than allowed.
    let flood = async {
        for number in 0..64 {
            pipe.batch(1 + number, vec![heavy(200 << 10)]).await;
        }
        let mut through = 0;
        loop {
            match pipe.hear().await {
                Ok(Heard::Ack(ack)) => through = ack.through_seq,
                Ok(Heard::Refused(_)) => {},
                Ok(Heard::Opened(_)) => panic!("opened twice"),
                Err(refusal) => return (through, refusal.code.as_str()),
            }
            if through == 64 {
                return (through, "ok");
            }
        }
    };
    let (through, code) = flood.await;
    assert!(
        code == "MALFORMED" || through == 64,
        "{code} after {through}"
    );
    house.unharmed().await;
}
