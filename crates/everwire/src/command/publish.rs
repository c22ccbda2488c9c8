//! `everwire publish`: one event a line from stdin into a session.
//!
//! Plain text is a delta of one text part; a JSON object is an event; `input` and `app` go outside
//! the run. Reading stdin never waits for acks; acks are printed as they come.

use std::collections::VecDeque;

use clap::Args;
use everwire_client::{AckRange, Acks, Client, ClientConfig, Publisher};
use everwire_core::event::{MessageStatus, PartKind, Role};
use everwire_core::{
    Body, Code, Draft, Key, Kind, MessageId, PartId, Refusal, RunEpoch, RunId, Seq, SessionName,
};
use everwire_proto::json::draft_from_json;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Connection, session_name};
use crate::output::{Failure, line, note, parsed};

/// Lines whose places are not yet known, at most. Above it the ack printer is waited for.
const UNPRINTED_MAX: usize = 8192;

/// `everwire publish`.
#[derive(Args, Clone, Debug)]
pub(crate) struct PublishArgs {
    /// The session
    session: String,
    /// Start this run, or claim it if it is one's own and live; without it a run is minted
    #[arg(long)]
    run: Option<String>,
    /// Do not complete the run at the end of input
    #[arg(long)]
    keep_open: bool,
    /// Go on under an epoch that was granted before
    #[arg(long, requires_all = ["run", "from_seq"])]
    run_epoch: Option<u32>,
    /// The seq of the first line, with --run-epoch
    #[arg(long, requires = "run_epoch")]
    from_seq: Option<u64>,
    /// End as soon as the run is stopped, not at the next line
    #[arg(long)]
    follow_stop: bool,
    #[command(flatten)]
    connection: Connection,
    /// {"seq","offset","duplicate"} for each line when it is acked
    #[arg(long)]
    json: bool,
}

/// Runs it until the end of input or a refusal.
pub(crate) async fn run(args: &PublishArgs) -> Result<(), Failure> {
    let session = session_name(&args.session)?;
    let run = args
        .run
        .as_deref()
        .map(|text| parsed("--run", text, RunId::parse(text)));
    let client = args.connection.client()?;
    let mut writer = Writer {
        client,
        session,
        run: run.transpose()?,
        open: None,
        json: args.json,
    };
    if writer.run.is_some() {
        writer.open(args).await?;
    }
    let written = writer.write_lines(args).await;
    writer.finish(args.keep_open, written).await
}

enum Line {
    Text(String),
    Run(Draft),
    Outside(Draft, Option<Key>),
}

fn parse(text: &str) -> Result<Line, Failure> {
    // What does not parse as an object is somebody's text, be it with a brace in front.
    let Ok(object) = serde_json::from_str::<serde_json::Map<_, _>>(text) else {
        return Ok(Line::Text(text.to_owned()));
    };
    let draft = draft_from_json(text.as_bytes())?;
    if !matches!(draft.body.kind(), Kind::Input | Kind::App) {
        return Ok(Line::Run(draft));
    }
    let key = object.get("key").and_then(serde_json::Value::as_str);
    let key = key
        .map(|text| parsed("key", text, Key::parse(text)))
        .transpose()?;
    Ok(Line::Outside(draft, key))
}

/// An open run and what prints its acks.
struct OpenRun {
    publisher: Publisher,
    /// Seqs of lines, to the printer.
    printer: mpsc::Sender<Seq>,
    printing: tokio::task::JoinHandle<Result<(), Failure>>,
    message: MessageId,
    part: PartId,
    /// The text part of plain lines is open.
    text_open: bool,
    /// Whoever wrote the lines before opened it already, if they were plain.
    text_opened_before: bool,
}

struct Writer {
    client: Client,
    session: SessionName,
    run: Option<RunId>,
    open: Option<OpenRun>,
    json: bool,
}

impl Writer {
    async fn open(&mut self, args: &PublishArgs) -> Result<&mut OpenRun, Failure> {
        if self.open.is_none() {
            let opened = self.start(args).await?;
            self.open = Some(opened);
        }
        Ok(self.open.as_mut().expect("opened just now"))
    }

    async fn start(&self, args: &PublishArgs) -> Result<OpenRun, Failure> {
        let run = self.run.clone().map_or_else(crate::mint::run_id, Ok)?;
        let resumed = args.run_epoch.map(RunEpoch).zip(args.from_seq.map(Seq));
        let publisher = match resumed {
            Some((epoch, seq)) => self.client.publisher(&self.session, run, epoch, seq),
            None => start_or_claim(&self.client, &self.session, run).await?,
        };
        if !self.json {
            note(&format!(
                "run {} epoch {}",
                publisher.run(),
                publisher.run_epoch()
            ));
        }
        let (printer, seqs) = mpsc::channel(UNPRINTED_MAX);
        let printing = tokio::spawn(print_acks(publisher.acks(), seqs, self.json));
        let message = format!("{}.{}", publisher.run(), publisher.run_epoch());
        Ok(OpenRun {
            printer,
            printing,
            message: parsed("message", &message, MessageId::parse(&message))?,
            part: PartId::parse("text").expect("a good name"),
            text_open: false,
            // Plain text begins with the two events that open its message and part.
            text_opened_before: resumed.is_some_and(|(_, seq)| seq > Seq(2)),
            publisher,
        })
    }

