//! Every scenario file against a live server, over gRPC as any client would. Prints what differs
//! and, as its last line, `N passed, N failed`. What only the rules alone can give (a clock, the
//! attach function) is skipped, loudly.

mod signals;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use everwire_core::grant::Capability;
use everwire_core::row::RunState;
use everwire_core::{
    Cancel, Code, Cursor, Draft, Event, Key, Offset, Refusal, RunEpoch, RunId, Seq,
};
use everwire_proto::control::HoldsCancel;
use everwire_proto::refusal::from_status;
use everwire_proto::v1;
use everwire_scenarios::answer::Placed;
use everwire_scenarios::runner::{Report, run};
use everwire_scenarios::script::Script;
use everwire_scenarios::{Action, Answer, Need, Step, Subject};
use everwire_testkit::{Server, grpc, process, tokens};
use tonic::transport::Channel;
use tonic::{Status, Streaming};
use v1::attach_client::AttachClient;
use v1::follow_response::Message;
use v1::publish_client::PublishClient;
use v1::runs_client::RunsClient;
use v1::sessions_client::SessionsClient;
use v1::signals_client::SignalsClient;

/// Longest wait for an event that is known to be committed.
const WITHIN: Duration = Duration::from_secs(30);

/// What a live server cannot be asked for.
const CANNOT: [Need; 2] = [Need::Clock, Need::Function];

/// A server, as one scenario file sees it.
struct Live {
    data: PathBuf,
    channel: Channel,
    /// In front of session names, so that each file has a world of its own.
    file: String,
    /// By participant and right to create.
    tokens: BTreeMap<(String, bool), String>,
    tabs: BTreeMap<String, Tab>,
}

/// A reader: its stream, what it delivered ahead of being asked, and the last offset covered.
struct Tab {
    stream: Streaming<v1::FollowResponse>,
    covered: Offset,
}

impl Subject for Live {
    fn offers(&self, need: Need) -> bool {
        // A binary without the feature would take poison for an event like any other.
        !CANNOT.contains(&need) && (need != Need::Poison || cfg!(feature = "test-poison"))
    }

    async fn perform(&mut self, step: &Step) -> Answer {
        let call = Call {
            channel: self.channel.clone(),
            token: self.token(step),
            session: format!("{}.{}", self.file, step.session),
            session_epoch: step
                .session_epoch
                .map_or_else(String::new, |epoch| epoch.to_string()),
        };
        let answer = match &step.action {
            Action::Create => call.create().await,
            Action::Delete => call.delete().await,
            Action::Unfreeze => call.unfreeze().await,
            Action::Start { .. } => call.start(&step.action).await,
            Action::Claim { run, lease, key } => call.claim(run, *lease, key.as_ref()).await,
            Action::Heartbeat {
                run,
                run_epoch,
                seen,
            } => call.heartbeat(run, *run_epoch, *seen).await,
            Action::Publish {
                run,
                run_epoch,
                first_seq,
                drafts,
            } => call.publish(run, *run_epoch, *first_seq, drafts).await,
            Action::Post { draft, key, .. } => call.post(draft, key.as_ref()).await,
            Action::Cancel { cancel, key } => call.cancel(cancel, key).await,
            Action::Signal { signal, key } => call.signal(signal, key).await,
            Action::Attach { tab, cursor } => self.attach(&call, tab, *cursor).await,
            Action::Read { tab } => self.read(&call, tab).await,
            Action::Drop { tab } => {
                self.tabs.remove(tab);
                Ok(Answer::Done)
            },
            Action::Log { from } => call.log(*from).await,
            Action::Advance(_)
            | Action::Expire { .. }
            | Action::Rules(_)
            | Action::Resolve { .. } => Err(Status::unimplemented("not offered")),
        };
        answer.unwrap_or_else(|status| Answer::Refused(from_status(&status)))
    }
}

impl Live {
    fn token(&mut self, step: &Step) -> String {
        let participant = step.by.participant.as_str();
        let known = (participant.to_owned(), step.may_create);
        let data = &self.data;
        let minted = self.tokens.entry(known).or_insert_with(|| {
            let mut rights = tokens::everything();
            rights.retain(|right| step.may_create || *right != Capability::Create);
            let claims = tokens::claims(participant, step.by.kind, &[("*", &rights)]);
            tokens::mint(data, &claims)
        });
        minted.clone()
    }

