//! What only a whole process has: its clocks, its randomness, its log and its death.
//!
//! Everything below takes these as values; this is the one place where they are real.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use everwire_core::{Clock, Random, Timestamp};
use rand::TryRng;
use rand::rngs::SysRng;
use serde::{Deserialize, Serialize};
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The machine's clocks.
pub(crate) struct SystemClock {
    started: tokio::time::Instant,
}

impl SystemClock {
    /// The clocks of this process. Needs a running tokio runtime.
    pub(crate) fn shared() -> Arc<dyn Clock> {
        Arc::new(Self {
            started: tokio::time::Instant::now(),
        })
    }
}

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where the wall clock is read"
    )]
    fn now(&self) -> Timestamp {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }
}

/// The operating system's randomness: good enough for tickets and cluster ids.
pub(crate) struct SystemRandom;

impl SystemRandom {
    /// The randomness of this process.
    pub(crate) fn shared() -> Arc<dyn Random> {
        Arc::new(Self)
    }
}

impl Random for SystemRandom {
    fn next(&self) -> u64 {
        SysRng
            .try_next_u64()
            .expect("the operating system gives random numbers")
    }
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// Sends log lines to stderr. `level` is a level or a filter like `info,everwire_edge=debug`.
///
/// Below INFO only our own crates speak: what others say there (frames, headers, log entries)
/// holds tokens and payloads, and no level may bring those into a log.
pub(crate) fn start_log(format: LogFormat, level: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(level).map_err(|error| format!("log level: {error}"))?;
    let ours = filter_fn(|metadata| {
        metadata.target().starts_with("everwire") || *metadata.level() <= Level::INFO
    });
    let registry = tracing_subscriber::registry().with(filter).with(ours);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        LogFormat::Human => {
            let lines = lines.with_ansi(std::io::stderr().is_terminal());
            registry.with(lines).init();
        },
        LogFormat::Json => {
            let lines = lines.json().flatten_event(true).with_current_span(false);
            registry.with(lines).init();
        },
    }
    Ok(())
}

/// What a server does when going on could lose or invent data: it says why and dies at once.
/// Aborting runs no destructor, so nothing half-done is flushed as if it were whole.
pub(crate) fn on_fatal() -> Arc<dyn Fn(&str) + Send + Sync> {
    Arc::new(|reason| {
        tracing::error!(reason, "fatal: the process ends");
        std::process::abort();
    })
}

/// A panic in a server is our mistake in an unknown place: a half-alive node is worse than a
/// dead one, so every panic ends the process. But for one place: the decision of a command,
/// which panics on every replica alike; the rules catch that and freeze its session. Of such a
/// panic only the place is told, because its text may hold what is in the session.
pub(crate) fn die_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if everwire_node::catches_panics() {
            let place = info.location().map(ToString::to_string);
            tracing::error!(place, "the rules met a mistake of their own in a command");
            return;
        }
        report(info);
        std::process::abort();
    }));
}
