//! Every bound and default, with its unit and its reason. Queues name theirs from here.

use std::time::Duration;

/// Hash slots of a cluster; fixed for ever, because a session's slot is part of its keys.
pub const SLOTS: u16 = 4096;
/// Shards of a new cluster. More groups split batches; fewer limit spreading.
pub const SHARDS_DEFAULT: u32 = 16;
/// Shards of which a replica moves at once: each move sends a whole shard over the network.
pub const SHARD_MOVES_MAX: usize = 2;

/// Longest session, run, input, message, part, key and participant name, bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest namespace, bytes.
pub const NAMESPACE_BYTES_MAX: usize = 64;
/// Longest token, bytes: it is read before anybody is known.
pub const TOKEN_BYTES_MAX: usize = 8 << 10;
/// Shortest secret for signing tokens, bytes: as long as the hash that it keys.
pub const SECRET_BYTES_MIN: usize = 32;
/// Longest `format`, `name` and `reason` text inside an event, bytes.
pub const LABEL_BYTES_MAX: usize = 256;

/// Largest payload of one event (text, data and raw together), bytes. Above it: a file part.
pub const EVENT_BYTES_MAX: usize = 256 << 10;
/// Largest payload of one input, bytes.
pub const INPUT_BYTES_MAX: usize = 64 << 10;
/// Deepest nesting of an application's JSON. Readers parse it inside a frame, and common parsers
/// stop at 128.
pub const JSON_DEPTH_MAX: usize = 100;
/// Largest payload of one publish batch, bytes.
pub const BATCH_BYTES_MAX: usize = 256 << 10;
/// Most events in one publish batch. Bounds the work of one command besides its bytes.
pub const BATCH_EVENTS_MAX: usize = 4096;
/// Largest gRPC message that is decoded, bytes: a batch and its envelopes.
pub const GRPC_MESSAGE_BYTES_MAX: usize = 2 * BATCH_BYTES_MAX;

/// Largest header list of one gRPC request, bytes: a token and little else.
pub const GRPC_HEADER_BYTES_MAX: u32 = 16 << 10;
/// Connections that a node serves at once; one more is closed at once.
pub const NODE_CONNECTIONS_MAX: usize = 4096;
/// Calls and streams on one connection: an edge follows each of its sessions on a stream.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 16 << 10;
/// Unread bytes that a peer may have sent on one HTTP/2 stream: two messages.
pub const GRPC_STREAM_WINDOW_BYTES: u32 = 1 << 20;
/// Unread bytes that a peer may have sent on one HTTP/2 connection.
pub const GRPC_CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// How long a gRPC call may take until its answer begins, its request's arrival included.
pub const REQUEST_WITHIN: Duration = Duration::from_secs(30);
/// How long calls in flight may go on once a node stops.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(5);
/// Sessions in one page of a list, if the caller does not say.
pub const LIST_DEFAULT: usize = 100;
/// Most sessions in one page of a list.
pub const LIST_MAX: usize = 1000;
/// Names that one page of a list looks at, shown to the caller or not.
pub const LIST_LOOKED_AT_MAX: usize = 10_000;

/// Largest Raft entry payload, bytes.
pub const ENTRY_BYTES_MAX: usize = 1 << 20;
/// Largest append message between nodes, bytes.
pub const APPEND_BYTES_MAX: usize = 4 << 20;
/// Most bytes that the log writer takes into one sync, so that a vote never waits for more.
pub const SYNC_BYTES_MAX: usize = 1 << 20;

