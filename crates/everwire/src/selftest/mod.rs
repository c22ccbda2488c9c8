//! `everwire selftest`: the three promises, shown against any deployment by its own user.
//!
//! An agent writes over gRPC at a model's pace; surfaces attach at the edge. Each proof compares
//! what a surface saw with what the log holds.

mod surface;

use std::time::Duration;

use clap::Args;
use everwire_client::{Client, Publisher, RunWriter};
use everwire_core::command::SignalOutcome;
use everwire_core::{Body, Code, Draft, InputId, Key, Offset, RunId, SessionName};
use serde_json::json;

use crate::command::Connection;
use crate::output::{Failure, line, parsed};
use crate::system::SystemRandom;
use surface::{Surface, trusting};
use tokio_tungstenite::Connector;

/// Deltas of one answer, and the pause between two.
const DELTAS: u64 = 200;
const PAUSE: Duration = Duration::from_millis(10);
/// Longest time that one answer may take to arrive whole.
const WITHIN: Duration = Duration::from_secs(60);

/// `everwire selftest`.
#[derive(Args, Clone, Debug)]
pub(crate) struct SelftestArgs {
    /// The edge, http://… or https://…
    #[arg(long, env = "EVERWIRE_EDGE_URL")]
    edge: String,
    /// A session to use; a new one is made and deleted without it
    #[arg(long)]
    session: Option<String>,
    #[command(flatten)]
    connection: Connection,
    /// One JSON object for each proof
    #[arg(long)]
    json: bool,
}

/// Runs it: the first promise that is not kept ends it.
pub(crate) async fn run(args: &SelftestArgs) -> Result<(), Failure> {
    let minted = format!("selftest-{:016x}", SystemRandom::shared().next());
    let name = args.session.as_deref().unwrap_or(&minted);
    let ca_pem = args.connection.ca_pem()?;
    let test = Selftest {
        edge: args.edge.clone(),
        trust: ca_pem.as_deref().map(trusting).transpose()?,
        token: args.connection.token()?,
        client: args.connection.client()?,
        session: parsed("--session", name, SessionName::parse(name))?,
        json: args.json,
    };
    test.resilient_delivery().await?;
    test.continuity().await?;
    test.live_control().await?;
    if args.session.is_none() {
        match test.client.delete_session(&test.session).await {
            Ok(_existed) => {},
            // A token of a user may not delete; the session ages out.
            Err(refusal) if refusal.code == Code::Denied => {},
            Err(refusal) => return Err(refusal.into()),
        }
    }
    Ok(())
}

struct Selftest {
    edge: String,
    /// Whom to trust at the edge; `None` for the public authorities.
    trust: Option<Connector>,
    token: String,
    client: Client,
    session: SessionName,
    json: bool,
}

impl Selftest {
    /// A surface is cut in the middle of an answer, comes back with its cursor, and has seen
    /// exactly the log.
    async fn resilient_delivery(&self) -> Result<(), Failure> {
        let mut before = self.surface(None).await?;
        let first = before.cursor().offset.next();
        let agent = tokio::spawn(answer(self.agent().await?));
        let half = first.plus(DELTAS / 2);
        before
            .read_until(WITHIN, |surface| surface.cursor().offset >= half)
            .await?;
        let cursor = before.cursor();
        let mut seen = std::mem::take(&mut before.seen);
        // No close frame, no goodbye: as when a train enters a tunnel.
        drop(before);
        tokio::time::sleep(PAUSE * 20).await;
        let mut after = self.surface(Some(cursor)).await?;
        let end = written(agent).await?;
        after
            .read_until(WITHIN, |surface| surface.cursor().offset >= end)
            .await?;
        if let Some(twice) = after.seen.keys().find(|offset| seen.contains_key(offset)) {
            return Err(Failure::failed(format!("offset {twice} came twice")));
        }
        seen.extend(std::mem::take(&mut after.seen));
        self.compare(first, end, &seen).await?;
        self.kept("resilient_delivery", end)
    }

    /// A second surface joins in the middle; an input from the first is one event at one offset
    /// for both.
    async fn continuity(&self) -> Result<(), Failure> {
        let mut one = self.surface(None).await?;
        let tail = self.client.show_session(&self.session).await?.tail;
        let agent = tokio::spawn(answer(self.agent().await?));
        let half = tail.plus(DELTAS / 2);
        one.read_until(WITHIN, |surface| surface.cursor().offset >= half)
            .await?;
        let mut two = self.surface(None).await?;
        let input = Body::Input {
            input: minted(InputId::parse)?,
            text: "hello".into(),
            data: None,
        };
        let place = one.publish(Draft::new(input), minted(Key::parse)?).await?;
        let end = written(agent).await?.max(place);
        for surface in [&mut one, &mut two] {
            surface
                .read_until(WITHIN, |surface| surface.cursor().offset >= end)
                .await?;
            self.compare(Offset::ZERO.next(), end, &surface.seen)
                .await?;
        }
        self.kept("continuity", end)
    }

