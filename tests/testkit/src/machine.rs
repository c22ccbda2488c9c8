//! The machine that the tests run on: how busy it is, and a way to be heard on it.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

/// How often the machine is asked for a moment of its time.
const TICK: Duration = Duration::from_millis(10);
/// A machine that let a thread wait for longer than this was busy with something else.
const LATE_MAX: Duration = Duration::from_millis(150);

/// Says something to whoever runs the tests, also when the test passes: what is skipped, and
/// what was measured.
pub fn say(text: &str) {
    // Not a macro: those are captured.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// The load averages of the last minute; 0 where nobody knows them.
pub fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split_whitespace().next();
    first.and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// Watches whether the machine keeps its threads waiting, on a thread of its own runtime: times
/// that were measured meanwhile say something only if it does not.
pub struct Quiet {
    load_before: f64,
    latest_ms: Arc<AtomicU64>,
    watching: JoinHandle<()>,
}

impl Quiet {
    /// Begins to watch.
    pub fn watch() -> Self {
        let latest_ms = Arc::new(AtomicU64::new(0));
        let latest = Arc::clone(&latest_ms);
        let watching = tokio::spawn(async move {
            loop {
                let due = Instant::now() + TICK;
                tokio::time::sleep_until(due).await;
                let late = due.elapsed().as_millis();
                latest.fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Ordering::Relaxed);
            }
        });
        Self {
            load_before: load_average(),
            latest_ms,
            watching,
        }
    }

    /// How long a thread had to wait for its turn, at worst.
    pub fn latest(&self) -> Duration {
        Duration::from_millis(self.latest_ms.load(Ordering::Relaxed))
    }

    /// Whether times that were measured since mean something.
    pub fn was_quiet(&self) -> bool {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let cores = u32::try_from(cores).map_or(1.0, f64::from);
        // What runs here itself loads the machine; others must not have done so before.
        self.load_before <= cores + 0.5
            && load_average() <= 3.0 * cores
            && self.latest() <= LATE_MAX
    }

    /// For the line in which a measurement is told.
    pub fn describe(&self) -> String {
        let (before, now) = (self.load_before, load_average());
        let latest = self.latest();
        let quiet = if self.was_quiet() { "quiet" } else { "busy" };
        format!("{quiet} machine: load {before:.1} to {now:.1}, a thread waited {latest:?}")
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.watching.abort();
    }
}