/// Largest WebSocket frame from a client, bytes: an input in the text encoding, with escapes.
pub const EDGE_FRAME_IN_BYTES_MAX: usize = 128 << 10;
/// Most event bytes in one frame to a client, unless a single event is larger.
pub const EDGE_FRAME_OUT_BYTES_MAX: usize = 256 << 10;
/// Most bytes that wait for one socket; above it the reader goes to catch-up from the log.
pub const OUTBOX_BYTES_MAX: usize = 1 << 20;
/// A socket that takes no byte for so long is closed with a resumable code.
pub const SLOW_READER_AFTER: Duration = Duration::from_secs(10);
/// Most sessions attached on one socket.
pub const ATTACHMENTS_PER_SOCKET_MAX: usize = 256;
/// Most client requests of one socket that are waiting for their answer.
pub const REQUESTS_PER_SOCKET_MAX: usize = 64;
/// How long a new socket may take to authenticate.
pub const AUTH_WITHIN: Duration = Duration::from_secs(10);
/// How often an edge pings an idle socket, and how often a client should.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(10);
/// A peer that is silent for so long is gone, open socket or not.
pub const HEARTBEAT_LOST_AFTER: Duration = Duration::from_secs(25);
/// How long the clients of an edge that stops are given to move, at most.
pub const EDGE_DRAIN_WITHIN: Duration = Duration::from_secs(60);
/// Clients that an edge that stops sends away in a second: few take less than the whole time.
pub const EDGE_MOVES_PER_SECOND: u32 = 500;
/// However few they are, they get so long.
pub const EDGE_DRAIN_MIN: Duration = Duration::from_secs(2);
/// A client that begins to move within its time is given so long to end, if the edge has it.
pub const EDGE_MOVE_GRACE: Duration = Duration::from_secs(5);
/// An edge that has heard of no node for so long is not ready.
pub const EDGE_READY_WITHIN: Duration = Duration::from_secs(5);
/// An edge that has heard of no node for so long takes no socket: it cannot know what was revoked.
pub const EDGE_UNHEARD_MAX: Duration = Duration::from_secs(60);
/// An edge waits so long for a node before it says that it serves.
pub const EDGE_START_WAIT: Duration = Duration::from_secs(2);
/// A single-use ticket for EventSource lives so long.
pub const TICKET_TTL: Duration = Duration::from_secs(30);
/// Events that an edge room keeps for those who come back soon, bytes.
pub const ROOM_BACKLOG_BYTES_MAX: usize = 1 << 20;

/// Credit of one run's publish stream, bytes. May be overdrawn by one batch.
pub const RUN_CREDIT_BYTES: u32 = 256 << 10;
/// Credit of one connection, bytes, over all its publish streams.
pub const CONNECTION_CREDIT_BYTES: u32 = 4 << 20;
/// Weight of the batches of one publish stream that are under way, bytes: payload and an
/// allowance for envelopes. Above it the node reads no further batch; nothing is refused.
pub const STREAM_WEIGHT_BYTES_MAX: usize = 1 << 20;
/// Bytes that may wait for one shard's log in the agents' lane.
pub const SHARD_AGENT_BYTES_MAX: usize = 16 << 20;
/// Bytes that may wait for one shard's log in the people's lane; its place is reserved.
pub const SHARD_PEOPLE_BYTES_MAX: usize = 4 << 20;
/// Most bytes of events that one delivery or one read answers with.
pub const READ_BYTES_MAX: usize = 256 << 10;
/// Committed events that a shard keeps in memory for live readers of one session, bytes.
pub const FEED_BYTES_MAX: usize = 1 << 20;

/// Committed events that all shards of a node together keep in memory for live readers, bytes.
/// Above it, rings shrink and their readers go to the disk.
pub const FEED_TOTAL_BYTES_MAX: usize = 256 << 20;
/// Log entries of one shard that are proposed and not yet applied. More ready commands wait and
/// share the next entry, so a full pipeline makes larger batches.
pub const ENTRIES_IN_FLIGHT_MAX: usize = 4;
/// Rows that one shard's apply keeps in memory, bytes.
pub const ROW_CACHE_BYTES_MAX: usize = 8 << 20;
/// Threads that apply committed entries; each shard belongs to one of them.
pub const APPLY_THREADS_MAX: usize = 4;
/// Reads of the disk that run at once; the others wait for their turn.
pub const DISK_READERS_MAX: usize = 16;

