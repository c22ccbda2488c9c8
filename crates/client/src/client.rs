//! The client: single calls, retried until they are answered, and the way to the streams.

use std::sync::Arc;
use std::time::Duration;

use everwire_core::command::StartRun;
use everwire_core::limits::GRPC_ANSWER_BYTES_MAX;
use everwire_core::{
    Draft, InputId, InputRef, Key, Kind, Lease, Namespace, NodeId, Offset, Refusal, RunEpoch,
    RunId, Seq, SessionEpoch, SessionName, ShardId,
};
use everwire_proto::v1;
use everwire_proto::v1::attach_client::AttachClient;
use everwire_proto::v1::cluster_client::ClusterClient;
use everwire_proto::v1::publish_client::PublishClient;
use everwire_proto::v1::runs_client::RunsClient;
use everwire_proto::v1::sessions_client::SessionsClient;

use crate::answers::{
    ClusterStatus, Created, Page, Posted, RunGrant, RunInfo, SessionInfo, SessionPage,
};
use crate::call::Caller;
use crate::config::ClientConfig;
use crate::connection::{Connections, Lane};
use crate::publisher::{Publisher, Target};
use crate::route::Aim;
use crate::subscriber::{SubscribeOptions, Subscriber};
use crate::wire;

/// A client of a cluster. Clones share connections. Use it inside a tokio runtime.
///
/// ```no_run
/// use std::sync::Arc;
/// use everwire_client::{Client, ClientConfig, SubscribeOptions, SubscriberEvent};
/// use everwire_core::{Clock, Random, Refusal, SessionName};
///
/// async fn tail(clock: Arc<dyn Clock>, random: Arc<dyn Random>) -> Result<(), Refusal> {
///     let addrs = vec!["127.0.0.1:7400".to_owned()];
///     let client = Client::new(ClientConfig::new(addrs, "token".to_owned(), clock, random))?;
///     let session = SessionName::parse("demo")?;
///     let mut subscriber = client.subscribe(&session, SubscribeOptions::default());
///     loop {
///         match subscriber.next().await {
///             SubscriberEvent::Events { events, .. } => println!("{} events", events.len()),
///             SubscriberEvent::Ended(refusal) => return Err(refusal),
///             _ => {},
///         }
///     }
/// }
/// ```
#[derive(Clone)]
pub struct Client {
    pub(crate) caller: Caller,
}

impl Client {
    /// A client; connects when it is used first. Refuses addresses that cannot be used.
    pub fn new(config: ClientConfig) -> Result<Self, Refusal> {
        let connections = Arc::new(Connections::new(&config)?);
        Ok(Self {
            caller: Caller {
                connections,
                token: config.token,
                random: config.random,
                deadline: config.deadline,
            },
        })
    }

    /// The same connections for another caller: an edge forwards its users' tokens.
    pub fn with_token(&self, token: String) -> Self {
        let mut client = self.clone();
        client.caller.token = Arc::new(token);
        client
    }