    /// A stop pressed on one surface is final for the agent and for every surface.
    async fn live_control(&self) -> Result<(), Failure> {
        let mut one = self.surface(None).await?;
        let mut two = self.surface(None).await?;
        let tail = self.client.show_session(&self.session).await?.tail;
        let publisher = self.agent().await?;
        let run = publisher.run().clone();
        let agent = tokio::spawn(answer(publisher));
        let half = tail.plus(DELTAS / 2);
        two.read_until(WITHIN, |surface| surface.cursor().offset >= half)
            .await?;
        let SignalOutcome::Applied { offset: stop } = two.cancel(&run, minted(Key::parse)?).await?
        else {
            return Err(Failure::failed("the stop was not applied"));
        };
        let refused = match agent
            .await
            .map_err(|error| Failure::failed(error.to_string()))?
        {
            Err(Failure::Refused(refusal)) if refusal.code == Code::RunFenced => refusal,
            _ => return Err(Failure::failed("the agent was not refused")),
        };
        if refused.details.cancel_offset != Some(stop) {
            return Err(Failure::failed("the agent was refused at another offset"));
        }
        // Whatever the agent had under way would have arrived by now.
        let tail = self.client.show_session(&self.session).await?.tail;
        for surface in [&mut one, &mut two] {
            surface
                .read_until(WITHIN, |surface| surface.cursor().offset >= tail)
                .await?;
            self.compare(Offset::ZERO.next(), tail, &surface.seen)
                .await?;
            let late = surface.seen.range(stop.next()..).any(|(_, event)| {
                event
                    .run
                    .as_ref()
                    .is_some_and(|stamp| stamp.run == run && stamp.seq.is_some())
            });
            if late {
                return Err(Failure::failed("output of the run stands after its stop"));
            }
        }
        self.kept("live_control", stop)
    }

    async fn surface(&self, cursor: Option<everwire_core::Cursor>) -> Result<Surface, Failure> {
        let edge = (self.edge.as_str(), self.trust.clone());
        Surface::attach(edge, &self.token, &self.session, cursor).await
    }

    async fn agent(&self) -> Result<Publisher, Failure> {
        Ok(self
            .client
            .start_run(&self.session, minted(RunId::parse)?, None)
            .await?)
    }

    /// A surface has seen exactly what the log holds from `first` to `last`.
    async fn compare(
        &self,
        first: Offset,
        last: Offset,
        seen: &std::collections::BTreeMap<Offset, everwire_core::Event>,
    ) -> Result<(), Failure> {
        let mut next = first;
        while next <= last {
            let page = self.client.read(&self.session, None, next, 0, None).await?;
            for event in page.events.iter().filter(|event| event.offset <= last) {
                if event.offset != next || seen.get(&next) != Some(event) {
                    return Err(Failure::failed(format!(
                        "offset {next} differs from the log"
                    )));
                }
                next = next.next();
            }
            if page.events.is_empty() {
                return Err(Failure::failed(format!("the log has no offset {next}")));
            }
        }
        Ok(())
    }

    fn kept(&self, promise: &str, through: Offset) -> Result<(), Failure> {
        if self.json {
            let value = json!({"promise": promise, "kept": true, "through": through.get()});
            return line(&value.to_string());
        }
        line(&format!(
            "{promise}: kept, compared through offset {through}"
        ))
    }
}

/// An answer at a model's pace; its last offset, or the refusal that ended it.
async fn answer(publisher: Publisher) -> Result<Offset, Failure> {
    let mut writer = RunWriter::new(publisher.run(), publisher.run_epoch());
    let mut pace = tokio::time::interval(PAUSE);
    for number in 1..=DELTAS {
        pace.tick().await;
        publisher
            .send(writer.text(&format!("word {number} ")))
            .await?;
    }
    publisher.send(writer.end()).await?;
    Ok(publisher.complete().await?.offset)
}

async fn written(
    agent: tokio::task::JoinHandle<Result<Offset, Failure>>,
) -> Result<Offset, Failure> {
    agent
        .await
        .map_err(|error| Failure::failed(error.to_string()))?
}

/// A name that nobody else has.
fn minted<T, E: std::fmt::Display>(parse: impl Fn(&str) -> Result<T, E>) -> Result<T, Failure> {
    let text = format!("selftest-{:016x}", SystemRandom::shared().next());
    parsed("name", &text, parse(&text))
}