/// Batches of a run and epoch whose seq range is remembered exactly; a writer keeps no more
/// of them un-acked.
pub const BATCHES_REMEMBERED: u64 = 256;
/// Live runs of one session.
pub const LIVE_RUNS_MAX: u32 = 256;
/// Open messages of one run: each is sealed by a cancel, in that one command.
pub const OPEN_MESSAGES_MAX: u32 = 64;
/// Open parts of one run.
pub const OPEN_PARTS_MAX: u32 = 64;
/// Steps of one run, each counted once however often it is tried.
pub const STEPS_PER_RUN_MAX: u32 = 1024;
/// Runs above a run, itself included: a tree that is deeper has lost its way.
pub const RUN_DEPTH_MAX: u32 = 16;
/// What an application may say about a run when it starts it, bytes.
pub const RUN_META_BYTES_MAX: usize = 16 << 10;
/// The lease of a writer that asks for none: its longest silence.
pub const LEASE_DEFAULT: Duration = Duration::from_secs(15);
/// Shortest lease: below it an election would cost a living writer its run.
pub const LEASE_MIN: Duration = Duration::from_secs(5);
/// Longest lease.
pub const LEASE_MAX: Duration = Duration::from_secs(3600);
/// A run without a writer is given up after so long: it has failed, as lost.
pub const ORPHAN_LIMIT: Duration = Duration::from_secs(600);
/// A graceful stop leaves its writer so long at most.
pub const GRACE_MAX: Duration = Duration::from_secs(30);
/// Requests for an approval that are open, per session.
pub const OPEN_APPROVALS_MAX: u32 = 64;
/// Participants that an approval may be kept to.
pub const APPROVERS_MAX: usize = 16;
/// How long an approval waits when its run does not say.
pub const APPROVAL_DEFAULT: Duration = Duration::from_secs(3600);
/// The shortest time that an approval may wait.
pub const APPROVAL_MIN: Duration = Duration::from_secs(1);
/// The longest time that an approval may wait.
pub const APPROVAL_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Stops of inputs that no run answers yet, of one session.
pub const TOMBSTONES_MAX: u32 = 64;
/// The same that one participant has pressed.
pub const TOMBSTONES_PER_PARTICIPANT_MAX: u32 = 8;
/// How long such a stop waits for its run.
pub const TOMBSTONE_TTL: Duration = Duration::from_secs(600);
/// Inputs and signals of one session in one day of command time.
pub const PEOPLE_PER_DAY_MAX: u32 = 10_000;
/// A client key older than this counts as absent.
pub const KEY_TTL: Duration = Duration::from_secs(24 * 3600);
/// Stale keys that one firing of their session's timer removes at most.
pub const STALE_KEYS_PER_FIRE: usize = 256;
/// A session's stale keys are removed at most this often, unless one time was not enough.
pub const STALE_KEYS_EVERY: Duration = Duration::from_secs(3600);
/// A leader keeps the timers in memory that are due within this time, and reads the disk again
/// when it has passed.
pub const TIMERS_AHEAD: Duration = Duration::from_secs(3600);
/// Timers that a leader lets fire in one log entry.
pub const FIRES_PER_ENTRY: usize = 256;
/// Leases that a leader lets end in one log entry.
pub const EXPIRES_PER_ENTRY: usize = 256;

/// A shard that changes is audited this often, and after [`AUDIT_ENTRIES`] entries.
pub const AUDIT_EVERY: Duration = Duration::from_secs(10);
/// Entries after which a shard is audited before its time: what a divergence may cover.
pub const AUDIT_ENTRIES: u64 = 10_000;
/// Audits whose hash a replica can still tell: 32 bytes each, per shard.
pub const AUDITS_REMEMBERED: usize = 1_024;

/// A subscription whose replica has heard no leader for so long says `STALE`.
pub const STALE_AFTER: Duration = Duration::from_secs(2);
/// The event DB is flushed at this much un-flushed apply, bytes.
pub const FLUSH_BYTES: u64 = 64 << 20;
/// The event DB is flushed when the oldest un-flushed apply is this old.
pub const FLUSH_EVERY: Duration = Duration::from_secs(30);
/// Everything that a node holds is read once in so long, and held against its checksums.
pub const SCRUB_EVERY: Duration = Duration::from_secs(24 * 3600);
/// The first time so long after its start.
pub const SCRUB_AFTER: Duration = Duration::from_secs(60);
/// What is read of it at a time, bytes.
pub const SCRUB_BYTES: usize = 1 << 20;
/// The pause between two of these: at most 8 MiB a second.
pub const SCRUB_PAUSE: Duration = Duration::from_millis(125);
/// Memory of a node's two databases together, caches and write buffers, bytes.
pub const STORE_MEMORY_BYTES: usize = 384 << 20;
/// From so full a disk on, percent, agents' output is refused.
pub const SPACE_AGENTS_PERCENT: u64 = 90;
/// From so full a disk on, percent, people's input is refused too; deletes and trims never are.
pub const SPACE_PEOPLE_PERCENT: u64 = 95;
/// With so many bytes left, agents are never refused for want of room, whatever the percentage.
pub const SPACE_AGENTS_BYTES: u64 = 4 << 30;
/// The same for people.
pub const SPACE_PEOPLE_BYTES: u64 = 2 << 30;
/// How often a node looks how full its disk is.
pub const SPACE_LOOK_EVERY: Duration = Duration::from_secs(1);
/// Largest ballast file, bytes; on a small disk it is a hundredth of it.
pub const BALLAST_BYTES_MAX: u64 = 64 << 20;
/// Log that is kept for a follower that lags or is dead, bytes.
pub const LOG_KEPT_BYTES_MAX: u64 = 4 << 30;
/// The same as a time: a follower that was silent for longer gets a snapshot when it is back.
pub const LOG_KEPT_FOR: Duration = Duration::from_secs(3600);
/// A node whose wall clock is further than this off the median of its peers leads nothing.
pub const CLOCK_OFF_MAX: Duration = Duration::from_millis(500);

