//! `everwire agent pipe`: a model's live response into a session. A stop of the run ends the
//! request upstream, so that nobody pays for words that nobody will read.

use std::path::PathBuf;

use bytes::Bytes;
use clap::Args;
use everwire_client::adapter::Format;
use everwire_client::{Client, Publisher, is_paused};
use everwire_core::{InputId, RunId};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;

use super::sse::SseParser;
use super::{Ended, Response, ended, fail, report};
use crate::command::publish::start_or_claim;
use crate::command::{Connection, session_name};
use crate::output::{Failure, parsed};

/// Read from stdin at once, bytes.
const STDIN_CHUNK: usize = 16 << 10;

/// `everwire agent pipe`.
#[derive(Args, Clone, Debug)]
pub(crate) struct PipeArgs {
    /// The session
    session: String,
    /// Where the response comes from; without it the response is read from stdin
    #[arg(long)]
    url: Option<String>,
    /// A file with the JSON request to POST; without it the URL is GET
    #[arg(long, value_name = "FILE", requires = "url")]
    body: Option<PathBuf>,
    /// A header of the request, 'Name: value'; repeatable
    #[arg(long, value_name = "HEADER", requires = "url")]
    header: Vec<String>,
    /// openai-chat, openai-responses, anthropic or google; found out from the first chunk
    #[arg(long)]
    format: Option<String>,
    /// The run; minted if absent
    #[arg(long)]
    run: Option<String>,
    /// The input that the response answers
    #[arg(long)]
    input: Option<String>,
    #[command(flatten)]
    connection: Connection,
    /// One JSON object when the run has ended
    #[arg(long)]
    json: bool,
}

type Upstream = BoxStream<'static, Result<Bytes, String>>;

/// Runs it.
pub(crate) async fn run(args: &PipeArgs) -> Result<(), Failure> {
    let session = session_name(&args.session)?;
    let client = args.connection.client()?;
    let run = match &args.run {
        Some(text) => parsed("--run", text, RunId::parse(text))?,
        None => crate::mint::run_id()?,
    };
    let input = args
        .input
        .as_deref()
        .map(|text| parsed("--input", text, InputId::parse(text)));
    let upstream = upstream(args).await?;
    let publisher = match input.transpose()? {
        Some(input) => client.start_run(&session, run, Some(input)).await?,
        None => start_or_claim(&client, &session, run).await?,
    };
    let run = publisher.run().to_string();
    let refused = publisher.refused();
    // A pause is waited out by whoever sends.
    let stopped = async {
        let refusal = refused.await;
        if is_paused(&refusal) {
            std::future::pending::<()>().await;
        }
        refusal
    };
    // Losing the race drops the upstream: the request ends with its connection.
    let end = tokio::select! {
        refusal = stopped => ended(Err(refusal)),
        written = write(args, &client, publisher, upstream) => written,
    };
    report(&run, &end?, args.json)
}

async fn write(
    args: &PipeArgs,
    client: &Client,
    publisher: Publisher,
    mut upstream: Upstream,
) -> Result<Ended, Failure> {
    let mut parser = SseParser::default();
    // The first chunk tells the format; until then there is only the open run.
    let mut waiting = Some(publisher);
    let mut response: Option<Response> = None;
    loop {
        let bytes = match upstream.next().await {
            Some(Ok(bytes)) => bytes,
            Some(Err(reason)) => return broken(waiting, response, &reason).await,
            None => break,
        };
        let Ok(payloads) = parser.feed(&bytes) else {
            return broken(waiting, response, "the provider sent an endless event").await;
        };
        for payload in payloads.into_iter().filter(|payload| payload != "[DONE]") {
            if let Some(publisher) = waiting.take() {
                response = Some(Response::new(client, publisher, format(args, &payload)?)?);
            }
            let Some(response) = &mut response else {
                continue;
            };
            let sent = response.chunk(payload).await;
            if let Err(refusal) = response.waited_out(sent).await {
                return ended(Err(refusal));
            }
        }
    }
    match response {
        Some(mut response) => loop {
            let end = response.finish().await;
            match response.waited_out(end).await {
                Ok(None) => {},
                Ok(Some(end)) => return Ok(end),
                Err(refusal) => return ended(Err(refusal)),
            }
        },
        None => broken(waiting, None, "the provider sent nothing").await,
    }
}

/// Ends the run as failed, whether its response had begun or not.
async fn broken(
    waiting: Option<Publisher>,
    response: Option<Response>,
    reason: &str,
) -> Result<Ended, Failure> {
    let publisher = waiting.or_else(|| response.map(|response| response.publisher));
    let Some(publisher) = publisher else {
        return Err(Failure::failed(reason));
    };
    ended(fail(publisher, reason.to_owned()).await)
}

fn format(args: &PipeArgs, first: &[u8]) -> Result<Format, Failure> {
    match &args.format {
        Some(word) => Format::parse(word)
            .ok_or_else(|| Failure::usage(format!("--format {word:?} is not known"))),
        // Whatever it is, it was asked for as OpenAI-compatible.
        None => Ok(Format::detect(first).unwrap_or(Format::OpenAiChat)),
    }
}

async fn upstream(args: &PipeArgs) -> Result<Upstream, Failure> {
    let Some(url) = &args.url else {
        return Ok(stdin());
    };
    // A process has one provider; if it was installed before, it is this one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let failed =
        |error: reqwest::Error| Failure::failed(format!("upstream: {}", error.without_url()));
    let client = reqwest::Client::new();
    let mut request = match &args.body {
        Some(path) => {
            let body = std::fs::read(path)
                .map_err(|error| Failure::usage(format!("{}: {error}", path.display())))?;
            client
                .post(url)
                .header("content-type", "application/json")
                .body(body)
        },
        None => client.get(url),
    };
    for header in &args.header {
        let pair = header.split_once(':');
        let (name, value) = pair.ok_or_else(|| Failure::usage("--header is 'Name: value'"))?;
        request = request.header(name.trim(), value.trim());
    }
    let response = request
        .header("accept", "text/event-stream")
        .send()
        .await
        .map_err(failed)?;
    if !response.status().is_success() {
        return Err(Failure::failed(format!(
            "upstream answered {}",
            response.status()
        )));
    }
    let bytes = response.bytes_stream();
    Ok(bytes
        .map_err(|error| error.without_url().to_string())
        .boxed())
}

fn stdin() -> Upstream {
    futures_util::stream::unfold(tokio::io::stdin(), |mut stdin| async move {
        let mut chunk = vec![0; STDIN_CHUNK];
        match stdin.read(&mut chunk).await {
            Ok(0) => None,
            Ok(read) => {
                chunk.truncate(read);
                Some((Ok(Bytes::from(chunk)), stdin))
            },
            Err(error) => Some((Err(error.to_string()), stdin)),
        }
    })
    .boxed()
}
