//! Reads of a shard that this node holds: attach, pages, look-ups.

use std::sync::Arc;

use everwire_core::row::HeadRow;
use everwire_core::{
    Code, Cursor, Details, Namespace, Offset, Refusal, RunId, SessionEpoch, SessionName,
};
use everwire_rules::resolve::{Answer, Readable, resolve};

use crate::feed::Reader;
use crate::group::Shard;
use crate::handle::{AttachRequest, Attached};
use crate::reads::{self, Listed, Page, RunInfo, SessionInfo, SessionRef};
use crate::run_watch::RunWatch;
use crate::subscription::{Here, Subscription};

/// A session found by name, with its readers' ring joined before its head was read.
struct Located {
    reader: Reader,
    head: HeadRow,
}

fn unknown_session() -> Refusal {
    Refusal::new(Code::UnknownSession, "there is no session of this name")
}

/// Reads of a shard that this node holds.
pub(crate) struct LocalReader<'s> {
    shard: &'s Arc<Shard>,
}

impl<'s> LocalReader<'s> {
    pub(crate) fn of(shard: &'s Arc<Shard>) -> Self {
        Self { shard }
    }

    fn epoch(&self, session: everwire_core::row::SessionKey) -> SessionEpoch {
        SessionEpoch {
            timeline: self.shard.timeline,
            session_no: session.session_no,
        }
    }

    /// Finds a session and joins its readers. `None`: not here, as far as this node has applied.
    async fn locate(&self, name: &SessionRef) -> Result<Option<Located>, Refusal> {
        let (feed, name) = (self.shard.feed.clone(), name.clone());
        let located = self.shard.reads.run(move |store| {
            let Some(session) = reads::named(store, &name)? else {
                return Ok(Ok(None));
            };
            // Joined first: what is committed after the head was read comes through the ring.
            let reader = match feed.join(session) {
                Ok(reader) => reader,
                Err(refusal) => return Ok(Err(refusal)),
            };
            let head = reads::head(store, session)?;
            Ok(Ok(head.map(|head| Located { reader, head })))
        });
        located.await?
    }

    /// Evaluates DESIGN's table for a reader: from what this node has applied if that decides
    /// it, else after a read index from the leader (RULES 24).
    async fn resolve(
        &self,
        name: &SessionRef,
        cursor: Option<Cursor>,
        at_least: Option<Offset>,
    ) -> Result<(Answer, Option<Located>), Refusal> {
        let mut fresh = cursor.is_none();
        if fresh {
            self.shard.barrier().await?;
        }
        loop {
            let located = self.locate(name).await?;
            let readable = located.as_ref().map(|located| Readable {
                session_epoch: self.epoch(located.reader.session()),
                trimmed: located.head.trimmed,
                applied_tail: located.head.tail,
                // After the barrier this is the leader's tail; before it the answer counts only
                // if it does not depend on it.
                leader_tail: located.head.tail,
            });
            let mut answer = resolve(readable.as_ref(), cursor);
            let tail = readable.map(|readable| readable.applied_tail);
            let short = tail.is_some_and(|tail| at_least.is_some_and(|least| least > tail));
            let decided = matches!(answer, Answer::Resumed { .. }) && !short;
            if !decided && !fresh {
                self.shard.barrier().await?;
                fresh = true;
                continue;
            }
            if let (true, Some(readable)) = (short, readable) {
                answer = Answer::Gone {
                    session_epoch: readable.session_epoch,
                    earliest: readable.trimmed.next(),
                    tail: readable.applied_tail,
                    ahead: true,
                };
            }
            if let Answer::Gone {
                ahead: true, tail, ..
            } = answer
            {
                tracing::error!(
                    shard = %self.shard.id, session = %name.session, ?cursor, ?at_least, %tail,
                    "a cursor above the leader's tail: foreign, or a lost event"
                );
            }
            return Ok((answer, located));
        }
    }

