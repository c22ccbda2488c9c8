//! `Sessions`: sessions as such. A caller sees only names that its token may read.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use everwire_core::grant::Capability;
use everwire_core::limits::{LIST_DEFAULT, LIST_LOOKED_AT_MAX, LIST_MAX};
use everwire_core::{Code, Op, Outcome, Refusal, SessionName};
use everwire_proto::{field, v1};
use everwire_shard::Listed;
use tonic::{Request, Response, Status};

use crate::context::Context;
use crate::identity::Caller;
use crate::service::{answer, session};

/// See the module.
pub(crate) struct Sessions {
    context: Arc<Context>,
}

/// Where the next page of a list begins: in which shard, after which name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct PageToken {
    shard: usize,
    after: Option<SessionName>,
}

impl fmt::Display for PageToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let after = self.after.as_ref().map_or("", SessionName::as_str);
        write!(f, "{}:{after}", self.shard)
    }
}

impl FromStr for PageToken {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Self, Refusal> {
        let bad = || Refusal::new(Code::Malformed, "page_token: not one that a node gave");
        if text.is_empty() {
            return Ok(Self::default());
        }
        let (shard, after) = text.split_once(':').ok_or_else(bad)?;
        Ok(Self {
            shard: shard.parse().ok().ok_or_else(bad)?,
            after: field::optional_name("page_token", after)?,
        })
    }
}

impl Sessions {
    /// The service of a node.
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context }
    }

    async fn create(
        &self,
        caller: &Caller,
        asked: v1::CreateRequest,
    ) -> Result<v1::CreateResponse, Refusal> {
        let session = session(&asked.session)?;
        let now = self.context.clock.now();
        let namespace = caller.writer(Capability::Create, &session, now)?;
        let command = caller.command(namespace, session, Op::CreateSession);
        match self.context.propose(command).await? {
            Outcome::SessionReady {
                session_epoch,
                tail,
                created,
            } => Ok(v1::CreateResponse {
                session_epoch: session_epoch.to_string(),
                tail: tail.get(),
                created,
            }),
            other => Err(Context::unexpected(&other)),
        }
    }

    async fn show(
        &self,
        caller: &Caller,
        asked: v1::ShowRequest,
    ) -> Result<v1::ShowResponse, Refusal> {
        let session = session(&asked.session)?;
        let now = self.context.clock.now();
        let namespace = caller.reader(&session, None, now)?;
        let shard = self.context.shard(&namespace, &session);
        let info = shard.show(&namespace, &session).await?;
        let leader = info.leader.and_then(|node| self.context.addr_of(node));
        Ok(v1::ShowResponse {
            session: asked.session,
            session_epoch: info.session_epoch.to_string(),
            shard: info.shard.0,
            leader: leader.unwrap_or_default(),
            tail: info.tail.get(),
            trimmed: info.trimmed.get(),
            bytes: info.bytes,
            created_ms: info.created.0,
            last_ms: info.last_time.0,
            attachments: info.attachments,
            open_runs: info.open_runs.iter().map(ToString::to_string).collect(),
            frozen_ms: info.frozen.as_ref().map_or(0, |frozen| frozen.time.0),
            frozen_by: info
                .frozen
                .map_or_else(String::new, |frozen| frozen.command),
        })
    }

    async fn list(
        &self,
        caller: &Caller,
        asked: v1::ListRequest,
    ) -> Result<v1::ListResponse, Refusal> {
        let namespace = caller.claims().for_namespace(None)?;
        let prefix: Option<SessionName> = field::optional_name("prefix", &asked.prefix)?;
        let prefix = prefix.as_ref().map_or("", SessionName::as_str);
        let limit = match usize::try_from(asked.limit).unwrap_or(LIST_MAX) {
            0 => LIST_DEFAULT,
            some => some.min(LIST_MAX),
        };
        let mut place: PageToken = asked.page_token.parse()?;
        let mut found = Vec::new();
        let mut looked_at = 0;
        let shards = self.context.shards.shards();
        while let Some(shard) = shards.get(place.shard) {
            let want = LIST_DEFAULT.max(limit);
            let page = shard
                .list(&namespace, prefix, place.after.as_ref(), want)
                .await?;
            let is_last = page.len() < want;
            for listed in page {
                looked_at += 1;
                place.after = Some(listed.session.clone());
                if caller.claims().has(Capability::Subscribe, &listed.session) {
                    found.push(wire(&listed));
                }
                // Names that the caller may not see fill no page, but they are work all the same.
                if found.len() >= limit || looked_at >= LIST_LOOKED_AT_MAX {
                    return Ok(v1::ListResponse {
                        sessions: found,
                        next_page_token: place.to_string(),
                    });
                }
            }
            if is_last {
                place = PageToken {
                    shard: place.shard + 1,
                    after: None,
                };
            }
        }
        Ok(v1::ListResponse {
            sessions: found,
            next_page_token: String::new(),
        })
    }

    async fn delete(
        &self,
        caller: &Caller,
        asked: v1::DeleteRequest,
    ) -> Result<v1::DeleteResponse, Refusal> {
        let session = session(&asked.session)?;
        let now = self.context.clock.now();
        let namespace = caller.writer(Capability::Admin, &session, now)?;
        let command = caller.command(namespace, session, Op::DeleteSession);
        match self.context.propose(command).await? {
            Outcome::SessionDeleted { existed } => Ok(v1::DeleteResponse { existed }),
            other => Err(Context::unexpected(&other)),
        }
    }

    async fn unfreeze(
        &self,
        caller: &Caller,
        asked: v1::UnfreezeRequest,
    ) -> Result<v1::UnfreezeResponse, Refusal> {
        let session = session(&asked.session)?;
        let now = self.context.clock.now();
        let namespace = caller.writer(Capability::Operate, &session, now)?;
        let command = caller.command(namespace, session, Op::Unfreeze);
        match self.context.propose(command).await? {
            Outcome::SessionUnfrozen { frozen, .. } => Ok(v1::UnfreezeResponse { frozen }),
            other => Err(Context::unexpected(&other)),
        }
    }
}

fn wire(listed: &Listed) -> v1::ListedSession {
    v1::ListedSession {
        session: listed.session.to_string(),
        shard: listed.shard.0,
        tail: listed.tail.get(),
        last_ms: listed.last_time.0,
    }
}

#[tonic::async_trait]
impl v1::sessions_server::Sessions for Sessions {
    async fn create(
        &self,
        request: Request<v1::CreateRequest>,
    ) -> Result<Response<v1::CreateResponse>, Status> {
        answer!(self.create(request))
    }

    async fn show(
        &self,
        request: Request<v1::ShowRequest>,
    ) -> Result<Response<v1::ShowResponse>, Status> {
        answer!(self.show(request))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        answer!(self.list(request))
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteRequest>,
    ) -> Result<Response<v1::DeleteResponse>, Status> {
        answer!(self.delete(request))
    }

    async fn unfreeze(
        &self,
        request: Request<v1::UnfreezeRequest>,
    ) -> Result<Response<v1::UnfreezeResponse>, Status> {
        answer!(self.unfreeze(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_tokens_read_back() {
        let token = PageToken {
            shard: 7,
            after: SessionName::parse("a:b~c").ok(),
        };
        assert_eq!(token.to_string().parse(), Ok(token));
        assert_eq!("".parse(), Ok(PageToken::default()));
        assert_eq!("3:".parse::<PageToken>().map(|token| token.after), Ok(None));
        for bad in ["x", "x:a", ":a", "1:a/b", "-1:a"] {
            assert!(bad.parse::<PageToken>().is_err(), "{bad}");
        }
    }
}
