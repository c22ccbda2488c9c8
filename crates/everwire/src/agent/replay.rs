//! `everwire agent replay`: a recorded answer at a model's pace, once or for each input.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use everwire_client::adapter::Format;
use everwire_client::{Client, Publisher, StartRun};
use everwire_core::event::{Body, Draft, SuspendReason, Verdict};
use everwire_core::{ActionHash, ApprovalId, Refusal, Request, RunId, SessionName, Timestamp};
use everwire_proto::hash::body_hash;
use tokio::time::{Instant, sleep_until};

use super::inputs::Inputs;
use super::{Ended, Response, ended, fail, report};
use crate::command::publish::start_or_claim;
use crate::command::{Connection, session_name};
use crate::output::{Failure, note, parsed};

/// `everwire agent replay`.
#[derive(Args, Clone, Debug)]
pub(crate) struct ReplayArgs {
    /// The session
    session: String,
    /// The recording: JSON chunks, one a line
    #[arg(long, value_name = "FILE")]
    from: PathBuf,
    /// Chunks a second, at most 100,000
    #[arg(long, value_name = "N", default_value = "40", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// openai-chat, openai-responses, anthropic or google; found out from the first chunk
    #[arg(long)]
    format: Option<String>,
    /// The run; minted if absent
    #[arg(long, conflicts_with = "answer_inputs")]
    run: Option<String>,
    /// Follow the session and answer each input with one replay
    #[arg(long)]
    answer_inputs: bool,
    /// Ask for an approval before an input is answered that holds this word
    #[arg(long, value_name = "WORD", requires = "answer_inputs")]
    ask_before: Option<String>,
    #[command(flatten)]
    connection: Connection,
    /// One JSON object for each run that ended
    #[arg(long)]
    json: bool,
}

/// Runs it.
pub(crate) async fn run(args: &ReplayArgs) -> Result<(), Failure> {
    let session = session_name(&args.session)?;
    let recording = Recording::read(args)?;
    let client = args.connection.client()?;
    if args.answer_inputs {
        return answer_inputs(args, &client, &session, &recording).await;
    }
    let run = match &args.run {
        Some(text) => parsed("--run", text, RunId::parse(text))?,
        None => crate::mint::run_id()?,
    };
    let publisher = start_or_claim(&client, &session, run).await?;
    replay(args, &client, publisher, &recording).await
}

/// Answers inputs one after the other, oldest first, for ever. What was answered before this
/// process lived is known from the log.
async fn answer_inputs(
    args: &ReplayArgs,
    client: &Client,
    session: &SessionName,
    recording: &Recording,
) -> Result<(), Failure> {
    let mut inputs = Inputs::new(client, session, args.ask_before.clone());
    loop {
        let waiting = inputs.next().await?;
        let run = crate::mint::run_id()?;
        let start = StartRun {
            input: Some(waiting.input),
            ..StartRun::new(run)
        };
        let publisher = match client.start(session, start).await {
            Ok(publisher) => publisher,
            Err(refusal) => {
                note(&format!("{}: {}", refusal.code, refusal.message));
                continue;
            },
        };
        if !waiting.asks {
            replay(args, client, publisher, recording).await?;
            continue;
        }
        let run = publisher.run().to_string();
        match asked(client, publisher, &args.from).await {
            Ok(Answer::Yes(publisher)) => replay(args, client, publisher, recording).await?,
            Ok(Answer::No(end)) => {
                // It goes on with the next input: nobody's no is a failure of the agent.
                if report(&run, &end, args.json).is_err() {
                    note(&format!("run {run} was not approved"));
                }
            },
            Err(refusal) => report(&run, &ended(Err(refusal))?, args.json)?,
        }
    }
}

/// What came of a request for an approval.
enum Answer {
    Yes(Publisher),
    No(Ended),
}

/// How long somebody has for a yes or a no, milliseconds.
const ASKED_WITHIN_MS: u32 = 600_000;