    async fn attach(
        &mut self,
        call: &Call,
        tab: &str,
        cursor: Option<Cursor>,
    ) -> Result<Answer, Status> {
        let cursor = cursor.map(|cursor| v1::Cursor {
            session_epoch: cursor
                .session_epoch
                .map(|epoch| epoch.to_string())
                .unwrap_or_default(),
            offset: cursor.offset.get(),
        });
        let request = v1::FollowRequest {
            session: call.session.clone(),
            cursor,
            ..v1::FollowRequest::default()
        };
        // A stream has no deadline: it lives as long as its tab.
        let mut request = grpc::with(&call.token, request);
        request.metadata_mut().remove("grpc-timeout");
        let mut client = AttachClient::new(self.channel.clone());
        let mut stream = client.follow(request).await?.into_inner();
        let first = stream.message().await?.and_then(|first| first.message);
        let Some(Message::Attached(attached)) = first else {
            return Err(Status::internal("the first message is attached"));
        };
        let (from, tail) = (offset(attached.from), offset(attached.tail));
        let epoch = attached.session_epoch.parse();
        let epoch = epoch.map_err(|_text| Status::internal("a session epoch"));
        Ok(match attached.answer() {
            v1::AttachAnswer::Resumed => {
                let covered = from.previous();
                self.tabs.insert(tab.to_owned(), Tab { stream, covered });
                Answer::Resumed {
                    session_epoch: epoch?,
                    from,
                    tail,
                }
            },
            v1::AttachAnswer::Gone => Answer::Gone {
                session_epoch: epoch?,
                earliest: from,
                tail,
            },
            v1::AttachAnswer::NotFound => Answer::NotFound,
            v1::AttachAnswer::Snapshot | v1::AttachAnswer::Unspecified => {
                return Err(Status::internal("not asked for"));
            },
        })
    }

    /// What was committed since: the stream is read up to the tail, which is asked for first.
    async fn read(&mut self, call: &Call, tab: &str) -> Result<Answer, Status> {
        let Some(tab) = self.tabs.get_mut(tab) else {
            let message = "no tab of this name is attached";
            return Ok(Answer::Refused(Refusal::new(Code::Malformed, message)));
        };
        let tail = call.tail().await?;
        let mut events = Vec::new();
        while tab.covered < tail {
            let message = tokio::time::timeout(WITHIN, tab.stream.message()).await;
            let message = message.map_err(|_elapsed| Status::internal("nothing came"))??;
            match message.and_then(|message| message.message) {
                Some(Message::Events(batch)) => {
                    if offset(batch.from) != tab.covered.next() {
                        return Err(Status::internal("a gap or an overlap"));
                    }
                    tab.covered = offset(batch.to);
                    events.extend(read_events(batch.events)?);
                },
                Some(Message::Ended(error)) => {
                    let refusal = everwire_proto::refusal::from_error(error);
                    return Ok(Answer::Refused(refusal));
                },
                Some(Message::Attached(_)) | None => {
                    return Err(Status::internal("the stream is over"));
                },
            }
        }
        Ok(Answer::Events(events))
    }
}

/// Who calls, about which session.
struct Call {
    channel: Channel,
    token: String,
    session: String,
    /// The history that is meant; empty for whichever there is.
    session_epoch: String,
}

impl Call {
    fn with<T>(&self, message: T) -> tonic::Request<T> {
        grpc::with(&self.token, message)
    }

    async fn create(&self) -> Result<Answer, Status> {
        let session = self.session.clone();
        let request = self.with(v1::CreateRequest { session });
        let mut client = SessionsClient::new(self.channel.clone());
        let made = client.create(request).await?.into_inner();
        let epoch = made.session_epoch.parse();
        Ok(Answer::Session {
            created: made.created,
            session_epoch: epoch.map_err(|_text| Status::internal("a session epoch"))?,
            tail: offset(made.tail),
        })
    }

    async fn delete(&self) -> Result<Answer, Status> {
        let session = self.session.clone();
        let request = self.with(v1::DeleteRequest { session });
        let mut client = SessionsClient::new(self.channel.clone());
        let existed = client.delete(request).await?.into_inner().existed;
        Ok(Answer::Deleted { existed })
    }

    async fn unfreeze(&self) -> Result<Answer, Status> {
        let session = self.session.clone();
        let request = self.with(v1::UnfreezeRequest { session });
        let mut client = SessionsClient::new(self.channel.clone());
        let frozen = client.unfreeze(request).await?.into_inner().frozen;
        Ok(Answer::Unfrozen { frozen })
    }

