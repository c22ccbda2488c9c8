//! What the whole world shares: its time, and the log of what happens in it.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use everwire_core::{Clock, Timestamp};

/// The wall clock at the beginning of every simulation.
pub const BEGINNING: Timestamp = Timestamp(1_800_000_000_000);

/// Milliseconds since the beginning, for the process as a whole: what the clocks that the
/// operating system would answer for are made to say (see the binary).
pub static PROCESS_MS: AtomicU64 = AtomicU64::new(0);

/// Time and log. Clones are the same sky.
#[derive(Clone)]
pub struct Sky(Arc<Shared>);

struct Shared {
    now: AtomicU64,
    log: Mutex<Log>,
}

struct Log {
    out: Box<dyn Write + Send>,
    lines: u64,
    /// Of everything that was noted, also of what `out` does not show.
    digest: u64,
    wires: bool,
}

impl Sky {
    /// A sky whose log goes to `out`; with the bytes on the wires if `wires`.
    pub fn new(out: Box<dyn Write + Send>, wires: bool) -> Self {
        let log = Log {
            out,
            lines: 0,
            digest: 0xcbf2_9ce4_8422_2325,
            wires,
        };
        Self(Arc::new(Shared {
            now: AtomicU64::new(0),
            log: Mutex::new(log),
        }))
    }

    /// Milliseconds since the beginning.
    pub fn now(&self) -> u64 {
        self.0.now.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, now: u64) {
        self.0.now.store(now, Ordering::Relaxed);
        PROCESS_MS.store(now, Ordering::Relaxed);
    }

    /// Writes a line into the log.
    pub fn note(&self, what: fmt::Arguments<'_>) {
        self.line(what, true);
    }

    /// The same for what happens all the time: into the log if it is a full one, and into the
    /// digest in any case.
    pub fn hum(&self, what: fmt::Arguments<'_>) {
        self.line(what, false);
    }

    fn line(&self, what: fmt::Arguments<'_>, shown: bool) {
        let now = self.now();
        let line = format!("{:>3}.{:03} {what}\n", now / 1000, now % 1000);
        let mut log = self.0.log.lock().expect("nobody panics here");
        log.lines += 1;
        log.digest = fnv(log.digest, line.as_bytes());
        if shown || log.wires {
            log.out
                .write_all(line.as_bytes())
                .expect("the log can be written");
        }
        if shown {
            // Whoever has to look into a simulation that hangs needs what it has said.
            log.out.flush().expect("the log can be written");
        }
    }

    /// How many lines were noted, and their digest.
    pub fn digest(&self) -> (u64, u64) {
        let log = self.0.log.lock().expect("nobody panics here");
        (log.lines, log.digest)
    }

    /// The clocks of one machine, the wall clock off by so much.
    pub fn clock(&self, ahead: Duration) -> Arc<dyn Clock> {
        Arc::new(SkyClock {
            sky: self.clone(),
            ahead,
        })
    }
}

/// FNV-1a, going on from `state`.
pub fn fnv(state: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(state, |state, byte| {
        (state ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

struct SkyClock {
    sky: Sky,
    ahead: Duration,
}

impl Clock for SkyClock {
    fn now(&self) -> Timestamp {
        BEGINNING
            .plus(Duration::from_millis(self.sky.now()))
            .plus(self.ahead)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_millis(self.sky.now())
    }
}
