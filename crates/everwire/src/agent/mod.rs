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
use everwire_client::{Ack, Publisher};
use everwire_core::{Code, MessageId, Refusal};
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
    publisher: Publisher,
    adapter: Adapter,
}

impl Response {
    /// A response for an open run. Its message is named after the run and its epoch.
    fn new(publisher: Publisher, format: Format) -> Result<Self, Failure> {
        let message = format!("{}.{}", publisher.run(), publisher.run_epoch());
        let message = parsed("message", &message, MessageId::parse(&message))?;
        Ok(Self {
            publisher,
            adapter: Adapter::new(format, message),
        })
    }

    /// Sends one chunk; waits for room only.
    async fn chunk(&mut self, chunk: Bytes) -> Result<(), Refusal> {
        let drafts = self.adapter.chunk(chunk);
        self.publisher.send(drafts).await.map(|_seq| ())
    }

    /// Closes the message and ends the run as the provider's stream ended.
    async fn finish(self) -> Result<Ended, Refusal> {
        let (closing, end) = self.adapter.finish();
        if !closing.is_empty() {
            self.publisher.send(closing).await?;
        }
        match end {
            End::Complete => Ok(Ended::Completed(self.publisher.complete().await?)),
            End::Failed(reason) => fail(self.publisher, reason).await,
            End::Cut => fail(self.publisher, "the provider's stream broke off".to_owned()).await,
        }
    }
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