    async fn tail(&self) -> Result<Offset, Status> {
        let session = self.session.clone();
        let request = self.with(v1::ShowRequest { session });
        let shown = SessionsClient::new(self.channel.clone())
            .show(request)
            .await?;
        Ok(offset(shown.into_inner().tail))
    }

    async fn start(&self, action: &Action) -> Result<Answer, Status> {
        let Action::Start {
            run,
            parent,
            input,
            lease,
            meta,
            key,
        } = action
        else {
            return Err(Status::internal("it is no start"));
        };
        let id = input.as_ref().map(|input| &input.input);
        let author = input.as_ref().and_then(|input| input.author.as_ref());
        let meta = meta.clone().map(v1::data::Data::Json);
        let request = self.with(v1::StartRequest {
            session: self.session.clone(),
            run: run.to_string(),
            input: text(id),
            key: text(key.as_ref()),
            input_by: text(author),
            parent: text(parent.as_ref()),
            lease_ms: millis(*lease),
            meta: meta.map(|data| v1::Data { data: Some(data) }),
        });
        let answer = RunsClient::new(self.channel.clone()).start(request).await?;
        let granted = answer.into_inner();
        Ok(Answer::Granted {
            run_epoch: RunEpoch(granted.run_epoch),
            offset: offset(granted.offset),
            lease: lease_of(granted.lease_ms),
            duplicate: granted.duplicate,
        })
    }

    async fn claim(
        &self,
        run: &RunId,
        lease: Option<Duration>,
        key: Option<&Key>,
    ) -> Result<Answer, Status> {
        let request = self.with(v1::ClaimRequest {
            session: self.session.clone(),
            run: run.to_string(),
            key: text(key),
            lease_ms: millis(lease),
        });
        let answer = RunsClient::new(self.channel.clone()).claim(request).await?;
        let granted = answer.into_inner();
        Ok(Answer::Granted {
            run_epoch: RunEpoch(granted.run_epoch),
            offset: offset(granted.offset),
            lease: lease_of(granted.lease_ms),
            duplicate: granted.duplicate,
        })
    }

    async fn heartbeat(
        &self,
        run: &RunId,
        run_epoch: RunEpoch,
        seen: Option<Offset>,
    ) -> Result<Answer, Status> {
        let request = self.with(v1::HeartbeatRequest {
            session: self.session.clone(),
            run: run.to_string(),
            run_epoch: run_epoch.0,
            observed_through: seen.map(Offset::get),
            session_epoch: self.session_epoch.clone(),
        });
        let mut client = RunsClient::new(self.channel.clone());
        let renewed = client.heartbeat(request).await?.into_inner();
        let state = RunState::parse(&renewed.state);
        Ok(Answer::Renewed {
            state: state.ok_or_else(|| Status::internal("an unknown state"))?,
            observed: renewed.observed.map(offset),
        })
    }

    async fn publish(
        &self,
        run: &RunId,
        run_epoch: RunEpoch,
        first_seq: Seq,
        drafts: &[Draft],
    ) -> Result<Answer, Status> {
        let batch = v1::PublishBatch {
            first_seq: first_seq.0,
            drafts: drafts.iter().map(v1::Draft::from).collect(),
        };
        let request = self.with(v1::AppendRequest {
            session: self.session.clone(),
            run: run.to_string(),
            run_epoch: run_epoch.0,
            batch: Some(batch),
            session_epoch: self.session_epoch.clone(),
        });
        let mut client = PublishClient::new(self.channel.clone());
        let answer = client.append(request).await?.into_inner();
        let range = |duplicate: bool| {
            let range = answer.ranges.iter();
            let mut range = range.filter(|range| range.duplicate == duplicate);
            range.next().map(|range| Placed {
                first_seq: Seq(range.first_seq),
                last_seq: Seq(range.last_seq),
                first_offset: offset(range.first_offset),
            })
        };
        let (duplicate, committed) = (range(true), range(false));
        // A stretch without a range was there before: all that the wire tells of its place is
        // that it lies before what was committed now, or the bound by itself.
        let through = match (duplicate, committed) {
            (Some(_), _) => None,
            (None, None) => Some((Seq(answer.through_seq), offset(answer.through_offset))),
            (None, Some(new)) => (new.first_seq > first_seq)
                .then(|| (Seq(new.first_seq.0 - 1), new.first_offset.previous())),
        };
        Ok(Answer::Published {
            duplicate,
            through,
            committed,
        })
    }

