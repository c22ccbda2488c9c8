//! Whether a writer still holds its run, for a stream whose client is silent.
//!
//! The run is watched, and looked up whenever the watch hears of it or has ended: a node that
//! leaves its service or an election cost the writer nothing, they are waited for.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use everwire_core::{Advice, Code, Refusal};
use everwire_shard::{Heard, RunWatch};

use crate::context::Context;
use crate::service::publish::Target;

/// How soon a look that found nobody to ask is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(250);

/// What a look finds: why the run takes nothing new, if so, and the watch that goes on.
type Looked = Result<(Option<Refusal>, RunWatch), Refusal>;

/// One writer's standing in its run.
pub(super) struct Standing {
    context: Arc<Context>,
    target: Target,
    state: State,
}

enum State {
    Watching(RunWatch),
    /// A look that is under way, and has the watch.
    Looking(Pin<Box<dyn Future<Output = Looked> + Send>>),
    /// It could not be looked up for good.
    Over,
}

impl Standing {
    /// Watches from now on, and tells why the run takes nothing new already, if so.
    pub(super) async fn open(
        context: &Arc<Context>,
        target: &Target,
    ) -> Result<(Self, Option<Refusal>), Refusal> {
        let watch = watched(context, target).await?;
        let over = over(context, target).await?;
        let standing = Self {
            context: Arc::clone(context),
            target: target.clone(),
            state: State::Watching(watch),
        };
        Ok((standing, over))
    }

    /// Why the run takes nothing new from this writer, once that is so. `Err`: it will never be
    /// known, for the session is gone. Cancel-safe.
    pub(super) async fn lost(&mut self) -> Result<Refusal, Refusal> {
        loop {
            match &mut self.state {
                State::Watching(watch) => {
                    let heard = watch.heard().await;
                    let State::Watching(watch) = std::mem::replace(&mut self.state, State::Over)
                    else {
                        continue;
                    };
                    let watch = (heard == Heard::Touched).then_some(watch);
                    let look = look(Arc::clone(&self.context), self.target.clone(), watch);
                    self.state = State::Looking(Box::pin(look));
                },
                State::Looking(look) => {
                    let looked = look.await;
                    self.state = State::Over;
                    let (over, watch) = looked?;
                    self.state = State::Watching(watch);
                    if let Some(refusal) = over {
                        return Ok(refusal);
                    }
                },
                State::Over => std::future::pending().await,
            }
        }
    }
}

/// Looks until somebody answers. What happened while nobody watched is found by the look after
/// the watch was made.
async fn look(context: Arc<Context>, target: Target, mut watch: Option<RunWatch>) -> Looked {
    loop {
        let looked = async {
            let watch = match watch.take() {
                Some(watch) => watch,
                None => watched(&context, &target).await?,
            };
            let over = over(&context, &target).await;
            Ok((over, watch))
        };
        let refusal = match looked.await {
            Ok((Ok(over), watch)) => return Ok((over, watch)),
            Ok((Err(refusal), left)) => {
                watch = Some(left);
                refusal
            },
            Err(refusal) => refusal,
        };
        if !matches!(refusal.advice(), Advice::Retry | Advice::RetryElsewhere) {
            return Err(refusal);
        }
        tracing::debug!(session = %target.session, run = %target.run, %refusal, "looks again");
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

async fn watched(context: &Context, target: &Target) -> Result<RunWatch, Refusal> {
    let shard = context.shard(&target.namespace, &target.session);
    let watch = shard.watch_run(&target.namespace, &target.session, &target.run);
    watch.await
}

/// Why the run takes nothing new from this writer, if so. A run that is not known is left to its
/// first batch to be told.
async fn over(context: &Context, target: &Target) -> Result<Option<Refusal>, Refusal> {
    let shard = context.shard(&target.namespace, &target.session);
    let info = shard.run(&target.namespace, &target.session, &target.run);
    match info.await {
        Ok(info) => Ok(target.over(&info)),
        Err(refusal) if refusal.code == Code::UnknownRun => Ok(None),
        Err(refusal) => Err(refusal),
    }
}
