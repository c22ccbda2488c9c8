//! Bounds on times: what is promised of a quiet machine, and what even a busy one must keep.

use std::time::Duration;

use everwire_testkit::machine::Quiet;
use everwire_testkit::say;

/// Longest wait for leaders to be where they belong.
pub(crate) const BALANCED_WITHIN: Duration = Duration::from_secs(120);
/// Longest wait for something to go on at all; how long it took is measured.
pub(crate) const GOES_ON_WITHIN: Duration = Duration::from_secs(90);
/// `make test` must not fail for somebody else's load of a moment: it holds a quiet machine to so
/// many times the bound. `make cluster` and `make stop-race`
/// take it at its word.
const LENIENT: u32 = 3;
/// Longest stall that even a machine with other things to do may show.
const BUSY_WITHIN: Duration = Duration::from_secs(60);

/// Says what was measured, with the state of the machine beside it, and holds it against the
/// bound of a quiet one if it was that, and against `busy` otherwise.
pub(crate) fn hold(what: &str, mut times: Vec<Duration>, bound: Duration, quiet: &Quiet) {
    assert!(!times.is_empty(), "{what}: nothing was measured");
    times.sort();
    let median = times[times.len() / 2];
    let worst = times[times.len() - 1];
    let (count, machine) = (times.len(), quiet.describe());
    say(&format!(
        "{what}: median {median:.0?}, worst {worst:.0?} of {count}, bound {bound:.0?}; {machine}"
    ));
    let asked = |name| std::env::var_os(name).is_some();
    let strict = asked("EVERWIRE_KILLS") || asked("EVERWIRE_STOPS");
    let bound = match quiet.was_quiet(bound) {
        true if strict => bound,
        true => bound * LENIENT,
        false => bound.max(BUSY_WITHIN),
    };
    assert!(worst <= bound, "{what}: {worst:?}, the bound is {bound:?}");
}