    /// The same client, but single calls are retried for another time.
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        let mut client = self.clone();
        client.caller.deadline = deadline;
        client
    }

    /// Begins to keep the map of the cluster at hand, instead of with the first call that needs
    /// it. Resolves when a node has told it; may be dropped before.
    pub async fn find_nodes(&self) {
        let connections = &self.caller.connections;
        connections.watch(Lane::People);
        connections.until(Connections::heard_ago).await;
    }

    /// How long ago a node was heard of last: zero while one streams its map; `None` before the
    /// first answer of any.
    pub fn heard_ago(&self) -> Option<Duration> {
        self.caller.connections.heard_ago()
    }

    /// Makes a session if it is not there.
    pub async fn create_session(&self, session: &SessionName) -> Result<Created, Refusal> {
        let request = v1::CreateRequest {
            session: session.to_string(),
        };
        let call =
            |channel, request| async move { SessionsClient::new(channel).create(request).await };
        wire::created(
            &self
                .caller
                .unary(Lane::People, Aim::Writes(session.clone()), request, call)
                .await?,
        )
    }

    /// Removes a session; says whether there was one. After a retry that may be `false`
    /// although this very call removed it.
    pub async fn delete_session(&self, session: &SessionName) -> Result<bool, Refusal> {
        let request = v1::DeleteRequest {
            session: session.to_string(),
        };
        let call =
            |channel, request| async move { SessionsClient::new(channel).delete(request).await };
        Ok(self
            .caller
            .unary(Lane::People, Aim::Writes(session.clone()), request, call)
            .await?
            .existed)
    }

    /// Lets a frozen session take commands again; says whether it had been frozen. Needs the
    /// capability `operate`.
    pub async fn unfreeze_session(&self, session: &SessionName) -> Result<bool, Refusal> {
        let request = v1::UnfreezeRequest {
            session: session.to_string(),
        };
        let call =
            |channel, request| async move { SessionsClient::new(channel).unfreeze(request).await };
        let aim = Aim::Writes(session.clone());
        let answer = self.caller.unary(Lane::People, aim, request, call).await?;
        Ok(answer.frozen)
    }

    /// A session's head.
    pub async fn show_session(&self, session: &SessionName) -> Result<SessionInfo, Refusal> {
        let request = v1::ShowRequest {
            session: session.to_string(),
        };
        let call =
            |channel, request| async move { SessionsClient::new(channel).show(request).await };
        wire::session_info(
            self.caller
                .unary(
                    Lane::People,
                    Aim::Reads(session.clone(), None),
                    request,
                    call,
                )
                .await?,
        )
    }

    /// Sessions whose names begin with `prefix`, a page at a time; `limit` 0 means 100.
    pub async fn list_sessions(
        &self,
        prefix: &str,
        limit: u32,
        page: Option<String>,
    ) -> Result<SessionPage, Refusal> {
        let request = v1::ListRequest {
            prefix: prefix.to_owned(),
            limit,
            page_token: page.unwrap_or_default(),
        };
        let call =
            |channel, request| async move { SessionsClient::new(channel).list(request).await };
        wire::session_page(
            self.caller
                .unary(Lane::People, Aim::Anywhere, request, call)
                .await?,
        )
    }

    /// The cluster as an operator sees it.
    pub async fn cluster_status(&self) -> Result<ClusterStatus, Refusal> {
        let call =
            |channel, request| async move { ClusterClient::new(channel).status(request).await };
        let request = v1::StatusRequest {};
        Ok(wire::cluster_status(
            self.caller
                .unary(Lane::People, Aim::Anywhere, request, call)
                .await?,
        ))
    }

    /// Hands the leadership of a shard to a node, or to whichever of its replicas is best.
    /// Answers who leads then.
    pub async fn transfer_leader(
        &self,
        shard: ShardId,
        to: Option<NodeId>,
    ) -> Result<NodeId, Refusal> {
        let request = v1::TransferRequest {
            shard: shard.0,
            to: to.map_or(0, |node| node.0),
        };
        let call =
            |channel, request| async move { ClusterClient::new(channel).transfer(request).await };
        let answer = self
            .caller
            .unary(Lane::People, Aim::Anywhere, request, call);
        Ok(NodeId(answer.await?.leader))
    }

    /// Moves everything that a node holds to other nodes, then lets it go for ever. Answers the
    /// version of the topology that says so; the moves follow it.
    pub async fn replace_node(&self, node: NodeId) -> Result<u64, Refusal> {
        let request = v1::ReplaceNodeRequest { node: node.0 };
        let call = |channel, request| async move {
            ClusterClient::new(channel).replace_node(request).await
        };
        let answer = self
            .caller
            .unary(Lane::People, Aim::Anywhere, request, call);
        Ok(answer.await?.version)
    }

    /// A run.
    pub async fn run(&self, session: &SessionName, run: &RunId) -> Result<RunInfo, Refusal> {
        let request = v1::GetRequest {
            session: session.to_string(),
            run: run.to_string(),
        };
        let call = |channel, request| async move { RunsClient::new(channel).get(request).await };
        wire::run_info(
            &self
                .caller
                .unary(
                    Lane::People,
                    Aim::Reads(session.clone(), None),
                    request,
                    call,
                )
                .await?,
        )
    }

    /// Begins a root run with the default lease. Retries safely, with a key of its own.
    pub async fn start_run(
        &self,
        session: &SessionName,
        run: RunId,
        input: Option<InputId>,
    ) -> Result<Publisher, Refusal> {
        let start = StartRun {
            input: input.map(InputRef::of_anybody),
            ..StartRun::new(run)
        };
        self.start(session, start).await
    }

    /// Begins a run: perhaps a child of another one, with a lease of its own, or for an input
    /// whose author is known, so that a stop of that input finds it. Without a key one is minted.
    ///
    /// ```no_run
    /// use everwire_client::{Client, StartRun};
    /// use everwire_core::{Refusal, RunId, SessionName};
    ///
    /// async fn delegate(client: Client, session: SessionName) -> Result<(), Refusal> {
    ///     let work = client.start_run(&session, RunId::parse("plan")?, None).await?;
    ///     let part = StartRun {
    ///         parent: Some(work.run().clone()),
    ///         ..StartRun::new(RunId::parse("search")?)
    ///     };
    ///     client.start(&session, part).await?.complete().await?;
    ///     work.complete().await?;
    ///     Ok(())
    /// }
    /// ```
    pub async fn start(
        &self,
        session: &SessionName,
        start: StartRun,
    ) -> Result<Publisher, Refusal> {
        let run = start.run;
        let (input, author) = match start.input {
            Some(InputRef { input, author }) => (Some(input), author),
            None => (None, None),
        };
        let key = start.key.unwrap_or_else(|| self.caller.mint_key());
        let request = v1::StartRequest {
            session: session.to_string(),
            run: run.to_string(),
            input: input.map(|input| input.to_string()).unwrap_or_default(),
            key: key.to_string(),
            input_by: author.map(|author| author.to_string()).unwrap_or_default(),
            parent: start.parent.map(|run| run.to_string()).unwrap_or_default(),
            lease_ms: start.lease.map_or(0, Lease::ms),
            meta: start.meta.map(|data| v1::Data::from(&data)),
        };
        let call = |channel, request| async move { RunsClient::new(channel).start(request).await };
        let answer = self
            .caller
            .unary(Lane::Data, Aim::Writes(session.clone()), request, call)
            .await?;
        let (lease, again) = (answer.lease_ms, answer.duplicate);
        let (epoch, offset) = (answer.run_epoch, answer.offset);
        let grant = wire::run_grant(&answer.session_epoch, epoch, offset, lease, again)?;
        Ok(self.granted(session, run, grant))
    }

    /// Takes over one's own live run, or anybody's orphaned one, under the next epoch, with the
    /// default lease.
    pub async fn claim_run(&self, session: &SessionName, run: RunId) -> Result<Publisher, Refusal> {
        self.claim(session, run, None).await
    }

    /// The same with a lease of another length.
    pub async fn claim(
        &self,
        session: &SessionName,
        run: RunId,
        lease: Option<Lease>,
    ) -> Result<Publisher, Refusal> {
        let request = v1::ClaimRequest {
            session: session.to_string(),
            run: run.to_string(),
            key: self.caller.mint_key().to_string(),
            lease_ms: lease.map_or(0, Lease::ms),
        };
        let call = |channel, request| async move { RunsClient::new(channel).claim(request).await };
        let answer = self
            .caller
            .unary(Lane::Data, Aim::Writes(session.clone()), request, call)
            .await?;
        let (lease, again) = (answer.lease_ms, answer.duplicate);
        let (epoch, offset) = (answer.run_epoch, answer.offset);
        let grant = wire::run_grant(&answer.session_epoch, epoch, offset, lease, again)?;
        Ok(self.granted(session, run, grant))
    }

    /// Goes on writing a run under an epoch that was granted before: the next draft gets
    /// `from_seq`. Begins a task, as [`Client::start_run`] does.
    pub fn publisher(
        &self,
        session: &SessionName,
        run: RunId,
        run_epoch: RunEpoch,
        from_seq: Seq,
    ) -> Publisher {
        let session = session.clone();
        let target = Target {
            session,
            run,
            run_epoch,
            grant: None,
        };
        Publisher::spawn(self.caller.clone(), target, from_seq)
    }

    fn granted(&self, session: &SessionName, run: RunId, grant: RunGrant) -> Publisher {
        let target = Target {
            session: session.clone(),
            run,
            run_epoch: grant.run_epoch,
            grant: Some(grant),
        };
        Publisher::spawn(self.caller.clone(), target, Seq::FIRST)
    }

    /// Sends one input or one `app` event outside runs. Without a key one is minted, so that
    /// retries of this call are safe; a key makes repeated calls safe for 24 h.
    pub async fn post(
        &self,
        session: &SessionName,
        draft: Draft,
        key: Option<Key>,
    ) -> Result<Posted, Refusal> {
        draft.check_shape()?;
        // Application events travel with the agents' output (RULES 9).
        let lane = match draft.body.kind() {
            Kind::App => Lane::Data,
            _ => Lane::People,
        };
        let request = v1::PostRequest {
            session: session.to_string(),
            draft: Some(v1::Draft::from(&draft)),
            key: key.unwrap_or_else(|| self.caller.mint_key()).to_string(),
        };
        let call =
            |channel, request| async move { PublishClient::new(channel).post(request).await };
        wire::posted(
            &self
                .caller
                .unary(lane, Aim::Writes(session.clone()), request, call)
                .await?,
        )
    }

    /// Reads a session from a cursor, then live, across any number of connections.
    pub fn subscribe(&self, session: &SessionName, options: SubscribeOptions) -> Subscriber {
        let mut caller = self.caller.clone();
        if let Some(token) = options.token.clone() {
            caller.token = Arc::new(token);
        }
        Subscriber::new(caller, session.clone(), options)
    }

    /// One page of committed events, from `from` on; `limit` 0 means as many as fit. The
    /// namespace is for an edge's token only.
    pub async fn read(
        &self,
        session: &SessionName,
        session_epoch: Option<SessionEpoch>,
        from: Offset,
        limit: u32,
        namespace: Option<Namespace>,
    ) -> Result<Page, Refusal> {
        let aim = Aim::Reads(session.clone(), namespace.clone());
        let request = v1::ReadRequest {
            session: session.to_string(),
            from: from.get(),
            session_epoch: session_epoch
                .map(|epoch| epoch.to_string())
                .unwrap_or_default(),
            limit,
            namespace: namespace.map(|name| name.to_string()).unwrap_or_default(),
            own_replica: false,
        };
        let call = |channel, request| async move {
            let client = AttachClient::new(channel);
            client
                .max_decoding_message_size(GRPC_ANSWER_BYTES_MAX)
                .read(request)
                .await
        };
        wire::page(self.caller.unary(Lane::Read, aim, request, call).await?)
    }
}
