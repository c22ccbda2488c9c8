//! More nodes than a shard has replicas: a caller who knows one address and follows no hint is
//! served there, whoever holds what.

use std::ops::Range;
use std::time::Duration;

use everwire_cluster_tests::alone;

use everwire_core::event::Body;
use everwire_core::{Advice, Code, Draft, Event, Refusal, SessionName};
use everwire_proto::refusal::{from_error, from_status};
use everwire_proto::v1;
use everwire_proto::v1::attach_client::AttachClient;
use everwire_proto::v1::follow_response::Message as Followed;
use everwire_proto::v1::publish_client::PublishClient;
use everwire_proto::v1::publish_stream_request::Message as Sent;
use everwire_proto::v1::publish_stream_response::Message as Published;
use everwire_proto::v1::runs_client::RunsClient;
use everwire_proto::v1::sessions_client::SessionsClient;
use everwire_proto::v1::signals_client::SignalsClient;
use everwire_testkit::cluster::shard_of;
use everwire_testkit::grpc::{channel, with};
use everwire_testkit::{Cluster, say, tokens};
use futures_util::future::join_all;
use futures_util::stream;
use tokio::sync::{Barrier, mpsc};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Response, Status, Streaming};

use crate::times::BALANCED_WITHIN;

/// Two more than hold any shard.
const NODES: usize = 5;
/// Longest wait for one event, an election among what it waits for.
const WITHIN: Duration = Duration::from_secs(30);
/// Nobody loses a run here for saying nothing.
const LEASE_MS: u32 = 600_000;
/// How soon a refused call is made again.
const AGAIN_AFTER: Duration = Duration::from_millis(50);
/// Events of each session at the beginning: a run's start, and its output.
const WRITTEN_FIRST: u64 = 6;
/// Events of each session that are written while a node is gone.
const WRITTEN_MEANWHILE: u64 = 10;
/// Starts of silent runs, meanwhile too.
const STARTED_MEANWHILE: u64 = 1;

/// A caller of one node, whatever it answers.
struct Bare {
    channel: Channel,
    token: String,
    user: String,
}

impl Bare {
    async fn of(cluster: &Cluster, number: usize) -> Self {
        Self {
            channel: channel(cluster.grpc(number)).await,
            token: tokens::agent(cluster.keys(), "bot"),
            user: tokens::user(cluster.keys(), "ann"),
        }
    }

    fn publish(&self) -> PublishClient<Channel> {
        PublishClient::new(self.channel.clone())
    }

    fn runs(&self) -> RunsClient<Channel> {
        RunsClient::new(self.channel.clone())
    }

    async fn start(&self, session: &SessionName, run: &str) {
        self.until_led(async || {
            let request = v1::StartRequest {
                session: session.to_string(),
                run: run.to_owned(),
                key: format!("start-{run}"),
                lease_ms: LEASE_MS,
                ..v1::StartRequest::default()
            };
            self.runs().start(with(&self.token, request)).await
        })
        .await;
    }

    async fn append(&self, session: &SessionName, run: &str, seqs: Range<u64>) {
        self.until_led(async || {
            let drafts = seqs.clone().map(|seq| v1::Draft::from(&app(seq)));
            let request = v1::AppendRequest {
                session: session.to_string(),
                run: run.to_owned(),
                run_epoch: 1,
                batch: Some(v1::PublishBatch {
                    first_seq: seqs.start,
                    drafts: drafts.collect(),
                }),
                ..v1::AppendRequest::default()
            };
            self.publish().append(with(&self.token, request)).await
        })
        .await;
    }

    async fn cancel(&self, session: &SessionName, run: &str) {
        let answer = self.until_led(async || {
            let request = v1::CancelRequest {
                session: session.to_string(),
                run: run.to_owned(),
                key: format!("stop-{run}"),
                ..v1::CancelRequest::default()
            };
            let mut signals = SignalsClient::new(self.channel.clone());
            signals.cancel(with(&self.user, request)).await
        });
        assert_eq!(answer.await.outcome, "applied", "{session}");
    }

    async fn state(&self, session: &SessionName, run: &str) -> String {
        let answer = self.until_led(async || {
            let request = v1::GetRequest {
                session: session.to_string(),
                run: run.to_owned(),
            };
            self.runs().get(with(&self.token, request)).await
        });
        answer.await.state
    }

    async fn listed(&self) -> Vec<String> {
        let answer = self.until_led(async || {
            let request = v1::ListRequest {
                prefix: "any-".to_owned(),
                limit: 100,
                ..v1::ListRequest::default()
            };
            let mut sessions = SessionsClient::new(self.channel.clone());
            sessions.list(with(&self.token, request)).await
        });
        let listed = answer.await.sessions.into_iter();
        let mut names: Vec<_> = listed.map(|listed| listed.session).collect();
        names.sort();
        names
    }

