//! Agents: processes that write runs through the public API only.
//!
//! `replay` plays a recorded answer at a model's pace, `pipe` sends a model's live response; both
//! stop when their run is stopped, and say where.

mod inputs;
mod pipe;
mod replay;
mod sse;

use bytes::Bytes;
use clap::{Args, Subcommand};
use everwire_client::adapter::{Adapter, End, Format};
use everwire_client::{Ack, Client, Publisher, is_paused};
use everwire_core::limits::LABEL_BYTES_MAX;
use everwire_core::{Body, Code, Draft, MessageId, Refusal};
use serde_json::json;

use crate::output::{Failure, line, note, parsed};

/// `everwire agent`.
#[derive(Args, Clone, Debug)]
pub(crate) struct AgentArgs {
    #[command(subcommand)]
    command: AgentCommand,
}

#[derive(Subcommand, Clone, Debug)]
enum AgentCommand {
    /// Replay a recorded stream, one chunk a line, at a model's pace
    #[command(
        after_help = "Example:\n  everwire agent replay demo --from demo/sample.openai-chat.jsonl --rate 500\n  everwire agent replay demo --from demo/sample.openai-chat.jsonl --answer-inputs"
    )]
    Replay(replay::ReplayArgs),
    /// Pipe an OpenAI-compatible SSE response into a session
    #[command(
        after_help = "Example:\n  everwire agent pipe demo --url http://127.0.0.1:8000/v1/chat/completions --body request.json\n  curl -sN … | everwire agent pipe demo"
    )]
    Pipe(pipe::PipeArgs),
}

/// Runs it.
pub(crate) async fn run(args: &AgentArgs) -> Result<(), Failure> {
    match &args.command {
        AgentCommand::Replay(args) => replay::run(args).await,
        AgentCommand::Pipe(args) => pipe::run(args).await,
    }
}

/// How a run that an agent wrote came to its end.
enum Ended {
    /// The response was whole.
    Completed(Ack),
    /// The provider failed, and so did the run.
    Failed(Ack, String),
    /// From outside: cancelled, ended, claimed anew.
    Stopped(Refusal),
}

/// One response on its way into a run: provider's chunks in, events out.
struct Response {
    client: Client,
    publisher: Publisher,
    /// Until the provider's stream has ended.
    adapter: Option<Adapter>,
    /// What was not taken yet, because the run was paused.
    unsent: Vec<Draft>,
    /// How the provider's stream ended, once it has.
    end: End,
}

impl Response {
    /// A response for an open run. Its message is named after the run and its epoch.
    fn new(client: &Client, publisher: Publisher, format: Format) -> Result<Self, Failure> {
        let message = format!("{}.{}", publisher.run(), publisher.run_epoch());
        let message = parsed("message", &message, MessageId::parse(&message))?;
        Ok(Self {
            client: client.clone(),
            publisher,
            adapter: Some(Adapter::new(format, message)),
            unsent: Vec::new(),
            end: End::Cut,
        })
    }

    /// Sends one chunk; waits for room only.
    async fn chunk(&mut self, chunk: Bytes) -> Result<(), Refusal> {
        if let Some(adapter) = &mut self.adapter {
            self.unsent.extend(adapter.chunk(chunk));
        }
        self.send().await
    }

    /// Sends what was not taken yet. Cancel-safe.
    async fn send(&mut self) -> Result<(), Refusal> {
        if !self.unsent.is_empty() {
            self.publisher.send(self.unsent.clone()).await?;
            self.unsent.clear();
        }
        Ok(())
    }

    /// Closes the message and ends the run as the provider's stream ended. May be called again
    /// once a run that was paused goes on.
    async fn finish(&mut self) -> Result<Ended, Refusal> {
        if let Some(adapter) = self.adapter.take() {
            let (closing, end) = adapter.finish();
            self.unsent.extend(closing);
            self.unsent.push(Draft::new(match reason_of(&end) {
                None => Body::RunCompleted,
                Some(reason) => Body::RunFailed {
                    reason: label(&reason).to_owned(),
                },
            }));
            self.end = end;
        }
        self.send().await?;
        let ack = self.publisher.flush().await?;
        Ok(match reason_of(&self.end) {
            None => Ended::Completed(ack),
            Some(reason) => Ended::Failed(ack, reason),
        })
    }

    /// If somebody has paused the run: waits until it goes on, and goes on with it.
    async fn waited_out<T>(&mut self, sent: Result<T, Refusal>) -> Result<Option<T>, Refusal> {
        match sent {
            Err(refusal) if is_paused(&refusal) => {
                self.publisher = self.client.go_on(&self.publisher).await?;
                self.send().await.map(|()| None)
            },
            sent => sent.map(Some),
        }
    }
}

/// Why a run fails with its provider's stream: it must not stay open because that broke.
fn reason_of(end: &End) -> Option<String> {
    match end {
        End::Complete => None,
        End::Failed(reason) => Some(reason.clone()),
        End::Cut => Some("the provider's stream broke off".to_owned()),
    }
}

/// As much of a reason as an event takes.
fn label(reason: &str) -> &str {
    let mut end = reason.len().min(LABEL_BYTES_MAX);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.get(..end).unwrap_or_default()
}

/// Ends a run as failed: it must not stay open because its provider broke.
async fn fail(publisher: Publisher, reason: String) -> Result<Ended, Refusal> {
    let ack = publisher.fail(&reason).await?;
    Ok(Ended::Failed(ack, reason))
}

/// A refusal that ends a run from outside is a normal end for an agent; others are failures.
fn ended(written: Result<Ended, Refusal>) -> Result<Ended, Failure> {
    match written {
        Ok(ended) => Ok(ended),
        Err(refusal) => match refusal.code {
            Code::RunFenced | Code::RunEnded | Code::StaleEpoch => Ok(Ended::Stopped(refusal)),
            _ => Err(refusal.into()),
        },
    }
}

/// Tells how a run ended: JSON on stdout, or a sentence on stderr. A run that failed is a
/// failure of the agent; one that was stopped is none.
fn report(run: &str, ended: &Ended, json: bool) -> Result<(), Failure> {
    let (outcome, offset) = match ended {
        Ended::Completed(ack) => ("completed", Some(ack.offset)),
        Ended::Failed(ack, _) => ("failed", Some(ack.offset)),
        Ended::Stopped(refusal) => {
            let details = &refusal.details;
            ("stopped", details.cancel_offset.or(details.offset))
        },
    };
    if json {
        let offset = offset.map(everwire_core::Offset::get);
        line(&json!({"run": run, "ended": outcome, "offset": offset}).to_string())?;
    } else {
        let at = offset
            .map(|offset| format!(" at offset {offset}"))
            .unwrap_or_default();
        note(&format!("run {run} {outcome}{at}"));
    }
    match ended {
        Ended::Failed(_, reason) => Err(Failure::failed(format!("run {run}: {reason}"))),
        Ended::Completed(_) | Ended::Stopped(_) => Ok(()),
    }
}
