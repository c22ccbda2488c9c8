//! `everwire-simulate SEED [--wires] [--lie] [--tell FILTER]`: plays one seed and prints its log;
//! to stderr, what the machines' own logs say (`--tell info`). The last line is the number of lines
//! that there were, and their digest; the exit code is 1 if anything was violated.
//!
//! One seed is one process: whatever a library keeps for the life of a process begins anew.

mod entropy;

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::Ordering;

use everwire_simulation::scene::{Options, play};
use everwire_simulation::sky::{PROCESS_MS, Sky};
use everwire_simulation::world::{note_panics, turn_of};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Unoptimised futures of a whole cluster are deep.
const STACK_BYTES: usize = 32 << 20;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seed = arguments.first().and_then(|seed| seed.parse().ok());
    let Some(seed) = seed else {
        eprint("which seed? everwire-simulate SEED [--wires] [--lie] [--tell FILTER]");
        return ExitCode::from(2);
    };
    let asked = |flag: &str| arguments.iter().any(|argument| argument == flag);
    entropy::seed(seed);
    let mut tell = arguments
        .iter()
        .skip_while(|argument| *argument != "--tell");
    if let Some(filter) = tell.nth(1) {
        tell_all(filter);
    }
    note_panics();
    let (lie, wires) = (asked("--lie"), asked("--wires"));
    // On a thread of its own: hash seeds are drawn per thread, and what the log has drawn until
    // here would change them. Looking must not change what is seen.
    let world = std::thread::Builder::new().stack_size(STACK_BYTES);
    let world = world.spawn(move || {
        let out = std::io::BufWriter::new(std::io::stdout());
        let sky = Sky::new(Box::new(out), wires);
        let violated = play(Options { seed, lie }, &sky);
        let (lines, digest) = sky.digest();
        sky.note(format_args!("{lines} lines, digest {digest:016x}"));
        violated.is_empty()
    });
    let sound = world.map(std::thread::JoinHandle::join);
    match sound {
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false) | Err(_)) | Err(_) => ExitCode::FAILURE,
    }
}

/// The machines' own logs, with the world's time and the machine's name.
fn tell_all(filter: &str) {
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .with_timer(Turn);
    let filter: Targets = filter.parse().unwrap_or_default();
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .init();
}

struct Turn;

impl FormatTime for Turn {
    fn format_time(&self, line: &mut Writer<'_>) -> std::fmt::Result {
        let now = PROCESS_MS.load(Ordering::Relaxed);
        write!(line, "{:>3}.{:03} {}", now / 1000, now % 1000, turn_of())
    }
}

fn eprint(what: &str) {
    // Nobody listens: then nobody needs to know.
    let _ = writeln!(std::io::stderr(), "{what}");
}