    /// The next line, or `None` at the end of input. With `follow_stop` a refusal of the run
    /// ends the wait.
    async fn next_line(
        &self,
        lines: &mut Lines<BufReader<Stdin>>,
        follow_stop: bool,
    ) -> Result<Option<String>, Failure> {
        match &self.open {
            Some(open) if follow_stop => tokio::select! {
                refusal = open.publisher.refused() => Err(refusal.into()),
                line = lines.next_line() => Ok(line?),
            },
            _ => Ok(lines.next_line().await?),
        }
    }

    /// Sends line after line, until the end of input or the first that fails.
    async fn write_lines(&mut self, args: &PublishArgs) -> Result<(), Failure> {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        while let Some(text) = self.next_line(&mut lines, args.follow_stop).await? {
            match parse(&text)? {
                Line::Text(text) => self.text(args, text).await?,
                Line::Run(draft) => self.output(args, draft).await?,
                Line::Outside(draft, key) => self.post(draft, key).await?,
            }
        }
        Ok(())
    }

    async fn text(&mut self, args: &PublishArgs, text: String) -> Result<(), Failure> {
        let open = self.open(args).await?;
        let (message, part) = (open.message.clone(), open.part.clone());
        if !std::mem::replace(&mut open.text_open, true) && !open.text_opened_before {
            let start = Body::MessageStart {
                message: message.clone(),
                role: Role::Assistant,
            };
            let part = Body::PartStart {
                message: message.clone(),
                part: part.clone(),
                kind: PartKind::Text,
                name: None,
                data: None,
            };
            open.publisher
                .send(vec![Draft::new(start), Draft::new(part)])
                .await?;
        }
        let delta = Draft::new(Body::PartDelta {
            message,
            part,
            position: 0,
            text,
        });
        self.output(args, delta).await
    }

    async fn output(&mut self, args: &PublishArgs, draft: Draft) -> Result<(), Failure> {
        draft.check_shape()?;
        let open = self.open(args).await?;
        let seq = open.publisher.send(vec![draft]).await?;
        // The printer ends before us only when stdout is closed; its join tells why.
        let _ = open.printer.send(seq).await;
        Ok(())
    }

    async fn post(&self, draft: Draft, key: Option<Key>) -> Result<(), Failure> {
        let posted = self.client.post(&self.session, draft, key).await?;
        if self.json {
            let value = json!({"offset": posted.offset.get(), "duplicate": posted.duplicate});
            line(&value.to_string())?;
        }
        Ok(())
    }

    /// Ends the run, unless a line failed: then the lines before it stand in a run that is open
    /// still. However it ends, the place of each line that was committed is printed.
    async fn finish(self, keep_open: bool, written: Result<(), Failure>) -> Result<(), Failure> {
        let Some(open) = self.open else {
            return written;
        };
        let OpenRun {
            publisher,
            printer,
            printing,
            message,
            text_open,
            ..
        } = open;
        let ended = match written {
            Err(failure) => {
                // What failed is told; that this failed as well adds nothing.
                let _ = timeout(ClientConfig::DEADLINE, publisher.flush()).await;
                drop(publisher);
                Err(failure)
            },
            Ok(()) if keep_open => publisher.flush().await.map(drop).map_err(Failure::from),
            Ok(()) => complete(publisher, text_open.then_some(message)).await,
        };
        drop(printer);
        let printed = printing.await;
        let printed =
            printed.map_err(|error| Failure::failed(format!("printing acks: {error}")))?;
        ended.and(printed)
    }
}

/// Ends the message of plain lines, if there is one, and the run.
async fn complete(publisher: Publisher, message: Option<MessageId>) -> Result<(), Failure> {
    if let Some(message) = message {
        let status = MessageStatus::Complete;
        let end = Body::MessageEnd { message, status };
        publisher.send(vec![Draft::new(end)]).await?;
    }
    publisher.complete().await?;
    Ok(())
}

/// Starts a run; takes it over if it is one's own and live.
pub(crate) async fn start_or_claim(
    client: &Client,
    session: &SessionName,
    run: RunId,
) -> Result<Publisher, Refusal> {
    match client.start_run(session, run.clone(), None).await {
        Err(refusal) if refusal.code == Code::AlreadyClaimed => {
            client.claim_run(session, run).await
        },
        other => other,
    }
}

/// Prints the place of each line once it is acked, until all lines are.
async fn print_acks(
    mut acks: Acks,
    mut seqs: mpsc::Receiver<Seq>,
    json: bool,
) -> Result<(), Failure> {
    let mut ranges: VecDeque<AckRange> = VecDeque::new();
    while let Some(seq) = seqs.recv().await {
        let range = loop {
            while ranges.front().is_some_and(|range| range.last_seq < seq) {
                ranges.pop_front();
            }
            match ranges.front() {
                Some(range) => break *range,
                None => match acks.next().await {
                    Some(range) => ranges.push_back(range),
                    None => return Ok(()),
                },
            }
        };
        if json {
            let ahead = seq.0.saturating_sub(range.first_seq.0);
            let value = json!({
                "seq": seq.0,
                "offset": range.first_offset.plus(ahead).get(),
                "duplicate": range.duplicate,
            });
            line(&value.to_string())?;
        }
    }
    Ok(())
}