    /// Answers where a reader stands and opens its subscription. NOT_LEADER, NO_QUORUM,
    /// DRAINING, INTERNAL.
    pub(crate) async fn attach(&self, request: AttachRequest) -> Result<Attached, Refusal> {
        let name = SessionRef {
            namespace: request.namespace,
            session: request.session,
        };
        let resolved = self.resolve(&name, request.cursor, request.at_least);
        let (answer, located) = resolved.await?;
        let subscription = match (answer, located) {
            (
                Answer::Resumed {
                    session_epoch,
                    from,
                    tail,
                },
                Some(located),
            ) => Some(Subscription::here(Here::new(
                session_epoch,
                located.reader,
                self.shard.reads.clone(),
                self.shard.leadership.clone(),
                from,
                tail,
            ))),
            _ => None,
        };
        Ok(Attached {
            answer,
            subscription,
        })
    }

    /// One page of committed events from `from` on (0 and 1: from the earliest), at most
    /// `limit` (0: as many as fit [`READ_BYTES_MAX`](everwire_core::limits::READ_BYTES_MAX)).
    /// UNKNOWN_SESSION; GONE for another `epoch`, below the trim point or above the tail.
    pub(crate) async fn read(
        &self,
        namespace: &Namespace,
        session: &SessionName,
        epoch: Option<SessionEpoch>,
        from: Offset,
        limit: usize,
    ) -> Result<Page, Refusal> {
        let name = SessionRef {
            namespace: namespace.clone(),
            session: session.clone(),
        };
        // "From the earliest" is no cursor, unless it is the earliest of a certain history.
        let earliest = from <= Offset::ZERO.next();
        let cursor = Cursor {
            session_epoch: epoch,
            offset: from.previous(),
        };
        let cursor = (!earliest || epoch.is_some()).then_some(cursor);
        let (answer, located) = self.resolve(&name, cursor, None).await?;
        let (session_epoch, from, tail) = match (answer, earliest) {
            (Answer::NotFound, _) => return Err(unknown_session()),
            (
                Answer::Resumed {
                    session_epoch,
                    from,
                    tail,
                },
                _,
            ) => (session_epoch, from, tail),
            // The first page of a history that was trimmed begins at its earliest event.
            (
                Answer::Gone {
                    session_epoch,
                    earliest,
                    tail,
                    ahead: false,
                },
                true,
            ) if epoch == Some(session_epoch) => (session_epoch, earliest, tail),
            (answer, _) => return Err(refusal_of(answer)),
        };
        let Some(located) = located else {
            return Err(unknown_session());
        };
        let session = located.reader.session();
        let page = self.shard.reads.run(move |store| {
            let tail = reads::head(store, session)?.map(|head| head.tail);
            let events = reads::events(store, session, from, limit)?;
            // Nothing of a deleted session is a page of it.
            if reads::head(store, session)?.is_none() {
                return Ok(None);
            }
            if events.is_empty() && Some(from) <= tail {
                let what = format!("event {from} is missing before {tail:?}");
                return Err(reads::damaged(store, session.slot, what));
            }
            Ok(Some(events))
        });
        let events = page.await?.ok_or_else(unknown_session)?;
        let last = events.last().map_or(tail, |last| tail.max(last.offset));
        Ok(Page {
            session_epoch,
            events,
            tail: last,
        })
    }

    /// A session as it stands. UNKNOWN_SESSION.
    pub(crate) async fn show(
        &self,
        namespace: &Namespace,
        session: &SessionName,
    ) -> Result<SessionInfo, Refusal> {
        self.shard.barrier().await?;
        let name = SessionRef {
            namespace: namespace.clone(),
            session: session.clone(),
        };
        let found = self.shard.reads.run(move |store| {
            let Some(session) = reads::named(store, &name)? else {
                return Ok(None);
            };
            let head = reads::head(store, session)?;
            let runs = reads::live_runs(store, session)?;
            Ok(head.map(|head| (session, head, runs)))
        });
        let (session, head, open_runs) = found.await?.ok_or_else(unknown_session)?;
        Ok(SessionInfo {
            shard: self.shard.id,
            leader: self.shard.leadership.leader(),
            session_epoch: self.epoch(session),
            tail: head.tail,
            trimmed: head.trimmed,
            bytes: head.bytes,
            created: head.created,
            last_time: head.last_time,
            frozen: head.frozen,
            attachments: self.shard.feed.readers(session),
            open_runs,
        })
    }

