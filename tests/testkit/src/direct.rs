//! One node, asked at its own address and nowhere else: no map, no hint is followed, nothing is
//! asked twice. What it answers, it answers from its own disk.

use std::time::Duration;

use everwire_core::{Code, Draft, Event, Key, Offset, Refusal, SessionName};
use everwire_proto::refusal::from_status;
use everwire_proto::v1;
use everwire_proto::v1::attach_client::AttachClient;
use everwire_proto::v1::cluster_client::ClusterClient;
use everwire_proto::v1::publish_client::PublishClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use crate::grpc::with;

/// Largest answer that is taken: a page of events and its envelopes.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// A connection to one node.
pub struct Direct {
    channel: Channel,
    token: String,
    within: Duration,
}

/// A page of events, as this node has them.
pub struct DirectPage {
    /// The events.
    pub events: Vec<Event>,
    /// The last offset that the page covers.
    pub to: Offset,
    /// The last committed offset.
    pub tail: Offset,
}

impl Direct {
    /// Connects when it is used first; each call may take so long.
    pub fn new(addr: &str, token: &str, within: Duration) -> Self {
        let endpoint = Endpoint::try_from(format!("http://{addr}")).expect("a good address");
        let endpoint = endpoint.connect_timeout(within);
        Self {
            channel: endpoint.connect_lazy(),
            token: token.to_owned(),
            within,
        }
    }

    /// How the cluster stands, as this node sees it.
    pub async fn status(&self) -> Result<v1::StatusResponse, Refusal> {
        let request = with(&self.token, v1::StatusRequest {});
        let mut client = ClusterClient::new(self.channel.clone());
        self.answer(client.status(request)).await
    }

    /// A page of a session, from an offset on.
    pub async fn read(&self, session: &SessionName, from: Offset) -> Result<DirectPage, Refusal> {
        let request = v1::ReadRequest {
            session: session.to_string(),
            from: from.get(),
            own_replica: true,
            ..v1::ReadRequest::default()
        };
        let client = AttachClient::new(self.channel.clone());
        let mut client = client.max_decoding_message_size(ANSWER_BYTES_MAX);
        let answer = self.answer(client.read(with(&self.token, request))).await?;
        let page = answer.events.unwrap_or_default();
        let events: Result<_, _> = page.events.into_iter().map(Event::try_from).collect();
        let offset = |offset| Offset::new(offset).expect("a good offset");
        Ok(DirectPage {
            events: events?,
            to: offset(page.to),
            tail: offset(page.tail),
        })
    }

    /// A session from its first event to its tail.
    pub async fn read_all(&self, session: &SessionName) -> Result<Vec<Event>, Refusal> {
        let mut events = Vec::new();
        let mut next = Offset::ZERO.next();
        loop {
            let page = self.read(session, next).await?;
            events.extend(page.events);
            if page.to >= page.tail {
                return Ok(events);
            }
            assert!(page.to >= next, "a page moves on");
            next = page.to.next();
        }
    }

    /// One input; its offset.
    pub async fn post(
        &self,
        session: &SessionName,
        draft: &Draft,
        key: &Key,
    ) -> Result<Offset, Refusal> {
        let request = v1::PostRequest {
            session: session.to_string(),
            draft: Some(v1::Draft::from(draft)),
            key: key.to_string(),
        };
        let mut client = PublishClient::new(self.channel.clone());
        let answer = self.answer(client.post(with(&self.token, request))).await?;
        Ok(Offset::new(answer.offset).expect("a good offset"))
    }

    async fn answer<R>(
        &self,
        call: impl Future<Output = Result<Response<R>, Status>>,
    ) -> Result<R, Refusal> {
        match tokio::time::timeout(self.within, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(from_status(&status)),
            Err(_) => Err(Refusal::new(Code::Draining, "no answer in time")),
        }
    }
}
