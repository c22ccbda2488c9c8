//! A reader of any kind that can vanish in every way and come back with its cursor, and
//! remembers everything that it was given.

use everwire_client::{Client, SubscribeOptions, Subscriber, SubscriberEvent};
use everwire_core::{Cursor, Event, Offset, SessionName};
use everwire_proto::frame::{AttachAnswer, Subprotocol};
use everwire_testkit::tab::{READ_WITHIN, WITHIN};
use everwire_testkit::{Sse, Tab};
use tokio::time::timeout;

use crate::history::{Attachment, Reader};

/// What it reads over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A WebSocket, text frames.
    Json,
    /// A WebSocket, binary frames.
    Proto,
    /// An event stream.
    Sse,
}

impl Kind {
    /// All that an edge serves.
    pub const ALL: [Self; 3] = [Self::Json, Self::Proto, Self::Sse];
}

/// How it goes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// As a closed tab does.
    Goodbye,
    /// With a TCP reset.
    Reset,
}

enum Surface {
    Tab(Box<Tab>),
    Sse(Box<Sse>),
    Grpc {
        subscriber: Box<Subscriber>,
        ranges: Vec<(Offset, Offset)>,
        events: Vec<Event>,
    },
}

/// A reader of one session.
pub struct Follower {
    kind: Option<Kind>,
    token: String,
    session: SessionName,
    surface: Option<Surface>,
    /// What it came with to the open attachment.
    came_with: Option<Offset>,
    /// The last event seen, once there is a history.
    cursor: Option<Cursor>,
    closed: Vec<Attachment>,
}

impl Follower {
    /// Attaches to a session that is there, from its first event on.
    pub async fn attach(kind: Kind, addr: &str, token: &str, session: &SessionName) -> Self {
        let mut follower = Self::away(kind, token, session);
        follower.come_back(addr).await;
        follower
    }

    /// One that has not come yet.
    pub fn away(kind: Kind, token: &str, session: &SessionName) -> Self {
        Self {
            kind: Some(kind),
            token: token.to_owned(),
            session: session.clone(),
            surface: None,
            came_with: None,
            cursor: None,
            closed: Vec::new(),
        }
    }

    /// One of every kind that an edge serves.
    pub async fn each(addr: &str, token: &str, session: &SessionName) -> Vec<Self> {
        let mut all = Vec::new();
        for kind in Kind::ALL {
            all.push(Self::attach(kind, addr, token, session).await);
        }
        all
    }

    /// Follows over gRPC; comes back by itself as often as it takes.
    pub fn grpc(client: &Client, session: &SessionName) -> Self {
        let subscriber = client.subscribe(session, SubscribeOptions::default());
        Self {
            kind: None,
            token: String::new(),
            session: session.clone(),
            surface: Some(Surface::Grpc {
                subscriber: Box::new(subscriber),
                ranges: Vec::new(),
                events: Vec::new(),
            }),
            came_with: None,
            cursor: None,
            closed: Vec::new(),
        }
    }

    /// Attaches at `addr` with the cursor at hand, which must be answered with exactly the rest.
    pub async fn come_back(&mut self, addr: &str) {
        let attached = self.try_come_back(addr).await;
        attached.unwrap_or_else(|why| panic!("{addr}: {why}"));
    }

    /// The same where the edge may be away, or about to go: the error says what happened.
    pub async fn try_come_back(&mut self, addr: &str) -> Result<(), String> {
        assert!(self.surface.is_none(), "it left before");
        let kind = self.kind.expect("gRPC comes back by itself");
        let surface = match kind {
            Kind::Sse => {
                let sse = Sse::try_open(addr, &self.token, &self.session, self.cursor).await?;
                Surface::Sse(Box::new(sse))
            },
            Kind::Json => self.tab(addr, Subprotocol::Json).await?,
            Kind::Proto => self.tab(addr, Subprotocol::Proto).await?,
        };
        self.came_with = self.cursor.map(|cursor| cursor.offset);
        self.surface = Some(surface);
        Ok(())
    }

    async fn tab(&mut self, addr: &str, subprotocol: Subprotocol) -> Result<Surface, String> {
        let mut tab = Tab::try_open(addr, &self.token, subprotocol).await?;
        let answer = tab.try_attach(&self.session, self.cursor).await?;
        let seen = self.cursor.map_or(Offset::ZERO, |cursor| cursor.offset);
        match answer {
            AttachAnswer::Resumed { from, .. } => assert_eq!(from, seen.next()),
            other => panic!("{other:?}"),
        }
        Ok(Surface::Tab(Box::new(tab)))
    }

    /// What it reads over; `None` for gRPC.
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// The last offset seen.
    pub fn seen_to(&self) -> Offset {
        let seen = match &self.surface {
            Some(Surface::Tab(tab)) => Some(tab.cursor.offset),
            Some(Surface::Sse(sse)) => Some(sse.seen_to()),
            Some(Surface::Grpc { ranges, .. }) => ranges.last().map(|(_, to)| *to),
            None => self.cursor.map(|cursor| cursor.offset),
        };
        seen.unwrap_or(Offset::ZERO)
    }

