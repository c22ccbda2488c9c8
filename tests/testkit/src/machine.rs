//! The machine that the tests run on: how busy it is, and a way to be heard on it.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

/// How often the machine is asked for a moment of its time.
const TICK: Duration = Duration::from_millis(10);
/// Ticks from one sync of a small file to the next.
const SYNC_EVERY: u32 = 10;
/// A machine may disturb a measurement by one part in so many of what is measured.
const DISTURBED_BY: u32 = 8;
/// And keeps no thread and no sync waiting for longer, however long the measured time is.
const DISTURBED_MAX: Duration = Duration::from_millis(100);
/// What a cluster and its load themselves make of the load average, for each core.
const OWN_LOAD: f64 = 3.0;

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

/// Watches what the machine does to whoever runs on it, with a thread that wants a moment again
/// and again, and sometimes the disk: times that were measured meanwhile say something only if
/// it got them soon.
pub struct Quiet {
    load_before: f64,
    seen: Arc<Seen>,
}

#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    late_us: AtomicU64,
    sync_us: AtomicU64,
}

impl Quiet {
    /// Begins to watch.
    pub fn watch() -> Self {
        let seen = Arc::new(Seen::default());
        let watching = Arc::clone(&seen);
        thread::spawn(move || watch(&watching));
        Self {
            load_before: load_average(),
            seen,
        }
    }

    /// How long the thread had to wait for its turn, and for the disk, at worst.
    pub fn worst(&self) -> (Duration, Duration) {
        let time = |us: &AtomicU64| Duration::from_micros(us.load(Ordering::Relaxed));
        (time(&self.seen.late_us), time(&self.seen.sync_us))
    }

    /// Whether times that were measured since mean something when they are held against `bound`.
    pub fn was_quiet(&self, bound: Duration) -> bool {
        let (late, sync) = self.worst();
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let cores = u32::try_from(cores).map_or(1.0, f64::from);
        let load = self.load_before.max(load_average());
        late.max(sync) <= DISTURBED_MAX.min(bound / DISTURBED_BY) && load <= OWN_LOAD * cores
    }

    /// For the line in which a measurement is told.
    pub fn describe(&self) -> String {
        let (before, now) = (self.load_before, load_average());
        let (late, sync) = self.worst();
        format!(
            "load average {before:.1} to {now:.1}; a thread waited for {late:.0?}, a sync took \
             {sync:.0?} at worst"
        )
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        self.seen.stop.store(true, Ordering::Relaxed);
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, to see what becomes of threads"
)]
fn watch(seen: &Seen) {
    let note = |worst: &AtomicU64, time: Duration| {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        worst.fetch_max(us, Ordering::Relaxed);
    };
    let folder = crate::process::folder();
    let file = File::create(folder.path().join("sync")).expect("a writable folder");
    for tick in 0_u32.. {
        if seen.stop.load(Ordering::Relaxed) {
            return;
        }
        let due = Instant::now() + TICK;
        thread::sleep(TICK);
        note(&seen.late_us, due.elapsed());
        if tick % SYNC_EVERY == 0 {
            let begun = Instant::now();
            let synced = (&file).write_all(&[0; 512]).and_then(|()| file.sync_data());
            synced.expect("a disk with room");
            note(&seen.sync_us, begun.elapsed());
        }
    }
}