    /// Makes a call again at the same node for as long as it is told that it may.
    async fn until_led<T>(&self, call: impl AsyncFn() -> Result<Response<T>, Status>) -> T {
        let until = Instant::now() + WITHIN;
        loop {
            match call().await {
                Ok(answer) => return answer.into_inner(),
                Err(status) => {
                    let refusal = from_status(&status);
                    assert_may_come_again(&refusal);
                    assert!(Instant::now() < until, "{refusal}");
                    sleep(AGAIN_AFTER).await;
                },
            }
        }
    }

    /// Follows a session at this node, again from its cursor as often as it is told to, until it
    /// has come to `upto`: the events, and how often it was told. In the middle of its stream it
    /// waits at the barrier, when it has all that was there at the beginning.
    async fn follow(
        &self,
        session: &SessionName,
        upto: u64,
        mut middle: Option<&Barrier>,
    ) -> (Vec<Event>, u32) {
        let (mut events, mut ended): (Vec<Event>, _) = (Vec::new(), 0);
        let mut epoch = String::new();
        loop {
            let at = events.last().map_or(0, |event| event.offset.get());
            let mut request = with(
                &self.token,
                v1::FollowRequest {
                    session: session.to_string(),
                    cursor: Some(v1::Cursor {
                        session_epoch: epoch.clone(),
                        offset: at,
                    }),
                    ..v1::FollowRequest::default()
                },
            );
            request.set_timeout(WITHIN * 10);
            let mut attach = AttachClient::new(self.channel.clone());
            let stream = match attach.follow(request).await {
                Ok(stream) => stream,
                Err(status) => {
                    // Nobody leads it at this moment.
                    assert_may_come_again(&from_status(&status));
                    ended += 1;
                    sleep(AGAIN_AFTER).await;
                    continue;
                },
            };
            let mut stream = stream.into_inner();
            while let Some(message) = stream.message().await.expect("the node stays") {
                match message.message.expect("it says something") {
                    Followed::Attached(attached) => epoch = attached.session_epoch,
                    Followed::Events(more) => {
                        let more = more.events.into_iter();
                        events.extend(
                            more.map(|event| Event::try_from(event).expect("a good event")),
                        );
                    },
                    Followed::Ended(error) => {
                        assert_may_come_again(&from_error(error));
                        ended += 1;
                    },
                }
                if events.len() as u64 >= WRITTEN_FIRST
                    && let Some(middle) = middle.take()
                {
                    middle.wait().await;
                }
                if events.len() as u64 >= upto {
                    events.truncate(usize::try_from(upto).expect("a few"));
                    return (events, ended);
                }
            }
        }
    }
}

fn app(number: u64) -> Draft {
    Draft::new(Body::App {
        name: format!("event-{number}"),
        data: None,
    })
}

/// That is all that a caller is told when it has done nothing wrong.
fn assert_may_come_again(refusal: &Refusal) {
    let advice = refusal.advice();
    let may = matches!(advice, Advice::Retry | Advice::RetryElsewhere);
    assert!(may, "{refusal}");
}

fn assert_dense(session: &SessionName, events: &[Event]) {
    let offsets = events.iter().map(|event| event.offset.get());
    assert!(offsets.eq(1..=events.len() as u64), "{session}: a hole");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_node_takes_any_call() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(NODES).await;
    cluster.wait_balanced(BALANCED_WITHIN).await;
    let mut sessions = Cluster::session_of_each_shard("any");
    sessions.sort_by_key(ToString::to_string);
    let mut callers = Vec::new();
    for number in 0..NODES {
        callers.push(Bare::of(&cluster, number).await);
    }
    let replicas = cluster.leaders().await.replicas;
    let spread = replicas.values().all(|holders| holders.len() == 3);
    assert!(spread, "no node holds everything: {replicas:?}");
    // Each session is written by way of one node, whichever.
    for (at, session) in sessions.iter().enumerate() {
        let caller = &callers[at % NODES];
        caller.start(session, "r").await;
        caller.append(session, "r", 1..WRITTEN_FIRST).await;
    }
    // And read by way of each.
    let names: Vec<_> = sessions.iter().map(ToString::to_string).collect();
    for session in &sessions {
        let read = join_all(
            callers
                .iter()
                .map(|caller| caller.follow(session, WRITTEN_FIRST, None)),
        )
        .await;
        for (events, _) in &read {
            assert_dense(session, events);
            assert_eq!(events, &read[0].0, "{session}");
        }
    }
    for caller in &callers {
        assert_eq!(caller.listed().await, names);
        for session in &sessions {
            assert_eq!(caller.state(session, "r").await, "running");
        }
    }
    // Who holds a session, and who does not, hears of its end.
    for (at, session) in sessions.iter().take(NODES).enumerate() {
        let [writer, other] = [at, (at + 1) % NODES].map(|node| &callers[node]);
        let mut silent = Silent::open(writer, session).await;
        silent.hears_of_a_stop(other).await;
    }
    all_stay_while_a_holder_dies(&mut cluster, &callers, &sessions[NODES..]).await;
}