    /// Reads until the offset was seen.
    pub async fn read_to(&mut self, offset: Offset) {
        match self.surface.as_mut().expect("attached") {
            Surface::Tab(tab) => tab.read_to(offset).await,
            Surface::Sse(sse) => sse.read_to(offset).await,
            Surface::Grpc {
                subscriber,
                ranges,
                events,
            } => {
                let reading = async {
                    while ranges.last().is_none_or(|(_, to)| *to < offset) {
                        heard(subscriber, ranges, events).await;
                    }
                };
                let read = timeout(READ_WITHIN, reading).await;
                read.unwrap_or_else(|_| panic!("{offset} did not come over gRPC"));
            },
        }
    }

    /// Takes in whatever comes next; the close code, if there is one, when the connection has
    /// ended, and leaves. Nothing is lost when it is given up.
    pub async fn step(&mut self) -> Result<(), Option<u16>> {
        let ended = match self.surface.as_mut().expect("attached") {
            Surface::Tab(tab) => tab.step().await.err(),
            Surface::Sse(sse) => (!sse.step().await).then_some(None),
            Surface::Grpc {
                subscriber,
                ranges,
                events,
            } => {
                heard(subscriber, ranges, events).await;
                None
            },
        };
        let Some(code) = ended else { return Ok(()) };
        self.left();
        Err(code)
    }

    /// Reads until the other side ends the connection or the connection breaks, and leaves. The
    /// close code, if there was a close. Fails when it lives on for [`WITHIN`].
    pub async fn read_to_end(&mut self) -> Option<u16> {
        let surface = self.surface.as_mut().expect("attached");
        let end = async {
            match surface {
                Surface::Tab(tab) => tab.read_to_end().await,
                Surface::Sse(sse) => {
                    sse.read_to_end().await;
                    None
                },
                Surface::Grpc { .. } => panic!("gRPC comes back by itself"),
            }
        };
        let code = timeout(WITHIN, end).await.expect("it ends in time");
        self.left();
        code
    }

    /// Goes away with what it has read; whatever else was under way is lost.
    pub async fn leave(&mut self, how: Leave) {
        match (self.left(), how) {
            (Some(Surface::Tab(tab)), Leave::Goodbye) => tab.close().await,
            (Some(Surface::Tab(tab)), Leave::Reset) => tab.reset(),
            (other, _) => drop(other),
        }
    }

    /// Whether the edge told this tab to move.
    pub fn told_to_move(&self) -> bool {
        matches!(&self.surface, Some(Surface::Tab(tab)) if tab.told_to_move)
    }

    /// The tab, to do what only a tab can.
    pub fn as_tab(&mut self) -> &mut Tab {
        match self.surface.as_mut() {
            Some(Surface::Tab(tab)) => tab,
            _ => panic!("an attached tab"),
        }
    }

    /// What it was given, for the checker.
    pub fn into_reader(mut self) -> Reader {
        self.left();
        let kind = self
            .kind
            .map_or_else(|| "Grpc".to_owned(), |kind| format!("{kind:?}"));
        Reader {
            name: kind,
            attachments: self.closed,
        }
    }

    /// Files the open attachment, and hands its surface out.
    fn left(&mut self) -> Option<Surface> {
        let surface = self.surface.take()?;
        let cursor = self.came_with;
        let (ranges, events) = match &surface {
            Surface::Tab(tab) => {
                self.cursor = Some(tab.cursor);
                (tab.ranges.clone(), tab.seen.values().cloned().collect())
            },
            Surface::Sse(sse) => {
                self.cursor = sse.cursor;
                let ranges = sse.seen.keys().map(|offset| (*offset, *offset));
                (ranges.collect(), sse.seen.values().cloned().collect())
            },
            Surface::Grpc { ranges, events, .. } => (ranges.clone(), events.clone()),
        };
        self.closed.push(Attachment {
            cursor,
            ranges,
            events,
        });
        Some(surface)
    }
}

/// Takes in the next thing that a subscriber hears.
async fn heard(
    subscriber: &mut Subscriber,
    ranges: &mut Vec<(Offset, Offset)>,
    events: &mut Vec<Event>,
) {
    let heard = timeout(WITHIN, subscriber.next()).await;
    match heard.expect("a subscriber hears something in time") {
        SubscriberEvent::Events {
            from,
            to,
            events: new,
            ..
        } => {
            ranges.push((from, to));
            events.extend(new);
        },
        SubscriberEvent::Attached { .. }
        | SubscriberEvent::Alive { .. }
        | SubscriberEvent::Disconnected { .. } => {},
        other => panic!("{other:?}"),
    }
}