/// Asks for an approval and waits for it, holding no lease meanwhile.
async fn asked(client: &Client, publisher: Publisher, from: &Path) -> Result<Answer, Refusal> {
    let (session, run) = (publisher.session().clone(), publisher.run().clone());
    let action = format!("Answer with {}", from.display());
    let seen = Draft::new(Body::App {
        name: action.clone(),
        data: None,
    });
    let approval = ApprovalId::parse(&format!("{run}.answer"))?;
    let request = Request {
        approval: approval.clone(),
        action,
        action_hash: ActionHash::parse(&format!("{:032x}", body_hash(&seen)))?,
        approvers: Vec::new(),
        within_ms: ASKED_WITHIN_MS,
        deadline: Timestamp(0),
        on_expiry: Verdict::Deny,
        data: None,
    };
    let waits = Body::RunSuspended {
        reason: SuspendReason::Approval,
        note: None,
    };
    let bodies = [Body::ApprovalRequested(request), waits];
    publisher.send(bodies.map(Draft::new).to_vec()).await?;
    let asked_at = publisher.flush().await?.offset;
    // Whoever answers at once may stand before the end of our own batch is heard of.
    let from = asked_at.previous();
    let stopped = publisher.refused();
    let resolution = tokio::select! {
        refusal = stopped => return Err(refusal),
        resolution = client.resolution(&session, &approval, from) => resolution?,
    };
    client.until_resumed(&session, &run).await?;
    if resolution.allows() {
        return Ok(Answer::Yes(publisher));
    }
    let reason = format!("not approved: {}", resolution.outcome.as_str());
    fail(publisher, reason).await.map(Answer::No)
}

/// Writes one run and reports its end. A stop is heard between two chunks, however slow they are.
/// One that was paused goes on where it stood.
async fn replay(
    args: &ReplayArgs,
    client: &Client,
    publisher: Publisher,
    recording: &Recording,
) -> Result<(), Failure> {
    let run = publisher.run().to_string();
    let mut response = Response::new(client, publisher, recording.format)?;
    let mut chunks = recording.chunks.iter();
    let end = loop {
        let stopped = response.publisher.refused();
        let written = async {
            let mut pace = Pace::new(recording.pause);
            for chunk in chunks.by_ref() {
                pace.tick().await;
                response.chunk(chunk.clone()).await?;
            }
            response.finish().await
        };
        let end = tokio::select! {
            refusal = stopped => Err::<_, Refusal>(refusal),
            written = written => written,
        };
        match response.waited_out(end).await {
            Ok(None) => {},
            Ok(Some(end)) => break Ok(end),
            Err(refusal) => break Err(refusal),
        }
    };
    report(&run, &ended(end)?, args.json)
}

/// What a timer may be late: it ticks in milliseconds, and a model does not.
const TIMER_GRAIN: Duration = Duration::from_millis(5);

/// Even ticks. Whoever was held up does not hurry afterwards, but the timer's own lateness is made
/// good, or a fast model would be a slow one.
struct Pace {
    pause: Duration,
    due: Instant,
}

impl Pace {
    fn new(pause: Duration) -> Self {
        let due = Instant::now();
        Self { pause, due }
    }

    async fn tick(&mut self) {
        sleep_until(self.due).await;
        let late = self.due.elapsed().saturating_sub(TIMER_GRAIN);
        self.due += late + self.pause;
    }
}

/// A recorded stream.
struct Recording {
    format: Format,
    chunks: Vec<Bytes>,
    pause: Duration,
}

impl Recording {
    fn read(args: &ReplayArgs) -> Result<Self, Failure> {
        let shown = args.from.display();
        let text = std::fs::read(&args.from)
            .map_err(|error| Failure::usage(format!("{shown} cannot be read: {error}")))?;
        let lines = text.split(|byte| *byte == b'\n');
        let lines = lines.map(|line| line.strip_suffix(b"\r").unwrap_or(line));
        let chunks: Vec<Bytes> = lines
            .filter(|line| !line.is_empty())
            .map(Bytes::copy_from_slice)
            .collect();
        let first = chunks
            .first()
            .ok_or_else(|| Failure::usage(format!("{shown} is empty")))?;
        let format = match &args.format {
            Some(word) => Format::parse(word)
                .ok_or_else(|| Failure::usage(format!("--format {word:?} is not known")))?,
            None => Format::detect(first).ok_or_else(|| {
                Failure::usage(format!("{shown}: the format is not known; give --format"))
            })?,
        };
        Ok(Self {
            format,
            chunks,
            pause: Duration::from_secs(1) / args.rate,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pace_is_kept_and_not_made_up_for() {
        for rate in [40, 900, 20_000] {
            let mut pace = Pace::new(Duration::from_secs(1) / rate);
            let begin = Instant::now();
            for _ in 0..rate {
                pace.tick().await;
            }
            let took = begin.elapsed();
            assert!(took <= Duration::from_millis(1010), "{rate}: {took:?}");
            assert!(took >= Duration::from_millis(970), "{rate}: {took:?}");
        }
        let mut pace = Pace::new(Duration::from_millis(100));
        pace.tick().await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        pace.tick().await;
        let begin = Instant::now();
        pace.tick().await;
        assert!(begin.elapsed() >= Duration::from_millis(90));
    }
}