/// Readers and silent writers of everything at one node, while another dies that led some of it for them.
async fn all_stay_while_a_holder_dies(
    cluster: &mut Cluster,
    callers: &[Bare],
    sessions: &[SessionName],
) {
    let leaders = cluster.leaders().await;
    let reader = NODES - 1;
    let led_elsewhere = |session: &&SessionName| {
        let shard = shard_of(session);
        !leaders.replicas[&shard].contains(&reader)
    };
    let victim = sessions.iter().find(led_elsewhere).expect("one of many");
    let victim = leaders.of[&shard_of(victim)].expect("it is led");
    let writer = (0..reader).find(|node| *node != victim).expect("another");
    let upto = WRITTEN_FIRST + STARTED_MEANWHILE + WRITTEN_MEANWHILE;
    let all_have_read = Barrier::new(sessions.len() + 1);
    let middle = Some(&all_have_read);
    let mut silent = Vec::new();
    for session in sessions {
        silent.push(Silent::open(&callers[reader], session).await);
    }
    let reading = sessions
        .iter()
        .map(|session| callers[reader].follow(session, upto, middle));
    let writing = async {
        all_have_read.wait().await;
        cluster.kill(victim).await;
        for session in sessions {
            for seq in WRITTEN_FIRST..WRITTEN_FIRST + WRITTEN_MEANWHILE {
                callers[writer].append(session, "r", seq..seq + 1).await;
            }
        }
    };
    let (read, ()) = tokio::join!(join_all(reading), writing);
    let ended: u32 = read.iter().map(|(_, ended)| ended).sum();
    assert!(ended > 0, "somebody read at the one that died");
    say(&format!("readers were told to come again {ended} times"));
    // A stream that nothing is said on outlives the death of the node that it was watched at.
    for writer_of in &mut silent {
        writer_of.hears_of_a_stop(&callers[writer]).await;
    }
    for (session, (events, _)) in sessions.iter().zip(&read) {
        assert_dense(session, events);
        let (again, _) = callers[writer].follow(session, upto, None).await;
        assert_eq!(events, &again, "{session}");
    }
}

/// A writer that says nothing from the opening of its stream on.
struct Silent<'c> {
    session: &'c SessionName,
    answers: Streaming<v1::PublishStreamResponse>,
    /// Kept open.
    _requests: mpsc::Sender<v1::PublishStreamRequest>,
}

impl<'c> Silent<'c> {
    const RUN: &'static str = "silent";

    async fn open(caller: &Bare, session: &'c SessionName) -> Self {
        caller.start(session, Self::RUN).await;
        let open = v1::PublishStreamRequest {
            message: Some(Sent::Open(v1::PublishOpen {
                session: session.to_string(),
                run: Self::RUN.to_owned(),
                run_epoch: 1,
                session_epoch: String::new(),
            })),
        };
        let (requests, sent) = mpsc::channel(1);
        let sent = stream::unfold(sent, async |mut sent| Some((sent.recv().await?, sent)));
        requests.send(open).await.expect("there is room");
        let mut request = with(&caller.token, sent);
        request.set_timeout(WITHIN * 10);
        let answers = caller.publish().stream(request).await;
        let mut answers = answers.expect("a stream").into_inner();
        let first = said(answers.message().await);
        assert!(matches!(first, Some(Published::Opened(_))), "{first:?}");
        Self {
            session,
            answers,
            _requests: requests,
        }
    }

    /// A stop that comes by way of another node is told to it, first of all.
    async fn hears_of_a_stop(&mut self, other: &Bare) {
        other.cancel(self.session, Self::RUN).await;
        let told = timeout(WITHIN, self.answers.message()).await;
        let Some(Published::Refused(refused)) = said(told.expect("in time")) else {
            panic!("{}: it is not told", self.session);
        };
        let refusal = from_error(refused.error.expect("why"));
        assert_eq!((refused.first_seq, refusal.code), (0, Code::RunFenced));
    }
}

fn said(answer: Result<Option<v1::PublishStreamResponse>, Status>) -> Option<Published> {
    answer
        .expect("the stream stays")
        .expect("an answer")
        .message
}
