//! The person: one tab at the edge that reads along, says something now and then, and presses
//! Stop. Whenever its connection breaks it comes back with its cursor, and asks again with the
//! same key whatever was not answered.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::command::SignalOutcome;
use everwire_core::grant::Capability;
use everwire_core::{
    Body, Cancel, Cursor, Draft, InputId, Key, Offset, ParticipantKind, RunId, SessionName,
};
use everwire_promises::{Attachment, Reader};
use everwire_proto::frame::{AttachAnswer, ClientFrame, ServerFrame, Subprotocol};
use everwire_proto::signal::Pressed;
use everwire_testkit::Tab;

use crate::agent::STOPPED;
use crate::cluster::{EDGE_ADDR, token};
use crate::dice::Dice;
use crate::net::{End, Net};
use crate::sky::Sky;

/// The person's machine.
pub const PERSON: &str = "person";
/// How often it is looked whether the person is done.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What the person was told and shown.
pub struct Seen {
    /// The log has this end, and nothing more will come: read up to there.
    pub end: Option<Offset>,
    /// It was read.
    pub done: bool,
    /// What was shown, attachment by attachment.
    pub reader: Reader,
    /// Inputs that were acked, and where.
    pub inputs: Vec<(InputId, Offset)>,
    /// What pressing Stop came to.
    pub stop: Option<SignalOutcome>,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            end: None,
            done: false,
            reader: Reader {
                name: PERSON.to_owned(),
                attachments: Vec::new(),
            },
            inputs: Vec::new(),
            stop: None,
        }
    }
}

/// What a person does once the log has come so far.
enum Deed {
    Say(InputId),
    Stop,
}

/// What the person does.
pub fn run(
    sky: &Sky,
    net: &Net,
    seed: u64,
    session: &SessionName,
    seen: &Arc<Mutex<Seen>>,
) -> impl Future<Output = ()> + Send + use<> {
    let rights = [
        Capability::Create,
        Capability::Subscribe,
        Capability::Publish,
        Capability::SignalCancel,
        Capability::History,
    ];
    let person = Person {
        sky: sky.clone(),
        net: net.clone(),
        dice: Dice::new(seed, PERSON),
        token: token("ann", ParticipantKind::User, &rights),
        session: session.clone(),
        seen: Arc::clone(seen),
    };
    async move { person.live().await }
}

struct Person {
    sky: Sky,
    net: Net,
    dice: Dice,
    token: String,
    session: SessionName,
    seen: Arc<Mutex<Seen>>,
}

impl Person {
    async fn live(self) {
        let mut plans: VecDeque<(u64, Deed)> = VecDeque::new();
        let stop_at = self.dice.pick(100..250);
        for number in 1..=8 {
            let input = InputId::parse(&format!("i{number}")).expect("a good name");
            plans.push_back((number * 40, Deed::Say(input)));
        }
        plans.push_back((stop_at, Deed::Stop));
        plans.make_contiguous().sort_by_key(|(at, _)| *at);
        let mut cursor: Option<Cursor> = None;
        loop {
            match self.attach(cursor).await {
                Ok(mut tab) => {
                    let why = self.sit(&mut tab, &mut plans).await;
                    self.keep(&tab, cursor);
                    cursor = Some(tab.cursor);
                    match why {
                        Ok(()) => {
                            self.sky
                                .note(format_args!("{PERSON} is done at {}", tab.cursor));
                            self.seen().done = true;
                            return tab.close().await;
                        },
                        Err(why) => self.sky.note(format_args!(
                            "{PERSON} loses the tab at {}: {why}",
                            tab.cursor
                        )),
                    }
                },
                Err(why) => self.sky.note(format_args!("{PERSON} gets no tab: {why}")),
            }
            tokio::time::sleep(Duration::from_millis(self.dice.pick(20..400))).await;
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics here")
    }

    /// A new tab, attached where the last one ended.
    async fn attach(&self, cursor: Option<Cursor>) -> Result<Tab<End>, String> {
        let end = self.net.card(PERSON).connect(EDGE_ADDR).await;
        let end = end.map_err(|error| format!("no connection: {error}"))?;
        let mut tab = Tab::over(end, EDGE_ADDR, &self.token, Subprotocol::Proto).await?;
        match tab.try_attach(&self.session, cursor).await? {
            AttachAnswer::Resumed { .. } => {
                self.sky
                    .note(format_args!("{PERSON} reads on at {}", tab.cursor));
                Ok(tab)
            },
            other => Err(format!("{other:?}")),
        }
    }

    /// Reads and does what was planned, until there is nothing more to read. An error: the
    /// connection has ended.
    async fn sit(
        &self,
        tab: &mut Tab<End>,
        plans: &mut VecDeque<(u64, Deed)>,
    ) -> Result<(), String> {
        loop {
            let at = tab.cursor.offset;
            while let Some((_, deed)) = plans.front().filter(|(due, _)| *due <= at.get()) {
                self.act(tab, deed).await?;
                plans.pop_front();
            }
            let end = self.seen().end;
            if end.is_some_and(|end| at >= end) && plans.is_empty() {
                return Ok(());
            }
            if let Ok(Err(code)) = tokio::time::timeout(LOOK_EVERY, tab.step()).await {
                return Err(format!("it was closed with {code:?}"));
            }
        }
    }

    /// One deed, under the same key however often it takes.
    async fn act(&self, tab: &mut Tab<End>, deed: &Deed) -> Result<(), String> {
        let session = self.session.clone();
        let frame = match deed {
            Deed::Say(input) => ClientFrame::Publish {
                session,
                draft: Draft::new(Body::Input {
                    input: input.clone(),
                    text: format!("and {input}?"),
                    data: None,
                }),
                key: Some(Key::parse(input.as_str()).expect("an input's name is a good key")),
            },
            Deed::Stop => ClientFrame::Signal {
                session,
                pressed: Pressed::Cancel(Cancel::run(RunId::parse(STOPPED).expect("a good name"))),
                key: Key::parse("stop").expect("a good key"),
            },
        };
        match (deed, tab.try_request(frame).await?) {
            (Deed::Say(input), ServerFrame::Ack { offset, .. }) => {
                self.sky
                    .note(format_args!("{PERSON} said {input} at {offset}"));
                self.seen().inputs.push((input.clone(), offset));
                Ok(())
            },
            (Deed::Stop, ServerFrame::Outcome { outcome, .. }) => {
                self.sky.note(format_args!("{PERSON} stopped: {outcome:?}"));
                self.seen().stop = Some(outcome);
                Ok(())
            },
            (_, ServerFrame::Error { refusal, .. }) => Err(format!("refused: {refusal}")),
            (_, other) => panic!("it was answered with {other:?}"),
        }
    }

    /// Keeps what a tab has shown.
    fn keep(&self, tab: &Tab<End>, cursor: Option<Cursor>) {
        let attachment = Attachment {
            cursor: cursor.map(|cursor| cursor.offset),
            ranges: tab.ranges.clone(),
            events: tab.seen.values().cloned().collect(),
        };
        self.seen().reader.attachments.push(attachment);
    }
}