    /// Sessions of this shard whose names begin with `prefix`, in the shard's own order, after
    /// the session `after`, at most `limit`.
    pub(crate) async fn list(
        &self,
        namespace: &Namespace,
        prefix: &str,
        after: Option<&SessionName>,
        limit: usize,
    ) -> Result<Vec<Listed>, Refusal> {
        self.shard.barrier().await?;
        let slots = self.shard.id.slots(self.shard.shards);
        let (namespace, prefix) = (namespace.clone(), prefix.to_owned());
        let after = after.cloned();
        let listed = self
            .shard
            .reads
            .run(move |store| reads::list(store, slots, &namespace, &prefix, after, limit));
        let listed = listed.await?.into_iter();
        let listed = listed.map(|(session, head)| Listed {
            session,
            shard: self.shard.id,
            tail: head.tail,
            last_time: head.last_time,
        });
        Ok(listed.collect())
    }

    /// A run as it stands. UNKNOWN_SESSION, UNKNOWN_RUN.
    pub(crate) async fn run(
        &self,
        namespace: &Namespace,
        session: &SessionName,
        run: &RunId,
    ) -> Result<RunInfo, Refusal> {
        self.shard.barrier().await?;
        let name = SessionRef {
            namespace: namespace.clone(),
            session: session.clone(),
        };
        let id = run.clone();
        let found = self.shard.reads.run(move |store| {
            let Some(session) = reads::named(store, &name)? else {
                return Ok(None);
            };
            Ok(Some((session, reads::run(store, session, &id)?)))
        });
        let (session, found) = found.await?.ok_or_else(unknown_session)?;
        let (row, epoch) = found.ok_or_else(|| {
            let message = "the session has no run of this id";
            Refusal::new(Code::UnknownRun, message)
        })?;
        Ok(RunInfo {
            session_epoch: self.epoch(session),
            run: run.clone(),
            state: row.state,
            run_epoch: row.run_epoch,
            writer: row.writer,
            input: row.input,
            parent: row.parent,
            suspended: row.suspended,
            step: row.open_step,
            lease_ms: row.lease_ms,
            epilogue: row.epilogue.map(|epilogue| epilogue.run_epoch),
            started: row.started,
            ended: row.ended,
            last_seq: epoch.last_seq,
            last_offset: epoch.last_offset,
        })
    }

    /// Watches a run for its end or a new writer, from now on. UNKNOWN_SESSION.
    pub(crate) async fn watch_run(
        &self,
        namespace: &Namespace,
        session: &SessionName,
        run: &RunId,
    ) -> Result<RunWatch, Refusal> {
        self.shard.barrier().await?;
        let name = SessionRef {
            namespace: namespace.clone(),
            session: session.clone(),
        };
        let (feed, run) = (self.shard.feed.clone(), run.clone());
        let watch = self.shard.reads.run(move |store| {
            let Some(session) = reads::named(store, &name)? else {
                return Ok(Err(unknown_session()));
            };
            let watch = match feed.watch(session, run) {
                Ok(watch) => watch,
                Err(refusal) => return Ok(Err(refusal)),
            };
            // A session that is deleted from here on ends the watch.
            if reads::named(store, &name)? != Some(session) {
                let message = "the session was deleted meanwhile: ask again";
                return Ok(Err(Refusal::new(Code::Stale, message)));
            }
            Ok(Ok(watch))
        });
        watch.await?
    }
}

/// What a read is told where an attach gets an answer.
fn refusal_of(answer: Answer) -> Refusal {
    match answer {
        Answer::NotFound => unknown_session(),
        Answer::Gone {
            session_epoch,
            earliest,
            tail,
            ..
        } => {
            let details = Details {
                session_epoch: Some(session_epoch),
                earliest: Some(earliest),
                tail: Some(tail),
                ..Details::default()
            };
            Refusal::with(Code::Gone, "this offset cannot be read here", details)
        },
        Answer::Wait | Answer::Resumed { .. } => {
            Refusal::new(Code::Stale, "this replica has not applied the offset yet")
        },
    }
}