    async fn post(&self, draft: &Draft, key: Option<&Key>) -> Result<Answer, Status> {
        let request = self.with(v1::PostRequest {
            session: self.session.clone(),
            draft: Some(draft.into()),
            key: text(key),
        });
        let mut client = PublishClient::new(self.channel.clone());
        let posted = client.post(request).await?.into_inner();
        Ok(Answer::Posted {
            offset: offset(posted.offset),
            duplicate: posted.duplicate,
        })
    }

    async fn cancel(&self, cancel: &Cancel, key: &Key) -> Result<Answer, Status> {
        let mut request = v1::CancelRequest {
            session: self.session.clone(),
            key: key.to_string(),
            ..v1::CancelRequest::default()
        };
        request.put_cancel(cancel);
        let mut client = SignalsClient::new(self.channel.clone());
        let answer = client.cancel(self.with(request)).await?.into_inner();
        signals::signalled(v1::SignalResponse {
            session_epoch: answer.session_epoch,
            outcome: answer.outcome,
            offset: answer.offset,
            state: answer.state,
            duplicate: answer.duplicate,
        })
    }

    async fn log(&self, from: Offset) -> Result<Answer, Status> {
        let mut events: Vec<Event> = Vec::new();
        let mut next = from;
        loop {
            let request = self.with(v1::ReadRequest {
                session: self.session.clone(),
                from: next.get(),
                ..v1::ReadRequest::default()
            });
            let mut client = AttachClient::new(self.channel.clone());
            let page = client.read(request).await?.into_inner().events;
            let page = page.ok_or_else(|| Status::internal("a page without events"))?;
            let tail = offset(page.tail);
            next = offset(page.to).next();
            events.extend(read_events(page.events)?);
            if next > tail {
                return Ok(Answer::Events(events));
            }
        }
    }
}

fn text(name: Option<&impl ToString>) -> String {
    name.map(ToString::to_string).unwrap_or_default()
}

fn millis(time: Option<Duration>) -> u32 {
    let millis = time.unwrap_or_default().as_millis();
    u32::try_from(millis).expect("times of files fit the wire")
}

fn lease_of(millis: u32) -> Option<Duration> {
    (millis > 0).then(|| Duration::from_millis(millis.into()))
}

fn offset(number: u64) -> Offset {
    Offset::new(number).expect("a server's offset fits 2^53")
}

fn read_events(events: Vec<v1::Event>) -> Result<Vec<Event>, Status> {
    let read = events.into_iter().map(Event::try_from);
    read.collect::<Result<_, Refusal>>()
        .map_err(|refusal| Status::internal(refusal.message))
}

/// How the files went.
#[derive(Default)]
struct Count {
    passed: usize,
    failed: usize,
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the test's report"
)]
async fn all(scripts: Vec<Script>, data: &Path) -> Count {
    if scripts.is_empty() {
        return Count::default();
    }
    let server = Server::dev(data).await;
    let channel = grpc::channel(&server.grpc).await;
    let mut count = Count::default();
    for script in scripts {
        let mut live = Live {
            data: data.to_owned(),
            channel: channel.clone(),
            file: script.name.clone(),
            tokens: BTreeMap::new(),
            tabs: BTreeMap::new(),
        };
        match run(&script, &mut live).await.0 {
            Report::Passed => count.passed += 1,
            Report::Skipped(need) => {
                eprintln!(
                    "SKIPPED: {}: a live server offers no {need}; the rules alone show it",
                    script.name
                );
            },
            Report::Failed(failures) => {
                failures.iter().for_each(|failure| println!("{failure}"));
                count.failed += 1;
            },
        }
    }
    count
}

#[expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is the test's report"
)]
#[tokio::main]
async fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with('-'))
        .collect();
    let mut scripts = match Script::all() {
        Ok(scripts) => scripts,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        },
    };
    if !wanted.is_empty() {
        scripts.retain(|script| wanted.iter().any(|word| script.name.contains(word)));
    }
    let folder = process::folder();
    let count = all(scripts, folder.path()).await;
    println!("{} passed, {} failed", count.passed, count.failed);
    // A filter may mean another test binary; no file at all means a broken checkout.
    if count.failed > 0 || (count.passed == 0 && wanted.is_empty()) {
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}