/// A client's single call is retried for so long before its last refusal is the answer.
pub const CALL_WITHIN: Duration = Duration::from_secs(15);
/// One attempt of a single call, or the opening of a stream, may take so long.
pub const ATTEMPT_WITHIN: Duration = Duration::from_secs(5);
/// A client's connection may take so long to be made.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(2);
/// How often a client pings a gRPC connection that has calls under way and is silent. With the
/// next bound it is how long a reader of a stopped node waits.
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
/// A gRPC connection whose ping is not answered for so long is dead.
pub const KEEPALIVE_LOST_AFTER: Duration = Duration::from_millis(1_500);
/// A node that leaves a writer without an answer for so long is asked about elsewhere: another
/// node knows whether it still leads.
pub const ANSWER_LATE_AFTER: Duration = Duration::from_millis(1_500);
/// Answers that are under way when another leader is known are waited for so long.
pub const SUPERSEDED_GRACE: Duration = Duration::from_millis(200);
/// A client's pause between attempts is at most so long while a shard has no leader.
pub const LEADERLESS_PAUSE_MAX: Duration = Duration::from_millis(100);
/// A node that failed is passed over for so long at first; it doubles up to the second.
pub const SUSPECT_FOR: Duration = Duration::from_secs(1);
/// See [`SUSPECT_FOR`].
pub const SUSPECT_FOR_MAX: Duration = Duration::from_secs(60);
/// Pauses between attempts to watch the map: at most so long, and after a refusal for good.
pub const WATCH_PAUSE_MAX: Duration = Duration::from_secs(2);
/// See [`WATCH_PAUSE_MAX`].
pub const WATCH_AGAIN_AFTER: Duration = Duration::from_secs(30);
/// Most nodes of a map that a client takes.
pub const MAP_NODES_MAX: usize = 1_024;
/// A client's first pause between attempts is at most so long; it doubles from there.
pub const BACKOFF_MIN: Duration = Duration::from_millis(50);
/// No pause between attempts is longer.
pub const BACKOFF_MAX: Duration = Duration::from_secs(5);
/// Subscriptions that one client opens in a second, at most.
pub const REATTACH_PER_SECOND_MAX: u32 = 2_000;
/// Channels to hinted addresses that a client keeps besides its configured ones.
pub const HINTED_ADDRESSES_MAX: usize = 64;
/// Stretches of acked output that wait for whoever reads a publisher's acks.
pub const ACKS_PENDING_MAX: usize = 16_384;
/// Largest gRPC message with events that a client decodes, bytes: a full answer of the
/// smallest events, envelopes included.
pub const GRPC_ANSWER_BYTES_MAX: usize = 4 << 20;

/// A node's connection to another may take so long to be made.
pub const PEER_CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// A connection between nodes whose ping is not answered for so long is dead.
pub const PEER_LOST_AFTER: Duration = Duration::from_secs(2);
/// Largest message between nodes, bytes: an append message's payload and its envelopes.
pub const PEER_MESSAGE_BYTES_MAX: usize = 16 << 20;
/// A follower that owes an answer to log entries for so long is taken for silent.
pub const APPEND_WITHIN: Duration = Duration::from_secs(3);
/// A vote, or a read index, that is not answered for so long counts as refused.
pub const VOTE_WITHIN: Duration = Duration::from_millis(250);
/// Heartbeats of all groups to one node wait for each other at most so long.
pub const BEATS_HELD: Duration = Duration::from_millis(15);
/// A message of heartbeats that is not answered for so long counts as lost.
pub const BEAT_WITHIN: Duration = Duration::from_millis(150);
/// A snapshot whose transfer does not move for so long is given up.
pub const SNAPSHOT_PIECE_WITHIN: Duration = Duration::from_secs(10);
/// Commands on their way to one node's shards, bytes per lane.
pub const FORWARD_BYTES_MAX: usize = 4 << 20;
/// The same in commands.
pub const FORWARDS_WAITING_MAX: usize = 4096;
/// The stream of forwarded commands may take so long to be opened.
pub const FORWARD_OPEN_WITHIN: Duration = Duration::from_secs(1);
/// How often a node asks the others how their replicas stand.
pub const REPORT_EVERY: Duration = Duration::from_millis(500);
/// A node that was not heard for so long is shown as dead, and gets nothing new.
pub const DEAD_AFTER: Duration = Duration::from_secs(3);
/// A hand-over of leadership may take so long before it is given up.
pub const HAND_OVER_WITHIN: Duration = Duration::from_secs(2);
/// How long a shard's leader must have led, and its better must have been level with it, before
/// it hands the leadership to the node that should have it.
pub const BALANCE_AFTER: Duration = Duration::from_secs(2);
