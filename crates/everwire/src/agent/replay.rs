//! `everwire agent replay`: a recorded answer at a model's pace, once or for each input.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use everwire_client::adapter::Format;
use everwire_client::{Client, Publisher, StartRun};
use everwire_core::{Refusal, RunId, SessionName};
use tokio::time::{Instant, sleep_until};

use super::inputs::Inputs;
use super::{Response, ended, report};
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
    replay(args, publisher, &recording).await
}

/// Answers inputs one after the other, oldest first, for ever. What was answered before this
/// process lived is known from the log.
async fn answer_inputs(
    args: &ReplayArgs,
    client: &Client,
    session: &SessionName,
    recording: &Recording,
) -> Result<(), Failure> {
    let mut inputs = Inputs::new(client, session);
    loop {
        let input = inputs.next().await?;
        let run = crate::mint::run_id()?;
        let start = StartRun {
            input: Some(input),
            ..StartRun::new(run)
        };
        match client.start(session, start).await {
            Ok(publisher) => replay(args, publisher, recording).await?,
            Err(refusal) => note(&format!("{}: {}", refusal.code, refusal.message)),
        }
    }
}

/// Writes one run and reports its end. A stop is heard between two chunks, however slow they are.
async fn replay(
    args: &ReplayArgs,
    publisher: Publisher,
    recording: &Recording,
) -> Result<(), Failure> {
    let run = publisher.run().to_string();
    let stopped = publisher.refused();
    let mut response = Response::new(publisher, recording.format)?;
    let written = async {
        let mut pace = Pace::new(recording.pause);
        for chunk in &recording.chunks {
            pace.tick().await;
            response.chunk(chunk.clone()).await?;
        }
        response.finish().await
    };
    let end = tokio::select! {
        refusal = stopped => Err::<_, Refusal>(refusal),
        written = written => written,
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
